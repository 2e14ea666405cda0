//! The results of NVIDIA's compiler for the prebuilt PTX: registers, shared memory, and issue slots per instruction.
//!
//! The figures are stored with the PTX (`kernels/prebuilt/registers.json`, written by `tools/prebuild-kernels`, which documents the format).

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

use super::file::{KernelLines, Line};

const TABLE: &str = include_str!("../../kernels/prebuilt/registers.json");

#[derive(Debug, Default, Deserialize)]
struct Table {
    /// `linear.compute_80` to the hash that the compiled PTX carried.
    #[serde(default)]
    modules: BTreeMap<String, String>,
    #[serde(default)]
    kernels: BTreeMap<String, Row>,
}

/// A kernel: its number of PTX instructions, and the results by compute capability.
#[derive(Debug, Default, Deserialize)]
struct Row {
    #[serde(default)]
    ptx: u64,
    sm_80: Option<Compiled>,
    sm_90: Option<Compiled>,
    sm_100: Option<Compiled>,
}

/// A kernel as compiled by `ptxas`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Compiled {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of statically declared shared memory.
    pub static_shared: u32,
    /// Bytes of spill stores and loads.
    #[serde(default)]
    pub spill: u32,
    /// Instructions.
    #[serde(default)]
    pub sass: u64,
    /// Its hot loop.
    #[serde(default, rename = "loop")]
    pub hot: Option<HotLoop>,
}

/// A kernel's hot loop.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct HotLoop {
    /// Its key instruction: `mma`, `float`, `global`.
    pub by: String,
    /// Number of these per iteration.
    pub anchors: u64,
    /// Issue slots per iteration.
    pub sass: u64,
    /// PTX instructions per iteration, of the loop's `unroll` copies.
    pub ptx: u64,
    /// Copies of the PTX loop in an iteration.
    #[serde(default)]
    pub unroll: u64,
    /// First and last line of the loop in the PTX.
    #[serde(default)]
    pub lines: Option<[u32; 2]>,
}

impl HotLoop {
    /// The share of a kernel's executed instructions that are within the loop's lines, loops within it included; all where the loop's lines
    /// are not known, or nothing was executed.
    fn share(&self, lines: &[Line]) -> f64 {
        let Some([first, last]) = self.lines else { return 1.0 };
        let slots = |line: &Line| line.counters.warp_instructions as f64;
        let all: f64 = lines.iter().map(slots).sum();
        let within = lines.iter().filter(|line| (first..=last).contains(&line.ptx));
        if all > 0.0 { within.map(slots).sum::<f64>() / all } else { 1.0 }
    }
}

/// A kernel's figures, with their origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory declared by the kernel.
    pub static_shared: u32,
    /// Bytes of spills.
    pub spill: u32,
    /// Issue slots per PTX instruction.
    pub slots_per_ptx: f64,
    /// The hot loop, if the compiler's listing is known.
    pub hot: Option<HotLoop>,
    /// Whether they come from `ptxas`; else from the PTX machine's estimate, at one slot per instruction.
    pub compiled: bool,
}

fn table() -> &'static Table {
    static PARSED: OnceLock<Table> = OnceLock::new();
    PARSED.get_or_init(|| serde_json::from_str(TABLE).unwrap_or_default())
}

impl Table {
    /// Whether it is of this PTX: both carry the hash of the source and of the compiler.
    fn is_of(&self, module: &str, ptx: &str) -> bool {
        let Some(carried) = ptx.lines().take(5).find_map(|line| line.strip_prefix("// hash: ")) else { return false };
        let of_module = |name: &str| name.split_once('.').is_some_and(|(of, _)| of == module);
        self.modules.iter().any(|(name, hash)| hash == carried && of_module(name))
    }
}

