// Batch normalisation (Ioffe and Szegedy 2015) with the residual and the ReLU behind it, as a block of a ResNet ends
// (He et al. 2016): y = act(weight * (x - mean) * rstd + bias + residual), per channel c over all rows.
//
//   x, y, dy, dx, residual, dresidual [rows, channels] T; weight, bias, mean, rstd, running_*, dweight, dbias [channels] f32;
//   partial [chunks, 2, channels] f32, sums [2, channels] f32. residual may be null.
//
// Training: mean and variance of the batch. A block takes a chunk of rows and leaves the chunk's own mean and sum of squares
// about it (summed about the chunk's first row, so that a mean far from zero costs no digits); one block per 32 channels joins the
// chunks (Chan, Golub and LeVeque 1983), in order, and moves the running statistics on. Inference: running statistics.
// Backward, with n = (x - mean) * rstd and dz = dy where y > 0 (dy without ReLU):
//   dresidual = dz, dbias = sum dz, dweight = sum dz n, dx = rstd weight (dz - (dbias + n dweight) / rows),
//   the last bracket dz alone in inference. Without residual the mask is recomputed from x, else it is that of y.
//
// Floor: training reads x twice (statistics must be whole before the first y) and residual once, writes y; backward reads dy
// and x (and y) twice, writes dx (and dresidual). Inference: x and residual once, y once. Residual and ReLU as ops of their own
// would read and write the tensor twice more each way.
#include "common/entry.cuh"
#include "common/sums.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

constexpr u32 THREADS = 256;

// The elements of a thread: N neighbouring channels from c on, rows first + lane, first + lane + lanes, .. below last.
struct Share {
    u32 c, left, lane, lanes, first, last;
    bool active;
};

// Block [chunk of rows, `columns` pieces of N channels], `columns` a power of two, at most 32.
template <u32 N>
DEV Share share_of(u32 rows, u32 channels, u32 chunk_rows, u32 columns) {
    Share s;
    s.c = (blockIdx.y * columns + threadIdx.x % columns) * N;
    s.active = s.c < channels;
    s.left = s.active ? channels - s.c : 0;
    s.lane = threadIdx.x / columns;
    s.lanes = THREADS / columns;
    s.first = blockIdx.x * chunk_rows;
    s.last = min_of(rows, s.first + chunk_rows);
    return s;
}

// The block's column sums of a and b, in the order of lanes. Thread t < columns * N gets those of channel t of the block.
template <u32 N>
DEV void column_sums(const Share& s, u32 columns, const f32 (&a)[N], const f32 (&b)[N], f32& sum_a, f32& sum_b) {
    SHARED(f32, column_parts, [2][THREADS * N]);
    u32 width = columns * N, at = s.lane * width + (threadIdx.x % columns) * N;
    store_wide(&column_parts[0][at], N, true, a);
    store_wide(&column_parts[1][at], N, true, b);
    __syncthreads();
    sum_a = sum_b = 0.0f;
    if (threadIdx.x >= width) return;
    for (u32 lane = 0; lane < s.lanes; lane++) {
        sum_a += column_parts[0][lane * width + threadIdx.x];
        sum_b += column_parts[1][lane * width + threadIdx.x];
    }
}

// partial[chunk]: the mean of the chunk's rows, and the sum of squares about it.
KERNELS(batch_norm_fwd_partial, (256), (Out<f32> partial, In<T> x, u32 rows, u32 channels, u32 chunk_rows, u32 columns),
        (partial, x, rows, channels, chunk_rows, columns)) {
    constexpr u32 N = Vec16<T>::COUNT;
    Share s = share_of<N>(rows, channels, chunk_rows, columns);
    bool wide = channels % N == 0 && aligned16(x);
    f32 shift[N], sum[N], square[N];
    UNROLL for (u32 i = 0; i < N; i++) sum[i] = square[i] = 0.0f;
    if (s.active) {
        load_wide(x + (u64)s.first * channels + s.c, s.left, wide, shift);
#pragma unroll 4
        for (u32 row = s.first + s.lane; row < s.last; row += s.lanes) {
            f32 v[N];
            load_wide(x + (u64)row * channels + s.c, s.left, wide, v);
            UNROLL for (u32 i = 0; i < N; i++) {
                f32 d = v[i] - shift[i];
                sum[i] += d;
                square[i] = fma_f32(d, d, square[i]);
            }
        }
    }
    f32 total, squares;
    column_sums(s, columns, sum, square, total, squares);
    u32 c = blockIdx.y * columns * N + threadIdx.x;
    if (threadIdx.x >= columns * N || c >= channels) return;
    f32 mean = total / (f32)(s.last - s.first);
    f32* to = partial + (u64)blockIdx.x * 2 * channels + c;
    to[0] = to_f32(x[(u64)s.first * channels + c]) + mean;
    to[channels] = max_f32(fma_f32(-mean, total, squares), 0.0f);
}

