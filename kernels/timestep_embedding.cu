// Sinusoidal features of the diffusion time (Vaswani et al. 2017, arXiv 1706.03762; Ho, Jain and Abbeel 2020,
// arXiv 2006.11239).
//
//   y [batch, width] T: y[b, i] = cos(t[b] f_i), y[b, half + i] = sin(t[b] f_i), half = width / 2,
//   f_i = exp(-log_max_period i / half); t [batch] f32.
//
// Floor: batch * width elements written.
#include "common/entry.cuh"
#include "common/types.cuh"

// One thread per element of y.
KERNELS(timestep_embedding_fwd, (128), (Out<T> y, In<f32> time, u32 batch, u32 width, f32 log_max_period), (y, time, batch, width, log_max_period)) {
    u32 element = blockIdx.x * blockDim.x + threadIdx.x;
    if (element >= batch * width) return;
    u32 half = width / 2, column = element % width, i = column % half;
    f32 angle = time[element / width] * exp_f32(-log_max_period * (f32)i / (f32)half);
    y[element] = from_f32<T>(column < half ? cos_f32(angle) : sin_f32(angle));
}
