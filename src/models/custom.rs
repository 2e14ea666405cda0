//! The `model` section of a network that is not part of the engine.

use serde::{Deserialize, Serialize};

use super::limits::{colours, labels, sides};
use super::{Architecture, Interface, Network};
use crate::error::{Error, Result};
use crate::image_size::ImageSize;
use crate::nn::Builder;
use crate::words::counted;

/// A network with code outside the engine. The section holds what the engine needs to know about it, and its name, so that its
/// files can be identified; the network cannot be built from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CustomConfig {
    /// The network's own name.
    pub name: String,
    /// Whether it is a classifier instead of a denoiser.
    pub classifier: bool,
    /// Height and width of the images, in pixels: one number for a square, or `[height, width]`.
    pub image_size: ImageSize,
    /// Colour channels of the images: 1 or 3.
    pub image_channels: usize,
    /// Number of classes, without the null label; 0 if the network takes no labels.
    pub num_classes: usize,
    /// Whether there is an additional label, number `num_classes`, that means "no class": guidance needs one.
    pub null_label: bool,
}

impl Default for CustomConfig {
    fn default() -> Self {
        Self {
            name: "custom".into(),
            classifier: false,
            image_size: 32.into(),
            image_channels: 3,
            num_classes: 10,
            null_label: true,
        }
    }
}

impl Architecture for CustomConfig {
    fn kind(&self) -> &'static str {
        "custom"
    }

    fn interface(&self) -> Interface {
        let Self { image_size, image_channels, num_classes, null_label, .. } = *self;
        Interface { image_size, image_channels, num_classes, null_label }
    }

    fn is_classifier(&self) -> bool {
        self.classifier
    }

    fn validate(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > 60 || !self.name.chars().all(plain) {
            let short: String = self.name.chars().take(60).collect();
            let message = format!("`{}` cannot be a network's name", short.escape_debug());
            return Err(Error::config("model.name", message, "use up to 60 letters, digits, - and _"));
        }
        sides(self.image_size, 4096)?;
        colours(self.image_channels)?;
        if self.classifier && self.null_label {
            let message = "a classifier has no use for a null label";
            return Err(Error::config("model.null_label", message, "set it to false"));
        }
        if self.classifier && self.num_classes < 2 {
            let message = format!("{}: a classifier needs two", counted(self.num_classes, "class"));
            return Err(Error::config("model.num_classes", message, "give 2 or more"));
        }
        labels(self.num_classes, self.null_label)
    }

    fn network(&self, _: &mut Builder) -> Result<Network> {
        let message = format!("the network `{}` is not part of the engine: its code is needed", self.name);
        Err(Error::config("model.kind", message, "use the program that trained it"))
    }
}
