//! `engine compare`: barely trained models, compared on the built-in shapes.

use crate::tiny;
use std::path::Path;
use std::process::{Command, Output};

use engine::config::Config;
use engine::data::{Dataset, Parts, shapes};
use engine::eval::{CommonLevels, Comparison, DenoisingErrors, ErrorSpec};
use engine::model_file::ClassifierModel;
use engine::picture::{Image, Labels, Layout, beside, labelled_grid, read_png};
use engine::pipeline::Model;
use engine::tensor::{Context, DType, Device};
use engine::train::{Recipe, Trainer};
use serde_json::Value;

/// A flow on 200 shapes, of which 20 are held out.
const FLOW: [&str; 8] = [
    "model.image_size=32",
    "model.patch_size=8",
    "model.num_classes=10",
    "data.shapes_count=200",
    "training.batch_size=8",
    "training.learning_rate=3e-3",
    "sampling.num_steps=3",
    "sampling.guidance=1.5",
];
/// Fifty noise levels, and another prediction.
const FIFTY: [&str; 6] = [
    "diffusion.schedule=linear",
    "diffusion.prediction=epsilon",
    "diffusion.timestep_sampling=uniform",
    "diffusion.num_steps=50",
    "diffusion.beta_start=0.002",
    "diffusion.beta_end=0.4",
];

/// Metrics of samples are in the table with the errors, have a verdict, and equal those of `engine eval`.
#[test]
fn metrics_of_samples_are_compared() {
    let place = Place::new();
    let mut config = Config::preset("resnet18-cifar10").unwrap();
    for set in ["model.blocks=[1, 1]", "model.widths=[8, 16]", "data.name=shapes"] {
        config.set(set).unwrap();
    }
    let classifier = ClassifierModel::untrained(&config, &Context::cpu(), DType::F32, 2).unwrap();
    classifier.save(place.path("classifier.safetensors")).unwrap();
    let by = "--metrics fid,kid --num-samples 30 --extractor classifier.safetensors --draws 4";
    let call = format!("flow.safetensors fifty.safetensors --images 8 --levels 2 --count 2 {by}");
    let text = place.succeed(&call);
    assert!(text.contains("FD-resnet-shapes") && text.contains("KD-resnet-shapes"), "{text}");
    assert!(text.contains("30 samples of each model") && text.contains("in FD-resnet-shapes"), "{text}");
    let json = place.json(&call);
    let metric =
        json["metrics"].as_array().unwrap().iter().find(|metric| metric["name"] == "FD-resnet-shapes").unwrap();
    assert!(metric["standard_errors"][0].as_f64().unwrap() > 0.0, "{metric}");
    assert_eq!(json["settings"]["samples"]["extractor"]["network"], "resnet-shapes");
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    let arguments = format!("eval --device cpu --model fifty.safetensors {by}");
    assert!(command.current_dir(place.0.path()).args(arguments.split(' ')).output().unwrap().status.success());
    let alone = std::fs::read(place.path("outputs/evaluation_results.json")).unwrap();
    let alone: Value = serde_json::from_slice(&alone).unwrap();
    assert_eq!(alone["fd_score"], metric["values"][1]);
}

/// A folder with models to compare.
struct Place(tempfile::TempDir);

impl Place {
    /// With `flow.safetensors` and `fifty.safetensors`.
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.train("flow", 25, &[]);
        place.train("fifty", 4, &FIFTY);
        place
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn train(&self, name: &str, steps: u64, settings: &[&str]) {
        let config = tiny::config(&[&FLOW[..], settings].concat());
        let set = shapes(config.data.shapes_seed, config.data.shapes_count);
        let mut trainer = Trainer::new(&config.model, &set, &Recipe::new(&config, Device::Cpu)).unwrap();
        (0..steps).for_each(|_| trainer.train_step().unwrap());
        trainer.drain_metrics().unwrap();
        trainer.save_model(&self.path(&format!("{name}.safetensors")), set.class_names()).unwrap();
    }

