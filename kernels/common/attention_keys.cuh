// dK and dV on the tensor cores, and dQ with them where a block has all of a sequence's keys; see attention_mma.cuh.
//
// A block owns a tile of keys of a sample's key head and goes through the group's stacked queries, QUERY_TILES times 16 at a
// time (fewer if it has fewer warps). First each warp makes P and dS of 16 queries, and of as many keys as the other warps
// with the same queries leave it, into shared memory. Then every warp multiplies with all of them: the even ones
// dV^T += dout^T P, the odd ones dK^T += Q^T dS, for UNITS x 16 columns of the head each. These sums stay in registers. With WHOLE a
// third product, dQ = dS K of 16 queries a warp, is written there and then: five products where two kernels need seven.
//
// WHOLE makes delta from the output; else it is what _bwd_q wrote.
#pragma once
#include "common/attention_mma.cuh"

// A block's part of shared memory: keys and values, then queries and their output gradients, then P and dS, whose rows are
// `p8` apart (with WHOLE no less than d8: rows of the output and of dQ lie in P's place).
struct KeyBlock {
    bf16 *k, *v, *q, *dy, *p, *ds;
    u32 p8;
};

DEV KeyBlock key_block(u8* shared, u32 keys, u32 query_tiles, const Group& at, bool whole) {
    KeyBlock block;
    u32 k16 = round_up(keys, 16u), key_rows = k16 * at.d8, query_rows = 16 * query_tiles * at.d8;
    block.p8 = (whole ? max_of(k16, 16 * at.steps) : k16) + 8;
    block.k = reinterpret_cast<bf16*>(shared);
    block.v = block.k + key_rows;
    block.q = block.v + key_rows;
    block.dy = block.q + query_rows;
    block.p = block.dy + query_rows;
    block.ds = block.p + 16 * query_tiles * block.p8;
    return block;
}

// acc[i] += X^T B over `tiles` tiles of 16 rows: X's columns 16 `step` and on, for the unit's step, by B's 8 TILES at.
template <u32 UNITS, u32 TILES>
DEV void accumulate_transposed(f32 (&acc)[UNITS][TILES][4], const bf16* x, u32 x_stride, const bf16* b, u32 b_stride, u32 tiles,
                               u32 pairs, u32 step, u32 steps_between, const Group& at, u32 lane) {
    SharedAddress x_at = columns_start(x, x_stride, lane);
    SharedAddress b_at = rows_start(b, b_stride, lane);
#pragma unroll 1
    for (u32 tile = step < at.steps ? 0 : tiles; tile < tiles; tile++) {
        u32 a[UNITS][4];
#pragma unroll
        for (u32 i = 0; i < UNITS; i++)
            if (step + i * steps_between < at.steps) ldmatrix_x4_trans(a[i], x_at + 32 * (step + i * steps_between));
#pragma unroll
        for (u32 j = 0; j < (TILES + 1) / 2; j++) {
            if (j >= pairs) continue;
            u32 words[4];
            ldmatrix_x4_trans(words, b_at + 32 * j);
            u32 left[2] = {words[0], words[1]}, right[2] = {words[2], words[3]};
#pragma unroll
            for (u32 i = 0; i < UNITS; i++) {
                if (step + i * steps_between >= at.steps) continue;
                mma_m16n8k16(acc[i][2 * j], a[i], left);
                if (2 * j + 1 < TILES) mma_m16n8k16(acc[i][2 * j + 1 < TILES ? 2 * j + 1 : 0], a[i], right);
            }
        }
        x_at += 32 * x_stride;
        b_at += 32 * b_stride;
    }
}

// Sums of 16 columns (a fragment's rows) of keys (its columns) into rows of keys in shared memory, times `factor`.
template <u32 TILES>
DEV void put_transposed(bf16* rows, u32 stride, const f32 (&acc)[TILES][4], f32 factor, u32 pairs, u32 lane, bool add) {
#pragma unroll
    for (u32 n = 0; n < TILES; n++) {
        if (n >= 2 * pairs) continue;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            bf16* p = rows + (8 * n + lane % 4 * 2 + i % 2) * stride + lane / 4 + i / 2 * 8;
            f32 value = acc[n][i] * factor;
            store_f32(p, add ? to_f32(*p) + value : value);
        }
    }
}

// dQ = dS K of 16 queries, by way of 16 `rows` in shared memory that are the warp's own; at most two steps of columns at a time.
template <u32 STEPS>
DEV void write_dq(bf16* dqkv, u32 first, bf16* rows, const bf16* ds, u32 p8, const bf16* k, u32 pairs, const Group& at, u32 lane,
                  bool add) {
    if (add) {
        load_rows(rows, p8, dqkv, at.q, first, 16, at, lane, WARP);
        arrive_in_warp();
    }
    constexpr u32 AT_ONCE = 2;
#pragma unroll 1
    for (u32 step = 0; step < at.steps; step += AT_ONCE) {
        f32 dq[AT_ONCE][2][4] = {};
#pragma unroll 1
        for (u32 j = 0; j < pairs; j++) {
            u32 a[4];
            ldmatrix_x4(a, own_start(ds, p8, lane) + 32 * j);
            fragment_accumulate<AT_ONCE>(dq, a, k + 16 * (j * at.d8 + step), at.d8, at.steps - step, lane);
        }
        f32 factor[2] = {at.scale, at.scale};
        put_fragments<AT_ONCE>(rows + 16 * step, p8, dq, factor, at.steps - step, lane, add);
    }
    __syncwarp();
    store_rows(dqkv, at.q, first, 16, rows, p8, at, lane, WARP);
}

