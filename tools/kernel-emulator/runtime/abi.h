// The C interface between the compiled kernels, the emulator and whoever launches them. This file is its one place: the
// bindings in Rust (`src/abi.rs` here and `src/device/emulator.rs` in the engine) repeat it field by field and compare
// EMULATOR_ABI.
//
// A folder of compiled kernels holds one shared library `<module>.so` per `kernels/<module>.cu` and the emulator itself,
// which they are all linked to. A caller opens `<module>.so`, asks it for `emulator_module()`, and starts kernels through
// `emulator_launch`, which it finds in the same library's dependencies.
#pragma once

#define EMULATOR_ABI 1u

extern "C" {

// A parameter of a kernel.
struct EmulatorParameter {
    const char* name;
    const char* type;            // as written, without __restrict__: "const bf16*", "u32"
    unsigned int element_bytes;  // of the type pointed to; 0 for a scalar
    unsigned int writable;       // 1 for a pointer that is not to const
};

// A kernel entry point.
struct EmulatorKernel {
    const char* name;
    unsigned int max_threads;  // from __launch_bounds__
    unsigned int parameter_count;
    const EmulatorParameter* parameters;
    void (*invoke)(const unsigned long long* values);  // runs one thread; for the emulator alone
};

struct EmulatorModule {
    unsigned int abi;  // EMULATOR_ABI
    unsigned int kernel_count;
    const EmulatorKernel* kernels;
};

enum EmulatorArgumentKind : unsigned int {
    EMULATOR_BUFFER = 0,
    EMULATOR_I32 = 1,
    EMULATOR_U32 = 2,
    EMULATOR_U64 = 3,
    EMULATOR_F32 = 4,
};

struct EmulatorArgument {
    unsigned int kind;
    unsigned int writable;          // of a buffer: the caller lets the kernel write
    unsigned long long value;       // a buffer's host address, or the scalar's bits (a float's in the low word)
    unsigned long long bytes;       // a buffer's exact extent
    unsigned long long unwritten;   // out, if asked for: elements of a writable buffer that no thread wrote
    unsigned long long first_unwritten;  // out: the first of them
};

enum EmulatorOrder : unsigned int { EMULATOR_FORWARD = 0, EMULATOR_REVERSE = 1, EMULATOR_RANDOM = 2 };

struct EmulatorConfig {
    unsigned int grid[3];
    unsigned int block[3];
    unsigned int shared_bytes;
    unsigned int order;
    unsigned long long seed;       // of EMULATOR_RANDOM
    unsigned int find_unwritten;   // 1: fill in the arguments' `unwritten`
    unsigned int reserved;
};

struct EmulatorReport {
    unsigned long long accesses;  // memory accesses checked
    unsigned long long barriers;  // __syncthreads passed by a whole block
    char message[2040];           // one line, empty if all went well
};

// From each module's library.
const EmulatorModule* emulator_module();

// Runs a launch to its end on the calling thread; several may run at once on several threads. Returns 0, or 1 with the
// reason in `report->message`; then no buffer has changed. A buffer that the kernel may write must not overlap another
// argument: the kernels' pointers are __restrict__.
int emulator_launch(const EmulatorKernel* kernel, const EmulatorConfig* config, EmulatorArgument* arguments,
                    unsigned int count, EmulatorReport* report);
}
