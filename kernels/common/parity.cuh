// The gradient of a convolution's input where the stride is 2, by parity.
//
// Pixel (2 i + y, 2 j + x) is under every second tap alone, from (y + pad) % 2 and (x + pad) % 2 on. The pixels of one parity are thus an image of
// half the size with a window of their own and a stride of 1: dy's patches are UseRows, and nothing is multiplied by zero.
#pragma once
#include "common/patches.cuh"
#include "common/sums.cuh"

struct Parity {
    u32 y, x, first_y, first_x;
};
DEV Parity parity_of(u32 number, u32 pad_height, u32 pad_width) {
    u32 y = number / 2, x = number % 2;
    return Parity{y, x, (y + pad_height) % 2, (x + pad_width) % 2};
}
// The patches of a parity's pixels; `at` is of all pixels.
template <typename T>
DEV UseRows<T> uses_of(Uses<T> at, const Parity& parity) {
    at.outer /= 4;
    at.height = at.source_height /= 2;
    at.width = at.source_width /= 2;
    at.kernel_height = (at.kernel_height - parity.first_y + 1) / 2;
    at.kernel_width = (at.kernel_width - parity.first_x + 1) / 2;
    at.pad_height = (parity.y + at.pad_height - parity.first_y) / 2;
    at.pad_width = (parity.x + at.pad_width - parity.first_x) / 2;
    at.stride = 1;
    return UseRows<T>{at};
}

// W's rows of a parity's taps: tap t is W's `first` + t / across * down + t % across * 2.
template <typename T>
struct TapsApart : Taps<T> {
    u32 first, across, down;
};
template <typename T>
DEV TapsApart<T> taps_of(const Taps<T>& at, const Parity& parity, u32 kernel_width) {
    return TapsApart<T>{at, parity.first_y * kernel_width + parity.first_x, (kernel_width - parity.first_x + 1) / 2, 2 * kernel_width};
}
template <typename T, u32 P>
DEV void tap_places(const TapsApart<T>& at, TapWalk<T, P>& walk) {
    UNROLL for (u32 p = 0; p < P; p++) {
        u32 row = walk.row + p * walk.apart, t = row / at.outputs, tap = at.first + t / at.across * at.down + t % at.across * 2;
        walk.at[p] = at.data + ((u64)(row % at.outputs) * at.taps + tap) * at.outer + walk.col;
    }
}
template <typename S, typename T, u32 P>
DEV void walk_from(const TapsApart<T>& at, TapWalk<T, P>& walk, u32 first, u32 r) {
    static_assert(S::ONE_COLUMN, "the pieces have one column");
    walk.row = share_row<S>(at, first, r, 0);
    walk.apart = share_row<S>(at, first, r, 1) - walk.row;
    walk.col = share_col<S>(at, first, r, 0);
    walk.output = r % at.outputs;
    tap_places(at, walk);
}
template <u32 DEPTH, typename T, u32 P>
DEV void walk_rows(const TapsApart<T>& at, TapWalk<T, P>& walk) {
    walk.row += DEPTH;
    walk.output += DEPTH;
    if (at.outputs % DEPTH != 0 || walk.output == at.outputs) {
        walk.output = 0;
        return tap_places(at, walk);
    }
    UNROLL for (u32 p = 0; p < P; p++) walk.at[p] += (u64)(DEPTH * at.taps) * at.outer;
}

// Their gradients' places: row (sample, i, j) of a parity's image of `height` and `width` is pixel (2 i + y, 2 j + x).
template <typename T>
struct ParityGradient : Gradient<T, 4> {
    u32 height, width, y, x;
};
template <typename T>
DEV void finish(const ParityGradient<T>& to, const typename Gradient<T, 4>::Columns& columns, u32 row, u32 col, f32 (&v)[4], bool wide) {
    u32 line = row / to.width, sample = line / to.height;
    u32 pixel = (sample * 2 * to.height + 2 * (line - sample * to.height) + to.y) * 2 * to.width + 2 * (row - line * to.width) + to.x;
    finish(static_cast<const Gradient<T, 4>&>(to), columns, pixel, col, v, wide);
}
