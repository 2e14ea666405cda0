// The linear layer: y = act(x W^T + b) + residual, and its gradients.
//
// x [m, k], W [n, k], y, z, residual [m, n], b [n] in f32. With z = x W^T + b before the activation and dz = dy act'(z):
//
//   dx = dz W [m, k]      dW = dz^T x [n, k] in f32      db = column sums of dz in f32      dresidual = dy
//
// All three products are C[i, j] = sum over r of A[i, r] B[j, r]; they differ in which index of an operand is contiguous:
//
//             i   j   r    A                      B
//   forward   m   n   k    x: r contiguous        W: r contiguous
//   dx        m   k   n    dz: r contiguous       W: j contiguous
//   dW        n   k   m    dz: i contiguous       x: j contiguous
//
// bf16: tensor cores (mma.sync m16n8k16, f32 sums) on tiles of 128x128 or 64x64 by 32, three stages of cp.async, shared
// memory swizzled so that neither the copies nor ldmatrix meet a bank twice. f32: plain FMA, the same tiles by 16, 8x8 or
// 4x4 results a thread. Whatever the tile, an element is one chain over r in ascending order, so that the choice of tile
// changes no bit and a row's result depends on k alone. Edges are filled with zeros, which change no sum.
//
// dW's sum over m is cut into splits of `rows_per_split` (by shapes alone) where the tiles alone would not fill a GPU; each
// split writes its own [n, k] of scratch, and _bwd_weight_sum adds them in order.
//
// Floor: 2 m n k FLOPs over the tensor rate, or (m k + n k + m n) elements over the bandwidth. At m = 16640 (256 samples of
// 65 tokens), n = k = 384, bf16, that is 4.9 GFLOP and 26 MB: memory and tensor cores nearly in balance on an H100.
//
// Launches: products: ceil(i / tile) * ceil(j / tile) blocks in x, j fastest (neighbours share rows of A in the L2), splits in
// z; f32 256 threads; bf16 256 (large) or 128 (small), dynamic shared memory 3 * 2 * tile * 64 bytes. _bwd_activation: 256
// threads, grid [ceil(rows / rows_per_part), ceil(cols / (32 * elements in 16 bytes))]. _bwd_bias_final: 256 threads, a block
// per 32 columns. _bwd_weight_sum: 4 elements a thread.
#include "common/activation.cuh"
#include "common/async.cuh"
#include "common/mma.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

// An operand of a product: `outer` x r elements, `stride` apart in the index that is not contiguous.
template <typename T>
struct Operand {
    const T* data;
    u32 stride;
    u32 outer;
};

// What happens to N neighbouring sums of a row: bias, activation, residual.
template <typename T, u32 N>
struct Finish {
    T* y;
    T* z;
    const f32* bias;
    const T* residual;
    u32 cols;
    u32 activation;
    bool wide;

    DEV Finish make(T* y, T* z, const f32* bias, const T* residual, u32 cols, u32 activation) {
        bool wide = cols % N == 0 && aligned16(y) && aligned16(z) && aligned16(bias) && aligned16(residual);
        return Finish{y, z, bias, residual, cols, activation, wide};
    }
};
template <typename T, u32 N>
DEV void finish(const Finish<T, N>& to, u32 row, u32 col, f32 (&v)[N]) {
    u64 at = (u64)row * to.cols + col;
    u32 left = to.cols - col;
    f32 other[N];
    if (to.bias != nullptr) {
        load_wide(to.bias + col, left, to.wide, other);
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] += other[i];
    }
    if (to.z != nullptr) store_wide(to.z + at, left, to.wide, v);
    if (to.activation != ACTIVATION_NONE) {
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] = activate(v[i], to.activation);
    }
    if (to.residual != nullptr) {
        load_wide(to.residual + at, left, to.wide, other);
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] += other[i];
    }
    store_wide(to.y + at, left, to.wide, v);
}

// A gradient's destination: written, or added to.
template <typename T, u32 N>
struct Gradient {
    T* to;
    u32 cols;
    bool accumulate;
    bool wide;

    DEV Gradient make(T* to, u32 cols, u32 accumulate) {
        return Gradient{to, cols, accumulate != 0, cols % N == 0 && aligned16(to)};
    }
};
template <typename T, u32 N>
DEV void finish(const Gradient<T, N>& gradient, u32 row, u32 col, f32 (&v)[N]) {
    T* to = gradient.to + (u64)row * gradient.cols + col;
    u32 left = gradient.cols - col;
    if (gradient.accumulate) {
        f32 old[N];
        load_wide(to, left, gradient.wide, old);
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] += old[i];
    }
    store_wide(to, left, gradient.wide, v);
}

