// Group norm (Wu and He 2018, arXiv 1803.08494), then scale and shift per sample, then SiLU, of one tensor [samples, pixels, ca]
// or of two side by side: x [samples, pixels, ca] and skip [samples, pixels, cb]; y [samples, pixels, ca + cb]. With mean and
// variance of a sample's group over its pixels and channels, about the mean:
//
//   n = (x - mean) * rstd, rstd = 1 / sqrt(variance + eps)
//   v = n * k + l,  k = weight (1 + scale), l = bias (1 + scale) + shift         weight, bias [ca + cb], f32 masters
//   y = v sigmoid(v) where silu != 0, else v
//
// scale_shift [samples, 2 (ca + cb)], scales before shifts, may be null, and skip too (cb = 0). Backward, with dv = dy dy/dv, N the
// elements of a group, and S0 = sum(dv), S1 = sum(dv n) over a sample's pixels, channel by channel (`sums` [samples, 2, channels]):
//
//   dx      = rstd * (k dv - sum(k S0) / N - n sum(k S1) / N)                    sums over the group's channels
//   dweight = sum((1 + scale) S1), dbias = sum((1 + scale) S0)                   over the samples
//   dscale  = weight S1 + bias S0, dshift = S0
//
// Null gradients are not wanted; `accumulate_..` != 0 adds to a gradient instead of writing it.
//
// Floor: forward reads the sources and writes y, backward reads the sources and dy and writes dx and dskip, each once. A block
// of 256 threads holds a share of one sample's group in registers, HELD vectors a thread: where that is the whole group (`parts`
// = 1: 32x32 pixels of 8 channels, 8x8 of 128), one kernel does it all at the floor. Else `_partial` kernels reduce the shares
// first, and the sources are read once more, from L2 where it holds them. All groups of a pixel are neighbours in the grid, so
// that a sector which two groups share is still in L2.
//
// A vector is `vector` neighbouring channels, 4 or, where one would cross a group's or a source's border, 1. A group's vectors
// of a pixel, ca + cb over groups * vector, are cut into `tiles` of `columns`; a block takes a tile of HELD * (256 / columns)
// pixels, a chunk: part = chunk * tiles + tile. Shares and the order of all sums follow from pixels and channels alone.
//
// Launches, 256 threads: grid [samples * groups, parts] for _fwd and _bwd (parts = 1), _fwd_partial, _fwd_apply, _bwd_partial and
// _bwd_input; [samples, ceil(channels / 256)] for _bwd_sums; ceil(channels / 32) for _bwd_parameters.
#include "common/activation.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

constexpr u32 THREADS = 256;
// Vectors that a thread holds (`HELD` in src/core/ops/group_norm_silu/mod.rs).
constexpr u32 HELD = 8;

// Four channels or one; `wide` as in common/vec.cuh.
template <typename T>
DEV void load_channels(const T* p, bool wide, f32 (&v)[4]) {
    load4(p, 4, wide, v);
}
template <typename T>
DEV void load_channels(const T* p, bool, f32 (&v)[1]) {
    v[0] = to_f32(*p);
}
template <typename T>
DEV void store_channels(T* p, bool wide, const f32 (&v)[4]) {
    store4(p, 4, wide, v);
}
template <typename T>
DEV void store_channels(T* p, bool, const f32 (&v)[1]) {
    store_f32(p, v[0]);
}

struct Sizes {
    u32 pixels, ca, cb, groups, columns, tiles;
};

// A thread's share: the channels from `c` on, and HELD pixels: `pixel`, then every `rows`-th, those below `end`.
struct Share {
    u32 sample, group, channels, width, row, rows, c, pixel, end;
    // Whether there are such channels.
    bool active;
    // The block's elements.
    f32 count;
};

// Elements of part `part`.
template <u32 V>
DEV f32 count_of(const Sizes& sizes, u32 part) {
    u32 vectors = (sizes.ca + sizes.cb) / sizes.groups / V, chunk = HELD * (THREADS / sizes.columns);
    u32 columns = min_of(sizes.columns, vectors - part % sizes.tiles * sizes.columns);
    return (f32)(columns * V * min_of(chunk, sizes.pixels - part / sizes.tiles * chunk));
}