// A block of 32 warps takes 32 channels; warp w the chunks w, w + 32, ..
constexpr u32 SLICES = 32;

// The sum over the warps of v, in their order, in every thread of a lane.
DEV f32 slice_sum(f32 v) {
    SHARED(f32, slices, [SLICES][WARP]);
    u32 lane = threadIdx.x % WARP, slice = threadIdx.x / WARP;
    slices[slice][lane] = v;
    __syncthreads();
    f32 total = 0.0f;
#pragma unroll 8
    for (u32 i = 0; i < SLICES; i++) total += slices[i][lane];
    __syncthreads();
    return total;
}

KERNEL(batch_norm_fwd_statistics, (1024), (Out<f32> mean, Out<f32> rstd, Out<f32> running_mean, Out<f32> running_variance, In<f32> partial, u32 rows,
       u32 channels, u32 chunk_rows, u32 chunks, f32 epsilon, f32 momentum),
       (mean, rstd, running_mean, running_variance, partial, rows, channels, chunk_rows, chunks, epsilon, momentum)) {
    u32 slice = threadIdx.x / WARP, c = blockIdx.x * WARP + threadIdx.x % WARP;
    bool active = c < channels;
    f32 origin = active ? partial[c] : 0.0f, sum = 0.0f, squares = 0.0f;
    if (active) {
#pragma unroll 4
        for (u32 chunk = slice; chunk < chunks; chunk += SLICES) {
            f32 count = (f32)min_of(chunk_rows, rows - chunk * chunk_rows);
            sum = fma_f32(count, partial[(u64)chunk * 2 * channels + c] - origin, sum);
        }
    }
    f32 center = origin + slice_sum(sum) / (f32)rows;
    if (active) {
#pragma unroll 4
        for (u32 chunk = slice; chunk < chunks; chunk += SLICES) {
            f32 count = (f32)min_of(chunk_rows, rows - chunk * chunk_rows);
            const f32* from = partial + (u64)chunk * 2 * channels + c;
            f32 d = from[0] - center;
            squares += fma_f32(count * d, d, from[channels]);
        }
    }
    squares = slice_sum(squares);
    if (slice > 0 || !active) return;
    mean[c] = center;
    rstd[c] = 1.0f / sqrt_f32(squares / (f32)rows + epsilon);
    running_mean[c] += momentum * (center - running_mean[c]);
    running_variance[c] += momentum * (squares / (f32)(rows - 1) - running_variance[c]);
}

// Inference: one thread per channel. Copies, since the running statistics may move on before the backward.
KERNEL(batch_norm_fwd_running, (256), (Out<f32> mean, Out<f32> rstd, In<f32> running_mean, In<f32> running_variance, u32 channels, f32 epsilon),
       (mean, rstd, running_mean, running_variance, channels, epsilon)) {
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    mean[c] = running_mean[c];
    rstd[c] = 1.0f / sqrt_f32(running_variance[c] + epsilon);
}

