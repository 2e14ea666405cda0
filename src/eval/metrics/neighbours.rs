//! Metrics of nearest neighbours: which balls contain which images.
//!
//! With r_k(a) the distance from a to its k-th nearest other image of its own set, and d the Euclidean distance of features:
//!
//! ```text
//! precision  share of generated images g with d(g, r) ≤ r_3(r) for some reference image r       are samples realistic?
//! recall     share of reference images r with d(r, g) ≤ r_3(g) for some generated image g       is everything there?
//! density    mean over generated images of the number of r with d(g, r) < r_5(r), over 5
//! coverage   share of reference images with a generated image nearer than r_5(r)
//! authentic  share of generated images g whose nearest r has a nearer neighbour in the reference: d(g, r) > r_1(r)
//! ```
//!
//! Precision is a share of the *generated* images and recall a share of the *reference*: some tools had them swapped for years.
//! (Kynkäänniemi et al. 2019; Naeem et al. 2020; Alaa et al. 2022, whose authenticity detects memorised images if the reference is
//! the training set.)

use faer::Mat;

use super::Features;
use crate::error::{Error, Result};

/// k of precision and recall.
pub const PRECISION_NEIGHBOURS: usize = 3;
/// k of density and coverage.
pub const COVERAGE_NEIGHBOURS: usize = 5;

/// Images of a block of distances.
const BLOCK: usize = 1024;

/// The neighbour metrics of two sets.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbours {
    /// Share of generated images within the reference's balls.
    pub precision: f64,
    /// Share of reference images within the generated images' balls.
    pub recall: f64,
    /// Reference balls per generated image, over 5: 1 if both sets have the same distribution, more if samples crowd together.
    pub density: f64,
    /// Share of the reference's balls that contain a generated image.
    pub coverage: f64,
    /// Share of generated images that are no closer to a reference image than that image's own nearest neighbour; AuthPct is 100 times this.
    pub authentic: f64,
    /// For each generated image: its nearest reference image, and the distance.
    pub nearest: Vec<(usize, f64)>,
}

impl Neighbours {
    /// From features of generated and reference images; `progress(done, of)` counts blocks of distances.
    ///
    /// Memory: the sets themselves, 48 bytes an image, and two blocks of distances.
    ///
    /// # Errors
    /// [`Error::Shape`] for features of different widths; [`Error::Config`] for a set of fewer than 6 images, which has no fifth
    /// neighbour; those of `progress`.
    pub fn of(
        generated: &Features,
        reference: &Features,
        mut progress: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        if generated.width() != reference.width() {
            let message = format!("{} features beside {}", generated.width(), reference.width());
            return Err(Error::shape("neighbours", message));
        }
        let (samples, real) = (generated.count(), reference.count());
        if samples.min(real) <= COVERAGE_NEIGHBOURS {
            let message =
                format!("{samples} and {real} images: each needs {COVERAGE_NEIGHBOURS} neighbours of its own set");
            return Err(Error::config("num_samples", message, "give 6 images or more of each; 10,000 is usual"));
        }
        // Distances are differences of squares; centring on the reference's mean keeps these small.
        let origin = reference.mean();
        let blocks = |a: usize, b: usize| a.div_ceil(BLOCK) * b.div_ceil(BLOCK);
        let (mut done, all) = (0, blocks(samples, samples) + blocks(real, real) + blocks(samples, real));
        let mut step = || {
            done += 1;
            progress(done, all)
        };
        let own = radii(generated, &origin, &mut step)?;
        let balls = radii(reference, &origin, &mut step)?;
        let mut inside = vec![false; samples];
        let mut found = vec![false; real];
        let mut covered = vec![false; real];
        let mut crowd = 0usize;
        let mut nearest = vec![(0, f64::INFINITY); samples];
        for_blocks([generated, reference], &origin, &mut step, |g, r, distance| {
            let (ball, own) = (&balls[r], &own[g]);
            inside[g] |= distance <= ball[PRECISION_NEIGHBOURS - 1];
            found[r] |= distance <= own[PRECISION_NEIGHBOURS - 1];
            let held = distance < ball[COVERAGE_NEIGHBOURS - 1];
            covered[r] |= held;
            crowd += usize::from(held);
            // Blocks come in order, so the first of equal ones stays.
            if distance < nearest[g].1 {
                nearest[g] = (r, distance);
            }
        })?;
        let share = |hits: &[bool]| hits.iter().filter(|&&hit| hit).count() as f64 / hits.len() as f64;
        let authentic: Vec<bool> = nearest.iter().map(|&(r, distance)| distance > balls[r][0]).collect();
        Ok(Self {
            precision: share(&inside),
            recall: share(&found),
            density: crowd as f64 / (COVERAGE_NEIGHBOURS * samples) as f64,
            coverage: share(&covered),
            authentic: share(&authentic),
            nearest: nearest.into_iter().map(|(r, distance)| (r, distance.sqrt())).collect(),
        })
    }
}

