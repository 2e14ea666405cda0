// The operands of a convolution's products (product.cuh): patches of images, that nobody stores, and the weight's rows. conv2d.cu says which
// product takes which, and what the letters mean.
//
// Each thread knows the pixels of its pieces and walks through the taps (or, for dW, knows its tap and walks through the pixels). Of images that
// are not enlarged all places move on by as much from step to step; else places are found anew where the tap changes, or in each step down.
#pragma once
#include "common/product.cuh"

// Where a column is in its patch.
struct Tap {
    u32 channel, x, y;
};
DEV Tap tap_of(u32 col, u32 channels, u32 kernel_width) {
    u32 tap = col / channels;
    return Tap{col % channels, tap % kernel_width, tap / kernel_width};
}
// One tap further; true where ky begins anew.
DEV bool tap_next(Tap& tap, u32 kernel_height, u32 kernel_width) {
    if (++tap.x < kernel_width) return false;
    tap.x = 0;
    if (++tap.y < kernel_height) return false;
    tap.y = 0;
    return true;
}

// x's patches: a row per output pixel, a column per (ky, kx, c). The scales are h / H and w / W times 2^32, rounded up, with which
// (i * scale) >> 32 is floor(i h / H) for i and H below 2^16.
template <typename T>
struct PatchSizes {
    const T* data;
    u32 outer;
    bool wide;
    u32 source_height, source_width, height, width, out_height, out_width, channels, kernel_height, kernel_width, stride,
        pad_height, pad_width;
    u64 row_scale, col_scale;

    static constexpr bool DENSE = false;
};
// Row y and column x of an image in one register: both are below 2^16.
DEV u32 pack_place(u32 y, u32 x) { return y << 16 | x; }
// Where tap (ky, kx) of output pixel (y, x) lies; null: in the padding.
template <typename T>
DEV const T* patch_place(const PatchSizes<T>& at, const Tap& tap, u32 sample, u32 yx) {
    // Before the first row or column these wrap around, and are too large as well.
    u32 y = (yx >> 16) * at.stride + tap.y - at.pad_height, x = (yx & 0xffffu) * at.stride + tap.x - at.pad_width;
    if (y >= at.height || x >= at.width) return nullptr;
    u32 row = (u32)(y * at.row_scale >> 32), col = (u32)(x * at.col_scale >> 32);
    u32 pixel = (sample * at.source_height + row) * at.source_width + col;
    return at.data + (u64)pixel * at.channels + tap.channel;
}

// Along the rows: P pixels, the tap and where its channels lie. Within a tap the places move on with the channel.
template <typename T, u32 P>
struct PatchWalk {
    Tap tap;
    u32 sample[P], yx[P];
    const T* at[P];
};
// The tap of a thread's pieces and the output pixel of each.
template <typename S, typename T, typename Walk>
DEV void patch_start(const PatchSizes<T>& at, Walk& walk, u32 first, u32 r) {
    static_assert(S::ONE_COLUMN, "the pieces have one tap");
    walk.tap = tap_of(share_col<S>(at, first, r, 0), at.channels, at.kernel_width);
    UNROLL for (u32 p = 0; p < S::COUNT; p++) {
        u32 pixel = share_row<S>(at, first, r, p), row = pixel / at.out_width;
        walk.yx[p] = pack_place(row % at.out_height, pixel % at.out_width);
        walk.sample[p] = row / at.out_height;
    }
}
template <typename T>
struct Patches : PatchSizes<T> {
    template <u32 P>
    using Walk = PatchWalk<T, P>;
};
template <typename T, u32 P>
DEV void patch_places(const Patches<T>& at, PatchWalk<T, P>& walk) {
    UNROLL for (u32 p = 0; p < P; p++) walk.at[p] = patch_place(at, walk.tap, walk.sample[p], walk.yx[p]);
}
template <typename S, typename T, u32 P>
DEV void walk_from(const Patches<T>& at, PatchWalk<T, P>& walk, u32 first, u32 r) {
    patch_start<S>(at, walk, first, r);
    patch_places(at, walk);
}
template <u32 N, typename T, u32 P>
DEV void walk_columns(const Patches<T>& at, PatchWalk<T, P>& walk) {
    walk.tap.channel += N;
    if (walk.tap.channel < at.channels) {
        UNROLL for (u32 p = 0; p < P; p++)
            if (walk.at[p] != nullptr) walk.at[p] += N;
        return;
    }
    do {
        walk.tap.channel -= at.channels;
        tap_next(walk.tap, at.kernel_height, at.kernel_width);
    } while (walk.tap.channel >= at.channels);
    patch_places(at, walk);
}
template <typename T, u32 P>
DEV const T* walk_place(const Patches<T>&, const PatchWalk<T, P>& walk, u32 p) {
    return walk.at[p];
}

