//! `engine plan`: the cost of a run before it starts.

use std::path::PathBuf;

use clap::Args;

use super::machine::PrecisionChoice;
use super::plan_ranks;
use super::presets::configuration;
use crate::config::{Config, Precision};
use crate::data::{Dataset, Split};
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::eval::Extractor;
use crate::ops::host::parallel::set_threads;
use crate::tensor::{DType, Device};
use crate::train::{DataSizes, Estimate, Peak, Residency, StepWork};
use crate::words::{counted, named};

/// Print the memory, the work and the minimum time of a training step and a sampling step, from shapes alone.
///
/// Allocates nothing and needs no GPU. The roofline time is the sum over the ops of the larger of FLOPs over the device's rate and
/// bytes over its bandwidth; rates are those of data sheets, for dense products.
#[derive(Clone, Debug, Args)]
pub struct PlanCommand {
    /// A preset [default: quickstart]
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    preset: Option<String>,
    /// A YAML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A feature extractor for `engine eval` in place of a model: inception or efficientnet-lite0
    #[arg(long, value_name = "NAME", conflicts_with_all = ["preset", "config", "data", "set"])]
    extractor: Option<String>,
    /// Images in a batch
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// h100, h200, b200, a100, l40s, l4, rtx4090, rtx3090, cpu (this one, measured), or here: this machine's GPU or else its CPU
    #[arg(long, value_name = "DEVICE", default_value = "here")]
    on: String,
    /// f32, tf32 or bf16 [default: the configuration's; auto is bf16 on a GPU and on a CPU with instructions for it, else f32]
    #[arg(long, value_enum)]
    precision: Option<PrecisionChoice>,
    /// Model the step on 1 to N GPUs, each with a batch of its own
    #[arg(long, value_name = "N")]
    gpus: Option<usize>,
    /// The link between them: nvlink, pcie or 100gbe
    #[arg(long, value_name = "LINK", default_value = "nvlink")]
    link: String,
    /// The data set file, for its size [default: the published size of the configured set]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Override a value, as in --set model.depth=6
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl PlanCommand {
    /// Prints the plan to standard output.
    ///
    /// # Errors
    /// [`Error::Config`] for a configuration that cannot be planned.
    pub fn run(self) -> Result<()> {
        print!("{}", self.text()?);
        Ok(())
    }

    fn text(&self) -> Result<String> {
        if let Some(name) = &self.extractor {
            return self.extraction(name);
        }
        let (preset, file) = (self.preset.as_deref(), self.config.as_deref());
        let (name, mut config) = configuration(preset, file, &self.set, self.batch, self.precision)?;
        let sizes = self.sizes(&config)?;
        let peak = device(&self.on)?;
        config.training.precision =
            config.training.precision.settled(peak.key != "cpu" || Device::Cpu.multiplies_bf16());
        let estimate = placed(&config, sizes, &peak)?;
        let mut text = heading(&name, &config, &estimate, &peak);
        text += &memory(&estimate, sizes, peak.key == "cpu");
        if let Some(available) = peak.memory {
            let needed = estimate.total_bytes();
            if needed as u64 > available {
                let batch = Estimate::largest_batch(&config, sizes, available, estimate.residency)?;
                let advice = match batch {
                    0 => "no batch fits: use a smaller model".to_string(),
                    batch => format!("a batch of {batch} fits: --batch {batch}"),
                };
                text += &format!("  TOO MUCH: the device has {}; {advice}\n", bytes(available as f64));
            } else {
                let share = 100.0 * needed as f64 / available as f64;
                text += &format!("  {share:.1} % of the device's {}\n", bytes(available as f64));
            }
        }
        let (training, precision) = (&config.training, config.training.precision);
        let count = training.batch_size * training.micro_batches();
        text += &format!("\ntraining step, {}\n", counted(count, "image"));
        text += &table(&estimate.training, &peak, precision);
        let roofline = estimate.training.roofline(&peak, precision);
        text += &floor(&estimate.training, &peak, precision, count, "a step");
        text += &format!(
            "  at the roofline an epoch ({}) takes {}, the run ({}) {}\n",
            several(estimate.steps_per_epoch as usize, "step"),
            time(roofline.seconds * estimate.steps_per_epoch as f64),
            several(estimate.total_steps as usize, "step"),
            time(roofline.seconds * estimate.total_steps as f64),
        );
        if let Some(gpus) = self.gpus {
            text += &plan_ranks::text(&config, &estimate, &peak, gpus, plan_ranks::link(&self.link)?)?;
        }

        let Some(work) = &estimate.sampling else { return Ok(text) };
        let (sampling, batch) = (&config.sampling, training.batch_size);
        let guided = if sampling.is_guided() { ", with and without label" } else { "" };
        let prepared = if peak.key == "cpu" { work.prepared_bytes } else { 0 };
        let alone = bytes((work.bytes + prepared) as f64);
        let of_that = match prepared {
            0 => String::new(),
            prepared => format!(", of that {} weights packed for products", bytes(prepared as f64)),
        };
        let images_of = counted(batch, "image");
        text += &format!("\nsampling step, {images_of}{guided}: {alone} without training{of_that}\n");
        text += &table(&work.evaluation, &peak, precision);
        text += &floor(&work.evaluation, &peak, precision, batch, "an evaluation");
        let all = work.evaluation.roofline(&peak, precision).seconds * work.stages as f64;
        text += &format!(
            "  at the roofline {} {} ({}) take {}, {}\n",
            sampling.sampler,
            counted(sampling.num_steps, "step"),
            counted(work.stages, "evaluation"),
            time(all),
            images(batch as f64 / all),
        );
        Ok(text)
    }

    /// The plan of a feature extractor, in f32 as `engine eval` runs it.
    fn extraction(&self, name: &str) -> Result<String> {
        if matches!(self.precision, Some(PrecisionChoice::Bf16 | PrecisionChoice::Tf32)) {
            return Err(Error::config("--precision", "features are extracted in f32", "leave it out"));
        }
        let (batch, precision) = (self.batch.unwrap_or(32), Precision::F32);
        let extractor = Extractor::of_shapes(name, batch, DType::F32)?;
        let (parameters, program, peak) = (extractor.parameters(), extractor.program(), device(&self.on)?);
        let work = StepWork::of(program);
        let weights = parameters.master().bytes() + parameters.fixed_bytes();
        let mut text = format!(
            "{name}: {} parameters ({:.1} M), {} features, batch {batch}, f32\non {}: {}FLOP/s f32, {}B/s\n\nmemory\n",
            number(parameters.count()),
            parameters.count() as f64 / 1e6,
            number(extractor.width()),
            peak.name,
            si(peak.f32),
            si(peak.bandwidth),
        );
        let rows =
            [("weights", weights), ("pictures, features", extractor.io_bytes()), ("arena", program.arena_bytes())];
        for (kind, size) in rows {
            text += &format!("  {kind:<20}{:>12}\n", bytes(size as f64));
        }
        text += &format!("  {:<20}{:>12}\n", "total", bytes(extractor.bytes() as f64));
        text += &format!("\nfeatures of {}\n{}", counted(batch, "picture"), table(&work, &peak, precision));
        Ok(text + &floor(&work, &peak, precision, batch, "a batch"))
    }

    fn sizes(&self, config: &Config) -> Result<DataSizes> {
        let data = &config.data;
        if let Some(path) = self.data.as_ref().or(data.path.as_ref()) {
            let set = Dataset::open(path)?.arranged(&data.classes, data.validation_fraction, data.split_seed)?;
            return Ok(DataSizes {
                training: set.split_len(Split::Train),
                validation: set.split_len(Split::Validation),
            });
        }
        // The known sets have ten classes with equally many images.
        let sizes = |training: usize, validation: usize| {
            let kept = if data.classes.is_empty() { 10 } else { data.classes.len().min(10) };
            let training = training * kept / 10;
            let held_out =
                data.validation_fraction.map(|share| (training as f64 / kept as f64 * share).round() as usize * kept);
            match held_out {
                Some(held_out) => DataSizes { training: training - held_out, validation: held_out },
                None => DataSizes { training, validation: validation * kept / 10 },
            }
        };
        match data.name.as_str() {
            "shapes" => {
                let validation = data.shapes_count / 10;
                Ok(sizes(data.shapes_count - validation, validation))
            }
            "cifar10" => Ok(sizes(50_000, 10_000)),
            "fashion-mnist" => Ok(sizes(60_000, 10_000)),
            name => {
                let place = format!("data set {name}");
                Err(Error::config(place, "its size is not known", "give its file with --data FILE"))
            }
        }
    }
}

/// The rates of the device given with `--on`.
fn device(on: &str) -> Result<Peak> {
    let known = Peak::known();
    if let Some(peak) = known.iter().find(|peak| peak.key == on) {
        return Ok(peak.clone());
    }
    // This CPU's rates are those of the threads that a run would have.
    set_threads(None)?;
    match on {
        "cpu" => Ok(Peak::of_this_cpu()),
        "here" => match DeviceChoice::Auto.open()?.accelerator {
            None => Ok(Peak::of_this_cpu()),
            Some(accelerator) => {
                let name = accelerator.name();
                let plain = name.to_lowercase().replace([' ', '-'], "");
                // Longest key first: an L40S is not an L4.
                let mut known = known;
                known.sort_by_key(|peak| std::cmp::Reverse(peak.key.len()));
                let peak = known.into_iter().find(|peak| plain.contains(peak.key)).ok_or_else(|| {
                    Error::config(
                        "--on here",
                        format!("the rates of {name} are not known"),
                        "give a device, as in --on h100",
                    )
                })?;
                Ok(Peak { memory: Some(accelerator.memory()?.1), name, ..peak })
            }
        },
        other => {
            let keys: Vec<&str> = known.iter().map(|peak| peak.key).chain(["cpu", "here"]).collect();
            let short: String = other.chars().take(60).collect();
            let message = format!("no device is called `{}`", short.escape_debug());
            Err(Error::config("--on", message, format!("use one of {}", keys.join(", "))))
        }
    }
}

fn heading(name: &str, config: &Config, estimate: &Estimate, peak: &Peak) -> String {
    let (size, channels) = (config.model.image_size(), config.model.image_channels());
    let dtype = config.training.precision.name();
    format!(
        "{name}: {}, {} parameters ({:.1} M), images {}, batch {}, {dtype}\n\
         on {}: {}FLOP/s f32{}, {}B/s\n",
        config.model.kind(),
        number(estimate.parameters),
        estimate.parameters as f64 / 1e6,
        size.with_channels(channels),
        config.training.batch_size,
        peak.name,
        si(peak.f32),
        match peak.key {
            "cpu" => format!(", {}FLOP/s bf16", si(peak.bf16)),
            _ => format!(", on tensor cores {}FLOP/s bf16 and {}FLOP/s TF32", si(peak.bf16), si(peak.tf32)),
        },
        si(peak.bandwidth),
    )
}

/// The plan of a run, with images placed as [`train`](crate::train::train()) would place them on that device.
fn placed(config: &Config, sizes: DataSizes, peak: &Peak) -> Result<Estimate> {
    if peak.key == "cpu" {
        let is_whole = config.data.classes.is_empty() && config.data.validation_fraction.is_none();
        return Estimate::with(config, sizes, if is_whole { Residency::InPlace } else { Residency::Streamed });
    }
    let resident = Estimate::new(config, sizes)?;
    let fits = peak.memory.is_none_or(|available| resident.total_bytes() as u64 <= available);
    match Residency::within(resident.image_bytes as u64, config.data.device_memory) {
        Residency::Resident if fits => Ok(resident),
        _ => Estimate::with(config, sizes, Residency::Streamed),
    }
}

fn memory(estimate: &Estimate, sizes: DataSizes, on_cpu: bool) -> String {
    let mut text = String::from("\nmemory of training\n");
    for &(kind, size) in estimate.memory.iter().filter(|(_, size)| *size > 0) {
        let more = match kind {
            "data set" => {
                let all = bytes(estimate.image_bytes as f64);
                let how = match estimate.residency {
                    Residency::Resident => String::new(),
                    Residency::InPlace => format!(": their labels; {all} are read in place, from the mapped file"),
                    Residency::Streamed if on_cpu => format!(": a batch; {all} are read from the mapped file"),
                    Residency::Streamed => {
                        let pinned = bytes(estimate.pinned_bytes as f64);
                        format!(": a batch; {all} stream from the mapped file through {pinned} of pinned host memory")
                    }
                };
                format!("  {}{how}", several(sizes.training + sizes.validation, "image"))
            }
            "arena" => format!("  of the largest program: {}", estimate.largest_program),
            _ => String::new(),
        };
        text += &format!("  {kind:<20}{:>12}{more}\n", bytes(size as f64));
    }
    text + &format!("  {:<20}{:>12}\n", "total", bytes(estimate.total_bytes() as f64))
}

fn table(work: &StepWork, peak: &Peak, precision: Precision) -> String {
    let mut text = format!(
        "  {:<28}{:>7}{:>10}{:>12}{:>9}{:>12}  bound by\n",
        "op", "calls", "FLOPs", "bytes", "FLOP/B", "at the roof"
    );
    for op in &work.ops {
        let (seconds, memory) = peak.floor(&op.cost, precision);
        text += &format!(
            "  {:<28}{:>7}{:>10}{:>12}{:>9.1}{:>12}  {}\n",
            op.op,
            number(op.calls),
            if op.cost.flops > 0.0 { si(op.cost.flops) } else { "0".into() },
            bytes(op.cost.bytes),
            op.cost.flops / op.cost.bytes.max(1.0),
            time(seconds),
            if memory { "memory" } else { "arithmetic" },
        );
    }
    let (total, roofline) = (work.total(), work.roofline(peak, precision));
    text + &format!(
        "  {:<28}{:>7}{:>10}{:>12}{:>9.1}{:>12}\n",
        "total",
        number(work.ops.iter().map(|op| op.calls).sum()),
        si(total.flops),
        bytes(total.bytes),
        total.flops / total.bytes.max(1.0),
        time(roofline.seconds),
    )
}

fn floor(work: &StepWork, peak: &Peak, precision: Precision, count: usize, what: &str) -> String {
    let roofline = work.roofline(peak, precision);
    let memory = 100.0 * roofline.memory_bound;
    let (bound, share) = if memory > 50.0 { ("memory", memory) } else { ("arithmetic", 100.0 - memory) };
    format!(
        "  roofline: {} for {what}, {}; bound by {bound} ({share:.0} % of that time)\n",
        time(roofline.seconds),
        images(count as f64 / roofline.seconds),
    )
}

/// `19,108,048`.
pub(super) fn number(value: usize) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 step`, `19,108 steps`.
fn several(count: usize, noun: &str) -> String {
    format!("{} {}", number(count), named(noun, count == 1))
}

/// `8,127 images/s`.
pub(super) fn images(rate: f64) -> String {
    if rate < 10.0 {
        format!("{} images/s", three(rate))
    } else {
        format!("{} images/s", number(rate.round() as usize))
    }
}

/// Three digits and a decimal prefix, ready for a unit: `3.35 T`, `990 G`, `12.0 `.
fn si(value: f64) -> String {
    const PREFIXES: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let (scaled, prefix) = scale(value, 1000.0, &PREFIXES);
    format!("{} {prefix}", three(scaled))
}

/// `1.53 GiB`.
pub(super) fn bytes(value: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (scaled, unit) = scale(value, 1024.0, &UNITS);
    if unit == "B" { format!("{scaled:.0} B") } else { format!("{} {unit}", three(scaled)) }
}

fn scale<'a>(value: f64, step: f64, units: &[&'a str]) -> (f64, &'a str) {
    let mut scaled = value;
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    for next in units {
        if scaled < step * 0.9995 {
            break;
        }
        (scaled, unit) = (scaled / step, next);
    }
    (scaled, unit)
}

pub(super) fn three(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// `12.3 µs`, `1.50 ms`, `2 h 05 min`.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{} µs", three(s * 1e6)),
        s if s < 1.0 => format!("{} ms", three(s * 1e3)),
        s if s < 120.0 => format!("{} s", three(s)),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 1e9 => format!("{} h {:02} min", number((s / 3600.0) as usize), (s / 60.0) as u64 % 60),
        _ => "more than 30 years".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(preset: &str, on: &str) -> PlanCommand {
        PlanCommand {
            preset: Some(preset.into()),
            config: None,
            extractor: None,
            batch: Some(256),
            on: on.into(),
            precision: None,
            gpus: None,
            link: "nvlink".into(),
            data: None,
            set: Vec::new(),
        }
    }

    #[test]
    fn several_gpus_are_planned_with_what_they_exchange() {
        let mut plan = command("dit-cifar10", "h100");
        (plan.gpus, plan.link) = (Some(1024), "pcie".into());
        let text = plan.text().unwrap();
        for part in ["72.9 MiB of gradients in f32 (36.4 MiB in bf16)", "1,024", "efficiency", "ZeRO", "from "] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        plan.set = vec!["training.shards=8".into()];
        let sharded = plan.text().unwrap();
        assert!(sharded.contains("one tree (training.shards)") && !sharded.contains("1,024  "), "{sharded}");
        plan.link = "carrier pigeon".into();
        assert!(plan.text().unwrap_err().to_string().contains("use nvlink, pcie or 100gbe"));
        (plan.link, plan.gpus) = ("nvlink".into(), Some(0));
        assert!(plan.text().unwrap_err().to_string().starts_with("--gpus"));
    }

    #[test]
    fn figures_are_for_people() {
        assert_eq!([0, 999, 1000, 19_108_048].map(number), ["0", "999", "1,000", "19,108,048"]);
        assert_eq!([0.0, 999.0, 3.35e12, 9.9996e5].map(si), ["0.00 ", "999 ", "3.35 T", "1.00 M"]);
        assert_eq!([12.0, 1536.0, 1.5 * (1u64 << 30) as f64].map(bytes), ["12 B", "1.50 KiB", "1.50 GiB"]);
        assert_eq!(
            [2e-6, 0.0123, 3.0, 600.0, 7500.0].map(time),
            ["2.00 µs", "12.3 ms", "3.00 s", "10 min", "2 h 05 min"]
        );
    }

    #[test]
    fn the_cifar_plan_states_everything() {
        let mut plan = command("dit-cifar10", "h100");
        let text = plan.text().unwrap();
        for part in
            ["19,108,048 parameters (19.1 M)", "optimizer state", "arena", "60,000 images", "roofline", "bound by"]
        {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        // The default is bf16 on tensor cores.
        assert!(text.contains("batch 256, bf16") && text.contains("bf16 copies"), "{text}");
        plan.precision = Some(PrecisionChoice::F32);
        let whole = plan.text().unwrap();
        assert!(whole.contains("batch 256, f32") && !whole.contains("bf16 copies"), "{whole}");
        plan.on = "cpu".into();
        plan.precision = None;
        let default = if Device::Cpu.multiplies_bf16() { "batch 256, bf16" } else { "batch 256, f32" };
        assert!(plan.text().unwrap().contains(default));
        plan.precision = Some(PrecisionChoice::Bf16);
        let brief = plan.text().unwrap();
        assert!(brief.contains("batch 256, bf16") && brief.contains("FLOP/s bf16,"), "{brief}");
    }

    #[test]
    fn networks_of_features_are_planned() {
        for (name, parameters) in [("inception", "23,833,744"), ("efficientnet-lite0", "4,631,000")] {
            let plan = PlanCommand { preset: None, extractor: Some(name.into()), ..command("quickstart", "h100") };
            let text = plan.text().unwrap();
            for part in [parameters, "batch 256, f32", "arena", "conv2d_fwd", "roofline"] {
                assert!(text.contains(part), "{part} is missing in\n{text}");
            }
        }
        let plan = PlanCommand { extractor: Some("vgg".into()), ..command("quickstart", "h100") };
        assert!(plan.text().unwrap_err().to_string().contains("use one of inception, efficientnet-lite0"));
    }

    #[test]
    fn what_cannot_be_planned_is_told() {
        let fault = |change: &dyn Fn(&mut PlanCommand)| {
            let mut plan = command("quickstart", "h100");
            change(&mut plan);
            plan.text().unwrap_err().to_string()
        };
        assert!(fault(&|plan| plan.on = "tpu".into()).contains("use one of h100"));
        assert!(fault(&|plan| plan.batch = Some(0)).starts_with("--batch"));
        assert!(fault(&|plan| plan.preset = Some("dit".into())).starts_with("preset: "));
        assert!(fault(&|plan| plan.set = vec!["data.name=mine".into()]).contains("--data FILE"));
    }

    #[test]
    fn too_much_memory_names_the_batch_that_fits() {
        let mut plan = command("dit-cifar10", "l4");
        plan.batch = Some(4096);
        let text = plan.text().unwrap();
        assert!(text.contains("TOO MUCH") && text.contains("--batch "), "{text}");
    }
}
