//! The ranks that this process starts on its machine: itself again, with the same command line.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{MOST_RANKS, Placement};
use crate::error::{Error, Result};

/// How long ranks may take to end after the one that started them.
const FAREWELL: Duration = Duration::from_secs(5);

/// Ranks that were started here: dropped, they are waited for, and ended where they do not end.
#[derive(Debug, Default)]
pub struct LocalRanks {
    children: Vec<(usize, Child)>,
}

impl LocalRanks {
    /// Whether all of them are still running.
    ///
    /// # Errors
    /// [`Error::Cluster`] that names one which has ended.
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
                    // It may have been stopped, so that it cannot end by itself.
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// A job of `ranks` ranks on this machine alone, of which this process is rank 0: its placement, and the listener by which the
/// others find it, at a port that the system chose.
///
/// # Errors
/// [`Error::Cluster`] where there can be no such job.
pub fn here(ranks: usize) -> Result<(Placement, TcpListener)> {
    if !(1..=MOST_RANKS).contains(&ranks) {
        return Err(Error::config("--processes", format!("{ranks} processes"), format!("give 1 to {MOST_RANKS}")));
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

/// Starts the ranks that `placement` says this process starts, besides itself.
///
/// # Errors
/// [`Error::Cluster`] where the system refuses.
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
