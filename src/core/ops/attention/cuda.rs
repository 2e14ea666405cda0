//! Attention on accelerators: launch configurations from sizes, and the launches.

use super::{Call, OP, Sizes};
use crate::device::launches::{
    AttentionBwdKvNarrow, AttentionBwdKvWide, AttentionBwdKvWidest, AttentionBwdQNarrow, AttentionBwdQWide,
    AttentionBwdQWidest, AttentionBwdWholeNarrowBf16, AttentionBwdWholeSlimBf16, AttentionFwdNarrow, AttentionFwdWide,
    AttentionFwdWidest,
};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::{Error, Result};
use crate::ops::Stored;
use crate::tape::Destination;
use crate::tensor::{DType, Tensor};

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

    /// The most keys of a tile in bf16.
    fn keys(self, pass: Pass) -> usize {
        match (self, pass) {
            (Width::Narrow, Pass::Queries) => 64,
            (Width::Narrow, _) => 72,
            (Width::Wide | Width::Widest, _) => 32,
        }
    }
}

/// Whether one kernel makes all of the gradient: a block has all keys of a sequence.
fn is_whole(sizes: Sizes, dtype: DType) -> bool {
    let width = Width::of(sizes.dim);
    dtype == DType::BF16 && width == Width::Narrow && sizes.tokens <= width.keys(Pass::Whole)
}

/// As few tiles as there can be, of as many keys each, rounded up to 8.
fn keys_of_tile(tokens: usize, most: usize) -> usize {
    tokens.div_ceil(tokens.div_ceil(most)).next_multiple_of(8)
}

