//! Cases: one list of shapes and seeded inputs per op, with seven uses.
//!
//! 1. [`Case::check_oracle`]: the CPU op in `f32` against itself in `f64`;
//! 2. [`Case::check_gradients`]: gradients against finite differences in `f64`, with random cotangents;
//! 3. [`Case::check_device`]: kernels (emulated or real) against the CPU op, in `f32` and `bf16`;
//! 4. [`Case::prepare`]: a closure to be timed (`cargo bench`), on a GPU by [`Repeats`](super::repeats::Repeats);
//! 5. [`Case::check_cost`]: the cost model against the tensors' sizes;
//! 6. [`Case::check_wirings`]: every choice of inputs that want a gradient, each gradient written and added to (`wirings.rs`);
//! 7. [`Case::check_tf32`]: kernels whose factors are rounded to TF32 against the CPU op (`tf32.rs`).

use super::input::{Grid, round, uniform};
pub use super::input::{Input, Kind, Values};
use super::instruments::{poisoned, rounded};
use crate::error::{Error, Result};
use crate::tape::{Accumulate, Tape, Var};
use crate::tensor::{Context, Cost, DType, Device, Program, Shape, Tensor};

/// Builds the op's outputs from its inputs. The first output that wants a gradient gets the cotangent.
pub type Build = Box<dyn Fn(&Tape, &[Var]) -> Result<Vec<Var>> + Send + Sync>;

/// A shape with seeded inputs.
pub struct Case {
    /// The op: the folder under `src/core/ops`.
    pub op: &'static str,
    /// Its distinguishing trait: `b2_t65_d384`, `odd`, `no_bias`.
    pub name: String,
    /// The inputs in the order in which `build` takes them.
    pub inputs: Vec<Input>,
    /// The op.
    pub build: Build,
    /// The longest sum behind an output or gradient element: sums of `n` terms in another order differ by about
    /// `epsilon * sqrt(n)`.
    pub sum_length: usize,
    /// Results of a product are factors of another one.
    pub(super) chained: bool,
    /// Too large for the emulator and finite differences: benchmarks and real devices only.
    pub large: bool,
    /// Tensors that begin an element behind what is aligned.
    misaligned: Vec<&'static str>,
}

/// The results of a case.
pub struct Outcome {
    /// Outputs and their dtypes.
    pub outputs: Vec<(Vec<f64>, DType)>,
    /// Gradients of the differentiable inputs and their dtypes, by input name.
    pub gradients: Vec<(&'static str, Vec<f64>, DType)>,
}

impl Case {
    /// A small case.
    pub fn new(
        op: &'static str,
        name: impl Into<String>,
        inputs: Vec<Input>,
        build: impl Fn(&Tape, &[Var]) -> Result<Vec<Var>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            op,
            name: name.into(),
            inputs,
            build: Box::new(build),
            sum_length: 1,
            chained: false,
            large: false,
            misaligned: Vec::new(),
        }
    }

    /// States the longest sum.
    pub fn sums(mut self, length: usize) -> Self {
        self.sum_length = length;
        self
    }

    /// Marks it as too large for the emulator and for finite differences.
    pub fn large(mut self) -> Self {
        self.large = true;
        self
    }

    /// States that results of a product are factors of another one.
    pub fn chained(mut self) -> Self {
        self.chained = true;
        self
    }

