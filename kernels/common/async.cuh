// Asynchronous copies from global to shared memory (cp.async, compute capability 8.0 on).
//
// A thread starts copies, closes them into a group with `async_commit`, and waits until all but its newest N groups have
// landed. The wait is the thread's own: a barrier must follow before other threads may read. The emulator lets a copy land
// at its wait and reports who touches the destination before.
#pragma once
#include "common/types.cuh"

// Copies 16 bytes; both addresses are multiples of 16.
DEV void async_copy16(SharedAddress to, const void* global) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(global) : "memory");
#else
    emulator_async_copy(to, global, 16);
#endif
}
DEV void async_copy16(void* shared, const void* global) { async_copy16(shared_address(shared), global); }

// Copies `bytes` (0 to 16) bytes and fills the rest of the 16 with zeros. With 0, `global` is not read and may be null.
DEV void async_copy16_zero_fill(SharedAddress to, const void* global, u32 bytes) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#else
    emulator_async_copy(to, global, bytes);
#endif
}
DEV void async_copy16_zero_fill(void* shared, const void* global, u32 bytes) {
    async_copy16_zero_fill(shared_address(shared), global, bytes);
}

// Closes the copies that this thread started since the last commit into a group (an empty one if there are none).
DEV void async_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
    emulator_async_commit();
#endif
}

// Waits until at most the newest N of this thread's groups are in flight.
template <u32 N>
DEV void async_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
#else
    emulator_async_wait(N);
#endif
}
