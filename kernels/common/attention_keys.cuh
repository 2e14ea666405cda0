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
template <typename T>
struct KeyBlock {
    T *k, *v, *q, *dy, *p, *ds;
    u32 p8;
};

template <typename T>
DEV KeyBlock<T> key_block(u8* shared, u32 keys, u32 query_tiles, const Group& at, bool whole) {
    KeyBlock<T> block;
    u32 k16 = round_up(keys, 16u), key_rows = k16 * at.d8, query_rows = 16 * query_tiles * at.d8;
    block.p8 = (whole ? max_of(k16, 16 * at.steps) : k16) + PACK<T>;
    block.k = reinterpret_cast<T*>(shared);
    block.v = block.k + key_rows;
    block.q = block.v + key_rows;
    block.dy = block.q + query_rows;
    block.p = block.dy + query_rows;
    block.ds = block.p + 16 * query_tiles * block.p8;
    return block;
}

// X^T as A: X's rows below each other, 16 columns of them. bf16: 16 rows; TF32: eight, as load_below takes them.
DEV void load_transposed(u32 (&a)[4], SharedAddress at, const bf16*, u32) { ldmatrix_x4_trans(a, at); }
DEV void load_transposed(u32 (&a)[4], SharedAddress at, const f32*, u32 stride) {
    UNROLL for (u32 i = 0; i < 4; i++) a[i] = load_shared(at + 32 * (i % 2) + 4 * (i / 2) * stride);
}
DEV SharedAddress transposed_start(const bf16* tile, u32 stride, u32 lane) { return columns_start(tile, stride, lane); }
DEV SharedAddress transposed_start(const f32* tile, u32 stride, u32 lane) { return rows_start(tile, stride, lane); }

// acc[i] += X^T B over `tiles` tiles of 16 rows: X's columns 16 `step` and on, for the unit's step, by B's 8 TILES at.
template <u32 UNITS, u32 TILES, typename T>
DEV void accumulate_transposed(f32 (&acc)[UNITS][TILES][4], const T* x, u32 x_stride, const T* b, u32 b_stride, u32 tiles,
                               u32 pairs, u32 step, u32 steps_between, const Group& at, u32 lane) {
    SharedAddress x_at = transposed_start(x, x_stride, lane);
    SharedAddress b_at = rows_start(b, b_stride, lane);
#pragma unroll 1
    for (u32 tile = step < at.steps ? 0 : tiles * PARTS<T>; tile < tiles * PARTS<T>; tile++) {
        u32 a[UNITS][4];
        UNROLL for (u32 i = 0; i < UNITS; i++)
            if (step + i * steps_between < at.steps)
                load_transposed(a[i], x_at + 32 * PARTS<T> * (step + i * steps_between), x, x_stride);
        UNROLL for (u32 j = 0; j < (TILES + 1) / 2; j++) {
            if (j >= pairs) continue;
            u32 words[4];
            load_below(words, b_at + 32 * PARTS<T> * j, b, b_stride);
            u32 left[2] = {words[0], words[1]}, right[2] = {words[2], words[3]};
            UNROLL for (u32 i = 0; i < UNITS; i++) {
                if (step + i * steps_between >= at.steps) continue;
                mma_of<T>(acc[i][2 * j], a[i], left);
                if (2 * j + 1 < TILES) mma_of<T>(acc[i][2 * j + 1 < TILES ? 2 * j + 1 : 0], a[i], right);
            }
        }
        x_at += 32 * x_stride;
        b_at += 32 * b_stride;
    }
}

