//! How kernels cut a sample into strips: by shapes and type alone, so that a sample's bits depend on nothing else.

use super::Sizes;
use crate::tensor::DType;

/// Threads of a kernel's block.
pub(super) const THREADS: usize = 256;
/// Vectors that a thread of a kernel holds in registers (`HELD` in `kernels/common/strip.cuh`).
pub(super) const HELD: usize = 8;
/// Channels that a block takes at most: each has a thread of its own for what is known by channel.
const WIDEST: usize = THREADS;
/// Bytes that memory and caches move at a time.
const SECTOR: usize = 32;
/// Vectors from which on a block is worth its sums: half of what it holds.
const ENOUGH: usize = HELD / 2 * THREADS;
/// Channels of a strip whose pixels several blocks share, where whole groups of whole sectors have no more.
const SHARED_STRIP: usize = 64;

/// How a sample is cut (the head of the kernels says what for).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Channels of an access: 16 bytes of them, or one.
    pub vector: usize,
    /// Groups of a strip (the last may have fewer), and its channels: all of theirs, or with `tiles` a part of one group's.
    pub groups: usize,
    pub channels: usize,
    /// Pieces of a group too wide for a block.
    pub tiles: usize,
    /// Strips of a sample.
    pub strips: usize,
    /// Blocks that share a strip's pixels.
    pub chunks: usize,
}

impl Cut {
    pub fn of(sizes: Sizes, dtype: DType) -> Self {
        let (width, groups) = (sizes.width(), sizes.norm.groups);
        let lanes = 16 / dtype.size();
        let whole = sizes.sources.iter().all(|channels| channels.is_multiple_of(lanes));
        let most = (WIDEST / width).min(groups);
        // Groups of a strip whose channels come in pieces of so many; all of them always do.
        let unit = |piece: usize| {
            (1..=most).find(|count| (count * width).is_multiple_of(piece)).or((most == groups).then_some(groups))
        };
        if whole && let Some(unit) = unit(SECTOR / dtype.size()).or_else(|| unit(lanes)) {
            return Self::of_groups(sizes, lanes, unit, most);
        }
        if whole && most == 0 && width.is_multiple_of(lanes) {
            return Self::of_tiles(sizes, lanes);
        }
        if most > 0 { Self::of_groups(sizes, 1, 1, most) } else { Self::of_tiles(sizes, 1) }
    }

    /// Strips of some units of whole groups: few enough to have all pixels, enough to be worth a block.
    fn of_groups(sizes: Sizes, vector: usize, unit: usize, most: usize) -> Self {
        let width = sizes.width();
        let cut = |groups: usize| Self {
            vector,
            groups,
            channels: groups * width,
            tiles: 1,
            strips: sizes.norm.groups.div_ceil(groups),
            chunks: 1,
        };
        let units = || (unit..=most).step_by(unit).map(cut);
        let whole = units().filter(|cut| cut.chunk() >= sizes.pixels);
        let worth = |cut: &Self| sizes.pixels * cut.columns() >= ENOUGH;
        if let Some(cut) = whole.clone().find(worth).or_else(|| whole.last()) {
            return cut;
        }
        let shared = units().take_while(|cut| cut.channels <= SHARED_STRIP).last().unwrap_or_else(|| cut(unit));
        Self { chunks: sizes.pixels.div_ceil(shared.chunk()), ..shared }
    }

    /// Tiles of one group.
    fn of_tiles(sizes: Sizes, vector: usize) -> Self {
        let vectors = sizes.width() / vector;
        let tiles = sizes.width().div_ceil(WIDEST);
        let channels = vectors.div_ceil(tiles) * vector;
        let cut = Self { vector, groups: 1, channels, tiles, strips: sizes.norm.groups, chunks: 1 };
        Self { chunks: sizes.pixels.div_ceil(cut.chunk()), ..cut }
    }

    /// Vectors of a pixel.
    pub fn columns(&self) -> usize {
        self.channels / self.vector
    }

