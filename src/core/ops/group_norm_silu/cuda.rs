//! Group norm on accelerators: launch configurations from sizes, and the launches.

use super::cut::{Cut, THREADS, over};
use super::{Call, Gradients};
use crate::device::launches::{
    GroupNormSiluBwd, GroupNormSiluBwdParameters, GroupNormSiluBwdPartial, GroupNormSiluFwd, GroupNormSiluFwdPartial,
};
use crate::device::{Accelerator, LaunchConfig, Slice};
use crate::error::Result;
use crate::ops::mask::Mask;
use crate::ops::{Stored, optional, wanted};
use crate::tensor::Tensor;

/// Channels of a block that sums over the samples.
const PARAMETER_CHANNELS: usize = 32;

fn blocks(grid: [usize; 2]) -> LaunchConfig {
    LaunchConfig::grid(grid, THREADS as u32)
}

/// Blocks \[sample and strip, part\].
fn by_part(samples: usize, cut: Cut) -> LaunchConfig {
    blocks([samples * cut.strips, cut.parts()])
}

/// Launches a kernel with the sizes that all that take strips want.
macro_rules! launch_strips {
    ($Kernel:ident, $T:ident, $accelerator:expr, $call:expr, { $($field:ident: $value:expr),* $(,)? }) => {{
        let (sizes, cut) = ($call.sizes, $call.cut());
        $Kernel::<$T> {
            x: $call.x.slice(),
            skip: optional($call.skip.as_ref()),
            pixels: sizes.pixels as u32,
            ca: sizes.sources[0] as u32,
            cb: sizes.sources[1] as u32,
            groups: sizes.norm.groups as u32,
            width: sizes.width() as u32,
            strips: cut.strips as u32,
            strip_groups: cut.groups as u32,
            strip: cut.channels as u32,
            columns: cut.columns() as u32,
            tiles: cut.tiles as u32,
            over_columns: over(cut.columns()),
            over_strip: over(cut.channels),
            over_width: over(sizes.width().min(THREADS)),
            vector: cut.vector as u32,
            $($field: $value),*
        }
        .launch($accelerator, by_part(sizes.samples, cut))
    }};
}

/// With the affine map and dropout, null where there is none.
macro_rules! launch_mapped {
    ($Kernel:ident, $T:ident, $accelerator:expr, $call:expr, { $($field:ident: $value:expr),* $(,)? }) => {{
        let dropout = $call.dropout.as_ref();
        let mask = dropout.map(|(mask, _)| *mask);
        launch_strips!($Kernel, $T, $accelerator, $call, {
            weight: $call.weight.slice(),
            bias: $call.bias.slice(),
            scale_shift: optional($call.scale_shift.as_ref()),
            silu_follows: $call.sizes.norm.silu as u32,
            control: dropout.map_or(Slice::none(), |(_, control)| control.slice()),
            least: mask.map_or(0, Mask::least),
            keep_scale: mask.map_or(1.0, Mask::scale),
            seed: mask.map_or(0, |mask| mask.seed),
            purpose: mask.map_or(0, |mask| mask.purpose),
            $($field: $value),*
        })
    }};
}

pub(super) fn forward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    y: &Tensor,
    partial: Option<&Tensor>,
) -> Result<()> {
    if let Some(partial) = partial {
        launch_strips!(GroupNormSiluFwdPartial, T, accelerator, call, { partial: partial.slice_mut() })?;
    }
    launch_mapped!(GroupNormSiluFwd, T, accelerator, call, {
        y: y.slice_mut(),
        mean: call.mean.slice_mut(),
        rstd: call.rstd.slice_mut(),
        partial: optional(partial),
        eps: call.sizes.norm.epsilon,
    })
}

pub(super) fn backward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    gradients: &Gradients,
) -> Result<()> {
    let sizes = call.sizes;
    let partial = gradients.partial.as_ref();
    if let Some(partial) = partial {
        launch_mapped!(GroupNormSiluBwdPartial, T, accelerator, call, {
            partial: partial.slice_mut(),
            dy: dy.slice(),
            mean: call.mean.slice(),
            rstd: call.rstd.slice(),
        })?;
    }
    let (dx, accumulate_x) = wanted(gradients.dx.as_ref());
    let (dskip, accumulate_skip) = wanted(gradients.dskip.as_ref());
    launch_mapped!(GroupNormSiluBwd, T, accelerator, call, {
        dx: dx,
        dskip: dskip,
        sums: gradients.sums.slice_mut(),
        partial: optional(partial),
        dy: dy.slice(),
        mean: call.mean.slice(),
        rstd: call.rstd.slice(),
        accumulate_x: accumulate_x,
        accumulate_skip: accumulate_skip,
    })?;
    // Without scales, the parameters' gradients are plain sums over the samples: the caller's.
    let Some(scale_shift) = &call.scale_shift else { return Ok(()) };
    let (dweight, accumulate_weight) = wanted(gradients.dweight.as_ref());
    let (dbias, accumulate_bias) = wanted(gradients.dbias.as_ref());
    let (dscale_shift, accumulate_scale_shift) = wanted(gradients.dscale_shift.as_ref());
    GroupNormSiluBwdParameters::<T> {
        dweight,
        dbias,
        dscale_shift,
        sums: gradients.sums.slice(),
        weight: call.weight.slice(),
        bias: call.bias.slice(),
        scale_shift: scale_shift.slice(),
        samples: sizes.samples as u32,
        channels: sizes.channels() as u32,
        accumulate_weight,
        accumulate_bias,
        accumulate_scale_shift,
    }
    .launch(accelerator, blocks([sizes.channels().div_ceil(PARAMETER_CHANNELS), 1]))
}
