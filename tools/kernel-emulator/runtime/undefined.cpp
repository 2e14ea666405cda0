// The handlers of -fsanitize=undefined: a kernel's undefined behaviour ends the launch with its source line.
#include "machine.h"

namespace {

using emulator::fail;

struct SourceLocation {
    const char* file;
    u32 line, column;
};
struct TypeDescriptor {
    u16 kind, info;
    char name[1];
};
struct WithType {
    SourceLocation location;
    const TypeDescriptor* type;
};
struct TypeMismatch {
    SourceLocation location;
    const TypeDescriptor* type;
    u8 log_alignment, kind;
};
struct TwoTypes {
    SourceLocation location;
    const TypeDescriptor *first, *second;
};

// A value of an integer type of at most 64 bits, sign-extended if its type is signed.
long long integer(const TypeDescriptor* type, u64 value) {
    u32 bits = 1u << (type->info >> 1);
    if (bits >= 64 || !(type->info & 1)) return (long long)value;
    return (long long)(value << (64 - bits)) >> (64 - bits);
}

[[noreturn]] void undefined(const SourceLocation& l, const std::string& what) {
    const char* file = l.file ? l.file : "?";
    if (strncmp(file, "./", 2) == 0) file += 2;
    fail(nullptr, "undefined behaviour: %s at %s:%u", what.c_str(), file, l.line);
}

[[noreturn]] void overflow(const WithType* d, const char* sign, u64 a, u64 b) {
    undefined(d->location, std::to_string(integer(d->type, a)) + sign + std::to_string(integer(d->type, b)) +
                               " overflows " + d->type->name);
}

}  // namespace

#define HANDLER(name, ...) extern "C" __attribute__((visibility("default"), noreturn)) void __ubsan_handle_##name(__VA_ARGS__)

HANDLER(add_overflow, const WithType* d, u64 a, u64 b) { overflow(d, " + ", a, b); }
HANDLER(sub_overflow, const WithType* d, u64 a, u64 b) { overflow(d, " - ", a, b); }
HANDLER(mul_overflow, const WithType* d, u64 a, u64 b) { overflow(d, " * ", a, b); }
HANDLER(negate_overflow, const WithType* d, u64 a) {
    undefined(d->location, "-(" + std::to_string(integer(d->type, a)) + ") overflows " + d->type->name);
}
HANDLER(divrem_overflow, const WithType* d, u64 a, u64 b) {
    undefined(d->location, std::to_string(integer(d->type, a)) + " / " + std::to_string(integer(d->type, b)));
}
HANDLER(shift_out_of_bounds, const TwoTypes* d, u64 a, u64 b) {
    undefined(d->location, std::string(d->first->name) + " " + std::to_string(integer(d->first, a)) + " shifted by " +
                               std::to_string(integer(d->second, b)));
}
HANDLER(out_of_bounds, const TwoTypes* d, u64 index) {
    undefined(d->location, "index " + std::to_string(integer(d->second, index)) + " is outside " + d->first->name);
}
HANDLER(type_mismatch_v1, const TypeMismatch* d, u64 pointer) {
    emulator::Context& c = *emulator::current;
    u64 alignment = 1ull << d->log_alignment, slot = (pointer - c.base) / emulator::SLOT;
    std::string place = slot < emulator::SLOTS && c.regions[slot].space != emulator::Space::None
                            ? emulator::describe(c.regions[slot], pointer)
                            : "an address";
    if (pointer && !(pointer % alignment)) place += " (too small)";
    undefined(d->location, "misaligned: a " + std::string(d->type->name) + " needs " + std::to_string(alignment) +
                               " bytes' alignment, which " + place + " does not have");
}
HANDLER(load_invalid_value, const WithType* d, u64 value) {
    undefined(d->location, std::to_string(value) + " is no value of " + d->type->name);
}
HANDLER(builtin_unreachable, const SourceLocation* l) { undefined(*l, "reached what was declared unreachable"); }
HANDLER(missing_return, const SourceLocation* l) { undefined(*l, "a function ended without returning a value"); }
HANDLER(vla_bound_not_positive, const WithType* d, u64) { undefined(d->location, "an array of no elements"); }
HANDLER(nonnull_arg, const SourceLocation* l) { undefined(*l, "null passed where it must not be"); }
HANDLER(invalid_builtin, const SourceLocation* l) { undefined(*l, "a builtin called with zero"); }
HANDLER(pointer_overflow, const SourceLocation* l, u64, u64) { undefined(*l, "pointer arithmetic overflows"); }
