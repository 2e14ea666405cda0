//! Statistics of a reference set in the exchange format of evaluation tools: `.npz` with `mu` and `sigma`.
//!
//! Pytorch-fid, clean-fid and EDM write and read only these two arrays. Our files also hold, if known, `rule`, `network` (SHA-256
//! of its file), `count` and `data` (the images' hash), which those tools ignore.

use std::path::Path;

use super::metrics::{Features, Gaussian, moments};
use crate::data::{NpzArray, read_npz, write_npz};
use crate::error::{Error, Result};

/// The largest feature width whose covariance is read: 8192² numbers are 512 MiB.
const WIDEST: usize = 8192;

/// Mean and covariance of features, with their known origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// μ.
    pub mean: Vec<f64>,
    /// Σ, row-major.
    pub covariance: Vec<f64>,
    /// The preprocessing rule, if recorded.
    pub rule: Option<String>,
    /// SHA-256 of the network's file.
    pub network: Option<String>,
    /// Number of images.
    pub count: Option<usize>,
    /// The hash of the images.
    pub data: Option<String>,
}

impl Statistics {
    /// From features.
    ///
    /// # Errors
    /// [`Error::Config`] for fewer than 2 images.
    pub fn of_features(features: &Features) -> Result<Self> {
        let (mean, covariance) = moments(features)?;
        let count = Some(features.count());
        Ok(Self { mean, covariance, rule: None, network: None, count, data: None })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::File`] for another kind of file, a damaged one, or arrays that do not match.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let wrong = |message: String| {
            Error::file(
                path,
                message,
                "give statistics with mu [D] and sigma [D, D], as pytorch-fid, clean-fid and EDM write them",
            )
        };
        let mut arrays = read_npz(path)?;
        let mut numbers = |name: &str| match arrays.remove(name) {
            Some(NpzArray::Numbers { shape, values }) => Some((shape, values)),
            _ => None,
        };
        let (Some((mean_shape, mean)), Some((shape, covariance))) = (numbers("mu"), numbers("sigma")) else {
            return Err(wrong("it lacks mu or sigma".into()));
        };
        let count = numbers("count").and_then(|(_, values)| values.first().map(|&count| count as usize));
        let width = mean.len();
        if mean_shape.len() != 1 || shape != [width, width] || !(1..=WIDEST).contains(&width) {
            return Err(wrong(format!("mu {mean_shape:?} and sigma {shape:?} do not match")));
        }
        if mean.iter().chain(&covariance).any(|value| !value.is_finite()) {
            return Err(wrong("a value of mu or sigma is not finite".into()));
        }
        let mut text = |name: &str| match arrays.remove(name) {
            Some(NpzArray::Texts(texts)) => texts.into_iter().next(),
            _ => None,
        };
        Ok(Self { mean, covariance, rule: text("rule"), network: text("network"), count, data: text("data") })
    }

    /// Writes a file.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let width = self.mean.len();
        let mut arrays = vec![
            ("mu", NpzArray::Numbers { shape: vec![width], values: self.mean.clone() }),
            ("sigma", NpzArray::Numbers { shape: vec![width, width], values: self.covariance.clone() }),
        ];
        for (name, text) in [("rule", &self.rule), ("network", &self.network), ("data", &self.data)] {
            arrays.extend(text.clone().map(|text| (name, NpzArray::Texts(vec![text]))));
        }
        arrays
            .extend(self.count.map(|count| ("count", NpzArray::Numbers { shape: vec![], values: vec![count as f64] })));
        write_npz(path, &arrays)
    }

    /// The normal distribution.
    ///
    /// # Errors
    /// Those of [`Gaussian::of_moments`].
    pub fn gaussian(&self) -> Result<Gaussian> {
        Gaussian::of_moments(self.mean.clone(), &self.covariance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let values = [1.0f32, 2.0, 3.0, 5.0, 4.0, 9.0];
        let mut statistics = Statistics::of_features(&Features::new(&values, 2).unwrap()).unwrap();
        statistics.rule = Some("clean-fid".into());
        statistics.write(&path).unwrap();
        let read = Statistics::read(&path).unwrap();
        assert_eq!(read, statistics);
        assert_eq!(read.count, Some(3));
        let gaussian = read.gaussian().unwrap();
        assert!(gaussian.distance(&gaussian).unwrap() < 1e-12 * gaussian.trace());
    }

    #[test]
    fn files_that_are_none_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let numbers =
            |shape: &[usize], values: &[f64]| NpzArray::Numbers { shape: shape.to_vec(), values: values.to_vec() };
        for (arrays, part) in [
            (vec![("mu", numbers(&[1], &[1.0]))], "lacks mu or sigma"),
            (vec![("mu", numbers(&[2], &[1.0; 2])), ("sigma", numbers(&[2], &[1.0; 2]))], "do not match"),
            (vec![("mu", numbers(&[1], &[f64::NAN])), ("sigma", numbers(&[1, 1], &[1.0]))], "not finite"),
        ] {
            write_npz(&path, &arrays).unwrap();
            let message = Statistics::read(&path).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("a.npz"), "{message}");
        }
        std::fs::write(&path, b"PK").unwrap();
        assert!(Statistics::read(&path).is_err());
    }
}
