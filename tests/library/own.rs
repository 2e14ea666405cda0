//! Networks, losses and observers from outside the engine: trained, killed, resumed and refused like its own.

#[path = "../../tools/examples/own_network.rs"]
#[allow(dead_code)]
mod own_network;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::config::{Config, Every};
use engine::data::shapes;
use engine::device::DeviceChoice;
use engine::diffusion::{Batch, Loss};
use engine::eval::NetworkClassifier;
use engine::model_file::ModelFile;
use engine::models::{Classifier, CustomConfig, ModelConfig};
use engine::nn::{Builder, Conv2d, Linear, Scope};
use engine::ops::elementwise::{cast, silu};
use engine::ops::mse_loss::mse_loss;
use engine::ops::pool::global_average_pool;
use engine::rng::{Philox, Purpose};
use engine::tape::Var;
use engine::tensor::{Context, DType, Device};
use engine::train::{
    Classify, Criterion, Denoise, Ending, Event, Observer, Pass, Place, Recipe, Run, RunState, Task, TrainRequest,
    Trainer, list_checkpoints, train, train_observed,
};
use engine::{Error, Result};
use safetensors::SafeTensors;

/// A run of a second or two, with a checkpoint after every second step.
const SHORT: &[&str] = &[
    "data.shapes_count=60",
    "data.flip=true",
    "training.num_steps=24",
    "training.batch_size=4",
    "training.warmup_steps=3",
    "training.log_every=3",
    "training.validate_every=5",
    "training.validation_batches=1",
    "training.sample_every=9",
    "training.checkpoint_every=2",
    "sampling.num_steps=2",
    "sampling.count_per_class=1",
];

/// The folder in which the child process runs the example.
const FOLDER: &str = "ENGINE_TEST_OWN_NETWORK";

fn config(preset: &str, settings: &[&str]) -> Config {
    let mut config = Config::preset(preset).unwrap();
    settings.iter().for_each(|setting| config.set(setting).unwrap());
    config
}

fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(path).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file.iter().map(|(name, view)| (name.to_string(), view.data().to_vec())).collect();
    tensors.sort();
    tensors
}

/// The example in a child process, which is this test binary and does nothing without a folder: see
/// [`killed_at_random_moments_the_example_ends_with_the_same_bits`].
#[test]
fn child() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        own_network::run(Path::new(&folder), SHORT).unwrap();
    }
}

fn start_child(folder: &Path) -> std::process::Child {
    // The name of a test is its path without the crate's name.
    let name = module_path!().split_once("::").map_or("child".into(), |(_, path)| format!("{path}::child"));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &name]).env(FOLDER, folder).env("ENGINE_THREADS", "1");
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn killed_at_random_moments_the_example_ends_with_the_same_bits() {
    const KILLS: usize = 6;
    let base = tempfile::tempdir().unwrap();
    let (whole, cut) = (base.path().join("whole"), base.path().join("cut"));
    let clock = Instant::now();
    assert!(start_child(&whole).wait().unwrap().success());
    let duration = clock.elapsed();
    let (philox, mut kills) = (Philox::new(21), 0);
    for attempt in 0.. {
        let mut child = start_child(&cut);
        if attempt < KILLS {
            let share = f64::from(philox.bits4(0, attempt as u32, 0, Purpose::Probe)[0]) / f64::from(u32::MAX);
            std::thread::sleep(duration.mul_f64(0.6 * share));
            // `kill` is SIGKILL on Unix.
            child.kill().unwrap();
            kills += usize::from(!child.wait().unwrap().success());
        } else if child.wait().unwrap().success() {
            break;
        } else {
            panic!("the example does not go on after {kills} kills");
        }
        assert!(clock.elapsed() < Duration::from_secs(180));
    }
    assert!(kills > 0, "no kill met the run");
    for name in ["model.safetensors", "best.safetensors", "checkpoints/step-24.safetensors"] {
        assert!(tensors(&whole.join(name)) == tensors(&cut.join(name)), "{name}");
    }
    for name in ["final.png", "timesteps.png", "step-9.png", "step-18.png"] {
        let read = |root: &Path| fs::read(root.join("samples").join(name)).unwrap();
        assert!(read(&whole) == read(&cut), "{name}");
    }
    // The run records the network's name, and each command says that its code is needed.
    let recorded = Config::from_file(whole.join("config.yaml")).unwrap();
    assert!(matches!(&recorded.model, ModelConfig::Custom(model) if model.name == "tiny"), "{recorded:?}");
    let folder = whole.to_str().unwrap();
    for arguments in [&["sample", "--model", folder][..], &["train", "--device", "cpu", "--resume", folder]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        let output = command.args(arguments).current_dir(base.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("`tiny` is not part of the engine: its code is needed"), "{text}");
    }
    // With its code it is a model like any other.
    let load = |task: &Denoise, folder: &Path| -> Result<engine::pipeline::Model> {
        task.load(ModelFile::open(folder)?, &Context::cpu(), DType::F32)
    };
    let draw = |folder: &Path| {
        let model = load(&own_network::task(), folder).unwrap();
        assert_eq!((model.info.step, model.info.classes.len()), (24, 10));
        model.sample(&model.request([3, 7])).unwrap()
    };
    let drawn = draw(&whole);
    assert!(drawn == draw(&cut) && drawn[0] != drawn[1] && drawn[0].len() == 32 * 32 * 3);
    // Another network can neither resume from it nor be loaded from it.
    let stranger = CustomConfig { name: "stranger".into(), ..CustomConfig::default() };
    let stranger = Denoise::new(stranger, |_| -> Result<engine::models::unet::Unet> { unreachable!() });
    assert!(load(&stranger, &whole).err().unwrap().to_string().contains("another network than this task's"));
    let error = train(TrainRequest::resume(&whole).with_task(stranger), &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("trains another model"), "{error}");
}

