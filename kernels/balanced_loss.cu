// A loss of five terms an image, each brought to the size of the first by running means of all (see update_means below).
//
//   prediction, target, dprediction [batch, H, W, channels] f32, weight, items [batch] f32 (a null weight: ones),
//   loss, dloss [1] f32, terms, factors [5] f32, state [6] f32 or null: the running means' sums and the sum of their weights,
//   statistics [batch, 7] f32: an item's terms, then alpha and beta of its cosine's gradient p beta - t alpha.
//
// With p and t an item of prediction and target, d = p - t and E = H W channels:
//
//   mse            mean d^2
//   l1             mean |d|, of derivative 0 at 0
//   cosine         1 - <p, t> / (|p| |t|); 1, and no gradient, where |p| |t| <= 1e-8: there is no direction to compare
//   high frequency mean (L d)^2, L d = d - the mean of its four neighbours, edges replicated. An edge pixel is then its own
//                  neighbour, so L is a quarter of the grid's graph Laplacian: symmetric, and its adjoint is L itself.
//   edge           mean of sqrt(x^2 + y^2 + eps^2) - eps, x and y the differences of d to the right and below (0 in the last
//                  column and row), eps = 1e-3: the total variation of the error, smoothed (Rudin, Osher, Fatemi 1992;
//                  the norm: Charbonnier et al. 1994)
//
//   factor[i] = lambda[i] * clamp(mean of mse / mean of term i, 1/100, 100); lambda[i] before the first update and where
//   a mean is not positive. Bias correction divides both means by the same sum of weights, which cancels.
//   items[b] = weight[b] * sum over i of factor[i] term[b, i],  loss = scale * mean of items
//
// Forward in two stages of fixed order: a block sums an item's seven sums in one pass, one block sums the items.
//
// Floor: prediction and target read once each way (8 bytes an element), dprediction written once (12): 31 and 86 FLOPs an
// element, at most 7 a byte, where an A100 takes 10 and an H100 20: memory is the floor. Neighbours are read where they lie,
// without a shared tile: an item's two images (24 KB at 32 x 32 x 3) stay in L1, which at 128 bytes a cycle and SM serves the
// 5 (forward) and 13 (backward) pairs of reads in no more time than memory needs for the one; so there is no barrier, no
// halo, and a row of pixels may have any length.
#include "common/entry.cuh"
#include "common/reduce.cuh"

constexpr u32 TERMS = 5;
constexpr u32 STATISTICS = TERMS + 2;
constexpr f32 COSINE_GUARD = 1e-8f;
constexpr f32 EDGE_EPSILON = 1e-3f;
constexpr f32 LARGEST_RATIO = 100.0f;
constexpr f32 SMALLEST_RATIO = 0.01f;

