//! The control channel: liveness of ranks, commands of rank 0, and the reason why a job ends.
//!
//! Each rank reports every second that it is alive, and its progress. Rank 0 hears all others, all others hear rank 0. If a rank
//! is gone, silent or makes no progress for too long, rank 0 names it to all, and they end. Only the first reason is reported, not
//! its consequences.

use std::collections::BTreeMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::frame::{FrameKind, Reader, printable, send};
use super::pulse::{Pulse, Pulses};
use super::rendezvous::{Meeting, turn_away};
use super::{Limits, Moving};
use crate::error::{Error, Result};

const BEAT: Duration = Duration::from_secs(1);
/// How often a thread checks whether it is still needed.
const TICK: Duration = Duration::from_millis(100);

const ADVICE: &str = "look at that rank's own error; a resumed run goes on from the last checkpoint, on any number of ranks that divides the \
     batches of a step";

/// State shared by the threads of a rank.
pub(super) struct Watch {
    rank: usize,
    meeting: Meeting,
    limits: Limits,
    /// The peers that this rank writes to: rank 0 to all others, they to rank 0.
    peers: BTreeMap<usize, Mutex<TcpStream>>,
    began: Instant,
    /// Milliseconds after `began` at which each peer was heard last.
    heard: BTreeMap<usize, AtomicU64>,
    /// Peers that have left.
    left: BTreeMap<usize, AtomicBool>,
    /// The progress of this rank: joint steps, its own pieces of work.
    own: [AtomicU64; 2],
    /// The progress of all; only on rank 0.
    pulses: Mutex<Pulses>,
    failure: Mutex<Option<(String, Instant)>>,
    failed: AtomicBool,
    /// This rank has left.
    ended: AtomicBool,
    pub stop: Arc<AtomicBool>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panicking thread leaves a stream or a text: consistent either way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// Starts the threads of a rank; the receiver returns rank 0's commands.
    pub fn start(
        rank: usize,
        meeting: Meeting,
        limits: Limits,
        control: Vec<(usize, TcpStream)>,
        latecomers: Option<TcpListener>,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Vec<u8>>)> {
        let broken =
            |error: io::Error| Error::cluster(format!("the control channel broke: {error}"), "start the job again");
        let mut readers = Vec::new();
        for (peer, stream) in &control {
            stream.set_read_timeout(Some(BEAT)).map_err(broken)?;
            readers.push((*peer, stream.try_clone().map_err(broken)?));
        }
        let peers: Vec<usize> = control.iter().map(|(peer, _)| *peer).collect();
        let began = Instant::now();
        let watch = Arc::new(Self {
            rank,
            own: Default::default(),
            pulses: Mutex::new(Pulses::new(meeting.members.len(), limits.standstill, began)),
            meeting,
            limits,
            heard: peers.iter().map(|peer| (*peer, AtomicU64::new(0))).collect(),
            left: peers.iter().map(|peer| (*peer, AtomicBool::new(false))).collect(),
            peers: control.into_iter().map(|(peer, stream)| (peer, Mutex::new(stream))).collect(),
            began,
            failure: Mutex::new(None),
            failed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            stop: Arc::default(),
        });
        let (sender, receiver) = mpsc::channel();
        for (peer, stream) in readers {
            let (watch, sender) = (watch.clone(), sender.clone());
            std::thread::spawn(move || watch.hear(peer, stream, &sender));
        }
        let own = watch.clone();
        std::thread::spawn(move || own.beat(latecomers));
        Ok((watch, receiver))
    }

    /// Why the job is over, if it is.
    pub fn check(&self) -> Result<()> {
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let failure = locked(&self.failure).as_ref().map(|(message, _)| message.clone());
        Err(Error::cluster(failure.unwrap_or_default(), ADVICE))
    }

    /// This rank makes progress.
    pub fn go_on(&self, how: Moving) {
        let [course, work] = &self.own;
        match how {
            Moving::Together => course.fetch_add(1, Ordering::AcqRel),
            Moving::Alone => work.fetch_add(1, Ordering::AcqRel),
        };
    }

    fn pulse(&self) -> Pulse {
        let [course, work] = self.own.each_ref().map(|count| count.load(Ordering::Acquire));
        Pulse { course, work }
    }

    /// Records the first reason, and on rank 0 sends it to all.
    pub fn fail(&self, message: String) {
        {
            let mut failure = locked(&self.failure);
            if failure.is_some() || self.ended.load(Ordering::Acquire) {
                return;
            }
            *failure = Some((message.clone(), Instant::now()));
        }
        self.failed.store(true, Ordering::Release);
        if self.rank == 0 {
            self.tell(FrameKind::Failed, message.as_bytes());
        }
    }

