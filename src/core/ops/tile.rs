//! The tiles of the kernels' products (`kernels/common/product.cuh`): which one a product takes, and how a long sum is cut.
//!
//! Both are functions of shapes alone, with one GPU in mind ([`MULTIPROCESSORS`]), so that bits are the same on every GPU. Blocks are
//! whole: a launch takes as long as the multiprocessor with the most of them.

use crate::device::LaunchConfig;
use crate::tensor::{Context, DType};

/// Multiprocessors that blocks are counted for: those of an H100.
const MULTIPROCESSORS: usize = 132;
/// In f32, large tiles from which on the grid keeps them busy enough.
const ENOUGH_TILES: usize = 64;
/// Rows that a split sums at least, so that its scratch costs little against its work.
const LEAST_ROWS: usize = 256;
/// Steps of a tile along the sum; splits are whole steps.
const STEP: usize = 32;
/// The cost of an element of a split's scratch, stored and loaded again, in quarters of a product on one multiprocessor
/// ([`Tile::work`]).
const SCRATCH: usize = 7;

/// How kernels multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    /// f32 by plain multiply-adds.
    F32,
    /// f32 on tensor cores, which round factors to TF32.
    Tf32,
    /// bf16 on tensor cores.
    Bf16,
}

impl Arithmetic {
    /// That of tensors of `dtype`.
    pub(super) fn of(context: &Context, dtype: DType) -> Self {
        match dtype {
            DType::BF16 => Self::Bf16,
            _ if context.multiplies_tf32() => Self::Tf32,
            _ => Self::F32,
        }
    }

    pub(super) fn on_tensor_cores(self) -> bool {
        self != Self::F32
    }

    /// Elements of a piece of 16 bytes.
    pub(super) fn piece(self) -> usize {
        if self == Self::Bf16 { 8 } else { 4 }
    }
}

/// The tile of a product's result. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tile {
    /// 128 x 192, on tensor cores only.
    Wide,
    /// 128 x 128.
    Large,
    /// 128 x 64, on tensor cores only.
    Tall,
    /// 64 x 64.
    Small,
    /// 64 x 64 by eight warps instead of four, on tensor cores only and of whole pieces of 16 bytes.
    Eight,
}

/// The tiles that a product has kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tiles {
    /// All but the tall one: linear layers'. The wide one and that of eight warps are of tensor cores.
    All,
    /// Large and small ones, of four or eight warps: weight gradients of convolutions.
    LargeAndSmall,
    /// Those and the tall one: convolutions and their input gradients.
    TallToo,
}

impl Tiles {
    /// Those that a product may take. `whole`: rows of operands and result are whole pieces of 16 bytes; on tensor cores nothing but the
    /// small tile copies elements.
    fn allowed(self, arithmetic: Arithmetic, whole: bool) -> &'static [Tile] {
        match self {
            _ if !arithmetic.on_tensor_cores() => &[Tile::Large, Tile::Small],
            _ if !whole => &[Tile::Small],
            Tiles::All => &[Tile::Wide, Tile::Large, Tile::Small],
            Tiles::LargeAndSmall => &[Tile::Large, Tile::Small],
            Tiles::TallToo => &[Tile::Large, Tile::Tall, Tile::Small],
        }
    }
}

impl Tile {
    /// For a result of this many rows and columns.
    pub(super) fn of(arithmetic: Arithmetic, tiles: Tiles, whole: bool, result: [usize; 2]) -> Self {
        if !arithmetic.on_tensor_cores() {
            return Self::of_floats(result, 1, ENOUGH_TILES);
        }
        // One tall block's four warps alone on a multiprocessor wait for each other's loads: there small ones are faster (modelled).
        let hides = |tile: &Tile| *tile != Tile::Tall || waves(tile.count(result)) > 1;
        let allowed = tiles.allowed(arithmetic, whole).iter().copied().filter(hides);
        let tile = allowed.min_by_key(|tile| waves(tile.count(result)) * tile.work()).unwrap_or(Tile::Small);
        tile.of_warps(tiles, whole, tile.count(result))
    }

