// Layer norm over the last axis (Ba, Kiros and Hinton 2016, arXiv 1607.06450), plain, with learned scale and shift, or
// modulated per sample as in adaLN (Peebles and Xie 2023, arXiv 2212.09748).
//
// x, y [rows, cols], rows = samples * rows_per_sample. With n = (x - mean) * rstd, mean = sum x / cols,
// rstd = 1 / sqrt(sum (x - mean)^2 / cols + eps), row by row:
//
//   plain       y = n
//   affine      y = n * gamma + beta                      gamma, beta [cols], f32 masters
//   modulated   y = n * (1 + scale[sample]) + shift[sample]
//
// shift and scale are columns shift_column .. and scale_column .. (cols of them each) of a matrix `modulation`
// [samples, modulation_stride] that one linear layer made for all norms. Pointers of the other forms are null; affine and
// modulated at once is not a form. Backward, with g = 1, gamma or 1 + scale:
//
//   dx     = rstd * (g dy - sum(g dy) / cols - n * sum(g dy n) / cols)        sums over the row
//   dgamma = sum(dy n), dbeta = sum(dy)                                       over all rows
//   dscale = sum(dy n), dshift = sum(dy)                                      over the sample's rows
//
// `accumulate` != 0 adds to the destination instead of writing it. The backward reads x, mean and rstd, not y.
//
// Sums over a row run in an order that cols alone decides. A row belongs to a warp where cols <= 1024, which then holds it in
// registers (STEPS of 128 columns, four neighbours a lane), and to a block beyond, which reads it again for each pass.
//
// Backward where a row belongs to a warp, _bwd: one pass over dy and x. A block has `rows_per_part` rows, of one sample where
// shift and scale are its own; warp w takes rows w, w + 8, .. and sums dy n and dy by columns as it goes; then the block adds its
// eight warps' sums in order. What it writes is dshift and dscale themselves, or a part of dgamma and dbeta, which
// gradient_sums.cu adds up in order. Floor: three passes over rows x cols (forward: two) over the bandwidth. Beyond 1024 columns:
// _bwd_input by rows, then _bwd_columns by columns, and dy and x are read twice.
//
// Launches: _fwd_narrow (cols <= 512) and _fwd_wide (<= 1024): ceil(rows / (8 rows_per_warp)) blocks, _fwd_widest: rows;
// with rows_per_warp: rows of a warp, one behind the other. _bwd_*: a block for each part, _narrow and _wide as above; where
// modulated a part is a sample. _bwd_input: rows blocks. _bwd_columns: grid [parts, ceil(cols / 256)]. All in blocks of exactly 256
// threads.
#include "common/entry.cuh"
#include "common/reduce.cuh"
#include "common/types.cuh"
#include "common/vec.cuh"

constexpr u32 WARPS = 8, THREADS = WARPS * WARP;

// Scale and shift of a sample's rows, or of every row, at column c; `wide` as for load4.
template <typename T>
struct Affine {
    const f32* gamma;
    const f32* beta;
    const T* scale;
    const T* shift;

    DEV Affine of(const f32* gamma, const f32* beta, const T* modulation, u32 sample, u32 stride, u32 shift_column,
                  u32 scale_column) {
        if (modulation == nullptr) return Affine{gamma, beta, nullptr, nullptr};
        modulation += (u64)sample * stride;
        return Affine{nullptr, nullptr, modulation + scale_column, modulation + shift_column};
    }
    DEV bool aligned(const Affine& at) {
        return aligned4(at.gamma) && aligned4(at.beta) && aligned4(at.scale) && aligned4(at.shift);
    }
};

// g at column c: 1, gamma or 1 + scale.
template <typename T>
DEV void affine_factor(const Affine<T>& affine, u32 c, u32 left, bool wide, f32 (&g)[4]) {
    if (affine.gamma != nullptr) {
        load4(affine.gamma + c, left, wide, g);
    } else if (affine.scale != nullptr) {
        load4(affine.scale + c, left, wide, g);
        UNROLL for (u32 i = 0; i < 4; i++) g[i] += 1.0f;
    } else {
        UNROLL for (u32 i = 0; i < 4; i++) g[i] = 1.0f;
    }
}

