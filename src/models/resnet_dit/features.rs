//! The feature extractor: a residual network, or EfficientNet-lite0.

use serde::{Deserialize, Serialize};

use super::{BACKBONE, ResnetDitConfig};
use crate::models::efficientnet::Stages;
use crate::models::resnet::{Backbone, Stem};
use crate::nn::{Builder, RunningStatistics, Scope};
use crate::tape::Var;
use crate::{Error, Result};

/// The kind of a backbone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackboneKind {
    /// A residual network of basic blocks.
    #[default]
    Resnet,
    /// EfficientNet-lite0, whose layers are its seven stages.
    EfficientnetLite0,
}

/// The name under which `engine fetch` has the network of [`BackboneKind::EfficientnetLite0`].
const LITE0: &str = "efficientnet-lite0";

impl ResnetDitConfig {
    /// Derives kind, blocks and widths from a backbone given by its `engine fetch` name, so that a run can be planned without its
    /// file.
    pub fn follow_backbone(&mut self) {
        if self.backbone.as_deref() == Some(LITE0) {
            self.become_efficientnet();
        }
    }

    /// Sets EfficientNet-lite0 as the backbone.
    pub fn become_efficientnet(&mut self) {
        self.backbone_kind = BackboneKind::EfficientnetLite0;
        (self.backbone_widths, self.backbone_blocks) = Stages::sizes();
    }

    pub(super) fn check_efficientnet(&self) -> Result<()> {
        let (widths, blocks) = Stages::sizes();
        if (&self.backbone_widths, &self.backbone_blocks) != (&widths, &blocks) {
            let message = format!("are not EfficientNet-lite0's, {widths:?} and {blocks:?}");
            let advice = format!("leave both out, and set model.backbone to {LITE0} or its file");
            return Err(Error::config("model.backbone_widths and model.backbone_blocks", message, advice));
        }
        Ok(())
    }
}

/// The feature extractor.
pub(super) enum Features {
    Resnet(Backbone),
    EfficientNet(Stages),
}

impl Features {
    pub fn new(builder: &mut Builder, config: &ResnetDitConfig) -> Self {
        let layers = config.backbone_layers;
        match config.backbone_kind {
            BackboneKind::Resnet => {
                Self::Resnet(Backbone::new(builder, BACKBONE, &config.backbone(), layers, RunningStatistics::Freeze))
            }
            BackboneKind::EfficientnetLite0 => {
                let halving = config.backbone_stem == Stem::Imagenet;
                Self::EfficientNet(Stages::new(builder, BACKBONE, config.image_channels, layers, halving))
            }
        }
    }

    pub fn forward(&self, s: &Scope, images: &Var) -> Result<Var> {
        match self {
            Self::Resnet(backbone) => backbone.forward(s, images),
            Self::EfficientNet(stages) => stages.forward(s, images),
        }
    }
}
