//! The host's driver calls during replays, counted by the PTX machine.

use std::collections::BTreeMap;
use std::io::Write;

use engine::config::Precision;
use engine::ops::repeats::Repeats;
use engine::tensor::{DType, Device};

use super::tiny::{TOKEN, config, sample, train};
use super::{BF16, device, machine, open};

/// Number of calls by name.
type Counts = BTreeMap<String, u64>;

/// The calls of work on its own device, which is closed at its end; None if the driver does not count.
fn calls(work: impl FnOnce(&Device)) -> Option<Counts> {
    let read = || {
        let text = std::fs::read_to_string(std::env::var_os(machine::COUNTS)?).ok()?;
        let line = |line: &str| line.split_once(' ').map(|(name, count)| (name.to_string(), count.parse().unwrap()));
        Some(text.lines().filter_map(line).collect::<Counts>())
    };
    let before = read()?;
    let device = open().unwrap();
    work(&device);
    drop(device);
    Some(more(&before, &read()?))
}

/// The calls in `all` beyond those in `fewer`.
fn more(fewer: &Counts, all: &Counts) -> Counts {
    let by = |(name, count): (&String, &u64)| (name.clone(), count - fewer.get(name).unwrap_or(&0));
    all.iter().map(by).filter(|(_, count)| *count > 0).collect()
}

/// The calls of four times the work after capture: those of long work minus those of shorter work.
fn replayed(test: &str, work: impl Fn(&Device, u64)) {
    let (Some(short), Some(long)) = (calls(|device| work(device, 3)), calls(|device| work(device, 7))) else {
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: this driver counts no calls; the machine does");
        return;
    };
    let expected = [("cuCtxSetCurrent", 8), ("cuGraphLaunch", 4), ("cuMemcpyDtoDAsync_v2", 4)];
    let expected: Counts = expected.map(|(name, count)| (name.to_string(), count)).into();
    // One launch of the graph; one device copy of its control words; no wait.
    assert_eq!(more(&short, &long), expected);
}

#[test]
fn small_training_waits_for_nothing() {
    const TEST: &str = "waits::small_training_waits_for_nothing";
    let Some((_guard, _)) = device(TEST) else { return };
    let config = config(&[&TOKEN[..], &[BF16, "training.num_steps=8"]].concat());
    replayed(TEST, |device, steps| drop(train(&config, device, true, steps)));
}

#[test]
fn small_sampling_waits_for_nothing() {
    const TEST: &str = "waits::small_sampling_waits_for_nothing";
    let Some((_guard, _)) = device(TEST) else { return };
    replayed(TEST, |device, stages| {
        let stages = format!("sampling.num_steps={stages}");
        let config = config(&[&TOKEN[..], &["sampling.sampler=ddim", "sampling.guidance=2", &stages]].concat());
        drop(sample(&config, device, Precision::Bf16, 3, 3));
    });
}

#[test]
fn small_repeats_are_one_graph() {
    const TEST: &str = "waits::small_repeats_are_one_graph";
    let Some((_guard, _)) = device(TEST) else { return };
    let all = engine::ops::cases();
    let case = all.iter().find(|case| case.op == "linear" && !case.large).unwrap();
    let work = |device: &Device, times: usize| {
        let repeats = Repeats::capture(device, case, DType::BF16, true).unwrap().unwrap();
        assert!(repeats.count() >= 32 && repeats.bytes() > 0.0, "{}", repeats.count());
        let times: Vec<_> = (0..times).map(|_| repeats.time().unwrap().expect("the device has a clock")).collect();
        assert!(times.iter().all(|time| !time.is_zero()), "{times:?}");
    };
    let (Some(short), Some(long)) = (calls(|device| work(device, 1)), calls(|device| work(device, 4))) else {
        work(&open().unwrap(), 2);
        return;
    };
    let calls = ["cuEventCreate", "cuEventDestroy_v2", "cuEventRecord"].map(|name| (name.to_string(), 6)).into_iter();
    let once = ["cuCtxSetCurrent", "cuEventElapsedTime", "cuGraphLaunch", "cuStreamSynchronize"];
    assert_eq!(more(&short, &long), calls.chain(once.map(|name| (name.to_string(), 3))).collect());
}
