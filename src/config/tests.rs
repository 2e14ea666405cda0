use super::*;
use crate::diffusion::{Prediction, SamplerKind, Schedule, TimestepSampling};
use crate::models::dit::{Conditioning, DitConfig};

/// A small deterministic generator, so that fuzzed inputs are the same in every run.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % bound
    }
}

fn message(result: Result<Config>) -> String {
    let message = result.unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

fn yaml(text: &str) -> Result<Config> {
    Config::from_yaml(text, "run.yaml")
}

#[test]
fn presets_are_valid_and_survive_yaml_and_json() {
    for preset in presets() {
        let config = Config::preset(preset.name).unwrap();
        config.validate().unwrap();
        let text = config.to_yaml().unwrap();
        assert_eq!(yaml(&text).unwrap(), config, "{text}");
        let json = config.to_json().unwrap();
        assert_eq!(Config::from_json(&json, "model").unwrap(), config, "{json}");
    }
}

#[test]
fn dit_cifar10_is_the_default() {
    let config = Config::preset("dit-cifar10").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.model, ModelConfig::Dit(DitConfig::default()));
    assert_eq!(config.training.milestone_epochs, [40, 80, 120, 160, 200]);
    assert_eq!((config.training.num_epochs, config.training.batch_size), (Some(200), 64));
    assert_eq!(config.model.null_label(), Some(10));
}

#[test]
fn quickstart_is_the_flow_recipe_on_shapes() {
    let config = Config::preset("quickstart").unwrap();
    let ModelConfig::Dit(model) = &config.model else { panic!("{:?}", config.model) };
    assert_eq!(model.conditioning, Conditioning::AdalnZero);
    let diffusion = (config.diffusion.schedule, config.diffusion.prediction, config.diffusion.timestep_sampling);
    assert_eq!(diffusion, (Schedule::Flow, Prediction::Flow, TimestepSampling::LogitNormal));
    assert_eq!((config.sampling.sampler, config.sampling.guidance), (SamplerKind::Heun, 2.0));
    assert_eq!(config.data.name, "shapes");
    assert_eq!(config.training.num_epochs, None);
}

#[test]
fn a_plain_yaml_with_the_three_classic_sections_runs_unchanged() {
    let config = yaml(
        "model:\n  image_size: 32 # Image resolution\n  image_channels: 3 # RGB\n  hidden_dim: 384\n  depth: 12\n  \
         num_heads: 8\n\ntraining:\n  num_epochs: 40\n  learning_rate: 2.0e-4\n  batch_size: 32\n  num_workers: 4\n\n\
         diffusion:\n  num_steps: 1000\n  beta_start: 1.0e-4\n  beta_end: 0.02\n",
    )
    .unwrap();
    config.validate().unwrap();
    let mut expected = Config::preset("dit-cifar10").unwrap();
    expected.training.num_epochs = Some(40);
    expected.training.batch_size = 32;
    expected.training.num_workers = 4;
    assert_eq!(config, expected);
}

#[test]
fn a_file_may_start_from_a_preset() {
    let config = yaml("training:\n  batch_size: 8\npreset: quickstart\nsampling:\n").unwrap();
    let mut expected = Config::preset("quickstart").unwrap();
    expected.training.batch_size = 8;
    assert_eq!(config, expected);
    assert_eq!(yaml("").unwrap(), Config::default());
    let error = message(yaml("# base\npreset: dit-cifar\n"));
    assert!(error.starts_with("run.yaml:2: preset: ") && error.contains("did you mean dit-cifar10?"), "{error}");
    assert!(message(yaml("preset: [quickstart]")).starts_with("run.yaml:1: preset: is not a name"));
}

#[test]
fn unknown_presets_name_the_nearest_and_list_all() {
    let error = message(Config::preset("quikstart"));
    assert_eq!(
        error,
        "preset: no preset is called `quikstart`; did you mean quickstart? Known: quickstart, dit-cifar10, dit-fashion, \
         ddpm-cifar10, ddpm-cifar10-paper, unet-fashion, unet-fashion-small, pets, pets-small, resnet18-cifar10, resnet-dit, dit-original"
    );
    assert!(message(Config::preset("xyz\n")).contains("use one of quickstart, "));
}

#[test]
fn unknown_keys_name_file_line_and_the_nearest_key() {
    let cases = [
        ("training:\n  batchsize: 4\n", "run.yaml:2: training.batchsize: ", "did you mean training.batch_size?"),
        ("training:\n  lr: 4\n", "run.yaml:2: training.lr: ", "did you mean training.learning_rate?"),
        ("model:\n  depht: 4\n", "run.yaml:2: model.depht: ", "did you mean model.depth?"),
        ("trainig:\n  batch_size: 4\n", "run.yaml:1: trainig: ", "did you mean the section `training:`?"),
        ("\nbatch_size: 4\n", "run.yaml:2: batch_size: ", "it belongs under its section: training.batch_size"),
        ("model:\n  batch_size: 4\n", "run.yaml:2: model.batch_size: ", "under its section: training.batch_size"),
        ("sampling:\n  zzzzzz: 4\n", "run.yaml:2: sampling.zzzzzz: ", "`sampling:` knows "),
        ("qqqqqq: 4\n", "run.yaml:1: qqqqqq: ", "the sections are "),
    ];
    for (text, place, advice) in cases {
        let error = message(yaml(text));
        assert!(error.starts_with(place) && error.contains(advice), "{error}");
    }
}