// --- f32: plain FMA, 256 threads ---

constexpr u32 FMA_DEPTH = 16;

// This thread's elements of a SIDE x FMA_DEPTH tile, read ahead of their use. CONTIGUOUS_R: pieces of four along r.
template <u32 SIDE, bool CONTIGUOUS_R>
DEV void fma_read(f32 (&ahead)[SIDE / 64][4], const Operand<f32>& operand, u32 first, u32 r, u32 r_end, bool wide) {
#pragma unroll
    for (u32 p = 0; p < SIDE / 64; p++) {
        u32 piece = p * 256 + threadIdx.x;
        u32 o, left;
        u64 at;
        bool inside;
        if (CONTIGUOUS_R) {
            o = first + piece / 4;
            u32 at_r = r + piece % 4 * 4;
            inside = o < operand.outer && at_r < r_end;
            left = inside ? r_end - at_r : 0;
            at = (u64)o * operand.stride + at_r;
        } else {
            o = first + piece % (SIDE / 4) * 4;
            u32 at_r = r + piece / (SIDE / 4);
            inside = o < operand.outer && at_r < r_end;
            left = inside ? operand.outer - o : 0;
            at = (u64)at_r * operand.stride + o;
        }
        load_wide(operand.data + (inside ? at : 0), left, wide && left >= 4, ahead[p]);
    }
}

template <u32 SIDE, bool CONTIGUOUS_R>
DEV void fma_put(f32 (&tile)[FMA_DEPTH][SIDE + 4], const f32 (&ahead)[SIDE / 64][4]) {
#pragma unroll
    for (u32 p = 0; p < SIDE / 64; p++) {
        u32 piece = p * 256 + threadIdx.x;
        if (CONTIGUOUS_R) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) tile[piece % 4 * 4 + i][piece / 4] = ahead[p][i];
        } else {
            store_wide(&tile[piece / (SIDE / 4)][piece % (SIDE / 4) * 4], 4, true, ahead[p]);
        }
    }
}

