//! `engine doctor`: reports what this machine can run, and tests it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::flags;
use super::options::DataFolder;
use crate::config::Precision;
use crate::data::{Dataset, Split, WEIGHTS, WEIGHTS_DIR};
use crate::device::cuda::CudaDevice;
use crate::device::{Accelerator, DeviceChoice, embedded_modules, instructions, launches};
use crate::error::{Error, Result};
use crate::models::efficientnet::EfficientNetWeights;
use crate::models::inception::InceptionWeights;
use crate::models::resnet::torchvision::Pretrained;
use crate::ops::case::Case;
use crate::ops::cases;
use crate::ops::host::parallel::{set_threads, threads};
use crate::ops::tf32::OPS_IN_TF32;
use crate::tensor::Device;
use crate::weights::WeightFile;
use crate::words::counted;

/// Report what this machine can run, and test every op on its device.
///
/// On a GPU every kernel is compared with the CPU op; without a GPU the CPU ops are compared with themselves in double precision.
/// Any failure is an error. ENGINE_REQUIRE_GPU=1 makes a missing GPU a failure.
#[derive(Clone, Debug, Args)]
pub struct DoctorCommand {
    /// auto, cpu, cuda or cuda:N: the device of the self-test
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    #[command(flatten)]
    folder: DataFolder,
    /// Test only this op
    #[arg(long, value_name = "OP")]
    op: Option<String>,
}

impl DoctorCommand {
    /// Prints the findings to standard output.
    ///
    /// # Errors
    /// [`Error::Config`] with the number of failures; each is printed above it.
    pub fn run(self) -> Result<()> {
        let known: BTreeSet<&str> = cases().iter().map(|case| case.op).collect();
        if let Some(op) = self.op.as_deref().filter(|op| !known.contains(op)) {
            let list: Vec<&str> = known.into_iter().collect();
            return Err(Error::config(
                "--op",
                format!("no op is called `{}`", op.escape_debug()),
                format!("use one of {}", list.join(", ")),
            ));
        }
        let choice: DeviceChoice = self.device.parse()?;
        set_threads(None)?;
        println!("engine {}", env!("CARGO_PKG_VERSION"));
        print!("{}", cpu());
        print!("{}", kernels());
        print!("{}", gpus());
        print!("{}", data(&self.folder.data_dir));
        print!("{}", networks(Path::new(WEIGHTS_DIR)));

        let chosen = choice.open()?;
        let mut failures = 0;
        let device = match chosen.accelerator {
            Some(accelerator) => Device::Accelerator(accelerator),
            None => {
                let why = match choice {
                    DeviceChoice::Cpu => "as requested by --device cpu".to_string(),
                    _ => match &chosen.fallback {
                        Some(why) => format!("because there is no usable GPU ({why})"),
                        None => "because there is no usable GPU".to_string(),
                    },
                };
                println!("\nSKIPPED: the CUDA kernels were not tested, {why}.");
                if std::env::var("ENGINE_REQUIRE_GPU").is_ok_and(|value| value == "1") {
                    println!("FAILED: ENGINE_REQUIRE_GPU=1 asks for one.");
                    failures += 1;
                }
                Device::Cpu
            }
        };
        failures += self.self_test(&device);
        match failures {
            0 => Ok(()),
            count => {
                let message = format!("{count} failure{}, listed above", if count == 1 { "" } else { "s" });
                Err(Error::config("doctor", message, "fix them, or report them with this output"))
            }
        }
    }

    /// Tests the ops and prints a line for each; returns the number of ops and dtypes that failed.
    fn self_test(&self, device: &Device) -> usize {
        let (what, types): (String, &[Precision]) = match device {
            Device::Cpu => ("the CPU's ops in f32 and bf16 against f64".into(), &[Precision::F32, Precision::Bf16]),
            Device::Accelerator(accelerator) => {
                let all: &[Precision] = match accelerator.has_tensor_cores() {
                    true => &Precision::SETTLED,
                    false => &[Precision::F32, Precision::Bf16],
                };
                (format!("every kernel on {} against the CPU's op", accelerator.name()), all)
            }
        };
        println!("\nself-test: {what}");
        println!("  {:<24}{:<7}{:>6}{:>10}  result", "op", "type", "cases", "time");
        let mut by_op: BTreeMap<&str, Vec<Case>> = BTreeMap::new();
        for case in cases().into_iter().filter(|case| !case.large) {
            if self.op.as_deref().is_none_or(|op| op == case.op) {
                by_op.entry(case.op).or_default().push(case);
            }
        }
        let (mut failures, mut tested) = (0, 0);
        'ops: for (op, cases) in &by_op {
            for &precision in types {
                if precision == Precision::Tf32 && !OPS_IN_TF32.contains(op) {
                    continue;
                }
                let start = Instant::now();
                let faults = faults(device, cases, precision);
                let seconds = start.elapsed().as_secs_f64();
                let result = if faults.is_empty() { "pass" } else { "FAIL" };
                println!("  {op:<24}{:<7}{:>6}{seconds:>8.2} s  {result}", precision.name(), cases.len());
                faults.iter().for_each(|fault| println!("      {}", fault_text(fault)));
                failures += usize::from(!faults.is_empty());
                tested += 1;
                if !faults.is_empty() && is_lost(device) {
                    println!(
                        "  the rest was not tested: the device is unusable after a kernel fault; use --op to test a single op"
                    );
                    break 'ops;
                }
            }
        }
        match failures {
            0 => println!("  all {tested} pass"),
            _ => println!("  {failures} of {tested} FAILED"),
        }
        failures
    }
}

