use super::*;
use crate::tensor::{Context, DType};

const OP: &str = "doubled";

/// The fault of a backward.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    NotAsked,
    NotWritten,
    Twice,
}

/// a + b, whose backward is `fault`.
fn sum(tape: &Tape, a: &Var, b: &Var, fault: Fault) -> Result<Var> {
    let y = tape.context().empty(a.shape(), a.dtype())?;
    if !matches!(tape.context().backend(), crate::tensor::Backend::Plan) {
        let terms = a.tensor().host::<f32>().iter().zip(b.tensor().host::<f32>());
        y.host_mut::<f32>().iter_mut().zip(terms).for_each(|(y, (a, b))| *y = a + b);
    }
    let mut inputs = tape.inputs(OP);
    let (da, db) = (inputs.add("a", a), inputs.add("b", b));
    Ok(inputs.record(y, move |backward| {
        if fault == Fault::Twice {
            let (_a, _b) = (backward.destination(da)?, backward.destination(db)?);
            return Ok(());
        }
        backward.pass(da)?;
        match fault {
            Fault::None => backward.pass(db),
            Fault::NotWritten => backward.destination(db).map(drop),
            _ => Ok(()),
        }
    }))
}

fn outcome(fault: Fault, same: bool, wanted: bool) -> Result<Vec<f32>> {
    let context = Context::cpu();
    let tape = Tape::new(&context);
    let (a, b) = (context.tensor(&[1f32, 2.0], [2])?, context.tensor(&[3f32, 4.0], [2])?);
    let a = tape.leaf(&a);
    let b = if wanted { tape.leaf(&b) } else { tape.constant(&b) };
    let y = sum(&tape, &a, if same { &a } else { &b }, fault)?;
    tape.backward(&y, context.tensor(&[5f32, 6.0], [2])?)?;
    tape.gradient(&a).expect("a's").download()
}

#[test]
fn a_gradient_that_is_left_out_is_refused_by_name() {
    assert_eq!(outcome(Fault::None, false, true).unwrap(), [5.0, 6.0]);
    let asked = outcome(Fault::NotAsked, false, true).unwrap_err().to_string();
    assert!(asked.starts_with("doubled: b ") && asked.contains("not asked"), "{asked}");
    let written = outcome(Fault::NotWritten, false, true).unwrap_err().to_string();
    assert!(written.starts_with("doubled: b ") && written.contains("never written"), "{written}");
    // A gradient that nobody wants may be left out.
    assert_eq!(outcome(Fault::NotAsked, false, false).unwrap(), [5.0, 6.0]);
    assert_eq!(outcome(Fault::NotWritten, false, false).unwrap(), [5.0, 6.0]);
}

#[test]
fn two_destinations_of_one_variable_at_a_time_are_refused() {
    assert_eq!(outcome(Fault::None, true, true).unwrap(), [10.0, 12.0]);
    let twice = outcome(Fault::Twice, true, true).unwrap_err().to_string();
    assert!(twice.contains("a and b are one variable"), "{twice}");
}

#[test]
fn a_plan_writes_nothing_and_still_asks() {
    let run = |fault| -> Result<()> {
        let context = Context::shape_only();
        let tape = Tape::new(&context);
        let zeros = || context.zeros([2], DType::F32);
        let y = sum(&tape, &tape.leaf(&zeros()?), &tape.leaf(&zeros()?), fault)?;
        tape.backward(&y, zeros()?)
    };
    assert!(run(Fault::NotWritten).is_ok());
    assert!(run(Fault::NotAsked).unwrap_err().to_string().contains("not asked"));
}

#[test]
fn a_kernels_argument_counts_once_a_launch_takes_it() {
    let context = Context::cpu();
    let written = Rc::default();
    let destination = Destination::new(context.zeros([2], DType::F32).unwrap(), Accumulate::Write, Rc::clone(&written));
    let argument = destination.slice_mut::<f32>();
    assert!(!written.get());
    argument.argument();
    assert!(written.get());
}

#[test]
fn a_destination_that_can_only_be_added_to_starts_from_zero() {
    let context = Context::cpu();
    for (mode, first) in [(Accumulate::Write, 0.0), (Accumulate::Add, 7.0)] {
        let tensor = context.tensor(&[7f32], [1]).unwrap();
        let written: Rc<std::cell::Cell<bool>> = Rc::default();
        let sum = Destination::new(tensor.clone(), mode, written.clone()).into_sum().unwrap();
        assert!(sum.mode == Accumulate::Add && !written.get());
        assert_eq!(tensor.host::<f32>(), [first]);
        sum.host_mut::<f32>()[0] += 1.0;
        assert!(written.get() && tensor.host::<f32>() == [first + 1.0]);
    }
}

