use half::bf16;

use super::factor::{SixteenPairs, WithMatrices};
use super::matrices::Chunks;
use super::registers::Model;
use super::*;
use crate::device::instructions::{InstructionSet, TileSet, VectorSet, instruction_set};
use crate::ops::host::Float;
use crate::ops::host::parallel::with_threads;

/// Repeatable values in (-1, 1).
fn values<T: Float>(len: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            T::from_f64((state >> 33) as f64 / (1u64 << 30) as f64 - 1.0)
        })
        .collect()
}

/// The documented order of summation, written plainly.
fn reference<T: Float>(dst: &mut [T], a: Matrix<T>, b: Matrix<T>, mode: Accumulate) {
    let (count, depth) = depth_blocks::<T>(a.cols);
    for i in 0..a.rows {
        for j in 0..b.cols {
            let mut total = if mode == Accumulate::Add { Some(dst[i * b.cols + j]) } else { None };
            for block in 0..count {
                let mut sum = T::ZERO;
                for p in block * depth..((block + 1) * depth).min(a.cols) {
                    sum = Float::mul_add(
                        a.data[i * a.row_stride + p * a.col_stride],
                        b.data[p * b.row_stride + j * b.col_stride],
                        sum,
                    );
                }
                total = Some(total.map_or(sum, |total| total + sum));
            }
            dst[i * b.cols + j] = total.unwrap();
        }
    }
}

fn agrees_with_reference<T: Float>() {
    let sizes = [1, 2, 3, 7, 8, 9, 13, 15, 16, 17, 31, 33, 65, 130];
    for (case, &m) in sizes.iter().enumerate() {
        for (n, k) in [(1, 1), (3, 5), (16, 16), (17, 40), (32, 33), (48, 9), (49, 3), (70, 513), (129, 64)] {
            let seed = (case * 100 + n) as u64;
            let (a, b, old) = (values::<T>(m * k, seed), values::<T>(k * n, seed + 1), values::<T>(m * n, seed + 2));
            for layout in 0..4 {
                let a = if layout & 1 == 0 { Matrix::new(&a, m, k) } else { Matrix::new(&a, k, m).t() };
                let b = if layout & 2 == 0 { Matrix::new(&b, k, n) } else { Matrix::new(&b, n, k).t() };
                for mode in [Accumulate::Write, Accumulate::Add] {
                    let (mut ours, mut theirs) = (old.clone(), old.clone());
                    matmul(MatrixMut::new(&mut ours, m, n), a, b, mode);
                    reference(&mut theirs, a, b, mode);
                    assert!(ours == theirs, "{} {m} {n} {k} layout {layout} {mode:?}", T::NAME);
                }
            }
        }
    }
}

#[test]
fn the_order_of_summation_is_the_documented_one_in_f32() {
    agrees_with_reference::<f32>();
}

#[test]
fn the_order_of_summation_is_the_documented_one_in_f64() {
    agrees_with_reference::<f64>();
}

/// A sum of products of pairs, the second of each first.
fn sum_of_pairs(pairs: &[[(f32, f32); 2]]) -> f32 {
    pairs.iter().flat_map(|&[first, second]| [second, first]).fold(0.0, |sum, (x, y)| x.mul_add(y, sum))
}

/// The same by matrix registers, added to a total: chunk by chunk, firsts and seconds by themselves.
fn sum_of_chunks(total: f32, pairs: &[[(f32, f32); 2]]) -> f32 {
    let chunk = Chunks::new(1, pairs.len()).chunk;
    pairs.chunks(chunk).fold(total, |total, chunk| {
        let [first, second] =
            [0, 1].map(|half| chunk.iter().fold(0.0, |sum, pair| f32::mul_add(pair[half].0, pair[half].1, sum)));
        total + (first + second)
    })
}

