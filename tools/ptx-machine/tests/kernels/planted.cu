// Kernels with one fault each, which is on the line marked so, for the machine that executes their PTX (tests/planted_cu.rs). Each
// gets 128 words that nobody wrote and 128 that somebody did, on 2 blocks of 64 threads.
#include "common/async.cuh"
#include "common/mma.cuh"
#include "common/types.cuh"

DEV u32 own() {
    return blockIdx.x * blockDim.x + threadIdx.x;
}

// A function between the fault and its kernel: the report names both.
DEV void put(u32* y, u32 i, u32 v) {
    y[i] = v;
}

extern "C" __global__ void __launch_bounds__(64) clean(u32* __restrict__ y, const u32* __restrict__ x) {
    put(y, own(), x[own()]);
}

extern "C" __global__ void __launch_bounds__(64) read_beyond(u32* __restrict__ y, const u32* __restrict__ x) {
    u32 v = x[own() + 1];  // fault
    y[own()] = v;
}

extern "C" __global__ void __launch_bounds__(64) write_beyond(u32* __restrict__ y, const u32* __restrict__ x) {
    u32 v = x[own()];
    put(y, own() + 1, v);  // fault
}

extern "C" __global__ void __launch_bounds__(64) shared_beyond(u32* __restrict__ y, const u32* __restrict__ x) {
    SHARED(u32, tile, [64]);
    tile[threadIdx.x + x[1]] = 1;  // fault
    __syncthreads();
    y[own()] = tile[0];
}

extern "C" __global__ void __launch_bounds__(64) local_beyond(u32* __restrict__ y, const u32* __restrict__ x) {
    u32 mine[8];
    for (u32 i = 0; i < 8; i++) mine[i] = x[i];
    u32 v = mine[x[own()] + 1];  // fault
    y[own()] = v;
}

extern "C" __global__ void __launch_bounds__(64) misaligned(u32* __restrict__ y, const u32* __restrict__ x) {
    const u8* bytes = reinterpret_cast<const u8*>(x);
    u32 v = *reinterpret_cast<const u32*>(bytes + own() + 1);  // fault
    y[own()] = v;
}

extern "C" __global__ void __launch_bounds__(64) unwritten_global(u32* __restrict__ y, const u32* __restrict__ x) {
    u32 v = y[own()];  // fault
    y[own()] = v + x[0];
}

extern "C" __global__ void __launch_bounds__(64) unwritten_shared(u32* __restrict__ y, const u32* __restrict__ x) {
    SHARED(u32, tile, [64]);
    if (threadIdx.x < 63) tile[threadIdx.x] = x[own()];
    __syncthreads();
    u32 v = tile[threadIdx.x];  // fault
    y[own()] = v;
}

#ifdef __CUDACC__
extern "C" __global__ void __launch_bounds__(64) unwritten_register(u32* __restrict__ y, const u32* __restrict__ x) {
    u32 i = own();
    // A compiler takes what C++ leaves without a value for any value: only PTX of one's own reads it.
    asm volatile("{ .reg .u32 r; .reg .pred p; setp.lt.u32 p, %1, 40; @p mov.u32 r, 7; st.global.u32 [%0], r; }" ::"l"(y + i), "r"(i) : "memory");  // fault
}
#endif

// `x` and `y` are one buffer here: `__restrict__` is a promise that the launch breaks.
extern "C" __global__ void __launch_bounds__(64) read_only_path(u32* __restrict__ y, const u32* __restrict__ x) {
    u32 v = x[own()];
    y[own() ^ 1] = v;  // fault
}

extern "C" __global__ void __launch_bounds__(64) race_in_global(u32* __restrict__ y, const u32* __restrict__ x) {
    u32 v = x[own()];
    y[threadIdx.x] = v;  // fault
}

extern "C" __global__ void __launch_bounds__(64) race_in_shared(u32* __restrict__ y, const u32* __restrict__ x) {
    SHARED(u32, tile, [64]);
    u32 t = threadIdx.x;
    tile[t] = x[own()];
    __syncthreads();
    u32 v = tile[t ^ 32];  // fault
    tile[t] = v;
    __syncthreads();
    y[own()] = tile[t];
}

extern "C" __global__ void __launch_bounds__(64) race_between_lanes(u32* __restrict__ y, const u32* __restrict__ x) {
    SHARED(u32, tile, [64]);
    u32 t = threadIdx.x;
    tile[t] = x[own()];
    u32 v = tile[t ^ 1];  // fault
    y[own()] = v;
}

extern "C" __global__ void __launch_bounds__(64) parted_mma(u32* __restrict__ y, const u32* __restrict__ x) {
    u32 a[4] = {x[0], x[1], x[2], x[3]}, b[2] = {x[4], x[5]};
    f32 c[4] = {};
    if (threadIdx.x % 32 < 16) {
        mma_m16n8k16(c, a, b);  // fault
    } else {
        b[0] = x[6];
        mma_m16n8k16(c, a, b);  // fault
        c[0] += 1.0f;
    }
    put(y, own(), f32_bits(c[0] + c[1]));
}

