//! Random images for benchmarks.

use crate::config::Config;
use crate::data::{Dataset, Parts};
use crate::error::Result;
use crate::rng::{Philox, Purpose};

/// `count` random training images of the configuration's size; the same ones each time.
///
/// # Errors
/// Invalid sizes.
pub fn random_set(config: &Config, count: usize) -> Result<Dataset> {
    let (size, channels, classes) =
        (config.model.image_size(), config.model.image_channels(), config.model.num_classes().max(1));
    let philox = Philox { seed: 0 };
    let bytes = count * size.pixels() * channels;
    let mut images = Vec::with_capacity(bytes + 16);
    for block in 0..bytes.div_ceil(16) {
        images.extend(philox.bits4(block as u32, 0, 0, Purpose::Probe).into_iter().flat_map(u32::to_le_bytes));
    }
    images.truncate(bytes);
    Dataset::from_parts(Parts {
        name: "random".into(),
        height: size.height,
        width: size.width,
        channels,
        class_names: (0..classes).map(|class| class.to_string()).collect(),
        images,
        labels: (0..count).map(|k| (k % classes) as u16).collect(),
        train: count,
        ..Parts::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_images_fit_every_preset() {
        for preset in crate::config::presets() {
            let config = Config::preset(preset.name).unwrap();
            let set = random_set(&config, 64).unwrap();
            assert_eq!((set.len(), set.size()), (64, config.model.image_size()));
        }
    }
}
