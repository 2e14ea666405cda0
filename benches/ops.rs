//! Every op's cases, timed: `cargo bench -p benches --bench ops -- layer_norm`.
//!
//! On the CPU in f32; with a GPU (`ENGINE_DEVICE=cuda`) in f32 and bf16 on it. Each measurement ends with the device's
//! work done. The ids are `op/case/direction/device/dtype`; throughput is in the bytes that the op cannot avoid.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::device::DeviceChoice;
use engine::ops::cases;
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
            let context = Context::new(device.clone());
            let prepared = case.prepare(&context, dtype).unwrap_or_else(|error| panic!("{error}"));
            let name = |direction: &str| format!("{direction}/{}/{dtype}", context.device_name());
            let mut time = |direction: &str, run: &dyn Fn() -> engine::Result<()>| {
                // Planned like a real step: memory comes from an arena, not from the allocator.
                let mut program = Program::plan(&context, run).unwrap_or_else(|error| panic!("{error}"));
                let bytes: f64 = program.charges().values().map(|(_, cost)| cost.bytes).sum();
                group.throughput(Throughput::Bytes(bytes as u64));
                group.bench_function(name(direction), |bencher| {
                    bencher.iter(|| {
                        program.run(run).unwrap();
                        context.synchronize().unwrap();
                    });
                });
            };
            time("forward", &|| prepared.forward());
            time("forward_backward", &|| prepared.forward_backward());
        }
        group.finish();
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
