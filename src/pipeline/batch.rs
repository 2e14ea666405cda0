//! Batches in which images of many requests share denoising steps.

use std::rc::Rc;

use super::Model;
use super::draw::Start;
use crate::diffusion::{Beginning, Binding, Buffers, Going, Plan, Rows};
use crate::error::{Error, Result};
use crate::tensor::{Device, Program};
use crate::words::counted;

/// An image that is ready to be drawn.
pub struct Joining {
    pub(super) plan: Rc<Plan>,
    /// Its index in its request, for [`Start::From`].
    pub(super) place: usize,
    pub(super) label: usize,
    /// The label that guidance contrasts with, if the plan is guided.
    pub(super) null_label: Option<usize>,
    pub(super) seed: u64,
    pub(super) item: u32,
    pub(super) temperature: f32,
    pub(super) start: Start,
}

impl Joining {
    /// The rows that it takes in a batch: 2 under guidance.
    pub fn rows(&self) -> usize {
        1 + usize::from(self.null_label.is_some())
    }
}

/// Identifies an image in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// An image in progress.
struct Underway {
    ticket: Ticket,
    joined: Joining,
    row: usize,
    partner: Option<usize>,
    /// Its next operation.
    stage: usize,
    round: usize,
    /// Its initial noise, if part of it is known.
    noise: Vec<f32>,
    begun: bool,
}

impl Underway {
    /// How it is tied to given pixels.
    fn binding(&self) -> Option<Binding<'_>> {
        match &self.joined.start {
            Start::Around(known, rounds) => Some(Binding { known, rounds: *rounds }),
            Start::Noise | Start::From(_) => None,
        }
    }
}

/// A batch that images join and leave between steps. They only share the network's evaluations: whatever the samplers, steps,
/// guidance and seeds of the others, each image is bit for bit the one that [`Model::draw`] makes.
pub struct Batch {
    rows: Rows,
    images: Vec<Underway>,
    /// The planned numbers of rows, ascending; the last is the capacity.
    sizes: Vec<usize>,
    /// Bytes of the arena, shared by all steps.
    arena: usize,
    tickets: u64,
}

impl Batch {
    /// A batch of at most `rows` rows: one image per row, or half as many under guidance.
    ///
    /// Allocates the memory for the largest step. On an accelerator there are few sizes (1, 2, 4, … and `rows`), each captured
    /// once: a graph is invalid as soon as the arena moves, which never happens.
    ///
    /// # Errors
    /// [`Error::Config`] for fewer than 2 rows; those of the device.
    pub fn new(model: &Model, rows: usize) -> Result<Self> {
        if rows < 2 {
            let message = format!("{}, but a guided image takes two", counted(rows, "row"));
            return Err(Error::config("rows", message, "give 2 or more"));
        }
        let buffers = Buffers { saved_state: true, saved: true, kept: true };
        let (network, parameters) = (model.network.clone(), model.parameters.clone());
        let sizes: Vec<usize> = match model.context().device() {
            // Each row costs time, a program nothing.
            Device::Cpu => (1..=rows).collect(),
            // One captured graph each: padding rows compute unused values.
            Device::Accelerator(_) => (0..).map(|k| 1 << k).take_while(|&size| size < rows).chain([rows]).collect(),
        };
        let planned = match model.context().device() {
            // The others are planned on demand; none is larger.
            Device::Cpu => std::slice::from_ref(&rows),
            Device::Accelerator(_) => &sizes[..],
        };
        let mut all = Rows::new(model.context(), network, parameters, rows, buffers)?;
        planned.iter().try_for_each(|&size| all.plan(size))?;
        all.prepare()?;
        let arena = planned.iter().filter_map(|&size| all.program(size)).map(Program::arena_bytes).max().unwrap_or(0);
        model.context().reserve_arena(arena)?;
        Ok(Self { rows: all, images: Vec::new(), sizes, arena, tickets: 0 })
    }

    /// Device bytes of a full batch, including the model's weights.
    pub fn memory(&self, model: &Model) -> usize {
        model.context().persistent_bytes() + self.arena
    }

    /// Number of rows.
    pub fn capacity(&self) -> usize {
        self.rows.capacity()
    }

    /// Number of free rows.
    pub fn room(&self) -> usize {
        self.rows.capacity() - self.used()
    }

