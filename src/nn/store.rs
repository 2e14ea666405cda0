//! The parameter store: every parameter of a model in flat `f32` buffers.
//!
//! A model declares its parameters once, in order, with a [`Builder`]. [`Parameters`] puts the trained ones into one flat buffer,
//! so that clipping, the optimizer and the moving average are one kernel each, and a checkpoint is a few copies. Frozen parameters
//! (a backbone) and running statistics are in a separate flat buffer: they have no gradient, no moments and no moving average.
//! With bf16 precision further flat buffers hold rounded copies, from which matrix products read; everything else reads the
//! masters.

use std::collections::HashSet;

use super::scope::Scope;
use crate::error::{Error, Result};
use crate::ops::elementwise::cast_into;
use crate::ops::host::{math, normal::fill_normal};
use crate::rng::{Philox, Purpose};
use crate::tape::{Accumulate, PreparedWeights, Tape};
use crate::tensor::{Context, DType, Shape, Tensor};

/// Parameters start at multiples of this many elements, for aligned vector access.
const ALIGNMENT: usize = 64;

/// How a parameter is used, which decides the buffer it is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// An operand of matrix products: read in the dtype of activations.
    Matrix,
    /// Biases, norms, tables: read in `f32`.
    Vector,
}

/// How training handles a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has a gradient, optimizer state and a moving average.
    Trained,
    /// It is not changed.
    Frozen,
    /// Not a parameter, but state that a layer updates itself: running statistics.
    Buffer,
}

/// The initialization of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All elements equal.
    Constant(f32),
    /// Uniform in [-bound, bound].
    Uniform(f32),
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// `[tokens, width]`: sines and cosines of a token's row and column in a grid of `columns`, so that neighbours start similar
    /// (Dosovitskiy et al. 2021, appendix D.4). The first `skip` tokens are not in the grid and start at zero.
    Grid { skip: usize, columns: usize },
}

/// Sines and cosines of the row and column of each cell of a grid, `[rows · columns, width]` in row-major order: the first half of
/// the width encodes the row, the second the column; each half has first sines, then cosines, of `position · 10000^(-i / (width /
/// 4))`.
pub fn grid(rows: usize, columns: usize, width: usize) -> Vec<f64> {
    let cell = |place: usize| (0..width).map(move |channel| grid_element(place, channel, width, columns));
    (0..rows * columns).flat_map(cell).collect()
}

fn grid_element(place: usize, channel: usize, width: usize, columns: usize) -> f64 {
    let half = width.div_ceil(2);
    let (position, within) =
        if channel < half { (place / columns, channel) } else { (place % columns, channel - half) };
    let count = half.div_ceil(2);
    let frequency = math::f64::exp(-math::f64::ln(10_000.0) * (within % count) as f64 / count as f64);
    let angle = position as f64 * frequency;
    if within < count { math::f64::sin(angle) } else { math::f64::cos(angle) }
}

impl Init {
    /// Glorot and Bengio 2010: uniform with bound √(6 / (fan_in + fan_out)).
    pub fn xavier(fan_in: usize, fan_out: usize) -> Self {
        Init::Uniform((6.0 / (fan_in + fan_out) as f64).sqrt() as f32)
    }
}

/// A declared parameter.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Dotted name, as in the model file: `blocks.3.attn.qkv.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// Its use.
    pub kind: ParameterKind,
    /// Its initialization.
    pub init: Init,
    /// How training handles it.
    pub role: Role,
    /// Its offset in a flat host copy of all, in elements: the trained ones first, then the others.
    pub offset: usize,
}

/// The index of a parameter in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamId(pub(super) usize);

/// The index of a constant in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConstantId(pub(super) usize);

/// Collects a model's parameters in order, and its constants.
#[derive(Default)]
pub struct Builder {
    specs: Vec<Spec>,
    constants: Vec<(Shape, Vec<f64>)>,
    names: HashSet<String>,
    trained_len: usize,
    /// Elements that are not trained.
    fixed_len: usize,
    frozen: bool,
}