template <u32 V>
DEV Share share_of(const Sizes& sizes) {
    u32 tile = blockIdx.y % sizes.tiles, column = threadIdx.x % sizes.columns;
    Share s;
    s.sample = blockIdx.x / sizes.groups;
    s.group = blockIdx.x % sizes.groups;
    s.channels = sizes.ca + sizes.cb;
    s.width = s.channels / sizes.groups;
    s.row = threadIdx.x / sizes.columns;
    s.rows = THREADS / sizes.columns;
    u32 within = (tile * sizes.columns + column) * V, first = blockIdx.y / sizes.tiles * HELD * s.rows;
    s.c = s.group * s.width + within;
    s.active = s.row < s.rows && within < s.width;
    s.pixel = first + s.row;
    s.end = s.active ? min_of(first + HELD * s.rows, sizes.pixels) : 0;
    s.count = count_of<V>(sizes, blockIdx.y);
    return s;
}

// The thread's channels of a tensor at pixel 0 of its sample, and the elements from a pixel to the next. With vectors of four,
// the stride is a multiple of four: all pixels are aligned as the first is.
template <typename T>
struct Source {
    T* at;
    u32 stride;
};

template <typename T>
DEV Source<T> source_of(T* x, T* skip, const Sizes& sizes, const Share& s) {
    if (s.c < sizes.ca) return Source<T>{x == nullptr ? x : x + (u64)s.sample * sizes.pixels * sizes.ca + s.c, sizes.ca};
    return Source<T>{skip == nullptr ? skip : skip + (u64)s.sample * sizes.pixels * sizes.cb + (s.c - sizes.ca), sizes.cb};
}

// k and l of the thread's channels.
template <typename T, u32 V>
DEV void affine_of(const f32* weight, const f32* bias, const T* scale_shift, const Share& s, f32 (&k)[V], f32 (&l)[V]) {
    f32 scale[V], shift[V];
#pragma unroll
    for (u32 j = 0; j < V; j++) k[j] = l[j] = scale[j] = shift[j] = 0.0f;
    if (!s.active) return;
    load_channels(weight + s.c, aligned4(weight + s.c), k);
    load_channels(bias + s.c, aligned4(bias + s.c), l);
    if (scale_shift == nullptr) return;
    const T* row = scale_shift + (u64)s.sample * 2 * s.channels + s.c;
    load_channels(row, aligned4(row), scale);
    load_channels(row + s.channels, aligned4(row), shift);
#pragma unroll
    for (u32 j = 0; j < V; j++) {
        k[j] *= 1.0f + scale[j];
        l[j] = fma_f32(l[j], 1.0f + scale[j], shift[j]);
    }
}

// The thread's share in registers, zeros where there is none.
template <typename T, u32 V>
DEV void hold(const Source<const T>& from, const Share& s, f32 (&v)[HELD][V]) {
    bool wide = aligned4(from.at);
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        u32 pixel = s.pixel + i * s.rows;
#pragma unroll
        for (u32 j = 0; j < V; j++) v[i][j] = 0.0f;
        if (pixel < s.end) load_channels(from.at + (u64)pixel * from.stride, wide, v[i]);
    }
}

// The block's mean, and its squares about it.
template <u32 V>
DEV void statistics(const f32 (&x)[HELD][V], const Share& s, f32& mean, f32& squares) {
    f32 sum = 0.0f;
    squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < HELD; i++)
#pragma unroll
        for (u32 j = 0; j < V; j++) sum += x[i][j];
    mean = block_sum(sum) / s.count;
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        bool held = s.pixel + i * s.rows < s.end;
#pragma unroll
        for (u32 j = 0; j < V; j++) {
            f32 d = held ? x[i][j] - mean : 0.0f;
            squares = fma_f32(d, d, squares);
        }
    }
    squares = block_sum(squares);
}

template <typename T, u32 V>
DEV void apply(T* y, const f32 (&x)[HELD][V], const Sizes& sizes, const Share& s, f32 mean, f32 rstd, const f32 (&k)[V],
               const f32 (&l)[V], u32 silu_follows) {
    T* to = y + (u64)s.sample * sizes.pixels * s.channels + s.c;
    bool wide = aligned4(to);
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        u32 pixel = s.pixel + i * s.rows;
        if (pixel >= s.end) continue;
        f32 v[V];
#pragma unroll
        for (u32 j = 0; j < V; j++) {
            v[j] = fma_f32((x[i][j] - mean) * rstd, k[j], l[j]);
            if (silu_follows != 0) v[j] = silu<T>(v[j]);
        }
        store_channels(to + (u64)pixel * s.channels, wide, v);
    }
}

