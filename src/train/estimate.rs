//! Cost of a run from shapes alone: memory by kind, work by op, and the minimum time at a device's rates.

use std::collections::BTreeMap;

use super::{DataSizes, Residency, Trainer, available_memory, observers};
use crate::config::{Config, Precision};
use crate::error::Result;
use crate::ops::host::parallel::{install, threads};
use crate::ops::host::rates::{self, Rates};
use crate::tensor::{Cost, Device, Program};
use crate::words::counted;

/// The rates of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Peak {
    /// Its name for `engine plan --on`.
    pub key: &'static str,
    /// Its display name.
    pub name: String,
    /// Dense bf16 products with f32 accumulation, on tensor cores where there are any: FLOP/s.
    pub bf16: f64,
    /// Products of f32 with factors rounded to TF32, on tensor cores where there are any: FLOP/s.
    pub tf32: f64,
    /// f32 multiply-adds outside tensor cores: FLOP/s.
    pub f32: f64,
    /// Memory bandwidth: bytes/s.
    pub bandwidth: f64,
    /// Bytes of memory, if known.
    pub memory: Option<u64>,
}

/// NVIDIA's data sheets: dense bf16 tensor TFLOP/s with f32 sums (TF32 has half of it on all), f32 TFLOP/s, GB/s, GB.
const SHEETS: &[(&str, &str, f64, f64, f64, u64)] = &[
    ("h100", "NVIDIA H100 SXM 80 GB", 989.4, 66.9, 3350.0, 80),
    ("h200", "NVIDIA H200 SXM 141 GB", 989.4, 66.9, 4800.0, 141),
    ("b200", "NVIDIA B200 SXM 192 GB", 2250.0, 75.0, 8000.0, 192),
    ("a100", "NVIDIA A100 SXM 80 GB", 312.0, 19.5, 2039.0, 80),
    ("l40s", "NVIDIA L40S 48 GB", 362.0, 91.6, 864.0, 48),
    ("l4", "NVIDIA L4 24 GB", 121.0, 30.3, 300.0, 24),
    ("rtx4090", "NVIDIA GeForce RTX 4090 24 GB", 165.2, 82.6, 1008.0, 24),
    ("rtx3090", "NVIDIA GeForce RTX 3090 24 GB", 71.0, 35.6, 936.0, 24),
];

impl Peak {
    /// The devices with known data sheets.
    pub fn known() -> Vec<Self> {
        SHEETS
            .iter()
            .map(|&(key, name, bf16, f32, bandwidth, memory)| Self {
                key,
                name: name.to_string(),
                bf16: bf16 * 1e12,
                tf32: bf16 / 2.0 * 1e12,
                f32: f32 * 1e12,
                bandwidth: bandwidth * 1e9,
                memory: Some(memory * 1_000_000_000),
            })
            .collect()
    }

    /// Measured rates of this CPU on all threads; takes about a quarter of a second.
    pub fn of_this_cpu() -> Self {
        install(|| {
            let Rates { flops, bf16, bandwidth } = rates::measure();
            Self {
                key: "cpu",
                name: format!("this cpu, {}, measured now", counted(threads(), "thread")),
                bf16,
                tf32: flops,
                f32: flops,
                bandwidth,
                memory: available_memory(&Device::Cpu),
            }
        })
    }

    /// Least seconds for `cost`, and whether memory rather than arithmetic limits it.
    pub fn floor(&self, cost: &Cost, precision: Precision) -> (f64, bool) {
        let rate = match precision {
            Precision::Bf16 if cost.tensor_cores => self.bf16,
            Precision::Tf32 if cost.tensor_cores => self.tf32,
            _ => self.f32,
        };
        let (compute, memory) = (cost.flops / rate, cost.bytes / self.bandwidth);
        (compute.max(memory), memory >= compute)
    }
}

/// The work of one op in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct OpWork {
    /// The name under which the op reports its cost: `layer_norm_bwd`.
    pub op: &'static str,
    /// Calls in the step.
    pub calls: usize,
    /// The total of all calls.
    pub cost: Cost,
}

/// A step's work by op, most expensive first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepWork {
    /// By op.
    pub ops: Vec<OpWork>,
}

/// The minimum time of a step, and its limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// Seconds: the sum over the ops of the larger of arithmetic and memory time, because ops run one after the other.
    pub seconds: f64,
    /// The share of that time, 0 to 1, in memory-bound ops.
    pub memory_bound: f64,
}

impl StepWork {
    /// The work of one program.
    pub fn of(program: &Program) -> Self {
        Self::new([(1, program.charges())])
    }

