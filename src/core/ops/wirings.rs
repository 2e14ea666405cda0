//! Which inputs of a case want a gradient, and what becomes of each gradient's destination.

use super::case::{Case, Input, Outcome, relative_error};
use super::input::{round, uniform};
use super::instruments::poisoned;
use crate::error::Result;
use crate::tape::{Accumulate, Tape};
use crate::tensor::{Context, DType, Device};

/// By input, whether its gradient is wanted and what is done with its destination.
type Wiring = Vec<Option<Accumulate>>;

/// Choices of inputs that want a gradient: each of up to five inputs; of more, single ones, pairs, all but one and all. In a
/// choice every second destination is written and the others are added to, then the other way round; where all are wanted, also
/// all written and all added to.
fn wirings(inputs: &[Input]) -> Vec<Wiring> {
    let wanted: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].gradient).collect();
    let all = (1u32 << wanted.len()) - 1;
    let mut wirings = Vec::new();
    for choice in 1..=all {
        let count = choice.count_ones() as usize;
        if wanted.len() > 5 && count > 2 && count + 1 < wanted.len() {
            continue;
        }
        let chosen = || wanted.iter().enumerate().filter(|(bit, _)| choice >> bit & 1 == 1).map(|(_, &input)| input);
        let mut push = |mode: &dyn Fn(usize) -> Accumulate| {
            let mut wiring = vec![None; inputs.len()];
            chosen().enumerate().for_each(|(nth, input)| wiring[input] = Some(mode(nth)));
            if !wirings.contains(&wiring) {
                wirings.push(wiring);
            }
        };
        let alternate = |nth: usize| if nth.is_multiple_of(2) { Accumulate::Write } else { Accumulate::Add };
        push(&alternate);
        push(&|nth| alternate(nth + 1));
        if choice == all {
            push(&|_| Accumulate::Write);
            push(&|_| Accumulate::Add);
        }
    }
    wirings
}

impl Case {
    /// Use 6: whichever inputs want a gradient, each arrives where it is to go, with the bits that it has when all are wanted;
    /// and where it is to be added to what is there, the sum arrives. In `dtype`, on a poisoned context.
    pub fn check_wirings(&self, device: &Device, dtype: DType) -> Result<()> {
        let context = poisoned(device.clone());
        let values = self.values(dtype, 1);
        let all = self.run(&context, dtype, dtype, 1)?;
        wirings(&self.inputs).iter().try_for_each(|wiring| self.check_wiring(wiring, &all, &context, dtype, &values))
    }

    fn check_wiring(
        &self,
        wiring: &Wiring,
        all: &Outcome,
        context: &Context,
        dtype: DType,
        values: &[Vec<f64>],
    ) -> Result<()> {
        let fault = |message: String| {
            let names = self.inputs.iter().zip(wiring);
            let names = names.filter_map(|(input, mode)| mode.map(|mode| format!("{} {mode:?}", input.name)));
            let names = names.collect::<Vec<_>>().join(", ");
            self.fault(format!("{} {dtype}, gradients of [{names}]: {message}", context.device_name()))
        };
        let tape = Tape::new(context);
        let (mut vars, mut expected) = (Vec::new(), Vec::new());
        let tensors = self.tensors(context, dtype, values)?;
        for (number, (input, (tensor, mode))) in self.inputs.iter().zip(tensors.iter().zip(wiring)).enumerate() {
            let Some(mode) = *mode else {
                vars.push(tape.constant(tensor));
                continue;
            };
            let Some((_, alone, stored)) = all.gradients.iter().find(|(name, ..)| *name == input.name) else {
                return Err(fault(format!("no gradient arrives at {} where all are wanted", input.name)));
            };
            let gradient = context.persistent(input.shape, *stored)?;
            let mut sum = alone.clone();
            if mode == Accumulate::Add {
                // Of the gradient's own size, so that neither hides the other; a gradient of rounding errors has none.
                let size = (alone.iter().map(|g| g * g).sum::<f64>() / alone.len() as f64).sqrt();
                let size = if size > 1e-5 { size } else { 1.0 };
                let before = uniform(11, number as u32, alone.len()).into_iter();
                let before: Vec<f64> = before.map(|u| round(size * (2.0 * u - 1.0), *stored)).collect();
                gradient.upload_f64(&before)?;
                sum.iter_mut().zip(before).for_each(|(sum, before)| *sum += before);
            }
            vars.push(tape.parameter(tensor, &gradient, mode));
            expected.push((input.name, mode, gradient, sum));
        }
        let outputs = (self.build)(&tape, &vars)?;
        let Some(output) = outputs.iter().find(|output| output.needs_gradient()) else {
            return Err(fault("no output depends on them".into()));
        };
        tape.backward(output, self.cotangent(output, dtype)?).map_err(|error| fault(error.to_string()))?;
        context.synchronize()?;
        for (n, (output, (values, _))) in outputs.iter().zip(&all.outputs).enumerate() {
            if output.tensor().to_f64()? != *values {
                return Err(fault(format!("output {n} has other bits than where all gradients are wanted")));
            }
        }
        for (name, mode, gradient, sum) in expected {
            let value = gradient.to_f64()?;
            let error = relative_error(&sum, &value);
            let order = DType::F32.epsilon() * (2.0 + (self.sum_length as f64).sqrt());
            let allowed = if mode == Accumulate::Add { 2.0 * gradient.dtype().epsilon() + order } else { 0.0 };
            if error.is_nan() || error > allowed {
                return Err(fault(format!("{name}: relative error {error:.2e}, allowed {allowed:.2e}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(differentiable: usize) -> Vec<Wiring> {
        let mut inputs = vec![Input::activation("x", [1]); differentiable];
        inputs.push(Input::bytes("pixels", [1]));
        wirings(&inputs)
    }

    #[test]
    fn each_choice_of_inputs_is_there_both_ways() {
        use Accumulate::{Add, Write};
        assert_eq!(count(0), Vec::<Wiring>::new());
        assert_eq!(count(1), [[Some(Write), None], [Some(Add), None]]);
        assert_eq!(count(2).len(), 8);
        assert!(count(2).contains(&vec![Some(Add), Some(Write), None]));
        assert_eq!(count(5).len(), 2 * 31 + 2);
        // Single ones, pairs, all but one, all.
        assert_eq!(count(6).len(), 2 * (6 + 15 + 6 + 1) + 2);
        for wanted in [2, 5, 6] {
            let wirings = count(wanted);
            for input in 0..wanted {
                for mode in [Write, Add] {
                    assert!(wirings.iter().any(|wiring| wiring[input] == Some(mode)));
                }
                assert!(
                    wirings
                        .iter()
                        .any(|wiring| wiring.iter().flatten().count() == wanted - 1 && wiring[input].is_none())
                );
            }
        }
    }
}
