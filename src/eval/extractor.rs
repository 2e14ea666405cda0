//! Feature extractors: InceptionV3 with a rule, or a classifier trained with the engine.

use std::rc::Rc;

use serde_json::{Value, json};

use super::helpers::Helpers;
use super::rules::{PreparedTreatment, Resize, Rule, Scaling, Treatment};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model_file::ClassifierModel;
use crate::models::Classifier;
use crate::models::efficientnet::{self, EfficientNet, EfficientNetWeights};
use crate::models::inception::{self, Inception, InceptionWeights};
use crate::nn::Parameters;
use crate::ops::host::parallel;
use crate::picture::Image;
use crate::tape::{PreparedWeights, Tape};
use crate::tensor::{Context, DType, Device, Program, Tensor};

/// The input scaling of EfficientNet-lite0: (x − 127) / 128.
const LITE0: Treatment = Treatment {
    resize: Resize::BicubicAntialiased,
    scaling: Scaling { factor: 1.0 / 128.0, shift: -127.0 / 128.0 },
    size: efficientnet::SIZE,
};

enum Network {
    Inception(Box<Inception>, Rule),
    EfficientNet(Box<EfficientNet>),
    Classifier(Rc<dyn Classifier>),
}

/// A network that maps pictures to features `[N, width]` and logits `[N, classes]`.
pub struct Extractor {
    context: Context,
    network: Network,
    parameters: Rc<Parameters>,
    prepared: Rc<PreparedWeights>,
    images: Tensor,
    features: Tensor,
    logits: Tensor,
    program: Program,
    name: String,
    hash: String,
    /// The names of its classes by logit; empty for published networks.
    class_names: Vec<String>,
    /// The resize for the last picture size.
    rule: Option<PreparedTreatment>,
    scratch: Vec<f64>,
    /// Whether the weights are repacked.
    ready: bool,
    /// Other processes that share the work.
    pub(super) helpers: Option<Helpers>,
}

impl Extractor {
    /// InceptionV3, with activations in `precision` (f64 on the CPU, for comparisons), `batch` pictures at once.
    ///
    /// # Errors
    /// [`Error::Config`] for a batch of 0; those of the device.
    pub fn inception(
        context: &Context,
        weights: &InceptionWeights,
        rule: Rule,
        batch: usize,
        precision: DType,
    ) -> Result<Self> {
        Self::of_inception(context, weights.network(context, precision)?, weights.hash(), rule, batch)
    }

    pub(super) fn of_inception(
        context: &Context,
        (network, parameters): (Inception, Parameters),
        hash: &str,
        rule: Rule,
        batch: usize,
    ) -> Result<Self> {
        let sizes = [inception::SIZE, inception::SIZE, 3];
        let network = Network::Inception(Box::new(network), rule);
        let widths = [inception::FEATURES, inception::CLASSES];
        Self::planned(context, network, Rc::new(parameters), (sizes, widths), batch, ("inception", hash))
    }

    /// EfficientNet-lite0, in the same way. Pictures are resized to 224x224 with PIL's antialiased bicubic filter, as in clean-fid to 299x299.
    ///
    /// # Errors
    /// As [`Extractor::inception`].
    pub fn efficientnet(
        context: &Context,
        weights: &EfficientNetWeights,
        batch: usize,
        precision: DType,
    ) -> Result<Self> {
        Self::of_efficientnet(context, weights.network(context, precision)?, weights.hash(), batch)
    }

    pub(super) fn of_efficientnet(
        context: &Context,
        (network, parameters): (EfficientNet, Parameters),
        hash: &str,
        batch: usize,
    ) -> Result<Self> {
        let sizes = [efficientnet::SIZE, efficientnet::SIZE, 3];
        let network = Network::EfficientNet(Box::new(network));
        let widths = [efficientnet::FEATURES, efficientnet::CLASSES];
        let name = ("efficientnet-lite0", hash);
        Self::planned(context, network, Rc::new(parameters), (sizes, widths), batch, name)
    }

    /// A classifier.
    ///
    /// # Errors
    /// [`Error::Config`] for a batch of 0, and for a network without features; those of the device.
    pub fn classifier(model: &ClassifierModel, batch: usize) -> Result<Self> {
        let widths = [model.network.num_features(), model.network.num_classes()];
        if widths[0] == 0 {
            let message = format!("{} has no features", model.path.display());
            return Err(Error::config("extractor", message, "give a residual network, or use `inception`"));
        }
        let name = classifier_name(&model.info.config.model, &model.info.config.data.name);
        let network = Network::Classifier(model.network.clone());
        let hash = model.digest.sha256.clone();
        let planned = Self::planned(
            model.context(),
            network,
            model.parameters.clone(),
            (model.network.image_shape(), widths),
            batch,
            (&name, &hash),
        )?;
        Ok(Self { class_names: model.info.classes.clone(), ..planned })
    }

