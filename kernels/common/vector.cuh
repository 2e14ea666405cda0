// 16 bytes of neighbouring elements at once: four f32 or eight bf16. Addresses are multiples of 16 (the emulator checks).
#pragma once
#include "common/types.cuh"

template <typename T>
struct __align__(16) Vec16 {
    static constexpr u32 COUNT = 16 / sizeof(T);
    T v[COUNT];
};

// Whether 16-byte accesses may begin at `p`.
template <typename T>
DEV bool aligned16(const T* p) {
    return (u64)p % 16 == 0;
}

template <typename T>
DEV Vec16<T> load16(const T* p) {
    return *reinterpret_cast<const Vec16<T>*>(p);
}

template <typename T>
DEV void store16(T* p, const Vec16<T>& vector) {
    *reinterpret_cast<Vec16<T>*>(p) = vector;
}
