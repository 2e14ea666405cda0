//! The ranks that this process starts on its machine: the same program with the same command line.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{MOST_RANKS, Placement};
use crate::error::{Error, Result};

/// Time that ranks have to end after the process that started them.
const FAREWELL: Duration = Duration::from_secs(5);

/// Ranks started by this process: on drop it waits for them, then kills those that do not end.
#[derive(Debug, Default)]
pub struct LocalRanks {
    children: Vec<(usize, Child)>,
}

impl LocalRanks {
    /// Whether all of them are still running.
    ///
    /// # Errors
    /// [`Error::Cluster`] with a rank that has ended.
    pub fn check(&mut self) -> Result<()> {
        for (rank, child) in &mut self.children {
            if let Ok(Some(status)) = child.try_wait() {
                let message = format!("rank {rank} (process {}) ended before the ranks had met: {status}", child.id());
                return Err(Error::cluster(message, "look at its own error above"));
            }
        }
        Ok(())
    }
}

impl Drop for LocalRanks {
    fn drop(&mut self) {
        let until = Instant::now() + FAREWELL;
        for (_, child) in &mut self.children {
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() > until {
                    // It may be suspended, and then cannot end.
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// A job of `ranks` ranks on this machine only, with this process as rank 0: its placement, and the listener for the others, on a
/// port chosen by the system.
///
/// # Errors
/// [`Error::Cluster`] if such a job is impossible.
pub fn here(ranks: usize) -> Result<(Placement, TcpListener)> {
    if !(1..=MOST_RANKS).contains(&ranks) {
        return Err(Error::config("processes", format!("{ranks} processes"), format!("give 1 to {MOST_RANKS}")));
    }
    let broken = |error: std::io::Error| {
        Error::cluster(format!("rank 0 cannot listen on this machine: {error}"), "allow connections to 127.0.0.1")
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(broken)?;
    let port = listener.local_addr().map_err(broken)?.port();
    let placement = Placement {
        launcher: "engine",
        rank: 0,
        ranks,
        local_rank: 0,
        local_ranks: Some(ranks),
        leader: ("127.0.0.1".into(), port),
        job: format!("{} {port}", std::process::id()),
        starts: ranks,
    };
    Ok((placement, listener))
}

/// Starts the other ranks of this machine according to `placement`.
///
/// # Errors
/// [`Error::Cluster`] if the system refuses.
pub fn start(placement: &Placement) -> Result<LocalRanks> {
    let refused = |error: std::io::Error| {
        Error::cluster(format!("the ranks of this machine cannot be started: {error}"), "start fewer, or free memory")
    };
    let program = std::env::current_exe().map_err(refused)?;
    let mut ranks = LocalRanks::default();
    for local in 1..placement.starts {
        let rank = placement.rank + local;
        let child = Command::new(&program)
            .args(std::env::args_os().skip(1))
            .env("ENGINE_RANK", rank.to_string())
            .env("ENGINE_RANKS", placement.ranks.to_string())
            .env("ENGINE_LOCAL_RANK", local.to_string())
            .env("ENGINE_LOCAL_RANKS", placement.starts.to_string())
            .env("ENGINE_LEADER", format!("{}:{}", placement.leader.0, placement.leader.1))
            .env("ENGINE_JOB", &placement.job)
            .stdin(Stdio::null())
            .spawn()
            .map_err(refused)?;
        ranks.children.push((rank, child));
    }
    Ok(ranks)
}
