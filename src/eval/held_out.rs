//! Held-out images on which models are compared: none of the models was trained on them.

use std::collections::HashSet;
use std::path::Path;

use super::images::{data_of, in_proportion};
use crate::config::DataConfig;
use crate::data::{Dataset, ResolveOptions, Split, at_hand, resolve};
use crate::error::{Error, Result};
use crate::pipeline::Model;
use crate::progress::Reporter;
use crate::words::counted;

/// The built-in data set's name.
const BUILT_IN: &str = "shapes";

/// Held-out images of a data set, in [-1, 1].
#[derive(Clone, Debug, Default)]
pub struct HeldOut {
    /// `[N, H, W, C]`.
    pub values: Vec<f32>,
    /// The class of each, an index into `classes`.
    pub labels: Vec<usize>,
    /// The data set's classes.
    pub classes: Vec<String>,
    /// The data set's name.
    pub set: String,
    /// The split.
    pub split: &'static str,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// The source of the images.
#[derive(Clone, Debug)]
pub struct HeldOutSource<'a> {
    /// `--data`.
    pub data: Option<&'a str>,
    /// `--data-dir`.
    pub data_dir: &'a Path,
    /// `--images`.
    pub images: usize,
    /// The receiver of the progress of a download.
    pub progress: Reporter,
}

impl HeldOutSource<'_> {
    /// Up to `images` held-out images of the given data set, else of the first model's training set, in proportion to the classes.
    /// Training images of any of the models are left out, if their data sets are available.
    ///
    /// # Errors
    /// Those of the data set; [`Error::Config`] if fewer than two images remain.
    pub fn held_out(&self, names: &[String], models: &[Model]) -> Result<HeldOut> {
        let whole = data_of(&models[0].info, self.data, "data", self.data_dir, &self.progress)?;
        let config = &models[0].info.config.data;
        let place = || format!("data set {:?}", whole.name());
        // A set without the trained classes was chosen on purpose: it is used unchanged.
        let known = config.classes.iter().all(|class| whole.class_label(class).is_ok());
        let set = if known && !config.classes.is_empty() { whole.subset(&config.classes)? } else { whole.clone() };
        let (set, split, name) = match config.validation_fraction {
            // No model has seen the held-out images of the file, however training split the rest.
            _ if set.split_len(set.held_out()) > 0 => {
                let split = set.held_out();
                let name =
                    if split == Split::Test || config.validation_fraction.is_some() { "test" } else { "validation" };
                (set, split, name)
            }
            Some(fraction) => (set.stratified(fraction, config.split_seed)?, Split::Validation, "validation"),
            None => {
                let advice = "give a set that holds images out with `data`, as `data::import(validation)` makes";
                return Err(Error::config(place(), "it has no held-out images", advice));
            }
        };
        let mut notes = self.differences(names, models);
        let mut images: Vec<usize> = set.split_indices(split).collect();
        let total = images.len();
        let mut asked: Vec<DataConfig> = Vec::new();
        for (name, model) in names.iter().zip(models) {
            // Augmentation in training does not make it a different set.
            let config = DataConfig { flip: false, crop: 0, device_memory: None, ..model.info.config.data.clone() };
            if asked.contains(&config) {
                continue;
            }
            let trained = self.trained_on(&config, &whole);
            if trained.is_empty() {
                notes.push(format!(
                    "{name}'s training images ({}) are not available: overlap with these images was not checked",
                    config.name
                ));
            }
            for trained in trained {
                let seen: HashSet<&[u8]> = trained.split_indices(Split::Train).map(|k| trained.image(k)).collect();
                images.retain(|&index| !seen.contains(set.image(index)));
            }
            asked.push(config);
        }
        if images.len() < total {
            let left = total - images.len();
            notes.push(format!("{left} of {total} held-out images are left out, because models were trained on them"));
        }
        if images.len() < 2 {
            let message = format!("{} of its {total} held-out images are unseen by all models", images.len());
            return Err(Error::config(place(), message, "give another set with `data`"));
        }
        if images.len() < self.images {
            notes.push(format!("{} requested, {} available", counted(self.images, "image"), images.len()));
        }
        let images = in_proportion(&set, &images, self.images);
        let signed = |&index: &usize| set.image(index).iter().map(|value| f32::from(*value) / 127.5 - 1.0);
        Ok(HeldOut {
            values: images.iter().flat_map(signed).collect(),
            labels: images.iter().map(|&index| usize::from(set.labels()[index])).collect(),
            classes: set.class_names().to_vec(),
            set: set.name().to_string(),
            split: name,
            notes,
        })
    }

    /// The data sets that a model may have been trained on, split as for its training; none if they would need a download. A model
    /// file records the name of its set, not the file; a local set with that name is assumed to be it.
    fn trained_on(&self, config: &DataConfig, whole: &Dataset) -> Vec<Dataset> {
        let options = ResolveOptions {
            data_dir: self.data_dir,
            shapes_seed: config.shapes_seed,
            shapes_count: config.shapes_count,
            progress: self.progress.clone(),
            trains: false,
        };
        let file = config.path.as_ref().filter(|path| path.exists()).and_then(|path| path.to_str());
        let named = || at_hand(&config.name, &options).ok().flatten();
        let same = whole.path().is_some() && whole.name() == config.name;
        let sets = match file {
            Some(file) => vec![resolve(&config.name, Some(file), &options).ok()],
            // A file may have the name of the built-in set.
            None if same && config.name == BUILT_IN => vec![Some(whole.clone()), named()],
            None if same => vec![Some(whole.clone())],
            None => vec![named()],
        };
        let arranged = |set: Dataset| set.arranged(&config.classes, config.validation_fraction, config.split_seed).ok();
        sets.into_iter().flatten().filter_map(arranged).collect()
    }

    /// Notes for models with other training data than the first.
    fn differences(&self, names: &[String], models: &[Model]) -> Vec<String> {
        let told: Vec<String> = models.iter().map(|model| described(&model.info.config.data)).collect();
        let others = names.iter().zip(&told).skip(1).filter(|(_, data)| **data != told[0]);
        others.map(|(name, data)| format!("{name} was trained on {data}, {} on {}", names[0], told[0])).collect()
    }
}

/// The training data as text.
fn described(config: &DataConfig) -> String {
    let mut text = config.name.clone();
    if config.name == BUILT_IN {
        text += &format!(" ({} images, seed {})", config.shapes_count, config.shapes_seed);
    }
    if !config.classes.is_empty() {
        text += &format!(" (classes {})", config.classes.join(", "));
    }
    if let Some(fraction) = config.validation_fraction {
        text += &format!(" (share {fraction} held out, seed {})", config.split_seed);
    }
    text
}

/// A model's label for the class called `name`, the `number`th of `count`: 0 for a model without classes, else the class of that
/// name; that number if the model file has no names; else the null label. None if it has none of these. The second value is false
/// if the model is not given the class.
pub fn label_of(model: &Model, name: &str, number: usize, count: usize) -> Option<(usize, bool)> {
    let classes = model.info.config.model.num_classes();
    if classes == 0 {
        return Some((0, false));
    }
    let names = &model.info.classes;
    let known = match names.iter().position(|own| own == name) {
        None if names.is_empty() && classes == count => Some(number),
        None => names.iter().position(|own| own.to_lowercase() == name.to_lowercase()),
        found => found,
    };
    let known = known.filter(|label| *label < classes).map(|label| (label, true));
    known.or_else(|| model.info.config.model.null_label().map(|null| (null, false)))
}