// `partial` null: the block has the whole group. Else [samples, groups, parts, 2]: the parts' means and squares about them.
template <typename T, u32 V>
DEV void forward(T* y, f32* mean, f32* rstd, const f32* partial, const T* x, const T* skip, const f32* weight,
                 const f32* bias, const T* scale_shift, const Sizes& sizes, f32 eps, u32 silu_follows) {
    Share s = share_of<V>(sizes);
    f32 held[HELD][V], k[V], l[V], mu, squares, count = (f32)(sizes.pixels * s.width);
    hold(source_of(x, skip, sizes, s), s, held);
    affine_of(weight, bias, scale_shift, s, k, l);
    if (partial == nullptr) {
        statistics(held, s, mu, squares);
    } else {
        const f32* parts = partial + (u64)blockIdx.x * gridDim.y * 2;
        f32 sum = 0.0f;
        for (u32 part = threadIdx.x; part < gridDim.y; part += THREADS)
            sum = fma_f32(count_of<V>(sizes, part), parts[2 * part], sum);
        mu = block_sum(sum) / count;
        squares = 0.0f;
        for (u32 part = threadIdx.x; part < gridDim.y; part += THREADS) {
            f32 d = parts[2 * part] - mu;
            squares += fma_f32(count_of<V>(sizes, part) * d, d, parts[2 * part + 1]);
        }
        squares = block_sum(squares);
    }
    f32 r = 1.0f / sqrt_f32(squares / count + eps);
    if (threadIdx.x == 0 && blockIdx.y == 0) {
        mean[blockIdx.x] = mu;
        rstd[blockIdx.x] = r;
    }
    apply(y, held, sizes, s, mu, r, k, l, silu_follows);
}

template <typename T>
DEV void group_norm_silu_fwd(T* y, f32* mean, f32* rstd, const f32* partial, const T* x, const T* skip,
                             const f32* weight, const f32* bias, const T* scale_shift, u32 pixels, u32 ca, u32 cb,
                             u32 groups, u32 columns, u32 tiles, u32 vector, f32 eps, u32 silu_follows) {
    Sizes sizes{pixels, ca, cb, groups, columns, tiles};
    if (vector == 4)
        forward<T, 4>(y, mean, rstd, partial, x, skip, weight, bias, scale_shift, sizes, eps, silu_follows);
    else
        forward<T, 1>(y, mean, rstd, partial, x, skip, weight, bias, scale_shift, sizes, eps, silu_follows);
}

template <typename T, u32 V>
DEV void forward_partial(f32* partial, const T* x, const T* skip, const Sizes& sizes) {
    Share s = share_of<V>(sizes);
    f32 held[HELD][V], mu, squares;
    hold(source_of(x, skip, sizes, s), s, held);
    statistics(held, s, mu, squares);
    if (threadIdx.x > 0) return;
    f32* to = partial + ((u64)blockIdx.x * gridDim.y + blockIdx.y) * 2;
    to[0] = mu;
    to[1] = squares;
}

template <typename T>
DEV void group_norm_silu_fwd_partial(f32* partial, const T* x, const T* skip, u32 pixels, u32 ca, u32 cb, u32 groups,
                                     u32 columns, u32 tiles, u32 vector) {
    Sizes sizes{pixels, ca, cb, groups, columns, tiles};
    if (vector == 4)
        forward_partial<T, 4>(partial, x, skip, sizes);
    else
        forward_partial<T, 1>(partial, x, skip, sizes);
}

// n and dv of the thread's share.
template <typename T, u32 V>
DEV void hold_gradient(const T* dy, const Source<const T>& from, const Sizes& sizes, const Share& s, f32 mean, f32 rstd,
                       const f32 (&k)[V], const f32 (&l)[V], u32 silu_follows, f32 (&n)[HELD][V], f32 (&dv)[HELD][V]) {
    hold(from, s, n);
    hold(Source<const T>{dy + (u64)s.sample * sizes.pixels * s.channels + s.c, s.channels}, s, dv);
#pragma unroll
    for (u32 i = 0; i < HELD; i++)
#pragma unroll
        for (u32 j = 0; j < V; j++) {
            n[i][j] = (n[i][j] - mean) * rstd;
            if (silu_follows != 0) dv[i][j] *= silu_derivative<T>(fma_f32(n[i][j], k[j], l[j]));
        }
}

