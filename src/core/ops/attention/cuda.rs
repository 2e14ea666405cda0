//! Attention on accelerators: launch configurations from sizes, and the launches.

use super::{Call, OP, Sizes};
use crate::device::launches::{
    AttentionBwdKvNarrow, AttentionBwdKvNarrowTf32, AttentionBwdKvWide, AttentionBwdKvWideTf32, AttentionBwdKvWidest,
    AttentionBwdKvWidestTf32, AttentionBwdQNarrow, AttentionBwdQNarrowTf32, AttentionBwdQWide, AttentionBwdQWideTf32,
    AttentionBwdQWidest, AttentionBwdQWidestTf32, AttentionBwdWholeNarrowBf16, AttentionBwdWholeNarrowTf32,
    AttentionBwdWholeSlimBf16, AttentionFwdNarrow, AttentionFwdNarrowTf32, AttentionFwdWide, AttentionFwdWideTf32,
    AttentionFwdWidest, AttentionFwdWidestTf32,
};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::{Error, Result};
use crate::ops::Stored;
use crate::ops::tile::Arithmetic;
use crate::tape::Destination;
use crate::tensor::Tensor;

/// The largest head dimension that the kernels' registers are laid out for.
const MAX_DIM: usize = 256;
/// The most steps of 16 columns of the kernel for slim heads.
const SLIM_STEPS: usize = 3;
/// Blocks that fill a large device: about four for each of 132 multiprocessors.
const FULL_GRID: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Forward,
    Queries,
    KeysValues,
    /// All three, in one kernel.
    Whole,
}

/// Which of three layouts of the registers a head dimension takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    /// Up to 64.
    Narrow,
    /// Up to 128.
    Wide,
    /// Up to [`MAX_DIM`].
    Widest,
}

impl Width {
    fn of(dim: usize) -> Self {
        match dim {
            0..=64 => Width::Narrow,
            65..=128 => Width::Wide,
            _ => Width::Widest,
        }
    }

    /// The most keys of a tile on tensor cores.
    fn keys(self, pass: Pass, arithmetic: Arithmetic) -> usize {
        match (self, pass, arithmetic) {
            (Width::Narrow, Pass::Queries, _) => 64,
            (Width::Narrow, _, _) => 72,
            (Width::Widest, _, Arithmetic::Tf32) => 16,
            (Width::Wide | Width::Widest, _, _) => 32,
        }
    }

    /// The most tiles of 16 queries that a block goes through at a time on tensor cores, where it owns keys.
    fn query_tiles(self, pass: Pass, slim: bool, arithmetic: Arithmetic) -> usize {
        match (self, arithmetic) {
            (Width::Widest, Arithmetic::Tf32) => 1,
            (Width::Widest, _) | (_, Arithmetic::Tf32) => 2,
            (Width::Narrow, _) if pass == Pass::Whole && slim => 8,
            (Width::Narrow | Width::Wide, _) => 4,
        }
    }
}

/// Whether one kernel makes all of the gradient: a block has all keys of a sequence.
fn is_whole(sizes: Sizes, arithmetic: Arithmetic) -> bool {
    let width = Width::of(sizes.dim);
    arithmetic.on_tensor_cores() && width == Width::Narrow && sizes.tokens <= width.keys(Pass::Whole, arithmetic)
}

/// As few tiles as there can be, of as many keys each, rounded up to 8.
fn keys_of_tile(tokens: usize, most: usize) -> usize {
    tokens.div_ceil(tokens.div_ceil(most)).next_multiple_of(8)
}

/// The launch of a pass, as the head of `kernels/attention.cu` states it.
fn config(sizes: Sizes, pass: Pass, arithmetic: Arithmetic) -> LaunchConfig {
    let on_tensor_cores = arithmetic.on_tensor_cores();
    let Blocks { x, y, threads, bytes } =
        if on_tensor_cores { tensor_cores(sizes, pass, arithmetic) } else { fma(sizes, pass) };
    LaunchConfig {
        grid: [(sizes.batch * x) as u32, y as u32, 1],
        block: [threads as u32, 1, 1],
        shared_bytes: bytes as u32,
    }
}

/// Blocks of a sample and of all samples together, threads of a block and its bytes of shared memory.
struct Blocks {
    x: usize,
    y: usize,
    threads: usize,
    bytes: usize,
}

