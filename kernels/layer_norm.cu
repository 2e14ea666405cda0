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
// Sums run in an order that cols alone decides. A row belongs to a warp where cols <= 1024 and to a block beyond: the
// variance is of the differences to the mean, in a second pass over a row that is in cache by then.
//
// Launches: _fwd and _bwd_input: blocks of 256 threads (any multiple of 32), ceil(rows / warps of a block) of them where
// cols <= 1024, else rows. _bwd_affine_partial: grid [parts, ceil(cols / threads)], parts = ceil(rows / rows_per_part).
// _bwd_affine_final: grid ceil(cols / 32), exactly 256 threads. _bwd_modulation: grid [samples, ceil(cols / threads)].
#include "common/reduce.cuh"
#include "common/types.cuh"
#include "common/vec.cuh"

constexpr u32 WARP_COLS = 1024;

// The threads that share a row.
struct Team {
    bool warp;
    u32 row, lane, lanes;
};

DEV Team team_of(u32 cols) {
    if (cols > WARP_COLS) return Team{false, blockIdx.x, threadIdx.x, blockDim.x};
    return Team{true, blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, threadIdx.x % WARP, WARP};
}

template <u32 N>
DEV void team_sum(const Team& team, f32 (&v)[N]) {
    if (team.warp) {
#pragma unroll
        for (u32 n = 0; n < N; n++) v[n] = warp_sum(v[n]);
    } else {
        block_sum(v);
    }
}

template <typename T>
DEV void layer_norm_fwd(T* __restrict__ y, f32* __restrict__ mean, f32* __restrict__ rstd, const T* __restrict__ x,
                        const f32* __restrict__ gamma, const f32* __restrict__ beta, const T* __restrict__ modulation,
                        u32 rows, u32 cols, u32 rows_per_sample, u32 modulation_stride, u32 shift_column,
                        u32 scale_column, f32 eps) {
    Team team = team_of(cols);
    if (team.row >= rows) return;
    const T* x_row = x + (u64)team.row * cols;
    T* y_row = y + (u64)team.row * cols;
    const T* shift = nullptr;
    const T* scale = nullptr;
    if (modulation != nullptr) {
        const T* sample = modulation + (u64)(team.row / rows_per_sample) * modulation_stride;
        shift = sample + shift_column;
        scale = sample + scale_column;
    }
    bool wide = cols % 4 == 0 && aligned4(x_row) && aligned4(y_row) && aligned4(gamma) && aligned4(beta) &&
                aligned4(shift) && aligned4(scale);

    f32 sum[1] = {0.0f};
    for (u32 c = 4 * team.lane; c < cols; c += 4 * team.lanes) {
        f32 v[4];
        load4(x_row + c, cols - c, wide, v);
        sum[0] += (v[0] + v[1]) + (v[2] + v[3]);
    }
    team_sum(team, sum);
    f32 mu = sum[0] / (f32)cols;

    f32 squares[1] = {0.0f};
    for (u32 c = 4 * team.lane; c < cols; c += 4 * team.lanes) {
        f32 v[4];
        load4(x_row + c, cols - c, wide, v);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            f32 d = c + i < cols ? v[i] - mu : 0.0f;
            squares[0] = fma_f32(d, d, squares[0]);
        }
    }
    team_sum(team, squares);
    f32 r = 1.0f / sqrt_f32(squares[0] / (f32)cols + eps);
    if (team.lane == 0) {
        mean[team.row] = mu;
        rstd[team.row] = r;
    }

    for (u32 c = 4 * team.lane; c < cols; c += 4 * team.lanes) {
        f32 v[4], a[4], b[4];
        load4(x_row + c, cols - c, wide, v);
#pragma unroll
        for (u32 i = 0; i < 4; i++) v[i] = (v[i] - mu) * r;
        if (gamma != nullptr) {
            load4(gamma + c, cols - c, wide, a);
            load4(beta + c, cols - c, wide, b);
#pragma unroll
            for (u32 i = 0; i < 4; i++) v[i] = fma_f32(v[i], a[i], b[i]);
        } else if (modulation != nullptr) {
            load4(scale + c, cols - c, wide, a);
            load4(shift + c, cols - c, wide, b);
#pragma unroll
            for (u32 i = 0; i < 4; i++) v[i] = fma_f32(v[i], 1.0f + a[i], b[i]);
        }
        store4(y_row + c, cols - c, wide, v);
    }
}