// S0 and S1 of the block's pixels, in the threads of row 0: by thread, then by halving the rows.
template <u32 V>
DEV void column_sums(const f32 (&n)[HELD][V], const f32 (&dv)[HELD][V], const Sizes& sizes, const Share& s,
                     f32 (&plain)[V], f32 (&with_n)[V]) {
    SHARED(f32, column_partial, [2 * V][THREADS]);
#pragma unroll
    for (u32 j = 0; j < V; j++) {
        plain[j] = with_n[j] = 0.0f;
#pragma unroll
        for (u32 i = 0; i < HELD; i++) {
            plain[j] += dv[i][j];
            with_n[j] = fma_f32(dv[i][j], n[i][j], with_n[j]);
        }
        column_partial[2 * j][threadIdx.x] = plain[j];
        column_partial[2 * j + 1][threadIdx.x] = with_n[j];
    }
    for (u32 rows = s.rows; rows > 1;) {
        u32 half = (rows + 1) / 2;
        __syncthreads();
        if (s.row + half < rows) {
            u32 other = threadIdx.x + half * sizes.columns;
#pragma unroll
            for (u32 j = 0; j < V; j++) {
                column_partial[2 * j][threadIdx.x] = plain[j] += column_partial[2 * j][other];
                column_partial[2 * j + 1][threadIdx.x] = with_n[j] += column_partial[2 * j + 1][other];
            }
        }
        rows = half;
    }
}

// dx and dskip of what is held; `totals` are sum(k S0) and sum(k S1) over the group.
template <typename T, u32 V>
DEV void input_gradient(T* dx, T* dskip, const f32 (&n)[HELD][V], const f32 (&dv)[HELD][V], const Sizes& sizes,
                        const Share& s, f32 rstd, const f32 (&k)[V], const f32 (&totals)[2], u32 accumulate_x,
                        u32 accumulate_skip) {
    Source<T> to = source_of(dx, dskip, sizes, s);
    if (to.at == nullptr) return;
    bool wide = aligned4(to.at), add = (s.c < sizes.ca ? accumulate_x : accumulate_skip) != 0;
    f32 count = (f32)(sizes.pixels * s.width), mean_dn = totals[0] / count, mean_dn_n = totals[1] / count;
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        u32 pixel = s.pixel + i * s.rows;
        if (pixel >= s.end) continue;
        T* at = to.at + (u64)pixel * to.stride;
        f32 g[V], old[V];
#pragma unroll
        for (u32 j = 0; j < V; j++) g[j] = rstd * (fma_f32(k[j], dv[i][j], -mean_dn) - n[i][j] * mean_dn_n);
        if (add) {
            load_channels(at, wide, old);
#pragma unroll
            for (u32 j = 0; j < V; j++) g[j] += old[j];
        }
        store_channels(at, wide, g);
    }
}

// The block has the whole group.
template <typename T, u32 V>
DEV void backward(T* dx, T* dskip, f32* sums, const T* dy, const T* x, const T* skip, const f32* mean, const f32* rstd,
                  const f32* weight, const f32* bias, const T* scale_shift, const Sizes& sizes, u32 silu_follows,
                  u32 accumulate_x, u32 accumulate_skip) {
    Share s = share_of<V>(sizes);
    f32 n[HELD][V], dv[HELD][V], k[V], l[V], plain[V], with_n[V], r = rstd[blockIdx.x], totals[2] = {0.0f, 0.0f};
    affine_of(weight, bias, scale_shift, s, k, l);
    hold_gradient(dy, source_of(x, skip, sizes, s), sizes, s, mean[blockIdx.x], r, k, l, silu_follows, n, dv);
    column_sums(n, dv, sizes, s, plain, with_n);
    if (s.row == 0 && s.active) {
        f32* to = sums + (u64)s.sample * 2 * s.channels + s.c;
#pragma unroll
        for (u32 j = 0; j < V; j++) {
            to[j] = plain[j];
            to[s.channels + j] = with_n[j];
            totals[0] = fma_f32(k[j], plain[j], totals[0]);
            totals[1] = fma_f32(k[j], with_n[j], totals[1]);
        }
    }
    block_sum(totals);
    input_gradient(dx, dskip, n, dv, sizes, s, r, k, totals, accumulate_x, accumulate_skip);
}