// P's and dS's columns stand for keys: of eight, in TF32 the even ones come first.
template <typename T>
DEV u32 key_of_column(u32 column) {
    return PARTS<T> == 1 ? column : column % 4 * 2 + column / 4;
}
// Fragments of weights of 16 queries and keys into P or dS, `at` their first row and column.
DEV void put_weights(bf16* to, u32 stride, const u32 (&words)[1][4], u32 lane) {
    UNROLL for (u32 i = 0; i < 4; i++)
        *reinterpret_cast<u32*>(to + lane / 4 * stride + lane % 4 * 2 + i % 2 * 8 * stride + i / 2 * 8) = words[0][i];
}
DEV void put_weights(f32* to, u32 stride, const u32 (&words)[2][4], u32 lane) {
    UNROLL for (u32 i = 0; i < 8; i++)
        to[(lane / 4 + i % 2 * 8) * stride + i / 4 * 8 + i / 2 % 2 * 4 + lane % 4] = f32_from_bits(words[i / 4][i % 4]);
}

// Sums of 16 columns (a fragment's rows) of keys (its columns) into rows of keys in shared memory, times `factor`.
template <u32 TILES, typename T>
DEV void put_transposed(T* rows, u32 stride, const f32 (&acc)[TILES][4], f32 factor, u32 pairs, u32 lane, bool add) {
    UNROLL for (u32 n = 0; n < TILES; n++) {
        if (n >= 2 * pairs) continue;
        UNROLL for (u32 i = 0; i < 4; i++) {
            T* p = rows + (8 * n + key_of_column<T>(lane % 4 * 2 + i % 2)) * stride + lane / 4 + i / 2 * 8;
            f32 value = acc[n][i] * factor;
            store_f32(p, add ? to_f32(*p) + value : value);
        }
    }
}

// dQ = dS K of 16 queries, by way of 16 `rows` in shared memory that are the warp's own; at most two steps of columns at a time.
template <typename T>
DEV void write_dq(T* dqkv, u32 first, T* rows, const T* ds, u32 p8, const T* k, u32 pairs, const Group& at, u32 lane,
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
            u32 a[PARTS<T>][4];
            UNROLL for (u32 part = 0; part < PARTS<T>; part++) ldmatrix_x4(a[part], own_start(ds, p8, lane) + 32 * (PARTS<T> * j + part));
            fragment_accumulate<AT_ONCE>(dq, a, k + 16 * (j * at.d8 + step), at.d8, at.steps - step, lane, true);
        }
        f32 factor[2] = {at.scale, at.scale};
        put_fragments<AT_ONCE>(rows + 16 * step, p8, dq, factor, at.steps - step, lane, add);
    }
    __syncwarp();
    store_rows(dqkv, at.q, first, 16, rows, p8, at, lane, WARP);
}