// From dy and x at column c of a row: dn = g dy and the normalised value n; zeros beyond the row.
template <typename T>
DEV void layer_norm_bwd_terms(const T* dy_row, const T* x_row, const f32* gamma, const T* scale, f32 mu, f32 r, u32 c,
                              u32 cols, bool wide, f32 (&dn)[4], f32 (&n)[4]) {
    f32 g[4];
    load4(dy_row + c, cols - c, wide, dn);
    load4(x_row + c, cols - c, wide, n);
    if (gamma != nullptr) {
        load4(gamma + c, cols - c, wide, g);
#pragma unroll
        for (u32 i = 0; i < 4; i++) dn[i] *= g[i];
    } else if (scale != nullptr) {
        load4(scale + c, cols - c, wide, g);
#pragma unroll
        for (u32 i = 0; i < 4; i++) dn[i] *= 1.0f + g[i];
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) n[i] = (n[i] - mu) * r;
}

template <typename T>
DEV void layer_norm_bwd_input(T* __restrict__ dx, const T* __restrict__ dy, const T* __restrict__ x,
                              const f32* __restrict__ mean, const f32* __restrict__ rstd,
                              const f32* __restrict__ gamma, const T* __restrict__ modulation, u32 rows, u32 cols,
                              u32 rows_per_sample, u32 modulation_stride, u32 scale_column, u32 accumulate) {
    Team team = team_of(cols);
    if (team.row >= rows) return;
    u64 start = (u64)team.row * cols;
    const T* dy_row = dy + start;
    const T* x_row = x + start;
    T* dx_row = dx + start;
    const T* scale = nullptr;
    if (modulation != nullptr)
        scale = modulation + (u64)(team.row / rows_per_sample) * modulation_stride + scale_column;
    f32 mu = mean[team.row], r = rstd[team.row];
    bool wide = cols % 4 == 0 && aligned4(dy_row) && aligned4(x_row) && aligned4(dx_row) && aligned4(gamma) &&
                aligned4(scale);

    f32 sums[2] = {0.0f, 0.0f};
    for (u32 c = 4 * team.lane; c < cols; c += 4 * team.lanes) {
        f32 dn[4], n[4];
        layer_norm_bwd_terms(dy_row, x_row, gamma, scale, mu, r, c, cols, wide, dn, n);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            sums[0] += dn[i];
            sums[1] = fma_f32(dn[i], n[i], sums[1]);
        }
    }
    team_sum(team, sums);
    f32 mean_dn = sums[0] / (f32)cols, mean_dn_n = sums[1] / (f32)cols;

    for (u32 c = 4 * team.lane; c < cols; c += 4 * team.lanes) {
        f32 dn[4], n[4], old[4];
        layer_norm_bwd_terms(dy_row, x_row, gamma, scale, mu, r, c, cols, wide, dn, n);
#pragma unroll
        for (u32 i = 0; i < 4; i++) dn[i] = r * (dn[i] - mean_dn - n[i] * mean_dn_n);
        if (accumulate != 0) {
            load4(dx_row + c, cols - c, wide, old);
#pragma unroll
            for (u32 i = 0; i < 4; i++) dn[i] += old[i];
        }
        store4(dx_row + c, cols - c, wide, dn);
    }
}

// sum(dy n) and sum(dy) of one column over rows first .. last, in order.
template <typename T>
DEV void layer_norm_column_sums(const T* dy, const T* x, const f32* mean, const f32* rstd, u32 first, u32 last,
                                u32 cols, u32 c, f32& with_n, f32& plain) {
    with_n = 0.0f;
    plain = 0.0f;
#pragma unroll 4
    for (u32 row = first; row < last; row++) {
        u64 at = (u64)row * cols + c;
        f32 d = to_f32(dy[at]);
        with_n = fma_f32(d, (to_f32(x[at]) - mean[row]) * rstd[row], with_n);
        plain += d;
    }
}

