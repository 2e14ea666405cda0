//! Matrix products on the CPU, of `dit-cifar10`'s shapes at batch 32, against what one thread's instructions reach:
//! `cargo bench -p benches --bench products`. `ENGINE_CPU` forces an instruction set, `ENGINE_THREADS` the threads.

use std::marker::PhantomData;
use std::time::Instant;

use engine::device::instructions::instruction_set;
use engine::ops::host::parallel::{set_threads, threads};
use engine::ops::host::product::{
    Factor, Peak, Weight, linear_backward_input, linear_backward_weight, linear_forward, peak,
};
use engine::tape::Accumulate;
use engine::tensor::Element;
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

/// Memory that begins with a cache line, as tensors do.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u64; 8]);

/// So many elements of it, of values as networks have them: a processor is faster with zeros.
struct Values<T> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Element> Values<T> {
    fn new(len: usize, value: impl Fn(f32) -> T) -> Self {
        let lines = vec![Line([0; 8]); (len * size_of::<T>()).div_ceil(size_of::<Line>())];
        let mut values = Self { lines, len, of: PhantomData };
        let mut state = 1u64;
        values.get().fill_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            value((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
        });
        values
    }

    fn get(&mut self) -> &mut [T] {
        // SAFETY: the lines have room for so many elements, which any bits make.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

fn report<T: Factor>(name: &str, value: impl Fn(f32) -> T, sum: impl Fn(f32) -> T::Float) {
    let Peak { registers, first_cache } = peak::<T>();
    let threads = threads();
    println!(
        "{name}: one thread on registers {:.0} GFLOP/s, from the first cache {:.0}",
        registers / 1e9,
        first_cache / 1e9
    );
    println!("{name}: {threads} threads, GFLOP/s and the share of {threads} times the registers' rate");
    for [m, n, k] in SHAPES {
        let [mut x, mut w, mut dy, mut y, mut dx] =
            [m * k, n * k, m * n, m * n, m * k].map(|len| Values::new(len, &value));
        let mut dw = Values::new(n * k, &sum);
        let (x, w, dy) = (&*x.get(), &*w.get(), &*dy.get());
        let (y, dx, dw) = (y.get(), dx.get(), dw.get());
        let operations = (2 * m * n * k) as f64;
        let rates = [
            gigaflops(operations, || linear_forward(y, x, Weight::Rows(w), None, (m, n, k), |_, _, _| ())),
            gigaflops(operations, || linear_backward_input(dx, dy, w, (m, n, k), Accumulate::Write)),
            gigaflops(operations, || linear_backward_weight(dw, dy, x, (m, n, k), Accumulate::Write)),
        ];
        let told = rates.map(|rate| format!("{rate:6.0} ({:3.0} %)", 1e11 * rate / (threads as f64 * registers)));
        println!("  [{m}, {k}] · [{k}, {n}]  forward {}  input {}  weight {}", told[0], told[1], told[2]);
    }
}

fn main() {
    set_threads(None).unwrap_or_else(|error| panic!("{error}"));
    println!("instruction set: {}", instruction_set().name());
    report::<f32>("f32", |x| x, |x| x);
    report::<bf16>("bf16", bf16::from_f32, |x| x);
}
