//! `engine bench-step`: one measurement of a training step and a DDIM step, for `tools/peers/run`.
//!
//! It measures the same as `tools/peers/pytorch/peer.py`: the whole training step (gather, noise, forward, loss, backward, clip,
//! AdamW, moving average) on random images in device memory, then one DDIM step without guidance on a separate batch, or a
//! classifier's forward pass instead.

use std::cmp::Reverse;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;

use super::machine::{Machine, MachineOptions, PrecisionChoice};
use crate::config::{Config, Precision};
use crate::diffusion::{SamplerKind, SamplingConfig};
use crate::error::{Error, Result};
use crate::eval::NetworkClassifier;
use crate::models::{Classifier, Network};
use crate::ops::host::parallel::{install, threads};
use crate::tensor::Device;
use crate::tensor::clock::{self, Times};
use crate::train::{DataSizes, Estimate, Peak, Recipe, Residency, StepWork, Trainer, random_set};

/// Images in the set, as in the peers.
const IMAGES: usize = 4096;

/// Measure a training step and a DDIM step of a preset's model on random images; the last line is JSON.
#[derive(Clone, Debug, Args)]
pub struct BenchStepCommand {
    /// A preset
    #[arg(long, value_name = "PRESET", default_value = "dit-cifar10")]
    model: String,
    /// Images in a training step
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch: usize,
    /// Images in a DDIM step, or in a classifier's forward pass
    #[arg(long, value_name = "N", default_value_t = 32)]
    ddim_batch: usize,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// f32, tf32 or bf16
    #[arg(long, visible_alias = "precision", value_enum, default_value = "f32")]
    dtype: PrecisionChoice,
    /// CPU threads [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Warm-up steps, or groups of steps, that are not measured
    #[arg(long, value_name = "N", default_value_t = 2)]
    warmup: usize,
    /// Measured steps, or groups of steps; the result is the median
    #[arg(long, value_name = "N", default_value_t = 7)]
    repeat: usize,
    /// Override a value of the preset's model, as in --set model.freeze_backbone=false
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Steps between two clock readings [default: 1 on the CPU, 10 on a GPU]
    #[arg(long, value_name = "N")]
    group: Option<usize>,
    /// Print what each op takes in a training step and in a DDIM step, on the CPU, the longest first
    #[arg(long)]
    ops: bool,
}

impl BenchStepCommand {
    /// Measures and prints.
    ///
    /// # Errors
    /// Those of [`Trainer::new`], and options of 0.
    pub fn run(self) -> Result<()> {
        let counts = [("--batch", self.batch), ("--ddim-batch", self.ddim_batch), ("--repeat", self.repeat)];
        for (option, value) in counts.into_iter().chain([("--group", self.group.unwrap_or(1))]) {
            if value == 0 {
                return Err(Error::config(option, "is 0", "give 1 or more"));
            }
        }
        let options =
            MachineOptions { device: self.device.clone(), precision: Some(self.dtype), threads: self.threads };
        let machine = options.open()?;
        install(move || self.measure(&machine))
    }

