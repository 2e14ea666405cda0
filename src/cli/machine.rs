//! Device, precision and thread options.

use std::path::Path;

use clap::{Args, ValueEnum};

use crate::config::Precision;
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::model_file::{FromNetwork, Loaded, ModelFile};
use crate::ops::host::parallel::set_threads;
use crate::tensor::Device;
use crate::words::counted;

/// `--device`, `--precision`, `--threads`.
#[derive(Clone, Debug, Args)]
pub struct MachineOptions {
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// Dtype of activations, and how products are made [default: bf16 where the device has instructions for it, else f32]
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionChoice>,
    /// CPU threads [default: all]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// `--precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionChoice {
    /// 32-bit floating point.
    F32,
    /// f32 whose linear layers, convolutions and attention round their factors to 10 bits of fraction, on tensor cores.
    Tf32,
    /// bfloat16: half the memory of activations; fast on tensor cores, and on CPUs with AVX-512 BF16 or AMX.
    Bf16,
}

impl From<PrecisionChoice> for Precision {
    fn from(choice: PrecisionChoice) -> Self {
        match choice {
            PrecisionChoice::F32 => Self::F32,
            PrecisionChoice::Tf32 => Self::Tf32,
            PrecisionChoice::Bf16 => Self::Bf16,
        }
    }
}

/// An open device.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The device for tensors.
    pub device: Device,
    /// The device as text, and why `auto` chose it.
    pub note: String,
    precision: Option<Precision>,
}

impl MachineOptions {
    /// Sets the number of threads and opens the device.
    ///
    /// # Errors
    /// [`Error::Device`] if a requested CUDA device cannot be used; [`Error::Config`] for 0 threads, or an `ENGINE_CPU` that this processor has not.
    pub fn open(&self) -> Result<Machine> {
        set_threads(self.checked_threads()?)?;
        self.opened(self.device.parse()?)
    }

    /// The requested number of threads.
    ///
    /// # Errors
    /// [`Error::Config`] for 0 threads, or too many.
    pub fn checked_threads(&self) -> Result<Option<usize>> {
        if self.threads.is_some_and(|threads| !(1..=4096).contains(&threads)) {
            let message = counted(self.threads.unwrap_or_default(), "thread");
            return Err(Error::config("--threads", message, "give 1 to 4096, or leave it out to use all"));
        }
        Ok(self.threads)
    }

    /// Opens a device.
    ///
    /// # Errors
    /// As [`MachineOptions::open`].
    pub fn opened(&self, choice: DeviceChoice) -> Result<Machine> {
        let chosen = choice.open()?;
        let precision = self.precision.map(Precision::from);
        let device = match chosen.accelerator {
            Some(accelerator) => Device::Accelerator(accelerator),
            None => Device::Cpu,
        };
        if let Some(warning) = precision.and_then(|precision| precision.warning(&device)) {
            eprintln!("warning: {warning}");
        }
        Ok(Machine { device, note: chosen.note, precision })
    }
}

impl Machine {
    /// Opens a model file once and loads it in a context of its own, so that its memory is freed with it.
    ///
    /// # Errors
    /// Those of [`ModelFile::open`] and [`ModelFile::load`].
    pub fn load<N: FromNetwork>(&self, path: &Path) -> Result<Loaded<N>> {
        let file = ModelFile::open(path)?;
        let precision = self.precision();
        file.load(&precision.context(&self.device), precision.dtype(), None)
    }

    /// The precision: the requested one, else bf16 where the device has instructions for its products, and f32 elsewhere.
    pub fn precision(&self) -> Precision {
        self.precision.unwrap_or(Precision::Auto).settled(self.device.multiplies_bf16())
    }
}
