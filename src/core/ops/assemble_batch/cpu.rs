//! Batches on the CPU: items in parallel.

use super::Call;
use crate::ops::control::Control;
use crate::ops::host::{parallel, vector};
use crate::rng::{Philox, Purpose};
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
    let index = call.order.places(&control, call.count as u32);
    let labels = labels.host::<i32>();
    for (b, label) in batch_labels.host_mut::<i32>().iter_mut().enumerate() {
        *label = labels[index(b)];
    }
    let (images, elements) = (images.host::<u8>(), call.elements());
    let (augment, random) = (call.augment, Philox::new(call.augment.seed));
    let crop = augment.crop as isize;
    parallel::for_rows(x0.host_mut::<f32>(), elements, |b, x0| {
        let image = &images[index(b) * elements..][..elements];
        let item = control.first_item.wrapping_add(b as u32);
        let mirrored = augment.flip && random.uniform4(0, item, control.step, Purpose::Flip)[0] < 0.5;
        let [dy, dx] = if crop > 0 {
            let [y, x, ..] = random.bits4(0, item, control.step, Purpose::Crop);
            [y, x].map(|word| ((u64::from(word) * (2 * crop as u64 + 1)) >> 32) as isize - crop)
        } else {
            [0, 0]
        };
        if !mirrored && dy == 0 && dx == 0 {
            vector::dispatch(
                #[inline(always)]
                || x0.iter_mut().zip(image).for_each(|(x, &pixel)| *x = centred(pixel)),
            );
            return;
        }
        // Columns of the cut that lie in the image, before it is mirrored; none where it is shifted by its width or more.
        let (width, channels) = (call.width, call.channels);
        let begin = dx.min(0).unsigned_abs().min(width);
        let end = width.saturating_sub(dx.max(0).unsigned_abs()).max(begin);
        let within = if mirrored { width - end..width - begin } else { begin..end };
        for (y, x0) in x0.chunks_exact_mut(width * channels).enumerate() {
            let from = y.checked_add_signed(dy).filter(|&y| y < call.height && begin < end);
            let Some(from) = from else {
                x0.fill(centred(0));
                continue;
            };
            let first = from * width + begin.saturating_add_signed(dx);
            let image = &image[first * channels..][..within.len() * channels];
            x0[..within.start * channels].fill(centred(0));
            x0[within.end * channels..].fill(centred(0));
            let x0 = &mut x0[within.start * channels..within.end * channels];
            if mirrored {
                let pixels = x0.chunks_exact_mut(channels).zip(image.chunks_exact(channels).rev());
                pixels.for_each(|(x0, pixel)| x0.iter_mut().zip(pixel).for_each(|(x, &pixel)| *x = centred(pixel)));
            } else {
                x0.iter_mut().zip(image).for_each(|(x, &pixel)| *x = centred(pixel));
            }
        }
    });
}
