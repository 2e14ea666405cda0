//! What made a picture, as values: embedded in its PNG as text, and read back.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Model, SampleRequest};
use crate::diffusion::{GuidanceSchedule, SamplerKind, SamplingConfig, TimestepSchedule};
use crate::error::{Error, Result};

/// The keyword under which a sampled PNG holds its recipe, as JSON.
const SAMPLING: &str = "engine.sampling";
/// The keyword of pictures that were made of given ones.
const EDIT: &str = "engine.edit";
/// Longest recipe that is read, in bytes: a list of a million timesteps fits.
const MAX_BYTES: usize = 1 << 23;

/// Everything that is needed to draw the same picture again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Where the model was: its file, or the name of a pretrained one.
    pub model: String,
    /// SHA-256 of the model's file.
    pub model_sha256: String,
    /// `ema` or `raw`.
    pub weights: String,
    /// Optimizer steps behind the weights.
    pub step: u64,
    /// As in [`SamplingConfig`], and so are the next ones.
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
    /// The number of the first image.
    pub first: u32,
    /// Whether the picture is that image alone, without a sheet around it.
    pub single: bool,
    /// As `--count` and `--class` take them.
    pub count: usize,
    pub class: Option<String>,
    /// Images in all.
    pub images: usize,
    /// The data set that real images beside the generated ones are from, as `--compare-with` takes it.
    pub compare_with: Option<String>,
    /// Dtype of activations.
    pub precision: String,
    /// What it was drawn on, in words.
    pub device: String,
}

impl Recipe {
    /// What a request asks of a model.
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
            precision: model.parameters.precision().to_string(),
            device: device.into(),
        }
    }

    /// Takes over what a command line has no word for, so that the picture is drawn again.
    pub fn resume(&self, request: &mut SampleRequest) {
        request.first = self.first;
        let sampling = &mut request.sampling;
        (sampling.num_steps, sampling.schedule) = (self.steps, self.schedule);
        (sampling.timesteps, sampling.clip_x0) = (self.timesteps.clone(), self.clip_x0);
    }

    /// Reads the recipe among the `texts` of a PNG; `name` stands for the picture in errors.
    ///
    /// # Errors
    /// [`Error::File`] for a picture that holds none, or one of another version of the engine.
    pub fn of_texts(texts: &[(String, String)], name: &Path) -> Result<Self> {
        let fault = |message: String, mend: &str| Error::file(name, message, mend);
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
        // Strings, numbers and lists: nothing in them can fail; floats are finite once validated.
        png_text(SAMPLING, serde_json::to_string(self).unwrap_or_default())
    }

    /// Refuses another model than the one that drew the picture `like`.
    ///
    /// # Errors
    /// [`Error::File`] that names both.
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
        Err(Error::file(&model.path, message, "give that one with --model, or draw without --like"))
    }
}

/// What made a picture out of given ones.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EditRecipe {
    /// Where the model was: its file, or the name of a pretrained one.
    pub model: String,
    /// `ema` or `raw`.
    pub weights: String,
    /// Optimizer steps behind the weights.
    pub step: u64,
    /// As `--class` takes it.
    pub class: Option<String>,
    /// The seed.
    pub seed: u64,
    /// Sampler, steps, guidance.
    pub sampling: SamplingConfig,
    /// Dtype of activations.
    pub precision: String,
    /// The command, and what is its own.
    #[serde(flatten)]
    pub edit: Edit,
}

/// A command that makes images of given ones; files by their names.
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
    /// Of a request to a model, with the class as it was named.
    pub fn new(model: &Model, request: &SampleRequest, class: Option<&str>, edit: Edit) -> Self {
        Self {
            model: model.path.display().to_string(),
            weights: model.info.weights.clone(),
            step: model.info.step,
            class: class.map(String::from),
            seed: request.seed,
            sampling: request.sampling.clone(),
            precision: model.parameters.precision().to_string(),
            edit,
        }
    }

    /// The text for the PNG.
    pub fn text(&self) -> Vec<(&'static str, String)> {
        // By way of a value, whose keys are in order.
        png_text(EDIT, serde_json::to_value(self).unwrap_or_default().to_string())
    }
}

/// The texts of a PNG: which program made it, and how, under `keyword`.
pub fn png_text(keyword: &'static str, json: String) -> Vec<(&'static str, String)> {
    vec![("Software", format!("engine {}", env!("CARGO_PKG_VERSION"))), (keyword, json)]
}
