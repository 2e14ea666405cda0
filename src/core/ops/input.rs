//! The inputs of a [`Case`](super::case::Case): their roles, and the values that they have.

use crate::rng::{Philox, Purpose};
use crate::tensor::{DType, Shape};

/// The role of an input, which decides its dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The dtype under test; gradients too.
    Activation,
    /// A matrix weight: the dtype under test, gradients in `f32`.
    Weight,
    /// `f32` on accelerators whatever the dtype under test: norms' parameters, biases, tables; gradients too.
    Float32,
    /// `i32`.
    Index,
    /// `u8`.
    Byte,
    /// `u32`: control words.
    Word,
}

/// How an input is filled, element by element from Philox.
#[derive(Clone, Debug)]
pub enum Values {
    /// Uniform between the two.
    Uniform(f64, f64),
    /// Integers from 0 to below this.
    Integers(u32),
    /// As given.
    Given(Vec<f64>),
}

/// One input of a case.
#[derive(Clone, Debug)]
pub struct Input {
    /// As in the op's documentation.
    pub name: &'static str,
    /// Its shape.
    pub shape: Shape,
    /// Its role.
    pub kind: Kind,
    /// Its contents.
    pub values: Values,
    /// Whether its gradient is checked.
    pub gradient: bool,
}

impl Input {
    /// A differentiable input of the dtype under test, uniform in [-1.5, 1.5].
    pub fn activation(name: &'static str, shape: impl Into<Shape>) -> Self {
        Self::float(name, shape, Kind::Activation)
    }

    /// A differentiable matrix weight.
    pub fn weight(name: &'static str, shape: impl Into<Shape>) -> Self {
        Self::float(name, shape, Kind::Weight)
    }

    /// A differentiable `f32` parameter.
    pub fn parameter(name: &'static str, shape: impl Into<Shape>) -> Self {
        Self::float(name, shape, Kind::Float32)
    }

    fn float(name: &'static str, shape: impl Into<Shape>, kind: Kind) -> Self {
        Self { name, shape: shape.into(), kind, values: Values::Uniform(-1.5, 1.5), gradient: true }
    }

    /// Labels or indices below `below`.
    pub fn indices(name: &'static str, shape: impl Into<Shape>, below: u32) -> Self {
        Self { name, shape: shape.into(), kind: Kind::Index, values: Values::Integers(below), gradient: false }
    }

    /// Pixels.
    pub fn bytes(name: &'static str, shape: impl Into<Shape>) -> Self {
        Self { name, shape: shape.into(), kind: Kind::Byte, values: Values::Integers(256), gradient: false }
    }

    /// Words as given.
    pub fn words(name: &'static str, values: &[u32]) -> Self {
        let values = values.iter().map(|&word| word as f64).collect::<Vec<_>>();
        Self {
            name,
            shape: Shape::from([values.len()]),
            kind: Kind::Word,
            values: Values::Given(values),
            gradient: false,
        }
    }

    /// With other contents.
    pub fn with(mut self, values: Values) -> Self {
        self.values = values;
        self
    }

    /// Without a gradient.
    pub fn constant(mut self) -> Self {
        self.gradient = false;
        self
    }

    pub(super) fn dtype(&self, dtype: DType) -> DType {
        match (self.kind, dtype) {
            (Kind::Activation | Kind::Weight, dtype) => dtype,
            (Kind::Float32, DType::F64) => DType::F64,
            (Kind::Float32, _) => DType::F32,
            (Kind::Index, _) => DType::I32,
            (Kind::Byte, _) => DType::U8,
            (Kind::Word, _) => DType::U32,
        }
    }

    /// Of its gradient.
    pub(super) fn gradient_dtype(&self, dtype: DType) -> DType {
        let own = self.dtype(dtype);
        if self.kind == Kind::Weight { own.exact() } else { own }
    }

    /// The contents, on the grid.
    pub(super) fn fill(&self, seed: u64, number: u32, grid: Grid) -> Vec<f64> {
        let raw = match &self.values {
            Values::Given(values) => values.clone(),
            Values::Uniform(low, high) => {
                uniform(seed, number, self.shape.len()).into_iter().map(|u| low + (high - low) * u).collect()
            }
            Values::Integers(below) => uniform(seed, number, self.shape.len())
                .into_iter()
                .map(|u| ((u * *below as f64) as u32).min(below - 1) as f64)
                .collect(),
        };
        let grid = match (grid, self.kind) {
            (Grid::Tf32, Kind::Activation | Kind::Weight) => grid,
            (Grid::Tf32, _) => Grid::Of(self.dtype(DType::F32)),
            (Grid::Of(dtype), _) => Grid::Of(self.dtype(dtype)),
        };
        let grid = if grid == Grid::Of(DType::F64) { Grid::Of(DType::F32) } else { grid };
        raw.into_iter().map(|x| grid.round(x)).collect()
    }
}

/// The values that inputs and cotangents have.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Grid {
    /// Those of a dtype.
    Of(DType),
    /// Those that TF32 can hold: `f32` with 10 bits of fraction. What is `f32` whatever the dtype under test stays that.
    Tf32,
}

impl Grid {
    pub(super) fn round(self, x: f64) -> f64 {
        match self {
            Grid::Of(dtype) => round(x, dtype),
            Grid::Tf32 => f64::from(f32::from_bits(((x as f32).to_bits() + 0x1000) & !0x1fff)),
        }
    }
}

pub(super) fn uniform(seed: u64, number: u32, len: usize) -> Vec<f64> {
    let philox = Philox { seed };
    let mut values = Vec::with_capacity(len + 3);
    for block in 0..len.div_ceil(4) {
        values.extend(philox.uniform4(block as u32, number, 0, Purpose::Probe).map(f64::from));
    }
    values.truncate(len);
    values
}

pub(super) fn round(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => x as f32 as f64,
        DType::BF16 => half::bf16::from_f64(x).to_f64(),
        _ => x,
    }
}
