//! The law, on the CPU.

use super::*;
use crate::tensor::Device;

const LAW: Law = Law { decay: 0.5, uniform: 0.2 };

fn updated(context: &Context, state: &Tensor, losses: &[f32], levels: &[i32]) -> Vec<f32> {
    let losses = context.tensor(losses, [losses.len()]).unwrap();
    let levels = context.tensor(levels, [levels.len()]).unwrap();
    update(context, state, &losses, &levels, LAW).unwrap();
    state.download().unwrap()
}

fn near(a: f32, b: f32) {
    assert!((a - b).abs() < 1e-5, "{a}, not {b}");
}

#[test]
fn bins_are_drawn_in_proportion_to_the_root_of_their_mean_square() {
    let context = Context::new(Device::Cpu);
    let state = context.tensor(&start(4), [3, 4]).unwrap();
    // The first visit: at equal shares the importance weights are 1.
    let values = updated(&context, &state, &[1.0, 3.0, 2.0], &[0, 0, 2]);
    near(values[0], 5.0);
    near(values[2], 4.0);
    assert_eq!((values[1], values[3]), (-1.0, -1.0));
    let (a, c) = (5f32.sqrt(), 2.0);
    let unseen = (a + c) / 2.0;
    for (k, root) in [a, unseen, c, unseen].into_iter().enumerate() {
        near(values[4 + k], 0.8 * root / (2.0 * (a + c)) + 0.05);
    }
    near(values[8], values[4]);
    near(values[9], values[4] + values[5]);
    assert_eq!(values[11], 1.0);
    // Once more: an item's loss comes with its importance weight, which is taken off; the means run.
    let weight = 1.0 / (4.0 * values[4]);
    let then = updated(&context, &state, &[weight * 3.0], &[0]);
    near(then[0], 0.5 * 5.0 + 0.5 * 9.0);
    near(then[2], 4.0);
}

#[test]
fn weighted_losses_are_unbiased_whatever_the_state() {
    let context = Context::new(Device::Cpu);
    let state = context.tensor(&start(3), [3, 3]).unwrap();
    let values = updated(&context, &state, &[0.1, 7.0, 0.5], &[0, 1, 2]);
    // Σ p_k · (loss_k / (K p_k)) = mean of the losses, and no weight is above 1 / uniform.
    let (losses, shares) = ([0.3f32, 2.0, 5.0], &values[3..6]);
    near(shares.iter().sum(), 1.0);
    let expected: f32 = shares.iter().zip(losses).map(|(p, loss)| p * loss / (3.0 * p)).sum();
    near(expected, losses.iter().sum::<f32>() / 3.0);
    assert!(shares.iter().all(|p| 1.0 / (3.0 * p) <= 1.0 / LAW.uniform + 1e-4));
}

#[test]
fn zero_losses_and_bad_operands() {
    let context = Context::new(Device::Cpu);
    let state = context.tensor(&start(2), [3, 2]).unwrap();
    let values = updated(&context, &state, &[0.0, 0.0], &[0, 1]);
    assert_eq!(values[2..4], [0.5, 0.5]);
    let losses = context.tensor(&[1f32], [1]).unwrap();
    let levels = context.tensor(&[0i32, 1], [2]).unwrap();
    assert!(update(&context, &state, &losses, &levels, LAW).is_err());
    let wide = context.zeros([3, MOST_BINS + 1], DType::F32).unwrap();
    assert!(bins(OP, &wide, DType::F32).is_err());
}