template <u32 SIDE, bool A_CONTIGUOUS_R, bool B_CONTIGUOUS_R, typename To>
DEV void fma_product(const Operand<f32>& a, const Operand<f32>& b, u32 r, u32 r_end, const To& to) {
    SHARED(f32, fma_a, [FMA_DEPTH][SIDE + 4]);
    SHARED(f32, fma_b, [FMA_DEPTH][SIDE + 4]);
    constexpr u32 PARTS = SIDE / 64;
    u32 tiles = ceil_div(b.outer, SIDE), row0 = blockIdx.x / tiles * SIDE, col0 = blockIdx.x % tiles * SIDE;
    u32 x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
    bool a_wide = a.stride % 4 == 0 && aligned16(a.data), b_wide = b.stride % 4 == 0 && aligned16(b.data);
    f32 sums[PARTS * 4][PARTS][4];
#pragma unroll
    for (u32 i = 0; i < PARTS * 4; i++)
#pragma unroll
        for (u32 q = 0; q < PARTS; q++)
#pragma unroll
            for (u32 j = 0; j < 4; j++) sums[i][q][j] = 0.0f;

    f32 a_ahead[PARTS][4], b_ahead[PARTS][4];
    fma_read<SIDE, A_CONTIGUOUS_R>(a_ahead, a, row0, r, r_end, a_wide);
    fma_read<SIDE, B_CONTIGUOUS_R>(b_ahead, b, col0, r, r_end, b_wide);
    for (; r < r_end; r += FMA_DEPTH) {
        fma_put<SIDE, A_CONTIGUOUS_R>(fma_a, a_ahead);
        fma_put<SIDE, B_CONTIGUOUS_R>(fma_b, b_ahead);
        __syncthreads();
        if (r + FMA_DEPTH < r_end) {
            fma_read<SIDE, A_CONTIGUOUS_R>(a_ahead, a, row0, r + FMA_DEPTH, r_end, a_wide);
            fma_read<SIDE, B_CONTIGUOUS_R>(b_ahead, b, col0, r + FMA_DEPTH, r_end, b_wide);
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
template <u32 SIDE, bool CONTIGUOUS_R>
DEV u32 mma_place(u32 row, u32 piece) {
    if (CONTIGUOUS_R) return row * MMA_DEPTH + ((piece ^ (row >> 1 & 3)) * 8);
    return row * SIDE + ((piece ^ (row & 7)) * 8);
}

// Starts to copy the SIDE x MMA_DEPTH tile at (first, r); beyond the operand come zeros.
template <u32 SIDE, bool CONTIGUOUS_R>
DEV void mma_copy(bf16* tile, const Operand<bf16>& operand, u32 first, u32 r, u32 r_end, bool wide) {
    constexpr u32 THREADS = SIDE * 2, PIECES = (CONTIGUOUS_R ? MMA_DEPTH : SIDE) / 8;
#pragma unroll
    for (u32 p = 0; p < SIDE * MMA_DEPTH / 8 / THREADS; p++) {
        u32 index = p * THREADS + threadIdx.x, row = index / PIECES, piece = index % PIECES;
        u32 at_row = (CONTIGUOUS_R ? first : r) + row, rows = CONTIGUOUS_R ? operand.outer : r_end;
        u32 at_col = (CONTIGUOUS_R ? r : first) + piece * 8, cols = CONTIGUOUS_R ? r_end : operand.outer;
        u32 left = at_row < rows && at_col < cols ? min_of(cols - at_col, 8u) : 0;
        const bf16* from = operand.data + (left > 0 ? (u64)at_row * operand.stride + at_col : 0);
        bf16* to = tile + mma_place<SIDE, CONTIGUOUS_R>(row, piece);
        if (wide) {
            async_copy16_zero_fill(to, from, left * 2);
        } else {
            Vec16<u32> words;
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 low = 2 * i < left ? from[2 * i].bits : 0, high = 2 * i + 1 < left ? from[2 * i + 1].bits : 0;
                words.v[i] = low | high << 16;
            }
            store16(reinterpret_cast<u32*>(to), words);
        }
    }
}

// The fragments of 16 outer indices from `o` on by 16 steps of r from `d` on. For A they are in the order of an m16k16
// fragment; for B (`pair_r_first`) two n8k16 fragments follow each other.
template <u32 SIDE, bool CONTIGUOUS_R>
DEV void mma_fragments(u32 (&fragments)[4], const bf16* tile, u32 o, u32 d, bool pair_r_first) {
    u32 lane = threadIdx.x % WARP, matrix = lane / 8, row = lane % 8;
    u32 o_half = pair_r_first ? matrix / 2 : matrix % 2, r_half = pair_r_first ? matrix % 2 : matrix / 2;
    if (CONTIGUOUS_R) {
        ldmatrix_x4(fragments, tile + mma_place<SIDE, true>(o + o_half * 8 + row, d / 8 + r_half));
    } else {
        ldmatrix_x4_trans(fragments, tile + mma_place<SIDE, false>(d + r_half * 8 + row, o / 8 + o_half));
    }
}

template <u32 SIDE, bool A_CONTIGUOUS_R, bool B_CONTIGUOUS_R, typename To>
DEV void mma_product(const Operand<bf16>& a, const Operand<bf16>& b, u32 r, u32 r_end, const To& to) {
    SMEM_DYN(memory);
    constexpr u32 TILE = SIDE * MMA_DEPTH, WARP_ROWS = SIDE / 2, WARPS_ACROSS = SIDE / 32, BLOCKS = WARP_ROWS / 16;
    bf16* stages = reinterpret_cast<bf16*>(memory);
    u32 tiles = ceil_div(b.outer, SIDE), row0 = blockIdx.x / tiles * SIDE, col0 = blockIdx.x % tiles * SIDE;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 warp_row = warp / WARPS_ACROSS * WARP_ROWS, warp_col = warp % WARPS_ACROSS * 32;
    bool a_wide = a.stride % 8 == 0 && aligned16(a.data), b_wide = b.stride % 8 == 0 && aligned16(b.data);
    f32 sums[BLOCKS][4][4];
#pragma unroll
    for (u32 i = 0; i < BLOCKS; i++)
#pragma unroll
        for (u32 j = 0; j < 4; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) sums[i][j][e] = 0.0f;

    u32 steps = ceil_div(r_end - r, MMA_DEPTH);
#pragma unroll
    for (u32 s = 0; s < MMA_STAGES - 1; s++) {
        if (s < steps) {
            bf16* stage = stages + s * 2 * TILE;
            mma_copy<SIDE, A_CONTIGUOUS_R>(stage, a, row0, r + s * MMA_DEPTH, r_end, a_wide);
            mma_copy<SIDE, B_CONTIGUOUS_R>(stage + TILE, b, col0, r + s * MMA_DEPTH, r_end, b_wide);
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
            mma_copy<SIDE, A_CONTIGUOUS_R>(stage, a, row0, at, r_end, a_wide);
            mma_copy<SIDE, B_CONTIGUOUS_R>(stage + TILE, b, col0, at, r_end, b_wide);
        }
        async_commit();
        const bf16* stage = stages + reading * 2 * TILE;
#pragma unroll
        for (u32 d = 0; d < MMA_DEPTH; d += 16) {
            u32 af[BLOCKS][4], bf[2][4];
#pragma unroll
            for (u32 i = 0; i < BLOCKS; i++)
                mma_fragments<SIDE, A_CONTIGUOUS_R>(af[i], stage, warp_row + i * 16, d, false);
#pragma unroll
            for (u32 j = 0; j < 2; j++)
                mma_fragments<SIDE, B_CONTIGUOUS_R>(bf[j], stage + TILE, warp_col + j * 16, d, true);
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

// --- the three products ---

template <u32 SIDE>
DEV void linear_fwd(f32* y, f32* z, const f32* x, const f32* weight, const f32* bias, const f32* residual, u32 m, u32 n, u32 k,
                    u32 activation) {
    Finish<f32, 4> to = Finish<f32, 4>::make(y, z, bias, residual, n, activation);
    fma_product<SIDE, true, true>(Operand<f32>{x, k, m}, Operand<f32>{weight, k, n}, 0, k, to);
}
template <u32 SIDE>
DEV void linear_fwd(bf16* y, bf16* z, const bf16* x, const bf16* weight, const f32* bias, const bf16* residual, u32 m, u32 n,
                    u32 k, u32 activation) {
    Finish<bf16, 8> to = Finish<bf16, 8>::make(y, z, bias, residual, n, activation);
    mma_product<SIDE, true, true>(Operand<bf16>{x, k, m}, Operand<bf16>{weight, k, n}, 0, k, to);
}

template <u32 SIDE>
DEV void linear_bwd_input(f32* dx, const f32* dz, const f32* weight, u32 m, u32 n, u32 k, u32 accumulate) {
    Gradient<f32, 4> to = Gradient<f32, 4>::make(dx, k, accumulate);
    fma_product<SIDE, true, false>(Operand<f32>{dz, n, m}, Operand<f32>{weight, k, k}, 0, n, to);
}
template <u32 SIDE>
DEV void linear_bwd_input(bf16* dx, const bf16* dz, const bf16* weight, u32 m, u32 n, u32 k, u32 accumulate) {
    Gradient<bf16, 8> to = Gradient<bf16, 8>::make(dx, k, accumulate);
    mma_product<SIDE, true, false>(Operand<bf16>{dz, n, m}, Operand<bf16>{weight, k, k}, 0, n, to);
}

// dw [n, k], or scratch [splits, n, k] with accumulate = 0.
template <u32 SIDE>
DEV void linear_bwd_weight(f32* dw, const f32* dz, const f32* x, u32 m, u32 n, u32 k, u32 rows_per_split, u32 accumulate) {
    u32 r = blockIdx.z * rows_per_split, r_end = min_of(m - r, rows_per_split) + r;
    Gradient<f32, 4> to = Gradient<f32, 4>::make(dw + (u64)blockIdx.z * n * k, k, accumulate);
    fma_product<SIDE, false, false>(Operand<f32>{dz, n, n}, Operand<f32>{x, k, k}, r, r_end, to);
}
template <u32 SIDE>
DEV void linear_bwd_weight(f32* dw, const bf16* dz, const bf16* x, u32 m, u32 n, u32 k, u32 rows_per_split,
                           u32 accumulate) {
    u32 r = blockIdx.z * rows_per_split, r_end = min_of(m - r, rows_per_split) + r;
    Gradient<f32, 8> to = Gradient<f32, 8>::make(dw + (u64)blockIdx.z * n * k, k, accumulate);
    mma_product<SIDE, false, false>(Operand<bf16>{dz, n, n}, Operand<bf16>{x, k, k}, r, r_end, to);
}

// dw = the sum of the splits' products, in order.
DEV void linear_weight_sum(f32* __restrict__ dw, const f32* __restrict__ partial, u32 splits, u32 len, u32 accumulate) {
    u32 at = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (at >= len) return;
    bool wide = len % 4 == 0 && aligned16(dw) && aligned16(partial);
    f32 sum[4], v[4];
    load_wide(partial + at, len - at, wide, sum);
#pragma unroll 4
    for (u32 split = 1; split < splits; split++) {
        load_wide(partial + (u64)split * len + at, len - at, wide, v);
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum[i] += v[i];
    }
    if (accumulate != 0) {
        load_wide(dw + at, len - at, wide, v);
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum[i] += v[i];
    }
    store_wide(dw + at, len - at, wide, sum);
}

// --- dz and the bias's gradient ---

// Replaces z by dz = dy act'(z) (null: without an activation, dz is dy) and writes column sums of dz over rows_per_part rows
// each to partial [parts, cols] (null: not wanted). A warp reads 32 pieces of 16 bytes of a row; eight warps share the rows.
template <typename T>
DEV void linear_bwd_activation(T* __restrict__ dz, f32* __restrict__ partial, const T* __restrict__ dy, u32 rows, u32 cols,
                               u32 rows_per_part, u32 activation) {
    constexpr u32 N = Vec16<T>::COUNT, WARPS = 8;
    SHARED(f32, column_parts, [WARPS][WARP * N]);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 col0 = blockIdx.y * WARP * N, col = col0 + lane * N, first = blockIdx.x * rows_per_part;
    u32 last = first + min_of(rows - first, rows_per_part);
    bool wide = cols % N == 0 && aligned16(dy) && aligned16(dz);
    f32 sums[N];
#pragma unroll
    for (u32 i = 0; i < N; i++) sums[i] = 0.0f;
    if (col < cols) {
        u32 left = cols - col;
        for (u32 row = first + warp; row < last; row += WARPS) {
            u64 at = (u64)row * cols + col;
            f32 d[N];
            load_wide(dy + at, left, wide, d);
            if (dz != nullptr) {
                f32 z[N];
                load_wide(dz + at, left, wide, z);
#pragma unroll
                for (u32 i = 0; i < N; i++) d[i] *= activation_derivative(z[i], activation);
                store_wide(dz + at, left, wide, d);
            }
#pragma unroll
            for (u32 i = 0; i < N; i++) sums[i] += d[i];
        }
    }
    if (partial == nullptr) return;
    store_wide(&column_parts[warp][lane * N], N, true, sums);
    __syncthreads();
    u32 c = threadIdx.x;
    if (c >= WARP * N || col0 + c >= cols) return;
    f32 sum = 0.0f;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) sum += column_parts[w][c];
    partial[(u64)blockIdx.x * cols + col0 + c] = sum;
}

// db = the sum of the parts. A block takes 32 columns: warp w adds parts w, w + 8, .., then the first warp the eight sums.
DEV void linear_bias_final(f32* __restrict__ db, const f32* __restrict__ partial, u32 parts, u32 cols, u32 accumulate) {
    constexpr u32 WARPS = 8;
    SHARED(f32, bias_parts, [WARPS][WARP]);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    f32 sum = 0.0f;
    if (c < cols) {
#pragma unroll 4
        for (u32 part = warp; part < parts; part += WARPS) sum += partial[(u64)part * cols + c];
    }
    bias_parts[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= cols) return;
    f32 total = 0.0f;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) total += bias_parts[w][lane];
    db[c] = accumulate != 0 ? db[c] + total : total;
}

extern "C" __global__ void __launch_bounds__(256) linear_fwd_large_f32(f32* __restrict__ y, f32* __restrict__ z, const f32* __restrict__ x, const f32* __restrict__ weight, const f32* __restrict__ bias, const f32* __restrict__ residual, u32 m, u32 n, u32 k, u32 activation) { linear_fwd<128>(y, z, x, weight, bias, residual, m, n, k, activation); }
extern "C" __global__ void __launch_bounds__(256) linear_fwd_large_bf16(bf16* __restrict__ y, bf16* __restrict__ z, const bf16* __restrict__ x, const bf16* __restrict__ weight, const f32* __restrict__ bias, const bf16* __restrict__ residual, u32 m, u32 n, u32 k, u32 activation) { linear_fwd<128>(y, z, x, weight, bias, residual, m, n, k, activation); }
extern "C" __global__ void __launch_bounds__(256) linear_fwd_small_f32(f32* __restrict__ y, f32* __restrict__ z, const f32* __restrict__ x, const f32* __restrict__ weight, const f32* __restrict__ bias, const f32* __restrict__ residual, u32 m, u32 n, u32 k, u32 activation) { linear_fwd<64>(y, z, x, weight, bias, residual, m, n, k, activation); }
extern "C" __global__ void __launch_bounds__(128) linear_fwd_small_bf16(bf16* __restrict__ y, bf16* __restrict__ z, const bf16* __restrict__ x, const bf16* __restrict__ weight, const f32* __restrict__ bias, const bf16* __restrict__ residual, u32 m, u32 n, u32 k, u32 activation) { linear_fwd<64>(y, z, x, weight, bias, residual, m, n, k, activation); }
extern "C" __global__ void __launch_bounds__(256) linear_bwd_input_large_f32(f32* __restrict__ dx, const f32* __restrict__ dz, const f32* __restrict__ weight, u32 m, u32 n, u32 k, u32 accumulate) { linear_bwd_input<128>(dx, dz, weight, m, n, k, accumulate); }
extern "C" __global__ void __launch_bounds__(256) linear_bwd_input_large_bf16(bf16* __restrict__ dx, const bf16* __restrict__ dz, const bf16* __restrict__ weight, u32 m, u32 n, u32 k, u32 accumulate) { linear_bwd_input<128>(dx, dz, weight, m, n, k, accumulate); }
extern "C" __global__ void __launch_bounds__(256) linear_bwd_input_small_f32(f32* __restrict__ dx, const f32* __restrict__ dz, const f32* __restrict__ weight, u32 m, u32 n, u32 k, u32 accumulate) { linear_bwd_input<64>(dx, dz, weight, m, n, k, accumulate); }
extern "C" __global__ void __launch_bounds__(128) linear_bwd_input_small_bf16(bf16* __restrict__ dx, const bf16* __restrict__ dz, const bf16* __restrict__ weight, u32 m, u32 n, u32 k, u32 accumulate) { linear_bwd_input<64>(dx, dz, weight, m, n, k, accumulate); }
extern "C" __global__ void __launch_bounds__(256) linear_bwd_weight_large_f32(f32* __restrict__ dw, const f32* __restrict__ dz, const f32* __restrict__ x, u32 m, u32 n, u32 k, u32 rows_per_split, u32 accumulate) { linear_bwd_weight<128>(dw, dz, x, m, n, k, rows_per_split, accumulate); }
extern "C" __global__ void __launch_bounds__(256) linear_bwd_weight_large_bf16(f32* __restrict__ dw, const bf16* __restrict__ dz, const bf16* __restrict__ x, u32 m, u32 n, u32 k, u32 rows_per_split, u32 accumulate) { linear_bwd_weight<128>(dw, dz, x, m, n, k, rows_per_split, accumulate); }
extern "C" __global__ void __launch_bounds__(256) linear_bwd_weight_small_f32(f32* __restrict__ dw, const f32* __restrict__ dz, const f32* __restrict__ x, u32 m, u32 n, u32 k, u32 rows_per_split, u32 accumulate) { linear_bwd_weight<64>(dw, dz, x, m, n, k, rows_per_split, accumulate); }
extern "C" __global__ void __launch_bounds__(128) linear_bwd_weight_small_bf16(f32* __restrict__ dw, const bf16* __restrict__ dz, const bf16* __restrict__ x, u32 m, u32 n, u32 k, u32 rows_per_split, u32 accumulate) { linear_bwd_weight<64>(dw, dz, x, m, n, k, rows_per_split, accumulate); }
extern "C" __global__ void __launch_bounds__(256) linear_bwd_weight_sum(f32* __restrict__ dw, const f32* __restrict__ partial, u32 splits, u32 len, u32 accumulate) { linear_weight_sum(dw, partial, splits, len, accumulate); }
extern "C" __global__ void __launch_bounds__(256) linear_bwd_activation_f32(f32* __restrict__ dz, f32* __restrict__ partial, const f32* __restrict__ dy, u32 rows, u32 cols, u32 rows_per_part, u32 activation) { linear_bwd_activation<f32>(dz, partial, dy, rows, cols, rows_per_part, activation); }
extern "C" __global__ void __launch_bounds__(256) linear_bwd_activation_bf16(bf16* __restrict__ dz, f32* __restrict__ partial, const bf16* __restrict__ dy, u32 rows, u32 cols, u32 rows_per_part, u32 activation) { linear_bwd_activation<bf16>(dz, partial, dy, rows, cols, rows_per_part, activation); }
extern "C" __global__ void __launch_bounds__(256) linear_bwd_bias_final(f32* __restrict__ db, const f32* __restrict__ partial, u32 parts, u32 cols, u32 accumulate) { linear_bias_final(db, partial, parts, cols, accumulate); }
