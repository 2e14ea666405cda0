//! The rendezvous of ranks: rank 0 listens, the others connect and introduce themselves, and learn whether all match.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::frame::{Fields, FrameKind, Parser, Reader, printable, send};
use super::{Limits, Placement};
use crate::error::{Error, Result};

/// The start of every hello: the name of the protocol and its version.
const MAGIC: u64 = u64::from_le_bytes(*b"engine\x00\x01");

/// Time for a connection to introduce itself.
const INTRODUCTION: Duration = Duration::from_secs(5);

const PAUSE: Duration = Duration::from_millis(10);

/// A rank, as all others know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its address for exchanges.
    pub address: SocketAddr,
    pub host: String,
    pub process: u64,
}

impl Member {
    pub fn describe(&self, rank: usize) -> String {
        format!("rank {rank} (process {} on {})", self.process, self.host)
    }
}

/// All ranks, and the identity of this job.
#[derive(Clone, Debug)]
pub(super) struct Meeting {
    pub members: Vec<Member>,
    pub nonce: u64,
}

/// A rank's introduction.
struct Hello {
    version: String,
    job: String,
    rank: u64,
    ranks: u64,
    host: String,
    process: u64,
    port: u64,
}

impl Hello {
    fn write(&self) -> Vec<u8> {
        let fields = Fields::default().number(MAGIC).text(&self.version).text(&self.job);
        let fields =
            fields.number(self.rank).number(self.ranks).text(&self.host).number(self.process).number(self.port);
        fields.0
    }

    /// None for another protocol.
    fn read(payload: &[u8]) -> Option<Self> {
        let mut parser = Parser(payload);
        if parser.number()? != MAGIC {
            return None;
        }
        Some(Self {
            version: parser.text()?,
            job: parser.text()?,
            rank: parser.number()?,
            ranks: parser.number()?,
            host: parser.text()?,
            process: parser.number()?,
            port: parser.number()?,
        })
    }

    fn own(placement: &Placement, port: u16) -> Self {
        Self {
            version: version(),
            job: placement.job.clone(),
            rank: placement.rank as u64,
            ranks: placement.ranks as u64,
            host: host_name(),
            process: std::process::id().into(),
            port: port.into(),
        }
    }
}

fn version() -> String {
    env!("CARGO_PKG_VERSION").into()
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = printable(name.trim().chars().take(64).collect::<String>().as_bytes());
    if name.is_empty() { "its host".into() } else { name }
}

/// The address of this process, for a job whose rank 0 is at `leader`: on a single machine only the loopback.
fn any_address(leader: IpAddr) -> SocketAddr {
    let ip = match leader {
        ip if ip.is_loopback() => ip,
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, 0)
}

fn find(leader: &(String, u16)) -> std::io::Result<Vec<SocketAddr>> {
    Ok((leader.0.as_str(), leader.1).to_socket_addrs()?.take(16).collect())
}

fn at(leader: &(String, u16)) -> String {
    format!("{}:{}", leader.0, leader.1)
}

/// A listener at the address of rank 0 in this placement.
///
/// # Errors
/// [`Error::Cluster`] if the port is taken or the host is not this machine.
pub fn listen(placement: &Placement) -> Result<TcpListener> {
    let place = at(&placement.leader);
    let refused = |error: std::io::Error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "is another rank 0, or another program, there? Set ENGINE_PORT to a free port"
            }
            _ => "set MASTER_ADDR to this machine's name, and MASTER_PORT or ENGINE_PORT to a free port",
        };
        Error::cluster(format!("rank 0 cannot listen on {place}: {error}"), advice)
    };
    let found = find(&placement.leader).map_err(refused)?;
    let first = found.first().copied().ok_or_else(|| refused(std::io::ErrorKind::AddrNotAvailable.into()))?;
    TcpListener::bind(SocketAddr::new(any_address(first.ip()).ip(), placement.leader.1)).map_err(refused)
}

/// The connections of a rank after the rendezvous.
pub(super) struct Met {
    pub meeting: Meeting,
    /// To rank 0; rank 0 has those to the others, by rank.
    pub control: Vec<(usize, TcpStream)>,
    /// The listener for exchanges.
    pub listener: TcpListener,
    /// On rank 0: tells late ranks that they are too late.
    pub latecomers: Option<TcpListener>,
}

