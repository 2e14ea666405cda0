// One stage of a sampler for every row of a batch, each with its own plain coefficients (`StageCoefficients` in
// src/diffusion/sampler.rs, which says where they come from: DDPM, DDIM, Heun, DPM-Solver++), seed, item and step.
//
//   x, prediction, saved_state, saved [rows, elements] f32, the last two or null, words [rows, 24] u32: the 16 of a stage,
//   then seed (low, high), item, step, partner, scale.
//
//   pred  = guidance cond + (1 - guidance) uncond         raw  = x0_x x + x0_pred pred
//   x0    = clamp(raw, -clip, clip)                       eps  = eps_x x + eps_pred pred + eps_clip (x0 - raw)
//   next  = next_base base + next_x0 x0 + next_eps eps + next_saved saved + next_noise z
//
// A row that owns an image is updated; cond is its own prediction, uncond its partner's, which gets the same next state: a
// guided image has two rows. A row whose partner is itself is not guided. Rows that own nothing and are nobody's partner stay.
// The noise z is Philox's of the row's seed, item and step; a row that begins is filled with that noise times scale. A stage
// that needs a buffer which is not there gives NaN.
//
// Floor: x, prediction (and the saved buffers) read and written once.
#include "common/entry.cuh"
#include "common/philox.cuh"
#include "common/vec.cuh"

constexpr u32 ROW_WORDS = 24;
enum RowWord : u32 {
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
    ROW_SEED_LOW = 16,
    ROW_SEED_HIGH = 17,
    ROW_ITEM = 18,
    ROW_STEP = 19,
    ROW_PARTNER = 20,
    ROW_SCALE = 21,
};
enum StageFlag : u32 {
    FLAG_BASE_IS_SAVED = 1,
    FLAG_USES_SAVED = 2,
    FLAG_NEEDS_NOISE = 4,
    FLAG_SAVES_STATE = 8,
    FLAG_SAVES = 16,
    FLAG_OWNS = 32,
    FLAG_BEGINS = 64,
};

DEV f32 coefficient(const u32* row, u32 word) {
    return f32_from_bits(row[word]);
}
DEV u64 seed_of(const u32* row) {
    return (u64)row[ROW_SEED_HIGH] << 32 | row[ROW_SEED_LOW];
}

// Blocks [row, chunk of elements], four elements a thread.
KERNEL(sampler_step_noise, (256), (Out<f32> x, In<u32> words, u32 rows, u32 elements), (x, words, rows, elements)) {
    u32 b = blockIdx.x, e = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    const u32* row = words + ROW_WORDS * b;
    if (e >= elements || (row[STAGE_FLAGS] & FLAG_BEGINS) == 0) return;
    F32x4 drawn = philox_normal4(seed_of(row), e / 4, row[ROW_ITEM], row[ROW_STEP], PURPOSE_NOISE);
    f32 scale = coefficient(row, ROW_SCALE);
    f32 noise[4] = {scale * drawn.x, scale * drawn.y, scale * drawn.z, scale * drawn.w};
    u32 partner = min_of(row[ROW_PARTNER], rows - 1), left = elements - e;
    f32 *own = x + (u64)b * elements + e, *other = x + (u64)partner * elements + e;
    store4(own, left, left >= 4 && aligned4(own), noise);
    if (partner != b) store4(other, left, left >= 4 && aligned4(other), noise);
}

KERNEL(sampler_step_time, (256), (Out<f32> time, In<u32> words, u32 rows), (time, words, rows)) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < rows) time[i] = coefficient(words + ROW_WORDS * i, STAGE_TIME_INPUT);
}

