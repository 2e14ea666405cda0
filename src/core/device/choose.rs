//! `--device auto|cpu|cuda[:N]`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Accelerator;
use super::cuda::CudaDevice;
use crate::error::{Error, Result};

/// The requested device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device if one is usable, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// This CUDA device, or an error.
    Cuda(u32),
}

/// The device for a [`DeviceChoice`].
#[derive(Clone, Debug)]
pub struct Chosen {
    /// `None`: the CPU.
    pub accelerator: Option<Arc<dyn Accelerator>>,
    /// The device's name for the user: `cpu`.
    pub note: String,
    /// Why `auto` fell back to the CPU: to be told once, where work begins.
    pub fallback: Option<String>,
}

impl Chosen {
    /// The device, and why `auto` fell back to it: `cpu (cuda: no CUDA driver (libcuda) on this machine)`.
    pub fn describe(&self) -> String {
        match &self.fallback {
            Some(why) => format!("{} ({why})", self.note),
            None => self.note.clone(),
        }
    }
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// If a requested CUDA device cannot be used. `auto` and `cpu` do not fail.
    pub fn open(self) -> Result<Chosen> {
        let cpu = |fallback| Chosen { accelerator: None, note: "cpu".into(), fallback };
        let cuda =
            |device: CudaDevice| Chosen { note: device.name(), accelerator: Some(Arc::new(device)), fallback: None };
        match self {
            Self::Cpu => Ok(cpu(None)),
            Self::Cuda(ordinal) => CudaDevice::open(ordinal).map(cuda),
            Self::Auto => Ok(match CudaDevice::open(0) {
                Ok(device) => cuda(device),
                Err(Error::Device { device, message, .. }) => cpu(Some(format!("{device}: {message}"))),
                Err(error) => cpu(Some(error.to_string())),
            }),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
        match text.split_once(':') {
            None if text == "auto" => Some(Self::Auto),
            None if text == "cpu" => Some(Self::Cpu),
            None if text == "cuda" => Some(Self::Cuda(0)),
            Some(("cuda", digits)) => number(digits).map(Self::Cuda),
            _ => None,
        }
        .ok_or_else(|| Error::config("device", format!("{text:?} is not a device"), "use auto, cpu, cuda or cuda:N"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_parsed() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        for text in
            ["", "gpu", "CUDA", "cuda:", "cuda:+1", "cuda:-1", "cuda:1:2", "cpu:0", "auto:0", "cuda:99999999999"]
        {
            let error = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(error.starts_with("device: ") && error.ends_with("use auto, cpu, cuda or cuda:N"), "{error}");
        }
    }

    #[test]
    fn the_cpu_is_always_there() {
        let cpu = DeviceChoice::Cpu.open().unwrap();
        assert!(cpu.accelerator.is_none() && cpu.describe() == "cpu");
        let auto = DeviceChoice::Auto.open().unwrap();
        // The reason is told apart from the name, which goes into files and other messages.
        assert_eq!(auto.accelerator.is_none(), auto.note == "cpu", "{}", auto.note);
        assert_eq!(auto.accelerator.is_none(), auto.describe().starts_with("cpu ("), "{}", auto.describe());
    }
}
