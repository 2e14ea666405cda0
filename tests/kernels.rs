//! Every kernel, forward and backward, on the emulator: against the CPU op, with every access checked, in every order of
//! threads and blocks.

#[path = "common/emulator.rs"]
mod emulator;
#[path = "common/kinds.rs"]
mod kinds;

use std::cell::Cell;
use std::rc::Rc;

use engine_core::device::emulator::Order;
use engine_core::ops::case::{Case, Outcome};
use engine_core::ops::cases;
use engine_core::ops::layer_norm::{Affine, layer_norm};
use engine_core::ops::patchify::{patchify, unpatchify};
use engine_core::ops::tf32::OPS_IN_TF32;
use engine_core::ops::tokens::tokens;
use engine_core::tape::{Accumulate, Tape, Var};
use engine_core::tensor::{Context, DType, Device, Tensor};
use rayon::prelude::*;

/// Forward, reverse and shuffled: a race hidden by one order shows in another, and bits must not depend on it.
const ORDERS: [Order; 3] = [Order::Forward, Order::Reverse, Order::Random(7)];

/// What a case may be asked for on a device.
type Run = fn(&Case, &Device) -> engine_core::Result<Outcome>;

/// The first order's outcome agrees with the CPU op, as `checked` finds, and the others' have its bits.
fn check(case: &Case, name: &str, [checked, alone]: [Run; 2]) -> Result<(), String> {
    let mut bits: Option<Vec<Vec<u64>>> = None;
    for order in ORDERS {
        let device = emulator::device();
        device.set_order(order);
        device.set_tensor_cores(true);
        let fault = |message: String| format!("{} {name} {order:?}: {message}", case.id());
        let run = if bits.is_none() { checked } else { alone };
        let outcome = run(case, &Device::Accelerator(device)).map_err(|error| fault(error.to_string()))?;
        let outputs = outcome.outputs.iter().map(|(values, _)| values);
        let gradients = outcome.gradients.iter().map(|(_, values, _)| values);
        let now: Vec<Vec<u64>> =
            outputs.chain(gradients).map(|values| values.iter().map(|x| x.to_bits()).collect()).collect();
        match &bits {
            Some(before) if *before != now => return Err(fault("other bits than in forward order".into())),
            _ => bits = Some(now),
        }
    }
    Ok(())
}

/// The cases selected by `ENGINE_OP`.
fn picked() -> Vec<Case> {
    let only = std::env::var("ENGINE_OP").ok();
    let cases: Vec<Case> =
        cases().into_iter().filter(|case| !case.large && only.as_deref().is_none_or(|op| case.op == op)).collect();
    assert!(!cases.is_empty(), "ENGINE_OP names no op: {only:?}");
    cases
}

fn every_case(cases: &[Case], check: impl Fn(&Case) -> Result<(), String> + Sync) {
    let faults: Vec<String> = cases.par_iter().filter_map(|case| check(case).err()).collect();
    assert!(faults.is_empty(), "{} of {} cases:\n{}", faults.len(), cases.len(), faults.join("\n"));
}

#[test]
fn kernels_agree_with_the_cpu_in_f32() {
    every_case(&picked(), |case| {
        check(case, "f32", [|c, d| c.check_device(d, DType::F32), |c, d| c.run_poisoned(d, DType::F32)])
    });
}

#[test]
fn kernels_agree_with_the_cpu_in_bf16() {
    every_case(&picked(), |case| {
        check(case, "bf16", [|c, d| c.check_device(d, DType::BF16), |c, d| c.run_poisoned(d, DType::BF16)])
    });
}

#[test]
fn kernels_agree_with_the_cpu_in_tf32() {
    let mut cases = picked();
    cases.retain(|case| OPS_IN_TF32.contains(&case.op));
    every_case(&cases, |case| check(case, "tf32", [Case::check_tf32, Case::run_tf32]));
}

#[test]
fn every_choice_of_gradients_is_written_and_added_to() {
    let cases = kinds::smallest_of_each_kind(picked());
    for dtype in [DType::F32, DType::BF16] {
        every_case(&cases, |case| {
            case.check_wirings(&Device::Accelerator(emulator::device()), dtype).map_err(|error| error.to_string())
        });
    }
}

/// No empty launch, and no division by zero: a batch without items has no tokens, and gives the positions a gradient of zero.
#[test]
fn an_empty_batch_of_tokens_is_no_work() {
    for device in [Device::Cpu, Device::Accelerator(emulator::device())] {
        for dtype in [DType::F32, DType::BF16] {
            if dtype == DType::BF16 && matches!(device, Device::Cpu) {
                continue;
            }
            let context = Context::new(device.clone());
            let tape = Tape::new(&context);
            let empty = |shape: &[usize]| tape.leaf(&context.persistent(shape, dtype).unwrap());
            let (patches, token) = (empty(&[0, 4, 8]), empty(&[0, 8]));
            let position = tape.leaf(&context.tensor(&[1f32; 40], [5, 8]).unwrap());
            let y = tokens(&tape, &patches, Some(&token), &position).unwrap();
            assert_eq!(y.sizes(), [0, 5, 8]);
            tape.backward(&y, context.persistent([0, 5, 8], dtype).unwrap()).unwrap();
            assert_eq!(tape.gradient(&position).unwrap().to_f64().unwrap(), [0.0; 40]);
        }
    }
}

