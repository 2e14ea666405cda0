//! `engine eval`: what makes its numbers trustworthy. Classes by name, fair parts, equal numbers, no repeats, a checked cache, and
//! results that are not mixed up.

use engine::model_file::ClassifierModel;
use engine::picture::read_png;
use engine::tensor::{Context, DType};
use serde_json::{Value, json};

use crate::eval::Place;

const BY: &str = "--extractor classifier.safetensors --draws 0 --metrics";

/// The classifier of the place under other class names.
fn renamed(place: &Place, names: [&str; 3], to: &str) {
    let mut classifier =
        ClassifierModel::load(place.at("classifier.safetensors"), &Context::cpu(), DType::F32).unwrap();
    classifier.info.classes = names.map(String::from).to_vec();
    classifier.save(place.at(to)).unwrap();
}

fn warnings(json: &Value) -> String {
    json["warnings"].to_string()
}

#[test]
fn classes_are_matched_by_name_or_not_at_all() {
    let place = Place::new();
    renamed(&place, ["c", "b", "a"], "reversed.safetensors");
    renamed(&place, ["x", "y", "z"], "others.safetensors");
    let call = |by: &str, more: &str| {
        format!(
            "--model model.safetensors --data noise.safetensors --num-samples 30 --extractor {by}.safetensors {more}"
        )
    };
    let confusion = |by: &str| {
        place.succeed(&call(by, &format!("--metrics accuracy --draws 0 --out {by}")));
        let metric = &place.json(by)["metrics"][0];
        assert_eq!(metric["name"], "class accuracy");
        serde_json::from_value::<Vec<Vec<usize>>>(metric["more"]["confusion"].clone()).unwrap()
    };
    let (own, mut reversed) = (confusion("classifier"), confusion("reversed"));
    reversed.reverse();
    assert_eq!(own, reversed);
    assert_eq!(own.iter().map(|row| row.iter().sum::<usize>()).collect::<Vec<_>>(), [10, 10, 10]);
    // Of other classes: left out by default, refused when asked for, before any work.
    let (out, _) = place.succeed(&call("others", "--draws 0 --out default"));
    assert!(!out.contains("class accuracy") && place.json("default")["class_accuracy"].is_null(), "{out}");
    let message = place.refused(&call("others", "--metrics accuracy --out refused"));
    assert!(message.contains("does not know 3 of the samples' 3 classes, such as \"a\""), "{message}");
}

#[test]
fn a_part_of_a_set_is_fair_and_told() {
    let place = Place::new();
    let (_, err) = place.succeed(&format!("--samples a --reference b --num-samples 20 {BY} fid"));
    assert!(err.contains("20 of 40 pictures of a, at random, seed 0"), "{err}");
    let json = place.json("outputs");
    assert_eq!((json["num_samples"].as_u64(), json["chosen"].as_str()), (Some(20), Some("at random, seed 0")));
    assert_eq!((json["reference"]["images"].as_u64(), json["reference"]["chosen"].is_null()), (Some(40), true));
    // Not the first ones, and others by another seed.
    place.succeed(&format!("--samples a --reference b --num-samples 20 --seed 1 {BY} fid --out seed"));
    assert_ne!(place.json("seed")["sha256"], json["sha256"]);
    // A labelled set in proportion, of its training images.
    let (_, err) =
        place.succeed(&format!("--samples noise.safetensors --reference b --num-samples 9 {BY} fid --out set"));
    assert!(
        err.contains("in proportion to the classes") && err.contains("training images of noise.safetensors"),
        "{err}"
    );
    // More than there are.
    let (_, err) = place.succeed(&format!("--samples a --reference b --num-samples 5000 {BY} fid --out more"));
    assert!(err.contains("a has 40 pictures, not 5000"), "{err}");
    let (_, err) = place.succeed(&format!("--samples a --reference b --reference-count 10 {BY} fid --out reference"));
    assert!(err.contains("10 of 40 pictures of b, at random"), "{err}");
}

#[test]
fn the_floor_is_of_as_many_images_or_says_so() {
    let place = Place::new();
    let call = "--samples a --data noise.safetensors";
    let (out, err) = place.succeed(&format!("{call} {BY} fid"));
    let json = place.json("outputs");
    assert_eq!(json["floor"]["images"].as_u64(), Some(4), "{json}");
    assert!(err.contains("the floor is of 4 held-out images, and there are 40 samples"), "{err}");
    assert!(out.contains("floor: 4 images of noise"), "{out}");
    place.succeed(&format!("{call} --num-samples 3 {BY} fid --out three"));
    let json = place.json("three");
    assert_eq!(json["floor"]["images"].as_u64(), Some(3));
    assert!(!warnings(&json).contains("the floor is of"), "{json}");
}

#[test]
fn repeats_are_no_seeds() {
    let place = Place::new();
    let by = format!("--data noise.safetensors --num-samples 10 {BY} fid");
    for (arguments, part) in [
        ("--model model.safetensors --steps 2,3,3", "--steps: 3 twice"),
        ("--model model.safetensors --seeds 0,0", "--seeds: 0 twice"),
        ("--model model.safetensors --guidance 1,1", "--guidance: 1 twice"),
        ("--model model.safetensors ./model.safetensors", "twice"),
        ("--model model.safetensors --steps 2,2000", "2000 denoising steps"),
        ("--model model.safetensors --batch 0", "--batch: 0 images"),
    ] {
        let message = place.refused(&format!("{arguments} {by}"));
        assert!(message.contains(part), "{arguments}: {message}");
    }
    let message =
        place.refused(&format!("--model model.safetensors --data noise.safetensors --num-samples 0 {BY} fid"));
    assert!(message.contains("--num-samples: 0 samples"), "{message}");
    // Nothing had begun.
    assert!(!place.at("data/evaluation").exists() && !place.at("outputs").exists());
}

