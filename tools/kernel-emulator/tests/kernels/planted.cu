// Small kernels in pairs: one that is right, and its twin with one planted bug, which `bug` > 0 switches on. The tests of
// the checker run both.
#include "common/async.cuh"
#include "common/entry.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include "common/types.cuh"
#include "common/vector.cuh"

DEV void reverse_in_block(f32* y, const f32* x, u32 bug) {
    SHARED(f32, tile, [64]);
    u32 t = threadIdx.x;
    tile[t] = x[blockIdx.x * 64 + t];
    if (bug == 0) __syncthreads();
    y[blockIdx.x * 64 + t] = bug == 2 ? (&tile[1])[63] : tile[63 - t];
}
ENTRY(planted_barrier, (64), f32, (Out<f32> y, In<f32> x, u32 bug), reverse_in_block(y, x, bug))

// Overwrites shared memory that the neighbours have yet to read: the second barrier.
DEV void shift_twice(f32* y, const f32* x, u32 bug) {
    SHARED(f32, tile, [64]);
    u32 t = threadIdx.x;
    tile[t] = x[t];
    __syncthreads();
    f32 v = tile[(t + 1) % 64];
    if (bug == 0) __syncthreads();
    tile[t] = v;
    __syncthreads();
    y[t] = tile[(t + 1) % 64];
}
ENTRY(planted_overwrite, (64), f32, (Out<f32> y, In<f32> x, u32 bug), shift_twice(y, x, bug))

// bug 1: none at all; bug 2: only the even lanes wait for each other; bug 3: a shuffle instead, which orders nothing.
DEV void reverse_in_warp(f32* y, const f32* x, u32 bug) {
    SHARED(f32, tile, [64]);
    u32 t = threadIdx.x, lane = t % WARP, warp = t / WARP;
    tile[t] = x[t];
    if (bug == 0) __syncwarp();
    if (bug == 2 && lane % 2 == 0) __syncwarp(0x55555555u);
    if (bug == 3) warp_sum(1.0f);
    y[t] = tile[warp * WARP + (WARP - 1 - lane)];
}
ENTRY(planted_warp_barrier, (64), f32, (Out<f32> y, In<f32> x, u32 bug), reverse_in_warp(y, x, bug))

// Groups of eight lanes exchange through shared memory, again and again; bug 1: the wait before overwriting is missing.
DEV void groups_in_warp(f32* y, const f32* x, u32 bug) {
    SHARED(f32, tile, [32]);
    u32 t = threadIdx.x, group = t / 8 * 8, mask = 0xffu << group;
    f32 v = x[t];
    for (u32 i = 0; i < 5; i++) {
        tile[t] = v;
        __syncwarp(mask);
        v = tile[group + (t + 1) % 8] + tile[group];
        if (bug == 0) __syncwarp(mask);
    }
    y[t] = v;
}
ENTRY(planted_group_barrier, (32), f32, (Out<f32> y, In<f32> x, u32 bug), groups_in_warp(y, x, bug))

// Doubles x through two buffers. bug 1: no wait; bug 2: no barrier behind it; bug 3: the wait leaves one group too many.
DEV void pipeline(f32* y, const f32* x, u32 tiles, u32 bug) {
    SMEM_DYN(smem);
    f32* stage = reinterpret_cast<f32*>(smem);
    u32 t = threadIdx.x;
    async_copy16(stage + 4 * t, x + 4 * t);
    async_commit();
    for (u32 i = 0; i < tiles; i++) {
        if (i + 1 < tiles) async_copy16(stage + (i + 1) % 2 * 128 + 4 * t, x + (i + 1) * 128 + 4 * t);
        async_commit();
        if (bug == 3) async_wait<2>();
        else if (bug != 1) async_wait<1>();
        if (bug != 2) __syncthreads();
        for (u32 c = t; c < 128; c += 32) y[i * 128 + c] = 2.0f * stage[i % 2 * 128 + c];
        __syncthreads();
    }
}
ENTRY(planted_async, (32), f32, (Out<f32> y, In<f32> x, u32 tiles, u32 bug), pipeline(y, x, tiles, bug))

// Copies n floats, the last vector padded with zeros.
DEV void zero_fill(f32* y, const f32* x, u32 n) {
    SHARED(f32, tile, [32]);
    u32 t = threadIdx.x, left = n - min_of(4 * t, n);
    if (t < 8) async_copy16_zero_fill(tile + 4 * t, left ? x + 4 * t : nullptr, min_of(left * 4, 16u));
    async_commit();
    async_wait<0>();
    __syncthreads();
    y[t] = tile[t];
}
ENTRY(planted_async_zero_fill, (32), f32, (Out<f32> y, In<f32> x, u32 n), zero_fill(y, x, n))