#[test]
fn a_parameters_gradient_is_told_of_when_nothing_changes_it_any_more() -> Result<()> {
    let context = Context::cpu();
    let flat = context.tensor(&[9f32; 8], [8])?;
    let tape = Tape::new(&context);
    let weights = context.zeros([2], DType::F32)?;
    let parameter = |number: usize, mode| Ok::<_, Error>(tape.parameter(&weights, &flat.part(2 * number, [2])?, mode));
    let (first, second) = (parameter(0, Accumulate::Write)?, parameter(1, Accumulate::Add)?);
    let (unused, aside) = (parameter(2, Accumulate::Write)?, parameter(3, Accumulate::Add)?);
    let early = sum(&tape, &first, &second, Fault::None)?;
    // Used by something that does not lead to the loss.
    sum(&tape, &aside, &early, Fault::None)?;
    let output = sum(&tape, &early, &second, Fault::None)?;
    assert!(unused.needs_gradient());
    let mut told = Vec::new();
    tape.backward_then(&output, context.tensor(&[5f32, 6.0], [2])?, |gradient| {
        told.push((gradient.offset_in(&flat).unwrap() / 2, gradient.download::<f32>()?));
        Ok(())
    })?;
    // The second is used last, but first too: it is whole where the first is.
    let expected = [(3, vec![9.0; 2]), (0, vec![5.0, 6.0]), (1, vec![19.0, 21.0]), (2, vec![0.0; 2])];
    assert_eq!(told, expected);
    Ok(())
}

/// f(x) = x² with its chain, number 3; the gradient of x is 2 x dy, and where the chain was taken what arrived.
fn squared(tape: &Tape, x: &Var) -> Result<Var> {
    let y = tape.context().tensor(&x.tensor().host::<f32>().iter().map(|x| x * x).collect::<Vec<_>>(), x.shape())?;
    let z = tape.context().tensor(x.tensor().host::<f32>(), x.shape())?;
    let mut inputs = tape.inputs("squared");
    let dx = inputs.add("x", x);
    let chain = Chain { z: z.clone(), code: 3 };
    Ok(inputs.record_chained(y, chain, move |backward| {
        if backward.is_chained() {
            return backward.pass(dx);
        }
        let dx = backward.destination(dx)?.expect("a gradient is wanted");
        let terms = z.host::<f32>().iter().zip(backward.gradient().host::<f32>());
        dx.host_mut::<f32>().iter_mut().zip(terms).for_each(|(dx, (z, dy))| *dx = 2.0 * z * dy);
        Ok(())
    }))
}

/// 5 x, whose backward can take a chain; and whether it was given one.
fn times_five(tape: &Tape, x: &Var, taken: &Rc<std::cell::Cell<bool>>) -> Result<Var> {
    let y = tape.context().tensor(&x.tensor().host::<f32>().iter().map(|x| 5.0 * x).collect::<Vec<_>>(), x.shape())?;
    let mut inputs = tape.inputs("times_five");
    let (dx, taken) = (inputs.add("x", x), taken.clone());
    Ok(inputs.record(y, move |backward| {
        let dx = backward.chained_destination(dx)?.expect("a gradient is wanted");
        taken.set(dx.flag() == 4);
        let terms = backward.gradient().host::<f32>();
        let flag = dx.flag();
        dx.host_mut::<f32>().iter_mut().zip(terms).for_each(|(dx, dy)| match flag {
            0 => *dx = 5.0 * dy,
            1 => *dx += 5.0 * dy,
            _ => *dx *= 2.0 * 5.0 * dy,
        });
        Ok(())
    }))
}

/// d/dx of 5 x² is 10 x, whoever works out the square's part; with a second use of the square nobody else may.
#[test]
fn the_only_consumer_of_a_chain_may_take_it() -> Result<()> {
    for second in [false, true] {
        let context = Context::cpu();
        let (tape, taken) = (Tape::new(&context), Rc::default());
        let x = tape.leaf(&context.tensor(&[1f32, -2.0], [2])?);
        let square = squared(&tape, &x)?;
        let mut y = times_five(&tape, &square, &taken)?;
        if second {
            y = sum(&tape, &y, &square, Fault::None)?;
        }
        tape.backward(&y, context.tensor(&[1f32, 10.0], [2])?)?;
        let slope = if second { 12.0 } else { 10.0 };
        assert_eq!(tape.gradient(&x).expect("x's").download::<f32>()?, [slope, -20.0 * slope]);
        assert_eq!(taken.get(), !second);
    }
    Ok(())
}