/// The faults of an op's cases. After a kernel fault the device is unusable, and later cases would only repeat the fault.
fn faults(device: &Device, cases: &[Case], precision: Precision) -> Vec<Error> {
    let mut faults = Vec::new();
    for case in cases {
        let outcome = match device {
            Device::Cpu if precision == Precision::F32 => case.check_oracle(),
            _ if precision == Precision::Tf32 => case.check_tf32(device).map(drop),
            _ => case.check_device(device, precision.dtype()).map(drop),
        };
        faults.extend(outcome.err());
        if !faults.is_empty() && is_lost(device) {
            break;
        }
    }
    faults
}

/// Whether the device refuses all work, as after a kernel fault.
fn is_lost(device: &Device) -> bool {
    matches!(device, Device::Accelerator(accelerator) if accelerator.synchronize().is_err())
}

/// A fault as text, without the usual advice to run this command.
fn fault_text(fault: &Error) -> String {
    flags::with_flags(fault, &[]).replace("run `engine doctor`, and this command under", "run this command under")
}

fn cpu() -> String {
    let model = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
        Some(line.trim_start_matches([' ', '\t', ':']).to_string())
    });
    format!(
        "\ncpu\n  {}\n  threads: {} used of {}\n  vector instructions: {}\n{}",
        model.unwrap_or_else(|| std::env::consts::ARCH.to_string()),
        threads(),
        std::thread::available_parallelism().map_or(1, usize::from),
        instruction_set(),
        if instructions::amx_is_refused() {
            "  AMX: the processor has it, but the operating system does not let this process use it\n"
        } else {
            ""
        }
    )
}

/// The instruction set in force, with its name for `ENGINE_CPU`.
fn instruction_set() -> &'static str {
    match instructions::instruction_set().name() {
        "amx" => "AVX-512 and AMX, tiles of bf16 (amx)",
        "amx-model" => "a scalar model of AMX (amx-model): for tests, slow",
        "avx512bf16" => "AVX-512 with products of bf16 (avx512bf16)",
        "avx512" => "AVX-512 (avx512)",
        "avx2" => "AVX2 and FMA (avx2)",
        _ if cfg!(target_arch = "x86_64") => "SSE2 only (plain): training will be slow",
        _ => "those of the build's target (plain)",
    }
}

fn kernels() -> String {
    let modules = embedded_modules();
    let all: BTreeSet<&str> = launches::ALL.iter().map(|kernel| kernel.module).collect();
    let prebuilt: BTreeSet<&str> = modules.iter().filter(|m| m.nvcc.is_none() && !m.cubin).map(|m| m.module).collect();
    let stale: BTreeSet<&str> = modules.iter().filter(|m| m.stale).map(|m| m.module).collect();
    let nvcc: Vec<&str> = modules.iter().filter_map(|m| m.nvcc).collect();
    let list = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(", ");
    let mut text = format!("\nkernels\n  {} kernels in {} modules\n", launches::ALL.len(), all.len());
    let missing: BTreeSet<&str> = all.difference(&prebuilt).copied().collect();
    text += &match (stale.is_empty(), missing.is_empty()) {
        (true, true) => format!("  prebuilt PTX: {} modules, all current\n", prebuilt.len()),
        _ => format!(
            "  prebuilt PTX: {} modules; STALE: [{}], missing: [{}]; run `cargo run --release -p prebuild-kernels -- --nvrtc \
             FOLDER` (see CONTRIBUTING.md)\n",
            prebuilt.len(),
            list(&stale),
            list(&missing)
        ),
    };
    let machine_code: BTreeSet<&str> = modules.iter().filter(|m| m.cubin).map(|m| m.arch).collect();
    if !machine_code.is_empty() {
        text += &format!("  machine code for {}, tried before PTX\n", list(&machine_code));
    }
    text + &match nvcc.first() {
        Some(version) => format!("  compiled by nvcc {version} when the engine was built, tried before the prebuilt\n"),
        None => "  no nvcc when the engine was built: the prebuilt PTX is used\n".to_string(),
    }
}

