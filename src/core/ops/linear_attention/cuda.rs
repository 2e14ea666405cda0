//! Linear attention on accelerators: launch configurations from sizes, and the launches.

use super::{Call, OP, Sizes};
use crate::device::launches::{
    LinearAttentionBwdNarrow, LinearAttentionBwdWide, LinearAttentionFwdNarrow, LinearAttentionFwdWide,
};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::{Error, Result};
use crate::ops::Stored;
use crate::tape::Destination;
use crate::tensor::{DType, Tensor};

/// The largest head dimension whose state fits a thread's registers and a block's shared memory.
const MAX_DIM: usize = 128;
/// The largest of the narrow kernels.
const NARROW: usize = 64;
/// Tokens of a tile on tensor cores: 16 for each of four warps.
const MMA_TILE: usize = 64;

/// Whether the products are for tensor cores.
pub(super) fn has_tensor_cores(sizes: Sizes, dtype: DType) -> bool {
    dtype == DType::BF16 && sizes.dim <= NARROW
}

/// A launch, as the head of `kernels/linear_attention.cu` states it.
#[derive(Clone, Copy, Debug)]
struct Plan {
    config: LaunchConfig,
    /// Tokens of a tile.
    tile: usize,
    /// Threads that share an element of the state.
    groups: usize,
}

impl Plan {
    fn new(sizes: Sizes, dtype: DType) -> Self {
        if has_tensor_cores(sizes, dtype) {
            let columns = sizes.dim.next_multiple_of(16);
            // z; the state in two parts, two tiles of tokens, and a tile for results.
            let bytes = 4 * columns + 2 * (columns + 8) * (2 * columns + 3 * MMA_TILE);
            return Self { config: Self::config(sizes, 128, bytes), tile: MMA_TILE, groups: 1 };
        }
        let side = if sizes.dim <= NARROW { 4 } else { 8 };
        let padded = sizes.dim.next_multiple_of(side);
        let threads: usize = if padded <= 32 { 128 } else { 256 };
        // The largest states leave less room for tokens.
        let most = if padded > 120 { 24 } else { 16 * threads / padded / 4 * 4 };
        let tile = sizes.tokens.next_multiple_of(4).min(most);
        let cells = (padded / side).pow(2);
        let groups = if side == 4 { (threads / cells).min(tile / 4) } else { 1 };
        let scratch = if groups > 1 { groups * padded * (padded + 1) } else { 0 };
        let floats = padded * (padded + 2) + tile * (padded / 2 + 2) + scratch.max(2 * tile * padded);
        Self { config: Self::config(sizes, threads, 4 * floats), tile, groups }
    }

    fn config(sizes: Sizes, threads: usize, bytes: usize) -> LaunchConfig {
        LaunchConfig {
            grid: [(sizes.batch * sizes.heads) as u32, 1, 1],
            block: [threads as u32, 1, 1],
            shared_bytes: bytes as u32,
        }
    }
}

fn check(accelerator: &dyn Accelerator, sizes: Sizes) -> Result<()> {
    if sizes.dim > MAX_DIM {
        let reason = format!("heads of {} columns; the kernels take up to {MAX_DIM}: use more heads", sizes.dim);
        return Err(Error::Unsupported { op: OP, device: accelerator.name(), reason });
    }
    Ok(())
}

/// Launches one of two kernels that take the same arguments: for heads of up to [`NARROW`] columns, and for wider ones.
macro_rules! launch {
    ($narrow:ident, $wide:ident, $accelerator:expr, $call:expr, { $($field:ident: $value:expr),* $(,)? }) => {{
        let sizes = $call.sizes;
        check($accelerator, sizes)?;
        let plan = Plan::new(sizes, T::DTYPE);
        let [tokens, heads, d, tile, groups] =
            [sizes.tokens, sizes.heads, sizes.dim, plan.tile, plan.groups].map(|n| n as u32);
        if sizes.dim <= NARROW {
            $narrow { $($field: $value,)* qkv: $call.qkv.slice::<T>(), tokens, heads, d, tile, groups }
                .launch($accelerator, plan.config)
        } else {
            $wide { $($field: $value,)* qkv: $call.qkv.slice::<T>(), tokens, heads, d, tile, groups }
                .launch($accelerator, plan.config)
        }
    }};
}

pub(super) fn forward<T: Stored>(accelerator: &dyn Accelerator, call: &Call, out: &Tensor) -> Result<()> {
    launch!(LinearAttentionFwdNarrow, LinearAttentionFwdWide, accelerator, call, { y: out.slice_mut() })
}

pub(super) fn backward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dout: &Tensor,
    to: &Destination,
) -> Result<()> {
    launch!(LinearAttentionBwdNarrow, LinearAttentionBwdWide, accelerator, call, {
        dqkv: to.slice_mut(),
        dy: dout.slice(),
        accumulate: to.mode.flag(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_product_has_a_thread_and_shared_memory_is_there() {
        for dim in 1..=MAX_DIM {
            for tokens in [1, 3, 16, 65, 1024] {
                let sizes = Sizes { batch: 3, tokens, heads: 8, dim };
                let mma = Plan::new(sizes, DType::BF16).config;
                assert!(mma.shared_bytes <= if dim <= NARROW { 48 } else { 99 } << 10, "{dim}: {}", mma.shared_bytes);
                let Plan { config, tile, groups } = Plan::new(sizes, DType::F32);
                let (side, threads) = (if dim <= NARROW { 4 } else { 8 }, config.block[0] as usize);
                let padded = dim.next_multiple_of(side);
                assert!(tile.is_multiple_of(4) && tile > 0 && tile / 4 * (padded / 4) <= threads, "{dim} {tokens}");
                assert!(groups > 0 && (padded / side).pow(2) * groups <= threads, "{dim} {tokens}");
                assert_eq!(config.grid, [24, 1, 1]);
                // Every device from compute capability 8.0 on has these, by opt-in and without.
                let most = if dim <= 32 { 48 } else { 99 };
                assert!(config.shared_bytes <= most << 10, "{dim} {tokens}: {}", config.shared_bytes);
            }
        }
    }
}
