//! Training and sampling on the emulator: a replayed graph equals eager steps, a resumed run continues with the same bits, an
//! image does not depend on its batch, and the CPU computes the same.

use crate::emulator;
use std::sync::Arc;

use crate::tiny::{BALANCED, State, TOKEN, config, distance, rounds_as_the_host, sample, train, trainer};
use engine::config::Precision;
use engine::device::emulator::EmulatorDevice;
use engine::ops::host::parallel::with_threads;
use engine::pipeline::Model;
use engine::tensor::{DType, Device};
use engine::train::{RunState, Trainer};

fn emulated() -> (Arc<EmulatorDevice>, Device) {
    let device = emulator::device();
    (device.clone(), Device::Accelerator(device))
}

const BF16: &str = "training.precision=bf16";

fn captured(trainer: &Trainer) -> Vec<bool> {
    trainer.programs().filter(|(name, _)| *name != "validation batch").map(|(_, p)| p.is_captured()).collect()
}

/// Six steps over two epochs (six with accumulation), with a different learning rate in each.
fn replays_equal_eager_steps(settings: &[&str], programs: usize) {
    let (emulator, device) = emulated();
    let config = config(settings);
    let mut replayed = trainer(&config, &device);
    assert!(replayed.steps_per_epoch() < 6, "an epoch has to end within the run");
    replayed.train_step().unwrap();
    assert_eq!(captured(&replayed), vec![false; programs], "the first step is eager: modules load in it");
    replayed.train_step().unwrap();
    assert_eq!(captured(&replayed), vec![true; programs], "the second step is captured");
    let (allocations, launches, waits) = (emulator.live_allocations(), emulator.launches(), emulator.waits());
    replayed.train_step().unwrap();
    let step = emulator.launches() - launches;
    for _ in 3..6 {
        replayed.train_step().unwrap();
    }
    assert_eq!(emulator.live_allocations(), allocations, "a replayed step allocates nothing");
    assert_eq!(emulator.launches() - launches, 4 * step, "every step launches the same kernels");
    assert_eq!(emulator.waits(), waits, "in a replayed step the host waits for nothing");
    let state = State::of(&mut replayed);
    assert_eq!(state.metrics.len(), 6);
    assert_eq!(state, train(&config, &device, false, 6), "{settings:?}: replayed and eager steps differ");
    drop(replayed);
    assert_eq!(emulator.live_allocations(), 0, "{settings:?}: memory was not given back");
}

#[test]
fn a_replayed_step_equals_an_eager_one() {
    replays_equal_eager_steps(&[], 1);
}

#[test]
fn a_replayed_step_equals_an_eager_one_in_bf16() {
    replays_equal_eager_steps(&[&TOKEN[..], &[BF16]].concat(), 1);
}

#[test]
fn replayed_accumulation_equals_eager_accumulation() {
    replays_equal_eager_steps(&[&TOKEN[..], &["training.gradient_accumulation=3"]].concat(), 3);
}

#[test]
fn replayed_accumulation_equals_eager_accumulation_in_bf16() {
    replays_equal_eager_steps(&[BF16, "training.gradient_accumulation=3"], 3);
}

#[test]
fn a_replayed_step_that_learns_of_its_loss_equals_an_eager_one() {
    replays_equal_eager_steps(&BALANCED, 1);
    // Its update from both batches is a separate program.
    replays_equal_eager_steps(&[&BALANCED[..], &["training.gradient_accumulation=2", BF16]].concat(), 3);
}

