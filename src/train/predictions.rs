//! The picture of a classifier's run: held-out images with their predictions.

use super::Trainer;
use crate::error::Result;
use crate::eval::NetworkClassifier;
use crate::models::Network;
use crate::picture::{Image, Labels, Layout, labelled_grid};

/// Images on the sheet, and per row.
const IMAGES: usize = 40;
const COLUMNS: usize = 8;

/// Some held-out images, each with its class predicted by the averaged weights and, if that is wrong, the true class in brackets.
/// None for a network that is not a classifier, or without held-out images.
pub(super) fn sheet(trainer: &Trainer, classes: &[String], title: String) -> Result<Option<Image>> {
    let Some(Network::Classifier(network)) = trainer.network() else { return Ok(None) };
    let [height, width, channels] = network.image_shape();
    let (pixels, labels) = trainer.held_out(IMAGES)?;
    if labels.is_empty() {
        return Ok(None);
    }
    trainer.refresh_average()?;
    let values: Vec<f32> = pixels.iter().map(|&pixel| f32::from(pixel) / 127.5 - 1.0).collect();
    let batch = labels.len().min(trainer.config().training.batch_size);
    let mut classifier = NetworkClassifier::new(trainer.context(), network, trainer.averaged().clone(), batch)?;
    let found = classifier.classify(&values, |_, _| ())?;
    let name = |class: usize| classes.get(class).map_or_else(|| class.to_string(), Clone::clone);
    let cells = found.iter().zip(&labels).map(|(found, &label)| match found.prediction == label as usize {
        true => name(found.prediction),
        false => format!("{} ({})", name(found.prediction), name(label as usize)),
    });
    let images = values.chunks(height * width * channels);
    let images = images.map(|image| Image::from_signed(width, height, channels, image)).collect::<Result<Vec<_>>>()?;
    let labels = Labels { title, cells: cells.collect(), ..Labels::default() };
    let layout = Layout { columns: COLUMNS, scale: (128 / height.max(width)).clamp(1, 8), ..Layout::default() };
    labelled_grid(&images, layout, &labels).map(Some)
}