// A thread's channels: v = gain * (x - mean) + bias.
template <u32 N>
struct Affine {
    f32 mean[N], gain[N], bias[N];
};
template <u32 N>
DEV Affine<N> affine_of(const Share& s, u32 channels, const f32* mean, const f32* rstd, const f32* weight, const f32* bias) {
    Affine<N> a;
    bool wide = channels % N == 0 && aligned16(mean) && aligned16(rstd) && aligned16(weight) && aligned16(bias);
    f32 r[N];
    load_wide(mean + s.c, s.left, wide, a.mean);
    load_wide(rstd + s.c, s.left, wide, r);
    load_wide(weight + s.c, s.left, wide, a.gain);
    load_wide(bias + s.c, s.left, wide, a.bias);
    UNROLL for (u32 i = 0; i < N; i++) a.gain[i] *= r[i];
    return a;
}

KERNELS(batch_norm_fwd_apply, (256), (Out<T> y, In<T> x, In<T> residual, In<f32> mean, In<f32> rstd, In<f32> weight, In<f32> bias, u32 rows,
        u32 channels, u32 chunk_rows, u32 columns, u32 relu), (y, x, residual, mean, rstd, weight, bias, rows, channels, chunk_rows, columns, relu)) {
    constexpr u32 N = Vec16<T>::COUNT;
    Share s = share_of<N>(rows, channels, chunk_rows, columns);
    if (!s.active) return;
    bool wide = channels % N == 0 && aligned16(x) && aligned16(y) && aligned16(residual);
    Affine<N> a = affine_of<N>(s, channels, mean, rstd, weight, bias);
#pragma unroll 2
    for (u32 row = s.first + s.lane; row < s.last; row += s.lanes) {
        u64 at = (u64)row * channels + s.c;
        f32 v[N], r[N];
        load_wide(x + at, s.left, wide, v);
        if (residual != nullptr) load_wide(residual + at, s.left, wide, r);
        UNROLL for (u32 i = 0; i < N; i++) {
            v[i] = fma_f32(a.gain[i], v[i] - a.mean[i], a.bias[i]);
            if (residual != nullptr) v[i] += r[i];
            if (relu != 0 && v[i] <= 0.0f) v[i] = 0.0f;
        }
        store_wide(y + at, s.left, wide, v);
    }
}

// x - mean and dz of a row. `y` null: the mask is recomputed.
template <typename T, u32 N>
DEV void row_gradient(const T* dy, const T* x, const T* y, const Affine<N>& a, u64 at, u32 left, bool wide, u32 relu,
                      f32 (&d)[N], f32 (&dz)[N]) {
    load_wide(x + at, left, wide, d);
    load_wide(dy + at, left, wide, dz);
    UNROLL for (u32 i = 0; i < N; i++) d[i] -= a.mean[i];
    if (relu == 0) return;
    f32 v[N];
    if (y != nullptr) load_wide(y + at, left, wide, v);
    UNROLL for (u32 i = 0; i < N; i++) {
        if (y == nullptr) v[i] = fma_f32(a.gain[i], d[i], a.bias[i]);
        if (v[i] <= 0.0f) dz[i] = 0.0f;
    }
}

// partial[chunk]: sums of dz and of dz * (x - mean) * rstd.
KERNELS(batch_norm_bwd_partial, (256), (Out<f32> partial, In<T> dy, In<T> x, In<T> y, In<f32> mean, In<f32> rstd, In<f32> weight, In<f32> bias,
        u32 rows, u32 channels, u32 chunk_rows, u32 columns, u32 relu),
        (partial, dy, x, y, mean, rstd, weight, bias, rows, channels, chunk_rows, columns, relu)) {
    constexpr u32 N = Vec16<T>::COUNT;
    Share s = share_of<N>(rows, channels, chunk_rows, columns);
    bool wide = channels % N == 0 && aligned16(x) && aligned16(dy) && aligned16(y);
    f32 plain[N], with_n[N];
    UNROLL for (u32 i = 0; i < N; i++) plain[i] = with_n[i] = 0.0f;
    if (s.active) {
        Affine<N> a = affine_of<N>(s, channels, mean, rstd, weight, bias);
#pragma unroll 2
        for (u32 row = s.first + s.lane; row < s.last; row += s.lanes) {
            f32 d[N], dz[N];
            row_gradient(dy, x, y, a, (u64)row * channels + s.c, s.left, wide, relu, d, dz);
            UNROLL for (u32 i = 0; i < N; i++) {
                plain[i] += dz[i];
                with_n[i] = fma_f32(dz[i], d[i], with_n[i]);
            }
        }
    }
    f32 total, total_n;
    column_sums(s, columns, plain, with_n, total, total_n);
    u32 c = blockIdx.y * columns * N + threadIdx.x;
    if (threadIdx.x >= columns * N || c >= channels) return;
    f32* to = partial + (u64)blockIdx.x * 2 * channels + c;
    to[0] = total;
    to[channels] = total_n * rstd[c];
}

