//! The linear layer on accelerators: tiles and splits from sizes, and the launches.

use super::{Call, ROWS_PER_PART, Sizes};
use crate::device::launches::{
    LinearBwdActivation, LinearBwdBiasFinal, LinearBwdInputLarge, LinearBwdInputSmall, LinearBwdWeightLarge,
    LinearBwdWeightSmall, LinearBwdWeightSum, LinearFwdLarge, LinearFwdSmall,
};
use crate::device::{Accelerator, KernelFloat, KernelScalar, LaunchConfig, Slice, SliceMut};
use crate::error::Result;
use crate::tape::Destination;
use crate::tensor::{DType, Element, Tensor};

/// Large tiles from which on the grid keeps a large GPU's multiprocessors busy enough.
const ENOUGH_TILES: usize = 64;
/// Blocks that a weight gradient is cut into, about: one for each multiprocessor of a large GPU.
const WANTED_BLOCKS: usize = 144;
/// Rows that a split sums at least, so that its scratch costs little against its work.
const LEAST_ROWS: usize = 256;
/// Steps of a tile along the sum; splits are whole steps.
const STEP: usize = 32;

/// The tile of a product's result. Both give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tile {
    /// 128 x 128.
    Large,
    /// 64 x 64.
    Small,
}

impl Tile {
    /// For a result of `rows` x `cols`, `copies` times (the splits of its sum).
    fn of(rows: usize, cols: usize, copies: usize, enough: usize) -> Self {
        let large = rows > 64 && cols > 64 && Tile::Large.count(rows, cols) * copies >= enough;
        if large { Tile::Large } else { Tile::Small }
    }

    fn side(self) -> usize {
        match self {
            Tile::Large => 128,
            Tile::Small => 64,
        }
    }

    fn count(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(self.side()) * cols.div_ceil(self.side())
    }

    /// Threads and shared memory as at the head of `kernels/linear.cu`.
    fn config<T: Element>(self, rows: usize, cols: usize, splits: usize) -> LaunchConfig {
        let tensor_cores = T::DTYPE == DType::BF16;
        LaunchConfig {
            grid: [self.count(rows, cols) as u32, 1, splits as u32],
            block: [if tensor_cores { 2 * self.side() as u32 } else { 256 }, 1, 1],
            shared_bytes: if tensor_cores { 3 * 2 * 64 * self.side() as u32 } else { 0 },
        }
    }
}

/// How a weight gradient's sum over the rows is cut: by shapes alone, so that its bits are the same on every GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    tile: Tile,
    /// Splits; the sum is cut where there is more than one.
    pub(super) count: usize,
    rows: usize,
}

impl Split {
    pub(super) fn of(sizes: Sizes) -> Self {
        let Sizes { m, n, k } = sizes;
        let most = (m / LEAST_ROWS).max(1);
        let tile = Tile::of(n, k, most, 8);
        let count = (WANTED_BLOCKS / tile.count(n, k).max(1)).clamp(1, most);
        let rows = m.div_ceil(count).max(1).next_multiple_of(STEP);
        Self { tile, count: m.div_ceil(rows).max(1), rows }
    }
}

/// Launches the tile's kernel of two that take the same arguments.
macro_rules! launch_tile {
    ($tile:expr, $large:ident, $small:ident, $T:ident, $accelerator:expr, $config:expr, { $($field:ident: $value:expr),* $(,)? }) => {
        match $tile {
            Tile::Large => $large::<$T> { $($field: $value),* }.launch($accelerator, $config),
            Tile::Small => $small::<$T> { $($field: $value),* }.launch($accelerator, $config),
        }
    };
}

fn optional<T: Element + KernelScalar>(tensor: Option<&Tensor>) -> Slice<'_, T> {
    tensor.map_or(Slice::none(), Tensor::slice)
}

fn optional_mut<T: Element + KernelScalar>(tensor: Option<&Tensor>) -> SliceMut<'_, T> {
    tensor.map_or(SliceMut::none(), Tensor::slice_mut)
}

pub(super) fn forward<T: KernelFloat + Element>(
    accelerator: &dyn Accelerator,
    call: &Call,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    y: &Tensor,
) -> Result<()> {
    let Sizes { m, n, k } = call.sizes;
    if m * n == 0 {
        return Ok(());
    }
    let tile = Tile::of(m, n, 1, ENOUGH_TILES);
    launch_tile!(tile, LinearFwdLarge, LinearFwdSmall, T, accelerator, tile.config::<T>(m, n, 1), {
        y: y.slice_mut(),
        z: optional_mut(call.z.as_ref()),
        x: x.slice(),
        weight: weight.slice(),
        bias: optional(bias),
        residual: optional(residual),
        m: m as u32,
        n: n as u32,
        k: k as u32,
        activation: call.activation.code(),
    })
}