// The term added: beta or shift.
template <typename T>
DEV void affine_term(const Affine<T>& affine, u32 c, u32 left, bool wide, f32 (&b)[4]) {
    if (affine.beta != nullptr) load4(affine.beta + c, left, wide, b);
    else if (affine.shift != nullptr) load4(affine.shift + c, left, wide, b);
}

// --- a row belongs to a warp: STEPS pieces of four columns in each lane's registers ---

// The first column of a lane's piece, and how many are left from there on.
DEV u32 piece_column(u32 step) { return (step * WARP + threadIdx.x % WARP) * 4; }
DEV u32 piece_left(u32 c, u32 cols) { return c < cols ? cols - c : 0; }

template <bool WIDE, u32 STEPS, typename T>
DEV void row_load(const T* row, u32 cols, f32 (&v)[STEPS][4]) {
    UNROLL for (u32 s = 0; s < STEPS; s++) {
        u32 c = piece_column(s);
        if (!WIDE || c < cols) {
            load4(row + c, piece_left(c, cols), WIDE, v[s]);
        } else {
            UNROLL for (u32 i = 0; i < 4; i++) v[s][i] = 0.0f;
        }
    }
}
template <bool WIDE, u32 STEPS, typename T>
DEV void row_store(T* row, u32 cols, const f32 (&v)[STEPS][4]) {
    UNROLL for (u32 s = 0; s < STEPS; s++) {
        u32 c = piece_column(s);
        if (!WIDE || c < cols) store4(row + c, piece_left(c, cols), WIDE, v[s]);
    }
}

template <bool WIDE, u32 STEPS, typename T>
DEV void layer_norm_fwd_rows(T* __restrict__ y, f32* __restrict__ mean, f32* __restrict__ rstd, const T* __restrict__ x,
                             const f32* __restrict__ gamma, const f32* __restrict__ beta,
                             const T* __restrict__ modulation, u32 first, u32 last, u32 cols, u32 rows_per_sample,
                             u32 modulation_stride, u32 shift_column, u32 scale_column, f32 eps) {
    bool shifted = gamma != nullptr || modulation != nullptr;
    u32 sample = first / rows_per_sample, next = first;
    f32 g[STEPS][4] = {}, b[STEPS][4] = {};
    for (u32 row = first; row < last; row++) {
        f32 v[STEPS][4], sum = 0.0f, squares = 0.0f;
        row_load<WIDE>(x + (u64)row * cols, cols, v);
        // Scale and shift stay in registers until the sample ends.
        if (shifted && row == next) {
            Affine<T> affine =
                Affine<T>::of(gamma, beta, modulation, sample, modulation_stride, shift_column, scale_column);
            UNROLL for (u32 s = 0; s < STEPS; s++) {
                u32 c = piece_column(s), left = piece_left(c, cols);
                if (WIDE && left == 0) continue;
                affine_factor(affine, c, left, WIDE, g[s]);
                affine_term(affine, c, left, WIDE, b[s]);
            }
            sample++;
            next = modulation != nullptr ? sample * rows_per_sample : last;
        }
        UNROLL for (u32 s = 0; s < STEPS; s++) sum += (v[s][0] + v[s][1]) + (v[s][2] + v[s][3]);
        f32 mu = warp_sum(sum) / (f32)cols;
        UNROLL for (u32 s = 0; s < STEPS; s++)
            UNROLL for (u32 i = 0; i < 4; i++) {
                v[s][i] -= mu;
                f32 d = piece_column(s) + i < cols ? v[s][i] : 0.0f;
                squares = fma_f32(d, d, squares);
            }
        f32 r = 1.0f / sqrt_f32(warp_sum(squares) / (f32)cols + eps);
        if (threadIdx.x % WARP == 0) {
            mean[row] = mu;
            rstd[row] = r;
        }
        UNROLL for (u32 s = 0; s < STEPS; s++)
            UNROLL for (u32 i = 0; i < 4; i++) {
                f32 n = v[s][i] * r;
                v[s][i] = shifted ? fma_f32(n, g[s][i], b[s][i]) : n;
            }
        row_store<WIDE>(y + (u64)row * cols, cols, v);
    }
}

