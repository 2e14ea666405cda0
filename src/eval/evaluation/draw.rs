//! Samples of a model, kept on disk as they are drawn.

use std::path::Path;

use serde_json::{Value, json};

use crate::diffusion::SamplingConfig;
use crate::error::Result;
use crate::eval::Gallery;
use crate::eval::rows::Rows;
use crate::picture::Image;
use crate::pipeline::{Choice, Model, SampleRequest};
use crate::tensor::Device;

/// Samples, and what they depend on.
pub struct Drawn {
    /// The samples, with their classes.
    pub gallery: Gallery,
    /// Model, seed, sampler, precision: all but their number.
    pub of: Value,
}

/// The first `count` samples of a model, the classes in turn: those that are in the folder `cache` already, and the rest drawn, `batch` at
/// once. Image k is the same image whatever the count, so a stopped drawing goes on, and a longer one begins with a shorter.
/// `progress(done, of)` counts images.
///
/// # Errors
/// Those of [`Model::sample_each`] and of [`Rows`]; what `progress` returns.
pub fn drawn(
    model: &Model,
    sampling: &SamplingConfig,
    seed: u64,
    (count, batch): (usize, usize),
    cache: &Path,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Drawn> {
    let info = &model.info;
    let (_, labels) = Choice::new(info, None, Some(count))?;
    let device = match model.context().device() {
        Device::Cpu => "cpu",
        Device::Accelerator(_) => "accelerator",
    };
    let of = json!({
        "model": model.digest.sha256, "weights": info.weights, "seed": seed, "sampling": sampling, "labels": "in turn",
        "precision": model.parameters.precision().to_string(), "device": device,
    });
    let [height, width, channels] = model.image_shape();
    let mut rows = Rows::open(cache, "samples", &of, height * width * channels)?;
    let done = rows.count();
    if done < count {
        let request = SampleRequest {
            labels: labels[done..].to_vec(),
            sampling: sampling.clone(),
            seed,
            first: done as u32,
            batch: batch.min(count - done),
        };
        let mut waiting = Vec::new();
        let mut at = done;
        model.sample_each(
            &request,
            |_, _| Ok(()),
            |k, values| {
                waiting.extend_from_slice(Image::from_signed(width, height, channels, values)?.pixels());
                at = done + k + 1;
                if (k + 1) % request.batch == 0 || at == count {
                    rows.append(&waiting)?;
                    waiting.clear();
                    progress(at, count)?;
                }
                Ok(())
            },
        )?;
    }
    let classes = info.class_names().len();
    let labels = labels.into_iter().map(|label| (label < classes).then_some(label)).collect();
    let name = model.path.display().to_string();
    Ok(Drawn { gallery: Gallery::drawn(rows.map()?, [height, width, channels], labels, name), of })
}
