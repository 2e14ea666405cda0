// How often each bin of noise levels is drawn, from the losses met there (Nichol and Dhariwal 2021, arXiv 2102.09672,
// section 3.3).
//
//   state [3, bins] f32: q (running mean of the squared loss; negative: not visited yet), p (probability), end (sum of p up to
//   and with the bin); losses [batch] f32 with their importance weights 1 / (bins p), levels [batch] i32: the items' bins.
//
//   q = decay q + (1 - decay) mean of the items' squares, r = sqrt(q) (the mean of the others' where there is no q yet),
//   p = (1 - uniform) r / sum r + uniform / bins
//
// Floor: losses, levels and state read once, state written once: a few kilobytes, so the floor is the launch. A thread a bin
// goes through all items, in order; one thread adds up the ends, so that they are the CPU's sums.
#include "common/entry.cuh"
#include "common/types.cuh"

constexpr u32 MOST_BINS = 256;

KERNEL(level_sampling_update, (256), (Out<f32> state, In<f32> losses, In<i32> levels, u32 bins, u32 batch, f32 decay, f32 uniform),
       (state, losses, levels, bins, batch, decay, uniform)) {
    SHARED(f32, moments, [MOST_BINS]);
    u32 k = threadIdx.x;
    f32 count = (f32)bins;
    if (k < bins) {
        f32 moment = state[k], factor = count * state[bins + k], sum = 0.0f, items = 0.0f;
        for (u32 b = 0; b < batch; b++) {
            if (levels[b] != (i32)k) continue;
            f32 loss = losses[b] * factor;
            sum = fma_f32(loss, loss, sum);
            items += 1.0f;
        }
        if (items > 0.0f) {
            f32 mean = sum / items;
            moment = moment < 0.0f ? mean : fma_f32(decay, moment - mean, mean);
            state[k] = moment;
        }
        moments[k] = moment;
    }
    __syncthreads();
    if (k == 0) {
        f32 known = 0.0f, total = 0.0f;
        for (u32 i = 0; i < bins; i++) {
            if (moments[i] < 0.0f) continue;
            known += 1.0f;
            total += sqrt_f32(moments[i]);
        }
        f32 unseen = known > 0.0f ? total / known : 1.0f;
        total += (count - known) * unseen;
        f32 end = 0.0f;
        for (u32 i = 0; i < bins; i++) {
            f32 root = moments[i] < 0.0f ? unseen : sqrt_f32(moments[i]);
            // All losses zero: every bin alike.
            f32 part = total > 0.0f ? root / total : 1.0f / count;
            f32 share = fma_f32(1.0f - uniform, part, uniform / count);
            end += share;
            state[bins + i] = share;
            state[2 * bins + i] = i + 1 == bins ? 1.0f : end;
        }
    }
}
