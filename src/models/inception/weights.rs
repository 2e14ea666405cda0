//! The network's file: pytorch-fid's and torch-fidelity's `pt_inception-2015-12-05-6726825d.pth`, or a `.safetensors` of its arrays.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{CLASSES, FEATURES, Inception};
use crate::error::{Error, Result};
use crate::nn::{Builder, Parameters};
use crate::tensor::{Context, DType};
use crate::weights::WeightFile;

/// ε of the batch norms.
const EPSILON: f64 = 1e-3;
const MEND: &str = "name pt_inception-2015-12-05-6726825d.pth, as pytorch-fid and torch-fidelity download it, or its arrays as .safetensors";

/// The network's arrays, batch norms folded into the convolutions.
#[derive(Clone)]
pub struct InceptionWeights {
    arrays: BTreeMap<String, Vec<f32>>,
    hash: String,
}

impl InceptionWeights {
    /// Reads a file. One whose name ends in eight hexadecimal digits, as PyTorch's downloads do, is held against them.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for a file of other digits than its name's, for torchvision's `inception_v3_google`, and for any
    /// other that lacks an array, has one too many or one of another shape.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let hash = hash(path)?;
        if let Some(digits) = digits_of(path).filter(|digits| !hash.starts_with(digits)) {
            let message = format!("its SHA-256 begins with {}, its name says {digits}", &hash[..8]);
            return Err(Error::file(path, message, "copy it again: it is damaged or cut short"));
        }
        let file = WeightFile::open(path)?;
        refuse_torchvision(&file)?;
        let (_, parameters) = Self::declared(&Context::shape_only(), DType::F32)?;
        let mut expected: Vec<(String, Vec<usize>)> = Vec::new();
        for spec in parameters.specs() {
            match (spec.name.strip_suffix(".weight"), spec.shape.sizes()) {
                (Some(name), &[out, height, width, channels]) => {
                    expected.push((format!("{name}.conv.weight"), vec![out, channels, height, width]));
                    for part in ["weight", "bias", "running_mean", "running_var"] {
                        expected.push((format!("{name}.bn.{part}"), vec![out]));
                    }
                }
                (_, sizes) if spec.name.starts_with("fc.") => expected.push((spec.name.clone(), sizes.to_vec())),
                _ => {}
            }
        }
        let names: Vec<(&str, &[usize])> =
            expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let values = file.matched(&names)?;
        let found: BTreeMap<&str, (&[usize], &[f32])> =
            names.iter().zip(values).map(|(&(name, shape), values)| (name, (shape, values))).collect();
        let mut arrays = BTreeMap::new();
        for (name, &(shape, values)) in &found {
            match name.strip_suffix(".conv.weight") {
                Some(base) => {
                    let part = |part: &str| found[format!("{base}.bn.{part}").as_str()].1;
                    let norm = [part("weight"), part("bias"), part("running_mean"), part("running_var")];
                    let (weight, bias) = folded(values, shape, norm);
                    arrays.insert(format!("{base}.weight"), weight);
                    arrays.insert(format!("{base}.bias"), bias);
                }
                None if name.starts_with("fc.") => {
                    arrays.insert(name.to_string(), values.to_vec());
                }
                None => {}
            }
        }
        Ok(Self { arrays, hash })
    }

    /// SHA-256 of the file, in hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The network on a device, its activations in `precision`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn network(&self, context: &Context, precision: DType) -> Result<(Inception, Parameters)> {
        let (network, parameters) = Self::declared(context, precision)?;
        let mut flat = vec![0f32; parameters.flat_len()];
        for (name, values) in &self.arrays {
            parameters.place(&mut flat, name, values)?;
        }
        parameters.set_flat(&flat)?;
        Ok((network, parameters))
    }

    fn declared(context: &Context, precision: DType) -> Result<(Inception, Parameters)> {
        let mut builder = Builder::default();
        let network = builder.freeze(true, Inception::new);
        Ok((network, Parameters::new(context, builder, precision)?))
    }
}

