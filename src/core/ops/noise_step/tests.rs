use super::*;
use crate::ops::control::Control;
use crate::rng::{Philox, Purpose};

fn run(batch: usize, first_item: u32, config: impl Fn(&Context) -> NoiseStep) -> Result<[Vec<f64>; 5]> {
    let context = Context::cpu();
    let all: Vec<f32> = (0..64 * 12).map(|i| (i as f32 * 0.37).sin()).collect();
    let part = &all[first_item as usize * 12..][..batch * 12];
    let x0 = context.tensor(part, [batch, 2, 2, 3])?;
    let labels = context.tensor(&vec![1i32; batch], [batch])?;
    let control = Control::buffer(&context)?;
    control.upload(&Control { step: 9, first_item, ..Control::default() }.words())?;
    let Noised { x_t, target, time, labels, weight, .. } =
        noise_step(&context, &x0, &labels, &control, &config(&context))?;
    Ok([x_t.to_f64()?, target.to_f64()?, time.to_f64()?, labels.to_f64()?, weight.to_f64()?])
}

fn flow(target: Target, draw: Draw) -> NoiseStep {
    let times = TimeGrid::Flow;
    NoiseStep { seed: 11, times, draw, target, min_snr_gamma: None, label_dropout: 0.25, null_label: 7 }
}

#[test]
fn an_item_is_the_same_in_every_batch() -> Result<()> {
    for draw in [Draw::Uniform, Draw::LogitNormal { mean: 0.0, std: 1.0 }] {
        let whole = run(64, 0, |_| flow(Target::Flow, draw.clone()))?;
        let alone = run(1, 41, |_| flow(Target::Flow, draw.clone()))?;
        for (whole, alone) in whole.iter().zip(alone) {
            let each = whole.len() / 64;
            assert_eq!(&whole[41 * each..][..each], alone);
        }
    }
    Ok(())
}

#[test]
fn noise_and_image_can_be_told_from_the_outputs() -> Result<()> {
    let noise = run(8, 0, |_| flow(Target::Epsilon, Draw::Uniform))?;
    let image = run(8, 0, |_| flow(Target::X0, Draw::Uniform))?;
    let velocity = run(8, 0, |_| flow(Target::Flow, Draw::Uniform))?;
    let v = run(8, 0, |_| flow(Target::V, Draw::Uniform))?;
    for e in 0..8 * 12 {
        let (n, x, t) = (noise[1][e], image[1][e], noise[2][e / 12] / 1000.0);
        let drawn = Philox::new(11).uniform4(0, (e / 12) as u32, 9, Purpose::Timestep)[0];
        assert!((t - f64::from(drawn)).abs() < 1e-6);
        assert!((noise[0][e] - ((1.0 - t) * x + t * n)).abs() < 1e-6);
        assert!((velocity[1][e] - (n - x)).abs() < 1e-6);
        assert!((v[1][e] - ((1.0 - t) * n - t * x)).abs() < 1e-6);
    }
    Ok(())
}

#[test]
fn labels_drop_at_their_rate_and_times_cover_the_table() -> Result<()> {
    let (mut dropped, mut times) = (0, vec![0; 4]);
    for draw in [Draw::Uniform, Draw::LogitNormal { mean: 0.0, std: 30.0 }] {
        let [_, _, time, labels, weight] = run(64, 0, |context| {
            let a = context.tensor(&[0.9f32, 0.7, 0.5, 0.1], [4]).unwrap();
            let s = context.tensor(&[0.1f32, 0.4, 0.6, 0.9], [4]).unwrap();
            NoiseStep { times: TimeGrid::Table { a, s }, ..flow(Target::Epsilon, draw.clone()) }
        })?;
        dropped += labels.iter().filter(|&&label| label == 7.0).count();
        assert!(labels.iter().all(|&label| label == 7.0 || label == 1.0) && weight.iter().all(|&w| w == 1.0));
        time.iter().for_each(|&time| times[time as usize] += 1);
    }
    assert!((16..48).contains(&dropped), "{dropped} of 128 dropped");
    assert!(times.iter().all(|&count| count > 5), "{times:?}");
    Ok(())
}

