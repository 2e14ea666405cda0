//! The part of `engine plan` for several GPUs.

use super::plan::{bytes, images, number, three, time};
use crate::config::{CommunicationDtype, Config};
use crate::error::{Error, Result};
use crate::train::{Estimate, Link, Peak, Scaling};

/// Most GPUs to plan for.
const MOST: usize = 1024;

/// The link given with `--link`.
pub(super) fn link(name: &str) -> Result<Link> {
    Link::ALL.into_iter().find(|link| link.key() == name).ok_or_else(|| {
        let short: String = name.chars().take(60).collect();
        let message = format!("no link is called `{}`", short.escape_debug());
        Error::config("--link", message, "use nvlink, pcie or 100gbe")
    })
}

/// The plan for 1, 2, 4, … up to `gpus` GPUs.
pub(super) fn text(config: &Config, estimate: &Estimate, peak: &Peak, gpus: usize, link: Link) -> Result<String> {
    if !(1..=MOST).contains(&gpus) {
        return Err(Error::config("--gpus", format!("{gpus} GPUs"), format!("give 1 to {MOST}")));
    }
    let training = &config.training;
    let sharded = training.shards.is_some();
    let compute = estimate.training.roofline(peak, training.precision).seconds;
    let batches = training.micro_batches() as f64;
    // The plan covers one process's step: with shards its part of the step, else a whole one.
    let of = |kind: &str| estimate.memory.iter().find(|(name, _)| *name == kind).map_or(0, |(_, size)| *size);
    let gradients = of("gradients") as f64;
    let brief = training.communication_dtype == CommunicationDtype::Bf16;
    let exchanged = if brief { gradients / 2.0 } else { gradients };
    let mut text = format!(
        "\nstep on several GPUs, modelled; {} of gradients in f32 ({} in bf16) {}\n  {}\n",
        bytes(gradients),
        bytes(gradients / 2.0),
        match (sharded, brief) {
            (true, _) => "gathered by all, then added in one tree (training.shards)",
            (_, false) => "added up in f32 by ring or double tree beside the backward",
            (_, true) => "added up in bf16 by ring or double tree beside the backward",
        },
        link.describe(),
    );
    text += &format!(
        "  {:>6}{:>12}{:>12}{:>12}{:>12}{:>12}{:>16}\n",
        "GPUs", "images", "exchange", "one by one", "step", "efficiency", "images/s"
    );
    let mut rows: Vec<usize> = (0..).map(|power| 1 << power).take_while(|count| *count < gpus).collect();
    rows.push(gpus);
    let mut stops = None;
    for gpus in rows {
        let share = match training.shards {
            Some(shards) if gpus > shards => continue,
            Some(_) => 1.0 / gpus as f64,
            None => 1.0,
        };
        let step = Scaling::new(link, gpus, compute * share, exchanged, sharded);
        let count = training.batch_size as f64 * batches * share * gpus as f64;
        if step.efficiency() < 0.5 {
            stops.get_or_insert(gpus);
        }
        text += &format!(
            "  {:>6}{:>12}{:>12}{:>12}{:>12}{:>11} %{:>16}\n",
            number(gpus),
            number(count as usize),
            time(step.exchange),
            time(step.after),
            time(step.taken),
            three(100.0 * step.efficiency()),
            images(count / step.taken).trim_end_matches(" images/s"),
        );
    }
    text += &match stops {
        Some(gpus) => format!("  from {} GPUs on more than half of the time is exchange\n", number(gpus)),
        None => String::from("  less than half of the time is exchange\n"),
    };
    let state = of("optimizer state") + of("moving average");
    text += &format!(
        "  each GPU holds all state, {}; sharding optimizer state and average (ZeRO) would save at most {} and cost a gather\n  \
         of the weights per step, so it is not done\n",
        bytes(estimate.total_bytes() as f64),
        bytes(state as f64),
    );
    Ok(text)
}
