//! Images of many requests that share denoising steps.

use std::rc::Rc;

use super::Model;
use super::draw::Start;
use crate::diffusion::{Beginning, Binding, Buffers, Going, Plan, Rows};
use crate::error::{Error, Result};
use crate::tensor::{Device, Program};

/// An image that wants to be drawn.
pub struct Joining {
    pub(super) plan: Rc<Plan>,
    /// Its place in its request, for [`Start::From`].
    pub(super) place: usize,
    pub(super) label: usize,
    /// The label that guidance contrasts with, where the plan is guided.
    pub(super) null_label: Option<usize>,
    pub(super) seed: u64,
    pub(super) item: u32,
    pub(super) temperature: f32,
    pub(super) start: Start,
}

impl Joining {
    /// Rows that it takes of a batch: 2 under guidance.
    pub fn rows(&self) -> usize {
        1 + usize::from(self.null_label.is_some())
    }
}

/// Names an image in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// An image under way.
struct Underway {
    ticket: Ticket,
    joined: Joining,
    row: usize,
    partner: Option<usize>,
    /// What is done next.
    stage: usize,
    round: usize,
    /// The noise that it starts from, where something is known of it.
    noise: Vec<f32>,
    begun: bool,
}

impl Underway {
    /// How it is bound to something given.
    fn binding(&self) -> Option<Binding<'_>> {
        match &self.joined.start {
            Start::Around(known, rounds) => Some(Binding { known, rounds: *rounds }),
            Start::Noise | Start::From(_) => None,
        }
    }
}

/// A batch that images join and leave between any two of its steps. They share the network's evaluations and nothing
/// else: whatever their samplers, steps, guidance and seeds, and whoever else is there, each is the same image, bit for
/// bit, as [`Model::draw`] makes.
pub struct Batch {
    rows: Rows,
    images: Vec<Underway>,
    /// Numbers of rows for which there is a step, ascending; the last is the capacity.
    sizes: Vec<usize>,
    /// Bytes of the arena, for whichever of the steps.
    arena: usize,
    tickets: u64,
}

impl Batch {
    /// A batch of at most `rows` rows: as many images, half as many under guidance.
    ///
    /// Memory for the largest step is taken here. On an accelerator the sizes are few (1, 2, 4, … and `rows`), and each
    /// is captured once: a graph is void as soon as the arena moves, and it never does.
    ///
    /// # Errors
    /// [`Error::Config`] for fewer than 2 rows; what the device reports.
    pub fn new(model: &Model, rows: usize) -> Result<Self> {
        if rows < 2 {
            let message = format!("{rows} rows, and a guided image takes two");
            return Err(Error::config("--max-batch", message, "give 2 or more"));
        }
        let buffers = Buffers { saved_state: true, saved: true, kept: true };
        let (network, parameters) = (model.network.clone(), model.parameters.clone());
        let sizes: Vec<usize> = match model.context().device() {
            // Each row costs, a program nothing.
            Device::Cpu => (1..=rows).collect(),
            // A captured graph each: rows beyond those that are wanted compute what nobody sees.
            Device::Accelerator(_) => (0..).map(|k| 1 << k).take_while(|&size| size < rows).chain([rows]).collect(),
        };
        let planned = match model.context().device() {
            // The others are planned when they are needed; none is larger.
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

    /// Bytes of the device's memory of a full batch, the model's weights among them.
    pub fn memory(&self, model: &Model) -> usize {
        model.context().persistent_bytes() + self.arena
    }

    /// Rows in all.
    pub fn capacity(&self) -> usize {
        self.rows.capacity()
    }

    /// Rows that are free.
    pub fn room(&self) -> usize {
        self.rows.capacity() - self.used()
    }

    /// Images under way.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether no image is under way.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    fn used(&self) -> usize {
        self.images.iter().map(|image| image.joined.rows()).sum()
    }

    /// Takes an image in, from the next step on.
    ///
    /// # Errors
    /// [`Error::Shape`] where there is no room for it.
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

    /// Lets an image go before it is finished; its rows are free at once.
    pub fn leave(&mut self, ticket: Ticket) {
        self.images.retain(|image| image.ticket != ticket);
    }

    /// Stages of an image that are done; none where it is not in the batch.
    pub fn stages_done(&self, ticket: Ticket) -> Option<usize> {
        self.images.iter().find(|image| image.ticket == ticket).map(|image| image.stage)
    }

    /// An image as the network took it to be in the last step, x_0: `[H, W, C]` in about [-1, 1], true to what is known
    /// of it. None before its first step, and where it is not in the batch.
    ///
    /// # Errors
    /// What the device reports.
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

    /// Does one evaluation of the network for all images under way. Returns those that are finished, `[H, W, C]` each
    /// in about [-1, 1]; they have left.
    ///
    /// # Errors
    /// What the device reports: then no image of the batch can be relied on.
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

    /// Fills the rows that were left with those at the end, so that the first rows are the used ones.
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

    /// Gives those that have joined the state that they start from.
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

    /// Puts a state in the place of an image's.
    fn put(&self, image: &Underway, state: &[f32]) -> Result<()> {
        self.rows.write(image.row, state)?;
        image.partner.map_or(Ok(()), |partner| self.rows.write(partner, state))
    }

    /// Moves every image on, and takes out those that are finished.
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
