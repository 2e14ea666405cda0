//! This CPU's rates, measured. In this crate, so that it is the ops' own product that is timed, compiled as they are.

use std::time::Instant;

use half::bf16;

use super::parallel::for_rows;
use super::{Matrix, MatrixMut, matmul};
use crate::tape::Accumulate;

/// Floating-point operations (a multiplication and an addition are two) and bytes read and written, each a second, on all threads.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Of an f32 product that fits the cache.
    pub flops: f64,
    /// Of the same product in bf16.
    pub bf16: f64,
    /// Of a copy that does not.
    pub bandwidth: f64,
}

/// The best of five tries each: about a third of a second.
pub fn measure() -> Rates {
    let best = |run: &mut dyn FnMut()| {
        let once = |_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64().max(1e-9)
        };
        (0..5).map(once).fold(f64::INFINITY, f64::min)
    };
    const N: usize = 768;
    let (a, b) = (vec![0.5f32; N * N], vec![0.25f32; N * N]);
    let mut c = vec![0f32; N * N];
    let multiplying = best(&mut || {
        matmul(MatrixMut::new(&mut c, N, N), Matrix::new(&a, N, N), Matrix::new(&b, N, N), Accumulate::Write);
    });
    let [a, b] = [a, b].map(|values| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>());
    let multiplying_pairs = best(&mut || {
        matmul(MatrixMut::new(&mut c, N, N), Matrix::new(&a, N, N), Matrix::new(&b, N, N), Accumulate::Write);
    });
    const FLOATS: usize = 16 << 20;
    let source = vec![1f32; FLOATS];
    let mut copy = vec![0f32; FLOATS];
    let copying = best(&mut || {
        for_rows(&mut copy, 1 << 16, |row, values| values.copy_from_slice(&source[row << 16..][..1 << 16]));
    });
    let flops = 2.0 * (N * N * N) as f64;
    Rates { flops: flops / multiplying, bf16: flops / multiplying_pairs, bandwidth: (2 * 4 * FLOATS) as f64 / copying }
}