    /// On tensor cores the small tile is that of eight warps where a linear layer takes it, and of a convolution where no multiprocessor has more
    /// than one of its `blocks`: latency is what takes the time there. With more blocks of a convolution it is shared memory, from
    /// which four warps of twice the width load less (modelled, the presets' steps).
    fn of_warps(self, tiles: Tiles, whole: bool, blocks: usize) -> Self {
        let eight = self == Tile::Small && whole && (tiles == Tiles::All || waves(blocks) == 1);
        if eight { Tile::Eight } else { self }
    }

    /// In f32: the large one where it fits and `copies` of the result (the splits of its sum) have `enough` of them.
    fn of_floats(result: [usize; 2], copies: usize, enough: usize) -> Self {
        let large = result[0] > 64 && result[1] > 64 && Tile::Large.count(result) * copies >= enough;
        if large { Tile::Large } else { Tile::Small }
    }

    /// Rows and columns.
    fn sides(self) -> [usize; 2] {
        match self {
            Tile::Wide => [128, 192],
            Tile::Large => [128, 128],
            Tile::Tall => [128, 64],
            Tile::Small | Tile::Eight => [64, 64],
        }
    }

    fn count(self, result: [usize; 2]) -> usize {
        let [rows, cols] = self.sides();
        result[0].div_ceil(rows) * result[1].div_ceil(cols)
    }

    /// Elements of it, weighted by what the second-level cache and shared memory make of it (modelled): the smaller a tile, the more
    /// often operands are loaded.
    fn work(self) -> usize {
        match self {
            Tile::Wide => 128 * 192,
            Tile::Large => 128 * 128 * 11 / 10,
            Tile::Tall => 128 * 64 * 3 / 2,
            Tile::Small | Tile::Eight => 64 * 64 * 41 / 20,
        }
    }

    /// Threads and shared memory as at the head of `kernels/common/product.cuh`.
    pub(super) fn config(self, arithmetic: Arithmetic, result: [usize; 2], splits: usize) -> LaunchConfig {
        let [rows, cols] = self.sides();
        let shared = if arithmetic.on_tensor_cores() { 4 * 32 * (2 * (rows + cols) + 32) } else { 0 };
        let threads = match self {
            Tile::Large | Tile::Tall | Tile::Small if arithmetic.on_tensor_cores() => 128,
            _ => 256,
        };
        LaunchConfig {
            grid: [self.count(result) as u32, 1, splits as u32],
            block: [threads, 1, 1],
            shared_bytes: shared as u32,
        }
    }
}

/// Blocks of the busiest multiprocessor.
fn waves(blocks: usize) -> usize {
    blocks.div_ceil(MULTIPROCESSORS)
}

/// How a weight gradient's sum over the rows is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SumSplit {
    pub(super) tile: Tile,
    /// Splits; the sum is cut where there is more than one.
    pub(super) count: usize,
    /// Rows of one.
    pub(super) rows: usize,
}

impl SumSplit {
    /// A sum over `rows` for a gradient of this many rows and columns: the tile and the number of splits of which product and scratch
    /// take least time.
    pub(super) fn of(arithmetic: Arithmetic, tiles: Tiles, whole: bool, rows: usize, result: [usize; 2]) -> Self {
        let most = (rows / LEAST_ROWS).clamp(1, 2 * MULTIPROCESSORS);
        let scratch = result[0] * result[1];
        let allowed = match arithmetic.on_tensor_cores() {
            true => tiles.allowed(arithmetic, whole).to_vec(),
            false => vec![Tile::of_floats(result, most, 8)],
        };
        let of = |tile, count| {
            let rows_of_one = rows.div_ceil(count).max(1).next_multiple_of(STEP);
            Self { tile, count: rows.div_ceil(rows_of_one).max(1), rows: rows_of_one }
        };
        let cost = |split: &Self| {
            let stored = if split.count > 1 { split.count * scratch } else { 0 };
            4 * waves(split.tile.count(result) * split.count) * split.rows * split.tile.work() + SCRATCH * stored
        };
        let all = allowed.into_iter().flat_map(|tile| (1..=most).map(move |count| of(tile, count)));
        let split = all.min_by_key(cost).unwrap_or_else(|| of(Tile::Small, 1));
        let whole = whole && arithmetic.on_tensor_cores();
        Self { tile: split.tile.of_warps(tiles, whole, split.tile.count(result) * split.count), ..split }
    }

