// Elementwise operations: one family, a functor each.
//
//   gelu, silu, relu, relu6   y = f(x);  dx = dy f'(x)
//   add          y = a + b
//   add_into     to += x
//   scale        y = factor x (its own gradient)
//   cast         y = x between f32 and bf16
//
// Arithmetic is in f32, storage in T. `accumulate` != 0 adds to the destination. Every kernel is bound by memory: its floor is
// the bytes of its operands over the bandwidth.
//
// Launches: a thread per 16 bytes of T (eight elements for narrow and widen), in blocks of 256.
#include "common/activation.cuh"
#include "common/entry.cuh"
#include "common/types.cuh"
#include "common/wide.cuh"

template <typename T>
struct Gelu {
    DEV f32 of(f32 x) { return gelu<T>(x); }
};
template <typename T>
struct GeluBackward {
    DEV f32 of(f32 dy, f32 x) { return dy * gelu_derivative<T>(x); }
};
template <typename T>
struct Silu {
    DEV f32 of(f32 x) { return silu<T>(x); }
};
template <typename T>
struct SiluBackward {
    DEV f32 of(f32 dy, f32 x) { return dy * silu_derivative<T>(x); }
};
struct Relu {
    DEV f32 of(f32 x) { return x < 0.0f ? 0.0f : x; }
};
struct ReluBackward {
    DEV f32 of(f32 dy, f32 x) { return x > 0.0f ? dy : 0.0f; }
};
struct Relu6 {
    DEV f32 of(f32 x) { return x < 0.0f ? 0.0f : x > 6.0f ? 6.0f : x; }
};
struct Relu6Backward {
    DEV f32 of(f32 dy, f32 x) { return x > 0.0f && x < 6.0f ? dy : 0.0f; }
};
struct Identity {
    DEV f32 of(f32 x) { return x; }
};
struct Sum {
    DEV f32 of(f32 a, f32 b) { return a + b; }
};

// The first of this thread's `count` elements.
DEV u64 first_element(u32 count) { return ((u64)blockIdx.x * blockDim.x + threadIdx.x) * count; }

// At most `count` elements are left at `at`.
DEV u32 left_at(u64 at, u64 len, u32 count) { return (u32)min_of<u64>(len - at, count); }

template <typename T, u32 N>
DEV void put(T* to, u32 left, bool wide, f32 (&v)[N], u32 accumulate) {
    if (accumulate != 0) {
        f32 old[N];
        load_wide(to, left, wide, old);
        UNROLL for (u32 i = 0; i < N; i++) v[i] += old[i];
    }
    store_wide(to, left, wide, v);
}

// y = f(x), or y += f(x).
template <typename F, u32 N, typename To, typename From>
DEV void unary(To* __restrict__ y, const From* __restrict__ x, u64 len, u32 accumulate) {
    u64 at = first_element(N);
    if (at >= len) return;
    u32 left = left_at(at, len, N);
    bool wide = left == N && aligned16(y) && aligned16(x);
    f32 v[N];
    load_wide(x + at, left, wide, v);
    UNROLL for (u32 i = 0; i < N; i++) v[i] = F::of(v[i]);
    put(y + at, left, wide, v, accumulate);
}

template <typename F, typename T>
DEV void map(T* __restrict__ y, const T* __restrict__ x, u64 len, u32 accumulate) {
    unary<F, Vec16<T>::COUNT>(y, x, len, accumulate);
}

// y = f(a, b), or y += f(a, b).
template <typename F, typename T>
DEV void binary(T* __restrict__ y, const T* __restrict__ a, const T* __restrict__ b, u64 len, u32 accumulate) {
    constexpr u32 N = Vec16<T>::COUNT;
    u64 at = first_element(N);
    if (at >= len) return;
    u32 left = left_at(at, len, N);
    bool wide = left == N && aligned16(y) && aligned16(a) && aligned16(b);
    f32 v[N], w[N];
    load_wide(a + at, left, wide, v);
    load_wide(b + at, left, wide, w);
    UNROLL for (u32 i = 0; i < N; i++) v[i] = F::of(v[i], w[i]);
    put(y + at, left, wide, v, accumulate);
}

#define FORWARD (Out<T> y, In<T> x, u64 len)
#define BACKWARD (Out<T> dx, In<T> dy, In<T> x, u64 len, u32 accumulate)
ENTRIES(elementwise_gelu_fwd, (256), FORWARD, map<Gelu<T>>(y, x, len, 0))
ENTRIES(elementwise_gelu_bwd, (256), BACKWARD, binary<GeluBackward<T>>(dx, dy, x, len, accumulate))
ENTRIES(elementwise_silu_fwd, (256), FORWARD, map<Silu<T>>(y, x, len, 0))
ENTRIES(elementwise_silu_bwd, (256), BACKWARD, binary<SiluBackward<T>>(dx, dy, x, len, accumulate))
ENTRIES(elementwise_relu_fwd, (256), FORWARD, map<Relu>(y, x, len, 0))
ENTRIES(elementwise_relu_bwd, (256), BACKWARD, binary<ReluBackward>(dx, dy, x, len, accumulate))
ENTRIES(elementwise_relu6_fwd, (256), FORWARD, map<Relu6>(y, x, len, 0))
ENTRIES(elementwise_relu6_bwd, (256), BACKWARD, binary<Relu6Backward>(dx, dy, x, len, accumulate))
ENTRIES(elementwise_add, (256), (Out<T> y, In<T> a, In<T> b, u64 len), binary<Sum>(y, a, b, len, 0))
ENTRIES(elementwise_add_into, (256), (Out<T> to, In<T> x, u64 len), map<Identity>(to, x, len, 1))
ENTRY(elementwise_narrow, (256), bf16, (Out<T> y, In<f32> x, u64 len, u32 accumulate), unary<Identity, 8>(y, x, len, accumulate))
ENTRY(elementwise_widen, (256), f32, (Out<T> y, In<bf16> x, u64 len, u32 accumulate), unary<Identity, 8>(y, x, len, accumulate))

KERNELS(elementwise_scale, (256), (Out<T> y, In<T> x, f32 factor, u64 len, u32 accumulate), (y, x, factor, len, accumulate)) {
    constexpr u32 N = Vec16<T>::COUNT;
    u64 at = first_element(N);
    if (at >= len) return;
    u32 left = left_at(at, len, N);
    bool wide = left == N && aligned16(y) && aligned16(x);
    f32 v[N];
    load_wide(x + at, left, wide, v);
    UNROLL for (u32 i = 0; i < N; i++) v[i] *= factor;
    put(y + at, left, wide, v, accumulate);
}
