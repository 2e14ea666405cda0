//! Reads the goldens of `tools/goldens`, and generates the weights and inputs that they do not store.
//!
//! `tools/goldens/README.md` describes the files and how the values come from Philox.

// Each test file compiles this module separately and uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use engine::nn::Parameters;
use engine::rng::{Philox, Purpose};
use engine::tensor::{Context, DType};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

pub const INPUT: u32 = 65536;
const TIME: u32 = 65537;
const LABEL: u32 = 65538;
pub const COTANGENT: u32 = 65539;

/// The radius of weights that are not product matrices.
const SMALL: f32 = 0.1;

/// The path of a golden.
pub fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)
}

/// A stored tensor, whatever its dtype, in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

/// A golden with all values: a safetensors file of f64, f32, i64 or i32.
pub struct Whole {
    pub tensors: BTreeMap<String, Tensor>,
    pub metadata: BTreeMap<String, String>,
}

impl Whole {
    pub fn load(file: &str) -> Self {
        let bytes = std::fs::read(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
        let tensors = file.iter().map(|(name, view)| {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F64 => data.as_chunks().0.iter().map(|x| f64::from_le_bytes(*x)).collect(),
                Dtype::F32 => data.as_chunks().0.iter().map(|x| f64::from(f32::from_le_bytes(*x))).collect(),
                Dtype::I64 => data.as_chunks().0.iter().map(|x| i64::from_le_bytes(*x) as f64).collect(),
                Dtype::I32 => data.as_chunks().0.iter().map(|x| f64::from(i32::from_le_bytes(*x))).collect(),
                other => panic!("{name}: no golden is of dtype {other:?}"),
            };
            (name.to_owned(), Tensor { shape: view.shape().to_vec(), values })
        });
        Self { tensors: tensors.collect(), metadata }
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the golden has no tensor {name}"))
    }
}

/// `len` numbers in (-radius, radius).
pub fn symmetric(seed: u64, item: u32, len: usize, radius: f32) -> Vec<f32> {
    uniform(seed, item, len).into_iter().map(|u| (2.0 * u - 1.0) * radius).collect()
}

fn uniform(seed: u64, item: u32, len: usize) -> Vec<f32> {
    let philox = Philox::new(seed);
    (0..len.div_ceil(4) as u32).flat_map(|block| philox.uniform4(block, item, 0, Purpose::Probe)).take(len).collect()
}

fn bits(seed: u64, item: u32, step: u32, len: usize) -> impl Iterator<Item = u32> {
    let philox = Philox::new(seed);
    (0..len.div_ceil(4) as u32).flat_map(move |block| philox.bits4(block, item, step, Purpose::Probe)).take(len)
}

/// The values of parameter `number`, as in the reference model.
pub fn parameter(seed: u64, number: usize, name: &str, shape: &[usize]) -> Vec<f32> {
    let (item, len) = (number as u32, shape.iter().product());
    if name.ends_with(".bias") || name == "position" || name == "class.embedding" {
        symmetric(seed, item, len, SMALL)
    } else if shape.len() == 1 {
        symmetric(seed, item, len, SMALL).into_iter().map(|x| 1.0 + x).collect()
    } else {
        let fan_in: usize = shape[1..].iter().product();
        symmetric(seed, item, len, (1.0 / (fan_in as f64).sqrt()) as f32)
    }
}

/// Sets every parameter of a model to [`parameter`]'s values.
pub fn place(parameters: &Parameters, seed: u64) {
    let mut flat = vec![0f32; parameters.flat_len()];
    for (number, spec) in parameters.specs().iter().enumerate() {
        let values = parameter(seed, number, &spec.name, spec.shape.sizes());
        parameters.place(&mut flat, &spec.name, &values).unwrap();
    }
    parameters.set_flat(&flat).unwrap();
}

/// A tensor of images, times or their gradients: f32, except for the oracle.
pub fn floats(context: &Context, precision: DType, values: &[f32], shape: &[usize]) -> engine::tensor::Tensor {
    let dtype = precision.exact();
    let tensor = context.persistent(shape, dtype).unwrap();
    tensor.upload_f64(&values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()).unwrap();
    tensor
}

/// The inputs of the reference model.
pub struct Inputs {
    /// `[B, H, W, C]`.
    pub input: Vec<f32>,
    /// `[B]`.
    pub time: Vec<f32>,
    /// `[B]`.
    pub label: Vec<i32>,
    /// `[B, H, W, C]`.
    pub cotangent: Vec<f32>,
}

