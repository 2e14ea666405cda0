//! A case repeated within one graph, timed by the device: what a launch from the host and a wait cost is not in it, and no repeat finds
//! what the one before it left in the caches.

use std::sync::Arc;
use std::time::Duration;

use super::case::{Case, PreparedCase};
use crate::device::{Accelerator, Capture, GraphId};
use crate::error::Result;
use crate::tensor::{Context, DType, Device, Program, Tensor};

/// The least size of all copies of a case together: more than twice any device's L2 (126 MB on a B200).
const ROTATION_BYTES: f64 = (256u64 << 20) as f64;

/// The fewest repeats of a graph, and the most copies of a case.
const REPEATS: usize = 32;
const COPIES: usize = 16;

/// A captured graph of repeats, each on the copy of inputs, results and scratch that was left alone for longest.
pub struct Repeats {
    accelerator: Arc<dyn Accelerator>,
    graph: GraphId,
    count: usize,
    bytes: f64,
    /// The memory of the graph: arenas, which contexts hold, and inputs and gradients.
    _contexts: Vec<Context>,
    _tensors: Vec<Tensor>,
}

impl Repeats {
    /// Captures repeats of `case`, forward or forward and backward; None on the CPU, which captures nothing.
    ///
    /// # Errors
    /// The op's own, and those of the device.
    pub fn capture(device: &Device, case: &Case, dtype: DType, backward: bool) -> Result<Option<Self>> {
        let Device::Accelerator(accelerator) = device else { return Ok(None) };
        let step =
            |prepared: &PreparedCase<'_>| if backward { prepared.forward_backward() } else { prepared.forward() };
        let first = case.prepare(&Context::new(device.clone()), dtype)?;
        let mut programs = vec![Program::plan(first.context(), || step(&first))?];
        let bytes: f64 = programs[0].charges().values().map(|(_, cost)| cost.bytes).sum();
        let of_a_copy = bytes + programs[0].arena_bytes() as f64;
        let fit = accelerator.memory()?.0 as f64 / 2.0 / of_a_copy;
        let wanted = (ROTATION_BYTES / bytes.max(1.0)).ceil().max(2.0);
        let mut copies = vec![first];
        for _ in 1..(wanted.min(fit) as usize).clamp(1, COPIES) {
            let copy = copies[0].copy(&Context::new(device.clone()))?;
            programs.push(Program::plan(copy.context(), || step(&copy))?);
            copies.push(copy);
        }
        for (program, copy) in programs.iter_mut().zip(&copies) {
            // Not graphs of their own: they are recorded into the one.
            program.set_graphs(false);
            program.run(|| step(copy))?;
        }
        let count = copies.len() * REPEATS.div_ceil(copies.len());
        let capture = Capture::begin(accelerator.as_ref())?;
        for repeat in 0..count {
            let copy = repeat % copies.len();
            programs[copy].run(|| step(&copies[copy]))?;
        }
        let graph = capture.finish()?;
        let tensors = copies.iter().flat_map(PreparedCase::tensors).cloned().collect();
        let contexts = copies.iter().map(|copy| copy.context().clone()).collect();
        let accelerator = accelerator.clone();
        Ok(Some(Self { accelerator, graph, count, bytes, _contexts: contexts, _tensors: tensors }))
    }

    /// Repeats of the graph.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes that a repeat cannot avoid.
    pub fn bytes(&self) -> f64 {
        self.bytes
    }

    /// Runs the graph once and waits: what a repeat of it took, on the device's clock; None where the device has none.
    ///
    /// # Errors
    /// Those of the device, and of the work.
    pub fn time(&self) -> Result<Option<Duration>> {
        // SAFETY: `self` holds everything that the graph uses.
        let spent = unsafe { self.accelerator.time(self.graph)? };
        Ok(spent.map(|spent| spent.div_f64(self.count as f64)))
    }
}

impl Drop for Repeats {
    fn drop(&mut self) {
        self.accelerator.forget(self.graph);
    }
}
