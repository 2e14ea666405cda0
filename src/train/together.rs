//! The records of a step's batches until they are combined, on one process or several.
//!
//! The M batches of a step are numbered; rank r of R computes M / R of them from r · M / R on. Each leaves its loss, the loss
//! terms, the items' losses and bins if noise levels adapt to them, and the running statistics as it alone would have updated
//! them. All ranks then get the records of all batches and process them in order, like a single process: so logged values and the
//! loss's state have the same bits as on one process. Only the order of the gradient sum depends on the number of ranks; with
//! `training.shards` it is one fixed tree.

use super::step::Step;
use crate::cluster::Collective;
use crate::error::{Error, Result};
use crate::ops::elementwise::{add, scale};
use crate::ops::pool::global_average_pool;
use crate::tape::{Tape, add_to};
use crate::tensor::{Context, DType, Device, Tensor};
use crate::words::counted;

/// 1 − the weight of a batch in the running statistics: the layers' momentum.
const KEPT: f32 = 0.9;

/// The batches of a step that one process computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// The index of the first one.
    pub first: usize,
    /// Their number.
    pub count: usize,
    /// The number over all processes.
    pub all: usize,
    /// Batches whose gradients are accumulated in sequence.
    pub in_a_row: usize,
}

impl Share {
    /// The process's rank.
    pub fn rank(&self) -> usize {
        self.first / self.count
    }

    /// The index of its last batch.
    pub fn last(&self) -> usize {
        self.first + self.count - 1
    }

    /// The share of a step of `all` batches in `shards`.
    ///
    /// # Errors
    /// [`Error::Config`] if the ranks cannot share them.
    pub fn new(rank: usize, ranks: usize, all: usize, shards: Option<usize>) -> Result<Self> {
        let (parts, key, what) = match shards {
            Some(shards) => (shards, "training.shards", "shards"),
            None => (all, "training.gradient_accumulation", "batches, as at the run's start,"),
        };
        if !parts.is_multiple_of(ranks) {
            let fitting: Vec<String> =
                (1..=parts.min(64)).filter(|n| parts.is_multiple_of(*n)).map(|n| n.to_string()).collect();
            let what = if parts == 1 { what.replacen("batches", "batch", 1) } else { what.to_string() };
            let message = format!("a step of {parts} {what} cannot be shared by {}", counted(ranks, "process"));
            let advice = match fitting.split_last() {
                Some((last, rest)) if !rest.is_empty() => format!("start {} or {last} processes", rest.join(", ")),
                _ => "start 1 process".to_string(),
            };
            return Err(Error::config(key, message, advice));
        }
        let count = all / ranks;
        Ok(Self { first: rank * count, count, all, in_a_row: shards.map_or(count, |shards| all / shards) })
    }
}

/// How ranks exchange the records and gradients of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Exchange {
    /// By the devices (NCCL); the host does not wait.
    Devices,
    /// Through the hosts, with the reason if there are devices.
    Hosts(String),
}

impl Exchange {
    /// Connects the devices of all ranks, if all can. All ranks decide the same.
    pub fn of(context: &Context, team: &dyn Collective) -> Result<Self> {
        let (rank, ranks) = (team.rank(), team.ranks());
        let Device::Accelerator(accelerator) = context.device() else { return Ok(Self::Hosts(String::new())) };
        if ranks == 1 || context.is_shape_only() {
            return Ok(Self::Hosts(String::new()));
        }
        let found = accelerator.communicator_id();
        let mut able = vec![0; ranks];
        team.gather(&[u8::from(found.is_ok())], &mut able)?;
        if let Some(unable) = able.iter().position(|able| *able == 0) {
            let why = match &found {
                Err(error) => error.to_string(),
                Ok(_) => format!("rank {unable} has no NCCL"),
            };
            return Ok(Self::Hosts(why));
        }
        let mut id = found?;
        let mut len = (id.len() as u64).to_le_bytes();
        team.broadcast(&mut len, 0)?;
        id.resize((u64::from_le_bytes(len) as usize).min(4096), 0);
        team.broadcast(&mut id, 0)?;
        accelerator.communicate(&id, rank, ranks)?;
        Ok(Self::Devices)
    }

