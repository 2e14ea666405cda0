//! Attention on accelerators: launch configurations from sizes, and the launches.

use super::{Call, OP, Sizes};
use crate::device::launches::{
    AttentionBwdKvNarrow, AttentionBwdKvWide, AttentionBwdKvWidest, AttentionBwdQNarrow, AttentionBwdQWide,
    AttentionBwdQWidest, AttentionFwdNarrow, AttentionFwdWide, AttentionFwdWidest,
};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::{Error, Result};
use crate::ops::Stored;
use crate::tape::Destination;
use crate::tensor::{DType, Tensor};

/// The largest head dimension that the kernels' registers are laid out for.
const MAX_DIM: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Forward,
    Queries,
    KeysValues,
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
}

/// The launch of a pass over tensors of `dtype`, as the head of `kernels/attention.cu` states it.
fn config(sizes: Sizes, pass: Pass, dtype: DType) -> LaunchConfig {
    let heads = if pass == Pass::KeysValues { sizes.kv_heads } else { sizes.heads };
    let width = Width::of(sizes.dim);
    let mut parts = 1;
    let (rows, threads, bytes) = if dtype == DType::BF16 {
        // Of the block's own rows, those operands that are in shared memory.
        let in_shared = match (width, pass) {
            (Width::Narrow, _) | (Width::Wide, Pass::Forward | Pass::Queries) => 0,
            (Width::Widest, Pass::Forward) => 1,
            (Width::Wide, Pass::KeysValues) | (Width::Widest, Pass::Queries | Pass::KeysValues) => 2,
        };
        if (width, pass) == (Width::Widest, Pass::KeysValues) {
            parts = 2;
        }
        // Fragments of 16 rows, spread evenly over blocks of at most as many warps.
        let most_warps = if in_shared > 0 { 4 } else { 8 };
        let fragments = sizes.tokens.div_ceil(16);
        let warps = fragments.div_ceil(fragments.div_ceil(most_warps));
        let tile = if (width, pass) == (Width::Narrow, Pass::Forward) { 64 } else { 32 };
        let row_bytes = 2 * (sizes.dim.next_multiple_of(16) + 8);
        (16 * warps, 32 * warps, (2 * tile + in_shared * 16 * warps) * row_bytes)
    } else {
        let rows = match (width, pass) {
            (Width::Narrow, _) => 4 * 8,
            (_, Pass::Forward) => 4 * 4,
            (_, Pass::Queries | Pass::KeysValues) => 4 * 2,
        };
        // Rows of 16 bytes each, and apart by an odd number of 16 bytes.
        let d4 = sizes.dim.next_multiple_of(4);
        let k4 = 4 * ((d4 / 4) | 1);
        let floats = match pass {
            Pass::Forward => rows * (d4 + 32) + 32 * (k4 + d4),
            Pass::Queries => rows * (2 * d4 + 32) + 64 * k4,
            Pass::KeysValues => rows * (2 * d4 + 64) + 64 * k4,
        };
        (rows, 128, 4 * floats)
    };
    LaunchConfig {
        grid: [(sizes.batch * heads * sizes.tokens.div_ceil(rows)) as u32, parts, 1],
        block: [threads as u32, 1, 1],
        shared_bytes: bytes as u32,
        ..LaunchConfig::default()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_warp_and_shared_memory_is_there() {
        for dim in 1..=MAX_DIM {
            for tokens in [1, 16, 65, 300] {
                let sizes = Sizes { batch: 3, tokens, heads: 8, kv_heads: 2, dim };
                for (pass, dtype) in [
                    (Pass::Forward, DType::F32),
                    (Pass::Queries, DType::F32),
                    (Pass::KeysValues, DType::F32),
                    (Pass::Forward, DType::BF16),
                    (Pass::Queries, DType::BF16),
                    (Pass::KeysValues, DType::BF16),
                ] {
                    let config = config(sizes, pass, dtype);
                    // What every device from compute capability 8.0 on has by opt-in, and without.
                    let most = if dim <= 64 || dtype == DType::F32 && dim <= 128 { 48 } else { 99 };
                    assert!(config.shared_bytes <= most << 10, "{pass:?} {dim}: {}", config.shared_bytes);
                    assert!(config.block[0] <= 256);
                    let heads = if pass == Pass::KeysValues { 2 } else { 8 };
                    assert!((config.grid[0] * config.block[0] / 32 * 16) as usize >= 3 * heads * tokens);
                }
            }
        }
    }
}
