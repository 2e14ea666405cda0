//! The kernel that a page of the guide shows: no bug, so that every case of its op passes.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use engine_core::device::emulator::EmulatorDevice;
use engine_core::tensor::{DType, Device};

use super::{Bug, ORDERS, own_cases, plant};

#[test]
fn the_kernel_of_the_guide_is_correct() {
    let text = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
        &*fs::read_to_string(path).unwrap().leak()
    };
    let (page, kernel) = (text("src/guide/kernels_without_a_gpu.md"), text("kernels/tokens.cu"));
    let blocks = page.split("```text\n").skip(1).map(|block| block.split("```").next().unwrap());
    let blocks: Vec<&str> = blocks.filter(|block| block.starts_with("#include")).collect();
    assert_eq!(blocks.len(), 1, "the page has {} kernels", blocks.len());
    // As the page says, it takes the place of the include and of the first function.
    let first = kernel.find("#include").unwrap();
    let last = first + kernel[first..].find("\n}\n").unwrap() + 3;
    for dtype in [DType::F32, DType::BF16] {
        let changed = Bug {
            name: "kernel_of_the_guide",
            op: "tokens",
            dtype,
            file: "tokens.cu",
            from: &kernel[first..last],
            to: blocks[0],
            words: &[],
        };
        let folder = plant(&changed);
        for order in ORDERS {
            for case in own_cases(&changed) {
                let device = Arc::new(EmulatorDevice::load(&folder).unwrap());
                device.set_order(order);
                let outcome = case.check_device(&Device::Accelerator(device), dtype);
                outcome.unwrap_or_else(|fault| panic!("{} {dtype} {order:?}: {fault}", case.id()));
            }
        }
    }
}
