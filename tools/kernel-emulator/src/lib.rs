//! Compiles `kernels/*.cu` for the host and checks them thread by thread.
