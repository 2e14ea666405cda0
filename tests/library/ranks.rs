//! Several ranks against one process: threads of this process that meet over the loopback, each with its own trainer.

use std::sync::Arc;
use std::thread;

use crate::tiny::{BALANCED, State, TOKEN, config, dataset, distance};
use engine::cluster::{Alone, Collective, Limits, Placement, here, join};
use engine::config::{Config, ModelConfig};
use engine::models::resnet::{ResnetConfig, Stem};
use engine::models::unet::UnetConfig;
use engine::tensor::Device;
use engine::train::{Recipe, RunState, Trainer, Validation};

/// The result of a run: metrics of every step, weights, running statistics, validation.
#[derive(Debug, PartialEq)]
struct End {
    state: State,
    all: Vec<f32>,
    validation: Option<Validation>,
}

/// Trains `steps` steps on this rank; `begin` may set the trainer's state first.
fn run(config: &Config, device: &Device, team: Arc<dyn Collective>, steps: u64, begin: impl Fn(&mut Trainer)) -> End {
    let recipe = Recipe { team, ..Recipe::new(config, device.clone()) };
    let mut trainer = Trainer::new(&config.model, &dataset(), &recipe).unwrap();
    begin(&mut trainer);
    trainer.share_state().unwrap();
    (0..steps).for_each(|_| trainer.train_step().unwrap());
    let validation = trainer.validate().unwrap();
    End { state: State::of(&mut trainer), all: trainer.parameters().download().unwrap(), validation }
}

/// As `run` on `ranks` ranks, which must all agree.
fn on_ranks(config: &Config, ranks: usize, steps: u64, begin: impl Fn(&mut Trainer) + Copy + Send + 'static) -> End {
    on_devices(config, || Device::Cpu, ranks, steps, begin)
}

/// The same, each rank on its own device: two processes never share captures either.
fn on_devices(
    config: &Config,
    device: impl Fn() -> Device,
    ranks: usize,
    steps: u64,
    begin: impl Fn(&mut Trainer) + Copy + Send + 'static,
) -> End {
    if ranks == 1 {
        return run(config, &device(), Arc::new(Alone::default()), steps, begin);
    }
    let (leader, listener) = here(ranks).unwrap();
    let mut listener = Some(listener);
    let threads: Vec<_> = (0..ranks)
        .map(|rank| {
            let (placement, listener) = (Placement { rank, local_rank: rank, ..leader.clone() }, listener.take());
            let (config, device) = (config.clone(), device());
            thread::spawn(move || {
                let team = join(&placement, listener, Limits::default(), &mut || Ok(())).unwrap();
                let end = run(&config, &device, team.clone(), steps, begin);
                team.leave(None);
                end
            })
        })
        .collect();
    let mut ends: Vec<End> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let last = ends.pop().unwrap();
    assert!(ends.iter().all(|end| *end == last), "the ranks came to different ends");
    last
}

/// The settings by name: transformers with their losses, a U-Net, a classifier with batch norms.
fn kinds() -> Vec<(&'static str, Config)> {
    let small = ["training.batch_size=2", "training.num_steps=50"];
    let of = |settings: &[&str]| config(&[&small[..], settings].concat());
    let mut unet = of(&[]);
    unet.model = ModelConfig::Unet(UnetConfig {
        image_size: engine::image_size::ImageSize::new(8, 8),
        image_channels: 3,
        channels: vec![8, 16],
        res_blocks: 1,
        attention_sizes: vec![4],
        num_heads: 2,
        norm_groups: 4,
        time_embedding_dim: 8,
        time_hidden_dim: 16,
        time_output_dim: 16,
        dropout: 0.1,
        num_classes: 3,
        null_label: true,
        ..UnetConfig::default()
    });
    let mut classifier = of(&["training.label_dropout=0", "training.sample_every=never"]);
    (classifier.diffusion, classifier.sampling) = Default::default();
    classifier.model = ModelConfig::Resnet(ResnetConfig {
        image_size: engine::image_size::ImageSize::new(8, 8),
        image_channels: 3,
        num_classes: 3,
        blocks: vec![1, 1],
        widths: vec![8, 16],
        stem: Stem::Small,
    });
    vec![
        ("quickstart", of(&[])),
        ("token", of(&TOKEN)),
        ("balanced, adaptive", of(&BALANCED)),
        ("u-net", unet),
        ("classifier", classifier),
    ]
}

const NOWHERE: fn(&mut Trainer) = |_| ();

