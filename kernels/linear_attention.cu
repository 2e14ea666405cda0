// Linear attention (Katharopoulos et al. 2020, "Transformers are RNNs", arXiv 2006.16236), not causal, with the feature map
// phi(x) = elu(x) + 1 and the normaliser: what a token adds to a head's state does not depend on the other tokens, so that the
// cost is linear in their number.
//
// qkv [B, T, 3 H D], columns [q heads | k heads | v heads]; y [B, T, H D]. Per head, with f = phi(q) and g = phi(k):
//
//   S[i, j] = sum_t g[t, i] v[t, j],  z[i] = sum_t g[t, i],  y[t] = f[t] S / n[t],  n[t] = f[t] . z
//
// Backward, from dy. phi'(x) is phi(x) below 0 and 1 above, min(phi(x), 1):
//
//   u[t] = S dy[t],  delta[t] = f[t] . u[t] / n[t] (which is y[t] . dy[t]),  a[t] = f[t] / n[t]
//   dq[t] = (u[t] - delta[t] z) / n[t] * phi'(q[t])
//   dS = sum_t a[t] dy[t]^T,  dz = -sum_t a[t] delta[t]
//   dv[t] = g[t] dS,  dk[t] = (dS v[t] + dz) * phi'(k[t])
//
// phi is kept from falling below 2^-60 (x = -41.6; its derivative is 0 there): so n is never zero, nor too small for f32.
//
// Floor: 4 B H T D^2 operations and 4 B H T D elements (qkv read, y written) forward, 10 B H T D^2 and 7 B H T D backward: at
// D = 32 some 16 operations a byte in bf16, where FMA rate and bandwidth meet. Nothing is saved but qkv, which the layer
// before owns: S and z are a fifth of the backward's operations, and saved they would be D (D + 1) floats a head to write, to
// keep and to read, against keys and values that the backward has to read anyhow. y is not read: as S v - like averages over
// keys are close to each other, dq is a difference in which a y rounded to bf16 would be the largest error.
//
// One block per sample and head, forward and backward: S, and after it dS, stays in shared memory. Tokens come in tiles through
// shared memory, keys and values twice (dk needs keys a third time); what is not the first time comes from a cache.
//
// An element of S or dS is a thread's own, R x R of them per thread in registers, so that `groups` threads at most share its
// sum: those of group g add tokens g, g + groups, .. of each tile. Products with S: 4 tokens by 4 columns per thread. So the order
// of every sum depends on T and D alone.
//
// In bf16 heads of up to 64 columns take tensor cores instead (common/linear_attention_mma.cuh): blocks of 4 warps, 16 tokens
// each at a time, B H of them, and with d8 = D rounded up to 16, plus 8, dynamic shared memory of 4 (d8 - 8) bytes for z and
// 2 d8 (2 (d8 - 8) + 192) for state, tiles and results. `tile` and `groups` are not for them.
//
// Entries _narrow: R = 4, for D <= 64; _wide: R = 8, for D <= 128. With p = D rounded up to R, c = p / 4: launches with B H
// blocks of 128 or 256 threads, tile / 4 * c <= threads (one product per thread), (p / R)^2 * groups <= threads, and
// dynamic shared memory in floats p (p + 2) + tile (2 c + 2) + max(2 tile p, groups > 1 ? groups p (p + 1) : 0).
#include "common/entry.cuh"
#include "common/linear_attention_mma.cuh"
#include "common/types.cuh"
#include "common/vec.cuh"

DEV f32 phi(f32 x) { return x > 0.0f ? x + 1.0f : max_f32(exp_f32(x), LEAST); }

// Where a head lies, and the block's shared memory.
template <typename T>
struct Head {
    u32 tokens, d, p, tile, groups;
    // From row to row: of q, k and v, and of y.
    u64 width, out_width;
    // Where row 0 of q and of y begins; k and v are `step` and 2 `step` columns further on.
    u64 q, out, step;
    // The state [p, p]; z [p]; dz [p]; per token and four columns two sums; per token two numbers; two tiles [tile, p].
    f32 *state, *z, *dz, *parts, *rows, *first, *second;
};