#[test]
fn wrong_types_name_the_line_and_what_is_expected() {
    let cases = [
        ("training:\n  batch_size: many\n", "run.yaml:2: training.batch_size: ", "give a whole number"),
        ("training:\n  batch_size: -1\n", "run.yaml:2: training.batch_size: ", "give a whole number"),
        ("training:\n  batch_size: 1.5\n", "run.yaml:2: training.batch_size: ", "give a whole number"),
        ("training:\n  batch_size: null\n", "run.yaml:2: training.batch_size: ", "give a whole number"),
        ("training:\n  batch_size: {a: 1}\n", "run.yaml:2: training.batch_size: ", "not a mapping"),
        ("training:\n  learning_rate: [1]\n", "run.yaml:2: training.learning_rate: ", "give a number"),
        ("training:\n  ema_warmup: 3\n", "run.yaml:2: training.ema_warmup: ", "give true or false"),
        ("training:\n  milestone_epochs: 3\n", "run.yaml:2: training.milestone_epochs: ", "give a list"),
        ("training:\n  sample_every: often\n", "run.yaml:2: training.sample_every: ", "`N epochs`"),
        ("diffusion:\n  schedule: cosin\n", "run.yaml:2: diffusion.schedule: ", "did you mean cosine?"),
        ("model:\n  kind: gan\n", "run.yaml:2: model.kind: ", "the kinds are dit, unet"),
        ("model:\n  kind: 7\n", "run.yaml:2: model.kind: ", "the kinds are dit"),
        ("model:\n  hidden_dim: wide\n", "run.yaml:2: model.hidden_dim: ", "give a whole number"),
        ("data:\n  name: 5\n", "run.yaml:2: data.name: ", "give a text"),
        ("training: 5\n", "run.yaml:1: training: ", "indent its keys"),
        ("- a\n- b\n", "run.yaml: ", "is not a mapping of sections"),
        ("training:\n  num_steps: 5\n  num_epochs: 5\n", "run.yaml:2: training.num_steps: ", "given twice"),
    ];
    for (text, place, advice) in cases {
        let error = message(yaml(text));
        assert!(error.starts_with(place) && error.contains(advice), "{error}");
    }
}

#[test]
fn broken_yaml_names_the_line() {
    for text in ["training:\n  batch_size: [1, 2\n", "training:\n\tbatch_size: 3\n", "a: 1\na: 2\n", "\"", "a: *b\n"] {
        let error = message(yaml(text));
        assert!(error.starts_with("run.yaml:") && error.contains("not valid YAML"), "{error}");
    }
}

#[test]
fn overrides_are_typed() {
    let mut config = Config::default();
    for assignment in [
        "training.batch_size=16",
        "training.learning_rate = 1e-3",
        "training.gradient_clip=null",
        "training.milestone_epochs=[1, 2]",
        "training.sample_every=5 epochs",
        "training.checkpoint_every=7",
        "diffusion.prediction=v",
        "data.path=/tmp/a=b.safetensors",
        "model.conditioning=adaln_zero",
        "model.kind=dit",
        "training.seed=18446744073709551615",
    ] {
        config.set(assignment).unwrap();
    }
    let training = &config.training;
    assert_eq!((training.batch_size, training.learning_rate, training.gradient_clip), (16, 1e-3, None));
    assert_eq!((training.milestone_epochs.as_slice(), training.sample_every), ([1, 2].as_slice(), Every::Epochs(5)));
    assert_eq!((training.checkpoint_every, training.seed), (7, u64::MAX));
    assert_eq!(config.diffusion.prediction, Prediction::V);
    assert_eq!(config.data.path.as_deref(), Some(Path::new("/tmp/a=b.safetensors")));
    // Setting the kind again resets that kind's keys to their defaults.
    assert_eq!(config.model, ModelConfig::default());
    assert_eq!(yaml(&config.to_yaml().unwrap()).unwrap(), config);
    assert_eq!(Config::from_json(&config.to_json().unwrap(), "model").unwrap(), config);
}

#[test]
fn bad_overrides_say_why_and_change_nothing() {
    let mut config = Config::default();
    let cases = [
        ("training.batch_size", "set: ", "is not of the form"),
        ("training.batch_size=", "set: training.batch_size: ", "whole number"),
        ("training.batchsize=3", "set: training.batchsize: ", "did you mean training.batch_size?"),
        ("batch_size=3", "set: batch_size: ", "training.batch_size"),
        ("training=3", "set: training: ", "not a known key"),
        ("training.batch_size.x=3", "set: training.batch_size.x: ", "did you mean training.batch_size?"),
        ("nowhere.at_all=3", "set: nowhere.at_all: ", "sections are"),
        ("training.batch_size=[", "set: training.batch_size", "YAML"),
        ("training.learning_rate=fast", "set: training.learning_rate: ", "give a number"),
        ("training.learning_rate=.nan", "set: training.learning_rate", ""),
        ("=", "set: ", ""),
        (".=1", "set: ", ""),
    ];
    for (assignment, place, advice) in cases {
        let error = config.set(assignment).unwrap_err().to_string();
        assert!(error.starts_with(place) && error.contains(advice) && !error.contains('\n'), "{assignment:?}: {error}");
    }
    assert_eq!(config, Config::default());
}

