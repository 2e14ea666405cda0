//! The `data` and `training` sections; `model`, `diffusion` and `sampling` are defined in the modules that they configure.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::evaluation::{BestBy, Rule, SampleMetric};
use super::precision::Precision;
use crate::{Error, Result};

/// The `data` section: the training data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// The data set's name: `cifar10`, `fashion-mnist`, `shapes` (built in), or that of an imported file.
    pub name: String,
    /// The data set file, if it is not `NAME.safetensors` in the data folder.
    pub path: Option<PathBuf>,
    /// The classes to keep, by name, in the order of their labels; an empty list keeps all.
    pub classes: Vec<String>,
    /// The share of each class's training images to hold out for validation, in (0, 1); the file's own held-out images then become
    /// test images, which training never sees. Null validates on the file's own held-out images.
    pub validation_fraction: Option<f64>,
    /// Seed for the images that `validation_fraction` holds out.
    pub split_seed: u64,
    /// Mirror each training image with probability 1/2, drawn per image and epoch.
    pub flip: bool,
    /// Shift each training image by up to this many pixels in each direction, drawn per image and epoch; new pixels are black. 0
    /// turns it off.
    pub crop: u16,
    /// Number of images of the built-in set `shapes`; a tenth of them is held out for validation.
    pub shapes_count: usize,
    /// Seed of the built-in set `shapes`.
    pub shapes_seed: u64,
    /// Most accelerator memory for images, in MiB; a larger set streams to it batch by batch, with the same result. Null uses the
    /// memory that the rest of the run leaves free.
    pub device_memory: Option<u64>,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            name: "cifar10".into(),
            path: None,
            classes: Vec::new(),
            validation_fraction: None,
            split_seed: 0,
            flip: false,
            crop: 0,
            shapes_count: 20_000,
            shapes_seed: 0,
            device_memory: None,
        }
    }
}

impl DataConfig {
    /// Refuses an invalid data section.
    ///
    /// # Errors
    /// [`Error::Config`] with the key and advice.
    pub fn validate(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(plain) {
            let message = format!("`{}` cannot be a data set's name", self.name.escape_debug());
            let advice = "use letters, digits, - and _, as in cifar10; a file's path goes under data.path";
            return Err(Error::config("data.name", message, advice));
        }
        if let Some(fraction) = self.validation_fraction.filter(|fraction| !(*fraction > 0.0 && *fraction < 1.0)) {
            let advice = "0.1 is usual, null holds nothing out";
            return Err(Error::config("data.validation_fraction", format!("{fraction} is outside (0, 1)"), advice));
        }
        whole("data.crop", u64::from(self.crop), 0, 16, "4 is usual for images of 32 pixels, 0 shifts none")?;
        whole("data.shapes_count", self.shapes_count as u64, 1, 10_000_000, "20000 is usual")
    }
}

/// The optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019).
    Adamw,
    /// Adam (Kingma & Ba 2015); `weight_decay` is added to the gradient.
    Adam,
}

/// The learning rate schedule after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Constant at `learning_rate`.
    Constant,
    /// Half a cosine from `learning_rate` to `min_learning_rate`.
    Cosine,
    /// Linear from `learning_rate` to `min_learning_rate`.
    Linear,
}

/// The dtype in which GPUs exchange their gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommunicationDtype {
    /// 32-bit floating point: no rounding.
    F32,
    /// bfloat16: half the bytes; each GPU's gradient and each partial sum is rounded to 8 bits of precision.
    Bf16,
}

/// An interval during training. In YAML: a whole number of steps (`500`, `500 steps`), `5 epochs`, or `never` (also `0`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// Never.
    Never,
    /// Every this many optimizer steps; above 0.
    Steps(u64),
    /// Every this many epochs; above 0.
    Epochs(u64),
}

impl Every {
    /// Whether it is due after `step` optimizer steps (1 for the first), with `steps_per_epoch` steps per epoch.
    pub fn is_due(self, step: u64, steps_per_epoch: u64) -> bool {
        let interval = match self {
            Self::Never => return false,
            Self::Steps(steps) => steps,
            Self::Epochs(epochs) => epochs.saturating_mul(steps_per_epoch),
        };
        step > 0 && interval > 0 && step.is_multiple_of(interval)
    }
}

