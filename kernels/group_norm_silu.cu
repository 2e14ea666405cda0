// Group norm (Wu and He 2018, arXiv 1803.08494), then scale and shift per sample, then SiLU, then dropout, of one tensor
// [samples, pixels, ca] or of two side by side: x [samples, pixels, ca] and skip [samples, pixels, cb]; y [samples, pixels,
// ca + cb]. With mean and variance of a sample's group over its pixels and channels, about the mean:
//
//   n = (x - mean) * rstd, rstd = 1 / sqrt(variance + eps)
//   v = n * k + l,  k = weight (1 + scale), l = bias (1 + scale) + shift         weight, bias [ca + cb], f32 masters
//   y = v sigmoid(v) where silu != 0, else v; times keep_scale or zero where control is given
//
// scale_shift [samples, 2 (ca + cb)], scales before shifts, may be null, and skip too (cb = 0). Backward, with dv = dy dy/dv, N the
// elements of a group, and S0 = sum(dv), S1 = sum(dv n) over a sample's pixels, channel by channel (`sums` [samples, 2, channels]):
//
//   dx      = rstd * (k dv - sum(k S0) / N - n sum(k S1) / N)                    sums over the group's channels
//   dweight = sum((1 + scale) S1), dbias = sum((1 + scale) S0)                   over the samples
//   dscale  = weight S1 + bias S0, dshift = S0
//
// Null gradients are not wanted; `accumulate_..` != 0 adds to a gradient instead of writing it. Dropout is that of dropout.cu on y, of
// `pixels * channels` elements an item: an element is kept where Philox's bits are at least `least`. Backward draws them again.
//
// Floor: forward reads the sources and writes y, backward reads the sources and dy and writes dx and dskip, each once.
//
// A block of 256 threads takes a strip: pixels of one sample by `strip` neighbouring channels, whole groups of whole 32-byte sectors (one
// group of 32 channels, four of 4, four of 12), 16 bytes an access, and holds it in registers as it is stored, HELD vectors a thread: 32
// KiB. Where that is all pixels (32x32 of 16 channels in bf16), one kernel does it all at the floor; else each block has a chunk of pixels, `_partial`
// kernels reduce the chunks first, and the sources are read once more, from L2 where it holds them. A group of more than 256
// channels is cut into `tiles` of `strip` channels: part = chunk * tiles + tile. The strips of a sample are neighbours in the
// grid. A vector is 16 bytes, or one channel where ca and cb are not whole vectors.
//
// Sums run channel by channel over a thread's pixels, then over the rows of threads, then over a group's channels: an order that follows
// from pixels, channels and type alone. Squares are about the mean; chunks' squares about their own means are put together with those of the means.
//
// Launches, 256 threads: grid [samples * strips, parts] for _fwd, _fwd_partial (parts > 1), _bwd and _bwd_partial (parts > 1);
// ceil(channels / 32) for _bwd_parameters. over_.. is 65536 / .., rounded up: (i * over) >> 16 is the quotient for i <= 256.
#include "common/activation.cuh"
#include "common/control.cuh"
#include "common/entry.cuh"
#include "common/philox.cuh"
#include "common/strip.cuh"
#include "common/vec.cuh"

// k and l of channel c.
template <typename T>
DEV void affine_of(const f32* weight, const f32* bias, const T* scale_shift, u32 sample, u32 channels, u32 c, f32& k, f32& l) {
    k = weight[c];
    l = bias[c];
    if (scale_shift == nullptr) return;
    const T* row = scale_shift + (u64)sample * 2 * channels + c;
    f32 scale = 1.0f + to_f32(row[0]);
    k *= scale;
    l = fma_f32(l, scale, to_f32(row[channels]));
}

