// Cross-entropy with label smoothing: loss = scale * mean over b of the item's loss, and how many items are right.
//
//   logits, dlogits [batch, classes] f32, labels [batch] i32, items, right [batch] f32, statistics [batch, 2] f32, loss, correct, dloss [1] f32.
//
// With p the target distribution, (1 - s) at the label plus s / K everywhere (Szegedy et al. 2016):
//   item = lse - (1 - s) z[label] - s / K sum z, lse = log sum exp z; dz = dloss * scale / batch * (exp(z - lse) - p).
// The statistics are the largest logit m and log sum exp (z - m): their sum, lse, would lose the digits of small differences.
// A label outside 0..K is no item: no loss, no gradient, never right; the mean stays one over the batch. An item is right where
// its label is the first of the largest logits.
//
// Floor: logits read once each way (the second and third look at a row of a few KiB comes from L1), dlogits written once.
#include "common/reduce.cuh"
#include "common/types.cuh"

constexpr u32 WARPS = 4;

// A warp per item.
DEV void item_losses(f32* items, f32* statistics, f32* right, const f32* logits, const i32* labels, u32 batch, u32 classes,
                     f32 smoothing) {
    u32 b = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (b >= batch) return;
    const f32* z = logits + (u64)b * classes;
    f32 most = -infinity_f32();
    for (u32 k = lane; k < classes; k += WARP) most = max_f32(most, z[k]);
    most = warp_max(most);
    // Sums about the largest logit: of exponentials, and of the logits themselves.
    f32 exponentials = 0.0f, plain = 0.0f;
    u32 first = classes;
    for (u32 k = lane; k < classes; k += WARP) {
        f32 d = z[k] - most;
        exponentials += exp_f32(d);
        plain += d;
        if (d == 0.0f && k < first) first = k;
    }
    exponentials = warp_sum(exponentials);
    plain = warp_sum(plain);
#pragma unroll
    for (u32 distance = WARP / 2; distance > 0; distance /= 2)
        first = min_of(first, (u32)__shfl_xor_sync(FULL_MASK, first, distance));
    if (lane > 0) return;
    i32 label = labels[b];
    bool inside = label >= 0 && (u32)label < classes;
    f32 rest = log_f32(exponentials);
    statistics[2 * b] = most;
    statistics[2 * b + 1] = rest;
    items[b] = inside ? rest - (1.0f - smoothing) * (z[label] - most) - smoothing / (f32)classes * plain : 0.0f;
    right[b] = inside && (u32)label == first ? 1.0f : 0.0f;
}

// One block.
DEV void mean_loss(f32* loss, f32* correct, const f32* items, const f32* right, u32 batch, f32 scale) {
    f32 sums[2] = {0.0f, 0.0f};
    for (u32 b = threadIdx.x; b < batch; b += blockDim.x) {
        sums[0] += items[b];
        sums[1] += right[b];
    }
    block_sum(sums);
    if (threadIdx.x > 0) return;
    loss[0] = scale * (sums[0] / (f32)batch);
    correct[0] = sums[1];
}

// A thread per logit.
DEV void logit_gradient(f32* dlogits, const f32* dloss, const f32* logits, const i32* labels, const f32* statistics,
                        u32 batch, u32 classes, f32 smoothing, f32 scale, u32 accumulate) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= batch * classes) return;
    u32 b = at / classes, k = at % classes;
    i32 label = labels[b];
    f32 gradient = 0.0f;
    if (label >= 0 && (u32)label < classes) {
        f32 target = smoothing / (f32)classes + ((u32)label == k ? 1.0f - smoothing : 0.0f);
        gradient = dloss[0] * scale / (f32)batch * (exp_f32(logits[at] - statistics[2 * b] - statistics[2 * b + 1]) - target);
    }
    dlogits[at] = accumulate != 0 ? dlogits[at] + gradient : gradient;
}

extern "C" __global__ void __launch_bounds__(128) cross_entropy_fwd_items(
    f32* __restrict__ items, f32* __restrict__ statistics, f32* __restrict__ right, const f32* __restrict__ logits,
    const i32* __restrict__ labels, u32 batch, u32 classes, f32 smoothing) {
    item_losses(items, statistics, right, logits, labels, batch, classes, smoothing);
}
extern "C" __global__ void __launch_bounds__(256) cross_entropy_fwd_mean(
    f32* __restrict__ loss, f32* __restrict__ correct, const f32* __restrict__ items, const f32* __restrict__ right,
    u32 batch, f32 scale) {
    mean_loss(loss, correct, items, right, batch, scale);
}
extern "C" __global__ void __launch_bounds__(256) cross_entropy_bwd(
    f32* __restrict__ dlogits, const f32* __restrict__ dloss, const f32* __restrict__ logits,
    const i32* __restrict__ labels, const f32* __restrict__ statistics, u32 batch, u32 classes, f32 smoothing,
    f32 scale, u32 accumulate) {
    logit_gradient(dlogits, dloss, logits, labels, statistics, batch, classes, smoothing, scale, accumulate);
}
