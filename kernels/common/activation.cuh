// The activations and their derivatives, in f32; the formulas are those of src/core/ops/host/activation.rs.
#pragma once
#include "common/types.cuh"

// GELU in the tanh form (Hendrycks and Gimpel 2016): x/2 (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
DEV f32 gelu_two_u(f32 x) { return 1.5957691216057308f * x * fma_f32(0.044715f * x, x, 1.0f); }
DEV f32 gelu_two_du(f32 x) { return 1.5957691216057308f * fma_f32(0.134145f * x, x, 1.0f); }
DEV f32 gelu(f32 x) { return x * sigmoid_f32(gelu_two_u(x)); }

// Not below -87, where exp(-x) is still finite; a NaN stays one.
DEV f32 sigmoid_bounded(f32 x) { return x < -87.0f ? -87.0f : x; }

// sigmoid(x), and in `slope` sigmoid(x) (1 - sigmoid(x)) without the cancellation in 1 - sigmoid: at x = 6 GELU's derivative
// multiplies that by 55.
DEV f32 sigmoid_and_slope(f32 x, f32& slope) {
    f32 e = exp_f32(-sigmoid_bounded(x)), s = 1.0f / (1.0f + e);
    slope = e * s * s;
    return s;
}

// sigmoid(2u) + x sigmoid(2u) (1 - sigmoid(2u)) 2u'. Beyond |x| = 20 the second term is zero to rounding, and x and u'
// might overflow against it.
DEV f32 gelu_derivative(f32 x) {
    f32 ds, s = sigmoid_and_slope(gelu_two_u(x), ds);
    x = max_f32(min_f32(x, 20.0f), -20.0f);
    return fma_f32(x * ds, gelu_two_du(x), s);
}

// SiLU, or swish (Elfwing et al. 2017): x sigmoid(x).
DEV f32 silu(f32 x) { return x * sigmoid_f32(x); }

DEV f32 silu_derivative(f32 x) {
    f32 ds, s = sigmoid_and_slope(x, ds);
    return fma_f32(sigmoid_bounded(x), ds, s);
}

// The activation that a linear layer applies: the numbers are those of `Activation::code` in src/core/ops/linear/mod.rs.
enum Activation : u32 { ACTIVATION_NONE = 0, ACTIVATION_GELU = 1, ACTIVATION_SILU = 2 };

// Both are x times a sigmoid: one of them, so that a kernel with many values a thread stays small.
DEV f32 activate(f32 x, u32 activation) {
    if (activation == ACTIVATION_NONE) return x;
    return x * sigmoid_f32(activation == ACTIVATION_GELU ? gelu_two_u(x) : x);
}

DEV f32 activation_derivative(f32 x, u32 activation) {
    if (activation == ACTIVATION_NONE) return 1.0f;
    bool is_gelu = activation == ACTIVATION_GELU;
    f32 ds, s = sigmoid_and_slope(is_gelu ? gelu_two_u(x) : x, ds), slope = 1.0f;
    if (is_gelu) {
        x = max_f32(min_f32(x, 20.0f), -20.0f);
        slope = gelu_two_du(x);
    } else {
        x = sigmoid_bounded(x);
    }
    return fma_f32(x * ds, slope, s);
}
