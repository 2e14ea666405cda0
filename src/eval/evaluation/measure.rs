//! All requested metrics, from features.

use serde_json::{Value, json};

use super::{Classes, FeatureSet, Reference};
use crate::error::{Error, Result};
use crate::eval::metrics::{
    Estimate, Extrapolation, Gaussian, Neighbours, SPLITS, SUBSET_SIZE, SUBSETS, Shuffle, extrapolated,
    inception_score, kernel_distance, subset,
};
use crate::eval::{Better, Confusion, Rule};

/// A metric, or several that share their computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetricKind {
    /// The Fréchet distance: FID on InceptionV3's features, FD-NAME on others.
    Fid,
    /// The kernel distance KID.
    Kid,
    /// The Inception Score.
    Is,
    /// Precision (of the samples) and recall (of the reference).
    PrecisionRecall,
    /// Density and coverage.
    DensityCoverage,
    /// The Fréchet distance extrapolated to infinitely many samples.
    FidInfinity,
    /// The share of samples that are no closer to a reference image than that image's own nearest neighbour (AuthPct).
    Authenticity,
    /// The share of samples that a classifier assigns to their intended class.
    Accuracy,
}

/// A metric's value and its uncertainty.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Its key in files: `fid_score`.
    pub key: String,
    /// Its display name: `FID`, `FD-resnet18-cifar10`.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Its standard error.
    pub error: Option<f64>,
    /// The bias due to the number of samples.
    pub bias: Option<f64>,
    /// Which way is better.
    pub better: Better,
    /// Further values for files.
    pub more: Value,
}

/// The request.
pub struct Asking<'a> {
    /// The metrics.
    pub metrics: &'a [MetricKind],
    /// The name of the Fréchet distance.
    pub distance: String,
    /// Number of halves for uncertainties; 0: none.
    pub draws: usize,
    /// The seed of subsets and halves.
    pub seed: u64,
    /// The tool whose rule is followed, for its shuffle of the Inception Score.
    pub rule: Option<Rule>,
    /// The intended class of each sample, and a classifier's logits.
    pub classes: Option<Classes<'a>>,
}

/// The nearest reference images of the samples.
pub type Nearest = Vec<(usize, f64)>;

impl Asking<'_> {
    fn wants(&self, kind: MetricKind) -> bool {
        self.metrics.contains(&kind)
    }

    /// A metric and its uncertainty from halves of the samples, and of the reference if it is given by pictures. `of(None)`
    /// computes it from all.
    fn estimated(
        &self,
        count: usize,
        mut of: impl FnMut(Option<(u32, &[usize])>) -> Result<f64>,
    ) -> Result<(f64, Option<Estimate>)> {
        let value = of(None)?;
        if self.draws < 2 || count < 4 {
            return Ok((value, None));
        }
        let values = (0..self.draws as u32)
            .map(|draw| of(Some((draw, &subset(count, count / 2, self.seed, draw)))))
            .collect::<Result<Vec<f64>>>()?;
        Ok((value, Some(Estimate::of_halves(value, &values))))
    }
}

/// The metrics in `asking`. `stage(name, done, of)` reports long work.
///
/// # Errors
/// [`Error::Config`] for metrics that need reference pictures but got only statistics, or a missing classifier, and for too few
/// images; those of `stage`.
pub fn measure(
    samples: &FeatureSet,
    reference: Option<&Reference>,
    asking: &Asking,
    stage: &mut dyn FnMut(&str, usize, usize) -> Result<()>,
) -> Result<(Vec<Measured>, Option<Nearest>)> {
    let mut found = Vec::new();
    for &kind in asking.metrics {
        match kind {
            MetricKind::Fid => found.push(distance(samples, needed(reference)?, asking, stage)?),
            MetricKind::Kid => {
                stage("kernel distance", 0, 1)?;
                let kid = kernel_distance(
                    &samples.features()?,
                    &pictures(reference, "the kernel distance")?.features()?,
                    SUBSETS,
                    SUBSET_SIZE,
                    asking.seed,
                )?;
                let name = asking.distance.replace("FID", "KID").replace("FD-", "KD-");
                found.push(Measured {
                    more: json!({
                        "subsets": kid.subsets, "subset_size": kid.subset_size, "std_over_subsets": kid.deviation,
                    }),
                    ..measured("kid_mean", &name, kid.mean, kid.error.is_finite().then_some(kid.error), Better::Lower)
                });
            }
            MetricKind::Is => found.push(score(samples, asking, stage)?),
            MetricKind::FidInfinity => found.push(limit(samples, needed(reference)?, asking, stage)?),
            MetricKind::Accuracy => found.extend(accuracy(asking)?),
            MetricKind::PrecisionRecall | MetricKind::DensityCoverage | MetricKind::Authenticity => {}
        }
    }
    let mut nearest = None;
    let by_neighbours = [MetricKind::PrecisionRecall, MetricKind::DensityCoverage, MetricKind::Authenticity];
    if by_neighbours.iter().any(|kind| asking.wants(*kind)) {
        let (more, of_samples) = neighbours(samples, pictures(reference, "neighbours")?, asking, stage)?;
        found.extend(more);
        nearest = Some(of_samples);
    }
    Ok((found, nearest))
}