    /// Pixels that a block holds.
    pub fn chunk(&self) -> usize {
        HELD * (THREADS / self.columns())
    }

    /// Blocks that share a sample's group; with one, statistics and result come of one pass.
    pub fn parts(&self) -> usize {
        self.tiles * self.chunks
    }
}

/// 65536 / `by`, rounded up: (i · it) >> 16 is ⌊i / `by`⌋ for i up to 256 and `by` up to 256.
pub(super) fn over(by: usize) -> u32 {
    (1usize << 16).div_ceil(by) as u32
}

#[cfg(test)]
mod tests {
    use super::super::GroupNormSilu;
    use super::*;

    fn sizes(pixels: usize, sources: [usize; 2], groups: usize) -> Sizes {
        let norm = GroupNormSilu { groups, epsilon: 1e-5, silu: true };
        Sizes { samples: 3, pixels, sources, norm }
    }

    #[test]
    fn every_element_has_one_place() {
        for dtype in [DType::F32, DType::BF16] {
            for (pixels, sources, groups) in [
                (1024, [128, 0], 32),
                (1024, [256, 128], 32),
                (4096, [64, 0], 8),
                (1200, [16, 0], 2),
                (660, [6, 3], 3),
                (6, [1036, 0], 1),
                (21, [301, 0], 1),
                (3, [2300, 0], 1),
                (1, [24, 0], 4),
                (5, [264, 0], 8),
                (70, [40, 0], 5),
                (9, [512, 0], 2),
                (300, [1, 0], 1),
            ] {
                let sizes = sizes(pixels, sources, groups);
                let cut = Cut::of(sizes, dtype);
                assert!(cut.columns() <= THREADS && cut.channels <= WIDEST, "{cut:?}");
                assert!(sources.iter().all(|channels| channels.is_multiple_of(cut.vector)), "{cut:?}");
                assert!(cut.channels.is_multiple_of(cut.vector), "{cut:?}");
                // Strips begin at whole vectors.
                let first = if cut.tiles > 1 { sizes.width() } else { cut.groups * sizes.width() };
                assert!(cut.strips == 1 || first.is_multiple_of(cut.vector), "{cut:?}");
                assert!(cut.tiles * cut.channels >= if cut.tiles > 1 { sizes.width() } else { cut.channels });
                assert!((cut.tiles - 1) * cut.channels < sizes.width());
                assert!(cut.strips * cut.groups >= groups && (cut.strips - 1) * cut.groups < groups, "{cut:?}");
                assert!(cut.chunks * cut.chunk() >= pixels && (cut.chunks - 1) * cut.chunk() < pixels, "{cut:?}");
            }
        }
    }

    /// Whole sectors and one pass, whatever the width of a group: 4, 8, 12, 16 channels and more.
    #[test]
    fn strips_are_whole_sectors() {
        for (pixels, sources, groups, channels, parts) in [
            (1024, [128, 0], 32, 16, 1),
            (1024, [128, 128], 32, 16, 1),
            (1024, [256, 128], 32, 48, 4),
            (256, [256, 0], 32, 32, 1),
            (256, [256, 128], 32, 48, 1),
            (64, [256, 256], 32, 128, 1),
            (16, [256, 0], 32, 256, 1),
            (1024, [64, 0], 8, 16, 1),
            (784, [64, 0], 8, 16, 1),
            (49, [256, 0], 8, 192, 1),
            (4096, [128, 0], 32, 64, 16),
        ] {
            let cut = Cut::of(sizes(pixels, sources, groups), DType::BF16);
            assert_eq!((cut.vector, cut.channels, cut.parts()), (8, channels, parts), "{pixels} {sources:?}");
            assert!((cut.channels * 2).is_multiple_of(SECTOR));
        }
    }

    #[test]
    fn quotients_are_exact() {
        for by in 1..=THREADS {
            assert!((0..=THREADS as u32).all(|i| (i * over(by)) >> 16 == i / by as u32), "{by}");
        }
    }
}