    /// Number of images in progress.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether no image is in progress.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    fn used(&self) -> usize {
        self.images.iter().map(|image| image.joined.rows()).sum()
    }

    /// Adds an image, starting with the next step.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no room for it.
    pub fn join(&mut self, joined: Joining) -> Result<Ticket> {
        let mut taken = vec![false; self.rows.capacity()];
        for image in &self.images {
            taken[image.row] = true;
            image.partner.into_iter().for_each(|partner| taken[partner] = true);
        }
        let mut free = (0..taken.len()).filter(|row| !taken[*row]);
        let row = free.next();
        let partner = joined.null_label.map(|_| free.next());
        let (Some(row), None | Some(Some(_))) = (row, partner) else {
            return Err(Error::shape("batch", format!("no room among {} rows", taken.len())));
        };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let (partner, noise) = (partner.flatten(), Vec::new());
        self.images.push(Underway { ticket, joined, row, partner, stage: 0, round: 0, noise, begun: false });
        Ok(ticket)
    }

    /// Removes an unfinished image; its rows are free immediately.
    pub fn leave(&mut self, ticket: Ticket) {
        self.images.retain(|image| image.ticket != ticket);
    }

    /// Completed stages of an image; none if it is not in the batch.
    pub fn stages_done(&self, ticket: Ticket) -> Option<usize> {
        self.images.iter().find(|image| image.ticket == ticket).map(|image| image.stage)
    }

    /// An image's predicted x_0 in the last step: `[H, W, C]` in about [-1, 1], with its known pixels. None before its first step,
    /// and if it is not in the batch.
    ///
    /// # Errors
    /// Those of the device.
    pub fn preview(&self, ticket: Ticket) -> Result<Option<Vec<f32>>> {
        let Some(image) = self.images.iter().find(|image| image.ticket == ticket) else { return Ok(None) };
        let last = match (image.stage, image.round) {
            (0, 0) => return Ok(None),
            (stage, 0) => stage - 1,
            (stage, _) => stage,
        };
        let stage = &image.joined.plan.stages()[last];
        let Some(mut values) = self.rows.predicted(stage, image.row, 1, image.partner)? else { return Ok(None) };
        if let Some(binding) = image.binding() {
            binding.known.finish(&mut values);
        }
        Ok(Some(values))
    }

    /// Runs one evaluation of the network for all images in progress. Returns and removes the finished ones, each `[H, W, C]` in
    /// about [-1, 1].
    ///
    /// # Errors
    /// Those of the device: then no image of the batch is valid.
    pub fn step(&mut self) -> Result<Vec<(Ticket, Vec<f32>)>> {
        if self.images.is_empty() {
            return Ok(Vec::new());
        }
        self.close_ranks()?;
        self.begin()?;
        let used = self.used();
        let size = self.sizes.iter().copied().find(|size| *size >= used).unwrap_or(used);
        self.rows.plan(size)?;
        self.rows.prepare()?;
        let mut labels = vec![0; size];
        (0..size).for_each(|row| self.rows.idle(row));
        for image in &self.images {
            let Underway { joined, row, partner, stage, round, noise, .. } = image;
            labels[*row] = joined.label as i32;
            if let (Some(partner), Some(null)) = (partner, joined.null_label) {
                labels[*partner] = null as i32;
            }
            let stages = joined.plan.stages();
            if let Some(binding) = image.binding() {
                let mut x = self.rows.read(*row, 1)?;
                binding.bind(stages, (*stage, *round), (joined.seed, joined.item), noise, &mut x);
                self.put(image, &x)?;
            }
            let (step, seed, item) = (*stage as u32 + 1, joined.seed, joined.item);
            self.rows.set(*row, Going { stage: &stages[*stage], step, seed, item, partner: *partner });
        }
        self.rows.set_labels(&labels)?;
        self.rows.step(size)?;
        self.settle()
    }

    /// Moves rows from the end into freed rows, so that the first rows are the used ones.
    fn close_ranks(&mut self) -> Result<()> {
        let used = self.used();
        let mut taken = vec![false; self.rows.capacity()];
        for image in &self.images {
            taken[image.row] = true;
            image.partner.into_iter().for_each(|partner| taken[partner] = true);
        }
        let mut holes = (0..used).filter(|row| !taken[*row]);
        for image in &mut self.images {
            for place in std::iter::once(&mut image.row).chain(&mut image.partner).filter(|place| **place >= used) {
                let Some(hole) = holes.next() else { continue };
                self.rows.copy(*place, hole)?;
                *place = hole;
            }
        }
        Ok(())
    }

    /// Writes the initial states of new images.
    fn begin(&mut self) -> Result<()> {
        let beginning: Vec<Beginning> = self
            .images
            .iter()
            .filter(|image| !image.begun)
            .map(|Underway { row, partner, joined, .. }| {
                let Joining { seed, item, temperature: scale, .. } = *joined;
                Beginning { row: *row, partner: *partner, seed, item, scale }
            })
            .collect();
        if beginning.is_empty() {
            return Ok(());
        }
        self.rows.begin(&beginning)?;
        for number in 0..self.images.len() {
            let image = &self.images[number];
            if image.begun {
                continue;
            }
            match &image.joined.start {
                Start::Noise => {}
                Start::From(state) => {
                    let state = state(image.joined.place, &self.rows.read(image.row, 1)?);
                    self.put(image, &state)?;
                }
                Start::Around(..) => self.images[number].noise = self.rows.read(image.row, 1)?,
            }
            self.images[number].begun = true;
        }
        Ok(())
    }

    /// Replaces the state of an image.
    fn put(&self, image: &Underway, state: &[f32]) -> Result<()> {
        self.rows.write(image.row, state)?;
        image.partner.map_or(Ok(()), |partner| self.rows.write(partner, state))
    }

    /// Advances every image, and removes the finished ones.
    fn settle(&mut self) -> Result<Vec<(Ticket, Vec<f32>)>> {
        let mut finished = Vec::new();
        for image in &mut self.images {
            let stages = image.joined.plan.stages();
            image.round += 1;
            if image.round >= image.binding().map_or(1, |binding| binding.rounds_at(stages, image.stage)) {
                (image.stage, image.round) = (image.stage + 1, 0);
            }
            if image.stage == stages.len() {
                let mut values = self.rows.read(image.row, 1)?;
                if let Some(binding) = image.binding() {
                    binding.known.finish(&mut values);
                }
                finished.push((image.ticket, values));
            }
        }
        self.images.retain(|image| image.stage < image.joined.plan.stages().len());
        Ok(finished)
    }
}