#[test]
fn the_length_of_a_run_is_one_choice() {
    let mut config = Config::preset("dit-cifar10").unwrap();
    config.set("training.num_steps=100").unwrap();
    assert_eq!((config.training.num_steps, config.training.num_epochs), (Some(100), None));
    assert_eq!(config.training.total_steps(10), 100);
    config.set("training.num_epochs=3").unwrap();
    assert_eq!((config.training.num_steps, config.training.num_epochs), (None, Some(3)));
    assert_eq!(config.training.total_steps(10), 30);
}

#[test]
fn sections_must_agree() {
    let mut config = Config::preset("quickstart").unwrap();
    config.set("data.classes=[star, ring]").unwrap();
    let error = config.validate().unwrap_err().to_string();
    assert_eq!(error, "model.num_classes: 2 classes in data.classes, 10 in the model; set it to 2");
    config.set("model.num_classes=2").unwrap();
    config.validate().unwrap();
    assert_eq!(yaml(&config.to_yaml().unwrap()).unwrap(), config);
    // A model that takes no labels can be trained on any subset.
    let mut config = Config::preset("ddpm-cifar10").unwrap();
    config.set("data.classes=[cat]").unwrap();
    config.validate().unwrap();

    let mut config = Config::default();
    config.set("model.null_label=false").unwrap();
    assert!(config.validate().unwrap_err().to_string().starts_with("training.label_dropout: "));
    config.set("training.label_dropout=0").unwrap();
    assert!(config.validate().unwrap_err().to_string().starts_with("sampling.guidance: "));
    config.set("sampling.guidance=1").unwrap();
    config.validate().unwrap();
    config.set("diffusion.num_steps=20").unwrap();
    assert!(config.validate().unwrap_err().to_string().starts_with("sampling.num_steps: "));
}

#[test]
fn files_are_read_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.yaml");
    assert!(message(Config::from_file(&path)).contains("cannot open"));
    std::fs::write(&path, "training:\n  batch_size: 5\n").unwrap();
    assert_eq!(Config::from_file(&path).unwrap().training.batch_size, 5);
    std::fs::write(&path, "training:\n  batch_siz: 5\n").unwrap();
    let error = message(Config::from_file(&path));
    assert!(error.starts_with(&format!("{}:2: training.batch_siz: ", path.display())), "{error}");
    std::fs::write(&path, [0xff, 0xfe, 0]).unwrap();
    assert!(message(Config::from_file(&path)).contains("byte 0 is not UTF-8"));
    std::fs::write(&path, vec![b'#'; MAX_BYTES + 1]).unwrap();
    assert!(message(Config::from_file(&path)).contains("too long"));
    assert!(message(Config::from_file(folder.path())).contains("cannot read"));
}

#[test]
fn json_of_another_engine_is_told_apart() {
    assert_eq!(Config::from_json("{}", "m.safetensors").unwrap(), Config::default());
    let error = message(Config::from_json(r#"{"training": {"warp_speed": 9}}"#, "m.safetensors"));
    assert!(error.starts_with("m.safetensors: training.warp_speed: is not a known key"), "{error}");
    assert!(message(Config::from_json("{", "m.safetensors")).contains("not valid JSON"));
    assert!(message(Config::from_json(&"[".repeat(100_000), "m.safetensors")).contains("not valid JSON"));
}

#[test]
fn mangled_yaml_never_panics() {
    let mut random = Lcg(1);
    let spice =
        [b'\0', b'\n', b'\t', b' ', b':', b'-', b'[', b']', b'{', b'}', b'&', b'*', b'!', b'|', b'>', b'"', 0xc3];
    for preset in presets() {
        for _ in 0..300 {
            let mut bytes = preset.yaml.as_bytes().to_vec();
            for _ in 0..1 + random.below(8) {
                let at = random.below(bytes.len());
                match random.below(4) {
                    0 => bytes[at] = spice[random.below(spice.len())],
                    1 => bytes.truncate(at.max(1)),
                    2 => bytes.insert(at, spice[random.below(spice.len())]),
                    _ => bytes[at] ^= 1 << random.below(8),
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            if let Err(error) = yaml(&text) {
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }
}

#[test]
fn bombs_are_refused() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let inner = format!("*a{}", level - 1);
        laughs += &format!("a{level}: &a{level} [{}]\n", vec![inner; 10].join(", "));
    }
    for text in [laughs, "[".repeat(100_000), "a: ".repeat(1000), format!("{}: 1", "k".repeat(500_000))] {
        let error = message(yaml(&text));
        assert!(error.len() < 1000, "{}", &error[..200]);
    }
}