    fn measure(&self, machine: &Machine) -> Result<()> {
        let on_cpu = matches!(machine.device, Device::Cpu);
        let group = self.group.unwrap_or(if on_cpu { 1 } else { 10 });
        let mut config = Config::preset(&self.model)?;
        self.set.iter().try_for_each(|assignment| config.set(assignment))?;
        config.training.precision = Precision::from(self.dtype);
        config.training.batch_size = self.batch;
        config.training.gradient_accumulation = 1;
        (config.data.flip, config.data.crop) = (false, 0);
        if !config.model.is_classifier() {
            config.sampling = SamplingConfig { sampler: SamplerKind::Ddim, ..config.sampling }.unguided();
        }
        let set = random_set(&config, IMAGES)?;
        let free_before = free_memory(&machine.device)?;
        let mut trainer = Trainer::new(&config.model, &set, &Recipe::new(&config, machine.device.clone()))?;
        let context = trainer.context().clone();

        let mut times = Vec::with_capacity(self.repeat);
        for round in 0..self.warmup + self.repeat {
            context.synchronize()?;
            let start = Instant::now();
            for _ in 0..group {
                trainer.train_step()?;
            }
            context.synchronize()?;
            if round >= self.warmup {
                times.push(start.elapsed().as_secs_f64() / group as f64);
            }
            trainer.drain_metrics()?;
        }
        if self.ops {
            let start = Instant::now();
            let (outcome, times) = clock::of(|| trainer.train_step());
            outcome?;
            print!("training step\n{}", by_op(&times, start.elapsed(), 1));
            trainer.drain_metrics()?;
        }
        let (step, fastest) = median(&mut times);
        let peak = match free_before {
            Some(before) => free_memory(&machine.device)?.map(|now| before.saturating_sub(now) as f64 / 1048576.0),
            None => peak_rss_mib(),
        };

        let (ddim, ddim_fastest, ddim_work) = match trainer.network() {
            Some(Network::Classifier(network)) => self.measure_classifier(&trainer, network, group)?,
            _ => self.measure_sampler(&trainer, &config, group)?,
        };
        let shares = on_cpu.then(|| self.roofline(&config, &ddim_work)).transpose()?;
        let share = |place: usize, time: f64| shares.map(|least| (1e3 * least[place] / time).round() / 1e3);
        let round = |value: f64, digits: i32| (value * 10f64.powi(digits)).round() / 10f64.powi(digits);
        println!(
            "{}",
            serde_json::json!({
                "peer": "engine",
                "version": env!("CARGO_PKG_VERSION"),
                "device": machine.note,
                "threads": on_cpu.then(threads),
                "model": self.model,
                "set": self.set,
                "parameters": trainer.parameters().count(),
                "dtype": trainer.parameters().precision_name(),
                "batch": self.batch,
                "step_ms": round(1e3 * step, 3),
                "step_min_ms": round(1e3 * fastest, 3),
                "images_per_second": round(self.batch as f64 / step, 2),
                "peak_mib": peak.map(|mib| round(mib, 1)),
                "ddim_batch": self.ddim_batch,
                "ddim_step_ms": round(1e3 * ddim, 3),
                "ddim_step_min_ms": round(1e3 * ddim_fastest, 3),
                // For the fastest step: the time that this CPU's rates, measured now, allow, divided by the step's time.
                "share_of_roofline": share(0, fastest),
                "ddim_share_of_roofline": share(1, ddim_fastest),
            })
        );
        Ok(())
    }

    /// Seconds that this CPU's rates allow for a training step and for a DDIM step.
    fn roofline(&self, config: &Config, ddim: &StepWork) -> Result<[f64; 2]> {
        let (peak, precision) = (Peak::of_this_cpu(), config.training.precision);
        let sizes = DataSizes { training: IMAGES, validation: 0 };
        let training = Estimate::with(config, sizes, Residency::InPlace)?.training;
        let seconds = |work: &StepWork| work.roofline(&peak, precision).seconds;
        Ok([seconds(&training), seconds(ddim)])
    }

