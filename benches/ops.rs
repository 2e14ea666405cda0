//! Every op's cases, timed: `cargo bench -p benches --bench ops -- layer_norm`.
//!
//! On the CPU in f32; with a GPU (`ENGINE_DEVICE=cuda`) in f32 and bf16 on it. There a measurement is a graph of at least 32
//! repeats between two events, over copies of the case that exceed the L2 cache: it includes neither the host's launches and waits
//! nor cache hits from the previous repeat (`engine::ops::repeats`). The ids are `op/case/direction/device/dtype`; throughput is
//! in the minimum bytes of the op.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::device::DeviceChoice;
use engine::ops::case::Case;
use engine::ops::cases;
use engine::ops::repeats::Repeats;
use engine::tensor::{Context, DType, Device, Program};

fn device() -> (Device, &'static [DType]) {
    let choice = std::env::var("ENGINE_DEVICE").unwrap_or_else(|_| "cpu".into());
    let chosen =
        choice.parse::<DeviceChoice>().and_then(|choice| choice.open()).unwrap_or_else(|error| panic!("{error}"));
    match chosen.accelerator {
        Some(accelerator) => (Device::Accelerator(accelerator), &[DType::F32, DType::BF16]),
        None => (Device::Cpu, &[DType::F32]),
    }
}

fn ops(criterion: &mut Criterion) {
    let (device, dtypes) = device();
    for case in cases().iter().filter(|case| case.large) {
        let mut group = criterion.benchmark_group(case.id());
        group.sample_size(10);
        for &dtype in dtypes {
            let name = Context::new(device.clone()).device_name();
            for (direction, backward) in [("forward", false), ("forward_backward", true)] {
                let id = format!("{direction}/{name}/{dtype}");
                let outcome = match &device {
                    Device::Cpu => on_the_host(&mut group, id, case, dtype, backward),
                    Device::Accelerator(_) => on_a_gpu(&mut group, id, case, &device, dtype, backward),
                };
                outcome.unwrap_or_else(|error| panic!("{error}"));
            }
        }
        group.finish();
    }
}

fn on_the_host(group: &mut Group<'_>, id: String, case: &Case, dtype: DType, backward: bool) -> engine::Result<()> {
    let context = Context::new(Device::Cpu);
    let prepared = case.prepare(&context, dtype)?;
    let run = || if backward { prepared.forward_backward() } else { prepared.forward() };
    // Planned like a real step: memory comes from an arena, not from the allocator.
    let mut program = Program::plan(&context, run)?;
    let bytes: f64 = program.charges().values().map(|(_, cost)| cost.bytes).sum();
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(id, |bencher| bencher.iter(|| program.run(run).unwrap()));
    Ok(())
}

fn on_a_gpu(
    group: &mut Group<'_>,
    id: String,
    case: &Case,
    device: &Device,
    dtype: DType,
    backward: bool,
) -> engine::Result<()> {
    let Some(repeats) = Repeats::capture(device, case, dtype, backward)? else { return Ok(()) };
    group.throughput(Throughput::Bytes(repeats.bytes() as u64));
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|iterations| {
            // As many graphs as give that many repeats; the result is the mean per repeat.
            let graphs = iterations.div_ceil(repeats.count() as u64);
            let spent = (0..graphs).map(|_| repeats.time().unwrap().expect("a GPU has a clock")).sum::<Duration>();
            spent.div_f64(graphs as f64).mul_f64(iterations as f64)
        });
    });
    Ok(())
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

criterion_group!(benches, ops);
criterion_main!(benches);