/// The figures of a kernel for a compute capability. `ptx` is the embedded PTX of its module; None if a file replaces it. The table
/// applies only to the PTX that it was made from.
pub fn figures(kernel: &KernelLines, capability: [u32; 2], ptx: Option<&str>) -> Figures {
    let known = ptx.is_some_and(|ptx| table().is_of(&kernel.module, ptx));
    let row = table().kernels.get(&kernel.name).filter(|_| known);
    let compiled = row.and_then(|row| match capability {
        [8, _] => row.sm_80.as_ref(),
        [9, _] => row.sm_90.as_ref(),
        _ => row.sm_100.as_ref(),
    });
    let Some((row, compiled)) = row.zip(compiled) else {
        return Figures {
            registers: kernel.registers,
            static_shared: kernel.static_shared,
            spill: 0,
            slots_per_ptx: 1.0,
            hot: None,
            compiled: false,
        };
    };
    let ratio = |sass: u64, ptx: u64| if sass > 0 && ptx > 0 { sass as f64 / ptx as f64 } else { 1.0 };
    // The hot loop's ratio for the instructions executed in it, and for all others the ratio of the rest of the kernel. Where a kernel has
    // several copies of its loop, and another one runs, that is the rest too.
    let slots_per_ptx = match &compiled.hot {
        Some(hot) => {
            let (share, own) = (hot.share(&kernel.lines), hot.ptx / hot.unroll.max(1));
            let rest = ratio(compiled.sass.saturating_sub(hot.sass), row.ptx.saturating_sub(own));
            share * ratio(hot.sass, hot.ptx) + (1.0 - share) * rest
        }
        None => ratio(compiled.sass, row.ptx),
    };
    let Compiled { registers, static_shared, spill, hot, .. } = compiled.clone();
    Figures { registers, static_shared, spill, slots_per_ptx, hot, compiled: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::counters::Counters;

    #[test]
    fn a_kernel_that_is_not_known_has_the_machines_figures() {
        let kernel =
            KernelLines { name: "no_such_kernel".into(), registers: 40, static_shared: 8, ..Default::default() };
        let figures = figures(&kernel, [9, 0], Some("// hash: 0"));
        assert_eq!((figures.registers, figures.static_shared, figures.compiled), (40, 8, false));
        assert_eq!(figures.slots_per_ptx, 1.0);
    }

    #[test]
    fn a_loops_ratio_is_of_what_it_executes() {
        let row = &table().kernels["linear_fwd_large_bf16"];
        let (hot, hash) = (row.sm_90.as_ref().unwrap().hot.as_ref().unwrap(), &table().modules["linear.compute_80"]);
        let ratio = |lines: &[(u32, u64)]| {
            let line = |&(ptx, warp_instructions)| {
                let counters = Counters { warp_instructions, ..Counters::default() };
                Line { ptx, counters, ..Line::default() }
            };
            let (module, name) = ("linear".to_string(), "linear_fwd_large_bf16".to_string());
            let kernel = KernelLines { module, name, lines: lines.iter().map(line).collect(), ..Default::default() };
            figures(&kernel, [9, 0], Some(&format!("// hash: {hash}"))).slots_per_ptx
        };
        let within = ratio(&[]);
        assert_eq!(within, hot.sass as f64 / hot.ptx as f64);
        let [first, last] = hot.lines.unwrap();
        assert_eq!(ratio(&[(first, 7), (last, 5)]), within);
        let outside = ratio(&[(first - 1, 3)]);
        let half = ratio(&[(first, 3), (last + 1, 3)]);
        assert!((half - (within + outside) / 2.0).abs() < 1e-12 && outside > within, "{within} {half} {outside}");
    }

    #[test]
    fn the_table_applies_only_to_the_ptx_that_it_is_of() {
        let kernel = KernelLines {
            module: "tokens".into(),
            name: "tokens_fwd_bf16".into(),
            registers: 199,
            ..Default::default()
        };
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/prebuilt/tokens.compute_80.ptx");
        let text = std::fs::read_to_string(path).unwrap();
        let carried = text.lines().find_map(|line| line.strip_prefix("// hash: ")).unwrap();
        // An op in development has stale figures until its table is made again.
        let current = table().modules["tokens.compute_80"] == carried;
        assert_eq!(figures(&kernel, [9, 0], Some(&text)).compiled, current);
        let of_table = text.replace(carried, &table().modules["tokens.compute_80"]);
        assert!(figures(&kernel, [9, 0], Some(&of_table)).compiled);
        for other in [
            Some(text.replace(carried, "0123")),
            Some(text.replace("// hash: ", "// ")),
            Some(text.replace(carried, &table().modules["linear.compute_80"])),
            None,
        ] {
            let figures = figures(&kernel, [9, 0], other.as_deref());
            assert_eq!((figures.registers, figures.compiled), (199, false));
        }
    }

    /// For the prebuilt PTX: an op in development has none yet, and its tests need no CUDA tools.
    #[test]
    fn the_table_has_every_kernel() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/prebuilt");
        let prebuilt: String = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "ptx"))
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect();
        let is_prebuilt = |name: &str| prebuilt.contains(&format!(".entry {name}("));
        let kernels = crate::device::launches::ALL.iter().filter(|kernel| is_prebuilt(kernel.name));
        assert!(kernels.clone().count() > 150);
        for kernel in kernels {
            let row =
                table().kernels.get(kernel.name).unwrap_or_else(|| panic!("{} is not in registers.json", kernel.name));
            for compiled in [&row.sm_80, &row.sm_90, &row.sm_100] {
                let compiled = compiled.as_ref().unwrap_or_else(|| panic!("{} lacks a device", kernel.name));
                assert!((1..=255).contains(&compiled.registers), "{}: {compiled:?}", kernel.name);
            }
            let lines = KernelLines { module: kernel.module.into(), name: kernel.name.into(), ..Default::default() };
            let hash = &table().modules[&format!("{}.compute_80", kernel.module)];
            let figures = figures(&lines, [9, 0], Some(&format!("// hash: {hash}")));
            assert!(figures.compiled && (0.2..5.0).contains(&figures.slots_per_ptx), "{}: {figures:?}", kernel.name);
        }
    }
}
