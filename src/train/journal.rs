//! The records of a run: `metrics.jsonl` and TensorBoard's events.

use super::metrics::Metrics;
use super::tensorboard::Events;
use super::{EvaluationLine, RunFolder, TrainingLine, ValidationLine};
use crate::error::Result;
use crate::picture::Image;

/// Both files, open.
pub(super) struct Journal {
    metrics: Metrics,
    events: Events,
}

impl Journal {
    /// Opens the files of a folder and truncates them to step `last`, from which the run resumes.
    pub fn open(folder: &RunFolder, last: u64) -> Result<Self> {
        Ok(Self { metrics: Metrics::open(&folder.metrics(), last)?, events: Events::open(folder.root(), last)? })
    }

    /// The points of the curves, and the last accuracy.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Writes a training line to both files.
    pub fn training(&mut self, line: &TrainingLine) -> Result<()> {
        let scalars = [
            ("train/loss", line.loss),
            ("train/gradient_norm", line.gradient_norm),
            ("train/learning_rate", line.learning_rate),
            ("train/images_per_second", line.images_per_second),
        ];
        let accuracy = line.accuracy.map(|accuracy| ("train/accuracy", accuracy));
        for (tag, value) in scalars.iter().chain(&accuracy) {
            self.events.scalar(tag, line.step, *value)?;
        }
        for (name, mean) in line.terms.iter() {
            self.events.scalar(&format!("train/loss/{name}"), line.step, mean)?;
        }
        self.metrics.log(line)
    }

    /// Writes a validation line to both files.
    pub fn validation(&mut self, line: &ValidationLine) -> Result<()> {
        self.events.scalar("validation/loss", line.step, line.validation_loss)?;
        if let Some(accuracy) = line.validation_accuracy {
            self.events.scalar("validation/accuracy", line.step, accuracy)?;
        }
        self.metrics.log_validation(line)
    }

    /// Writes an evaluation line to both files.
    pub fn evaluation(&mut self, line: &EvaluationLine) -> Result<()> {
        self.events.scalar(&format!("evaluation/{}", line.metric), line.step, line.value)?;
        self.metrics.log_evaluation(line)
    }

    /// Writes a number for TensorBoard.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<()> {
        self.events.scalar(tag, step, value)
    }

    /// Writes a picture for TensorBoard.
    pub fn image(&mut self, tag: &str, step: u64, image: &Image) -> Result<()> {
        self.events.image(tag, step, image)
    }

    /// Writes a histogram for TensorBoard.
    pub fn histogram(&mut self, tag: &str, step: u64, values: &[f32]) -> Result<()> {
        self.events.histogram(tag, step, values)
    }

    /// Syncs both files, so that no line before a checkpoint can be missing after it.
    pub fn sync(&self) -> Result<()> {
        self.metrics.sync().and_then(|()| self.events.sync())
    }
}