// Sums x into y[0]. bug 1: all threads add at once; bug 2: every block adds without a ticket; bug 3: no fence.
DEV void total(f32* y, f32* partial, u32* ticket, const f32* x, u32 n, u32 bug) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    f32 v = i < n ? x[i] : 0.0f;
    if (bug == 1) {
        y[blockIdx.x] += v;
        return;
    }
    f32 sum = block_sum(v);
    if (bug == 2) {
        if (threadIdx.x == 0) y[0] += sum;
        return;
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
    if (bug == 3) {
        SHARED(u32, is_last, [1]);
        __syncthreads();
        if (threadIdx.x == 0) is_last[0] = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
        __syncthreads();
        if (!is_last[0]) return;
    } else if (bug == 4) {
        __syncthreads();  // reads the others' partial sums without asking whether they are there
    } else if (!last_block(ticket, gridDim.x)) {
        return;
    }
    f32 all = block_sum(threadIdx.x < gridDim.x ? partial[threadIdx.x] : 0.0f);
    if (threadIdx.x == 0) y[0] = all;
}
ENTRY(planted_sum_blocks, (256), f32, (Out<f32> y, Out<f32> partial, Out<u32> ticket, In<f32> x, u32 n, u32 bug), total(y, partial, ticket, x, n, bug))

// y[r] = sum of row r of x [rows, cols]. bug 1: the bound is one too far; bug 2: the stride is a wrong one; bug 3: the last
// row is left out; bug 4: writes its input; bug 5: one before the first.
template <typename T>
DEV void row_sums(T* y, const T* x, u32 rows, u32 cols, u32 bug) {
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (bug == 3 ? row + 1 >= rows : row >= rows + (bug == 1)) return;
    u32 stride = bug == 2 ? cols + 1 : cols;
    f32 sum = 0.0f;
    for (u32 c = 0; c < cols; c++) sum += to_f32(x[(u64)row * stride + c]);
    if (bug == 4) const_cast<T*>(x)[row] = from_f32<T>(sum);
    if (bug == 5) sum += to_f32((x + row)[-1]);
    y[row] = from_f32<T>(sum);
}
ENTRY(planted_row_sums_f32, (64), f32, (Out<f32> y, In<f32> x, u32 rows, u32 cols, u32 bug), row_sums<f32>(y, x, rows, cols, bug))
ENTRY(planted_row_sums_bf16, (64), f32, (Out<bf16> y, In<bf16> x, u32 rows, u32 cols, u32 bug), row_sums<bf16>(y, x, rows, cols, bug))

// bug 1: one cell of the shared tile is never written; bug 2: reads behind dynamic shared memory.
DEV void half_tile(f32* y, const f32* x, u32 bug) {
    SMEM_DYN(smem);
    f32* tile = reinterpret_cast<f32*>(smem);
    u32 t = threadIdx.x;
    if (bug != 1 || t != 17) tile[t] = x[t];
    __syncthreads();
    y[t] = tile[bug == 2 ? t + 1 : t ^ 1];
}
ENTRY(planted_tile, (32), f32, (Out<f32> y, In<f32> x, u32 bug), half_tile(y, x, bug))

