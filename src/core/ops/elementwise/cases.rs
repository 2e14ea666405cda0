//! Cases of the elementwise family.

use super::{add, cast, gelu, relu, relu6, scale, silu};
use crate::error::Result;
use crate::ops::case::{Case, Input, Values};
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Shape};

fn unary(name: String, shape: Shape, f: fn(&Tape, &Var) -> Result<Var>) -> Case {
    let inputs = vec![Input::activation("x", shape).with(Values::Uniform(-6.0, 6.0))];
    Case::new("elementwise", name, inputs, move |tape, inputs| Ok(vec![f(tape, &inputs[0])?]))
}

/// Values between -8 and 8 in steps of 1/8, a sixteenth off the places where the function has a bend.
fn bent(name: String, shape: Shape, f: fn(&Tape, &Var) -> Result<Var>) -> Case {
    let values = (0..shape.len()).map(|i| (i * 37 % 128) as f64 / 8.0 - 8.0 + 1.0 / 16.0).collect();
    let inputs = vec![Input::activation("x", shape).with(Values::Given(values))];
    Case::new("elementwise", name, inputs, move |tape, inputs| Ok(vec![f(tape, &inputs[0])?]))
}

/// Lengths around the 16 bytes of an access and the threads of a block, and some large enough to time.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [Shape::from([1]), Shape::from([7, 9]), Shape::from([3, 16, 65])] {
        cases.push(unary(format!("gelu_{}", shape.len()), shape, gelu));
        cases.push(unary(format!("silu_{}", shape.len()), shape, silu));
        cases.push(bent(format!("relu_{}", shape.len()), shape, relu));
        cases.push(bent(format!("relu6_{}", shape.len()), shape, relu6));
        let inputs = vec![Input::activation("a", shape), Input::activation("b", shape)];
        cases.push(Case::new("elementwise", format!("add_{}", shape.len()), inputs, |tape, inputs| {
            Ok(vec![add(tape, &inputs[0], &inputs[1])?])
        }));
        let inputs = vec![Input::activation("x", shape)];
        cases.push(Case::new("elementwise", format!("scale_{}", shape.len()), inputs, |tape, inputs| {
            Ok(vec![scale(tape, &inputs[0], -0.3)?])
        }));
        let inputs = vec![Input::activation("x", shape)];
        cases.push(Case::new("elementwise", format!("widen_{}", shape.len()), inputs, |tape, inputs| {
            Ok(vec![scale(tape, &cast(tape, &inputs[0], DType::F32)?, 2.0)?])
        }));
        // The second input tells the dtype under test. A cast to the same dtype is nothing, so something exact follows it.
        let inputs = vec![Input::parameter("x", shape), Input::activation("like", [1]).constant()];
        cases.push(Case::new("elementwise", format!("narrow_{}", shape.len()), inputs, |tape, inputs| {
            Ok(vec![scale(tape, &cast(tape, &inputs[0], inputs[1].dtype())?, 2.0)?])
        }));
    }
    // Twice the same variable: its gradients are summed.
    let inputs = vec![Input::activation("x", [5, 13])];
    cases.push(Case::new("elementwise", "sum_of_uses", inputs, |tape, inputs| {
        let x = &inputs[0];
        let both = add(tape, &gelu(tape, x)?, &scale(tape, x, 0.7)?)?;
        Ok(vec![add(tape, &add(tape, &both, x)?, &silu(tape, x)?)?])
    }));
    cases.push(unary("gelu_b256_t65_d1536".into(), Shape::from([256, 65, 1536]), gelu).large());
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::instruments::poisoned;
    use crate::tensor::Device;

    #[test]
    fn bends_have_no_gradient_and_nan_stays() {
        let context = poisoned(Device::Cpu);
        let tape = Tape::new(&context);
        let x = tape.leaf(&context.tensor(&[-1.0f32, 0.0, 6.0, 7.0, 3.0], [5]).unwrap());
        let y = relu6(&tape, &x).unwrap();
        assert_eq!(y.tensor().host::<f32>(), [0.0, 0.0, 6.0, 6.0, 3.0]);
        tape.backward(&y, context.tensor(&[1.0f32; 5], [5]).unwrap()).unwrap();
        assert_eq!(tape.gradient(&x).unwrap().host::<f32>(), [0.0, 0.0, 0.0, 0.0, 1.0]);
        for f in [relu, relu6] {
            let nan = tape.constant(&context.tensor(&[f32::NAN], [1]).unwrap());
            assert!(f(&tape, &nan).unwrap().tensor().host::<f32>()[0].is_nan());
        }
    }
}