impl fmt::Display for Every {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Steps(count) => write!(f, "{count} step{}", if *count == 1 { "" } else { "s" }),
            Self::Epochs(count) => write!(f, "{count} epoch{}", if *count == 1 { "" } else { "s" }),
        }
    }
}

impl FromStr for Every {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "a whole number of steps, `N epochs` or `never`";
        let text = text.trim();
        if text == "never" {
            return Ok(Self::Never);
        }
        let (number, unit) = text.split_once(char::is_whitespace).unwrap_or((text, "steps"));
        let count: u64 = number.parse().map_err(|_| EXPECTED)?;
        match unit.trim() {
            _ if count == 0 => Ok(Self::Never),
            "step" | "steps" => Ok(Self::Steps(count)),
            "epoch" | "epochs" => Ok(Self::Epochs(count)),
            _ => Err(EXPECTED),
        }
    }
}

impl Serialize for Every {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Steps(count) => serializer.serialize_u64(*count),
            other => serializer.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for Every {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Every;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of steps, `N epochs` or `never`")
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Every, E> {
                Ok(if count == 0 { Every::Never } else { Every::Steps(count) })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Every, E> {
                text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The `training` section. Steps are optimizer steps of `gradient_accumulation` batches each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Length of the run in passes over the training images; either this or `num_steps`.
    pub num_epochs: Option<u64>,
    /// Length of the run in optimizer steps; either this or `num_epochs`.
    pub num_steps: Option<u64>,
    /// Images per batch, on each device.
    pub batch_size: usize,
    /// Batches whose gradients are averaged in one step; with several processes, the total of all.
    pub gradient_accumulation: usize,
    /// Divides a step into this many shards (a power of two) of `gradient_accumulation` batches each, whose gradients are summed
    /// in one fixed tree: the bits are the same on 1, 2, 4, … processes, up to the number of shards. null: each process sums its
    /// batches in order.
    pub shards: Option<usize>,
    /// The dtype of the gradient exchange by NCCL: `f32`, or `bf16` with half the bytes and rounded sums. Processes that exchange
    /// through their hosts use f32.
    pub communication_dtype: CommunicationDtype,
    /// The optimizer.
    pub optimizer: OptimizerKind,
    /// Peak learning rate, reached at the end of the warm-up.
    pub learning_rate: f64,
    /// Decay of the gradient's running mean, in [0, 1).
    pub beta1: f64,
    /// Decay of the squared gradient's running mean, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the running square before dividing, above 0.
    pub epsilon: f64,
    /// Weight decay per unit of learning rate.
    pub weight_decay: f64,
    /// Steps over which the learning rate rises linearly from 0.
    pub warmup_steps: u64,
    /// The learning rate schedule after the warm-up.
    pub lr_schedule: LrSchedule,
    /// Learning rate at the end of the `cosine` and `linear` schedules.
    pub min_learning_rate: f64,
    /// Largest global norm of the gradient, to which it is scaled down; null turns clipping off.
    pub gradient_clip: Option<f64>,
    /// Decay per step of the exponential moving average of the weights, in [0, 1); 0 makes it equal to the weights.
    pub ema_decay: f64,
    /// Let the average's decay rise as (1 + step) / (10 + step) up to `ema_decay`, so that short runs forget the initial weights.
    pub ema_warmup: bool,
    /// Share of labels replaced by the null label, in [0, 1), which classifier-free guidance needs.
    pub label_dropout: f64,
    /// Share of a classifier's target that is spread evenly over all classes, in [0, 1) (Szegedy et al. 2016).
    pub label_smoothing: f64,
    /// The storage dtype of activations, and how products are made.
    pub precision: Precision,
    /// Seed of all random numbers of a run: weights, order of images, noise, timesteps, dropped labels.
    pub seed: u64,
    /// Steps between two lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Interval of the validation loss: steps, `N epochs` or `never`.
    pub validate_every: Every,
    /// Number of validation batches, always the same ones, spread over the set; null uses all.
    pub validation_batches: Option<usize>,
    /// Interval of sample grids: steps, `N epochs` or `never`. One is always drawn at the end.
    pub sample_every: Every,
    /// Interval of `evaluate_metric` on samples from the averaged weights: steps, `N epochs` or `never`.
    pub evaluate_every: Every,
    /// The metric against training images: `fid`, `kid`, `is`, `precision`, `recall`, `density` or `coverage`.
    pub evaluate_metric: SampleMetric,
    /// Preprocessing for InceptionV3: `torch-fidelity`, `pytorch-fid` or `clean-fid`.
    pub evaluate_rule: Rule,
    /// Number of samples, with the same noise and labels every time.
    pub evaluate_samples: usize,
    /// Number of reference training images, in proportion to the classes; null uses all.
    pub evaluate_reference: Option<usize>,
    /// The network for the features: `inception` or `efficientnet-lite0` (downloaded by `engine fetch`), or a file as for `engine
    /// eval --extractor`.
    pub evaluate_extractor: String,
    /// The criterion for the best model, which is saved as `best.safetensors`: `validation_loss` or `metric`.
    pub best_by: BestBy,
    /// Ends the run after this many evaluations in a row without improvement; null never does.
    pub patience: Option<u64>,
    /// Interval of weight histograms for TensorBoard: steps, `N epochs` or `never`.
    pub histograms_every: Every,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Number of newest checkpoints to keep, besides the best and the milestones.
    pub keep_checkpoints: usize,
    /// Epochs whose last checkpoint is never pruned; those past the run's end are ignored.
    pub milestone_epochs: Vec<u64>,
    /// CPU threads for data preparation: decoding the pictures that `--data` imports; 0 is automatic. `--threads` sets those of
    /// the computation.
    pub num_workers: usize,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            num_epochs: Some(200),
            num_steps: None,
            batch_size: 64,
            gradient_accumulation: 1,
            shards: None,
            communication_dtype: CommunicationDtype::F32,
            optimizer: OptimizerKind::Adamw,
            learning_rate: 2e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            warmup_steps: 500,
            lr_schedule: LrSchedule::Constant,
            min_learning_rate: 0.0,
            gradient_clip: Some(1.0),
            ema_decay: 0.9999,
            ema_warmup: true,
            label_dropout: 0.1,
            label_smoothing: 0.0,
            precision: Precision::Auto,
            seed: 0,
            log_every: 50,
            validate_every: Every::Epochs(1),
            validation_batches: Some(64),
            sample_every: Every::Epochs(10),
            evaluate_every: Every::Never,
            evaluate_metric: SampleMetric::Fid,
            evaluate_rule: Rule::TorchFidelity,
            evaluate_samples: 2000,
            evaluate_reference: None,
            evaluate_extractor: "inception".into(),
            best_by: BestBy::ValidationLoss,
            patience: None,
            histograms_every: Every::Never,
            checkpoint_every: 1000,
            keep_checkpoints: 3,
            milestone_epochs: vec![40, 80, 120, 160, 200],
            num_workers: 0,
        }
    }
}

impl TrainingConfig {
    /// Refuses an invalid training section.
    ///
    /// # Errors
    /// [`Error::Config`] with the key and advice.
    pub fn validate(&self) -> Result<()> {
        const LONG: u64 = 1_000_000_000;
        match (self.num_epochs, self.num_steps) {
            (Some(epochs), None) => whole("training.num_epochs", epochs, 1, LONG, "give at least one epoch")?,
            (None, Some(steps)) => whole("training.num_steps", steps, 1, LONG, "give at least one step")?,
            (None, None) => {
                let advice = "set training.num_epochs or training.num_steps";
                return Err(Error::config("training.num_steps", "the length of the run is not set", advice));
            }
            (Some(epochs), Some(steps)) => {
                let message = format!("the length is given twice, as {steps} steps and {epochs} epochs");
                return Err(Error::config("training.num_steps", message, "set one of the two to null"));
            }
        }
        whole("training.batch_size", self.batch_size as u64, 1, 1 << 20, "64 is usual")?;
        whole(
            "training.gradient_accumulation",
            self.gradient_accumulation as u64,
            1,
            1 << 20,
            "1 means no accumulation",
        )?;
        if let Some(shards) = self.shards.filter(|shards| !shards.is_power_of_two() || *shards > 1024) {
            let message = format!("{shards} is not a power of two up to 1024");
            return Err(Error::config(
                "training.shards",
                message,
                "8 serves 1, 2, 4 and 8 processes; null turns it off",
            ));
        }
        if self.shards.is_some() && self.communication_dtype == CommunicationDtype::Bf16 {
            let message = "sums that are rounded on the way would not have the bits that training.shards promises";
            return Err(Error::config(
                "training.communication_dtype",
                message,
                "set it to f32, or training.shards to null",
            ));
        }
        whole("training.warmup_steps", self.warmup_steps, 0, LONG, "0 means no warm-up")?;
        whole("training.log_every", self.log_every, 1, LONG, "50 is usual")?;
        whole("training.checkpoint_every", self.checkpoint_every, 1, LONG, "1000 is usual")?;
        whole("training.keep_checkpoints", self.keep_checkpoints as u64, 1, 1 << 20, "3 is usual")?;
        whole("training.num_workers", self.num_workers as u64, 0, 4096, "0 is automatic")?;
        self.validate_evaluation()?;
        if let Some(batches) = self.validation_batches {
            whole("training.validation_batches", batches as u64, 1, LONG, "null takes all validation images")?;
        }
        for epoch in &self.milestone_epochs {
            whole("training.milestone_epochs", *epoch, 1, LONG, "epochs count from 1")?;
        }
        positive("training.learning_rate", self.learning_rate, "2e-4 is usual")?;
        positive("training.epsilon", self.epsilon, "1e-8 is usual")?;
        if let Some(norm) = self.gradient_clip {
            positive("training.gradient_clip", norm, "null turns clipping off")?;
        }
        share("training.beta1", self.beta1, "0.9 is usual")?;
        share("training.beta2", self.beta2, "0.999 is usual")?;
        share("training.ema_decay", self.ema_decay, "0.9999 is usual, 0 keeps no average")?;
        share("training.label_dropout", self.label_dropout, "0.1 is usual, 0 drops none")?;
        share("training.label_smoothing", self.label_smoothing, "0.1 is usual for a classifier, 0 turns it off")?;
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            let message = format!("{} is not 0 or more", self.weight_decay);
            return Err(Error::config("training.weight_decay", message, "0.01 is usual, 0 turns it off"));
        }
        if !(0.0..=self.learning_rate).contains(&self.min_learning_rate) {
            let message = format!("{} is outside 0…{}", self.min_learning_rate, self.learning_rate);
            return Err(Error::config("training.min_learning_rate", message, "give at most training.learning_rate"));
        }
        Ok(())
    }

