// Patches and back (Dosovitskiy et al. 2021, arXiv 2010.11929).
//
//   image [batch, height, width, channels] f32; tokens [batch, length, vector] T, length = skip + height/patch * width/patch,
//   vector = patch * patch * channels in the order [row, column, channel]; patches in row-major order.
//
// Each direction is the other's gradient. `accumulate` != 0 adds to the destination.
//
// Floor: image and tokens touched once.
#include "common/types.cuh"

struct PatchSizes {
    u32 height, width, channels, patch, skip;
};

// Where element `within` of a sequence of tokens lies in its image; `within` is behind the skipped tokens.
DEV u32 patch_image_index(const PatchSizes& s, u32 within) {
    u32 vector = s.patch * s.patch * s.channels, across = s.width / s.patch;
    u32 token = within / vector - s.skip, rest = within % vector;
    u32 row = token / across * s.patch + rest / (s.patch * s.channels);
    u32 column = token % across * s.patch + rest / s.channels % s.patch;
    return (row * s.width + column) * s.channels + rest % s.channels;
}

// The reverse.
DEV u32 patch_token_index(const PatchSizes& s, u32 within) {
    u32 vector = s.patch * s.patch * s.channels, across = s.width / s.patch;
    u32 row = within / (s.width * s.channels), column = within / s.channels % s.width;
    u32 token = s.skip + row / s.patch * across + column / s.patch;
    return token * vector + (row % s.patch * s.patch + column % s.patch) * s.channels + within % s.channels;
}

// One thread per element of the tokens: skipped ones become zero.
template <typename T>
DEV void patchify_to_tokens(T* tokens, const f32* image, u32 batch, u32 height, u32 width, u32 channels,
                             u32 patch, u32 skip, u32 accumulate) {
    PatchSizes s{height, width, channels, patch, skip};
    u64 element = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u32 extent = s.height * s.width * s.channels, skipped = s.skip * s.patch * s.patch * s.channels;
    u32 sequence = skipped + extent;
    if (element >= (u64)batch * sequence) return;
    u32 within = (u32)(element % sequence);
    f32 value = within < skipped ? 0.0f : image[element / sequence * extent + patch_image_index(s, within)];
    tokens[element] = from_f32<T>(accumulate ? to_f32(tokens[element]) + value : value);
}

// One thread per element of the image.
template <typename T>
DEV void patchify_to_image(f32* image, const T* tokens, u32 batch, u32 height, u32 width, u32 channels,
                             u32 patch, u32 skip, u32 accumulate) {
    PatchSizes s{height, width, channels, patch, skip};
    u64 element = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u32 extent = s.height * s.width * s.channels, sequence = extent + s.skip * s.patch * s.patch * s.channels;
    if (element >= (u64)batch * extent) return;
    f32 value = to_f32(tokens[element / extent * sequence + patch_token_index(s, (u32)(element % extent))]);
    image[element] = accumulate ? image[element] + value : value;
}

extern "C" __global__ void __launch_bounds__(256) patchify_to_tokens_f32(
    f32* __restrict__ tokens, const f32* __restrict__ image, u32 batch, u32 height, u32 width, u32 channels, u32 patch,
    u32 skip, u32 accumulate) {
    patchify_to_tokens<f32>(tokens, image, batch, height, width, channels, patch, skip, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) patchify_to_tokens_bf16(
    bf16* __restrict__ tokens, const f32* __restrict__ image, u32 batch, u32 height, u32 width, u32 channels, u32 patch,
    u32 skip, u32 accumulate) {
    patchify_to_tokens<bf16>(tokens, image, batch, height, width, channels, patch, skip, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) patchify_to_image_f32(
    f32* __restrict__ image, const f32* __restrict__ tokens, u32 batch, u32 height, u32 width, u32 channels, u32 patch,
    u32 skip, u32 accumulate) {
    patchify_to_image<f32>(image, tokens, batch, height, width, channels, patch, skip, accumulate);
}
extern "C" __global__ void __launch_bounds__(256) patchify_to_image_bf16(
    f32* __restrict__ image, const bf16* __restrict__ tokens, u32 batch, u32 height, u32 width, u32 channels, u32 patch,
    u32 skip, u32 accumulate) {
    patchify_to_image<bf16>(image, tokens, batch, height, width, channels, patch, skip, accumulate);
}