template <typename T>
DEV void group_norm_silu_bwd(T* dx, T* dskip, f32* sums, const T* dy, const T* x, const T* skip, const f32* mean,
                             const f32* rstd, const f32* weight, const f32* bias, const T* scale_shift, u32 pixels,
                             u32 ca, u32 cb, u32 groups, u32 columns, u32 tiles, u32 vector, u32 silu_follows,
                             u32 accumulate_x, u32 accumulate_skip) {
    Sizes sizes{pixels, ca, cb, groups, columns, tiles};
    if (vector == 4)
        backward<T, 4>(dx, dskip, sums, dy, x, skip, mean, rstd, weight, bias, scale_shift, sizes, silu_follows,
                       accumulate_x, accumulate_skip);
    else
        backward<T, 1>(dx, dskip, sums, dy, x, skip, mean, rstd, weight, bias, scale_shift, sizes, silu_follows,
                       accumulate_x, accumulate_skip);
}

// partial [samples, chunks, 2, channels]: S0 and S1 of each chunk of pixels.
template <typename T, u32 V>
DEV void backward_partial(f32* partial, const T* dy, const T* x, const T* skip, const f32* mean, const f32* rstd,
                          const f32* weight, const f32* bias, const T* scale_shift, const Sizes& sizes,
                          u32 silu_follows) {
    Share s = share_of<V>(sizes);
    f32 n[HELD][V], dv[HELD][V], k[V], l[V], plain[V], with_n[V];
    affine_of(weight, bias, scale_shift, s, k, l);
    hold_gradient(dy, source_of(x, skip, sizes, s), sizes, s, mean[blockIdx.x], rstd[blockIdx.x], k, l, silu_follows, n, dv);
    column_sums(n, dv, sizes, s, plain, with_n);
    if (s.row > 0 || !s.active) return;
    u32 chunks = gridDim.y / sizes.tiles, chunk = blockIdx.y / sizes.tiles;
    f32* to = partial + ((u64)s.sample * chunks + chunk) * 2 * s.channels + s.c;
#pragma unroll
    for (u32 j = 0; j < V; j++) {
        to[j] = plain[j];
        to[s.channels + j] = with_n[j];
    }
}

template <typename T>
DEV void group_norm_silu_bwd_partial(f32* partial, const T* dy, const T* x, const T* skip, const f32* mean,
                                     const f32* rstd, const f32* weight, const f32* bias, const T* scale_shift,
                                     u32 pixels, u32 ca, u32 cb, u32 groups, u32 columns, u32 tiles, u32 vector,
                                     u32 silu_follows) {
    Sizes sizes{pixels, ca, cb, groups, columns, tiles};
    if (vector == 4)
        backward_partial<T, 4>(partial, dy, x, skip, mean, rstd, weight, bias, scale_shift, sizes, silu_follows);
    else
        backward_partial<T, 1>(partial, dy, x, skip, mean, rstd, weight, bias, scale_shift, sizes, silu_follows);
}

// The chunks' sums, in order.
DEV void group_norm_silu_sums(f32* sums, const f32* partial, u32 channels, u32 chunks) {
    u32 c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    const f32* from = partial + (u64)blockIdx.x * chunks * 2 * channels + c;
    f32 plain = 0.0f, with_n = 0.0f;
#pragma unroll 4
    for (u32 chunk = 0; chunk < chunks; chunk++) {
        plain += from[(u64)chunk * 2 * channels];
        with_n += from[(u64)chunk * 2 * channels + channels];
    }
    f32* to = sums + (u64)blockIdx.x * 2 * channels + c;
    to[0] = plain;
    to[channels] = with_n;
}

template <typename T, u32 V>
DEV void backward_input(T* dx, T* dskip, const f32* sums, const T* dy, const T* x, const T* skip, const f32* mean,
                        const f32* rstd, const f32* weight, const f32* bias, const T* scale_shift, const Sizes& sizes,
                        u32 silu_follows, u32 accumulate_x, u32 accumulate_skip) {
    Share s = share_of<V>(sizes);
    f32 n[HELD][V], dv[HELD][V], k[V], l[V], r = rstd[blockIdx.x], totals[2] = {0.0f, 0.0f};
    const f32* of = sums + (u64)s.sample * 2 * s.channels;
    for (u32 c = s.group * s.width + threadIdx.x; c < (s.group + 1) * s.width; c += THREADS) {
        f32 factor = weight[c];
        if (scale_shift != nullptr) factor *= 1.0f + to_f32(scale_shift[(u64)s.sample * 2 * s.channels + c]);
        totals[0] = fma_f32(factor, of[c], totals[0]);
        totals[1] = fma_f32(factor, of[s.channels + c], totals[1]);
    }
    block_sum(totals);
    affine_of(weight, bias, scale_shift, s, k, l);
    hold_gradient(dy, source_of(x, skip, sizes, s), sizes, s, mean[blockIdx.x], r, k, l, silu_follows, n, dv);
    input_gradient(dx, dskip, n, dv, sizes, s, r, k, totals, accumulate_x, accumulate_skip);
}

