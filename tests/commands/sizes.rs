//! A folder of pictures that are higher than wide: the model adapts to it, and every command handles their size.

use std::path::Path;

use crate::data::{SMALL, encoded, engine};
use engine::config::Config;
use engine::picture::{Image, read_png, write_png};
use image::{ExtendedColorType, ImageFormat};

/// A small U-Net: three levels, the two smaller ones with attention, as the preset says.
const UNET: [&str; 29] = [
    "--preset",
    "ddpm-cifar10",
    "--set",
    "model.channels=[8, 8, 8]",
    "--set",
    "model.res_blocks=1",
    "--set",
    "model.num_heads=2",
    "--set",
    "model.norm_groups=4",
    "--set",
    "model.time_embedding_dim=8",
    "--set",
    "model.time_hidden_dim=8",
    "--set",
    "model.time_output_dim=8",
    "--set",
    "sampling.num_steps=2",
    "--set",
    "sampling.sampler=ddim",
    "--set",
    "sampling.count_per_class=1",
    "--set",
    "training.warmup_steps=0",
    "--device",
    "cpu",
    "--batch",
    "4",
    "--steps",
];

/// Forty pictures in two classes, 24 high and 16 wide.
fn portraits(folder: &Path) {
    for k in 0..40u8 {
        let class = ["cat", "dog"][usize::from(k % 2)];
        std::fs::create_dir_all(folder.join("portraits").join(class)).unwrap();
        let bytes = encoded(ImageFormat::Png, 16, 24, ExtendedColorType::Rgb8, 5 * k);
        std::fs::write(folder.join(format!("portraits/{class}/{k}.png")), bytes).unwrap();
    }
}

/// Runs a command that must succeed; returns its output.
fn done(folder: &Path, arguments: &[&str]) -> String {
    let (done, said, told) = engine(folder, arguments);
    assert!(done, "{arguments:?}: {told}");
    said + &told
}

/// The one picture in a folder.
fn alone(folder: &Path) -> String {
    let names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    names[0].to_str().unwrap().into()
}

#[test]
fn a_folder_of_portraits_trains_and_every_command_keeps_their_shape() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    portraits(folder);
    let train = [&["train", "--data", "portraits", "--out", "run", "--batch", "4"], &SMALL[..]].concat();
    let said = done(folder, &train);
    assert!(said.contains("the model follows the data: model.image_size [24, 16], model.num_classes 2"), "{said}");
    assert!(said.contains("images 24x16x3 (height x width x channels)"), "{said}");
    let shape = |path: &str| {
        let (image, _) = read_png(folder.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        [image.height(), image.width()]
    };
    let model = ["--model", "run", "--device", "cpu"];
    let run = |command: &[&str], more: &[&str]| done(folder, &[command, &model, more].concat());
    // One picture has the model's own size; its recipe reproduces it.
    run(&["sample"], &["--class", "cat", "--count", "1", "--out", "one"]);
    let one = alone(&folder.join("one"));
    assert_eq!(shape(&one), [24, 16]);
    run(&["sample"], &["--like", &one, "--out", "again.png"]);
    assert_eq!(read_png(folder.join("again.png")).unwrap().0, read_png(&one).unwrap().0);
    run(&["sample"], &["--class", "all", "--count", "3", "--out", "sheet.png"]);
    let [high, wide] = shape("sheet.png");
    // Two rows of three pictures, four times as large.
    assert!((2 * 96..2 * 96 + 100).contains(&high) && (3 * 64..3 * 64 + 200).contains(&wide), "{high}x{wide}");
    let drawn = run(&["sample"], &["--count", "2", "--out", "set.safetensors"]);
    assert!(!drawn.is_empty());
    let info = done(folder, &["data", "info", "set.safetensors"]);
    assert!(info.contains("2 images 24x16x3 (height x width x channels)"), "{info}");
    done(folder, &["data", "show", "set.safetensors", "--out", "shown.png"]);
    // A photograph with another aspect ratio is fitted.
    let photo = Image::new(50, 30, 3, (0..4500).map(|at| (at * 7 % 251) as u8).collect()).unwrap();
    write_png(folder.join("photo.png"), &photo, &[]).unwrap();
    let mask = Image::new(50, 30, 1, (0..1500).map(|at| if at % 50 < 25 { 255 } else { 0 }).collect()).unwrap();
    write_png(folder.join("mask.png"), &mask, &[]).unwrap();
    let note = "photo.png: resized from 30x50 (height x width) to 24x16 (height x width)";
    let said = run(&["vary"], &["--image", "photo.png", "--out", "varied.png"]);
    assert!(said.contains(note), "{said}");
    run(&["vary"], &["--image", "photo.png", "--fit", "pad", "--count", "2", "--out", "varied"]);
    let said = run(&["inpaint"], &["--image", "photo.png", "--mask", "mask.png", "--out", "filled.png"]);
    assert!(said.contains(note), "{said}");
    let said = run(&["upscale"], &["--image", "photo.png", "--factor", "4", "--out", "large.png"]);
    assert!(said.contains("to 6x4 (height x width)") && said.contains("1 image of 24x16 (height x width)"), "{said}");
    for path in ["varied.png", "filled.png", "large.png"] {
        assert_eq!(shape(path), [24, 16], "{path}");
    }
    let ends = ["--images", &one, "photo.png", "--frames", "3", "--out", "film.gif", "--out", "film.apng", "--out"];
    run(&["interpolate"], &[&ends[..], &["strip.png"]].concat());
    assert_eq!(shape("film.apng"), [24 * 8, 16 * 8]);
    let gif = std::fs::read(folder.join("film.gif")).unwrap();
    assert_eq!(gif[6..10], [128, 0, 192, 0], "a GIF's width stands before its height");
    let said = run(&["score", "photo.png"], &["--levels", "2", "--reference-count", "4"]);
    assert!(said.contains("photo.png"), "{said}");
    let said = run(&["classify", "photo.png", "portraits/cat"], &["--levels", "2"]);
    assert!(said.contains("portraits/cat/0.png"), "{said}");
    run(&["classify"], &["--count", "4", "--levels", "2"]);
    let (found, _, told) =
        engine(folder, &[&["sample"], &model[..], &["--compare-with", "builtin", "--count", "1"]].concat());
    assert!(!found && told.contains("32x32x3, the model draws 24x16x3 (height x width x channels)"), "{told}");
    assert!(folder.join("run/samples/final.png").exists());
}