fn gpus() -> String {
    let mut text = String::from("\ncuda\n");
    let count = match CudaDevice::count() {
        Ok(0) => return text + "  the driver is installed, but there is not a device\n",
        Ok(count) => count,
        Err(error) => return text + &format!("  not usable: {}\n", flags::with_flags(&error, &[])),
    };
    for ordinal in 0..count {
        text += &match CudaDevice::open(ordinal) {
            Ok(device) => {
                let (major, minor) = device.capability();
                let memory = match device.memory() {
                    Ok((free, total)) => format!("{} MiB, {} MiB free", total >> 20, free >> 20),
                    Err(error) => format!("memory unknown: {}", flags::with_flags(&error, &[])),
                };
                let processors = device.multiprocessors();
                format!(
                    "  {}: compute capability {major}.{minor}, {processors} multiprocessors, {memory}\n",
                    device.name()
                )
            }
            Err(error) => format!("  not usable: {}\n", flags::with_flags(&error, &[])),
        };
    }
    text
}

fn data(folder: &Path) -> String {
    let mut text = format!("\ndata in {}\n", folder.display());
    let Ok(entries) = std::fs::read_dir(folder) else {
        return text + "  the folder is not there; `engine data fetch cifar10` makes it, `--data builtin` needs none\n";
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    if files.is_empty() {
        text += "  no data sets; `engine data fetch cifar10` gets one, `--data builtin` needs none\n";
    }
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        text += &match Dataset::open(&path) {
            Ok(set) => format!(
                "  {name}: {} training and {} validation images {}, {}\n",
                set.split_len(Split::Train),
                set.split_len(Split::Validation),
                set.size().with_channels(set.channels()),
                counted(set.class_names().len(), "class")
            ),
            Err(error) => format!("  not usable: {}\n", flags::with_flags(&error, &[])),
        };
    }
    text
}

/// The published networks: whether their files exist and are intact.
fn networks(folder: &Path) -> String {
    let mut text = format!("\nnetworks in {}\n", folder.display());
    for weights in &WEIGHTS {
        let path = folder.join(weights.file.name);
        let opened = || match weights.name {
            "inception" => InceptionWeights::open(&path).map(|_| ()),
            "efficientnet-lite0" => EfficientNetWeights::open(&path).map(|_| ()),
            _ => Pretrained::of_torchvision(&WeightFile::open(&path)?).map(|_| ()),
        };
        let found = match path.exists() {
            false => format!("not there; `engine fetch {}` gets it", weights.name),
            true => opened().map_or_else(
                |error| format!("not usable: {}", flags::with_flags(&error, &[])),
                |()| weights.title.to_string(),
            ),
        };
        text += &format!("  {}: {found}\n", weights.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        assert!(cpu().contains("threads: "));
        let fault = Error::device("cuda:0", "x", "a kernel is wrong: run `engine doctor`, and this command under `y`");
        assert_eq!(fault_text(&fault), "cuda:0: x; a kernel is wrong: run this command under `y`");
        assert!(kernels().contains("kernels in"));
        assert!(gpus().lines().count() >= 3);
        let folder = tempfile::tempdir().unwrap();
        assert!(data(&folder.path().join("none")).contains("is not there"));
        assert!(data(folder.path()).contains("no data sets"));
        std::fs::write(folder.path().join("x.safetensors"), b"nothing").unwrap();
        assert!(data(folder.path()).contains("not usable"));
        std::fs::write(folder.path().join(WEIGHTS[1].file.name), b"nothing").unwrap();
        let told = networks(folder.path());
        assert!(told.contains("resnet18: not there; `engine fetch resnet18`"), "{told}");
        assert!(told.contains("inception: not usable: ") && told.contains("its name says 6726825d"), "{told}");
    }

    #[test]
    fn an_unknown_op_is_told() {
        let command = DoctorCommand {
            device: "cpu".into(),
            folder: DataFolder { data_dir: "data".into() },
            op: Some("convolution".into()),
        };
        assert!(command.run().unwrap_err().to_string().contains("layer_norm"));
    }
}