// Down the rows: P pixels, each step DEPTH further, under a tap that stays.
template <typename T, u32 P>
struct PatchDownWalk {
    Tap tap;
    u32 sample[P], yx[P];
    u32 step_samples, step_y, step_x;
};
template <typename T>
struct PatchesDown : PatchSizes<T> {
    template <u32 P>
    using Walk = PatchDownWalk<T, P>;
};
template <typename S, typename T, u32 P>
DEV void walk_from(const PatchesDown<T>& at, PatchDownWalk<T, P>& walk, u32 first, u32 r) {
    patch_start<S>(at, walk, first, r);
    walk.step_x = S::DEPTH % at.out_width;
    walk.step_y = S::DEPTH / at.out_width % at.out_height;
    walk.step_samples = S::DEPTH / at.out_width / at.out_height;
}
template <u32 N, typename T, u32 P>
DEV void walk_columns(const PatchesDown<T>& at, PatchDownWalk<T, P>& walk) {
    walk.tap.channel += N;
    while (walk.tap.channel >= at.channels) {
        walk.tap.channel -= at.channels;
        tap_next(walk.tap, at.kernel_height, at.kernel_width);
    }
}
template <u32 DEPTH, typename T, u32 P>
DEV void walk_rows(const PatchesDown<T>& at, PatchDownWalk<T, P>& walk) {
    UNROLL for (u32 p = 0; p < P; p++) {
        u32 x = (walk.yx[p] & 0xffffu) + walk.step_x, carry = x >= at.out_width;
        x = carry ? x - at.out_width : x;
        u32 y = (walk.yx[p] >> 16) + walk.step_y + carry;
        carry = y >= at.out_height;
        walk.yx[p] = pack_place(carry ? y - at.out_height : y, x);
        walk.sample[p] += walk.step_samples + carry;
    }
}
template <typename T, u32 P>
DEV const T* walk_place(const PatchesDown<T>& at, const PatchDownWalk<T, P>& walk, u32 p) {
    return patch_place(at, walk.tap, walk.sample[p], walk.yx[p]);
}

// dy's patches: a row per source pixel, a column per (cy, cx, ky, kx, o): copy (cy, cx) of the pixel in x^, under tap (ky, kx). A pixel's
// first copy is (y, x) of x^.
template <typename T, u32 P>
struct UseWalk {
    Tap tap;
    u32 copy_y, copy_x;
    u32 sample[P], yx[P], copies[P];
    const T* at[P];
};
template <typename T>
struct Uses {
    const T* data;
    u32 outer;
    bool wide;
    u32 source_height, source_width, height, width, out_height, out_width, channels, kernel_height, kernel_width, stride,
        pad_height, pad_width;

