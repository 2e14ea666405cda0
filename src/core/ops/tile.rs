//! The tiles of the kernels' products (`kernels/common/product.cuh`): which one a product takes, and how a long sum is cut.

use crate::device::LaunchConfig;
use crate::tensor::{DType, Element};

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
    /// For a result of this many rows and columns.
    pub(super) fn of(result: [usize; 2]) -> Self {
        Self::for_copies(result, 1, ENOUGH_TILES)
    }

    /// The large one where it fits and `copies` of the result (the splits of its sum) have `enough` of them.
    fn for_copies(result: [usize; 2], copies: usize, enough: usize) -> Self {
        let large = result[0] > 64 && result[1] > 64 && Tile::Large.count(result) * copies >= enough;
        if large { Tile::Large } else { Tile::Small }
    }

    fn side(self) -> usize {
        match self {
            Tile::Large => 128,
            Tile::Small => 64,
        }
    }

    fn count(self, [rows, cols]: [usize; 2]) -> usize {
        rows.div_ceil(self.side()) * cols.div_ceil(self.side())
    }

    /// Threads and shared memory as at the head of `kernels/common/product.cuh`.
    pub(super) fn config<T: Element>(self, result: [usize; 2], splits: usize) -> LaunchConfig {
        let tensor_cores = T::DTYPE == DType::BF16;
        LaunchConfig {
            grid: [self.count(result) as u32, 1, splits as u32],
            block: [if tensor_cores { 2 * self.side() as u32 } else { 256 }, 1, 1],
            shared_bytes: if tensor_cores { 3 * 2 * 64 * self.side() as u32 } else { 0 },
            ..LaunchConfig::default()
        }
    }
}

/// How a weight gradient's sum over the rows is cut: by shapes alone, so that its bits are the same on every GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) tile: Tile,
    /// Splits; the sum is cut where there is more than one.
    pub(super) count: usize,
    /// Rows of one.
    pub(super) rows: usize,
}

impl Split {
    /// A sum over `rows` for a gradient of this many rows and columns.
    pub(super) fn of(rows: usize, result: [usize; 2]) -> Self {
        let most = (rows / LEAST_ROWS).max(1);
        let tile = Tile::for_copies(result, most, 8);
        let count = (WANTED_BLOCKS / tile.count(result).max(1)).clamp(1, most);
        let of_one = rows.div_ceil(count).max(1).next_multiple_of(STEP);
        Self { tile, count: rows.div_ceil(of_one).max(1), rows: of_one }
    }

    /// As [`Tile::config`].
    pub(super) fn config<T: Element>(&self, result: [usize; 2]) -> LaunchConfig {
        self.tile.config::<T>(result, self.count)
    }
}

/// Launches the tile's kernel of two that take the same arguments.
macro_rules! launch_tile {
    ($tile:expr, $large:ident, $small:ident, $T:ident, $accelerator:expr, $config:expr, { $($field:ident: $value:expr),* $(,)? }) => {
        match $tile {
            $crate::ops::tile::Tile::Large => $large::<$T> { $($field: $value),* }.launch($accelerator, $config),
            $crate::ops::tile::Tile::Small => $small::<$T> { $($field: $value),* }.launch($accelerator, $config),
        }
    };
}
pub(super) use launch_tile;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_result() {
        for (rows, cols) in [(1, 1), (65, 400), (8189, 65), (16640, 1536)] {
            let tile = Tile::of([rows, cols]);
            let config = tile.config::<half::bf16>([rows, cols], 1);
            assert!(config.grid[0] as usize * tile.side() * tile.side() >= rows * cols);
            assert!(config.shared_bytes <= 48 << 10, "more needs an opt-in");
        }
        assert_eq!(Tile::of([16640, 384]), Tile::Large);
        assert_eq!(Tile::of([16640, 48]), Tile::Small);
        assert_eq!(Tile::of([256, 384]), Tile::Small);
    }

    #[test]
    fn splits_cover_the_rows_once() {
        for m in [1, 31, 256, 2049, 2080, 16640] {
            for (n, k) in [(3, 5), (65, 65), (384, 48), (384, 384), (1536, 384)] {
                let split = Split::of(m, [n, k]);
                assert!(split.rows.is_multiple_of(STEP) && split.count <= 144, "{split:?}");
                assert!(split.count * split.rows >= m && (split.count - 1) * split.rows < m, "{split:?} of {m}");
            }
        }
        assert!(Split::of(16640, [384, 384]).count > 8);
        assert_eq!(Split::of(65, [384, 384]).count, 1);
    }
}
