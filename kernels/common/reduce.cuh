// Sums and maxima over a warp and over a block, in a fixed order: the same bits in every run and for every thread order.
#pragma once
#include "common/types.cuh"

// The sum over the 32 lanes of a full warp, in every lane: a butterfly, distances 16, 8, 4, 2, 1.
DEV f32 warp_sum(f32 v) {
    UNROLL for (u32 distance = WARP / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(FULL_MASK, v, distance);
    return v;
}

// The largest over the 32 lanes of a full warp, in every lane.
DEV f32 warp_max(f32 v) {
    UNROLL for (u32 distance = WARP / 2; distance > 0; distance /= 2) v = max_f32(v, __shfl_xor_sync(FULL_MASK, v, distance));
    return v;
}

// Sums of N values at once over the block, in every thread. `blockDim.x` is a multiple of 32, at most 1024, and the
// block is one-dimensional; all threads call. It begins and ends in a way that lets calls follow each other: a barrier
// stands between the writing and the reading of its scratch, and another behind the reading.
template <u32 N>
DEV void block_sum(f32 (&v)[N]) {
    SHARED(f32, block_sum_partial, [N * WARP]);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    UNROLL for (u32 n = 0; n < N; n++) {
        v[n] = warp_sum(v[n]);
        if (lane == 0) block_sum_partial[n * WARP + warp] = v[n];
    }
    __syncthreads();
    UNROLL for (u32 n = 0; n < N; n++) v[n] = warp_sum(lane < warps ? block_sum_partial[n * WARP + lane] : 0.0f);
    __syncthreads();
}

// The sum over the block, in every thread: see `block_sum` above.
DEV f32 block_sum(f32 v) {
    f32 values[1] = {v};
    block_sum(values);
    return values[0];
}

// The largest over the block, in every thread, under the conditions of `block_sum`.
DEV f32 block_max(f32 v) {
    SHARED(f32, block_max_partial, [WARP]);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    v = warp_max(v);
    if (lane == 0) block_max_partial[warp] = v;
    __syncthreads();
    v = warp_max(lane < warps ? block_max_partial[lane] : -infinity_f32());
    __syncthreads();
    return v;
}

// True in every thread of the one block that is the last of `blocks` to come here; that block may then read what the
// others wrote to global memory before they came. All threads call. `ticket` is a zero before the first launch and is
// left zero behind the last block, so that a launch can follow without clearing it.
DEV bool last_block(u32* ticket, u32 blocks) {
    SHARED(u32, last_block_is_last, [1]);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last_block_is_last[0] = atomicInc(ticket, blocks - 1) == blocks - 1;
        __threadfence();
    }
    __syncthreads();
    return last_block_is_last[0] != 0;
}