#define FWD (Out<T> y, Out<f32> mean, Out<f32> rstd, In<T> x, In<f32> gamma, In<f32> beta, In<T> modulation, u32 rows, u32 cols, u32 rows_per_sample,   \
        u32 modulation_stride, u32 shift_column, u32 scale_column, u32 rows_per_warp, f32 eps)
#define FWD_NAMES (y, mean, rstd, x, gamma, beta, modulation, rows, cols, rows_per_sample, modulation_stride, shift_column, scale_column, \
        rows_per_warp, eps)
template <u32 STEPS, typename T>
DEV void layer_norm_fwd FWD {
    u32 first = (blockIdx.x * WARPS + threadIdx.x / WARP) * rows_per_warp;
    if (first >= rows) return;
    u32 last = min_of(rows - first, rows_per_warp) + first;
    bool wide = cols % 4 == 0 && modulation_stride % 4 == 0 && aligned4(x) && aligned4(y) &&
                Affine<T>::aligned(Affine<T>::of(gamma, beta, modulation, 0, 0, shift_column, scale_column));
    if (wide)
        layer_norm_fwd_rows<true, STEPS>(y, mean, rstd, x, gamma, beta, modulation, first, last, cols, rows_per_sample,
            modulation_stride, shift_column, scale_column, eps);
    else
        layer_norm_fwd_rows<false, STEPS>(y, mean, rstd, x, gamma, beta, modulation, first, last, cols, rows_per_sample,
            modulation_stride, shift_column, scale_column, eps);
}
ENTRIES(layer_norm_fwd_narrow, (256), FWD, layer_norm_fwd<4> FWD_NAMES)
ENTRIES(layer_norm_fwd_wide, (256), FWD, layer_norm_fwd<8> FWD_NAMES)

// Rows first .. last of one block: dx, and this warp's sums of dy n and dy by columns.
template <bool WIDE, u32 STEPS, typename T>
DEV void layer_norm_bwd_rows(T* __restrict__ dx, const T* __restrict__ dy, const T* __restrict__ x,
                             const f32* __restrict__ mean, const f32* __restrict__ rstd, const Affine<T>& affine,
                             u32 first, u32 last, u32 cols, u32 accumulate, f32 (&with_n)[STEPS][4],
                             f32 (&plain)[STEPS][4]) {
    f32 g[STEPS][4];
    UNROLL for (u32 s = 0; s < STEPS; s++) {
        u32 c = piece_column(s), left = piece_left(c, cols);
        if (!WIDE || left > 0) affine_factor(affine, c, left, WIDE, g[s]);
        UNROLL for (u32 i = 0; i < 4; i++) with_n[s][i] = plain[s][i] = 0.0f;
    }
    f32 part = 1.0f / (f32)cols;
    for (u32 row = first + threadIdx.x / WARP; row < last; row += WARPS) {
        u64 start = (u64)row * cols;
        f32 d[STEPS][4], n[STEPS][4], sums[2] = {0.0f, 0.0f};
        row_load<WIDE>(dy + start, cols, d);
        row_load<WIDE>(x + start, cols, n);
        f32 mu = mean[row], r = rstd[row];
        UNROLL for (u32 s = 0; s < STEPS; s++) {
            if (WIDE && piece_column(s) >= cols) continue;
            UNROLL for (u32 i = 0; i < 4; i++) {
                n[s][i] = (n[s][i] - mu) * r;
                with_n[s][i] = fma_f32(d[s][i], n[s][i], with_n[s][i]);
                plain[s][i] += d[s][i];
                d[s][i] *= g[s][i];
                sums[0] += d[s][i];
                sums[1] = fma_f32(d[s][i], n[s][i], sums[1]);
            }
        }
        if (dx == nullptr) continue;
        f32 mean_dn = warp_sum(sums[0]) * part, mean_dn_n = warp_sum(sums[1]) * part;
        UNROLL for (u32 s = 0; s < STEPS; s++)
            UNROLL for (u32 i = 0; i < 4; i++) d[s][i] = r * (d[s][i] - mean_dn - n[s][i] * mean_dn_n);
        if (accumulate != 0) {
            row_load<WIDE>(dx + start, cols, n);
            UNROLL for (u32 s = 0; s < STEPS; s++)
                UNROLL for (u32 i = 0; i < 4; i++) d[s][i] += n[s][i];
        }
        row_store<WIDE>(dx + start, cols, d);
    }
}