/// Meets the other ranks. `still` is called while rank 0 waits: whether the ranks that it started are alive.
pub(super) fn meet(
    placement: &Placement,
    listener: Option<TcpListener>,
    limits: Limits,
    still: &mut dyn FnMut() -> Result<()>,
) -> Result<Met> {
    match (placement.rank, listener) {
        (0, Some(listener)) => lead(placement, listener, limits, still),
        (0, None) => lead(placement, listen(placement)?, limits, still),
        _ => follow(placement, limits),
    }
}

/// A connection that has introduced itself.
struct Guest {
    hello: Hello,
    stream: TcpStream,
    ip: IpAddr,
}

/// Accepts connections and passes on those that speak the protocol.
fn hear(stream: TcpStream, ip: IpAddr, job: String, guests: mpsc::Sender<Guest>) {
    std::thread::spawn(move || {
        let Some(hello) = introduction(&stream) else { return };
        if hello.job != job {
            let message = "rank 0 at this address is of another job; set ENGINE_PORT to a port of your own";
            let _ = send(&mut &stream, FrameKind::Refused, message.as_bytes());
            return;
        }
        let _ = guests.send(Guest { hello, stream, ip });
    });
}

fn introduction(stream: &TcpStream) -> Option<Hello> {
    let until = Instant::now() + INTRODUCTION;
    stream.set_nonblocking(false).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(INTRODUCTION)).ok()?;
    stream.set_write_timeout(Some(INTRODUCTION)).ok()?;
    let mut reader = Reader::default();
    while Instant::now() < until {
        if let Some((kind, payload)) = reader.next(&mut &*stream).ok()? {
            return Hello::read(&payload).filter(|_| kind == FrameKind::Hello);
        }
    }
    None
}

fn lead(
    placement: &Placement,
    listener: TcpListener,
    limits: Limits,
    still: &mut dyn FnMut() -> Result<()>,
) -> Result<Met> {
    let broken =
        |error: std::io::Error| Error::cluster(format!("rank 0 cannot listen: {error}"), "start the job again");
    let until = Instant::now() + limits.rendezvous;
    listener.set_nonblocking(true).map_err(broken)?;
    let ip = listener.local_addr().map_err(broken)?.ip();
    let own = TcpListener::bind(SocketAddr::new(ip, 0)).map_err(broken)?;
    let port = own.local_addr().map_err(broken)?.port();
    let (sender, receiver) = mpsc::channel();
    let mut guests: Vec<Guest> = Vec::new();
    while guests.len() + 1 < placement.ranks && Instant::now() < until {
        if let Err(error) = still() {
            refuse(&guests, &error.to_string());
            return Err(error);
        }
        match listener.accept() {
            Ok((stream, from)) => hear(stream, from.ip(), placement.job.clone(), sender.clone()),
            Err(_) => std::thread::sleep(PAUSE),
        }
        guests.extend(receiver.try_iter());
    }
    if let Some(fault) = fault(placement, &guests, limits) {
        refuse(&guests, &fault);
        return Err(Error::cluster(fault, "start all ranks of a job with the same engine, each with its own rank"));
    }
    guests.sort_by_key(|guest| guest.hello.rank);
    let first = find(&placement.leader).ok().and_then(|found| found.first().copied());
    let own_ip = first.map_or(ip, |address| address.ip());
    let me = Hello::own(placement, port);
    let mut members = vec![Member { address: SocketAddr::new(own_ip, port), host: me.host, process: me.process }];
    members.extend(guests.iter().map(|guest| Member {
        address: SocketAddr::new(guest.ip, guest.hello.port as u16),
        host: guest.hello.host.clone(),
        process: guest.hello.process,
    }));
    let meeting = Meeting { members, nonce: nonce() };
    let welcome = welcome(&meeting);
    let mut control = Vec::new();
    for (rank, guest) in (1..).zip(guests) {
        send(&mut &guest.stream, FrameKind::Welcome, &welcome).map_err(|error| {
            let message = format!("{} is gone: {error}", meeting.members[rank].describe(rank));
            Error::cluster(message, "look at its own error, and start the job again")
        })?;
        control.push((rank, guest.stream));
    }
    Ok(Met { meeting, control, listener: own, latecomers: Some(listener) })
}

