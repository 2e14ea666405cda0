//! Several processes that train one model: how they find each other, agree, exchange, and notice that one is gone.
//!
//! [`placement`] reads the launcher's variables, [`start`] brings the ranks of one machine up, [`join`] meets the others:
//! rank 0 listens, the others say who they are, rank 0 tells all whether they fit. After that each rank has a connection to
//! rank 0 that stays open, on which both say every second that they are alive and how far they are, and one to each other rank for
//! what they exchange.
//!
//! A [`Collective`] is the seam to whoever trains: one process alone ([`Alone`]) or several by TCP. All is in plain text and
//! believes whoever knows the job's number: it is for networks that are trusted, as with torchrun and MPI.

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

/// How long ranks wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until all have come together.
    pub rendezvous: Duration,
    /// A rank that says nothing for so long hangs, or its machine or network does.
    pub silence: Duration,
    /// A rank that lives and stands still, while all others wait for it, hangs after so long, or after four times the longest pause that any
    /// rank has made lately. It counts from the third batch of a training on: before, kernels are loaded.
    pub standstill: Duration,
    /// A process that has been told that the job failed, and has not ended by itself so long after, is ended.
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

/// How a rank goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moving {
    /// It begins what all ranks do together.
    Together,
    /// It begins a piece of work of its own: a batch, a stage of a sampler.
    Alone,
}

/// What several ranks do together. All of them call the same methods in the same order, with arguments of the same lengths; a
/// call ends when this rank's part of it is done.
///
/// # Errors
/// Each method's are [`Error::Cluster`](crate::Error::Cluster), that says which rank is gone, hangs or failed; all ranks get
/// the same.
pub trait Collective: Debug + Send + Sync {
    /// This process's number.
    fn rank(&self) -> usize;

    /// The number of processes.
    fn ranks(&self) -> usize;

    /// How they exchange, for people: `TCP`.
    fn name(&self) -> &'static str;

    /// Replaces `values` on every rank by the sum over the ranks: of ranks 0 and 1, 2 and 3, …, then of these sums in pairs, and
    /// so on. The bits depend on the values and the number of ranks alone, and are the same on all.
    fn all_reduce(&self, values: &mut [f32]) -> Result<()>;

    /// Puts the bytes of `root` into those of all others.
    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<()>;

    /// Puts each rank's `own` into `all`, in the order of the ranks: `all` is as many times as long.
    fn gather(&self, own: &[u8], all: &mut [u8]) -> Result<()>;

    /// Ends when all ranks have come here.
    fn barrier(&self) -> Result<()>;

    /// Rank 0 tells the others what they do next, and does not wait.
    fn tell(&self, command: &[u8]) -> Result<()>;

    /// What rank 0 tells next; for the others.
    fn listen(&self) -> Result<Vec<u8>>;

    /// This rank goes on: it begins an exchange that the seam does not see, or a piece of work of its own.
    fn go_on(&self, _: Moving) {}

    /// Set where any rank was asked to stop; for rank 0, which decides when.
    fn stop(&self) -> Arc<AtomicBool>;

    /// Tells rank 0 that this rank was asked to stop.
    fn ask_to_stop(&self);

    /// The last word: `error` ends all others with it, None is a good end.
    fn leave(&self, error: Option<&str>);
}

/// One process by itself.
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

/// Something that all ranks have to have alike, as text of a few kilobytes: `configuration`, `data`, `version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its name.
    pub name: &'static str,
    /// Its value, a line for each part of it.
    pub value: String,
}

/// Most bytes of all facts of a rank.
const MOST_FACTS: usize = 1 << 18;

/// Compares what each rank has. The facts are the same ones, in the same order, on all ranks.
///
/// # Errors
/// [`Error::Cluster`](crate::Error::Cluster), the same on all ranks, that names the ranks that differ from rank 0, and in what.
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
        format!("the ranks do not fit together: {}{more}", differences[..shown].join("; ")),
        "start all of them with the same engine, options and data",
    ))
}

/// In what rank `rank` differs from rank 0.
fn difference(first: &str, other: &str, rank: usize) -> Option<String> {
    let parts = |text: &str| -> Vec<(String, String)> {
        let pairs = text.split('\u{1e}').filter_map(|fact| fact.split_once('\u{1f}'));
        pairs.map(|(name, value)| (name.to_string(), value.to_string())).collect()
    };
    let (first, other) = (parts(first), parts(other));
    let mut differing = first.iter().zip(&other).filter(|(a, b)| a != b);
    let Some(((name, ours), (_, theirs))) = differing.next() else {
        return (first.len() != other.len()).then(|| format!("rank {rank} has other facts than rank 0"));
    };
    let line = ours.lines().zip(theirs.lines()).find(|(a, b)| a != b);
    let (a, b) = line.unwrap_or((ours.lines().last().unwrap_or(""), theirs.lines().last().unwrap_or("")));
    let short = |text: &str| frame::printable(text.trim().chars().take(120).collect::<String>().as_bytes());
    Some(format!("rank {rank} has another {name} than rank 0: `{}` for `{}`", short(b), short(a)))
}

#[cfg(test)]
mod tests;