extern "C" __global__ void __launch_bounds__(64) half_a_warp_loads(u32* __restrict__ y, const u32* __restrict__ x) {
    SHARED(u32, tile, [64][4]);
    for (u32 i = 0; i < 4; i++) tile[threadIdx.x][i] = x[i];
    __syncthreads();
    u32 words[4] = {};
    if (threadIdx.x % 32 < 16) ldmatrix_x4(words, &tile[threadIdx.x][0]);  // fault
    y[own()] = words[0];
}

extern "C" __global__ void __launch_bounds__(64) divergent_barrier(u32* __restrict__ y, const u32* __restrict__ x) {
    u32 v = x[own()];
    if (threadIdx.x % 2 == 0) __syncthreads();  // fault
    y[own()] = v;
}

extern "C" __global__ void __launch_bounds__(64) forgotten_barrier(u32* __restrict__ y, const u32* __restrict__ x) {
    if (threadIdx.x >= 32) return;
    u32 v = x[own()];
    asm volatile("bar.sync 1, 64;" ::: "memory");  // fault
    y[own()] = v;
}

extern "C" __global__ void __launch_bounds__(64) shuffle_without_itself(u32* __restrict__ y, const u32* __restrict__ x) {
    u32 v = __shfl_sync(0x7fffffffu, x[own()], 0);  // fault
    y[own()] = v;
}

extern "C" __global__ void __launch_bounds__(64) shuffle_of_half(u32* __restrict__ y, const u32* __restrict__ x) {
    u32 v = x[own()];
    if (threadIdx.x % 32 < 16) {
        v = __shfl_sync(FULL_MASK, v, 0);  // fault
    } else {
        v = __ballot_sync(FULL_MASK, v == 0);  // fault
    }
    y[own()] = v;
}

extern "C" __global__ void __launch_bounds__(64) endless(u32* __restrict__ y, const u32* __restrict__ x) {
    u32 v = x[own()];
    while (v != 7u * own() + 1u) v = v * 5u + 2u * own();  // fault
    y[own()] = v;
}

extern "C" __global__ void __launch_bounds__(64) copy_not_waited_for(u32* __restrict__ y, const u32* __restrict__ x) {
    SHARED(u32, tile, [64][4]);
    async_copy16(tile[threadIdx.x], x + 4 * (own() / 4));
    async_commit();
    u32 v = tile[threadIdx.x][0];  // fault
    y[own()] = v;
}

extern "C" __global__ void __launch_bounds__(64) copy_without_barrier(u32* __restrict__ y, const u32* __restrict__ x) {
    SHARED(u32, tile, [64][4]);
    async_copy16(tile[threadIdx.x], x + 4 * (own() / 4));
    async_commit();
    async_wait<0>();
    u32 v = tile[threadIdx.x ^ 1][0];  // fault
    y[own()] = v;
}

extern "C" __global__ void __launch_bounds__(64) misaligned_copy(u32* __restrict__ y, const u32* __restrict__ x) {
    SHARED(u32, tile, [64][4]);
    async_copy16(tile[threadIdx.x], x + own() / 4);  // fault
    async_commit();
    async_wait<0>();
    y[own()] = tile[threadIdx.x][0];
}

extern "C" __global__ void __launch_bounds__(64) copy_source_written(u32* __restrict__ y, const u32* __restrict__ x) {
    SHARED(u32, tile, [64][4]);
    y[own()] = x[own()];
    __syncthreads();
    async_copy16(tile[threadIdx.x], y + 4 * (own() / 4));
    async_commit();
    __syncthreads();
    y[own()] = 7;  // fault
    async_wait<0>();
    __syncthreads();
    y[own()] = tile[threadIdx.x][0];
}

extern "C" __global__ void __launch_bounds__(64) copied_onto_twice(u32* __restrict__ y, const u32* __restrict__ x) {
    SHARED(u32, tile, [64][4]);
    async_copy16(tile[threadIdx.x], x + 4 * (own() / 4));
    async_commit();
    async_copy16(tile[threadIdx.x], x);  // fault
    async_commit();
    async_wait<0>();
    y[own()] = tile[threadIdx.x][0];
}

extern "C" __global__ void __launch_bounds__(64) divided_by_zero(u32* __restrict__ y, const u32* __restrict__ x) {
    u32 v = 100u / x[own()];  // fault
    y[own()] = v;
}

extern "C" __global__ void __launch_bounds__(64) remainder_by_zero(u32* __restrict__ y, const u32* __restrict__ x) {
    i32 v = 100 % static_cast<i32>(x[own()]);  // fault
    y[own()] = static_cast<u32>(v);
}

extern "C" __global__ void __launch_bounds__(64) trap(u32* __restrict__ y, const u32* __restrict__ x) {
    if (x[own()] == 77) __trap();  // fault
    y[own()] = 1;
}
