//! The environment variables of launchers: this process's rank, the number of ranks, and the address of rank 0.
//!
//! | launcher | variables |
//! |---|---|
//! | `engine train --processes`, `--gpus` | `ENGINE_RANK`, `…_RANKS`, `…_LOCAL_RANK`, `…_LOCAL_RANKS`, `…_LEADER`, `…_JOB`; only for its own children |
//! | torchrun, or set by hand | `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT` |
//! | Kubeflow's trainer | `PET_NNODES`, `PET_NPROC_PER_NODE`, `PET_NODE_RANK`, `PET_MASTER_ADDR`, `PET_MASTER_PORT` |
//! | Slurm's `srun` | `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS`, `SLURM_LOCALID`, `SLURM_JOB_NODELIST`, `SLURM_JOB_ID` |
//! | OpenMPI's `mpirun` | `OMPI_COMM_WORLD_RANK`, `…_SIZE`, `…_LOCAL_RANK`, `…_LOCAL_SIZE` |
//! | MPICH's `mpirun` | `PMI_RANK`, `PMI_SIZE`, `MPI_LOCALRANKID`, `MPI_LOCALNRANKS` |
//!
//! `ENGINE_PORT` overrides the port. If `TORCHELASTIC_USE_AGENT_STORE` says that torchrun's agent holds MASTER_PORT, rank 0
//! listens on the next one.

use crate::error::{Error, Result};

/// Most ranks of a job.
pub const MOST_RANKS: usize = 4096;

/// Range of ports derived from the number of a job: below the ephemeral ports.
const PORTS: std::ops::Range<u64> = 20_000..32_000;

/// The place of a process in its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The launcher's name.
    pub launcher: &'static str,
    /// Its rank, from 0.
    pub rank: usize,
    /// The number of processes.
    pub ranks: usize,
    /// Its rank on its machine.
    pub local_rank: usize,
    /// The number of processes on its machine, if known.
    pub local_ranks: Option<usize>,
    /// Host and port of rank 0.
    pub leader: (String, u16),
    /// Identifies the job.
    pub job: String,
    /// Number of ranks that this process starts on its machine, including itself: Kubeflow starts one process per node.
    pub starts: usize,
}

/// Access to environment variables.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn has(&self, name: &str) -> bool {
        self.text(name).is_some()
    }

    fn number(&self, name: &str) -> Result<Option<usize>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let short: String = text.chars().take(40).collect();
        let number = text.trim().parse::<usize>().ok().filter(|number| *number < 1 << 31);
        number
            .map(Some)
            .ok_or_else(|| Error::config(name, format!("`{}` is not a number", short.escape_debug()), "give a number"))
    }

    fn needed(&self, name: &'static str, beside: &str) -> Result<usize> {
        let missing = || Error::config(name, format!("it is not set, though {beside} is"), "set both, or neither");
        self.number(name)?.ok_or_else(missing)
    }

    fn port(&self, name: &str) -> Result<Option<u16>> {
        let Some(number) = self.number(name)? else { return Ok(None) };
        let port = u16::try_from(number).ok().filter(|port| *port > 0);
        port.map(Some).ok_or_else(|| Error::config(name, format!("{number} is not a port"), "give 1 to 65535"))
    }
}

/// One launcher's values of rank and number of ranks.
struct Claim {
    launcher: &'static str,
    names: [&'static str; 2],
    rank: usize,
    ranks: usize,
    local_rank: Option<usize>,
    local_ranks: Option<usize>,
}

impl Claim {
    fn read(variables: &Variables, launcher: &'static str, names: [&'static str; 4]) -> Result<Option<Self>> {
        let [rank, ranks, local_rank, local_ranks] = names;
        if !variables.has(rank) && !variables.has(ranks) {
            return Ok(None);
        }
        Ok(Some(Self {
            launcher,
            names: [rank, ranks],
            rank: variables.needed(rank, ranks)?,
            ranks: variables.needed(ranks, rank)?,
            local_rank: variables.number(local_rank)?,
            local_ranks: variables.number(local_ranks)?,
        }))
    }

    fn describe(&self) -> String {
        format!("{}={}, {}={}", self.names[0], self.rank, self.names[1], self.ranks)
    }
}

