// Neighbouring elements as f32, 16 bytes at a time where address and length allow it: the widest access that a thread can
// make; or 8, where a thread has no more. The values are the same either way.
#pragma once
#include "common/vector.cuh"

DEV f32 bf16_low(u32 pair) { return f32_from_bits(pair << 16); }
DEV f32 bf16_high(u32 pair) { return f32_from_bits(pair & 0xffff0000u); }

// The type of one access: as many bytes as N elements have, at most 16.
template <u32 COUNT>
struct __align__(4 * COUNT) WideWords {
    u32 v[COUNT];
};
template <typename T, u32 N>
using WideAccess = WideWords<(N * sizeof(T) < 16 ? N * sizeof(T) : 16) / 4>;

// N neighbouring elements as f32, 8 bytes or whole pieces of 16: at once where `wide`, which needs an address that is a
// multiple of the access and N elements; else `min(left, N)` of them one by one, zeros behind.
template <u32 N>
DEV void load_wide(const f32* p, u32 left, bool wide, f32 (&v)[N]) {
    typedef WideAccess<f32, N> Words;
    constexpr u32 COUNT = sizeof(Words) / 4;
    static_assert(N % COUNT == 0 && COUNT >= 2, "whole accesses");
    if (wide) {
        UNROLL for (u32 i = 0; i < N; i += COUNT) {
            Words words = *reinterpret_cast<const Words*>(p + i);
            UNROLL for (u32 j = 0; j < COUNT; j++) v[i + j] = f32_from_bits(words.v[j]);
        }
    } else {
        UNROLL for (u32 i = 0; i < N; i++) v[i] = i < left ? p[i] : 0.0f;
    }
}
template <u32 N>
DEV void load_wide(const bf16* p, u32 left, bool wide, f32 (&v)[N]) {
    typedef WideAccess<bf16, N> Words;
    constexpr u32 COUNT = sizeof(Words) / 4;
    static_assert(N % (2 * COUNT) == 0 && COUNT >= 2, "whole accesses");
    if (wide) {
        UNROLL for (u32 i = 0; i < N; i += 2 * COUNT) {
            Words words = *reinterpret_cast<const Words*>(p + i);
            UNROLL for (u32 j = 0; j < COUNT; j++) {
                v[i + 2 * j] = bf16_low(words.v[j]);
                v[i + 2 * j + 1] = bf16_high(words.v[j]);
            }
        }
    } else {
        UNROLL for (u32 i = 0; i < N; i++) v[i] = i < left ? to_f32(p[i]) : 0.0f;
    }
}

// The counterpart of `load_wide`: rounds to storage and writes.
template <u32 N>
DEV void store_wide(f32* p, u32 left, bool wide, const f32 (&v)[N]) {
    typedef WideAccess<f32, N> Words;
    constexpr u32 COUNT = sizeof(Words) / 4;
    static_assert(N % COUNT == 0 && COUNT >= 2, "whole accesses");
    if (wide) {
        UNROLL for (u32 i = 0; i < N; i += COUNT) {
            Words words;
            UNROLL for (u32 j = 0; j < COUNT; j++) words.v[j] = f32_bits(v[i + j]);
            *reinterpret_cast<Words*>(p + i) = words;
        }
    } else {
        UNROLL for (u32 i = 0; i < N; i++)
            if (i < left) p[i] = v[i];
    }
}
template <u32 N>
DEV void store_wide(bf16* p, u32 left, bool wide, const f32 (&v)[N]) {
    typedef WideAccess<bf16, N> Words;
    constexpr u32 COUNT = sizeof(Words) / 4;
    static_assert(N % (2 * COUNT) == 0 && COUNT >= 2, "whole accesses");
    if (wide) {
        UNROLL for (u32 i = 0; i < N; i += 2 * COUNT) {
            Words words;
            UNROLL for (u32 j = 0; j < COUNT; j++) words.v[j] = bf16_pair(v[i + 2 * j], v[i + 2 * j + 1]);
            *reinterpret_cast<Words*>(p + i) = words;
        }
    } else {
        UNROLL for (u32 i = 0; i < N; i++)
            if (i < left) p[i] = bf16_from_f32(v[i]);
    }
}