template <typename T>
DEV Head<T> head_of(u8* shared, u32 tokens, u32 heads, u32 d, u32 p, u32 tile, u32 groups) {
    Head<T> at;
    at.tokens = tokens, at.d = d, at.p = p, at.tile = tile, at.groups = groups;
    at.step = (u64)heads * d, at.width = 3 * at.step, at.out_width = at.step;
    u32 sample = blockIdx.x / heads, head = blockIdx.x % heads;
    at.q = (u64)sample * tokens * at.width + (u64)head * d;
    at.out = (u64)sample * tokens * at.out_width + (u64)head * d;
    at.state = reinterpret_cast<f32*>(shared);
    at.z = at.state + p * p;
    at.dz = at.z + p;
    at.parts = at.dz + p;
    at.rows = at.parts + 2 * tile * (p / 4);
    at.first = at.rows + 2 * tile;
    at.second = at.first + tile * p;
    return at;
}

// `count` rows into a tile, as they are or through phi; zeros beyond them and beyond d columns.
template <bool PHI, typename T>
DEV void load_rows(f32* to, const T* from, u64 width, u32 count, const Head<T>& at) {
    bool wide = at.d % 4 == 0 && aligned4(from) && aligned4(from + width);
    u32 packs = at.p / 4;
    for (u32 i = threadIdx.x; i < at.tile * packs; i += blockDim.x) {
        u32 row = i / packs, c = 4 * (i % packs);
        f32 v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (row < count && c < at.d) load4(from + row * width + c, at.d - c, wide, v);
        Pack4<f32> pack;
        UNROLL for (u32 e = 0; e < 4; e++) pack.v[e] = PHI && row < count && c + e < at.d ? phi(v[e]) : v[e];
        *reinterpret_cast<Pack4<f32>*>(to + row * at.p + c) = pack;
    }
}

// Part `h` of what a thread has of R rows or columns of the state: four neighbours from here on.
template <u32 R>
DEV u32 place(u32 n, u32 cell, u32 h) {
    return 4 * (n * h + cell);
}

// A thread's part of a [p, p] sum and of a [p] sum over tokens.
template <u32 R>
struct Sums {
    f32 m[R][R], z[R];
};

// m += a[t] b[t]^T and z += a[t] w[t] (without w: a[t]) for the tile's tokens of this thread's group.
template <u32 R, typename T>
DEV void accumulate_tile(Sums<R>& sums, const f32* a, const f32* b, const f32* w, u32 count, const Head<T>& at) {
    u32 n = at.p / R, group = threadIdx.x / (n * n), cell = threadIdx.x % (n * n), i = cell % n, j = cell / n;
    if (group >= at.groups) return;
#pragma unroll 2
    for (u32 t = group; t < count; t += at.groups) {
        Pack4<f32> x[R / 4], y[R / 4];
        UNROLL for (u32 h = 0; h < R / 4; h++) {
            x[h] = *reinterpret_cast<const Pack4<f32>*>(a + t * at.p + place<R>(n, i, h));
            y[h] = *reinterpret_cast<const Pack4<f32>*>(b + t * at.p + place<R>(n, j, h));
        }
        UNROLL for (u32 r = 0; r < R; r++) {
            UNROLL for (u32 s = 0; s < R; s++) sums.m[r][s] = fma_f32(x[r / 4].v[r % 4], y[s / 4].v[s % 4], sums.m[r][s]);
        }
        if (j == 0) {
            f32 weight = w != nullptr ? w[t] : 1.0f;
            UNROLL for (u32 r = 0; r < R; r++) sums.z[r] = fma_f32(x[r / 4].v[r % 4], weight, sums.z[r]);
        }
    }
}

