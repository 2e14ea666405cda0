//! Group norm on accelerators: launch configurations from sizes, and the launches.

use super::{Call, Gradients, Sizes, THREADS};
use crate::device::launches::{
    GroupNormSiluBwd, GroupNormSiluBwdInput, GroupNormSiluBwdParameters, GroupNormSiluBwdPartial, GroupNormSiluBwdSums,
    GroupNormSiluFwd, GroupNormSiluFwdApply, GroupNormSiluFwdPartial,
};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::{Stored, optional, wanted};
use crate::tensor::Tensor;

/// Channels of a block that sums over the samples.
const PARAMETER_CHANNELS: usize = 32;

fn blocks(grid: [usize; 2]) -> LaunchConfig {
    LaunchConfig::grid(grid, THREADS as u32)
}

/// Blocks \[sample and group, part\].
fn by_part(sizes: Sizes) -> LaunchConfig {
    blocks([sizes.samples * sizes.norm.groups, sizes.parts()])
}

pub(super) fn forward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    y: &Tensor,
    partial: Option<&Tensor>,
) -> Result<()> {
    let sizes = call.sizes;
    let Some(partial) = partial else {
        return GroupNormSiluFwd::<T> {
            y: y.slice_mut(),
            mean: call.mean.slice_mut(),
            rstd: call.rstd.slice_mut(),
            x: call.x.slice(),
            skip: optional(call.skip.as_ref()),
            weight: call.weight.slice(),
            bias: call.bias.slice(),
            scale_shift: optional(call.scale_shift.as_ref()),
            pixels: sizes.pixels as u32,
            ca: sizes.sources[0] as u32,
            cb: sizes.sources[1] as u32,
            groups: sizes.norm.groups as u32,
            columns: sizes.columns() as u32,
            tiles: sizes.tiles() as u32,
            vector: sizes.vector() as u32,
            eps: sizes.norm.epsilon,
            silu: sizes.norm.silu as u32,
        }
        .launch(accelerator, by_part(sizes));
    };
    GroupNormSiluFwdPartial::<T> {
        partial: partial.slice_mut(),
        x: call.x.slice(),
        skip: optional(call.skip.as_ref()),
        pixels: sizes.pixels as u32,
        ca: sizes.sources[0] as u32,
        cb: sizes.sources[1] as u32,
        groups: sizes.norm.groups as u32,
        columns: sizes.columns() as u32,
        tiles: sizes.tiles() as u32,
        vector: sizes.vector() as u32,
    }
    .launch(accelerator, by_part(sizes))?;
    GroupNormSiluFwdApply::<T> {
        y: y.slice_mut(),
        mean: call.mean.slice_mut(),
        rstd: call.rstd.slice_mut(),
        partial: partial.slice(),
        x: call.x.slice(),
        skip: optional(call.skip.as_ref()),
        weight: call.weight.slice(),
        bias: call.bias.slice(),
        scale_shift: optional(call.scale_shift.as_ref()),
        pixels: sizes.pixels as u32,
        ca: sizes.sources[0] as u32,
        cb: sizes.sources[1] as u32,
        groups: sizes.norm.groups as u32,
        columns: sizes.columns() as u32,
        tiles: sizes.tiles() as u32,
        vector: sizes.vector() as u32,
        eps: sizes.norm.epsilon,
        silu: sizes.norm.silu as u32,
    }
    .launch(accelerator, by_part(sizes))
}

pub(super) fn backward<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    gradients: &Gradients,
) -> Result<()> {
    let sizes = call.sizes;
    match &gradients.partial {
        None => backward_whole::<T>(accelerator, call, dy, gradients)?,
        Some(partial) => backward_parts::<T>(accelerator, call, dy, gradients, partial)?,
    }
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
        scale_shift: optional(call.scale_shift.as_ref()),
        samples: sizes.samples as u32,
        channels: sizes.channels() as u32,
        accumulate_weight,
        accumulate_bias,
        accumulate_scale_shift,
    }
    .launch(accelerator, blocks([sizes.channels().div_ceil(PARAMETER_CHANNELS), 1]))
}

/// Sums and the sources' gradients where a block has a whole group.
fn backward_whole<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    gradients: &Gradients,
) -> Result<()> {
    let sizes = call.sizes;
    let (dx, accumulate_x) = wanted(gradients.dx.as_ref());
    let (dskip, accumulate_skip) = wanted(gradients.dskip.as_ref());
    GroupNormSiluBwd::<T> {
        dx,
        dskip,
        sums: gradients.sums.slice_mut(),
        dy: dy.slice(),
        x: call.x.slice(),
        skip: optional(call.skip.as_ref()),
        mean: call.mean.slice(),
        rstd: call.rstd.slice(),
        weight: call.weight.slice(),
        bias: call.bias.slice(),
        scale_shift: optional(call.scale_shift.as_ref()),
        pixels: sizes.pixels as u32,
        ca: sizes.sources[0] as u32,
        cb: sizes.sources[1] as u32,
        groups: sizes.norm.groups as u32,
        columns: sizes.columns() as u32,
        tiles: sizes.tiles() as u32,
        vector: sizes.vector() as u32,
        silu: sizes.norm.silu as u32,
        accumulate_x,
        accumulate_skip,
    }
    .launch(accelerator, by_part(sizes))
}