/// Sums of parameters' gradients wait on the tape for others, of one launch; yet a parameter that two ops use gets both, and
/// what the tape tells of is final. Nine parameters: more sums than a launch takes.
#[test]
fn gradients_are_summed_when_the_tape_tells_of_them() {
    let run = |device: Device| {
        let context = Context::new(device);
        let tape = Tape::new(&context);
        let (rows, width) = (40usize, 12usize);
        let values = |n: usize| (0..n).map(|i| ((i * 37 + n) % 29) as f32 / 29.0 - 0.4).collect::<Vec<_>>();
        let parameters: Vec<(Tensor, Tensor)> = (0..9)
            .map(|i| {
                let value = context.tensor(&values(width + i)[i..], [width]).unwrap();
                (value, context.tensor(&vec![f32::NAN; width], [width]).unwrap())
            })
            .collect();
        let vars: Vec<Var> =
            parameters.iter().map(|(value, to)| tape.parameter(value, to, Accumulate::Write)).collect();
        let mut x = tape.constant(&context.tensor(&values(rows * width), [2, rows / 2, width]).unwrap());
        // The first two are used twice, with others in between.
        for [weight, bias] in [[0, 1], [2, 3], [4, 5], [0, 1], [6, 7], [8, 1]] {
            let affine = Affine::Parameters { weight: &vars[weight], bias: &vars[bias] };
            x = layer_norm(&tape, &x, affine, 1e-5).unwrap();
        }
        let mut told = Vec::new();
        let dy = context.tensor(&values(rows * width), [2, rows / 2, width]).unwrap();
        tape.backward_then(&x, dy, |gradient| {
            told.push(gradient.download::<f32>()?);
            Ok(())
        })
        .unwrap();
        let mut whole: Vec<_> = parameters.iter().map(|(_, to)| to.download::<f32>().unwrap()).collect();
        let by_bits = |a: &Vec<f32>, b: &Vec<f32>| a[0].total_cmp(&b[0]);
        told.sort_by(by_bits);
        let gradients = whole.clone();
        whole.sort_by(by_bits);
        assert!(told == whole, "{told:?} was told of, and is {whole:?}");
        gradients
    };
    let (host, device) = (run(Device::Cpu), run(Device::Accelerator(emulator::device())));
    for (host, device) in host.iter().flatten().zip(device.iter().flatten()) {
        assert!((host - device).abs() <= 1e-5 * host.abs().max(1.0), "{host} on the CPU, {device} on the emulator");
    }
}

/// What waits is bounded: of a long chain nearly all gradients are told of before its first op runs backwards. And two parameters may be
/// given one place, as those of two passes that add up.
#[test]
fn gradients_do_not_wait_for_the_end() {
    let context = Context::new(Device::Accelerator(emulator::device()));
    let (tape, width) = (Tape::new(&context), 8usize);
    let ones = context.tensor(&vec![1f32; width], [width]).unwrap();
    let place = || context.tensor(&vec![f32::NAN; width], [width]).unwrap();
    let parameter = |to: &Tensor, mode| tape.parameter(&ones, to, mode);
    let values: Vec<f32> = (0..6 * width).map(|i| (i * 13 % 7) as f32 - 3.0).collect();
    let input = tape.leaf(&context.tensor(&values, [2, 3, width]).unwrap());
    // The first op backwards is the last; this one tells, as the first op's backward begins, how many came before.
    let told = Rc::new(Cell::new(0));
    let mut inputs = tape.inputs("first");
    let (dx, seen, before) = (inputs.add("x", &input), told.clone(), Rc::new(Cell::new(0)));
    let kept = before.clone();
    let mut x = inputs.record(input.tensor().clone(), move |backward| {
        kept.set(seen.get());
        backward.pass(dx)
    });
    let shared = place();
    for i in 0..20 {
        // Of two that share a place, the later op runs backwards first, and writes.
        let (weight, mode) = if i == 3 { (shared.clone(), Accumulate::Add) } else { (place(), Accumulate::Write) };
        let weight = if i == 4 { parameter(&shared, Accumulate::Write) } else { parameter(&weight, mode) };
        let bias = parameter(&place(), Accumulate::Write);
        x = layer_norm(&tape, &x, Affine::Parameters { weight: &weight, bias: &bias }, 1e-5).unwrap();
    }
    let mut finals = Vec::new();
    let dy = context.tensor(&values, [2, 3, width]).unwrap();
    tape.backward_then(&x, dy, |gradient| {
        told.set(told.get() + 1);
        finals.extend(gradient.download::<f32>()?);
        Ok(())
    })
    .unwrap();
    assert_eq!((told.get(), finals.iter().any(|value| value.is_nan())), (40, false));
    assert!(before.get() >= 40 - 8, "{} of 40 gradients were told of before the first op", before.get());
}

