// Entries: the functions that a launch names. Every entry of kernels/*.cu is written by one of these macros, from its name (which begins
// with its file's), its __launch_bounds__ in brackets, its parameters, and the arguments or the call that hands all of them on, in order:
//
//   KERNELS(my_op_fwd, (256), (Out<T> y, In<T> x, u64 len), (y, x, len)) { … }
//
// The braces are the body of `template <typename T> DEV void my_op_fwd(…)`; my_op_fwd_f32 and my_op_fwd_bf16 call it with T = f32 and bf16.
// Parameters are pointers and scalars (i32, u32, u64, f32); tools/kernel-signatures makes a typed launch of each entry.
#pragma once
#include "types.cuh"

// What a kernel reads only, and what it may write (and read). No two of a launch's pointers lead to the same memory, but for what is only read.
template <typename T>
using In = const T* __restrict__;
template <typename T>
using Out = T* __restrict__;

// Machine code for compute capability 9.0 or newer waits here for the grids before (tools/kernel-signatures/src/grid_wait.rs, which adds the
// same to PTX).
#ifdef ENGINE_GRID_WAITS
#define GRID_WAIT asm volatile("griddepcontrol.wait; griddepcontrol.launch_dependents;" ::: "memory");
#else
#define GRID_WAIT
#endif

// One entry, which calls what stands last. T is `STORAGE` in the parameters and in the call.
#define ENTRY(NAME, BOUNDS, STORAGE, PARAMETERS, ...)                       \
    namespace NAME##_entry {                                                \
    using T = STORAGE;                                                      \
    extern "C" __global__ void __launch_bounds__ BOUNDS NAME PARAMETERS {   \
        GRID_WAIT __VA_ARGS__;                                              \
    }                                                                       \
    }

// Two entries, NAME_f32 and NAME_bf16.
#define ENTRIES(NAME, BOUNDS, PARAMETERS, ...)                    \
    ENTRY(NAME##_f32, BOUNDS, f32, PARAMETERS, __VA_ARGS__)       \
    ENTRY(NAME##_bf16, BOUNDS, bf16, PARAMETERS, __VA_ARGS__)

// Two entries and the template that both call, whose body follows.
#define KERNELS(NAME, BOUNDS, PARAMETERS, ARGUMENTS) BOUNDED_KERNELS(NAME, BOUNDS, BOUNDS, PARAMETERS, ARGUMENTS)
#define BOUNDED_KERNELS(NAME, F32_BOUNDS, BF16_BOUNDS, PARAMETERS, ARGUMENTS)          \
    template <typename T>                                                              \
    DEV void NAME PARAMETERS;                                                          \
    ENTRY(NAME##_f32, F32_BOUNDS, f32, PARAMETERS, NAME<T> ARGUMENTS)                  \
    ENTRY(NAME##_bf16, BF16_BOUNDS, bf16, PARAMETERS, NAME<T> ARGUMENTS)               \
    template <typename T>                                                              \
    DEV void NAME PARAMETERS

// The same of a template <typename Tile, typename T>: an entry for each tile of common/product.cuh; WIDE_: with those of 128x192, TALL_: with
// those of 128x64.
#define TILED_KERNELS(NAME, PARAMETERS, ARGUMENTS)                                                 \
    template <typename Tile, typename T>                                                           \
    DEV void NAME PARAMETERS;                                                                      \
    ENTRY(NAME##_large_f32, (256), f32, PARAMETERS, NAME<LargeTile, T> ARGUMENTS)                  \
    ENTRY(NAME##_large_bf16, (128), bf16, PARAMETERS, NAME<LargeTile, T> ARGUMENTS)                \
    ENTRY(NAME##_large_tf32, (128), f32, PARAMETERS, NAME<LargeTf32Tile, T> ARGUMENTS)             \
    ENTRY(NAME##_small_f32, (256), f32, PARAMETERS, NAME<SmallTile, T> ARGUMENTS)                  \
    ENTRY(NAME##_small_bf16, (128), bf16, PARAMETERS, NAME<SmallTile, T> ARGUMENTS)                \
    ENTRY(NAME##_small_tf32, (128), f32, PARAMETERS, NAME<SmallTf32Tile, T> ARGUMENTS)             \
    ENTRY(NAME##_eight_bf16, (256), bf16, PARAMETERS, NAME<EightTile, T> ARGUMENTS)                \
    ENTRY(NAME##_eight_tf32, (256), f32, PARAMETERS, NAME<EightTf32Tile, T> ARGUMENTS)             \
    template <typename Tile, typename T>                                                           \
    DEV void NAME PARAMETERS
#define TALL_TILED_KERNELS(NAME, PARAMETERS, ARGUMENTS)                                            \
    template <typename Tile, typename T>                                                           \
    DEV void NAME PARAMETERS;                                                                      \
    ENTRY(NAME##_tall_bf16, (128), bf16, PARAMETERS, NAME<TallTile, T> ARGUMENTS)                  \
    ENTRY(NAME##_tall_tf32, (128), f32, PARAMETERS, NAME<TallTf32Tile, T> ARGUMENTS)               \
    TILED_KERNELS(NAME, PARAMETERS, ARGUMENTS)
#define WIDE_TILED_KERNELS(NAME, PARAMETERS, ARGUMENTS)                                            \
    template <typename Tile, typename T>                                                           \
    DEV void NAME PARAMETERS;                                                                      \
    ENTRY(NAME##_wide_bf16, (256), bf16, PARAMETERS, NAME<WideTile, T> ARGUMENTS)                  \
    ENTRY(NAME##_wide_tf32, (256), f32, PARAMETERS, NAME<WideTf32Tile, T> ARGUMENTS)               \
    TILED_KERNELS(NAME, PARAMETERS, ARGUMENTS)

// One entry whose types are fixed (there is no T), and its body.
#define KERNEL(NAME, BOUNDS, PARAMETERS, ARGUMENTS)                  \
    DEV void NAME##_body PARAMETERS;                                 \
    ENTRY(NAME, BOUNDS, void, PARAMETERS, NAME##_body ARGUMENTS)     \
    DEV void NAME##_body PARAMETERS