impl Builder {
    /// Declares a parameter.
    ///
    /// # Panics
    /// If the name is taken, which is a bug in the model.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        shape: impl Into<Shape>,
        kind: ParameterKind,
        init: Init,
    ) -> ParamId {
        let role = if self.frozen { Role::Frozen } else { Role::Trained };
        self.declare(name.into(), shape.into(), kind, init, role)
    }

    /// Declares a buffer of a layer that is not a parameter: read and written in `f32`, stored in the model file, not counted.
    ///
    /// # Panics
    /// As [`Builder::add`].
    pub fn buffer(&mut self, name: impl Into<String>, shape: impl Into<Shape>, init: Init) -> ParamId {
        self.declare(name.into(), shape.into(), ParameterKind::Vector, init, Role::Buffer)
    }

    /// Runs `declare`; its parameters are frozen if `frozen`: they have no gradient and no optimizer state.
    pub fn freeze<T>(&mut self, frozen: bool, declare: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.frozen, frozen);
        let declared = declare(self);
        self.frozen = before;
        declared
    }

    fn declare(&mut self, name: String, shape: Shape, kind: ParameterKind, init: Init, role: Role) -> ParamId {
        assert!(self.names.insert(name.clone()), "two parameters are called {name}");
        let len = if role == Role::Trained { &mut self.trained_len } else { &mut self.fixed_len };
        self.specs.push(Spec { name, shape, kind, init, role, offset: *len });
        *len += shape.len().next_multiple_of(ALIGNMENT);
        ParamId(self.specs.len() - 1)
    }

    /// Declares constants that follow from the configuration, such as sinusoidal positions: read in `f32`, never trained, not
    /// stored in files and not counted.
    ///
    /// # Panics
    /// If the number of values does not match the shape, which is a bug in the model.
    pub fn constant(&mut self, shape: impl Into<Shape>, values: Vec<f64>) -> ConstantId {
        let shape = shape.into();
        assert_eq!(shape.len(), values.len(), "a constant {shape}");
        self.constants.push((shape, values));
        ConstantId(self.constants.len() - 1)
    }
}

/// Flat masters and, in bf16, their rounded copies.
#[derive(Clone)]
struct Flat {
    master: Tensor,
    compute: Option<Tensor>,
}

impl Flat {
    fn zeros(context: &Context, len: usize, precision: DType) -> Result<Self> {
        let master = context.zeros([len], if precision == DType::F64 { DType::F64 } else { DType::F32 })?;
        let compute = (precision == DType::BF16).then(|| context.zeros([len], DType::BF16)).transpose()?;
        Ok(Self { master, compute })
    }

    fn upload(&self, flat: &[f32]) -> Result<()> {
        match self.master.dtype() {
            DType::F64 => self.master.upload(&flat.iter().map(|&x| x as f64).collect::<Vec<_>>())?,
            _ => self.master.upload(flat)?,
        }
        self.round()
    }

    /// Updates the rounded copies, if any, from the masters, on their device.
    fn round(&self) -> Result<()> {
        self.compute.as_ref().map_or(Ok(()), |compute| cast_into(&self.master, compute))
    }

    /// The buffer from which a parameter of this use is read.
    fn source(&self, kind: ParameterKind) -> &Tensor {
        match (kind, &self.compute) {
            (ParameterKind::Matrix, Some(compute)) => compute,
            _ => &self.master,
        }
    }
}

/// A model's parameters on a device.
pub struct Parameters {
    specs: Vec<Spec>,
    trained: Flat,
    /// Frozen parameters and buffers; None if the model has neither.
    fixed: Option<Flat>,
    constants: Vec<Tensor>,
    precision: DType,
}

impl Parameters {
    /// Allocates the parameters in `builder`; elements are zero until [`Parameters::initialise`] or [`Parameters::set_flat`].
    ///
    /// `precision` is the dtype of activations: `f32`, `bf16`, or `f64` for the oracle, whose masters are then `f64` too.
    pub fn new(context: &Context, builder: Builder, precision: DType) -> Result<Self> {
        let Builder { mut specs, constants, trained_len, fixed_len, .. } = builder;
        for spec in specs.iter_mut().filter(|spec| spec.role != Role::Trained) {
            spec.offset += trained_len;
        }
        let trained = Flat::zeros(context, trained_len, precision)?;
        let fixed = (fixed_len > 0).then(|| Flat::zeros(context, fixed_len, precision)).transpose()?;
        let constants = constants.iter().map(|(shape, values)| match precision {
            DType::F64 => context.tensor(values, *shape),
            _ => context.tensor(&values.iter().map(|&x| x as f32).collect::<Vec<_>>(), *shape),
        });
        let constants = constants.collect::<Result<_>>()?;
        Ok(Self { specs, trained, fixed, constants, precision })
    }

