// Philox and the permutation, for their known answers.
#include "common/entry.cuh"
#include "common/philox.cuh"

DEV void bits(u32* y, u32 c0, u32 c1, u32 c2, u32 c3, u64 seed) {
    U32x4 b = philox4x32_10(U32x4{c0, c1, c2, c3}, seed);
    y[0] = b.x;
    y[1] = b.y;
    y[2] = b.z;
    y[3] = b.w;
}
ENTRY(philox_bits, (32), f32, (Out<u32> y, u32 c0, u32 c1, u32 c2, u32 c3, u64 seed), bits(y, c0, c1, c2, c3, seed))

DEV void normals(f32* y, u32 n, u64 seed) {
    u32 block = blockIdx.x * blockDim.x + threadIdx.x;
    if (4 * block >= n) return;
    F32x4 v = philox_normal4(seed, block, 1, 2, PURPOSE_NOISE);
    y[4 * block] = v.x;
    y[4 * block + 1] = v.y;
    y[4 * block + 2] = v.z;
    y[4 * block + 3] = v.w;
}
ENTRY(philox_normals, (256), f32, (Out<f32> y, u32 n, u64 seed), normals(y, n, seed))

DEV void places(u32* y, u32 n, u64 seed, u32 epoch) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = permute(i, n, seed, epoch);
}
ENTRY(philox_permutation, (256), f32, (Out<u32> y, u32 n, u64 seed, u32 epoch), places(y, n, seed, epoch))