// partial [2, parts, cols]: dgamma's sums over rows_per_part rows each, then dbeta's.
template <typename T>
DEV void layer_norm_bwd_affine_partial(f32* __restrict__ partial, const T* __restrict__ dy, const T* __restrict__ x,
                                       const f32* __restrict__ mean, const f32* __restrict__ rstd, u32 rows, u32 cols,
                                       u32 rows_per_part) {
    u32 c = blockIdx.y * blockDim.x + threadIdx.x, part = blockIdx.x, parts = ceil_div(rows, rows_per_part);
    if (c >= cols || part >= parts) return;
    u32 first = part * rows_per_part, last = min_of(rows_per_part, rows - first) + first;
    f32 dgamma, dbeta;
    layer_norm_column_sums(dy, x, mean, rstd, first, last, cols, c, dgamma, dbeta);
    partial[(u64)part * cols + c] = dgamma;
    partial[(u64)(parts + part) * cols + c] = dbeta;
}

// A block sums 32 columns: warp w takes parts w, w + 8, ..; then the first two warps add the eight sums in order.
DEV void layer_norm_affine_final(f32* __restrict__ dgamma, f32* __restrict__ dbeta,
                                 const f32* __restrict__ partial, u32 parts, u32 cols, u32 accumulate) {
    constexpr u32 SLICES = 8;
    SHARED(f32, tile, [2][SLICES][WARP]);
    u32 lane = threadIdx.x % WARP, slice = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    f32 sums[2] = {0.0f, 0.0f};
    if (c < cols) {
#pragma unroll 4
        for (u32 part = slice; part < parts; part += SLICES) {
            sums[0] += partial[(u64)part * cols + c];
            sums[1] += partial[(u64)(parts + part) * cols + c];
        }
    }
    tile[0][slice][lane] = sums[0];
    tile[1][slice][lane] = sums[1];
    __syncthreads();
    if (slice > 1 || c >= cols) return;
    f32 total = 0.0f;
#pragma unroll
    for (u32 s = 0; s < SLICES; s++) total += tile[slice][s][lane];
    f32* to = (slice == 0 ? dgamma : dbeta) + c;
    *to = accumulate != 0 ? *to + total : total;
}

template <typename T>
DEV void layer_norm_bwd_modulation(T* __restrict__ dmodulation, const T* __restrict__ dy, const T* __restrict__ x,
                                   const f32* __restrict__ mean, const f32* __restrict__ rstd, u32 cols,
                                   u32 rows_per_sample, u32 modulation_stride, u32 shift_column, u32 scale_column,
                                   u32 accumulate) {
    u32 c = blockIdx.y * blockDim.x + threadIdx.x, sample = blockIdx.x;
    if (c >= cols) return;
    u32 first = sample * rows_per_sample;
    f32 dscale, dshift;
    layer_norm_column_sums(dy, x, mean, rstd, first, first + rows_per_sample, cols, c, dscale, dshift);
    T* to = dmodulation + (u64)sample * modulation_stride + c;
    if (accumulate != 0) {
        dshift += to_f32(to[shift_column]);
        dscale += to_f32(to[scale_column]);
    }
    store_f32(to + shift_column, dshift);
    store_f32(to + scale_column, dscale);
}

