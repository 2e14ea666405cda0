use super::*;
use crate::tensor::DType;

const SHAPE: [usize; 4] = [2, 4, 3, 3];

/// The loss of `prediction` against `target`, and the prediction's gradient, in f64. `between` runs before the backward.
fn run(
    prediction: &[f64],
    target: &[f64],
    state: Option<&Tensor>,
    weights: [f32; TERMS],
    between: impl FnOnce(&Balanced) -> Result<()>,
) -> Result<(Balanced, Vec<f64>)> {
    let context = state.map_or_else(Context::cpu, |state| state.context().clone());
    let tape = Tape::new(&context);
    let tensor = |values: &[f64]| -> Result<Tensor> { context.tensor(values, SHAPE) };
    let (prediction, target) = (tape.leaf(&tensor(prediction)?), tape.constant(&tensor(target)?));
    let result = balanced_loss(&tape, &prediction, &target, None, state, &BalancedLoss { weights, scale: 1.0 })?;
    between(&result)?;
    tape.backward(&result.loss, context.tensor(&[1.0f64], [1])?)?;
    Ok((result, tape.gradient(&prediction).map_or(Ok(vec![]), |gradient| gradient.to_f64())?))
}

fn images() -> [Vec<f64>; 2] {
    let len = SHAPE.iter().product::<usize>();
    [17, 29].map(|step| (0..len).map(|i| (i * step % 37) as f64 / 18.0 - 1.0).collect())
}

/// The factor of `term` with λ = 1: what the loss of that term alone is to the term.
fn factor(state: &Tensor, term: usize) -> Result<f64> {
    let [prediction, target] = images();
    let alone = std::array::from_fn(|i| if i == term { 1.0 } else { 0.0 });
    let (result, _) = run(&prediction, &target, Some(state), alone, |_| Ok(()))?;
    Ok(result.loss.tensor().to_f64()?[0] / result.terms.to_f64()?[term])
}

#[test]
fn factors_follow_the_running_means() -> Result<()> {
    let context = Context::cpu();
    let state = context.zeros([TERMS + 1], DType::F64)?;
    for term in 0..TERMS {
        assert!((factor(&state, term)? - 1.0).abs() < 1e-12, "before the first update");
    }
    let decay = 0.75f32;
    // The edges' mean goes beyond 100 times that of mse, the cosine's below a hundredth.
    let updates = [[0.5, 0.25, 0.004, 2.0, 70.0], [0.3, 0.5, 0.001, 1.0, 90.0], [0.2, 0.125, 0.002, 0.0, 40.0]];
    for (number, terms) in updates.iter().enumerate() {
        update_magnitudes(&context, &state, &context.tensor(terms, [TERMS])?, decay)?;
        // The definition, written plainly: weights that fall with age, and that add up to one.
        let ages = updates[..=number].iter().rev().zip(0..);
        let weighted = ages.map(|(terms, age)| (terms, f64::from(decay).powi(age)));
        let total: f64 = weighted.clone().map(|(_, weight)| weight).sum();
        let means: [f64; TERMS] =
            std::array::from_fn(|i| weighted.clone().map(|(terms, weight)| weight * terms[i]).sum::<f64>() / total);
        let stored = state.to_f64()?;
        for (i, mean) in means.iter().enumerate() {
            assert!((stored[i] / stored[TERMS] - mean).abs() < 1e-12 * mean, "update {number}, term {i}");
            let expected = (means[0] / mean).clamp(0.01, 100.0);
            assert!((factor(&state, i)? - expected).abs() < 1e-12 * expected, "update {number}, term {i}");
        }
        let bounds = [(2, 100.0), (4, 0.01)];
        assert!(bounds.iter().all(|&(term, bound)| (factor(&state, term).unwrap() / bound - 1.0).abs() < 1e-12));
    }
    // A term that has been zero all along keeps its λ.
    state.upload(&[0.3, 0.0, 0.1, 0.1, 0.1, 0.5])?;
    assert!((factor(&state, 1)? - 1.0).abs() < 1e-12);
    Ok(())
}

#[test]
fn the_backward_has_the_factors_of_its_forward() -> Result<()> {
    let [prediction, target] = images();
    let weights = BalancedLoss::default().weights;
    let state = Context::cpu().tensor(&[0.3f64, 0.2, 0.1, 0.8, 0.4, 0.5], [TERMS + 1])?;
    let (_, expected) = run(&prediction, &target, Some(&state), weights, |_| Ok(()))?;
    let (_, gradient) = run(&prediction, &target, Some(&state), weights, |result| {
        update_magnitudes(state.context(), &state, &result.terms, 0.5)
    })?;
    assert_eq!(gradient, expected);
    let (_, moved) = run(&prediction, &target, Some(&state), weights, |_| Ok(()))?;
    assert_ne!(gradient, moved, "the update did change the factors");
    Ok(())
}

