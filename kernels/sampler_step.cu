// One stage of a sampler, read from a table of plain coefficients (`StageCoefficients` in src/diffusion/sampler.rs, which
// says where they come from: DDPM, DDIM, Heun, DPM-Solver++).
//
//   x [copies * batch, elements] f32: the same state `copies` times, prediction [copies * batch, elements] f32: conditional,
//   then (two copies) unconditional, saved_state, saved [batch, elements] f32 or null, table [stages, 16] u32,
//   control: see common/control.cuh.
//
//   pred  = guidance cond + (1 - guidance) uncond         raw  = x0_x x + x0_pred pred
//   x0    = clamp(raw, -clip, clip)                       eps  = eps_x x + eps_pred pred + eps_clip (x0 - raw)
//   next  = next_base base + next_x0 x0 + next_eps eps + next_saved saved + next_noise z
//
// The noise z of item first_item + b is Philox's of step row + 1; the start's is that of step 0, times scale. A stage that
// needs a buffer which is not there gives NaN.
//
// Floor: x, prediction (and the saved buffers) read and written once.
#include "common/control.cuh"
#include "common/philox.cuh"
#include "common/vec.cuh"

constexpr u32 STAGE_WORDS = 16;
enum StageWord : u32 {
    STAGE_TIME_INPUT = 0,
    STAGE_GUIDANCE = 1,
    STAGE_X0_X = 2,
    STAGE_X0_PRED = 3,
    STAGE_EPS_X = 4,
    STAGE_EPS_PRED = 5,
    STAGE_EPS_CLIP = 6,
    STAGE_CLIP = 7,
    STAGE_NEXT_BASE = 8,
    STAGE_NEXT_X0 = 9,
    STAGE_NEXT_EPS = 10,
    STAGE_NEXT_SAVED = 11,
    STAGE_NEXT_NOISE = 12,
    STAGE_SAVE_X0 = 13,
    STAGE_SAVE_EPS = 14,
    STAGE_FLAGS = 15,
};
enum StageFlag : u32 {
    FLAG_BASE_IS_SAVED = 1,
    FLAG_USES_SAVED = 2,
    FLAG_NEEDS_NOISE = 4,
    FLAG_SAVES_STATE = 8,
    FLAG_SAVES = 16,
};

// The row of the table that this step uses.
DEV const u32* stage_of(const u32* table, const u32* control, u32 stages) {
    return table + STAGE_WORDS * min_of(control[CONTROL_ROW], stages - 1);
}
DEV f32 coefficient(const u32* stage, u32 word) {
    return f32_from_bits(stage[word]);
}

// Blocks [item, chunk of elements], four elements a thread.
DEV void fill_start(f32* x, const u32* control, u32 batch, u32 elements, u32 copies, u64 seed, f32 scale) {
    u32 b = blockIdx.x, e = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (e >= elements) return;
    F32x4 drawn = philox_normal4(seed, e / 4, control[CONTROL_FIRST_ITEM] + b, 0, PURPOSE_NOISE);
    f32 noise[4] = {scale * drawn.x, scale * drawn.y, scale * drawn.z, scale * drawn.w};
    for (u32 copy = 0; copy < copies; copy++) {
        f32* to = x + ((u64)copy * batch + b) * elements + e;
        store4(to, elements - e, elements - e >= 4 && aligned4(to), noise);
    }
}

DEV void fill_time(f32* time, const u32* table, const u32* control, u32 count, u32 stages) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) time[i] = coefficient(stage_of(table, control, stages), STAGE_TIME_INPUT);
}