    /// With these inputs constant: without their gradients' work.
    pub fn constants(mut self, names: &[&'static str]) -> Self {
        self.inputs.iter_mut().filter(|input| names.contains(&input.name)).for_each(|input| input.gradient = false);
        self
    }

    /// Lets some inputs, by name, or the `cotangent` begin one element into their memory, as parts of a larger tensor do: kernels
    /// read four elements at once only where they may.
    pub fn misaligned(mut self, names: &[&'static str]) -> Self {
        self.misaligned.extend(names);
        self
    }

    /// Memory for an input or the cotangent.
    fn memory(&self, context: &Context, name: &str, shape: Shape, dtype: DType) -> Result<Tensor> {
        if self.misaligned.contains(&name) {
            return context.persistent([shape.len() + 1], dtype)?.part(1, shape);
        }
        context.persistent(shape, dtype)
    }

    /// `op/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.op, self.name)
    }

    pub(super) fn values(&self, dtype: DType, seed: u64) -> Vec<Vec<f64>> {
        self.values_on(Grid::Of(dtype), seed)
    }

    fn values_on(&self, grid: Grid, seed: u64) -> Vec<Vec<f64>> {
        self.inputs.iter().enumerate().map(|(number, input)| input.fill(seed, number as u32, grid)).collect()
    }

    pub(super) fn tensors(&self, context: &Context, dtype: DType, values: &[Vec<f64>]) -> Result<Vec<Tensor>> {
        let inputs = self.inputs.iter().zip(values);
        inputs
            .map(|(input, values)| {
                let tensor = self.memory(context, input.name, input.shape, input.dtype(dtype))?;
                tensor.upload_f64(values)?;
                Ok(tensor)
            })
            .collect()
    }

    /// Puts `values` on the device as variables of a tape. Gradients of weights go to an `f32` tensor.
    fn place(&self, tape: &Tape, dtype: DType, values: &[Vec<f64>]) -> Result<Vec<Var>> {
        let tensors = self.tensors(tape.context(), dtype, values)?;
        let gradients = self.weight_gradients(tape.context(), dtype)?;
        Ok(self.variables(tape, &tensors, &gradients))
    }

    fn variables(&self, tape: &Tape, tensors: &[Tensor], gradients: &[Option<Tensor>]) -> Vec<Var> {
        let inputs = self.inputs.iter().zip(tensors).zip(gradients);
        inputs
            .map(|((input, tensor), gradient)| match gradient {
                Some(gradient) => tape.parameter(tensor, gradient, Accumulate::Write),
                None if input.gradient => tape.leaf(tensor),
                None => tape.constant(tensor),
            })
            .collect()
    }

    /// The cotangent: uniform in [-1, 1], rounded to `rounded`, of the output's dtype.
    pub(super) fn cotangent(&self, output: &Var, rounded: DType) -> Result<Tensor> {
        self.cotangent_on(output, Grid::Of(rounded))
    }

    fn cotangent_on(&self, output: &Var, grid: Grid) -> Result<Tensor> {
        let values: Vec<f64> =
            uniform(7, 1000, output.shape().len()).into_iter().map(|u| grid.round(2.0 * u - 1.0)).collect();
        let tensor = self.memory(output.context(), "cotangent", output.shape(), output.dtype())?;
        tensor.upload_f64(&values)?;
        Ok(tensor)
    }

    /// Runs forward and, where something is differentiable, backward. Inputs and cotangent are rounded to `rounded`.
    pub fn run(&self, context: &Context, dtype: DType, rounded: DType, seed: u64) -> Result<Outcome> {
        self.run_on(context, dtype, Grid::Of(rounded), seed)
    }

    /// As [`Case::run`], with inputs and cotangent on a grid.
    pub(super) fn run_on(&self, context: &Context, dtype: DType, grid: Grid, seed: u64) -> Result<Outcome> {
        let tape = Tape::new(context);
        let inputs = self.place(&tape, dtype, &self.values_on(grid, seed))?;
        let outputs = (self.build)(&tape, &inputs)?;
        if let Some(output) = outputs.iter().find(|output| output.needs_gradient()) {
            // Every dtype under test gets equal values, also where a bf16 op has an f32 output (a loss).
            let cotangent = self.cotangent_on(output, grid)?;
            tape.backward(output, cotangent)?;
        }
        context.synchronize()?;
        let outputs = outputs.iter().map(|var| Ok((var.tensor().to_f64()?, var.dtype()))).collect::<Result<_>>()?;
        let mut gradients = Vec::new();
        for (input, var) in self.inputs.iter().zip(&inputs) {
            if let Some(gradient) = tape.gradient(var) {
                gradients.push((input.name, gradient.to_f64()?, gradient.dtype()));
            }
        }
        Ok(Outcome { outputs, gradients })
    }

    /// Use 1: the CPU op in `f32` against `f64`.
    pub fn check_oracle(&self) -> Result<()> {
        let context = poisoned(Device::Cpu);
        let exact = self.run(&context, DType::F64, DType::F32, 1)?;
        let single = self.run(&context, DType::F32, DType::F32, 1)?;
        let allowed = (8.0 + 2.0 * (self.sum_length as f64).sqrt()) * DType::F32.epsilon();
        for (what, reference, value, _) in pairs(&exact, &single) {
            let error = relative_error(&reference, &value);
            if error.is_nan() || error > allowed {
                return Err(self.fault(format!("cpu f32 {what}: relative error {error:.2e}, allowed {allowed:.2e}")));
            }
        }
        Ok(())
    }

    /// Use 2: gradients in `f64` against central differences of fourth order, to a relative error of 1e-6.
    pub fn check_gradients(&self) -> Result<()> {
        if !self.inputs.iter().any(|input| input.gradient) {
            return Ok(());
        }
        let context = poisoned(Device::Cpu);
        let values = self.values(DType::F32, 1);
        let outcome = self.run(&context, DType::F64, DType::F32, 1)?;
        // The scalar that is differentiated: the output with the gradient, times the cotangent.
        let scalar = |values: &[Vec<f64>]| -> Result<f64> {
            let tape = Tape::new(&context);
            let outputs = (self.build)(&tape, &self.place(&tape, DType::F64, values)?)?;
            let output = outputs
                .iter()
                .find(|output| output.needs_gradient())
                .ok_or_else(|| self.fault("has differentiable inputs, but no output that depends on them".into()))?;
            let cotangent = self.cotangent(output, DType::F32)?;
            Ok(output.tensor().host::<f64>().iter().zip(cotangent.host::<f64>()).map(|(y, c)| y * c).sum())
        };
        for (number, input) in self.inputs.iter().enumerate().filter(|(_, input)| input.gradient) {
            let Some((_, gradient, _)) = outcome.gradients.iter().find(|(name, ..)| *name == input.name) else {
                return Err(self.fault(format!("no gradient arrived at {}", input.name)));
            };
            let len = values[number].len();
            for trial in 0..6u32 {
                // Two dense directions, then single elements, first and last included.
                let picked = match trial {
                    2 => Some(0),
                    3 => Some(len - 1),
                    4 | 5 => Some((uniform(3 + trial as u64, number as u32, 1)[0] * len as f64) as usize % len),
                    _ => None,
                };
                let direction: Vec<f64> = match picked {
                    Some(element) => (0..len).map(|index| (index == element) as u8 as f64).collect(),
                    None => uniform(5 + trial as u64, number as u32, len).iter().map(|u| 2.0 * u - 1.0).collect(),
                };
                let at = |step: f64| -> Result<f64> {
                    let mut moved = values.clone();
                    moved[number].iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
                    scalar(&moved)
                };
                let h = 1e-3 / direction.iter().map(|d| d * d).sum::<f64>().sqrt();
                let numeric = (8.0 * (at(h)? - at(-h)?) - (at(2.0 * h)? - at(-2.0 * h)?)) / (12.0 * h);
                let analytic: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
                let typical = gradient.iter().map(|g| g * g).sum::<f64>().sqrt() / (len as f64).sqrt() * length;
                let scale = numeric.abs().max(analytic.abs()).max(typical).max(1e-6);
                let error = (numeric - analytic).abs() / scale;
                if error.is_nan() || error > 1e-6 {
                    return Err(self.fault(format!(
                        "gradient of {}, direction {trial}: {analytic:.9e}, finite differences {numeric:.9e}",
                        input.name
                    )));
                }
            }
        }
        Ok(())
    }

    /// Use 3: kernels against the CPU op. The error allowed is twice that of the CPU op in `f32` with inputs, outputs
    /// and declared intermediates rounded to `dtype`, plus what another order of the longest sum can make.
    ///
    /// # Errors
    /// The differences and their sizes; and the op's own.
    pub fn check_device(&self, device: &Device, dtype: DType) -> Result<Outcome> {
        let context = poisoned(device.clone());
        let outcome = self.run(&context, dtype, dtype, 1)?;
        let exact = self.run(&poisoned(Device::Cpu), DType::F64, dtype, 1)?;
        let rounded = self.run(&rounded(dtype), DType::F32, dtype, 1)?;
        self.compare(&format!("{} {dtype}", context.device_name()), [&exact, &rounded], &outcome, |_| true)?;
        Ok(outcome)
    }

    /// An outcome of kernels against f64's, by the error of the second one; of `what` is wanted.
    pub(super) fn compare(
        &self,
        label: &str,
        [exact, rounded]: [&Outcome; 2],
        outcome: &Outcome,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let order = DType::F32.epsilon() * (2.0 + (self.sum_length as f64).sqrt());
        let references = pairs(exact, rounded);
        let values = pairs(exact, outcome);
        if references.len() != values.len() {
            return Err(self.fault(format!("{label}: other outputs or gradients than on the cpu")));
        }
        let both = references.into_iter().zip(values).filter(|((what, ..), _)| wanted(what));
        for ((what, reference, cpu, _), (_, _, value, stored)) in both {
            let cpu: Vec<f64> = cpu.into_iter().map(|x| round(x, stored)).collect();
            let allowed = 2.0 * relative_error(&reference, &cpu) + order;
            let error = relative_error(&reference, &value);
            if error.is_nan() || error > allowed {
                return Err(self.fault(format!("{label} {what}: relative error {error:.2e}, allowed {allowed:.2e}")));
            }
            let allowed = 4.0 * largest_error(&reference, &cpu) + 4.0 * order;
            let error = largest_error(&reference, &value);
            if error.is_nan() || error > allowed {
                return Err(self.fault(format!(
                    "{label} {what}: largest error {error:.2e} of the largest value, allowed {allowed:.2e}"
                )));
            }
        }
        Ok(())
    }

    /// The run that [`Case::check_device`] looks at, alone: memory that the op does not write holds NaN.
    ///
    /// # Errors
    /// The op's own.
    pub fn run_poisoned(&self, device: &Device, dtype: DType) -> Result<Outcome> {
        self.run(&poisoned(device.clone()), dtype, dtype, 1)
    }

    /// Use 4: the op, forward and (where differentiable) backward, ready to be timed.
    pub fn prepare(&self, context: &Context, dtype: DType) -> Result<PreparedCase<'_>> {
        let tensors = self.tensors(context, dtype, &self.values(dtype, 1))?;
        let gradients = self.weight_gradients(context, dtype)?;
        Ok(PreparedCase { case: self, context: context.clone(), dtype, tensors, gradients })
    }

