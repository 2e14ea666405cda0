//! The gradient in buckets, which the devices of all processes add up while the backward goes on (Li et al. 2020, *PyTorch
//! Distributed: Experiences on Accelerating Data Parallel Training*).
//!
//! A bucket is a range of the flat gradient. As soon as the backward has sent its last parameter's gradient the devices begin to add
//! it up, beside what the backward still has to do; they go on alike once all of them are added up. A network's backward is the
//! same on every process, so that all of them exchange the same buckets in the same order.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::nn::Spec;
use crate::ops::elementwise::cast_into;
use crate::tensor::{DType, Tensor};

/// The most buckets: each call has its latency, and the last one waits for nothing to hide behind.
pub(super) const MOST: usize = 8;

/// The least bytes of a bucket but the first of the flat gradient, which is the last: below them a call is all latency.
pub(super) const LEAST: usize = 1 << 20;

/// The buckets of a gradient.
pub(super) struct Buckets {
    gradients: Tensor,
    /// What is exchanged in its place, in another dtype.
    rounded: Option<Tensor>,
    ranges: Vec<Range<usize>>,
    /// Elements of the parameters in each, without what lies between them.
    lens: Vec<usize>,
}

impl Buckets {
    /// Of the flat gradient of these parameters, which are in its order; exchanged in bf16 where `rounded` has as many of those.
    pub fn new(gradients: &Tensor, parameters: &[Spec], rounded: Option<Tensor>) -> Self {
        let least = (gradients.bytes() / MOST).max(LEAST) / gradients.dtype().size();
        let (mut ranges, mut lens) = (Vec::new(), Vec::new());
        let (mut end, mut len) = (gradients.len(), 0);
        // From the end on, which the backward comes to first.
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

    /// The devices begin to add a bucket up.
    fn exchange(&self, number: usize) -> Result<()> {
        let Range { start, end } = self.ranges[number];
        let own = self.gradients.part(start, [end - start])?;
        let Some(rounded) = &self.rounded else { return own.all_reduce() };
        let rounded = rounded.part(start, [end - start])?;
        cast_into(&own, &rounded)?;
        rounded.all_reduce()
    }

    /// For one backward.
    pub fn begin(&self) -> Arrivals<'_> {
        Arrivals { buckets: self, missing: self.lens.clone() }
    }

    /// The gradient is that of all processes from here on.
    pub fn join(&self) -> Result<()> {
        self.gradients.context().join()?;
        match &self.rounded {
            Some(rounded) => cast_into(rounded, &self.gradients),
            None => Ok(()),
        }
    }

    /// Exchanges each bucket once, outside of any capture: NCCL opens its connections then.
    pub fn warm_up(&self) -> Result<()> {
        (0..self.ranges.len()).try_for_each(|number| self.exchange(number))?;
        self.join()
    }

    /// The dtype of what is exchanged.
    pub fn dtype(&self) -> DType {
        self.rounded.as_ref().unwrap_or(&self.gradients).dtype()
    }
}

/// What a backward has not sent yet.
pub(super) struct Arrivals<'a> {
    buckets: &'a Buckets,
    /// Elements, by bucket.
    missing: Vec<usize>,
}

impl Arrivals<'_> {
    /// A parameter's gradient is whole.
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

    /// The backward is over.
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
    use crate::nn::{Builder, Init, Kind, Parameters};
    use crate::tensor::Context;

    #[test]
    fn buckets_are_whole_parameters_from_the_end_on_and_cover_the_gradient() -> Result<()> {
        let context = Context::shape_only();
        let mut builder = Builder::default();
        for (number, len) in [100, 70_000, 300_001, 5, 900_000, 40, 2_000_000, 3].into_iter().enumerate() {
            builder.add(number.to_string(), [len], Kind::Vector, Init::Constant(0.0));
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
        // Whoever comes twice, or not at all, is told of.
        let part = |number: usize| gradients.part(specs[number].offset, specs[number].shape);
        let mut arrivals = buckets.begin();
        arrivals.add(&part(7)?)?;
        assert!(arrivals.end().unwrap_err().to_string().contains("never came"));
        let mut arrivals = buckets.begin();
        for number in (0..8).rev() {
            arrivals.add(&part(number)?)?;
        }
        assert!(arrivals.add(&part(6)?).unwrap_err().to_string().contains("no gradient that is waited for"));
        arrivals.end()
    }
}
