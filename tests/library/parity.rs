//! Single ops against PyTorch in f64 (`tools/goldens/ops.py`): forward and every gradient, on the CPU in f64 and f32.

use crate::common::golden::{Whole, relative_error};
use engine::config::{Config, LrSchedule};
use engine::ops::attention::attention;
use engine::ops::balanced_loss::{BalancedLoss, balanced_loss};
use engine::ops::batch_norm::{BatchNorm, Running, Statistics, batch_norm};
use engine::ops::conv2d::{Geometry, conv2d};
use engine::ops::cross_entropy::cross_entropy;
use engine::ops::embedding::embedding;
use engine::ops::group_norm_silu::{GroupNormSilu, group_norm_silu};
use engine::ops::layer_norm::{Affine, layer_norm};
use engine::ops::linear::{Activation, Gate, gated_linear, linear};
use engine::ops::linear_attention::linear_attention;
use engine::ops::mse_loss::mse_loss;
use engine::ops::patchify::patchify;
use engine::ops::pool::{Window, global_average_pool, max_pool};
use engine::ops::qk_norm::qk_norm;
use engine::ops::timestep_embedding::timestep_embedding;
use engine::tape::{Tape, Var};
use engine::tensor::{Context, DType};
use engine::train::learning_rate;

/// One op's golden in one dtype.
struct Golden<'a> {
    file: &'a Whole,
    op: &'a str,
    tape: Tape,
    dtype: DType,
}

impl Golden<'_> {
    fn var(&self, values: &[f64], shape: &[usize]) -> Var {
        let tensor = self.tape.context().persistent(shape, self.dtype).unwrap();
        tensor.upload_f64(values).unwrap();
        self.tape.leaf(&tensor)
    }

    fn input(&self, name: &str) -> Var {
        let stored = self.file.get(&format!("{}.{name}", self.op));
        self.var(&stored.values, &stored.shape)
    }

    /// Compares the output and the gradients of `inputs` with the golden.
    fn check(&self, output: &Var, inputs: &[(&str, &Var)]) {
        let stored = |name: &str| &self.file.get(&format!("{}.{name}", self.op)).values;
        let cotangent = output.context().persistent(output.shape(), output.dtype()).unwrap();
        cotangent.upload_f64(stored("cotangent")).unwrap();
        self.tape.backward(output, cotangent).unwrap();
        let allowed = if self.dtype == DType::F64 { 1e-12 } else { 2e-6 };
        let mut results = vec![("output".to_string(), output.tensor().to_f64().unwrap())];
        for (name, var) in inputs {
            results.push((format!("grad.{name}"), self.tape.gradient(var).unwrap().to_f64().unwrap()));
        }
        for (name, values) in results {
            let error = relative_error(&values, stored(&name), 1e-3);
            assert!(error <= allowed, "{} {}: {name} is off by {error:.2e}", self.op, self.dtype);
        }
    }
}

/// Runs `check` on a golden in f64 and in f32.
fn each(op: &str, check: impl Fn(&Golden)) {
    let file = Whole::load("ops.safetensors");
    for dtype in [DType::F64, DType::F32] {
        check(&Golden { file: &file, op, tape: Tape::new(&Context::cpu()), dtype });
    }
}

#[test]
fn layer_norm_agrees() {
    each("layer_norm", |golden| {
        let (x, weight, bias) = (golden.input("x"), golden.input("weight"), golden.input("bias"));
        let y = layer_norm(&golden.tape, &x, Affine::Parameters { weight: &weight, bias: &bias }, 1e-5).unwrap();
        golden.check(&y, &[("x", &x), ("weight", &weight), ("bias", &bias)]);
    });
}