/// The same for pairs of bf16, in f32; a result in bf16 is one block, rounded at its end.
fn reference_of_pairs<D: Held<Float = f32>>(
    dst: &mut [D],
    a: Matrix<bf16>,
    b: Matrix<bf16>,
    mode: Accumulate,
    by_matrices: bool,
) {
    let steps = a.cols.div_ceil(2);
    let (count, depth) = if size_of::<D>() == 2 { (1, steps) } else { depth_blocks::<bf16>(steps) };
    for i in 0..a.rows {
        for j in 0..b.cols {
            let factors = |p: usize| match p < a.cols {
                true => (
                    a.data[i * a.row_stride + p * a.col_stride].get(),
                    b.data[p * b.row_stride + j * b.col_stride].get(),
                ),
                false => (0.0, 0.0),
            };
            let mut total = if mode == Accumulate::Add { Some(dst[i * b.cols + j].get()) } else { None };
            for block in 0..count {
                let pairs: Vec<_> = (block * depth..((block + 1) * depth).min(steps))
                    .map(|step| [factors(2 * step), factors(2 * step + 1)])
                    .collect();
                let is_rounded = size_of::<D>() == 2;
                total = Some(match (total, by_matrices) {
                    (Some(total), true) if !is_rounded => sum_of_chunks(total, &pairs),
                    (total, true) => total.unwrap_or(0.0) + sum_of_chunks(0.0, &pairs),
                    (total, false) => total.unwrap_or(0.0) + sum_of_pairs(&pairs),
                });
            }
            dst[i * b.cols + j] = D::of(total.unwrap());
        }
    }
}

/// All instruction sets that can be run here.
fn sets() -> Vec<InstructionSet> {
    let mut sets = InstructionSet::available();
    sets.push(InstructionSet { tiles: Some(TileSet::Model), ..sets[0] });
    sets
}

impl<D: Held<Float = f32>, F: Fn(usize, usize, &mut [f32]) + Send + Sync> Product<'_, bf16, D, F> {
    fn run_on(self, set: InstructionSet) {
        match (set.tiles, set.vectors) {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            (Some(TileSet::Amx(pairs, tiles)), _) => self.run(WithMatrices(pairs, tiles)),
            (Some(TileSet::Model), _) => self.run(WithMatrices(SixteenPairs, Model)),
            (None, VectorSet::Plain) => self.run(WidenedPairs(pulp::Scalar)),
            #[cfg(target_arch = "x86_64")]
            (None, VectorSet::Avx2(simd)) => self.run(WidenedPairs(simd)),
            #[cfg(target_arch = "x86_64")]
            (None, VectorSet::Avx512(simd)) => self.run(WidenedPairs(simd)),
            #[cfg(target_arch = "x86_64")]
            (None, VectorSet::Avx512Bf16(_, pairs)) => self.run(pairs),
        }
    }
}

/// Repeatable values of bf16.
fn briefs(len: usize, seed: u64) -> Vec<bf16> {
    values::<f32>(len, seed).into_iter().map(bf16::of).collect()
}

fn pairs_agree_with_reference<D: Held<Float = f32>>() {
    for m in [1, 2, 3, 7, 8, 9, 17, 33, 65] {
        for (n, k) in [(1, 1), (3, 5), (16, 16), (17, 2), (32, 33), (48, 9), (49, 3), (70, 4300), (129, 64)] {
            let seed = (m * 100 + n) as u64;
            let (a, b) = (briefs(m * k, seed), briefs(k * n, seed + 1));
            let old: Vec<D> = values::<f32>(m * n, seed + 2).into_iter().map(D::of).collect();
            for layout in 0..4 {
                let a = if layout & 1 == 0 { Matrix::new(&a, m, k) } else { Matrix::new(&a, k, m).t() };
                let b = if layout & 2 == 0 { Matrix::new(&b, k, n) } else { Matrix::new(&b, n, k).t() };
                for mode in [Accumulate::Write, Accumulate::Add] {
                    let theirs = [false, true].map(|by_matrices| {
                        let mut theirs = old.clone();
                        reference_of_pairs(&mut theirs, a, b, mode, by_matrices);
                        theirs
                    });
                    let theirs = |set: InstructionSet| &theirs[usize::from(set.tiles.is_some())];
                    let mut ours = old.clone();
                    matmul(MatrixMut::new(&mut ours, m, n), a, b, mode);
                    assert!(ours == *theirs(instruction_set()), "{m} {n} {k} layout {layout} {mode:?}");
                    for set in sets() {
                        let mut ours = old.clone();
                        let dst = MatrixMut::new(&mut ours, m, n);
                        let then = |_, _, _: &mut [f32]| ();
                        Product { dst, a: Left::Matrix(a), b: Right::Plain(b), mode, then }.run_on(set);
                        assert!(ours == *theirs(set), "{} {m} {n} {k} layout {layout} {mode:?}", set.name());
                    }
                }
            }
        }
    }
}

