//! `engine sample`, and the library call: an image depends only on its seed and index, and every error is one line.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use engine::config::Config;
use engine::diffusion::SamplerKind;
use engine::ops::host::parallel::with_threads;
use engine::picture::read_png;
use engine::pipeline::Model;
use engine::tensor::{Context, DType};

/// A small untrained model: its output is noise, but always the same noise.
fn config() -> Config {
    let mut config = Config::preset("quickstart").unwrap();
    for set in [
        "model.conditioning=token",
        "model.hidden_dim=64",
        "model.depth=2",
        "model.condition_hidden_dim=32",
        "sampling.num_steps=3",
        "sampling.count_per_class=2",
    ] {
        config.set(set).unwrap();
    }
    config.validate().unwrap();
    config
}

fn untrained(config: &Config) -> Model {
    let mut model = Model::untrained(config, &Context::cpu(), DType::F32, 5).unwrap();
    let names = ["circle", "square", "triangle", "star", "cross", "ring", "heart", "stripes", "arrow", "half/moon"];
    model.info.classes = names.map(String::from).to_vec();
    model
}

/// A folder with `model.safetensors`.
struct Run(tempfile::TempDir);

impl Run {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        untrained(&config()).save(folder.path().join("model.safetensors")).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn sample(&self, arguments: &[&str]) -> Output {
        sample(&self.path("model.safetensors"), arguments, self.0.path())
    }

