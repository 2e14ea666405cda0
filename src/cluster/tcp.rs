//! Ranks that exchange over TCP, each with each.
//!
//! A sum is scattered, then gathered: rank r receives part r from all, sums the parts in a tree, and sends the result to all. Each
//! rank sends 2 (R − 1) / R times the bytes, as in a ring (Patarasuk and Yuan 2009), in two rounds instead of 2 (R − 1).

use std::fmt;
use std::net::TcpListener;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use super::frame::{FrameKind, MOST};
use super::mesh::{Mesh, Transfer};
use super::rendezvous::meet;
use super::watch::Watch;
use super::{Collective, Limits, Moving, Placement};
use crate::error::{Error, Result};

/// Kinds of exchanges.
const SCATTER: u8 = 1;
const COLLECT: u8 = 2;
const GATHER: u8 = 3;
const BROADCAST: u8 = 4;

/// Alignment of parts, in elements.
const ALIGNMENT: usize = 16;

struct Tcp {
    rank: usize,
    ranks: usize,
    watch: Arc<Watch>,
    mesh: Mutex<Mesh>,
    scratch: Mutex<Vec<f32>>,
    commands: Mutex<mpsc::Receiver<Vec<u8>>>,
}

/// Meets the other ranks of a job. Rank 0 listens on `listener`, or at its placement's address; `still` is called while it waits,
/// and can end the wait.
///
/// # Errors
/// [`Error::Cluster`] on every rank if one is missing, one too many, of another job or another engine; the errors of `still`.
pub fn join(
    placement: &Placement,
    listener: Option<TcpListener>,
    limits: Limits,
    still: &mut dyn FnMut() -> Result<()>,
) -> Result<Arc<dyn Collective>> {
    let met = meet(placement, listener, limits, still)?;
    let (rank, ranks) = (placement.rank, placement.ranks);
    let (watch, commands) = Watch::start(rank, met.meeting.clone(), limits, met.control, met.latecomers)?;
    let team = Mesh::connect(rank, &met.meeting, &met.listener, limits, &watch);
    let mesh = team.inspect_err(|error| watch.leave(Some(&error.to_string())))?;
    Ok(Arc::new(Tcp {
        rank,
        ranks,
        watch,
        mesh: Mutex::new(mesh),
        scratch: Mutex::default(),
        commands: Mutex::new(commands),
    }))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tcp {
    /// The part of `len` elements that a rank sums.
    fn part(&self, len: usize, rank: usize) -> Range<usize> {
        let each = len.div_ceil(self.ranks).next_multiple_of(ALIGNMENT);
        (each * rank).min(len)..(each * (rank + 1)).min(len)
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let rank = self.rank;
        (0..self.ranks).filter(move |peer| *peer != rank)
    }

    /// `all` in pieces, one per rank.
    fn exchange(&self, mesh: &mut Mesh, kind: u8, own: &[u8], pieces: Vec<&mut [u8]>) -> Result<()> {
        let pieces = pieces.into_iter().enumerate().filter(|(peer, _)| *peer != self.rank);
        let transfers = pieces.map(|(peer, received)| Transfer { peer, sent: own, received }).collect();
        mesh.exchange(kind, transfers, &self.watch)
    }
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} by TCP", self.rank, self.ranks)
    }
}

/// Sums rows in pairs, then the sums in pairs, and so on; the result is in the first.
pub(super) fn add_up(rows: &mut [f32], len: usize) {
    let count = rows.len().checked_div(len).unwrap_or(0);
    let mut distance = 1;
    while distance < count {
        for first in (0..count - distance).step_by(2 * distance) {
            let (low, high) = rows.split_at_mut((first + distance) * len);
            add(&mut low[first * len..][..len], &high[..len]);
        }
        distance *= 2;
    }
}

/// `to += from`. In pieces of one length, so that it is vectorized however the crate is compiled.
fn add(to: &mut [f32], from: &[f32]) {
    let ((to, to_rest), (from, from_rest)) = (to.as_chunks_mut::<16>(), from.as_chunks::<16>());
    for (to, from) in to.iter_mut().zip(from) {
        for i in 0..16 {
            to[i] += from[i];
        }
    }
    to_rest.iter_mut().zip(from_rest).for_each(|(to, from)| *to += from);
}

/// Consecutive pieces of `all` with these lengths.
fn cut(mut all: &mut [u8], lens: impl Iterator<Item = usize>) -> Vec<&mut [u8]> {
    lens.map(|len| {
        let (piece, rest) = std::mem::take(&mut all).split_at_mut(len);
        all = rest;
        piece
    })
    .collect()
}