/// A convolution, a mean, and a line.
struct Small {
    conv: Conv2d,
    out: Linear,
}

impl Small {
    fn new(builder: &mut Builder) -> Result<Self> {
        Ok(Self { conv: Conv2d::new(builder, "conv", 3, 8, 3), out: Linear::new(builder, "out", 8, 10) })
    }
}

impl Classifier for Small {
    fn image_shape(&self) -> [usize; 3] {
        [32, 32, 3]
    }

    fn num_classes(&self) -> usize {
        10
    }

    fn forward(&self, s: &Scope, images: &Var) -> Result<Var> {
        let h = silu(s, &self.conv.forward(s, &cast(s, images, s.precision())?)?)?;
        self.out.forward(s, &global_average_pool(s, &h)?)
    }
}

fn own_classifier() -> Classify {
    Classify::new(CustomConfig { name: "small".into(), ..CustomConfig::default() }, Small::new)
}

#[test]
fn an_own_classifier_is_stopped_and_goes_on_to_the_same_bits() {
    let base = tempfile::tempdir().unwrap();
    let settings: Vec<&str> = SHORT.iter().copied().filter(|set| !set.starts_with("sampling")).collect();
    let mut config = config("resnet18-cifar10", &settings);
    config.training.sample_every = Every::Never;
    let request = |name: &str| {
        let (out, dataset) = (Some(base.path().join(name)), Some(shapes(0, 60)));
        let request =
            TrainRequest { out, dataset, device: DeviceChoice::Cpu, ..TrainRequest::new(name, config.clone()) };
        request.with_task(own_classifier())
    };
    let summary = train(request("whole"), &mut |_| ()).unwrap();
    assert!(summary.validation_accuracy.is_some() && summary.samples.is_file());
    let stopped = request("cut");
    let stop = stopped.stop.clone();
    let outcome = train(stopped, &mut |event| {
        if matches!(event, Event::Step { step: 7, .. }) {
            stop.store(true, Ordering::Relaxed);
        }
    });
    assert!(matches!(&outcome, Err(Error::Interrupted { message }) if message.contains("TrainRequest::resume")));
    let folder = base.path().join("cut");
    let resumed = TrainRequest { dataset: Some(shapes(0, 60)), ..TrainRequest::resume(&folder) };
    train(resumed.with_task(own_classifier()), &mut |_| ()).unwrap();
    let file = ModelFile::open(&summary.folder).unwrap();
    let model = own_classifier().load(file, &Context::cpu(), DType::F32).unwrap();
    let mut judge = NetworkClassifier::new(&Context::cpu(), model.network, model.parameters, 2).unwrap();
    assert_eq!(judge.classify(&vec![0.25; 3 * 32 * 32 * 3], |_, _| ()).unwrap().len(), 3);
    for name in ["model.safetensors", "checkpoints/step-24.safetensors"] {
        assert!(tensors(&base.path().join("whole").join(name)) == tensors(&folder.join(name)), "{name}");
    }
}

/// An autoencoder: neither a denoiser nor a classifier.
#[derive(Debug)]
struct Autoencode;

struct Autoencoder {
    inner: Conv2d,
    outer: Conv2d,
}

impl Task for Autoencode {
    fn model(&self) -> ModelConfig {
        ModelConfig::Custom(CustomConfig { name: "autoencoder".into(), ..CustomConfig::default() })
    }