// Dropout of y's elements; `control` null: none.
struct Dropped {
    const u32* control;
    u32 least;
    f32 scale;
    u64 seed;
    u32 purpose;
};
// Philox's bits of V neighbouring elements from `element` on, a multiple of four or V = 1.
template <u32 V>
DEV void draw(const Dropped& dropped, u32 sample, u32 element, u32 (&bits)[V]) {
    u32 item = dropped.control[CONTROL_FIRST_ITEM] + sample, step = dropped.control[CONTROL_STEP];
    UNROLL for (u32 j = 0; j < V; j += 4) {
        U32x4 drawn = philox_bits4(dropped.seed, element / 4 + j / 4, item, step, dropped.purpose);
        u32 of[4] = {drawn.x, drawn.y, drawn.z, drawn.w};
        if constexpr (V == 1) {
            u32 place = element % 4;
            bits[0] = place < 2 ? (place == 0 ? of[0] : of[1]) : (place == 2 ? of[2] : of[3]);
        } else {
            UNROLL for (u32 i = 0; i < 4; i++) bits[j + i] = of[i];
        }
    }
}
template <u32 V>
DEV void drop(u32 (&words)[WORDS<V>], const u32 (&bits)[V], u32 least) {
    UNROLL for (u32 i = 0; i < WORDS<V>; i++) {
        if constexpr (V == 8) words[i] &= (bits[2 * i] >= least ? 0xffffu : 0u) | (bits[2 * i + 1] >= least ? 0xffff0000u : 0u);
        else words[i] = bits[i] >= least ? words[i] : 0;
    }
}

// The strip's means in memory, and in thread t < channels the squares about them of its channel t.
template <u32 V>
DEV f32 statistics(const u32 (&held)[HELD][WORDS<V>], const Memory& m, const Sizes& sizes, const Share& s) {
    f32 v[PIECE<V>], mean[PIECE<V>], sums[PIECE<V>], total[1];
    UNROLL for (u32 piece = 0; piece < PIECES<V>; piece++) {
        UNROLL for (u32 j = 0; j < PIECE<V>; j++) sums[j] = 0.0f;
        UNROLL for (u32 i = 0; i < HELD; i++) {
            values_of<V>(held[i], piece, v);
            UNROLL for (u32 j = 0; j < PIECE<V>; j++) sums[j] += v[j];
        }
        put_sums<V>(m, 0, piece, sums);
    }
    sum_rows<V>(m, sizes, s, total);
    if (threadIdx.x < s.channels) m.channel[FIRST_SUM][threadIdx.x] = total[0];
    __syncthreads();
    if (threadIdx.x < s.channels)
        m.channel[MEAN][threadIdx.x] = sum_group(m.channel[FIRST_SUM] + group_first(sizes), s.width) / s.count;
    __syncthreads();
    UNROLL for (u32 piece = 0; piece < PIECES<V>; piece++) {
        channels_of<V>(m.channel[MEAN], s, piece, mean);
        UNROLL for (u32 j = 0; j < PIECE<V>; j++) sums[j] = 0.0f;
        UNROLL for (u32 i = 0; i < HELD; i++) {
            if (s.pixel + i * s.rows >= s.end) break;
            values_of<V>(held[i], piece, v);
            UNROLL for (u32 j = 0; j < PIECE<V>; j++) {
                f32 d = v[j] - mean[j];
                sums[j] = fma_f32(d, d, sums[j]);
            }
        }
        put_sums<V>(m, 0, piece, sums);
    }
    sum_rows<V>(m, sizes, s, total);
    return total[0];
}

// y of what is held, in its place.
template <typename T, u32 V>
DEV void apply(T* y, u32 (&held)[HELD][WORDS<V>], const Memory& m, const Sizes& sizes, const Share& s, const Dropped& dropped,
               u32 silu_follows) {
    bool drops = dropped.control != nullptr;
    UNROLL for (u32 piece = 0; piece < PIECES<V>; piece++) {
        f32 mean[PIECE<V>], factor[PIECE<V>], offset[PIECE<V>];
        channels_of<V>(m.channel[MEAN], s, piece, mean);
        channels_of<V>(m.channel[FACTOR], s, piece, factor);
        channels_of<V>(m.channel[OFFSET], s, piece, offset);
        UNROLL for (u32 i = 0; i < HELD; i++) {
            if (s.pixel + i * s.rows >= s.end) break;
            f32 v[PIECE<V>];
            values_of<V>(held[i], piece, v);
            UNROLL for (u32 j = 0; j < PIECE<V>; j++) {
                v[j] = fma_f32(v[j] - mean[j], factor[j], offset[j]);
                if (silu_follows != 0) v[j] = silu<T>(v[j]);
                if (drops) v[j] *= dropped.scale;
            }
            put_values<V>(held[i], piece, v);
        }
    }
    Source<T> to = source_of(y, sizes, s);
    UNROLL for (u32 i = 0; i < HELD; i++) {
        u32 pixel = s.pixel + i * s.rows;
        if (pixel >= s.end) break;
        if (drops) {
            u32 bits[V];
            draw(dropped, s.sample, pixel * (sizes.ca + sizes.cb) + s.first + s.within, bits);
            drop<V>(held[i], bits, dropped.least);
        }
        write(to.at + (u64)(i * to.step), to.wide, held[i]);
    }
}