// The block's column sums, its warps' in order: sums[s] of thread t is that of column s THREADS + t (garbage beyond cols). All
// threads call; `tile` holds a row of STEPS 128 columns for each warp.
template <u32 STEPS>
DEV void column_sums(f32 (&tile)[WARPS][STEPS * WARP * 4], const f32 (&mine)[STEPS][4], f32 (&sums)[STEPS / 2]) {
    __syncthreads();
    UNROLL for (u32 s = 0; s < STEPS; s++) store4(&tile[threadIdx.x / WARP][piece_column(s)], 4, true, mine[s]);
    __syncthreads();
    UNROLL for (u32 s = 0; s < STEPS / 2; s++) {
        sums[s] = 0.0f;
        UNROLL for (u32 w = 0; w < WARPS; w++) sums[s] += tile[w][s * THREADS + threadIdx.x];
    }
}

// Where column sums go: a part of dgamma's and dbeta's in partial [2, parts, cols], or (null: affine) a sample's own row of
// dmodulation.
template <typename T>
struct ColumnSums {
    f32* partial;
    T* dmodulation;
    u32 parts, cols, modulation_stride, shift_column, scale_column;
    bool accumulate;
};
template <typename T>
DEV void put_sums(const ColumnSums<T>& to, u32 part, u32 c, f32 with_n, f32 plain) {
    if (to.partial != nullptr) {
        to.partial[(u64)part * to.cols + c] = with_n;
        to.partial[(u64)(to.parts + part) * to.cols + c] = plain;
    }
    if (to.dmodulation == nullptr) return;
    T* row = to.dmodulation + (u64)part * to.modulation_stride + c;
    if (to.accumulate) {
        plain += to_f32(row[to.shift_column]);
        with_n += to_f32(row[to.scale_column]);
    }
    store_f32(row + to.shift_column, plain);
    store_f32(row + to.scale_column, with_n);
}

#define BWD (Out<T> dx, Out<f32> partial, Out<T> dmodulation, In<T> dy, In<T> x, In<f32> mean, In<f32> rstd, In<f32> gamma, In<T> modulation,          \
        u32 rows, u32 cols, u32 rows_per_part, u32 modulation_stride, u32 shift_column, u32 scale_column, u32 accumulate, u32 accumulate_modulation)
#define BWD_NAMES (dx, partial, dmodulation, dy, x, mean, rstd, gamma, modulation, rows, cols, rows_per_part, modulation_stride, shift_column, \
        scale_column, accumulate, accumulate_modulation)