fn refuse(guests: &[Guest], fault: &str) {
    for guest in guests {
        // A closed connection needs no answer.
        let _ = send(&mut &guest.stream, FrameKind::Refused, fault.as_bytes());
    }
}

/// All mismatches, as one line.
fn fault(placement: &Placement, guests: &[Guest], limits: Limits) -> Option<String> {
    let (ranks, own) = (placement.ranks, version());
    let mut faults = Vec::new();
    let who = |guest: &Guest| format!("process {} on {}", guest.hello.process, guest.hello.host);
    for guest in guests {
        let Hello { rank, ranks: theirs, version, .. } = &guest.hello;
        if *version != own {
            faults.push(format!("rank {rank} is engine {version}, rank 0 is {own}"));
        }
        if *theirs != ranks as u64 {
            faults.push(format!("rank {rank} belongs to a job of {theirs} ranks, rank 0 to one of {ranks}"));
        } else if *rank == 0 {
            faults.push(format!("{} is a second rank 0", who(guest)));
        } else if *rank >= ranks as u64 {
            faults.push(format!("{} is rank {rank} of {ranks}", who(guest)));
        }
    }
    for rank in 1..ranks as u64 {
        let claiming: Vec<String> = guests.iter().filter(|guest| guest.hello.rank == rank).map(who).collect();
        match claiming.len() {
            0 => faults.push(format!("rank {rank} of {ranks} did not connect")),
            1 => {}
            _ => faults.push(format!("{} claim to be rank {rank}", claiming.join(" and "))),
        }
    }
    if faults.is_empty() {
        return None;
    }
    let missing = guests.len() + 1 < ranks;
    let waited = if missing { format!(" (waited {} s)", limits.rendezvous.as_secs()) } else { String::new() };
    let more = if faults.len() > 6 { format!("; and {} more", faults.len() - 6) } else { String::new() };
    faults.truncate(6);
    Some(format!("the ranks did not meet: {}{more}{waited}", faults.join("; ")))
}

/// Enough to distinguish jobs: it is not a secret.
fn nonce() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

fn welcome(meeting: &Meeting) -> Vec<u8> {
    let fields = Fields::default().number(MAGIC).number(meeting.nonce).number(meeting.members.len() as u64);
    let all = meeting.members.iter().fold(fields, |fields, member| {
        fields.text(&member.address.to_string()).text(&member.host).number(member.process)
    });
    all.0
}

/// Rank 0's description of the job; addresses of its own machine become `leader`'s for others.
fn welcomed(payload: &[u8], ranks: usize, leader: IpAddr) -> Option<Meeting> {
    let mut parser = Parser(payload);
    if parser.number()? != MAGIC {
        return None;
    }
    let nonce = parser.number()?;
    if parser.number()? != ranks as u64 {
        return None;
    }
    let members = (0..ranks).map(|rank| {
        let mut address: SocketAddr = parser.text()?.parse().ok()?;
        if rank == 0 || address.ip().is_loopback() || address.ip().is_unspecified() {
            address.set_ip(leader);
        }
        Some(Member { address, host: parser.text()?, process: parser.number()? })
    });
    Some(Meeting { members: members.collect::<Option<_>>()?, nonce })
}