pub(super) fn activation_backward<T: KernelFloat + Element>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    db: Option<(&Tensor, &Destination)>,
) -> Result<()> {
    let Sizes { m, n, .. } = call.sizes;
    if m * n > 0 {
        let columns = 32 * 16 / size_of::<T>();
        LinearBwdActivation::<T> {
            dz: optional_mut(call.z.as_ref()),
            partial: optional_mut(db.map(|(partial, _)| partial)),
            dy: dy.slice(),
            rows: m as u32,
            cols: n as u32,
            rows_per_part: ROWS_PER_PART as u32,
            activation: call.activation.code(),
        }
        .launch(
            accelerator,
            LaunchConfig {
                grid: [call.sizes.parts() as u32, n.div_ceil(columns) as u32, 1],
                block: [256, 1, 1],
                shared_bytes: 0,
            },
        )?;
    }
    let Some((partial, destination)) = db.filter(|_| n > 0) else { return Ok(()) };
    LinearBwdBiasFinal {
        db: destination.tensor.slice_mut(),
        partial: partial.slice(),
        parts: call.sizes.parts() as u32,
        cols: n as u32,
        accumulate: destination.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::linear(n.div_ceil(32) as u32, 256))
}

pub(super) fn input_backward<T: KernelFloat + Element>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    dz: &Tensor,
    weight: &Tensor,
    dx: &Destination,
) -> Result<()> {
    let Sizes { m, n, k } = sizes;
    if m * k == 0 {
        return Ok(());
    }
    let tile = Tile::of(m, k, 1, ENOUGH_TILES);
    launch_tile!(tile, LinearBwdInputLarge, LinearBwdInputSmall, T, accelerator, tile.config::<T>(m, k, 1), {
        dx: dx.tensor.slice_mut(),
        dz: dz.slice(),
        weight: weight.slice(),
        m: m as u32,
        n: n as u32,
        k: k as u32,
        accumulate: dx.mode.flag(),
    })
}

pub(super) fn weight_backward<T: KernelFloat + Element>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    split: Split,
    partial: Option<&Tensor>,
    dz: &Tensor,
    x: &Tensor,
    dw: &Destination,
) -> Result<()> {
    let Sizes { m, n, k } = sizes;
    if n * k == 0 {
        return Ok(());
    }
    let config = split.tile.config::<T>(n, k, split.count);
    launch_tile!(split.tile, LinearBwdWeightLarge, LinearBwdWeightSmall, T, accelerator, config, {
        dw: partial.unwrap_or(&dw.tensor).slice_mut(),
        dz: dz.slice(),
        x: x.slice(),
        m: m as u32,
        n: n as u32,
        k: k as u32,
        rows_per_split: split.rows as u32,
        accumulate: if partial.is_some() { 0 } else { dw.mode.flag() },
    })?;
    let Some(partial) = partial else { return Ok(()) };
    LinearBwdWeightSum {
        dw: dw.tensor.slice_mut(),
        partial: partial.slice(),
        splits: split.count as u32,
        len: (n * k) as u32,
        accumulate: dw.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::elements((n * k).div_ceil(4), 256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_result() {
        for (rows, cols) in [(1, 1), (65, 400), (8189, 65), (16640, 1536)] {
            let tile = Tile::of(rows, cols, 1, ENOUGH_TILES);
            let config = tile.config::<half::bf16>(rows, cols, 1);
            assert!(config.grid[0] as usize * tile.side() * tile.side() >= rows * cols);
            assert!(config.shared_bytes <= 48 << 10, "more needs an opt-in");
        }
        assert_eq!(Tile::of(16640, 384, 1, ENOUGH_TILES), Tile::Large);
        assert_eq!(Tile::of(16640, 48, 1, ENOUGH_TILES), Tile::Small);
        assert_eq!(Tile::of(256, 384, 1, ENOUGH_TILES), Tile::Small);
    }

    #[test]
    fn splits_cover_the_rows_once() {
        for m in [1, 31, 256, 2049, 2080, 16640] {
            for (n, k) in [(3, 5), (65, 65), (384, 48), (384, 384), (1536, 384)] {
                let split = Split::of(Sizes { m, n, k });
                assert!(split.rows.is_multiple_of(STEP) && split.count <= 144, "{split:?}");
                assert!(split.count * split.rows >= m && (split.count - 1) * split.rows < m, "{split:?} of {m}");
            }
        }
        assert!(Split::of(Sizes { m: 16640, n: 384, k: 384 }).count > 8);
        assert_eq!(Split::of(Sizes { m: 65, n: 384, k: 384 }).count, 1);
    }
}
