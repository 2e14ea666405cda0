//! Residual networks against torchvision (`tools/goldens/resnet.py`), and their derived networks.

use crate::emulator;
use std::io::Read;
use std::path::PathBuf;

use crate::common::golden::{self, Whole};
use engine::models::resnet::torchvision::Pretrained;
use engine::models::resnet::{Resnet, ResnetConfig, Stem};
use engine::nn::{Builder, Parameters, Role, Scope};
use engine::ops::control::Control;
use engine::ops::instruments::poisoned;
use engine::tape::{Accumulate, Tape};
use engine::tensor::{Context, DType, Device};
use engine::weights::WeightFile;

/// A training step's forward and backward, then inference with the updated statistics: the largest error.
fn training_error(file: &str, device: Device, precision: DType) -> (f64, String) {
    let golden = Whole::load(file);
    let config: serde_json::Value = serde_json::from_str(&golden.metadata["model"]).unwrap();
    let config: engine::models::ModelConfig = serde_json::from_value(config).unwrap();
    let engine::models::ModelConfig::Resnet(config) = config else { panic!("{file} is not a residual network's") };
    let (seed, batch): (u64, usize) =
        (golden.metadata["seed"].parse().unwrap(), golden.metadata["batch"].parse().unwrap());
    let context = poisoned(device);
    let mut builder = Builder::default();
    let network = Resnet::new(&mut builder, &config).unwrap();
    let parameters = Parameters::new(&context, builder, precision).unwrap();
    golden::place(&parameters, seed);
    let gradients = parameters.flat_zeros().unwrap();
    let [h, w, c] = network.image_shape();
    let shape = [batch, h, w, c];
    let images =
        golden::floats(&context, precision, &golden::symmetric(seed, golden::INPUT, batch * h * w * c, 1.75), &shape);
    let cotangent = golden::symmetric(seed, golden::COTANGENT, batch * config.num_classes, 1.0);

    let tape = Tape::new(&context);
    let control = Control::buffer(&context).unwrap();
    let s = parameters.bind(&tape, Some((&gradients, Accumulate::Write))).unwrap().in_training(&control, 0);
    let x = tape.leaf(&images);
    let output = network.forward(&s, &x).unwrap();
    let cotangent = golden::floats(&context, precision, &cotangent, &[batch, config.num_classes]);
    tape.backward(&output, cotangent).unwrap();
    let mut results = vec![
        ("output".to_string(), output.tensor().to_f64().unwrap()),
        ("input_gradient".to_string(), tape.gradient(&x).unwrap().to_f64().unwrap()),
    ];
    let flat = gradients.to_f64().unwrap();
    for spec in parameters.trained_specs() {
        results.push((format!("gradient.{}", spec.name), flat[spec.offset..][..spec.shape.len()].to_vec()));
    }
    let tape = Tape::inference(&context);
    let s = parameters.bind(&tape, None).unwrap();
    let inference = network.forward(&s, &tape.constant(&images)).unwrap();
    results.push(("inference".into(), inference.tensor().to_f64().unwrap()));
    results.extend(statistics(&parameters));

    let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut norms: Vec<f64> =
        golden.tensors.iter().filter(|(name, _)| name.starts_with("gradient.")).map(|(_, t)| norm(&t.values)).collect();
    norms.sort_by(f64::total_cmp);
    let floor = 1e-3 * norms[norms.len() / 2];
    assert_eq!(results.len(), golden.tensors.len());
    let error = |(name, values): &(String, Vec<f64>)| {
        (golden::relative_error(values, &golden.get(name).values, floor), name.clone())
    };
    results.iter().map(error).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

/// The running statistics, by the golden's names.
fn statistics(parameters: &Parameters) -> Vec<(String, Vec<f64>)> {
    let flat = parameters.to_f64().unwrap();
    let buffers = parameters.specs().iter().filter(|spec| spec.role == Role::Buffer);
    buffers.map(|spec| (format!("after.{}", spec.name), flat[spec.offset..][..spec.shape.len()].to_vec())).collect()
}

#[test]
fn training_steps_agree_with_torchvisions_blocks() {
    for file in ["resnet.safetensors", "resnet-grey.safetensors"] {
        let (error, name) = training_error(file, Device::Cpu, DType::F64);
        assert!(error <= 1e-10, "{file} f64: {name} is off by {error:.2e}");
        let (error, name) = training_error(file, Device::Cpu, DType::F32);
        assert!(error <= 1e-5, "{file} f32: {name} is off by {error:.2e}");
    }
}

#[test]
fn training_steps_agree_with_torchvisions_blocks_on_the_emulator() {
    for file in ["resnet.safetensors", "resnet-grey.safetensors"] {
        let device = Device::Accelerator(emulator::device());
        let (error, name) = training_error(file, device, DType::F32);
        assert!(error <= 1e-5, "{file} f32: {name} is off by {error:.2e}");
    }
}

/// A file of torch.save, decompressed into `folder`.
fn unpacked(folder: &tempfile::TempDir, file: &str) -> PathBuf {
    let packed = std::fs::File::open(golden::path(&format!("{file}.gz"))).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    let path = folder.path().join(file);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The network of `pretrained` on images of another size.
fn loaded(context: &Context, pretrained: &Pretrained, image_size: usize) -> (Resnet, Parameters) {
    let config = ResnetConfig { image_size: image_size.into(), ..pretrained.config.clone() };
    let mut builder = Builder::default();
    let network = Resnet::new(&mut builder, &config).unwrap();
    let parameters = Parameters::new(context, builder, DType::F32).unwrap();
    let mut flat = vec![0f32; parameters.flat_len()];
    for spec in parameters.specs() {
        parameters.place(&mut flat, &spec.name, pretrained.array(&spec.name).unwrap()).unwrap();
    }
    parameters.set_flat(&flat).unwrap();
    (network, parameters)
}

fn scope<'t>(tape: &'t Tape, parameters: &Parameters) -> Scope<'t> {
    parameters.bind(tape, None).unwrap()
}

