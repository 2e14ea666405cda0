// Where attention's heads lie: sizes and offsets that both forms of its kernels share.
#pragma once
#include "common/types.cuh"

// Sizes, and where a head's rows begin: row t of q, k and v is `t * width` further on, of out `t * heads * d`.
struct Layout {
    u32 tokens, heads, kv_heads, d, d4, k4;
    u64 width;
    f32 scale;
};

DEV Layout layout_of(u32 tokens, u32 heads, u32 kv_heads, u32 d) {
    u32 d4 = round_up(d, 4u);
    return Layout{tokens, heads, kv_heads, d, d4, 4 * (d4 / 4 | 1), (u64)(heads + 2 * kv_heads) * d,
                  1.0f / sqrt_f32((f32)d)};
}
DEV u64 q_start(const Layout& at, u32 sample, u32 head) {
    return (u64)sample * at.tokens * at.width + (u64)head * at.d;
}
DEV u64 k_start(const Layout& at, u32 sample, u32 group) { return q_start(at, sample, at.heads + group); }
DEV u64 v_start(const Layout& at, u32 sample, u32 group) { return q_start(at, sample, at.heads + at.kv_heads + group); }
DEV u64 out_start(const Layout& at, u32 sample, u32 head) {
    return ((u64)sample * at.tokens * at.heads + head) * at.d;
}