// Over a group's parts [parts, 2], their means times their elements; or `squares`: theirs, and those of their means about `center`.
DEV f32 sum_parts_of(const f32* part, const Sizes& sizes, bool squares, f32 center) {
    u32 chunk = chunk_of(sizes);
    f32 sum = 0.0f;
    for (u32 start = 0; start < sizes.pixels; start += chunk) {
        u32 pixels = min_of(chunk, sizes.pixels - start);
        for (u32 tile = 0; tile < sizes.tiles; tile++, part += 2) {
            f32 count = (f32)(pixels * min_of(sizes.strip, sizes.width - tile * sizes.strip)), d = part[0] - center;
            sum += squares ? fma_f32(count * d, d, part[1]) : count * part[0];
        }
    }
    return sum;
}

// `partial` null: the block has whole groups. Else [samples, groups, parts, 2]: the parts' means and squares about them.
template <typename T, u32 V>
DEV void forward(T* y, f32* mean, f32* rstd, const f32* partial, const T* x, const T* skip, const f32* weight, const f32* bias,
                 const T* scale_shift, const Sizes& sizes, const Dropped& dropped, f32 eps, u32 silu_follows) {
    Share s = share_of<V>(sizes);
    Memory m = memory();
    u32 held[HELD][WORDS<V>], t = threadIdx.x;
    hold(source_of(x, skip, sizes, s), s, held);
    f32 k = 0.0f, l = 0.0f, squares = 0.0f, count = (f32)(sizes.pixels * sizes.width);
    if (t < s.channels) affine_of(weight, bias, scale_shift, s.sample, sizes.ca + sizes.cb, s.first + t, k, l);
    if (partial == nullptr) {
        squares = statistics<V>(held, m, sizes, s);
        if (t < s.channels) m.channel[FIRST_SUM][t] = squares;
        __syncthreads();
    }
    if (t < s.channels) {
        u32 first = group_first(sizes), of = s.sample * sizes.groups + s.group + (sizes.tiles > 1 ? 0 : t * sizes.over_width >> 16);
        f32 mu, sum;
        if (partial == nullptr) {
            mu = m.channel[MEAN][t];
            sum = sum_group(m.channel[FIRST_SUM] + first, s.width);
        } else {
            const f32* parts = partial + (u64)of * gridDim.y * 2;
            mu = sum_parts_of(parts, sizes, false, 0.0f) / count;
            sum = sum_parts_of(parts, sizes, true, mu);
            m.channel[MEAN][t] = mu;
        }
        f32 r = 1.0f / sqrt_f32(sum / count + eps);
        m.channel[FACTOR][t] = k * r;
        m.channel[OFFSET][t] = l;
        if (t == first && blockIdx.y == 0) {
            mean[of] = mu;
            rstd[of] = r;
        }
    }
    __syncthreads();
    apply<T, V>(y, held, m, sizes, s, dropped, silu_follows);
}

template <typename T, u32 V>
DEV void forward_partial(f32* partial, const T* x, const T* skip, const Sizes& sizes) {
    Share s = share_of<V>(sizes);
    Memory m = memory();
    u32 held[HELD][WORDS<V>];
    hold(source_of(x, skip, sizes, s), s, held);
    f32 squares = statistics<V>(held, m, sizes, s);
    if (threadIdx.x < s.channels) m.channel[FIRST_SUM][threadIdx.x] = squares;
    __syncthreads();
    u32 first = group_first(sizes), group = s.group + (sizes.tiles > 1 ? 0 : threadIdx.x * sizes.over_width >> 16);
    if (threadIdx.x >= s.channels || threadIdx.x != first) return;
    f32* to = partial + ((u64)(s.sample * sizes.groups + group) * gridDim.y + blockIdx.y) * 2;
    to[0] = m.channel[MEAN][first];
    to[1] = sum_group(m.channel[FIRST_SUM] + first, s.width);
}

