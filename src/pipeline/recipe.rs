//! The recipe of a picture: embedded in its PNG as text, and read back.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Model, SampleRequest};
use crate::diffusion::{GuidanceSchedule, SamplerKind, SamplingConfig, TimestepSchedule};
use crate::error::{Error, Result};

/// The keyword under which a sampled PNG holds its recipe, as JSON.
const SAMPLING: &str = "engine.sampling";
/// The keyword of edited pictures.
const EDIT: &str = "engine.edit";
/// Longest recipe that is read, in bytes: a list of a million timesteps fits.
const MAX_BYTES: usize = 1 << 23;

/// Everything needed to draw the picture again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The model's path: its file, or the name of a pretrained one.
    pub model: String,
    /// SHA-256 of the model's file.
    pub model_sha256: String,
    /// `ema` or `raw`.
    pub weights: String,
    /// Optimizer steps of its training.
    pub step: u64,
    /// As in [`SamplingConfig`], like the following fields.
    pub sampler: SamplerKind,
    pub steps: usize,
    pub schedule: TimestepSchedule,
    pub timesteps: Option<Vec<i64>>,
    pub eta: f64,
    pub temperature: f64,
    pub guidance: f64,
    #[serde(default)]
    pub guidance_schedule: GuidanceSchedule,
    pub clip_x0: bool,
    /// The seed.
    pub seed: u64,
    /// The index of the first image.
    pub first: u32,
    /// Whether the picture is that image alone, not a sheet.
    pub single: bool,
    /// The values of `--count` and `--class`.
    pub count: usize,
    pub class: Option<String>,
    /// Number of images.
    pub images: usize,
    /// The data set of the real images beside the generated ones, as for `--compare-with`.
    pub compare_with: Option<String>,
    /// Dtype of activations.
    pub precision: String,
    /// The device as text.
    pub device: String,
}

impl Recipe {
    /// The request to a model.
    pub fn new(model: &Model, request: &SampleRequest, device: &str) -> Self {
        let sampling = &request.sampling;
        Self {
            model: model.path.display().to_string(),
            model_sha256: model.digest.sha256.clone(),
            weights: model.info.weights.clone(),
            step: model.info.step,
            sampler: sampling.sampler,
            steps: sampling.num_steps,
            schedule: sampling.schedule,
            timesteps: sampling.timesteps.clone(),
            eta: sampling.eta,
            temperature: sampling.temperature,
            guidance: sampling.guidance,
            guidance_schedule: sampling.guidance_schedule.clone(),
            clip_x0: sampling.clip_x0,
            seed: request.seed,
            first: request.first,
            single: false,
            count: request.labels.len(),
            class: None,
            images: request.labels.len(),
            compare_with: None,
            precision: model.parameters.precision_name().into(),
            device: device.into(),
        }
    }

    /// Applies settings without an option on the command line, so that the picture can be reproduced.
    pub fn resume(&self, request: &mut SampleRequest) {
        request.first = self.first;
        let sampling = &mut request.sampling;
        (sampling.num_steps, sampling.schedule) = (self.steps, self.schedule);
        (sampling.timesteps, sampling.clip_x0) = (self.timesteps.clone(), self.clip_x0);
    }

    /// Reads the recipe among the `texts` of a PNG; `name` is the picture's name in errors.
    ///
    /// # Errors
    /// [`Error::File`] for a picture without a recipe, or with that of another engine version.
    pub fn of_texts(texts: &[(String, String)], name: &Path) -> Result<Self> {
        let fault = |message: String, advice: &str| Error::file(name, message, advice);
        let Some((_, text)) = texts.iter().find(|(keyword, _)| keyword == SAMPLING) else {
            return Err(fault(
                "holds no sampling parameters".into(),
                "give a PNG that `engine sample` wrote, not a copy that another program saved",
            ));
        };
        if text.len() > MAX_BYTES {
            return Err(fault(format!("holds {} bytes of sampling parameters", text.len()), "give another PNG"));
        }
        serde_json::from_str(text).map_err(|error| {
            let message = format!("holds sampling parameters that cannot be read: {error}");
            fault(message, "draw it again with the version of the engine that is named in the PNG")
        })
    }

    /// The text for the PNG.
    pub fn text(&self) -> Vec<(&'static str, String)> {
        // Only strings, numbers and lists: serialization cannot fail; floats are finite once validated.
        png_text(SAMPLING, serde_json::to_string(self).unwrap_or_default())
    }

    /// Refuses a model that differs from the one that drew the picture `like`.
    ///
    /// # Errors
    /// [`Error::File`] with both models.
    pub fn check_model(&self, model: &Model, like: &Path) -> Result<()> {
        if model.digest.sha256 == self.model_sha256 {
            return Ok(());
        }
        let start = |digest: &str| digest.chars().take(12).collect::<String>().escape_debug().to_string();
        let message = format!(
            "is not the model that drew {}: its SHA-256 begins {}, after step {}; that one's {}, after step {}",
            like.display(),
            start(&model.digest.sha256),
            model.info.step,
            start(&self.model_sha256),
            self.step
        );
        Err(Error::file(&model.path, message, "give that one with `model`, or draw without `like`"))
    }
}

/// The recipe of an edited picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EditRecipe {
    /// The model's path: its file, or the name of a pretrained one.
    pub model: String,
    /// `ema` or `raw`.
    pub weights: String,
    /// Optimizer steps of its training.
    pub step: u64,
    /// The value of `--class`.
    pub class: Option<String>,
    /// The seed.
    pub seed: u64,
    /// Sampler, steps, guidance.
    pub sampling: SamplingConfig,
    /// Dtype of activations.
    pub precision: String,
    /// The command with its own options.
    #[serde(flatten)]
    pub edit: Edit,
}

/// A command that edits images; files by name.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Edit {
    /// `engine inpaint`.
    Inpaint { image: String, mask: String, resample: usize },
    /// `engine vary`.
    Vary { image: String, strength: f64 },
    /// `engine upscale`.
    Upscale { image: String, factor: usize, resample: usize },
    /// `engine interpolate`, between two seeds or two images.
    Interpolate {
        #[serde(skip_serializing_if = "Option::is_none")]
        seeds: Option<[u64; 2]>,
        #[serde(skip_serializing_if = "Option::is_none")]
        images: Option<[String; 2]>,
        frames: usize,
    },
}

impl EditRecipe {
    /// For a request to a model, with the class as given.
    pub fn new(model: &Model, request: &SampleRequest, class: Option<&str>, edit: Edit) -> Self {
        Self {
            model: model.path.display().to_string(),
            weights: model.info.weights.clone(),
            step: model.info.step,
            class: class.map(String::from),
            seed: request.seed,
            sampling: request.sampling.clone(),
            precision: model.parameters.precision_name().into(),
            edit,
        }
    }

    /// The text for the PNG.
    pub fn text(&self) -> Vec<(&'static str, String)> {
        // Through a value, whose keys are in order.
        png_text(EDIT, serde_json::to_value(self).unwrap_or_default().to_string())
    }
}

/// The texts of a PNG: the program that made it, and the recipe under `keyword`.
pub fn png_text(keyword: &'static str, json: String) -> Vec<(&'static str, String)> {
    vec![("Software", format!("engine {}", env!("CARGO_PKG_VERSION"))), (keyword, json)]
}
