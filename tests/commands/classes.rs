//! Training on some classes of a data set: `--classes`, the resulting split, and its record in the model.

use crate::tiny;
use std::process::{Command, Output};

use engine::config::Config;
use engine::data::{Dataset, Split};
use engine::pipeline::Model;
use engine::train::fingerprint;

struct Folder(tempfile::TempDir);

impl Folder {
    /// With `noise.safetensors`, of classes a, b and c, and `tiny.yaml`.
    fn new(settings: &[&str]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        tiny::dataset().write(folder.path("noise.safetensors"), false).unwrap();
        let all = [&["training.batch_size=2", "training.num_steps=3"], settings].concat();
        std::fs::write(folder.path("tiny.yaml"), tiny::config(&all).to_yaml().unwrap()).unwrap();
        folder
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn engine(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        command.current_dir(self.0.path()).args(arguments.split(' ')).output().unwrap()
    }

    fn succeed(&self, arguments: &str) -> String {
        let output = self.engine(arguments);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn fault(&self, arguments: &str) -> String {
        let output = self.engine(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && !text.contains("panicked"), "{arguments}: {text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{text}");
        text
    }
}

const TRAIN: &str = "train --config tiny.yaml --data noise.safetensors --device cpu --out run";

#[test]
fn a_model_of_two_classes_is_trained_resumed_and_sampled() {
    let folder = Folder::new(&["data.validation_fraction=0.25", "data.split_seed=4"]);
    let told = folder.succeed(&format!("{TRAIN} --classes C,a"));
    assert!(told.contains("classes  C, a: model.num_classes is 2, not 3\n"), "{told}");
    // Of 4 and 5 training images, one each is held out; 2 were held out before.
    assert!(told.contains("7 training and 2 validation images 8x8x3, 2 classes"), "{told}");
    let config = Config::from_file(folder.path("run/config.yaml")).unwrap();
    assert_eq!((config.data.classes.as_slice(), config.model.num_classes()), (&["C", "a"].map(String::from)[..], 2));
    let info = Model::inspect(folder.path("run")).unwrap();
    assert_eq!(
        (info.classes.as_slice(), &info.config.data.classes),
        (&["c", "a"].map(String::from)[..], &config.data.classes)
    );
    // A finished run has nothing left to do: it says so, and writes no model and no picture.
    let written = || {
        ["model.safetensors", "samples/final.png", "checkpoints/step-3.safetensors"]
            .map(|name| std::fs::metadata(folder.path("run").join(name)).unwrap().modified().unwrap())
    };
    let (before, metrics) = (written(), std::fs::read(folder.path("run/metrics.jsonl")).unwrap());
    let told = folder.succeed("train --resume run --device cpu");
    assert!(told.contains("resumes after step 3") && told.contains("the run is complete"), "{told}");
    assert!(!told.contains("3 steps in ") && written() == before, "{told}");
    assert!(std::fs::read(folder.path("run/metrics.jsonl")).unwrap() == metrics);
    folder.succeed("sample --model run --class C --steps 2 --device cpu --out c.png");
    assert!(folder.path("c.png").exists());
    let told = folder.fault("sample --model run --class b --steps 2 --device cpu --out b.png");
    assert!(told.contains("the model has no class `b`; use one of c, a, or a number below 2"), "{told}");
}

#[test]
fn bad_subsets_are_told_before_there_is_a_run() {
    let folder = Folder::new(&[]);
    for (arguments, told) in [
        ("--classes a,cc", "data.classes: noise has no class `cc`; did you mean c? Known: a, b, c"),
        ("--classes a,A", "data.classes: a is given twice"),
        ("--classes ,", "--classes: the list of classes is empty"),
        (
            "--classes a,b --set model.num_classes=3",
            "model.num_classes: 2 classes in data.classes, 3 in the model; set it to 2",
        ),
        ("--set data.classes=[a]", "model.num_classes: 1 class in data.classes, 3 in the model; set it to 1"),
        ("--set data.validation_fraction=1", "data.validation_fraction: 1 is outside (0, 1)"),
        (
            "--set data.validation_fraction=0.1",
            "data.validation_fraction: 0.1 of the 4 training images of b leaves it without",
        ),
    ] {
        let text = folder.fault(&format!("{TRAIN} {arguments}"));
        assert!(text.contains(told) && !folder.path("run").exists(), "{arguments}: {text}");
    }
    assert!(folder.fault("train --resume run --classes a").contains("--classes: a resumed run keeps"));
}

#[test]
fn data_commands_take_a_subset() {
    let folder = Folder::new(&[]);
    let told = folder.succeed("data info noise.safetensors --classes c,b");
    assert!(told.contains("11 images 8x8x3: 8 training, 3 validation\n  2 classes: c, b\n"), "{told}");
    folder.succeed("data show noise.safetensors --classes c,b --out sheet.png");
    assert!(folder.path("sheet.png").exists());
    assert!(folder.fault("data show noise.safetensors --classes d --out d.png").contains("noise has no class `d`"));
    for (class, shade) in [("dark", 10), ("grey", 100), ("light", 250)] {
        std::fs::create_dir_all(folder.path(&format!("pictures/{class}"))).unwrap();
        for k in 0..4 {
            let image = engine::picture::Image::filled(6, 6, [shade, k, 0]);
            engine::picture::write_png(folder.path(&format!("pictures/{class}/{k}.png")), &image, &[]).unwrap();
        }
    }
    folder.succeed("data import pictures --out some.safetensors --validation 0.25 --classes light,dark");
    let set = Dataset::open(folder.path("some.safetensors")).unwrap();
    assert_eq!(set.class_names(), ["light", "dark"]);
    assert_eq!([Split::Train, Split::Validation].map(|split| set.split_len(split)), [6, 2]);
    set.verify().unwrap();
    assert!((0..set.len()).all(|i| set.image(i)[0] == [250, 10][usize::from(set.labels()[i])]));
}

#[test]
fn a_subset_and_a_split_show_in_the_fingerprint() {
    let set = tiny::dataset();
    let names = |names: &[&str]| -> Vec<String> { names.iter().map(|name| name.to_string()).collect() };
    let arranged =
        |classes: &[&str], fraction, seed| fingerprint(&set.arranged(&names(classes), fraction, seed).unwrap());
    let mut prints = vec![
        arranged(&[], None, 0),
        arranged(&["a", "b"], None, 0),
        arranged(&["b", "a"], None, 0),
        arranged(&["a", "b"], Some(0.25), 0),
        arranged(&["a", "b"], Some(0.25), 1),
        arranged(&["a", "b"], Some(0.5), 0),
    ];
    // Nothing changes for a whole set, whose runs resume.
    assert_eq!((arranged(&[], None, 9), &prints[0]), (fingerprint(&set), &fingerprint(&set)));
    assert!(prints[3].contains(", divided 7/2/3, checksum "), "{}", prints[3]);
    prints.sort();
    prints.dedup();
    assert_eq!(prints.len(), 6);
}