#[test]
fn validation_and_sampling_between_steps_change_nothing() {
    let (emulator, device) = emulated();
    let config = config(&["sampling.num_steps=2"]);
    let mut disturbed = trainer(&config, &device);
    let mut losses = Vec::new();
    for step in 0..6 {
        disturbed.train_step().unwrap();
        if step % 3 == 2 {
            losses.push(disturbed.validate().unwrap().unwrap());
            assert_eq!(disturbed.validate().unwrap(), losses.last().copied(), "the same noise each time");
            // A batch that needs more memory than the step: the arena moves, and the step's graph is invalid.
            let before = disturbed.context().arena_bytes();
            let mut sampler = disturbed.sampler(&config.sampling, 24, 1).unwrap();
            assert_eq!(sampler.prepared_bytes(), 0, "only the CPU prepares weights");
            sampler.run(0, &[0; 24], |_, _| Ok(())).unwrap();
            assert!(step > 2 || disturbed.context().arena_bytes() > before, "the arena should have grown");
        }
    }
    assert_eq!(captured(&disturbed), [true], "captured again over the new arena");
    assert_ne!(losses[0], losses[1]);
    assert_eq!(State::of(&mut disturbed), train(&config, &device, true, 6));
    drop(disturbed);
    assert_eq!(emulator.live_allocations(), 0);
}

#[test]
fn emulated_training_agrees_with_the_cpu() {
    // Adam divides by the gradient's own size: with an epsilon below rounding, gradients that are zero in exact arithmetic (key
    // biases) would become full steps of either sign.
    for settings in [&[][..], &TOKEN[..], &BALANCED[..]] {
        let settings = &[settings, &["training.epsilon=1e-3"]].concat();
        let (_, device) = emulated();
        let config = config(settings);
        let (ours, cpu) = (train(&config, &device, true, 5), train(&config, &Device::Cpu, true, 5));
        let start = State::of(&mut trainer(&config, &Device::Cpu)).weights;
        let moved = distance(&start, &cpu.weights);
        let [weights, average] =
            [(&cpu.weights, &ours.weights), (&cpu.average, &ours.average)].map(|(a, b)| distance(a, b));
        println!("{settings:?}: moved {moved:.1e}, apart {weights:.1e}, averages {average:.1e}");
        assert!(weights.max(average) < 1e-6, "{settings:?}: apart by {weights:.1e}, averages by {average:.1e}");
        assert!(moved > 1e-3, "five steps should show: {moved:.1e}");
        for (a, b) in cpu.metrics.iter().zip(&ours.metrics) {
            assert!((a.loss - b.loss).abs() < 1e-5 * a.loss, "{a:?} {b:?}");
            assert!((a.gradient_norm - b.gradient_norm).abs() < 1e-4 * a.gradient_norm, "{a:?} {b:?}");
        }
    }
}

/// The samplers with their features: noise at each step, saved states, guidance.
const SAMPLERS: [&[&str]; 3] = [
    &["sampling.sampler=heun", "sampling.num_steps=3", "sampling.guidance=2"],
    &["sampling.sampler=ddim", "sampling.num_steps=4", "sampling.eta=0.5", "sampling.guidance=1"],
    &["sampling.sampler=ddpm", "sampling.num_steps=3", "sampling.guidance=3"],
];

#[test]
fn an_image_does_not_depend_on_its_batch() {
    let (emulator, device) = emulated();
    for (number, settings) in SAMPLERS.iter().enumerate() {
        // Heun on straight paths, as in quickstart; the others on a table of levels.
        let config = if number == 0 { config(settings) } else { config(&[&TOKEN[..], settings].concat()) };
        let one = sample(&config, &device, Precision::F32, 1, 5);
        for batch in [3, 5] {
            assert_eq!(sample(&config, &device, Precision::F32, batch, 5), one, "{settings:?}, batches of {batch}");
        }
        let cpu = sample(&config, &Device::Cpu, Precision::F32, 5, 5);
        let apart = distance(&cpu, &one);
        println!("{settings:?}: apart {apart:.1e}");
        assert!(apart < 1e-5, "{settings:?}: {apart:.1e} from the cpu's");
        let images: Vec<&[f32]> = one.chunks(8 * 8 * 3).collect();
        assert!(images.iter().skip(1).all(|image| distance(images[0], image) > 0.1), "images should differ");
    }
    assert_eq!(emulator.live_allocations(), 0);
}

