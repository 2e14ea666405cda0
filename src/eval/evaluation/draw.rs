//! Samples of a model, cached on disk as they are drawn.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::cluster::{Collective, Moving};
use crate::diffusion::SamplingConfig;
use crate::error::{Error, Result};
use crate::eval::Gallery;
use crate::eval::helpers::{gathered, share};
use crate::eval::rows::Rows;
use crate::files::write_atomically;
use crate::picture::Image;
use crate::pipeline::{Choice, Model, SampleRequest};
use crate::tensor::Device;

/// Tag of a draw command.
const DRAW: u8 = 33;

/// Samples, and their settings.
pub struct Drawn {
    /// The samples, with their classes.
    pub gallery: Gallery,
    /// Everything they depend on except their number: model, seed, sampler, precision.
    pub of: Value,
    /// Wall time of an image when they were drawn, which the cache keeps.
    pub seconds_per_image: Option<f64>,
}

/// The model and the settings of the samples.
#[derive(Clone, Copy)]
pub struct Draws<'a> {
    /// The model.
    pub model: &'a Model,
    /// The sampling settings.
    pub sampling: &'a SamplingConfig,
    /// The seed of the samples.
    pub seed: u64,
    /// Samples per batch of a process.
    pub batch: usize,
}

/// The first `count` samples of a model, the classes in turn: reads those in the folder `cache` and draws the rest, one batch on
/// each process at a time. Image k does not depend on the count or on the process that draws it, so a stopped call resumes, and a
/// longer one reuses a shorter one. The other processes of the team [`assist`](Draws::assist) with the same number `job`.
/// `progress(done, of)` counts images.
///
/// # Errors
/// Those of [`Model::sample_each`] and of [`Rows`]; those of `progress`; [`Error::Cluster`] if another process is gone.
pub fn drawn(
    draws: Draws,
    count: usize,
    cache: &Path,
    (team, job): (&dyn Collective, usize),
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Drawn> {
    let Draws { model, sampling, seed, batch } = draws;
    let info = &model.info;
    let (_, labels) = Choice::new(info, None, Some(count))?;
    let device = match model.context().device() {
        Device::Cpu => "cpu",
        Device::Accelerator(_) => "accelerator",
    };
    let of = json!({
        "model": model.digest.sha256, "weights": info.weights, "seed": seed, "sampling": sampling, "labels": "in turn",
        "precision": model.parameters.precision_name(), "device": device,
    });
    let [height, width, channels] = model.image_shape();
    let mut rows = Rows::open(cache, "samples", &of, height * width * channels)?;
    let done = rows.count();
    let (timing, started) = (rows.path().with_extension("seconds"), Instant::now());
    if team.ranks() == 1 {
        let draws = Draws { batch: batch.min(count.saturating_sub(done)), ..draws };
        draws.each(done, &labels, &mut |at, pixels| {
            rows.append(pixels)?;
            progress(at, count)
        })?;
    }
    let mut at = rows.count();
    while at < count {
        let now = (batch * team.ranks()).min(count - at);
        let words = [job, at, now, batch].map(|word| (word as u64).to_le_bytes()).concat();
        team.tell(&[&[DRAW][..], &words, model.digest.sha256.as_bytes()].concat())?;
        let all = draws.together(team, at, now)?;
        rows.append(&all)?;
        at += now;
        progress(at, count)?;
    }
    let classes = info.class_names().len();
    let labels = labels.into_iter().map(|label| (label < classes).then_some(label)).collect();
    let name = model.path.display().to_string();
    let drawn = (rows.count() - done, started.elapsed().as_secs_f64());
    let seconds_per_image = timed(&timing, drawn)?;
    let damage = rows.damage().map(String::from);
    let mut gallery = Gallery::drawn(rows.map()?, [height, width, channels], labels, (name, info.classes.clone()));
    gallery.notes.extend(damage);
    Ok(Drawn { gallery, of, seconds_per_image })
}

/// Seconds per image over all calls that drew into a cache, this one's `images` in `seconds` included; kept in the file `path`.
fn timed(path: &Path, (images, seconds): (usize, f64)) -> Result<Option<f64>> {
    let known = std::fs::read_to_string(path).unwrap_or_default();
    let mut known = known.split_whitespace().map(|number| number.parse::<f64>().unwrap_or(0.0));
    let (before, took) = (known.next().unwrap_or(0.0), known.next().unwrap_or(0.0));
    let (all, took) = (before + images as f64, took + if images > 0 { seconds } else { 0.0 });
    if images > 0 {
        write_atomically(path, format!("{all} {took}\n").as_bytes())?;
    }
    Ok((all > 0.0).then(|| took / all))
}

/// A draw command of rank 0.
#[derive(Clone, Debug)]
pub struct DrawOrder {
    /// The index of the model with its sampling settings.
    pub job: usize,
    /// Samples per batch of a process.
    pub batch: usize,
    first: usize,
    count: usize,
    model: String,
}

impl DrawOrder {
    /// None for another command.
    pub fn read(order: &[u8]) -> Option<Self> {
        let (words, model) = order.strip_prefix(&[DRAW])?.split_at_checked(32)?;
        let word = |at: usize| words[8 * at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word) as usize);
        let model = String::from_utf8_lossy(model).into_owned();
        Some(Self { job: word(0), first: word(1), count: word(2), batch: word(3), model })
    }
}

