//! Launches a CUDA kernel by its typed launch: on the GPU if there is one, else on the emulator.
//!
//! ```sh
//! cargo run --release --no-default-features --example launch_kernel
//! ```

use std::path::Path;
use std::sync::Arc;

use engine::device::emulator::EmulatorDevice;
use engine::device::launches::EmbeddingFwd;
use engine::device::{Accelerator, DeviceChoice, LaunchConfig};
use engine::prelude::*;

/// Rows of a table, looked up by a kernel.
pub fn rows(device: Arc<dyn Accelerator>) -> Result<Vec<f32>> {
    let context = Context::new(Device::Accelerator(device.clone()));
    let table = context.tensor(&[0.0f32, 0.5, 1.0, 1.5, 2.0, 2.5], [3, 2])?;
    let indices = context.tensor(&[2i32, 0], [2])?;
    let y = context.empty([2, 2], DType::F32)?;
    let (batch, rows, width) = (2, 3, 2);
    EmbeddingFwd::<f32> { y: y.slice_mut(), table: table.slice(), indices: indices.slice(), batch, rows, width }
        .launch(&*device, LaunchConfig::elements(y.len(), 128))?;
    y.download()
}

/// The GPU; without one, the emulator, which compiles `kernels/*.cu` with the C++ compiler and checks every access.
pub fn device() -> Result<Arc<dyn Accelerator>> {
    if let Some(gpu) = DeviceChoice::Auto.open()?.accelerator {
        return Ok(gpu);
    }
    let kernels = kernel_emulator::compile_cached(Path::new(env!("CARGO_MANIFEST_DIR")))
        .map_err(|fault| Error::device("emulator", &fault, kernel_emulator::advice(&fault)))?;
    Ok(Arc::new(EmulatorDevice::load(kernels)?))
}

fn main() -> Result<()> {
    let device = device()?;
    println!("{}: rows 2 and 0 are {:?}", device.name(), rows(device.clone())?);
    Ok(())
}