// The block's sums into the state, transposed ([j, i]) or not, and into z, groups in order. The tiles serve as scratch.
template <u32 R, bool TRANSPOSED, typename T>
DEV void put_sums(f32* z, const Sums<R>& sums, const Head<T>& at) {
    u32 n = at.p / R, group = threadIdx.x / (n * n), cell = threadIdx.x % (n * n), i = cell % n, j = cell / n;
    u32 size = at.p * at.p;
    f32* parts = at.groups > 1 ? at.first : at.state;
    f32* z_parts = at.groups > 1 ? at.first + at.groups * size : z;
    __syncthreads();
    if (group < at.groups) {
        f32* to = parts + group * size;
        UNROLL for (u32 row = 0; row < R; row++) {
            u32 at_row = (place<R>(n, TRANSPOSED ? j : i, row / 4) + row % 4) * at.p;
            UNROLL for (u32 h = 0; h < R / 4; h++) {
                Pack4<f32> pack;
                UNROLL for (u32 e = 0; e < 4; e++) pack.v[e] = TRANSPOSED ? sums.m[4 * h + e][row] : sums.m[row][4 * h + e];
                *reinterpret_cast<Pack4<f32>*>(to + at_row + place<R>(n, TRANSPOSED ? i : j, h)) = pack;
            }
        }
        UNROLL for (u32 r = 0; r < R; r++)
            if (j == 0) z_parts[group * at.p + place<R>(n, i, r / 4) + r % 4] = sums.z[r];
    }
    __syncthreads();
    if (at.groups == 1) return;
    for (u32 e = threadIdx.x; e < size + at.p; e += blockDim.x) {
        bool of_state = e < size;
        const f32* from = of_state ? parts + e : z_parts + (e - size);
        f32 sum = from[0];
        for (u32 g = 1; g < at.groups; g++) sum += from[g * (of_state ? size : at.p)];
        *(of_state ? at.state + e : z + (e - size)) = sum;
    }
    __syncthreads();
}

// A thread's product: tokens `t` to t + 4, columns `c` to c + 4; `active` if there is one.
struct Cell {
    u32 t, c;
    bool active;
};

template <typename T>
DEV Cell cell_of(const Head<T>& at) {
    u32 n = at.p / 4, t = threadIdx.x / n;
    return Cell{4 * t, 4 * (threadIdx.x % n), 4 * t < at.tile};
}

// out = the tile's rows times the state, a cell of it. AT_ONCE: without spills.
template <u32 AT_ONCE, typename T>
DEV void times_state(f32 (&out)[4][4], const f32* rows, const Cell& cell, const Head<T>& at) {
    UNROLL for (u32 r = 0; r < 4; r++) {
        UNROLL for (u32 e = 0; e < 4; e++) out[r][e] = 0.0f;
    }
    const f32* x = rows + cell.t * at.p;
    const f32* m = at.state + cell.c;
#pragma unroll AT_ONCE
    for (u32 k = 0; k < at.p; k += 4) {
        Pack4<f32> a[4];
        UNROLL for (u32 r = 0; r < 4; r++) a[r] = *reinterpret_cast<const Pack4<f32>*>(x + r * at.p + k);
        UNROLL for (u32 i = 0; i < 4; i++) {
            Pack4<f32> b = *reinterpret_cast<const Pack4<f32>*>(m + (k + i) * at.p);
            UNROLL for (u32 r = 0; r < 4; r++) {
                UNROLL for (u32 e = 0; e < 4; e++) out[r][e] = fma_f32(a[r].v[i], b.v[e], out[r][e]);
            }
        }
    }
}

// parts[column][t] = the products of four columns of each of a cell's rows.
template <typename T>
DEV void put_parts(f32* parts, const f32 (&x)[4][4], const f32 (&y)[4][4], const Cell& cell, const Head<T>& at) {
    Pack4<f32> pack;
    UNROLL for (u32 r = 0; r < 4; r++) {
        f32 sum = 0.0f;
        UNROLL for (u32 e = 0; e < 4; e++) sum = fma_f32(x[r][e], y[r][e], sum);
        pack.v[r] = sum;
    }
    *reinterpret_cast<Pack4<f32>*>(parts + cell.c / 4 * at.tile + cell.t) = pack;
}

// The whole of such a product, of token `t`.
template <typename T>
DEV f32 sum_parts(const f32* parts, u32 t, const Head<T>& at) {
    f32 sum = 0.0f;
    for (u32 c = 0; c < at.p / 4; c++) sum += parts[c * at.tile + t];
    return sum;
}

// A cell of a tile; with row_stride 0 and token 0, four columns of a vector, the same for each row.
DEV void load_cell(f32 (&x)[4][4], const f32* tile, const Cell& cell, u32 row_stride) {
    UNROLL for (u32 r = 0; r < 4; r++) {
        Pack4<f32> pack = *reinterpret_cast<const Pack4<f32>*>(tile + (cell.t + r) * row_stride + cell.c);
        UNROLL for (u32 e = 0; e < 4; e++) x[r][e] = pack.v[e];
    }
}

