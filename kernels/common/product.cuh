// Products C[i, j] = sum over r of A[i, r] B[j, r] by tiles: f32 with plain FMA, bf16 on the tensor cores with f32 sums.
//
// bf16: mma.sync m16n8k16 on tiles of 128x128 or 64x64 by 32, three stages of cp.async, shared memory swizzled so that
// neither the copies nor ldmatrix meet a bank twice. f32: the same tiles by 16, 8x8 or 4x4 results a thread. Whatever the
// tile, an element is one chain over r in ascending order, so that the choice of tile changes no bit and a row's result
// depends on the sum's length alone. Edges are filled with zeros, which change no sum.
//
// Launches: ceil(i / SIDE) * ceil(j / SIDE) blocks in x, j fastest (neighbours share rows of A in the L2); f32 256 threads;
// bf16 2 SIDE threads, dynamic shared memory 3 * 2 * SIDE * 64 bytes.
//
// An operand is a matrix, stored or imagined, in which neighbours in a row lie side by side in memory. The sum runs along
// its rows (R_ALONG_ROW: r is the column) or down its columns (r is the row). A thread copies pieces of neighbouring
// columns: in each step the piece at one column of P rows that are `apart` from each other, each step DEPTH further along
// r. An operand O has
//
//   data, outer, wide   its memory, the size of the index that is not summed, whether pieces of 16 bytes are whole and aligned
//   O::Walk<P>          where a thread stands, if that is worth to be remembered from step to step, and
//   walk_from<DEPTH>(o, walk, row, apart, col)                the first step
//   walk_columns<N>(o, walk), walk_rows<DEPTH>(o, walk)       further along (also N = 1), or down
//   walk_place(o, walk, p, row, col)                          where the p-th row's element lies; null: it is zero
//
// and what takes the sums has finish(to, row, col, sums).
#pragma once
#include "common/async.cuh"
#include "common/mma.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

// A matrix as it is stored, `stride` elements from row to row.
template <typename T>
struct Stored {
    const T* data;
    u32 stride;
    u32 outer;
    bool wide;

    template <u32 P>
    struct Walk {};

    DEV Stored make(const T* data, u32 stride, u32 outer) {
        return Stored{data, stride, outer, stride % Vec16<T>::COUNT == 0 && aligned16(data)};
    }
};
template <u32 DEPTH, typename T, typename Walk>
DEV void walk_from(const Stored<T>&, Walk&, u32, u32, u32) {}
template <u32 N, typename T, typename Walk>
DEV void walk_columns(const Stored<T>&, Walk&) {}
template <u32 DEPTH, typename T, typename Walk>
DEV void walk_rows(const Stored<T>&, Walk&) {}
template <typename T, typename Walk>
DEV const T* walk_place(const Stored<T>& operand, const Walk&, u32, u32 row, u32 col) {
    return operand.data + (u64)row * operand.stride + col;
}

// How THREADS threads share the pieces of N elements of a tile of SIDE outer indices by DEPTH steps of r.
template <u32 SIDE, u32 DEPTH_, u32 THREADS, u32 N_, bool R_ALONG_ROW_>
struct Share {
    static constexpr u32 DEPTH = DEPTH_, N = N_;
    static constexpr bool R_ALONG_ROW = R_ALONG_ROW_;
    static constexpr u32 ACROSS = (R_ALONG_ROW ? DEPTH : SIDE) / N;
    static constexpr u32 COUNT = SIDE * DEPTH / N / THREADS;
    static constexpr u32 APART = THREADS / ACROSS;
    static_assert(THREADS % ACROSS == 0, "a thread's pieces begin at one column");
};

