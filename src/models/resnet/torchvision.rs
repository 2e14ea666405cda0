//! Torchvision's weights for the engine's networks.
//!
//! A file is matched against its whole network: any missing, unexpected or wrongly shaped array is an error. Depth, width and stem
//! of the network are read from the file.

use std::collections::BTreeMap;

use super::{Resnet, ResnetConfig, Stem};
use crate::error::{Error, Result};
use crate::models::Architecture;
use crate::nn::{Builder, Parameters};
use crate::tensor::{Context, DType};
use crate::weights::WeightFile;

/// The largest gain of a filter that is replaced by its centre: 7 / 3, the value for white noise.
const LARGEST_GAIN: f64 = 7.0 / 3.0;

/// A network's arrays by torchvision's names, in the engine's layout: convolutions `[out, k, k, in]`.
#[derive(Clone, Debug)]
pub struct Pretrained {
    /// The network of the arrays; its image is 224 pixels high with [`Stem::Imagenet`], else 32.
    pub config: ResnetConfig,
    arrays: BTreeMap<String, Vec<f32>>,
}

impl Pretrained {
    /// A network of torchvision's `BasicBlock`s (ResNet-18, ResNet-34), from a `.pth` or `.safetensors` file with its `state_dict`.
    ///
    /// # Errors
    /// [`Error::File`] with each missing, unexpected or wrongly shaped array.
    pub fn of_torchvision(file: &WeightFile) -> Result<Self> {
        let config = config_of(file)?;
        // The names in torchvision's layout.
        let (_, parameters) = declared(&config)?;
        let expected: Vec<(String, Vec<usize>)> = parameters
            .specs()
            .iter()
            .map(|spec| match *spec.shape.sizes() {
                [out, height, width, channels] => (spec.name.clone(), vec![out, channels, height, width]),
                ref sizes => (spec.name.clone(), sizes.to_vec()),
            })
            .collect();
        let names: Vec<(&str, &[usize])> =
            expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let values = file.matched(&names)?;
        let arrays = expected
            .iter()
            .zip(values)
            .map(|((name, shape), values)| {
                let values = match *shape.as_slice() {
                    [out, channels, height, width] => channels_last(values, [out, channels, height * width]),
                    _ => values.to_vec(),
                };
                (name.clone(), values)
            })
            .collect();
        Ok(Self { config, arrays })
    }

    /// The arrays of one of the engine's networks: `flat` holds the values of `parameters`.
    pub fn of_engine(config: &ResnetConfig, parameters: &Parameters, flat: &[f32]) -> Self {
        let array = |spec: &crate::nn::Spec| (spec.name.clone(), flat[spec.offset..][..spec.shape.len()].to_vec());
        Self { config: config.clone(), arrays: parameters.specs().iter().map(array).collect() }
    }

    /// The array called `name`, if there is one.
    pub fn array(&self, name: &str) -> Option<&[f32]> {
        self.arrays.get(name).map(Vec::as_slice)
    }

    /// Converts the network to another stem and other colours, if possible: ImageNet's 7x7 convolution becomes a 3x3 one from its
    /// centre, with each filter rescaled to its old norm, at most by 7 / 3, because the following batch norm expects responses of
    /// that size; colours are summed for grey. The max-pool is removed.
    ///
    /// # Errors
    /// [`Error::Config`] for a 7x7 stem from a 3x3 one, and for colours from grey.
    pub fn adapted(mut self, stem: Stem, channels: usize) -> Result<Self> {
        let (out, from) = (self.config.widths[0], self.config.image_channels);
        let Some(mut weight) = self.arrays.remove("conv1.weight") else {
            return Err(Error::config("model.backbone", "it has no conv1.weight", "give a file of a whole network"));
        };
        match (self.config.stem, stem) {
            (Stem::Imagenet, Stem::Small) => weight = centre(&weight, out, from),
            (Stem::Small, Stem::Imagenet) => {
                let message = "the network was made for small images: it has no 7x7 convolution";
                return Err(Error::config("model.backbone_stem", message, "set it to small"));
            }
            _ => {}
        }
        match (from, channels) {
            (from, 1) if from > 1 => weight = weight.chunks_exact(from).map(|colours| colours.iter().sum()).collect(),
            (from, channels) if from != channels => {
                let message = format!("the network takes {from} colour channels, but the images have {channels}");
                return Err(Error::config("model.image_channels", message, "give another backbone"));
            }
            _ => {}
        }
        self.arrays.insert("conv1.weight".into(), weight);
        (self.config.stem, self.config.image_channels) = (stem, channels);
        Ok(self)
    }
}

