//! Finds and loads the pretrained backbone of a model.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::Trainer;
use crate::config::{Config, ModelConfig};
use crate::data::{WEIGHTS, WEIGHTS_DIR};
use crate::error::{Error, Result};
use crate::model_file::{ClassifierModel, ModelFile};
use crate::models::efficientnet::EfficientNetWeights;
use crate::models::resnet::torchvision::Pretrained;
use crate::models::resnet_dit::{BACKBONE, BackboneKind};
use crate::tensor::{Context, DType};
use crate::weights::WeightFile;

const KEY: &str = "model.backbone";

/// The weights of a backbone.
pub(super) enum Found {
    Resnet(Pretrained),
    /// For images with this number of channels.
    EfficientNet(EfficientNetWeights, usize),
}

impl Found {
    fn array(&self, name: &str) -> Option<Cow<'_, [f32]>> {
        match self {
            Self::Resnet(pretrained) => pretrained.array(name).map(Cow::Borrowed),
            Self::EfficientNet(weights, channels) => weights.array(name, *channels).map(Cow::Owned),
        }
    }
}

/// The weights of the configured backbone, adapted to the images, if the model has one. Depth and width of the network, and the
/// absolute path, are written to the configuration.
///
/// # Errors
/// [`Error::Config`] if none is configured or the file is missing; those of reading it, strict about each array.
pub(super) fn find(config: &mut Config) -> Result<Option<Found>> {
    let ModelConfig::ResnetDit(model) = &mut config.model else { return Ok(None) };
    let train = "train one with `train(preset = resnet18-cifar10)` and name its run: `model.backbone = runs/…`";
    let Some(given) = model.backbone.clone() else {
        return Err(Error::config(KEY, "no pretrained network is named", train));
    };
    let published = WEIGHTS.iter().find(|weights| weights.name == given && !Path::new(&given).exists());
    let path = published.map_or(PathBuf::from(&given), |weights| Path::new(WEIGHTS_DIR).join(weights.file.name));
    if !path.exists() {
        let fetch =
            published.map_or(String::new(), |weights| format!("`engine fetch {}` downloads it; or ", weights.name));
        return Err(Error::config(KEY, format!("{} is not there", path.display()), format!("{fetch}{train}")));
    }
    let found = match read(&path)? {
        Found::Resnet(found) => {
            let found = found.adapted(model.backbone_stem, model.image_channels)?;
            model.backbone_kind = BackboneKind::Resnet;
            model.backbone_blocks = found.config.blocks.clone();
            model.backbone_widths = found.config.widths.clone();
            Found::Resnet(found)
        }
        Found::EfficientNet(weights, _) => {
            model.become_efficientnet();
            Found::EfficientNet(weights, model.image_channels)
        }
    };
    let path = std::path::absolute(&path).map_err(Error::io(&path, "find"))?;
    model.backbone = Some(
        path.into_os_string()
            .into_string()
            .map_err(|path| Error::config(KEY, format!("{} is not UTF-8", path.display()), "rename the file"))?,
    );
    config.validate()?;
    Ok(Some(found))
}

/// A file of torchvision, of EfficientNet-lite0, or a classifier of the engine.
fn read(path: &Path) -> Result<Found> {
    let file = match ModelFile::open(path) {
        Err(_) if !path.is_dir() => {
            let weights = WeightFile::open(path)?;
            return match EfficientNetWeights::fits(&weights) {
                true => Ok(Found::EfficientNet(EfficientNetWeights::open(path)?, 3)),
                false => Pretrained::of_torchvision(&weights).map(Found::Resnet),
            };
        }
        opened => opened?,
    };
    let classifier: ClassifierModel = file.load(&Context::cpu(), DType::F32, None)?;
    let flat = classifier.parameters.download()?;
    let ModelConfig::Resnet(config) = &classifier.info.config.model else {
        let message = format!("{} is a classifier of another kind than resnet", path.display());
        return Err(Error::config(KEY, message, "give a run of `train(preset = resnet18-cifar10)`"));
    };
    Ok(Found::Resnet(Pretrained::of_engine(config, &classifier.parameters, &flat)))
}

impl Trainer {
    /// Loads the weights of a pretrained network into the backbone, frozen or not.
    ///
    /// # Errors
    /// [`Error::Shape`] for a network with different sizes.
    pub(super) fn set_backbone(&self, pretrained: &Found) -> Result<()> {
        let parameters = self.parameters();
        let mut flat = parameters.download()?;
        for spec in parameters.specs() {
            let Some(name) = spec.name.strip_prefix(BACKBONE) else { continue };
            let values = pretrained
                .array(name)
                .ok_or_else(|| Error::shape("backbone", format!("the pretrained network has no {name}")))?;
            parameters.place(&mut flat, &spec.name, &values)?;
        }
        parameters.set_flat(&flat)?;
        self.averaged().master().copy_from(parameters.master())
    }
}