#[test]
fn a_set_against_itself_is_named() {
    let place = Place::new();
    let (_, err) = place.succeed("--samples a --reference a --extractor classifier.safetensors --metrics fid,kid");
    assert!(err.contains("the samples are the reference"), "{err}");
    assert!(err.contains("may be due to the number") && !err.contains("of 0.00 is due"), "{err}");
    let json = place.json("outputs");
    assert!(warnings(&json).contains("the samples are the reference"));
    // All of a set is one subset.
    assert_eq!(json["metrics"][1]["more"]["subsets"], json!(1));
}

#[test]
fn rules_of_references_are_checked() {
    let place = Place::new();
    place.succeed(&format!("--samples a --reference b --write-statistics b.npz {BY} fid"));
    let call = format!("--samples a {BY} fid --out no --reference");
    for (arguments, part) in [
        ("b --reference-rule clean-fid", "the reference is pictures"),
        ("b.npz --reference-rule bogus", "possible values: pytorch-fid, torch-fidelity, clean-fid, edm"),
        ("b.npz --reference-rule edm", "which is not the extractor"),
    ] {
        let message = place.refused(&format!("{call} {arguments}"));
        assert!(message.contains(part), "{arguments}: {message}");
    }
    // The file's own hash is told.
    place.succeed(&format!("--samples a --reference b.npz {BY} fid --out by-file"));
    let told = &place.json("by-file")["reference"];
    assert_eq!(told["file_sha256"].as_str().map(str::len), Some(64), "{told}");
}

#[test]
fn a_damaged_cache_is_repaired_with_a_note() {
    let place = Place::new();
    let call = format!("--samples a --reference b {BY} fid");
    place.succeed(&call);
    let first = place.json("outputs");
    let mut damaged = 0;
    for file in std::fs::read_dir(place.at("data/evaluation")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "features") {
            let mut bytes = std::fs::read(&path).unwrap();
            let end = bytes.len();
            bytes[end - 80..end - 20].fill(0);
            std::fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 2);
    let (_, err) = place.succeed(&call);
    assert_eq!(err.matches("is damaged; computed again from there").count(), 2, "{err}");
    assert_eq!(place.json("outputs"), first);
    assert!(!place.succeed(&call).1.contains("damaged"));
}

#[test]
fn results_of_different_commands_do_not_mix() {
    let place = Place::new();
    let call =
        |more: &str| format!("--model model.safetensors --data noise.safetensors --num-samples 12 {BY} fid {more}");
    place.succeed(&call("--seeds 0,1"));
    let text = read_png(place.at("outputs/ablation.png")).ok();
    assert!(text.is_none(), "one place on the axis is no curve");
    let (_, text) = read_png(place.at("outputs/real_vs_fake-2.png")).unwrap();
    assert!(text.iter().any(|(key, text)| key == "evaluation" && text.contains("seed 1, ddim, 3 steps")), "{text:?}");
    let table = std::fs::read_to_string(place.at("outputs/ablation.md")).unwrap();
    assert!(table.contains("Features by resnet-noise (") && table.contains("seed 1, ddim, 3 steps"), "{table}");
    // The same again, in other batches; another is refused.
    place.succeed(&call("--seeds 0,1 --batch 5"));
    let message = place.refused(&call("--seeds 0"));
    assert!(message.contains("has the results of another command"), "{message}");
    assert!(place.at("outputs/ablation.md").exists());
    place.succeed(&call("--seeds 0 --force"));
    for old in ["ablation.md", "real_vs_fake-2.png", "nearest-2.png"] {
        assert!(!place.at("outputs").join(old).exists(), "{old}");
    }
    assert!(place.at("outputs/real_vs_fake.png").exists());
}

#[test]
fn places_are_checked_before_the_work() {
    let place = Place::new();
    std::fs::write(place.at("old.npz"), b"old").unwrap();
    for (arguments, part) in [
        ("--samples a --reference b --write-statistics old.npz", "already exists"),
        ("--samples a --reference b --write-statistics new.npy", "does not end in .npz"),
        ("--samples a --reference b --write-statistics nowhere/new.npz", "is not a folder"),
        ("--samples a --write-statistics new.npz", "there are no reference pictures"),
        ("--samples a --reference b --out model.safetensors/x", "model.safetensors/x"),
        ("--samples typo --reference b", "typo"),
        ("--samples a --reference few", "a reference of 1 picture"),
    ] {
        let message = place.refused(&format!("{arguments} {BY} is"));
        assert!(message.contains(part), "{arguments}: {message}");
        assert!(!place.at("data/evaluation").exists(), "{arguments}");
    }
    assert_eq!(std::fs::read(place.at("old.npz")).unwrap(), b"old");
    place.succeed(&format!("--samples a --reference b --write-statistics old.npz --force {BY} fid"));
    assert!(std::fs::read(place.at("old.npz")).unwrap().starts_with(b"PK"));
}

/// A folder of pictures is a data set, as for `engine train`.
#[test]
fn a_folder_of_classes_is_imported_as_data() {
    let place = Place::new();
    std::fs::create_dir(place.at("photos")).unwrap();
    for (from, to) in [("a", "photos/x"), ("b", "photos/y")] {
        std::fs::rename(place.at(from), place.at(to)).unwrap();
    }
    let call = format!("--model model.safetensors --data photos --num-samples 8 {BY} fid");
    let (_, err) = place.succeed(&call);
    assert!(err.contains("photos as data/"), "{err}");
    let json = place.json("outputs");
    assert_eq!((json["reference"]["images"].as_u64(), json["floor"]["images"].as_u64()), (Some(72), Some(8)));
}