fn assert_close(what: &str, found: &[f32], expected: &[f64]) {
    let found: Vec<f64> = found.iter().map(|&x| f64::from(x)).collect();
    let error = golden::relative_error(&found, expected, 0.0);
    assert!(error <= 1e-5, "{what} are off by {error:.2e}");
}

#[test]
fn resnet18_of_torchvision_gives_its_features_and_logits() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Whole::load("resnet18.safetensors");
    let images = golden::symmetric(78, golden::INPUT, 2 * 64 * 64 * 3, 1.0);
    let context = Context::cpu();
    let zip = Pretrained::of_torchvision(&WeightFile::open(unpacked(&folder, "resnet18.pth")).unwrap()).unwrap();
    let legacy =
        Pretrained::of_torchvision(&WeightFile::open(unpacked(&folder, "resnet18-legacy.pth")).unwrap()).unwrap();
    assert_eq!((&zip.config.blocks, zip.config.stem), (&vec![2, 2, 2, 2], Stem::Imagenet));
    assert_eq!((zip.config.num_classes, zip.config.image_size), (10, 224.into()));
    for pretrained in [&zip, &legacy] {
        let (network, parameters) = loaded(&context, pretrained, 64);
        let tape = Tape::inference(&context);
        let x = tape.constant(&context.tensor(&images, [2, 64, 64, 3]).unwrap());
        let logits = network.forward(&scope(&tape, &parameters), &x).unwrap();
        assert_close("logits", &logits.tensor().download::<f32>().unwrap(), &golden.get("logits").values);
    }
    // The stem for small images, on the upper left quarters.
    let small = zip.adapted(Stem::Small, 3).unwrap();
    let (network, parameters) = loaded(&context, &small, 32);
    let quarter =
        |image: &[f32]| -> Vec<f32> { image.chunks(64 * 3).take(32).flat_map(|row| row[..32 * 3].to_vec()).collect() };
    let images: Vec<f32> = images.chunks(64 * 64 * 3).flat_map(quarter).collect();
    let tape = Tape::inference(&context);
    let x = tape.constant(&context.tensor(&images, [2, 32, 32, 3]).unwrap());
    let s = scope(&tape, &parameters);
    let logits = network.forward(&s, &x).unwrap();
    assert_close("small logits", &logits.tensor().download::<f32>().unwrap(), &golden.get("small_logits").values);
    let features = network.features(&s, &x, 2).unwrap();
    assert_eq!(features.sizes(), [2, 16, 16, 128]);
    let features = features.tensor().download::<f32>().unwrap();
    let every = |b: usize| (0..16).step_by(5).flat_map(move |y| (0..16).step_by(5).map(move |x| (b * 16 + y) * 16 + x));
    let chosen: Vec<f32> = (0..2).flat_map(every).flat_map(|pixel| features[pixel * 128..][..128].to_vec()).collect();
    assert_close("features", &chosen, &golden.get("small_features").values);

    // Grey images: the colours are summed; nothing else changes.
    let grey = small.clone().adapted(Stem::Small, 1).unwrap();
    let (colours, sums) = (small.array("conv1.weight").unwrap(), grey.array("conv1.weight").unwrap());
    assert_eq!((colours.len(), sums.len()), (64 * 9 * 3, 64 * 9));
    assert_eq!(sums[7], colours[21] + colours[22] + colours[23]);
    let fault = |result: engine::Result<Pretrained>| result.err().unwrap().to_string();
    assert!(fault(grey.clone().adapted(Stem::Small, 3)).contains("1 colour channels"));
    assert!(fault(small.adapted(Stem::Imagenet, 3)).contains("7x7"));
}

