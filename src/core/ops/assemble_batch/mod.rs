//! A training batch from a data set that lies on the device.
//!
//! Item b takes place p = (`control.cursor` + b) mod N of the epoch's order: image
//! [`permute`](crate::rng::permute)`(p, N, seed, control.epoch)` where the order is shuffled, else p. Pixels become
//! x_0 = pixel / 127.5 − 1. No gradient.
//!
//! What is drawn for an item comes from the counter of item `control.first_item` + b and step `control.step`. First it is shifted
//! where crops are on: pixel \[i, j\] is the image's \[i + dy, j + dx\], black (x_0 = −1) outside; dy and dx are
//! ⌊word · (2 · crop + 1) / 2³²⌋ − crop of the words 0 and 1 of purpose [`Crop`](crate::rng::Purpose::Crop): padding by `crop` zeros
//! on each side and cutting an image of the old size out. Then it is mirrored left to right where flips are on and its
//! uniform number (purpose [`Flip`](crate::rng::Purpose::Flip)) is below one half.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::control::{self, Control};
use crate::rng::Permutation;
use crate::tensor::{Backend, Context, Cost, DType, Tensor};

const OP: &str = "assemble_batch";

/// The order of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Shuffled anew in each epoch by this seed.
    Shuffled {
        /// The seed of the permutations.
        seed: u64,
    },
    /// As stored.
    Sequential,
}

impl Order {
    /// The image of each item of the batch that `control` names, of `count` images.
    pub fn places(self, control: &Control, count: u32) -> impl Fn(usize) -> usize + Sync {
        let cursor = u64::from(control.cursor);
        let permutation = match self {
            Self::Shuffled { seed } => Some(Permutation::new(count, seed, control.epoch)),
            Self::Sequential => None,
        };
        move |item| {
            let place = ((cursor + item as u64) % u64::from(count)) as u32;
            permutation.map_or(place, |permutation| permutation.apply(place)) as usize
        }
    }
}

/// How an item is changed at random; by default not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Augment {
    /// The seed of what is drawn.
    pub seed: u64,
    /// Whether every second item is mirrored left to right.
    pub flip: bool,
    /// The largest shift each way, in pixels; 0 shifts none.
    pub crop: u16,
}

/// `batch` items of `images` `[N, H, W, C]` (u8) with `labels` `[N]` (i32): x_0 `[batch, H, W, C]` (f32, in [-1, 1]) and
/// labels `[batch]` (i32). `control`: [`control::Control`]; places past the epoch's end wrap to its start. `augment`
/// says how they are changed at random.
///
/// # Errors
/// [`Error::Shape`] for operands of other shapes or dtypes, or without images.
pub fn assemble_batch(
    context: &Context,
    images: &Tensor,
    labels: &Tensor,
    control: &Tensor,
    batch: usize,
    order: Order,
    augment: Augment,
) -> Result<(Tensor, Tensor)> {
    control::check(OP, control)?;
    let &[count, height, width, channels] = images.sizes() else {
        return Err(Error::shape(OP, format!("images {}; they are [N, H, W, C]", images.shape())));
    };
    if images.dtype() != DType::U8 || labels.dtype() != DType::I32 || labels.sizes() != [count] {
        return Err(Error::shape(
            OP,
            format!("images {} {}, labels {} {}", images.shape(), images.dtype(), labels.shape(), labels.dtype()),
        ));
    }
    if images.is_empty() || batch == 0 || u32::try_from(count).is_err() {
        return Err(Error::shape(OP, format!("a batch of {batch} from images {}", images.shape())));
    }
    let call = Call { count, height, width, channels, order, augment };
    let x0 = context.empty([batch, height, width, channels], DType::F32)?;
    let batch_labels = context.empty([batch], DType::I32)?;
    context.charge(OP, Cost::memory(x0.len() + x0.bytes() + 2 * batch_labels.bytes() + control.bytes()));
    match context.backend() {
        Backend::Plan => context.note_module(OP),
        Backend::Cpu => cpu::forward(&call, images, labels, control, &x0, &batch_labels),
        Backend::Accelerator(accelerator) => {
            cuda::forward(accelerator, &call, images, labels, control, &x0, &batch_labels)?;
        }
    }
    Ok((x0, batch_labels))
}

/// Sizes and choices of a call.
struct Call {
    count: usize,
    height: usize,
    width: usize,
    channels: usize,
    order: Order,
    augment: Augment,
}

