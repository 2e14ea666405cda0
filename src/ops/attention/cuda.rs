//! Attention on accelerators: launch configurations from sizes, and the launches.

use super::{Call, NARROW, OP, Sizes};
use crate::device::launches::{
    AttentionBwdKvNarrow, AttentionBwdKvWide, AttentionBwdQNarrow, AttentionBwdQWide, AttentionFwdNarrow,
    AttentionFwdWide,
};
use crate::device::{Accelerator, KernelFloat, LaunchConfig};
use crate::error::{Error, Result};
use crate::tape::Destination;
use crate::tensor::{DType, Element, Tensor};

/// The largest head dimension that the kernels' registers are laid out for.
const MAX_DIM: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Forward,
    Queries,
    KeysValues,
}

/// The launch of a pass over tensors of `dtype`, as the head of `kernels/attention.cu` states it.
fn config(sizes: Sizes, pass: Pass, dtype: DType) -> LaunchConfig {
    let heads = if pass == Pass::KeysValues { sizes.kv_heads } else { sizes.heads };
    let narrow = sizes.dim <= NARROW;
    let (rows, threads, bytes) = if dtype == DType::BF16 && (narrow || pass == Pass::Forward) {
        // Fragments of 16 rows, spread evenly over blocks of at most 8 warps.
        let fragments = sizes.tokens.div_ceil(16);
        let warps = fragments.div_ceil(fragments.div_ceil(8));
        let tile = if narrow && pass == Pass::Forward { 64 } else { 32 };
        (16 * warps, 32 * warps, 2 * 2 * tile * (sizes.dim.next_multiple_of(16) + 8))
    } else {
        let rows = match (narrow, pass) {
            (true, _) => 4 * 8,
            (false, Pass::Forward) => 4 * 4,
            (false, _) => 4 * 2,
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
    LaunchConfig::linear((sizes.batch * heads * sizes.tokens.div_ceil(rows)) as u32, threads as u32)
        .with_shared(bytes as u32)
}

fn check(accelerator: &dyn Accelerator, sizes: Sizes) -> Result<()> {
    if sizes.dim > MAX_DIM {
        let reason = format!("heads of {} columns; the kernels take up to {MAX_DIM}: use more heads", sizes.dim);
        return Err(Error::Unsupported { op: OP, device: accelerator.name(), reason });
    }
    Ok(())
}

pub(super) fn forward<T: KernelFloat + Element>(accelerator: &dyn Accelerator, call: &Call) -> Result<()> {
    let sizes = call.sizes;
    check(accelerator, sizes)?;
    let (out, lse, qkv) = (call.out.slice_mut(), call.lse.slice_mut(), call.qkv.slice::<T>());
    let [tokens, heads, kv_heads, d] = [sizes.tokens, sizes.heads, sizes.kv_heads, sizes.dim].map(|n| n as u32);
    let config = config(sizes, Pass::Forward, T::DTYPE);
    if sizes.dim <= NARROW {
        AttentionFwdNarrow { out, lse, qkv, tokens, heads, kv_heads, d }.launch(accelerator, config)
    } else {
        AttentionFwdWide { out, lse, qkv, tokens, heads, kv_heads, d }.launch(accelerator, config)
    }
}

pub(super) fn backward<T: KernelFloat + Element>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dout: &Tensor,
    delta: &Tensor,
    to: &Destination,
) -> Result<()> {
    let sizes = call.sizes;
    check(accelerator, sizes)?;
    let (out, lse, qkv, dout) = (call.out.slice(), call.lse.slice(), call.qkv.slice::<T>(), dout.slice());
    let [tokens, heads, kv_heads, d] = [sizes.tokens, sizes.heads, sizes.kv_heads, sizes.dim].map(|n| n as u32);
    let accumulate = to.mode.flag();
    let queries = config(sizes, Pass::Queries, T::DTYPE);
    let keys_values = config(sizes, Pass::KeysValues, T::DTYPE);
    let (dqkv, new_delta) = (to.tensor.slice_mut(), delta.slice_mut());
    if sizes.dim <= NARROW {
        AttentionBwdQNarrow { dqkv, delta: new_delta, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate }
            .launch(accelerator, queries)?;
        let (dqkv, delta) = (to.tensor.slice_mut(), delta.slice());
        AttentionBwdKvNarrow { dqkv, dout, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate }
            .launch(accelerator, keys_values)
    } else {
        AttentionBwdQWide { dqkv, delta: new_delta, dout, out, lse, qkv, tokens, heads, kv_heads, d, accumulate }
            .launch(accelerator, queries)?;
        let (dqkv, delta) = (to.tensor.slice_mut(), delta.slice());
        AttentionBwdKvWide { dqkv, dout, lse, delta, qkv, tokens, heads, kv_heads, d, accumulate }
            .launch(accelerator, keys_values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_warp_and_shared_memory_needs_no_opt_in() {
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
                    assert!(config.shared_bytes <= 48 << 10, "{pass:?} {dim}: {}", config.shared_bytes);
                    assert!(config.block[0] <= 256);
                    let heads = if pass == Pass::KeysValues { 2 } else { 8 };
                    assert!((config.grid[0] * config.block[0] / 32 * 16) as usize >= 3 * heads * tokens);
                }
            }
        }
    }
}
