//! Winograd's matrices along one axis, for tiles of M = 2 and M = 4 pixels, which see N = M + 2.
//!
//! Convolution is the product of polynomials, which N points decide. Tiles of 2 take 0, 1, −1 and ∞:
//!
//! ```text
//! Bᵀ = 1  0 −1  0     G = 1  0  0     Aᵀ = 1  1  1  0
//!      0  1  1  0         ½  ½  ½          0  1 −1 −1
//!      0 −1  1  0         ½ −½  ½
//!      0  1  0 −1         0  0  1
//! ```
//!
//! Tiles of 4 take 0, ±a, ±b and ∞ with a = ¾, b = 3/2:
//!
//! ```text
//! Bᵀ = a²b²  0   −a²−b²  0   1  0     G = 1/(a²b²)  0   0     Aᵀ = 1 1   1  1   1  0
//!      0   −ab²  −b²     a   1  0         p      pa   pa²          0 a  −a  b  −b  0
//!      0    ab²  −b²    −a   1  0         p     −pa   pa²          0 a²  a² b²  b² 0
//!      0   −a²b  −a²     b   1  0         q      qb   qb²          0 a³ −a³ b³ −b³ 1
//!      0    a²b  −a²    −b   1  0         q     −qb   qb²
//!      0   a²b²   0  −a²−b²  0  1         0      0    1
//! ```
//!
//! with p = 1 / (2a² (a² − b²)) and q = 1 / (2b² (b² − a²)). Everything but G is exact in `f32`. Of the points on a grid of eighths these two
//! pairs had the smallest largest error: about five times that of tiles of 2, a third of that of the usual 0, ±1, ±2, and about a
//! quarter of what sums in another order are granted (Barabasz et al. 2020, arXiv 1803.10986, on the choice of points).

use pulp::Simd;

const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;
const A3: f32 = A2 * A;
const B3: f32 = B2 * B;
/// 1 / (2a² (a² − b²)) and 1 / (2b² (b² − a²)).
const P: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
const Q: f32 = 1.0 / (2.0 * B2 * (B2 - A2));

// Small functions, always inlined, and loops rather than closures and `map`: what is not inlined into a vectorized call would
// not be compiled for its instructions.

/// Row `row` of a matrix given by columns.
#[inline(always)]
pub(super) fn across<V: Copy, const ROWS: usize, const COLUMNS: usize>(
    columns: &[[V; ROWS]; COLUMNS],
    row: usize,
) -> [V; COLUMNS] {
    let mut values = [columns[0][row]; COLUMNS];
    for (value, column) in values.iter_mut().zip(columns) {
        *value = column[row];
    }
    values
}

/// a x + c.
#[inline(always)]
fn plus<S: Simd>(simd: S, a: f32, x: S::f32s, c: S::f32s) -> S::f32s {
    simd.mul_add_f32s(simd.splat_f32s(a), x, c)
}

/// a x.
#[inline(always)]
fn times<S: Simd>(simd: S, a: f32, x: S::f32s) -> S::f32s {
    simd.mul_f32s(simd.splat_f32s(a), x)
}

/// Bᵀ.
#[inline(always)]
pub(super) fn window<S: Simd, const N: usize>(simd: S, d: [S::f32s; N]) -> [S::f32s; N] {
    let mut v = d;
    if N == 4 {
        v[0] = simd.sub_f32s(d[0], d[2]);
        v[1] = simd.add_f32s(d[1], d[2]);
        v[2] = simd.sub_f32s(d[2], d[1]);
        v[3] = simd.sub_f32s(d[1], d[3]);
    } else {
        v[0] = plus(simd, A2 * B2, d[0], plus(simd, -A2 - B2, d[2], d[4]));
        for (first, x, y2) in [(1, A, B2), (3, B, A2)] {
            let (even, odd) = (plus(simd, -y2, d[2], d[4]), plus(simd, -y2, d[1], d[3]));
            v[first] = plus(simd, x, odd, even);
            v[first + 1] = plus(simd, -x, odd, even);
        }
        v[5] = plus(simd, A2 * B2, d[1], plus(simd, -A2 - B2, d[3], d[5]));
    }
    v
}

