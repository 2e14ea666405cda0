// Four neighbouring elements at once: one wide access where the address allows it, else up to four narrow ones. The
// values are the same either way, so that a sum over them has the same bits whatever the alignment.
#pragma once
#include "common/types.cuh"

template <typename T>
struct __align__(4 * sizeof(T)) Pack4 {
    T v[4];
};

// Whether wide accesses may begin at `p` (a null pointer, which is never accessed, included).
template <typename T>
DEV bool aligned4(const T* p) {
    return (u64)p % sizeof(Pack4<T>) == 0;
}

// Reads `min(left, 4)` elements as f32, zeros behind them. `wide` needs `aligned4(p)` and four elements.
template <typename T>
DEV void load4(const T* p, u32 left, bool wide, f32 (&v)[4]) {
    if (wide) {
        Pack4<T> pack = *reinterpret_cast<const Pack4<T>*>(p);
        UNROLL for (u32 i = 0; i < 4; i++) v[i] = to_f32(pack.v[i]);
    } else {
        UNROLL for (u32 i = 0; i < 4; i++) v[i] = i < left ? to_f32(p[i]) : 0.0f;
    }
}

// Writes `min(left, 4)` elements, rounded to storage. `wide` needs `aligned4(p)` and four elements.
template <typename T>
DEV void store4(T* p, u32 left, bool wide, const f32 (&v)[4]) {
    if (wide) {
        Pack4<T> pack;
        UNROLL for (u32 i = 0; i < 4; i++) store_f32(&pack.v[i], v[i]);
        *reinterpret_cast<Pack4<T>*>(p) = pack;
    } else {
        UNROLL for (u32 i = 0; i < 4; i++)
            if (i < left) store_f32(p + i, v[i]);
    }
}