/// Refuses metrics of single pictures where the reference is known to be statistics alone: before any work is done.
///
/// # Errors
/// [`Error::Config`] for such a metric.
pub fn check_statistics_suffice(metrics: &[MetricKind]) -> Result<()> {
    let needing = |kind: &MetricKind| match kind {
        MetricKind::Kid => Some("the kernel distance"),
        MetricKind::PrecisionRecall | MetricKind::DensityCoverage | MetricKind::Authenticity => Some("neighbours"),
        MetricKind::Fid | MetricKind::Is | MetricKind::FidInfinity | MetricKind::Accuracy => None,
    };
    metrics.iter().find_map(needing).map_or(Ok(()), |what| Err(only_statistics(what)))
}

fn only_statistics(what: &str) -> Error {
    let message = format!("{what} needs more than mean and covariance");
    Error::config("reference", message, "give the pictures, or leave the metric out of `metrics`")
}

fn measured(key: &str, name: &str, value: f64, error: Option<f64>, better: Better) -> Measured {
    Measured { key: key.into(), name: name.into(), value, error, bias: None, better, more: Value::Null }
}

fn needed(reference: Option<&Reference>) -> Result<&Reference> {
    reference.ok_or_else(|| Error::config("reference", "a distance needs a reference", "give `data`, or `reference`"))
}

fn pictures<'a>(reference: Option<&'a Reference>, what: &str) -> Result<&'a FeatureSet> {
    match needed(reference)? {
        Reference::Pictures(set) => Ok(set),
        Reference::Statistics(_) => Err(only_statistics(what)),
    }
}

fn distance(
    samples: &FeatureSet,
    reference: &Reference,
    asking: &Asking,
    stage: &mut dyn FnMut(&str, usize, usize) -> Result<()>,
) -> Result<Measured> {
    let features = samples.features()?;
    let whole = reference.gaussian()?;
    let steps = asking.draws + 1;
    let (value, estimate) = asking.estimated(features.count(), |half| match half {
        None => {
            stage(&asking.distance, 0, steps)?;
            samples.gaussian()?.distance(whole)
        }
        Some((draw, rows)) => {
            stage(&asking.distance, draw as usize + 1, steps)?;
            let of_half = Gaussian::of_features(&features.part(rows))?;
            match reference {
                Reference::Pictures(set) if set.count() >= 4 => {
                    of_half.distance(&set.halves(asking.draws, asking.seed ^ 1)?[draw as usize])
                }
                _ => of_half.distance(whole),
            }
        }
    })?;
    Ok(Measured {
        bias: estimate.map(|estimate| estimate.bias),
        ..measured("fid_score", &asking.distance, value, estimate.map(|estimate| estimate.error), Better::Lower)
    })
}

fn score(
    samples: &FeatureSet,
    asking: &Asking,
    stage: &mut dyn FnMut(&str, usize, usize) -> Result<()>,
) -> Result<Measured> {
    stage("Inception Score", 0, 1)?;
    let logits = samples.logits()?;
    let shuffle = match asking.rule {
        Some(Rule::TorchFidelity) => Shuffle::TorchFidelity,
        _ => Shuffle::Seeded(asking.seed),
    };
    let (mean, deviation) = inception_score(&logits, SPLITS, shuffle)?;
    let enough = logits.count() >= 2 * SPLITS;
    let of = |half: Option<(u32, &[usize])>| match half {
        None => Ok(mean),
        Some((_, rows)) => Ok(inception_score(&logits.part(rows), SPLITS, shuffle)?.0),
    };
    let (_, estimate) = if enough { asking.estimated(logits.count(), of)? } else { (mean, None) };
    let name = if asking.distance == "FID" {
        "Inception Score".to_string()
    } else {
        format!("score of {}", &asking.distance[3..])
    };
    Ok(Measured {
        bias: estimate.map(|estimate| estimate.bias),
        more: json!({ "splits": SPLITS, "std_over_splits": deviation }),
        ..measured("inception_score_mean", &name, mean, estimate.map(|estimate| estimate.error), Better::Higher)
    })
}

