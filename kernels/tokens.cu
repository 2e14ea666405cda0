// The token sequence: an optional conditioning token, then the patches, plus learned positions (Dosovitskiy et al. 2021,
// arXiv 2010.11929; Peebles and Xie 2023, arXiv 2212.09748).
//
//   y [batch, length, width] T, patches [batch, length - k, width] T, token [batch, width] T or null (k = 1 or 0),
//   position [length, width] f32.
//   y[b, 0] = token[b] + position[0] where there is a token; y[b, k + i] = patches[b, i] + position[k + i].
//
// Backward: dpatches and dtoken are extracts of dy; dposition = sum of dy over b, ascending.
//
// Floor: y read and written once each way.
#include "common/types.cuh"

// One thread per element of y.
template <typename T>
DEV void tokens_fwd(T* y, const T* patches, const T* token, const f32* position, u32 batch, u32 length, u32 width) {
    u64 element = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u64 sequence = (u64)length * width;
    if (element >= batch * sequence) return;
    u64 b = element / sequence, within = element % sequence;
    u32 taken = token != nullptr ? width : 0;
    f32 value = within < taken ? to_f32(token[b * width + within]) : to_f32(patches[b * (sequence - taken) + within - taken]);
    y[element] = from_f32<T>(value + position[within]);
}

// One thread per element of the extract: `count` tokens of each sequence from token `first` on.
template <typename T>
DEV void tokens_bwd_extract(T* part, const T* dy, u32 batch, u32 length, u32 width, u32 first, u32 count, u32 accumulate) {
    u64 element = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u64 extent = (u64)count * width;
    if (element >= batch * extent) return;
    f32 value = to_f32(dy[element / extent * length * width + (u64)first * width + element % extent]);
    part[element] = from_f32<T>(accumulate ? to_f32(part[element]) + value : value);
}

// One thread per element of position.
template <typename T>
DEV void tokens_bwd_position(f32* dposition, const T* dy, u32 batch, u32 elements, u32 accumulate) {
    u32 element = blockIdx.x * blockDim.x + threadIdx.x;
    if (element >= elements) return;
    f32 sum = accumulate ? dposition[element] : 0.0f;
#pragma unroll 4
    for (u32 b = 0; b < batch; ++b) sum += to_f32(dy[(u64)b * elements + element]);
    dposition[element] = sum;
}

extern "C" __global__ void __launch_bounds__(256) tokens_fwd_f32(
    f32* __restrict__ y, const f32* __restrict__ patches, const f32* __restrict__ token,
    const f32* __restrict__ position, u32 batch, u32 length, u32 width) {
    tokens_fwd<f32>(y, patches, token, position, batch, length, width);
}
extern "C" __global__ void __launch_bounds__(256) tokens_fwd_bf16(
    bf16* __restrict__ y, const bf16* __restrict__ patches, const bf16* __restrict__ token,
    const f32* __restrict__ position, u32 batch, u32 length, u32 width) {
    tokens_fwd<bf16>(y, patches, token, position, batch, length, width);
}
extern "C" __global__ void __launch_bounds__(256) tokens_bwd_extract_f32(
    f32* __restrict__ part, const f32* __restrict__ dy, u32 batch, u32 length, u32 width, u32 first, u32 count,
    u32 accumulate) {
    tokens_bwd_extract<f32>(part, dy, batch, length, width, first, count, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) tokens_bwd_extract_bf16(
    bf16* __restrict__ part, const bf16* __restrict__ dy, u32 batch, u32 length, u32 width, u32 first, u32 count,
    u32 accumulate) {
    tokens_bwd_extract<bf16>(part, dy, batch, length, width, first, count, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) tokens_bwd_position_f32(
    f32* __restrict__ dposition, const f32* __restrict__ dy, u32 batch, u32 elements, u32 accumulate) {
    tokens_bwd_position<f32>(dposition, dy, batch, elements, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) tokens_bwd_position_bf16(
    f32* __restrict__ dposition, const bf16* __restrict__ dy, u32 batch, u32 elements, u32 accumulate) {
    tokens_bwd_position<bf16>(dposition, dy, batch, elements, accumulate);
}