template <u32 STEPS, u32 TILES, u32 UNITS, u32 QUERY_TILES, bool IN_SHARED, bool WHOLE>
DEV void attention_bwd_keys_mma(bf16* __restrict__ dqkv, const bf16* __restrict__ dout, const bf16* __restrict__ out,
                                const f32* __restrict__ lse, const f32* __restrict__ delta, const bf16* __restrict__ qkv,
                                u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    SMEM_DYN(shared);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    u32 keys = keys_of_tile(tokens, 8 * TILES), blocks = ceil_div(tokens, keys), first = blockIdx.x % blocks * keys;
    u32 query_tiles = min_of(warps, QUERY_TILES);
    bool aligned = aligned16(qkv) && aligned16(dout) && aligned16(dqkv) && (!WHOLE || aligned16(out));
    const Group at = group_of(blockIdx.x / blocks, tokens, heads, kv_heads, d, aligned);
    const KeyBlock block = key_block(shared, keys, query_tiles, at, WHOLE);
    u32 d8 = at.d8, p8 = block.p8, count = min_of(tokens - first, keys), pairs = ceil_div(count, 16u);
    // In the first part: this warp's queries of those of a turn, and which of their pairs of eight keys.
    u32 mine = warp % query_tiles, part = warp / query_tiles, parts = warps / query_tiles;
    bf16* p_rows = block.p + 16 * mine * p8;

    load_rows(block.k, d8, qkv, at.k, first, 16 * pairs, at, threadIdx.x, blockDim.x);
    load_rows(block.v, d8, qkv, at.v, first, 16 * pairs, at, threadIdx.x, blockDim.x);
    f32 acc[UNITS][TILES][4] = {};
    u32 tiles = ceil_div(at.q.count, 16u);
    for (u32 tile = 0; tile < tiles; tile += query_tiles) {
        u32 there = min_of(tiles - tile, query_tiles), row = 16 * (tile + mine) + lane / 4;
        load_rows(block.q, d8, qkv, at.q, 16 * tile, 16 * there, at, threadIdx.x, blockDim.x);
        load_rows(block.dy, d8, dout, at.out, 16 * tile, 16 * there, at, threadIdx.x, blockDim.x);
        if (WHOLE && warp < there) load_rows(p_rows, p8, out, at.out, 16 * (tile + mine), 16, at, lane, WARP);
        arrive_in_block();
        bool active = mine < there && part < parts;
        Own<STEPS, IN_SHARED> q, dy;
        Statistics of;
        if (active) {
            take_own(q, block.q + 16 * mine * d8, at, lane);
            take_own(dy, block.dy + 16 * mine * d8, at, lane);
            load_statistics(of.lse2, lse, at, row, LOG2_E);
            if (WHOLE) row_deltas(of.delta, dy, p_rows, p8, at, lane);
            else load_statistics(of.delta, delta, at, row, 1.0f);
        }
        // P takes the place of the output's rows.
        if (WHOLE) __syncthreads();
        if (active) {
#pragma unroll 1
            for (u32 j = part; j < pairs; j += parts) {
                u32 p[4], ds[4], offset = 16 * j * d8;
                weights_again<STEPS, IN_SHARED>(p, ds, q, dy, block.k + offset, block.v + offset, of, count - 16 * j, at, lane);
                u32 place = (16 * mine + lane / 4) * p8 + 16 * j + lane % 4 * 2;
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 to = place + i % 2 * 8 * p8 + i / 2 * 8;
                    *reinterpret_cast<u32*>(block.p + to) = p[i];
                    *reinterpret_cast<u32*>(block.ds + to) = ds[i];
                }
            }
        }
        __syncthreads();
        bool of_keys = warp % 2 == 1;
        accumulate_transposed<UNITS, TILES>(acc, of_keys ? block.q : block.dy, d8, of_keys ? block.ds : block.p, p8, there,
                                            pairs, warp / 2, warps / 2, at, lane);
        __syncthreads();
        if (WHOLE && warp < there)
            write_dq<STEPS>(dqkv, 16 * (tile + mine), p_rows, block.ds + 16 * mine * p8, p8, block.k, pairs, at, lane, accumulate != 0);
    }
    // The sums take the place of keys and values.
    if (WHOLE) __syncthreads();
    if (accumulate != 0) {
        load_rows(block.k, d8, dqkv, at.k, first, 16 * pairs, at, threadIdx.x, blockDim.x);
        load_rows(block.v, d8, dqkv, at.v, first, 16 * pairs, at, threadIdx.x, blockDim.x);
        arrive_in_block();
    }
    bf16* sums = warp % 2 == 1 ? block.k : block.v;
#pragma unroll
    for (u32 i = 0; i < UNITS; i++) {
        u32 step = warp / 2 + i * (warps / 2);
        if (step < at.steps)
            put_transposed<TILES>(sums + 16 * step, d8, acc[i], warp % 2 == 1 ? at.scale : 1.0f, pairs, lane, accumulate != 0);
    }
    __syncthreads();
    store_rows(dqkv, at.k, first, count, block.k, d8, at, threadIdx.x, blockDim.x);
    store_rows(dqkv, at.v, first, count, block.v, d8, at, threadIdx.x, blockDim.x);
}