    fn new<'a>(parts: impl IntoIterator<Item = (usize, &'a BTreeMap<&'static str, (usize, Cost)>)>) -> Self {
        let mut sums: BTreeMap<&'static str, (usize, Cost)> = BTreeMap::new();
        for (times, charges) in parts {
            for (op, (calls, cost)) in charges {
                let (all, sum) = sums.entry(op).or_default();
                *all += times * calls;
                (0..times).for_each(|_| *sum += *cost);
            }
        }
        let mut ops: Vec<OpWork> = sums.into_iter().map(|(op, (calls, cost))| OpWork { op, calls, cost }).collect();
        ops.sort_by(|a, b| {
            (b.cost.flops, b.cost.bytes).partial_cmp(&(a.cost.flops, a.cost.bytes)).unwrap_or(a.op.cmp(b.op))
        });
        Self { ops }
    }

    /// The whole step.
    pub fn total(&self) -> Cost {
        let mut total = Cost::default();
        self.ops.iter().for_each(|op| total += op.cost);
        total
    }

    /// The minimum time on a device.
    pub fn roofline(&self, peak: &Peak, precision: Precision) -> Roofline {
        let floors: Vec<(f64, bool)> = self.ops.iter().map(|op| peak.floor(&op.cost, precision)).collect();
        let seconds: f64 = floors.iter().map(|(seconds, _)| seconds).sum();
        let memory: f64 = floors.iter().filter(|(_, memory)| *memory).map(|(seconds, _)| seconds).sum();
        Roofline { seconds, memory_bound: if seconds > 0.0 { memory / seconds } else { 0.0 } }
    }
}

/// The requirements of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Parameters of the model.
    pub parameters: usize,
    /// Bytes by kind; their sum is what a run allocates on its device.
    pub memory: Vec<(&'static str, usize)>,
    /// The placement of the images.
    pub residency: Residency,
    /// Bytes of all images.
    pub image_bytes: usize,
    /// Bytes of pinned host memory for streaming to an accelerator.
    pub pinned_bytes: usize,
    /// The program that determines the size of the arena.
    pub largest_program: &'static str,
    /// One optimizer step: `batch_size` x `gradient_accumulation` images.
    pub training: StepWork,
    /// The cost of sampling; None for a classifier.
    pub sampling: Option<SamplingWork>,
    /// Optimizer steps per epoch.
    pub steps_per_epoch: u64,
    /// Optimizer steps of the run.
    pub total_steps: u64,
}

/// The cost of sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingWork {
    /// One evaluation of the network and update, for `batch_size` images.
    pub evaluation: StepWork,
    /// Number of such evaluations for one batch of images, with the configured sampling.
    pub stages: usize,
    /// Bytes to sample a batch without training state.
    pub bytes: usize,
    /// Extra bytes on the CPU: weights repacked for its products.
    pub prepared_bytes: usize,
}

impl Estimate {
    /// Plans a run in shape-only mode with its images on the device: nothing is allocated or computed.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for an invalid configuration.
    pub fn new(config: &Config, sizes: DataSizes) -> Result<Self> {
        Self::with(config, sizes, Residency::Resident)
    }

    /// As [`Estimate::new`], with another placement of the images.
    ///
    /// # Errors
    /// As [`Estimate::new`].
    pub fn with(config: &Config, sizes: DataSizes, residency: Residency) -> Result<Self> {
        let trainer = Trainer::plan_with(&config.model, config, sizes, residency)?;
        let (master, fixed) = (trainer.parameters().master().bytes(), trainer.parameters().fixed_bytes());
        let copies = |parameters: &crate::nn::Parameters| parameters.compute().map_or(0, |copy| copy.bytes());
        let [first, second, ema] = trainer.optimizer_state().map(|tensor| tensor.bytes());
        let image = config.model.image_size().pixels() * config.model.image_channels();
        let images = sizes.training + sizes.validation;
        let batch = config.training.batch_size * (image + 4);
        let (data, pinned_bytes) = match residency {
            Residency::Resident => (images * (image + 4), 0),
            Residency::InPlace => (images * 4, 0),
            Residency::Streamed => (batch, 2 * batch),
        };
        let arena = trainer.programs().max_by_key(|(_, program)| program.arena_bytes());
        let (largest_program, arena) = arena.map_or(("", 0), |(name, program)| (name, program.arena_bytes()));
        let mut memory = vec![
            ("weights", master + fixed),
            ("gradients", master),
            ("optimizer state", first + second),
            ("moving average", ema),
            ("bf16 copies", copies(trainer.parameters()) + copies(trainer.averaged())),
            ("data set", data),
        ];
        let named: usize = memory.iter().map(|(_, bytes)| bytes).sum();
        memory.push(("tables and results", trainer.context().persistent_bytes().saturating_sub(named)));
        memory.push(("arena", arena));
        // Used during an evaluation, whose programs are planned separately.
        let evaluation = observers::network_bytes(config)?;
        if evaluation > 0 {
            memory.push(("evaluation network", evaluation));
        }

        let (accumulation, shards) = (config.training.gradient_accumulation, config.training.shards);
        let times = |name: &str| match (name, shards) {
            ("first batch of a step", Some(shards)) => shards,
            ("further batch of a step", Some(shards)) => shards * (accumulation - 1),
            ("further batch of a step", None) => accumulation - 2,
            ("validation batch", _) => 0,
            _ => 1,
        };
        let training = StepWork::new(trainer.programs().map(|(name, program)| (times(name), program.charges())));
        let sampling = || -> Result<SamplingWork> {
            let before = trainer.context().persistent_bytes();
            let sampler = trainer.sampler(&config.sampling, config.training.batch_size, 0)?;
            let prepared_bytes = sampler.prepared_bytes();
            let state = trainer.context().persistent_bytes() - before - prepared_bytes;
            Ok(SamplingWork {
                prepared_bytes,
                evaluation: StepWork::new([(1, sampler.program().charges())]),
                stages: sampler.stages(),
                bytes: master + fixed + copies(trainer.averaged()) + state + sampler.program().arena_bytes(),
            })
        };
        let sampling = (!config.model.is_classifier()).then(sampling).transpose()?;
        Ok(Self {
            parameters: trainer.parameters().count(),
            memory,
            residency,
            image_bytes: images * image,
            pinned_bytes,
            largest_program,
            training,
            sampling,
            steps_per_epoch: trainer.steps_per_epoch(),
            total_steps: trainer.total_steps(),
        })
    }

