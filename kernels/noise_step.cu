// A training batch's times, noise, noisy images and targets, and which labels are dropped: x_t = a x0 + s noise,
// target = c_x x0 + c_n noise (Ho, Jain, Abbeel 2020, arXiv 2006.11239; v: Salimans and Ho 2022, arXiv 2202.00512; flow:
// Lipman et al. 2023, arXiv 2210.02747; logit-normal times: Esser et al. 2024, arXiv 2403.03206; min-SNR weights: Hang et al.
// 2023, arXiv 2303.09556).
//
//   x_t, target, x0 [batch, elements] f32, time, weight [batch] f32, labels, batch_labels [batch] i32,
//   table_a, table_s [timesteps] f32 or null (flow: a = 1 - t, s = t), control: see common/control.cuh; with bins > 0 times are
//   drawn by bin_state [3, bins] f32 (level_sampling.cu) and level [batch] i32 says in which bin.
//
// All numbers are Philox's of (seed, item = first_item + b, step): they depend on nothing else.
//
// Floor: x0 read once, x_t and target written once; a Philox call, two logarithms and two sine-cosine pairs for four
// elements hide behind that.
#include "common/control.cuh"
#include "common/entry.cuh"
#include "common/philox.cuh"
#include "common/vec.cuh"

enum Target : u32 {
    TARGET_EPSILON = 0,
    TARGET_X0 = 1,
    TARGET_V = 2,
    TARGET_FLOW = 3,
};

// The uniform numbers' own range; a saturated sigmoid would leave it.
constexpr f32 TIME_MARGIN = 5.9604644775390625e-8f;

// A time in (0, 1).
DEV f32 draw_time(u64 seed, u32 item, u32 step, u32 logit_normal, f32 mean, f32 deviation) {
    if (logit_normal == 0) return philox_uniform4(seed, 0, item, step, PURPOSE_TIMESTEP).x;
    f32 normal = philox_normal4(seed, 0, item, step, PURPOSE_TIMESTEP).x;
    f32 t = sigmoid_f32(fma_f32(deviation, normal, mean));
    return min_f32(max_f32(t, TIME_MARGIN), 1.0f - TIME_MARGIN);
}

// The bin in which u in (0, 1) falls, when bin k ends at ends[k].
DEV u32 bin_of(f32 u, const f32* ends, u32 bins) {
    u32 k = 0;
    while (k + 1 < bins && !(u < ends[k])) k++;
    return k;
}

// Blocks [item, chunk of elements], four elements a thread.
KERNEL(noise_step, (256), (Out<f32> x_t, Out<f32> target, Out<f32> time, Out<i32> batch_labels, Out<f32> weight, Out<i32> level_of, In<f32> x0,
       In<i32> labels, In<u32> control, In<f32> table_a, In<f32> table_s, In<f32> bin_state, u32 bins, u32 elements, u32 timesteps, u64 seed,
       u32 logit_normal, f32 mean, f32 deviation, u32 kind, f32 gamma, f32 label_dropout, i32 null_label),
       (x_t, target, time, batch_labels, weight, level_of, x0, labels, control, table_a, table_s, bin_state, bins, elements, timesteps, seed,
        logit_normal, mean, deviation, kind, gamma, label_dropout, null_label)) {
    SHARED(f32, level, [4]);
    u32 b = blockIdx.x, item = control[CONTROL_FIRST_ITEM] + b, step = control[CONTROL_STEP];
    if (threadIdx.x == 0) {
        f32 t = draw_time(seed, item, step, logit_normal, mean, deviation), importance = 1.0f;
        u32 bin = 0;
        if (bins > 0) {
            bin = bin_of(t, bin_state + 2 * bins, bins);
            f32 share = bin_state[bins + bin];
            f32 within = (t - bin_state[2 * bins + bin]) / share + 1.0f;
            t = ((f32)bin + min_f32(max_f32(within, 0.0f), 1.0f)) / (f32)bins;
            t = min_f32(max_f32(t, TIME_MARGIN), 1.0f - TIME_MARGIN);
            importance = 1.0f / ((f32)bins * share);
        }
        f32 a = 1.0f - t, s = t, told = 1000.0f * t;
        if (table_a != nullptr) {
            u32 index = min_of((u32)(t * (f32)timesteps), timesteps - 1);
            a = table_a[index];
            s = table_s[index];
            told = (f32)index;
        }
        f32 c_x = kind == TARGET_X0 ? 1.0f : kind == TARGET_V ? -s : kind == TARGET_FLOW ? -1.0f : 0.0f;
        f32 c_n = kind == TARGET_X0 ? 0.0f : kind == TARGET_V ? a : 1.0f;
        level[0] = a;
        level[1] = s;
        level[2] = c_x;
        level[3] = c_n;
        if (blockIdx.y == 0) {
            f32 determinant = a * c_n - s * c_x;
            f32 dropped = philox_uniform4(seed, 0, item, step, PURPOSE_LABEL_DROPOUT).x;
            time[b] = told;
            f32 by_level = gamma > 0.0f ? min_f32(a * a, gamma * s * s) / (determinant * determinant) : 1.0f;
            weight[b] = by_level * importance;
            if (level_of != nullptr) level_of[b] = (i32)bin;
            batch_labels[b] = dropped < label_dropout ? null_label : labels[b];
        }
    }
    __syncthreads();
    u32 e = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (e >= elements) return;
    f32 a = level[0], s = level[1], c_x = level[2], c_n = level[3];
    u64 at = (u64)b * elements + e;
    u32 left = elements - e;
    bool wide = left >= 4 && aligned4(x0 + at) && aligned4(x_t + at) && aligned4(target + at);
    F32x4 drawn = philox_normal4(seed, e / 4, item, step, PURPOSE_NOISE);
    f32 noise[4] = {drawn.x, drawn.y, drawn.z, drawn.w}, clean[4], noisy[4], wanted[4];
    load4(x0 + at, left, wide, clean);
    UNROLL for (u32 i = 0; i < 4; i++) {
        noisy[i] = fma_f32(a, clean[i], s * noise[i]);
        wanted[i] = fma_f32(c_x, clean[i], c_n * noise[i]);
    }
    store4(x_t + at, left, wide, noisy);
    store4(target + at, left, wide, wanted);
}
