// Scalar types, conversions, device maths and the spellings that differ between CUDA and the host.
//
// Every kernel source goes through nvcc, NVRTC and, for the emulator, g++. On the host the emulator supplies what CUDA
// builds in (threadIdx, barriers, shuffles, integer atomics) in a header of its own, injected before this one.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;
typedef float f32;

static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8, "the sizes that the launches assume");

// DEV: every function that is not an entry.
//
// SMEM_DYN(name): the block's dynamic shared memory as `u8* name`, aligned to 128 bytes.
//
// UNROLL: the loop behind it is written out, whatever its length.
//
// SHARED(type, name, dims): a static shared array, `SHARED(f32, tile, [32][33]);`. Its contents are undefined at the
// start of a block: the emulator reports a read of what no thread wrote.
#ifdef __CUDACC__
#define DEV static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define SMEM_DYN(name) extern __shared__ __align__(128) u8 name[]
#define SHARED(type, name, dims) __shared__ __align__(16) type name dims
#else
#define DEV static inline __attribute__((unused))
#define UNROLL
#define SMEM_DYN(name) u8* const name = static_cast<u8*>(emulator_dynamic_shared())
#define SHARED(type, name, dims)                                                                                      \
    static char name##_identity;                                                                                      \
    typedef type name##_array dims;                                                                                   \
    name##_array& name =                                                                                              \
        *static_cast<name##_array*>(                                                                                  \
            emulator_static_shared(&name##_identity, sizeof(name##_array), sizeof(type), #name))
#endif

// An address of shared memory, as the instructions take it; bytes are added to it.
#ifdef __CUDACC__
typedef u32 SharedAddress;
DEV SharedAddress shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEV SharedAddress shared_xor(SharedAddress address, u32 bits) { return address ^ bits; }
#else
typedef u8* SharedAddress;
DEV SharedAddress shared_address(void* p) { return static_cast<u8*>(p); }
DEV SharedAddress shared_xor(SharedAddress address, u32 bits) { return reinterpret_cast<u8*>((u64)address ^ bits); }
#endif

// Lanes of a warp, and the mask that names them all.
constexpr u32 WARP = 32;
constexpr u32 FULL_MASK = 0xffffffffu;

// bfloat16: the upper half of an f32. Arithmetic is done in f32; only storage is narrow.
struct __align__(2) bf16 {
    u16 bits;
};

// x, of which the compiler knows nothing: a choice by it stays a branch, instead of a copy of the loop around it for each outcome.
DEV u32 opaque(u32 x) {
#ifdef __CUDACC__
    asm volatile("" : "+r"(x));
#endif
    return x;
}

DEV u32 f32_bits(f32 x) {
    return __float_as_uint(x);
}
DEV f32 f32_from_bits(u32 bits) {
    return __uint_as_float(bits);
}

// Rounds to nearest, ties to even, by the GPU's own instruction (compute capability 8.0 on). But for NaN the same bits as Rust's
// `half::bf16::from_f32`: there the sign and the upper bits stay, here every NaN becomes 0x7fff.
DEV bf16 bf16_from_f32(f32 x) {
#ifdef __CUDACC__
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    u32 b = f32_bits(x);
    if ((b & 0x7fffffffu) > 0x7f800000u) return bf16{0x7fff};
    return bf16{(u16)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16)};
#endif
}

// Two neighbouring elements as a word, the lower index in its low half.
DEV u32 bf16_pair(f32 low, f32 high) {
#ifdef __CUDACC__
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return (u32)bf16_from_f32(low).bits | ((u32)bf16_from_f32(high).bits << 16);
#endif
}

// f32 with 10 bits of fraction, the others zero: to nearest, ties away from zero. Of what is not finite the others are cut off: a NaN that
// a GPU's operation made stays one.
DEV u32 tf32_bits(f32 x) {
#ifdef __CUDACC__
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
#else
    u32 bits = f32_bits(x);
    bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    return (finite ? bits + 0x1000u : bits) & ~0x1fffu;
#endif
}

// As it is stored, in the low bits.
DEV u32 storage_bits(f32 x) {
    return f32_bits(x);
}
DEV u32 storage_bits(bf16 x) {
    return x.bits;
}

DEV f32 to_f32(f32 x) {
    return x;
}
DEV f32 to_f32(bf16 x) {
    return f32_from_bits((u32)x.bits << 16);
}