/// Aᵀ.
#[inline(always)]
pub(super) fn pixels<S: Simd, const N: usize, const M: usize>(simd: S, m: [S::f32s; N]) -> [S::f32s; M] {
    let mut y = [m[0]; M];
    if N == 4 {
        y[0] = simd.add_f32s(simd.add_f32s(m[0], m[1]), m[2]);
        y[1] = simd.sub_f32s(simd.sub_f32s(m[1], m[2]), m[3]);
    } else {
        let (even, odd) = (simd.add_f32s(m[1], m[2]), simd.sub_f32s(m[1], m[2]));
        let (more_even, more_odd) = (simd.add_f32s(m[3], m[4]), simd.sub_f32s(m[3], m[4]));
        y[0] = simd.add_f32s(simd.add_f32s(m[0], even), more_even);
        y[1] = plus(simd, B, more_odd, times(simd, A, odd));
        y[2] = plus(simd, B2, more_even, times(simd, A2, even));
        y[3] = plus(simd, B3, more_odd, plus(simd, A3, odd, m[5]));
    }
    y
}

/// G.
#[inline(always)]
pub(super) fn spread<S: Simd, const N: usize>(simd: S, g: [S::f32s; 3]) -> [S::f32s; N] {
    let mut u = [g[0]; N];
    u[N - 1] = g[2];
    if N == 4 {
        let (outer, inner) = (times(simd, 0.5, simd.add_f32s(g[0], g[2])), times(simd, 0.5, g[1]));
        u[1] = simd.add_f32s(outer, inner);
        u[2] = simd.sub_f32s(outer, inner);
    } else {
        u[0] = times(simd, 1.0 / (A2 * B2), g[0]);
        for (first, x, p) in [(1, A, P), (3, B, Q)] {
            let outer = plus(simd, p * x * x, g[2], times(simd, p, g[0]));
            u[first] = plus(simd, p * x, g[1], outer);
            u[first + 1] = plus(simd, -p * x, g[1], outer);
        }
    }
    u
}

/// Gᵀ.
#[inline(always)]
pub(super) fn gather<S: Simd, const N: usize>(simd: S, u: [S::f32s; N]) -> [S::f32s; 3] {
    if N == 4 {
        let inner = times(simd, 0.5, simd.add_f32s(u[1], u[2]));
        let odd = times(simd, 0.5, simd.sub_f32s(u[1], u[2]));
        return [simd.add_f32s(u[0], inner), odd, simd.add_f32s(inner, u[3])];
    }
    let (even, odd) = (simd.add_f32s(u[1], u[2]), simd.sub_f32s(u[1], u[2]));
    let (more_even, more_odd) = (simd.add_f32s(u[3], u[4]), simd.sub_f32s(u[3], u[4]));
    [
        plus(simd, Q, more_even, plus(simd, P, even, times(simd, 1.0 / (A2 * B2), u[0]))),
        plus(simd, Q * B, more_odd, times(simd, P * A, odd)),
        plus(simd, Q * B2, more_even, plus(simd, P * A2, even, u[5])),
    ]
}

/// A.
#[inline(always)]
pub(super) fn widen<S: Simd, const M: usize, const N: usize>(simd: S, d: [S::f32s; M]) -> [S::f32s; N] {
    let mut w = [d[0]; N];
    if M == 2 {
        w[1] = simd.add_f32s(d[0], d[1]);
        w[2] = simd.sub_f32s(d[0], d[1]);
        w[3] = simd.sub_f32s(simd.splat_f32s(0.0), d[1]);
    } else {
        for (first, x) in [(1, A), (3, B)] {
            let even = plus(simd, x * x, d[2], d[0]);
            let odd = plus(simd, x * x * x, d[3], times(simd, x, d[1]));
            w[first] = simd.add_f32s(even, odd);
            w[first + 1] = simd.sub_f32s(even, odd);
        }
        w[5] = d[3];
    }
    w
}

/// A row of Bᵀ or A as a sum: one term as it is, if any, and others with factors.
pub(super) struct Terms {
    pub plain: Option<usize>,
    pub others: &'static [(usize, f32)],
}

const fn terms(plain: usize, others: &'static [(usize, f32)]) -> Terms {
    Terms { plain: Some(plain), others }
}

/// The most factors of a row.
pub(super) const OTHERS: usize = 3;

