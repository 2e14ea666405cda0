// One warp multiplies A [16, 16] by B [16, 16] (both row-major bf16) through the tensor-core wrappers.
#include "common/activation.cuh"
#include "common/entry.cuh"
#include "common/mma.cuh"

// B's fragments through ldmatrix.trans (`transposed` 0), or from B's transpose through plain ldmatrix (1).
DEV void product(f32* d, const bf16* a, const bf16* b, u32 transposed) {
    SHARED(bf16, a_tile, [16][24]);
    SHARED(bf16, b_tile, [16][24]);
    u32 lane = threadIdx.x;
    for (u32 i = lane; i < 256; i += WARP) {
        a_tile[i / 16][i % 16] = a[i];
        b_tile[i / 16][i % 16] = b[transposed ? i % 16 * 16 + i / 16 : i];
    }
    __syncwarp();
    u32 a_words[4], b_words[4];
    ldmatrix_x4(a_words, &a_tile[lane % 16][lane / 16 * 8]);
    if (transposed) {
        ldmatrix_x4(b_words, &b_tile[lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8]);
    } else {
        ldmatrix_x4_trans(b_words, &b_tile[lane % 16][lane / 16 * 8]);
    }
    for (u32 half = 0; half < 2; half++) {
        f32 c[4] = {};
        u32 b_pair[2] = {b_words[2 * half], b_words[2 * half + 1]};
        mma_m16n8k16(c, a_words, b_pair);
        for (u32 i = 0; i < 4; i++) d[(lane / 4 + i / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + i % 2] = c[i];
    }
}
ENTRY(products_mma_product, (32), f32, (Out<f32> d, In<bf16> a, In<bf16> b, u32 transposed), product(d, a, b, transposed))

// The same of A [16, 8] and B [8, 8] in TF32, both row-major f32; A's fragments by ldmatrix, B's words one by one.
DEV void product_tf32(f32* d, const f32* a, const f32* b) {
    SHARED(f32, a_tile, [16][12]);
    SHARED(f32, b_tile, [8][8]);
    u32 lane = threadIdx.x;
    for (u32 i = lane; i < 128; i += WARP) a_tile[i / 8][i % 8] = f32_from_bits(tf32_bits(a[i]));
    for (u32 i = lane; i < 64; i += WARP) b_tile[i / 8][i % 8] = b[i];
    __syncwarp();
    u32 a_words[4], b_words[2];
    ldmatrix_x4(a_words, &a_tile[lane % 16][lane / 16 * 4]);
    for (u32 w = 0; w < 2; w++) {
        u32 word = load_shared(shared_address(&b_tile[lane % 4 + 4 * w][lane / 4]));
        b_words[w] = tf32_bits(f32_from_bits(word));
    }
    f32 c[4] = {};
    mma_m16n8k8_tf32(c, a_words, b_words);
    for (u32 i = 0; i < 4; i++) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = c[i];
}
ENTRY(products_mma_tf32, (32), f32, (Out<f32> d, In<f32> a, In<f32> b), product_tf32(d, a, b))

// The fragments that ldmatrix_x2 (and, with `transposed`, its transposing form) gives of an [16, 8] tile.
DEV void fragments(u32* words, const bf16* x, u32 transposed) {
    SHARED(bf16, tile, [16][8]);
    u32 lane = threadIdx.x;
    for (u32 i = lane; i < 128; i += WARP) tile[i / 8][i % 8] = x[i];
    __syncwarp();
    u32 pair[2];
    if (transposed) {
        ldmatrix_x2_trans(pair, &tile[lane % 16][0]);
    } else {
        ldmatrix_x2(pair, &tile[lane % 16][0]);
    }
    words[lane * 2] = pair[0];
    words[lane * 2 + 1] = pair[1];
}
ENTRY(products_fragments_x2, (32), f32, (Out<u32> words, In<bf16> x, u32 transposed), fragments(words, x, transposed))

// Conversions: every f32 to bf16, and back.
DEV void convert(u16* y, const f32* x, u32 n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = bf16_from_f32(x[i]).bits;
}
ENTRY(products_to_bf16, (256), f32, (Out<u16> y, In<f32> x, u32 n), convert(y, x, n))

// Every f32 to TF32.
DEV void convert_tf32(u32* y, const f32* x, u32 n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = tf32_bits(x[i]);
}
ENTRY(products_to_tf32, (256), f32, (Out<u32> y, In<f32> x, u32 n), convert_tf32(y, x, n))

// Two at a time.
DEV void convert_pairs(u32* y, const f32* low, const f32* high, u32 n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = bf16_pair(low[i], high[i]);
}
ENTRY(products_pairs_to_bf16, (256), f32, (Out<u32> y, In<f32> low, In<f32> high, u32 n), convert_pairs(y, low, high, n))

// Sigmoid and GELU with the accuracy of results that are stored as bf16 (`narrow`), or as f32.
DEV void activations(f32* s, f32* g, const f32* x, u32 n, u32 narrow) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    s[i] = narrow ? sigmoid<bf16>(x[i]) : sigmoid<f32>(x[i]);
    g[i] = narrow ? gelu<bf16>(x[i]) : gelu<f32>(x[i]);
}
ENTRY(products_activations, (256), f32, (Out<f32> s, Out<f32> g, In<f32> x, u32 n, u32 narrow), activations(s, g, x, n, narrow))
