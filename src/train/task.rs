//! Training tasks: a network, its parameters, and its loss.

use std::fmt;
use std::rc::Rc;

use crate::config::Config;
use crate::diffusion::{Batch, Denoiser, Loss, LossMode, Objective};
use crate::error::{Error, Result};
use crate::image_size::ImageSize;
use crate::model_file::{ClassifierModel, Loaded, ModelFile};
use crate::models::{self, Classifier, CustomConfig, ModelConfig, Network};
use crate::nn::{Builder, Scope};
use crate::ops::cross_entropy::cross_entropy;
use crate::ops::elementwise::cast;
use crate::tensor::{Context, DType, Tensor};

/// Separates the validation noise from the training noise.
const VALIDATION_SEED: u64 = 0x5641_4C49_4441_5445;

/// A task for a [`Trainer`](super::Trainer).
///
/// A [`ModelConfig`] is a task: it trains the network that it describes. [`Denoise`] and [`Classify`] make a task of your own
/// network. For your own loss implement this trait and [`Criterion`].
pub trait Task: fmt::Debug + Send + Sync {
    /// The `model` section for the run, its checkpoints and its model files.
    fn model(&self) -> ModelConfig;

    /// Builds the network with its loss, and the parameters that it declares. Called more than once in a run: planning builds on a
    /// shape-only context. `config` is the whole configuration with this task's model section.
    ///
    /// # Errors
    /// [`Error::Config`] for a configuration without a valid network.
    fn build(&self, context: &Context, config: &Config) -> Result<(Box<dyn Criterion>, Builder)>;
}

/// A network with its loss.
pub trait Criterion {
    /// The network, if it can make pictures: samples or predictions.
    fn network(&self) -> Option<Network> {
        None
    }

    /// The values of [`Loss::terms`].
    fn terms(&self) -> Terms {
        Terms::None
    }

    /// The state of the loss by name, which a checkpoint stores.
    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        Vec::new()
    }

    /// Whether [`Criterion::learn`] does anything, and whether it needs the items.
    fn learns(&self) -> Learns {
        Learns::default()
    }

    /// Updates the state of the loss after a step's last batch, from the mean of the batches' terms and the losses and bins of all
    /// items. Every rank of a job gets the same values.
    ///
    /// # Errors
    /// Those of the ops.
    fn learn(&self, context: &Context, terms: Option<&Tensor>, items: Option<&(Tensor, Tensor)>) -> Result<()> {
        let _ = (context, terms, items);
        Ok(())
    }

    /// The loss of a batch. A step is captured once and then replayed, so everything that changes between steps is read from the
    /// device: the images, the labels and the control buffer.
    ///
    /// # Errors
    /// Those of the network and of the ops.
    fn loss(&self, pass: &Pass, batch: Batch) -> Result<Loss>;
}

/// The data from which a loss updates its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learns {
    /// Nothing.
    pub any: bool,
    /// From the items' losses and their bins.
    pub items: bool,
}

/// The parts of a loss that are reported besides its mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// None.
    None,
    /// Means over the batch, by name.
    Means(&'static [&'static str]),
    /// The number of correct predictions in the batch, `[1]`: logs report their share, in validation too.
    RightAnswers,
}

impl Terms {
    /// Their names.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Means(names) => names,
            Self::RightAnswers => &["accuracy"],
        }
    }

    /// The divisor that turns a term of a batch of `size` into a mean.
    pub(super) fn items(self, size: usize) -> f64 {
        if self == Self::RightAnswers { size as f64 } else { 1.0 }
    }
}

/// One pass of a batch through a network.
pub struct Pass<'a> {
    /// For training or for validation.
    pub purpose: LossMode,
    /// The tape with the network's parameters, for layers and ops.
    pub scope: &'a Scope<'a>,
    /// The control buffer: step, epoch, index of the batch's first item; random numbers depend only on these.
    pub control: &'a Tensor,
    /// Factor of the mean loss.
    pub scale: f32,
}

