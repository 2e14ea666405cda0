//! Linear attention against its unfactored form, and the cost that the factorisation saves.

use engine_core::ops::host::parallel::with_threads;
use engine_core::ops::linear_attention::linear_attention;
use engine_core::rng::{Philox, Purpose};
use engine_core::tape::Tape;
use engine_core::tensor::{Context, DType, Program};

fn uniform(item: u32, len: usize) -> Vec<f64> {
    let philox = Philox { seed: 40 };
    let blocks = (0..len.div_ceil(4)).flat_map(|block| philox.uniform4(block as u32, item, 0, Purpose::Probe));
    blocks.take(len).map(|u| 4.0 * f64::from(u) - 2.0).collect()
}

/// φ = elu + 1 and its derivative.
fn feature(x: f64) -> (f64, f64) {
    if x > 0.0 { (x + 1.0, 1.0) } else { (x.exp(), x.exp()) }
}

/// The output and the gradient of `qkv` with the matrix of all token pairs: W = φ(q) φ(k)ᵀ / its row sums, y = W v.
fn quadratic([batch, tokens, heads, dim]: [usize; 4], qkv: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let width = heads * dim;
    let (mut y, mut dqkv) = (vec![0.0; batch * tokens * width], vec![0.0; qkv.len()]);
    for (sample, head) in (0..batch).flat_map(|sample| (0..heads).map(move |head| (sample, head))) {
        let at = |part: usize, t: usize, i: usize| ((sample * tokens + t) * 3 + part) * width + head * dim + i;
        let out = |t: usize, i: usize| (sample * tokens + t) * width + head * dim + i;
        let pair = |t: usize, s: usize| -> f64 {
            (0..dim).map(|i| feature(qkv[at(0, t, i)]).0 * feature(qkv[at(1, s, i)]).0).sum()
        };
        for t in 0..tokens {
            let scores: Vec<f64> = (0..tokens).map(|s| pair(t, s)).collect();
            let sum: f64 = scores.iter().sum();
            let weights: Vec<f64> = scores.iter().map(|score| score / sum).collect();
            let dweights: Vec<f64> =
                (0..tokens).map(|s| (0..dim).map(|i| dy[out(t, i)] * qkv[at(2, s, i)]).sum()).collect();
            let inner: f64 = weights.iter().zip(&dweights).map(|(w, d)| w * d).sum();
            for s in 0..tokens {
                let dscore = (dweights[s] - inner) / sum;
                for i in 0..dim {
                    y[out(t, i)] += weights[s] * qkv[at(2, s, i)];
                    dqkv[at(2, s, i)] += weights[s] * dy[out(t, i)];
                    let ((f, df), (g, dg)) = (feature(qkv[at(0, t, i)]), feature(qkv[at(1, s, i)]));
                    dqkv[at(0, t, i)] += dscore * g * df;
                    dqkv[at(1, s, i)] += dscore * f * dg;
                }
            }
        }
    }
    (y, dqkv)
}

#[test]
fn agrees_with_the_quadratic_form_in_double_precision() {
    for sizes in [[2, 64, 2, 32], [1, 130, 2, 12], [2, 1, 3, 20], [3, 9, 4, 7], [1, 66, 1, 80]] {
        let [batch, tokens, heads, dim] = sizes;
        let (qkv, dy) = (uniform(1, batch * tokens * 3 * heads * dim), uniform(2, batch * tokens * heads * dim));
        let (y, dqkv) = quadratic(sizes, &qkv, &dy);

        let context = Context::cpu();
        let tape = Tape::new(&context);
        let place = |values: &[f64], width: usize| {
            let tensor = context.persistent([batch, tokens, width], DType::F64).unwrap();
            tensor.upload_f64(values).unwrap();
            tensor
        };
        let input = tape.leaf(&place(&qkv, 3 * heads * dim));
        let output = linear_attention(&tape, &input, heads).unwrap();
        tape.backward(&output, place(&dy, heads * dim)).unwrap();
        let gradient = tape.gradient(&input).unwrap();
        for (what, tensor, exact) in [("output", output.tensor(), &y), ("gradient", &gradient, &dqkv)] {
            let largest = exact.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            for (i, (value, exact)) in tensor.to_f64().unwrap().iter().zip(exact).enumerate() {
                assert!((value - exact).abs() <= 1e-10 * largest, "{sizes:?}: {what}[{i}] is {value}, not {exact}");
            }
        }
    }
}

