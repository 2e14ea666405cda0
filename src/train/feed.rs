//! Batches from a split of the data set, assembled on the device.

use std::cell::RefCell;
use std::rc::Rc;

use super::residency::Residency;
use crate::data::{Dataset, Split};
use crate::diffusion::Batch;
use crate::error::Result;
use crate::ops::assemble_batch::{Augment, Order, assemble_batch};
use crate::ops::control::Control;
use crate::ops::host::parallel::for_rows;
use crate::tensor::{Context, DType, Tensor, Uplink};

/// Bytes of a label on a device.
const LABEL: usize = size_of::<i32>();

/// The images of a split, and how batches are taken from them.
pub(super) struct Feed {
    /// Input of a step: `[N, H, W, C]` u8 and `[N]` i32, of the whole split or, if streamed, of one batch.
    images: Tensor,
    labels: Tensor,
    /// Images of the split.
    count: usize,
    take: Take,
    /// None when planning.
    source: Option<(Dataset, Split)>,
    /// The path of streamed batches.
    uplink: Option<Rc<RefCell<Uplink>>>,
}

/// The settings of a [`Feed`].
pub(super) struct Take {
    /// Images in a batch.
    pub size: usize,
    /// How a batch's images are chosen from the control buffer's epoch and cursor.
    pub order: Order,
    /// Random augmentation of images.
    pub augment: Augment,
}

/// Makes the feeds of a run, which share the upload path.
pub(super) struct Feeds<'a> {
    context: &'a Context,
    residency: Residency,
    shape: [usize; 3],
    uplink: Option<Rc<RefCell<Uplink>>>,
}

impl<'a> Feeds<'a> {
    /// For images of this height, width and channels, in batches of `size`.
    pub fn new(context: &'a Context, residency: Residency, shape: [usize; 3], size: usize) -> Result<Self> {
        let bytes = size * (LABEL + shape.iter().product::<usize>());
        let uplink = match residency {
            Residency::Streamed => Some(Rc::new(RefCell::new(Uplink::new(context, bytes)?))),
            Residency::Resident | Residency::InPlace => None,
        };
        Ok(Self { context, residency, shape, uplink })
    }

    /// The feed of a split of `dataset`; None if it has no images.
    pub fn of(&self, dataset: &Dataset, split: Split, take: Take) -> Result<Option<Feed>> {
        let (context, count, [height, width, channels]) = (self.context, dataset.split_len(split), self.shape);
        if count == 0 {
            return Ok(None);
        }
        let shape = [count, height, width, channels];
        let labels = || context.tensor(&dataset.split_labels_i32(split), [count]);
        let (images, labels) = match (self.residency, dataset.in_one_piece(split)) {
            (Residency::Streamed, _) => self.staged(take.size)?,
            (Residency::InPlace, Some(bytes)) => {
                // SAFETY: the data set, a clone of which the tensor keeps, neither moves nor changes its pixels.
                let images = unsafe { context.borrowed(bytes, Box::new(dataset.clone()), shape) }?;
                (images, labels()?)
            }
            _ => {
                let images = context.persistent(shape, DType::U8)?;
                let mut at = 0;
                for run in dataset.runs(dataset.split_indices(split)) {
                    images.part(at, [run.len()])?.upload(run)?;
                    at += run.len();
                }
                (images, labels()?)
            }
        };
        let source = Some((dataset.clone(), split));
        Ok(Some(Feed { images, labels, count, take, source, uplink: self.uplink.clone() }))
    }

    /// A feed for planning with `count` images; None for none.
    pub fn planned(&self, count: usize, take: Take) -> Result<Option<Feed>> {
        let [height, width, channels] = self.shape;
        let shape = [count, height, width, channels];
        let labels = || self.context.persistent([count], DType::I32);
        let (images, labels) = match self.residency {
            _ if count == 0 => return Ok(None),
            Residency::Streamed => self.staged(take.size)?,
            // SAFETY: in shape-only mode nothing is read.
            Residency::InPlace => (unsafe { self.context.borrowed(&[], Box::new(()), shape) }?, labels()?),
            Residency::Resident => (self.context.persistent(shape, DType::U8)?, labels()?),
        };
        Ok(Some(Feed { images, labels, count, take, source: None, uplink: self.uplink.clone() }))
    }

    /// The images and labels of one batch in the upload buffer: labels first, which need alignment to 4.
    fn staged(&self, size: usize) -> Result<(Tensor, Tensor)> {
        let Some(uplink) = &self.uplink else { unreachable!("made for streamed feeds") };
        let ([height, width, channels], uplink) = (self.shape, uplink.borrow());
        let labels = uplink.tensor().part(0, [LABEL * size])?.reinterpret(DType::I32, [size])?;
        Ok((uplink.tensor().part(LABEL * size, [size, height, width, channels])?, labels))
    }
}

impl Feed {
    /// The number of images.
    pub fn len(&self) -> usize {
        self.count
    }

    /// The data set; None when planning.
    pub fn dataset(&self) -> Option<&Dataset> {
        self.source.as_ref().map(|(dataset, _)| dataset)
    }

    /// Images in a batch.
    pub fn batch_size(&self) -> usize {
        self.take.size
    }

    /// Starts the upload of the batch that `control` selects, if batches are streamed; the step follows it.
    pub fn send(&self, control: &Control) -> Result<()> {
        let (Some(uplink), Some((dataset, split))) = (&self.uplink, &self.source) else { return Ok(()) };
        let (size, first) = (self.take.size, dataset.split_indices(*split).start);
        let place = self.take.order.places(control, self.count as u32);
        let index = |b: usize| first + place(b);
        uplink.borrow_mut().fill(|bytes| {
            let (labels, images) = bytes.split_at_mut(LABEL * size);
            for (b, label) in labels.chunks_exact_mut(LABEL).enumerate() {
                label.copy_from_slice(&i32::from(dataset.labels()[index(b)]).to_ne_bytes());
            }
            for_rows(images, dataset.image_bytes(), |b, image| image.copy_from_slice(dataset.image(index(b))));
            Ok(())
        })
    }

    /// The control words with which the device finds that batch: a streamed batch is the only one there.
    pub fn found_by(&self, control: Control) -> Control {
        if self.uplink.is_some() { Control { cursor: 0, ..control } } else { control }
    }

    /// The batch that `control` selects. A cursor at a multiple of the batch size, as in training, means the first batch when
    /// streaming.
    pub fn batch(&self, context: &Context, control: &Tensor) -> Result<Batch> {
        let Take { size, order, augment } = self.take;
        let order = if self.uplink.is_some() { Order::Sequential } else { order };
        let (images, labels) = assemble_batch(context, &self.images, &self.labels, control, size, order, augment)?;
        Ok(Batch { images, labels })
    }

    /// `count` images, or all if there are fewer, spread over the split: pixels `[N, H, W, C]`, and labels.
    pub fn spread(&self, count: usize) -> Result<(Vec<u8>, Vec<i32>)> {
        let Some((dataset, split)) = &self.source else { return Ok(Default::default()) };
        let (all, count, first) = (self.count, count.min(self.count), dataset.split_indices(*split).start);
        let places = || (0..count).map(|number| first + number * all / count);
        let labels = places().map(|place| i32::from(dataset.labels()[place])).collect();
        Ok((places().flat_map(|place| dataset.image(place)).copied().collect(), labels))
    }
}