/// The inputs of a golden with images of `image_len` values and `num_labels` labels, including the null label.
pub fn inputs(seed: u64, batch: usize, image_len: usize, num_labels: usize) -> Inputs {
    let whole =
        |item, count: usize| uniform(seed, item, batch).into_iter().map(move |u| (f64::from(u) * count as f64).floor());
    Inputs {
        input: symmetric(seed, INPUT, batch * image_len, 1.75),
        time: whole(TIME, 1000).map(|t| t as f32).collect(),
        label: whole(LABEL, num_labels).map(|label| label as i32).collect(),
        cotangent: symmetric(seed, COTANGENT, batch * image_len, 1.0),
    }
}

/// A golden with norms, projections and samples: of the parameters' gradients, `output` and the gradient of `input`.
#[derive(Deserialize)]
pub struct Projected {
    /// The `model` section of the configuration.
    pub model: serde_json::Value,
    pub seed: u64,
    pub batch: usize,
    /// The number of parameter values.
    pub parameters: usize,
    pub time: Vec<f32>,
    pub label: Vec<i32>,
    /// In the order of their indices.
    pub tensors: Vec<Summary>,
}

/// The stored data of one tensor.
#[derive(Deserialize)]
pub struct Summary {
    pub name: String,
    pub shape: Vec<usize>,
    pub norm: f64,
    pub projections: Vec<f64>,
    pub samples: Vec<f64>,
}

impl Projected {
    pub fn load(file: &str) -> Self {
        let text = std::fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// The error of `values` against tensor `name`: the largest relative error of its norm, its projections and its samples.
    ///
    /// Norm and projections are relative to D = max(‖reference‖, 1e-3 of the median gradient norm): some gradients, such as those
    /// of key biases, are zero in exact arithmetic. A projection's error is about the norm of the tensor's. A sample's is relative
    /// to the largest sample or D/√size, whichever is larger.
    ///
    /// # Panics
    /// If there is no such tensor or `values` has another length.
    pub fn error(&self, name: &str, values: &[f64]) -> f64 {
        let number = self.tensors.iter().position(|tensor| tensor.name == name);
        let number = number.unwrap_or_else(|| panic!("the golden has no tensor {name}"));
        let reference = &self.tensors[number];
        let size = values.len();
        assert_eq!(size, reference.shape.iter().product::<usize>(), "{name}: not {:?}", reference.shape);

        let scale = reference.norm.max(1e-3 * self.median_gradient_norm());
        let norm = values.iter().map(|x| x * x).sum::<f64>().sqrt();
        let mut error = (norm - reference.norm).abs() / scale;
        for (step, projection) in (1..).zip(&reference.projections) {
            let signs = bits(self.seed, number as u32, step, size);
            let ours: f64 = values.iter().zip(signs).map(|(x, bits)| if bits >> 31 == 1 { *x } else { -x }).sum();
            error = error.max((ours - projection).abs() / scale);
        }
        let largest = reference.samples.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        let scale = largest.max(scale / (size as f64).sqrt());
        let step = 1 + reference.projections.len() as u32;
        let places = bits(self.seed, number as u32, step, reference.samples.len());
        for (place, sample) in places.zip(&reference.samples) {
            let ours = values[((u64::from(place) * size as u64) >> 32) as usize];
            error = error.max((ours - sample).abs() / scale);
        }
        // NaN compares as no error: make it one.
        if norm.is_finite() { error } else { f64::INFINITY }
    }

    /// The median of the parameters' gradients' norms.
    pub fn median_gradient_norm(&self) -> f64 {
        let gradients = self.tensors.iter().filter(|tensor| tensor.name != "output" && tensor.name != "input");
        let mut norms: Vec<f64> = gradients.map(|tensor| tensor.norm).collect();
        norms.sort_by(f64::total_cmp);
        norms[norms.len() / 2]
    }
}

/// ‖ours - reference‖ relative to max(‖reference‖, `floor`), infinite where ours is not finite.
pub fn relative_error(ours: &[f64], reference: &[f64], floor: f64) -> f64 {
    assert_eq!(ours.len(), reference.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut ours.iter().zip(reference).map(|(x, y)| x - y));
    let error = difference / norm(&mut reference.iter().copied()).max(floor);
    if difference == 0.0 {
        0.0
    } else if error.is_finite() {
        error
    } else {
        f64::INFINITY
    }
}