    static constexpr bool DENSE = false;
    template <u32 P>
    using Walk = UseWalk<T, P>;
};
template <typename T, u32 P>
DEV void use_places(const Uses<T>& at, UseWalk<T, P>& walk) {
    UNROLL for (u32 p = 0; p < P; p++) {
        walk.at[p] = nullptr;
        if (walk.copy_y >= walk.copies[p] >> 16 || walk.copy_x >= (walk.copies[p] & 0xffffu)) continue;
        u32 y = (walk.yx[p] >> 16) + walk.copy_y + at.pad_height - walk.tap.y;
        u32 x = (walk.yx[p] & 0xffffu) + walk.copy_x + at.pad_width - walk.tap.x;
        // Stride 2: windows begin at even places.
        u32 odd = at.stride - 1;
        if (((y | x) & odd) != 0) continue;
        y >>= odd, x >>= odd;
        if (y >= at.out_height || x >= at.out_width) continue;
        u32 pixel = (walk.sample[p] * at.out_height + y) * at.out_width + x;
        walk.at[p] = at.data + (u64)pixel * at.channels + walk.tap.channel;
    }
}
template <typename S, typename T, u32 P>
DEV void walk_from(const Uses<T>& at, UseWalk<T, P>& walk, u32 first, u32 r) {
    static_assert(S::ONE_COLUMN, "the pieces have one tap");
    u32 of_copy = at.kernel_height * at.kernel_width * at.channels, col = share_col<S>(at, first, r, 0), copy = col / of_copy;
    u32 across = ceil_div(at.width, at.source_width);
    walk.tap = tap_of(col % of_copy, at.channels, at.kernel_width);
    walk.copy_y = copy / across;
    walk.copy_x = copy % across;
    UNROLL for (u32 p = 0; p < P; p++) {
        u32 pixel = share_row<S>(at, first, r, p), x = pixel % at.source_width, y = pixel / at.source_width % at.source_height;
        u32 first_y = ceil_div(y * at.height, at.source_height), first_x = ceil_div(x * at.width, at.source_width);
        walk.sample[p] = pixel / at.source_width / at.source_height;
        walk.yx[p] = pack_place(first_y, first_x);
        walk.copies[p] = pack_place(
            ceil_div((y + 1) * at.height, at.source_height) - first_y, ceil_div((x + 1) * at.width, at.source_width) - first_x);
    }
    use_places(at, walk);
}
template <u32 N, typename T, u32 P>
DEV void walk_columns(const Uses<T>& at, UseWalk<T, P>& walk) {
    walk.tap.channel += N;
    if (walk.tap.channel < at.channels) {
        UNROLL for (u32 p = 0; p < P; p++)
            if (walk.at[p] != nullptr) walk.at[p] += N;
        return;
    }
    do {
        walk.tap.channel -= at.channels;
        if (!tap_next(walk.tap, at.kernel_height, at.kernel_width)) continue;
        if (++walk.copy_x * at.source_width < at.width) continue;
        walk.copy_x = 0;
        walk.copy_y++;
    } while (walk.tap.channel >= at.channels);
    use_places(at, walk);
}
template <typename T, u32 P>
DEV const T* walk_place(const Uses<T>&, const UseWalk<T, P>& walk, u32 p) {
    return walk.at[p];
}

// --- the same on images that are not enlarged ---
//
// There all places move on by as much from step to step, and what is in the padding are bits: bit i of `inside` is the piece's i-th tap from now
// on, or its i-th step. A place in the padding is not read, and may be anywhere.
template <typename T, u32 P>
struct MaskedWalk {
    const T* at[P];
    u32 inside[P];
    u32 channel, tap_x;
};
template <typename O, typename T, u32 P>
DEV const T* walk_place(const O&, const MaskedWalk<T, P>& walk, u32 p) {
    return (walk.inside[p] & 1u) != 0 ? walk.at[p] : nullptr;
}
// product.cuh's, where nothing has to be selected.
template <typename S, typename Place, typename O, typename T, u32 P>
DEV void mma_copy(SharedAddress stage, const O&, const MaskedWalk<T, P>& walk) {
    UNROLL for (u32 p = 0; p < P; p++)
        async_copy16_zero_fill(stage + Place::of_piece(S::row(p), S::piece(p)), walk.at[p], (walk.inside[p] & 1u) * 16);
}
// The bits of all taps of a window that begins at (y, x), which wrap around before the first row or column.
DEV u32 taps_inside(u32 y, u32 x, u32 height, u32 width, u32 kernel_height, u32 kernel_width) {
    u32 columns = 0, inside = 0;
    for (u32 i = 0; i < kernel_width; i++)
        if (x + i < width) columns |= 1u << i;
    for (u32 i = 0; i < kernel_height; i++)
        if (y + i < height) inside |= columns << (i * kernel_width);
    return inside;
}

// x's patches along the rows: the taps of a row of W are a patch's row in memory.
template <typename T>
struct PatchRows : PatchSizes<T> {
    template <u32 P>
    using Walk = MaskedWalk<T, P>;
};
template <typename T>
DEV bool patches_follow(const PatchSizes<T>& at) {
    return at.wide && at.source_height == at.height && at.source_width == at.width && at.kernel_height * at.kernel_width <= 32;
}
template <typename S, typename T, u32 P>
DEV void walk_from(const PatchRows<T>& at, MaskedWalk<T, P>& walk, u32 first, u32 r) {
    static_assert(S::ONE_COLUMN, "the pieces have one tap");
    Tap tap = tap_of(share_col<S>(at, first, r, 0), at.channels, at.kernel_width);
    walk.channel = tap.channel;
    walk.tap_x = tap.x;
    UNROLL for (u32 p = 0; p < P; p++) {
        u32 pixel = share_row<S>(at, first, r, p), row = pixel / at.out_width;
        u32 y = row % at.out_height * at.stride - at.pad_height, x = pixel % at.out_width * at.stride - at.pad_width;
        i64 from = ((i64)(row / at.out_height * at.height) + (i32)(y + tap.y)) * at.width + (i32)(x + tap.x);
        walk.at[p] = at.data + from * at.channels + tap.channel;
        walk.inside[p] = taps_inside(y, x, at.height, at.width, at.kernel_height, at.kernel_width) >> (tap.y * at.kernel_width + tap.x);
    }
}
template <u32 N, typename T, u32 P>
DEV void walk_columns(const PatchRows<T>& at, MaskedWalk<T, P>& walk) {
    walk.channel += N;
    u64 step = N;
    u32 taps = 0;
    while (walk.channel >= at.channels) {
        walk.channel -= at.channels;
        taps++;
        if (++walk.tap_x < at.kernel_width) continue;
        walk.tap_x = 0;
        step += ((u64)at.width - at.kernel_width) * at.channels;
    }
    UNROLL for (u32 p = 0; p < P; p++) {
        walk.at[p] += step;
        walk.inside[p] >>= taps;
    }
}