// Writes or adds a cell to rows `width` apart, `count` of which exist.
template <typename T>
DEV void store_cell(T* to, u64 width, const f32 (&x)[4][4], const Cell& cell, u32 count, u32 accumulate,
                    const Head<T>& at) {
    bool wide = at.d % 4 == 0 && aligned4(to) && aligned4(to + width);
    if (cell.c >= at.d) return;
    UNROLL for (u32 r = 0; r < 4; r++) {
        if (cell.t + r >= count) continue;
        T* row = to + (cell.t + r) * width + cell.c;
        f32 v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (accumulate != 0) load4(row, at.d - cell.c, wide, v);
        UNROLL for (u32 e = 0; e < 4; e++) v[e] = accumulate != 0 ? v[e] + x[r][e] : x[r][e];
        store4(row, at.d - cell.c, wide, v);
    }
}

// The sums behind S and z, over all tokens.
template <u32 R, typename T>
DEV void sum_keys_values(Sums<R>& sums, const T* qkv, const Head<T>& at) {
    for (u32 t = 0; t < at.tokens; t += at.tile) {
        u32 count = min_of(at.tokens - t, at.tile);
        const T* k = qkv + at.q + at.step + t * at.width;
        __syncthreads();
        load_rows<true>(at.first, k, at.width, count, at);
        load_rows<false>(at.second, k + at.step, at.width, count, at);
        __syncthreads();
        accumulate_tile<R>(sums, at.first, at.second, nullptr, count, at);
    }
}

template <u32 R, typename T>
DEV void linear_attention_fwd(T* __restrict__ y, const T* __restrict__ qkv, u32 tokens, u32 heads, u32 d, u32 tile,
                              u32 groups) {
    SMEM_DYN(shared);
    const Head<T> at = head_of<T>(shared, tokens, heads, d, round_up(d, R), tile, groups);
    {
        Sums<R> sums = {};
        sum_keys_values<R>(sums, qkv, at);
        put_sums<R, false>(at.z, sums, at);
    }
    Cell cell = cell_of(at);
    for (u32 t = 0; t < tokens; t += tile) {
        u32 count = min_of(tokens - t, tile);
        __syncthreads();
        load_rows<true>(at.first, qkv + at.q + t * at.width, at.width, count, at);
        __syncthreads();
        f32 out[4][4];
        if (cell.active) {
            f32 f[4][4], z[4][4];
            times_state<2>(out, at.first, cell, at);
            load_cell(f, at.first, cell, at.p);
            load_cell(z, at.z, Cell{0, cell.c, true}, 0);
            put_parts(at.parts, f, z, cell, at);
        }
        __syncthreads();
        for (u32 row = threadIdx.x; row < tile; row += blockDim.x)
            at.rows[row] = row < count ? 1.0f / sum_parts(at.parts, row, at) : 0.0f;
        __syncthreads();
        if (!cell.active) continue;
        UNROLL for (u32 r = 0; r < 4; r++) {
            UNROLL for (u32 e = 0; e < 4; e++) out[r][e] *= at.rows[cell.t + r];
        }
        store_cell(y + at.out + t * at.out_width, at.out_width, out, cell, count, 0, at);
    }
}