// Blocks [row, chunk of elements], four elements a thread.
KERNEL(sampler_step_advance, (256), (Out<f32> x, Out<f32> saved_state, Out<f32> saved, In<f32> prediction, In<u32> words, u32 rows, u32 elements),
       (x, saved_state, saved, prediction, words, rows, elements)) {
    u32 b = blockIdx.x, e = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    const u32* row = words + ROW_WORDS * b;
    u32 flags = row[STAGE_FLAGS], left = elements - e;
    if (e >= elements || (flags & FLAG_OWNS) == 0) return;
    u32 partner = min_of(row[ROW_PARTNER], rows - 1);
    u64 at = (u64)b * elements + e, there = (u64)partner * elements + e;
    // Rows of elements keep their alignment.
    bool wide = left >= 4 && elements % 4 == 0 && aligned4(x) && aligned4(prediction) && aligned4(saved_state) &&
                aligned4(saved);
    f32 nan = f32_from_bits(0x7fc00000u);
    f32 state[4], pred[4], base[4] = {nan, nan, nan, nan}, held[4] = {nan, nan, nan, nan};
    f32 z[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    load4(x + at, left, wide, state);
    load4(prediction + at, left, wide, pred);
    if (partner != b) {
        f32 without[4], guidance = coefficient(row, STAGE_GUIDANCE);
        load4(prediction + there, left, wide, without);
        UNROLL for (u32 i = 0; i < 4; i++) pred[i] = fma_f32(guidance, pred[i], (1.0f - guidance) * without[i]);
    }
    if ((flags & FLAG_BASE_IS_SAVED) != 0 && saved_state != nullptr) load4(saved_state + at, left, wide, base);
    if ((flags & FLAG_USES_SAVED) != 0 && saved != nullptr) load4(saved + at, left, wide, held);
    if ((flags & FLAG_NEEDS_NOISE) != 0) {
        F32x4 drawn = philox_normal4(seed_of(row), e / 4, row[ROW_ITEM], row[ROW_STEP], PURPOSE_NOISE);
        z[0] = drawn.x;
        z[1] = drawn.y;
        z[2] = drawn.z;
        z[3] = drawn.w;
    }
    f32 clip = coefficient(row, STAGE_CLIP), next[4], keep[4];
    UNROLL for (u32 i = 0; i < 4; i++) {
        f32 raw = coefficient(row, STAGE_X0_X) * state[i] + coefficient(row, STAGE_X0_PRED) * pred[i];
        // Comparisons, so that NaN passes.
        f32 x0 = raw > clip ? clip : raw < -clip ? -clip : raw;
        f32 eps = coefficient(row, STAGE_EPS_X) * state[i] + coefficient(row, STAGE_EPS_PRED) * pred[i] +
                  coefficient(row, STAGE_EPS_CLIP) * (x0 - raw);
        f32 from = (flags & FLAG_BASE_IS_SAVED) != 0 ? base[i] : state[i];
        next[i] = coefficient(row, STAGE_NEXT_BASE) * from + coefficient(row, STAGE_NEXT_X0) * x0 +
                  coefficient(row, STAGE_NEXT_EPS) * eps;
        if ((flags & FLAG_USES_SAVED) != 0) next[i] += coefficient(row, STAGE_NEXT_SAVED) * held[i];
        if ((flags & FLAG_NEEDS_NOISE) != 0) next[i] += coefficient(row, STAGE_NEXT_NOISE) * z[i];
        keep[i] = coefficient(row, STAGE_SAVE_X0) * x0 + coefficient(row, STAGE_SAVE_EPS) * eps;
    }
    if ((flags & FLAG_SAVES_STATE) != 0 && saved_state != nullptr) store4(saved_state + at, left, wide, state);
    if ((flags & FLAG_SAVES) != 0 && saved != nullptr) store4(saved + at, left, wide, keep);
    store4(x + at, left, wide, next);
    if (partner != b) store4(x + there, left, wide, next);
}

// round((clamp(x, -1, 1) + 1) 127.5), halves upwards.
KERNEL(sampler_step_pixels, (256), (Out<u8> pixels, In<f32> x, u64 n), (pixels, x, n)) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    f32 value = min_f32(max_f32(x[i], -1.0f), 1.0f);
    pixels[i] = (u8)floor_f32((value + 1.0f) * 127.5f + 0.5f);
}
