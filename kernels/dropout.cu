// Dropout (Srivastava et al. 2014): to = from * keep / (1 - p), the same for an output and for its gradient.
//
//   from, to [batch, elements], control: see common/control.cuh, scale = 1 / (1 - p). `accumulate` != 0 adds to `to`.
//
// Element e of item b is kept where uniform number e % 4 of Philox's call (e / 4, first_item + b, step, purpose) is at least
// p; `purpose` holds the layer's number above PURPOSE_DROPOUT. Step and first item come from the control buffer, so that a
// captured graph draws new masks.
//
// Floor: `from` read once, `to` written once; a Philox call for four elements (about 100 integer operations) hides behind that.
//
// Launch: blocks [item, chunk of its elements], four elements a thread.
#include "common/control.cuh"
#include "common/entry.cuh"
#include "common/philox.cuh"
#include "common/vec.cuh"

KERNELS(dropout, (256), (Out<T> to, In<T> from, In<u32> control, u32 elements, f32 probability, f32 scale, u64 seed, u32 purpose, u32 accumulate),
        (to, from, control, elements, probability, scale, seed, purpose, accumulate)) {
    u32 e = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (e >= elements) return;
    u32 item = control[CONTROL_FIRST_ITEM] + blockIdx.x, step = control[CONTROL_STEP];
    u64 at = (u64)blockIdx.x * elements + e;
    u32 left = elements - e;
    bool wide = left >= 4 && aligned4(from + at) && aligned4(to + at);
    F32x4 drawn = philox_uniform4(seed, e / 4, item, step, purpose);
    f32 u[4] = {drawn.x, drawn.y, drawn.z, drawn.w}, v[4];
    load4(from + at, left, wide, v);
    UNROLL for (u32 i = 0; i < 4; i++) v[i] = u[i] >= probability ? v[i] * scale : 0.0f;
    if (accumulate != 0) {
        f32 old[4];
        load4(to + at, left, wide, old);
        UNROLL for (u32 i = 0; i < 4; i++) v[i] += old[i];
    }
    store4(to + at, left, wide, v);
}