template <u32 STEPS, typename T>
DEV void layer_norm_bwd BWD {
    SHARED(f32, layer_norm_tile, [WARPS][STEPS * WARP * 4]);
    ColumnSums<T> to{partial,           dmodulation,  gridDim.x,    cols,
                     modulation_stride, shift_column, scale_column, accumulate_modulation != 0};
    u32 part = blockIdx.x, first = part * rows_per_part, last = min_of(rows_per_part, rows - first) + first;
    Affine<T> affine =
        Affine<T>::of(gamma, nullptr, modulation, part, modulation_stride, shift_column, scale_column);
    bool wide = cols % 4 == 0 && aligned4(x) && aligned4(dy) && aligned4(dx) && Affine<T>::aligned(affine);
    f32 with_n[STEPS][4], plain[STEPS][4], sums[2][STEPS / 2];
    if (wide)
        layer_norm_bwd_rows<true>(dx, dy, x, mean, rstd, affine, first, last, cols, accumulate, with_n, plain);
    else
        layer_norm_bwd_rows<false>(dx, dy, x, mean, rstd, affine, first, last, cols, accumulate, with_n, plain);
    if (partial == nullptr && dmodulation == nullptr) return;
    column_sums(layer_norm_tile, with_n, sums[0]);
    column_sums(layer_norm_tile, plain, sums[1]);
    UNROLL for (u32 s = 0; s < STEPS / 2; s++) {
        u32 c = s * THREADS + threadIdx.x;
        if (c < cols) put_sums(to, part, c, sums[0][s], sums[1][s]);
    }
}
ENTRIES(layer_norm_bwd_narrow, (256), BWD, layer_norm_bwd<4> BWD_NAMES)
ENTRIES(layer_norm_bwd_wide, (256), BWD, layer_norm_bwd<8> BWD_NAMES)

// --- a row belongs to a block, which reads it again for each pass ---

KERNELS(layer_norm_fwd_widest, (256), (Out<T> y, Out<f32> mean, Out<f32> rstd, In<T> x, In<f32> gamma, In<f32> beta, In<T> modulation, u32 cols,
        u32 rows_per_sample, u32 modulation_stride, u32 shift_column, u32 scale_column, f32 eps),
        (y, mean, rstd, x, gamma, beta, modulation, cols, rows_per_sample, modulation_stride, shift_column, scale_column, eps)) {
    u32 row = blockIdx.x;
    const T* x_row = x + (u64)row * cols;
    T* y_row = y + (u64)row * cols;
    Affine<T> affine = Affine<T>::of(gamma, beta, modulation, row / rows_per_sample, modulation_stride, shift_column,
                                     scale_column);
    bool wide = cols % 4 == 0 && aligned4(x_row) && aligned4(y_row) && Affine<T>::aligned(affine);
    bool shifted = gamma != nullptr || modulation != nullptr;

    f32 sum = 0.0f;
    for (u32 c = 4 * threadIdx.x; c < cols; c += 4 * THREADS) {
        f32 v[4];
        load4(x_row + c, cols - c, wide, v);
        sum += (v[0] + v[1]) + (v[2] + v[3]);
    }
    f32 mu = block_sum(sum) / (f32)cols;

    f32 squares = 0.0f;
    for (u32 c = 4 * threadIdx.x; c < cols; c += 4 * THREADS) {
        f32 v[4];
        load4(x_row + c, cols - c, wide, v);
        UNROLL for (u32 i = 0; i < 4; i++) {
            f32 d = c + i < cols ? v[i] - mu : 0.0f;
            squares = fma_f32(d, d, squares);
        }
    }
    f32 r = 1.0f / sqrt_f32(block_sum(squares) / (f32)cols + eps);
    if (threadIdx.x == 0) {
        mean[row] = mu;
        rstd[row] = r;
    }

    for (u32 c = 4 * threadIdx.x; c < cols; c += 4 * THREADS) {
        f32 v[4], g[4], b[4];
        load4(x_row + c, cols - c, wide, v);
        if (shifted) {
            affine_factor(affine, c, cols - c, wide, g);
            affine_term(affine, c, cols - c, wide, b);
        }
        UNROLL for (u32 i = 0; i < 4; i++) {
            f32 n = (v[i] - mu) * r;
            v[i] = shifted ? fma_f32(n, g[i], b[i]) : n;
        }
        store4(y_row + c, cols - c, wide, v);
    }
}

