//! `engine interpolate`, `vary`, `inpaint` and `upscale`, and the library calls: given pixels are kept, to the bit where promised,
//! and invalid input is a one-line error.

use crate::tiny;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use engine::config::Config;
use engine::diffusion::{NoiseSchedule, Plan, SamplerKind, slerp};
use engine::picture::{Image, read_png, write_png};
use engine::pipeline::{Ends, Inpaint, Model, SampleRequest};
use engine::rng::{Philox, Purpose};
use engine::tensor::{Context, DType};

/// An untrained model of 8x8 RGB images whose output depends on its input.
fn model(settings: &[&str]) -> Model {
    let settings = [&["model.conditioning=token", "sampling.num_steps=6", "sampling.guidance=1.5"], settings].concat();
    let mut model = Model::untrained(&tiny::config(&settings), &Context::cpu(), DType::F32, 5).unwrap();
    model.info.classes = ["a", "b", "c"].map(String::from).to_vec();
    model
}

/// Every family of predictions and schedules.
fn models() -> Vec<Model> {
    vec![
        model(&[]),
        model(&["diffusion.prediction=epsilon", "diffusion.schedule=linear", "diffusion.timestep_sampling=uniform"]),
        model(&["diffusion.prediction=v", "diffusion.schedule=cosine", "diffusion.timestep_sampling=uniform"]),
        unet(),
    ]
}

/// A U-Net of such images without classes.
fn unet() -> Model {
    let mut config = Config::preset("ddpm-cifar10").unwrap();
    for setting in [
        "model.image_size=8",
        "model.channels=[8, 16]",
        "model.res_blocks=1",
        "model.attention_sizes=[4]",
        "model.num_heads=2",
        "model.norm_groups=4",
        "model.time_embedding_dim=16",
        "model.time_hidden_dim=16",
        "model.time_output_dim=16",
        "sampling.num_steps=6",
    ] {
        config.set(setting).unwrap_or_else(|error| panic!("{setting}: {error}"));
    }
    let model = Model::untrained(&config, &Context::cpu(), DType::F32, 5).unwrap();
    // Convolutions initialized to zero would hide earlier layers.
    let mut weights = model.parameters.master().download::<f32>().unwrap();
    for (block, weights) in weights.chunks_mut(4).enumerate() {
        let random = Philox::new(3).uniform4(block as u32, 0, 0, Purpose::Probe);
        weights.iter_mut().zip(random).for_each(|(weight, random)| *weight += 0.1 * (random - 0.5));
    }
    model.parameters.set_flat(&weights).unwrap();
    model
}

/// A picture with values of all kinds.
fn picture(width: usize, height: usize, seed: usize) -> Image {
    let value = |i: usize| ((i * 37 + seed * 91) ^ ((i >> 2) * 11)) as u8;
    Image::new(width, height, 3, (0..width * height * 3).map(value).collect()).unwrap()
}

fn image(seed: usize) -> Vec<f32> {
    picture(8, 8, seed).to_signed(3).unwrap()
}

fn request(model: &Model, count: usize, sampler: SamplerKind) -> SampleRequest {
    let label = usize::from(model.info.config.model.num_classes() > 0);
    let mut request = model.request(vec![label; count]);
    (request.sampling.sampler, request.sampling.eta, request.seed) = (sampler, 0.0, 7);
    request
}

/// As [`request`], without the clamp of x_0, at which an untrained network jumps from black to white.
fn smooth_request(model: &Model, count: usize, sampler: SamplerKind) -> SampleRequest {
    let mut request = request(model, count, sampler);
    request.sampling.clip_x0 = false;
    request
}

