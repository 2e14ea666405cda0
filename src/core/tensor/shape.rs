//! Shapes: up to six dimensions, outermost first, always contiguous.

use std::fmt;

const MAX_RANK: usize = 6;

/// The sizes of a tensor, outermost first. A scalar is `[1]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    sizes: [usize; MAX_RANK],
    rank: usize,
}

impl Shape {
    /// # Panics
    /// For more than six sizes: a bug, never a user error.
    pub fn new(sizes: &[usize]) -> Self {
        assert!(sizes.len() <= MAX_RANK, "a shape has at most {MAX_RANK} dimensions");
        let mut array = [1; MAX_RANK];
        array[..sizes.len()].copy_from_slice(sizes);
        Self { sizes: array, rank: sizes.len() }
    }

    /// The sizes.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.sizes().iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The innermost size.
    pub fn last(&self) -> usize {
        self.sizes().last().copied().unwrap_or(1)
    }

    /// The product of all but the innermost size.
    pub fn rows(&self) -> usize {
        self.len() / self.last().max(1)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(sizes: [usize; N]) -> Self {
        Self::new(&sizes)
    }
}

impl From<&[usize]> for Shape {
    fn from(sizes: &[usize]) -> Self {
        Self::new(sizes)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.sizes())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.sizes())
    }
}
