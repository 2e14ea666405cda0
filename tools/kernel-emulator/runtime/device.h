// CUDA's built-ins, for kernels compiled by the host's compiler. The compile step injects this header before every
// kernel source; everything here is a thin call into the emulator, so that no bookkeeping of its own is checked.
#pragma once
#include "abi.h"

#define __global__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static_assert(false, "shared memory is declared through SHARED or SMEM_DYN");

#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct EmulatorIndex {
    unsigned int x, y, z;
};

extern "C" {
EmulatorIndex emulator_thread_index() __attribute__((const));
EmulatorIndex emulator_block_index() __attribute__((const));
EmulatorIndex emulator_block_size() __attribute__((const));
EmulatorIndex emulator_grid_size() __attribute__((const));

void* emulator_dynamic_shared() __attribute__((const));
void* emulator_static_shared(const void* identity, unsigned long bytes, unsigned long element_bytes,
                             const char* name);

int emulator_sync_block(int kind, int predicate, const char* file, int line);
void emulator_sync_warp(unsigned int mask, const char* file, int line);
void emulator_fence();
unsigned int emulator_shuffle(int kind, unsigned int mask, unsigned int value, unsigned int argument,
                              unsigned int width, const char* file, int line);
unsigned int emulator_vote(int kind, unsigned int mask, int predicate, const char* file, int line);
unsigned long long emulator_atomic(int kind, void* address, unsigned int bytes, unsigned long long value,
                                   unsigned long long compare);

void emulator_mma_bf16(float* d, const unsigned int* a, const unsigned int* b, const float* c, const char* file,
                       int line);
void emulator_mma_tf32(float* d, const unsigned int* a, const unsigned int* b, const float* c, const char* file,
                       int line);
void emulator_ldmatrix(unsigned int* fragments, const void* row, unsigned int count, int transposed, const char* file,
                       int line);
void emulator_async_copy(void* shared, const void* global, unsigned int source_bytes);
void emulator_async_commit();
void emulator_async_wait(unsigned int groups_left);
void emulator_trap() __attribute__((noreturn));
}

#define threadIdx (emulator_thread_index())
#define blockIdx (emulator_block_index())
#define blockDim (emulator_block_size())
#define gridDim (emulator_grid_size())

// Barriers and fences.
static inline void __syncthreads(EMULATOR_SITE) { emulator_sync_block(0, 0, file, line); }
static inline int __syncthreads_count(int predicate, EMULATOR_SITE) {
    return emulator_sync_block(1, predicate != 0, file, line);
}
static inline int __syncthreads_or(int predicate, EMULATOR_SITE) {
    return emulator_sync_block(2, predicate != 0, file, line) != 0;
}
static inline int __syncthreads_and(int predicate, EMULATOR_SITE) {
    return emulator_sync_block(3, predicate == 0, file, line) == 0;
}
static inline void __syncwarp(unsigned int mask = 0xffffffffu, EMULATOR_SITE) { emulator_sync_warp(mask, file, line); }
static inline void __threadfence() { emulator_fence(); }
static inline void __trap() { emulator_trap(); }

// Shuffles of 4 and 8 byte values.
template <typename T>
static inline T emulator_shuffle_as(int kind, unsigned int mask, T value, unsigned int argument, unsigned int width,
                                    const char* file, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    if constexpr (sizeof(T) == 4) {
        unsigned int bits = __builtin_bit_cast(unsigned int, value);
        return __builtin_bit_cast(T, emulator_shuffle(kind, mask, bits, argument, width, file, line));
    } else {
        unsigned long long bits = __builtin_bit_cast(unsigned long long, value);
        unsigned int low = emulator_shuffle(kind, mask, (unsigned int)bits, argument, width, file, line);
        unsigned int high = emulator_shuffle(kind, mask, (unsigned int)(bits >> 32), argument, width, file, line);
        return __builtin_bit_cast(T, (unsigned long long)high << 32 | low);
    }
}
#define EMULATOR_SHUFFLE(name, kind, argument_type)                                                              \
    template <typename T>                                                                                        \
    static inline T name(unsigned int mask, T value, argument_type argument, int width = 32, EMULATOR_SITE) {   \
        return emulator_shuffle_as(kind, mask, value, (unsigned int)argument, (unsigned int)width, file, line); \
    }
EMULATOR_SHUFFLE(__shfl_sync, 0, int)
EMULATOR_SHUFFLE(__shfl_up_sync, 1, unsigned int)
EMULATOR_SHUFFLE(__shfl_down_sync, 2, unsigned int)
EMULATOR_SHUFFLE(__shfl_xor_sync, 3, int)

static inline unsigned int __ballot_sync(unsigned int mask, int predicate, EMULATOR_SITE) {
    return emulator_vote(0, mask, predicate, file, line);
}
static inline int __any_sync(unsigned int mask, int predicate, EMULATOR_SITE) {
    return (int)emulator_vote(1, mask, predicate, file, line);
}
static inline int __all_sync(unsigned int mask, int predicate, EMULATOR_SITE) {
    return (int)emulator_vote(2, mask, predicate, file, line);
}

// Integer atomics.
#define EMULATOR_ATOMIC(name, kind, type)                                                         \
    static inline type name(type* address, type value) {                                          \
        return (type)emulator_atomic(kind, address, sizeof(type), (unsigned long long)value, 0); \
    }
EMULATOR_ATOMIC(atomicAdd, 0, unsigned int)
EMULATOR_ATOMIC(atomicAdd, 0, int)
EMULATOR_ATOMIC(atomicAdd, 0, unsigned long long)
EMULATOR_ATOMIC(atomicInc, 1, unsigned int)
EMULATOR_ATOMIC(atomicExch, 2, unsigned int)
EMULATOR_ATOMIC(atomicMax, 3, unsigned int)
EMULATOR_ATOMIC(atomicMin, 4, unsigned int)
EMULATOR_ATOMIC(atomicOr, 5, unsigned int)
EMULATOR_ATOMIC(atomicAnd, 6, unsigned int)
static inline unsigned int atomicCAS(unsigned int* address, unsigned int compare, unsigned int value) {
    return (unsigned int)emulator_atomic(7, address, 4, value, compare);
}

// Bits and integers.
static inline unsigned int __float_as_uint(float x) { return __builtin_bit_cast(unsigned int, x); }
static inline float __uint_as_float(unsigned int x) { return __builtin_bit_cast(float, x); }
static inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
static inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
static inline unsigned int __umulhi(unsigned int a, unsigned int b) {
    return (unsigned int)((unsigned long long)a * b >> 32);
}
static inline int __popc(unsigned int x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned int)x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
