//! `metrics.jsonl`: one JSON object per line.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use crate::config::Rule;
use crate::error::{Error, Result};

/// A logged step. `loss` covers the training images, [`ValidationLine`] the held-out ones.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainingLine {
    /// Optimizer steps done.
    pub step: u64,
    /// Passes over the training images, including the fraction of the current one.
    pub epoch: f64,
    /// Mean loss of the steps since the last line.
    pub loss: f64,
    /// Global norm of the last step's gradient before clipping.
    pub gradient_norm: f64,
    /// The last step's learning rate.
    pub learning_rate: f64,
    /// Training images per second since the last line, excluding pictures, validation and checkpoints.
    pub images_per_second: f64,
    /// Seconds of training so far, over all sessions.
    pub seconds: f64,
    /// The terms of the loss.
    #[serde(skip_serializing_if = "LossTerms::is_empty")]
    pub terms: LossTerms,
    /// A classifier's accuracy since the last line, on augmented training images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

/// Means of the terms of a loss since the last line, as an object from name to mean.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossTerms {
    /// Their names.
    pub names: &'static [&'static str],
    /// Their means, neither weighted nor balanced.
    pub means: Vec<f64>,
}

impl LossTerms {
    /// Name and mean of each.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.names.iter().copied().zip(self.means.iter().copied())
    }

    /// Whether the loss has no terms.
    pub fn is_empty(&self) -> bool {
        self.means.is_empty()
    }
}

impl Serialize for LossTerms {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// A validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ValidationLine {
    /// Optimizer steps done.
    pub step: u64,
    /// As in [`TrainingLine`].
    pub epoch: f64,
    /// Mean loss of the averaged weights over the validation images.
    pub validation_loss: f64,
    /// A classifier's accuracy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_accuracy: Option<f64>,
}

/// A metric of samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationLine {
    /// Optimizer steps done.
    pub step: u64,
    /// As in [`TrainingLine`].
    pub epoch: f64,
    /// Its display name: `FID`, `FD-resnet18-cifar10`.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// Number of samples.
    pub samples: usize,
    /// The rule for InceptionV3's input; none for another network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// The seed, sampler, steps and guidance of the samples; the network with its hash; the reference's name, number and hash.
    #[serde(flatten)]
    pub settings: serde_json::Value,
}

/// The fields that are read back from a line.
#[derive(Deserialize)]
struct Line {
    step: u64,
    metric: Option<String>,
    value: Option<f64>,
    loss: Option<f64>,
    validation_loss: Option<f64>,
    validation_accuracy: Option<f64>,
}

/// The file, and the points of its curves.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    file: File,
    /// Step and loss of the training lines.
    pub training: Vec<(u64, f64)>,
    /// Step and loss of the validation lines.
    pub validation: Vec<(u64, f64)>,
    /// The last accuracy of them.
    pub accuracy: Option<f64>,
    /// Step and value of the lines of evaluation.
    pub evaluation: Vec<(u64, f64)>,
    /// The metric of the last of them.
    pub metric: Option<String>,
}

impl Metrics {
    /// Opens or creates the file and truncates it to step `last`: a resumed run logs the later steps again. An incomplete last
    /// line is removed too.
    pub fn open(path: &Path, last: u64) -> Result<Self> {
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::io(path, "open"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
        let (mut training, mut validation, mut evaluation) = (Vec::new(), Vec::new(), Vec::new());
        let (mut accuracy, mut metric, mut kept) = (None, None, 0);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if line.last() != Some(&b'\n') {
                break;
            }
            if let Ok(line) = serde_json::from_slice::<Line>(line) {
                if line.step > last {
                    break;
                }
                training.extend(line.loss.map(|loss| (line.step, loss)));
                validation.extend(line.validation_loss.map(|loss| (line.step, loss)));
                accuracy = line.validation_accuracy.or(accuracy);
                evaluation.extend(line.value.map(|value| (line.step, value)));
                metric = line.metric.or(metric);
            }
            kept += line.len() as u64;
        }
        file.set_len(kept).map_err(Error::io(path, "cut back"))?;
        file.seek(SeekFrom::Start(kept)).map_err(Error::io(path, "read"))?;
        Ok(Self { path: path.to_path_buf(), file, training, validation, accuracy, evaluation, metric })
    }