template <u32 R, typename T>
DEV void linear_attention_bwd(T* __restrict__ dqkv, const T* __restrict__ dy, const T* __restrict__ qkv, u32 tokens,
                              u32 heads, u32 d, u32 tile, u32 groups, u32 accumulate) {
    SMEM_DYN(shared);
    const Head<T> at = head_of<T>(shared, tokens, heads, d, round_up(d, R), tile, groups);
    {
        Sums<R> sums = {};
        sum_keys_values<R>(sums, qkv, at);
        put_sums<R, true>(at.z, sums, at);
    }
    Cell cell = cell_of(at);
    Sums<R> sums = {};
    for (u32 t = 0; t < tokens; t += tile) {
        u32 count = min_of(tokens - t, tile);
        __syncthreads();
        load_rows<true>(at.first, qkv + at.q + t * at.width, at.width, count, at);
        load_rows<false>(at.second, dy + at.out + t * at.out_width, at.out_width, count, at);
        __syncthreads();
        f32 u[4][4], f[4][4], z[4][4];
        if (cell.active) {
            times_state<1>(u, at.second, cell, at);
            load_cell(f, at.first, cell, at.p);
            load_cell(z, at.z, Cell{0, cell.c, true}, 0);
            put_parts(at.parts, f, z, cell, at);
            put_parts(at.parts + tile * (at.p / 4), f, u, cell, at);
        }
        __syncthreads();
        for (u32 row = threadIdx.x; row < tile; row += blockDim.x) {
            f32 inverse = row < count ? 1.0f / sum_parts(at.parts, row, at) : 0.0f;
            at.rows[row] = inverse;
            at.rows[tile + row] = -inverse * sum_parts(at.parts + tile * (at.p / 4), row, at);
        }
        __syncthreads();
        if (cell.active) {
            load_cell(f, at.first, cell, at.p);
            load_cell(z, at.z, Cell{0, cell.c, true}, 0);
            UNROLL for (u32 r = 0; r < 4; r++) {
                f32 inverse = at.rows[cell.t + r], minus_delta = at.rows[tile + cell.t + r];
                Pack4<f32> a;
                UNROLL for (u32 e = 0; e < 4; e++) {
                    a.v[e] = f[r][e] * inverse;
                    u[r][e] = fma_f32(minus_delta, z[r][e], u[r][e]) * inverse * phi_slope(f[r][e]);
                }
                *reinterpret_cast<Pack4<f32>*>(at.first + (cell.t + r) * at.p + cell.c) = a;
            }
            store_cell(dqkv + at.q + t * at.width, at.width, u, cell, count, accumulate, at);
        }
        __syncthreads();
        accumulate_tile<R>(sums, at.first, at.second, at.rows + tile, count, at);
    }

    put_sums<R, false>(at.dz, sums, at);
    for (u32 t = 0; t < tokens; t += tile) {
        u32 count = min_of(tokens - t, tile);
        u64 k = at.q + at.step + t * at.width;
        __syncthreads();
        load_rows<true>(at.first, qkv + k, at.width, count, at);
        __syncthreads();
        if (!cell.active) continue;
        f32 dv[4][4];
        times_state<1>(dv, at.first, cell, at);
        store_cell(dqkv + k + at.step, at.width, dv, cell, count, accumulate, at);
    }

    put_sums<R, true>(at.dz, sums, at);
    for (u32 t = 0; t < tokens; t += tile) {
        u32 count = min_of(tokens - t, tile);
        u64 k = at.q + at.step + t * at.width;
        __syncthreads();
        load_rows<true>(at.first, qkv + k, at.width, count, at);
        load_rows<false>(at.second, qkv + k + at.step, at.width, count, at);
        __syncthreads();
        if (!cell.active) continue;
        f32 dk[4][4], g[4][4], dz[4][4];
        load_cell(dz, at.dz, Cell{0, cell.c, true}, 0);
        times_state<1>(dk, at.second, cell, at);
        load_cell(g, at.first, cell, at.p);
        UNROLL for (u32 r = 0; r < 4; r++) {
            UNROLL for (u32 e = 0; e < 4; e++) dk[r][e] = (dk[r][e] + dz[r][e]) * phi_slope(g[r][e]);
        }
        store_cell(dqkv + k, at.width, dk, cell, count, accumulate, at);
    }
}

#define FWD (Out<T> y, In<T> qkv, u32 tokens, u32 heads, u32 d, u32 tile, u32 groups)
#define FWD_NAMES (y, qkv, tokens, heads, d, tile, groups)
ENTRY(linear_attention_fwd_narrow_f32, (256), f32, FWD, linear_attention_fwd<4> FWD_NAMES)
ENTRY(linear_attention_fwd_narrow_bf16, (128, 4), bf16, FWD, linear_attention_fwd_mma FWD_NAMES)
ENTRIES(linear_attention_fwd_wide, (256), FWD, linear_attention_fwd<8> FWD_NAMES)

#define BWD (Out<T> dqkv, In<T> dy, In<T> qkv, u32 tokens, u32 heads, u32 d, u32 tile, u32 groups, u32 accumulate)
#define BWD_NAMES (dqkv, dy, qkv, tokens, heads, d, tile, groups, accumulate)
ENTRY(linear_attention_bwd_narrow_f32, (256), f32, BWD, linear_attention_bwd<4> BWD_NAMES)
ENTRY(linear_attention_bwd_narrow_bf16, (128, 4), bf16, BWD, linear_attention_bwd_mma BWD_NAMES)
ENTRIES(linear_attention_bwd_wide, (256), BWD, linear_attention_bwd<8> BWD_NAMES)
