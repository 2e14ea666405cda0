//! Kernels whose products have factors rounded to TF32, against the CPU op.

use super::case::{Case, Kind, Outcome};
use super::input::Grid;
use super::instruments::{poisoned, rounded};
use crate::error::Result;
use crate::tensor::{DType, Device};

/// The ops with such products.
pub const OPS_IN_TF32: [&str; 3] = ["attention", "conv2d", "linear"];

impl Case {
    /// Use 7: in `f32`, on a device that multiplies TF32. Of any inputs, the error allowed is that of [`Case::check_device`] with twice the
    /// error of the CPU op whose inputs and cotangent are rounded to TF32. Of inputs and a cotangent that TF32 holds, forward products
    /// are exact, and results and the gradients of what is never a factor (a bias) are as good as those of `f32`, unless a result is a
    /// factor again. Factors that are cut off instead of rounded are within the first; the emulator refuses those.
    ///
    /// # Errors
    /// The differences and their sizes; and the op's own.
    pub fn check_tf32(&self, device: &Device) -> Result<Outcome> {
        let context = poisoned(device.clone()).with_tf32(true);
        if !context.multiplies_tf32() {
            return Err(self.fault(format!("{} has no tensor cores", context.device_name())));
        }
        let label = format!("{} tf32", context.device_name());
        let on = |grid| {
            let exact = self.run_on(&poisoned(Device::Cpu), DType::F64, grid, 1)?;
            let single = self.run_on(&rounded(DType::F32), DType::F32, grid, 1)?;
            Ok::<_, crate::Error>((exact, single))
        };
        let ((exact, _), (near, single)) = (on(Grid::Of(DType::F32))?, on(Grid::Tf32)?);
        let outcome = self.run(&context, DType::F32, DType::F32, 1)?;
        self.compare(&label, [&exact, &single], &outcome, |_| true)?;
        if self.chained {
            return Ok(outcome);
        }
        let held = self.run_on(&context, DType::F32, Grid::Tf32, 1)?;
        let label = format!("{label}, of what it holds,");
        self.compare(&label, [&near, &single], &held, |what| self.is_exact(what))?;
        Ok(outcome)
    }

    /// The run that [`Case::check_tf32`] looks at first, alone: memory that the op does not write holds NaN.
    ///
    /// # Errors
    /// The op's own.
    pub fn run_tf32(&self, device: &Device) -> Result<Outcome> {
        self.run(&poisoned(device.clone()).with_tf32(true), DType::F32, DType::F32, 1)
    }

    /// Whether nothing is rounded to TF32 on the way to `what`, where inputs and cotangent already are.
    fn is_exact(&self, what: &str) -> bool {
        let of = |name: &str| what.strip_prefix("gradient of ").is_some_and(|input| input == name);
        what.starts_with("output") || self.inputs.iter().any(|input| input.kind == Kind::Float32 && of(input.name))
    }
}