    /// This cut on the tile that takes any operands: for those whose memory begins between two pieces of 16 bytes.
    pub(super) fn anywhere(self) -> Self {
        Self { tile: Tile::Small, ..self }
    }

    /// As [`Tile::config`].
    pub(super) fn config(&self, arithmetic: Arithmetic, result: [usize; 2]) -> LaunchConfig {
        self.tile.config(arithmetic, result, self.count)
    }
}

/// Launches the tile's kernel of those that take the same arguments: per tile the one of the tensors' type, and those of bf16 and TF32 where
/// they have names of their own. A product without a wide or a tall tile has none here.
macro_rules! launch_tile {
    (
        ($arithmetic:expr, $tile:expr), $T:ident,
        { $(wide: [$wide:ident, $wide_tf32:ident],)? large: [$large:ident, $large_tf32:ident], $(tall: [$tall:ident, $tall_tf32:ident],)?
          eight: [$eight:ident, $eight_tf32:ident], small: [$small:ident, $small_tf32:ident] },
        $accelerator:expr, $config:expr, $fields:tt
    ) => {{
        use $crate::ops::tile::{Arithmetic, Tile};
        match ($arithmetic, $tile) {
            $((Arithmetic::Tf32, Tile::Wide) => launch_tile!(@ $wide_tf32, $accelerator, $config, $fields),
            (_, Tile::Wide) => launch_tile!(@ $wide, $accelerator, $config, $fields),)?
            $((Arithmetic::Tf32, Tile::Tall) => launch_tile!(@ $tall_tf32, $accelerator, $config, $fields),
            (_, Tile::Tall) => launch_tile!(@ $tall, $accelerator, $config, $fields),)?
            (Arithmetic::Tf32, Tile::Eight) => launch_tile!(@ $eight_tf32, $accelerator, $config, $fields),
            (_, Tile::Eight) => launch_tile!(@ $eight, $accelerator, $config, $fields),
            (Arithmetic::Tf32, Tile::Small) => launch_tile!(@ $small_tf32, $accelerator, $config, $fields),
            (_, Tile::Small) => launch_tile!(@ $small::<$T>, $accelerator, $config, $fields),
            #[allow(unreachable_patterns)]
            (Arithmetic::Tf32, _) => launch_tile!(@ $large_tf32, $accelerator, $config, $fields),
            #[allow(unreachable_patterns)]
            (_, _) => launch_tile!(@ $large::<$T>, $accelerator, $config, $fields),
        }
    }};
    (@ $kernel:ident $(::<$T:ident>)?, $accelerator:expr, $config:expr, { $($field:ident: $value:expr),* $(,)? }) => {
        $kernel $(::<$T>)? { $($field: $value),* }.launch($accelerator, $config)
    };
}
pub(super) use launch_tile;

#[cfg(test)]
mod tests {
    use super::Arithmetic::{Bf16, F32, Tf32};
    use super::*;