    /// As text.
    pub fn describe(&self, team: &dyn Collective) -> String {
        match self {
            Self::Devices => "NCCL".into(),
            Self::Hosts(why) if why.is_empty() => team.name().into(),
            Self::Hosts(why) => format!("{} through the hosts' memory ({why})", team.name()),
        }
    }
}

/// The records of a step's batches. All of it persistent.
pub(super) struct Records {
    share: Share,
    /// `[M]`
    losses: Tensor,
    /// `[M, terms]`
    terms: Option<Tensor>,
    /// Losses `[M, B]` f32 and bins `[M, B]` i32 of the items.
    items: Option<(Tensor, Tensor)>,
    statistics: Option<Statistics>,
    /// Sums of 1, 2, 4, … shards that wait for an equal partner.
    sums: Vec<Tensor>,
    /// The gradients of all ranks, if the devices gather them to sum them in a tree.
    gathered: Vec<Tensor>,
}

/// Running statistics; each batch updates them from the values at the step's start.
struct Statistics {
    buffers: Vec<Tensor>,
    /// The values at the step's start, concatenated `[L]`.
    before: Tensor,
    /// The values after each batch `[M, L]`.
    after: Tensor,
}

impl Statistics {
    fn new(context: &Context, buffers: Vec<Tensor>, all: usize) -> Result<Option<Self>> {
        let len: usize = buffers.iter().map(Tensor::len).sum();
        if len == 0 {
            return Ok(None);
        }
        let (before, after) = (context.zeros([len], DType::F32)?, context.zeros([all, len], DType::F32)?);
        Ok(Some(Self { buffers, before, after }))
    }

    /// The buffers, each with its offset in `row`.
    fn each(&self, row: &Tensor, f: impl Fn(&Tensor, &Tensor) -> Result<()>) -> Result<()> {
        let mut at = 0;
        for buffer in &self.buffers {
            f(buffer, &row.part(at, buffer.shape())?)?;
            at += buffer.len();
        }
        Ok(())
    }

    fn row(&self, micro: usize) -> Result<Tensor> {
        let len = self.before.len();
        self.after.part(micro * len, [len])
    }

    /// Applies the batches' updates in turn. Alone, batch m with the statistics s would turn r into 0.9·r + 0.1·s. From the values
    /// r₀ at the step's start it produced a = 0.9·r₀ + 0.1·s. So the update is a + 0.9·(r − r₀), exactly r₀ for constant
    /// statistics.
    fn move_on(&self, context: &Context, all: usize) -> Result<()> {
        let tape = Tape::inference(context);
        let before = tape.constant(&self.before);
        let minus = scale(&tape, &before, -1.0)?;
        let mut running = before;
        for micro in 0..all {
            let moved = scale(&tape, &add(&tape, &running, &minus)?, KEPT)?;
            running = add(&tape, &tape.constant(&self.row(micro)?), &moved)?;
        }
        self.each(running.tensor(), |buffer, moved| buffer.copy_from(moved))
    }
}

impl Records {
    /// For steps whose batches have `batch` items and whose loss has `terms` terms; with items if `items`. `buffers` are the
    /// running statistics, and `gradients` the flat gradient if ranks share a step.
    pub fn new(
        context: &Context,
        share: Share,
        (batch, terms, items): (usize, usize, bool),
        buffers: Vec<Tensor>,
        gradients: &Tensor,
        gathering: usize,
    ) -> Result<Self> {
        let all = share.all;
        let rows = |width: usize, dtype| context.zeros([all, width], dtype);
        // Half the shards of this process wait for the other half, half of those for theirs.
        let shards = (share.count / share.in_a_row).max(1);
        let like = |_| context.zeros(gradients.shape(), gradients.dtype());
        let sums = (0..shards.ilog2()).map(like);
        // One tensor of them all, viewed rank by rank.
        let len = gradients.len();
        let all_ranks = (gathering > 0).then(|| context.zeros([gathering * len], gradients.dtype())).transpose()?;
        let part = |rank: usize| all_ranks.iter().map(move |all| all.part(rank * len, [len]));
        let gathered = all_ranks.iter().cloned().map(Ok).chain((0..gathering).flat_map(part));
        Ok(Self {
            share,
            losses: context.zeros([all], DType::F32)?,
            terms: (terms > 0).then(|| rows(terms, DType::F32)).transpose()?,
            items: items.then(|| Ok::<_, Error>((rows(batch, DType::F32)?, rows(batch, DType::I32)?))).transpose()?,
            statistics: Statistics::new(context, buffers, all)?,
            sums: sums.collect::<Result<_>>()?,
            gathered: gathered.collect::<Result<_>>()?,
        })
    }

