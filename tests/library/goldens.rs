//! Tests of the goldens: the values generated on both sides, and the reader's errors.

use crate::common::golden::{self, Projected, Whole};

#[test]
fn both_sides_make_the_same_values() {
    let short = Projected::load("dit-token.json");
    let whole = Whole::load("dit-token.safetensors");
    let as_f64 = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
    let parameters = &short.tensors[..short.tensors.len() - 2];
    for (number, tensor) in parameters.iter().enumerate() {
        let ours = golden::parameter(short.seed, number, &tensor.name, &tensor.shape);
        assert_eq!(whole.get(&format!("parameter.{}", tensor.name)).values, as_f64(ours), "{}", tensor.name);
    }
    assert_eq!(parameters.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum::<usize>(), short.parameters);

    let inputs = golden::inputs(short.seed, short.batch, 16 * 16 * 3, 4);
    assert_eq!(whole.get("input").values, as_f64(inputs.input));
    assert_eq!(whole.get("cotangent").values, as_f64(inputs.cotangent));
    assert_eq!((&whole.get("time").values, &short.time), (&as_f64(inputs.time.clone()), &inputs.time));
    assert_eq!(short.label, inputs.label);
    assert_eq!(whole.metadata["seed"], short.seed.to_string());
}

#[test]
fn a_short_golden_measures_errors() {
    let short = Projected::load("dit-token.json");
    let whole = Whole::load("dit-token.safetensors");
    let mut floored = 0;
    for tensor in &short.tensors {
        let stored = match tensor.name.as_str() {
            "output" => "output".to_owned(),
            "input" => "input_gradient".to_owned(),
            name => format!("gradient.{name}"),
        };
        let values = &whole.get(&stored).values;
        assert!(short.error(&tensor.name, values) < 1e-12, "{}", tensor.name);

        // Noise of 1e-4 of the scale is measured as about that.
        let scale = tensor.norm.max(1e-3 * short.median_gradient_norm());
        floored += usize::from(scale > tensor.norm);
        let noise = golden::symmetric(7, 0, values.len(), 1.0);
        let noise_norm = noise.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let noisy: Vec<f64> =
            values.iter().zip(&noise).map(|(x, n)| x + 1e-4 * scale / noise_norm * f64::from(*n)).collect();
        let measured = short.error(&tensor.name, &noisy);
        assert!((1e-5..1e-3).contains(&measured), "{}: {measured}", tensor.name);
        assert!((golden::relative_error(&noisy, values, scale) / 1e-4 - 1.0).abs() < 1e-6);

        let mut broken = values.clone();
        broken[0] = f64::NAN;
        assert_eq!(short.error(&tensor.name, &broken), f64::INFINITY);
    }
    assert!(floored <= short.tensors.len() / 4, "{floored} of the gradients vanish");
}

#[test]
fn the_full_model_has_its_parameters() {
    let golden = Projected::load("dit-cifar10.json");
    let gradients = &golden.tensors[..golden.tensors.len() - 2];
    let count: usize = gradients.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    assert_eq!((count, golden.parameters), (19_108_048, 19_108_048));
    let inputs = golden::inputs(golden.seed, golden.batch, 32 * 32 * 3, 11);
    assert_eq!((golden.time, golden.label), (inputs.time, inputs.label));
}