    fn planned(
        context: &Context,
        network: Network,
        parameters: Rc<Parameters>,
        ([height, width, channels], [features, classes]): ([usize; 3], [usize; 2]),
        batch: usize,
        (name, hash): (&str, &str),
    ) -> Result<Self> {
        if !(1..=4096).contains(&batch) {
            let message = format!("{batch} pictures in a batch");
            return Err(Error::config("feature_batch", message, "give 1 to 4096; 32 is usual"));
        }
        let dtype = parameters.precision().exact();
        let images = context.zeros([batch, height, width, channels], dtype)?;
        let of_features = context.zeros([batch, features], dtype)?;
        let logits = context.zeros([batch, classes], dtype)?;
        let prepared = Rc::new(parameters.prepared());
        let program = Program::plan(context, || {
            forward(context, &network, (&parameters, &prepared), &images, [&of_features, &logits])
        })?;
        Ok(Self {
            context: context.clone(),
            network,
            parameters,
            prepared,
            images,
            features: of_features,
            logits,
            program,
            name: name.to_string(),
            hash: hash.to_string(),
            class_names: Vec::new(),
            rule: None,
            scratch: Vec::new(),
            ready: false,
            helpers: None,
        })
    }

    /// `inception`, or the classifier's network and data set: `resnet18-cifar10`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of the classes by logit; empty if they are not known, as for published networks.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Whether the weights are those of the published file of InceptionV3, by its hash; None for another network.
    pub fn is_published(&self) -> Option<bool> {
        self.is_inception().then(|| self.hash.starts_with(inception::PUBLISHED))
    }

    /// Whether this is InceptionV3 of 2015, so that a Fréchet distance on its features is FID.
    pub fn is_inception(&self) -> bool {
        matches!(self.network, Network::Inception(..))
    }

    /// The name of a Fréchet distance on its features.
    pub fn distance_name(&self) -> String {
        match self.is_inception() {
            true => "FID".into(),
            false => format!("FD-{}", self.name),
        }
    }

    /// The preprocessing rule for InceptionV3.
    pub fn rule(&self) -> Option<Rule> {
        match &self.network {
            Network::Inception(_, rule) => Some(*rule),
            Network::Classifier(_) | Network::EfficientNet(_) => None,
        }
    }

    /// Whether it takes pictures of this height and width: a classifier of ours takes only its own, other networks resize.
    ///
    /// # Errors
    /// [`Error::Config`] where it does not.
    pub fn check_size(&self, size: [usize; 2]) -> Result<()> {
        let Network::Classifier(network) = &self.network else { return Ok(()) };
        let [height, width, _] = network.image_shape();
        check_size(size, [height, width])
    }

    /// The network's weights.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// A batch: memory and cost.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Bytes on the device: weights, pictures, features, arena.
    pub fn bytes(&self) -> usize {
        let weights = self.parameters.master().bytes() + self.parameters.fixed_bytes();
        weights + self.io_bytes() + self.program.arena_bytes()
    }

    /// Bytes for a batch of pictures, features and logits.
    pub fn io_bytes(&self) -> usize {
        [&self.images, &self.features, &self.logits].map(Tensor::bytes).iter().sum()
    }

    /// SHA-256 of the network's file.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Width of the features.
    pub fn width(&self) -> usize {
        self.features.shape().last()
    }

    /// Number of logits.
    pub fn classes(&self) -> usize {
        self.logits.shape().last()
    }

    /// Pictures computed together, on all processes that share them.
    pub fn batch(&self) -> usize {
        self.alone() * self.helpers.as_ref().map_or(1, Helpers::ranks)
    }

    /// Pictures that this process computes together.
    fn alone(&self) -> usize {
        self.images.sizes()[0]
    }

    /// The cache key: everything that its features depend on besides the pictures.
    pub fn identity(&self) -> Value {
        let device = match self.context.device() {
            Device::Cpu => "cpu",
            Device::Accelerator(_) => "accelerator",
        };
        json!({
            "network": self.name, "hash": self.hash, "rule": self.rule().map(Rule::name),
            "precision": self.parameters.precision().to_string(), "device": device,
        })
    }

    /// Features `[N, width]` and logits `[N, classes]` of up to a batch of pictures; InceptionV3's logits are without the bias.
    /// Row k depends only on picture k, not on other pictures, the batch or threads.
    ///
    /// # Errors
    /// [`Error::Config`] for a picture size that differs from a classifier's; those of the device.
    ///
    /// # Panics
    /// For more pictures than a batch.
    pub fn extract(&mut self, pictures: &[Image]) -> Result<[Vec<f64>; 2]> {
        assert!(pictures.len() <= self.batch(), "{} pictures in a batch of {}", pictures.len(), self.batch());
        let Some(helpers) = self.helpers.take() else { return self.extract_alone(pictures) };
        let found = self.extract_together(&helpers, pictures);
        self.helpers = Some(helpers);
        found
    }

