//! The gate of a linear layer: what it is, and the gradients on its two sides.

use super::{OP, Sizes, cpu, cuda};
use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Backward, Destination, Input, Var};
use crate::tensor::{Cost, Tensor};

/// A factor per sample and column of a linear layer's result `[B, …, N]`: columns `column .. column + N` of `modulation` `[B, M]`, of the
/// result's dtype (adaLN-zero; Peebles and Xie 2023, *Scalable Diffusion Models with Transformers*).
#[derive(Clone, Copy)]
pub struct Gate<'a> {
    /// `[B, M]`.
    pub modulation: &'a Var,
    /// Where the factors begin.
    pub column: usize,
}

impl Gate<'_> {
    /// This gate as that of a layer's call.
    pub(super) fn of(self, x: &Var, Sizes { m, n, .. }: Sizes, wants_dz: bool) -> Result<Gated> {
        let Gate { modulation, column } = self;
        let samples = x.sizes().first().copied().unwrap_or(0);
        let fits = matches!(modulation.sizes(), &[rows, stride] if rows == samples && column + n <= stride);
        if x.sizes().len() < 2 {
            return Err(Error::shape(OP, format!("x {} where a gate needs [samples, …, in]", x.shape())));
        }
        if !fits || modulation.dtype() != x.dtype() {
            let (end, shape, dtype) = (column + n, modulation.shape(), modulation.dtype());
            return Err(Error::shape(
                OP,
                format!(
                    "modulation {shape} {dtype} where [{samples}, {end} or more] {} is needed: the gate is its columns {column} to {end}",
                    x.dtype()
                ),
            ));
        }
        let sizes = GateSizes { stride: modulation.shape().last(), column, rows_per_sample: m / samples.max(1) };
        Ok(Gated { sizes, matrix: modulation.tensor().clone(), wants_dz })
    }
}

/// Where a row's factors are. Zeros: there are none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GateSizes {
    /// Columns of the modulation matrix.
    pub(super) stride: usize,
    pub(super) column: usize,
    /// Rows of a sample.
    pub(super) rows_per_sample: usize,
}

impl GateSizes {
    /// The factors of a sample, of the matrix's elements.
    pub(super) fn columns<T>(self, matrix: &[T], sample: usize, n: usize) -> &[T] {
        &matrix[sample * self.stride + self.column..][..n]
    }
}

/// The gate of a call.
pub(super) struct Gated {
    pub(super) sizes: GateSizes,
    pub(super) matrix: Tensor,
    wants_dz: bool,
}

/// The operands of the backward: dz and `dmodulation`, as far as they are wanted. `z` is there where `dmodulation` is, which is added to.
pub(super) struct GateBackward<'a> {
    pub(super) sizes: Sizes,
    pub(super) gate: GateSizes,
    pub(super) matrix: &'a Tensor,
    pub(super) z: Option<Tensor>,
    pub(super) dz: Option<&'a Tensor>,
    pub(super) dmodulation: Option<Destination>,
}

impl Gated {
    pub(super) fn samples(&self) -> usize {
        self.matrix.shape().rows()
    }

    /// Whether every sample's factors are whole pieces of so many elements, if the matrix is.
    pub(super) fn is_whole(&self, piece: usize) -> bool {
        self.sizes.stride.is_multiple_of(piece) && self.sizes.column.is_multiple_of(piece)
    }

    /// The modulation's gradient, and dz, where they are wanted.
    pub(super) fn backward(
        self,
        sizes: Sizes,
        z: Option<Tensor>,
        backward: &Backward,
        modulation: Input,
    ) -> Result<Option<Tensor>> {
        let dy = backward.gradient();
        let dz = self.wants_dz.then(|| backward.context().empty(dy.shape(), dy.dtype())).transpose()?;
        // Only this call's columns get something: the others start from zero.
        let dmodulation = backward.destination(modulation)?.map(Destination::into_sum).transpose()?;
        if dy.is_empty() || (dz.is_none() && dmodulation.is_none()) {
            dmodulation.iter().try_for_each(Destination::put_zero)?;
            return Ok(dz);
        }
        let passes = 1 + dz.is_some() as usize + dmodulation.is_some() as usize;
        let columns = (1 + 2 * dmodulation.is_some() as usize) * self.samples() * sizes.n * dy.dtype().size();
        backward.context().charge("linear_bwd_gate", Cost::memory(passes * dy.bytes() + columns));
        let call = GateBackward { sizes, gate: self.sizes, matrix: &self.matrix, z, dz: dz.as_ref(), dmodulation };
        run!(held dy, gate_backward(&call, dy))?;
        Ok(dz)
    }
}