    /// All declared entries, in order.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// The trained part.
    pub fn trained_specs(&self) -> Vec<Spec> {
        self.specs.iter().filter(|spec| spec.role == Role::Trained).cloned().collect()
    }

    /// The number of parameters, including frozen ones, without padding and buffers.
    pub fn count(&self) -> usize {
        self.specs.iter().filter(|spec| spec.role != Role::Buffer).map(|spec| spec.shape.len()).sum()
    }

    /// The length of a flat host copy of all, including padding.
    pub fn flat_len(&self) -> usize {
        self.trained_len() + self.fixed_len()
    }

    /// The length of the flat buffers of trained parameters: the first elements of [`Parameters::flat_len`].
    pub fn trained_len(&self) -> usize {
        self.trained.master.len()
    }

    fn fixed_len(&self) -> usize {
        self.fixed.as_ref().map_or(0, |fixed| fixed.master.len())
    }

    /// The flat masters of the trained parameters `[trained_len]`, `f32` (`f64` for the oracle).
    pub fn master(&self) -> &Tensor {
        &self.trained.master
    }

    /// The flat bf16 copies of the trained parameters, if the precision is bf16.
    pub fn compute(&self) -> Option<&Tensor> {
        self.trained.compute.as_ref()
    }

    /// Bytes of frozen parameters and buffers, with rounded copies.
    pub fn fixed_bytes(&self) -> usize {
        let fixed = self.fixed.iter().flat_map(|fixed| std::iter::once(&fixed.master).chain(&fixed.compute));
        fixed.map(Tensor::bytes).sum()
    }

    /// The dtype of activations.
    pub fn precision(&self) -> DType {
        self.precision
    }