    /// Writes to all remaining peers. The reader notices write failures.
    pub fn tell(&self, kind: FrameKind, payload: &[u8]) {
        for (peer, stream) in &self.peers {
            if !self.left[peer].load(Ordering::Acquire) {
                let _ = send(&mut *locked(stream), kind, payload);
            }
        }
    }

    pub fn describe(&self, rank: usize) -> String {
        self.meeting.members[rank].describe(rank)
    }

    /// The final message of this rank.
    pub fn leave(&self, error: Option<&str>) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        // Others need not hear what they already know or have told this rank.
        let error = error.filter(|_| !self.failed.load(Ordering::Acquire)).unwrap_or_default();
        let short: String = error.chars().take(2000).collect();
        self.tell(FrameKind::Leave, short.as_bytes());
    }

    /// Reads from one peer until it has left or is gone.
    fn hear(&self, peer: usize, mut stream: TcpStream, commands: &mpsc::Sender<Vec<u8>>) {
        let mut reader = Reader::default();
        while !self.ended.load(Ordering::Acquire) {
            match reader.next(&mut stream) {
                Ok(None) => {}
                Ok(Some((kind, payload))) => {
                    self.heard[&peer].store(self.began.elapsed().as_millis() as u64, Ordering::Release);
                    match kind {
                        FrameKind::Beat => {
                            if let (0, Some(pulse)) = (self.rank, Pulse::read(&payload)) {
                                locked(&self.pulses).hear(peer, pulse, Instant::now());
                            }
                        }
                        FrameKind::Command => {
                            let _ = commands.send(payload);
                        }
                        FrameKind::Failed => self.fail(printable(&payload)),
                        FrameKind::Stop => self.stop.store(true, Ordering::Release),
                        FrameKind::Leave => {
                            self.left[&peer].store(true, Ordering::Release);
                            if !payload.is_empty() {
                                self.fail(format!("{} failed: {}", self.describe(peer), printable(&payload)));
                            }
                            return;
                        }
                        _ => {}
                    }
                }
                Err(_) => {
                    self.left[&peer].store(true, Ordering::Release);
                    self.fail(format!("{} is gone: it ended without a message", self.describe(peer)));
                    return;
                }
            }
        }
    }

    /// Reports that this rank is alive, and checks the others.
    fn beat(&self, latecomers: Option<TcpListener>) {
        let (mut next, mut last) = (Instant::now(), Instant::now());
        while !self.ended.load(Ordering::Acquire) {
            // A machine that was suspended itself, such as a laptop, has heard nobody meanwhile.
            if std::mem::replace(&mut last, Instant::now()).elapsed() > 3 * BEAT {
                let now = self.began.elapsed().as_millis() as u64;
                self.heard.values().for_each(|heard| heard.store(now, Ordering::Release));
                locked(&self.pulses).forgive(Instant::now());
            }
            if Instant::now() >= next {
                next = Instant::now() + BEAT;
                self.tell(FrameKind::Beat, &self.pulse().write());
                self.look();
                if self.rank == 0 {
                    self.look_who_stands_still();
                }
            }
            if let Some(listener) = &latecomers {
                turn_away(listener, self.meeting.members.len());
            }
            self.end_the_process();
            std::thread::sleep(TICK);
        }
    }

    fn look(&self) {
        let now = self.began.elapsed().as_millis() as u64;
        for (peer, heard) in &self.heard {
            let silent = Duration::from_millis(now.saturating_sub(heard.load(Ordering::Acquire)));
            if silent > self.limits.silence && !self.left[peer].load(Ordering::Acquire) {
                let seconds = silent.as_secs();
                self.fail(format!("{} hangs: it has been silent for {seconds} s", self.describe(*peer)));
            }
        }
    }

    fn look_who_stands_still(&self) {
        let still = {
            let mut pulses = locked(&self.pulses);
            pulses.hear(0, self.pulse(), Instant::now());
            pulses.standing_still(Instant::now())
        };
        let Some((behind, since)) = still else { return };
        let names: Vec<String> = behind.iter().map(|rank| self.describe(*rank)).collect();
        let (names, seconds) = (names.join(" and "), since.as_secs());
        self.fail(format!("{names} hangs: it is alive, but the others have waited for it for {seconds} s"));
    }

    /// Kills a process that does not notice that the job is over, or cannot: it may hang in a driver.
    fn end_the_process(&self) {
        let Some(grace) = self.limits.grace else { return };
        let late = |(_, since): &&(String, Instant)| since.elapsed() > grace;
        if let Some((message, _)) = locked(&self.failure).as_ref().filter(late) {
            eprintln!("error: {message}; {ADVICE}");
            std::process::exit(1);
        }
    }
}
