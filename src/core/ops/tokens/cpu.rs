//! The token sequence on the CPU.

use super::Gradients;
use crate::ops::host::{Float, Held, parallel, vector};
use crate::tape::{Accumulate, Destination};
use crate::tensor::Tensor;

pub(super) fn forward<E: Held>(patches: &Tensor, token: Option<&Tensor>, position: &Tensor, y: &Tensor) {
    let sequence = y.sizes()[1] * y.sizes()[2];
    let width = y.shape().last();
    let (patches, position) = (patches.host::<E>(), position.host::<E::Float>());
    let token = token.map(Tensor::host::<E>);
    let taken = if token.is_some() { width } else { 0 };
    parallel::for_rows(y.host_mut::<E>(), sequence, |b, y| {
        if let Some(token) = token {
            vector::map2(
                &mut y[..width],
                &token[b * width..][..width],
                &position[..width],
                Accumulate::Write,
                |a, p| a + p,
            );
        }
        let patches = &patches[b * (sequence - taken)..][..sequence - taken];
        vector::map2(&mut y[taken..], patches, &position[taken..], Accumulate::Write, |a, p| a + p);
    });
}

pub(super) fn backward<E: Held>(dy: &Tensor, skip: usize, _partial: Option<&Tensor>, to: &Gradients) {
    for (part, first) in [(&to.patches, skip), (&to.token, 0)] {
        if let Some(part) = part.as_ref().filter(|part| !part.is_empty()) {
            extract::<E>(dy, part, first);
        }
    }
    if let Some(position) = &to.position {
        sum_batch::<E>(dy, position);
    }
}

/// Copies tokens `first ..` of each sequence of `dy` to `destination`, as many as it has.
fn extract<E: Held>(dy: &Tensor, destination: &Destination, first: usize) {
    let (sequence, width) = (dy.sizes()[1] * dy.sizes()[2], dy.sizes()[2]);
    let part = destination.len() / dy.sizes()[0];
    let dy = dy.host::<E>();
    let mode = destination.mode;
    parallel::for_rows(destination.host_mut::<E>(), part, |b, part| {
        let source = &dy[b * sequence + first * width..][..part.len()];
        match mode {
            Accumulate::Write => part.copy_from_slice(source),
            Accumulate::Add => vector::map(part, source, mode, |x| x),
        }
    });
}

fn sum_batch<E: Held>(dy: &Tensor, destination: &Destination) {
    let (sequence, width) = (dy.sizes()[1] * dy.sizes()[2], dy.sizes()[2]);
    let dy = dy.host::<E>();
    let mode = destination.mode;
    parallel::for_rows(destination.host_mut::<E::Float>(), width, |token, sum| {
        if mode == Accumulate::Write {
            sum.fill(Float::ZERO);
        }
        for sequence in dy.chunks_exact(sequence) {
            vector::map(sum, &sequence[token * width..][..width], Accumulate::Add, |x| x);
        }
    });
}