// The operands of backward.
template <typename T>
struct Saved {
    const T* dy;
    const T* x;
    const T* skip;
    const f32* mean;
    const f32* rstd;
    const f32* weight;
    const f32* bias;
    const T* scale_shift;
};

// The thread's share of x and of dy, without what was dropped, and by channel of the strip mean, rstd, k rstd and l.
template <typename T, u32 V>
DEV void hold_gradient(const Saved<T>& saved, const Memory& m, const Sizes& sizes, const Share& s, const Dropped& dropped,
                       u32 (&x)[HELD][WORDS<V>], u32 (&dy)[HELD][WORDS<V>]) {
    hold(source_of(saved.x, saved.skip, sizes, s), s, x);
    hold(source_of(saved.dy, sizes, s), s, dy);
    u32 t = threadIdx.x, channels = sizes.ca + sizes.cb;
    if (t < s.channels) {
        f32 k, l;
        affine_of(saved.weight, saved.bias, saved.scale_shift, s.sample, channels, s.first + t, k, l);
        u32 of = s.sample * sizes.groups + s.group + (sizes.tiles > 1 ? 0 : t * sizes.over_width >> 16);
        f32 r = saved.rstd[of];
        m.channel[MEAN][t] = saved.mean[of];
        m.channel[RSTD][t] = r;
        m.channel[FACTOR][t] = k * r;
        m.channel[OFFSET][t] = l;
    }
    if (dropped.control != nullptr) {
        UNROLL for (u32 i = 0; i < HELD; i++) {
            u32 pixel = s.pixel + i * s.rows, bits[V];
            if (pixel >= s.end) break;
            draw(dropped, s.sample, pixel * channels + s.first + s.within, bits);
            drop<V>(dy[i], bits, dropped.least);
        }
    }
    __syncthreads();
}

// Values by channel of a thread's piece.
template <u32 V>
struct Known {
    f32 mean[PIECE<V>], factor[PIECE<V>], offset[PIECE<V>];
};
template <u32 V>
DEV void know(const Memory& m, const Share& s, u32 piece, Known<V>& known) {
    channels_of<V>(m.channel[MEAN], s, piece, known.mean);
    channels_of<V>(m.channel[FACTOR], s, piece, known.factor);
    channels_of<V>(m.channel[OFFSET], s, piece, known.offset);
}

// x - mean and dv of a pixel.
template <typename T, u32 V, bool SILU>
DEV void gradient_of(const u32 (&x)[WORDS<V>], const u32 (&dy)[WORDS<V>], u32 piece, const Known<V>& known, f32 (&centered)[PIECE<V>],
                     f32 (&dv)[PIECE<V>]) {
    values_of<V>(x, piece, centered);
    values_of<V>(dy, piece, dv);
    UNROLL for (u32 j = 0; j < PIECE<V>; j++) {
        centered[j] -= known.mean[j];
        if (SILU) dv[j] *= silu_derivative<T>(fma_f32(centered[j], known.factor[j], known.offset[j]));
    }
}

// S0 and S1 of the block's pixels, of channel `threadIdx.x` of the strip.
template <typename T, u32 V, bool SILU>
DEV void channel_sums(const u32 (&x)[HELD][WORDS<V>], const u32 (&dy)[HELD][WORDS<V>], const Memory& m, const Sizes& sizes, const Share& s,
                      const Dropped& dropped, f32 (&totals)[2]) {
    UNROLL for (u32 piece = 0; piece < PIECES<V>; piece++) {
        Known<V> known;
        know(m, s, piece, known);
        f32 centered[PIECE<V>], dv[PIECE<V>], plain[PIECE<V>], with_n[PIECE<V>];
        UNROLL for (u32 j = 0; j < PIECE<V>; j++) plain[j] = with_n[j] = 0.0f;
        UNROLL for (u32 i = 0; i < HELD; i++) {
            if (s.pixel + i * s.rows >= s.end) break;
            gradient_of<T, V, SILU>(x[i], dy[i], piece, known, centered, dv);
            UNROLL for (u32 j = 0; j < PIECE<V>; j++) {
                plain[j] += dv[j];
                with_n[j] = fma_f32(dv[j], centered[j], with_n[j]);
            }
        }
        put_sums<V>(m, 0, piece, plain);
        put_sums<V>(m, 1, piece, with_n);
    }
    sum_rows<V>(m, sizes, s, totals);
    if (threadIdx.x >= s.channels) return;
    f32 scale = dropped.control != nullptr ? dropped.scale : 1.0f;
    totals[0] *= scale;
    totals[1] *= scale * m.channel[RSTD][threadIdx.x];
}

