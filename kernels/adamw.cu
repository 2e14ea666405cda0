// The optimizer's step over flat buffers: gradient norm and clipping, AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101),
// the moving average of weights, and the step's metrics.
//
//   gradients, parameters, first, second, ema [n] f32 (ema may be null), compute [n] T or null: the parameters as the model
//   reads them, statistics [4] f32: norm, clip scale, 0, 0, ring [rows, 2 + count] f32: loss, norm, terms, loss [1] f32,
//   terms [count] f32, control: see common/control.cuh.
//
//   norm = sqrt(sum g^2), clip scale = min(1, max_norm / (norm + 1e-6)); g = g * clip scale
//   p -= learning rate * decay * p (decoupled), or g += decay * p
//   m = m + (1 - beta1) (g - m), v = beta2 v + (1 - beta2) g^2
//   p -= learning rate * m c1 / (sqrt(v c2) + epsilon), c1 and c2 the bias corrections of the control buffer
//   ema = p + d (ema - p)
//
// A norm that is not finite is left to be seen: NaN makes the clip scale NaN, infinity makes it 0, and 0 times the infinite
// gradient is NaN again.
//
// Floor: gradients read once for the norm; then gradients read, p, m, v (and ema) read and written, compute written.
#include "common/control.cuh"
#include "common/entry.cuh"
#include "common/reduce.cuh"
#include "common/wide.cuh"