fn tensor_cores(sizes: Sizes, pass: Pass, arithmetic: Arithmetic) -> Blocks {
    let width = Width::of(sizes.dim);
    let steps = sizes.dim.div_ceil(16);
    // Elements of 16 bytes, and bytes of an element.
    let piece = arithmetic.piece();
    let size = 16 / piece;
    let row = 16 * steps + piece;
    let keys = keys_of_tile(sizes.tokens, width.keys(pass, arithmetic));
    let key_rows = keys.next_multiple_of(16);
    // 16 stacked queries of a group each.
    let tiles = (sizes.heads / sizes.kv_heads * sizes.tokens).div_ceil(16);
    if matches!(pass, Pass::Forward | Pass::Queries) {
        // Of all keys at once a block makes use for several tiles of queries. Else they are spread evenly over blocks of at most as many
        // warps: of 8, if no more of them idle than of 4, for they load keys less often.
        let resident = pass == Pass::Forward && keys >= sizes.tokens;
        let narrow = width == Width::Narrow && !resident;
        let most = match (pass, width, arithmetic) {
            (Pass::Queries, Width::Widest, Arithmetic::Tf32) => 2,
            (Pass::Queries, _, Arithmetic::Tf32) => 4,
            _ if narrow && tiles.next_multiple_of(8) == tiles.next_multiple_of(4) => 8,
            _ => 4,
        };
        let warps = tiles.div_ceil(tiles.div_ceil(most));
        let mut parts = tiles.div_ceil(warps);
        if resident {
            parts = parts.min(FULL_GRID.div_ceil(sizes.batch * sizes.kv_heads));
        }
        let own = if pass == Pass::Forward { 16 } else { 32 };
        let bytes = size * row * (own * warps + 2 * key_rows);
        return if pass == Pass::Forward {
            Blocks { x: sizes.kv_heads, y: parts, threads: 32 * warps, bytes }
        } else {
            Blocks { x: sizes.kv_heads * parts, y: 1, threads: 32 * warps, bytes }
        };
    }
    // Warps that share the columns of dK and of dV.
    let warps = match width {
        Width::Narrow => 2 * steps.next_power_of_two(),
        Width::Wide => 2 * steps.div_ceil(2),
        Width::Widest => 2 * steps.div_ceil(4),
    };
    let queries = 16 * warps.min(width.query_tiles(pass, steps <= SLIM_STEPS, arithmetic));
    let weights = if pass == Pass::Whole { key_rows.max(16 * steps) } else { key_rows } + piece;
    let elements = 2 * (key_rows * row + queries * row + queries * weights);
    Blocks { x: sizes.kv_heads * sizes.tokens.div_ceil(keys), y: 1, threads: 32 * warps, bytes: size * elements }
}

/// In f32.
fn fma(sizes: Sizes, pass: Pass) -> Blocks {
    let rows = match (Width::of(sizes.dim), pass) {
        (Width::Narrow, _) => 4 * 8,
        (_, Pass::Forward) => 4 * 4,
        _ => 4 * 2,
    };
    // Rows of 16 bytes each, and apart by an odd number of 16 bytes.
    let d4 = sizes.dim.next_multiple_of(4);
    let k4 = 4 * ((d4 / 4) | 1);
    let (heads, floats) = match pass {
        Pass::Forward => (sizes.heads, rows * (d4 + 32) + 32 * (k4 + d4)),
        Pass::Queries => (sizes.heads, rows * (2 * d4 + 32) + 64 * k4),
        Pass::KeysValues | Pass::Whole => (sizes.kv_heads, rows * (2 * d4 + 64) + 64 * k4),
    };
    Blocks { x: heads * sizes.tokens.div_ceil(rows), y: 1, threads: 128, bytes: 4 * floats }
}

