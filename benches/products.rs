//! Matrix products on the CPU, of `dit-cifar10`'s shapes at batch 32, against what one thread's instructions reach:
//! `cargo bench -p benches --bench products`. `ENGINE_CPU` forces an instruction set, `ENGINE_THREADS` the threads.

use std::time::Instant;

use engine::device::instructions::instruction_set;
use engine::ops::host::parallel::{set_threads, threads};
use engine::ops::host::product::{
    Factor, Peak, Weight, linear_backward_input, linear_backward_weight, linear_forward, peak,
};
use engine::tape::Accumulate;
use half::bf16;

/// `[m, k] · [k, n]` of the forward pass: queries with keys and values, the output, and the two layers of the MLP.
const SHAPES: [[usize; 3]; 4] = [[2080, 576, 384], [2080, 384, 384], [2080, 1536, 384], [2080, 384, 1536]];

fn gigaflops(operations: f64, mut run: impl FnMut()) -> f64 {
    let once = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    operations / (0..9).map(once).fold(f64::INFINITY, f64::min) / 1e9
}

fn report<T: Factor>(name: &str, one: T, zero: T::Float) {
    let Peak { registers, first_cache } = peak::<T>();
    let threads = threads();
    println!(
        "{name}: one thread on registers {:.0} GFLOP/s, from the first cache {:.0}",
        registers / 1e9,
        first_cache / 1e9
    );
    println!("{name}: {threads} threads, GFLOP/s and the share of {threads} times the registers' rate");
    for [m, n, k] in SHAPES {
        let (x, w, dy) = (vec![one; m * k], vec![one; n * k], vec![one; m * n]);
        let (mut y, mut dx, mut dw) = (vec![one; m * n], vec![one; m * k], vec![zero; n * k]);
        let operations = (2 * m * n * k) as f64;
        let rates = [
            gigaflops(operations, || linear_forward(&mut y, &x, Weight::Rows(&w), None, (m, n, k), |_, _, _| ())),
            gigaflops(operations, || linear_backward_input(&mut dx, &dy, &w, (m, n, k), Accumulate::Write)),
            gigaflops(operations, || linear_backward_weight(&mut dw, &dy, &x, (m, n, k), Accumulate::Write)),
        ];
        let told = rates.map(|rate| format!("{rate:6.0} ({:3.0} %)", 1e11 * rate / (threads as f64 * registers)));
        println!("  [{m}, {k}] · [{k}, {n}]  forward {}  input {}  weight {}", told[0], told[1], told[2]);
    }
}

fn main() {
    set_threads(None).unwrap_or_else(|error| panic!("{error}"));
    println!("instruction set: {}", instruction_set().name());
    report::<f32>("f32", 0.5, 0.0);
    report::<bf16>("bf16", bf16::from_f32(0.5), 0.0);
}