    fn load(&self, name: &str) -> Model {
        Model::load(self.path(&format!("{name}.safetensors")), &Context::cpu(), DType::F32).unwrap()
    }

    fn run(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        command.current_dir(self.0.path()).args(["compare", "--device", "cpu"]);
        command.args(arguments.split(' ')).output().unwrap()
    }

    fn succeed(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.succeed(&format!("{arguments} --force --json -"))).unwrap()
    }

    fn faulty(&self, arguments: &str, told: &str) {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(told), "{arguments}: {text}");
        assert!(
            !text.contains("panicked") && text.lines().filter(|line| line.starts_with("error: ")).count() == 1,
            "{text}"
        );
    }
}

const BOTH: &str = "flow.safetensors fifty.safetensors";
const SMALL: &str = "--images 20 --levels 5 --count 4";

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

/// The picture `both.png`: each model's images of these seeds and classes, in the same places.
fn assert_picture(place: &Place, models: &[Model; 2], set: &Dataset) {
    let captions: Vec<String> = (0..12).map(|k| set.class_names()[k % 10].clone()).collect();
    let block = |model: &Model, title: &str| {
        let mut request = model.request((0..12).map(|k| k % 10).collect::<Vec<_>>());
        request.seed = 3;
        let drawn = model.sample(&request).unwrap();
        let images: Vec<Image> = drawn.iter().map(|values| Image::from_signed(32, 32, 3, values).unwrap()).collect();
        let labels = Labels { title: title.into(), cells: captions.clone(), ..Labels::default() };
        labelled_grid(&images, Layout { columns: 4, scale: 3, ..Layout::default() }, &labels).unwrap()
    };
    let blocks =
        [block(&models[0], "flow: heun 3 steps, guidance 1.5"), block(&models[1], "fifty: heun 3 steps, guidance 1.5")];
    let expected = beside(&blocks, 24).unwrap();
    let (picture, texts) = read_png(place.path("both.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (expected.width(), expected.height()));
    assert!(picture.to_rgb() == expected.to_rgb(), "the picture is another");
    assert!(blocks[0] != blocks[1]);
    assert!(texts.iter().any(|(keyword, text)| keyword == "engine.compare" && text.contains("fifty.safetensors")));
}

#[test]
fn two_models_in_tables_json_and_a_picture() {
    let place = Place::new();
    let text = place.succeed(&format!(
        "{BOTH} --images 20 --levels 5 --count 12 --seed 3 --precision f32 --json all.json --out both.png"
    ));
    for part in [
        "kind  ",
        "  4 steps (ema)",
        "  linear, 50 steps",
        "heun 3 steps, guidance 1.5",
        "parameters  ",
        "sampling, ms/image  ",
        "mean ε-error  ",
        "log-SNR  ",
        "20 held-out images of shapes (validation)",
        "12 at a time after 3 evaluations to warm up, on cpu",
        "wrote both.png: 12 images of each model, seed 3",
    ] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    assert!(!text.contains("note: "), "{text}");

    let json: Value = serde_json::from_slice(&std::fs::read(place.path("all.json")).unwrap()).unwrap();
    let verdict = json["verdicts"][0].as_str().unwrap();
    assert!(text.trim_end().ends_with(verdict) && verdict.contains(" in mean ε-error"), "{verdict}");
    let names: Vec<&str> = json["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["flow", "fifty"]);
    assert_eq!((json["models"][1]["noise_steps"].as_u64(), json["models"][1]["step"].as_u64()), (Some(50), Some(4)));
    assert_eq!(json["models"][0]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(json["settings"]["data"], "shapes");
    let levels = json["levels"].as_array().unwrap();
    assert_eq!(levels.len(), 5);
    let of = |level: &Value, key: &str| level[key].as_f64().unwrap();
    assert!(levels.windows(2).all(|pair| of(&pair[0], "log_snr") > of(&pair[1], "log_snr")));
    for level in levels {
        assert_eq!(numbers(&level["actual_log_snr"]), [of(level, "log_snr"); 2], "both meet the levels of the fifty");
        assert!(numbers(&level["standard_errors"]).iter().all(|error| *error > 0.0));
    }
    // The table has the library's results.
    let metric = &json["metrics"][0];
    assert_eq!((metric["name"].as_str(), metric["better"].as_str()), (Some(Comparison::ERROR), Some("lower")));
    let models = [place.load("flow"), place.load("fifty")];
    let schedules =
        models.each_ref().map(|model| engine::diffusion::NoiseSchedule::new(&model.info.config.diffusion).unwrap());
    let common = CommonLevels::new(&schedules, 5).unwrap();
    let set = shapes(0, 200);
    let images: Vec<f32> = (180..200).flat_map(|k| set.image(k)).map(|&value| f32::from(value) / 127.5 - 1.0).collect();
    let labels: Vec<usize> = (180..200).map(|k| k % 10).collect();
    let errors = models.iter().zip(&common.times).map(|(model, times)| {
        let spec = ErrorSpec { seed: 3, batch: 7, ..ErrorSpec::default() };
        let mut measure = DenoisingErrors::at_times(model, times, spec).unwrap();
        measure.measure_independent(&images, &labels, |_, _| ()).unwrap()
    });
    let names = ["flow", "fifty"].map(String::from).to_vec();
    let comparison = Comparison::new(names, common.clone(), errors.collect()).unwrap();
    assert_eq!(numbers(&metric["values"]), comparison.error().values);
    assert_eq!(verdict, comparison.verdicts()[0]);
    let sizes: Vec<f64> = models.iter().map(|model| model.parameters.count() as f64).collect();
    assert_eq!(
        (json["metrics"][1]["name"].as_str(), numbers(&json["metrics"][1]["values"])),
        (Some("parameters"), sizes)
    );
    let times = numbers(&json["timing"]["metrics"][0]["values"]);
    assert!(times.iter().all(|time| *time > 0.0 && time.is_finite()));
    assert_picture(&place, &models, &set);
}

#[test]
fn swapped_models_swap_the_sign_and_a_model_equals_itself() {
    let place = Place::new();
    let one = place.json(&format!("{BOTH} {SMALL}"));
    let two = place.json(&format!("fifty.safetensors flow.safetensors {SMALL}"));
    let pairs = |json: &Value| -> Vec<Value> {
        let levels = json["levels"].as_array().unwrap().iter();
        levels.chain([&json["metrics"][0]]).map(|metric| metric["differences"][0]["difference"].clone()).collect()
    };
    assert_eq!(pairs(&one).len(), 6);
    for (one, two) in pairs(&one).iter().zip(&pairs(&two)) {
        let (a, b) = (numbers(&one["interval"]), numbers(&two["interval"]));
        assert_eq!(one["mean"].as_f64().unwrap(), -two["mean"].as_f64().unwrap());
        assert_eq!((&one["standard_error"], a[0], a[1]), (&two["standard_error"], -b[1], -b[0]));
        assert!(one["paired"].as_bool().unwrap() && a[0] < a[1]);
    }
    assert_eq!(one["verdicts"], two["verdicts"]);

    let same = place.json(&format!("flow.safetensors flow.safetensors {SMALL}"));
    for pair in pairs(&same) {
        assert_eq!((pair["mean"].as_f64(), pair["standard_error"].as_f64()), (Some(0.0), Some(0.0)));
        assert_eq!(numbers(&pair["interval"]), [0.0, 0.0]);
    }
    let verdict = same["verdicts"][0].as_str().unwrap();
    assert_eq!(verdict, "no difference shown: flow (2) − flow (1) = 0 ± 0 (95 % interval 0 … 0) in mean ε-error");
}

#[test]
fn numbers_are_the_same_whatever_computes_them() {
    let place = Place::new();
    let numbers = |how: &str| {
        let mut json = place.json(format!("{BOTH} {SMALL} {how}").trim());
        json["timing"].take();
        (json, read_png(place.path("comparison.png")).unwrap())
    };
    let all = numbers("");
    for how in ["--batch 3 --threads 1", "--batch 64 --threads 2"] {
        let (json, picture) = numbers(how);
        assert!(json == all.0, "{how}: {json}");
        assert!(picture == all.1, "{how}");
    }
    // Another seed gives other noise; `--quiet` prints nothing.
    assert_ne!(numbers("--seed 1").0["metrics"], all.0["metrics"]);
    let quiet = place.run(&format!("{BOTH} {SMALL} --quiet --sampler heun --steps 2 --guidance 1 --out quiet.png"));
    assert!(quiet.status.success() && quiet.stdout.is_empty() && quiet.stderr.is_empty());
    assert!(place.path("quiet.png").is_file());
}

#[test]
fn no_model_is_judged_by_what_it_was_trained_on() {
    let place = Place::new();
    // The first 198 of its 220 are for training, so 18 of the first model's 20 held-out ones.
    place.train("more", 1, &["data.shapes_count=220"]);
    let json = place.json(&format!("flow.safetensors more.safetensors {SMALL}"));
    let notes: Vec<&str> = json["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect();
    assert_eq!(json["settings"]["images"].as_u64(), Some(2));
    assert!(notes.contains(&"18 of 20 held-out images are left out, because models were trained on them"), "{notes:?}");
    assert!(
        notes[0].contains("more was trained on shapes (220 images, seed 0), flow on shapes (200 images"),
        "{notes:?}"
    );
    place.train("most", 1, &["data.shapes_count=230"]);
    place.faulty(
        &format!("flow.safetensors most.safetensors {SMALL} --out most.png"),
        "data set \"shapes\": 0 of its 20 held-out images are unseen by all models; give another set with --data",
    );
    // Three models, and a set that none of them was trained on.
    shapes(5, 100).write(place.path("others.safetensors"), false).unwrap();
    let json = place.json(&format!("{BOTH} most.safetensors --data others.safetensors {SMALL}"));
    assert_eq!(json["metrics"][0]["differences"].as_array().unwrap().len(), 3);
    assert!(json["verdicts"][0].as_str().unwrap().contains("hold together for 3 pairs"), "{}", json["verdicts"]);
}

/// An untrained model of 8x8 images.
fn untrained(path: &Path, config: &Config) {
    Model::untrained(config, &Context::cpu(), DType::F32, 0).unwrap().save(path).unwrap();
}

#[test]
fn what_cannot_be_compared_is_told_in_one_line() {
    let place = Place::new();
    untrained(&place.path("small.safetensors"), &tiny::config(&[]));
    untrained(&place.path("grey.safetensors"), &tiny::config(&["model.image_channels=1"]));
    let bare = ["model.null_label=false", "training.label_dropout=0", "sampling.guidance=1"];
    place.train("bare", 1, &bare);
    let parts = Parts { name: "kept".into(), height: 32, width: 32, channels: 3, train: 2, ..Parts::default() };
    let parts = Parts { images: vec![0; 2 * 3072], labels: vec![0, 1], ..parts };
    let unsplit = Parts { class_names: ["x", "y"].map(String::from).to_vec(), ..parts };
    let strange =
        Parts { images: (0..4 * 3072).map(|k| (k / 7) as u8).collect(), labels: vec![0, 1, 0, 1], ..unsplit.clone() };
    Dataset::from_parts(unsplit).unwrap().write(place.path("unsplit.safetensors"), false).unwrap();
    Dataset::from_parts(strange).unwrap().write(place.path("strange.safetensors"), false).unwrap();
    for (arguments, told) in [
        ("flow.safetensors", "compare: flow.safetensors alone cannot be compared"),
        ("flow.safetensors absent.safetensors", "absent.safetensors: there is no such model file, run folder or"),
        (
            "flow.safetensors small.safetensors",
            "compare: the models' images have different sizes: flow 32x32x3, small 8x8x3",
        ),
        (
            "small.safetensors grey.safetensors",
            "have different channels: small 8x8x3, grey 8x8x1; compare models with the same",
        ),
        (
            "flow.safetensors bare.safetensors --guidance 2",
            "--guidance: bare: the model was trained without a null label",
        ),
    ] {
        place.faulty(arguments, told);
    }
    for (arguments, told) in [
        ("--images 1", "--images: 1 image has no standard error; give 2 or more"),
        ("--images 0", "--images: 0 images"),
        ("--count 0", "--count: 0 images of each model"),
        ("--levels 0", "--levels: 0 noise levels"),
        ("--levels 1001", "--levels: 1001 noise levels; give 1 to 1000"),
        ("--batch 0", "--batch: 0 images in a batch"),
        ("--steps 0", "--steps: flow: 0 denoising steps"),
        ("--steps 51", "--steps: fifty: 51 denoising steps on a schedule of 50; give 1 to 50"),
        ("--sampler euler", "--sampler: flow: no sampler is called `euler`"),
        ("--out both.jpg", "--out: both.jpg is not a PNG"),
        ("--data absent.safetensors", "absent.safetensors: cannot open"),
        ("--data unsplit.safetensors", "data set \"kept\": it has no held-out images"),
    ] {
        place.faulty(&format!("{BOTH} {arguments}"), told);
    }
    // Unknown classes: denoised without them if possible.
    let json = place.json(&format!("{BOTH} --data strange.safetensors {SMALL}"));
    let notes = json["notes"].to_string();
    assert!(notes.contains("flow denoises 2 of the 2 images without their class"), "{notes}");
    assert!(notes.contains("20 images requested, 2 available"), "{notes}");
    let arguments = "flow.safetensors bare.safetensors --data strange.safetensors --out other.png";
    place.faulty(arguments, "--data: bare has no class x and no");
    // Neither output is written over unasked.
    place.faulty(
        &format!("{BOTH} {SMALL}"),
        "comparison.png: already exists; give another file, or replace it with --force",
    );
    place.faulty(
        &format!("{BOTH} {SMALL} --out new.png --json strange.safetensors"),
        "strange.safetensors: already exists",
    );
    assert!(!place.path("both.jpg").exists());
}

#[test]
fn names_and_run_folders_are_models_too() {
    let place = Place(tempfile::tempdir().unwrap());
    let mut config = Config::preset("unet-fashion-small").unwrap();
    config.set("model.channels=[8]").unwrap();
    std::fs::create_dir_all(place.path("runs/mine")).unwrap();
    untrained(&place.path("runs/mine/model.safetensors"), &config);
    let parts = Parts { name: "grey".into(), height: 28, width: 28, channels: 1, train: 1, ..Parts::default() };
    let parts = Parts { images: (0..4 * 784).map(|k| (k * k / 31) as u8).collect(), labels: vec![0; 4], ..parts };
    let parts = Parts { class_names: vec!["dress".into()], ..parts };
    Dataset::from_parts(parts).unwrap().write(place.path("grey.safetensors"), false).unwrap();
    let text =
        place.succeed("unet-fashion-small runs/mine --data grey.safetensors --images 3 --levels 2 --count 2 --steps 1");
    let first = text.lines().next().unwrap();
    assert!(first.split_whitespace().eq(["unet-fashion-small", "mine"]), "{text}");
    // Nothing is downloaded to check for training images.
    assert!(text.contains("note: unet-fashion-small's training images (fashion-mnist) are not available"), "{text}");
    let picture = read_png(place.path("comparison.png")).unwrap().0;
    assert!(picture.width() > 4 * 28 * 3 && picture.height() > 28 * 3);
}
