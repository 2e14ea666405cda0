// Pieces of N neighbouring elements as f32, where the launch has chosen N: whole accesses at addresses that are multiples of them, or
// one element.
#pragma once
#include "common/wide.cuh"

template <typename T, u32 N>
DEV void load_piece(const T* p, f32 (&v)[N]) {
    if constexpr (N == 1) v[0] = to_f32(p[0]);
    else load_wide(p, N, true, v);
}

// Rounds to storage and writes.
template <typename T, u32 N>
DEV void store_piece(T* p, const f32 (&v)[N]) {
    if constexpr (N == 1) store_f32(p, v[0]);
    else store_wide(p, N, true, v);
}