// dx and dskip of what is held, in the place of dy; memory has sum(k S0) and sum(k S1) of the strip's channels, or of parts of its one
// group's.
template <typename T, u32 V, bool SILU>
DEV void input_gradient(T* dx, T* dskip, const u32 (&x)[HELD][WORDS<V>], u32 (&dy)[HELD][WORDS<V>], const Memory& m,
                        const Sizes& sizes, const Share& s, const Dropped& dropped, u32 accumulate_x, u32 accumulate_skip) {
    f32 count = (f32)(sizes.pixels * sizes.width);
    u32 of_group = min_of(sizes.width, THREADS);
    __syncthreads();
    if (threadIdx.x < s.channels) {
        u32 of = group_first(sizes);
        f32 dn = sum_group(m.channel[FIRST_SUM] + of, of_group), dn_n = sum_group(m.channel[SECOND_SUM] + of, of_group);
        f32 r = m.channel[RSTD][threadIdx.x];
        m.channel[SLOPE][threadIdx.x] = -r * r * (dn_n / count);
        m.channel[CONSTANT][threadIdx.x] = -r * (dn / count);
    }
    __syncthreads();
    bool first = s.first + s.within < sizes.ca, add = (first ? accumulate_x : accumulate_skip) != 0;
    if ((first ? dx : dskip) == nullptr) return;
    Source<T> to = source_of(dx, dskip, sizes, s);
    f32 scale = dropped.control != nullptr ? dropped.scale : 1.0f;
    UNROLL for (u32 piece = 0; piece < PIECES<V>; piece++) {
        Known<V> known;
        know(m, s, piece, known);
        f32 slope[PIECE<V>], constant[PIECE<V>], scaled[PIECE<V>];
        channels_of<V>(m.channel[SLOPE], s, piece, slope);
        channels_of<V>(m.channel[CONSTANT], s, piece, constant);
        UNROLL for (u32 j = 0; j < PIECE<V>; j++) scaled[j] = scale * known.factor[j];
        UNROLL for (u32 i = 0; i < HELD; i++) {
            if (s.pixel + i * s.rows >= s.end) break;
            f32 centered[PIECE<V>], dv[PIECE<V>];
            gradient_of<T, V, SILU>(x[i], dy[i], piece, known, centered, dv);
            UNROLL for (u32 j = 0; j < PIECE<V>; j++) dv[j] = fma_f32(dv[j], scaled[j], fma_f32(centered[j], slope[j], constant[j]));
            if (add) {
                const T* at = to.at + (u64)(i * to.step) + piece * PIECE<V>;
                f32 old[PIECE<V>];
                if constexpr (V == 1) old[0] = to_f32(*at);
                else load4(at, 4, to.wide, old);
                UNROLL for (u32 j = 0; j < PIECE<V>; j++) dv[j] += old[j];
            }
            put_values<V>(dy[i], piece, dv);
        }
    }
    UNROLL for (u32 i = 0; i < HELD; i++) {
        if (s.pixel + i * s.rows >= s.end) break;
        write(to.at + (u64)(i * to.step), to.wide, dy[i]);
    }
}