    /// As [`Extractor::extract`] on this process only.
    pub(super) fn extract_alone(&mut self, pictures: &[Image]) -> Result<[Vec<f64>; 2]> {
        if !std::mem::replace(&mut self.ready, true) {
            self.prepared.refresh()?;
        }
        let len = self.images.len() / self.alone();
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(self.images.len(), 0.0);
        let placed = self.place(pictures, len, &mut scratch);
        let run = placed.and_then(|()| {
            self.images.upload_f64(&scratch)?;
            let (context, network, weights) = (&self.context, &self.network, (&*self.parameters, &self.prepared));
            let (images, results) = (&self.images, [&self.features, &self.logits]);
            self.program.run(|| forward(context, network, weights, images, results))
        });
        self.scratch = scratch;
        run?;
        let rows = |tensor: &Tensor| -> Result<Vec<f64>> {
            let mut values = tensor.to_f64()?;
            values.truncate(pictures.len() * tensor.shape().last());
            Ok(values)
        };
        Ok([rows(&self.features)?, rows(&self.logits)?])
    }

    /// Converts pictures to the network's input.
    fn place(&mut self, pictures: &[Image], len: usize, to: &mut [f64]) -> Result<()> {
        let treatment = match &self.network {
            Network::Inception(_, rule) => Some(rule.treatment()),
            Network::EfficientNet(_) => Some(LITE0),
            Network::Classifier(_) => None,
        };
        match (&self.network, treatment) {
            (_, Some(treatment)) => {
                // Handles consecutive pictures of the same size together.
                let mut slots = to.chunks_exact_mut(len).zip(pictures).collect::<Vec<_>>();
                let mut rest = slots.as_mut_slice();
                while let Some((_, first)) = rest.first() {
                    let (height, width) = (first.height(), first.width());
                    let same = |picture: &Image| (picture.height(), picture.width()) == (height, width);
                    let count = rest.iter().take_while(|(_, picture)| same(picture)).count();
                    let known = self.rule.take().filter(|known| known.size() == [height, width]);
                    let known = known.unwrap_or_else(|| PreparedTreatment::new(treatment, height, width));
                    let (now, later) = rest.split_at_mut(count);
                    parallel::for_slots(now, count * len, |(to, picture)| {
                        known.apply(picture.pixels(), picture.channels(), to);
                    });
                    self.rule = Some(known);
                    rest = later;
                }
                Ok(())
            }
            (Network::Classifier(network), _) => {
                let [height, width, channels] = network.image_shape();
                for (picture, to) in pictures.iter().zip(to.chunks_exact_mut(len)) {
                    check_size([picture.height(), picture.width()], [height, width])?;
                    let values = picture.to_signed(channels)?;
                    to.iter_mut().zip(values).for_each(|(to, x)| *to = f64::from(x));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Refuses pictures of another height and width than a classifier's.
fn check_size(found: [usize; 2], own: [usize; 2]) -> Result<()> {
    if found == own {
        return Ok(());
    }
    let message = format!("a picture of {}x{} for a classifier of {}x{}", found[1], found[0], own[1], own[0]);
    Err(Error::config("extractor", message, "give a classifier for pictures of this size"))
}

/// `resnet18-cifar10`.
fn classifier_name(model: &ModelConfig, data: &str) -> String {
    let network = match model {
        ModelConfig::Resnet(config) if config.blocks == [2, 2, 2, 2] => "resnet18",
        ModelConfig::Resnet(config) if config.blocks == [3, 4, 6, 3] => "resnet34",
        other => other.kind(),
    };
    match data {
        "" => network.to_string(),
        data => format!("{network}-{data}"),
    }
}

fn forward(
    context: &Context,
    network: &Network,
    (parameters, prepared): (&Parameters, &Rc<PreparedWeights>),
    images: &Tensor,
    [features, logits]: [&Tensor; 2],
) -> Result<()> {
    let tape = Tape::inference(context).with_prepared(prepared);
    let s = parameters.bind(&tape, None)?;
    let images = s.constant(images);
    let (of_features, of_logits) = match network {
        Network::Inception(network, _) => {
            let features = network.features(&s, &images)?;
            let logits = network.logits_without_bias(&s, &features)?;
            (features, logits)
        }
        Network::EfficientNet(network) => {
            let [features, logits] = network.forward(&s, &images)?;
            (features, logits)
        }
        Network::Classifier(network) => match network.features(&s, &images)? {
            Some([features, logits]) => (features, logits),
            None => return Err(Error::shape("extractor", "the network has no features")),
        },
    };
    features.copy_from(of_features.tensor())?;
    logits.copy_from(of_logits.tensor())
}
