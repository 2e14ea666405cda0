//! The parameter store: every parameter of a model in one flat `f32` buffer.
//!
//! A model declares its parameters once, in order, with a [`Builder`]. [`Parameters`] lays them out flat, so that clipping,
//! the optimizer and the moving average are one kernel each over one buffer, and a checkpoint is a few copies. With bf16
//! precision a second flat buffer holds rounded copies, from which matrix products read; all else reads the masters.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::ops::host::{math, normal::normal4};
use crate::rng::{Philox, Purpose};
use crate::tape::{Accumulate, Prepared, Tape, Var};
use crate::tensor::{Context, DType, Shape, Tensor};

/// Parameters start at multiples of this many elements, so that every one is aligned for vector access.
const ALIGNMENT: usize = 64;

/// How a parameter is used, and so from which buffer it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An operand of matrix products: read in the dtype of activations.
    Matrix,
    /// Biases, norms, tables: read in `f32`.
    Vector,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All elements the same.
    Constant(f32),
    /// Uniform in [-bound, bound].
    Uniform(f32),
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// `[tokens, width]`: sines and cosines of a token's row and column in a grid of `columns`, so that neighbours begin
    /// alike (Dosovitskiy et al. 2021, appendix D.4). The first `skip` tokens belong to no grid and begin at zero.
    Grid { skip: usize, columns: usize },
}

/// Sines and cosines of the row and column of each cell of a grid, `[rows · columns, width]` in row-major order: the first half
/// of the width tells the row, the second the column; of each half, sines first, of `position · 10000^(-i / (width / 4))`.
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
    pub kind: Kind,
    /// Its start.
    pub init: Init,
    /// Where it begins in the flat buffers, in elements.
    pub offset: usize,
}

/// A parameter's number in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamId(usize);

/// A constant's number in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConstantId(usize);

/// Collects a model's parameters in order, and its constants.
#[derive(Default)]
pub struct Builder {
    specs: Vec<Spec>,
    constants: Vec<(Shape, Vec<f64>)>,
    names: HashSet<String>,
    len: usize,
}

impl Builder {
    /// Declares a parameter.
    ///
    /// # Panics
    /// With a name that is taken: a model's programming error.
    pub fn add(&mut self, name: impl Into<String>, shape: impl Into<Shape>, kind: Kind, init: Init) -> ParamId {
        let (name, shape) = (name.into(), shape.into());
        assert!(self.names.insert(name.clone()), "two parameters are called {name}");
        self.specs.push(Spec { name, shape, kind, init, offset: self.len });
        self.len += shape.len().next_multiple_of(ALIGNMENT);
        ParamId(self.specs.len() - 1)
    }

    /// Declares numbers that follow from the configuration, such as sinusoidal positions: read in `f32`, never trained, in
    /// no file and in no count.
    ///
    /// # Panics
    /// With another number of values than the shape has: a model's programming error.
    pub fn constant(&mut self, shape: impl Into<Shape>, values: Vec<f64>) -> ConstantId {
        let shape = shape.into();
        assert_eq!(shape.len(), values.len(), "a constant {shape}");
        self.constants.push((shape, values));
        ConstantId(self.constants.len() - 1)
    }
}

/// A model's parameters on a device.
pub struct Parameters {
    specs: Vec<Spec>,
    master: Tensor,
    compute: Option<Tensor>,
    constants: Vec<Tensor>,
    precision: DType,
}

impl Parameters {
    /// Makes room for what `builder` collected; elements are zero until [`Parameters::initialise`] or
    /// [`Parameters::set_flat`].
    ///
    /// `precision` is the dtype of activations: `f32`, `bf16`, or `f64` for the oracle, whose masters are then `f64` too.
    pub fn new(context: &Context, builder: Builder, precision: DType) -> Result<Self> {
        let master_dtype = if precision == DType::F64 { DType::F64 } else { DType::F32 };
        let master = context.zeros([builder.len], master_dtype)?;
        let compute = match precision {
            DType::BF16 => Some(context.zeros([builder.len], DType::BF16)?),
            _ => None,
        };
        let constants = builder.constants.iter().map(|(shape, values)| match master_dtype {
            DType::F64 => context.tensor(values, *shape),
            _ => context.tensor(&values.iter().map(|&x| x as f32).collect::<Vec<_>>(), *shape),
        });
        let constants = constants.collect::<Result<_>>()?;
        Ok(Self { specs: builder.specs, master, compute, constants, precision })
    }

    /// The declared parameters.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// The number of parameters, without the padding between them.
    pub fn count(&self) -> usize {
        self.specs.iter().map(|spec| spec.shape.len()).sum()
    }

    /// The length of the flat buffers, padding included.
    pub fn flat_len(&self) -> usize {
        self.master.len()
    }

    /// The flat masters `[flat_len]`, `f32` (`f64` for the oracle).
    pub fn master(&self) -> &Tensor {
        &self.master
    }

    /// The flat copies in bf16, where the precision is bf16.
    pub fn compute(&self) -> Option<&Tensor> {
        self.compute.as_ref()
    }

    /// The dtype of activations.
    pub fn precision(&self) -> DType {
        self.precision
    }

    /// A flat buffer for gradients or optimizer state, of the masters' dtype, zero.
    pub fn flat_zeros(&self) -> Result<Tensor> {
        self.master.context().zeros(self.master.shape(), self.master.dtype())
    }