#[test]
fn a_file_of_another_network_is_refused_with_all_that_is_wrong() {
    use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
    let folder = tempfile::tempdir().unwrap();
    // A network of one layer of one block, complete.
    let whole: Vec<(&str, Vec<usize>)> = vec![
        ("conv1.weight", vec![4, 3, 3, 3]),
        ("bn1.weight", vec![4]),
        ("bn1.bias", vec![4]),
        ("bn1.running_mean", vec![4]),
        ("bn1.running_var", vec![4]),
        ("layer1.0.conv1.weight", vec![4, 4, 3, 3]),
        ("layer1.0.bn1.weight", vec![4]),
        ("layer1.0.bn1.bias", vec![4]),
        ("layer1.0.bn1.running_mean", vec![4]),
        ("layer1.0.bn1.running_var", vec![4]),
        ("layer1.0.conv2.weight", vec![4, 4, 3, 3]),
        ("layer1.0.bn2.weight", vec![4]),
        ("layer1.0.bn2.bias", vec![4]),
        ("layer1.0.bn2.running_mean", vec![4]),
        ("layer1.0.bn2.running_var", vec![4]),
        ("fc.weight", vec![7, 4]),
        ("fc.bias", vec![7]),
    ];
    let zeros = vec![0u8; 4 * 4 * 4 * 9];
    let read = |arrays: &[(&str, Vec<usize>)]| {
        let views = arrays.iter().map(|(name, shape)| {
            let bytes = 4 * shape.iter().product::<usize>();
            (name.to_string(), TensorView::new(Dtype::F32, shape.clone(), &zeros[..bytes]).unwrap())
        });
        let path = folder.path().join("w.safetensors");
        serialize_to_file(views, None, &path).unwrap();
        Pretrained::of_torchvision(&WeightFile::open(&path).unwrap())
    };
    let found = read(&whole).unwrap();
    assert_eq!((found.config.blocks, found.config.widths, found.config.num_classes), (vec![1], vec![4], 7));
    let without = |name: &str| whole.iter().filter(|(other, _)| *other != name).cloned().collect::<Vec<_>>();
    let fault = |arrays: &[(&str, Vec<usize>)]| read(arrays).err().unwrap().to_string();
    let message = fault(&without("layer1.0.bn2.running_var"));
    assert!(message.contains("1 missing: layer1.0.bn2.running_var"), "{message}");
    let mut more = whole.clone();
    more.push(("head.weight", vec![4]));
    assert!(fault(&more).contains("1 unexpected: head.weight"));
    let mut wrong = without("bn1.bias");
    wrong.push(("bn1.bias", vec![3]));
    assert!(fault(&wrong).contains("1 of another shape: bn1.bias (has [3], expected [4])"));
    assert!(fault(&without("fc.weight")).contains("lacks conv1.weight or fc.weight"));
    let mut bottleneck = whole.clone();
    bottleneck.push(("layer1.0.conv3.weight", vec![4, 4, 1, 1]));
    assert!(fault(&bottleneck).contains("bottleneck"));
}