/// The same where several blocks share a group: sums by part, sums, gradients.
fn backward_parts<T: Stored>(
    accelerator: &dyn Accelerator,
    call: &Call,
    dy: &Tensor,
    gradients: &Gradients,
    partial: &Tensor,
) -> Result<()> {
    let sizes = call.sizes;
    let channels = sizes.channels();
    GroupNormSiluBwdPartial::<T> {
        partial: partial.slice_mut(),
        dy: dy.slice(),
        x: call.x.slice(),
        skip: optional(call.skip.as_ref()),
        mean: call.mean.slice(),
        rstd: call.rstd.slice(),
        weight: call.weight.slice(),
        bias: call.bias.slice(),
        scale_shift: optional(call.scale_shift.as_ref()),
        pixels: sizes.pixels as u32,
        ca: sizes.sources[0] as u32,
        cb: sizes.sources[1] as u32,
        groups: sizes.norm.groups as u32,
        columns: sizes.columns() as u32,
        tiles: sizes.tiles() as u32,
        vector: sizes.vector() as u32,
        silu: sizes.norm.silu as u32,
    }
    .launch(accelerator, by_part(sizes))?;
    GroupNormSiluBwdSums {
        sums: gradients.sums.slice_mut(),
        partial: partial.slice(),
        channels: channels as u32,
        chunks: sizes.chunks() as u32,
    }
    .launch(accelerator, blocks([sizes.samples, channels.div_ceil(THREADS)]))?;
    let (dx, accumulate_x) = wanted(gradients.dx.as_ref());
    let (dskip, accumulate_skip) = wanted(gradients.dskip.as_ref());
    if gradients.dx.is_none() && gradients.dskip.is_none() {
        return Ok(());
    }
    GroupNormSiluBwdInput::<T> {
        dx,
        dskip,
        sums: gradients.sums.slice(),
        dy: dy.slice(),
        x: call.x.slice(),
        skip: optional(call.skip.as_ref()),
        mean: call.mean.slice(),
        rstd: call.rstd.slice(),
        weight: call.weight.slice(),
        bias: call.bias.slice(),
        scale_shift: optional(call.scale_shift.as_ref()),
        pixels: sizes.pixels as u32,
        ca: sizes.sources[0] as u32,
        cb: sizes.sources[1] as u32,
        groups: sizes.norm.groups as u32,
        columns: sizes.columns() as u32,
        tiles: sizes.tiles() as u32,
        vector: sizes.vector() as u32,
        silu: sizes.norm.silu as u32,
        accumulate_x,
        accumulate_skip,
    }
    .launch(accelerator, by_part(sizes))
}

#[cfg(test)]
mod tests {
    use super::super::{GroupNorm, HELD};
    use super::*;

    #[test]
    fn every_element_has_one_place_and_small_groups_one_block() {
        for (pixels, sources, groups, parts) in [
            (1024, [64, 0], 8, Some(1)),
            (256, [128, 64], 8, Some(1)),
            (64, [256, 256], 8, Some(1)),
            (1024, [64, 64], 8, Some(2)),
            (1200, [16, 0], 2, None),
            (660, [6, 3], 3, None),
            (6, [1036, 0], 1, None),
            (21, [301, 0], 1, None),
            (3, [2300, 0], 1, None),
        ] {
            let norm = GroupNorm { groups, epsilon: 1e-5, silu: true };
            let sizes = Sizes { samples: 3, pixels, sources, norm };
            assert_eq!(by_part(sizes).grid, [3 * groups as u32, sizes.parts() as u32, 1]);
            assert!(parts.is_none_or(|parts| parts == sizes.parts()), "{sizes:?}: {} parts", sizes.parts());
            let vectors = sizes.width() / sizes.vector();
            assert_eq!((sizes.width() % sizes.vector(), sizes.sources[0] % sizes.vector()), (0, 0));
            assert!(sizes.columns() <= THREADS && (sizes.tiles() - 1) * sizes.columns() < vectors);
            assert!(sizes.tiles() * sizes.columns() >= vectors);
            assert_eq!(sizes.chunk(), HELD * (THREADS / sizes.columns()));
            assert!(sizes.chunks() * sizes.chunk() >= pixels && (sizes.chunks() - 1) * sizes.chunk() < pixels);
        }
    }
}
