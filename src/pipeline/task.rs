//! A request as images that join a batch one by one.

use std::rc::Rc;

use super::batch::Joining;
use super::draw::Work;
use super::editing::Bridge;
use super::{Drawing, Ends, Model, SampleRequest};
use crate::diffusion::Plan;
use crate::error::Result;

/// A request in a [`Batch`](super::Batch): supplies its images and takes back the results.
///
/// ```
/// use engine::config::Config;
/// use engine::pipeline::{Batch, Drawing, Model, DrawingTask};
/// use engine::tensor::{Context, DType};
///
/// # let mut config = Config::preset("quickstart")?;
/// # for set in ["model.depth=1", "model.hidden_dim=32", "model.conditioning=token", "sampling.num_steps=2"] {
/// #     config.set(set)?;
/// # }
/// # let model = Model::untrained(&config, &Context::cpu(), DType::F32, 0)?;
/// let request = model.request([3, 7, 1]);
/// let mut task = DrawingTask::new(&model, Drawing::Sample, &request)?;
/// let mut batch = Batch::new(&model, 2)?;
/// while !task.is_done() {
///     while let Some(place) = task.next_place(batch.room()) {
///         task.joined(place, batch.join(task.joining(place))?);
///     }
///     for (ticket, image) in batch.step()? {
///         task.take(&model, ticket, image)?;
///     }
/// }
/// assert_eq!(task.into_images(), model.sample(&request)?);
/// # Ok::<(), engine::Error>(())
/// ```
pub struct DrawingTask {
    work: Work,
    plan: Rc<Plan>,
    labels: Vec<usize>,
    null_label: Option<usize>,
    /// The path between two images, until its ends are inverted.
    bridge: Option<(Bridge, bool)>,
    /// Images of this part already supplied, and those in progress.
    begun: usize,
    underway: Vec<(super::Ticket, usize)>,
    images: Vec<Option<Vec<f32>>>,
    /// Stages of the parts before this one, and in total.
    before: usize,
    total: usize,
}

impl DrawingTask {
    /// Checks a request and makes its plan.
    ///
    /// # Errors
    /// Those of [`Model::draw`].
    pub fn new(model: &Model, drawing: Drawing, request: &SampleRequest) -> Result<Self> {
        let work = match drawing {
            Drawing::Sample => model.work_of_noise(request)?,
            Drawing::Vary { image, strength } => match model.work_of_variations(image, strength, request)? {
                Some(work) => work,
                None => {
                    let mut task = Self::part(model.work_of_noise(request)?, request.labels.clone());
                    task.images.fill(Some(image.to_vec()));
                    (task.begun, task.total) = (task.images.len(), 0);
                    return Ok(task);
                }
            },
            Drawing::Inpaint(inpaint) => model.work_of_inpainting(inpaint, request)?,
            Drawing::Upscale { small, factor, rounds } => model.work_of_upscaling(small, factor, rounds, request)?,
            Drawing::Interpolate(Ends::Seeds(from, to)) => model.work_between(from, to, request)?,
            Drawing::Interpolate(Ends::Images(from, to)) => {
                let bridge = Bridge::new(model, [from, to], request)?;
                // The requirements of the frames are checked before any work.
                let frames = model.work_of_noise(&bridge.request)?.plan.stages().len() * request.labels.len();
                let mut task = Self::part(bridge.back(model)?, bridge.pair().labels.clone());
                task.total += frames;
                task.bridge = Some((bridge, true));
                return Ok(task);
            }
        };
        Ok(Self::part(work, request.labels.clone()))
    }

    fn part(work: Work, labels: Vec<usize>) -> Self {
        let plan = Rc::new(work.plan.clone());
        let null_label = work.spec.null_label.filter(|_| plan.is_guided());
        let total = plan.stages().len() * labels.len();
        let images = vec![None; labels.len()];
        Self { work, plan, labels, null_label, bridge: None, begun: 0, underway: Vec::new(), images, before: 0, total }
    }

    /// Rows per image.
    pub fn rows(&self) -> usize {
        1 + usize::from(self.null_label.is_some())
    }

    /// The index of the next image to join, if one is left and fits into `room` rows.
    pub fn next_place(&self, room: usize) -> Option<usize> {
        (self.begun < self.labels.len() && self.rows() <= room).then_some(self.begun)
    }

    /// The image at an index.
    pub fn joining(&self, place: usize) -> Joining {
        let spec = &self.work.spec;
        Joining {
            plan: self.plan.clone(),
            place,
            label: self.labels[place],
            null_label: self.null_label,
            seed: spec.seed,
            item: self.work.first.wrapping_add(place as u32),
            temperature: spec.sampling.temperature as f32,
            start: self.work.start.clone(),
        }
    }

    /// Records that an image has joined.
    pub fn joined(&mut self, place: usize, ticket: super::Ticket) {
        self.begun = place + 1;
        self.underway.push((ticket, place));
    }

    /// Its images in progress, with their indices; empty during the inversion for an interpolation between images.
    pub fn underway(&self) -> &[(super::Ticket, usize)] {
        &self.underway
    }

    /// Whether its images in progress are the request's.
    pub fn is_shown(&self) -> bool {
        !matches!(self.bridge, Some((_, true)))
    }

    /// Whether images that finish now are final results.
    pub fn is_final(&self) -> bool {
        self.bridge.is_none()
    }

    /// Takes a finished image; ignores one of another task. Returns whether it was one of this task.
    ///
    /// # Errors
    /// Those of the device.
    pub fn take(&mut self, model: &Model, ticket: super::Ticket, image: Vec<f32>) -> Result<bool> {
        let Some(at) = self.underway.iter().position(|(own, _)| *own == ticket) else { return Ok(false) };
        let (_, place) = self.underway.remove(at);
        self.images[place] = Some(image);
        if self.images.iter().any(Option::is_none) {
            return Ok(true);
        }
        match self.bridge.take() {
            Some((bridge, true)) => {
                let back: Vec<Vec<f32>> = self.images.drain(..).flatten().collect();
                let (before, total) = (self.plan.stages().len() * back.len(), self.total);
                *self = Self::part(bridge.frames(model, &back)?, bridge.request.labels.clone());
                (self.before, self.total, self.bridge) = (before, total, Some((bridge, false)));
            }
            Some((bridge, false)) => {
                let mut drawn: Vec<Vec<f32>> = self.images.drain(..).flatten().collect();
                bridge.finish(&mut drawn);
                self.images = drawn.into_iter().map(Some).collect();
            }
            None => {}
        }
        Ok(true)
    }

    /// Whether every image is finished.
    pub fn is_done(&self) -> bool {
        !matches!(self.bridge, Some((_, true))) && self.images.iter().all(Option::is_some)
    }

    /// Stages of all images, done and total; `of` returns the completed stages of an image in progress.
    pub fn progress(&self, of: impl Fn(super::Ticket) -> usize) -> (usize, usize) {
        let finished = self.images.iter().flatten().count() * self.plan.stages().len();
        let done = self.before + finished + self.underway.iter().map(|(ticket, _)| of(*ticket)).sum::<usize>();
        (done.min(self.total), self.total)
    }

    /// The finished image at an index.
    pub fn image(&self, place: usize) -> Option<&[f32]> {
        self.images.get(place)?.as_deref()
    }

    /// The finished images: `[H, W, C]` each, in about [-1, 1].
    pub fn into_images(self) -> Vec<Vec<f32>> {
        self.images.into_iter().flatten().collect()
    }
}