// x's patches down the rows, where DEPTH pixels are whole rows of the image, and 32 steps whole images that follow each other in memory at
// their windows' pace (32x32 in bf16, whose step is a row of it; 16x16, 8x8, 4x4): the tap stays, and the padding repeats itself.
template <typename T>
struct PatchStrips : PatchSizes<T> {
    template <u32 P>
    using Walk = MaskedWalk<T, P>;
};
// After how many steps; 0: it is not so.
template <u32 DEPTH, typename T>
DEV u32 strips_period(const PatchSizes<T>& at) {
    u32 image = at.out_height * at.out_width;
    bool whole = DEPTH % at.out_width == 0 && DEPTH * 32 % image == 0 && at.height == at.stride * at.out_height;
    return patches_follow(at) && whole ? max_of(image / DEPTH, 1u) : 0;
}
template <typename S, typename T, u32 P>
DEV void walk_from(const PatchStrips<T>& at, MaskedWalk<T, P>& walk, u32 first, u32 r) {
    static_assert(S::ONE_COLUMN, "the pieces have one tap");
    Tap tap = tap_of(share_col<S>(at, first, r, 0), at.channels, at.kernel_width);
    u32 period = strips_period<S::DEPTH>(at), step_y = S::DEPTH / at.out_width % at.out_height;
    UNROLL for (u32 p = 0; p < P; p++) {
        u32 pixel = share_row<S>(at, first, r, p), row = pixel / at.out_width, y = row % at.out_height;
        u32 x = pixel % at.out_width * at.stride + tap.x - at.pad_width, inside = 0;
        i64 from = (i64)(row / at.out_height * at.height + y * at.stride + tap.y) - at.pad_height;
        walk.at[p] = at.data + (from * at.width + (i32)x) * at.channels + tap.channel;
        for (u32 i = 0; i < period; i++) {
            if (x < at.width && y * at.stride + tap.y - at.pad_height < at.height) inside |= 1u << i;
            y += step_y;
            if (y >= at.out_height) y -= at.out_height;
        }
        for (u32 i = period; i < 32; i *= 2) inside |= inside << i;
        walk.inside[p] = inside;
    }
}
// Within a piece, whose channels have one tap.
template <u32 N, typename T, u32 P>
DEV void walk_columns(const PatchStrips<T>&, MaskedWalk<T, P>& walk) {
    UNROLL for (u32 p = 0; p < P; p++) walk.at[p] += N;
}
template <u32 DEPTH, typename T, u32 P>
DEV void walk_rows(const PatchStrips<T>& at, MaskedWalk<T, P>& walk) {
    u64 step = (u64)(DEPTH / at.out_width * at.stride * at.width) * at.channels;
    UNROLL for (u32 p = 0; p < P; p++) {
        walk.at[p] += step;
        walk.inside[p] = walk.inside[p] >> 1 | walk.inside[p] << 31;
    }
}

