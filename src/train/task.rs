//! What a network is trained for: the loss of a batch.

use std::rc::Rc;

use crate::config::Config;
use crate::diffusion::{Batch, Denoiser, Loss, Objective, Purpose};
use crate::error::Result;
use crate::models::Network;
use crate::models::resnet::Resnet;
use crate::nn::Scope;
use crate::ops::cross_entropy::cross_entropy;
use crate::ops::gather::gather;
use crate::tensor::{Context, Tensor};

/// Separates the noise of validation from that of training.
const VALIDATION_SEED: u64 = 0x5641_4C49_4441_5445;

/// A network, and how its results are compared with what they should be.
pub(super) enum Task {
    /// A diffusion model, and its objectives in training and in validation.
    Denoise { model: Rc<dyn Denoiser>, training: Box<Objective>, validation: Box<Objective> },
    /// A classifier, and the smoothing of its targets, in training alone.
    Classify { model: Rc<Resnet>, smoothing: f32 },
}

impl Task {
    /// The task of a configuration.
    ///
    /// # Errors
    /// Those of [`Objective::new`].
    pub fn new(context: &Context, config: &Config, network: Network) -> Result<Self> {
        let t = &config.training;
        let objective = |purpose: Purpose, seed: u64, dropout: f64| {
            let (diffusion, null_label) = (&config.diffusion, config.model.null_label());
            Objective::new(context, diffusion, purpose, seed, dropout as f32, null_label).map(Box::new)
        };
        Ok(match network {
            Network::Denoiser(model) => Self::Denoise {
                model,
                training: objective(Purpose::Training, t.seed, t.label_dropout)?,
                validation: objective(Purpose::Validation, t.seed ^ VALIDATION_SEED, 0.0)?,
            },
            Network::Classifier(model) => Self::Classify { model, smoothing: t.label_smoothing as f32 },
        })
    }

    /// The network.
    pub fn network(&self) -> Network {
        match self {
            Self::Denoise { model, .. } => Network::Denoiser(model.clone()),
            Self::Classify { model, .. } => Network::Classifier(model.clone()),
        }
    }

    /// What [`Loss::terms`] has, by name: the terms of a diffusion loss, or a classifier's share of right answers, which it
    /// counts.
    pub fn terms(&self) -> &'static [&'static str] {
        match self {
            Self::Denoise { training, .. } => training.terms(),
            Self::Classify { .. } => &["accuracy"],
        }
    }

    /// What the objective has learnt of the losses so far, by name: a checkpoint keeps it.
    pub fn state(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Denoise { training, .. } => training.state(),
            Self::Classify { .. } => Vec::new(),
        }
    }

    /// The loss of the batch that `control` names, times `scale`.
    pub fn loss(&self, purpose: Purpose, s: &Scope, batch: &Batch, control: &Tensor, scale: f32) -> Result<Loss> {
        match self {
            Self::Denoise { model, training, validation } => {
                let objective = if purpose == Purpose::Training { training } else { validation };
                objective.loss(s, model.as_ref(), batch, control, scale)
            }
            Self::Classify { model, smoothing } => {
                let context = s.context();
                let (images, labels) =
                    gather(context, &batch.images, &batch.labels, control, batch.size, batch.order, batch.augment)?;
                let logits = model.forward(s, &s.constant(&images))?;
                let smoothing = if purpose == Purpose::Training { *smoothing } else { 0.0 };
                let found = cross_entropy(s, &logits, &s.constant(&labels), smoothing, scale)?;
                Ok(Loss { mean: found.loss, terms: Some(found.correct) })
            }
        }
    }
}