    /// The values of a `.npy` file and its shape.
    fn array(&self, arguments: &[&str]) -> (Vec<u64>, Vec<f32>) {
        let out = self.path("images.npy");
        let output = self.sample(&[arguments, &["--force", "--out", out.to_str().unwrap()]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let bytes = std::fs::read(out).unwrap();
        let npy = npyz::NpyFile::new(bytes.as_slice()).unwrap();
        (npy.shape().to_vec(), npy.into_vec().unwrap())
    }
}

fn engine() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.env_remove("ENGINE_THREADS");
    command
}

fn sample(model: &Path, arguments: &[&str], folder: &Path) -> Output {
    engine()
        .current_dir(folder)
        .args(["sample", "--quiet", "--device", "cpu", "--model"])
        .arg(model)
        .args(arguments)
        .output()
        .unwrap()
}

/// The one error line.
fn fault(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success(), "succeeded: {text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn an_image_has_the_same_bits_in_every_batch_and_on_any_number_of_threads() {
    for (sampler, eta) in [(SamplerKind::Heun, 0.0), (SamplerKind::Ddpm, 0.0), (SamplerKind::Ddim, 0.5)] {
        let mut config = config();
        if sampler != SamplerKind::Heun {
            for set in ["diffusion.schedule=cosine", "diffusion.prediction=epsilon"] {
                // One at a time gives an invalid intermediate pair; only the end counts.
                config.set(set).unwrap();
            }
        }
        let draw = |threads: usize, batch: usize, count: usize| -> Vec<Vec<u32>> {
            let config = &config;
            with_threads(threads, move || {
                let model = untrained(config);
                let mut request = model.request((0..count).map(|k| k % 10).collect::<Vec<_>>());
                (request.seed, request.batch) = (11, batch);
                (request.sampling.sampler, request.sampling.eta) = (sampler, eta);
                let images = model.sample(&request).unwrap();
                images.iter().map(|image| image.iter().map(|x| x.to_bits()).collect()).collect()
            })
        };
        let reference = draw(1, 64, 66);
        assert_eq!(reference.len(), 66);
        assert_ne!(reference[0], reference[10], "two images of one class are two images");
        assert!(reference.iter().flatten().all(|bits| f32::from_bits(*bits).is_finite()));
        for (threads, batch) in [(1, 1), (1, 7), (2, 1), (2, 7), (2, 64), (4, 1), (4, 7), (4, 64)] {
            let images = draw(threads, batch, 66);
            let differ = (0..66).filter(|&k| images[k] != reference[k]).count();
            assert_eq!(differ, 0, "{sampler}: {differ} images differ with {threads} threads in batches of {batch}");
        }
        assert_eq!(draw(2, 5, 9)[..], reference[..9], "fewer images are the first ones");
    }
}

#[test]
fn seeds_labels_and_guidance_matter() {
    let model = untrained(&config());
    let base = model.request([0, 1]);
    let images = model.sample(&base).unwrap();
    let mut other = base.clone();
    other.seed = 1;
    assert_ne!(model.sample(&other).unwrap(), images);
    let mut other = base.clone();
    other.labels = vec![1, 1];
    let changed = model.sample(&other).unwrap();
    assert_ne!(changed[0], images[0]);
    assert_eq!(changed[1], images[1]);
    let mut other = base.clone();
    other.sampling.guidance = 1.0;
    assert_ne!(model.sample(&other).unwrap(), images);
    // Without a class there is nothing to guide towards.
    let null = model.class_label("none").unwrap();
    let (mut guided, mut plain) = (model.request([null]), model.request([null]));
    (guided.sampling.guidance, plain.sampling.guidance) = (3.0, 1.0);
    assert_eq!(model.sample(&guided).unwrap(), model.sample(&plain).unwrap());
}

#[test]
fn requests_that_cannot_be_met_are_refused() {
    let model = untrained(&config());
    let fault = |labels: &[usize], change: &dyn Fn(&mut engine::pipeline::SampleRequest)| {
        let mut request = model.request(labels);
        change(&mut request);
        model.sample(&request).unwrap_err().to_string()
    };
    assert!(fault(&[], &|_| ()).starts_with("count"));
    assert!(fault(&[11], &|_| ()).starts_with("class"));
    assert!(fault(&[0], &|request| request.batch = 0).starts_with("batch"));
    assert!(fault(&[0], &|request| request.sampling.num_steps = 0).contains("give 1 to"));
    let mut config = config();
    config.model = match config.model {
        engine::config::ModelConfig::Dit(mut dit) => {
            dit.null_label = false;
            engine::config::ModelConfig::Dit(dit)
        }
        other => other,
    };
    let model = untrained(&config);
    assert!(model.sample(&model.request([0])).unwrap_err().to_string().contains("null label"));
    assert!(model.class_label("none").is_err());
}

#[test]
fn arrays_have_numpys_shape_and_lie_between_0_and_1() {
    let run = Run::new();
    let (shape, values) = run.array(&["--count", "5", "--batch", "2"]);
    assert_eq!(shape, [5, 32, 32, 3]);
    assert!(values.iter().all(|x| (0.0..=1.0).contains(x)) && values.iter().any(|x| *x > 0.0 && *x < 1.0));
    for arguments in [["--batch", "1", "--threads", "1"], ["--batch", "5", "--threads", "4"]] {
        let again = run.array(&[&["--count", "5"][..], &arguments].concat());
        assert_eq!(again.1, values, "{arguments:?}");
    }
    assert_eq!(run.array(&["--class", "star"]).0[0], 2, "as many as the model's grids have of a class");
    assert_eq!(run.array(&[]).0[0], 10, "one of each class");
    assert_eq!(run.array(&["--class", "all", "--count", "3"]).0[0], 30);
    assert_eq!(run.array(&["--class", "3"]).1, run.array(&["--class", "star"]).1);
    assert_ne!(run.array(&["--class", "none"]).1, run.array(&["--class", "star"]).1);
}

#[test]
fn a_sheet_tells_how_it_was_made() {
    let run = Run::new();
    let arguments =
        ["--class", "all", "--count", "2", "--seed", "42", "--guidance", "1.5", "--steps", "2", "--sampler"];
    let output = run.sample(&[&arguments[..], &["heun", "--out", "new/sheet.png"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "--quiet");
    let (sheet, texts) = read_png(run.path("new/sheet.png")).unwrap();
    assert!(sheet.height() > 10 * 32 && sheet.width() > 2 * 32);
    let parameters = &texts.iter().find(|(keyword, _)| keyword == "engine.sampling").unwrap().1;
    let parameters: serde_json::Value = serde_json::from_str(parameters).unwrap();
    for (key, value) in [("seed", 42.0), ("guidance", 1.5), ("steps", 2.0), ("images", 20.0), ("count", 2.0)] {
        assert_eq!(parameters[key].as_f64(), Some(value), "{key} in {parameters}");
    }
    assert_eq!((parameters["sampler"].as_str(), parameters["class"].as_str()), (Some("heun"), Some("all")));
    assert!(texts.iter().any(|(keyword, text)| keyword == "Software" && text.starts_with("engine ")));
}

#[test]
fn a_folder_gets_single_images_that_are_not_written_over_unasked() {
    let run = Run::new();
    let arguments = ["--count", "10", "--out", "pictures/"];
    assert!(run.sample(&arguments).status.success());
    let mut names: Vec<String> = std::fs::read_dir(run.path("pictures"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!((names.len(), names[0].as_str()), (10, "00000-circle.png"));
    assert_eq!(names[9], "00009-half-moon.png");
    let (image, texts) = read_png(run.path("pictures/00003-star.png")).unwrap();
    assert_eq!((image.width(), image.height(), image.channels()), (32, 32, 3));
    assert!(texts.contains(&("engine.image".into(), "3".into())), "{texts:?}");
    // The same pixels as in the array.
    let (_, values) = run.array(&["--count", "10"]);
    let pixels: Vec<f32> = image.pixels().iter().map(|value| *value as f32 / 255.0).collect();
    assert_eq!(pixels, values[3 * 3072..][..3072]);

    let text = fault(&run.sample(&arguments));
    assert!(text.contains("00000-circle.png: already exists") && text.contains("--force"), "{text}");
    assert!(run.sample(&[&arguments[..], &["--force"]].concat()).status.success());
}

#[test]
fn no_file_is_written_over_unasked() {
    let run = Run::new();
    // The last is the default.
    for out in ["sheet.png", "images.npy", "set.safetensors", "samples.png"] {
        let arguments = ["--count", "1", "--out", out];
        std::fs::write(run.path(out), "mine").unwrap();
        let given = if out == "samples.png" { &arguments[..2] } else { &arguments[..] };
        let text = fault(&run.sample(given));
        assert!(
            text.contains(&format!("{out}: already exists; give another file, or replace it with --force")),
            "{text}"
        );
        assert_eq!(std::fs::read(run.path(out)).unwrap(), b"mine");
        assert!(run.sample(&[given, &["--force"]].concat()).status.success(), "{out}");
        assert_ne!(std::fs::read(run.path(out)).unwrap(), b"mine");
    }
}

#[test]
fn a_run_folder_means_its_newest_model_and_says_so() {
    let run = Run::new();
    let output = engine()
        .current_dir(run.0.path())
        .args(["sample", "--device", "cpu", "--count", "1", "--model", "."])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("model.safetensors, the newest model of the run"), "{told}");
    assert!(told.contains("wrote samples.png: 1 image in"), "{told}");
    assert!(run.path("samples.png").exists());
}

#[test]
fn wrong_options_are_told_before_anything_is_drawn() {
    let run = Run::new();
    for (arguments, parts) in [
        (
            &["--class", "squar"][..],
            &["--class: the model has no class `squar`", "did you mean square?", "half/moon"][..],
        ),
        (&["--class", "10"], &["--class: the model has no class `10`", "below 10"]),
        (&["--class", "-1"], &["--class"]),
        (&["--count", "0"], &["--count: 0 images", "give 1 or more"]),
        (&["--count", "99999999999"], &["--count", "10000000"]),
        (&["--batch", "0"], &["--batch: 0 images"]),
        (&["--steps", "0"], &["--steps: 0 denoising steps", "give 1 to 1000"]),
        (&["--steps", "1001"], &["--steps"]),
        (&["--eta", "2"], &["--eta"]),
        (&["--guidance", "-1"], &["--guidance"]),
        (&["--guidance", "nan"], &["--guidance"]),
        (&["--sampler", "euler"], &["--sampler: no sampler is called `euler`", "ddpm, ddim, heun or dpmpp2m"]),
        (&["--threads", "0"], &["--threads"]),
        (&["--schedule", "karras"], &["--schedule: no timestep schedule is called `karras`", "logarithmic"]),
        (&["--timesteps", ""], &["--timesteps: the list is empty; give timesteps in 0…999"]),
        (&["--timesteps", " , "], &["--timesteps: the list is empty"]),
        (&["--timesteps", "-4,1001,5000"], &["--timesteps: none of the 3 timesteps (-4, …) is a noise level"]),
        (&["--timesteps", "900,1e2"], &["--timesteps: `1e2` is not a timestep"]),
        (&["--timesteps", "99999999999999999999"], &["--timesteps: `99999999999999999999` is not a timestep"]),
        (&["--temperature", "-1"], &["--temperature: a temperature of -1"]),
        (&["--temperature", "nan"], &["--temperature"]),
        (&["--compare-with", "absent.safetensors"], &["absent.safetensors: cannot open"]),
        (&["--like", "model.safetensors"], &["model.safetensors: is not a whole PNG"]),
        (&["--like", "absent.png"], &["absent.png: cannot open"]),
        (&["--out", "x.jpg"], &["--out", ".png, .npy or .safetensors"]),
        (&["--count", "5000000"], &["too many for one grid", ".npy"]),
        (&["--out", "model.safetensors/x.png"], &["model.safetensors"]),
    ] {
        // The parser accepts a value with a leading dash only if joined.
        let arguments = [format!("{}={}", arguments[0], arguments[1])];
        let text = fault(&run.sample(&arguments.iter().map(String::as_str).collect::<Vec<_>>()));
        for part in parts {
            assert!(text.contains(part), "{arguments:?}: {text}");
        }
    }
    assert!(!run.path("samples.png").exists());
}

#[test]
fn files_that_are_no_whole_model_are_told_in_one_line() {
    let run = Run::new();
    let good = std::fs::read(run.path("model.safetensors")).unwrap();
    let try_file = |name: &str, bytes: &[u8]| {
        std::fs::write(run.path(name), bytes).unwrap();
        let text = fault(&sample(&run.path(name), &[], run.0.path()));
        assert!(text.contains(name), "{text}");
        text
    };
    for length in [0, 1, 7, 8, 9, 100, good.len() / 2, good.len() - 1] {
        try_file("cut.safetensors", &good[..length]);
    }
    let mut longer = good.clone();
    longer.push(0);
    try_file("longer.safetensors", &longer);
    for at in [0, 3, 7, 8, 20, 200, good.len() / 2, good.len() - 1] {
        let mut damaged = good.clone();
        damaged[at] ^= 0x40;
        try_file("damaged.safetensors", &damaged);
    }
    let text = try_file("flipped.safetensors", &{
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        damaged
    });
    assert!(text.contains("checksum"), "{text}");
    // A header that declares far more than the file has.
    let mut huge = good.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    try_file("huge.safetensors", &huge);
    assert!(try_file("notes.txt", b"this is not a model at all").contains("notes.txt"));
    let foreign = safetensors::serialize(Vec::<(String, safetensors::tensor::TensorView)>::new(), None).unwrap();
    assert!(try_file("foreign.safetensors", &foreign).contains("not a model of this engine"));

    // A configuration of a network far larger than the file.
    let mut model = untrained(&config());
    for set in ["model.hidden_dim=65536", "model.depth=1024", "model.mlp_ratio=64"] {
        model.info.config.set(set).unwrap();
    }
    model.save(run.path("vast.safetensors")).unwrap();
    let text = fault(&sample(&run.path("vast.safetensors"), &[], run.0.path()));
    assert!(text.contains("more than its bytes can hold"), "{text}");

    let text = fault(&sample(&run.path("missing.safetensors"), &[], run.0.path()));
    assert!(
        text.contains("missing.safetensors: there is no such model file") && text.contains("check the path"),
        "{text}"
    );
    std::fs::create_dir(run.path("empty")).unwrap();
    let text = fault(&sample(&run.path("empty"), &[], run.0.path()));
    assert!(text.contains("without model.safetensors"), "{text}");
    let text = fault(&sample(Path::new("quickstart"), &[], run.0.path()));
    assert!(text.contains("is a preset") && text.contains("engine train --preset quickstart"), "{text}");
    let absent = engine()
        .args(["sample", "--device", "cuda:99", "--model"])
        .arg(run.path("model.safetensors"))
        .output()
        .unwrap();
    assert!(fault(&absent).contains("cuda"));
}

#[test]
fn steps_are_spread_named_or_listed_and_what_is_dropped_is_told() {
    let run = Run::new();
    let told = |arguments: &[&str]| {
        let mut command = engine();
        command
            .current_dir(run.0.path())
            .args(["sample", "--device", "cpu", "--count", "1", "--force", "--out", "told.npy"]);
        let output = command.args(["--model", "model.safetensors"]).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    };
    for (profile, steps) in [("fast", "20"), ("standard", "50"), ("high", "100")] {
        assert!(
            told(&["--sampler", "ddim", "--profile", profile]).contains(&format!("(ddim {steps} steps")),
            "{profile}"
        );
    }
    let text = told(&["--timesteps", "999,500,500,-3,20,4000", "--sampler", "dpmpp2m"]);
    assert!(
        text.contains("note: 6 timesteps requested, 3 remain: 1 repeat is dropped, 2 outside 0…999 are dropped"),
        "{text}"
    );
    assert!(text.contains("(dpmpp2m 3 steps"), "{text}");
    // The same steps by another name give the same images; others give others.
    let array = |arguments: &[&str]| run.array(&[&["--count", "2"][..], arguments].concat()).1;
    let usual = array(&[]);
    assert_eq!(array(&["--steps", "3", "--schedule", "uniform", "--temperature", "1"]), usual);
    assert_eq!(array(&["--timesteps", "332,999,666"]), array(&["--timesteps", "999 666 332"]));
    for other in
        [["--schedule", "quadratic"], ["--temperature", "0.5"], ["--sampler", "dpmpp2m"], ["--timesteps", "999"]]
    {
        assert_ne!(array(&other), usual, "{other:?}");
    }
    // Without noise images of one class are identical.
    let still = array(&["--temperature", "0", "--class", "star"]);
    assert_eq!(still[..still.len() / 2], still[still.len() / 2..]);

    // Whole timesteps repeat where they are close.
    let mut config = config();
    for set in ["diffusion.schedule=linear", "diffusion.prediction=epsilon"] {
        config.set(set).unwrap();
    }
    untrained(&config).save(run.path("model.safetensors")).unwrap();
    let text = told(&["--schedule", "logarithmic", "--steps", "50", "--sampler", "ddim"]);
    assert!(
        text.contains("note: 50 steps requested, 42 remain after repeats") && text.contains("(ddim 42 steps"),
        "{text}"
    );
}

#[test]
fn a_picture_is_repeated_from_the_parameters_inside_it() {
    let run = Run::new();
    let ok = |arguments: &[&str]| {
        let mut command = engine();
        command.current_dir(run.0.path()).args(["sample", "--quiet", "--force", "--device", "cpu"]).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let bytes = |name: &str| std::fs::read(run.path(name)).unwrap();
    let model = ["--model", "model.safetensors"];
    // Not a short decimal: the written value must be read back to the last bit.
    let third =
        ["--guidance", "1.3333333333333333", "--temperature", "0.9123456789012345", "--seed", "18446744073709551615"];
    for arguments in [
        &["--count", "3"][..],
        &["--count", "3", "--precision", "bf16"],
        &["--class", "all", "--count", "2", "--sampler", "ddim", "--eta", "0.1234567890123456"],
        &["--class", "star", "--sampler", "dpmpp2m", "--steps", "5", "--schedule", "quadratic"],
        &["--class", "none", "--count", "2", "--sampler", "ddpm", "--timesteps", "999,500,5,5000"],
        &["--count", "4", "--compare-with", "builtin"],
    ] {
        ok(&[&model[..], &third, arguments, &["--out", "first.png"]].concat());
        ok(&["--like", "first.png", "--batch", "1", "--threads", "1"]);
        assert!(bytes("first.png") == bytes("repeated.png"), "{arguments:?}: the whole file, its words too");
        // A repetition can be repeated.
        ok(&["--like", "repeated.png", "--out", "third.png"]);
        assert!(bytes("first.png") == bytes("third.png"));
    }

    // One image of many.
    ok(&[&model[..], &["--count", "12", "--seed", "5", "--out", "many/"]].concat());
    ok(&["--like", "many/00011-square.png", "--out", "one.png"]);
    assert!(bytes("many/00011-square.png") == bytes("one.png"));
    ok(&["--like", "one.png", "--out", "again/"]);
    assert!(bytes("many/00011-square.png") == bytes("again/00011-square.png"));

    // Given options replace the picture's, and the rest stays.
    ok(&["--like", "first.png", "--seed", "6", "--out", "other.png"]);
    let parameters = |name: &str| -> serde_json::Value {
        let (_, texts) = read_png(run.path(name)).unwrap();
        serde_json::from_str(&texts.iter().find(|(keyword, _)| keyword == "engine.sampling").unwrap().1).unwrap()
    };
    let (mut first, other) = (parameters("first.png"), parameters("other.png"));
    first["seed"] = 6.into();
    assert_eq!(first, other);
    assert_ne!(read_png(run.path("first.png")).unwrap().0, read_png(run.path("other.png")).unwrap().0);
}

#[test]
fn what_cannot_be_repeated_is_told_in_one_line() {
    let run = Run::new();
    assert!(run.sample(&["--count", "1", "--out", "p.png"]).status.success());
    let like = |arguments: &[&str]| {
        let mut command = engine();
        command.current_dir(run.0.path()).args(["sample", "--quiet", "--device", "cpu", "--like"]).args(arguments);
        fault(&command.output().unwrap())
    };
    let before = std::fs::read(run.path("p.png")).unwrap();
    assert!(like(&["p.png", "--out", "p.png"]).contains("p.png: would be overwritten"));

    // Another model in its place, no file, and an unknown name.
    let good = std::fs::read(run.path("model.safetensors")).unwrap();
    Model::untrained(&config(), &Context::cpu(), DType::F32, 6).unwrap().save(run.path("model.safetensors")).unwrap();
    let text = like(&["p.png"]);
    assert!(text.contains("is not the model that drew p.png: its SHA-256 begins"), "{text}");
    std::fs::remove_file(run.path("model.safetensors")).unwrap();
    let text = like(&["p.png"]);
    for part in ["p.png: was drawn by ", "model.safetensors: there is no such model file", "with --model"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!run.path("repeated.png").exists());
    std::fs::write(run.path("moved.safetensors"), &good).unwrap();
    let mut command = engine();
    command.current_dir(run.0.path()).args(["sample", "--quiet", "--like", "p.png", "--out", "moved.png"]);
    command.args(["--model", "moved.safetensors"]);
    assert!(command.output().unwrap().status.success());

    // Pictures of other programs, or modified ones.
    let image = engine::picture::Image::filled(4, 4, [9; 3]);
    let with = |text: &[(&str, &str)]| engine::picture::write_png(run.path("x.png"), &image, text).unwrap();
    with(&[]);
    assert!(like(&["x.png"]).contains("x.png: holds no sampling parameters; give a PNG that"));
    let recipe = read_png(run.path("p.png")).unwrap().1.into_iter().find(|text| text.0 == "engine.sampling").unwrap().1;
    let vast = recipe.replace(r#""count":1"#, r#""count":1000000000000"#);
    let beyond = recipe.replace(r#""first":0"#, r#""first":4294967295"#);
    for (text, part) in [
        ("", "sampling parameters that cannot be read"),
        ("{}", "missing field"),
        (&recipe[..recipe.len() / 2], "cannot be read"),
        (&recipe.replace(r#""sampler":""#, r#""sampler":"x"#), "unknown variant"),
        (&recipe.replace('{', r#"{"sharpness":2,"#), "unknown field `sharpness`"),
        (&vast, "--count"),
        (&beyond, "--count"),
    ] {
        with(&[("engine.sampling", text)]);
        let told = like(&["x.png", "--model", "moved.safetensors"]);
        assert!(told.contains(part), "{text:.60}: {told}");
    }
    assert_eq!(std::fs::read(run.path("p.png")).unwrap(), before);
}

#[test]
fn real_images_stand_beside_the_generated_ones() {
    let run = Run::new();
    assert!(run.sample(&["--count", "4", "--out", "alone.png"]).status.success());
    let compared = ["--count", "4", "--compare-with", "builtin", "--out", "both.png"];
    assert!(run.sample(&compared).status.success());
    let size = |name: &str| read_png(run.path(name)).map(|(image, _)| (image.width(), image.height())).unwrap();
    let (alone, both) = (size("alone.png"), size("both.png"));
    assert!(both.0 >= 2 * alone.0 && both.1 > alone.1, "{alone:?} {both:?}");
    for out in ["x.npy", "folder/"] {
        let text = fault(&run.sample(&["--count", "4", "--compare-with", "builtin", "--out", out]));
        assert!(text.contains("--compare-with: real images are put beside") && !run.path(out).exists(), "{text}");
    }
    // Images of another size.
    let shapes = engine::data::shapes(0, 20);
    let narrow = engine::data::Dataset::from_parts(engine::data::Parts {
        name: "narrow".into(),
        class_names: shapes.class_names().to_vec(),
        height: 32,
        width: 16,
        channels: 3,
        images: shapes.images()[..20 * 32 * 16 * 3].to_vec(),
        labels: shapes.labels().to_vec(),
        train: 10,
        ..engine::data::Parts::default()
    })
    .unwrap();
    narrow.write(run.path("narrow.safetensors"), false).unwrap();
    let text = fault(&run.sample(&["--compare-with", "narrow.safetensors"]));
    assert!(
        text.contains("narrow holds images of 32x16x3 (height x width x channels), the model draws 32x32x3"),
        "{text}"
    );
}

#[test]
fn grey_arrays_have_no_channels_and_progress_can_be_written_down() {
    let mut config = config();
    for set in ["model.image_channels=1", "model.image_size=28"] {
        config.set(set).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    untrained(&config).save(folder.path().join("grey.safetensors")).unwrap();
    let output = engine()
        .current_dir(folder.path())
        .args([
            "sample",
            "--device",
            "cpu",
            "--model",
            "grey.safetensors",
            "--count",
            "3",
            "--out",
            "s.npy",
            "--progress",
        ])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("100 % | 3/3 images | "), "{told}");
    let bytes = std::fs::read(folder.path().join("s.npy")).unwrap();
    let npy = npyz::NpyFile::new(bytes.as_slice()).unwrap();
    assert_eq!(npy.shape(), [3, 28, 28]);
    assert!(npy.into_vec::<f32>().unwrap().iter().all(|value| (0.0..=1.0).contains(value)));
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let run = Run::new();
    let model = untrained(&config());
    let mut flat = model.parameters.download().unwrap();
    flat[3] = f32::NAN;
    model.parameters.set_flat(&flat).unwrap();
    let path = run.path("diverged.safetensors");
    model.save(&path).unwrap();
    let output = sample(&path, &["--count", "1"], run.0.path());
    let text = String::from_utf8(output.stderr).unwrap();
    let name = &model.parameters.specs()[0].name;
    assert!(!output.status.success() && text.contains(&format!("{name} has NaN at element 3")), "{text}");
}