/// For each image, the squared distances of its nearest others, ascending.
fn radii(
    features: &Features,
    origin: &[f64],
    step: &mut impl FnMut() -> Result<()>,
) -> Result<Vec<[f64; COVERAGE_NEIGHBOURS]>> {
    let mut least = vec![[f64::INFINITY; COVERAGE_NEIGHBOURS]; features.count()];
    for_blocks([features, features], origin, step, |a, b, distance| {
        let least = &mut least[a];
        if a == b || distance >= least[COVERAGE_NEIGHBOURS - 1] {
            return;
        }
        let at = least.partition_point(|&other| other <= distance);
        least.copy_within(at..COVERAGE_NEIGHBOURS - 1, at + 1);
        least[at] = distance;
    })?;
    Ok(least)
}

/// `f(i, j, d²)` for each image of the first set and each of the second.
fn for_blocks(
    [a, b]: [&Features; 2],
    origin: &[f64],
    step: &mut impl FnMut() -> Result<()>,
    mut f: impl FnMut(usize, usize, f64),
) -> Result<()> {
    let squares = |columns: &Mat<f64>| -> Vec<f64> {
        (0..columns.ncols()).map(|j| columns.col_as_slice(j).iter().map(|x| x * x).sum()).collect()
    };
    for first in (0..a.count()).step_by(BLOCK) {
        let of_a = a.columns(first..(first + BLOCK).min(a.count()), origin);
        let squares_a = squares(&of_a);
        for second in (0..b.count()).step_by(BLOCK) {
            let of_b = b.columns(second..(second + BLOCK).min(b.count()), origin);
            let squares_b = squares(&of_b);
            // Columns are images of a: their distances are contiguous.
            let dots = of_b.transpose() * &of_a;
            for (i, square) in squares_a.iter().enumerate() {
                for ((j, other), dot) in squares_b.iter().enumerate().zip(dots.col_as_slice(i)) {
                    f(first + i, second + j, (square + other - 2.0 * dot).max(0.0));
                }
            }
            step()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(generated: &[f32], reference: &[f32]) -> Neighbours {
        let features = |values| Features::new(values, 1).unwrap();
        Neighbours::of(&features(generated), &features(reference), |_, _| Ok(())).unwrap()
    }

    /// On a line: real images at 0 to 9, samples around 2. A ball of radius 3 or less contains each sample; the samples' own balls
    /// are small.
    #[test]
    fn crowded_samples_are_precise_and_recall_little() {
        let real: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let crowd: Vec<f32> = (0..8).map(|i| 2.0 + 0.01 * i as f32).collect();
        let found = of(&crowd, &real);
        assert_eq!(found.precision, 1.0);
        // Only image 2 lies within 0.03 of a sample.
        assert_eq!(found.recall, 0.1);
        assert!(found.density > 1.0 && found.coverage < 1.0, "{found:?}");
        assert_eq!(found.nearest[0], (2, 0.0));
        // All but those at 2.00 … 2.07 would have to be further than 1 from a real image: none is.
        assert_eq!(found.authentic, 0.0);
    }

    #[test]
    fn strangers_are_neither() {
        let real: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let far: Vec<f32> = (0..10).map(|i| 1000.0 + i as f32).collect();
        let found = of(&far, &real);
        assert_eq!((found.precision, found.recall, found.density, found.coverage), (0.0, 0.0, 0.0, 0.0));
        assert_eq!((found.authentic, found.nearest[0].0), (1.0, 9));
    }

    /// Against all pairs, in plain loops, in several dimensions and across blocks.
    #[test]
    fn blocks_are_the_definition() {
        let width = 3;
        let values = |count: usize, seed: u64| {
            let mut values = vec![0.0f32; count * width];
            let philox = crate::rng::Philox::new(seed);
            crate::ops::host::normal::fill_normal(&mut values, philox, 0, 0, crate::rng::Purpose::Probe);
            values
        };
        let (a, b) = (values(1100, 1), values(1300, 2));
        let (g, r) = (Features::new(&a, width).unwrap(), Features::new(&b, width).unwrap());
        let found = Neighbours::of(&g, &r, |_, _| Ok(())).unwrap();
        let distance = |x: &[f32], y: &[f32]| -> f64 {
            x.iter().zip(y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>().sqrt()
        };
        let radius = |set: &Features, i: usize, k: usize| -> f64 {
            let others = (0..set.count()).filter(|&j| j != i);
            let mut all: Vec<f64> = others.map(|j| distance(set.row(i), set.row(j))).collect();
            all.sort_by(f64::total_cmp);
            all[k - 1]
        };
        let r3: Vec<f64> = (0..r.count()).map(|i| radius(&r, i, 3)).collect();
        let precise = (0..g.count()).filter(|&j| (0..r.count()).any(|i| distance(g.row(j), r.row(i)) <= r3[i]));
        assert_eq!(found.precision, precise.count() as f64 / 1100.0);
        let r5: Vec<f64> = (0..r.count()).map(|i| radius(&r, i, 5)).collect();
        let covered = (0..r.count()).filter(|&i| (0..g.count()).any(|j| distance(g.row(j), r.row(i)) < r5[i]));
        assert_eq!(found.coverage, covered.count() as f64 / 1300.0);
        assert!((found.density - 1.0).abs() < 0.1, "{}", found.density);
    }

    #[test]
    fn few_images_are_refused() {
        let features = Features::new(&[0.0; 5], 1).unwrap();
        let message = Neighbours::of(&features, &features, |_, _| Ok(())).unwrap_err().to_string();
        assert!(message.contains("5 and 5 images"), "{message}");
    }
}
