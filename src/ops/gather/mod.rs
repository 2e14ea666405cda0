//! A training batch from a data set that lies on the device.
//!
//! Item b takes place p = (`control.cursor` + b) mod N of the epoch's order: image
//! [`permute`](crate::rng::permute)`(p, N, seed, control.epoch)` where the order is shuffled, else p. Pixels become
//! x_0 = pixel / 127.5 − 1; where flips are on, the item is mirrored left to right if its uniform number (purpose
//! [`Flip`](crate::rng::Purpose::Flip), item `control.first_item` + b, step `control.step`) is below one half. No gradient.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::control;
use crate::tensor::{Backend, Context, Cost, DType, Tensor};

const OP: &str = "gather";

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

/// `batch` items of `images` `[N, H, W, C]` (u8) with `labels` `[N]` (i32): x_0 `[batch, H, W, C]` (f32, in [-1, 1]) and
/// labels `[batch]` (i32). `control`: [`control::Control`]; places past the epoch's end wrap to its start. `flip`: the seed
/// of random mirroring, `None` for none.
///
/// # Errors
/// [`Error::Shape`] for operands of other shapes or dtypes, or without images.
pub fn gather(
    context: &Context,
    images: &Tensor,
    labels: &Tensor,
    control: &Tensor,
    batch: usize,
    order: Order,
    flip: Option<u64>,
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
    let call = Call { count, height, width, channels, order, flip };
    let x0 = context.empty([batch, height, width, channels], DType::F32)?;
    let batch_labels = context.empty([batch], DType::I32)?;
    context.charge(OP, Cost::memory(x0.len() + x0.bytes() + 2 * batch_labels.bytes() + control.bytes()));
    match context.backend() {
        Backend::Plan => {}
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
    flip: Option<u64>,
}

impl Call {
    fn elements(&self) -> usize {
        self.height * self.width * self.channels
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::control::Control;

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
            let order = Order::Shuffled { seed: 5 };
            let (x0, labels) = gather(&context, &images, &labels, &control, 10, order, Some(9))?;
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
    fn a_batch_past_the_end_wraps() -> Result<()> {
        let context = Context::cpu();
        let images = context.tensor(&[0u8, 1, 2], [3, 1, 1, 1])?;
        let labels = context.tensor(&[0i32, 1, 2], [3])?;
        let control = Control::buffer(&context)?;
        control.upload(&Control { cursor: u32::MAX, ..Control::default() }.words())?;
        // 2³² − 1 is a multiple of 3.
        let (_, labels) = gather(&context, &images, &labels, &control, 7, Order::Sequential, None)?;
        assert_eq!(labels.download::<i32>()?, [0, 1, 2, 0, 1, 2, 0]);
        Ok(())
    }
}
