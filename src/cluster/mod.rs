//! Several processes that train one model: rendezvous, agreement, exchange, and failure detection.
//!
//! [`placement`] reads the launcher's variables, [`start`] starts the ranks of one machine, [`join`] connects to the others: rank
//! 0 listens, the others introduce themselves, and rank 0 tells all whether they match. Then each rank keeps a connection to rank
//! 0, on which both sides report progress every second, and one to each other rank for exchanges.
//!
//! A [`Collective`] is the interface to training: a single process ([`Alone`]) or several over TCP. Everything is plain text, and
//! anyone who knows the job's number is trusted: use it in trusted networks only, as with torchrun and MPI.

mod frame;
mod launcher;
mod local;
mod mesh;
#[cfg(feature = "mpi")]
mod mpi;
mod pulse;
mod rendezvous;
mod tcp;
mod watch;

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::error::Result;

pub use launcher::{MOST_RANKS, Placement, placement};
pub use local::{LocalRanks, here, start};
#[cfg(feature = "mpi")]
pub use mpi::join_by_mpi;
pub use rendezvous::listen;
pub use tcp::join;

/// Timeouts of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the rendezvous.
    pub rendezvous: Duration,
    /// A rank that is silent for this long hangs, or its machine or network does.
    pub silence: Duration,
    /// A rank that is alive but makes no progress while all others wait for it hangs after this time, or after four times the
    /// longest recent pause of any rank. This counts from the third batch of a training on, after kernels are loaded.
    pub standstill: Duration,
    /// A process that has been told that the job failed, and has not ended after this time, is killed.
    pub grace: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rendezvous: Duration::from_secs(30),
            silence: Duration::from_secs(15),
            standstill: Duration::from_secs(25),
            grace: None,
        }
    }
}

/// A kind of progress of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moving {
    /// It starts a joint operation of all ranks.
    Together,
    /// It starts its own work: a batch, a stage of a sampler.
    Alone,
}

/// Joint operations of several ranks. All of them call the same methods in the same order, with arguments of the same lengths; a
/// call returns when this rank's part is done.
///
/// # Errors
/// All methods: [`Error::Cluster`](crate::Error::Cluster) with the rank that is gone, hangs or failed; all ranks get the same
/// error.
pub trait Collective: Debug + Send + Sync {
    /// This process's rank.
    fn rank(&self) -> usize;

    /// The number of processes.
    fn ranks(&self) -> usize;

    /// The transport's name: `TCP`.
    fn name(&self) -> &'static str;

    /// Replaces `values` on every rank by the sum over the ranks: of ranks 0 and 1, 2 and 3, …, then of these sums in pairs, and
    /// so on. The bits depend only on the values and the number of ranks, and are the same on all.
    fn all_reduce(&self, values: &mut [f32]) -> Result<()>;

    /// Copies the bytes of `root` to all others.
    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<()>;

    /// Gathers each rank's `own` into `all`, in the order of the ranks: `all` is as many times as long.
    fn gather(&self, own: &[u8], all: &mut [u8]) -> Result<()>;

    /// A barrier.
    fn barrier(&self) -> Result<()>;

    /// Rank 0 sends a command to the others, without waiting.
    fn tell(&self, command: &[u8]) -> Result<()>;

    /// Receives the next command of rank 0; for the others.
    fn listen(&self) -> Result<Vec<u8>>;

    /// Reports progress: an exchange outside this interface starts, or this rank's own work.
    fn go_on(&self, _: Moving) {}

    /// Set if any rank was asked to stop; for rank 0, which decides when.
    fn stop(&self) -> Arc<AtomicBool>;

    /// Tells rank 0 that this rank was asked to stop.
    fn ask_to_stop(&self);

    /// Ends the job: `error` ends all others with it, None is a normal end.
    fn leave(&self, error: Option<&str>);
}

/// A single process.
#[derive(Debug, Default)]
pub struct Alone {
    stop: Arc<AtomicBool>,
}

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn name(&self) -> &'static str {
        "one process"
    }

    fn all_reduce(&self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn broadcast(&self, _: &mut [u8], _: usize) -> Result<()> {
        Ok(())
    }

    fn gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        all.copy_from_slice(own);
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn tell(&self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn listen(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn stop(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    fn ask_to_stop(&self) {}

    fn leave(&self, _: Option<&str>) {}
}

/// A setting that all ranks must share, as text of a few kilobytes: `configuration`, `data`, `version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its name.
    pub name: &'static str,
    /// Its value, with a line for each part.
    pub value: String,
}

/// Most bytes of all facts of a rank.
const MOST_FACTS: usize = 1 << 18;

/// Compares the facts of all ranks. All ranks give the same facts in the same order.
///
/// # Errors
/// [`Error::Cluster`](crate::Error::Cluster), the same on all ranks, with the ranks that differ from rank 0 and how.
pub fn agree(team: &dyn Collective, facts: &[Fact]) -> Result<()> {
    let text = facts.iter().map(|fact| format!("{}\u{1f}{}", fact.name, fact.value)).collect::<Vec<_>>().join("\u{1e}");
    let mut lens = vec![0; 8 * team.ranks()];
    team.gather(&(text.len().min(MOST_FACTS) as u64).to_le_bytes(), &mut lens)?;
    let (lens, _) = lens.as_chunks::<8>();
    let lens: Vec<usize> = lens.iter().map(|len| (u64::from_le_bytes(*len) as usize).min(MOST_FACTS)).collect();
    let most = lens.iter().copied().max().unwrap_or(0);
    let mut own = text.into_bytes();
    own.resize(most, 0);
    let mut all = vec![0; most * team.ranks()];
    team.gather(&own, &mut all)?;
    let texts: Vec<String> = lens
        .iter()
        .zip(all.chunks(most.max(1)))
        .map(|(len, text)| String::from_utf8_lossy(&text[..*len]).into())
        .collect();
    let differences: Vec<String> =
        (1..texts.len()).filter_map(|rank| difference(&texts[0], &texts[rank], rank)).collect();
    if differences.is_empty() {
        return Ok(());
    }
    let shown = differences.len().min(4);
    let more =
        if shown < differences.len() { format!("; and {} more", differences.len() - shown) } else { String::new() };
    Err(crate::Error::cluster(
        format!("the ranks do not match: {}{more}", differences[..shown].join("; ")),
        "start all of them with the same engine, options and data",
    ))
}

/// How rank `rank` differs from rank 0.
fn difference(first: &str, other: &str, rank: usize) -> Option<String> {
    let parts = |text: &str| -> Vec<(String, String)> {
        let pairs = text.split('\u{1e}').filter_map(|fact| fact.split_once('\u{1f}'));
        pairs.map(|(name, value)| (name.to_string(), value.to_string())).collect()
    };
    let (first, other) = (parts(first), parts(other));
    let mut differing = first.iter().zip(&other).filter(|(a, b)| a != b);
    let Some(((name, ours), (_, theirs))) = differing.next() else {
        return (first.len() != other.len()).then(|| format!("rank {rank} has different facts than rank 0"));
    };
    let line = ours.lines().zip(theirs.lines()).find(|(a, b)| a != b);
    let (a, b) = line.unwrap_or((ours.lines().last().unwrap_or(""), theirs.lines().last().unwrap_or("")));
    let short = |text: &str| frame::printable(text.trim().chars().take(120).collect::<String>().as_bytes());
    Some(format!("rank {rank} has a different {name} than rank 0: `{}` for `{}`", short(b), short(a)))
}

#[cfg(test)]
mod tests;
