//! Cases of the optimizer's step: what it mutates comes back as outputs.

use super::{AdamW, AdamWState, adamw, gradient_norm, record};
use crate::ops::case::{Case, Input, Values};
use crate::ops::control::Control;
use crate::tape::Var;

fn control(micro: u32) -> Input {
    let control = Control {
        learning_rate: 2e-3,
        first_correction: 1.0 / (1.0 - 0.9),
        second_correction: 1.0 / (1.0 - 0.999),
        ema_decay: 0.99,
        row: 2,
        micro,
        ..Control::default()
    };
    Input::words("control", &control.words())
}

fn flat(name: &'static str, n: usize) -> Input {
    Input::parameter(name, [n]).constant()
}

/// Norm, clipping and step. `copies`: with an average and with weights of the dtype under test.
fn step(name: &str, n: usize, max_norm: Option<f32>, decoupled: bool, copies: bool) -> Case {
    let mut inputs = vec![
        flat("parameters", n),
        flat("gradients", n),
        flat("first", n).with(Values::Uniform(-0.1, 0.1)),
        flat("second", n).with(Values::Uniform(0.01, 0.1)),
        flat("statistics", 4),
        control(0),
    ];
    if copies {
        inputs.extend([flat("ema", n), Input::weight("compute", [n]).constant()]);
    }
    let hyper = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, decoupled };
    Case::new("adamw", name, inputs, move |tape, inputs| {
        let tensors: Vec<_> = inputs.iter().map(|var| var.tensor().clone()).collect();
        let (control, statistics) = (&tensors[5], &tensors[4]);
        let state = AdamWState {
            parameters: &tensors[0],
            compute: tensors.get(7),
            gradients: &tensors[1],
            first: &tensors[2],
            second: &tensors[3],
            ema: tensors.get(6),
        };
        gradient_norm(tape.context(), state.gradients, statistics, max_norm)?;
        adamw(tape.context(), &state, control, statistics, hyper)?;
        let mutated = [0, 2, 3, 4, 6, 7];
        Ok(mutated.iter().filter_map(|&i| inputs.get(i).cloned()).collect())
    })
    .sums(n)
}

fn metrics(name: &str, micro: u32, terms: usize) -> Case {
    let width = 2 + terms;
    let mut inputs = vec![
        flat("ring", 5 * width).with(Values::Uniform(0.5, 1.0)),
        flat("loss", 1).with(Values::Uniform(0.5, 1.0)),
        flat("statistics", 4),
        control(micro),
    ];
    if terms > 0 {
        inputs.push(flat("terms", terms));
    }
    Case::new("adamw", name, inputs, move |tape, inputs| {
        let [ring, loss, statistics, control] = [0, 1, 2, 3].map(|i| inputs[i].tensor());
        let rows = ring.view([5, width])?;
        record(tape.context(), &rows, loss, inputs.get(4).map(Var::tensor), statistics, control)?;
        // The whole ring is the input; what a step touches is one row.
        Ok(vec![tape.constant(&ring.part(2 * width, [width])?)])
    })
}

/// Clipped and not, both kinds of decay, with and without copies, sizes with tails and of several parts.
pub fn cases() -> Vec<Case> {
    vec![
        step("clipped_copies_n9001", 9001, Some(1.0), true, true),
        step("copies_n1027", 1027, Some(1e3), true, true),
        step("plain_l2_n5", 5, None, false, false),
        step("misaligned_gradients_n41", 41, Some(1.0), true, true).misaligned(&["gradients"]),
        step("misaligned_weights_n41", 41, Some(1.0), true, true).misaligned(&["parameters", "ema", "compute"]),
        metrics("record_first", 0, 0),
        metrics("record_adds_terms", 2, 5),
        step("clipped_copies_n19108048", 19_108_048, Some(1.0), true, true).large(),
    ]
}