#[test]
fn modulated_layer_norm_agrees() {
    each("layer_norm_modulated", |golden| {
        let stored = |name: &str| golden.file.get(&format!("layer_norm_modulated.{name}"));
        let (shift, scale) = (stored("shift"), stored("scale"));
        let [samples, width] = [shift.shape[0], shift.shape[1]];
        // The op takes both as columns of one matrix.
        let rows = |name: &str, other: &str| -> Vec<f64> {
            let pairs = stored(name).values.chunks(width).zip(stored(other).values.chunks(width));
            pairs.flat_map(|(a, b)| [a, b].concat()).collect()
        };
        assert_eq!(scale.shape, shift.shape);
        let (x, matrix) = (golden.input("x"), golden.var(&rows("shift", "scale"), &[samples, 2 * width]));
        let affine = Affine::Modulation { matrix: &matrix, shift: 0, scale: width };
        let y = layer_norm(&golden.tape, &x, affine, 1e-5).unwrap();
        golden.check(&y, &[("x", &x)]);
        let gradient = golden.tape.gradient(&matrix).unwrap().to_f64().unwrap();
        let error = relative_error(&gradient, &rows("grad.shift", "grad.scale"), 1e-3);
        assert!(error <= 2e-6, "gradient of the modulation is off by {error:.2e}");
    });
}

#[test]
fn group_norm_agrees() {
    for (op, groups, silu) in [("group_norm", 3, false), ("group_norm_silu", 4, true)] {
        each(op, |golden| {
            let (x, weight, bias) = (golden.input("x"), golden.input("weight"), golden.input("bias"));
            let norm = GroupNormSilu { groups, epsilon: 1e-5, silu };
            let y = group_norm_silu(&golden.tape, &x, None, [&weight, &bias], None, norm, None).unwrap();
            golden.check(&y, &[("x", &x), ("weight", &weight), ("bias", &bias)]);
        });
    }
    each("group_norm_silu_skip", |golden| {
        let [x, skip, weight, bias, matrix] =
            ["x", "skip", "weight", "bias", "scale_shift"].map(|name| golden.input(name));
        let norm = GroupNormSilu { groups: 4, epsilon: 1e-5, silu: true };
        let y = group_norm_silu(&golden.tape, &x, Some(&skip), [&weight, &bias], Some(&matrix), norm, None).unwrap();
        let inputs = [("x", &x), ("skip", &skip), ("weight", &weight), ("bias", &bias), ("scale_shift", &matrix)];
        golden.check(&y, &inputs);
    });
}

#[test]
fn attention_agrees() {
    each("attention", |golden| {
        let qkv = golden.input("qkv");
        golden.check(&attention(&golden.tape, &qkv, 4, 2).unwrap(), &[("qkv", &qkv)]);
    });
    each("attention_qk_norm", |golden| {
        let (qkv, q, k) = (golden.input("qkv"), golden.input("q_norm"), golden.input("k_norm"));
        let normed = qk_norm(&golden.tape, &qkv, &q, &k, 4, 1, 1e-6).unwrap();
        let y = attention(&golden.tape, &normed, 4, 1).unwrap();
        golden.check(&y, &[("qkv", &qkv), ("q_norm", &q), ("k_norm", &k)]);
    });
}

#[test]
fn linear_attention_agrees() {
    for (op, heads) in [("linear_attention", 3), ("linear_attention_odd", 2)] {
        each(op, |golden| {
            let qkv = golden.input("qkv");
            golden.check(&linear_attention(&golden.tape, &qkv, heads).unwrap(), &[("qkv", &qkv)]);
        });
    }
}

#[test]
fn linear_agrees() {
    let kinds = [("linear", Activation::None), ("linear_gelu", Activation::Gelu), ("linear_silu", Activation::Silu)];
    for (op, activation) in kinds {
        each(op, |golden| {
            let (x, weight, bias) = (golden.input("x"), golden.input("weight"), golden.input("bias"));
            let y = linear(&golden.tape, &x, &weight, Some(&bias), activation, None).unwrap();
            golden.check(&y, &[("x", &x), ("weight", &weight), ("bias", &bias)]);
        });
    }
}