    /// Bytes that a run allocates on its device.
    pub fn total_bytes(&self) -> usize {
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The largest batch whose training fits into `bytes`; 0 if no batch fits.
    ///
    /// # Errors
    /// As [`Estimate::new`].
    pub fn largest_batch(config: &Config, sizes: DataSizes, bytes: u64, residency: Residency) -> Result<usize> {
        let fits = |batch: usize| -> Result<bool> {
            let mut config = config.clone();
            config.training.batch_size = batch;
            Ok(Self::with(&config, sizes, residency)?.total_bytes() as u64 <= bytes)
        };
        // Memory grows with the batch: bisect.
        let (mut low, mut high) = (0, config.training.batch_size + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle)? { low = middle } else { high = middle }
        }
        Ok(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linear layers, convolutions and attention, by TF32's rate.
    #[test]
    fn floors_in_tf32_lie_between_those_of_bf16_and_f32() {
        let peak = &Peak::known()[0];
        let config = Config::preset("ddpm-cifar10").unwrap();
        let sizes = DataSizes { training: 256, validation: 0 };
        let training = Estimate::new(&config, sizes).unwrap().training;
        let of = |op: &str, precision| {
            let work = training.ops.iter().find(|work| work.op == op).unwrap_or_else(|| panic!("no {op}"));
            peak.floor(&Cost { bytes: 0.0, ..work.cost }, precision).0
        };
        for op in
            ["conv2d_fwd", "conv2d_bwd_input", "conv2d_bwd_weight", "linear_fwd", "attention_fwd", "attention_bwd"]
        {
            let [bf16, tf32, f32] = [Precision::Bf16, Precision::Tf32, Precision::F32].map(|each| of(op, each));
            assert!((tf32 / bf16 - 2.0).abs() < 1e-9 && f32 > 7.0 * tf32, "{op}: {bf16:e} {tf32:e} {f32:e}");
        }
    }

    #[test]
    fn the_floor_is_the_larger_of_the_two_times() {
        let peak = &Peak::known()[0];
        let product = Cost::product(4096, 4096, 4096, 2);
        let (seconds, memory) = peak.floor(&product, Precision::Bf16);
        assert!(!memory && (seconds - 2.0 * 4096f64.powi(3) / 989.4e12).abs() < 1e-12);
        assert!(peak.floor(&product, Precision::F32).0 > 10.0 * seconds, "without tensor cores");
        let (seconds, memory) = peak.floor(&Cost::memory(3_350_000_000), Precision::Bf16);
        assert!(memory && (seconds - 1e-3).abs() < 1e-9);
    }

    #[test]
    fn cifar_has_its_published_size_and_accumulation_multiplies_work() {
        let mut config = Config::preset("dit-cifar10").unwrap();
        let sizes = DataSizes { training: 50_000, validation: 10_000 };
        config.training.batch_size = 8;
        let once = Estimate::new(&config, sizes).unwrap();
        assert_eq!(once.parameters, 19_108_048);
        config.training.gradient_accumulation = 4;
        let four = Estimate::new(&config, sizes).unwrap();
        let ratio = four.training.total().flops / once.training.total().flops;
        assert!((3.9..=4.01).contains(&ratio), "{ratio}");
        assert_eq!(four.parameters, once.parameters);
    }

    #[test]
    fn the_batch_that_fits_is_the_largest() {
        let mut config = Config::preset("quickstart").unwrap();
        config.training.batch_size = 64;
        let sizes = DataSizes { training: 900, validation: 100 };
        config.training.batch_size = 20;
        let bytes = Estimate::new(&config, sizes).unwrap().total_bytes() as u64;
        config.training.batch_size = 64;
        assert_eq!(Estimate::largest_batch(&config, sizes, bytes, Residency::Resident).unwrap(), 20);
        assert_eq!(Estimate::largest_batch(&config, sizes, 1000, Residency::Resident).unwrap(), 0);
    }
}
