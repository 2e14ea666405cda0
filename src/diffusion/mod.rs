//! Schedules, predictions and losses, samplers, guidance.
