//! How the processes of one run agree at the start.

use super::together::Share;
use super::{TrainRequest, fingerprint};
use crate::cluster::{Alone, Collective, Fact, agree};
use crate::config::{Config, Precision};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::tensor::Device;
use std::path::PathBuf;
use std::sync::Arc;

/// The processes of a request.
pub(super) fn team(request: &TrainRequest) -> Arc<dyn Collective> {
    request.team.clone().unwrap_or_else(|| Arc::new(Alone::default()))
}

/// The settings of a process as text: paths of data sets may differ between machines.
pub(super) fn asked(request: &TrainRequest) -> Result<String> {
    let length = format!("steps: {:?}\nepochs: {:?}\n", request.steps, request.epochs);
    let Some(config) = &request.config else { return Ok(format!("{length}a resumed run\n")) };
    let mut config = config.clone();
    config.data.path = None;
    Ok(format!("{length}{}", config.to_yaml()?))
}

/// Rank 0 has found its data, and sends the configuration to the others; then all compare.
pub(super) fn lead(team: &dyn Collective, asked: String, config: &Config, dataset: &Dataset) -> Result<()> {
    if team.ranks() == 1 {
        return Ok(());
    }
    team.tell(config.to_json()?.as_bytes())?;
    agree(team, &identity(asked, fingerprint(dataset)))
}

/// The configuration of rank 0.
pub(super) fn config_of_rank_0(team: &dyn Collective) -> Result<Config> {
    let text = String::from_utf8(team.listen()?)
        .map_err(|_| Error::cluster("rank 0 sent no configuration", "start all ranks with the same engine"))?;
    Config::from_json(&text, "the configuration from rank 0")
}

/// The others have found their data too.
pub(super) fn compare(team: &dyn Collective, asked: String, dataset: &Dataset) -> Result<()> {
    agree(team, &identity(asked, fingerprint(dataset)))
}

/// The precision of all processes: what `auto` means on rank 0's device.
pub(super) fn settled(team: &dyn Collective, asked: Precision, device: &Device) -> Result<Precision> {
    let own = asked.settled(device.multiplies_bf16());
    if asked != Precision::Auto || team.ranks() == 1 {
        return Ok(own);
    }
    if team.rank() == 0 {
        team.tell(own.name().as_bytes())?;
        return Ok(own);
    }
    let told = team.listen()?;
    let known = Precision::SETTLED.into_iter().find(|known| known.name().as_bytes() == told);
    known.ok_or_else(|| Error::cluster("rank 0 sent no precision", "start all ranks with the same engine"))
}

fn identity(asked: String, data: String) -> Vec<Fact> {
    vec![
        Fact { name: "engine", value: engine() },
        Fact { name: "configuration", value: asked },
        Fact { name: "data set", value: data },
    ]
}

/// The program's version and checksum: another build may compute different bits.
fn engine() -> String {
    let own = std::env::current_exe().and_then(std::fs::read).map(|bytes| crc32c::crc32c(&bytes)).unwrap_or_default();
    format!("{}, checksum {own:08x}", env!("CARGO_PKG_VERSION"))
}

/// Without shards a configuration gives the batches of each process per step; the run records the total, so that it resumes with
/// the same steps on any number of processes.
pub(super) fn count_all(team: &dyn Collective, config: &mut Config) {
    if config.training.shards.is_none() {
        let all = config.training.gradient_accumulation.saturating_mul(team.ranks());
        config.training.gradient_accumulation = all;
    }
}

/// Whether `ranks` processes can share the steps of a run: for a program that starts them, before it does.
///
/// # Errors
/// [`Error::Config`] with the numbers of processes that can.
pub fn check_ranks(request: &TrainRequest, ranks: usize) -> Result<()> {
    let recorded = |root: &PathBuf| Config::from_file(root.join("config.yaml")).ok();
    let (config, is_resumed) = match &request.resume {
        // A folder without it is told, or repaired from a checkpoint, when the run begins.
        Some(root) => (recorded(root), true),
        None => (request.config.clone(), false),
    };
    let Some(training) = config.map(|config| config.training) else { return Ok(()) };
    // A new run without shards has as many batches as processes.
    if is_resumed || training.shards.is_some() {
        Share::new(0, ranks, training.micro_batches(), training.shards)?;
    }
    Ok(())
}

/// Ends a job as its run ended on this rank: rank 0 decides on an interruption, which is not a failure.
pub(super) fn leave<T>(team: &dyn Collective, outcome: &Result<T>) {
    match outcome {
        Ok(_) | Err(Error::Interrupted { .. }) => team.leave(None),
        Err(error) => team.leave(Some(&error.to_string())),
    }
}
