//! The weight of Winograd's convolution: G g Gᵀ, in the order in which its products read it.

use pulp::{NullaryFnOnce, Simd, WithSimd};

use super::axis::{across, spread};
use super::{BLOCK, Sizes};
use crate::ops::host::parallel::{self, Shared};
use crate::ops::host::{held, pack};

/// A weight as one of the two ways goes through it.
#[derive(Clone, Copy)]
pub(super) struct Kernel<'a> {
    /// Channels of the input.
    pub channels: usize,
    /// Channels of the result.
    pub cout: usize,
    weight: &'a [f32],
    /// Elements of the weight between output channels, and between input channels.
    strides: (usize, usize),
    /// Where each tap begins in the weight.
    taps: [usize; 9],
}

impl<'a> Kernel<'a> {
    pub fn forward(sizes: &Sizes, weight: &'a [f32]) -> Self {
        let Sizes { cin, cout, .. } = *sizes;
        let taps = std::array::from_fn(|tap| tap * cin);
        Self { channels: cin, cout, weight, strides: (9 * cin, 1), taps }
    }

    pub fn input_gradient(sizes: &Sizes, weight: &'a [f32]) -> Self {
        let Sizes { cin, cout, .. } = *sizes;
        let taps = std::array::from_fn(|tap| (8 - tap) * cin);
        Self { channels: cout, cout: cin, weight, strides: (1, 9 * cin), taps }
    }

    /// The transform to NxN positions, in the order in which it is read: `[panel][position][channel][panel's channels]`.
    #[inline(always)]
    pub fn transform<S: Simd, const N: usize>(self, simd: S, to: &mut [f32]) {
        let Self { channels, cout, weight, strides, taps } = self;
        let panel = 2 * S::F32_LANES;
        let (panels, blocks) = (cout.div_ceil(panel), channels / BLOCK);
        assert!(weight.len() == 9 * channels * cout && to.len() >= panels * N * N * channels * panel);
        let to = Shared::new(to);
        let transform = |task: usize| {
            let (j, block) = (task / blocks, task % blocks);
            simd.vectorize(Taps::<S, N> {
                simd,
                weight,
                strides,
                places: taps.map(|tap| tap + j * panel * strides.0 + block * BLOCK * strides.1),
                lanes: panel.min(cout - j * panel),
                // SAFETY: a panel's place, from this block's first channel on.
                to: unsafe { to.get().add((j * N * N * channels + block * BLOCK) * panel) },
                position: channels * panel,
            });
        };
        parallel::for_each(panels * blocks, panels * N * N * channels * panel, transform);
    }
}

/// A weight's transform by itself.
pub(super) struct Transform<'a, const N: usize> {
    pub kernel: Kernel<'a>,
    pub to: &'a mut [f32],
}

impl<const N: usize> WithSimd for Transform<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.kernel.transform::<S, N>(simd, self.to);
    }
}

/// G g Gᵀ for a panel of output channels and a block of input channels.
struct Taps<'a, S, const N: usize> {
    simd: S,
    weight: &'a [f32],
    /// Elements between output channels, and between input channels.
    strides: (usize, usize),
    /// Where each tap begins.
    places: [usize; 9],
    /// Output channels that there are.
    lanes: usize,
    to: *mut f32,
    /// Elements between positions.
    position: usize,
}

impl<S: Simd, const N: usize> NullaryFnOnce for Taps<'_, S, N> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, weight, strides, places, lanes, to, position } = self;
        let width = S::F32_LANES;
        let panel = 2 * width;
        let avx512 = S::REGISTER_COUNT == 32 && width == 16;
        // 16 lanes, 2 vectors: the largest panel there is.
        let mut packed = [0f32; 9 * BLOCK * 32];
        for (tap, &place) in places.iter().enumerate() {
            assert!(place + (lanes - 1) * strides.0 + (BLOCK - 1) * strides.1 < weight.len());
            // SAFETY: the source was just checked, and each tap has its own place.
            unsafe {
                let to = packed.as_mut_ptr().add(tap * BLOCK * panel);
                let from = weight.as_ptr().add(place);
                pack::strip(to, panel, from, (lanes, strides.0), (BLOCK, strides.1), avx512);
            }
        }
        for at in (0..BLOCK * panel).step_by(width) {
            // SAFETY: within the array's taps; and within the channels of this block at each position of the result.
            unsafe {
                let from = packed.as_ptr().add(at);
                let mut columns = [[simd.splat_f32s(0.0); N]; 3];
                for (kx, column) in columns.iter_mut().enumerate() {
                    let from = from.add(kx * BLOCK * panel);
                    let step = 3 * BLOCK * panel;
                    *column = spread(
                        simd,
                        [
                            held::load::<f32, S>(from),
                            held::load::<f32, S>(from.add(step)),
                            held::load::<f32, S>(from.add(2 * step)),
                        ],
                    );
                }
                for row in 0..N {
                    let values: [_; N] = spread(simd, across(&columns, row));
                    for (column, &value) in values.iter().enumerate() {
                        held::store::<f32, S>(to.add((N * row + column) * position + at), value);
                    }
                }
            }
        }
    }
}
