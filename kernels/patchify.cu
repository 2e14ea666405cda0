// Patches and back (Dosovitskiy et al. 2021, arXiv 2010.11929).
//
//   image [batch, height, width, channels] f32; tokens [batch, length, vector] T, length = skip + height/patch * width/patch,
//   vector = patch * patch * channels in the order [row, column, channel]; patches in row-major order.
//
// Each direction is the other's gradient. `accumulate` != 0 adds to the destination.
//
// A piece is `vector` = 4 elements where rows of patches are whole pieces (4x4 of 3 channels), else one: neighbours in both. A thread
// finds a piece's place once and copies it for four images.
//
// Floor: image and tokens touched once.
//
// Launch: grid [ceil(batch / 4), ceil(elements of an image's result / (256 vector))], 256 threads.
#include "common/entry.cuh"
#include "common/piece.cuh"
#include "common/types.cuh"

constexpr u32 IMAGES = 4;

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

// The tokens at `within` to `within` + N - 1, behind one another in the image too, of the block's IMAGES images: skipped ones become zero.
template <typename T, u32 N>
DEV void piece_to_tokens(T* tokens, const f32* image, u32 batch, const PatchSizes& s, u32 accumulate) {
    u32 within = N * (blockIdx.y * blockDim.x + threadIdx.x);
    u32 extent = s.height * s.width * s.channels, skipped = s.skip * s.patch * s.patch * s.channels;
    u32 sequence = skipped + extent;
    if (within >= sequence) return;
    bool skips = within < skipped;
    u32 from = skips ? 0 : patch_image_index(s, within);
    u32 first = blockIdx.x * IMAGES, last = min_of(first + IMAGES, batch);
    UNROLL for (u32 b = first; b < last; b++) {
        f32 v[N] = {}, old[N];
        if (!skips) load_piece(image + (u64)b * extent + from, v);
        T* to = tokens + (u64)b * sequence + within;
        if (accumulate != 0) {
            load_piece(to, old);
            UNROLL for (u32 i = 0; i < N; i++) v[i] += old[i];
        }
        store_piece(to, v);
    }
}

// The image's elements at `within` to `within` + N - 1, behind one another in a token too.
template <typename T, u32 N>
DEV void piece_to_image(f32* image, const T* tokens, u32 batch, const PatchSizes& s, u32 accumulate) {
    u32 within = N * (blockIdx.y * blockDim.x + threadIdx.x);
    u32 extent = s.height * s.width * s.channels, sequence = extent + s.skip * s.patch * s.patch * s.channels;
    if (within >= extent) return;
    u32 from = patch_token_index(s, within);
    u32 first = blockIdx.x * IMAGES, last = min_of(first + IMAGES, batch);
    UNROLL for (u32 b = first; b < last; b++) {
        f32 v[N], old[N];
        load_piece(tokens + (u64)b * sequence + from, v);
        f32* to = image + (u64)b * extent + within;
        if (accumulate != 0) {
            load_piece(to, old);
            UNROLL for (u32 i = 0; i < N; i++) v[i] += old[i];
        }
        store_piece(to, v);
    }
}

KERNELS(patchify_to_tokens, (256), (Out<T> tokens, In<f32> image, u32 batch, u32 height, u32 width, u32 channels, u32 patch, u32 skip, u32 vector,
        u32 accumulate), (tokens, image, batch, height, width, channels, patch, skip, vector, accumulate)) {
    PatchSizes s{height, width, channels, patch, skip};
    if (vector > 1) piece_to_tokens<T, 4>(tokens, image, batch, s, accumulate);
    else piece_to_tokens<T, 1>(tokens, image, batch, s, accumulate);
}

KERNELS(patchify_to_image, (256), (Out<f32> image, In<T> tokens, u32 batch, u32 height, u32 width, u32 channels, u32 patch, u32 skip, u32 vector,
        u32 accumulate), (image, tokens, batch, height, width, channels, patch, skip, vector, accumulate)) {
    PatchSizes s{height, width, channels, patch, skip};
    if (vector > 1) piece_to_image<T, 4>(image, tokens, batch, s, accumulate);
    else piece_to_image<T, 1>(image, tokens, batch, s, accumulate);
}
