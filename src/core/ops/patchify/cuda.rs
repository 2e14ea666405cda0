//! Patches and back on accelerators.

use super::Sizes;
use crate::device::launches::{PatchifyToImage, PatchifyToTokens};
use crate::device::{Accelerator, LaunchConfig};
use crate::error::Result;
use crate::ops::Stored;
use crate::tape::Destination;
use crate::tensor::Tensor;

const THREADS: u32 = 256;
/// Images of a block.
const IMAGES: usize = 4;

/// Neighbouring elements of a thread: four where patches' rows are whole pieces.
fn vector(sizes: Sizes, aligned: bool) -> usize {
    if aligned && (sizes.patch * sizes.channels).is_multiple_of(4) { 4 } else { 1 }
}

/// For results of `len` elements an image.
fn config(sizes: Sizes, len: usize, vector: usize) -> LaunchConfig {
    LaunchConfig::grid([sizes.batch.div_ceil(IMAGES), (len / vector).div_ceil(THREADS as usize)], THREADS)
}

pub(super) fn to_tokens<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    image: &Tensor,
    tokens: &Destination,
) -> Result<()> {
    if tokens.is_empty() {
        return Ok(());
    }
    let vector = vector(sizes, image.is_aligned() && tokens.is_aligned());
    PatchifyToTokens::<T> {
        tokens: tokens.slice_mut(),
        image: image.slice(),
        batch: sizes.batch as u32,
        height: sizes.height as u32,
        width: sizes.width as u32,
        channels: sizes.channels as u32,
        patch: sizes.patch as u32,
        skip: sizes.skip as u32,
        vector: vector as u32,
        accumulate: tokens.mode.flag(),
    }
    .launch(accelerator, config(sizes, sizes.length() * sizes.vector(), vector))
}

pub(super) fn to_image<T: Stored>(
    accelerator: &dyn Accelerator,
    sizes: Sizes,
    tokens: &Tensor,
    image: &Destination,
) -> Result<()> {
    if image.is_empty() {
        return Ok(());
    }
    let vector = vector(sizes, image.is_aligned() && tokens.is_aligned());
    PatchifyToImage::<T> {
        image: image.slice_mut(),
        tokens: tokens.slice(),
        batch: sizes.batch as u32,
        height: sizes.height as u32,
        width: sizes.width as u32,
        channels: sizes.channels as u32,
        patch: sizes.patch as u32,
        skip: sizes.skip as u32,
        vector: vector as u32,
        accumulate: image.mode.flag(),
    }
    .launch(accelerator, config(sizes, sizes.image_len(), vector))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pixel_has_a_place_of_its_own() {
        let sizes = Sizes::new(1, [6, 4, 3], 2, 1).unwrap();
        let mut seen: Vec<usize> = (0..sizes.image_len()).map(|e| sizes.token_index(e)).collect();
        seen.sort_unstable();
        let first = sizes.vector();
        assert!(seen.into_iter().eq(first..first + sizes.image_len()));
    }
}
