//! An evaluation: extracts features of pictures once, and computes all metrics from them.

mod classes;
mod draw;
mod measure;
mod warnings;

pub use classes::{Classes, class_places};
pub use draw::{DrawOrder, Drawn, Draws, drawn};
pub use measure::{Asking, Measured, MetricKind, Nearest, check_statistics_suffice, measure};
pub use warnings::{Compared, due_to_number, warnings};

use std::cell::OnceCell;
use std::path::Path;

use serde_json::{Value, json};

use super::metrics::{Features, Gaussian, subset};
use super::rows::{MappedRows, Rows};
use super::{Extractor, Gallery, Statistics};
use crate::error::Result;
use crate::picture::Image;

/// Rows of numbers.
enum Values {
    /// On disk.
    Mapped(MappedRows),
    /// In memory.
    Held(Vec<f32>),
}

impl Values {
    /// The first `count` rows.
    fn first(&self, count: usize, width: usize) -> &[f32] {
        match self {
            Self::Mapped(rows) => rows.floats(count),
            Self::Held(values) => &values[..count * width],
        }
    }
}

/// Features and logits of pictures.
pub struct FeatureSet {
    features: Values,
    logits: Values,
    count: usize,
    widths: [usize; 2],
    gaussian: OnceCell<Gaussian>,
    /// The fits of halves, by draw.
    halves: OnceCell<Vec<Gaussian>>,
    /// Damage of the cache that was repaired, for the user.
    pub notes: Vec<String>,
}

impl FeatureSet {
    /// Features of the first `count` pictures, extracted unless they are in the folder `cache` under the key `of`. Extracted
    /// features are kept if it is interrupted. `progress(done, of)` counts pictures.
    ///
    /// # Errors
    /// Those of the pictures, of [`Extractor::extract`] and of [`Rows`]; those of `progress`.
    pub fn extracted(
        gallery: &Gallery,
        of: &Value,
        count: usize,
        extractor: &mut Extractor,
        cache: &Path,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        let of = json!({ "pictures": of, "extractor": extractor.identity() });
        let widths = [extractor.width(), extractor.classes()];
        let mut features = Rows::open(cache, "features", &of, widths[0] * size_of::<f32>())?;
        let mut logits = Rows::open(cache, "logits", &of, widths[1] * size_of::<f32>())?;
        let whole = features.count().min(logits.count());
        features.truncate(whole)?;
        logits.truncate(whole)?;
        let mut at = whole;
        while at < count {
            let last = (at + extractor.batch()).min(count);
            let pictures = (at..last).map(|index| gallery.picture(index)).collect::<Result<Vec<_>>>()?;
            let [of_features, of_logits] = extractor.extract(&pictures)?;
            let bytes =
                |values: &[f64]| -> Vec<u8> { values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect() };
            features.append(&bytes(&of_features))?;
            logits.append(&bytes(&of_logits))?;
            at = last;
            progress(at, count)?;
        }
        let notes = [features.damage(), logits.damage()].into_iter().flatten().map(String::from).collect();
        let values = [Values::Mapped(features.map()?), Values::Mapped(logits.map()?)];
        Ok(Self { notes, ..Self::new(values, count, widths) })
    }

    /// Features of pictures in memory, in sequence. `next` returns up to the given number, and none at the end.
    ///
    /// # Errors
    /// Those of [`Extractor::extract`], and of `next`.
    pub fn held(extractor: &mut Extractor, mut next: impl FnMut(usize) -> Result<Vec<Image>>) -> Result<Self> {
        let widths = [extractor.width(), extractor.classes()];
        let (mut features, mut logits) = (Vec::new(), Vec::new());
        loop {
            let pictures = next(extractor.batch())?;
            if pictures.is_empty() {
                break;
            }
            let [of_features, of_logits] = extractor.extract(&pictures)?;
            features.extend(of_features.iter().map(|&value| value as f32));
            logits.extend(of_logits.iter().map(|&value| value as f32));
        }
        let count = features.len() / widths[0];
        Ok(Self::new([Values::Held(features), Values::Held(logits)], count, widths))
    }

    fn new([features, logits]: [Values; 2], count: usize, widths: [usize; 2]) -> Self {
        let (gaussian, halves) = (OnceCell::new(), OnceCell::new());
        Self { features, logits, count, widths, gaussian, halves, notes: Vec::new() }
    }

    /// The number of pictures.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Their features.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for features that are not finite.
    pub fn features(&self) -> Result<Features<'_>> {
        Features::new(self.features.first(self.count, self.widths[0]), self.widths[0])
    }

    /// Their logits.
    ///
    /// # Errors
    /// As [`FeatureSet::features`].
    pub fn logits(&self) -> Result<Features<'_>> {
        Features::new(self.logits.first(self.count, self.widths[1]), self.widths[1])
    }

    /// Their normal distribution, computed once.
    fn gaussian(&self) -> Result<&Gaussian> {
        if self.gaussian.get().is_none() {
            let _ = self.gaussian.set(Gaussian::of_features(&self.features()?)?);
        }
        Ok(self.gaussian.get().expect("just set"))
    }

    /// The normal distributions of `draws` halves by `seed`, computed once.
    fn halves(&self, draws: usize, seed: u64) -> Result<&[Gaussian]> {
        if self.halves.get().is_none() {
            let features = self.features()?;
            let half = |draw: usize| {
                let rows = subset(self.count, self.count / 2, seed, draw as u32);
                Gaussian::of_features(&features.part(&rows))
            };
            let _ = self.halves.set((0..draws).map(half).collect::<Result<_>>()?);
        }
        Ok(self.halves.get().expect("just set"))
    }
}

/// The reference for samples.
pub enum Reference {
    /// Features of pictures.
    Pictures(Box<FeatureSet>),
    /// Only mean and covariance.
    Statistics(Box<(Statistics, Gaussian)>),
}

impl Reference {
    /// From a statistics file.
    ///
    /// # Errors
    /// Those of [`Statistics::read`] and of [`Statistics::gaussian`].
    pub fn of_statistics(path: &Path) -> Result<Self> {
        let statistics = Statistics::read(path)?;
        let gaussian = statistics.gaussian()?;
        Ok(Self::Statistics(Box::new((statistics, gaussian))))
    }

    fn gaussian(&self) -> Result<&Gaussian> {
        match self {
            Self::Pictures(set) => set.gaussian(),
            Self::Statistics(both) => Ok(&both.1),
        }
    }

    /// Number of images behind it, if known.
    pub fn count(&self) -> Option<usize> {
        match self {
            Self::Pictures(set) => Some(set.count()),
            Self::Statistics(both) => both.0.count,
        }
    }
}