impl Collective for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn name(&self) -> &'static str {
        "TCP"
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        self.go_on(Moving::Together);
        let (mut mesh, mut scratch) = (locked(&self.mesh), locked(&self.scratch));
        let own = self.part(values.len(), self.rank);
        let len = own.len();
        scratch.resize(self.ranks * len, 0.0);
        scratch[self.rank * len..][..len].copy_from_slice(&values[own.clone()]);
        {
            let bytes = bytemuck::cast_slice_mut::<f32, u8>(&mut scratch);
            let pieces = cut(bytes, (0..self.ranks).map(|_| 4 * len)).into_iter().enumerate();
            let transfers = pieces.filter(|(peer, _)| *peer != self.rank).map(|(peer, received)| {
                let sent = bytemuck::cast_slice(&values[self.part(values.len(), peer)]);
                Transfer { peer, sent, received }
            });
            mesh.exchange(SCATTER, transfers.collect(), &self.watch)?;
        }
        add_up(&mut scratch, len);
        values[own].copy_from_slice(&scratch[..len]);
        let lens: Vec<usize> = (0..self.ranks).map(|rank| 4 * self.part(values.len(), rank).len()).collect();
        let pieces = cut(bytemuck::cast_slice_mut(values), lens.into_iter());
        self.exchange(&mut mesh, COLLECT, bytemuck::cast_slice(&scratch[..len]), pieces)
    }

    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<()> {
        self.go_on(Moving::Together);
        let mut mesh = locked(&self.mesh);
        let transfers = match self.rank == root {
            true => {
                let bytes = &*bytes;
                self.others().map(|peer| Transfer { peer, sent: bytes, received: &mut [] }).collect()
            }
            false => vec![Transfer { peer: root, sent: &[], received: bytes }],
        };
        mesh.exchange(BROADCAST, transfers, &self.watch)
    }

    fn gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        self.go_on(Moving::Together);
        if all.len() != self.ranks * own.len() {
            let message = format!("{} bytes for {} ranks of {}", all.len(), self.ranks, own.len());
            return Err(Error::shape("gather", message));
        }
        let mut mesh = locked(&self.mesh);
        all[self.rank * own.len()..][..own.len()].copy_from_slice(own);
        let pieces = cut(all, (0..self.ranks).map(|_| own.len()));
        self.exchange(&mut mesh, GATHER, own, pieces)
    }

    fn barrier(&self) -> Result<()> {
        self.gather(&[], &mut [])
    }

    fn tell(&self, command: &[u8]) -> Result<()> {
        self.watch.check()?;
        if command.len() > MOST {
            return Err(Error::shape("tell", format!("a command of {} bytes; at most {MOST}", command.len())));
        }
        self.go_on(Moving::Together);
        self.watch.tell(FrameKind::Command, command);
        Ok(())
    }

    fn listen(&self) -> Result<Vec<u8>> {
        let commands = locked(&self.commands);
        loop {
            match commands.recv_timeout(Duration::from_millis(100)) {
                Ok(command) => {
                    self.go_on(Moving::Together);
                    return Ok(command);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => self.watch.check()?,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    self.watch.check()?;
                    let message = format!("rank {} waits for rank 0, which has ended", self.rank);
                    return Err(Error::cluster(message, "look at rank 0's own error"));
                }
            }
        }
    }

    fn go_on(&self, how: Moving) {
        self.watch.go_on(how);
    }

    fn stop(&self) -> Arc<AtomicBool> {
        self.watch.stop.clone()
    }

    fn ask_to_stop(&self) {
        match self.rank {
            0 => self.watch.stop.store(true, Ordering::Release),
            _ => self.watch.tell(FrameKind::Stop, b""),
        }
    }

    fn leave(&self, error: Option<&str>) {
        self.watch.leave(error);
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.watch.leave(Some("it ended early"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_added_in_a_tree() {
        // Sums whose rounding depends on the order.
        let rows = [1.0f32, 1e-8, 3e-8, 1e8, -1e8, 5e-8, 7.0];
        let tree = |r: &[f32]| ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + r[6]);
        let mut all: Vec<f32> = rows.iter().flat_map(|row| [*row; 35]).collect();
        add_up(&mut all, 35);
        assert!(all[..35].iter().all(|sum| sum.to_bits() == tree(&rows).to_bits()));
        add_up(&mut [], 0);
    }
}