/// The rows of Bᵀ: what [`window`] computes, row by row.
pub(super) const fn window_terms<const M: usize>(row: usize) -> Terms {
    match (M, row) {
        (2, 0) => terms(0, &[(2, -1.0)]),
        (2, 1) => terms(1, &[(2, 1.0)]),
        (2, 2) => terms(2, &[(1, -1.0)]),
        (2, _) => terms(1, &[(3, -1.0)]),
        (_, 0) => terms(4, &[(2, -A2 - B2), (0, A2 * B2)]),
        (_, 1) => terms(4, &[(2, -B2), (3, A), (1, -A * B2)]),
        (_, 2) => terms(4, &[(2, -B2), (3, -A), (1, A * B2)]),
        (_, 3) => terms(4, &[(2, -A2), (3, B), (1, -B * A2)]),
        (_, 4) => terms(4, &[(2, -A2), (3, -B), (1, B * A2)]),
        (_, _) => terms(5, &[(3, -A2 - B2), (1, A2 * B2)]),
    }
}

/// The rows of A: what [`widen`] computes.
pub(super) const fn tile_terms<const M: usize>(row: usize) -> Terms {
    match (M, row) {
        (_, 0) => terms(0, &[]),
        (2, 1) => terms(0, &[(1, 1.0)]),
        (2, 2) => terms(0, &[(1, -1.0)]),
        (2, _) => Terms { plain: None, others: &[(1, -1.0)] },
        (_, 1) => terms(0, &[(1, A), (2, A2), (3, A3)]),
        (_, 2) => terms(0, &[(1, -A), (2, A2), (3, -A3)]),
        (_, 3) => terms(0, &[(1, B), (2, B2), (3, B3)]),
        (_, 4) => terms(0, &[(1, -B), (2, B2), (3, -B3)]),
        (_, _) => terms(3, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The matrix of a function along an axis: its columns are what becomes of unit vectors.
    fn columns<const FROM: usize, const TO: usize>(f: impl Fn([f32; FROM]) -> [f32; TO]) -> [[f32; TO]; FROM] {
        std::array::from_fn(|i| f(std::array::from_fn(|j| if i == j { 1.0 } else { 0.0 })))
    }

    /// Aᵀ [(G g) ⊙ (Bᵀ d)] is the correlation of d with g, for unit vectors d and g; rows of Bᵀ and A are those of `Terms`, and A and Gᵀ
    /// are the transposes.
    fn check<const M: usize, const N: usize>() {
        let simd = pulp::Scalar::new();
        let b = columns::<N, N>(|d| window(simd, d));
        let (at, g) = (columns::<N, M>(|m| pixels(simd, m)), columns::<3, N>(|g| spread(simd, g)));
        let (a, gt) = (columns::<M, N>(|d| widen(simd, d)), columns::<N, 3>(|u| gather(simd, u)));
        for place in 0..N {
            for tap in 0..3 {
                assert_eq!(g[tap][place], gt[place][tap]);
                let product: [f32; N] = std::array::from_fn(|i| g[tap][i] * b[place][i]);
                let y: [f32; M] = pixels(simd, product);
                for (pixel, y) in y.into_iter().enumerate() {
                    let expected = if pixel + tap == place { 1.0 } else { 0.0 };
                    assert!((y - expected).abs() < 1e-6, "tile of {M}: {y} at {pixel} of {place} and {tap}");
                }
            }
            assert!(at[place].iter().zip(&a).all(|(at, a)| *at == a[place]), "tile of {M}: A is not Aᵀ's transpose");
            let row = |terms: Terms, column: usize| {
                let factor = terms.others.iter().find(|other| other.0 == column).map_or(0.0, |other| other.1);
                if terms.plain == Some(column) { 1.0 } else { factor }
            };
            for (column, b) in b.iter().enumerate() {
                assert_eq!(row(window_terms::<M>(place), column), b[place], "tile of {M}, row {place} of Bᵀ");
            }
            for (column, a) in a.iter().enumerate() {
                assert_eq!(row(tile_terms::<M>(place), column), a[place], "tile of {M}, row {place} of A");
            }
            assert!(window_terms::<M>(place).others.len() <= OTHERS && tile_terms::<M>(place).others.len() <= OTHERS);
        }
    }

    #[test]
    fn the_matrices_make_a_convolution() {
        check::<2, 4>();
        check::<4, 6>();
    }
}
