//! Ranks that exchange over MPI, in builds with the feature `mpi`, if `mpirun` started them.
//!
//! The gradient's sum is the same tree as over TCP: all parts are scattered, summed and gathered. The control channel stays TCP,
//! because MPI does not report which rank is gone.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mpi::Threading;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::tcp::add_up;
use super::{Collective, Limits, LocalRanks, Moving, Placement};
use crate::error::{Error, Result};

struct World {
    communicator: SimpleCommunicator,
    scratch: [Vec<f32>; 2],
    /// Finalizes MPI when it is dropped, last.
    _universe: Universe,
}

// SAFETY: MPI was initialized for serialized calls from several threads; the mutex ensures that.
unsafe impl Send for World {}

struct Mpi {
    control: Arc<dyn Collective>,
    world: Mutex<World>,
}

/// As [`join`](super::join), for ranks started by `mpirun`.
///
/// # Errors
/// As [`join`](super::join); [`Error::Cluster`] if MPI does not start or numbers the ranks differently.
pub fn join_by_mpi(placement: &Placement, limits: Limits) -> Result<Arc<dyn Collective>> {
    let refused = |message: String| Error::cluster(message, "start it by the mpirun of the MPI that it was built with");
    let (universe, threading) =
        mpi::initialize_with_threading(Threading::Serialized).ok_or_else(|| refused("MPI does not start".into()))?;
    if threading < Threading::Serialized {
        return Err(refused("this MPI lets only its first thread call it".into()));
    }
    let communicator = universe.world();
    let (rank, ranks) = (communicator.rank() as usize, communicator.size() as usize);
    if (rank, ranks) != (placement.rank, placement.ranks) {
        let Placement { rank: told, ranks: of, launcher, .. } = placement;
        return Err(refused(format!("MPI says rank {rank} of {ranks}, {launcher}'s variables rank {told} of {of}")));
    }
    let control = super::join(placement, None, limits, &mut || LocalRanks::default().check())?;
    let world = World { communicator, scratch: Default::default(), _universe: universe };
    Ok(Arc::new(Mpi { control, world: Mutex::new(world) }))
}

impl Mpi {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} by MPI", self.rank(), self.ranks())
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.control.rank()
    }

    fn ranks(&self) -> usize {
        self.control.ranks()
    }

    fn name(&self) -> &'static str {
        "MPI"
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        self.control.go_on(Moving::Together);
        let ranks = self.ranks();
        let each = values.len().div_ceil(ranks);
        let World { communicator, scratch: [parts, mine], .. } = &mut *self.world();
        parts.clear();
        parts.extend_from_slice(values);
        parts.resize(each * ranks, 0.0);
        mine.resize(each * ranks, 0.0);
        communicator.all_to_all_into(&parts[..], &mut mine[..]);
        add_up(mine, each);
        communicator.all_gather_into(&mine[..each], &mut parts[..]);
        values.copy_from_slice(&parts[..values.len()]);
        Ok(())
    }

    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<()> {
        self.control.go_on(Moving::Together);
        self.world().communicator.process_at_rank(root as i32).broadcast_into(bytes);
        Ok(())
    }

    fn gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        if all.len() != self.ranks() * own.len() {
            let message = format!("{} bytes for {} ranks of {}", all.len(), self.ranks(), own.len());
            return Err(Error::shape("gather", message));
        }
        self.control.go_on(Moving::Together);
        self.world().communicator.all_gather_into(own, all);
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        self.control.go_on(Moving::Together);
        self.world().communicator.barrier();
        Ok(())
    }

    fn tell(&self, command: &[u8]) -> Result<()> {
        self.control.tell(command)
    }

    fn listen(&self) -> Result<Vec<u8>> {
        self.control.listen()
    }

    fn go_on(&self, how: Moving) {
        self.control.go_on(how);
    }

    fn stop(&self) -> Arc<AtomicBool> {
        self.control.stop()
    }

    fn ask_to_stop(&self) {
        self.control.ask_to_stop();
    }

    fn leave(&self, error: Option<&str>) {
        self.control.leave(error);
        if error.is_some() {
            // The others may wait in MPI, and so would finalizing it here: mpirun ends them all.
            eprintln!("error: {}", error.unwrap_or_default());
            std::process::exit(1);
        }
    }
}
