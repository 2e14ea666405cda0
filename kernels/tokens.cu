// The token sequence: an optional conditioning token, then the patches, plus learned positions (Dosovitskiy et al. 2021,
// arXiv 2010.11929; Peebles and Xie 2023, arXiv 2212.09748).
//
//   y [batch, length, width] T, patches [batch, length - k, width] T, token [batch, width] T or null (k = 1 or 0),
//   position [length, width] f32.
//   y[b, 0] = token[b] + position[0] where there is a token; y[b, k + i] = patches[b, i] + position[k + i].
//
// Backward: dpatches and dtoken are extracts of dy; dposition = sum of dy over b: in parts of sixteen sequences, which gradient_sums.cu
// adds up. A piece is 16 bytes, or one element where `vector` = 1: rows are not whole pieces.
//
// Floor: y read and written once each way.
//
// Launches, 256 threads: _fwd: a thread an element. _bwd: grid [ceil(batch / 16), ceil(length width / (256 pieces))].
#include "common/entry.cuh"
#include "common/piece.cuh"

// One thread per element of y.
KERNELS(tokens_fwd, (256), (Out<T> y, In<T> patches, In<T> token, In<f32> position, u32 batch, u32 length, u32 width),
        (y, patches, token, position, batch, length, width)) {
    u64 element = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u64 sequence = (u64)length * width;
    if (element >= batch * sequence) return;
    u64 b = element / sequence, within = element % sequence;
    u32 taken = token != nullptr ? width : 0;
    f32 value = within < taken ? to_f32(token[b * width + within]) : to_f32(patches[b * (sequence - taken) + within - taken]);
    y[element] = from_f32<T>(value + position[within]);
}

constexpr u32 SEQUENCES = 16;

// Of SEQUENCES sequences of dy: what is of the patches and of the token, and their sums to partial [parts, length, width]; what has a null
// pointer is not wanted. A thread has N neighbouring elements of one token.
template <typename T, u32 N>
DEV void backward_piece(T* dpatches, T* dtoken, f32* partial, const T* dy, u32 batch, u32 sequence, u32 taken, u32 accumulate_patches,
                        u32 accumulate_token) {
    u32 at = N * (blockIdx.y * blockDim.x + threadIdx.x);
    if (at >= sequence) return;
    bool of_token = at < taken;
    T* to = of_token ? dtoken : dpatches;
    u32 row = of_token ? taken : sequence - taken, column = of_token ? at : at - taken;
    bool adds = (of_token ? accumulate_token : accumulate_patches) != 0;
    f32 sum[N], v[N], old[N];
    UNROLL for (u32 i = 0; i < N; i++) sum[i] = 0.0f;
    u32 first = blockIdx.x * SEQUENCES, last = min_of(first + SEQUENCES, batch);
#pragma unroll 4
    for (u32 b = first; b < last; b++) {
        load_piece(dy + (u64)b * sequence + at, v);
        UNROLL for (u32 i = 0; i < N; i++) sum[i] += v[i];
        if (to == nullptr) continue;
        T* mine = to + (u64)b * row + column;
        if (adds) {
            load_piece(mine, old);
            UNROLL for (u32 i = 0; i < N; i++) v[i] += old[i];
        }
        store_piece(mine, v);
    }
    if (partial != nullptr) store_piece(partial + (u64)blockIdx.x * sequence + at, sum);
}

KERNELS(tokens_bwd, (256), (Out<T> dpatches, Out<T> dtoken, Out<f32> partial, In<T> dy, u32 batch, u32 length, u32 width, u32 skip, u32 vector,
        u32 accumulate_patches, u32 accumulate_token),
        (dpatches, dtoken, partial, dy, batch, length, width, skip, vector, accumulate_patches, accumulate_token)) {
    u32 sequence = length * width, taken = skip * width;
    if (vector > 1) {
        constexpr u32 N = Vec16<T>::COUNT;
        backward_piece<T, N>(dpatches, dtoken, partial, dy, batch, sequence, taken, accumulate_patches, accumulate_token);
    } else {
        backward_piece<T, 1>(dpatches, dtoken, partial, dy, batch, sequence, taken, accumulate_patches, accumulate_token);
    }
}