#[test]
fn a_weight_of_zero_switches_a_term_off() -> Result<()> {
    let [prediction, target] = images();
    let (all, _) = run(&prediction, &target, None, BalancedLoss::default().weights, |_| Ok(()))?;
    let (mse, gradient) = run(&prediction, &target, None, [1.0, 0.0, 0.0, 0.0, 0.0], |_| Ok(()))?;
    assert_eq!(all.terms.to_f64()?, mse.terms.to_f64()?);
    assert_eq!(mse.loss.tensor().to_f64()?, [mse.terms.to_f64()?[0]]);
    let count = prediction.len() as f64;
    for ((gradient, p), t) in gradient.iter().zip(&prediction).zip(&target) {
        assert!((gradient - 2.0 * (p - t) / count).abs() < 1e-15);
    }
    Ok(())
}

/// As a network begins whose last layer is zero.
#[test]
fn a_prediction_of_zero_has_no_direction() -> Result<()> {
    let [_, target] = images();
    for size in [0.0, 1e-12] {
        let prediction: Vec<f64> = target.iter().map(|t| size * t).collect();
        let (result, gradient) = run(&prediction, &target, None, [0.0, 0.0, 1.0, 0.0, 0.0], |_| Ok(()))?;
        assert_eq!(result.items.to_f64()?, [1.0, 1.0]);
        assert!(gradient.iter().all(|&g| g == 0.0));
    }
    // The other way round: a target of zero.
    let (result, gradient) = run(&target, &[0.0; 72], None, [0.0, 0.0, 1.0, 0.0, 0.0], |_| Ok(()))?;
    assert_eq!(result.terms.to_f64()?[2], 1.0);
    assert!(gradient.iter().all(|&g| g == 0.0));
    Ok(())
}

#[test]
fn the_terms_are_what_they_say() -> Result<()> {
    // d is 1 at one inner pixel of a channel: four neighbours see a quarter of it, four pixels an edge.
    let target = images()[1].clone();
    let mut prediction = target.clone();
    prediction[(3 + 1) * 3] += 1.0;
    let (result, _) = run(&prediction, &target, None, [1.0; TERMS], |_| Ok(()))?;
    let per_item = |sum: f64| sum / 72.0;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosines = prediction.chunks(36).zip(target.chunks(36));
    let cosine: f64 = cosines.map(|(p, t)| 1.0 - dot(p, t) / (dot(p, p) * dot(t, t)).sqrt()).sum::<f64>() / 2.0;
    let norm = |square: f64| (square + 1e-6).sqrt() - 1e-3;
    let expected = [1.0, 1.0, 0.0, 1.0 + 4.0 / 16.0, norm(2.0) + 2.0 * norm(1.0)].map(per_item);
    for (i, (value, expected)) in result.terms.to_f64()?.iter().zip(expected).enumerate() {
        let expected = if i == 2 { cosine } else { expected };
        assert!((value - expected).abs() < 1e-12, "term {i}: {value}, not {expected}");
    }
    Ok(())
}

#[test]
fn operands_that_do_not_fit_are_refused() -> Result<()> {
    let context = Context::cpu();
    let tape = Tape::new(&context);
    let image = tape.constant(&context.zeros([2, 3, 3, 1], DType::F32)?);
    let flat = tape.constant(&context.zeros([2, 9], DType::F32)?);
    let three = tape.constant(&context.zeros([3], DType::F32)?);
    let (short, double) = (context.zeros([5], DType::F32)?, context.zeros([6], DType::F64)?);
    let config = BalancedLoss::default();
    assert!(balanced_loss(&tape, &flat, &flat, None, None, &config).is_err());
    assert!(balanced_loss(&tape, &image, &flat, None, None, &config).is_err());
    assert!(balanced_loss(&tape, &image, &image, Some(&three), None, &config).is_err());
    for state in [&short, &double] {
        assert!(balanced_loss(&tape, &image, &image, None, Some(state), &config).is_err());
        assert!(update_magnitudes(&context, state, &short, 0.9).is_err());
    }
    for bad in [-1.0, f32::NAN, f32::INFINITY] {
        let config = BalancedLoss { weights: [1.0, bad, 0.0, 0.0, 0.0], scale: 1.0 };
        assert!(balanced_loss(&tape, &image, &image, None, None, &config).is_err());
    }
    let state = context.zeros([6], DType::F32)?;
    for decay in [1.0, -0.1, f32::NAN] {
        assert!(update_magnitudes(&context, &state, &short, decay).is_err());
    }
    Ok(())
}
