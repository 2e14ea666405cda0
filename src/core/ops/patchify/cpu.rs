//! Patches and back on the CPU.

use super::Sizes;
use crate::ops::host::{Float, parallel};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

pub(super) fn to_tokens<T: Float>(sizes: Sizes, image: &Tensor, tokens: &Destination) {
    let (image, mode) = (image.host::<T>(), tokens.mode);
    parallel::for_rows(tokens.host_mut::<T>(), sizes.length() * sizes.vector(), |b, tokens| {
        if mode == Accumulate::Write {
            tokens[..sizes.skip * sizes.vector()].fill(T::ZERO);
        }
        for (e, &pixel) in image[b * sizes.image_len()..][..sizes.image_len()].iter().enumerate() {
            let token = &mut tokens[sizes.token_index(e)];
            *token = if mode == Accumulate::Add { *token + pixel } else { pixel };
        }
    });
}

pub(super) fn to_image<T: Float>(sizes: Sizes, tokens: &Tensor, image: &Destination) {
    let (tokens, mode) = (tokens.host::<T>(), image.mode);
    parallel::for_rows(image.host_mut::<T>(), sizes.image_len(), |b, image| {
        let tokens = &tokens[b * sizes.length() * sizes.vector()..][..sizes.length() * sizes.vector()];
        for (e, pixel) in image.iter_mut().enumerate() {
            let token = tokens[sizes.token_index(e)];
            *pixel = if mode == Accumulate::Add { *pixel + token } else { token };
        }
    });
}