impl Draws<'_> {
    /// Samples from `first` to the end of `labels`, batch by batch: `sink(done, pixels)`.
    fn each(&self, first: usize, labels: &[usize], sink: &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let Some(labels) = labels.get(first..).filter(|labels| !labels.is_empty()) else { return Ok(()) };
        let (last, [height, width, channels]) = (first + labels.len(), self.model.image_shape());
        let request = SampleRequest {
            labels: labels.to_vec(),
            sampling: self.sampling.clone(),
            seed: self.seed,
            first: first as u32,
            batch: self.batch,
        };
        let mut waiting = Vec::new();
        self.model.sample_each(
            &request,
            |_, _| Ok(()),
            |k, values| {
                waiting.extend_from_slice(Image::from_signed(width, height, channels, values)?.pixels());
                let at = first + k + 1;
                if (k + 1) % request.batch == 0 || at == last {
                    sink(at, &waiting)?;
                    waiting.clear();
                }
                Ok(())
            },
        )
    }

    /// This process's part of `count` samples from `first` on, and the whole.
    fn together(&self, team: &dyn Collective, first: usize, count: usize) -> Result<Vec<u8>> {
        team.go_on(Moving::Alone);
        let own = share(count, team.rank(), team.ranks());
        let (_, labels) = Choice::new(&self.model.info, None, Some(first + own.end))?;
        let mut pixels = Vec::new();
        let batch = self.batch.min(own.len().max(1));
        Draws { batch, ..*self }.each(first + own.start, &labels, &mut |_, drawn| {
            pixels.extend_from_slice(drawn);
            Ok(())
        })?;
        gathered(team, pixels, count, self.model.image_shape().iter().product())
    }

    /// Another rank's part of a command of rank 0.
    ///
    /// # Errors
    /// [`Error::Cluster`] if its model differs; as [`drawn`].
    pub fn assist(&self, team: &dyn Collective, order: &DrawOrder) -> Result<()> {
        if order.model != self.model.digest.sha256 {
            let message = format!("rank {} has another model at {}", team.rank(), self.model.path.display());
            return Err(Error::cluster(message, "give all machines the same model file"));
        }
        self.together(team, order.first, order.count).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_over_calls() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.seconds");
        assert_eq!(timed(&path, (0, 5.0)).unwrap(), None);
        assert_eq!(timed(&path, (10, 5.0)).unwrap(), Some(0.5));
        assert_eq!(timed(&path, (30, 5.0)).unwrap(), Some(0.25));
        // From the cache.
        assert_eq!(timed(&path, (0, 9.0)).unwrap(), Some(0.25));
    }
}