#[test]
fn the_order_of_summation_is_the_documented_one_in_bf16() {
    pairs_agree_with_reference::<bf16>();
    pairs_agree_with_reference::<f32>();
    for (name, what) in
        [("avx512bf16", "products of pairs of bf16 (vdpbf16ps)"), ("amx", "products of tiles of bf16 (AMX)")]
    {
        if !InstructionSet::available().iter().any(|set| set.name() == name) {
            println!("NOT TESTED: {what}, which this processor has not");
        }
    }
}

/// The instructions themselves, which a handler decodes where the processor has not got them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn the_instructions_of_amx_do_what_the_model_does() {
    use crate::device::instructions::TileProducts;
    if InstructionSet::available().iter().any(|set| set.name() == "amx") {
        println!("not trapped: this processor has AMX");
        return;
    }
    super::trap::install();
    for (m, n, k) in [(1, 1, 1), (16, 16, 32), (33, 50, 70), (40, 96, 2200), (65, 33, 48), (17, 130, 96)] {
        let (a, b, old) = (briefs(m * k, 31), briefs(k * n, 32), values::<f32>(m * n, 33));
        for layout in 0..4 {
            let a = if layout & 1 == 0 { Matrix::new(&a, m, k) } else { Matrix::new(&a, k, m).t() };
            let b = if layout & 2 == 0 { Matrix::new(&b, k, n) } else { Matrix::new(&b, n, k).t() };
            let [mut ours, mut theirs] = [old.clone(), old.clone()];
            let products = with_threads(1, || {
                let before = super::trap::products();
                let product = |dst| {
                    let (a, b, then) = (Left::Matrix(a), Right::Plain(b), |_, _, _: &mut [f32]| ());
                    Product { dst: MatrixMut::new(dst, m, n), a, b, mode: Accumulate::Add, then }
                };
                product(&mut ours[..]).run(WithMatrices(SixteenPairs, TileProducts::trapped()));
                product(&mut theirs[..]).run(WithMatrices(SixteenPairs, Model));
                super::trap::products() - before
            });
            assert!(ours == theirs, "{m} {n} {k} layout {layout}");
            let (count, depth) = depth_blocks::<bf16>(k.div_ceil(2));
            let chunks: usize = (0..count).map(|i| Chunks::new(1, depth.min(k.div_ceil(2) - i * depth)).count).sum();
            assert_eq!(products, m.div_ceil(16) * n.div_ceil(16) * chunks, "{m} {n} {k}");
        }
    }
}

#[test]
fn a_packed_weight_and_any_company_give_the_same_bits_in_bf16() {
    // The last: a weight gradient whose right side goes by in pieces.
    for (n, k) in [(1, 1), (33, 40), (96, 131), (45, 1100), (4100, 64), (3, 2100)] {
        let most = 130;
        let (x, w, bias) = (briefs(most * k, 21), briefs(n * k, 22), values::<f32>(n, 23));
        let forward = |m: usize, w: Weight<bf16>| {
            let mut y = vec![bf16::ZERO; m * n];
            linear_forward(&mut y, &x[..m * k], w, Some(&bias), (m, n, k), |_, _, values| {
                values.iter_mut().for_each(|value| *value = value.max(0.1 * *value));
            });
            y
        };
        let whole = with_threads(1, || forward(most, Weight::Rows(&w)));
        for (m, threads) in [(1, 1), (2, 3), (7, 1), (65, 2), (130, 3)] {
            with_threads(threads, || {
                let mut packed = vec![bf16::NAN; packed_len::<bf16>(n, k)];
                pack_weight(&mut packed, &w, (n, k));
                for w in [Weight::Packed(&packed), Weight::Rows(&w)] {
                    assert!(forward(m, w) == whole[..m * n], "m {m} n {n} k {k} threads {threads} {w:?}");
                }
            });
        }
        let dy = briefs(most * n, 24);
        let backward = || {
            let (mut dx, mut dw) = (vec![bf16::ONE; most * k], vec![0.5; n * k]);
            linear_backward_input(&mut dx, &dy, &w, (most, n, k), Accumulate::Add);
            linear_backward_weight(&mut dw, &dy, &x, (most, n, k), Accumulate::Add);
            (dx, dw)
        };
        let one = with_threads(1, backward);
        assert!(one == with_threads(3, backward), "{n} {k}");
        let mut dw = vec![0.5_f32; n * k];
        let by_matrices = instruction_set().tiles.is_some();
        let (dy, x) = (Matrix::new(&dy, most, n).t(), Matrix::new(&x, most, k));
        reference_of_pairs(&mut dw, dy, x, Accumulate::Add, by_matrices);
        assert!(one.1 == dw, "{n} {k}");
    }
}

