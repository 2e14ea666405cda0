//! The loop, optimizer, EMA, checkpoints, logs.
