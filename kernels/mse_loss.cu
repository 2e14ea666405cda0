// Weighted mean squared error: loss = scale * mean over b of w[b] * mean over e of (prediction - target)^2.
//
//   prediction, target, dprediction [batch, elements] f32, weight [batch] f32 or null (ones), loss, dloss [1] f32.
//
// Forward in two stages of fixed order: a block sums an item, one block sums the items. Backward:
// dprediction = dloss * scale * 2 w[b] (prediction - target) / (batch * elements).
//
// Floor: prediction and target read once each way, dprediction written once.
#include "common/entry.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

// A block per item: partial[b] = w[b] * mean over e of (prediction - target)^2.
KERNEL(mse_loss_fwd_items, (256), (Out<f32> partial, In<f32> prediction, In<f32> target, In<f32> weight, u32 elements),
       (partial, prediction, target, weight, elements)) {
    u32 b = blockIdx.x;
    const f32 *p = prediction + (u64)b * elements, *t = target + (u64)b * elements;
    bool aligned = aligned4(p) && aligned4(t);
    f32 sum = 0.0f;
    for (u32 e = 4 * threadIdx.x; e < elements; e += 4 * blockDim.x) {
        u32 left = elements - e;
        f32 pv[4], tv[4];
        load4(p + e, left, aligned && left >= 4, pv);
        load4(t + e, left, aligned && left >= 4, tv);
        UNROLL for (u32 i = 0; i < 4; i++) {
            f32 difference = pv[i] - tv[i];
            sum = fma_f32(difference, difference, sum);
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[b] = (weight != nullptr ? weight[b] : 1.0f) * (sum / (f32)elements);
}

// One block.
KERNEL(mse_loss_fwd_mean, (256), (Out<f32> loss, In<f32> partial, u32 batch, f32 scale), (loss, partial, batch, scale)) {
    f32 sum = 0.0f;
    for (u32 b = threadIdx.x; b < batch; b += blockDim.x) sum += partial[b];
    sum = block_sum(sum);
    if (threadIdx.x == 0) loss[0] = scale * (sum / (f32)batch);
}

// Blocks [item, chunk of elements], four elements a thread.
KERNEL(mse_loss_bwd, (256), (Out<f32> dprediction, In<f32> dloss, In<f32> prediction, In<f32> target, In<f32> weight, u32 batch, u32 elements,
       f32 scale, u32 accumulate), (dprediction, dloss, prediction, target, weight, batch, elements, scale, accumulate)) {
    u32 b = blockIdx.x, e = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (e >= elements) return;
    u64 at = (u64)b * elements + e;
    u32 left = elements - e;
    bool wide = left >= 4 && aligned4(dprediction + at) && aligned4(prediction + at) && aligned4(target + at);
    f32 factor = dloss[0] * scale * 2.0f * (weight != nullptr ? weight[b] : 1.0f) / ((f32)batch * (f32)elements);
    f32 pv[4], tv[4], gradient[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    load4(prediction + at, left, wide, pv);
    load4(target + at, left, wide, tv);
    if (accumulate != 0) load4(dprediction + at, left, wide, gradient);
    UNROLL for (u32 i = 0; i < 4; i++) gradient[i] += factor * (pv[i] - tv[i]);
    store4(dprediction + at, left, wide, gradient);
}