/// The largest change of an element between neighbours.
fn largest_change(frames: &[Vec<f32>]) -> f32 {
    let change = |pair: &[Vec<f32>]| pair[0].iter().zip(&pair[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    frames.windows(2).map(change).fold(0.0, f32::max)
}

const DETERMINISTIC: [SamplerKind; 3] = [SamplerKind::Ddim, SamplerKind::Heun, SamplerKind::Dpmpp2m];

#[test]
fn frames_between_seeds_are_smooth_and_end_with_the_seeds_own_images() {
    for model in models() {
        for sampler in DETERMINISTIC {
            let sample = |seed: u64| {
                let mut request = smooth_request(&model, 1, sampler);
                request.seed = seed;
                model.sample(&request).unwrap().remove(0)
            };
            let changes = [3, 9, 33, 129].map(|count| {
                let mut calls = (0, 0);
                let mut request = smooth_request(&model, count, sampler);
                request.batch = 50;
                let frames =
                    model.interpolate(Ends::Seeds(3, 4), &request, &mut |done, all| calls = (done, all)).unwrap();
                assert_eq!(frames.len(), count);
                assert!(frames[0] == sample(3) && frames[count - 1] == sample(4), "{sampler}, {count} frames");
                assert!(calls.0 == calls.1 && calls.0 > 0);
                largest_change(&frames)
            });
            assert!(changes.windows(2).all(|pair| pair[1] < 0.7 * pair[0]), "{sampler}: {changes:?}");
            assert!(changes[3] < 0.1 * changes[0], "{sampler}: {changes:?}");
        }
    }
}

#[test]
fn a_trained_models_frames_are_smooth_with_its_own_settings() {
    let model = Model::load("unet-fashion-small", &Context::cpu(), DType::F32).unwrap();
    let changes = [3, 9, 33].map(|count| {
        let mut request = request(&model, count, SamplerKind::Ddim);
        request.sampling.num_steps = 20;
        assert!(request.sampling.clip_x0 && request.sampling.guidance > 1.0);
        largest_change(&model.interpolate(Ends::Seeds(1, 4), &request, &mut |_, _| ()).unwrap())
    });
    assert!(changes.windows(2).all(|pair| pair[1] < 0.8 * pair[0]), "{changes:?}");
}

#[test]
fn frames_between_images_are_smooth_and_end_with_the_images() {
    let (from, to) = (image(1), image(2));
    for model in models() {
        for sampler in DETERMINISTIC {
            let changes = [3, 9, 33, 129].map(|count| {
                let request = smooth_request(&model, count, sampler);
                let mut calls = (0, 0);
                let ends = Ends::Images(&from, &to);
                let frames = model.interpolate(ends, &request, &mut |done, all| calls = (done, all)).unwrap();
                assert!(frames[0] == from && frames[count - 1] == to && calls.0 == calls.1);
                largest_change(&frames)
            });
            assert!(changes.windows(2).all(|pair| pair[1] < 0.7 * pair[0]), "{sampler}: {changes:?}");
        }
    }
}

#[test]
fn the_way_back_to_noise_leads_to_the_image_again() {
    // A network with exact ε: the data are one point, x_0 = 0.3 everywhere.
    for model in models() {
        let noise = NoiseSchedule::new(&model.info.config.diffusion).unwrap();
        let prediction = model.info.config.diffusion.prediction;
        let mut sampling = request(&model, 1, SamplerKind::Ddim).sampling;
        (sampling.guidance, sampling.clip_x0) = (1.0, false);
        let mut misses = Vec::new();
        for steps in [10, 40, 160] {
            sampling.num_steps = steps;
            let (back, there) = (
                Plan::inverted(&noise, prediction, &sampling).unwrap(),
                Plan::new(&noise, prediction, &sampling).unwrap(),
            );
            assert_eq!((back.steps(), there.times().len()), (steps, steps));
            let level_of = |plan: &Plan, input: f64| {
                plan.stages().iter().find(|stage| stage.time_input == input).map(|stage| stage.level).unwrap()
            };
            // Data with mean 0.3 and deviation 0.5.
            let run = |plan: &Plan, x: f64| {
                let mut state = [x];
                let predict = |x: &[f64], input: f64, _: bool, pred: &mut [f64]| {
                    let level = level_of(plan, input);
                    let variance = (level.alpha * 0.5).powi(2) + level.sigma.powi(2);
                    let surprise = x[0] - level.alpha * 0.3;
                    let (x0, eps) = (0.3 + level.alpha * 0.25 / variance * surprise, level.sigma / variance * surprise);
                    let (c_x, c_n) = level.target(prediction);
                    pred[0] = c_x * x0 + c_n * eps;
                };
                plan.run_host(&mut state, predict, |_, _| unreachable!("no noise"));
                state[0]
            };
            let latent = run(&back, 0.8);
            misses.push((run(&there, latent) - 0.8).abs());
            assert!((latent - 1.0).abs() < 0.5, "0.8 is one deviation above the mean, and so is its noise: {latent}");
        }
        assert!(misses[2] < 0.35 * misses[1] && misses[1] < 0.5 * misses[0], "first order: {misses:?}");
    }
}

#[test]
fn points_between_two_noises_are_as_long_as_they() {
    let length = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let noise = |k: usize| -> Vec<f32> {
        (0..3000).map(|i| engine::ops::host::normal::normal4([i as u32 * 77 + k as u32, 5, i as u32, 9])[0]).collect()
    };
    let (a, b) = (noise(1), noise(2));
    for t in [0.1, 0.5, 0.9] {
        let between = slerp(&a, &b, t);
        let expected = (1.0 - t) * length(&a) + t * length(&b);
        assert!((length(&between) / expected - 1.0).abs() < 0.02, "{t}: {} and {expected}", length(&between));
    }
    assert!(slerp(&a, &b, 0.0) == a && slerp(&a, &b, 1.0) == b);
    // Ends that are parallel or opposite have no arc.
    assert!(slerp(&a, &a, 0.3).iter().zip(&a).all(|(x, y)| (x - y).abs() < 1e-5));
    let opposite: Vec<f32> = a.iter().map(|x| -x).collect();
    assert!(slerp(&a, &opposite, 0.25).iter().all(|x| x.is_finite()));
    assert!(slerp(&[0.0; 4], &[1.0; 4], 0.5).iter().all(|x| x.is_finite()));
}

#[test]
fn strength_0_returns_the_image_and_1_ignores_it() {
    let given = image(1);
    for model in models() {
        for sampler in SamplerKind::ALL {
            let request = request(&model, 3, sampler);
            let vary = |image: &[f32], strength: f64| model.vary(image, strength, &request, &mut |_, _| ()).unwrap();
            assert!(vary(&given, 0.0).iter().all(|varied| *varied == given));
            let whole = vary(&given, 1.0);
            assert!(whole == model.sample(&request).unwrap(), "{sampler}");
            assert!(whole == vary(&image(2), 1.0));
            let (some, more) = (vary(&given, 0.2), vary(&given, 0.9));
            assert!(some[0] != some[1] && some[0] != given && some != more && some != vary(&image(2), 0.2));
            // For any batch size.
            let one = SampleRequest { batch: 1, ..request.clone() };
            assert!(model.vary(&given, 0.2, &one, &mut |_, _| ()).unwrap() == some);
        }
    }
    let model = model(&[]);
    for strength in [-0.1, 1.1, f64::NAN] {
        let error = model.vary(&given, strength, &request(&model, 1, SamplerKind::Ddim), &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().starts_with("strength: "), "{error}");
    }
}

#[test]
fn inpainting_keeps_known_pixels_exactly_and_fills_the_others() {
    let given = image(1);
    let free: Vec<bool> = (0..64).map(|at| (2..6).contains(&(at / 8)) && at % 8 < 5).collect();
    // Free pixels are never read.
    let hidden: Vec<f32> = given.iter().enumerate().map(|(at, x)| if free[at / 3] { 0.111 } else { *x }).collect();
    for model in models() {
        for sampler in SamplerKind::ALL {
            let request = request(&model, 3, sampler);
            let fill = |image: &[f32], rounds: usize| {
                model.inpaint(Inpaint { image, free: &free, rounds }, &request, &mut |_, _| ())
            };
            let filled = fill(&given, 1).unwrap();
            assert_eq!(filled.len(), 3);
            for image in &filled {
                for (at, x) in image.iter().enumerate() {
                    assert!(x.is_finite() && (free[at / 3] || x.to_bits() == given[at].to_bits()), "{sampler}: {at}");
                }
            }
            assert!(filled[0] != filled[1], "each result has its own noise");
            assert!(fill(&hidden, 1).unwrap() == filled, "{sampler}");
            let one = SampleRequest { batch: 1, ..request.clone() };
            let again = model.inpaint(Inpaint { image: &given, free: &free, rounds: 1 }, &one, &mut |_, _| ()).unwrap();
            assert!(again == filled, "{sampler}");
            let resampled = fill(&given, 3);
            if matches!(sampler, SamplerKind::Ddpm | SamplerKind::Ddim) {
                assert!(resampled.unwrap() != filled);
            } else {
                assert!(resampled.unwrap_err().to_string().starts_with("rounds: "));
            }
        }
        // All known, all free.
        let request = request(&model, 1, SamplerKind::Ddim);
        let fill = |free: &[bool]| model.inpaint(Inpaint { image: &given, free, rounds: 1 }, &request, &mut |_, _| ());
        assert!(fill(&[false; 64]).unwrap()[0] == given);
        assert!(fill(&[true; 64]).unwrap() == model.sample(&request).unwrap());
        assert!(fill(&[true; 63]).unwrap_err().to_string().contains("a mask of 63 pixels"));
    }
}

/// Means of blocks of `factor` x `factor` pixels of an image 8x8x3.
fn means(image: &[f32], factor: usize) -> Vec<f32> {
    let side = 8 / factor;
    let mut means = vec![0.0; side * side * 3];
    for (at, x) in image.iter().enumerate() {
        let (row, column, channel) = (at / 24, at / 3 % 8, at % 3);
        means[(row / factor * side + column / factor) * 3 + channel] += x / (factor * factor) as f32;
    }
    means
}

#[test]
fn upscaling_keeps_low_frequencies() {
    for model in models() {
        for (factor, sampler) in [2, 4].into_iter().flat_map(|f| SamplerKind::ALL.map(|s| (f, s))) {
            // Black and white occur too, where clamping could shift a mean.
            let mut small = picture(8 / factor, 8 / factor, 4).to_signed(3).unwrap();
            (small[0], small[1]) = (-1.0, 1.0);
            let request = request(&model, 2, sampler);
            let large = model.upscale(&small, factor, 1, &request, &mut |_, _| ()).unwrap();
            assert!(large[0] != large[1]);
            for image in &large {
                assert!(image.iter().all(|x| (-1.0..=1.0).contains(x)));
                let worst = means(image, factor).iter().zip(&small).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-5, "{sampler}, factor {factor}: {worst}");
                let flat = image.iter().zip(image[3..].iter()).all(|(a, b)| (a - b).abs() < 1e-3);
                assert!(!flat, "something is drawn within the blocks");
            }
        }
        let request = request(&model, 1, SamplerKind::Ddim);
        let upscale = |small: &[f32], factor| model.upscale(small, factor, 1, &request, &mut |_, _| ());
        assert!(upscale(&[0.0; 48], 4).unwrap_err().to_string().contains("48 values are given where 2x2x3"));
        assert!(upscale(&[0.0; 48], 3).unwrap_err().to_string().starts_with("factor: "));
    }
}

/// A folder with a model file and pictures of its size.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        model(&[]).save(place.path("model.safetensors")).unwrap();
        for seed in [1, 2] {
            write_png(place.path(&format!("{seed}.png")), &picture(8, 8, seed), &[]).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn engine(&self, arguments: &str) -> Output {
        let mut words = arguments.split(' ');
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        command.current_dir(self.0.path()).env_remove("ENGINE_THREADS").arg(words.next().unwrap());
        if !arguments.starts_with("sample") || !arguments.contains("--model") {
            command.args(["--model", "model.safetensors", "--device", "cpu"]);
        }
        command.args(words).output().unwrap()
    }

    fn succeed(&self, arguments: &str) -> String {
        let output = self.engine(arguments);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one error line.
    fn fault(&self, arguments: &str) -> String {
        let output = self.engine(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments}: succeeded");
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(lines.len() == 1 && !text.contains("panicked"), "{text}");
        lines[0].to_string()
    }

    fn pixels(&self, name: &str) -> Vec<u8> {
        read_png(self.path(name)).unwrap().0.into_pixels()
    }
}

/// Frames of an animated PNG.
fn frames_of(path: &Path) -> u32 {
    let reader = png::Decoder::new(std::io::BufReader::new(fs::File::open(path).unwrap())).read_info().unwrap();
    reader.info().animation_control().unwrap().num_frames
}

#[test]
fn the_command_line_interpolates_into_strips_and_animations() {
    let place = Place::new();
    let said = place.succeed(
        "interpolate --seeds 3 4 --class b --frames 5 --quiet --out strip.png --out film.gif --out film.apng --out frames/ \
         --out frames.npy --bounce",
    );
    assert!(said.is_empty(), "{said}");
    assert_eq!(frames_of(&place.path("film.apng")), 8);
    assert!(fs::read(place.path("film.gif")).unwrap().starts_with(b"GIF89a"));
    let strip = read_png(place.path("strip.png")).unwrap().0;
    assert_eq!((strip.width(), strip.height()), (5 * 64 + 6 * 4, 64 + 8));
    for (seed, frame) in [(3, "frames/00000.png"), (4, "frames/00004.png")] {
        place.succeed(&format!("sample --quiet --count 1 --class b --seed {seed} --out sample-{seed}/"));
        let sample = fs::read_dir(place.path(&format!("sample-{seed}"))).unwrap().next().unwrap().unwrap().path();
        assert_eq!(read_png(sample).unwrap().0.pixels(), place.pixels(frame));
    }
    let said = place.succeed("interpolate --images 1.png 2.png --frames 4 --out between/ --out loop.gif --bounce");
    assert!(said.contains("wrote between/: 4 frames in ") && said.contains("wrote loop.gif: 6 frames in "), "{said}");
    assert!(place.pixels("between/00000.png") == place.pixels("1.png"));
    assert!(place.pixels("between/00003.png") == place.pixels("2.png"));

    for (arguments, told) in [
        ("interpolate --seeds 1 2 --frames 1 --out x.png", "--frames: 1 frame; give 2 or more"),
        ("interpolate --seeds 1 2 --sampler ddpm --out x.png", "--sampler: the sampler adds noise"),
        ("interpolate --seeds 1 2 --out x.bmp", "--out: x.bmp is not a supported kind of file"),
        ("interpolate --seeds 1 2 --out 1.png", "1.png: already exists"),
        ("interpolate --seeds 1 2 --out between/", "between/00000.png: already exists"),
        ("interpolate --images 1.png no.png --out x.png", "no.png: cannot open"),
        ("interpolate --seeds 1 2 --class z --out x.png", "--class: the model has no class `z`"),
    ] {
        let message = place.fault(arguments);
        assert!(message.contains(told), "{arguments}: {message}");
        assert!(!place.path("x.png").exists());
    }
    assert_eq!(place.pixels("1.png"), picture(8, 8, 1).pixels());
}

#[test]
fn the_command_line_edits_given_images() {
    let place = Place::new();
    // Vary: from the image itself to one independent of it.
    let said = place.succeed("vary --image 1.png --strength 0 --out same.png");
    assert!(said.starts_with("wrote same.png: 1 image of strength 0 in "), "{said}");
    assert!(place.pixels("same.png") == place.pixels("1.png"));
    place.succeed("vary --image 1.png --strength 1 --class a --seed 9 --out new.png");
    place.succeed("sample --quiet --count 1 --class a --seed 9 --out sample/");
    let sample = fs::read_dir(place.path("sample")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(read_png(sample).unwrap().0.pixels(), place.pixels("new.png"));
    let (_, texts) = read_png(place.path("new.png")).unwrap();
    let text = texts.iter().find(|(keyword, _)| keyword == "engine.edit").unwrap();
    let parameters: serde_json::Value = serde_json::from_str(&text.1).unwrap();
    assert_eq!((parameters["command"].as_str(), parameters["seed"].as_u64()), (Some("vary"), Some(9)));

    // Inpaint: the left half is free.
    let mask: Vec<u8> = (0..64).map(|at| if at % 8 < 4 { 255 } else { 0 }).collect();
    write_png(place.path("mask.png"), &Image::new(8, 8, 1, mask.clone()).unwrap(), &[]).unwrap();
    write_png(place.path("black.png"), &Image::new(8, 8, 1, vec![0; 64]).unwrap(), &[]).unwrap();
    write_png(place.path("small.png"), &picture(4, 4, 5), &[]).unwrap();
    place.succeed("inpaint --image 1.png --mask mask.png --sampler ddim --resample 2 --out filled.png");
    let (given, filled) = (place.pixels("1.png"), place.pixels("filled.png"));
    let kept = (0..192).all(|at| mask[at / 3] == 255 || given[at] == filled[at]);
    assert!(kept && given != filled);
    place.succeed("inpaint --image 1.png --mask mask.png --count 3 --out filled.npy");
    place.succeed("inpaint --image 1.png --mask mask.png --count 3 --out many/");
    assert_eq!(fs::read_dir(place.path("many")).unwrap().count(), 3);

    // Upscale: in the file, too, a block's mean equals the given pixel up to rounding.
    place.succeed("upscale --image small.png --factor 2 --out large.png");
    let (small, large) = (place.pixels("small.png"), place.pixels("large.png"));
    for (at, &wanted) in small.iter().enumerate() {
        let (row, column, channel) = (at / 12, at / 3 % 4, at % 3);
        let pixel = |k: usize| f64::from(large[((2 * row + k / 2) * 8 + 2 * column + k % 2) * 3 + channel]);
        let mean = (0..4).map(pixel).sum::<f64>() / 4.0;
        assert!((mean - f64::from(wanted)).abs() <= 0.501, "{at}: {mean} and {wanted}");
    }

    for (arguments, told) in [
        ("inpaint --image 1.png --mask small.png --out x.png", "small.png: this mask is 4x4 pixels, the image 8x8"),
        ("inpaint --image 1.png --mask black.png --out x.png", "black.png: this mask has no white area"),
        ("inpaint --image 1.png --mask no.png --out x.png", "no.png: cannot open"),
        ("inpaint --image 1.png --mask mask.png --resample 0 --out x.png", "--resample: "),
        ("inpaint --image 1.png --mask mask.png --out filled.png", "filled.png: already exists"),
        ("upscale --image small.png --factor 3 --out x.png", "--factor: "),
        ("vary --image 1.png --strength 2 --out x.png", "--strength: a strength of 2 is outside [0, 1]"),
        ("vary --image 1.png --count 0 --out x.png", "--count: 0 images"),
        ("vary --image 1.png --steps 0 --out x.png", "0 denoising steps"),
        ("vary --image model.safetensors --out x.png", "model.safetensors: is a safetensors file, not a picture"),
        ("vary --image 1.png --out x.gif", "--out: x.gif is an animation format"),
    ] {
        let message = place.fault(arguments);
        assert!(message.contains(told), "{arguments}: {message}");
        assert!(!place.path("x.png").exists());
    }
    assert_eq!(place.pixels("filled.png"), filled);
}

#[test]
fn given_images_of_every_form_and_size_are_fitted_and_told() {
    let place = Place::new();
    let told = |arguments: &str, notes: &[&str]| {
        let output = place.engine(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments}: {text}");
        notes.iter().for_each(|note| assert!(text.contains(note), "{arguments}: {text:?} lacks {note:?}"));
    };
    // A JPEG of another size and a grey picture with transparent pixels.
    let photo: Vec<u8> = (0..20 * 12 * 3).map(|at| (at % 200) as u8).collect();
    let mut bytes = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new(&mut bytes);
    image::ImageEncoder::write_image(encoder, &photo, 20, 12, image::ExtendedColorType::Rgb8).unwrap();
    fs::write(place.path("photo.jpg"), &bytes).unwrap();
    fs::write(place.path("cut.jpg"), &bytes[..bytes.len() / 2]).unwrap();
    let mut bytes = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    image::ImageEncoder::write_image(encoder, &[40, 0].repeat(64), 8, 8, image::ExtendedColorType::La8).unwrap();
    fs::write(place.path("clear.png"), &bytes).unwrap();
    told(
        "vary --image photo.jpg --strength 0 --out a.png",
        &["note: photo.jpg: resized from 12x20 (height x width) to 8x8"],
    );
    told("vary --image photo.jpg --strength 0 --fit pad --background black --out b.png", &["resized from 12x20"]);
    assert_eq!(place.pixels("b.png")[..3], [0; 3], "the padding");
    let notes = ["note: clear.png: composited on the background, converted from grey to RGB"];
    told("vary --image clear.png --strength 0 --out white.png", &notes);
    assert_eq!(place.pixels("white.png")[..3], [255; 3]);
    // On a coloured background it becomes RGB.
    told(
        "vary --image clear.png --strength 0 --background 102030 --out c.png",
        &["clear.png: composited on the background"],
    );
    assert_eq!(place.pixels("c.png")[..3], [16, 32, 48]);
    // A mask for the original photo is fitted like the photo.
    let mask: Vec<u8> = (0..240).map(|at| if at % 20 < 8 { 255 } else { 0 }).collect();
    write_png(place.path("mask.png"), &Image::new(20, 12, 1, mask).unwrap(), &[]).unwrap();
    told("inpaint --image photo.jpg --mask mask.png --out d.png", &["resized"]);
    let (kept, filled) = (place.pixels("a.png"), place.pixels("d.png"));
    assert!((0..192).all(|at| at / 3 % 8 < 4 || kept[at] == filled[at]) && kept != filled);
    told("upscale --image 1.png --factor 2 --out e.png", &["note: 1.png: resized from 8x8 to 4x4"]);
    told("interpolate --images 1.png photo.jpg --frames 2 --out f/", &["note: photo.jpg: resized"]);
    let message = place.fault("vary --image cut.jpg --out x.png");
    assert!(message.contains("cut.jpg: is cut short"), "{message}");
}
