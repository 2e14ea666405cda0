//! The linear layer on accelerators: the launches.

use super::{BiasSum, Call, Operands, ROWS_PER_PART, Sizes};
use crate::device::launches::{
    LinearBwdActivation, LinearBwdBiasFinal, LinearBwdInputLarge, LinearBwdInputSmall, LinearBwdWeightLarge,
    LinearBwdWeightSmall, LinearBwdWeightSum, LinearFwdLarge, LinearFwdSmall,
};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::tile::{Split, Tile, launch_tile};
use crate::ops::{Stored, optional, optional_mut};
use crate::tape::Destination;
use crate::tensor::Tensor;

/// How the weight's gradient is cut.
pub(super) fn split(sizes: Sizes) -> Split {
    Split::of(sizes.m, [sizes.n, sizes.k])
}

pub(super) fn forward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    operands: &Operands,
    y: &Tensor,
) -> Result<()> {
    let Sizes { m, n, k } = call.sizes;
    if m * n == 0 {
        return Ok(());
    }
    let tile = Tile::of([m, n]);
    launch_tile!(tile, LinearFwdLarge, LinearFwdSmall, T, accelerator, tile.config::<T>([m, n], 1), {
        y: y.slice_mut(),
        z: optional_mut(call.z.as_ref()),
        x: operands.x.slice(),
        weight: operands.weight.slice(),
        bias: optional(operands.bias),
        residual: optional(operands.residual),
        m: m as u32,
        n: n as u32,
        k: k as u32,
        activation: call.activation.code(),
    })
}

pub(super) fn activation_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    bias: Option<&BiasSum>,
) -> Result<()> {
    let Sizes { m, n, .. } = call.sizes;
    if m * n > 0 {
        let columns = 32 * 16 / size_of::<T>();
        LinearBwdActivation::<T> {
            dz: optional_mut(call.z.as_ref()),
            partial: optional_mut(bias.map(|bias| &bias.partial)),
            dy: dy.slice(),
            rows: m as u32,
            cols: n as u32,
            rows_per_part: ROWS_PER_PART as u32,
            activation: call.activation.code(),
        }
        .launch(accelerator, LaunchConfig::grid([call.sizes.parts(), n.div_ceil(columns)], 256))?;
    }
    let Some(BiasSum { to, partial }) = bias.filter(|_| n > 0) else { return Ok(()) };
    LinearBwdBiasFinal {
        db: to.slice_mut(),
        partial: partial.slice(),
        parts: call.sizes.parts() as u32,
        cols: n as u32,
        accumulate: to.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::linear(n.div_ceil(32) as u32, 256))
}

pub(super) fn input_backward<T: Stored>(
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
    let tile = Tile::of([m, k]);
    launch_tile!(tile, LinearBwdInputLarge, LinearBwdInputSmall, T, accelerator, tile.config::<T>([m, k], 1), {
        dx: dx.slice_mut(),
        dz: dz.slice(),
        weight: weight.slice(),
        m: m as u32,
        n: n as u32,
        k: k as u32,
        accumulate: dx.flag(),
    })
}

pub(super) fn weight_backward<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    partial: Option<&Tensor>,
    dz: &Tensor,
    x: &Tensor,
    dw: &Destination,
) -> Result<()> {
    let Sizes { m, n, k } = sizes;
    if n * k == 0 {
        return Ok(());
    }
    let split = split(sizes);
    let config = split.config::<T>([n, k]);
    launch_tile!(split.tile, LinearBwdWeightLarge, LinearBwdWeightSmall, T, accelerator, config, {
        dw: partial.map_or_else(|| dw.slice_mut(), Tensor::slice_mut),
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
        dw: dw.slice_mut(),
        partial: partial.slice(),
        splits: split.count as u32,
        len: (n * k) as u32,
        accumulate: dw.mode.flag(),
    }
    .launch(accelerator, LaunchConfig::elements((n * k).div_ceil(4), 256))
}
