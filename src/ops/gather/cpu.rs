//! Batches on the CPU: items in parallel.

use super::{Call, Order};
use crate::ops::control::Control;
use crate::ops::host::{parallel, vector};
use crate::rng::{Permutation, Philox, Purpose};
use crate::tensor::Tensor;

fn centred(pixel: u8) -> f32 {
    f32::from(pixel) / 127.5 - 1.0
}

pub(super) fn forward(
    call: &Call,
    images: &Tensor,
    labels: &Tensor,
    control: &Tensor,
    x0: &Tensor,
    batch_labels: &Tensor,
) {
    let control = Control::from_words(control.host());
    let count = call.count as u32;
    let permutation = match call.order {
        Order::Shuffled { seed } => Some(Permutation::new(count, seed, control.epoch)),
        Order::Sequential => None,
    };
    let index = |b: usize| {
        let place = ((u64::from(control.cursor) + b as u64) % u64::from(count)) as u32;
        permutation.map_or(place, |permutation| permutation.apply(place)) as usize
    };
    let labels = labels.host::<i32>();
    for (b, label) in batch_labels.host_mut::<i32>().iter_mut().enumerate() {
        *label = labels[index(b)];
    }
    let (images, elements) = (images.host::<u8>(), call.elements());
    parallel::for_rows(x0.host_mut::<f32>(), elements, |b, x0| {
        let image = &images[index(b) * elements..][..elements];
        let item = control.first_item.wrapping_add(b as u32);
        let mirrored =
            call.flip.is_some_and(|seed| Philox::new(seed).uniform4(0, item, control.step, Purpose::Flip)[0] < 0.5);
        if !mirrored {
            vector::dispatch(
                #[inline(always)]
                || x0.iter_mut().zip(image).for_each(|(x, &pixel)| *x = centred(pixel)),
            );
            return;
        }
        let row = call.width * call.channels;
        for (x0, image) in x0.chunks_exact_mut(row).zip(image.chunks_exact(row)) {
            let pixels = x0.chunks_exact_mut(call.channels).zip(image.chunks_exact(call.channels).rev());
            pixels.for_each(|(x0, pixel)| x0.iter_mut().zip(pixel).for_each(|(x, &pixel)| *x = centred(pixel)));
        }
    });
}
