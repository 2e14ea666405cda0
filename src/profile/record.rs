//! An accelerator that records the work submitted to another one.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::file::Node;
use crate::device::{Accelerator, GraphId, Kernel, KernelArgument, LaunchConfig, Ticket};
use crate::error::Result;

/// Submits to `inner`, and records launches, copies and fills during a section.
#[derive(Debug)]
pub struct Recorder {
    inner: Arc<dyn Accelerator>,
    /// The section, empty for none, and the recorded work.
    log: Mutex<(String, Vec<Node>)>,
}

impl Recorder {
    /// Wraps an accelerator.
    pub fn new(inner: Arc<dyn Accelerator>) -> Self {
        Self { inner, log: Mutex::default() }
    }

    /// Starts a section for the following work; an empty name ends recording.
    pub fn section(&self, name: &str) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).0 = name.into();
    }

    /// The work recorded so far.
    pub fn take(&self) -> Vec<Node> {
        std::mem::take(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner).1)
    }

    fn note(&self, kernel: Option<&str>, buffers: Vec<(u64, u64, bool)>) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if !log.0.is_empty() {
            let section = log.0.clone();
            log.1.push(Node { section, kernel: kernel.map(String::from), buffers });
        }
    }
}

impl Accelerator for Recorder {
    unsafe fn launch(&self, kernel: &'static Kernel, config: LaunchConfig, arguments: &[KernelArgument]) -> Result<()> {
        let buffer = |argument: &KernelArgument| match *argument {
            KernelArgument::Buffer { address, bytes, writable } if bytes > 0 => Some((address, bytes as u64, writable)),
            _ => None,
        };
        self.note(Some(kernel.name), arguments.iter().filter_map(buffer).collect());
        // SAFETY: the caller's promise.
        unsafe { self.inner.launch(kernel, config, arguments) }
    }

    unsafe fn copy(&self, source: u64, destination: u64, bytes: usize) -> Result<()> {
        if bytes > 0 {
            self.note(None, vec![(source, bytes as u64, false), (destination, bytes as u64, true)]);
        }
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy(source, destination, bytes) }
    }

    unsafe fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        if bytes > 0 {
            self.note(None, vec![(address, bytes as u64, true)]);
        }
        // SAFETY: the caller's promise.
        unsafe { self.inner.zero(address, bytes) }
    }

    fn name(&self) -> String {
        self.inner.name()
    }

    fn multiprocessors(&self) -> u32 {
        self.inner.multiprocessors()
    }

    fn has_tensor_cores(&self) -> bool {
        self.inner.has_tensor_cores()
    }

    fn memory(&self) -> Result<(u64, u64)> {
        self.inner.memory()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.inner.allocate(bytes)
    }

    unsafe fn release(&self, address: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.release(address) }
    }

    unsafe fn upload(&self, source: &[u8], address: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.upload(source, address) }
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>> {
        self.inner.allocate_pinned(bytes)
    }

    unsafe fn release_pinned(&self, memory: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.release_pinned(memory, bytes) }
    }

    unsafe fn submit_upload(&self, source: NonNull<u8>, bytes: usize, address: u64) -> Result<Ticket> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.submit_upload(source, bytes, address) }
    }

    fn wait_for(&self, ticket: Ticket) -> Result<()> {
        self.inner.wait_for(ticket)
    }

    unsafe fn download(&self, address: u64, destination: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.download(address, destination) }
    }

    fn preload(&self, modules: &[&'static str]) -> Result<()> {
        self.inner.preload(modules)
    }

    fn begin_capture(&self) -> Result<()> {
        self.inner.begin_capture()
    }

    fn end_capture(&self) -> Result<GraphId> {
        self.inner.end_capture()
    }

    unsafe fn replay(&self, graph: GraphId) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.replay(graph) }
    }

    unsafe fn time(&self, graph: GraphId) -> Result<Option<Duration>> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.time(graph) }
    }

    fn forget(&self, graph: GraphId) {
        self.inner.forget(graph);
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }

    fn begin_timing(&self) -> Result<()> {
        self.inner.begin_timing()
    }

    fn end_timing(&self) -> Result<Vec<f64>> {
        self.inner.end_timing()
    }
}