template <typename S, typename O, typename Walk>
DEV void share_from(const O& operand, Walk& walk, u32 first, u32 r) {
    u32 row = threadIdx.x / S::ACROSS, col = threadIdx.x % S::ACROSS * S::N;
    walk_from<S::DEPTH>(operand, walk, row + (S::R_ALONG_ROW ? first : r), S::APART, col + (S::R_ALONG_ROW ? r : first));
}
template <typename S, typename O, typename Walk>
DEV void share_next(const O& operand, Walk& walk) {
    if constexpr (S::R_ALONG_ROW) walk_columns<S::DEPTH>(operand, walk);
    else walk_rows<S::DEPTH>(operand, walk);
}

// --- f32: plain FMA, 256 threads ---

constexpr u32 FMA_DEPTH = 16;

template <u32 SIDE, bool R_ALONG_ROW>
using FmaShare = Share<SIDE, FMA_DEPTH, 256, 4, R_ALONG_ROW>;

// This thread's elements of a SIDE x FMA_DEPTH tile, read ahead of their use.
template <u32 SIDE, bool R_ALONG_ROW, typename O, typename Walk>
DEV void fma_read(f32 (&ahead)[SIDE / 64][4], const O& operand, Walk& walk, u32 first, u32 r, u32 r_end) {
    typedef FmaShare<SIDE, R_ALONG_ROW> S;
    u32 rows = R_ALONG_ROW ? operand.outer : r_end, cols = R_ALONG_ROW ? r_end : operand.outer;
    u32 col = (R_ALONG_ROW ? r : first) + threadIdx.x % S::ACROSS * 4;
#pragma unroll
    for (u32 p = 0; p < S::COUNT; p++) {
        u32 row = (R_ALONG_ROW ? first : r) + threadIdx.x / S::ACROSS + p * S::APART;
        u32 left = row < rows && col < cols ? cols - col : 0;
        if (operand.wide && left >= 4) {
            const f32* from = walk_place(operand, walk, p, row, col);
            load_wide(from, 0, from != nullptr, ahead[p]);
        } else {
            Walk at = walk;
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const f32* from = i < left ? walk_place(operand, at, p, row, col + i) : nullptr;
                ahead[p][i] = from != nullptr ? *from : 0.0f;
                walk_columns<1>(operand, at);
            }
        }
    }
    share_next<S>(operand, walk);
}

template <u32 SIDE, bool R_ALONG_ROW>
DEV void fma_put(f32 (&tile)[FMA_DEPTH][SIDE + 4], const f32 (&ahead)[SIDE / 64][4]) {
#pragma unroll
    for (u32 p = 0; p < SIDE / 64; p++) {
        u32 piece = p * 256 + threadIdx.x;
        if (R_ALONG_ROW) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) tile[piece % 4 * 4 + i][piece / 4] = ahead[p][i];
        } else {
            store_wide(&tile[piece / (SIDE / 4)][piece % (SIDE / 4) * 4], 4, true, ahead[p]);
        }
    }
}