    /// The name of activations' dtype; `tf32` where products of `f32` have factors rounded to it.
    pub fn precision_name(&self) -> &'static str {
        self.master().context().products_name(self.precision)
    }

    /// A flat buffer `[trained_len]` for gradients or optimizer state, of the masters' dtype, zero.
    pub fn flat_zeros(&self) -> Result<Tensor> {
        self.master().context().zeros(self.master().shape(), self.master().dtype())
    }

    /// All masters `[flat_len]` of any dtype, on the host.
    ///
    /// # Errors
    /// Those of the device.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        let mut flat = self.master().to_f64()?;
        if let Some(fixed) = &self.fixed {
            flat.extend(fixed.master.to_f64()?);
        }
        Ok(flat)
    }

    /// All masters `[flat_len]`, which are f32, on the host.
    ///
    /// # Errors
    /// Those of the device.
    pub fn download(&self) -> Result<Vec<f32>> {
        let mut flat = self.master().download::<f32>()?;
        if let Some(fixed) = &self.fixed {
            flat.extend(fixed.master.download::<f32>()?);
        }
        Ok(flat)
    }

    /// The buffers, such as running statistics: slices of the masters, in order.
    ///
    /// # Errors
    /// None that a model's declarations can cause.
    pub fn buffers(&self) -> Result<Vec<Tensor>> {
        let Some(fixed) = &self.fixed else { return Ok(Vec::new()) };
        let specs = self.specs.iter().filter(|spec| spec.role == Role::Buffer);
        specs.map(|spec| fixed.master.part(spec.offset - self.trained_len(), spec.shape)).collect()
    }

    /// Initializes every parameter from `seed`: element e of parameter i from counter (e/4, i, 0, Initialisation).
    pub fn initialise(&self, seed: u64) -> Result<()> {
        let philox = Philox { seed };
        let mut flat = vec![0f32; self.flat_len()];
        for (number, spec) in self.specs.iter().enumerate() {
            let values = &mut flat[spec.offset..][..spec.shape.len()];
            match spec.init {
                Init::Grid { skip, columns } => {
                    let width = spec.shape.last();
                    for (e, value) in values.iter_mut().enumerate() {
                        let place = (e / width).checked_sub(skip);
                        *value = place.map_or(0.0, |place| grid_element(place, e % width, width, columns) as f32);
                    }
                }
                Init::Constant(value) => values.fill(value),
                Init::Uniform(bound) => {
                    for (values, block) in values.chunks_mut(4).zip(0..) {
                        let uniform = philox.uniform4(block, number as u32, 0, Purpose::Initialisation);
                        values.iter_mut().zip(uniform).for_each(|(value, u)| *value = (2.0 * u - 1.0) * bound);
                    }
                }
                Init::Normal(deviation) => {
                    fill_normal(values, philox, number as u32, 0, Purpose::Initialisation);
                    values.iter_mut().for_each(|value| *value *= deviation);
                }
            }
        }
        self.set_flat(&flat)
    }

    /// Overwrites all masters (`[flat_len]`) and their rounded copies.
    ///
    /// # Errors
    /// [`Error::Shape`] for another length.
    pub fn set_flat(&self, flat: &[f32]) -> Result<()> {
        if flat.len() != self.flat_len() {
            let message = format!("{} values for flat buffers of {}", flat.len(), self.flat_len());
            return Err(Error::shape("parameters", message));
        }
        let (trained, fixed) = flat.split_at(self.trained_len());
        self.trained.upload(trained)?;
        self.fixed.as_ref().map_or(Ok(()), |own| own.upload(fixed))
    }

    /// The parameters with other masters for the trained part, such as their moving average; frozen parameters and buffers are
    /// shared. In bf16 it has its own rounded copies: [`Parameters::refresh`] updates them.
    pub fn with_master(&self, master: Tensor) -> Result<Self> {
        let compute = match &self.trained.compute {
            Some(compute) => Some(master.context().zeros(compute.shape(), DType::BF16)?),
            None => None,
        };
        let (specs, fixed, constants) = (self.specs.clone(), self.fixed.clone(), self.constants.clone());
        Ok(Self { specs, trained: Flat { master, compute }, fixed, constants, precision: self.precision })
    }

    /// Rounds the trained masters into the copies that products read: on the device, without waiting, with the bits of
    /// [`cast_into`].
    ///
    /// # Errors
    /// Those of the device.
    pub fn refresh(&self) -> Result<()> {
        self.trained.round()
    }

    /// Buffers for the weights in the layouts that CPU ops read, to be refreshed whenever parameters may have changed.
    pub fn prepared(&self) -> PreparedWeights {
        let all = std::iter::once(&self.trained).chain(&self.fixed);
        let flat = all.map(|flat| flat.source(ParameterKind::Matrix).clone());
        PreparedWeights::new(self.master().context(), flat)
    }

    /// Overwrites the parameter called `name` in a flat host copy.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no parameter of that name and length.
    pub fn place(&self, flat: &mut [f32], name: &str, values: &[f32]) -> Result<()> {
        let spec = self
            .specs
            .iter()
            .find(|spec| spec.name == name)
            .ok_or_else(|| Error::shape("parameters", format!("the model has no parameter called {name}")))?;
        if spec.shape.len() != values.len() {
            return Err(Error::shape("parameters", format!("{} values for {name} {}", values.len(), spec.shape)));
        }
        flat[spec.offset..][..values.len()].copy_from_slice(values);
        Ok(())
    }

    /// Binds the parameters to a tape. With `gradients` (flat, of the masters' shape) the trained ones get gradients, which are
    /// written there in `mode`; all others are constants. The scope is for inference until [`Scope::in_training`].
    ///
    /// # Errors
    /// [`Error::Shape`] for gradients of another length.
    pub fn bind<'t>(&self, tape: &'t Tape, gradients: Option<(&Tensor, Accumulate)>) -> Result<Scope<'t>> {
        let parameters = self
            .specs
            .iter()
            .map(|spec| match (&self.fixed, spec.role, gradients) {
                (_, Role::Trained, Some((flat, mode))) => {
                    let tensor = self.trained.source(spec.kind).part(spec.offset, spec.shape)?;
                    Ok(tape.parameter(&tensor, &flat.part(spec.offset, spec.shape)?, mode))
                }
                (Some(fixed), Role::Frozen | Role::Buffer, _) => {
                    let offset = spec.offset - self.trained_len();
                    Ok(tape.constant(&fixed.source(spec.kind).part(offset, spec.shape)?))
                }
                _ => Ok(tape.constant(&self.trained.source(spec.kind).part(spec.offset, spec.shape)?)),
            })
            .collect::<Result<_>>()?;
        let constants = self.constants.iter().map(|constant| tape.constant(constant)).collect();
        Ok(Scope::new(tape, parameters, constants, self.precision))
    }
}
