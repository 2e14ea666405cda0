//! Writes `kernels/prebuilt/*.ptx` with NVRTC.

fn main() {}