    /// Batches per optimizer step, over all processes.
    pub fn micro_batches(&self) -> usize {
        self.gradient_accumulation.saturating_mul(self.shards.unwrap_or(1))
    }

    fn validate_evaluation(&self) -> Result<()> {
        const MOST: u64 = 10_000_000;
        whole(
            "training.evaluate_samples",
            self.evaluate_samples as u64,
            10,
            MOST,
            "2000 shows a trend, 10000 is usual",
        )?;
        if let Some(images) = self.evaluate_reference {
            whole("training.evaluate_reference", images as u64, 10, MOST, "null takes all training images")?;
        }
        if let Some(patience) = self.patience {
            whole("training.patience", patience, 1, MOST, "null never ends a run early")?;
        }
        let never = self.evaluate_every == Every::Never;
        for (key, asked) in
            [("training.best_by", self.best_by == BestBy::Metric), ("training.patience", self.patience.is_some())]
        {
            if asked && never {
                let message = "needs a metric, but training.evaluate_every is never";
                return Err(Error::config(key, message, "set training.evaluate_every, as to 10 epochs"));
            }
        }
        Ok(())
    }

    /// Length of the run in optimizer steps, with `steps_per_epoch` steps per epoch.
    pub fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        match (self.num_steps, self.num_epochs) {
            (Some(steps), _) => steps,
            (None, Some(epochs)) => epochs.saturating_mul(steps_per_epoch),
            (None, None) => 0,
        }
    }
}