template <u32 SIDE, bool A_R_ALONG_ROW, bool B_R_ALONG_ROW, typename A, typename B, typename To>
DEV void fma_product(const A& a, const B& b, u32 r, u32 r_end, const To& to) {
    SHARED(f32, fma_a, [FMA_DEPTH][SIDE + 4]);
    SHARED(f32, fma_b, [FMA_DEPTH][SIDE + 4]);
    constexpr u32 PARTS = SIDE / 64;
    u32 tiles = ceil_div(b.outer, SIDE), row0 = blockIdx.x / tiles * SIDE, col0 = blockIdx.x % tiles * SIDE;
    u32 x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
    typename A::template Walk<PARTS> a_walk;
    typename B::template Walk<PARTS> b_walk;
    share_from<FmaShare<SIDE, A_R_ALONG_ROW>>(a, a_walk, row0, r);
    share_from<FmaShare<SIDE, B_R_ALONG_ROW>>(b, b_walk, col0, r);
    f32 sums[PARTS * 4][PARTS][4];
#pragma unroll
    for (u32 i = 0; i < PARTS * 4; i++)
#pragma unroll
        for (u32 q = 0; q < PARTS; q++)
#pragma unroll
            for (u32 j = 0; j < 4; j++) sums[i][q][j] = 0.0f;

    f32 a_ahead[PARTS][4], b_ahead[PARTS][4];
    fma_read<SIDE, A_R_ALONG_ROW>(a_ahead, a, a_walk, row0, r, r_end);
    fma_read<SIDE, B_R_ALONG_ROW>(b_ahead, b, b_walk, col0, r, r_end);
    for (; r < r_end; r += FMA_DEPTH) {
        fma_put<SIDE, A_R_ALONG_ROW>(fma_a, a_ahead);
        fma_put<SIDE, B_R_ALONG_ROW>(fma_b, b_ahead);
        __syncthreads();
        if (r + FMA_DEPTH < r_end) {
            fma_read<SIDE, A_R_ALONG_ROW>(a_ahead, a, a_walk, row0, r + FMA_DEPTH, r_end);
            fma_read<SIDE, B_R_ALONG_ROW>(b_ahead, b, b_walk, col0, r + FMA_DEPTH, r_end);
        }
#pragma unroll 4
        for (u32 d = 0; d < FMA_DEPTH; d++) {
            f32 av[PARTS][4], bv[PARTS][4];
#pragma unroll
            for (u32 q = 0; q < PARTS; q++) {
                load_wide(&fma_a[d][q * 64 + y], 4, true, av[q]);
                load_wide(&fma_b[d][q * 64 + x], 4, true, bv[q]);
            }
#pragma unroll
            for (u32 i = 0; i < PARTS * 4; i++)
#pragma unroll
                for (u32 q = 0; q < PARTS; q++)
#pragma unroll
                    for (u32 j = 0; j < 4; j++) sums[i][q][j] = fma_f32(av[i / 4][i % 4], bv[q][j], sums[i][q][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < PARTS * 4; i++) {
        u32 row = row0 + i / 4 * 64 + y + i % 4;
        if (row >= a.outer) continue;
#pragma unroll
        for (u32 q = 0; q < PARTS; q++) {
            u32 col = col0 + q * 64 + x;
            if (col < b.outer) finish(to, row, col, sums[i][q]);
        }
    }
}

// --- bf16: tensor cores, SIDE * 2 threads in warps of (SIDE / 2) x 32 results ---

constexpr u32 MMA_DEPTH = 32;
constexpr u32 MMA_STAGES = 3;

// Where eight neighbouring elements of a tile lie: row `row`, piece `piece`. A tile with r contiguous has rows of 64 bytes, so two
// rows share the 32 banks; one with r outside has rows of SIDE elements. Either way the eight rows of an ldmatrix, and the
// pieces that eight lanes copy, fall into different banks.
template <u32 SIDE, bool R_ALONG_ROW>
DEV u32 mma_place(u32 row, u32 piece) {
    if (R_ALONG_ROW) return row * MMA_DEPTH + ((piece ^ (row >> 1 & 3)) * 8);
    return row * SIDE + ((piece ^ (row & 7)) * 8);
}

template <u32 SIDE, bool R_ALONG_ROW>
using MmaShare = Share<SIDE, MMA_DEPTH, 2 * SIDE, 8, R_ALONG_ROW>;
constexpr u32 MMA_PIECES = 2;

// Starts to copy the SIDE x MMA_DEPTH tile at (first, r); beyond the operand come zeros.
template <u32 SIDE, bool R_ALONG_ROW, typename O, typename Walk>
DEV void mma_copy(bf16* tile, const O& operand, Walk& walk, u32 first, u32 r, u32 r_end) {
    typedef MmaShare<SIDE, R_ALONG_ROW> S;
    static_assert(S::COUNT == MMA_PIECES, "what walks have room for");
    u32 rows = R_ALONG_ROW ? operand.outer : r_end, cols = R_ALONG_ROW ? r_end : operand.outer;
    u32 piece = threadIdx.x % S::ACROSS, col = (R_ALONG_ROW ? r : first) + piece * 8;
#pragma unroll
    for (u32 p = 0; p < S::COUNT; p++) {
        u32 in_tile = threadIdx.x / S::ACROSS + p * S::APART, row = (R_ALONG_ROW ? first : r) + in_tile;
        u32 left = row < rows && col < cols ? min_of(cols - col, 8u) : 0;
        bf16* to = tile + mma_place<SIDE, R_ALONG_ROW>(in_tile, piece);
        if (operand.wide) {
            const bf16* from = left > 0 ? walk_place(operand, walk, p, row, col) : nullptr;
            async_copy16_zero_fill(to, from != nullptr ? from : operand.data, from != nullptr ? left * 2 : 0);
        } else {
            Walk at = walk;
#pragma unroll 1
            for (u32 i = 0; i < 8; i += 2) {
                const bf16* low = i < left ? walk_place(operand, at, p, row, col + i) : nullptr;
                walk_columns<1>(operand, at);
                const bf16* high = i + 1 < left ? walk_place(operand, at, p, row, col + i + 1) : nullptr;
                walk_columns<1>(operand, at);
                u32 word = low != nullptr ? low->bits : 0;
                if (high != nullptr) word |= (u32)high->bits << 16;
                *reinterpret_cast<u32*>(to + i) = word;
            }
        }
    }
    share_next<S>(operand, walk);
}

// The fragments of 16 outer indices from `o` on by 16 steps of r from `d` on. For A they are in the order of an m16k16
// fragment; for B (`pair_r_first`) two n8k16 fragments follow each other.
template <u32 SIDE, bool R_ALONG_ROW>
DEV void mma_fragments(u32 (&fragments)[4], const bf16* tile, u32 o, u32 d, bool pair_r_first) {
    u32 lane = threadIdx.x % WARP, matrix = lane / 8, row = lane % 8;
    u32 o_half = pair_r_first ? matrix / 2 : matrix % 2, r_half = pair_r_first ? matrix % 2 : matrix / 2;
    if (R_ALONG_ROW) {
        ldmatrix_x4(fragments, tile + mma_place<SIDE, true>(o + o_half * 8 + row, d / 8 + r_half));
    } else {
        ldmatrix_x4_trans(fragments, tile + mma_place<SIDE, false>(d + r_half * 8 + row, o / 8 + o_half));
    }
}

template <u32 SIDE, bool A_R_ALONG_ROW, bool B_R_ALONG_ROW, typename A, typename B, typename To>
DEV void mma_product(const A& a, const B& b, u32 r, u32 r_end, const To& to) {
    SMEM_DYN(memory);
    constexpr u32 TILE = SIDE * MMA_DEPTH, WARP_ROWS = SIDE / 2, WARPS_ACROSS = SIDE / 32, BLOCKS = WARP_ROWS / 16;
    bf16* stages = reinterpret_cast<bf16*>(memory);
    u32 tiles = ceil_div(b.outer, SIDE), row0 = blockIdx.x / tiles * SIDE, col0 = blockIdx.x % tiles * SIDE;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 warp_row = warp / WARPS_ACROSS * WARP_ROWS, warp_col = warp % WARPS_ACROSS * 32;
    typename A::template Walk<MMA_PIECES> a_walk;
    typename B::template Walk<MMA_PIECES> b_walk;
    share_from<MmaShare<SIDE, A_R_ALONG_ROW>>(a, a_walk, row0, r);
    share_from<MmaShare<SIDE, B_R_ALONG_ROW>>(b, b_walk, col0, r);
    f32 sums[BLOCKS][4][4];
#pragma unroll
    for (u32 i = 0; i < BLOCKS; i++)
#pragma unroll
        for (u32 j = 0; j < 4; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) sums[i][j][e] = 0.0f;

    u32 steps = ceil_div(r_end - r, MMA_DEPTH);
#pragma unroll 1
    for (u32 s = 0; s < MMA_STAGES - 1; s++) {
        if (s < steps) {
            bf16* stage = stages + s * 2 * TILE;
            mma_copy<SIDE, A_R_ALONG_ROW>(stage, a, a_walk, row0, r + s * MMA_DEPTH, r_end);
            mma_copy<SIDE, B_R_ALONG_ROW>(stage + TILE, b, b_walk, col0, r + s * MMA_DEPTH, r_end);
        }
        async_commit();
    }
    u32 reading = 0, filling = MMA_STAGES - 1;
    for (u32 step = 0; step < steps; step++) {
        // The oldest copy has landed, and behind the barrier everybody is done with the stage that is filled next.
        async_wait<MMA_STAGES - 2>();
        __syncthreads();
        if (step + MMA_STAGES - 1 < steps) {
            bf16* stage = stages + filling * 2 * TILE;
            u32 at = r + (step + MMA_STAGES - 1) * MMA_DEPTH;
            mma_copy<SIDE, A_R_ALONG_ROW>(stage, a, a_walk, row0, at, r_end);
            mma_copy<SIDE, B_R_ALONG_ROW>(stage + TILE, b, b_walk, col0, at, r_end);
        }
        async_commit();
        const bf16* stage = stages + reading * 2 * TILE;
#pragma unroll
        for (u32 d = 0; d < MMA_DEPTH; d += 16) {
            u32 af[BLOCKS][4], bf[2][4];
#pragma unroll
            for (u32 i = 0; i < BLOCKS; i++)
                mma_fragments<SIDE, A_R_ALONG_ROW>(af[i], stage, warp_row + i * 16, d, false);
#pragma unroll
            for (u32 j = 0; j < 2; j++)
                mma_fragments<SIDE, B_R_ALONG_ROW>(bf[j], stage + TILE, warp_col + j * 16, d, true);
#pragma unroll
            for (u32 i = 0; i < BLOCKS; i++)
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    const u32 pair[2] = {bf[j / 2][j % 2 * 2], bf[j / 2][j % 2 * 2 + 1]};
                    mma_m16n8k16(sums[i][j], af[i], pair);
                }
        }
        reading = reading + 1 == MMA_STAGES ? 0 : reading + 1;
        filling = filling + 1 == MMA_STAGES ? 0 : filling + 1;
    }

    // Each warp turns its fragments into rows through 16 x 32 sums of the stages' memory, so that global accesses are 16
    // bytes a lane.
    constexpr u32 STRIDE = 40;
    async_wait<0>();
    __syncthreads();
    f32* staging = reinterpret_cast<f32*>(memory) + warp * 16 * STRIDE;
#pragma unroll
    for (u32 i = 0; i < BLOCKS; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            f32* at = staging + lane / 4 * STRIDE + j * 8 + lane % 4 * 2;
            at[0] = sums[i][j][0];
            at[1] = sums[i][j][1];
            at[8 * STRIDE] = sums[i][j][2];
            at[8 * STRIDE + 1] = sums[i][j][3];
        }
        __syncwarp();
#pragma unroll 1
        for (u32 half = 0; half < 2; half++) {
            f32 v[8];
            load_wide(staging + (half * 8 + lane / 4) * STRIDE + lane % 4 * 8, 8, true, v);
            u32 row = row0 + warp_row + i * 16 + half * 8 + lane / 4, col = col0 + warp_col + lane % 4 * 8;
            if (row < a.outer && col < b.outer) finish(to, row, col, v);
        }
        __syncwarp();
    }
}

// The one for the operands' type.
template <u32 SIDE, bool A_R_ALONG_ROW, bool B_R_ALONG_ROW, typename A, typename B, typename To>
DEV void product(const A& a, const B& b, u32 r, u32 r_end, const To& to) {
    if constexpr (sizeof(*a.data) == sizeof(f32)) fma_product<SIDE, A_R_ALONG_ROW, B_R_ALONG_ROW>(a, b, r, r_end, to);
    else mma_product<SIDE, A_R_ALONG_ROW, B_R_ALONG_ROW>(a, b, r, r_end, to);
}
