//! Launches: a kernel's arguments and its configuration, in the driver's form.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys;
use kernel_signatures::GRID_WAIT_CAPABILITY;

use super::api::{self, Code};
use super::driver::describe;
use super::{CudaDevice, State};
use crate::device::{Kernel, KernelArgument, LaunchConfig};
use crate::error::{Error, Result};

/// Most arguments of a kernel.
const MAX_ARGUMENTS: usize = 48;

/// The values of a kernel's arguments. The driver reads as many bytes of each as the kernel's parameter has, from the first on.
struct Values([[u8; 8]; MAX_ARGUMENTS]);

impl Values {
    fn of(arguments: &[KernelArgument]) -> Self {
        let mut values = [[0u8; 8]; MAX_ARGUMENTS];
        for (value, argument) in values.iter_mut().zip(arguments) {
            match *argument {
                KernelArgument::Buffer { address, .. } => *value = address.to_ne_bytes(),
                KernelArgument::U64(number) => *value = number.to_ne_bytes(),
                KernelArgument::I32(number) => value[..4].copy_from_slice(&number.to_ne_bytes()),
                KernelArgument::U32(number) => value[..4].copy_from_slice(&number.to_ne_bytes()),
                KernelArgument::F32(number) => value[..4].copy_from_slice(&number.to_ne_bytes()),
            }
        }
        Self(values)
    }

    fn pointers(&mut self) -> [*mut c_void; MAX_ARGUMENTS] {
        self.0.each_mut().map(|value| value.as_mut_ptr().cast())
    }
}

/// `off`: no launch begins early. For looking for a fault, and for measuring what it saves.
const SWITCH: &str = "ENGINE_DEPENDENT_LAUNCH";

/// Whether launches begin early on a device of this compute capability: by default where it can.
///
/// # Errors
/// [`Error::Device`] if the environment variable is neither `on` nor `off`.
pub(super) fn wanted(capability: (u32, u32)) -> Result<bool> {
    match std::env::var_os(SWITCH) {
        Some(value) if value == "off" => Ok(false),
        Some(value) if value != "on" => {
            Err(Error::device(SWITCH, format!("{value:?} is neither on nor off"), "set it to off, or unset it"))
        }
        _ => Ok(capability >= GRID_WAIT_CAPABILITY),
    }
}

/// Lets a grid be put on the device while the one before it still runs: its kernel waits for it ([`kernel_signatures::ptx_with_grid_waits`]).
const PROGRAMMATIC: sys::CUlaunchAttribute = sys::CUlaunchAttribute {
    id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
    pad: [0; 4],
    value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
};

impl CudaDevice {
    /// Submits a kernel. Its launch is programmatic, on devices that can, if the work before it in the stream is a kernel too: behind a
    /// copy, a fill, an event or a graph it begins when that has ended.
    ///
    /// # Safety
    /// As [`Accelerator::launch`](crate::device::Accelerator::launch); the context is current.
    pub(super) unsafe fn submit(
        &self,
        state: &mut State,
        kernel: &'static Kernel,
        config: LaunchConfig,
        arguments: &[KernelArgument],
    ) -> Result<()> {
        let fail = |message: String| Error::Kernel { kernel: kernel.name.into(), message };
        let LaunchConfig { grid, block, shared_bytes } = config;
        if shared_bytes > self.shared_limit {
            let limit = self.shared_limit;
            return Err(fail(format!("{shared_bytes} bytes of shared memory a block, {} has {limit}", self.label)));
        }
        if arguments.len() > MAX_ARGUMENTS {
            return Err(fail(format!("{} arguments, {MAX_ARGUMENTS} are supported", arguments.len())));
        }
        let capturing = state.capturing.is_some();
        let function = state.modules.function(kernel, shared_bytes, self.capability, capturing)?;
        let mut values = Values::of(arguments);
        let mut pointers = values.pointers();
        let ([gx, gy, gz], [bx, by, bz], parameters) = (grid, block, pointers.as_mut_ptr());
        let programmatic = self.begins_early && state.follows_kernel;
        let early = || {
            let mut attributes = [PROGRAMMATIC];
            let config = sys::CUlaunchConfig {
                gridDimX: gx,
                gridDimY: gy,
                gridDimZ: gz,
                blockDimX: bx,
                blockDimY: by,
                blockDimZ: bz,
                sharedMemBytes: shared_bytes,
                hStream: self.stream,
                attrs: attributes.as_mut_ptr(),
                numAttrs: attributes.len() as u32,
            };
            // SAFETY: the arguments match the kernel (the caller's promise); the driver copies their values before it returns.
            unsafe { api::cuLaunchKernelEx(&config, function, parameters) }
        };
        // `None`: a driver without the function.
        let code = programmatic.then(early).flatten().unwrap_or_else(|| {
            let (stream, extra) = (self.stream, ptr::null_mut());
            // SAFETY: as above.
            unsafe { api::cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared_bytes, stream, parameters, extra) }
        });
        state.after_kernel = code == Code::SUCCESS;
        if code == Code::SUCCESS {
            state.last_kernel = Some(kernel.name);
            return Ok(());
        }
        let launch = format!("grid {grid:?}, block {block:?}, {shared_bytes} bytes shared");
        // A fault of earlier work is returned by any later call.
        let before = match (code.is_fault(), state.last_kernel) {
            (true, Some(last)) => format!("; the fault is of earlier work, up to kernel {last}"),
            _ => String::new(),
        };
        Err(fail(format!("cannot launch with {launch} on {}: {}{before}", self.label, describe(code))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_where_the_driver_reads() {
        let buffer = KernelArgument::Buffer { address: 0x1234_5678_9abc_def0, bytes: 4, writable: false };
        let mut values = Values::of(&[buffer, KernelArgument::I32(-2), KernelArgument::F32(1.5)]);
        let pointers = values.pointers();
        // SAFETY: each points to eight bytes of `values`.
        unsafe {
            assert_eq!(pointers[0].cast::<u64>().read_unaligned(), 0x1234_5678_9abc_def0);
            assert_eq!(pointers[1].cast::<i32>().read_unaligned(), -2);
            assert_eq!(pointers[2].cast::<f32>().read_unaligned(), 1.5);
        }
    }
}
