//! Batches of a split of the data set, assembled on the device.

use crate::data::{Dataset, Split};
use crate::diffusion::Batch;
use crate::error::Result;
use crate::ops::gather::{Augment, Order, gather};
use crate::tensor::{Context, DType, Tensor};

/// The images of a split, on the device, and how batches are taken from them.
pub(super) struct Feed {
    /// `[N, H, W, C]` u8.
    images: Tensor,
    /// `[N]` i32.
    labels: Tensor,
    size: usize,
    order: Order,
    augment: Augment,
}

/// How a [`Feed`] takes its batches.
pub(super) struct Take {
    /// Images in a batch.
    pub size: usize,
    /// Which images a batch takes, from the control buffer's epoch and cursor on.
    pub order: Order,
    /// How images are changed at random.
    pub augment: Augment,
}

impl Feed {
    /// Puts a split on the device.
    pub fn new(context: &Context, dataset: &Dataset, split: Split, take: Take) -> Result<Self> {
        let count = dataset.split_len(split);
        let shape = [count, dataset.height(), dataset.width(), dataset.channels()];
        let images = context.tensor(dataset.split_images(split), shape)?;
        let labels = context.tensor(&dataset.split_labels_i32(split), [count])?;
        Ok(Self::of(images, labels, take))
    }

    /// Room for `count` images of this height, width and channels, to plan with.
    pub fn planned(context: &Context, count: usize, [height, width, channels]: [usize; 3], take: Take) -> Result<Self> {
        let images = context.persistent([count, height, width, channels], DType::U8)?;
        Ok(Self::of(images, context.persistent([count], DType::I32)?, take))
    }

    fn of(images: Tensor, labels: Tensor, Take { size, order, augment }: Take) -> Self {
        Self { images, labels, size, order, augment }
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Images in a batch.
    pub fn batch_size(&self) -> usize {
        self.size
    }

    /// The batch that `control` names.
    pub fn batch(&self, context: &Context, control: &Tensor) -> Result<Batch> {
        let (images, labels) =
            gather(context, &self.images, &self.labels, control, self.size, self.order, self.augment)?;
        Ok(Batch { images, labels })
    }

    /// `count` images, or all where there are not as many, spread over the split: pixels `[N, H, W, C]`, and labels.
    pub fn spread(&self, count: usize) -> Result<(Vec<u8>, Vec<i32>)> {
        let (all, count) = (self.len(), count.min(self.len()));
        let [_, h, w, c] = *self.images.sizes() else { unreachable!("images have four dimensions") };
        let labels = self.labels.download::<i32>()?;
        let places = || (0..count).map(|number| number * all / count);
        let image = |place: usize| self.images.part(place * h * w * c, [h, w, c])?.download::<u8>();
        let images = places().map(image).collect::<Result<Vec<_>>>()?.concat();
        Ok((images, places().map(|place| labels[place]).collect()))
    }
}