/// `value` must lie in `least..=most`.
fn whole(key: &str, value: u64, least: u64, most: u64, advice: &str) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::config(key, format!("{value} is outside {least}…{most}"), advice))
}

/// `value` must be a finite number above 0.
fn positive(key: &str, value: f64, advice: &str) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::config(key, format!("{value} is not a number above 0"), advice))
}

/// `value` must lie in [0, 1).
fn share(key: &str, value: f64, advice: &str) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::config(key, format!("{value} is outside [0, 1)"), advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reads_its_own_writing() {
        for every in [Every::Never, Every::Steps(1), Every::Steps(500), Every::Epochs(1), Every::Epochs(20)] {
            assert_eq!(every.to_string().parse::<Every>().unwrap(), every);
            let json = serde_json::to_string(&every).unwrap();
            assert_eq!(serde_json::from_str::<Every>(&json).unwrap(), every, "{json}");
        }
        assert_eq!(serde_json::from_str::<Every>("0").unwrap(), Every::Never);
        for bad in ["\"2 weeks\"", "\"often\"", "\"-3 epochs\"", "-3", "1.5", "true", "null"] {
            assert!(serde_json::from_str::<Every>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_is_due_at_multiples() {
        let due = |every: Every| (0..=12).filter(|step| every.is_due(*step, 3)).collect::<Vec<_>>();
        assert_eq!(due(Every::Steps(5)), [5, 10]);
        assert_eq!(due(Every::Epochs(2)), [6, 12]);
        assert!(due(Every::Never).is_empty());
    }

    #[test]
    fn each_bad_value_names_its_key() {
        let base = TrainingConfig::default;
        let cases = [
            ("num_steps", TrainingConfig { num_steps: Some(5), ..base() }),
            ("num_steps", TrainingConfig { num_epochs: None, ..base() }),
            ("num_epochs", TrainingConfig { num_epochs: Some(0), ..base() }),
            ("batch_size", TrainingConfig { batch_size: 0, ..base() }),
            ("gradient_accumulation", TrainingConfig { gradient_accumulation: 0, ..base() }),
            ("log_every", TrainingConfig { log_every: 0, ..base() }),
            ("checkpoint_every", TrainingConfig { checkpoint_every: 0, ..base() }),
            ("keep_checkpoints", TrainingConfig { keep_checkpoints: 0, ..base() }),
            ("validation_batches", TrainingConfig { validation_batches: Some(0), ..base() }),
            ("milestone_epochs", TrainingConfig { milestone_epochs: vec![40, 0], ..base() }),
            ("evaluate_samples", TrainingConfig { evaluate_samples: 9, ..base() }),
            ("evaluate_reference", TrainingConfig { evaluate_reference: Some(0), ..base() }),
            ("best_by", TrainingConfig { best_by: BestBy::Metric, ..base() }),
            ("patience", TrainingConfig { patience: Some(3), ..base() }),
            ("learning_rate", TrainingConfig { learning_rate: f64::NAN, ..base() }),
            ("epsilon", TrainingConfig { epsilon: 0.0, ..base() }),
            ("gradient_clip", TrainingConfig { gradient_clip: Some(-1.0), ..base() }),
            ("beta1", TrainingConfig { beta1: 1.0, ..base() }),
            ("beta2", TrainingConfig { beta2: -0.1, ..base() }),
            ("ema_decay", TrainingConfig { ema_decay: 1.0, ..base() }),
            ("label_dropout", TrainingConfig { label_dropout: 1.0, ..base() }),
            ("weight_decay", TrainingConfig { weight_decay: f64::INFINITY, ..base() }),
            ("min_learning_rate", TrainingConfig { min_learning_rate: 1.0, ..base() }),
        ];
        base().validate().unwrap();
        for (key, config) in cases {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(&format!("training.{key}: ")), "{message}");
        }
        for name in ["", "../x", ".x", "a b", "a/b"] {
            let data = DataConfig { name: name.into(), ..DataConfig::default() };
            assert!(data.validate().unwrap_err().to_string().starts_with("data.name: "));
        }
        for fraction in [0.0, 1.0, -0.1, f64::NAN] {
            let data = DataConfig { validation_fraction: Some(fraction), ..DataConfig::default() };
            assert!(data.validate().unwrap_err().to_string().starts_with("data.validation_fraction: "));
        }
        let data = DataConfig { crop: 17, ..DataConfig::default() };
        assert!(data.validate().unwrap_err().to_string().starts_with("data.crop: "));
        let data = DataConfig { shapes_count: 0, ..DataConfig::default() };
        assert!(data.validate().unwrap_err().to_string().starts_with("data.shapes_count: "));
    }
}