    /// Saves the running statistics at the step's start.
    pub fn begin(&self) -> Result<()> {
        let Some(statistics) = &self.statistics else { return Ok(()) };
        statistics.each(&statistics.before, |buffer, kept| kept.copy_from(buffer))
    }

    /// Before a batch: restores the running statistics of the step's start.
    pub fn before_batch(&self) -> Result<()> {
        let Some(statistics) = &self.statistics else { return Ok(()) };
        statistics.each(&statistics.before, |buffer, kept| buffer.copy_from(kept))
    }

    /// After batch `micro`: saves its records.
    pub fn after_batch(&self, step: &Step, micro: usize) -> Result<()> {
        self.losses.part(micro, [1])?.copy_from(&step.loss)?;
        if let (Some(rows), Some(terms)) = (&self.terms, &step.terms) {
            rows.part(micro * terms.len(), terms.shape())?.copy_from(terms)?;
        }
        if let (Some((losses, bins)), Some((own_losses, own_bins))) = (&self.items, &step.items) {
            let at = micro * own_losses.len();
            losses.part(at, own_losses.shape())?.copy_from(own_losses)?;
            bins.part(at, own_bins.shape())?.copy_from(own_bins)?;
        }
        let Some(statistics) = &self.statistics else { return Ok(()) };
        statistics.each(&statistics.row(micro)?, |buffer, kept| kept.copy_from(buffer))
    }

    /// After a shard, the `number`-th of this process: adds the gradient to the waiting sums.
    pub fn after_shard(&self, gradients: &Tensor, number: usize) -> Result<()> {
        let waiting = number.trailing_ones() as usize;
        for sum in &self.sums[..waiting] {
            add_to(gradients, sum)?;
        }
        match self.sums.get(waiting) {
            Some(sum) if (number + 1) * self.share.in_a_row < self.share.count => sum.copy_from(gradients),
            _ => Ok(()),
        }
    }

    /// Sums the gradients of all ranks in a tree, gathered by the devices; the host only submits it.
    pub fn add_up_on_devices(&self, gradients: &Tensor) -> Result<()> {
        let Some((all, parts)) = self.gathered.split_first() else { return Ok(()) };
        let (rank, ranks) = (self.share.rank(), parts.len());
        parts[rank].copy_from(gradients)?;
        all.all_gather(rank, ranks)?;
        gradients.context().join()?;
        let mut distance = 1;
        while distance < ranks {
            for first in (0..ranks - distance).step_by(2 * distance) {
                add_to(&parts[first], &parts[first + distance])?;
            }
            distance *= 2;
        }
        gradients.copy_from(&parts[0])
    }

    /// Gathers the records of all ranks with the devices.
    pub fn gather_on_devices(&self) -> Result<()> {
        let (rank, ranks) = (self.share.rank(), self.share.all / self.share.count);
        self.rows().try_for_each(|row| row.all_gather(rank, ranks))
    }

    /// Exchanges the gradient and the records of all ranks through the hosts.
    pub fn exchange(&self, team: &dyn Collective, gradients: &Tensor) -> Result<()> {
        if team.ranks() == 1 {
            return Ok(());
        }
        gradients.change::<f32>(|values| team.all_reduce(values))?;
        let rows: Vec<&Tensor> = self.rows().collect();
        let (first, count, all) = (self.share.first, self.share.count, self.share.all);
        let mut own = Vec::new();
        for row in &rows {
            let width = row.len() / all;
            let part = row.part(first * width, [count * width])?;
            match row.dtype() {
                DType::I32 => own.extend_from_slice(bytemuck::cast_slice(&part.download::<i32>()?)),
                _ => own.extend_from_slice(bytemuck::cast_slice(&part.download::<f32>()?)),
            }
        }
        let mut bytes = vec![0; own.len() * team.ranks()];
        team.gather(&own, &mut bytes)?;
        let mut at = 0;
        for row in rows {
            let len = 4 * count * row.len() / all;
            let parts = bytes.chunks(own.len()).flat_map(|rank| rank[at..at + len].as_chunks::<4>().0);
            match row.dtype() {
                DType::I32 => row.upload(&parts.map(|word| i32::from_ne_bytes(*word)).collect::<Vec<_>>())?,
                _ => row.upload(&parts.map(|word| f32::from_ne_bytes(*word)).collect::<Vec<_>>())?,
            }
            at += len;
        }
        Ok(())
    }