// The chunks' sums, and with them the parameters' gradients.
KERNEL(batch_norm_bwd_sums, (1024), (Out<f32> sums, Out<f32> dweight, Out<f32> dbias, In<f32> partial, u32 channels, u32 chunks,
       u32 accumulate_weight, u32 accumulate_bias), (sums, dweight, dbias, partial, channels, chunks, accumulate_weight, accumulate_bias)) {
    u32 slice = threadIdx.x / WARP, c = blockIdx.x * WARP + threadIdx.x % WARP;
    bool active = c < channels;
    f32 plain = 0.0f, with_n = 0.0f;
    if (active) {
#pragma unroll 4
        for (u32 chunk = slice; chunk < chunks; chunk += SLICES) {
            const f32* from = partial + (u64)chunk * 2 * channels + c;
            plain += from[0];
            with_n += from[channels];
        }
    }
    plain = slice_sum(plain);
    with_n = slice_sum(with_n);
    if (slice > 0 || !active) return;
    sums[c] = plain;
    sums[channels + c] = with_n;
    if (dweight != nullptr) dweight[c] = accumulate_weight != 0 ? dweight[c] + with_n : with_n;
    if (dbias != nullptr) dbias[c] = accumulate_bias != 0 ? dbias[c] + plain : plain;
}

// `sums` null: inference, the statistics are constants. dx or dresidual may be null: not wanted.
KERNELS(batch_norm_bwd_input, (256), (Out<T> dx, Out<T> dresidual, In<T> dy, In<T> x, In<T> y, In<f32> mean, In<f32> rstd, In<f32> weight,
        In<f32> bias, In<f32> sums, u32 rows, u32 channels, u32 chunk_rows, u32 columns, u32 relu, u32 accumulate_x, u32 accumulate_residual),
        (dx, dresidual, dy, x, y, mean, rstd, weight, bias, sums, rows, channels, chunk_rows, columns, relu, accumulate_x, accumulate_residual)) {
    constexpr u32 N = Vec16<T>::COUNT;
    Share s = share_of<N>(rows, channels, chunk_rows, columns);
    if (!s.active) return;
    bool wide = channels % N == 0 && aligned16(x) && aligned16(dy) && aligned16(y);
    Affine<N> a = affine_of<N>(s, channels, mean, rstd, weight, bias);
    Gradient<T, N> to_x = Gradient<T, N>::make(dx, channels, accumulate_x);
    Gradient<T, N> to_residual = Gradient<T, N>::make(dresidual, channels, accumulate_residual);
    // dx = gain * (dz - plain - (x - mean) * slope)
    f32 plain[N], slope[N];
    UNROLL for (u32 i = 0; i < N; i++) {
        bool take = sums != nullptr && i < s.left;
        plain[i] = take ? sums[s.c + i] / (f32)rows : 0.0f;
        slope[i] = take ? sums[channels + s.c + i] / (f32)rows * rstd[s.c + i] : 0.0f;
    }
    for (u32 row = s.first + s.lane; row < s.last; row += s.lanes) {
        f32 d[N], dz[N];
        row_gradient(dy, x, y, a, (u64)row * channels + s.c, s.left, wide, relu, d, dz);
        UNROLL for (u32 i = 0; i < N; i++) d[i] = a.gain[i] * (fma_f32(-d[i], slope[i], dz[i]) - plain[i]);
        if (dx != nullptr) finish(to_x, row, s.c, d);
        if (dresidual != nullptr) finish(to_residual, row, s.c, dz);
    }
}