/// Losses and weights of two runs that differ by the order of their gradients' sums: rounding of 6e-8 per step, accumulated over
/// 50 steps. About 2e-7 results; anything else (a repeated image, statistics of another batch) is at least 1e-3.
fn near(name: &str, ranks: usize, one: &End, other: &End) {
    let (first, all) = (&one.state.metrics, &other.state.metrics);
    assert_eq!(first.len(), all.len());
    let loss = first.iter().zip(all).map(|(a, b)| (a.loss - b.loss).abs() / a.loss).fold(0.0, f64::max);
    let weights = distance(&one.all, &other.all);
    println!("{name}, {ranks} ranks: losses {loss:.1e}, weights {weights:.1e}");
    assert!(loss < 1e-5 && weights < 1e-5, "{name}, {ranks} ranks: losses {loss:.1e}, weights {weights:.1e}");
    // Before the differences have grown.
    let step = |end: &End| (end.state.metrics[0].loss, end.state.metrics[0].gradient_norm);
    let ((loss, norm), (other_loss, other_norm)) = (step(one), step(other));
    assert!((norm - other_norm).abs() < 1e-6 * norm && loss == other_loss, "{name}, {ranks} ranks: the first step");
}

#[test]
fn ranks_do_what_one_process_does_with_as_many_batches() {
    for (name, config) in kinds() {
        let with = |accumulation: usize| {
            let mut config = config.clone();
            config.training.gradient_accumulation = accumulation;
            config
        };
        let one = on_ranks(&with(4), 1, 50, NOWHERE);
        for ranks in [2, 4] {
            near(name, ranks, &one, &on_ranks(&with(4), ranks, 50, NOWHERE));
        }
    }
}

#[test]
fn with_shards_any_number_of_ranks_has_the_same_bits_and_resumes_on_any_other() {
    for (name, mut config) in kinds() {
        (config.training.shards, config.training.gradient_accumulation) =
            (Some(4), if name == "token" { 2 } else { 1 });
        let one = on_ranks(&config, 1, 12, NOWHERE);
        for ranks in [2, 4] {
            assert!(on_ranks(&config, ranks, 12, NOWHERE) == one, "{name}: other bits on {ranks} ranks");
        }
        // Half of it on four ranks, the rest on two: only rank 0 has the checkpoint.
        let folder = tempfile::tempdir().unwrap();
        let path: &'static std::path::Path = Box::leak(folder.path().join("half").into_boxed_path());
        let half = on_ranks(&config, 4, 0, |trainer| {
            trainer.share_state().unwrap();
            (0..6).for_each(|_| trainer.train_step().unwrap());
            trainer.drain_metrics().unwrap();
            if trainer.team().rank() == 0 {
                trainer.save_checkpoint(path, &RunState::default()).unwrap();
            }
        });
        let rest = on_ranks(&config, 2, 6, |trainer| {
            if trainer.team().rank() == 0 {
                trainer.load_checkpoint(path).unwrap();
            }
        });
        assert!(half.all != one.all && rest.all == one.all && rest.validation == one.validation, "{name}");
        assert_eq!(rest.state.metrics, one.state.metrics[6..], "{name}");
    }
}

#[test]
fn accelerators_exchange_through_the_host() {
    let mut config = config(&[&BALANCED[..], &["training.batch_size=2", "training.precision=bf16"]].concat());
    config.training.shards = Some(2);
    let device = || Device::Accelerator(crate::emulator::device());
    let one = on_devices(&config, device, 1, 4, NOWHERE);
    assert!(on_devices(&config, device, 2, 4, NOWHERE) == one);
}

#[test]
fn two_runs_of_four_ranks_have_the_same_bits() {
    let mut config = config(&BALANCED);
    (config.training.batch_size, config.training.gradient_accumulation) = (1, 8);
    assert!(on_ranks(&config, 4, 20, NOWHERE) == on_ranks(&config, 4, 20, NOWHERE));
}

#[test]
fn a_step_that_ranks_cannot_share_is_refused() {
    #[derive(Debug)]
    struct Three(Alone);
    impl Collective for Three {
        fn rank(&self) -> usize {
            0
        }
        fn ranks(&self) -> usize {
            3
        }
        fn name(&self) -> &'static str {
            "three"
        }
        fn all_reduce(&self, values: &mut [f32]) -> engine::Result<()> {
            self.0.all_reduce(values)
        }
        fn broadcast(&self, bytes: &mut [u8], root: usize) -> engine::Result<()> {
            self.0.broadcast(bytes, root)
        }
        fn gather(&self, own: &[u8], all: &mut [u8]) -> engine::Result<()> {
            self.0.gather(own, all)
        }
        fn barrier(&self) -> engine::Result<()> {
            Ok(())
        }
        fn tell(&self, _: &[u8]) -> engine::Result<()> {
            Ok(())
        }
        fn listen(&self) -> engine::Result<Vec<u8>> {
            Ok(Vec::new())
        }
        fn stop(&self) -> Arc<std::sync::atomic::AtomicBool> {
            self.0.stop()
        }
        fn ask_to_stop(&self) {}
        fn leave(&self, _: Option<&str>) {}
    }
    let mut config = config(&[]);
    config.training.gradient_accumulation = 4;
    let recipe = Recipe { team: Arc::new(Three(Alone::default())), ..Recipe::new(&config, Device::Cpu) };
    let refused = Trainer::new(&config.model, &dataset(), &recipe).map(|_| ()).unwrap_err().to_string();
    assert!(
        refused.contains("4 batches") && refused.contains("by 3 processes; start 1, 2 or 4 processes"),
        "{refused}"
    );
}
