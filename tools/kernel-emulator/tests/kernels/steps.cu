// A training step in small: its number is read from a control buffer on the device, or (a bug) was passed as an argument.
#include "common/types.cuh"

// w[i] += step, where step is control[0], or `baked` if that is not 0. The last thread counts the step.
DEV void advance(f32* w, const u32* control, u32 n, u32 baked) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) w[i] += (f32)(baked != 0 ? baked : control[0]);
}
extern "C" __global__ void __launch_bounds__(32) steps_advance(f32* __restrict__ w, const u32* __restrict__ control, u32 n, u32 baked) { advance(w, control, n, baked); }

DEV void count(u32* control) {
    if (threadIdx.x == 0) control[0] += 1;
}
extern "C" __global__ void __launch_bounds__(32) steps_count(u32* __restrict__ control) { count(control); }