// dy's patches with stride 1: a tap further is a pixel back.
template <typename T>
struct UseRows : Uses<T> {
    template <u32 P>
    using Walk = MaskedWalk<T, P>;
};
template <typename T>
DEV bool uses_follow(const Uses<T>& at) {
    bool same = at.source_height == at.height && at.source_width == at.width;
    return at.wide && same && at.stride == 1 && at.kernel_height * at.kernel_width <= 32;
}
template <typename S, typename T, u32 P>
DEV void walk_from(const UseRows<T>& at, MaskedWalk<T, P>& walk, u32 first, u32 r) {
    static_assert(S::ONE_COLUMN, "the pieces have one tap");
    Tap tap = tap_of(share_col<S>(at, first, r, 0), at.channels, at.kernel_width);
    walk.channel = tap.channel;
    walk.tap_x = tap.x;
    UNROLL for (u32 p = 0; p < P; p++) {
        u32 pixel = share_row<S>(at, first, r, p), row = pixel / at.width;
        u32 y = row % at.height + at.pad_height, x = pixel % at.width + at.pad_width, columns = 0, inside = 0;
        for (u32 i = 0; i < at.kernel_width; i++)
            if (x - i < at.out_width) columns |= 1u << i;
        for (u32 i = 0; i < at.kernel_height; i++)
            if (y - i < at.out_height) inside |= columns << (i * at.kernel_width);
        i64 from = ((i64)(row / at.height * at.out_height) + (i32)(y - tap.y)) * at.out_width + (i32)(x - tap.x);
        walk.at[p] = at.data + from * at.channels + tap.channel;
        walk.inside[p] = inside >> (tap.y * at.kernel_width + tap.x);
    }
}
template <u32 N, typename T, u32 P>
DEV void walk_columns(const UseRows<T>& at, MaskedWalk<T, P>& walk) {
    walk.channel += N;
    u64 step = N;
    u32 taps = 0;
    while (walk.channel >= at.channels) {
        walk.channel -= at.channels;
        taps++;
        step -= 2 * (u64)at.channels;
        if (++walk.tap_x < at.kernel_width) continue;
        walk.tap_x = 0;
        step -= ((u64)at.out_width - at.kernel_width) * at.channels;
    }
    UNROLL for (u32 p = 0; p < P; p++) {
        walk.at[p] += step;
        walk.inside[p] >>= taps;
    }
}

// W [Cout, k l, Cin] with a row per (cy, cx, ky, kx, o) and a column per c: the same for each copy. Where DEPTH divides Cout, a step stays
// within a tap or goes to the next one's first outputs.
template <typename T, u32 P>
struct TapWalk {
    u32 row, apart, output, tap, col;
    const T* at[P];
};
template <typename T>
struct Taps {
    const T* data;
    u32 outer;
    bool wide;
    u32 taps, outputs;

    static constexpr bool DENSE = true;
    template <u32 P>
    using Walk = TapWalk<T, P>;
};
template <typename T, u32 P>
DEV void tap_places(const Taps<T>& at, TapWalk<T, P>& walk) {
    UNROLL for (u32 p = 0; p < P; p++) {
        u32 row = walk.row + p * walk.apart;
        walk.at[p] = at.data + ((u64)(row % at.outputs) * at.taps + row / at.outputs % at.taps) * at.outer + walk.col;
    }
}
template <typename S, typename T, u32 P>
DEV void walk_from(const Taps<T>& at, TapWalk<T, P>& walk, u32 first, u32 r) {
    static_assert(S::ONE_COLUMN, "the pieces have one column");
    walk.row = share_row<S>(at, first, r, 0);
    walk.apart = share_row<S>(at, first, r, 1) - walk.row;
    walk.col = share_col<S>(at, first, r, 0);
    walk.output = r % at.outputs;
    walk.tap = r / at.outputs % at.taps;
    tap_places(at, walk);
}
template <u32 N, typename T, u32 P>
DEV void walk_columns(const Taps<T>&, TapWalk<T, P>& walk) {
    walk.col += N;
    UNROLL for (u32 p = 0; p < P; p++) walk.at[p] += N;
}
template <u32 DEPTH, typename T, u32 P>
DEV void walk_rows(const Taps<T>& at, TapWalk<T, P>& walk) {
    walk.row += DEPTH;
    if (at.outputs % DEPTH != 0) return tap_places(at, walk);
    u64 step = (u64)(DEPTH * at.taps) * at.outer;
    walk.output += DEPTH;
    if (walk.output == at.outputs) {
        walk.output = 0;
        walk.tap++;
        step -= ((u64)at.outputs * at.taps - 1) * at.outer;
        if (walk.tap == at.taps) {
            walk.tap = 0;
            step -= (u64)at.taps * at.outer;
        }
    }
    UNROLL for (u32 p = 0; p < P; p++) walk.at[p] += step;
}
template <typename T, u32 P>
DEV const T* walk_place(const Taps<T>&, const TapWalk<T, P>& walk, u32 p) {
    return walk.at[p];
}