// A block per item. `row`: elements of a row of pixels.
KERNEL(balanced_loss_fwd_items, (512), (Out<f32> statistics, In<f32> prediction, In<f32> target, u32 elements, u32 row, u32 channels),
       (statistics, prediction, target, elements, row, channels)) {
    u64 first = (u64)blockIdx.x * elements;
    const f32 *p = prediction + first, *t = target + first;
    // d², |d|, <p, t>, |p|², |t|², (L d)², edge.
    f32 sums[STATISTICS] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    u32 column = threadIdx.x % row, step = blockDim.x % row;
    for (u32 e = threadIdx.x; e < elements; e += blockDim.x) {
        u32 left = column >= channels ? e - channels : e, right = row - column > channels ? e + channels : e;
        u32 up = e >= row ? e - row : e, down = elements - e > row ? e + row : e;
        f32 pv = p[e], tv = t[e], d = pv - tv;
        f32 d_left = p[left] - t[left], d_right = p[right] - t[right];
        f32 d_up = p[up] - t[up], d_down = p[down] - t[down];
        f32 high = fma_f32(-0.25f, (d_left + d_right) + (d_up + d_down), d);
        f32 x = d_right - d, y = d_down - d, square = fma_f32(x, x, y * y);
        sums[0] = fma_f32(d, d, sums[0]);
        sums[1] += abs_f32(d);
        sums[2] = fma_f32(pv, tv, sums[2]);
        sums[3] = fma_f32(pv, pv, sums[3]);
        sums[4] = fma_f32(tv, tv, sums[4]);
        sums[5] = fma_f32(high, high, sums[5]);
        // sqrt(square + eps²) - eps without the cancellation.
        sums[6] += square / (sqrt_f32(square + EDGE_EPSILON * EDGE_EPSILON) + EDGE_EPSILON);
        column += step;
        if (column >= row) column -= row;
    }
    block_sum(sums);
    if (threadIdx.x != 0) return;
    f32 count = (f32)elements, norms = sqrt_f32(sums[3]) * sqrt_f32(sums[4]), cosine = 0.0f, alpha = 0.0f, beta = 0.0f;
    // Not `norms > COSINE_GUARD`: NaN is left to be seen.
    if (!(norms <= COSINE_GUARD)) {
        cosine = sums[2] / norms;
        alpha = 1.0f / norms;
        beta = cosine / sums[3];
    }
    f32* of = statistics + (u64)blockIdx.x * STATISTICS;
    of[0] = sums[0] / count;
    of[1] = sums[1] / count;
    of[2] = 1.0f - cosine;
    of[3] = sums[5] / count;
    of[4] = sums[6] / count;
    of[5] = alpha;
    of[6] = beta;
}

DEV f32 factor(f32 lambda, const f32* state, u32 term) {
    if (state == nullptr || state[TERMS] <= 0.0f || state[term] <= 0.0f) return lambda;
    f32 ratio = state[0] / state[term];
    // Comparisons, not min and max, which would turn NaN into a bound.
    if (ratio > LARGEST_RATIO) ratio = LARGEST_RATIO;
    if (ratio < SMALLEST_RATIO) ratio = SMALLEST_RATIO;
    return lambda * ratio;
}

// One block.
KERNEL(balanced_loss_fwd_mean, (256), (Out<f32> loss, Out<f32> items, Out<f32> terms, Out<f32> factors, In<f32> statistics, In<f32> weight,
       In<f32> state, u32 batch, f32 scale, f32 mse, f32 l1, f32 cosine, f32 high_frequency, f32 edge),
       (loss, items, terms, factors, statistics, weight, state, batch, scale, mse, l1, cosine, high_frequency, edge)) {
    f32 lambda[TERMS] = {mse, l1, cosine, high_frequency, edge};
    f32 factor_of[TERMS], sums[TERMS + 1];
    UNROLL for (u32 i = 0; i < TERMS; i++) factor_of[i] = factor(lambda[i], state, i);
    UNROLL for (u32 i = 0; i <= TERMS; i++) sums[i] = 0.0f;
    for (u32 b = threadIdx.x; b < batch; b += blockDim.x) {
        f32 item = 0.0f;
        UNROLL for (u32 i = 0; i < TERMS; i++) {
            f32 term = statistics[(u64)b * STATISTICS + i];
            sums[i] += term;
            item = fma_f32(factor_of[i], term, item);
        }
        item *= weight != nullptr ? weight[b] : 1.0f;
        items[b] = item;
        sums[TERMS] += item;
    }
    block_sum(sums);
    if (threadIdx.x != 0) return;
    UNROLL for (u32 i = 0; i < TERMS; i++) {
        terms[i] = sums[i] / (f32)batch;
        factors[i] = factor_of[i];
    }
    loss[0] = scale * (sums[TERMS] / (f32)batch);
}