/// The place from the launchers' variables; None if no launcher started this process.
///
/// # Errors
/// [`Error::Config`] with all variables if they contradict each other or are incomplete.
pub fn placement(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Placement>> {
    let v = Variables(variable);
    if v.has("ENGINE_RANK") {
        return own(&v).map(Some);
    }
    let names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"];
    let plain = Claim::read(&v, "torchrun", names)?;
    // torchrun reads PET_* itself, and gives its workers a local rank; the other launchers then only started torchrun.
    if let Some(claim) = plain.as_ref().filter(|_| v.has("TORCHELASTIC_RUN_ID") || v.has("LOCAL_RANK")) {
        if !v.has("TORCHELASTIC_RUN_ID") {
            agree(&v, &[&plain])?;
        }
        return placed(&v, claim).map(Some);
    }
    if v.has("PET_NODE_RANK") {
        return kubeflow(&v, plain.as_ref()).map(Some);
    }
    agree(&v, &[&plain])?;
    match plain.or(inner(&v)?).or(slurm(&v)?) {
        Some(claim) => placed(&v, &claim).map(Some),
        None => Ok(None),
    }
}

/// The claim of an MPI's `mpirun`.
fn inner(v: &Variables) -> Result<Option<Claim>> {
    let open =
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"];
    if let Some(claim) = Claim::read(v, "OpenMPI", open)? {
        return Ok(Some(claim));
    }
    Claim::read(v, "MPICH", ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"])
}

/// Slurm's claim, for a process started by `srun`: a batch script also has rank and size, but is not a task.
fn slurm(v: &Variables) -> Result<Option<Claim>> {
    if !v.has("SLURM_STEP_NUM_TASKS") {
        return Ok(None);
    }
    Claim::read(v, "Slurm", ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "ENGINE_LOCAL_RANKS"])
}

/// Refuses contradicting launchers. Slurm starts an MPI's daemons, so the MPI takes precedence.
fn agree(v: &Variables, others: &[&Option<Claim>]) -> Result<()> {
    let mpi = inner(v)?;
    let slurm = if mpi.is_some() { None } else { slurm(v)? };
    let claims: Vec<&Claim> = others.iter().copied().chain([&mpi, &slurm]).flatten().collect();
    let differ = claims.iter().any(|claim| (claim.rank, claim.ranks) != (claims[0].rank, claims[0].ranks));
    if !differ {
        return Ok(());
    }
    let all: Vec<String> = claims.iter().map(|claim| claim.describe()).collect();
    let message = format!("launchers contradict each other: {}", all.join("; "));
    Err(Error::config("the launcher's variables", message, "unset those that the launcher did not set"))
}

/// The children of this engine.
fn own(v: &Variables) -> Result<Placement> {
    let names = ["ENGINE_RANK", "ENGINE_RANKS", "ENGINE_LOCAL_RANK", "ENGINE_LOCAL_RANKS"];
    let Some(claim) = Claim::read(v, "engine", names)? else { unreachable!("asked for above") };
    let leader = v.text("ENGINE_LEADER").unwrap_or_default();
    let parsed = leader.rsplit_once(':').and_then(|(host, port)| Some((host.to_string(), port.parse().ok()?)));
    let unknown = || Error::config("ENGINE_LEADER", "it has no host and port", "let `train(processes)` set it");
    checked(Placement {
        launcher: "engine",
        rank: claim.rank,
        ranks: claim.ranks,
        local_rank: claim.local_rank.unwrap_or(claim.rank),
        local_ranks: claim.local_ranks,
        leader: parsed.ok_or_else(unknown)?,
        job: v.text("ENGINE_JOB").unwrap_or_default(),
        starts: 1,
    })
}

/// One process per node, which starts the node's ranks itself.
fn kubeflow(v: &Variables, plain: Option<&Claim>) -> Result<Placement> {
    let node = v.needed("PET_NODE_RANK", "PET_NNODES")?;
    let nodes = v.needed("PET_NNODES", "PET_NODE_RANK")?;
    let each = v.number("PET_NPROC_PER_NODE")?.unwrap_or(1);
    let fits = |claim: &Claim| claim.rank == node && (claim.ranks == nodes || claim.ranks == nodes * each);
    if let Some(claim) = plain.filter(|claim| !fits(claim)) {
        let message = format!(
            "launchers contradict each other: PET_NODE_RANK={node}, PET_NNODES={nodes}, PET_NPROC_PER_NODE={each}; {}",
            claim.describe()
        );
        return Err(Error::config("the launcher's variables", message, "unset those that the launcher did not set"));
    }
    let host = v.text("PET_MASTER_ADDR").or_else(|| v.text("MASTER_ADDR"));
    let port = v.port("PET_MASTER_PORT")?.or(v.port("MASTER_PORT")?).unwrap_or(29_500);
    let missing = || Error::config("PET_MASTER_ADDR", "it is not set", "give the host of node rank 0");
    checked(Placement {
        launcher: "Kubeflow",
        rank: node.saturating_mul(each),
        ranks: nodes.saturating_mul(each),
        local_rank: 0,
        local_ranks: Some(each),
        leader: (host.or_else(|| (nodes == 1).then(|| "127.0.0.1".into())).ok_or_else(missing)?, own_port(v, port)?),
        job: v.text("PET_RDZV_ID").unwrap_or_default(),
        starts: each.max(1),
    })
}

fn placed(v: &Variables, claim: &Claim) -> Result<Placement> {
    let whole = claim.local_ranks == Some(claim.ranks) || claim.ranks == 1;
    let slurm = v.text("SLURM_JOB_ID").map(|job| format!("{job}.{}", v.text("SLURM_STEP_ID").unwrap_or_default()));
    let job = match claim.launcher {
        "torchrun" => {
            ["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"].map(|name| v.text(name).unwrap_or_default()).join(".")
        }
        _ => slurm.clone().or_else(|| v.text("PMIX_NAMESPACE")).unwrap_or_else(of_parent),
    };
    let first =
        v.text("SLURM_STEP_NODELIST").or_else(|| v.text("SLURM_JOB_NODELIST")).and_then(|list| first_host(&list));
    let host = v.text("MASTER_ADDR").or(first).or_else(|| whole.then(|| "127.0.0.1".to_string()));
    let missing = || {
        let message = format!("it is not set, and {} does not say where rank 0 is", claim.launcher);
        Error::config("MASTER_ADDR", message, "set it to rank 0's host, and MASTER_PORT to a free port there")
    };
    let port = match v.port("MASTER_PORT")? {
        // torchrun's agent listens on that port.
        Some(port) if v.text("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True") => port.checked_add(1),
        Some(port) => Some(port),
        None if claim.launcher == "torchrun" => Some(29_500),
        None => Some(port_of(&job)),
    };
    let last = || Error::config("MASTER_PORT", "65535 has no next port for rank 0 to listen on", "set ENGINE_PORT");
    checked(Placement {
        launcher: claim.launcher,
        rank: claim.rank,
        ranks: claim.ranks,
        local_rank: claim.local_rank.unwrap_or(if whole { claim.rank } else { 0 }),
        local_ranks: claim.local_ranks,
        leader: (host.ok_or_else(missing)?, own_port(v, port.ok_or_else(last)?)?),
        job,
        starts: 1,
    })
}

fn own_port(v: &Variables, port: u16) -> Result<u16> {
    Ok(v.port("ENGINE_PORT")?.unwrap_or(port))
}

fn checked(placement: Placement) -> Result<Placement> {
    let Placement { rank, ranks, starts, .. } = placement;
    if rank >= ranks || starts == 0 || rank + starts > ranks || ranks > MOST_RANKS {
        let message = format!("rank {rank} of {ranks}: ranks are numbered from 0, and there are at most {MOST_RANKS}");
        return Err(Error::config("the launcher's variables", message, "give as many ranks as the job has"));
    }
    Ok(placement)
}

/// The job id of processes that share only their parent.
fn of_parent() -> String {
    #[cfg(unix)]
    return format!("parent {}", std::os::unix::process::parent_id());
    #[cfg(not(unix))]
    return String::new();
}

/// A port derived from the job.
fn port_of(job: &str) -> u16 {
    let hash =
        job.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (PORTS.start + (hash ^ hash >> 32) % (PORTS.end - PORTS.start)) as u16
}

/// The first host of Slurm's list: `node[03-08,11],other` starts with `node03`.
fn first_host(list: &str) -> Option<String> {
    let list: String = list.chars().take(4096).collect();
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let Some(inside) = rest.strip_prefix('[') else { return (!name.is_empty()).then(|| name.to_string()) };
    let number: String = inside.chars().take_while(char::is_ascii_digit).collect();
    // A suffix after the bracket, as in `rack[1-4]-gpu`.
    let tail: String = inside.split_once(']')?.1.chars().take_while(|c| !matches!(c, ',' | '[')).collect();
    (!number.is_empty()).then(|| format!("{name}{number}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Placement>> {
        placement(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
    }

    fn found(variables: &[(&str, &str)]) -> (usize, usize, usize, String) {
        let place = of(variables).unwrap().unwrap();
        (place.rank, place.ranks, place.local_rank, format!("{}:{}", place.leader.0, place.leader.1))
    }

    const TORCHRUN: [(&str, &str); 6] = [
        ("RANK", "5"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "4"),
        ("MASTER_ADDR", "node0"),
        ("MASTER_PORT", "29400"),
    ];

    #[test]
    fn every_launcher_is_understood() {
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(found(&TORCHRUN), (5, 8, 1, "node0:29400".into()));
        let agent = [&TORCHRUN[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RUN_ID", "x")]].concat();
        assert_eq!(found(&agent).3, "node0:29401");
        assert_eq!(found(&[&agent[..], &[("ENGINE_PORT", "7000")]].concat()).3, "node0:7000");
        let slurm = [
            ("SLURM_PROCID", "3"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_JOB_NODELIST", "gpu[03-04]"),
            ("SLURM_JOB_ID", "4711"),
            ("SLURM_STEP_ID", "0"),
        ];
        let (rank, ranks, local, leader) = found(&slurm);
        assert_eq!((rank, ranks, local), (3, 4, 1));
        assert!(leader.starts_with("gpu03:") && leader == found(&slurm).3, "{leader}");
        // A batch script is not a task, and torchrun started by srun takes precedence over its workers.
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]).unwrap(), None);
        assert_eq!(found(&[&agent[..], &slurm].concat()).0, 5);
        let open = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        let (rank, ranks, local, leader) = found(&open);
        assert!((rank, ranks, local) == (1, 2, 1) && leader.starts_with("127.0.0.1:"), "{leader}");
        // mpirun starts its daemons with srun.
        assert_eq!(found(&[&open[..], &slurm].concat()).0, 1);
        let mpich = [("PMI_RANK", "1"), ("PMI_SIZE", "3"), ("MASTER_ADDR", "h"), ("MASTER_PORT", "5")];
        assert_eq!(found(&mpich), (1, 3, 0, "h:5".into()));
        let pet = [
            ("PET_NNODES", "2"),
            ("PET_NPROC_PER_NODE", "4"),
            ("PET_NODE_RANK", "1"),
            ("PET_MASTER_ADDR", "job-node-0-0"),
            ("PET_MASTER_PORT", "29400"),
        ];
        assert_eq!(found(&pet), (4, 8, 0, "job-node-0-0:29400".into()));
        assert_eq!(of(&pet).unwrap().unwrap().starts, 4);
        assert_eq!(of(&[&pet[..], &[("RANK", "1"), ("WORLD_SIZE", "2")]].concat()).unwrap().unwrap().starts, 4);
    }

    #[test]
    fn contradictions_and_gaps_are_listed() {
        let refused = |variables: &[(&str, &str)]| of(variables).unwrap_err().to_string();
        let plain = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "h")];
        let both = refused(&[&plain[..], &[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")]].concat());
        assert!(both.contains("RANK=0, WORLD_SIZE=2; OMPI_COMM_WORLD_RANK=1, OMPI_COMM_WORLD_SIZE=2"), "{both}");
        let slurm = refused(&[&plain[..], &[("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")]].concat());
        assert!(slurm.contains("SLURM_PROCID=1"), "{slurm}");
        let pet = refused(&[&plain[..], &[("PET_NODE_RANK", "1"), ("PET_NNODES", "2")]].concat());
        assert!(pet.contains("PET_NODE_RANK=1") && pet.contains("RANK=0"), "{pet}");
        assert!(refused(&[("RANK", "0")]).contains("WORLD_SIZE: it is not set, though RANK is"));
        assert!(refused(&[("RANK", "x"), ("WORLD_SIZE", "2")]).contains("`x` is not a number"));
        assert!(refused(&[("RANK", "2"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "h")]).contains("rank 2 of 2"));
        assert!(refused(&[("RANK", "0"), ("WORLD_SIZE", "99999"), ("MASTER_ADDR", "h")]).contains("at most 4096"));
        assert!(refused(&[("RANK", "0"), ("WORLD_SIZE", "2")]).contains("MASTER_ADDR: it is not set"));
        let port = refused(&[&plain[..], &[("MASTER_PORT", "70000")]].concat());
        assert!(port.contains("70000 is not a port"), "{port}");
        assert!(refused(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]).contains("MPICH does not say where rank 0 is"));
    }

    #[test]
    fn lists_of_nodes_begin_with_a_node() {
        for (list, first) in [
            ("node[03-08,11],other", Some("node03")),
            ("a,b", Some("a")),
            ("one", Some("one")),
            ("rack[1-4]-gpu,x", Some("rack1-gpu")),
            ("[", None),
            ("node[", None),
            ("", None),
        ] {
            assert_eq!(first_host(list).as_deref(), first, "{list}");
        }
    }
}