    /// Where the gradients of weights go, which have a dtype of their own.
    fn weight_gradients(&self, context: &Context, dtype: DType) -> Result<Vec<Option<Tensor>>> {
        let of_input = |input: &Input| match (input.gradient, input.kind) {
            (true, Kind::Weight) => context.persistent(input.shape, input.gradient_dtype(dtype)).map(Some),
            _ => Ok(None),
        };
        self.inputs.iter().map(of_input).collect()
    }

    /// Use 5: the op charges for itself, and for no fewer bytes than its inputs and outputs have.
    pub fn check_cost(&self) -> Result<()> {
        let (cost, touched) = self.plan()?;
        if cost.bytes < touched as f64 {
            return Err(self.fault(format!("charges for {} bytes, its outputs alone have {touched}", cost.bytes)));
        }
        Ok(())
    }

    /// The cost of its forward pass in `f32`.
    ///
    /// # Errors
    /// The op's own.
    pub fn cost(&self) -> Result<Cost> {
        Ok(self.plan()?.0)
    }

    /// The cost, and the bytes of the outputs.
    fn plan(&self) -> Result<(Cost, usize)> {
        let context = Context::shape_only();
        let mut touched = 0;
        let program = Program::plan(&context, || {
            let tape = Tape::inference(&context);
            let inputs = self
                .inputs
                .iter()
                .map(|input| Ok(tape.constant(&context.empty(input.shape, input.dtype(DType::F32))?)))
                .collect::<Result<Vec<_>>>()?;
            let outputs = (self.build)(&tape, &inputs)?;
            touched = outputs.iter().map(|var| var.tensor().bytes()).sum::<usize>();
            Ok(())
        })?;
        let mut all = Cost::memory(0);
        for (_, cost) in program.charges().values() {
            all.flops += cost.flops;
            all.bytes += cost.bytes;
            all.tensor_cores |= cost.tensor_cores;
        }
        Ok((all, touched))
    }