    pub fn log(&mut self, line: &TrainingLine) -> Result<()> {
        self.write(line)?;
        self.training.push((line.step, line.loss));
        Ok(())
    }

    pub fn log_validation(&mut self, line: &ValidationLine) -> Result<()> {
        self.write(line)?;
        self.validation.push((line.step, line.validation_loss));
        self.accuracy = line.validation_accuracy.or(self.accuracy);
        Ok(())
    }

    pub fn log_evaluation(&mut self, line: &EvaluationLine) -> Result<()> {
        self.write(line)?;
        self.evaluation.push((line.step, line.value));
        self.metric = Some(line.metric.clone());
        Ok(())
    }

    /// Syncs the file, so that no line before a checkpoint can be missing after it.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path, "write"))
    }

    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec(line).map_err(|fault| Error::io(&self.path, "write")(fault.into()))?;
        bytes.push(b'\n');
        // One write per line: a concurrent reader sees whole lines.
        self.file.write_all(&bytes).map_err(Error::io(&self.path, "write"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64, loss: f64) -> TrainingLine {
        let (epoch, gradient_norm, learning_rate) = (step as f64 / 8.0, 1.0, 1e-3);
        let terms = LossTerms { names: &["mse"], means: vec![loss] };
        TrainingLine {
            step,
            epoch,
            loss,
            gradient_norm,
            learning_rate,
            images_per_second: 10.0,
            seconds: 0.5,
            terms,
            accuracy: None,
        }
    }

    #[test]
    fn the_file_is_cut_back_to_a_step_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0).unwrap();
        for step in 1..=6 {
            metrics.log(&line(step, step as f64)).unwrap();
        }
        let validation = ValidationLine { step: 6, epoch: 0.75, validation_loss: 0.25, validation_accuracy: None };
        metrics.log_validation(&validation).unwrap();
        let evaluation = EvaluationLine {
            step: 6,
            epoch: 0.75,
            metric: "FID".into(),
            value: 31.25,
            samples: 64,
            rule: None,
            settings: serde_json::json!({ "seed": 3 }),
        };
        metrics.log_evaluation(&evaluation).unwrap();
        let found = Metrics::open(&path, 6).unwrap();
        assert_eq!((found.evaluation, found.metric.as_deref()), (vec![(6, 31.25)], Some("FID")));
        let whole = std::fs::read(&path).unwrap();
        // Cut at any place, it is truncated to whole lines and to the step.
        for len in 0..=whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let lines = whole[..len].iter().filter(|byte| **byte == b'\n').count();
            let metrics = Metrics::open(&path, 4).unwrap();
            assert_eq!(metrics.training.len(), lines.min(4));
            assert!(metrics.validation.is_empty());
        }
        let mut metrics = Metrics::open(&path, 4).unwrap();
        metrics.log(&line(5, 5.0)).unwrap();
        let metrics = Metrics::open(&path, 6).unwrap();
        assert_eq!(metrics.training, [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0)]);
        for text in std::fs::read_to_string(&path).unwrap().lines() {
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            for key in ["step", "epoch", "loss", "images_per_second", "learning_rate"] {
                assert!(value[key].is_number(), "{text}");
            }
        }
    }

    #[test]
    fn a_full_disk_is_told() {
        if !Path::new("/dev/full").exists() {
            eprintln!("SKIPPED: there is no /dev/full on this system");
            return;
        }
        let file = File::options().write(true).open("/dev/full").unwrap();
        let mut metrics = Metrics {
            path: "m.jsonl".into(),
            file,
            training: Vec::new(),
            validation: Vec::new(),
            accuracy: None,
            evaluation: Vec::new(),
            metric: None,
        };
        let message = metrics.log(&line(1, 1.0)).unwrap_err().to_string();
        assert!(message.starts_with("m.jsonl: cannot write") && message.contains("free some space"), "{message}");
    }
}
