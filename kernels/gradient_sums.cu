// The last step of parameters' gradients: sums over the parts that blocks of other kernels left in scratch, up to seven in one launch.
//
//   to[i] = sum over p < parts of partial[p stride + i], i < len; added to to[i] where mode & 1        all in f32
//
// Two orders, by mode & 2. In order (0): a thread has four neighbouring elements and all their parts, one after the other, as suits few
// parts of a weight. Across (2): a block has 32 elements; warp w adds the parts w, w + 8, .., and the first warp the eight sums in
// order, as suits hundreds of parts of a bias. An absent sum has len 0.
//
// Floor: each part is read once, each result written once: 4 (parts + 1) len bytes. The parts were just written, and mostly lie in L2.
//
// Launch: 256 threads; the sums' blocks one behind the other, ceil(len / 1024) of a sum in order and ceil(len / 32) of one across.
#include "common/entry.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

constexpr u32 SUMS = 7, WARPS = 8, THREADS = WARPS * WARP, ADDED = 1, ACROSS = 2;

struct Sum {
    f32* to;
    const f32* partial;
    u32 parts, len, stride, mode;

    DEV u32 blocks(const Sum& sum) { return ceil_div(sum.len, (sum.mode & ACROSS) != 0 ? WARP : THREADS * 4); }
};

// The elements 4 `piece` to 4 `piece` + 3.
DEV void sum_in_order(const Sum& sum, u32 piece) {
    u32 at = piece * 4;
    if (at >= sum.len) return;
    u32 left = sum.len - at;
    bool wide = sum.len % 4 == 0 && sum.stride % 4 == 0 && aligned16(sum.to) && aligned16(sum.partial);
    f32 total[4], v[4];
    load_wide(sum.partial + at, left, wide, total);
#pragma unroll 4
    for (u32 part = 1; part < sum.parts; part++) {
        load_wide(sum.partial + (u64)part * sum.stride + at, left, wide, v);
        UNROLL for (u32 i = 0; i < 4; i++) total[i] += v[i];
    }
    if ((sum.mode & ADDED) != 0) {
        load_wide(sum.to + at, left, wide, v);
        UNROLL for (u32 i = 0; i < 4; i++) total[i] += v[i];
    }
    store_wide(sum.to + at, left, wide, total);
}

// The elements 32 `block` to 32 `block` + 31.
DEV void sum_across(const Sum& sum, u32 block) {
    SHARED(f32, of_warps, [WARPS][WARP]);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, at = block * WARP + lane;
    f32 mine = 0.0f;
    if (at < sum.len) {
#pragma unroll 4
        for (u32 part = warp; part < sum.parts; part += WARPS) mine += sum.partial[(u64)part * sum.stride + at];
    }
    of_warps[warp][lane] = mine;
    __syncthreads();
    if (warp > 0 || at >= sum.len) return;
    f32 total = 0.0f;
    UNROLL for (u32 w = 0; w < WARPS; w++) total += of_warps[w][lane];
    sum.to[at] = (sum.mode & ADDED) != 0 ? sum.to[at] + total : total;
}

#define SUM(n) Out<f32> to##n, In<f32> partial##n, u32 parts##n, u32 len##n, u32 stride##n, u32 mode##n
#define NAMES(n) to##n, partial##n, parts##n, len##n, stride##n, mode##n

// Block blockIdx.x of all the sums'.
KERNEL(gradient_sums, (256), (SUM(0), SUM(1), SUM(2), SUM(3), SUM(4), SUM(5), SUM(6)),
       (NAMES(0), NAMES(1), NAMES(2), NAMES(3), NAMES(4), NAMES(5), NAMES(6))) {
    const Sum sums[SUMS] = {{NAMES(0)}, {NAMES(1)}, {NAMES(2)}, {NAMES(3)}, {NAMES(4)}, {NAMES(5)}, {NAMES(6)}};
    // This block's sum is the last one that begins at it or before; `first` is that sum's first block.
    Sum mine = sums[0];
    u32 first = 0, begin = 0;
    UNROLL for (u32 s = 0; s < SUMS; s++) {
        u32 blocks = Sum::blocks(sums[s]);
        if (blockIdx.x >= begin && blocks > 0) {
            mine = sums[s];
            first = begin;
        }
        begin += blocks;
    }
    u32 block = blockIdx.x - first;
    if ((mine.mode & ACROSS) != 0) sum_across(mine, block);
    else sum_in_order(mine, block * THREADS + threadIdx.x);
}