impl Task for ModelConfig {
    fn model(&self) -> ModelConfig {
        self.clone()
    }

    fn build(&self, context: &Context, config: &Config) -> Result<(Box<dyn Criterion>, Builder)> {
        let (network, builder) = models::network(self)?;
        let criterion: Box<dyn Criterion> = match network {
            Network::Denoiser(model) => Box::new(Denoising::new(context, config, model)?),
            Network::Classifier(model) => Box::new(Classifying::new(config, model)),
        };
        Ok((criterion, builder))
    }
}

type Build<N> = Box<dyn Fn(&mut Builder) -> Result<Rc<N>> + Send + Sync>;

/// Trains your own [`Denoiser`] with the diffusion loss of the configuration.
pub struct Denoise {
    model: CustomConfig,
    network: Build<dyn Denoiser>,
}

impl Denoise {
    /// `network` declares its parameters and is called whenever the network is built; `model` is the record in files.
    pub fn new<N: Denoiser + 'static>(
        model: CustomConfig,
        network: impl Fn(&mut Builder) -> Result<N> + Send + Sync + 'static,
    ) -> Self {
        let model = CustomConfig { classifier: false, ..model };
        Self { model, network: Box::new(move |builder| Ok(Rc::new(network(builder)?))) }
    }

    /// Loads a model trained this way, using its code: [`ModelFile::load_as`]. It then samples like any other model.
    ///
    /// # Errors
    /// Those of [`ModelFile::load_as`]; [`Error::Config`] for a file of another network.
    pub fn load(&self, file: ModelFile, context: &Context, precision: DType) -> Result<Loaded<Rc<dyn Denoiser>>> {
        file.load_as(context, precision, None, |config| {
            check_same(&config.model, &self.model())?;
            self.declare()
        })
    }

    fn declare(&self) -> Result<(Rc<dyn Denoiser>, Builder)> {
        let mut builder = Builder::default();
        let network = (self.network)(&mut builder)?;
        check_shape(&self.model(), network.image_shape())?;
        Ok((network, builder))
    }
}

impl fmt::Debug for Denoise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Denoise").field(&self.model).finish()
    }
}

impl Task for Denoise {
    fn model(&self) -> ModelConfig {
        ModelConfig::Custom(self.model.clone())
    }

    fn build(&self, context: &Context, config: &Config) -> Result<(Box<dyn Criterion>, Builder)> {
        let (network, builder) = self.declare()?;
        Ok((Box::new(Denoising::new(context, config, network)?), builder))
    }
}

/// Trains your own [`Classifier`] with the cross entropy of its logits.
pub struct Classify {
    model: CustomConfig,
    network: Build<dyn Classifier>,
}

impl Classify {
    /// As [`Denoise::new`], for a classifier.
    pub fn new<N: Classifier + 'static>(
        model: CustomConfig,
        network: impl Fn(&mut Builder) -> Result<N> + Send + Sync + 'static,
    ) -> Self {
        let model = CustomConfig { classifier: true, null_label: false, ..model };
        Self { model, network: Box::new(move |builder| Ok(Rc::new(network(builder)?))) }
    }

    /// As [`Denoise::load`].
    ///
    /// # Errors
    /// As [`Denoise::load`].
    pub fn load(&self, file: ModelFile, context: &Context, precision: DType) -> Result<ClassifierModel> {
        file.load_as(context, precision, None, |config| {
            check_same(&config.model, &self.model())?;
            self.declare()
        })
    }

    fn declare(&self) -> Result<(Rc<dyn Classifier>, Builder)> {
        let mut builder = Builder::default();
        let network = (self.network)(&mut builder)?;
        check_shape(&self.model(), network.image_shape())?;
        if network.num_classes() != self.model.num_classes {
            let message = format!("{} classes, and the network has {}", self.model.num_classes, network.num_classes());
            return Err(Error::config("model.num_classes", message, "make them equal"));
        }
        Ok((network, builder))
    }
}

