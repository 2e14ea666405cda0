//! The Fréchet distance at the width of InceptionV3: both factors, and the distance. `tools/peers/evaluation.py` times SciPy's.

use criterion::{Criterion, criterion_group, criterion_main};
use engine::eval::metrics::Gaussian;
use engine::ops::host::normal::fill_normal;
use engine::rng::{Philox, Purpose};

const WIDTH: usize = 2048;

/// A covariance of full rank whose eigenvalues fall: A Aᵀ of a lower triangle.
fn covariance(seed: u64) -> Vec<f64> {
    let mut a = vec![0.0f32; WIDTH * 64];
    fill_normal(&mut a, Philox::new(seed), 0, 0, Purpose::Probe);
    let element = |at: usize| {
        let (i, j) = (at / WIDTH, at % WIDTH);
        let dot: f32 = a[i * 64..][..64].iter().zip(&a[j * 64..][..64]).map(|(x, y)| x * y).sum();
        f64::from(dot) / 64.0 + if i == j { 0.1 } else { 0.0 }
    };
    (0..WIDTH * WIDTH).map(element).collect()
}

fn frechet(criterion: &mut Criterion) {
    let (one, two) = (covariance(1), covariance(2));
    let mut group = criterion.benchmark_group("evaluation");
    group.sample_size(10);
    group.bench_function("frechet_2048", |bench| {
        bench.iter(|| {
            let of = |covariance: &[f64]| Gaussian::of_moments(vec![0.0; WIDTH], covariance).unwrap();
            of(&one).distance(&of(&two)).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, frechet);
criterion_main!(benches);