/// Launches the kernel of the width among three that take the same arguments, or TF32's.
macro_rules! launch_width {
    (
        ($width:expr, $arithmetic:expr), $T:ident,
        { narrow: [$narrow:ident, $narrow_tf32:ident], wide: [$wide:ident, $wide_tf32:ident], widest: [$widest:ident, $widest_tf32:ident] },
        $accelerator:expr, $config:expr, $fields:tt
    ) => {
        match ($arithmetic, $width) {
            (Arithmetic::Tf32, Width::Narrow) => launch_width!(@ $narrow_tf32, $accelerator, $config, $fields),
            (Arithmetic::Tf32, Width::Wide) => launch_width!(@ $wide_tf32, $accelerator, $config, $fields),
            (Arithmetic::Tf32, Width::Widest) => launch_width!(@ $widest_tf32, $accelerator, $config, $fields),
            (_, Width::Narrow) => launch_width!(@ $narrow::<$T>, $accelerator, $config, $fields),
            (_, Width::Wide) => launch_width!(@ $wide::<$T>, $accelerator, $config, $fields),
            (_, Width::Widest) => launch_width!(@ $widest::<$T>, $accelerator, $config, $fields),
        }
    };
    (@ $kernel:ident $(::<$T:ident>)?, $accelerator:expr, $config:expr, { $($field:ident: $value:expr),* $(,)? }) => {
        $kernel $(::<$T>)? { $($field: $value),* }.launch($accelerator, $config)
    };
}

fn check(accelerator: &dyn Accelerator, sizes: Sizes) -> Result<()> {
    if sizes.dim > MAX_DIM {
        let reason = format!("heads of {} columns; the kernels take up to {MAX_DIM}: use more heads", sizes.dim);
        return Err(Error::Unsupported { op: OP, device: accelerator.name(), reason });
    }
    Ok(())
}

pub(super) fn forward<T: Stored>(accelerator: &dyn Accelerator, call: &Call) -> Result<()> {
    let sizes = call.sizes;
    check(accelerator, sizes)?;
    let [tokens, heads, kv_heads, d] = [sizes.tokens, sizes.heads, sizes.kv_heads, sizes.dim].map(|n| n as u32);
    let arithmetic = Arithmetic::of(call.out.context(), T::DTYPE);
    let config = config(sizes, Pass::Forward, arithmetic);
    launch_width!((Width::of(sizes.dim), arithmetic), T, {
        narrow: [AttentionFwdNarrow, AttentionFwdNarrowTf32],
        wide: [AttentionFwdWide, AttentionFwdWideTf32],
        widest: [AttentionFwdWidest, AttentionFwdWidestTf32]
    }, accelerator, config, {
        out: call.out.slice_mut(),
        lse: call.lse.slice_mut(),
        qkv: call.qkv.slice(),
        tokens: tokens,
        heads: heads,
        kv_heads: kv_heads,
        d: d,
    })
}

pub(super) fn backward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dout: &Tensor,
    delta: &Tensor,
    to: &Destination,
) -> Result<()> {
    let sizes = call.sizes;
    check(accelerator, sizes)?;
    let [tokens, heads, kv_heads, d] = [sizes.tokens, sizes.heads, sizes.kv_heads, sizes.dim].map(|n| n as u32);
    let arithmetic = Arithmetic::of(dout.context(), T::DTYPE);
    if is_whole(sizes, arithmetic) {
        return backward_whole(accelerator, call, dout, to, arithmetic);
    }
    let (width, queries) = (Width::of(sizes.dim), config(sizes, Pass::Queries, arithmetic));
    launch_width!((width, arithmetic), T, {
        narrow: [AttentionBwdQNarrow, AttentionBwdQNarrowTf32],
        wide: [AttentionBwdQWide, AttentionBwdQWideTf32],
        widest: [AttentionBwdQWidest, AttentionBwdQWidestTf32]
    }, accelerator, queries, {
        dqkv: to.slice_mut(),
        delta: delta.slice_mut(),
        dout: dout.slice(),
        out: call.out.slice(),
        lse: call.lse.slice(),
        qkv: call.qkv.slice(),
        tokens: tokens,
        heads: heads,
        kv_heads: kv_heads,
        d: d,
        accumulate: to.mode.flag(),
    })?;
    let keys_values = config(sizes, Pass::KeysValues, arithmetic);
    launch_width!((width, arithmetic), T, {
        narrow: [AttentionBwdKvNarrow, AttentionBwdKvNarrowTf32],
        wide: [AttentionBwdKvWide, AttentionBwdKvWideTf32],
        widest: [AttentionBwdKvWidest, AttentionBwdKvWidestTf32]
    }, accelerator, keys_values, {
        dqkv: to.slice_mut(),
        dout: dout.slice(),
        lse: call.lse.slice(),
        delta: delta.slice(),
        qkv: call.qkv.slice(),
        tokens: tokens,
        heads: heads,
        kv_heads: kv_heads,
        d: d,
        accumulate: to.mode.flag(),
    })
}