impl fmt::Debug for Classify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Classify").field(&self.model).finish()
    }
}

impl Task for Classify {
    fn model(&self) -> ModelConfig {
        ModelConfig::Custom(self.model.clone())
    }

    fn build(&self, _: &Context, config: &Config) -> Result<(Box<dyn Criterion>, Builder)> {
        let (network, builder) = self.declare()?;
        Ok((Box::new(Classifying::new(config, network)), builder))
    }
}

/// Checks that a file is of the task's own network.
fn check_same(file: &ModelConfig, own: &ModelConfig) -> Result<()> {
    if file == own {
        return Ok(());
    }
    let message = "the file holds another network than this task's";
    Err(Error::config("model", message, "give a file that the same task trained"))
}

fn check_shape(model: &ModelConfig, shape: [usize; 3]) -> Result<()> {
    if model.image_shape() == shape {
        return Ok(());
    }
    let [ours, own] = [model.image_shape(), shape].map(|[h, w, c]| ImageSize::new(h, w).with_channels(c));
    let message = format!("images are {ours}, and the network's are {own}");
    Err(Error::config("model.image_size", message, "make them equal"))
}

/// A diffusion model with its training and validation objectives.
struct Denoising {
    model: Rc<dyn Denoiser>,
    training: Objective,
    validation: Objective,
}

impl Denoising {
    fn new(context: &Context, config: &Config, model: Rc<dyn Denoiser>) -> Result<Self> {
        let t = &config.training;
        let objective = |purpose: LossMode, seed: u64, dropout: f64| {
            let (diffusion, null_label) = (&config.diffusion, config.model.null_label());
            Objective::new(context, diffusion, purpose, seed, dropout as f32, null_label)
        };
        let training = objective(LossMode::Training, t.seed, t.label_dropout)?;
        let validation = objective(LossMode::Validation, t.seed ^ VALIDATION_SEED, 0.0)?;
        Ok(Self { model, training, validation })
    }
}

impl Criterion for Denoising {
    fn network(&self) -> Option<Network> {
        Some(Network::Denoiser(self.model.clone()))
    }

    fn terms(&self) -> Terms {
        match self.training.terms() {
            [] => Terms::None,
            names => Terms::Means(names),
        }
    }

    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        self.training.state()
    }

    fn learns(&self) -> Learns {
        Learns { any: self.training.learns(), items: self.training.learns_from_items() }
    }

    fn learn(&self, context: &Context, terms: Option<&Tensor>, items: Option<&(Tensor, Tensor)>) -> Result<()> {
        self.training.learn(context, terms, items)
    }

    fn loss(&self, pass: &Pass, batch: Batch) -> Result<Loss> {
        let objective = if pass.purpose == LossMode::Training { &self.training } else { &self.validation };
        objective.loss(pass.scope, self.model.as_ref(), batch, pass.control, pass.scale)
    }
}

/// A classifier, with label smoothing in training only.
struct Classifying {
    model: Rc<dyn Classifier>,
    smoothing: f32,
}

impl Classifying {
    fn new(config: &Config, model: Rc<dyn Classifier>) -> Self {
        Self { model, smoothing: config.training.label_smoothing as f32 }
    }
}

impl Criterion for Classifying {
    fn network(&self) -> Option<Network> {
        Some(Network::Classifier(self.model.clone()))
    }

    fn terms(&self) -> Terms {
        Terms::RightAnswers
    }

    fn loss(&self, pass: &Pass, batch: Batch) -> Result<Loss> {
        let s = pass.scope;
        let logits = cast(s, &self.model.forward(s, &s.constant(&batch.images))?, DType::F32)?;
        let smoothing = if pass.purpose == LossMode::Training { self.smoothing } else { 0.0 };
        let found = cross_entropy(s, &logits, &s.constant(&batch.labels), smoothing, pass.scale)?;
        Ok(Loss { mean: found.loss, terms: Some(found.correct), items: None })
    }
}
