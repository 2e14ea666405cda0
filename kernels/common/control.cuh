// The control buffer: per-step values that kernels read on the device, so that a captured graph stays valid.
// The words are those of `Control` in src/core/ops/control.rs; floats are stored as their bits.
#pragma once
#include "common/types.cuh"

enum ControlWord : u32 {
    CONTROL_STEP = 0,
    CONTROL_EPOCH = 1,
    CONTROL_CURSOR = 2,
    CONTROL_FIRST_ITEM = 3,
    CONTROL_LEARNING_RATE = 4,
    CONTROL_FIRST_CORRECTION = 5,
    CONTROL_SECOND_CORRECTION = 6,
    CONTROL_EMA_DECAY = 7,
    CONTROL_ROW = 8,
    CONTROL_GUIDANCE = 9,
    CONTROL_MICRO = 10,
};

// A float of the control buffer.
DEV f32 control_f32(const u32* control, u32 word) { return f32_from_bits(control[word]); }