/// Bins of very different shares: times fall into them in proportion, uniformly within, with the reciprocal weights.
#[test]
fn adaptive_times_fall_into_bins_by_their_shares() -> Result<()> {
    let shares = [0.5f32, 0.05, 0.05, 0.4];
    let state: Vec<f32> = [[1.0; 4], shares, [0.5, 0.55, 0.6, 1.0]].concat();
    let context = Context::cpu();
    let (batch, control) = (4000, Control::buffer(&context)?);
    let x0 = context.zeros([batch, 1], DType::F32)?;
    let labels = context.zeros([batch], DType::I32)?;
    let draw = Draw::Adaptive(context.tensor(&state, [3, 4])?);
    let drawn = noise_step(&context, &x0, &labels, &control, &flow(Target::X0, draw))?;
    let (times, weights) = (drawn.time.download::<f32>()?, drawn.weight.download::<f32>()?);
    let levels = drawn.level.unwrap().download::<i32>()?;
    for (bin, share) in shares.into_iter().enumerate() {
        let within: Vec<f32> = (0..batch).filter(|&b| levels[b] == bin as i32).map(|b| times[b] / 1000.0).collect();
        let expected = f64::from(share) * batch as f64;
        assert!((within.len() as f64 - expected).abs() < 5.0 * expected.sqrt(), "{bin}: {}", within.len());
        let (low, high) = (bin as f32 / 4.0, (bin + 1) as f32 / 4.0);
        assert!(within.iter().all(|t| (low - 1e-6..high + 1e-6).contains(t)));
        let middle = within.iter().sum::<f32>() / within.len() as f32;
        assert!((middle - (low + high) / 2.0).abs() < 0.03, "{bin}: {middle}");
        assert!((0..batch).filter(|&b| levels[b] == bin as i32).all(|b| (weights[b] * 4.0 * share - 1.0).abs() < 1e-6));
    }
    Ok(())
}

#[test]
fn what_cannot_be_is_refused() -> Result<()> {
    let refused = run(2, 0, |_| NoiseStep { min_snr_gamma: Some(0.0), ..flow(Target::V, Draw::Uniform) });
    assert!(refused.unwrap_err().to_string().contains("gamma is 0"));
    let refused = run(2, 0, |context| {
        let (a, s) = (context.zeros([3], DType::F32).unwrap(), context.zeros([4], DType::F32).unwrap());
        NoiseStep { times: TimeGrid::Table { a, s }, ..flow(Target::V, Draw::Uniform) }
    });
    assert!(refused.unwrap_err().to_string().contains("tables"));
    Ok(())
}

/// Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy": min(SNR, γ)/SNR for ε, min(SNR, γ) for x_0,
/// min(SNR, γ)/(SNR + 1) for v.
#[test]
fn min_snr_weights_are_the_papers() -> Result<()> {
    let (levels, gamma) = ([0.9999f64, 0.97, 0.6, 0.05], 5.0);
    for target in [Target::Epsilon, Target::X0, Target::V] {
        let [_, _, time, _, weight] = run(64, 0, |context| {
            let a = context.tensor(&levels.map(|a| a as f32), [4]).unwrap();
            let s = context.tensor(&levels.map(|a| (1.0 - a * a).sqrt() as f32), [4]).unwrap();
            let times = TimeGrid::Table { a, s };
            NoiseStep { times, min_snr_gamma: Some(gamma as f32), ..flow(target, Draw::Uniform) }
        })?;
        for (time, weight) in time.into_iter().zip(weight) {
            let a = levels[time as usize];
            let snr = a * a / (1.0 - a * a);
            let bounded = snr.min(gamma);
            let expected = match target {
                Target::Epsilon => bounded / snr,
                Target::X0 => bounded,
                _ => bounded / (snr + 1.0),
            };
            assert!((weight / expected - 1.0).abs() < 1e-3, "{target:?} at SNR {snr}: {weight}, not {expected}");
        }
    }
    Ok(())
}