    pub(super) fn fault(&self, message: String) -> Error {
        Error::shape(self.op, format!("{}: {message}", self.name))
    }
}

/// A case on a device, ready to be run many times.
pub struct PreparedCase<'a> {
    case: &'a Case,
    context: Context,
    dtype: DType,
    tensors: Vec<Tensor>,
    /// By input: of weights alone.
    gradients: Vec<Option<Tensor>>,
}

impl PreparedCase<'_> {
    /// A copy with memory of its own, in another context of the same device.
    pub(super) fn copy(&self, context: &Context) -> Result<Self> {
        let copy = |tensor: &Tensor| {
            let copy = context.persistent(tensor.shape(), tensor.dtype())?;
            copy.copy_from(tensor).map(|()| copy)
        };
        let tensors = self.tensors.iter().map(copy).collect::<Result<_>>()?;
        let gradients = self.case.weight_gradients(context, self.dtype)?;
        Ok(Self { case: self.case, context: context.clone(), dtype: self.dtype, tensors, gradients })
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    /// Everything of it that outlives a run.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.iter().chain(self.gradients.iter().flatten())
    }

    /// Runs forward only.
    pub fn forward(&self) -> Result<()> {
        let tape = Tape::inference(&self.context);
        let inputs: Vec<Var> = self.tensors.iter().map(|tensor| tape.constant(tensor)).collect();
        (self.case.build)(&tape, &inputs).map(drop)
    }

    /// Runs forward and backward.
    pub fn forward_backward(&self) -> Result<()> {
        let tape = Tape::new(&self.context);
        let inputs = self.case.variables(&tape, &self.tensors, &self.gradients);
        let outputs = (self.case.build)(&tape, &inputs)?;
        match outputs.iter().find(|output| output.needs_gradient()) {
            Some(output) => tape.backward(output, output.tensor().clone()),
            None => Ok(()),
        }
    }
}

