//! Programs: steps that run repeatedly with the same shapes.
//!
//! A program is planned once in shape-only mode; every allocation gets a number, a lifetime and an offset in the context's arena.
//! On an accelerator the first run loads the modules of the program's kernels and is eager, the second is captured, and from then
//! on the host only replays the graph. Values that change from step to step are therefore read from a control buffer on the
//! device, and results leave through persistent tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::Context;
use super::context::Backend;
use super::plan::{Cost, MemoryPlan};
use crate::device::{Capture, GraphId};
use crate::error::Result;

/// A planned step: memory, cost and, on an accelerator, the captured graph.
pub struct Program {
    context: Context,
    plan: Rc<MemoryPlan>,
    charges: BTreeMap<&'static str, (usize, Cost)>,
    modules: BTreeSet<&'static str>,
    runs: u64,
    graph: Option<(GraphId, u64)>,
    graphs: bool,
}

impl Program {
    /// Runs `body` in shape-only mode: no memory, no work.
    pub fn plan(context: &Context, body: impl FnOnce() -> Result<()>) -> Result<Self> {
        let recorder = context.record(body)?;
        let plan = Rc::new(recorder.assign());
        let (charges, modules) = (recorder.charges, recorder.modules);
        Ok(Self { context: context.clone(), plan, charges, modules, runs: 0, graph: None, graphs: true })
    }

    /// Bytes of the arena for this program.
    pub fn arena_bytes(&self) -> usize {
        self.plan.bytes
    }

    /// Calls and total cost by op name.
    pub fn charges(&self) -> &BTreeMap<&'static str, (usize, Cost)> {
        &self.charges
    }

    /// The kernel modules that it uses, by the name of their `.cu`.
    pub fn modules(&self) -> &BTreeSet<&'static str> {
        &self.modules
    }

    /// Turns capture off or on: for comparison and debugging.
    pub fn set_graphs(&mut self, graphs: bool) {
        self.graphs = graphs;
        if !graphs {
            self.drop_graph();
        }
    }

    /// Whether runs are now replays of a captured graph.
    pub fn is_captured(&self) -> bool {
        self.graph.is_some()
    }

    /// Runs the step. `body` must do the same work as when it was planned; from the third run on an accelerator it is no longer
    /// called.
    pub fn run(&mut self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        self.context.reserve_arena(self.plan.bytes)?;
        let generation = self.context.arena_generation();
        let context = self.context.clone();
        if let Backend::Accelerator(accelerator) = context.backend() {
            if self.graph.is_some_and(|(_, captured)| captured != generation) {
                self.drop_graph();
            }
            if let Some((graph, _)) = self.graph {
                // SAFETY: the graph was captured over this generation of the arena, which the context keeps alive, and over
                // persistent tensors, which the caller's body holds.
                return unsafe { accelerator.replay(graph) };
            }
            if self.runs == 0 {
                // All at once, because a driver compiles each at its first load, which takes seconds.
                accelerator.preload(&self.modules.iter().copied().collect::<Vec<_>>())?;
            }
            if self.runs > 0 && self.graphs {
                let capture = Capture::begin(accelerator)?;
                context.replay(self.plan.clone(), body)?;
                let graph = capture.finish()?;
                self.graph = Some((graph, generation));
                // SAFETY: as above.
                return unsafe { accelerator.replay(graph) };
            }
        }
        self.runs += 1;
        context.replay(self.plan.clone(), body)
    }

    fn drop_graph(&mut self) {
        if let (Some((graph, _)), Backend::Accelerator(accelerator)) = (self.graph.take(), self.context.backend()) {
            accelerator.forget(graph);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.drop_graph();
    }
}
