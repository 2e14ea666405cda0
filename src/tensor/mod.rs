//! Dtypes, shapes, storage, tensors; programs and the arena.
