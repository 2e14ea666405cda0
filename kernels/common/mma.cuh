// Tensor-core products of bf16 and TF32 with f32 accumulation, by warp: mma.m16n8k16, mma.m16n8k8 and the loads of their fragments.
//
// All 32 lanes of the warp call each of these. They move data between lanes without ordering memory: who writes shared
// memory needs a barrier (or, within the warp, a __syncwarp) before it is loaded here.
//
// Fragments, with group = lane / 4 and t = lane % 4; a word holds two neighbouring bf16, the lower index in its low half
// (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"):
//
//   a[4]  A [16, 16] row-major: words at (group, 2t), (group + 8, 2t), (group, 2t + 8), (group + 8, 2t + 8)
//   b[2]  B [16, 8] column-major: words at (k, n) = (2t, group), (2t + 8, group)
//   c[4]  C [16, 8]: (group, 2t), (group, 2t + 1), (group + 8, 2t), (group + 8, 2t + 1)
//
// Of TF32 a word is one element ("Matrix Fragments for mma.m16n8k8", .tf32), and C as above:
//
//   a[4]  A [16, 8] row-major: (group, t), (group + 8, t), (group, t + 4), (group + 8, t + 4)
//   b[2]  B [8, 8] column-major: (k, n) = (t, group), (t + 4, group)
//
// Where k follows k in memory, these are the bytes of the bf16 fragments, and ldmatrix_x4 loads them.
#pragma once
#include "common/types.cuh"

// c += A B.
DEV void mma_m16n8k16(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef __CUDACC__
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emulator_mma_bf16(c, a, b, c, __builtin_FILE(), __builtin_LINE());
#endif
}

// c += A B of words that `tf32_bits` has rounded.
DEV void mma_m16n8k8_tf32(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef __CUDACC__
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emulator_mma_tf32(c, a, b, c, __builtin_FILE(), __builtin_LINE());
#endif
}

// Of factors stored as T: bf16, or f32 that is TF32.
template <typename T>
DEV void mma_of(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    if constexpr (sizeof(T) == sizeof(f32)) mma_m16n8k8_tf32(c, a, b);
    else mma_m16n8k16(c, a, b);
}

// A word of shared memory.
DEV u32 load_shared(SharedAddress at) {
#ifdef __CUDACC__
    u32 word;
    asm volatile("ld.shared.u32 %0, [%1];\n" : "=r"(word) : "r"(at) : "memory");
    return word;
#else
    return *reinterpret_cast<const u32*>(at);
#endif
}

// Loads four 8x8 matrices of bf16 from shared memory. Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes,
// aligned to 16) and receives of matrix i, in words[i], the pair at (group, 2t).
//
// For A at `tile` with `stride` elements a row: row address tile + (lane % 16) * stride + (lane / 16) * 8 gives a[0..4].
DEV void ldmatrix_x4(u32 (&words)[4], SharedAddress row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(row)
                 : "memory");
#else
    emulator_ldmatrix(words, row, 4, 0, __builtin_FILE(), __builtin_LINE());
#endif
}

DEV void ldmatrix_x4(u32 (&words)[4], const void* row) { ldmatrix_x4(words, shared_address(const_cast<void*>(row))); }

// With each matrix transposed: the lane receives the elements (2t, group) and (2t + 1, group).
//
// For B stored row-major [k, n] with `stride` elements a row: tile + (lane % 16) * stride + (lane / 16) * 8 gives the b of
// columns 0..8 in words[0..2] and of columns 8..16 in words[2..4].
DEV void ldmatrix_x4_trans(u32 (&words)[4], SharedAddress row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(row)
                 : "memory");
#else
    emulator_ldmatrix(words, row, 4, 1, __builtin_FILE(), __builtin_LINE());
#endif
}

DEV void ldmatrix_x4_trans(u32 (&words)[4], const void* row) {
    ldmatrix_x4_trans(words, shared_address(const_cast<void*>(row)));
}

// Two matrices: lanes 0..16 give the row addresses.
DEV void ldmatrix_x2(u32 (&words)[2], const void* row) {
#ifdef __CUDACC__
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(address)
                 : "memory");
#else
    emulator_ldmatrix(words, row, 2, 0, __builtin_FILE(), __builtin_LINE());
#endif
}

// Two matrices, transposed.
DEV void ldmatrix_x2_trans(u32 (&words)[2], const void* row) {
#ifdef __CUDACC__
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(address)
                 : "memory");
#else
    emulator_ldmatrix(words, row, 2, 1, __builtin_FILE(), __builtin_LINE());
#endif
}