fn follow(placement: &Placement, limits: Limits) -> Result<Met> {
    let (rank, place, seconds) = (placement.rank, at(&placement.leader), limits.rendezvous.as_secs());
    let until = Instant::now() + limits.rendezvous;
    let mut last = String::from("no answer");
    let stream = loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let message = format!("rank {rank} found no rank 0 at {place} within {seconds} s: {last}");
            let advice = "start rank 0, and look at its own error; check MASTER_ADDR and MASTER_PORT";
            return Err(Error::cluster(message, advice));
        }
        let found = find(&placement.leader).unwrap_or_default();
        let connected = found.iter().find_map(|address| {
            let connected = TcpStream::connect_timeout(address, left.min(INTRODUCTION));
            connected.map_err(|error| last = error.to_string()).ok()
        });
        match connected {
            Some(stream) => break stream,
            None => std::thread::sleep(10 * PAUSE),
        }
    };
    let gone = |error: std::io::Error| {
        let message = format!("rank {rank} was not let in by rank 0 at {place}: {error}");
        Error::cluster(message, "look at rank 0's own error; is it an engine that listens there?")
    };
    let leader = stream.peer_addr().map_err(gone)?.ip();
    let listener = TcpListener::bind(any_address(leader)).map_err(gone)?;
    let port = listener.local_addr().map_err(gone)?.port();
    stream.set_nodelay(true).map_err(gone)?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).map_err(gone)?;
    stream.set_write_timeout(Some(INTRODUCTION)).map_err(gone)?;
    send(&mut &stream, FrameKind::Hello, &Hello::own(placement, port).write()).map_err(gone)?;
    // Rank 0 may have started to wait only now.
    let until = Instant::now() + limits.rendezvous + INTRODUCTION;
    let mut reader = Reader::default();
    while Instant::now() < until {
        match reader.next(&mut &stream).map_err(gone)? {
            Some((FrameKind::Welcome, payload)) => {
                let Some(meeting) = welcomed(&payload, placement.ranks, leader) else { break };
                return Ok(Met { meeting, control: vec![(0, stream)], listener, latecomers: None });
            }
            Some((FrameKind::Refused, message)) => {
                let advice = "start all ranks of a job with the same engine, each with its own rank";
                return Err(Error::cluster(printable(&message), advice));
            }
            Some(_) => break,
            None => {}
        }
    }
    let message = format!("the program at {place} gave rank {rank} no answer of an engine within {seconds} s");
    Err(Error::cluster(message, "another program holds that port: set ENGINE_PORT on all ranks to a free one"))
}

/// Tells connections after the rendezvous that they are one too many; false if there was none.
pub(super) fn turn_away(listener: &TcpListener, ranks: usize) -> bool {
    let Ok((stream, _)) = listener.accept() else { return false };
    std::thread::spawn(move || {
        if let Some(hello) = introduction(&stream) {
            let message = format!("rank {} is one too many: the job has its {ranks} ranks already", hello.rank);
            let _ = send(&mut &stream, FrameKind::Refused, message.as_bytes());
        }
    });
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_told_to_it_and_to_all() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let leader = listener.local_addr().unwrap();
        let placement = Placement {
            launcher: "test",
            rank: 0,
            ranks: 2,
            local_rank: 0,
            local_ranks: None,
            leader: ("127.0.0.1".into(), leader.port()),
            job: "tests".into(),
            starts: 1,
        };
        let old = Hello { version: "0.0.9".into(), rank: 1, ..Hello::own(&placement, 5) };
        let guest = std::thread::spawn(move || {
            let stream = TcpStream::connect(leader).unwrap();
            send(&mut &stream, FrameKind::Hello, &old.write()).unwrap();
            Reader::default().next(&mut &stream).unwrap().unwrap()
        });
        let met = meet(&placement, Some(listener), Limits::default(), &mut || Ok(()));
        let told = met.map(|_| ()).unwrap_err().to_string();
        let (kind, heard) = guest.join().unwrap();
        assert!(told.contains("rank 1 is engine 0.0.9, rank 0 is"), "{told}");
        assert!(kind == FrameKind::Refused && told.starts_with(&printable(&heard)), "{told}");
    }

    #[test]
    fn what_others_send_never_panics() {
        let member = Member { address: "10.0.0.1:5".parse().unwrap(), host: "h".into(), process: 3 };
        let meeting = Meeting { members: vec![member; 2], nonce: 9 };
        let payload = welcome(&meeting);
        for len in 0..payload.len() {
            assert!(welcomed(&payload[..len], 2, [1, 2, 3, 4].into()).is_none());
        }
        assert!(welcomed(&payload, 3, [1, 2, 3, 4].into()).is_none());
        let found = welcomed(&payload, 2, [1, 2, 3, 4].into()).unwrap();
        assert_eq!(found.members[0].address.to_string(), "1.2.3.4:5");
        assert_eq!((found.members[1].address.to_string(), found.nonce), ("10.0.0.1:5".into(), 9));
        for len in 0..40 {
            assert!(Hello::read(&vec![0xff; len]).is_none());
        }
    }
}
