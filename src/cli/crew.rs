//! The processes of a command: started by a launcher, or by the command.

use std::sync::Arc;
use std::time::Duration;

use super::flags;
use crate::cluster::{Collective, Limits, LocalRanks, Placement, here, join, placement, start};
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::ops::host::parallel::set_threads;

/// Time that a process has to end after another one has failed.
const GRACE: Duration = Duration::from_secs(5);

/// The environment variable for the rendezvous timeout.
fn patience() -> Result<Duration> {
    const NAME: &str = "ENGINE_RENDEZVOUS";
    let Ok(text) = std::env::var(NAME) else { return Ok(Limits::default().rendezvous) };
    match text.trim().parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => {
            let short: String = text.chars().take(40).collect();
            let message = format!("`{}` is not a number of seconds", short.escape_debug());
            Err(Error::config(NAME, message, "give 1 to 86400, or unset it for 30"))
        }
    }
}

/// This process and its peers. On drop, it waits for the processes that it started.
pub(super) struct Crew {
    pub team: Arc<dyn Collective>,
    placement: Placement,
    #[expect(dead_code, reason = "held until the command ends")]
    local: LocalRanks,
}

impl Crew {
    /// Joins the other processes: those of the launcher whose variables are set, or `processes` on this machine. None if this
    /// process is alone.
    ///
    /// # Errors
    /// [`Error::Config`] for variables that contradict each other or the options; [`Error::Cluster`] if the rendezvous fails.
    pub fn gather(processes: Option<usize>, option: &str) -> Result<Option<Self>> {
        let found = placement(&|name| std::env::var(name).ok())?;
        // Processes started by this command have the same command line.
        let own = found.as_ref().is_some_and(|placement| placement.launcher == "engine");
        let (placement, listener) = match (found, processes) {
            (Some(placement), Some(count)) if !own => {
                let Placement { launcher, rank, ranks, .. } = placement;
                let message = format!(
                    "{count} processes are requested, but {launcher} has started this one as rank {rank} of {ranks}"
                );
                return Err(Error::config(option, message, "leave the option out, or unset the launcher's variables"));
            }
            (Some(placement), _) => (placement, None),
            (None, None | Some(1)) => return Ok(None),
            (None, Some(count)) => {
                let (placement, listener) = here(count)?;
                (placement, Some(listener))
            }
        };
        if placement.ranks == 1 {
            return Ok(None);
        }
        let limits = Limits { grace: Some(GRACE), rendezvous: patience()?, ..Limits::default() };
        let mut local = start(&placement)?;
        let team = match placement.launcher {
            #[cfg(feature = "mpi")]
            "OpenMPI" | "MPICH" => crate::cluster::join_by_mpi(&placement, limits)?,
            _ => join(&placement, listener, limits, &mut || local.check())?,
        };
        Ok(Some(Self { team, placement, local }))
    }

    /// Whether this process leads: the others follow it and write nothing.
    pub fn leads(&self) -> bool {
        self.team.rank() == 0
    }

    /// Divides the machine's cores among its processes, unless the number of threads is given.
    ///
    /// # Errors
    /// Those of [`set_threads`].
    pub fn share_threads(&self, given: Option<usize>) -> Result<()> {
        let local = self.placement.local_ranks.unwrap_or(1).max(1);
        if given.is_none() && std::env::var_os("ENGINE_THREADS").is_none() && local > 1 {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            set_threads(Some((cores / local).max(1)))?;
        }
        Ok(())
    }

    /// The device of this process: with GPUs, each process of a machine uses one.
    pub fn device(&self, choice: DeviceChoice) -> DeviceChoice {
        match choice {
            DeviceChoice::Auto if DeviceChoice::Cuda(0).open().is_ok() => {
                DeviceChoice::Cuda(self.placement.local_rank as u32)
            }
            DeviceChoice::Auto => DeviceChoice::Cpu,
            DeviceChoice::Cuda(0) => DeviceChoice::Cuda(self.placement.local_rank as u32),
            other => other,
        }
    }

    /// The device of a command's process, if `gpus` or `processes` were requested.
    pub fn device_of(crew: Option<&Self>, device: DeviceChoice, gpus: bool, processes: bool) -> DeviceChoice {
        match (crew, device) {
            (None, DeviceChoice::Auto) if gpus => DeviceChoice::Cuda(0),
            (None, device) => device,
            (Some(crew), DeviceChoice::Auto) if gpus => crew.device(DeviceChoice::Cuda(0)),
            (Some(_), DeviceChoice::Auto) if processes => DeviceChoice::Cpu,
            (Some(crew), device) => crew.device(device),
        }
    }

    /// Rank 0 runs `f` first, the others after it, so that they find its downloads and imports.
    ///
    /// # Errors
    /// Those of `f`; [`Error::Cluster`] if rank 0's call failed.
    pub fn leader_first<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.leads() {
            let done = f().inspect_err(|error| self.team.leave(Some(&flags::with_flags(error, &[]))))?;
            self.team.tell(b"found")?;
            return Ok(done);
        }
        self.team.listen()?;
        f().inspect_err(|error| self.team.leave(Some(&flags::with_flags(error, &[]))))
    }
}