// The value as storage of the type pointed to; `from_f32<T>(x)` returns it.
DEV void store_f32(f32* to, f32 x) {
    *to = x;
}
DEV void store_f32(bf16* to, f32 x) {
    *to = bf16_from_f32(x);
}
template <typename T>
DEV T from_f32(f32 x) {
    T value;
    store_f32(&value, x);
    return value;
}

// Integers.
template <typename T>
DEV T min_of(T a, T b) {
    return a < b ? a : b;
}
template <typename T>
DEV T max_of(T a, T b) {
    return a > b ? a : b;
}
template <typename T>
DEV T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}
template <typename T>
DEV T round_up(T a, T b) {
    return ceil_div(a, b) * b;
}

// Device maths in f32: within 2 units in the last place of the host's.
#ifdef __CUDACC__
DEV f32 exp_f32(f32 x) { return expf(x); }
DEV f32 tanh_f32(f32 x) { return tanhf(x); }
DEV f32 log_f32(f32 x) { return logf(x); }
DEV f32 sqrt_f32(f32 x) { return sqrtf(x); }
DEV f32 rsqrt_f32(f32 x) { return rsqrtf(x); }
DEV f32 sin_f32(f32 x) { return sinf(x); }
DEV f32 cos_f32(f32 x) { return cosf(x); }
DEV f32 fma_f32(f32 a, f32 b, f32 c) { return fmaf(a, b, c); }
DEV f32 min_f32(f32 a, f32 b) { return fminf(a, b); }
DEV f32 max_f32(f32 a, f32 b) { return fmaxf(a, b); }
DEV f32 abs_f32(f32 x) { return fabsf(x); }
DEV f32 floor_f32(f32 x) { return floorf(x); }
#else
DEV f32 exp_f32(f32 x) { return __builtin_expf(x); }
DEV f32 tanh_f32(f32 x) { return __builtin_tanhf(x); }
DEV f32 log_f32(f32 x) { return __builtin_logf(x); }
DEV f32 sqrt_f32(f32 x) { return __builtin_sqrtf(x); }
DEV f32 rsqrt_f32(f32 x) { return 1.0f / __builtin_sqrtf(x); }
DEV f32 sin_f32(f32 x) { return __builtin_sinf(x); }
DEV f32 cos_f32(f32 x) { return __builtin_cosf(x); }
DEV f32 fma_f32(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
DEV f32 min_f32(f32 a, f32 b) { return __builtin_fminf(a, b); }
DEV f32 max_f32(f32 a, f32 b) { return __builtin_fmaxf(a, b); }
DEV f32 abs_f32(f32 x) { return __builtin_fabsf(x); }
DEV f32 floor_f32(f32 x) { return __builtin_floorf(x); }
#endif
DEV f32 infinity_f32() { return f32_from_bits(0x7f800000u); }

// The special-function unit's approximations, for what is rounded (to bf16, to TF32: a relative 2^-11), summed with what is, or corrected
// afterwards: 2^x within a relative 2^-22 and 1 / x within 2^-23 (PTX ISA, ex2 and rcp). Subnormal arguments and results are zeros.
#ifdef __CUDACC__
DEV f32 exp2_approx(f32 x) {
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEV f32 rcp_approx(f32 x) {
    f32 y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else
DEV f32 flushed_f32(f32 x) {
    u32 bits = f32_bits(x);
    return (bits & 0x7f800000u) == 0 ? f32_from_bits(bits & 0x80000000u) : x;
}
DEV f32 exp2_approx(f32 x) { return flushed_f32(__builtin_exp2f(flushed_f32(x))); }
DEV f32 rcp_approx(f32 x) { return flushed_f32(1.0f / flushed_f32(x)); }
#endif

// 1 / d for d >= 1 within a unit in the last place, by a Newton step instead of a division, which has a slow path in a branch. From
// 2^126 on it is 0, as the approximation is; a NaN stays one.
DEV f32 rcp_from_one(f32 d) {
    f32 r = rcp_approx(d), better = fma_f32(r, fma_f32(-d, r, 1.0f), r);
    return d < 8.50705917302346158658e37f ? better : r;
}
DEV f32 sigmoid_f32(f32 x) { return rcp_from_one(1.0f + exp_f32(-x)); }