/// SHA-256 of a file's bytes.
fn hash(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
    let (mut sha, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(Error::io(path, "read"))? {
            0 => break,
            count => sha.update(&buffer[..count]),
        }
    }
    Ok(sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The digits of `name-6726825d.pth`.
fn digits_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let digits = name.strip_suffix(".pth")?.rsplit_once('-')?.1;
    let fits = digits.len() == 8 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    fits.then(|| digits.to_string())
}

/// Torchvision's network of this name has other pools, 1000 classes, and other weights: its distances are no FID.
fn refuse_torchvision(file: &WeightFile) -> Result<()> {
    let arrays = file.arrays();
    let classes = arrays.get("fc.weight").and_then(|array| array.shape.first()).copied();
    if arrays.keys().any(|name| name.starts_with("AuxLogits.")) || classes == Some(1000) {
        let message = "this is torchvision's inception_v3_google, which is another network: its distances are no FID";
        return Err(Error::file(file.path(), message, MEND));
    }
    if arrays.get("fc.weight").map(|array| array.shape.as_slice()) != Some(&[CLASSES, FEATURES]) {
        let message = format!("no InceptionV3 of 2015: it lacks fc.weight [{CLASSES}, {FEATURES}]");
        return Err(Error::file(file.path(), message, MEND));
    }
    Ok(())
}

/// A convolution's weight `[out, in, ky, kx]` and the batch norm behind it, as weight `[out, ky, kx, in]` and bias `[out]`:
/// γ (conv(x) − μ) / √(σ² + ε) + β.
fn folded(weight: &[f32], shape: &[usize], [gamma, beta, mean, variance]: [&[f32]; 4]) -> (Vec<f32>, Vec<f32>) {
    let (channels, taps) = (shape[1], shape[2] * shape[3]);
    let mut folded = vec![0f32; weight.len()];
    let mut bias = Vec::with_capacity(shape[0]);
    for (o, (from, to)) in
        weight.chunks_exact(channels * taps).zip(folded.chunks_exact_mut(channels * taps)).enumerate()
    {
        let factor = f64::from(gamma[o]) / (f64::from(variance[o]) + EPSILON).sqrt();
        for (channel, from) in from.chunks_exact(taps).enumerate() {
            for (tap, &value) in from.iter().enumerate() {
                to[tap * channels + channel] = (f64::from(value) * factor) as f32;
            }
        }
        bias.push((f64::from(beta[o]) - f64::from(mean[o]) * factor) as f32);
    }
    (folded, bias)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_pytorchs_names() {
        let digits = |name: &str| digits_of(Path::new(name));
        assert_eq!(digits("a/pt_inception-2015-12-05-6726825d.pth").as_deref(), Some("6726825d"));
        for other in ["inception.pth", "inception-v3.pth", "a-6726825d.safetensors", "a-6726825D.pth"] {
            assert_eq!(digits(other), None, "{other}");
        }
    }

    #[test]
    fn a_folded_norm_is_the_norm() {
        // One output channel of two inputs, one tap: 2·(w·x − 3)/√(0.999 + 0.001) + 1.
        let (weight, bias) = folded(&[0.5, -1.0], &[1, 2, 1, 1], [&[2.0], &[1.0], &[3.0], &[0.999]]);
        assert!((weight[0] - 1.0).abs() < 1e-6 && (weight[1] + 2.0).abs() < 1e-6 && (bias[0] + 5.0).abs() < 1e-5);
        // Channels go last.
        let (weight, _) = folded(&[1.0, 2.0, 3.0, 4.0], &[1, 2, 1, 2], [&[1.0], &[0.0], &[0.0], &[0.999]]);
        let rounded: Vec<f32> = weight.iter().map(|x| x.round()).collect();
        assert_eq!(rounded, [1.0, 3.0, 2.0, 4.0]);
    }
}