/// The network described by a file's names and shapes; strict matching checks the rest.
fn config_of(file: &WeightFile) -> Result<ResnetConfig> {
    let arrays = file.arrays();
    let shape = |name: &str| arrays.get(name).map(|array| array.shape.as_slice());
    let foreign = |what: &str| {
        let message = format!("not a residual network of torchvision's basic blocks: {what}");
        Error::file(file.path(), message, "give a state_dict of resnet18 or resnet34")
    };
    let (mut blocks, mut widths) = (Vec::new(), Vec::new());
    for layer in 1..=8 {
        let conv = |block: usize| shape(&format!("layer{layer}.{block}.conv2.weight"));
        let Some(first) = conv(0) else { break };
        widths.push(*first.first().ok_or_else(|| foreign("a convolution without channels"))?);
        blocks.push((0..=256).take_while(|&block| conv(block).is_some()).count());
    }
    if shape("layer1.0.conv3.weight").is_some() {
        return Err(foreign("it has bottleneck blocks, as ResNet-50"));
    }
    let (Some(&[_, channels, kernel, _]), Some(&[classes, _])) = (shape("conv1.weight"), shape("fc.weight")) else {
        return Err(foreign("it lacks conv1.weight or fc.weight"));
    };
    let (stem, image_size) = match kernel {
        7 => (Stem::Imagenet, 224.into()),
        3 => (Stem::Small, 32.into()),
        _ => return Err(foreign("its first convolution is neither 7x7 nor 3x3")),
    };
    let config = ResnetConfig { image_size, image_channels: channels, num_classes: classes, blocks, widths, stem };
    config.validate().map_err(|error| foreign(&error.to_string()))?;
    Ok(config)
}

/// The network's declarations; nothing is allocated.
fn declared(config: &ResnetConfig) -> Result<(Resnet, Parameters)> {
    let mut builder = Builder::default();
    let network = Resnet::new(&mut builder, config)?;
    Ok((network, Parameters::new(&Context::shape_only(), builder, DType::F32)?))
}

/// `[out, in, window]` to `[out, window, in]`.
fn channels_last(values: &[f32], [out, channels, window]: [usize; 3]) -> Vec<f32> {
    let mut moved = Vec::with_capacity(values.len());
    for filter in values.chunks_exact(channels * window).take(out) {
        for at in 0..window {
            moved.extend((0..channels).map(|channel| filter[channel * window + at]));
        }
    }
    moved
}

/// The 3x3 centres of filters `[out, 7, 7, channels]`, each rescaled to the norm of its filter by at most [`LARGEST_GAIN`].
fn centre(weight: &[f32], out: usize, channels: usize) -> Vec<f32> {
    let norm = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let mut centres = Vec::with_capacity(out * 9 * channels);
    for filter in weight.chunks_exact(49 * channels).take(out) {
        let inner: Vec<f32> =
            (2..5).flat_map(|row| filter[(7 * row + 2) * channels..][..3 * channels].to_vec()).collect();
        let gain = (norm(filter) / norm(&inner).max(f64::MIN_POSITIVE)).min(LARGEST_GAIN);
        centres.extend(inner.iter().map(|&x| (f64::from(x) * gain) as f32));
    }
    centres
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_become_channels_last() {
        // [out 1, in 2, window 3]
        assert_eq!(channels_last(&[1.0, 2.0, 3.0, 10.0, 20.0, 30.0], [1, 2, 3]), [1.0, 10.0, 2.0, 20.0, 3.0, 30.0]);
    }

    #[test]
    fn a_centre_keeps_its_filters_norm_within_reason() {
        // A filter that is all ones: norm 7, its centre's 3.
        let ones = centre(&[1.0; 49], 1, 1);
        assert!(ones.len() == 9 && ones.iter().all(|&x| (x - 7.0 / 3.0).abs() < 1e-6), "{ones:?}");
        // A filter inside its centre is unchanged; one outside of it is not amplified.
        let mut inside = [0f32; 49];
        (inside[24], inside[16]) = (3.0, -4.0);
        assert_eq!(centre(&inside, 1, 1), [-4.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0]);
        let mut outside = [1f32; 49];
        (2..5).for_each(|row| outside[7 * row + 2..][..3].fill(1e-3));
        assert!(centre(&outside, 1, 1).iter().all(|&x| x < 3e-3));
        assert_eq!(centre(&[0.0; 49], 1, 1), [0.0; 9]);
    }
}
