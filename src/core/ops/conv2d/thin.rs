//! The convolution on accelerators where one side has few channels: `kernels/common/thin.cuh`.

use super::Sizes;
use crate::device::launches::{Conv2dBwdWeightThin, Conv2dThin};
use crate::device::{Accelerator, LaunchConfig, SliceMut};
use crate::error::Result;
use crate::ops::{Stored, optional};
use crate::tensor::Tensor;

/// Channels of the thin side, at most, and of the other, at least.
const MOST: usize = 4;
const LEAST: usize = 16;
/// Blocks of a weight's gradient, about: four for each multiprocessor of a large GPU.
const BLOCKS: usize = 528;
/// Wide channels of a block.
const CHANNELS: usize = 64;

/// Which side has few channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sides {
    /// Whether it is the result.
    pub(super) flipped: bool,
    /// Channels of this side and of the other.
    thin: usize,
    wide: usize,
}

impl Sides {
    /// Where the kernels fit: a window of 3 x 3 that stays centred, on images that are not resized. The batch has no say, so that the
    /// bits of an item are the same in each.
    pub(super) fn of(sizes: Sizes) -> Option<Self> {
        let Sizes { source, size, out, cin, cout, kernel, stride, pad, .. } = sizes;
        let centred = kernel == [3, 3] && stride == 1 && pad == [1, 1] && source == size && out == size;
        let (flipped, thin, wide) = if cout < cin { (true, cout, cin) } else { (false, cin, cout) };
        let fits = centred && thin <= MOST && wide >= LEAST && wide.is_multiple_of(2);
        fits.then_some(Self { flipped, thin, wide })
    }
}

/// Patches of 8 x 32 pixels of all images.
fn patches(sizes: Sizes) -> usize {
    sizes.batch * sizes.size[0].div_ceil(8) * sizes.size[1].div_ceil(32)
}

/// How the weight's gradient is cut, where there is something to share out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    sides: Sides,
    /// Patches of all images, of one split, and splits.
    patches: usize,
    of_split: usize,
    pub(super) splits: usize,
}

impl Split {
    pub(super) fn of(sizes: Sizes) -> Option<Self> {
        let (sides, patches) = (Sides::of(sizes)?, patches(sizes));
        if patches < 2 {
            return None;
        }
        let splits = (BLOCKS / sides.wide.div_ceil(CHANNELS)).clamp(2, patches);
        let of_split = patches.div_ceil(splits);
        Some(Self { sides, patches, of_split, splits: patches.div_ceil(of_split) }).filter(|split| split.splits > 1)
    }
}

/// The result `to` from the thin operand and the weight: y with its bias, or, flipped, the input's gradient.
pub(super) fn product<T: Stored>(
    accelerator: &dyn Accelerator,
    (sizes, sides): (Sizes, Sides),
    to: SliceMut<T>,
    accumulate: u32,
    [thin, weight]: [&Tensor; 2],
    bias: Option<&Tensor>,
) -> Result<()> {
    Conv2dThin::<T> {
        to,
        thin: thin.slice(),
        weight: weight.slice(),
        bias: optional(bias),
        height: sizes.size[0] as u32,
        width: sizes.size[1] as u32,
        wide_channels: sides.wide as u32,
        thin_channels: sides.thin as u32,
        flipped: sides.flipped.into(),
        accumulate,
    }
    .launch(accelerator, LaunchConfig::grid([patches(sizes), sides.wide.div_ceil(CHANNELS)], 128))
}

/// The parts of the weight's gradient.
pub(super) fn weight_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    (sizes, split): (Sizes, Split),
    partial: &Tensor,
    [dy, x]: [&Tensor; 2],
) -> Result<()> {
    let Sides { flipped, thin, wide } = split.sides;
    let (few, many) = if flipped { (dy, x) } else { (x, dy) };
    Conv2dBwdWeightThin::<T> {
        partial: partial.slice_mut(),
        wide: many.slice(),
        thin: few.slice(),
        height: sizes.size[0] as u32,
        width: sizes.size[1] as u32,
        wide_channels: wide as u32,
        thin_channels: thin as u32,
        patches: split.patches as u32,
        of_split: split.of_split as u32,
        flipped: flipped.into(),
    }
    .launch(accelerator, LaunchConfig::grid([split.splits, wide.div_ceil(CHANNELS)], 128))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_channels_have_a_kernel_of_their_own() {
        let of = |batch, size, cin, cout| {
            let geometry = ([3, 3], 1, [1, 1]);
            let (kernel, stride, pad) = geometry;
            Split::of(Sizes { batch, source: size, size, out: size, cin, cout, kernel, stride, pad })
        };
        for (batch, size, cin, cout) in
            [(128, [32, 32], 3, 128), (128, [28, 28], 64, 1), (3, [9, 33], 4, 70), (2, [1, 1], 3, 16)]
        {
            let thin = of(batch, size, cin, cout).unwrap();
            assert_eq!((thin.sides.flipped, thin.sides.wide), (cout < cin, cin.max(cout)));
            assert!(thin.splits * thin.of_split >= thin.patches && (thin.splits - 1) * thin.of_split < thin.patches);
            assert!(thin.splits > 1, "its sums are a second kernel's");
        }
        let none =
            [of(128, [32, 32], 5, 128), of(128, [32, 32], 3, 8), of(1, [8, 32], 3, 64), of(128, [32, 32], 3, 33)];
        assert_eq!(none, [None; 4]);
    }
}