template <typename T, u32 STEPS, u32 TILES, u32 UNITS, u32 QUERY_TILES, bool IN_SHARED, bool WHOLE>
DEV void attention_bwd_keys_mma(T* __restrict__ dqkv, const T* __restrict__ dout, const T* __restrict__ out,
                                const f32* __restrict__ lse, const f32* __restrict__ delta, const T* __restrict__ qkv,
                                u32 tokens, u32 heads, u32 kv_heads, u32 d, u32 accumulate) {
    SMEM_DYN(shared);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    u32 keys = keys_of_tile(tokens, 8 * TILES), blocks = ceil_div(tokens, keys), first = blockIdx.x % blocks * keys;
    u32 query_tiles = min_of(warps, QUERY_TILES);
    bool aligned = aligned16(qkv) && aligned16(dout) && aligned16(dqkv) && (!WHOLE || aligned16(out));
    const Group at = group_of<T>(blockIdx.x / blocks, tokens, heads, kv_heads, d, aligned);
    const KeyBlock<T> block = key_block<T>(shared, keys, query_tiles, at, WHOLE);
    u32 d8 = at.d8, p8 = block.p8, count = min_of(tokens - first, keys), pairs = ceil_div(count, 16u);
    // In the first part: this warp's queries of those of a turn, and which of their pairs of eight keys.
    u32 mine = warp % query_tiles, part = warp / query_tiles, parts = warps / query_tiles;
    T* p_rows = block.p + 16 * mine * p8;

    load_rows(block.k, d8, qkv, at.k, first, 16 * pairs, at, threadIdx.x, blockDim.x);
    load_rows(block.v, d8, qkv, at.v, first, 16 * pairs, at, threadIdx.x, blockDim.x);
    f32 acc[UNITS][TILES][4] = {};
    u32 tiles = ceil_div(at.q.count, 16u);
    for (u32 tile = 0; tile < tiles; tile += query_tiles) {
        u32 there = min_of(tiles - tile, query_tiles), row = 16 * (tile + mine) + lane / 4;
        load_rows(block.q, d8, qkv, at.q, 16 * tile, 16 * there, at, threadIdx.x, blockDim.x);
        load_rows(block.dy, d8, dout, at.out, 16 * tile, 16 * there, at, threadIdx.x, blockDim.x);
        if (WHOLE && warp < there) load_rows(p_rows, p8, out, at.out, 16 * (tile + mine), 16, at, lane, WARP);
        land();
        if (tile == 0) {
            round_rows(block.k, d8, 16 * pairs, at, threadIdx.x, blockDim.x);
            round_rows(block.v, d8, 16 * pairs, at, threadIdx.x, blockDim.x);
        }
        round_rows(block.q, d8, 16 * there, at, threadIdx.x, blockDim.x);
        round_rows(block.dy, d8, 16 * there, at, threadIdx.x, blockDim.x);
        __syncthreads();
        bool active = mine < there && part < parts;
        Own<STEPS * PARTS<T>, IN_SHARED> q, dy;
        Statistics of;
        if (active) {
            take_own(q, block.q + 16 * mine * d8, at, lane);
            take_own(dy, block.dy + 16 * mine * d8, at, lane);
            load_statistics(of.lse2, lse, at, row, LOG2_E);
            if (WHOLE) row_deltas(of.delta, dy, block.dy + 16 * mine * d8, p_rows, p8, at, lane);
            else load_statistics(of.delta, delta, at, row, 1.0f);
        }
        // P takes the place of the output's rows.
        if (WHOLE) __syncthreads();
        if (active) {
#pragma unroll 1
            for (u32 j = part; j < pairs; j += parts) {
                u32 p[PARTS<T>][4], ds[PARTS<T>][4], offset = 16 * j * d8, place = 16 * mine * p8 + 16 * j;
                weights_again(p, ds, q, dy, block.k + offset, block.v + offset, of, count - 16 * j, at, lane);
                put_weights(block.p + place, p8, p, lane);
                put_weights(block.ds + place, p8, ds, lane);
            }
        }
        __syncthreads();
        bool of_keys = warp % 2 == 1;
        accumulate_transposed<UNITS, TILES>(acc, of_keys ? block.q : block.dy, d8, of_keys ? block.ds : block.p, p8, there,
                                            pairs, warp / 2, warps / 2, at, lane);
        __syncthreads();
        if (WHOLE && warp < there)
            write_dq(dqkv, 16 * (tile + mine), p_rows, block.ds + 16 * mine * p8, p8, block.k, pairs, at, lane, accumulate != 0);
    }
    // The sums take the place of keys and values.
    if (WHOLE) __syncthreads();
    if (accumulate != 0) {
        load_rows(block.k, d8, dqkv, at.k, first, count, at, threadIdx.x, blockDim.x);
        load_rows(block.v, d8, dqkv, at.v, first, count, at, threadIdx.x, blockDim.x);
        arrive_in_block();
    }
    T* sums = warp % 2 == 1 ? block.k : block.v;
    UNROLL for (u32 i = 0; i < UNITS; i++) {
        u32 step = warp / 2 + i * (warps / 2);
        if (step < at.steps)
            put_transposed<TILES>(sums + 16 * step, d8, acc[i], warp % 2 == 1 ? at.scale : 1.0f, pairs, lane, accumulate != 0);
    }
    __syncthreads();
    store_rows(dqkv, at.k, first, count, block.k, d8, at, threadIdx.x, blockDim.x);
    store_rows(dqkv, at.v, first, count, block.v, d8, at, threadIdx.x, blockDim.x);
}
