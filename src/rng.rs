//! Philox4x32-10 (Salmon et al. 2011): the same stream on every device.