    #[test]
    fn tiles_cover_the_result() {
        for (rows, cols) in [(1, 1), (65, 400), (8189, 65), (17030, 64), (16640, 1536)] {
            for tiles in [Tiles::All, Tiles::LargeAndSmall, Tiles::TallToo] {
                for whole in [false, true] {
                    let tile = Tile::of(Bf16, tiles, whole, [rows, cols]);
                    let config = tile.config(Bf16, [rows, cols], 1);
                    assert!(config.grid[0] as usize * tile.sides()[0] * tile.sides()[1] >= rows * cols);
                    assert!(config.shared_bytes <= 99 << 10, "more than the smallest GPUs have");
                    assert!(whole || tile == Tile::Small);
                }
            }
        }
        let of = |result| Tile::of(Bf16, Tiles::All, true, result);
        assert_eq!([384, 576, 1536].map(|cols| of([16640, cols])), [Tile::Wide; 3]);
        assert_eq!(Tile::of(Bf16, Tiles::LargeAndSmall, true, [131072, 128]), Tile::Large);
        assert_eq!([of([16640, 48]), of([256, 384])], [Tile::Eight; 2]);
        let few = |rows| Tile::of(Bf16, Tiles::LargeAndSmall, true, [rows, 64]);
        assert_eq!([few(64 * 132), few(64 * 133)], [Tile::Eight, Tile::Small]);
        let tall = |rows| Tile::of(Bf16, Tiles::TallToo, true, [rows, 64]);
        assert_eq!([tall(64 * 132), tall(128 * 132), tall(128 * 133)], [Tile::Eight, Tile::Small, Tile::Tall]);
        assert_eq!(Tile::of(Bf16, Tiles::TallToo, true, [131072, 128]), Tile::Large);
        assert_eq!(Tile::of(F32, Tiles::TallToo, true, [131072, 64]), Tile::Small);
        assert_eq!(Tile::of(F32, Tiles::All, true, [16640, 384]), Tile::Large);
    }

    /// A stage of TF32 has half as many steps of twice the bytes: all is as in bf16.
    #[test]
    fn tiles_of_tf32_are_those_of_bf16() {
        for result in [[16640, 384], [16640, 48], [64, 576], [131072, 128], [131072, 64]] {
            for (tiles, whole) in
                [(Tiles::All, true), (Tiles::LargeAndSmall, true), (Tiles::TallToo, true), (Tiles::All, false)]
            {
                let of = |arithmetic| {
                    let tile = Tile::of(arithmetic, tiles, whole, result);
                    let split = SumSplit::of(arithmetic, tiles, whole, 4096, result);
                    (tile, tile.config(arithmetic, result, 1), split, split.config(arithmetic, result))
                };
                assert_eq!(of(Tf32), of(Bf16));
            }
        }
    }

    #[test]
    fn splits_cover_the_rows_once() {
        for m in [1, 31, 256, 2049, 2080, 16640] {
            for result in [[3, 5], [65, 65], [384, 48], [384, 384], [1536, 384]] {
                for split in [
                    SumSplit::of(Bf16, Tiles::All, true, m, result),
                    SumSplit::of(Bf16, Tiles::LargeAndSmall, false, m, result),
                    SumSplit::of(F32, Tiles::All, true, m, result),
                ] {
                    assert!(split.rows.is_multiple_of(STEP) && split.count <= 264, "{split:?}");
                    assert!(split.count * split.rows >= m && (split.count - 1) * split.rows < m, "{split:?} of {m}");
                }
            }
        }
        assert_eq!(SumSplit::of(Bf16, Tiles::All, true, 65, [384, 384]).count, 1);
        let small = |tiles, whole, result| SumSplit::of(Bf16, tiles, whole, 32, result).tile;
        assert_eq!(small(Tiles::LargeAndSmall, true, [64, 576]), Tile::Eight);
        assert_eq!(small(Tiles::LargeAndSmall, true, [520, 1008]), Tile::Small, "144 blocks");
        assert_eq!(small(Tiles::All, true, [520, 1008]), Tile::Eight);
        assert_eq!(small(Tiles::All, false, [64, 576]), Tile::Small);
        assert_eq!(SumSplit::of(F32, Tiles::All, true, 32, [64, 576]).tile, Tile::Small);
    }

    /// The weights of a transformer's layers at batch 256: at most 5 % of the multiprocessors' time is idle.
    #[test]
    fn weight_gradients_take_whole_waves() {
        for result in [[576, 384], [384, 384], [1536, 384], [384, 1536]] {
            let split = SumSplit::of(Bf16, Tiles::All, true, 16640, result);
            let blocks = split.tile.count(result) * split.count;
            let [rows, cols] = split.tile.sides();
            let busy = waves(blocks) * MULTIPROCESSORS * rows * cols * split.rows;
            let least = 16640 * result[0] * result[1];
            assert!(least * 100 >= busy * 88, "{result:?}: {split:?}, {blocks} blocks, {}", least as f64 / busy as f64);
        }
    }
}