extern "C" __global__ void __launch_bounds__(256) layer_norm_fwd_f32(
    f32* __restrict__ y, f32* __restrict__ mean, f32* __restrict__ rstd, const f32* __restrict__ x,
    const f32* __restrict__ gamma, const f32* __restrict__ beta, const f32* __restrict__ modulation, u32 rows, u32 cols,
    u32 rows_per_sample, u32 modulation_stride, u32 shift_column, u32 scale_column, f32 eps) {
    layer_norm_fwd<f32>(y, mean, rstd, x, gamma, beta, modulation, rows, cols, rows_per_sample, modulation_stride,
        shift_column, scale_column, eps);
}
extern "C" __global__ void __launch_bounds__(256) layer_norm_fwd_bf16(
    bf16* __restrict__ y, f32* __restrict__ mean, f32* __restrict__ rstd, const bf16* __restrict__ x,
    const f32* __restrict__ gamma, const f32* __restrict__ beta, const bf16* __restrict__ modulation, u32 rows,
    u32 cols, u32 rows_per_sample, u32 modulation_stride, u32 shift_column, u32 scale_column, f32 eps) {
    layer_norm_fwd<bf16>(y, mean, rstd, x, gamma, beta, modulation, rows, cols, rows_per_sample, modulation_stride,
        shift_column, scale_column, eps);
}
extern "C" __global__ void __launch_bounds__(256) layer_norm_bwd_input_f32(
    f32* __restrict__ dx, const f32* __restrict__ dy, const f32* __restrict__ x, const f32* __restrict__ mean,
    const f32* __restrict__ rstd, const f32* __restrict__ gamma, const f32* __restrict__ modulation, u32 rows, u32 cols,
    u32 rows_per_sample, u32 modulation_stride, u32 scale_column, u32 accumulate) {
    layer_norm_bwd_input<f32>(dx, dy, x, mean, rstd, gamma, modulation, rows, cols, rows_per_sample, modulation_stride,
        scale_column, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) layer_norm_bwd_input_bf16(
    bf16* __restrict__ dx, const bf16* __restrict__ dy, const bf16* __restrict__ x, const f32* __restrict__ mean,
    const f32* __restrict__ rstd, const f32* __restrict__ gamma, const bf16* __restrict__ modulation, u32 rows,
    u32 cols, u32 rows_per_sample, u32 modulation_stride, u32 scale_column, u32 accumulate) {
    layer_norm_bwd_input<bf16>(dx, dy, x, mean, rstd, gamma, modulation, rows, cols, rows_per_sample, modulation_stride,
        scale_column, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) layer_norm_bwd_affine_partial_f32(
    f32* __restrict__ partial, const f32* __restrict__ dy, const f32* __restrict__ x, const f32* __restrict__ mean,
    const f32* __restrict__ rstd, u32 rows, u32 cols, u32 rows_per_part) {
    layer_norm_bwd_affine_partial<f32>(partial, dy, x, mean, rstd, rows, cols, rows_per_part);
}
extern "C" __global__ void __launch_bounds__(256) layer_norm_bwd_affine_partial_bf16(
    f32* __restrict__ partial, const bf16* __restrict__ dy, const bf16* __restrict__ x, const f32* __restrict__ mean,
    const f32* __restrict__ rstd, u32 rows, u32 cols, u32 rows_per_part) {
    layer_norm_bwd_affine_partial<bf16>(partial, dy, x, mean, rstd, rows, cols, rows_per_part);
}
extern "C" __global__ void __launch_bounds__(256) layer_norm_bwd_modulation_f32(
    f32* __restrict__ dmodulation, const f32* __restrict__ dy, const f32* __restrict__ x, const f32* __restrict__ mean,
    const f32* __restrict__ rstd, u32 cols, u32 rows_per_sample, u32 modulation_stride, u32 shift_column,
    u32 scale_column, u32 accumulate) {
    layer_norm_bwd_modulation<f32>(dmodulation, dy, x, mean, rstd, cols, rows_per_sample, modulation_stride,
        shift_column, scale_column, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) layer_norm_bwd_modulation_bf16(
    bf16* __restrict__ dmodulation, const bf16* __restrict__ dy, const bf16* __restrict__ x,
    const f32* __restrict__ mean, const f32* __restrict__ rstd, u32 cols, u32 rows_per_sample, u32 modulation_stride,
    u32 shift_column, u32 scale_column, u32 accumulate) {
    layer_norm_bwd_modulation<bf16>(dmodulation, dy, x, mean, rstd, cols, rows_per_sample, modulation_stride,
        shift_column, scale_column, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) layer_norm_bwd_affine_final(
    f32* __restrict__ dgamma, f32* __restrict__ dbeta, const f32* __restrict__ partial, u32 parts, u32 cols,
    u32 accumulate) {
    layer_norm_affine_final(dgamma, dbeta, partial, parts, cols, accumulate);
}
