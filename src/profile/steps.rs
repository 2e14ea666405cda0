//! The profiled steps: one of training, and one of sampling, on random images at a configuration's batch size.

use std::sync::Arc;
use std::time::Instant;

use super::file::Node;
use super::record::Recorder;
use crate::config::Config;
use crate::device::cuda::PtxMachine;
use crate::device::{Accelerator, DeviceChoice};
use crate::diffusion::SamplingConfig;
use crate::error::{Error, Result};
use crate::eval::NetworkClassifier;
use crate::models::Network;
use crate::tensor::Device;
use crate::train::{Recipe, Trainer, random_set};

/// Number of random images: more than a step uses.
const IMAGES: usize = 4096;

/// The sections, in order.
pub const SECTIONS: [&str; 2] = ["training", "sampling"];

/// Trainer and sampler of a configuration on a recorded device.
pub struct Steps {
    config: Config,
    recorder: Arc<Recorder>,
    trainer: Trainer,
}

impl Steps {
    /// Opens the CUDA device and builds everything; none of it is recorded.
    ///
    /// # Errors
    /// If there is no CUDA device; those of [`Trainer::new`].
    pub fn new(config: &Config) -> Result<Self> {
        let Some(accelerator) = DeviceChoice::Cuda(0).open()?.accelerator else {
            return Err(Error::device("cuda", "no CUDA device", "check `nvidia-smi`"));
        };
        let recorder = Arc::new(Recorder::new(accelerator));
        let mut config = config.clone();
        config.training.gradient_accumulation = 1;
        config.training.shards = None;
        (config.data.flip, config.data.crop) = (false, 0);
        let images = IMAGES.max(config.training.batch_size);
        let set = random_set(&config, images)?;
        let device = Device::Accelerator(recorder.clone());
        let mut trainer = Trainer::new(&config.model, &set, &Recipe::new(&config, device))?;
        // Launches one after the other, without a graph.
        trainer.set_graphs(false);
        Ok(Self { config, recorder, trainer })
    }

    /// The device as text.
    pub fn device(&self) -> String {
        self.recorder.name()
    }

    /// Runs a section's step; `around` is called before it with its name, and after it with an empty one.
    ///
    /// # Errors
    /// Those of the device and of `around`.
    pub fn run(&mut self, section: &str, around: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
        let recorder = self.recorder.clone();
        let mut begin = |name: &str| -> Result<()> {
            recorder.synchronize()?;
            around(name)?;
            recorder.section(name);
            Ok(())
        };
        if section == SECTIONS[0] {
            begin(section)?;
            self.trainer.train_step()?;
            begin("")?;
            return self.trainer.drain_metrics().map(drop);
        }
        let batch = self.config.training.batch_size;
        if let Some(Network::Classifier(network)) = self.trainer.network() {
            let len: usize = network.image_shape().iter().product();
            let (context, weights) = (self.trainer.context(), self.trainer.averaged().clone());
            let mut classifier = NetworkClassifier::new(context, network, weights, batch)?;
            begin(section)?;
            classifier.classify(&vec![0.25; batch * len], |_, _| ())?;
            return begin("");
        }
        let mut sampler = self.trainer.sampler(&self.config.sampling, batch, 0)?;
        let classes = self.config.model.num_classes().max(1);
        let labels: Vec<i32> = (0..batch).map(|k| (k % classes) as i32).collect();
        sampler.begin(0, &labels)?;
        begin(section)?;
        sampler.advance(0)?;
        begin("")
    }