type Then = fn(usize, usize, &mut [f32]);

fn product<'a>(dst: &'a mut [f32], a: Matrix<'a, f32>, b: Matrix<'a, f32>) -> Product<'a, f32, f32, Then> {
    let dst = MatrixMut::new(dst, a.rows, b.cols);
    Product { dst, a: Left::Matrix(a), b: Right::Plain(b), mode: Accumulate::Write, then: |_, _, _| () }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    // Rows for several tasks, of every height of tile.
    let (m, n, k) = (79, 45, 600);
    let (a, b) = (values::<f32>(m * k, 1), values::<f32>(k * n, 2));
    for layout in 0..4 {
        let a = if layout & 1 == 0 { Matrix::new(&a, m, k) } else { Matrix::new(&a, k, m).t() };
        let b = if layout & 2 == 0 { Matrix::new(&b, k, n) } else { Matrix::new(&b, n, k).t() };
        let mut expected = vec![0.0; m * n];
        reference(&mut expected, a, b, Accumulate::Write);
        for threads in [1, 2] {
            let mut found = [(); 3].map(|()| vec![0.0; m * n]);
            let [best, middle, scalar] = &mut found;
            with_threads(threads, || {
                matmul(MatrixMut::new(best, m, n), a, b, Accumulate::Write);
                product(scalar, a, b).run(Vectors(pulp::Scalar));
                middle.copy_from_slice(scalar);
                #[cfg(target_arch = "x86_64")]
                if let Some(v3) = pulp::x86::V3::try_new() {
                    product(middle, a, b).run(Vectors(v3));
                }
            });
            assert!(found.iter().all(|found| *found == expected), "layout {layout}, {threads} threads");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch_and_with_every_thread_count() {
    for (n, k) in [(3, 384), (10, 7), (96, 65), (384, 48), (384, 1536)] {
        let most = if n * k > 100_000 { 455 } else { 2080 };
        let (x, w, bias) = (values::<f32>(most * k, 3), values::<f32>(n * k, 4), values::<f32>(n, 5));
        let forward = |m: usize| {
            let mut y = vec![0.0; m * n];
            linear_forward(&mut y, &x[..m * k], Weight::Rows(&w), Some(&bias), (m, n, k), |_, _, values| {
                values.iter_mut().for_each(|value| *value = value.max(0.1 * *value));
            });
            y
        };
        let whole = with_threads(1, || forward(most));
        for m in [1, 2, 7, 8, 63, 64, 65, 130, 455, 2080].into_iter().filter(|&m| m <= most) {
            for threads in [1, 2, 4] {
                let part = with_threads(threads, || forward(m));
                assert!(part == whole[..m * n], "m {m} n {n} k {k} threads {threads}");
            }
        }
    }
}

fn a_packed_weight_gives_the_same_bits_in<T: Float>() {
    for (m, n, k) in [(1, 1, 1), (5, 33, 40), (70, 96, 130), (17, 45, 1100), (3, 4100, 600), (0, 7, 3), (4, 7, 0)] {
        let (x, w, bias) = (values::<T>(m * k, 11), values::<T>(n * k, 12), values::<T>(n, 13));
        let forward = |w: Weight<T>| {
            let mut y = vec![T::ZERO; m * n];
            linear_forward(&mut y, &x, w, Some(&bias), (m, n, k), |_, _, values| {
                values.iter_mut().for_each(|value| *value = *value * *value);
            });
            y
        };
        for threads in [1, 2, 3] {
            with_threads(threads, || {
                let mut packed = vec![T::from_f64(f64::NAN); packed_len::<T>(n, k)];
                pack_weight(&mut packed, &w, (n, k));
                assert!(forward(Weight::Packed(&packed)) == forward(Weight::Rows(&w)), "{} {m} {n} {k}", T::NAME);
            });
        }
    }
}

#[test]
fn a_packed_weight_gives_the_same_bits() {
    a_packed_weight_gives_the_same_bits_in::<f32>();
    a_packed_weight_gives_the_same_bits_in::<f64>();
}

#[test]
fn gradients_have_the_same_bits_with_every_thread_count() {
    let (m, n, k) = (455, 96, 130);
    let (x, w, dy) = (values::<f32>(m * k, 6), values::<f32>(n * k, 7), values::<f32>(m * n, 8));
    let backward = || {
        let (mut dx, mut dw) = (vec![0.5; m * k], vec![0.5; n * k]);
        linear_backward_input(&mut dx, &dy, &w, (m, n, k), Accumulate::Add);
        linear_backward_weight(&mut dw, &dy, &x, (m, n, k), Accumulate::Add);
        (dx, dw)
    };
    let one = with_threads(1, backward);
    for threads in [2, 3, 4] {
        assert!(one == with_threads(threads, backward), "{threads} threads");
    }
    let mut dw = vec![0.5; n * k];
    reference(&mut dw, Matrix::new(&dy, m, n).t(), Matrix::new(&x, m, k), Accumulate::Add);
    assert_eq!(one.1, dw);
}

#[test]
fn strided_destinations_and_empty_sums() {
    let (a, b) = (values::<f32>(5 * 3, 9), values::<f32>(3 * 4, 10));
    let mut plain = vec![0.0_f32; 20];
    matmul(MatrixMut::new(&mut plain, 5, 4), Matrix::new(&a, 5, 3), Matrix::new(&b, 3, 4), Accumulate::Write);
    let mut turned = vec![0.0_f32; 20];
    matmul(MatrixMut::new(&mut turned, 4, 5).t(), Matrix::new(&a, 5, 3), Matrix::new(&b, 3, 4), Accumulate::Write);
    assert!((0..20).all(|i| plain[i] == turned[i % 4 * 5 + i / 4]));
    let mut wide = vec![7.0_f32; 5 * 6];
    matmul(MatrixMut::strided(&mut wide, 5, 4, 6, 1), Matrix::new(&a, 5, 3), Matrix::new(&b, 3, 4), Accumulate::Write);
    assert!((0..30).all(|i| wide[i] == if i % 6 < 4 { plain[i / 6 * 4 + i % 6] } else { 7.0 }));
    let mut zeros = vec![3.0_f32; 4];
    matmul::<f32, f32>(
        MatrixMut::new(&mut zeros, 2, 2),
        Matrix::new(&[], 2, 0),
        Matrix::new(&[], 0, 2),
        Accumulate::Write,
    );
    assert_eq!(zeros, [0.0; 4]);
}

#[test]
fn sides_that_are_packed_piece_by_piece_give_the_same_bits() {
    // More rows and more columns than are packed at a time, and a sum of several blocks.
    for (m, n, k) in [(4100, 5, 1030), (5, 4100, 1030), (4097, 50, 3)] {
        let (a, b) = (values::<f32>(m * k, 14), values::<f32>(n * k, 15));
        let (a, b) = (Matrix::new(&a, k, m).t(), Matrix::new(&b, n, k).t());
        let (mut ours, mut theirs) = (vec![0.25; m * n], vec![0.25; m * n]);
        with_threads(3, || matmul(MatrixMut::new(&mut ours, m, n), a, b, Accumulate::Add));
        reference(&mut theirs, a, b, Accumulate::Add);
        assert!(ours == theirs, "{m} {n} {k}");
    }
}

#[test]
#[should_panic(expected = "overlap")]
fn overlapping_destinations_are_refused() {
    MatrixMut::strided(&mut [0.0_f32; 100], 4, 4, 2, 1);
}
