// Neighbouring elements as f32, 16 bytes at a time where address and length allow it: the widest access that a thread can
// make. The values are the same either way.
#pragma once
#include "common/vector.cuh"

DEV f32 bf16_low(u32 pair) { return f32_from_bits(pair << 16); }
DEV f32 bf16_high(u32 pair) { return f32_from_bits(pair & 0xffff0000u); }

// N neighbouring elements as f32, N a multiple of Vec16<T>::COUNT: 16 bytes at a time where `wide`, which needs
// `aligned16(p)` and N elements; else `min(left, N)` of them one by one, zeros behind.
template <u32 N>
DEV void load_wide(const f32* p, u32 left, bool wide, f32 (&v)[N]) {
    static_assert(N % 4 == 0, "whole 16-byte pieces");
    if (wide) {
#pragma unroll
        for (u32 i = 0; i < N; i += 4) {
            Vec16<u32> words = load16(reinterpret_cast<const u32*>(p + i));
#pragma unroll
            for (u32 j = 0; j < 4; j++) v[i + j] = f32_from_bits(words.v[j]);
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] = i < left ? p[i] : 0.0f;
    }
}
template <u32 N>
DEV void load_wide(const bf16* p, u32 left, bool wide, f32 (&v)[N]) {
    static_assert(N % 8 == 0, "whole 16-byte pieces");
    if (wide) {
#pragma unroll
        for (u32 i = 0; i < N; i += 8) {
            Vec16<u32> words = load16(reinterpret_cast<const u32*>(p + i));
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                v[i + 2 * j] = bf16_low(words.v[j]);
                v[i + 2 * j + 1] = bf16_high(words.v[j]);
            }
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] = i < left ? to_f32(p[i]) : 0.0f;
    }
}

// The counterpart of `load_wide`: rounds to storage and writes.
template <u32 N>
DEV void store_wide(f32* p, u32 left, bool wide, const f32 (&v)[N]) {
    static_assert(N % 4 == 0, "whole 16-byte pieces");
    if (wide) {
#pragma unroll
        for (u32 i = 0; i < N; i += 4) {
            Vec16<u32> words;
#pragma unroll
            for (u32 j = 0; j < 4; j++) words.v[j] = f32_bits(v[i + j]);
            store16(reinterpret_cast<u32*>(p + i), words);
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < N; i++)
            if (i < left) p[i] = v[i];
    }
}
template <u32 N>
DEV void store_wide(bf16* p, u32 left, bool wide, const f32 (&v)[N]) {
    static_assert(N % 8 == 0, "whole 16-byte pieces");
    if (wide) {
#pragma unroll
        for (u32 i = 0; i < N; i += 8) {
            Vec16<u32> words;
#pragma unroll
            for (u32 j = 0; j < 4; j++) words.v[j] = bf16_pair(v[i + 2 * j], v[i + 2 * j + 1]);
            store16(reinterpret_cast<u32*>(p + i), words);
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < N; i++)
            if (i < left) p[i] = bf16_from_f32(v[i]);
    }
}