// A block sums the squares of `part` elements (a multiple of four): partial[block].
KERNEL(adamw_norm_partial, (256), (Out<f32> partial, In<f32> gradients, u64 n, u32 part), (partial, gradients, n, part)) {
    u64 first = (u64)blockIdx.x * part;
    u64 end = min_of(n, first + part);
    bool aligned = aligned16(gradients);
    f32 sum = 0.0f;
    for (u64 i = first + 4 * threadIdx.x; i < end; i += 4 * blockDim.x) {
        u32 left = (u32)(end - i);
        f32 g[4];
        load_wide(gradients + i, left, aligned && left >= 4, g);
        UNROLL for (u32 k = 0; k < 4; k++) sum = fma_f32(g[k], g[k], sum);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block. max_norm <= 0: no clipping.
KERNEL(adamw_norm_final, (256), (Out<f32> statistics, In<f32> partial, u32 parts, f32 max_norm), (statistics, partial, parts, max_norm)) {
    f32 sum = 0.0f;
    for (u32 i = threadIdx.x; i < parts; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    f32 norm = sqrt_f32(sum), scale = 1.0f;
    if (max_norm > 0.0f) {
        scale = max_norm / (norm + 1e-6f);
        // Not fminf, which would turn NaN into 1.
        if (scale > 1.0f) scale = 1.0f;
    }
    statistics[0] = norm;
    statistics[1] = scale;
    statistics[2] = 0.0f;
    statistics[3] = 0.0f;
}

// Two times four elements of a warp's 256 to the copy, 16 bytes a lane whatever its type: of bf16 two neighbouring lanes have eight of the
// first 128 and eight of the second, and take one of them each.
DEV void store_copy(f32* to, const f32 (&p)[2][4]) {
    u32 lane = threadIdx.x % WARP;
    store_wide(to + 4 * lane, 4, true, p[0]);
    store_wide(to + 4 * WARP + 4 * lane, 4, true, p[1]);
}
DEV void store_copy(bf16* to, const f32 (&p)[2][4]) {
    u32 lane = threadIdx.x % WARP, half = lane % 2;
    Vec16<u32> words;
    UNROLL for (u32 i = 0; i < 2; i++) {
        u32 first = bf16_pair(p[0][2 * i], p[0][2 * i + 1]), second = bf16_pair(p[1][2 * i], p[1][2 * i + 1]);
        u32 got = __shfl_xor_sync(FULL_MASK, half == 0 ? second : first, 1);
        words.v[i] = half == 0 ? first : got;
        words.v[2 + i] = half == 0 ? got : second;
    }
    store16(reinterpret_cast<u32*>(to + half * 4 * WARP + 4 * (lane - half)), words);
}

// A warp takes 256 elements, a thread four of each half: every access has 16 bytes a lane, next to its neighbour's. rest1 = 1 - beta1
// and rest2 = 1 - beta2, rounded once.
KERNELS(adamw_update, (256), (Out<f32> parameters, Out<T> compute, Out<f32> first, Out<f32> second, Out<f32> ema, In<f32> gradients, In<u32> control,
        In<f32> statistics, u64 n, f32 rest1, f32 beta2, f32 rest2, f32 epsilon, f32 decay, u32 decoupled),
        (parameters, compute, first, second, ema, gradients, control, statistics, n, rest1, beta2, rest2, epsilon, decay, decoupled)) {
    u32 lane = threadIdx.x % WARP;
    u64 base = 8 * WARP * (((u64)blockIdx.x * blockDim.x + threadIdx.x) / WARP);
    if (base >= n) return;
    bool whole = base + 8 * WARP <= n;
    bool wide = whole && aligned16(parameters) && aligned16(first) && aligned16(second) && aligned16(gradients);
    f32 rate = control_f32(control, CONTROL_LEARNING_RATE);
    f32 correction1 = control_f32(control, CONTROL_FIRST_CORRECTION);
    f32 correction2 = control_f32(control, CONTROL_SECOND_CORRECTION);
    f32 clip = statistics[1];
    f32 kept = decoupled != 0 ? 1.0f - rate * decay : 1.0f, penalty = decoupled != 0 ? 0.0f : decay;
    f32 p[2][4], m[2][4], v[2][4], g[2][4];
    u64 at[2];
    u32 left[2];
    UNROLL for (u32 h = 0; h < 2; h++) {
        at[h] = base + 4 * (h * WARP + lane);
        left[h] = at[h] < n ? (u32)min_of(n - at[h], (u64)4) : 0;
        load_wide(parameters + at[h], left[h], wide, p[h]);
        load_wide(first + at[h], left[h], wide, m[h]);
        load_wide(second + at[h], left[h], wide, v[h]);
        load_wide(gradients + at[h], left[h], wide, g[h]);
        UNROLL for (u32 k = 0; k < 4; k++) {
            f32 gradient = fma_f32(penalty, p[h][k], g[h][k] * clip);
            m[h][k] = fma_f32(rest1, gradient - m[h][k], m[h][k]);
            v[h][k] = fma_f32(rest2 * gradient, gradient, beta2 * v[h][k]);
            f32 step = rate * correction1 * m[h][k] / (sqrt_f32(v[h][k] * correction2) + epsilon);
            p[h][k] = fma_f32(p[h][k], kept, -step);
        }
        store_wide(parameters + at[h], left[h], wide, p[h]);
        store_wide(first + at[h], left[h], wide, m[h]);
        store_wide(second + at[h], left[h], wide, v[h]);
    }
    if (compute != nullptr) {
        if (whole && aligned16(compute)) {
            store_copy(compute + base, p);
        } else {
            UNROLL for (u32 i = 0; i < 8; i++)
                if (i % 4 < left[i / 4]) store_f32(compute + at[i / 4] + i % 4, p[i / 4][i % 4]);
        }
    }
    if (ema == nullptr) return;
    f32 d = control_f32(control, CONTROL_EMA_DECAY);
    bool even = whole && aligned16(ema);
    UNROLL for (u32 h = 0; h < 2; h++) {
        f32 average[4];
        load_wide(ema + at[h], left[h], even, average);
        UNROLL for (u32 k = 0; k < 4; k++) average[k] = fma_f32(d, average[k] - p[h][k], p[h][k]);
        store_wide(ema + at[h], left[h], even, average);
    }
}

// One thread. The losses of a step's micro-batches and their terms add up.
KERNEL(adamw_record, (32), (Out<f32> ring, In<f32> loss, In<f32> terms, In<f32> statistics, In<u32> control, u32 rows, u32 count),
       (ring, loss, terms, statistics, control, rows, count)) {
    if (blockIdx.x * blockDim.x + threadIdx.x != 0) return;
    f32* row = ring + (u64)(control[CONTROL_ROW] % rows) * (2 + count);
    bool first = control[CONTROL_MICRO] == 0;
    row[0] = first ? loss[0] : row[0] + loss[0];
    row[1] = statistics[0];
    for (u32 i = 0; i < count; i++) row[2 + i] = first ? terms[i] : row[2 + i] + terms[i];
}