// Blocks [item, chunk of elements], four elements a thread.
DEV void advance(f32* x, f32* saved_state, f32* saved, const f32* prediction, const u32* table, const u32* control,
                 u32 batch, u32 elements, u32 copies, u32 stages, u64 seed) {
    u32 b = blockIdx.x, e = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (e >= elements) return;
    const u32* stage = stage_of(table, control, stages);
    u32 flags = stage[STAGE_FLAGS], left = elements - e;
    u64 at = (u64)b * elements + e, size = (u64)batch * elements;
    // Rows of elements keep their alignment over items and copies.
    bool wide = left >= 4 && elements % 4 == 0 && aligned4(x) && aligned4(prediction) && aligned4(saved_state) &&
                aligned4(saved);
    f32 nan = f32_from_bits(0x7fc00000u);
    f32 state[4], pred[4], base[4] = {nan, nan, nan, nan}, held[4] = {nan, nan, nan, nan};
    f32 z[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    load4(x + at, left, wide, state);
    load4(prediction + at, left, wide, pred);
    if (copies == 2) {
        f32 without[4], guidance = coefficient(stage, STAGE_GUIDANCE);
        load4(prediction + size + at, left, wide, without);
#pragma unroll
        for (u32 i = 0; i < 4; i++) pred[i] = fma_f32(guidance, pred[i], (1.0f - guidance) * without[i]);
    }
    if ((flags & FLAG_BASE_IS_SAVED) != 0 && saved_state != nullptr) load4(saved_state + at, left, wide, base);
    if ((flags & FLAG_USES_SAVED) != 0 && saved != nullptr) load4(saved + at, left, wide, held);
    if ((flags & FLAG_NEEDS_NOISE) != 0) {
        u32 step = min_of(control[CONTROL_ROW], stages - 1) + 1;
        F32x4 drawn = philox_normal4(seed, e / 4, control[CONTROL_FIRST_ITEM] + b, step, PURPOSE_NOISE);
        z[0] = drawn.x;
        z[1] = drawn.y;
        z[2] = drawn.z;
        z[3] = drawn.w;
    }
    f32 clip = coefficient(stage, STAGE_CLIP), next[4], keep[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        f32 raw = coefficient(stage, STAGE_X0_X) * state[i] + coefficient(stage, STAGE_X0_PRED) * pred[i];
        // Comparisons, so that NaN passes.
        f32 x0 = raw > clip ? clip : raw < -clip ? -clip : raw;
        f32 eps = coefficient(stage, STAGE_EPS_X) * state[i] + coefficient(stage, STAGE_EPS_PRED) * pred[i] +
                  coefficient(stage, STAGE_EPS_CLIP) * (x0 - raw);
        f32 from = (flags & FLAG_BASE_IS_SAVED) != 0 ? base[i] : state[i];
        next[i] = coefficient(stage, STAGE_NEXT_BASE) * from + coefficient(stage, STAGE_NEXT_X0) * x0 +
                  coefficient(stage, STAGE_NEXT_EPS) * eps;
        if ((flags & FLAG_USES_SAVED) != 0) next[i] += coefficient(stage, STAGE_NEXT_SAVED) * held[i];
        if ((flags & FLAG_NEEDS_NOISE) != 0) next[i] += coefficient(stage, STAGE_NEXT_NOISE) * z[i];
        keep[i] = coefficient(stage, STAGE_SAVE_X0) * x0 + coefficient(stage, STAGE_SAVE_EPS) * eps;
    }
    if ((flags & FLAG_SAVES_STATE) != 0 && saved_state != nullptr) store4(saved_state + at, left, wide, state);
    if ((flags & FLAG_SAVES) != 0 && saved != nullptr) store4(saved + at, left, wide, keep);
    for (u32 copy = 0; copy < copies; copy++) store4(x + copy * size + at, left, wide, next);
}

// round((clamp(x, -1, 1) + 1) 127.5), halves upwards.
DEV void to_pixels(u8* pixels, const f32* x, u64 n) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    f32 value = min_f32(max_f32(x[i], -1.0f), 1.0f);
    pixels[i] = (u8)floor_f32((value + 1.0f) * 127.5f + 0.5f);
}

extern "C" __global__ void __launch_bounds__(256) sampler_step_noise(
    f32* __restrict__ x, const u32* __restrict__ control, u32 batch, u32 elements, u32 copies, u64 seed, f32 scale) {
    fill_start(x, control, batch, elements, copies, seed, scale);
}
extern "C" __global__ void __launch_bounds__(256) sampler_step_time(
    f32* __restrict__ time, const u32* __restrict__ table, const u32* __restrict__ control, u32 count, u32 stages) {
    fill_time(time, table, control, count, stages);
}
extern "C" __global__ void __launch_bounds__(256) sampler_step_advance(
    f32* __restrict__ x, f32* __restrict__ saved_state, f32* __restrict__ saved, const f32* __restrict__ prediction,
    const u32* __restrict__ table, const u32* __restrict__ control, u32 batch, u32 elements, u32 copies, u32 stages,
    u64 seed) {
    advance(x, saved_state, saved, prediction, table, control, batch, elements, copies, stages, seed);
}
extern "C" __global__ void __launch_bounds__(256) sampler_step_pixels(
    u8* __restrict__ pixels, const f32* __restrict__ x, u64 n) {
    to_pixels(pixels, x, n);
}
