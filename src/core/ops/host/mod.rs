//! What the CPU ops share: scalar types and their mathematics, vectorised slices, matrix products, threads.
//!
//! Three rules hold for all of it, and the ops rest on them:
//!
//! 1. **No bit depends on the machine.** Elementary functions are polynomials of our own, every fused multiply-add is
//!    explicit, and sums run over a fixed number of virtual lanes, so AVX-512, AVX2 and plain scalar code agree exactly.
//! 2. **No bit depends on the thread count.** Work is split over outputs, never over a sum.
//! 3. **No bit of a row depends on the other rows**, so an image is the same in every batch.

pub mod activation;
pub mod float;
pub mod math;
pub mod normal;
pub mod parallel;
pub mod product;
pub mod rates;
pub mod vector;

pub(crate) mod cached_product;
pub(crate) mod held;
pub(crate) mod pack;

mod scratch;

pub use float::{Float, Held};
pub use product::{Matrix, MatrixMut, matmul};