#[test]
fn an_image_does_not_depend_on_its_batch_in_bf16_nor_in_tf32() {
    let (emulator, device) = emulated();
    emulator.set_tensor_cores(true);
    let config = config(SAMPLERS[0]);
    // Eight bits, or eleven of factors alone: the accumulated error of five network calls of one layer.
    for (precision, allowed) in [(Precision::Bf16, 0.05), (Precision::Tf32, 0.01)] {
        let [one, three, five] = [1, 3, 5].map(|batch| sample(&config, &device, precision, batch, 5));
        assert_eq!(one, three);
        assert_eq!(one, five);
        let apart = distance(&sample(&config, &Device::Cpu, Precision::F32, 5, 5), &one);
        println!("{} apart {apart:.1e}", precision.name());
        assert!(apart < allowed, "{}: {apart:.1e} from f32 on the cpu", precision.name());
    }
}

#[test]
fn an_image_does_not_depend_on_its_batch_nor_on_threads_in_bf16_on_the_cpu() {
    for settings in SAMPLERS {
        let config = config(settings);
        let of = |batch: usize, threads: usize| {
            with_threads(threads, || sample(&config, &Device::Cpu, Precision::Bf16, batch, 5))
        };
        let one = of(1, 1);
        for (batch, threads) in [(3, 1), (5, 2), (5, 3)] {
            assert_eq!(of(batch, threads), one, "{settings:?}: batches of {batch}, {threads} threads");
        }
        let apart = distance(&sample(&config, &Device::Cpu, Precision::F32, 5, 5), &one);
        assert!(apart < 0.05, "{settings:?}: {apart:.1e} from f32");
    }
}

#[test]
fn training_in_bf16_on_the_cpu_does_not_depend_on_threads_and_is_near_f32() {
    for settings in [&[][..], &TOKEN[..], &BALANCED[..]] {
        let settings = &[settings, &["training.epsilon=1e-3"]].concat();
        let brief = config(&[&settings[..], &[BF16]].concat());
        let one = with_threads(1, || train(&brief, &Device::Cpu, true, 5));
        assert_eq!(with_threads(3, || train(&brief, &Device::Cpu, true, 5)), one, "{settings:?}");
        let single = train(&config(settings), &Device::Cpu, true, 5);
        for (a, b) in one.metrics.iter().zip(&single.metrics) {
            assert!((a.loss - b.loss).abs() < 0.02 * b.loss, "{settings:?}: {a:?} {b:?}");
        }
        let (emulator, device) = emulated();
        emulator.set_tensor_cores(true);
        let kernels = train(&brief, &device, true, 5);
        let (cpu, apart) = (distance(&single.weights, &one.weights), distance(&kernels.weights, &one.weights));
        println!("{settings:?}: {cpu:.1e} from f32, {apart:.1e} from the kernels");
        assert!(apart < 2.0 * cpu, "{settings:?}: {apart:.1e} from the kernels, {cpu:.1e} from f32");
    }
}

#[test]
fn a_resumed_run_goes_on_with_the_same_bits() {
    let (emulator, device) = emulated();
    resumes_with_the_same_bits(&device);
    assert_eq!(emulator.live_allocations(), 0);
    resumes_with_the_same_bits(&Device::Cpu);
}

fn resumes_with_the_same_bits(device: &Device) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-3.safetensors");
    let config = config(&[BF16]);
    let mut whole = trainer(&config, device);
    (0..3).for_each(|_| whole.train_step().unwrap());
    whole.save_checkpoint(&path, &RunState::default()).unwrap();
    whole.drain_metrics().unwrap();
    (3..6).for_each(|_| whole.train_step().unwrap());

    let mut resumed = trainer(&config, device);
    // Earlier work does not matter.
    resumed.train_step().unwrap();
    resumed.drain_metrics().unwrap();
    resumed.load_checkpoint(&path).unwrap();
    assert_eq!(resumed.step_count(), 3);
    (3..6).for_each(|_| resumed.train_step().unwrap());
    assert_eq!(State::of(&mut resumed), State::of(&mut whole));
}

