//! Networks for inference from files with batch norms, which are folded into the preceding convolutions.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::nn::Parameters;
use crate::weights::WeightFile;

/// ε of the batch norms of TensorFlow's networks.
const EPSILON: f64 = 1e-3;

/// A network's arrays by parameter name, and the hash of their file.
#[derive(Clone)]
pub(super) struct Folded {
    pub(super) arrays: BTreeMap<String, Vec<f32>>,
    /// SHA-256 of the file, in hexadecimal digits.
    pub(super) hash: String,
}

/// The names in a file of a convolution's weight and of its batch norm, for one of our convolutions.
pub(super) type Names = fn(&str) -> Option<[String; 2]>;

impl Folded {
    /// Reads the arrays of `parameters` from a file. A parameter `NAME.weight` for which `names(NAME)` returns a convolution and a
    /// norm is folded from both, with `NAME.bias`; others are read unchanged. If the file's name ends in eight hexadecimal digits,
    /// as PyTorch's downloads do, they are checked against its hash; `check` refuses files of another network by their arrays.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for a hash that does not match the name, and for missing or unexpected arrays or wrong
    /// shapes.
    pub(super) fn read(
        path: &Path,
        parameters: &Parameters,
        names: Names,
        check: fn(&WeightFile) -> Result<()>,
    ) -> Result<Self> {
        let hash = hash(path)?;
        if let Some(digits) = digits_of(path).filter(|digits| !hash.starts_with(digits)) {
            let message = format!("its SHA-256 begins with {}, its name says {digits}", &hash[..8]);
            return Err(Error::file(path, message, "copy it again: it is damaged or cut short"));
        }
        let file = WeightFile::open(path)?;
        check(&file)?;
        let expected = expected(parameters, names);
        let listed: Vec<(&str, &[usize])> =
            expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let values = file.matched(&listed)?;
        let found: BTreeMap<&str, (&[usize], &[f32])> =
            listed.iter().zip(values).map(|(&(name, shape), values)| (name, (shape, values))).collect();
        let mut arrays = BTreeMap::new();
        for spec in parameters.specs() {
            let base = spec.name.strip_suffix(".weight").unwrap_or(&spec.name);
            match names(base) {
                Some([conv, norm]) => {
                    let part = |part: &str| found[format!("{norm}.{part}").as_str()].1;
                    let norm = [part("weight"), part("bias"), part("running_mean"), part("running_var")];
                    let (shape, values) = found[conv.as_str()];
                    let (weight, bias) = folded(values, shape, norm);
                    arrays.insert(format!("{base}.weight"), weight);
                    arrays.insert(format!("{base}.bias"), bias);
                }
                // The bias of a convolution was read with its weight.
                None if base.strip_suffix(".bias").is_some_and(|base| names(base).is_some()) => {}
                None => {
                    arrays.insert(spec.name.clone(), found[spec.name.as_str()].1.to_vec());
                }
            }
        }
        Ok(Self { arrays, hash })
    }

    /// Loads the arrays into `parameters`.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn place(&self, parameters: &Parameters) -> Result<()> {
        let mut flat = vec![0f32; parameters.flat_len()];
        for (name, values) in &self.arrays {
            parameters.place(&mut flat, name, values)?;
        }
        parameters.set_flat(&flat)
    }
}

/// The required arrays of a file, with their shapes.
fn expected(parameters: &Parameters, names: Names) -> Vec<(String, Vec<usize>)> {
    let mut expected = Vec::new();
    for spec in parameters.specs() {
        let base = spec.name.strip_suffix(".weight").unwrap_or(&spec.name);
        let shape = match (names(base), spec.shape.sizes()) {
            (Some(names), &[out, height, width, channels]) => Some((names, vec![out, channels, height, width])),
            // Depthwise: one window per channel.
            (Some(names), &[height, width, channels]) => Some((names, vec![channels, 1, height, width])),
            _ => None,
        };
        match shape {
            Some(([conv, norm], shape)) => {
                for part in ["weight", "bias", "running_mean", "running_var"] {
                    expected.push((format!("{norm}.{part}"), vec![shape[0]]));
                }
                expected.push((conv, shape));
            }
            None if base.strip_suffix(".bias").is_some_and(|base| names(base).is_some()) => {}
            None => expected.push((spec.name.clone(), spec.shape.sizes().to_vec())),
        }
    }
    expected
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

/// Folds a convolution's weight `[out, in, ky, kx]` and its batch norm into weight `[out, ky, kx, in]` and bias `[out]`: γ
/// (conv(x) − μ) / √(σ² + ε) + β. A depthwise one `[out, 1, ky, kx]` becomes `[ky, kx, out]`.
fn folded(weight: &[f32], shape: &[usize], [gamma, beta, mean, variance]: [&[f32]; 4]) -> (Vec<f32>, Vec<f32>) {
    let (out, channels, taps) = (shape[0], shape[1], shape[2] * shape[3]);
    let depthwise = channels == 1 && out > 1;
    let mut folded = vec![0f32; weight.len()];
    let mut bias = Vec::with_capacity(out);
    for (o, from) in weight.chunks_exact(channels * taps).enumerate() {
        let factor = f64::from(gamma[o]) / (f64::from(variance[o]) + EPSILON).sqrt();
        for (channel, from) in from.chunks_exact(taps).enumerate() {
            for (tap, &value) in from.iter().enumerate() {
                let at = if depthwise { tap * out + o } else { (o * taps + tap) * channels + channel };
                folded[at] = (f64::from(value) * factor) as f32;
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
        let rounded = |weight: Vec<f32>| weight.iter().map(|x| x.round()).collect::<Vec<f32>>();
        // Channels move to the end.
        let (weight, _) = folded(&[1.0, 2.0, 3.0, 4.0], &[1, 2, 1, 2], [&[1.0], &[0.0], &[0.0], &[0.999]]);
        assert_eq!(rounded(weight), [1.0, 3.0, 2.0, 4.0]);
        let two: [&[f32]; 4] = [&[1.0, 1.0], &[0.0; 2], &[0.0; 2], &[0.999; 2]];
        let (weight, _) = folded(&[1.0, 2.0, 3.0, 4.0], &[2, 1, 1, 2], two);
        assert_eq!(rounded(weight), [1.0, 3.0, 2.0, 4.0]);
    }
}