// From dy and x at column c of a row: dn = g dy and the normalised value n; zeros beyond the row.
template <typename T>
DEV void layer_norm_bwd_terms(const T* dy_row, const T* x_row, const Affine<T>& affine, f32 mu, f32 r, u32 c, u32 left,
                              bool wide, f32 (&dn)[4], f32 (&n)[4]) {
    f32 g[4];
    load4(dy_row + c, left, wide, dn);
    load4(x_row + c, left, wide, n);
    affine_factor(affine, c, left, wide, g);
    UNROLL for (u32 i = 0; i < 4; i++) {
        dn[i] *= g[i];
        n[i] = (n[i] - mu) * r;
    }
}

KERNELS(layer_norm_bwd_input, (256), (Out<T> dx, In<T> dy, In<T> x, In<f32> mean, In<f32> rstd, In<f32> gamma, In<T> modulation, u32 cols,
        u32 rows_per_sample, u32 modulation_stride, u32 scale_column, u32 accumulate),
        (dx, dy, x, mean, rstd, gamma, modulation, cols, rows_per_sample, modulation_stride, scale_column, accumulate)) {
    u32 row = blockIdx.x;
    u64 start = (u64)row * cols;
    const T* dy_row = dy + start;
    const T* x_row = x + start;
    T* dx_row = dx + start;
    Affine<T> affine =
        Affine<T>::of(gamma, nullptr, modulation, row / rows_per_sample, modulation_stride, 0, scale_column);
    f32 mu = mean[row], r = rstd[row];
    bool wide = cols % 4 == 0 && aligned4(dy_row) && aligned4(x_row) && aligned4(dx_row) && Affine<T>::aligned(affine);

    f32 sums[2] = {0.0f, 0.0f};
    for (u32 c = 4 * threadIdx.x; c < cols; c += 4 * THREADS) {
        f32 dn[4], n[4];
        layer_norm_bwd_terms(dy_row, x_row, affine, mu, r, c, cols - c, wide, dn, n);
        UNROLL for (u32 i = 0; i < 4; i++) {
            sums[0] += dn[i];
            sums[1] = fma_f32(dn[i], n[i], sums[1]);
        }
    }
    block_sum(sums);
    f32 mean_dn = sums[0] / (f32)cols, mean_dn_n = sums[1] / (f32)cols;

    for (u32 c = 4 * threadIdx.x; c < cols; c += 4 * THREADS) {
        f32 dn[4], n[4], old[4];
        layer_norm_bwd_terms(dy_row, x_row, affine, mu, r, c, cols - c, wide, dn, n);
        UNROLL for (u32 i = 0; i < 4; i++) dn[i] = r * (dn[i] - mean_dn - n[i] * mean_dn_n);
        if (accumulate != 0) {
            load4(dx_row + c, cols - c, wide, old);
            UNROLL for (u32 i = 0; i < 4; i++) dn[i] += old[i];
        }
        store4(dx_row + c, cols - c, wide, dn);
    }
}

// The sums of one column over a part's rows, in order.
KERNELS(layer_norm_bwd_columns, (256), (Out<f32> partial, Out<T> dmodulation, In<T> dy, In<T> x, In<f32> mean, In<f32> rstd, u32 rows, u32 cols,
        u32 rows_per_part, u32 modulation_stride, u32 shift_column, u32 scale_column, u32 accumulate),
        (partial, dmodulation, dy, x, mean, rstd, rows, cols, rows_per_part, modulation_stride, shift_column, scale_column, accumulate)) {
    ColumnSums<T> to{partial,           dmodulation,  gridDim.x,    cols,
                     modulation_stride, shift_column, scale_column, accumulate != 0};
    u32 c = blockIdx.y * THREADS + threadIdx.x, part = blockIdx.x, first = part * rows_per_part;
    if (c >= cols) return;
    u32 last = min_of(rows_per_part, rows - first) + first;
    f32 with_n = 0.0f, plain = 0.0f;
#pragma unroll 4
    for (u32 row = first; row < last; row++) {
        u64 at = (u64)row * cols + c;
        f32 d = to_f32(dy[at]);
        with_n = fma_f32(d, (to_f32(x[at]) - mean[row]) * rstd[row], with_n);
        plain += d;
    }
    put_sums(to, part, c, with_n, plain);
}