impl Call {
    fn elements(&self) -> usize {
        self.height * self.width * self.channels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_of_batches_takes_every_image_once_and_flips_half() -> Result<()> {
        let context = Context::cpu();
        let (count, width) = (60u8, 2);
        // Image i is the row [i, 255].
        let pixels: Vec<u8> = (0..count).flat_map(|i| [i, 255]).collect();
        let images = context.tensor(&pixels, [count as usize, 1, width, 1])?;
        let labels = context.tensor(&(0..count as i32).map(|i| 100 + i).collect::<Vec<_>>(), [count as usize])?;
        let control = Control::buffer(&context)?;
        let (mut seen, mut flipped) = (vec![0; count as usize], 0);
        for step in 0..6 {
            let words = Control { step, epoch: 3, cursor: 10 * step, first_item: 10 * step, ..Control::default() };
            control.upload(&words.words())?;
            let (order, flip) = (Order::Shuffled { seed: 5 }, Augment { seed: 9, flip: true, crop: 0 });
            let (x0, labels) = assemble_batch(&context, &images, &labels, &control, 10, order, flip)?;
            let (x0, labels) = (x0.download::<f32>()?, labels.download::<i32>()?);
            for (b, (pair, label)) in x0.chunks_exact(2).zip(labels).enumerate() {
                let index = label - 100;
                seen[index as usize] += 1;
                assert_eq!(index as u32, crate::rng::permute(10 * step + b as u32, 60, 5, 3));
                let value = index as f32 / 127.5 - 1.0;
                flipped += usize::from(pair[0] == 1.0);
                assert!(pair == [value, 1.0] || pair == [1.0, value], "{pair:?} of image {index}");
            }
        }
        assert!(seen.iter().all(|&times| times == 1), "{seen:?}");
        assert!((18..42).contains(&flipped), "{flipped} of 60 flipped");
        Ok(())
    }

    #[test]
    fn crops_are_every_cut_of_the_padded_image_and_then_mirrored() -> Result<()> {
        let context = Context::cpu();
        let (height, width) = (3i64, 4i64);
        // One image of different pixels, none black.
        let pixels: Vec<u8> = (1..=12).map(|i| 20 * i).collect();
        let images = context.tensor(&pixels, [1, 3, 4, 1])?;
        let labels = context.tensor(&[0i32], [1])?;
        let control = Control::buffer(&context)?;
        let augment = Augment { seed: 7, flip: true, crop: 2 };
        let batch = 1000;
        let (x0, _) = assemble_batch(&context, &images, &labels, &control, batch, Order::Sequential, augment)?;
        let cut = |dy: i64, dx: i64, mirrored: bool| -> Vec<f32> {
            let pixel = |i: i64, j: i64| {
                let (y, x) = (i + dy, dx + if mirrored { width - 1 - j } else { j });
                let inside = (0..height).contains(&y) && (0..width).contains(&x);
                let pixel = if inside { pixels[(y * width + x) as usize] } else { 0 };
                f32::from(pixel) / 127.5 - 1.0
            };
            (0..height).flat_map(|i| (0..width).map(move |j| (i, j))).map(|(i, j)| pixel(i, j)).collect()
        };
        let mut counts = std::collections::HashMap::new();
        for item in x0.download::<f32>()?.chunks_exact(12) {
            let shifts = (-2..=2).flat_map(|dy| (-2..=2).map(move |dx| (dy, dx)));
            let mut choices = shifts.flat_map(|(dy, dx)| [(dy, dx, false), (dy, dx, true)]);
            let found = choices.find(|&(dy, dx, mirrored)| cut(dy, dx, mirrored) == item);
            *counts.entry(found.expect("a cut of the padded image")).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 50, "{counts:?}");
        // 20 are expected of each, with a deviation of 4.4.
        assert!(counts.values().all(|count| (4..=42).contains(count)), "{counts:?}");
        Ok(())
    }

    #[test]
    fn a_batch_past_the_end_wraps() -> Result<()> {
        let context = Context::cpu();
        let images = context.tensor(&[0u8, 1, 2], [3, 1, 1, 1])?;
        let labels = context.tensor(&[0i32, 1, 2], [3])?;
        let control = Control::buffer(&context)?;
        control.upload(&Control { cursor: u32::MAX, ..Control::default() }.words())?;
        // 2³² − 1 is a multiple of 3.
        let (_, labels) =
            assemble_batch(&context, &images, &labels, &control, 7, Order::Sequential, Augment::default())?;
        assert_eq!(labels.download::<i32>()?, [0, 1, 2, 0, 1, 2, 0]);
        Ok(())
    }
}
