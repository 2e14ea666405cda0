//! The network's file: pytorch-fid's and torch-fidelity's `pt_inception-2015-12-05-6726825d.pth`, or a `.safetensors` of its arrays.

use std::path::Path;

use super::{CLASSES, FEATURES, Inception};
use crate::error::{Error, Result};
use crate::models::folded::Folded;
use crate::nn::{Builder, Parameters};
use crate::tensor::{Context, DType};
use crate::weights::WeightFile;

const ADVICE: &str = "give pt_inception-2015-12-05-6726825d.pth, as pytorch-fid and torch-fidelity download it, or its arrays as .safetensors";

/// The network's arrays, batch norms folded into the convolutions.
#[derive(Clone)]
pub struct InceptionWeights(Folded);

impl InceptionWeights {
    /// Reads a file. If its name ends in eight hexadecimal digits, as PyTorch's downloads do, they are checked against its hash.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for a hash that does not match the name, for torchvision's `inception_v3_google`, and for
    /// missing or unexpected arrays or wrong shapes.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let (_, parameters) = declared(&Context::shape_only(), DType::F32)?;
        let names = |name: &str| (!name.starts_with("fc") && !name.ends_with(".bias")).then(|| names_of(name));
        Folded::read(path.as_ref(), &parameters, names, refuse_others).map(Self)
    }

    /// SHA-256 of the file, in hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.0.hash
    }

    /// The network on a device, with activations in `precision`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn network(&self, context: &Context, precision: DType) -> Result<(Inception, Parameters)> {
        let (network, parameters) = declared(context, precision)?;
        self.0.place(&parameters)?;
        Ok((network, parameters))
    }
}

/// The network and its parameters, without values.
pub(crate) fn declared(context: &Context, precision: DType) -> Result<(Inception, Parameters)> {
    let mut builder = Builder::default();
    let network = builder.freeze(true, Inception::new);
    Ok((network, Parameters::new(context, builder, precision)?))
}

fn names_of(name: &str) -> [String; 2] {
    [format!("{name}.conv.weight"), format!("{name}.bn")]
}

/// Torchvision's network of this name has other pools, 1000 classes, and other weights: its distances are not FID.
fn refuse_others(file: &WeightFile) -> Result<()> {
    let arrays = file.arrays();
    let classes = arrays.get("fc.weight").and_then(|array| array.shape.first()).copied();
    let is_inception = arrays.contains_key("Mixed_5b.branch1x1.conv.weight");
    if is_inception && (arrays.keys().any(|name| name.starts_with("AuxLogits.")) || classes == Some(1000)) {
        let message = "this is torchvision's inception_v3_google, which is another network: its distances are not FID";
        return Err(Error::file(file.path(), message, ADVICE));
    }
    if arrays.get("fc.weight").map(|array| array.shape.as_slice()) != Some(&[CLASSES, FEATURES]) {
        let message = format!("not InceptionV3 of 2015: it lacks fc.weight [{CLASSES}, {FEATURES}]");
        return Err(Error::file(file.path(), message, ADVICE));
    }
    Ok(())
}