    /// Median and smallest time of a DDIM step, and its cost.
    fn measure_sampler(&self, trainer: &Trainer, config: &Config, group: usize) -> Result<(f64, f64, StepWork)> {
        let context = trainer.context();
        // One group of stages for each measurement; the first stages warm up.
        let needed = group * (self.warmup + self.repeat);
        let levels = config.diffusion.num_steps;
        let sampling = SamplingConfig { num_steps: needed.clamp(1, levels), ..config.sampling.clone() };
        let mut sampler = trainer.sampler(&sampling, self.ddim_batch, 0)?;
        let labels: Vec<i32> = (0..self.ddim_batch).map(|k| (k % config.model.num_classes().max(1)) as i32).collect();
        let (mut times, mut start, mut stages) = (Vec::with_capacity(self.repeat), Instant::now(), 0);
        while times.len() < self.repeat {
            sampler.run(0, &labels, |_, _| {
                stages += 1;
                if stages % group == 0 {
                    context.synchronize()?;
                    if stages / group > self.warmup {
                        times.push(start.elapsed().as_secs_f64() / group as f64);
                    }
                    start = Instant::now();
                }
                Ok(())
            })?;
        }
        if self.ops {
            // Without the start of a run: weights are prepared there.
            sampler.begin(0, &labels)?;
            let start = Instant::now();
            let (outcome, times) = clock::of(|| (0..sampler.stages()).try_for_each(|stage| sampler.advance(stage)));
            outcome?;
            let times = by_op(&times, start.elapsed(), sampler.stages() as u32);
            print!("DDIM step, {} images\n{times}", self.ddim_batch);
        }
        let (middle, fastest) = median(&mut times);
        Ok((middle, fastest, StepWork::of(sampler.program())))
    }

    /// Median and smallest time of a forward pass, and its cost.
    fn measure_classifier(
        &self,
        trainer: &Trainer,
        network: Rc<dyn Classifier>,
        group: usize,
    ) -> Result<(f64, f64, StepWork)> {
        let len: usize = network.image_shape().iter().product();
        let images: Vec<f32> = (0..self.ddim_batch * len).map(|place| (place % 511) as f32 / 255.0 - 1.0).collect();
        let mut classifier =
            NetworkClassifier::new(trainer.context(), network, trainer.averaged().clone(), self.ddim_batch)?;
        let mut times = Vec::with_capacity(self.repeat);
        for round in 0..self.warmup + self.repeat {
            let start = Instant::now();
            for _ in 0..group {
                classifier.classify(&images, |_, _| ())?;
            }
            if round >= self.warmup {
                times.push(start.elapsed().as_secs_f64() / group as f64);
            }
        }
        if self.ops {
            let start = Instant::now();
            let (outcome, times) = clock::of(|| classifier.classify(&images, |_, _| ()));
            outcome?;
            print!("forward pass, {} images\n{}", self.ddim_batch, by_op(&times, start.elapsed(), 1));
        }
        let (middle, fastest) = median(&mut times);
        Ok((middle, fastest, StepWork::of(classifier.program())))
    }
}

/// The time of one of `steps` steps by op, the longest first; what stands between the ops comes last.
fn by_op(times: &Times, all: Duration, steps: u32) -> String {
    let step = all / steps;
    let rows =
        times.iter().map(|((op, function), &(calls, time))| (*op, *function, calls / steps as usize, time / steps));
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by_key(|&(.., time)| Reverse(time));
    let between = step.saturating_sub(rows.iter().map(|row| row.3).sum());
    rows.push(("between ops", "", 1, between));
    let mut text = format!("  {:<22}{:<22}{:>6}{:>12}{:>8}\n", "op", "function", "calls", "time", "share");
    for (op, function, calls, time) in rows {
        let (milliseconds, share) = (1e3 * time.as_secs_f64(), 100.0 * time.as_secs_f64() / step.as_secs_f64());
        text += &format!("  {op:<22}{function:<22}{calls:>6}{milliseconds:>9.2} ms{share:>7.1}%\n");
    }
    text
}

/// Free bytes of an accelerator.
fn free_memory(device: &Device) -> Result<Option<u64>> {
    match device {
        Device::Cpu => Ok(None),
        Device::Accelerator(accelerator) => Ok(Some(accelerator.memory()?.0)),
    }
}

/// Peak resident set size of this process, in MiB, if the system reports it.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kib| kib / 1024.0)
}

/// The median and the smallest.
fn median(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    let median = if times.len() % 2 == 1 { times[middle] } else { (times[middle - 1] + times[middle]) / 2.0 };
    (median, times[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), (2.0, 1.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), (2.5, 1.0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_tells_the_peak() {
        assert!(peak_rss_mib().unwrap() > 1.0);
    }
}
