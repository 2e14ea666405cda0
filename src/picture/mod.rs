//! Grids, plots, animations.