/// The launch of a pass over tensors of `dtype`, as the head of `kernels/attention.cu` states it.
fn config(sizes: Sizes, pass: Pass, dtype: DType) -> LaunchConfig {
    let Blocks { x, y, threads, bytes } =
        if dtype == DType::BF16 { tensor_cores(sizes, pass) } else { fma(sizes, pass) };
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

fn tensor_cores(sizes: Sizes, pass: Pass) -> Blocks {
    let width = Width::of(sizes.dim);
    let steps = sizes.dim.div_ceil(16);
    let row = 16 * steps + 8;
    let keys = keys_of_tile(sizes.tokens, width.keys(pass));
    let key_rows = keys.next_multiple_of(16);
    // 16 stacked queries of a group each.
    let tiles = (sizes.heads / sizes.kv_heads * sizes.tokens).div_ceil(16);
    if matches!(pass, Pass::Forward | Pass::Queries) {
        // Of all keys at once a block makes use for several tiles of queries. Else they are spread evenly over blocks of at most as many
        // warps: of 8, if no more of them idle than of 4, for they load keys less often.
        let resident = pass == Pass::Forward && keys >= sizes.tokens;
        let narrow = width == Width::Narrow && !resident;
        let most = if narrow && tiles.next_multiple_of(8) == tiles.next_multiple_of(4) { 8 } else { 4 };
        let warps = tiles.div_ceil(tiles.div_ceil(most));
        let mut parts = tiles.div_ceil(warps);
        if resident {
            parts = parts.min(FULL_GRID.div_ceil(sizes.batch * sizes.kv_heads));
        }
        let own = if pass == Pass::Forward { 16 } else { 32 };
        let bytes = 2 * row * (own * warps + 2 * key_rows);
        return if pass == Pass::Forward {
            Blocks { x: sizes.kv_heads, y: parts, threads: 32 * warps, bytes }
        } else {
            Blocks { x: sizes.kv_heads * parts, y: 1, threads: 32 * warps, bytes }
        };
    }
    // Warps that share the columns of dK and of dV, and tiles of queries at a time.
    let (warps, most) = match width {
        Width::Narrow if pass == Pass::Whole && steps <= SLIM_STEPS => (2 * steps.next_power_of_two(), 8),
        Width::Narrow => (2 * steps.next_power_of_two(), 4),
        Width::Wide => (2 * steps.div_ceil(2), 4),
        Width::Widest => (2 * steps.div_ceil(4), 2),
    };
    let queries = 16 * warps.min(most);
    let weights = if pass == Pass::Whole { key_rows.max(16 * steps) } else { key_rows } + 8;
    let elements = 2 * (key_rows * row + queries * row + queries * weights);
    Blocks { x: sizes.kv_heads * sizes.tokens.div_ceil(keys), y: 1, threads: 32 * warps, bytes: 2 * elements }
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

/// Launches the kernel of the width among three that take the same arguments.
macro_rules! launch_width {
    ($width:expr, $narrow:ident, $wide:ident, $widest:ident, $accelerator:expr, $config:expr, $fields:tt) => {
        match $width {
            Width::Narrow => launch_width!(@ $narrow, $accelerator, $config, $fields),
            Width::Wide => launch_width!(@ $wide, $accelerator, $config, $fields),
            Width::Widest => launch_width!(@ $widest, $accelerator, $config, $fields),
        }
    };
    (@ $kernel:ident, $accelerator:expr, $config:expr, { $($field:ident: $value:expr),* $(,)? }) => {
        $kernel { $($field: $value),* }.launch($accelerator, $config)
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
    let (width, config) = (Width::of(sizes.dim), config(sizes, Pass::Forward, T::DTYPE));
    launch_width!(width, AttentionFwdNarrow, AttentionFwdWide, AttentionFwdWidest, accelerator, config, {
        out: call.out.slice_mut(),
        lse: call.lse.slice_mut(),
        qkv: call.qkv.slice::<T>(),
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
    if is_whole(sizes, T::DTYPE) {
        return backward_whole(accelerator, call, dout, to);
    }
    let (width, queries) = (Width::of(sizes.dim), config(sizes, Pass::Queries, T::DTYPE));
    launch_width!(width, AttentionBwdQNarrow, AttentionBwdQWide, AttentionBwdQWidest, accelerator, queries, {
        dqkv: to.slice_mut(),
        delta: delta.slice_mut(),
        dout: dout.slice(),
        out: call.out.slice(),
        lse: call.lse.slice(),
        qkv: call.qkv.slice::<T>(),
        tokens: tokens,
        heads: heads,
        kv_heads: kv_heads,
        d: d,
        accumulate: to.mode.flag(),
    })?;
    let keys_values = config(sizes, Pass::KeysValues, T::DTYPE);
    launch_width!(width, AttentionBwdKvNarrow, AttentionBwdKvWide, AttentionBwdKvWidest, accelerator, keys_values, {
        dqkv: to.slice_mut(),
        dout: dout.slice(),
        lse: call.lse.slice(),
        delta: delta.slice(),
        qkv: call.qkv.slice::<T>(),
        tokens: tokens,
        heads: heads,
        kv_heads: kv_heads,
        d: d,
        accumulate: to.mode.flag(),
    })
}

fn backward_whole(accelerator: &dyn Accelerator, call: &Call, dout: &Tensor, to: &Destination) -> Result<()> {
    let sizes = call.sizes;
    let [tokens, heads, kv_heads, d] = [sizes.tokens, sizes.heads, sizes.kv_heads, sizes.dim].map(|n| n as u32);
    let (dqkv, dout, out) = (to.slice_mut(), dout.slice(), call.out.slice());
    let (lse, qkv, accumulate) = (call.lse.slice(), call.qkv.slice(), to.mode.flag());
    let config = config(sizes, Pass::Whole, DType::BF16);
    if sizes.dim <= 16 * SLIM_STEPS {
        AttentionBwdWholeSlimBf16 { dqkv, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate }
            .launch(accelerator, config)
    } else {
        AttentionBwdWholeNarrowBf16 { dqkv, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate }
            .launch(accelerator, config)
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
                for (pass, dtype) in [
                    (Pass::Forward, DType::F32),
                    (Pass::Queries, DType::F32),
                    (Pass::KeysValues, DType::F32),
                    (Pass::Forward, DType::BF16),
                    (Pass::Queries, DType::BF16),
                    (Pass::KeysValues, DType::BF16),
                    (Pass::Whole, DType::BF16),
                ] {
                    if pass == Pass::Whole && !is_whole(sizes, dtype) {
                        continue;
                    }
                    let config = config(sizes, pass, dtype);
                    // Every device from compute capability 8.0 on has this much by opt-in.
                    assert!(config.shared_bytes <= 99 << 10, "{pass:?} {dim}: {}", config.shared_bytes);
                    assert!((32..=256).contains(&config.block[0]), "{pass:?} {dim}");
                    let blocks = (config.grid[0] * config.grid[1]) as usize;
                    match (pass, dtype) {
                        (Pass::KeysValues | Pass::Whole, DType::BF16) => {
                            let keys = keys_of_tile(tokens, Width::of(dim).keys(pass));
                            assert!(keys <= Width::of(dim).keys(pass) && blocks * keys >= 3 * 2 * tokens);
                        }
                        (Pass::KeysValues, _) => assert!(blocks * 32 >= 3 * 2 * tokens || dim > 64),
                        (Pass::Forward, DType::BF16) if keys_of_tile(tokens, Width::of(dim).keys(pass)) >= tokens => {
                            assert!(blocks >= 3 * 2);
                        }
                        (_, DType::BF16) => {
                            assert!(blocks * config.block[0] as usize / 32 * 16 >= 3 * 2 * (4 * tokens));
                        }
                        (Pass::Whole, _) => unreachable!("in bf16 only"),
                        (Pass::Forward | Pass::Queries, _) => {
                            let rows = blocks * if dim <= 64 { 32 } else { 16 };
                            assert!(rows >= 3 * 8 * tokens, "{pass:?} {dim}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_large_batch_shares_keys_and_a_small_one_fills_the_device() {
        let grid = |batch, tokens| {
            let sizes = Sizes { batch, tokens, heads: 8, kv_heads: 2, dim: 48 };
            config(sizes, Pass::Forward, DType::BF16).grid
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
