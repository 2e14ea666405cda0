//! Commands that rank 0 sends to the other processes, and their execution.

use super::Trainer;
use super::observers::evaluation_network;
use super::pictures;
use crate::cluster::Moving;
use crate::diffusion::Sampler;
use crate::error::{Error, Result};
use crate::eval::Extractor;
use crate::eval::helpers::{gathered, share};

/// Commands of rank 0. Feature extraction commands use other numbers.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Command {
    Step = 1,
    Validate = 2,
    End = 3,
    Draw = 4,
    Sample = 5,
}

/// Samples drawn jointly by all processes, each its share: image k does not depend on which process draws it.
pub(super) struct Sampling {
    sampler: Sampler,
    count: usize,
}

impl Sampling {
    /// From the current averaged weights, `count` images of the run's seed, the classes in turn.
    pub fn new(trainer: &Trainer, count: usize) -> Result<Self> {
        let config = trainer.config();
        // As for the sample sheets: a batch size that certainly fits.
        let batch = count.min(config.training.batch_size.div_ceil(2).max(1));
        let sampler = trainer.sampler(&config.sampling, batch, config.training.seed)?;
        Ok(Self { sampler, count })
    }

    /// Images drawn at once by all processes.
    pub fn batch(&self, trainer: &Trainer) -> usize {
        self.sampler.batch() * trainer.team().ranks()
    }

    /// The values of `count` images from `first` on; this process draws its share, and rank 0 sends commands to the others.
    pub fn round(&mut self, trainer: &Trainer, first: usize, count: usize) -> Result<Vec<f32>> {
        let words = [first, count, self.count].map(|word| (word as u64).to_le_bytes()).concat();
        trainer.tell_with(Command::Sample, &words)?;
        self.own_part(trainer, first, count)
    }

    fn own_part(&mut self, trainer: &Trainer, first: usize, count: usize) -> Result<Vec<f32>> {
        let (team, classes) = (trainer.team(), trainer.config().model.num_classes().max(1));
        let own = share(count, team.rank(), team.ranks());
        let labels: Vec<i32> = own.clone().map(|k| ((first + k) % classes) as i32).collect();
        let values = match labels.is_empty() {
            true => Vec::new(),
            false => self.sampler.run((first + own.start) as u32, &labels, |_, _| {
                team.go_on(Moving::Alone);
                Ok(())
            })?,
        };
        gathered(team.as_ref(), values, count, trainer.config().model.image_shape().iter().product())
    }
}

/// State that a follower keeps between commands of one evaluation, and then frees for training.
#[derive(Default)]
struct Evaluation {
    sampling: Option<Sampling>,
    extractor: Option<Extractor>,
}

impl Evaluation {
    /// Executes a command of rank 0; false if it is of another kind.
    fn follow(&mut self, trainer: &Trainer, order: &[u8]) -> Result<bool> {
        if Extractor::is_asked_of(order).is_some() {
            let known = self.extractor.take().map_or_else(|| evaluation_network(trainer), Ok)?;
            self.extractor.insert(known).assist(trainer.team().as_ref(), order)?;
            return Ok(true);
        }
        let Some(words) = order.strip_prefix(&[Command::Sample as u8]) else { return Ok(false) };
        let (words, _) = words.as_chunks::<8>();
        let [first, count, all] = words else { return Ok(false) };
        let [first, count, all] = [first, count, all].map(|word| u64::from_le_bytes(*word) as usize);
        let known = self.sampling.take().map_or_else(|| Sampling::new(trainer, all), Ok)?;
        self.sampling.insert(known).own_part(trainer, first, count)?;
        Ok(true)
    }
}

impl Trainer {
    /// Sends a command to the followers.
    pub(super) fn tell(&self, command: Command) -> Result<()> {
        self.tell_with(command, &[])
    }

    fn tell_with(&self, command: Command, more: &[u8]) -> Result<()> {
        match (self.team().rank(), self.team().ranks()) {
            (0, 2..) => self.team().tell(&[&[command as u8][..], more].concat()),
            _ => Ok(()),
        }
    }

    /// Follows rank 0's trainer until [`Trainer::dismiss`].
    ///
    /// # Errors
    /// Those of a step, and [`Error::Cluster`] if rank 0 is gone or failed.
    pub fn follow(&mut self) -> Result<()> {
        let mut evaluation = Evaluation::default();
        loop {
            let order = self.team().listen()?;
            if evaluation.follow(self, &order)? {
                continue;
            }
            evaluation = Evaluation::default();
            match order.as_slice() {
                [command] if *command == Command::Step as u8 => {
                    // Only rank 0 reads them.
                    self.pass_over_metrics();
                    self.train_step()?;
                }
                [command] if *command == Command::Validate as u8 => {
                    self.validate()?;
                }
                [command, count @ ..] if *command == Command::Draw as u8 => {
                    let classes = count.first_chunk().map_or(0, |count| u32::from_le_bytes(*count));
                    // Rank 0 uses the result.
                    let _ = pictures::draw(self, classes as usize, &mut || true)?;
                }
                [command] if *command == Command::End as u8 => return Ok(()),
                other => return Err(Error::shape("trainer", format!("an unknown command of {} bytes", other.len()))),
            }
        }
    }

    /// Lets the followers draw their share of samples of this many classes.
    pub(super) fn tell_to_draw(&self, classes: usize) -> Result<()> {
        self.tell_with(Command::Draw, &(classes as u32).to_le_bytes())
    }

    /// Dismisses the followers.
    ///
    /// # Errors
    /// [`Error::Cluster`] if one of them is gone.
    pub fn dismiss(&self) -> Result<()> {
        self.tell(Command::End)
    }
}