    /// Seconds of a section's replayed step: the minimum of `repeats` groups. None for a classifier's forward pass, which copies
    /// from and to the host.
    fn replayed(&mut self, section: &str, repeats: usize) -> Result<Option<f64>> {
        const GROUP: usize = 10;
        let mut best = f64::INFINITY;
        if section == SECTIONS[0] {
            self.trainer.set_graphs(true);
            for round in 0..=repeats {
                self.recorder.synchronize()?;
                let start = Instant::now();
                for _ in 0..GROUP {
                    self.trainer.train_step()?;
                }
                self.recorder.synchronize()?;
                if round > 0 {
                    best = best.min(start.elapsed().as_secs_f64() / GROUP as f64);
                }
                self.trainer.drain_metrics()?;
            }
            return Ok(Some(best));
        }
        if self.config.model.is_classifier() {
            return Ok(None);
        }
        let levels = self.config.diffusion.num_steps;
        let num_steps = (GROUP * (repeats + 1)).min(levels);
        let sampling = SamplingConfig { num_steps, ..self.config.sampling.clone() };
        let mut sampler = self.trainer.sampler(&sampling, self.config.training.batch_size, 0)?;
        sampler.begin(0, &vec![0; self.config.training.batch_size])?;
        let stages: Vec<usize> = (0..sampler.stages()).collect();
        for (round, group) in stages.chunks_exact(GROUP.min(stages.len())).enumerate() {
            self.recorder.synchronize()?;
            let start = Instant::now();
            group.iter().try_for_each(|&stage| sampler.advance(stage))?;
            self.recorder.synchronize()?;
            if round > 0 || stages.len() < 2 * GROUP {
                best = best.min(start.elapsed().as_secs_f64() / group.len() as f64);
            }
        }
        Ok(Some(best))
    }

    /// The work submitted in sections so far.
    pub fn take(&self) -> Vec<Node> {
        self.recorder.take()
    }
}

/// Runs both steps on the PTX machine, which counts them; executes at most `blocks` blocks of each launch, or all for 0.
///
/// # Errors
/// If the driver is not the PTX machine; those of the steps and of [`Steps::new`]. `said` receives progress.
pub fn count(config: &Config, blocks: u32, said: &mut dyn FnMut(&str)) -> Result<Vec<Node>> {
    let Some(machine) = PtxMachine::find()? else {
        let message = "the driver is not the PTX machine, or one of another version";
        return Err(Error::device(
            "cuda",
            message,
            "build it again: `cargo run --release -p ptx-machine -- target/ptx-machine`",
        ));
    };
    said("prepare");
    let mut steps = Steps::new(config)?;
    machine.sample(blocks)?;
    for section in SECTIONS {
        said(section);
        steps.run(section, &mut |name| machine.mark(name))?;
    }
    Ok(steps.take())
}

/// Measured times, in seconds.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The GPU as text.
    pub device: String,
    /// Each piece of work alone: its minimum time.
    pub nodes: Vec<(Node, f64)>,
    /// A whole replayed step, by section: the minimum time of a group of steps, divided by their number.
    pub steps: Vec<(&'static str, f64)>,
}

/// Measures both steps on this machine's GPU, `repeats` times.
///
/// # Errors
/// Those of the steps; steps that differ from each other.
pub fn measure(config: &Config, repeats: usize) -> Result<Measured> {
    let mut steps = Steps::new(config)?;
    let (mut measured, mut whole) = (Vec::new(), Vec::new());
    for section in SECTIONS {
        let mut best: Vec<(Node, f64)> = Vec::new();
        // The first step loads modules.
        for round in 0..=repeats {
            let (recorder, mut times) = (steps.recorder.clone(), Vec::new());
            steps.run(section, &mut |name| match name {
                "" => recorder.end_timing().map(|seconds| times = seconds),
                _ => recorder.begin_timing(),
            })?;
            let nodes = steps.take();
            if nodes.len() != times.len() {
                let message = format!("{} times for {} pieces of work", times.len(), nodes.len());
                return Err(Error::device(steps.device(), message, "report this"));
            }
            match round {
                0 => {}
                1 => best = nodes.into_iter().zip(times).collect(),
                _ => best.iter_mut().zip(times).for_each(|((_, best), time)| *best = best.min(time)),
            }
        }
        measured.extend(best);
    }
    for section in SECTIONS {
        if let Some(seconds) = steps.replayed(section, repeats)? {
            whole.push((section, seconds));
        }
    }
    Ok(Measured { device: steps.device(), nodes: measured, steps: whole })
}