    fn build(&self, _: &Context, _: &Config) -> Result<(Box<dyn Criterion>, Builder)> {
        let mut builder = Builder::default();
        let inner = Conv2d::new(&mut builder, "inner", 3, 4, 3);
        let outer = Conv2d::new(&mut builder, "outer", 4, 3, 3);
        Ok((Box::new(Autoencoder { inner, outer }), builder))
    }
}

impl Criterion for Autoencoder {
    fn loss(&self, pass: &Pass, batch: Batch) -> Result<Loss> {
        let s = pass.scope;
        let x = s.constant(&batch.images);
        let h = silu(s, &self.inner.forward(s, &cast(s, &x, s.precision())?)?)?;
        let y = cast(s, &self.outer.forward(s, &h)?, DType::F32)?;
        let (mean, _) = mse_loss(s, &y, &x, None, pass.scale)?;
        Ok(Loss { mean, terms: None, items: None })
    }
}

/// Notes when it is called.
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn note(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }
}

impl Observer for Diary {
    fn begin(&mut self, run: &mut Run) -> Result<()> {
        self.note(format!("begins at {}", run.place().step));
        Ok(())
    }

    fn is_due(&self, place: Place) -> bool {
        place.is_due(Every::Steps(5))
    }

    fn act(&mut self, run: &mut Run) -> Result<()> {
        let step = run.place().step;
        assert_eq!(run.last_metrics().unwrap().step, step, "all metrics so far have been read");
        // The standard observers have acted.
        assert!(run.folder().checkpoint(step).exists() && run.trainer().step_count() == step);
        run.scalar("own/number", 2.0 * step as f64)?;
        self.note(format!("acts at {step}"));
        Ok(())
    }

    fn end(&mut self, _: &mut Run, ending: Ending) -> Result<()> {
        self.note(format!("{ending:?}"));
        Ok(())
    }
}

#[test]
fn an_own_loss_is_learnt_and_an_own_observer_is_asked() {
    let base = tempfile::tempdir().unwrap();
    let settings = [SHORT, &["training.num_steps=12", "training.checkpoint_every=5"]].concat();
    let (out, config) = (base.path().join("run"), config("quickstart", &settings));
    let request = TrainRequest { out: Some(out.clone()), device: DeviceChoice::Cpu, ..TrainRequest::new("x", config) };
    let diary = Arc::new(Mutex::new(Vec::new()));
    let mut losses = Vec::new();
    let observers: Vec<Box<dyn Observer>> = vec![Box::new(Diary(diary.clone()))];
    let summary = train_observed(request.with_task(Autoencode), observers, &mut |event| {
        if let Event::Step { loss, .. } = event {
            losses.push(*loss);
        }
    })
    .unwrap();
    assert_eq!((summary.steps, losses.len()), (12, 12));
    assert_eq!(*diary.lock().unwrap(), ["begins at 0", "acts at 5", "acts at 10", "Finished"]);
    // It draws nothing, but its curve exists.
    assert!(!summary.samples.exists() && out.join("plots/loss.png").is_file() && summary.model.is_file());
    assert!(list_checkpoints(&out.join("checkpoints")).unwrap().iter().any(|(step, _)| *step == 12));
}

#[test]
fn a_trainer_of_a_task_saves_and_goes_on_without_a_folder() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("step-3.safetensors");
    let recipe = Recipe::new(&config("quickstart", SHORT), Device::Cpu);
    let new = || Trainer::new(&Autoencode, &shapes(0, 60), &recipe).unwrap();
    let mut whole = new();
    (0..3).for_each(|_| whole.train_step().unwrap());
    whole.save_checkpoint(&path, &RunState::default()).unwrap();
    (3..6).for_each(|_| whole.train_step().unwrap());
    let mut resumed = new();
    resumed.load_checkpoint(&path).unwrap();
    (3..6).for_each(|_| resumed.train_step().unwrap());
    assert_eq!(whole.drain_metrics().unwrap()[3..], resumed.drain_metrics().unwrap()[..]);
    assert!(whole.parameters().download().unwrap() == resumed.parameters().download().unwrap());
    // Only a denoiser can be sampled from.
    let error = whole.sampler(&whole.config().sampling.clone(), 1, 0).err().unwrap().to_string();
    assert!(error.contains("not a denoiser"), "{error}");
    // A task whose record does not match its network is an error.
    let wrong = CustomConfig { image_size: 28.into(), ..CustomConfig::default() };
    let error = Trainer::plan(
        &Classify::new(wrong, Small::new),
        &config("resnet18-cifar10", &[]),
        engine::train::DataSizes { training: 40, validation: 0 },
    );
    assert!(error.err().unwrap().to_string().starts_with("model.image_size: "));
}
