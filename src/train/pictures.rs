//! The pictures of a run: samples by class, denoising by stage, the loss curve.

use super::Trainer;
use crate::cluster::Moving;
use crate::diffusion::{Sampler, SamplerKind};
use crate::error::Result;
use crate::picture::{Image, Labels, Layout, labelled_grid};

/// Most classes on a sheet.
const MOST_CLASSES: usize = 20;
/// Stages and classes of the denoising sheet.
const STAGES: usize = 10;

/// Images per row of a sheet without classes.
const COLUMNS: usize = 8;

/// The pictures of one set of samples.
pub(super) struct Sheets {
    /// Samples of each class, one row per class, with `sampling.count_per_class` in a row. A model without classes has as many
    /// samples in total.
    pub samples: Image,
    /// The first sample of each of ten classes at ten stages of its denoising: one row per class, with the finished sample last. A
    /// model without classes has a row for each of its first ten samples.
    pub denoising: Image,
}

/// Draws from the averaged weights with the run's seed, so that sheets of different steps are comparable. `titles` are those of
/// the samples and the denoising. `go_on` is called between stages; None if it returned false.
pub(super) fn sheets(
    trainer: &Trainer,
    classes: &[String],
    titles: [String; 2],
    mut go_on: impl FnMut() -> bool,
) -> Result<Option<Sheets>> {
    let classes = known(trainer, classes, MOST_CLASSES);
    trainer.tell_to_draw(classes.len())?;
    let Some(Drawn { images, strips, shown, stages }) = draw(trainer, classes.len(), &mut go_on)? else {
        return Ok(None);
    };
    let count = trainer.config().sampling.count_per_class;
    let [samples, denoising] = titles;
    let labels = Labels { title: samples, rows: classes.to_vec(), ..Labels::default() };
    let columns = if classes.is_empty() { count.min(COLUMNS) } else { count };
    let samples = labelled_grid(&images, layout(trainer, columns), &labels)?;
    let columns = shown.iter().map(|stage| format!("{:.0} %", 100.0 * (stage + 1) as f64 / stages as f64));
    let names = classes[..classes.len().min(strips.len())].to_vec();
    let labels = Labels { title: denoising, rows: names, columns: columns.collect(), cells: Vec::new() };
    let strips: Vec<Image> = strips.into_iter().flatten().collect();
    let denoising = labelled_grid(&strips, layout(trainer, shown.len()), &labels)?;
    Ok(Some(Sheets { samples, denoising }))
}

/// The drawn samples.
pub(super) struct Drawn {
    images: Vec<Image>,
    /// The stages of each row.
    strips: Vec<Vec<Image>>,
    /// The stages shown, out of this number.
    shown: Vec<usize>,
    stages: usize,
}

/// Draws samples of `classes` classes, in batches shared by the processes; each image is the same whichever process draws it.
/// `go_on` is called only by a single process.
pub(super) fn draw(trainer: &Trainer, classes: usize, go_on: &mut dyn FnMut() -> bool) -> Result<Option<Drawn>> {
    let count = trainer.config().sampling.count_per_class;
    let labels: Vec<i32> = (0..classes.max(1)).flat_map(|class| std::iter::repeat_n(class as i32, count)).collect();
    // The samples whose stages are shown, evenly spaced.
    let (every, rows) = if classes == 0 { (1, count.min(STAGES)) } else { (count, classes.min(STAGES)) };
    let mut sampler = sampler(trainer, labels.len())?;
    let shown = shown_stages(trainer.config().sampling.sampler, sampler.stages());
    let (batch, len) = (sampler.batch(), trainer.config().model.image_shape().iter().product::<usize>());
    let of_strip = |number: usize, size: usize| -> Vec<usize> {
        let own = number * batch..number * batch + size;
        (0..rows).filter(|row| own.contains(&(row * every))).collect()
    };
    let (rank, ranks) = (trainer.team().rank(), trainer.team().ranks());
    // For each batch of this process its images, then the stages of its strips.
    let sizes: Vec<usize> = labels
        .chunks(batch)
        .enumerate()
        .map(|(number, labels)| len * (labels.len() + of_strip(number, labels.len()).len() * shown.len()))
        .collect();
    let most = sizes.iter().copied().max().unwrap_or(0);
    let mut own: Vec<f32> = Vec::with_capacity(most * sizes.len().div_ceil(ranks));
    for (number, labels) in labels.chunks(batch).enumerate().skip(rank).step_by(ranks) {
        let strips = of_strip(number, labels.len());
        let mut stages = Vec::new();
        let mut stopped = ranks == 1 && !go_on();
        // The images of a stopped sampler are discarded; finishing them is not worth a special path.
        if stopped {
            return Ok(None);
        }
        let values = sampler.run((number * batch) as u32, labels, |stage, state| {
            trainer.team().go_on(Moving::Alone);
            stopped |= ranks == 1 && !go_on();
            if shown.contains(&stage) && !strips.is_empty() && !stopped {
                let states = state()?;
                for row in &strips {
                    stages.extend_from_slice(&states[(row * every - number * batch) * len..][..len]);
                }
            }
            Ok(())
        })?;
        if stopped {
            return Ok(None);
        }
        own.extend(values);
        own.extend(stages);
        own.resize(own.len().next_multiple_of(most), 0.0);
    }
    own.resize(most * sizes.len().div_ceil(ranks), 0.0);
    let mut all = vec![0f32; own.len() * ranks];
    trainer.team().gather(bytemuck::cast_slice(&own), bytemuck::cast_slice_mut(&mut all))?;
    let (mut images, mut strips) = (Vec::with_capacity(labels.len()), vec![Vec::new(); rows]);
    for (number, labels) in labels.chunks(batch).enumerate() {
        let drawn = &all[number % ranks * own.len() + number / ranks * most..][..sizes[number]];
        let (values, stages) = drawn.split_at(labels.len() * len);
        images.extend(cut(trainer, values)?);
        let rows = of_strip(number, labels.len());
        for (place, state) in cut(trainer, stages)?.into_iter().enumerate() {
            strips[rows[place % rows.len()]].push(state);
        }
    }
    Ok(Some(Drawn { images, strips, shown, stages: sampler.stages() }))
}

/// Ten evenly spaced stages, including the last; fewer if there are fewer. Of Heun's two stages per step only the second leaves a
/// state on the path.
fn shown_stages(kind: SamplerKind, stages: usize) -> Vec<usize> {
    let on_path = |stage: &usize| kind != SamplerKind::Heun || stage % 2 == 1 || stage + 1 == stages;
    let all: Vec<usize> = (0..stages).filter(on_path).collect();
    let columns = all.len().min(STAGES);
    (1..=columns).map(|column| all[(column * all.len()).div_ceil(columns) - 1]).collect()
}

/// The first `most` classes of the data set, if the model has classes.
fn known<'a>(trainer: &Trainer, classes: &'a [String], most: usize) -> &'a [String] {
    &classes[..if trainer.config().model.num_classes() == 0 { 0 } else { classes.len().min(most) }]
}

/// A sampler of the averaged weights. Samples do not depend on the batch, so its size is one that certainly fits: guidance doubles
/// it, and a training batch needs more memory for its gradients than both.
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