template <typename T>
DEV void group_norm_silu_bwd_input(T* dx, T* dskip, const f32* sums, const T* dy, const T* x, const T* skip,
                                   const f32* mean, const f32* rstd, const f32* weight, const f32* bias,
                                   const T* scale_shift, u32 pixels, u32 ca, u32 cb, u32 groups, u32 columns, u32 tiles,
                                   u32 vector, u32 silu_follows, u32 accumulate_x, u32 accumulate_skip) {
    Sizes sizes{pixels, ca, cb, groups, columns, tiles};
    if (vector == 4)
        backward_input<T, 4>(dx, dskip, sums, dy, x, skip, mean, rstd, weight, bias, scale_shift, sizes, silu_follows,
                             accumulate_x, accumulate_skip);
    else
        backward_input<T, 1>(dx, dskip, sums, dy, x, skip, mean, rstd, weight, bias, scale_shift, sizes, silu_follows,
                             accumulate_x, accumulate_skip);
}

// A block takes 32 channels: warp w samples w, w + 8, ..; then the first two warps add the eight sums in order.
template <typename T>
DEV void group_norm_silu_bwd_parameters(f32* dweight, f32* dbias, T* dscale_shift, const f32* sums, const f32* weight,
                                        const f32* bias, const T* scale_shift, u32 samples, u32 channels,
                                        u32 accumulate_weight, u32 accumulate_bias, u32 accumulate_scale_shift) {
    constexpr u32 SLICES = THREADS / WARP;
    SHARED(f32, tile, [2][SLICES][WARP]);
    u32 lane = threadIdx.x % WARP, slice = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    f32 totals[2] = {0.0f, 0.0f};
    if (c < channels) {
        for (u32 sample = slice; sample < samples; sample += SLICES) {
            u64 at = (u64)sample * 2 * channels + c;
            f32 plain = sums[at], with_n = sums[at + channels], scale = 1.0f;
            if (scale_shift != nullptr) scale += to_f32(scale_shift[at]);
            totals[0] = fma_f32(scale, with_n, totals[0]);
            totals[1] = fma_f32(scale, plain, totals[1]);
            if (dscale_shift == nullptr) continue;
            f32 dscale = fma_f32(weight[c], with_n, bias[c] * plain), dshift = plain;
            if (accumulate_scale_shift != 0) {
                dscale += to_f32(dscale_shift[at]);
                dshift += to_f32(dscale_shift[at + channels]);
            }
            store_f32(dscale_shift + at, dscale);
            store_f32(dscale_shift + at + channels, dshift);
        }
    }
    tile[0][slice][lane] = totals[0];
    tile[1][slice][lane] = totals[1];
    __syncthreads();
    f32* to = slice == 0 ? dweight : dbias;
    if (slice > 1 || c >= channels || to == nullptr) return;
    f32 total = 0.0f;
#pragma unroll
    for (u32 i = 0; i < SLICES; i++) total += tile[slice][i][lane];
    bool add = (slice == 0 ? accumulate_weight : accumulate_bias) != 0;
    to[c] = add ? to[c] + total : total;
}