/// Work, bytes and memory of a forward and a backward: four times as much for four times as many tokens.
#[test]
fn cost_is_linear_in_the_tokens() {
    let costs = |tokens: usize| {
        let context = Context::shape_only();
        let program = Program::plan(&context, || {
            let tape = Tape::new(&context);
            let qkv = tape.leaf(&context.empty([2, tokens, 3 * 8 * 32], DType::F32)?);
            let y = linear_attention(&tape, &qkv, 8)?;
            tape.backward(&y, context.empty([2, tokens, 8 * 32], DType::F32)?)
        })
        .unwrap();
        let charged = program.charges().values().fold((0.0, 0.0), |sum, (_, c)| (sum.0 + c.flops, sum.1 + c.bytes));
        (charged.0, charged.1, program.arena_bytes() as f64)
    };
    let (short, long) = (costs(256), costs(1024));
    assert_eq!(long.0, 4.0 * short.0);
    assert_eq!(long.1, 4.0 * short.1);
    assert!(long.2 <= 4.0 * short.2, "{} bytes for 1,024 tokens, {} for 256", long.2, short.2);
}

#[test]
fn a_width_that_is_no_three_heads_is_refused() {
    let context = Context::cpu();
    let tape = Tape::inference(&context);
    let qkv = tape.constant(&context.persistent([1, 4, 32], DType::F32).unwrap());
    let message = linear_attention(&tape, &qkv, 2).unwrap_err().to_string();
    assert!(message.contains("linear_attention") && message.contains("2 heads"), "{message}");
}

/// The bits of output and gradient of some samples, on `threads` threads.
fn bits(qkv: &[f32], dy: &[f32], [tokens, heads, dim]: [usize; 3], threads: usize) -> Vec<u32> {
    with_threads(threads, || {
        let context = Context::cpu();
        let tape = Tape::new(&context);
        let samples = dy.len() / (tokens * heads * dim);
        let input = tape.leaf(&context.tensor(qkv, [samples, tokens, 3 * heads * dim]).unwrap());
        let output = linear_attention(&tape, &input, heads).unwrap();
        tape.backward(&output, context.tensor(dy, [samples, tokens, heads * dim]).unwrap()).unwrap();
        // Sample by sample, its output before its gradient.
        let (y, dqkv) = (output.tensor().host::<f32>(), tape.gradient(&input).unwrap());
        let (y, dqkv) = (y.chunks(y.len() / samples), dqkv.host::<f32>().chunks(qkv.len() / samples));
        y.zip(dqkv).flat_map(|(y, dqkv)| y.iter().chain(dqkv).map(|x| x.to_bits()).collect::<Vec<_>>()).collect()
    })
}

/// The number of heads per task depends on threads, batch and tokens; the bits do not.
#[test]
fn a_sample_has_the_same_bits_in_every_batch_and_on_every_number_of_threads() {
    for sizes in [[70, 5, 32], [33, 4, 20]] {
        let (batch, width) = (3, sizes.iter().product::<usize>());
        let values = |item, len| uniform(item, len).into_iter().map(|x| x as f32).collect::<Vec<_>>();
        let (qkv, dy) = (values(3, batch * 3 * width), values(4, batch * width));
        let together = bits(&qkv, &dy, sizes, 1);
        assert_eq!(together, bits(&qkv, &dy, sizes, 3), "{sizes:?}: other bits on three threads");
        let alone: Vec<u32> =
            (qkv.chunks(3 * width).zip(dy.chunks(width))).flat_map(|(qkv, dy)| bits(qkv, dy, sizes, 2)).collect();
        assert_eq!(together, alone, "{sizes:?}: other bits alone");
    }
}