fn limit(
    samples: &FeatureSet,
    reference: &Reference,
    asking: &Asking,
    stage: &mut dyn FnMut(&str, usize, usize) -> Result<()>,
) -> Result<Measured> {
    let name = format!("{}∞", asking.distance);
    let progress = |done: usize, of: usize| stage(&name, done, of);
    let Extrapolation { limit, slope, error, points } =
        extrapolated(samples.features()?, reference.gaussian()?, asking.seed, progress)?;
    Ok(Measured {
        more: json!({ "slope": slope, "points": points }),
        ..measured("fid_infinity", &name, limit, Some(error), Better::Lower)
    })
}

fn accuracy(asking: &Asking) -> Result<Option<Measured>> {
    let Some(Classes { truth, names, logits }) = &asking.classes else {
        let message = "class accuracy needs a classifier and samples of known classes";
        return Err(Error::config("classifier", message, "give a classifier, and a model with classes"));
    };
    let mut confusion = Confusion::new(logits.width());
    for (index, label) in truth.iter().enumerate() {
        let Some(label) = label.filter(|&label| label < logits.width()) else { continue };
        let row = logits.row(index);
        let prediction = (1..row.len()).fold(0, |best, class| if row[class] > row[best] { class } else { best });
        confusion.add(label, prediction);
    }
    let total = confusion.total();
    if total == 0 {
        return Ok(None);
    }
    let share = confusion.accuracy();
    let error = (share * (1.0 - share) / total as f64).sqrt();
    Ok(Some(Measured {
        more: json!({
            "images": total, "classes": names, "confusion": confusion.counts(), "rows": "the class that was drawn",
        }),
        ..measured("class_accuracy", "class accuracy", share, Some(error), Better::Higher)
    }))
}

fn neighbours(
    samples: &FeatureSet,
    reference: &FeatureSet,
    asking: &Asking,
    stage: &mut dyn FnMut(&str, usize, usize) -> Result<()>,
) -> Result<(Vec<Measured>, Nearest)> {
    let (generated, real) = (samples.features()?, reference.features()?);
    let all = Neighbours::of(&generated, &real, |done, of| stage("neighbours", done, of))?;
    // Halves of 6 images still have five neighbours.
    let draws = if generated.count().min(real.count()) >= 12 { asking.draws } else { 0 };
    let mut halves = Vec::with_capacity(draws);
    for draw in 0..draws as u32 {
        let rows = subset(generated.count(), generated.count() / 2, asking.seed, draw);
        let others = subset(real.count(), real.count() / 2, asking.seed ^ 1, draw);
        let half = Neighbours::of(&generated.part(&rows), &real.part(&others), |_, _| Ok(()))?;
        halves.push(Neighbours { nearest: Vec::new(), ..half });
        stage("halves of neighbours", draw as usize + 1, draws)?;
    }
    let one = |key: &str, name: &str, of: fn(&Neighbours) -> f64| {
        let values: Vec<f64> = halves.iter().map(of).collect();
        let estimate = (values.len() > 1).then(|| Estimate::of_halves(of(&all), &values));
        Measured {
            bias: estimate.map(|estimate| estimate.bias),
            ..measured(key, name, of(&all), estimate.map(|estimate| estimate.error), Better::Higher)
        }
    };
    let mut found = Vec::new();
    if asking.wants(MetricKind::PrecisionRecall) {
        found.push(one("precision", "precision (k = 3, of the samples)", |all| all.precision));
        found.push(one("recall", "recall (k = 3, of the reference)", |all| all.recall));
    }
    if asking.wants(MetricKind::DensityCoverage) {
        found.push(one("density", "density (k = 5)", |all| all.density));
        found.push(one("coverage", "coverage (k = 5)", |all| all.coverage));
    }
    if asking.wants(MetricKind::Authenticity) {
        found.push(one("auth_pct", "AuthPct", |all| 100.0 * all.authentic));
    }
    Ok((found, all.nearest))
}