    /// Draws every parameter's start from `seed`: element e of parameter i from counter (e/4, i, 0, Initialisation).
    pub fn initialise(&self, seed: u64) -> Result<()> {
        let philox = Philox { seed };
        let mut flat = vec![0f32; self.flat_len()];
        for (number, spec) in self.specs.iter().enumerate() {
            let values = &mut flat[spec.offset..][..spec.shape.len()];
            for (block, values) in values.chunks_mut(4).enumerate() {
                let random = match spec.init {
                    Init::Grid { skip, columns } => std::array::from_fn(|i| {
                        let (token, channel) =
                            ((4 * block + i) / spec.shape.last(), (4 * block + i) % spec.shape.last());
                        let place = token.checked_sub(skip);
                        place.map_or(0.0, |place| grid_element(place, channel, spec.shape.last(), columns) as f32)
                    }),
                    Init::Constant(value) => [value; 4],
                    Init::Uniform(bound) => philox
                        .uniform4(block as u32, number as u32, 0, Purpose::Initialisation)
                        .map(|u| (2.0 * u - 1.0) * bound),
                    Init::Normal(deviation) => {
                        normal4(philox.bits4(block as u32, number as u32, 0, Purpose::Initialisation))
                            .map(|n| n * deviation)
                    }
                };
                values.copy_from_slice(&random[..values.len()]);
            }
        }
        self.set_flat(&flat)
    }

    /// Overwrites all masters (`[flat_len]`) and their rounded copies.
    pub fn set_flat(&self, flat: &[f32]) -> Result<()> {
        match self.master.dtype() {
            DType::F64 => self.master.upload(&flat.iter().map(|&x| x as f64).collect::<Vec<_>>())?,
            _ => self.master.upload(flat)?,
        }
        if let Some(compute) = &self.compute {
            compute.upload(&flat.iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// The same parameters with other masters, such as their moving average. In bf16 the rounded copies are its own:
    /// [`Parameters::refresh`] makes them.
    pub fn with_master(&self, master: Tensor) -> Result<Self> {
        let compute = match &self.compute {
            Some(compute) => Some(master.context().zeros(compute.shape(), DType::BF16)?),
            None => None,
        };
        let (specs, constants) = (self.specs.clone(), self.constants.clone());
        Ok(Self { specs, master, compute, constants, precision: self.precision })
    }

    /// Rounds the masters anew into the copies that products read. Not for captured programs: it goes through the host.
    pub fn refresh(&self) -> Result<()> {
        match &self.compute {
            Some(compute) => {
                let flat = self.master.download::<f32>()?;
                compute.upload(&flat.iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>())
            }
            None => Ok(()),
        }
    }

    /// Room for the weights in the forms that ops on the CPU read, to be refreshed whenever parameters may have changed.
    pub fn prepared(&self) -> Prepared {
        let flat = self.compute.as_ref().unwrap_or(&self.master);
        Prepared::new(flat.context(), [flat.clone()])
    }

    /// Overwrites the parameter called `name` in a flat host copy.
    ///
    /// # Errors
    /// [`Error::Shape`] where there is none of that name and length.
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

    /// Puts the parameters on a tape. With `gradients` (flat, of the masters' shape) they want gradients, which go
    /// there in `mode`; without they are constants.
    pub fn bind(&self, tape: &Tape, gradients: Option<(&Tensor, Accumulate)>) -> Result<Bound> {
        let vars = self
            .specs
            .iter()
            .map(|spec| {
                let source = match (spec.kind, &self.compute) {
                    (Kind::Matrix, Some(compute)) => compute,
                    _ => &self.master,
                };
                let tensor = source.part(spec.offset, spec.shape)?;
                Ok(match gradients {
                    Some((flat, mode)) => tape.parameter(&tensor, &flat.part(spec.offset, spec.shape)?, mode),
                    None => tape.constant(&tensor),
                })
            })
            .collect::<Result<_>>()?;
        let constants = self.constants.iter().map(|constant| tape.constant(constant)).collect();
        Ok(Bound { vars, constants, precision: self.precision, dropout: None })
    }
}

/// Parameters on a tape, and what else a forward pass has to know of its purpose.
pub struct Bound {
    vars: Vec<Var>,
    constants: Vec<Var>,
    precision: DType,
    dropout: Option<Dropout>,
}

/// What the masks of dropout are drawn from in a training step.
#[derive(Clone)]
pub struct Dropout {
    /// The control buffer: step, and number of the batch's first item.
    pub control: Tensor,
    /// The run's seed.
    pub seed: u64,
}

impl Bound {
    /// A parameter.
    pub fn var(&self, id: ParamId) -> &Var {
        &self.vars[id.0]
    }

    /// A constant.
    pub fn constant(&self, id: ConstantId) -> &Var {
        &self.constants[id.0]
    }

    /// The dtype of activations.
    pub fn precision(&self) -> DType {
        self.precision
    }

    /// The same in a training step, where layers of dropout drop: masks come from `seed` and the `control` buffer's step
    /// and items. Without this, as in validation and sampling, they pass everything on.
    pub fn with_dropout(self, control: &Tensor, seed: u64) -> Self {
        Self { dropout: Some(Dropout { control: control.clone(), seed }), ..self }
    }

    /// What masks are drawn from, in training.
    pub fn dropout(&self) -> Option<&Dropout> {
        self.dropout.as_ref()
    }
}
