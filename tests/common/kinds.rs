//! Finds which kernels a case launches, without running any: an accelerator that records names and sizes.

// Each test file compiles this module separately and uses a part of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use engine_core::device::{Accelerator, GraphId, Kernel, KernelArgument, LaunchConfig, Ticket};
use engine_core::ops::case::{Case, Values};
use engine_core::tensor::{Context, DType, Device, Program};
use engine_core::{Error, Result};

/// How a kernel is launched, except for the number of blocks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Launch {
    pub kernel: &'static str,
    pub block: [u32; 3],
    /// Whether it uses more dynamic shared memory than allowed without opting in.
    pub opted_in: bool,
}

/// All launches in order, and the total number of threads.
#[derive(Debug, Default)]
struct Log {
    launches: Mutex<(Vec<Launch>, u64)>,
    /// Modules loaded ahead, and modules of launches.
    modules: Mutex<(BTreeSet<&'static str>, BTreeSet<&'static str>)>,
    allocated: AtomicU64,
}

impl Accelerator for Log {
    fn name(&self) -> String {
        "log".into()
    }

    fn has_tensor_cores(&self) -> bool {
        true
    }

    fn multiprocessors(&self) -> u32 {
        1
    }

    fn memory(&self) -> Result<(u64, u64)> {
        Ok((u64::MAX, u64::MAX))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        Ok(256 + self.allocated.fetch_add((bytes as u64 + 1).next_multiple_of(256), Ordering::Relaxed))
    }

    unsafe fn release(&self, _address: u64) {}

    unsafe fn upload(&self, _source: &[u8], _address: u64) -> Result<()> {
        Ok(())
    }

    fn allocate_pinned(&self, _bytes: usize) -> Result<NonNull<u8>> {
        Err(Error::Unsupported { op: "pinned memory", device: self.name(), reason: "nothing runs".into() })
    }

    unsafe fn release_pinned(&self, _memory: NonNull<u8>, _bytes: usize) {}

    unsafe fn submit_upload(&self, _source: NonNull<u8>, _bytes: usize, _address: u64) -> Result<Ticket> {
        Ok(Ticket(0))
    }

    fn wait_for(&self, _ticket: Ticket) -> Result<()> {
        Ok(())
    }

    unsafe fn download(&self, _address: u64, destination: &mut [u8]) -> Result<()> {
        destination.fill(0);
        Ok(())
    }

    unsafe fn copy(&self, _source: u64, _destination: u64, _bytes: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn zero(&self, _address: u64, _bytes: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn launch(&self, kernel: &'static Kernel, config: LaunchConfig, _: &[KernelArgument]) -> Result<()> {
        self.modules.lock().unwrap().1.insert(kernel.module);
        let (launches, threads) = &mut *self.launches.lock().unwrap();
        let opted_in = config.shared_bytes > 48 << 10;
        launches.push(Launch { kernel: kernel.name, block: config.block, opted_in });
        *threads += config.grid.iter().chain(&config.block).map(|&n| u64::from(n)).product::<u64>();
        Ok(())
    }

    fn preload(&self, modules: &[&'static str]) -> Result<()> {
        self.modules.lock().unwrap().0.extend(modules);
        Ok(())
    }

    fn begin_capture(&self) -> Result<()> {
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        Ok(GraphId(0))
    }

    unsafe fn replay(&self, _graph: GraphId) -> Result<()> {
        Ok(())
    }

    fn forget(&self, _graph: GraphId) {}

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

fn run(case: &Case, dtype: DType, tf32: bool) -> (Vec<Launch>, u64) {
    let log = Arc::new(Log::default());
    case.run(&Context::new(Device::Accelerator(log.clone())).with_tf32(tf32), dtype, dtype, 1).unwrap();
    std::mem::take(&mut *log.launches.lock().unwrap())
}

/// The launches of a case, each once; of `f32` also with products in TF32. Its inputs lose their values.
pub fn launches(case: &mut Case, dtype: DType, tf32: bool) -> BTreeSet<Launch> {
    for input in &mut case.inputs {
        if !matches!(input.values, Values::Given(_)) {
            // Nothing reads them, and drawing those of a large case is slow.
            input.values = Values::Given(vec![0.0; input.shape.len()]);
        }
    }
    run(case, dtype, tf32).0.into_iter().collect()
}

/// The modules that a case's program loads ahead of its first run, and those of its launches.
pub fn modules(case: &Case, dtype: DType) -> (BTreeSet<&'static str>, BTreeSet<&'static str>) {
    let log = Arc::new(Log::default());
    let context = Context::new(Device::Accelerator(log.clone()));
    let prepared = case.prepare(&context, dtype).unwrap();
    let backward = case.inputs.iter().any(|input| input.gradient);
    let step = || if backward { prepared.forward_backward() } else { prepared.forward() };
    // Earlier launches filled the inputs.
    log.modules.lock().unwrap().1.clear();
    Program::plan(&context, step).and_then(|mut program| program.run(step)).unwrap();
    std::mem::take(&mut *log.modules.lock().unwrap())
}

/// Of each op's differentiable cases that launch the same kernels for the same inputs, the one with the fewest threads.
pub fn smallest_of_each_kind(cases: Vec<Case>) -> Vec<Case> {
    let mut kinds = BTreeMap::new();
    for case in cases.into_iter().filter(|case| !case.large && case.inputs.iter().any(|input| input.gradient)) {
        let (launches, threads) = run(&case, DType::F32, false);
        // Two tile sizes of a product are one template, with the same arguments.
        let mut names: Vec<_> =
            launches.iter().map(|launch| launch.kernel.replace("_large_", "_").replace("_small_", "_")).collect();
        names.sort_unstable();
        let inputs: Vec<_> = case.inputs.iter().map(|input| (input.name, input.gradient)).collect();
        let smallest = kinds.entry((case.op, names, inputs)).or_insert((u64::MAX, None));
        if threads < smallest.0 {
            *smallest = (threads, Some(case));
        }
    }
    kinds.into_values().filter_map(|(_, case)| case).collect()
}
