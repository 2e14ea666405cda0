// The activations and their derivatives, in f32; the formulas are those of src/core/ops/host/activation.rs. T is the type that the
// result is stored in: bf16 gets by with the special-function unit's approximations, f32 does not. Neither has a branch.
#pragma once
#include "common/types.cuh"

// GELU in the tanh form (Hendrycks and Gimpel 2016): x/2 (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
DEV f32 gelu_two_u(f32 x) { return 1.5957691216057308f * x * fma_f32(0.044715f * x, x, 1.0f); }
DEV f32 gelu_two_du(f32 x) { return 1.5957691216057308f * fma_f32(0.134145f * x, x, 1.0f); }

// exp(-x). For bf16 2^(-x log2 e), log2 e in two parts L + l: at |x| <= 80 the exponent is below 128, so that rounding it costs at
// most 2^-18, the parts' own error 2^-24 |x l| nothing beside it, and exp2_approx a relative 2^-22: together
// 2^-18 ln 2 + 2^-22 = 0.76 2^-18. In all the range of f32 it is below 1.5 2^-18.
template <typename T>
DEV f32 exp_minus(f32 x) {
    if constexpr (sizeof(T) == sizeof(f32)) return exp_f32(-x);
    else return exp2_approx(fma_f32(x, -1.44269502162933349609f, x * -1.92596299e-8f));
}

// 1 / (1 + e), e >= 0. For bf16 the sum's rounding and rcp_approx add 2^-24 + 2^-23 to the error of e: a sigmoid's is at
// most (0.76 + 0.05) 2^-18 where |x| <= 80, in a result that bf16 rounds by 2^-9.
template <typename T>
DEV f32 rcp_one_plus(f32 e) {
    if constexpr (sizeof(T) == sizeof(f32)) return rcp_from_one(1.0f + e);
    else return rcp_approx(1.0f + e);
}

template <typename T>
DEV f32 sigmoid(f32 x) { return rcp_one_plus<T>(exp_minus<T>(x)); }

// Its error is the sigmoid's and, as in f32, that of rounding 2u: 2^-22 |2u|.
template <typename T>
DEV f32 gelu(f32 x) { return x * sigmoid<T>(gelu_two_u(x)); }

// Not below -87, where exp(-x) is still finite; a NaN stays one.
DEV f32 sigmoid_bounded(f32 x) {
#ifdef __CUDACC__
    f32 y;
    asm("max.NaN.f32 %0, %1, 0fC2AE0000;" : "=f"(y) : "f"(x));
    return y;
#else
    return x < -87.0f ? -87.0f : x;
#endif
}

// sigmoid(x), and in `slope` sigmoid(x) (1 - sigmoid(x)) without the cancellation in 1 - sigmoid: at x = 6 GELU's derivative
// multiplies that by 55.
template <typename T>
DEV f32 sigmoid_and_slope(f32 x, f32& slope) {
    f32 e = exp_minus<T>(sigmoid_bounded(x)), s = rcp_one_plus<T>(e);
    slope = e * s * s;
    return s;
}

// sigmoid(2u) + x sigmoid(2u) (1 - sigmoid(2u)) 2u'. Beyond |x| = 20 the second term is zero to rounding, and x and u'
// might overflow against it.
template <typename T>
DEV f32 gelu_derivative(f32 x) {
    f32 ds, s = sigmoid_and_slope<T>(gelu_two_u(x), ds);
    x = max_f32(min_f32(x, 20.0f), -20.0f);
    return fma_f32(x * ds, gelu_two_du(x), s);
}

// SiLU, or swish (Elfwing et al. 2017): x sigmoid(x).
template <typename T>
DEV f32 silu(f32 x) { return x * sigmoid<T>(x); }

template <typename T>
DEV f32 silu_derivative(f32 x) {
    f32 ds, s = sigmoid_and_slope<T>(x, ds);
    return fma_f32(sigmoid_bounded(x), ds, s);
}

// The activation that a linear layer applies: the numbers are those of `Activation::code` in src/core/ops/linear/mod.rs.
enum Activation : u32 { ACTIVATION_NONE = 0, ACTIVATION_GELU = 1, ACTIVATION_SILU = 2 };

// Both are x times a sigmoid: one of them, so that a kernel with many values a thread stays small.
template <typename T>
DEV f32 activate(f32 x, u32 activation) {
    if (activation == ACTIVATION_NONE) return x;
    return x * sigmoid<T>(activation == ACTIVATION_GELU ? gelu_two_u(x) : x);
}

template <typename T>
DEV f32 activation_derivative(f32 x, u32 activation) {
    if (activation == ACTIVATION_NONE) return 1.0f;
    bool is_gelu = activation == ACTIVATION_GELU;
    f32 ds, s = sigmoid_and_slope<T>(is_gelu ? gelu_two_u(x) : x, ds), slope = 1.0f;
    if (is_gelu) {
        x = max_f32(min_f32(x, 20.0f), -20.0f);
        slope = gelu_two_du(x);
    } else {
        x = sigmoid_bounded(x);
    }
    return fma_f32(x * ds, slope, s);
}
