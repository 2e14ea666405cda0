//! Images streamed to the device batch by batch: the same bits as with the whole set there, whatever the host does meanwhile.

use std::sync::Arc;

use crate::emulator;
use crate::tiny::{BALANCED, State, TOKEN, config, dataset};
use engine::config::Config;
use engine::data::{Dataset, Split};
use engine::device::emulator::EmulatorDevice;
use engine::tensor::Device;
use engine::train::{Recipe, Residency, RunState, Trainer, Validation};

fn emulated() -> (Arc<EmulatorDevice>, Device) {
    let device = emulator::device();
    (device.clone(), Device::Accelerator(device))
}

fn trainer(config: &Config, set: &Dataset, device: &Device, residency: Residency) -> Trainer {
    let recipe = Recipe { residency: Some(residency), ..Recipe::new(config, device.clone()) };
    Trainer::new(&config.model, set, &recipe).unwrap()
}

/// The state after `steps` steps, with a validation in the middle and one at the end.
fn run(mut trainer: Trainer, steps: u64) -> (State, [Option<Validation>; 2]) {
    (0..steps / 2).for_each(|_| trainer.train_step().unwrap());
    let between = trainer.validate().unwrap();
    (steps / 2..steps).for_each(|_| trainer.train_step().unwrap());
    (State::of(&mut trainer), [between, trainer.validate().unwrap()])
}

#[test]
fn streamed_batches_give_the_bits_of_a_resident_set() {
    let (emulator, device) = emulated();
    // 13 images in batches of 3: an epoch is four steps and drops one image; eleven steps use three orders.
    for settings in [
        &[][..],
        &[&TOKEN[..], &["training.precision=bf16"]].concat(),
        &[&BALANCED[..], &["training.gradient_accumulation=2"]].concat(),
    ] {
        let config = config(&[settings, &["training.num_steps=11"]].concat());
        let set = dataset().stratified(0.2, 1).unwrap();
        assert!(!set.split_len(Split::Train).is_multiple_of(3));
        let with = |residency| run(trainer(&config, &set, &device, residency), 11);
        let (streamed, resident) = (with(Residency::Streamed), with(Residency::Resident));
        assert_eq!(streamed, resident, "{settings:?}");
        assert!(streamed.1.iter().all(Option::is_some));
        assert_eq!(emulator.live_allocations(), 0, "{settings:?}");
    }
}

#[test]
fn the_host_waits_for_nothing_but_a_buffer() {
    let (emulator, device) = emulated();
    let mut trainer = trainer(&config(&[]), &dataset(), &device, Residency::Streamed);
    (0..3).for_each(|_| trainer.train_step().unwrap());
    assert!(trainer.programs().all(|(name, program)| name == "validation batch" || program.is_captured()));
    let (waits, allocations) = (emulator.waits(), emulator.live_allocations());
    (0..20).for_each(|_| trainer.train_step().unwrap());
    assert_eq!((emulator.waits(), emulator.live_allocations()), (waits, allocations));
}

#[test]
fn a_set_in_its_file_gives_the_bits_of_one_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("set.safetensors");
    let config = config(&["training.num_steps=9"]);
    let made = dataset();
    made.write(&file, false).unwrap();
    let mapped = Dataset::open(&file).unwrap();
    assert_eq!(Residency::of(&Device::Cpu, &mapped, Some(0)), Residency::InPlace);
    let in_place = trainer(&config, &mapped, &Device::Cpu, Residency::InPlace);
    // Of the images only the labels are in the run's memory.
    let streamed = trainer(&config, &mapped, &Device::Cpu, Residency::Streamed);
    let resident = trainer(&config, &mapped, &Device::Cpu, Residency::Resident);
    let bytes = [&in_place, &streamed, &resident].map(|trainer| trainer.context().persistent_bytes());
    let (images, labels) = (mapped.len() * mapped.image_bytes(), mapped.len() * 4);
    let batch = 3 * (mapped.image_bytes() + 4);
    assert_eq!(bytes, [bytes[0], bytes[0] - labels + batch, bytes[0] + images]);
    let state = run(in_place, 9);
    for other in [streamed, resident, trainer(&config, &made, &Device::Cpu, Residency::InPlace)] {
        assert_eq!(run(other, 9), state);
    }
    // From a set that is not contiguous, batches are gathered.
    let halves = ["a", "b"].map(|class| mapped.subset(&[class.to_owned()]).unwrap());
    let joined = Dataset::joined(&halves).unwrap();
    assert_eq!(Residency::of(&Device::Cpu, &joined, None), Residency::Streamed);
    assert_eq!(joined.in_one_piece(Split::Train), None);
    let copied = folder.path().join("copied.safetensors");
    joined.write(&copied, false).unwrap();
    let copied = Dataset::open(&copied).unwrap();
    let gathered = run(trainer(&config, &joined, &Device::Cpu, Residency::Streamed), 9);
    assert_eq!(run(trainer(&config, &copied, &Device::Cpu, Residency::InPlace), 9), gathered);
    assert_ne!(gathered.0.weights, state.0.weights);
}

#[test]
fn a_run_goes_on_with_the_same_bits_wherever_its_images_lie() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-5.safetensors");
    let (_, emulated) = emulated();
    let (config, set) = (config(&["training.num_steps=11"]), dataset());
    for (device, places) in [
        (&emulated, [Residency::Streamed, Residency::Resident, Residency::Streamed]),
        (&Device::Cpu, [Residency::InPlace, Residency::Streamed, Residency::InPlace]),
    ] {
        let mut whole = trainer(&config, &set, device, places[0]);
        (0..5).for_each(|_| whole.train_step().unwrap());
        whole.save_checkpoint(&path, &RunState::default()).unwrap();
        whole.drain_metrics().unwrap();
        (5..11).for_each(|_| whole.train_step().unwrap());
        let expected = State::of(&mut whole);
        for residency in &places[1..] {
            let mut resumed = trainer(&config, &set, device, *residency);
            resumed.train_step().unwrap();
            resumed.load_checkpoint(&path).unwrap();
            (5..11).for_each(|_| resumed.train_step().unwrap());
            assert_eq!(State::of(&mut resumed), expected, "{residency:?}");
        }
    }
}

#[test]
fn a_set_streams_where_it_is_larger_than_it_may_be() {
    let (_, device) = emulated();
    let set = dataset();
    let of = |limit| Residency::of(&device, &set, limit);
    assert_eq!([None, Some(1), Some(0)].map(of), [Residency::Resident, Residency::Resident, Residency::Streamed]);
    assert_eq!(Residency::within((3 << 20) + 1, Some(3)), Residency::Streamed);
    assert_eq!(Residency::within(3 << 20, Some(3)), Residency::Resident);
    // By the configuration alone.
    let mut small = config(&["data.device_memory=0", "training.num_steps=4"]);
    let streamed = Trainer::new(&small.model, &set, &Recipe::new(&small, device.clone())).unwrap();
    small.set("data.device_memory=null").unwrap();
    let resident = Trainer::new(&small.model, &set, &Recipe::new(&small, device.clone())).unwrap();
    let [a, b] = [&streamed, &resident].map(|trainer| trainer.context().persistent_bytes());
    assert_eq!(b - a, set.len() * (set.image_bytes() + 4) - 3 * (set.image_bytes() + 4));
    assert_eq!(run(streamed, 4), run(resident, 4));
}
