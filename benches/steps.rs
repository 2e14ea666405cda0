//! A training step and a denoising step of whole models: `cargo bench -p benches --bench steps -- dit-cifar10`.
//!
//! On the CPU in f32 at batch 32; with a GPU (`ENGINE_DEVICE=cuda`) at batch 256 in f32, TF32 and bf16. Training steps follow each other
//! without waiting, except after the last of a measurement; a sampler call waits for its pictures. The ids are
//! `preset/step/device/precision/batch`; throughput is in images. Pixels are random.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::config::{Config, Precision};
use engine::device::DeviceChoice;
use engine::diffusion::{SamplerKind, SamplingConfig};
use engine::tensor::Device;
use engine::train::{Recipe, Trainer, random_set};

/// Denoising steps per call: its start and end (uploading labels, noise, downloading images) are negligible.
const DENOISING_STEPS: usize = 10;

fn device() -> (Device, usize, &'static [Precision]) {
    let choice = std::env::var("ENGINE_DEVICE").unwrap_or_else(|_| "cpu".into());
    let chosen =
        choice.parse::<DeviceChoice>().and_then(|choice| choice.open()).unwrap_or_else(|error| panic!("{error}"));
    match chosen.accelerator {
        Some(accelerator) => (Device::Accelerator(accelerator), 256, &Precision::SETTLED),
        None => (Device::Cpu, 32, &[Precision::F32]),
    }
}

fn steps(criterion: &mut Criterion) {
    for preset in ["dit-cifar10", "quickstart", "ddpm-cifar10", "unet-fashion-small", "resnet18-cifar10", "resnet-dit"]
    {
        bench_preset(criterion, preset).unwrap_or_else(|error| panic!("{preset}: {error}"));
    }
}

fn bench_preset(criterion: &mut Criterion, preset: &str) -> engine::Result<()> {
    let (device, batch, precisions) = device();
    for &precision in precisions {
        let mut config = Config::preset(preset)?;
        config.training.batch_size = batch;
        config.training.precision = precision;
        let mut trainer =
            Trainer::new(&config.model, &random_set(&config, 2 * batch)?, &Recipe::new(&config, device.clone()))?;
        let name = trainer.parameters().precision_name();
        let place = format!("{}/{name}/{batch}", trainer.context().device_name());
        let mut group = criterion.benchmark_group(preset);
        group.sample_size(10).throughput(Throughput::Elements(batch as u64));
        group.bench_function(format!("training/{place}"), |bencher| {
            // As in a run: a step is submitted while the previous one runs, and the metrics are read occasionally.
            bencher.iter_custom(|iterations| {
                trainer.context().synchronize().unwrap();
                let start = Instant::now();
                for _ in 0..iterations {
                    if trainer.must_drain() {
                        trainer.drain_metrics().unwrap();
                    }
                    trainer.train_step().unwrap();
                }
                trainer.context().synchronize().unwrap();
                start.elapsed()
            });
        });
        // A classifier draws nothing, and guidance needs a null label.
        let guidances: &[f64] = match (config.model.is_classifier(), config.model.null_label()) {
            (true, _) => &[],
            (false, None) => &[1.0],
            (false, Some(_)) => &[1.0, 2.0],
        };
        for &guidance in guidances {
            let sampling = SamplingConfig {
                // DDIM's step is the cheapest: one network call; on straight paths it is Euler's method.
                sampler: SamplerKind::Ddim,
                num_steps: DENOISING_STEPS,
                guidance,
                ..SamplingConfig::default()
            };
            let mut sampler = trainer.sampler(&sampling, batch, 0)?;
            let labels = vec![0; batch];
            group.bench_function(format!("denoising_guidance_{guidance}/{place}"), |bencher| {
                bencher.iter_custom(|iterations| {
                    // A call takes several steps: its time is divided by their number.
                    let mut spent = Duration::ZERO;
                    for _ in 0..iterations {
                        let start = Instant::now();
                        sampler.run(0, &labels, |_, _| Ok(())).unwrap();
                        spent += start.elapsed();
                    }
                    spent / DENOISING_STEPS as u32
                });
            });
        }
        group.finish();
    }
    Ok(())
}

criterion_group!(benches, steps);
criterion_main!(benches);