/// (what, reference, value, the value's dtype) for every output and gradient.
fn pairs(reference: &Outcome, value: &Outcome) -> Vec<(String, Vec<f64>, Vec<f64>, DType)> {
    let outputs = reference.outputs.iter().zip(&value.outputs).enumerate();
    let outputs = outputs.map(|(n, ((a, _), (b, dtype)))| (format!("output {n}"), a.clone(), b.clone(), *dtype));
    let gradients = reference.gradients.iter().zip(&value.gradients);
    let gradients =
        gradients.map(|((name, a, _), (_, b, dtype))| (format!("gradient of {name}"), a.clone(), b.clone(), *dtype));
    outputs.chain(gradients).collect()
}

/// ‖value − reference‖ / ‖reference‖, NaN where anything is not finite.
pub fn relative_error(reference: &[f64], value: &[f64]) -> f64 {
    if reference.len() != value.len() || value.iter().any(|x| !x.is_finite()) {
        return f64::NAN;
    }
    let difference: f64 = reference.iter().zip(value).map(|(a, b)| (a - b) * (a - b)).sum();
    let norm: f64 = reference.iter().map(|a| a * a).sum();
    if difference == 0.0 { 0.0 } else { (difference / norm.max(1e-30)).sqrt() }
}

fn largest_error(reference: &[f64], value: &[f64]) -> f64 {
    let largest = reference.iter().fold(1e-30f64, |m, a| m.max(a.abs()));
    reference.iter().zip(value).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / largest
}