extern "C" __global__ void __launch_bounds__(256) group_norm_silu_fwd_f32(
    f32* __restrict__ y, f32* __restrict__ mean, f32* __restrict__ rstd, const f32* __restrict__ x,
    const f32* __restrict__ skip, const f32* __restrict__ weight, const f32* __restrict__ bias,
    const f32* __restrict__ scale_shift, u32 pixels, u32 ca, u32 cb, u32 groups, u32 columns, u32 tiles, u32 vector,
    f32 eps, u32 silu) {
    group_norm_silu_fwd<f32>(y, mean, rstd, nullptr, x, skip, weight, bias, scale_shift, pixels, ca, cb, groups,
        columns, tiles, vector, eps, silu);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_fwd_bf16(
    bf16* __restrict__ y, f32* __restrict__ mean, f32* __restrict__ rstd, const bf16* __restrict__ x,
    const bf16* __restrict__ skip, const f32* __restrict__ weight, const f32* __restrict__ bias,
    const bf16* __restrict__ scale_shift, u32 pixels, u32 ca, u32 cb, u32 groups, u32 columns, u32 tiles, u32 vector,
    f32 eps, u32 silu) {
    group_norm_silu_fwd<bf16>(y, mean, rstd, nullptr, x, skip, weight, bias, scale_shift, pixels, ca, cb, groups,
        columns, tiles, vector, eps, silu);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_fwd_partial_f32(
    f32* __restrict__ partial, const f32* __restrict__ x, const f32* __restrict__ skip, u32 pixels, u32 ca, u32 cb,
    u32 groups, u32 columns, u32 tiles, u32 vector) {
    group_norm_silu_fwd_partial<f32>(partial, x, skip, pixels, ca, cb, groups, columns, tiles, vector);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_fwd_partial_bf16(
    f32* __restrict__ partial, const bf16* __restrict__ x, const bf16* __restrict__ skip, u32 pixels, u32 ca, u32 cb,
    u32 groups, u32 columns, u32 tiles, u32 vector) {
    group_norm_silu_fwd_partial<bf16>(partial, x, skip, pixels, ca, cb, groups, columns, tiles, vector);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_fwd_apply_f32(
    f32* __restrict__ y, f32* __restrict__ mean, f32* __restrict__ rstd, const f32* __restrict__ partial,
    const f32* __restrict__ x, const f32* __restrict__ skip, const f32* __restrict__ weight,
    const f32* __restrict__ bias, const f32* __restrict__ scale_shift, u32 pixels, u32 ca, u32 cb, u32 groups,
    u32 columns, u32 tiles, u32 vector, f32 eps, u32 silu) {
    group_norm_silu_fwd<f32>(y, mean, rstd, partial, x, skip, weight, bias, scale_shift, pixels, ca, cb, groups,
        columns, tiles, vector, eps, silu);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_fwd_apply_bf16(
    bf16* __restrict__ y, f32* __restrict__ mean, f32* __restrict__ rstd, const f32* __restrict__ partial,
    const bf16* __restrict__ x, const bf16* __restrict__ skip, const f32* __restrict__ weight,
    const f32* __restrict__ bias, const bf16* __restrict__ scale_shift, u32 pixels, u32 ca, u32 cb, u32 groups,
    u32 columns, u32 tiles, u32 vector, f32 eps, u32 silu) {
    group_norm_silu_fwd<bf16>(y, mean, rstd, partial, x, skip, weight, bias, scale_shift, pixels, ca, cb, groups,
        columns, tiles, vector, eps, silu);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_bwd_f32(
    f32* __restrict__ dx, f32* __restrict__ dskip, f32* __restrict__ sums, const f32* __restrict__ dy,
    const f32* __restrict__ x, const f32* __restrict__ skip, const f32* __restrict__ mean, const f32* __restrict__ rstd,
    const f32* __restrict__ weight, const f32* __restrict__ bias, const f32* __restrict__ scale_shift, u32 pixels,
    u32 ca, u32 cb, u32 groups, u32 columns, u32 tiles, u32 vector, u32 silu, u32 accumulate_x, u32 accumulate_skip) {
    group_norm_silu_bwd<f32>(dx, dskip, sums, dy, x, skip, mean, rstd, weight, bias, scale_shift, pixels, ca, cb,
        groups, columns, tiles, vector, silu, accumulate_x, accumulate_skip);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_bwd_bf16(
    bf16* __restrict__ dx, bf16* __restrict__ dskip, f32* __restrict__ sums, const bf16* __restrict__ dy,
    const bf16* __restrict__ x, const bf16* __restrict__ skip, const f32* __restrict__ mean,
    const f32* __restrict__ rstd, const f32* __restrict__ weight, const f32* __restrict__ bias,
    const bf16* __restrict__ scale_shift, u32 pixels, u32 ca, u32 cb, u32 groups, u32 columns, u32 tiles, u32 vector,
    u32 silu, u32 accumulate_x, u32 accumulate_skip) {
    group_norm_silu_bwd<bf16>(dx, dskip, sums, dy, x, skip, mean, rstd, weight, bias, scale_shift, pixels, ca, cb,
        groups, columns, tiles, vector, silu, accumulate_x, accumulate_skip);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_bwd_partial_f32(
    f32* __restrict__ partial, const f32* __restrict__ dy, const f32* __restrict__ x, const f32* __restrict__ skip,
    const f32* __restrict__ mean, const f32* __restrict__ rstd, const f32* __restrict__ weight,
    const f32* __restrict__ bias, const f32* __restrict__ scale_shift, u32 pixels, u32 ca, u32 cb, u32 groups,
    u32 columns, u32 tiles, u32 vector, u32 silu) {
    group_norm_silu_bwd_partial<f32>(partial, dy, x, skip, mean, rstd, weight, bias, scale_shift, pixels, ca, cb,
        groups, columns, tiles, vector, silu);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_bwd_partial_bf16(
    f32* __restrict__ partial, const bf16* __restrict__ dy, const bf16* __restrict__ x, const bf16* __restrict__ skip,
    const f32* __restrict__ mean, const f32* __restrict__ rstd, const f32* __restrict__ weight,
    const f32* __restrict__ bias, const bf16* __restrict__ scale_shift, u32 pixels, u32 ca, u32 cb, u32 groups,
    u32 columns, u32 tiles, u32 vector, u32 silu) {
    group_norm_silu_bwd_partial<bf16>(partial, dy, x, skip, mean, rstd, weight, bias, scale_shift, pixels, ca, cb,
        groups, columns, tiles, vector, silu);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_bwd_input_f32(
    f32* __restrict__ dx, f32* __restrict__ dskip, const f32* __restrict__ sums, const f32* __restrict__ dy,
    const f32* __restrict__ x, const f32* __restrict__ skip, const f32* __restrict__ mean, const f32* __restrict__ rstd,
    const f32* __restrict__ weight, const f32* __restrict__ bias, const f32* __restrict__ scale_shift, u32 pixels,
    u32 ca, u32 cb, u32 groups, u32 columns, u32 tiles, u32 vector, u32 silu, u32 accumulate_x, u32 accumulate_skip) {
    group_norm_silu_bwd_input<f32>(dx, dskip, sums, dy, x, skip, mean, rstd, weight, bias, scale_shift, pixels, ca, cb,
        groups, columns, tiles, vector, silu, accumulate_x, accumulate_skip);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_bwd_input_bf16(
    bf16* __restrict__ dx, bf16* __restrict__ dskip, const f32* __restrict__ sums, const bf16* __restrict__ dy,
    const bf16* __restrict__ x, const bf16* __restrict__ skip, const f32* __restrict__ mean,
    const f32* __restrict__ rstd, const f32* __restrict__ weight, const f32* __restrict__ bias,
    const bf16* __restrict__ scale_shift, u32 pixels, u32 ca, u32 cb, u32 groups, u32 columns, u32 tiles, u32 vector,
    u32 silu, u32 accumulate_x, u32 accumulate_skip) {
    group_norm_silu_bwd_input<bf16>(dx, dskip, sums, dy, x, skip, mean, rstd, weight, bias, scale_shift, pixels, ca, cb,
        groups, columns, tiles, vector, silu, accumulate_x, accumulate_skip);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_bwd_parameters_f32(
    f32* __restrict__ dweight, f32* __restrict__ dbias, f32* __restrict__ dscale_shift, const f32* __restrict__ sums,
    const f32* __restrict__ weight, const f32* __restrict__ bias, const f32* __restrict__ scale_shift, u32 samples,
    u32 channels, u32 accumulate_weight, u32 accumulate_bias, u32 accumulate_scale_shift) {
    group_norm_silu_bwd_parameters<f32>(dweight, dbias, dscale_shift, sums, weight, bias, scale_shift, samples,
        channels, accumulate_weight, accumulate_bias, accumulate_scale_shift);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_bwd_parameters_bf16(
    f32* __restrict__ dweight, f32* __restrict__ dbias, bf16* __restrict__ dscale_shift, const f32* __restrict__ sums,
    const f32* __restrict__ weight, const f32* __restrict__ bias, const bf16* __restrict__ scale_shift, u32 samples,
    u32 channels, u32 accumulate_weight, u32 accumulate_bias, u32 accumulate_scale_shift) {
    group_norm_silu_bwd_parameters<bf16>(dweight, dbias, dscale_shift, sums, weight, bias, scale_shift, samples,
        channels, accumulate_weight, accumulate_bias, accumulate_scale_shift);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_silu_bwd_sums(
    f32* __restrict__ sums, const f32* __restrict__ partial, u32 channels, u32 chunks) {
    group_norm_silu_sums(sums, partial, channels, chunks);
}