    fn rows(&self) -> impl Iterator<Item = &Tensor> {
        let items = self.items.iter().flat_map(|(losses, bins)| [losses, bins]);
        let statistics = self.statistics.iter().map(|statistics| &statistics.after);
        std::iter::once(&self.losses).chain(&self.terms).chain(items).chain(statistics)
    }

    /// Restores the records of batch `micro`.
    pub fn recall(&self, step: &Step, micro: usize) -> Result<()> {
        step.loss.copy_from(&self.losses.part(micro, [1])?)?;
        match (&self.terms, &step.terms) {
            (Some(rows), Some(terms)) => terms.copy_from(&rows.part(micro * terms.len(), terms.shape())?),
            _ => Ok(()),
        }
    }

    /// Updates the state of the loss and the running statistics after the step.
    pub fn finish(&self, step: &Step) -> Result<()> {
        let (context, all) = (&step.context, self.share.all);
        if let Some(statistics) = &self.statistics {
            statistics.move_on(context, all)?;
        }
        if !step.criterion.learns().any {
            return Ok(());
        }
        let tape = Tape::inference(context);
        let mean = |rows: &Tensor| -> Result<Tensor> {
            let width = rows.len() / all;
            let mean = global_average_pool(&tape, &tape.constant(&rows.part(0, [1, all, 1, width])?))?;
            mean.tensor().part(0, [width])
        };
        let terms = self.terms.as_ref().map(mean).transpose()?;
        let flat = |(losses, bins): &(Tensor, Tensor)| -> Result<_> {
            Ok((losses.part(0, [losses.len()])?, bins.part(0, [bins.len()])?))
        };
        let items = self.items.as_ref().map(flat).transpose()?;
        step.criterion.learn(context, terms.as_ref(), items.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_do_whole_shares_in_order() {
        let share = |rank, ranks, all, shards| Share::new(rank, ranks, all, shards).unwrap();
        assert_eq!(share(1, 2, 6, None), Share { first: 3, count: 3, all: 6, in_a_row: 3 });
        assert_eq!(share(3, 4, 16, Some(8)), Share { first: 12, count: 4, all: 16, in_a_row: 2 });
        assert_eq!(share(0, 1, 8, Some(8)), Share { first: 0, count: 8, all: 8, in_a_row: 1 });
        let refused = Share::new(0, 4, 6, None).unwrap_err().to_string();
        assert!(
            refused.contains("a step of 6 batches") && refused.ends_with("start 1, 2, 3 or 6 processes"),
            "{refused}"
        );
        let refused = Share::new(0, 8, 2, None).unwrap_err().to_string();
        assert!(refused.ends_with("cannot be shared by 8 processes; start 1 or 2 processes"), "{refused}");
        let refused = Share::new(0, 8, 1, None).unwrap_err().to_string();
        assert!(refused.contains("a step of 1 batch, as") && refused.ends_with("start 1 process"), "{refused}");
        assert!(Share::new(0, 3, 8, Some(8)).unwrap_err().to_string().contains("training.shards"));
    }

    #[test]
    fn shards_are_added_up_in_one_tree() -> Result<()> {
        let context = Context::cpu();
        let values: Vec<f32> = [1.0, 1e-8, 3e-8, 1e8, -1e8, 5e-8, 7.0, 0.1].to_vec();
        let tree = |v: &[f32]| ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
        let gradients = context.zeros([1], DType::F32)?;
        let records = Records::new(&context, Share::new(0, 1, 8, Some(8))?, (1, 0, false), Vec::new(), &gradients, 0)?;
        for (number, value) in values.iter().enumerate() {
            gradients.upload(&[*value])?;
            records.after_shard(&gradients, number)?;
        }
        assert_eq!(gradients.download::<f32>()?[0].to_bits(), tree(&values).to_bits());
        Ok(())
    }
}