fn backward_whole(
    accelerator: &dyn Accelerator,
    call: &Call,
    dout: &Tensor,
    to: &Destination,
    arithmetic: Arithmetic,
) -> Result<()> {
    let sizes = call.sizes;
    let [tokens, heads, kv_heads, d] = [sizes.tokens, sizes.heads, sizes.kv_heads, sizes.dim].map(|n| n as u32);
    let config = config(sizes, Pass::Whole, arithmetic);
    macro_rules! launch {
        ($kernel:ident) => {{
            let (dqkv, dout, out) = (to.slice_mut(), dout.slice(), call.out.slice());
            let (lse, qkv, accumulate) = (call.lse.slice(), call.qkv.slice(), to.mode.flag());
            $kernel { dqkv, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate }.launch(accelerator, config)
        }};
    }
    match (arithmetic, sizes.dim <= 16 * SLIM_STEPS) {
        (Arithmetic::Tf32, _) => launch!(AttentionBwdWholeNarrowTf32),
        (_, true) => launch!(AttentionBwdWholeSlimBf16),
        (_, false) => launch!(AttentionBwdWholeNarrowBf16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_warp_and_shared_memory_is_there() {
        for dim in 1..=MAX_DIM {
            for tokens in [1, 16, 65, 72, 73, 257, 300] {
                let sizes = Sizes { batch: 3, tokens, heads: 8, kv_heads: 2, dim };
                let passes = [Pass::Forward, Pass::Queries, Pass::KeysValues, Pass::Whole];
                let numbers = [Arithmetic::F32, Arithmetic::Tf32, Arithmetic::Bf16];
                for (pass, arithmetic) in passes.into_iter().flat_map(|pass| numbers.map(|each| (pass, each))) {
                    if pass == Pass::Whole && !is_whole(sizes, arithmetic) {
                        continue;
                    }
                    let config = config(sizes, pass, arithmetic);
                    // Every device from compute capability 8.0 on has this much by opt-in.
                    assert!(config.shared_bytes <= 99 << 10, "{pass:?} {arithmetic:?} {dim}: {}", config.shared_bytes);
                    assert!((32..=256).contains(&config.block[0]), "{pass:?} {dim}");
                    let blocks = (config.grid[0] * config.grid[1]) as usize;
                    let keys = keys_of_tile(tokens, Width::of(dim).keys(pass, arithmetic));
                    match (pass, arithmetic) {
                        (Pass::KeysValues, Arithmetic::F32) => assert!(blocks * 32 >= 3 * 2 * tokens || dim > 64),
                        (Pass::Forward | Pass::Queries, Arithmetic::F32) => {
                            let rows = blocks * if dim <= 64 { 32 } else { 16 };
                            assert!(rows >= 3 * 8 * tokens, "{pass:?} {dim}");
                        }
                        (Pass::KeysValues | Pass::Whole, _) => {
                            assert!(keys <= Width::of(dim).keys(pass, arithmetic) && blocks * keys >= 3 * 2 * tokens);
                        }
                        (Pass::Forward, _) if keys >= tokens => assert!(blocks >= 3 * 2),
                        _ => assert!(blocks * config.block[0] as usize / 32 * 16 >= 3 * 2 * (4 * tokens)),
                    }
                }
            }
        }
    }

    #[test]
    fn a_large_batch_shares_keys_and_a_small_one_fills_the_device() {
        let grid = |batch, tokens| {
            let sizes = Sizes { batch, tokens, heads: 8, kv_heads: 2, dim: 48 };
            config(sizes, Pass::Forward, Arithmetic::Bf16).grid
        };
        assert_eq!(grid(256, 65), [512, 1, 1]);
        assert_eq!(grid(64, 65), [128, 4, 1]);
        assert_eq!(grid(512, 65), [1024, 1, 1]);
        assert_eq!(grid(1, 65), [2, 5, 1]);
        assert_eq!(grid(256, 257), [512, 17, 1]);
    }

    #[test]
    fn tiles_of_keys_are_alike() {
        for (tokens, most, keys) in [(65, 72, 72), (64, 72, 64), (73, 72, 40), (257, 72, 72), (256, 72, 64), (1, 72, 8)]
        {
            assert_eq!(keys_of_tile(tokens, most), keys, "{tokens}");
        }
    }
}