// `partial` null: the block has whole groups. Else [samples, chunks, 2, channels]: S0 and S1 of each chunk of pixels.
template <typename T, u32 V>
DEV void backward(T* dx, T* dskip, f32* sums, const f32* partial, const Saved<T>& saved, const Sizes& sizes, const Dropped& dropped,
                  u32 silu_follows, u32 accumulate_x, u32 accumulate_skip) {
    Share s = share_of<V>(sizes);
    Memory m = memory();
    u32 x[HELD][WORDS<V>], dy[HELD][WORDS<V>], channels = sizes.ca + sizes.cb, t = threadIdx.x;
    hold_gradient<T, V>(saved, m, sizes, s, dropped, x, dy);
    f32 totals[2];
    if (partial == nullptr) {
        if (silu_follows != 0) channel_sums<T, V, true>(x, dy, m, sizes, s, dropped, totals);
        else channel_sums<T, V, false>(x, dy, m, sizes, s, dropped, totals);
    }
    // All of the strip's channels; of a group that is cut, all of its own.
    u32 first = s.group * sizes.width, all = sizes.tiles > 1 ? sizes.width : s.channels, chunks = gridDim.y / sizes.tiles;
    f32 dn = 0.0f, dn_n = 0.0f;
    for (u32 c = first + t; c < first + all; c += THREADS) {
        f32 k, l;
        affine_of(saved.weight, saved.bias, saved.scale_shift, s.sample, channels, c, k, l);
        if (partial != nullptr) {
            const f32* from = partial + (u64)s.sample * chunks * 2 * channels + c;
            totals[0] = totals[1] = 0.0f;
#pragma unroll 4
            for (u32 chunk = 0; chunk < chunks; chunk++) {
                totals[0] += from[(u64)chunk * 2 * channels];
                totals[1] += from[(u64)chunk * 2 * channels + channels];
            }
        }
        dn = fma_f32(k, totals[0], dn);
        dn_n = fma_f32(k, totals[1], dn_n);
        if (blockIdx.y > 0) continue;
        f32* to = sums + (u64)s.sample * 2 * channels + c;
        to[0] = totals[0];
        to[channels] = totals[1];
    }
    m.channel[FIRST_SUM][t] = dn;
    m.channel[SECOND_SUM][t] = dn_n;
    if (silu_follows != 0) input_gradient<T, V, true>(dx, dskip, x, dy, m, sizes, s, dropped, accumulate_x, accumulate_skip);
    else input_gradient<T, V, false>(dx, dskip, x, dy, m, sizes, s, dropped, accumulate_x, accumulate_skip);
}

template <typename T, u32 V>
DEV void backward_partial(f32* partial, const Saved<T>& saved, const Sizes& sizes, const Dropped& dropped, u32 silu_follows) {
    Share s = share_of<V>(sizes);
    Memory m = memory();
    u32 x[HELD][WORDS<V>], dy[HELD][WORDS<V>], channels = sizes.ca + sizes.cb, chunks = gridDim.y / sizes.tiles;
    hold_gradient<T, V>(saved, m, sizes, s, dropped, x, dy);
    f32 totals[2];
    if (silu_follows != 0) channel_sums<T, V, true>(x, dy, m, sizes, s, dropped, totals);
    else channel_sums<T, V, false>(x, dy, m, sizes, s, dropped, totals);
    if (threadIdx.x >= s.channels) return;
    f32* to = partial + ((u64)s.sample * chunks + s.chunk) * 2 * channels + s.first + threadIdx.x;
    to[0] = totals[0];
    to[channels] = totals[1];
}

// What the entries share.
#define SIZES                                                                                                                                   \
    u32 pixels, u32 ca, u32 cb, u32 groups, u32 width, u32 strips, u32 strip_groups, u32 strip, u32 columns, u32 tiles, u32 over_columns,       \
        u32 over_strip, u32 over_width
#define SIZE_NAMES pixels, ca, cb, groups, width, strips, strip_groups, strip, columns, tiles, over_columns, over_strip, over_width
#define DROPPED In<u32> control, u32 least, f32 keep_scale, u64 seed, u32 purpose
#define DROPPED_NAMES control, least, keep_scale, seed, purpose
#define SAVED In<T> dy, In<T> x, In<T> skip, In<f32> mean, In<f32> rstd, In<f32> weight, In<f32> bias, In<T> scale_shift
#define SAVED_NAMES dy, x, skip, mean, rstd, weight, bias, scale_shift

