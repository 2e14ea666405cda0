//! Gradient buckets, which the devices of all processes all-reduce during the backward pass (Li et al. 2020, *PyTorch Distributed:
//! Experiences on Accelerating Data Parallel Training*).
//!
//! A bucket is a range of the flat gradient. When the backward pass has finished its last parameter's gradient, the devices start
//! to reduce it, concurrently with the rest of the backward pass. The optimizer step waits for all buckets. A network's backward
//! is the same on every process, so all exchange the same buckets in the same order.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::nn::Spec;
use crate::ops::elementwise::cast_into;
use crate::tensor::{DType, Tensor};

/// Most buckets: each call has a latency, and the last one cannot overlap.
pub(super) const MOST: usize = 8;

/// Least bytes of a bucket, except for the first of the flat gradient, which is exchanged last: smaller calls are all latency.
pub(super) const LEAST: usize = 1 << 20;

/// The buckets of a gradient.
pub(super) struct Buckets {
    gradients: Tensor,
    /// The exchange buffer in another dtype.
    rounded: Option<Tensor>,
    ranges: Vec<Range<usize>>,
    /// Elements of the parameters in each, without padding.
    lens: Vec<usize>,
}

impl Buckets {
    /// Buckets of the flat gradient of these parameters, in order; exchanged in bf16 if `rounded` is given.
    pub fn new(gradients: &Tensor, parameters: &[Spec], rounded: Option<Tensor>) -> Self {
        let least = (gradients.bytes() / MOST).max(LEAST) / gradients.dtype().size();
        let (mut ranges, mut lens) = (Vec::new(), Vec::new());
        let (mut end, mut len) = (gradients.len(), 0);
        // From the end on, where the backward starts.
        for parameter in parameters.iter().rev() {
            len += parameter.shape.len();
            if end - parameter.offset >= least || parameter.offset == 0 {
                ranges.push(parameter.offset..end);
                lens.push(std::mem::take(&mut len));
                end = parameter.offset;
            }
        }
        Self { gradients: gradients.clone(), rounded, ranges, lens }
    }

    /// Starts the reduction of a bucket.
    fn exchange(&self, number: usize) -> Result<()> {
        let Range { start, end } = self.ranges[number];
        let own = self.gradients.part(start, [end - start])?;
        let Some(rounded) = &self.rounded else { return own.all_reduce() };
        let rounded = rounded.part(start, [end - start])?;
        cast_into(&own, &rounded)?;
        rounded.all_reduce()
    }

    /// Starts a backward pass.
    pub fn begin(&self) -> Arrivals<'_> {
        Arrivals { buckets: self, missing: self.lens.clone() }
    }

    /// Waits; the gradient is then that of all processes.
    pub fn join(&self) -> Result<()> {
        self.gradients.context().join()?;
        match &self.rounded {
            Some(rounded) => cast_into(rounded, &self.gradients),
            None => Ok(()),
        }
    }

    /// Exchanges each bucket once, outside a capture: NCCL then opens its connections.
    pub fn warm_up(&self) -> Result<()> {
        (0..self.ranges.len()).try_for_each(|number| self.exchange(number))?;
        self.join()
    }

    /// The dtype of the exchange.
    pub fn dtype(&self) -> DType {
        self.rounded.as_ref().unwrap_or(&self.gradients).dtype()
    }
}

/// Gradients that a backward pass has not yet delivered.
pub(super) struct Arrivals<'a> {
    buckets: &'a Buckets,
    /// Elements, by bucket.
    missing: Vec<usize>,
}

impl Arrivals<'_> {
    /// A parameter's gradient is complete.
    pub fn add(&mut self, gradient: &Tensor) -> Result<()> {
        let Buckets { gradients, ranges, .. } = self.buckets;
        let at = gradient.offset_in(gradients);
        let number = at.and_then(|at| ranges.iter().position(|range| range.contains(&at)));
        let left = number.and_then(|number| self.missing[number].checked_sub(gradient.len()));
        let (Some(number), Some(left)) = (number, left) else {
            return Err(Error::shape("buckets", format!("{gradient:?} is not an expected gradient")));
        };
        self.missing[number] = left;
        if left == 0 { self.buckets.exchange(number) } else { Ok(()) }
    }

    /// The backward pass has ended.
    pub fn end(self) -> Result<()> {
        match self.missing.iter().sum::<usize>() {
            0 => Ok(()),
            missing => Err(Error::shape("buckets", format!("{missing} gradients never came"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, Init, ParameterKind, Parameters};
    use crate::tensor::Context;

    #[test]
    fn buckets_are_whole_parameters_from_the_end_on_and_cover_the_gradient() -> Result<()> {
        let context = Context::shape_only();
        let mut builder = Builder::default();
        for (number, len) in [100, 70_000, 300_001, 5, 900_000, 40, 2_000_000, 3].into_iter().enumerate() {
            builder.add(number.to_string(), [len], ParameterKind::Vector, Init::Constant(0.0));
        }
        let parameters = Parameters::new(&context, builder, DType::F32)?;
        let gradients = parameters.flat_zeros()?;
        let specs = parameters.trained_specs();
        let buckets = Buckets::new(&gradients, &specs, None);
        let mut end = gradients.len();
        for (range, len) in buckets.ranges.iter().zip(&buckets.lens) {
            assert_eq!(range.end, end);
            assert!(4 * range.len() >= gradients.bytes() / MOST || range.start == 0, "{:?}", buckets.ranges);
            let inside = specs.iter().filter(|spec| range.contains(&spec.offset));
            assert_eq!(*len, inside.map(|spec| spec.shape.len()).sum::<usize>());
            end = range.start;
        }
        assert!(end == 0 && (3..=MOST).contains(&buckets.lens.len()), "{:?}", buckets.ranges);
        // A gradient that arrives twice, or never, is an error.
        let part = |number: usize| gradients.part(specs[number].offset, specs[number].shape);
        let mut arrivals = buckets.begin();
        arrivals.add(&part(7)?)?;
        assert!(arrivals.end().unwrap_err().to_string().contains("never came"));
        let mut arrivals = buckets.begin();
        for number in (0..8).rev() {
            arrivals.add(&part(number)?)?;
        }
        assert!(arrivals.add(&part(6)?).unwrap_err().to_string().contains("not an expected gradient"));
        arrivals.end()
    }
}