#[test]
fn conv2d_agrees() {
    let same = Geometry::same(3);
    each("conv2d", |golden| {
        let [x, weight, bias] = ["x", "weight", "bias"].map(|name| golden.input(name));
        let (channel_add, residual) = (golden.input("channel_add"), golden.input("residual"));
        let y = conv2d(&golden.tape, &x, &weight, Some(&bias), same, Some(&channel_add), Some(&residual)).unwrap();
        let more = [("channel_add", &channel_add), ("residual", &residual)];
        golden.check(&y, &[&[("x", &x), ("weight", &weight), ("bias", &bias)][..], &more].concat());
    });
    for (op, geometry) in [
        ("conv2d_point", Geometry::same(1)),
        ("conv2d_down", Geometry { stride: 2, ..same }),
        ("conv2d_down_after", Geometry { stride: 2, pad_before: [0, 0], ..same }),
        ("conv2d_stem", Geometry { stride: 2, ..Geometry::same(7) }),
        ("conv2d_up", Geometry { resize: Some([8, 12]), ..same }),
        ("conv2d_up_odd", Geometry { resize: Some([7, 11]), ..same }),
    ] {
        each(op, |golden| {
            let (x, weight, bias) = (golden.input("x"), golden.input("weight"), golden.input("bias"));
            let y = conv2d(&golden.tape, &x, &weight, Some(&bias), geometry, None, None).unwrap();
            golden.check(&y, &[("x", &x), ("weight", &weight), ("bias", &bias)]);
        });
    }
}

#[test]
fn the_rest_agrees() {
    each("gated_residual", |golden| {
        let (x, y, modulation) = (golden.input("x"), golden.input("y"), golden.input("gate"));
        let width = y.shape().last();
        let identity: Vec<f64> = (0..width * width).map(|i| f64::from(u8::from(i % (width + 1) == 0))).collect();
        let (weight, gate) = (golden.var(&identity, &[width, width]), Gate { modulation: &modulation, column: 0 });
        let out = gated_linear(&golden.tape, &y, &weight, None, gate, Some(&x)).unwrap();
        golden.check(&out, &[("x", &x), ("y", &y), ("gate", &modulation)]);
    });
    each("embedding", |golden| {
        let index = &golden.file.get("embedding.index").values;
        let index: Vec<i32> = index.iter().map(|&i| i as i32).collect();
        let index = golden.tape.constant(&golden.tape.context().tensor(&index, [index.len()]).unwrap());
        let table = golden.input("weight");
        golden.check(&embedding(&golden.tape, &table, &index, golden.dtype).unwrap(), &[("weight", &table)]);
    });
    each("patchify", |golden| {
        let x = golden.input("x");
        golden.check(&patchify(&golden.tape, &x, 2, golden.dtype).unwrap(), &[("x", &x)]);
    });
    each("mse", |golden| {
        let stored = golden.file.get("mse.prediction");
        let shape = [stored.shape[0], 1, stored.shape[1], 1];
        let prediction = golden.var(&stored.values, &shape);
        let target = golden.tape.constant(golden.var(&golden.file.get("mse.target").values, &shape).tensor());
        let (loss, _) = mse_loss(&golden.tape, &prediction, &target, None, 1.0).unwrap();
        golden.check(&loss, &[("prediction", &prediction)]);
    });
}

#[test]
fn balanced_loss_agrees() {
    for (op, balanced) in [("balanced_loss", false), ("balanced_loss_state", true)] {
        each(op, |golden| {
            let (tape, prediction) = (&golden.tape, golden.input("prediction"));
            let target = tape.constant(golden.input("target").tensor());
            let [weight, state] =
                ["weight", "state"].map(|name| balanced.then(|| tape.constant(golden.input(name).tensor())));
            let state = state.as_ref().map(Var::tensor);
            let config = BalancedLoss::default();
            let result = balanced_loss(tape, &prediction, &target, weight.as_ref(), state, &config).unwrap();
            let allowed = if golden.dtype == DType::F64 { 1e-12 } else { 2e-6 };
            for (name, values) in [("items", &result.items), ("terms", &result.terms)] {
                let stored = &golden.file.get(&format!("{op}.{name}")).values;
                let error = relative_error(&values.to_f64().unwrap(), stored, 1e-3);
                assert!(error <= allowed, "{op} {}: {name} are off by {error:.2e}", golden.dtype);
            }
            golden.check(&result.loss, &[("prediction", &prediction)]);
        });
    }
}