/// An empty batch of images has no patches; and an empty sequence of tokens is an empty batch of images.
#[test]
fn an_empty_batch_of_patches_is_no_work() {
    for device in [Device::Cpu, Device::Accelerator(emulator::device())] {
        let context = Context::new(device);
        let tape = Tape::new(&context);
        let images = tape.leaf(&context.persistent([0, 8, 8, 3], DType::F32).unwrap());
        let tokens = patchify(&tape, &images, 4, DType::F32).unwrap();
        assert_eq!(tokens.sizes(), [0, 4, 48]);
        let back = unpatchify(&tape, &tokens, 0, [8, 8, 3], 4).unwrap();
        assert_eq!(back.sizes(), [0, 8, 8, 3]);
        tape.backward(&back, context.persistent([0, 8, 8, 3], DType::F32).unwrap()).unwrap();
        assert_eq!(tape.gradient(&images).unwrap().sizes(), [0, 8, 8, 3]);
    }
}

/// A large case is for timing. A small case of its op must launch its kernels in the same way: there the emulator and the PTX
/// machine check every access, for which a large case is too slow.
#[test]
fn every_large_case_has_small_twins() {
    let only = std::env::var("ENGINE_OP").ok();
    let mut cases = cases();
    cases.retain(|case| only.as_deref().is_none_or(|op| case.op == op));
    let mut missing = Vec::new();
    for (dtype, tf32) in [(DType::F32, false), (DType::F32, true), (DType::BF16, false)] {
        let launches: Vec<_> = cases.par_iter_mut().map(|case| kinds::launches(case, dtype, tf32)).collect();
        for (large, wanted) in cases.iter().zip(&launches).filter(|(case, _)| case.large) {
            let small = cases.iter().zip(&launches).filter(|(case, _)| !case.large && case.op == large.op);
            let small: Vec<_> = small.flat_map(|(_, launches)| launches).collect();
            let lacks = wanted.iter().filter(|launch| !small.contains(launch));
            let numbers = if tf32 { "tf32".to_string() } else { dtype.to_string() };
            missing.extend(lacks.map(|launch| format!("{} {numbers}: {launch:?}", large.id())));
        }
    }
    assert!(missing.is_empty(), "no small case launches this:\n{}", missing.join("\n"));
}

/// In TF32 every product of a linear layer, a convolution and attention is one of TF32, and in f32 none is. Few channels have a kernel of f32.
#[test]
fn products_in_tf32_are_of_tf32() {
    let products = ["linear_fwd", "linear_bwd_input", "linear_bwd_weight", "linear_bwd_bias", "conv2d_fwd"];
    let products =
        [&products[..], &["conv2d_bwd_input", "conv2d_bwd_weight", "attention_fwd", "attention_bwd"]].concat();
    let is_product = |name: &str| products.iter().any(|product| name.starts_with(product)) && !name.contains("_thin_");
    let mut met = 0;
    for case in cases().iter_mut().filter(|case| !case.large && OPS_IN_TF32.contains(&case.op)) {
        for tf32 in [false, true] {
            let launches = kinds::launches(case, DType::F32, tf32);
            if case.name.contains("_chain_") {
                // The next layer's product multiplies by the derivative, where nothing else uses the activation.
                let by_itself = launches.iter().any(|launch| launch.kernel == "linear_bwd_activation_f32");
                assert_eq!(by_itself, !tf32 || case.name.contains("used_twice"), "{}", case.id());
            }
            for launch in launches.iter().filter(|launch| is_product(launch.kernel)) {
                assert_eq!(launch.kernel.ends_with("_tf32"), tf32, "{}: {}", case.id(), launch.kernel);
                met += usize::from(tf32);
            }
        }
    }
    assert!(met > 100, "{met} products");
}

/// A driver compiles a module while loading it: a program loads exactly the modules it needs before its first run.
#[test]
fn a_program_loads_the_modules_that_it_launches_from() {
    let only = std::env::var("ENGINE_OP").ok();
    for case in cases().iter().filter(|case| !case.large && only.as_deref().is_none_or(|op| case.op == op)) {
        for dtype in [DType::F32, DType::BF16] {
            let (loaded, launched) = kinds::modules(case, dtype);
            assert_eq!(loaded, launched, "{} {dtype}", case.id());
        }
    }
}