// bug 1: some threads return before the barrier; bug 2: two barriers where threads part; bug 3: a shuffle in half of a warp;
// bug 4: while the other half waits at a barrier.
DEV void divergent(f32* y, const f32* x, u32 bug) {
    u32 t = threadIdx.x;
    if (bug == 1 && t == 40) return;
    if (bug == 2 && t < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    f32 v = x[t];
    if (bug < 3 || t % WARP < 16) v = warp_max(v);
    if (bug == 4) __syncthreads();
    y[t] = v;
}
ENTRY(planted_meet, (64), f32, (Out<f32> y, In<f32> x, u32 bug), divergent(y, x, bug))

// bug 1: signed overflow; bug 2: a shift by 32; bug 3: outside a local array; bug 4: division by zero.
DEV void integers(i32* y, const i32* x, i32 bug) {
    i32 t = (i32)threadIdx.x, v = x[t];
    i32 local[4] = {v, v + 1, v + 2, v + 3};
    if (bug == 1) v += 0x7fffffff;
    if (bug == 2) v <<= t + 32;
    if (bug == 3) v = local[t + 4];
    if (bug == 4) v /= t;
    y[t] = v + local[t % 4];
}
ENTRY(planted_undefined, (32), f32, (Out<i32> y, In<i32> x, i32 bug), integers(y, x, bug))

template <typename T>
DEV void copy_vectors(T* y, const T* x, u32 n, u32 offset) {
    for (u32 i = offset + threadIdx.x * Vec16<T>::COUNT; i + Vec16<T>::COUNT <= n; i += blockDim.x * Vec16<T>::COUNT) store16(y + i, load16(x + i));
}
ENTRY(planted_vectors_f32, (32), f32, (Out<f32> y, In<f32> x, u32 n, u32 offset), copy_vectors<f32>(y, x, n, offset))
ENTRY(planted_vectors_bf16, (32), f32, (Out<bf16> y, In<bf16> x, u32 n, u32 offset), copy_vectors<bf16>(y, x, n, offset))

// Neighbouring bf16 are written by different threads: no race. bug 1: so are the halves of one word, as words.
DEV void neighbours(bf16* y, u32 bug) {
    SHARED(bf16, tile, [32]);
    u32 t = threadIdx.x;
    tile[t] = bf16_from_f32((f32)t);
    if (bug == 1) *reinterpret_cast<u32*>(&tile[t / 2 * 2]) = t;
    __syncthreads();
    y[t] = tile[31 - t];
}
ENTRY(planted_halves, (32), f32, (Out<bf16> y, u32 bug), neighbours(y, bug))

// Through the other ways of shared memory and statistics: votes, counting barriers, atomics, a loop that only spins over
// its own stack, a pointer to another thread's local variable (bug 1), recursion (bug 2), a trap (bug 3).
DEV u32 depth(u32 n) {
    volatile u32 here[4000];
    here[n % 4000] = n;
    return n == 0 ? 0 : depth(n - 1) + here[n % 4000];
}
DEV void others(u32* y, u32 n, u32 bug) {
    SHARED(u64, address, [1]);
    SHARED(u32, count, [1]);
    u32 t = threadIdx.x;
    u32 local[8];
    for (u32 i = 0; i < 8; i++) local[i] = t + i;
    if (t == 0) {
        address[0] = (u64)&local[0];
        count[0] = 0;
    }
    __syncthreads();
    atomicAdd(&count[0], 1u);
    u32 even = (u32)__syncthreads_count(t % 2 == 0);
    u32 any = (u32)__syncthreads_or(t == 5) * 10 + (u32)__syncthreads_and(t < n) * 100;
    u32 ballot = __ballot_sync(FULL_MASK, t % WARP < 4);
    if (bug == 1) local[1] = *reinterpret_cast<u32*>(address[0]);
    if (bug == 2) local[1] = depth(n);
    if (bug == 3) __trap();
    y[t] = count[0] + even * 1000 + any + (ballot == 15u) + local[t % 8] * 0;
}
ENTRY(planted_various, (64), f32, (Out<u32> y, u32 n, u32 bug), others(y, n, bug))

// The warp comes to one instruction together. bug 1: half of it multiplies in one branch, half in the other; bug 2: the same of
// ldmatrix; bug 3: of a barrier, within a function that both call. Warps may part: that is right whatever they do.
DEV f32 sums_of(u32 lane, f32 v) {
    return block_sum(lane == 0 ? v : 1.0f);
}
DEV void parted(f32* y, u32 bug) {
    SHARED(bf16, tile, [32][8]);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (warp == 0)
        for (u32 i = 0; i < 8; i++) tile[lane][i] = bf16_from_f32(1.0f);
    __syncthreads();
    u32 a[4], b[2] = {0x3f803f80u, 0x3f803f80u};
    if (bug == 2 && lane >= 16) {
        ldmatrix_x4(a, &tile[lane][0]);
    } else {
        ldmatrix_x4(a, &tile[lane][0]);
    }
    f32 c[4] = {};
    if (bug == 1 ? lane < 16 : warp == 0) {
        mma_m16n8k16(c, a, b);
    } else {
        mma_m16n8k16(c, a, b);
    }
    f32 v;
    if (bug == 3 ? lane < 16 : warp == 0) {
        v = sums_of(lane, 1.0f);
    } else {
        v = sums_of(lane, 2.0f);
    }
    y[threadIdx.x] = c[0] + v;
}
ENTRY(planted_parted, (64), f32, (Out<f32> y, u32 bug), parted(y, bug))

// bug 1: computes for ever; bug 2: waits for what nobody writes; bug 3: meets at a barrier for ever.
DEV void endless(u32* y, u32 bug) {
    SHARED(u32, flag, [1]);
    u32 t = threadIdx.x, v = t;
    if (t == 0) flag[0] = 0;
    __syncthreads();
    while (bug == 1 && v != 7u * t + 1u) v = v * 5u + 2u * t;
    while (bug == 2 && t == 3) v += *(volatile u32*)&flag[0];
    while (bug == 3 && (u32)__syncthreads_count(1) == blockDim.x) v++;
    y[t] = v;
}
ENTRY(planted_endless, (32), f32, (Out<u32> y, u32 bug), endless(y, bug))

// A product in TF32 of a factor that needs more than 10 bits: rounded to them first, or (bug 1) not.
DEV void unrounded(f32* y, f32 x, u32 bug) {
    u32 word = bug == 1 ? f32_bits(x) : tf32_bits(x);
    const u32 a[4] = {word, word, word, word}, b[2] = {0x3f800000u, 0x3f800000u};
    f32 c[4] = {};
    mma_m16n8k8_tf32(c, a, b);
    y[threadIdx.x] = c[0];
}
ENTRY(planted_unrounded, (32), f32, (Out<f32> y, f32 x, u32 bug), unrounded(y, x, bug))