#[test]
fn auto_takes_bf16_where_there_are_instructions_for_it_and_records_what_it_took() {
    let config = config(&["training.precision=auto"]);
    let (emulator, device) = emulated();
    let folder = tempfile::tempdir().unwrap();
    let of_cpu = match Device::Cpu.multiplies_bf16() {
        true => (Precision::Bf16, DType::BF16),
        false => (Precision::F32, DType::F32),
    };
    for (device, tensor_cores, expected, dtype) in [
        (&Device::Cpu, false, of_cpu.0, of_cpu.1),
        (&device, false, Precision::F32, DType::F32),
        (&device, true, Precision::Bf16, DType::BF16),
    ] {
        emulator.set_tensor_cores(tensor_cores);
        let trainer = trainer(&config, device);
        assert_eq!((trainer.config().training.precision, trainer.parameters().precision()), (expected, dtype));
        let path = folder.path().join("model.safetensors");
        trainer.save_model(&path, &[]).unwrap();
        assert_eq!(Model::inspect(&path).unwrap().config.training.precision, expected);
    }
    assert_eq!(config.training.precision, Precision::Auto);
}

/// TF32 is a way to multiply, not a dtype: everything is stored as in f32, and results are near f32's but not its own.
#[test]
fn tf32_rounds_factors_on_tensor_cores_alone() {
    let (emulator, device) = emulated();
    let steps = |device: &Device, precision: &str| {
        let mut trainer = trainer(&config(&[&format!("training.precision={precision}")]), device);
        (0..2).for_each(|_| trainer.train_step().unwrap());
        (trainer.parameters().precision(), trainer.parameters().precision_name(), State::of(&mut trainer))
    };
    let single = steps(&device, "f32").2;
    let (dtype, name, without) = steps(&device, "tf32");
    assert_eq!((dtype, name), (DType::F32, "f32"), "no tensor cores");
    assert_eq!(without, single);
    emulator.set_tensor_cores(true);
    let (dtype, name, rounded) = steps(&device, "tf32");
    assert_eq!((dtype, name), (DType::F32, "tf32"));
    assert_ne!(rounded, single);
    let apart = distance(&single.weights, &rounded.weights);
    assert!(apart < 1e-3, "apart by {apart:.1e}");
    assert_eq!(steps(&device, "f32").2, single, "f32 is f32 there too");
    let (of_cpu, cpu) = (steps(&Device::Cpu, "tf32"), steps(&Device::Cpu, "f32"));
    assert_eq!((of_cpu.1, of_cpu.2), ("f32", cpu.2));
}

#[test]
fn weights_are_rounded_on_the_device() {
    let (emulator, device) = emulated();
    rounds_as_the_host(&device);
    let mut trainer = trainer(&config(&[BF16]), &device);
    trainer.train_step().unwrap();
    let (launches, waits) = (emulator.launches(), emulator.waits());
    trainer.refresh_average().unwrap();
    assert_eq!((emulator.launches() - launches, emulator.waits() - waits), (1, 0));
}

#[test]
fn a_replayed_stage_waits_for_nothing() {
    let (emulator, device) = emulated();
    let config = config(&["sampling.sampler=ddim", "sampling.num_steps=5", "sampling.guidance=2"]);
    let mut trainer = trainer(&config, &device);
    trainer.train_step().unwrap();
    let mut sampler = trainer.sampler(&config.sampling, 2, 1).unwrap();
    for _ in 0..2 {
        sampler.begin(0, &[0, 1]).unwrap();
        (0..2).for_each(|stage| sampler.advance(stage).unwrap());
        assert!(sampler.program().is_captured());
        let waits = emulator.waits();
        (2..5).for_each(|stage| sampler.advance(stage).unwrap());
        assert_eq!(emulator.waits(), waits);
    }
}
