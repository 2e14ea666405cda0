// Philox4x32-10 and the keyed permutation of src/core/rng.rs, word for word.
//
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once
#include "common/types.cuh"

// The purpose of a number: the last word of the counter. The values are those of `Purpose` in src/core/rng.rs.
enum Purpose : u32 {
    PURPOSE_NOISE = 0,
    PURPOSE_TIMESTEP = 1,
    PURPOSE_LABEL_DROPOUT = 2,
    PURPOSE_FLIP = 3,
    PURPOSE_EPOCH = 4,
    PURPOSE_INITIALISATION = 5,
    PURPOSE_SHAPES = 6,
    PURPOSE_SPLIT = 7,
    PURPOSE_DROPOUT = 8,
    PURPOSE_PROBE = 9,
    PURPOSE_CROP = 10,
};

struct U32x4 {
    u32 x, y, z, w;
};
struct F32x4 {
    f32 x, y, z, w;
};

// Both words of FACTOR x: one product. Left to itself the compiler makes the rounds of 64-bit integers, with half as many operations again.
template <u32 FACTOR>
DEV void multiply_wide(u32 x, u32& low, u32& high) {
#ifdef __CUDACC__
    u64 product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(x), "n"(FACTOR));
    asm("mov.b64 {%0, %1}, %2;" : "=r"(low), "=r"(high) : "l"(product));
#else
    u64 product = (u64)FACTOR * x;
    low = (u32)product;
    high = (u32)(product >> 32);
#endif
}

DEV u32 xor_of_three(u32 a, u32 b, u32 c) {
#ifdef __CUDACC__
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0x96;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
#else
    return a ^ b ^ c;
#endif
}

// 128 random bits of a 128-bit counter and the 64-bit key `seed`.
DEV U32x4 philox4x32_10(U32x4 c, u64 seed) {
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
    UNROLL for (u32 round = 0; round < 10; round++) {
        if (round > 0) {
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        u32 low0, high0, low1, high1;
        multiply_wide<0xD2511F53u>(c.x, low0, high0);
        multiply_wide<0xCD9E8D57u>(c.z, low1, high1);
        c = U32x4{xor_of_three(high1, c.y, k0), low1, xor_of_three(high0, c.w, k1), low0};
    }
    return c;
}

// The bits of elements 4 * element_block ..+ 4 of example or sample `item`.
DEV U32x4 philox_bits4(u64 seed, u32 element_block, u32 item, u32 step, u32 purpose) {
    return philox4x32_10(U32x4{element_block, item, step, purpose}, seed);
}

// A number in the open interval (0, 1), exact in f32: the upper 23 bits, centred in their cells.
DEV f32 uniform(u32 bits) {
    return (f32)(bits >> 9) * 1.1920928955078125e-7f + 5.9604644775390625e-8f;
}

DEV F32x4 philox_uniform4(u64 seed, u32 element_block, u32 item, u32 step, u32 purpose) {
    U32x4 b = philox_bits4(seed, element_block, item, step, purpose);
    return F32x4{uniform(b.x), uniform(b.y), uniform(b.z), uniform(b.w)};
}

// Box and Muller: two independent normal numbers of two uniform ones.
DEV void box_muller(f32 u0, f32 u1, f32* n0, f32* n1) {
    f32 radius = sqrt_f32(-2.0f * log_f32(u0));
    f32 angle = 6.283185307179586f * u1;
    *n0 = radius * cos_f32(angle);
    *n1 = radius * sin_f32(angle);
}

// Four normal numbers: the pairs of uniforms are (0, 1) and (2, 3).
DEV F32x4 philox_normal4(u64 seed, u32 element_block, u32 item, u32 step, u32 purpose) {
    F32x4 u = philox_uniform4(seed, element_block, item, step, purpose), n;
    box_muller(u.x, u.y, &n.x, &n.y);
    box_muller(u.z, u.w, &n.z, &n.w);
    return n;
}

// MurmurHash3's finaliser.
DEV u32 mix(u32 v) {
    v ^= v >> 16;
    v *= 0x85EBCA6Bu;
    v ^= v >> 13;
    v *= 0xC2B2AE35u;
    return v ^ (v >> 16);
}

// Where `index` (below `len`) goes in the shuffled order of `len` items: eight Feistel rounds over the smallest domain of
// 2^(2h) >= len numbers, walked until the value falls below `len`.
DEV u32 permute(u32 index, u32 len, u64 seed, u32 epoch) {
    U32x4 a = philox_bits4(seed, 0, 0, epoch, PURPOSE_EPOCH), b = philox_bits4(seed, 1, 0, epoch, PURPOSE_EPOCH);
    u32 keys[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    u32 half_bits = 1;
    while (half_bits < 16 && (1u << (2 * half_bits)) < len) half_bits++;
    u32 mask = (1u << half_bits) - 1, x = index;
    do {
        u32 l = x >> half_bits, r = x & mask;
        UNROLL for (u32 i = 0; i < 8; i++) {
            u32 next = l ^ (mix(r ^ keys[i]) & mask);
            l = r;
            r = next;
        }
        x = (l << half_bits) | r;
    } while (x >= len);
    return x;
}