// Blocks [item, chunk of elements], an element a thread.
KERNEL(balanced_loss_bwd, (256), (Out<f32> dprediction, In<f32> dloss, In<f32> prediction, In<f32> target, In<f32> weight, In<f32> statistics,
       In<f32> factors, u32 batch, u32 elements, u32 row, u32 channels, f32 scale, u32 accumulate),
       (dprediction, dloss, prediction, target, weight, statistics, factors, batch, elements, row, channels, scale, accumulate)) {
    u32 b = blockIdx.x, e = blockIdx.y * blockDim.x + threadIdx.x;
    if (e >= elements) return;
    u64 first = (u64)b * elements;
    const f32 *p = prediction + first, *t = target + first;
    u32 column = e % row;
    // How far the neighbours are; 0 beyond an edge, which replicates it.
    bool has_left = column >= channels, has_right = row - column > channels, has_up = e >= row, has_down = elements - e > row;
    u32 left = has_left ? channels : 0, right = has_right ? channels : 0, up = has_up ? row : 0, down = has_down ? row : 0;
    u32 left2 = left + (column >= 2 * channels ? channels : 0), right2 = right + (row - column > 2 * channels ? channels : 0);
    u32 up2 = up + (e >= 2 * row ? row : 0), down2 = down + (elements - e > 2 * row ? row : 0);
    auto difference = [&](u32 at) { return p[at] - t[at]; };
    f32 pv = p[e], tv = t[e], d = pv - tv;
    f32 l = difference(e - left), r = difference(e + right), u = difference(e - up), o = difference(e + down);
    f32 ul = difference(e - up - left), ur = difference(e - up + right);
    f32 ol = difference(e + down - left), or_ = difference(e + down + right);
    // L d here and at the neighbours: what lies beyond an edge is this pixel again.
    f32 high = fma_f32(-0.25f, (l + r) + (u + o), d);
    f32 high_l = has_left ? fma_f32(-0.25f, (difference(e - left2) + d) + (ul + ol), l) : high;
    f32 high_r = has_right ? fma_f32(-0.25f, (d + difference(e + right2)) + (ur + or_), r) : high;
    f32 high_u = has_up ? fma_f32(-0.25f, (ul + ur) + (difference(e - up2) + d), u) : high;
    f32 high_o = has_down ? fma_f32(-0.25f, (ol + or_) + (d + difference(e + down2)), o) : high;
    f32 high_high = fma_f32(-0.25f, (high_l + high_r) + (high_u + high_o), high);
    // The edges that this pixel is in: its own, and those of the pixels to the left and above. Beyond an edge d - l and
    // d - u are 0.
    auto inverse = [](f32 x, f32 y) {
        return 1.0f / sqrt_f32(fma_f32(x, x, fma_f32(y, y, EDGE_EPSILON * EDGE_EPSILON)));
    };
    f32 edge = (d - l) * inverse(d - l, ol - l) + (d - u) * inverse(ur - u, d - u);
    edge -= ((r - d) + (o - d)) * inverse(r - d, o - d);
    f32 sign = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : 0.0f;
    const f32* of = statistics + (u64)b * STATISTICS;
    f32 sum = 2.0f * fma_f32(factors[0], d, factors[3] * high_high) + fma_f32(factors[1], sign, factors[4] * edge);
    f32 cosine = fma_f32(pv, of[6], -(tv * of[5]));
    f32 common = dloss[0] * scale * (weight != nullptr ? weight[b] : 1.0f) / (f32)batch;
    f32 value = common * fma_f32(factors[2], cosine, sum / (f32)elements);
    f32* to = dprediction + first + e;
    *to = accumulate != 0 ? *to + value : value;
}

// One warp: state = decay * state + (1 - decay) * (terms, 1).
KERNEL(balanced_loss_update, (32), (Out<f32> state, In<f32> terms, f32 decay), (state, terms, decay)) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i > TERMS) return;
    f32 value = i < TERMS ? terms[i] : 1.0f;
    state[i] = fma_f32(decay, state[i], (1.0f - decay) * value);
}