#[test]
fn a_u_net_follows_portraits_and_keeps_attention_at_its_levels() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    portraits(folder);
    let train = |out: &str, steps: &str| {
        done(folder, &[&["train", "--data", "portraits", "--out", out], &UNET[..], &[steps]].concat())
    };
    let said = train("whole", "3");
    assert!(
        said.contains("the model follows the data: model.image_size [24, 16], model.attention_sizes [12, 6]"),
        "{said}"
    );
    let config = Config::from_file(folder.join("whole/config.yaml")).unwrap();
    assert_eq!(config.model.image_size().sides(), [24, 16]);
    done(folder, &["sample", "--model", "whole", "--device", "cpu", "--count", "1", "--out", "one"]);
    let (image, words) = read_png(alone(&folder.join("one"))).unwrap();
    assert_eq!(image.size().sides(), [24, 16]);
    assert!(words.iter().any(|(keyword, _)| keyword == "engine.sampling"));
    // A set of ours with the sides swapped, fitted explicitly.
    let import = ["data", "import", "portraits", "--out", "wide.safetensors", "--resize", "16x24", "--fit", "pad"];
    let said = done(folder, &import);
    assert!(said.contains("16x24") || folder.join("wide.safetensors").exists(), "{said}");
    let said = done(folder, &[&["train", "--data", "wide.safetensors", "--out", "lying"], &UNET[..], &["3"]].concat());
    assert!(said.contains("model.image_size [16, 24], model.attention_sizes [8, 4]"), "{said}");
    let plan = done(
        folder,
        &[
            "plan",
            "--preset",
            "ddpm-cifar10",
            "--set",
            "model.image_size=[48, 32]",
            "--set",
            "model.attention_sizes=[24]",
            "--on",
            "h100",
        ],
    );
    assert!(plan.contains("images 48x32x3 (height x width x channels)"), "{plan}");
}

#[test]
fn a_classifier_of_portraits_is_a_backbone_for_them() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    portraits(folder);
    let more = ["--device", "cpu", "--batch", "4", "--steps", "3"];
    let classifier = [
        &["train", "--preset", "resnet18-cifar10", "--data", "portraits", "--out", "judge"][..],
        &["--set", "model.blocks=[1, 1]", "--set", "model.widths=[8, 8]", "--set", "training.warmup_steps=0"],
        &more,
    ];
    let said = done(folder, &classifier.concat());
    assert!(said.contains("model.image_size [24, 16]"), "{said}");
    done(folder, &["classify", "--model", "judge", "--device", "cpu", "--count", "4"]);
    let transformer = [
        &["train", "--preset", "resnet-dit", "--data", "portraits", "--out", "run", "--set", "model.backbone=judge"][..],
        &["--set", "model.hidden_dim=16", "--set", "model.depth=1", "--set", "model.num_heads=2"],
        &["--set", "model.decoder_channels=8", "--set", "model.time_embedding_dim=8", "--set", "sampling.num_steps=2"],
        &["--set", "sampling.count_per_class=1", "--set", "training.warmup_steps=0"],
        &more,
    ];
    done(folder, &transformer.concat());
    done(folder, &["sample", "--model", "run", "--device", "cpu", "--count", "1", "--out", "one"]);
    assert_eq!(read_png(alone(&folder.join("one"))).unwrap().0.size().sides(), [24, 16]);
}
