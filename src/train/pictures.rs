//! The pictures of a run: samples by class, denoising by stage, the loss curve.

use super::Trainer;
use crate::diffusion::{Sampler, SamplerKind};
use crate::error::Result;
use crate::picture::{Image, Labels, Layout, labelled_grid};

/// Most classes that a sheet shows.
const MOST_CLASSES: usize = 20;
/// Stages and classes of the sheet of denoising.
const STAGES: usize = 10;

/// Images in a row of a sheet without classes.
const COLUMNS: usize = 8;

/// The pictures of one drawing of samples.
pub(super) struct Sheets {
    /// Samples of each class, a row for each: `sampling.count_per_class` in a row. A model without classes has as many samples
    /// in all.
    pub samples: Image,
    /// The first sample of each of ten classes at ten stages of its denoising: a row for each, the finished sample last. A
    /// model without classes has a row for each of its first ten samples.
    pub denoising: Image,
}

/// Draws from the averaged weights with the run's seed, so that sheets of different steps compare. `titles` are the samples'
/// and the denoising's. `go_on` is asked between stages; None where it refused.
pub(super) fn sheets(
    trainer: &Trainer,
    classes: &[String],
    titles: [String; 2],
    mut go_on: impl FnMut() -> bool,
) -> Result<Option<Sheets>> {
    let classes = known(trainer, classes, MOST_CLASSES);
    let count = trainer.config().sampling.count_per_class;
    let labels: Vec<i32> =
        (0..classes.len().max(1)).flat_map(|class| std::iter::repeat_n(class as i32, count)).collect();
    // The samples whose stages are shown: every so many, so many of them.
    let (every, rows) = if classes.is_empty() { (1, count.min(STAGES)) } else { (count, classes.len().min(STAGES)) };
    let mut sampler = sampler(trainer, labels.len())?;
    let shown = shown_stages(trainer.config().sampling.sampler, sampler.stages());
    let mut images = Vec::with_capacity(labels.len());
    let mut strips: Vec<Vec<Image>> = vec![Vec::new(); rows];
    let mut stopped = false;
    for (number, labels) in labels.chunks(sampler.batch()).enumerate() {
        // What a stopped sampler has drawn is thrown away: its remaining stages are not worth a special path.
        if !go_on() {
            return Ok(None);
        }
        let first = number * sampler.batch();
        let of_strip: Vec<usize> =
            (0..rows).filter(|row| (first..first + labels.len()).contains(&(row * every))).collect();
        let values = sampler.run(first as u32, labels, |stage, state| {
            stopped |= !go_on();
            if shown.contains(&stage) && !of_strip.is_empty() && !stopped {
                let states = cut(trainer, &state()?)?;
                of_strip.iter().for_each(|&row| strips[row].push(states[row * every - first].clone()));
            }
            Ok(())
        })?;
        if stopped {
            return Ok(None);
        }
        images.extend(cut(trainer, &values)?);
    }
    let [samples, denoising] = titles;
    let labels = Labels { title: samples, rows: classes.to_vec(), ..Labels::default() };
    let columns = if classes.is_empty() { count.min(COLUMNS) } else { count };
    let samples = labelled_grid(&images, layout(trainer, columns), &labels)?;
    let columns = shown.iter().map(|stage| format!("{:.0} %", 100.0 * (stage + 1) as f64 / sampler.stages() as f64));
    let names = classes[..classes.len().min(rows)].to_vec();
    let labels = Labels { title: denoising, rows: names, columns: columns.collect(), cells: Vec::new() };
    let strips: Vec<Image> = strips.into_iter().flatten().collect();
    let denoising = labelled_grid(&strips, layout(trainer, shown.len()), &labels)?;
    Ok(Some(Sheets { samples, denoising }))
}

/// Ten stages at even distances, the last among them; fewer where there are fewer. Of Heun's two stages a step only the
/// second leaves a state on the path.
fn shown_stages(kind: SamplerKind, stages: usize) -> Vec<usize> {
    let on_path = |stage: &usize| kind != SamplerKind::Heun || stage % 2 == 1 || stage + 1 == stages;
    let all: Vec<usize> = (0..stages).filter(on_path).collect();
    let columns = all.len().min(STAGES);
    (1..=columns).map(|column| all[(column * all.len()).div_ceil(columns) - 1]).collect()
}

/// The first `most` of the data set's classes, where the model has any.
fn known<'a>(trainer: &Trainer, classes: &'a [String], most: usize) -> &'a [String] {
    &classes[..if trainer.config().model.num_classes() == 0 { 0 } else { classes.len().min(most) }]
}

/// A sampler of the averaged weights. Samples do not depend on the batch, so it is as large as memory surely allows:
/// guidance doubles it, and a training batch needs more for its gradients than both.
fn sampler(trainer: &Trainer, images: usize) -> Result<Sampler> {
    let config = trainer.config();
    let batch = images.clamp(1, config.training.batch_size.div_ceil(2).max(1));
    trainer.sampler(&config.sampling, batch, config.training.seed)
}

fn layout(trainer: &Trainer, columns: usize) -> Layout {
    let [height, width, _] = trainer.config().model.image_shape();
    Layout { columns, scale: (96 / height.max(width)).clamp(1, 8), ..Layout::default() }
}

/// Images `[N, H, W, C]` one by one.
fn cut(trainer: &Trainer, values: &[f32]) -> Result<Vec<Image>> {
    let [height, width, channels] = trainer.config().model.image_shape();
    values.chunks(height * width * channels).map(|image| Image::from_signed(width, height, channels, image)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_spread_and_end_with_the_last() {
        assert_eq!(shown_stages(SamplerKind::Ddim, 50), [4, 9, 14, 19, 24, 29, 34, 39, 44, 49]);
        assert_eq!(shown_stages(SamplerKind::Ddpm, 3), [0, 1, 2]);
        assert_eq!(shown_stages(SamplerKind::Heun, 39), [3, 7, 11, 15, 19, 23, 27, 31, 35, 38]);
        assert_eq!(shown_stages(SamplerKind::Heun, 1), [0]);
    }
}
