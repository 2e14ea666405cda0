//! The C interface between the compiled kernels, the emulator and whoever launches them, declared once: each field below
//! has its Rust type and its C declaration on one line, and [`HEADER`] is the C header made of these.
//!
//! A folder of compiled kernels holds one shared library `<module>.so` per `kernels/<module>.cu` and the emulator itself,
//! which they are all linked to. A caller opens `<module>.so`, asks it for `emulator_module()` ([`ModuleFunction`]), and
//! starts kernels through `emulator_launch` ([`LaunchFunction`]), which it finds in the same library's dependencies.

use std::ffi::{CStr, c_char, c_int};

/// Changes with the interface. A caller compares it with a library's, so that a stale one is refused.
pub const VERSION: u32 = 1;

/// Declares structs for Rust, and all of the header's text.
macro_rules! interface {
    ($($(#[$doc:meta])* $name:ident = $c:literal {
        $($(#[$field_doc:meta])* $field:ident: $type:ty = $declaration:literal,)*
    })*) => {
        $($(#[$doc])* #[repr(C)] pub struct $name { $($(#[$field_doc])* pub $field: $type,)* })*

        /// The interface as a C++ header, `abi.h`.
        pub const HEADER: &str = concat!(
            "// Written by the crate kernel-abi, do not edit.\n#pragma once\n\n#define EMULATOR_ABI 1u\n\n",
            "enum EmulatorArgumentKind : unsigned int {\n    EMULATOR_BUFFER = 0,\n    EMULATOR_I32 = 1,\n",
            "    EMULATOR_U32 = 2,\n    EMULATOR_U64 = 3,\n    EMULATOR_F32 = 4,\n};\n\n",
            "enum EmulatorOrder : unsigned int { EMULATOR_FORWARD = 0, EMULATOR_REVERSE = 1, EMULATOR_RANDOM = 2 };\n\n",
            "extern \"C\" {\n\n",
            $("struct ", $c, " {\n", $("    ", $declaration, ";\n",)* "};\n\n",)*
            "const EmulatorModule* emulator_module();\n\n",
            "int emulator_launch(const EmulatorKernel* kernel, const EmulatorConfig* config,\n",
            "                    EmulatorArgument* arguments, unsigned int count, EmulatorReport* report);\n}\n",
        );
    };
}

interface! {
    /// A parameter of a kernel.
    Parameter = "EmulatorParameter" {
        /// As the kernel calls it.
        name: *const c_char = "const char* name",
        /// As written, without `__restrict__`: `const bf16*`, `u32`.
        type_name: *const c_char = "const char* type",
        /// Of the type pointed to; 0 for a scalar.
        element_bytes: u32 = "unsigned int element_bytes",
        /// 1 for a pointer that is not to const.
        writable: u32 = "unsigned int writable",
    }

    /// A kernel entry point.
    Kernel = "EmulatorKernel" {
        /// The `extern "C"` name.
        name: *const c_char = "const char* name",
        /// From `__launch_bounds__`.
        max_threads: u32 = "unsigned int max_threads",
        /// Length of `parameters`.
        parameter_count: u32 = "unsigned int parameter_count",
        /// In the order of the signature.
        parameters: *const Parameter = "const EmulatorParameter* parameters",
        /// Runs one thread; for the emulator alone.
        invoke: *const () = "void (*invoke)(const unsigned long long* values)",
    }

    /// The result of `emulator_module()` of a module's library.
    Module = "EmulatorModule" {
        /// [`VERSION`].
        abi: u32 = "unsigned int abi",
        /// Length of `kernels`.
        kernel_count: u32 = "unsigned int kernel_count",
        /// The module's entry points.
        kernels: *const Kernel = "const EmulatorKernel* kernels",
    }

    /// An argument of a launch.
    #[derive(Clone, Copy, Default)]
    Argument = "EmulatorArgument" {
        /// [`BUFFER`], [`I32`], [`U32`], [`U64`] or [`F32`].
        kind: u32 = "unsigned int kind",
        /// Of a buffer: 1 where the caller lets the kernel write.
        writable: u32 = "unsigned int writable",
        /// A buffer's host address, or the scalar's bits (a float's in the low word).
        value: u64 = "unsigned long long value",
        /// A buffer's exact extent.
        bytes: u64 = "unsigned long long bytes",
        /// Out, if asked for: elements of a writable buffer that no thread wrote.
        unwritten: u64 = "unsigned long long unwritten",
        /// Out: the index of the first of them.
        first_unwritten: u64 = "unsigned long long first_unwritten",
    }

    /// How a launch runs.
    Config = "EmulatorConfig" {
        /// Blocks in x, y, z.
        grid: [u32; 3] = "unsigned int grid[3]",
        /// Threads of a block in x, y, z.
        block: [u32; 3] = "unsigned int block[3]",
        /// Dynamic shared memory of a block in bytes.
        shared_bytes: u32 = "unsigned int shared_bytes",
        /// In which order blocks, warps and lanes run: 0 rising, 1 falling, 2 shuffled by `seed`.
        order: u32 = "unsigned int order",
        /// Of the shuffled order.
        seed: u64 = "unsigned long long seed",
        /// 1: fill in the arguments' `unwritten`.
        find_unwritten: u32 = "unsigned int find_unwritten",
        /// 0.
        reserved: u32 = "unsigned int reserved",
    }

    /// The description of a launch.
    Report = "EmulatorReport" {
        /// Memory accesses checked.
        accesses: u64 = "unsigned long long accesses",
        /// `__syncthreads` passed by a whole block.
        barriers: u64 = "unsigned long long barriers",
        /// One line that ends in a zero byte, empty if all went well.
        message: [u8; 2040] = "char message[2040]",
    }
}

/// Kind of an [`Argument`]: a tensor.
pub const BUFFER: u32 = 0;
/// Kind of an [`Argument`]: `i32`.
pub const I32: u32 = 1;
/// Kind of an [`Argument`]: `u32`.
pub const U32: u32 = 2;
/// Kind of an [`Argument`]: `u64`.
pub const U64: u32 = 3;
/// Kind of an [`Argument`]: `f32`.
pub const F32: u32 = 4;

/// `emulator_module`, from each module's library.
pub type ModuleFunction = unsafe extern "C" fn() -> *const Module;

/// `emulator_launch`: runs a launch to its end on the calling thread; several may run at once on several threads. Returns 0,
/// or 1 with the reason in the report's message; then no buffer has changed. A buffer that the kernel may write must not
/// overlap another argument: the kernels' pointers are `__restrict__`.
pub type LaunchFunction = unsafe extern "C" fn(*const Kernel, *const Config, *mut Argument, u32, *mut Report) -> c_int;

impl Parameter {
    /// The parameter's name.
    ///
    /// # Safety
    /// The module that it belongs to is loaded.
    pub unsafe fn name(&self) -> String {
        // SAFETY: a literal of the module, as the caller promises.
        unsafe { CStr::from_ptr(self.name) }.to_string_lossy().into_owned()
    }
}

impl Kernel {
    /// The kernel's parameters.
    ///
    /// # Safety
    /// The module that the kernel is in is kept for the lifetime of the slice.
    pub unsafe fn parameters<'a>(&self) -> &'a [Parameter] {
        // SAFETY: the table has as many, and the caller keeps it.
        unsafe { std::slice::from_raw_parts(self.parameters, self.parameter_count as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_of_this_version() {
        assert!(HEADER.contains(&format!("#define EMULATOR_ABI {VERSION}u\n")));
        for (name, kind) in [("BUFFER", BUFFER), ("I32", I32), ("U32", U32), ("U64", U64), ("F32", F32)] {
            assert!(HEADER.contains(&format!("    EMULATOR_{name} = {kind},\n")), "{name}");
        }
        assert!(HEADER.contains("struct EmulatorReport {\n    unsigned long long accesses;\n"));
    }
}
