use super::*;
use crate::ops::control::Control;
use safetensors::{Dtype, SafeTensors};

/// A tensor of `tests/goldens/ops.safetensors` (f64).
fn golden(file: &SafeTensors, name: &str) -> Vec<f64> {
    let view = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(view.dtype(), Dtype::F64, "{name}");
    view.data().as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
}

#[test]
fn five_steps_agree_with_pytorch() -> Result<()> {
    let bytes = include_bytes!("../../../../tests/goldens/ops.safetensors");
    let file = SafeTensors::deserialize(bytes).expect("tests/goldens/ops.safetensors");
    // The two parameters lie in one flat buffer: the norm is that of both.
    let flat = |name: &str| [0, 1].map(|i| golden(&file, &format!("adamw.{name}.{i}"))).concat();
    let (rates, norms) = (golden(&file, "adamw.learning_rate"), golden(&file, "adamw.gradient_norm"));
    let context = Context::cpu();
    // The f32 words of the control buffer bound the agreement in f64.
    for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 4e-7)] {
        let buffer = |values: &[f64]| -> Result<Tensor> {
            let tensor = context.persistent([values.len()], dtype)?;
            tensor.upload_f64(values)?;
            Ok(tensor)
        };
        let start = flat("start");
        let zeros = vec![0.0; start.len()];
        let (parameters, ema, compute) = (buffer(&start)?, buffer(&start)?, buffer(&start)?);
        let (first, second, statistics) = (buffer(&zeros)?, buffer(&zeros)?, buffer(&[0.0; 4])?);
        let control = Control::buffer(&context)?;
        let hyper = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, decoupled: true };
        for (step, (&rate, norm)) in rates.iter().zip(&norms).enumerate() {
            let gradients = buffer(&flat(&format!("gradient.{step}")))?;
            let t = step as i32 + 1;
            let words = Control {
                learning_rate: rate as f32,
                first_correction: (1.0 / (1.0 - 0.9f64.powi(t))) as f32,
                second_correction: (1.0 / (1.0 - 0.999f64.powi(t))) as f32,
                ema_decay: 0.9,
                ..Control::default()
            };
            control.upload(&words.words())?;
            gradient_norm(&context, &gradients, &statistics, Some(1.0))?;
            let state = AdamWState {
                parameters: &parameters,
                compute: Some(&compute),
                gradients: &gradients,
                first: &first,
                second: &second,
                ema: Some(&ema),
            };
            adamw(&context, &state, &control, &statistics, hyper)?;
            assert!((statistics.to_f64()?[0] / norm - 1.0).abs() < tolerance, "{dtype} step {step}: {statistics:?}");
            let pairs = [(&parameters, flat(&format!("after.{step}"))), (&ema, flat(&format!("ema.{step}")))];
            for (ours, theirs) in pairs {
                for (ours, theirs) in ours.to_f64()?.iter().zip(theirs) {
                    assert!((ours - theirs).abs() < tolerance, "{dtype} step {step}: {ours}, not {theirs}");
                }
            }
            assert_eq!(compute.to_f64()?, parameters.to_f64()?);
        }
    }
    Ok(())
}

#[test]
fn a_norm_that_is_not_finite_is_seen() -> Result<()> {
    let context = Context::cpu();
    for (gradient, norm_is) in [(f32::NAN, f32::is_nan as fn(f32) -> bool), (f32::INFINITY, f32::is_infinite)] {
        let gradients = context.tensor(&[1.0, gradient, 2.0], [3])?;
        let [parameters, first, second] = [(); 3].map(|()| context.zeros([3], DType::F32));
        let (parameters, first, second) = (parameters?, first?, second?);
        let (statistics, control) = (statistics(&context)?, Control::buffer(&context)?);
        control.upload(
            &Control { learning_rate: 1.0, first_correction: 1.0, second_correction: 1.0, ..Control::default() }
                .words(),
        )?;
        let state = AdamWState {
            parameters: &parameters,
            compute: None,
            gradients: &gradients,
            first: &first,
            second: &second,
            ema: None,
        };
        gradient_norm(&context, &gradients, &statistics, Some(1.0))?;
        assert!(norm_is(statistics.download::<f32>()?[0]));
        let hyper = AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.0, decoupled: true };
        adamw(&context, &state, &control, &statistics, hyper)?;
        assert!(parameters.download::<f32>()?[1].is_nan());
    }
    Ok(())
}

#[test]
fn metrics_add_over_micro_batches() -> Result<()> {
    let context = Context::cpu();
    let (ring, control) = (context.zeros([3, 3], DType::F32)?, Control::buffer(&context)?);
    let statistics = context.tensor(&[7.0f32, 1.0, 0.0, 0.0], [4])?;
    for (row, micro, loss) in [(1, 0, 0.5f32), (1, 1, 0.25), (4, 2, 1.0), (2, 0, 3.0), (2, 0, 4.0)] {
        control.upload(&Control { row, micro, ..Control::default() }.words())?;
        let (loss, term) = (context.tensor(&[loss], [1])?, context.tensor(&[2.0 * loss], [1])?);
        record(&context, &ring, &loss, Some(&term), &statistics, &control)?;
    }
    assert!(record(&context, &ring, &statistics.part(0, [1])?, None, &statistics, &control).is_err());
    assert_eq!(ring.download::<f32>()?, [0.0, 0.0, 0.0, 1.75, 7.0, 3.5, 4.0, 7.0, 8.0]);
    Ok(())
}