BOUNDED_KERNELS(group_norm_silu_fwd, (256, 3), (256), (Out<T> y, Out<f32> mean, Out<f32> rstd, In<f32> partial, In<T> x, In<T> skip, In<f32> weight,
                In<f32> bias, In<T> scale_shift, SIZES, u32 vector, f32 eps, u32 silu_follows, DROPPED),
                (y, mean, rstd, partial, x, skip, weight, bias, scale_shift, SIZE_NAMES, vector, eps, silu_follows, DROPPED_NAMES)) {
    Sizes sizes{SIZE_NAMES};
    Dropped dropped{DROPPED_NAMES};
    if (vector > 1) forward<T, Vec16<T>::COUNT>(y, mean, rstd, partial, x, skip, weight, bias, scale_shift, sizes, dropped, eps, silu_follows);
    else forward<T, 1>(y, mean, rstd, partial, x, skip, weight, bias, scale_shift, sizes, dropped, eps, silu_follows);
}

BOUNDED_KERNELS(group_norm_silu_fwd_partial, (256, 3), (256), (Out<f32> partial, In<T> x, In<T> skip, SIZES, u32 vector),
                (partial, x, skip, SIZE_NAMES, vector)) {
    Sizes sizes{SIZE_NAMES};
    if (vector > 1) forward_partial<T, Vec16<T>::COUNT>(partial, x, skip, sizes);
    else forward_partial<T, 1>(partial, x, skip, sizes);
}

KERNELS(group_norm_silu_bwd, (256), (Out<T> dx, Out<T> dskip, Out<f32> sums, In<f32> partial, SAVED, SIZES, u32 vector, u32 silu_follows, DROPPED,
        u32 accumulate_x, u32 accumulate_skip),
        (dx, dskip, sums, partial, SAVED_NAMES, SIZE_NAMES, vector, silu_follows, DROPPED_NAMES, accumulate_x, accumulate_skip)) {
    Sizes sizes{SIZE_NAMES};
    Dropped dropped{DROPPED_NAMES};
    Saved<T> saved{SAVED_NAMES};
    if (vector > 1) backward<T, Vec16<T>::COUNT>(dx, dskip, sums, partial, saved, sizes, dropped, silu_follows, accumulate_x, accumulate_skip);
    else backward<T, 1>(dx, dskip, sums, partial, saved, sizes, dropped, silu_follows, accumulate_x, accumulate_skip);
}

KERNELS(group_norm_silu_bwd_partial, (256), (Out<f32> partial, SAVED, SIZES, u32 vector, u32 silu_follows, DROPPED),
        (partial, SAVED_NAMES, SIZE_NAMES, vector, silu_follows, DROPPED_NAMES)) {
    Sizes sizes{SIZE_NAMES};
    Dropped dropped{DROPPED_NAMES};
    Saved<T> saved{SAVED_NAMES};
    if (vector > 1) backward_partial<T, Vec16<T>::COUNT>(partial, saved, sizes, dropped, silu_follows);
    else backward_partial<T, 1>(partial, saved, sizes, dropped, silu_follows);
}

// Where scale_shift is given; without it gradient_sums.cu adds up `sums`. A block takes 32 channels: warp w samples w, w + 8, ..; then
// the first two warps add the eight sums in order.
KERNELS(group_norm_silu_bwd_parameters, (256), (Out<f32> dweight, Out<f32> dbias, Out<T> dscale_shift, In<f32> sums, In<f32> weight, In<f32> bias,
        In<T> scale_shift, u32 samples, u32 channels, u32 accumulate_weight, u32 accumulate_bias, u32 accumulate_scale_shift),
        (dweight, dbias, dscale_shift, sums, weight, bias, scale_shift, samples, channels, accumulate_weight, accumulate_bias,
         accumulate_scale_shift)) {
    constexpr u32 SLICES = THREADS / WARP;
    SHARED(f32, tile, [2][SLICES][WARP]);
    u32 lane = threadIdx.x % WARP, slice = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    f32 totals[2] = {0.0f, 0.0f};
    if (c < channels) {
        for (u32 sample = slice; sample < samples; sample += SLICES) {
            u64 at = (u64)sample * 2 * channels + c;
            f32 plain = sums[at], with_n = sums[at + channels], scale = 1.0f + to_f32(scale_shift[at]);
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
    UNROLL for (u32 i = 0; i < SLICES; i++) total += tile[slice][i][lane];
    bool add = (slice == 0 ? accumulate_weight : accumulate_bias) != 0;
    to[c] = add ? to[c] + total : total;
}
