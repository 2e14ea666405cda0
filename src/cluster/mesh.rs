//! A connection between each pair of ranks, and the exchange over all of them at once.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::Limits;
use super::rendezvous::Meeting;
use super::watch::Watch;
use crate::error::{Error, Result};

const MAGIC: u64 = u64::from_le_bytes(*b"exchange");
/// Bytes of a hello: magic, nonce, rank.
const HELLO: usize = 24;
/// Bytes before the data of an exchange: number and kind, length.
const HEAD: usize = 16;
/// Time for rank 0 to report the failed rank, before a rank reports its own view.
const VERDICT: Duration = Duration::from_secs(3);

/// The connections of a rank.
pub(super) struct Mesh {
    rank: usize,
    /// By rank; None for its own.
    peers: Vec<Option<TcpStream>>,
    /// Number of exchanges so far: detects ranks that are out of step.
    count: u64,
}

/// Data to a peer, and data from it.
pub(super) struct Transfer<'a> {
    pub peer: usize,
    pub sent: &'a [u8],
    pub received: &'a mut [u8],
}

/// The progress of a transfer.
struct Course<'a> {
    transfer: Transfer<'a>,
    head: [u8; HEAD],
    their_head: [u8; HEAD],
    written: usize,
    read: usize,
}

impl Mesh {
    /// Connects to all lower ranks, and accepts the connections of all higher ones.
    pub fn connect(
        rank: usize,
        meeting: &Meeting,
        listener: &TcpListener,
        limits: Limits,
        watch: &Watch,
    ) -> Result<Self> {
        let until = Instant::now() + limits.rendezvous;
        let mut peers: Vec<Option<TcpStream>> = meeting.members.iter().map(|_| None).collect();
        let failed = |peer: usize, why: String| {
            let message = format!("rank {rank} cannot reach {}: {why}", watch.describe(peer));
            Error::cluster(message, "let the machines of the job reach each other's ports")
        };
        for (peer, member) in meeting.members.iter().enumerate().take(rank) {
            let stream = loop {
                watch.check()?;
                match TcpStream::connect_timeout(&member.address, Duration::from_secs(5)) {
                    Ok(stream) => break stream,
                    Err(error) if Instant::now() > until => return Err(failed(peer, error.to_string())),
                    Err(_) => std::thread::sleep(Duration::from_millis(50)),
                }
            };
            let mut hello = [0; HELLO];
            let words = [MAGIC, meeting.nonce, rank as u64];
            hello.chunks_exact_mut(8).zip(words).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_le_bytes()));
            (&stream).write_all(&hello).map_err(|error| failed(peer, error.to_string()))?;
            peers[peer] = Some(stream);
        }
        listener.set_nonblocking(true).map_err(|error| failed(rank, error.to_string()))?;
        while let Some(missing) = (rank + 1..peers.len()).find(|peer| peers[*peer].is_none()) {
            watch.check()?;
            match listener.accept() {
                Ok((stream, _)) => {
                    // Connections that are not from a rank of this job are closed.
                    if let Some(peer) =
                        introduced(&stream, meeting.nonce).filter(|peer| (rank + 1..peers.len()).contains(peer))
                    {
                        peers[peer] = Some(stream);
                    }
                }
                Err(_) if Instant::now() > until => return Err(failed(missing, "it did not connect".into())),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        for (peer, stream) in peers.iter().enumerate() {
            let Some(stream) = stream else { continue };
            let ready = stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
            ready.map_err(|error| failed(peer, error.to_string()))?;
        }
        Ok(Self { rank, peers, count: 0 })
    }

    /// Sends and receives concurrently, so that there is no deadlock. `kind` identifies the exchange.
    pub fn exchange(&mut self, kind: u8, transfers: Vec<Transfer>, watch: &Watch) -> Result<()> {
        self.count += 1;
        let number = self.count << 8 | u64::from(kind);
        let mut courses: Vec<Course> = transfers
            .into_iter()
            .map(|transfer| {
                let mut head = [0; HEAD];
                head[..8].copy_from_slice(&number.to_le_bytes());
                head[8..].copy_from_slice(&(transfer.sent.len() as u64).to_le_bytes());
                Course { transfer, head, their_head: [0; HEAD], written: 0, read: 0 }
            })
            .collect();
        loop {
            let mut moved = false;
            for course in &mut courses {
                let peer = course.transfer.peer;
                let Some(stream) = &self.peers[peer] else { continue };
                moved |= course.advance(stream, number).map_err(|error| self.broken(peer, error, watch))?;
            }
            if courses.iter().all(Course::is_done) {
                return Ok(());
            }
            if !moved {
                watch.check()?;
                self.wait(&courses);
            }
        }
    }

    /// The reason from rank 0, or else this rank's own view.
    fn broken(&self, peer: usize, error: io::Error, watch: &Watch) -> Error {
        let until = Instant::now() + VERDICT;
        while error.kind() != io::ErrorKind::InvalidData && Instant::now() < until {
            if let Err(verdict) = watch.check() {
                return verdict;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let message = match error.kind() {
            io::ErrorKind::InvalidData => {
                format!("{} is out of step with rank {}: {error}", watch.describe(peer), self.rank)
            }
            _ => format!("rank {} lost {}: {error}", self.rank, watch.describe(peer)),
        };
        Error::cluster(message, "look at that rank's own error, and resume the run")
    }

    /// Waits briefly until a connection is ready.
    #[cfg(unix)]
    fn wait(&self, courses: &[Course]) {
        use std::os::fd::AsRawFd;
        let mut all: Vec<libc::pollfd> = courses
            .iter()
            .filter(|course| !course.is_done())
            .filter_map(|course| {
                let fd = self.peers[course.transfer.peer].as_ref()?.as_raw_fd();
                let reads = if course.has_read() { 0 } else { libc::POLLIN };
                let writes = if course.has_written() { 0 } else { libc::POLLOUT };
                Some(libc::pollfd { fd, events: reads | writes, revents: 0 })
            })
            .collect();
        // SAFETY: the array has the given number of entries, and the descriptors are open: the streams are borrowed.
        unsafe { libc::poll(all.as_mut_ptr(), all.len() as libc::nfds_t, 100) };
    }

    #[cfg(not(unix))]
    fn wait(&self, _: &[Course]) {
        std::thread::sleep(Duration::from_micros(100));
    }
}

impl Course<'_> {
    fn has_written(&self) -> bool {
        self.written == HEAD + self.transfer.sent.len()
    }

    fn has_read(&self) -> bool {
        self.read == HEAD + self.transfer.received.len()
    }

    fn is_done(&self) -> bool {
        self.has_written() && self.has_read()
    }

    /// Transfers what is possible without blocking; whether that was anything.
    fn advance(&mut self, mut stream: &TcpStream, number: u64) -> io::Result<bool> {
        let before = self.written + self.read;
        while !self.has_written() {
            let part = match self.written.checked_sub(HEAD) {
                None => &self.head[self.written..],
                Some(done) => &self.transfer.sent[done..],
            };
            // Not `write_vectored`, which raises a signal if the peer is gone.
            match stream.write(part) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        while !self.has_read() {
            let target = match self.read.checked_sub(HEAD) {
                None => &mut self.their_head[self.read..],
                Some(done) => &mut self.transfer.received[done..],
            };
            match stream.read(target) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.read += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.read == HEAD {
                self.check(number)?;
            }
        }
        Ok(self.written + self.read > before)
    }

    /// Whether the received header is the expected one.
    fn check(&self, number: u64) -> io::Result<()> {
        let word =
            |at: usize| self.their_head[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let (theirs, len, wanted) = (word(0), word(8), self.transfer.received.len() as u64);
        if (theirs, len) == (number, wanted) {
            return Ok(());
        }
        let message = format!("exchange {} of {len} bytes for {} of {wanted}", theirs >> 8, number >> 8);
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    }
}

/// The rank that a connection claims.
fn introduced(stream: &TcpStream, nonce: u64) -> Option<usize> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    let mut hello = [0; HELLO];
    { stream }.read_exact(&mut hello).ok()?;
    stream.set_read_timeout(None).ok()?;
    let (words, _) = hello.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    (words[..2] == [MAGIC, nonce]).then(|| usize::try_from(words[2]).ok())?
}
