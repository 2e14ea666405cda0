//! Graphs.

use std::ffi::c_void;
use std::sync::Arc;

use super::code::{self, Code};
use super::queue::Op;
use super::state::{Graph, handle, pointer};
use super::{call, put, stream};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(to: *mut *mut c_void, graph: *mut c_void, flags: u64) -> Code {
    call("cuGraphInstantiateWithFlags", |driver| {
        driver.current()?;
        if flags & !15 != 0 {
            return Err(code::INVALID_VALUE);
        }
        let found = driver.graphs.get(&handle(graph)).ok_or(code::INVALID_VALUE)?;
        let (context, ops) = (found.context, Arc::clone(&found.ops));
        let made = driver.fresh();
        driver.executables.insert(made, Graph { context, ops });
        put(to, pointer(made))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphDestroy(graph: *mut c_void) -> Code {
    call("cuGraphDestroy", |driver| {
        driver.current()?;
        driver.graphs.remove(&handle(graph)).map(|_| ()).ok_or(code::INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecDestroy(graph: *mut c_void) -> Code {
    call("cuGraphExecDestroy", |driver| {
        driver.current()?;
        driver.executables.remove(&handle(graph)).map(|_| ()).ok_or(code::INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphUpload(graph: *mut c_void, to: *mut c_void) -> Code {
    call("cuGraphUpload", |driver| {
        let context = driver.current()?;
        if !driver.executables.contains_key(&handle(graph)) {
            return Err(code::INVALID_VALUE);
        }
        stream::not_captured(driver, context, handle(to))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphLaunch(graph: *mut c_void, to: *mut c_void) -> Code {
    call("cuGraphLaunch", |driver| {
        let context = driver.current()?;
        let found = driver.executables.get(&handle(graph)).ok_or(code::INVALID_VALUE)?;
        if found.context != context {
            return Err(code::INVALID_VALUE);
        }
        let ops = Arc::clone(&found.ops);
        stream::not_captured(driver, context, handle(to))?;
        driver.trace(|| format!("launch-graph {:#x}", handle(to)));
        driver.submit(context, handle(to), Op::Graph(ops, 0))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphGetNodes(graph: *mut c_void, nodes: *mut *mut c_void, count: *mut usize) -> Code {
    call("cuGraphGetNodes", |driver| {
        driver.current()?;
        let found = driver.graphs.get(&handle(graph)).ok_or(code::INVALID_VALUE)?;
        // Nodes have no handles here: only their number is told.
        if nodes.is_null() { put(count, found.ops.len()) } else { Err(code::NOT_SUPPORTED) }
    })
}