#[test]
fn sinusoidal_features_agree() {
    let file = Whole::load("ops.safetensors");
    let (time, reference) = (&file.get("sinusoidal.t").values, &file.get("sinusoidal.output").values);
    for (dtype, allowed) in [(DType::F64, 1e-12), (DType::F32, 5e-5)] {
        let context = Context::cpu();
        let tape = Tape::inference(&context);
        let t = context.persistent([time.len()], dtype).unwrap();
        t.upload_f64(time).unwrap();
        let y = timestep_embedding(&tape, &tape.constant(&t), 32, dtype).unwrap();
        let error = relative_error(&y.tensor().to_f64().unwrap(), reference, 1e-3);
        assert!(error <= allowed, "{dtype}: off by {error:.2e}");
    }
}

#[test]
fn learning_rates_agree() {
    let file = Whole::load("ops.safetensors");
    let schedules =
        [("constant", LrSchedule::Constant), ("cosine", LrSchedule::Cosine), ("linear", LrSchedule::Linear)];
    for (name, schedule) in schedules {
        let mut training = Config::default().training;
        (training.learning_rate, training.min_learning_rate) = (2e-4, 1e-5);
        (training.warmup_steps, training.lr_schedule) = (8, schedule);
        let reference = &file.get(&format!("learning_rate.{name}")).values;
        for (number, &rate) in (1u64..).zip(reference) {
            let ours = learning_rate(&training, number, reference.len() as u64);
            assert!((ours - rate).abs() <= 1e-12, "{name}, update {number}: {ours} for {rate}");
        }
    }
}

#[test]
fn batch_norm_agrees() {
    for (op, statistics, relu) in [
        ("batch_norm", Statistics::Batch, false),
        ("batch_norm_residual", Statistics::Batch, true),
        ("batch_norm_inference", Statistics::Running, true),
    ] {
        each(op, |golden| {
            let (x, weight, bias) = (golden.input("x"), golden.input("weight"), golden.input("bias"));
            let residual = relu.then(|| golden.input("residual"));
            let running = |name: &str| golden.input(name).tensor().clone();
            let running = Running { mean: running("running_mean"), variance: running("running_variance") };
            let norm = BatchNorm { statistics, relu, momentum: 0.125, ..BatchNorm::default() };
            let y = batch_norm(&golden.tape, &x, residual.as_ref(), &weight, &bias, &running, norm).unwrap();
            let mut inputs = vec![("x", &x), ("weight", &weight), ("bias", &bias)];
            inputs.extend(residual.as_ref().map(|residual| ("residual", residual)));
            golden.check(&y, &inputs);
            for (name, tensor) in [("mean_after", &running.mean), ("variance_after", &running.variance)] {
                let stored = &golden.file.get(&format!("{op}.{name}")).values;
                let error = relative_error(&tensor.to_f64().unwrap(), stored, 1e-3);
                assert!(error <= 1e-6, "{op}: {name} is off by {error:.2e}");
            }
        });
    }
}

#[test]
fn cross_entropy_agrees() {
    for (op, smoothing) in [("cross_entropy", 0.0), ("cross_entropy_smooth", 0.125)] {
        each(op, |golden| {
            let logits = golden.input("logits");
            let labels: Vec<i32> = golden.file.get(&format!("{op}.labels")).values.iter().map(|&x| x as i32).collect();
            let labels = golden.tape.constant(&logits.context().tensor(&labels, [labels.len()]).unwrap());
            let result = cross_entropy(&golden.tape, &logits, &labels, smoothing, 1.0).unwrap();
            golden.check(&result.loss, &[("logits", &logits)]);
        });
    }
}

#[test]
fn pooling_agrees() {
    for (op, kernel, stride, padding) in [("max_pool", 3, 2, 1), ("max_pool_rest", 2, 3, 0)] {
        each(op, |golden| {
            let x = golden.input("x");
            let y = max_pool(&golden.tape, &x, Window { kernel, stride, padding }).unwrap();
            golden.check(&y, &[("x", &x)]);
        });
    }
    each("global_average_pool", |golden| {
        let x = golden.input("x");
        golden.check(&global_average_pool(&golden.tape, &x).unwrap(), &[("x", &x)]);
    });
}
