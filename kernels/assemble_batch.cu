// A training batch from a data set that lies on the device.
//
//   x0 [batch, height, width, channels] f32, batch_labels [batch] i32, images [count, height, width, channels] u8,
//   labels [count] i32, control: see common/control.cuh.
//
// Item b takes place p = (cursor + b) mod count of the epoch's order: image permute(p) where the order is shuffled, else p.
// x0 = pixel / 127.5 - 1. The item is first shifted by dy, dx in -crop ..= crop, black coming in, then mirrored left to right where its
// uniform number is below one half.
//
// Floor: a byte read and four written per pixel value; the places of one batch are scattered, but each image is one run.
#include "common/control.cuh"
#include "common/entry.cuh"
#include "common/philox.cuh"
#include "common/vec.cuh"

// Blocks [item, chunk of elements], four elements a thread.
KERNEL(assemble_batch, (256), (Out<f32> x0, Out<i32> batch_labels, In<u8> images, In<i32> labels, In<u32> control, u32 count, u32 elements, u32 width,
       u32 channels, u32 shuffled, u64 order_seed, u32 flip, u32 crop, u64 augment_seed),
       (x0, batch_labels, images, labels, control, count, elements, width, channels, shuffled, order_seed, flip, crop, augment_seed)) {
    SHARED(u32, source, [4]);
    u32 b = blockIdx.x;
    if (threadIdx.x == 0) {
        u32 place = (u32)(((u64)control[CONTROL_CURSOR] + b) % count);
        u32 index = shuffled != 0 ? permute(place, count, order_seed, control[CONTROL_EPOCH]) : place;
        u32 item = control[CONTROL_FIRST_ITEM] + b;
        source[0] = index;
        source[1] = flip != 0 && philox_uniform4(augment_seed, 0, item, control[CONTROL_STEP], PURPOSE_FLIP).x < 0.5f;
        source[2] = source[3] = 0;
        if (crop != 0) {
            U32x4 bits = philox_bits4(augment_seed, 0, item, control[CONTROL_STEP], PURPOSE_CROP);
            // Below zero they wrap, and so does what they are added to.
            source[2] = (u32)((u64)bits.x * (2 * crop + 1) >> 32) - crop;
            source[3] = (u32)((u64)bits.y * (2 * crop + 1) >> 32) - crop;
        }
        if (blockIdx.y == 0) batch_labels[b] = labels[index];
    }
    __syncthreads();
    u32 e = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (e >= elements) return;
    const u8* image = images + (u64)source[0] * elements;
    bool mirrored = source[1] != 0;
    u32 dy = source[2], dx = source[3], left = elements - e, row = width * channels, height = elements / row;
    f32 values[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    UNROLL for (u32 i = 0; i < 4; i++) {
        if (i >= left) break;
        u32 from = e + i;
        bool inside = true;
        if (mirrored || dy != 0 || dx != 0) {
            u32 within = from % row, column = within / channels, y = from / row + dy;
            u32 x = (mirrored ? width - 1 - column : column) + dx;
            inside = y < height && x < width;
            from = y * row + x * channels + within % channels;
        }
        values[i] = (inside ? (f32)image[from] : 0.0f) / 127.5f - 1.0f;
    }
    f32* to = x0 + (u64)b * elements + e;
    store4(to, left, left >= 4 && aligned4(to), values);
}
