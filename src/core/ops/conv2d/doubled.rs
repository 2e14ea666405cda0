//! Convolution of an image doubled by nearest neighbour, without the doubled image.
//!
//! A doubled row stands for two equal ones, so of the three rows that an output meets two are always copies of one: the output's
//! parity says which. Taps that meet the same pixel share a sum of weights, and nine become four: output row 2i is
//! `w₀ x[i − 1] + (w₁ + w₂) x[i]` and row 2i + 1 is `(w₀ + w₁) x[i] + w₂ x[i + 1]`, likewise along the columns. That is 4/9 of the
//! arithmetic, forward and, read the other way round, for x's gradient (a 4x4 kernel of stride 2 over dy).

use super::Sizes;
use super::direct::{Class, Direct, Output, Rows};
use crate::ops::host::{Float, parallel};

/// By parity and shared tap along one axis: the taps that it sums, `first..last`.
const SHARED: [[(usize, usize); 2]; 2] = [[(0, 1), (1, 3)], [(0, 2), (2, 3)]];

/// Shared taps of an output channel: four for each parity of the row and the column.
const TAPS: usize = 16;

/// Whether this module's way is open to a convolution.
pub(super) fn fits(sizes: &Sizes) -> bool {
    let Sizes { source, size, out, kernel, stride, pad, .. } = *sizes;
    kernel == [3, 3] && stride == 1 && pad == [1, 1] && out == size && size == source.map(|source| 2 * source)
}

/// y from x; `output` says where it goes.
pub(super) fn forward<T: Float>(sizes: &Sizes, x: &[T], weight: &[T], output: Output<T>) {
    let [h, w] = sizes.source;
    let along = |count: usize| (0..count + 2).map(|i| i.checked_sub(1).filter(|&i| i < count)).collect();
    let rows = Rows {
        row: along(h),
        column: along(w),
        width: w + 2,
        planes: 1,
        channels: sizes.cin,
        stride: Some(sizes.cin),
        source_width: w,
    };
    let classes = (0..4)
        .map(|parity| {
            let first = [parity / 2, parity % 2];
            let tap = |t: usize| {
                let [ty, tx] = [t / 2, t % 2];
                ((first[0] + ty) * rows.pitch() + first[1] + tx, (4 * parity + t) * sizes.cin)
            };
            Class { taps: (0..4).map(tap).collect(), first, count: [h, w] }
        })
        .collect();
    let direct = Direct {
        rows,
        classes,
        row_step: 1,
        reach: 3,
        spread: 2,
        out: sizes.out,
        cout: sizes.cout,
        weight_strides: (TAPS * sizes.cin, 1),
    };
    with_shared(sizes, weight, |shared| direct.run(sizes.batch, x, shared, output));
}

/// dx from dy; `output` says where it goes.
pub(super) fn input_gradient<T: Float>(sizes: &Sizes, dy: &[T], weight: &[T], output: Output<T>) {
    let [h, w] = sizes.source;
    let along = |count: usize| -> Vec<Option<usize>> {
        (0..count + 2).map(|i| i.checked_sub(1).filter(|&i| i < count)).collect()
    };
    let columns = along(2 * w);
    let rows = Rows {
        row: along(2 * h),
        column: (0..2).flat_map(|plane| columns[plane..].iter().step_by(2).copied()).collect(),
        width: w + 1,
        planes: 2,
        channels: sizes.cout,
        stride: Some(2 * sizes.cout),
        source_width: 2 * w,
    };
    // Row r of x meets rows 2r - 1 to 2r + 2 of dy, which are padded rows 2r to 2r + 3: as (parity, shared tap).
    const MET: [(usize, usize); 4] = [(1, 1), (0, 1), (1, 0), (0, 0)];
    let mut taps = Vec::new();
    for (row, (a, ty)) in MET.into_iter().enumerate() {
        for (column, (b, tx)) in MET.into_iter().enumerate() {
            let from = row * rows.pitch() + column % 2 * sizes.cout * rows.width + column / 2;
            taps.push((from, (4 * (2 * a + b) + 2 * ty + tx) * sizes.cin));
        }
    }
    let direct = Direct {
        rows,
        classes: vec![Class { taps, first: [0, 0], count: [h, w] }],
        row_step: 2,
        reach: 4,
        spread: 1,
        out: [h, w],
        cout: sizes.cin,
        weight_strides: (1, TAPS * sizes.cin),
    };
    with_shared(sizes, weight, |shared| direct.run(sizes.batch, dy, shared, output));
}

/// Passes on the sums of weights, `[Cout, parity of the row, of the column, 2, 2, Cin]`.
fn with_shared<T: Float>(sizes: &Sizes, weight: &[T], then: impl FnOnce(&[T])) {
    let cin = sizes.cin;
    T::with_scratch(sizes.cout * TAPS * cin, |shared| {
        parallel::for_rows(shared, TAPS * cin, |o, shared| {
            let weight = &weight[o * 9 * cin..][..9 * cin];
            shared.fill(T::ZERO);
            for (i, sum) in shared.chunks_exact_mut(cin).enumerate() {
                let (rows, columns) = (SHARED[i / 8][i / 2 % 2], SHARED[i / 4 % 2][i % 2]);
                for (ky, kx) in (rows.0..rows.1).flat_map(|ky| (columns.0..columns.1).map(move |kx| (ky, kx))) {
                    let tap = &weight[(3 * ky + kx) * cin..][..cin];
                    sum.iter_mut().zip(tap).for_each(|(sum, &tap)| *sum += tap);
                }
            }
        });
        then(shared);
    });
}
