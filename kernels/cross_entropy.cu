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
#include "common/entry.cuh"
#include "common/reduce.cuh"
#include "common/types.cuh"

constexpr u32 WARPS = 4;

// A warp per item.
KERNEL(cross_entropy_fwd_items, (128), (Out<f32> items, Out<f32> statistics, Out<f32> right, In<f32> logits, In<i32> labels, u32 batch, u32 classes,
       f32 smoothing), (items, statistics, right, logits, labels, batch, classes, smoothing)) {
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
    UNROLL for (u32 distance = WARP / 2; distance > 0; distance /= 2)
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
KERNEL(cross_entropy_fwd_mean, (256), (Out<f32> loss, Out<f32> correct, In<f32> items, In<f32> right, u32 batch, f32 scale),
       (loss, correct, items, right, batch, scale)) {
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
KERNEL(cross_entropy_bwd, (256), (Out<f32> dlogits, In<f32> dloss, In<f32> logits, In<i32> labels, In<f32> statistics, u32 batch, u32 classes,
       f32 smoothing, f32 scale, u32 accumulate), (dlogits, dloss, logits, labels, statistics, batch, classes, smoothing, scale, accumulate)) {
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
