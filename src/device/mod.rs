//! What runs kernels: the `Accelerator` seam, the CUDA driver, the emulator's adapter.
