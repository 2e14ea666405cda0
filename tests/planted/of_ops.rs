//! Bugs of single ops: each test plants those of one op or of one part of it.

use engine_core::tensor::DType;

use super::{Bug, OUTSIDE, RACE, WRONG, is_caught, is_caught_by_wirings, is_caught_in_tf32};

#[test]
fn bugs_in_what_a_resnet_needs_are_caught() {
    let bug = |name, op, dtype, from, to, words| {
        let file = match op {
            "batch_norm" => "batch_norm.cu",
            "cross_entropy" => "cross_entropy.cu",
            _ => "pool.cu",
        };
        Bug { name, op, dtype, file, from, to, words }
    };
    let norm = |name, dtype, from, to, words| bug(name, "batch_norm", dtype, from, to, words);
    // Chunks of different lengths would count equally.
    let center = "sum = fma_f32(count, partial[(u64)chunk * 2 * channels + c] - origin, sum);";
    let alike = "sum = fma_f32((f32)chunk_rows, partial[(u64)chunk * 2 * channels + c] - origin, sum);";
    is_caught(&norm("batch_norm_alike", DType::F32, center, alike, WRONG));
    let reading = "    __syncthreads();\n    sum_a = sum_b = 0.0f;";
    is_caught(&norm("batch_norm_race", DType::BF16, reading, "    sum_a = sum_b = 0.0f;", RACE));
    let unbiased = "momentum * (squares / (f32)(rows - 1) - running";
    is_caught(&norm("batch_norm_biased", DType::F32, unbiased, "momentum * (squares / (f32)rows - running", WRONG));
    is_caught(&norm("batch_norm_mask", DType::F32, "if (v[i] <= 0.0f) dz[i] = 0.0f;", "", WRONG));
    let entropy = |name, from, to, words| bug(name, "cross_entropy", DType::F32, from, to, words);
    let inside = "label >= 0 && (u32)label < classes;";
    is_caught(&entropy("cross_entropy_outside", inside, "label >= -1;", WRONG));
    let exponentials = "    exponentials = warp_sum(exponentials);\n";
    is_caught(&entropy("cross_entropy_sum", exponentials, "", WRONG));
    let pool = |name, from, to, words| bug(name, "pool", DType::F32, from, to, words);
    let windows = "oy < y1; oy++) {\n        for";
    is_caught(&pool("pool_last", windows, "oy + 1 < y1; oy++) {\n        for", WRONG));
    let windows = "oy < y1; oy++) {\n        u32 tall";
    is_caught(&pool("pool_mean_last", windows, "oy + 1 < y1; oy++) {\n        u32 tall", WRONG));
    // Only padding before the image is left out.
    let before = "if (ix >= 0x80000000u) continue;";
    is_caught(&pool("pool_outside", "if (ix >= z.width) continue;", before, OUTSIDE));
    is_caught(&pool("pool_race", "    __syncthreads();\n", "", RACE));
}

/// Only if a gradient accumulates and its neighbour does not; and behind the last four of a sum of splits.
#[test]
fn bugs_of_a_gradients_destination_are_caught() {
    let norm = |name, from, to| Bug {
        name,
        op: "batch_norm",
        dtype: DType::F32,
        file: "batch_norm.cu",
        from,
        to,
        words: WRONG,
    };
    let added = "dbias[c] = accumulate_bias != 0 ? dbias[c] + plain : plain;";
    is_caught_by_wirings(&norm("bias_never_added", added, "dbias[c] = plain;"));
    is_caught_by_wirings(&norm(
        "bias_added_as_the_weight",
        added,
        "dbias[c] = accumulate_weight != 0 ? dbias[c] + plain : plain;",
    ));
    for op in ["linear", "conv2d"] {
        let tail =
            |name, from, to| Bug { name, op, dtype: DType::BF16, file: "gradient_sums.cu", from, to, words: WRONG };
        let names = if op == "linear" {
            ["linear_tail_of_splits", "linear_tail_not_added"]
        } else {
            ["conv2d_tail_of_splits", "conv2d_tail_not_added"]
        };
        let last = "    if (at >= sum.len) return;\n    u32 left";
        let short = "    if (at + 4 > sum.len) return;\n    u32 left";
        is_caught_by_wirings(&tail(names[0], last, short));
        let added = "    if ((sum.mode & ADDED) != 0) {\n        load_wide(sum.to + at";
        let whole = "    if ((sum.mode & ADDED) != 0 && at + 4 <= sum.len) {\n        load_wide(sum.to + at";
        is_caught_by_wirings(&tail(names[1], added, whole));
    }
}

/// Row sums of a strip; the tail, the parts and the last strip; adjacent groups in a strip, and a group that is cut; two sources;
/// dropout.
#[test]
fn bugs_of_a_group_norm_are_caught() {
    let bug = |name, dtype, file, from, to, words| Bug { name, op: "group_norm_silu", dtype, file, from, to, words };
    let strip = |name, dtype, from, to, words| bug(name, dtype, "common/strip.cuh", from, to, words);
    let norm = |name, dtype, from, to, words| bug(name, dtype, "group_norm_silu.cu", from, to, words);
    let summing = "    __syncthreads();\n    u32 share = threadIdx.x";
    is_caught(&strip("barrier_before_rows", DType::F32, summing, "    u32 share = threadIdx.x", RACE));
    let shares = "    __syncthreads();\n    if (threadIdx.x >= s.channels) return;\n    UNROLL";
    let unordered = "    if (threadIdx.x >= s.channels) return;\n    UNROLL";
    is_caught(&strip("barrier_before_shares", DType::BF16, shares, unordered, RACE));
    let rows = "row < s.rows; row += shares";
    is_caught(&strip("last_row", DType::BF16, rows, "row + shares < s.rows; row += shares", WRONG));
    let tail = "if (s.pixel + i * s.rows < s.end) read(from.at";
    is_caught(&strip("last_pixel", DType::BF16, tail, "if (s.pixel + i * s.rows + 1 < s.end) read(from.at", WRONG));
    is_caught(&norm("equal_parts", DType::F32, "min_of(chunk, sizes.pixels - start)", "chunk", WRONG));
    let groups = "min_of(sizes.strip_groups, sizes.groups - s.group)";
    is_caught(&strip("last_strip", DType::BF16, groups, "sizes.strip_groups", &["outside its", "null pointer"]));
    is_caught(&strip("second_source", DType::F32, "first ? c : c - sizes.ca", "c", &["outside its", "relative error"]));
    let group = "(threadIdx.x * sizes.over_width >> 16) * sizes.width";
    is_caught(&strip("group_of_a_channel", DType::BF16, group, "0", WRONG));
    let all = "sizes.tiles > 1 ? sizes.width : s.channels, chunks";
    is_caught(&norm("tiles_of_a_group", DType::F32, all, "s.channels, chunks", &["relative error", "has written"]));
    let about = "sum_parts_of(parts, sizes, true, mu)";
    is_caught(&norm("squares_of_parts", DType::F32, about, "sum_parts_of(parts, sizes, true, 0.0f)", WRONG));
    let drawn = "pixel * (sizes.ca + sizes.cb) + s.first + s.within, bits";
    is_caught(&norm("mask_of_a_strip", DType::BF16, drawn, "pixel * (sizes.ca + sizes.cb) + s.within, bits", WRONG));
    let scale = "    totals[0] *= scale;\n    totals[1] *= scale * m";
    is_caught(&norm("scale_of_the_kept", DType::F32, scale, "    totals[0] *= scale;\n    totals[1] *= m", WRONG));
}

/// Rows of several heads in one tile, keys beyond the last, the ninth of sixteen, and who may write where others read.
#[test]
fn bugs_of_attention_on_tensor_cores_are_caught() {
    let bug = |name, file, from, to, words| Bug { name, op: "attention", dtype: DType::BF16, file, from, to, words };
    let shared = |name, from, to, words| bug(name, "common/attention_mma.cuh", from, to, words);
    let head = "return rows.first + head * at.d + (u64)";
    // Blocks of different heads then write the same rows.
    is_caught(&shared("head_of_a_stacked_row", head, "return rows.first + (u64)", RACE));
    let beyond = "if (8 * j + lane % 4 * 2 + i % 2 >= count) tile[i] = -infinity_f32();";
    is_caught(&shared("keys_beyond_the_last", beyond, "{}", WRONG));
    is_caught(&shared("ninth_key", "if (count > 8) weights_of", "if (count > 9) weights_of", WRONG));
    is_caught(&shared("delta_of_another_row", "lane / 4 * 4 + lane / 8;", "lane / 4 * 4 + lane / 16;", WRONG));
    let keys = |name, from, to, words| bug(name, "common/attention_keys.cuh", from, to, words);
    let finished = "        __syncthreads();\n        if (WHOLE && warp < there)";
    is_caught(&keys("barrier_before_dq", finished, "        if (WHOLE && warp < there)", RACE));
    is_caught(&keys("barrier_before_keys_go", "    if (WHOLE) __syncthreads();\n    if (acc", "    if (acc", RACE));
    let made = "        __syncthreads();\n        bool of_keys";
    is_caught(&keys("barrier_before_sums", made, "        bool of_keys", RACE));
}

/// A state shared by several threads, tokens beyond the last, and the two orientations of its gradient.
#[test]
fn bugs_of_linear_attention_are_caught() {
    let bug = |name, dtype, from, to, words| Bug {
        name,
        op: "linear_attention",
        dtype,
        file: "linear_attention.cu",
        from,
        to,
        words,
    };
    let normaliser =
        "at.rows[row] = row < count ? 1.0f / sum_parts(at.parts, row, at) : 0.0f;\n        __syncthreads();";
    let unordered = "at.rows[row] = row < count ? 1.0f / sum_parts(at.parts, row, at) : 0.0f;";
    is_caught(&bug("barrier_before_normalising", DType::F32, normaliser, unordered, RACE));
    let groups = "for (u32 g = 1; g < at.groups; g++) sum";
    let fewer = "for (u32 g = 1; g + 1 < at.groups; g++) sum";
    is_caught(&bug("last_group", DType::F32, groups, fewer, WRONG));
    // The padding of a tile: phi(0) is 1.
    let zeros = "PHI && row < count && c + e < at.d ? phi(v[e])";
    is_caught(&bug("phi_of_padding", DType::F32, zeros, "PHI ? phi(v[e])", WRONG));
    let turned = "put_sums<R, true>(at.dz, sums, at);";
    is_caught(&bug("state_not_turned", DType::F32, turned, "put_sums<R, false>(at.dz, sums, at);", WRONG));
    let mma = |name, from, to, words| Bug {
        file: "common/linear_attention_mma.cuh",
        ..bug(name, DType::BF16, from, to, words)
    };
    is_caught(&mma("mma_phi_of_padding", "e < left ? phi_approx(v[e]) : 0.0f", "phi_approx(v[e])", WRONG));
    is_caught(&mma(
        "sign_of_delta",
        "at.steps, -delta[half], -remainder_of(delta[half])",
        "at.steps, delta[half], 0.0f",
        WRONG,
    ));
    let queries = "        __syncthreads();\n        add_products(sums, block.x, block.y, min_of";
    is_caught(&mma("barrier_before_products", queries, "        add_products(sums, block.x, block.y, min_of", RACE));
}

#[test]
fn bugs_of_a_products_tiles_are_caught() {
    let bug = |name, from, to, words| Bug {
        name,
        op: "linear",
        dtype: DType::BF16,
        file: "common/product.cuh",
        from,
        to,
        words,
    };
    let whole = "for (; at + DEPTH <= r_end; at";
    let outside: &[&str] = &["outside its", "relative error"];
    is_caught(&bug("product_cut_step", whole, "for (; at < r_end; at", outside));
    let sent = "upper ? first[e] : second[e], 2);";
    is_caught(&bug("product_neighbours", sent, "upper ? second[e] : first[e], 2);", WRONG));
    let dealt = "row / 2 * 4 + row % 2 + o_half * 2";
    is_caught(&bug("product_dealt_columns", dealt, "o_half * 8 + row", WRONG));
    let first = "summing = to.sums != nullptr && col0 == 0 &&";
    is_caught(&bug("product_sums_of_all", first, "summing = to.sums != nullptr &&", RACE));
    let some = " && warp % Tile::ACROSS < Sums::BLOCKS;";
    is_caught(&bug("product_sums_of_no_block", some, ";", &["race", "outside its", "has written"]));
    let own = "warp % Tile::ACROSS * Sums::SUM_BLOCKS * 16";
    is_caught(&bug("product_sums_of_one_block", own, "warp % Tile::ACROSS * 0", &["race", "relative error"]));
}

/// A gate's sample, where its factors may be read four at once, and its own columns of a gradient that other calls add to.
#[test]
fn bugs_of_a_gate_are_caught() {
    let bug =
        |name, from, to, words| Bug { name, op: "linear", dtype: DType::BF16, file: "linear.cu", from, to, words };
    let sample = "sample_of(row, to.sample_scale)";
    is_caught(&bug("gate_of_the_token", sample, "row", &["outside its", "relative error"]));
    let pieces = "wide = wide && gate_stride % N == 0 && aligned16(gate);";
    is_caught(&bug("gate_between_pieces", pieces, "", &["aligned"]));
    let added = "UNROLL for (u32 i = 0; i < N; i++) sums[i] += g[i];";
    is_caught_by_wirings(&bug("gate_gradient_overwritten", added, "", WRONG));
}

/// Factors that are cut off, a fragment of words in another order, and sums of rows that lose what TF32 has no room for.
#[test]
fn bugs_of_tf32_are_caught() {
    let bug =
        |name, op, from, to, words| Bug { name, op, dtype: DType::F32, file: "common/product.cuh", from, to, words };
    let rounds = "words[w] = tf32_bits(f32_from_bits(words[w]));";
    is_caught_in_tf32(&bug("tf32_cut_off", "linear", rounds, ";", &["not rounded"]));
    let order = "u32 o_half = IS_B ? w / 2 : w % 2, r_half = IS_B ? w % 2 : w / 2;\n                words";
    let other = "u32 o_half = w % 2, r_half = w / 2;\n                words";
    is_caught_in_tf32(&bug("tf32_order_of_words", "linear", order, other, WRONG));
    let low = "stored[w]) - f32_from_bits(part[w]));\n        mma_m16n8k8_tf32(c, part, ones);";
    is_caught_in_tf32(&bug("tf32_sums_of_high_parts", "linear", low, "stored[w]));", WRONG));
    is_caught_in_tf32(&bug("tf32_second_half", "conv2d", "DEPTH / 2 * ROW;", "0;", WRONG));
}

/// Attention in TF32: keys and values that are not rounded, weights that take another order than the rows they meet, keys that a column
/// of weights does not stand for, and deltas without a part of their columns.
#[test]
fn bugs_of_attention_in_tf32_are_caught() {
    let bug = |name, file, from, to, words| Bug { name, op: "attention", dtype: DType::F32, file, from, to, words };
    let shared = |name, from, to, words| bug(name, "common/attention_mma.cuh", from, to, words);
    let keys = |name, from, to, words| bug(name, "common/attention_keys.cuh", from, to, words);
    let rounds = "store_f32(&pack.v[e], f32_from_bits(tf32_bits(pack.v[e])));";
    is_caught_in_tf32(&shared(
        "tf32_rows_not_rounded",
        rounds,
        "store_f32(&pack.v[e], to_f32(pack.v[e]));",
        &["not rounded"],
    ));
    let again = "            if (active) round_rows(own, d8, 16, at, lane, WARP);\n            __syncwarp();";
    is_caught_in_tf32(&shared("tf32_later_queries_not_rounded", again, "            __syncwarp();", &["not rounded"]));
    let order = "tf32_bits(c[i / 4][i % 2 * 2 + i / 2 % 2])";
    is_caught_in_tf32(&shared("tf32_order_of_weights", order, "tf32_bits(c[i / 4][i % 2 + i / 2 % 2 * 2])", WRONG));
    is_caught_in_tf32(&shared(
        "tf32_part_of_delta",
        "u32 c = lane % 4; c < at.d;",
        "u32 c = lane % 4 + 4; c < at.d;",
        WRONG,
    ));
    let even = "column % 4 * 2 + column / 4";
    is_caught_in_tf32(&keys("tf32_key_of_a_column", even, "column", WRONG));
    let half = "at + 32 * (i % 2) + 4 * (i / 2) * stride";
    is_caught_in_tf32(&keys("tf32_transposed_words", half, "at + 32 * (i / 2) + 4 * (i % 2) * stride", WRONG));
}

/// Walks that step through taps and pixels instead of finding each anew, and the kernel for few channels.
#[test]
fn bugs_of_a_convolutions_walks_are_caught() {
    let bug = |name, dtype, file, from, to, words| Bug { name, op: "conv2d", dtype, file, from, to, words };
    let walk =
        |name, from, to| bug(name, DType::BF16, "common/patches.cuh", from, to, &["relative error", "outside its"]);
    is_caught(&walk("images_of_a_strip", "            if (y >= at.out_height) y -= at.out_height;\n", ""));
    is_caught(&walk("rows_of_a_window", "step += ((u64)at.width - at.kernel_width) * at.channels;", ""));
    is_caught(&walk("border_of_a_window", "if (x + i < width) columns", "if (x + i <= width) columns"));
    is_caught(&walk("tap_back", "step -= 2 * (u64)at.channels;", "step -= (u64)at.channels;"));
    is_caught(&walk("border_of_uses", "if (y - i < at.out_height) inside", "if (y - i <= at.out_height) inside"));
    is_caught(&walk("next_tap", "step -= ((u64)at.outputs * at.taps - 1)", "step -= ((u64)at.outputs * at.taps)"));
    is_caught(&walk("steps_of_a_strip", "walk.inside[p] >> 1 | walk.inside[p] << 31", "walk.inside[p]"));
    let thin = |name, from, to, words| bug(name, DType::F32, "common/thin.cuh", from, to, words);
    is_caught(&thin("thin_turned", "(n * 9 + 8 - tap)", "(n * 9 + tap)", WRONG));
    is_caught(&thin("thin_border", "y = row0 + row - 1, x", "y = row0 + row, x", WRONG));
    is_caught(&thin("thin_race", "        __syncthreads();\n        thin_patch", "        thin_patch", RACE));
    is_caught(&thin(
        "thin_order",
        "        __syncthreads();\n        if (threadIdx.x / WARP != warp)",
        "        if (threadIdx.x / WARP != warp)",
        RACE,
    ));
    let last = "c < sizes.wide_channels && col0 + col + i < sizes.width";
    is_caught(&thin("thin_last", last, "c < sizes.wide_channels", &["relative error", "outside its"]));
}

/// Rows in a warp's registers: what a sample is scaled and shifted by, and the block's sums by columns.
#[test]
fn bugs_of_a_layer_norm_are_caught() {
    let bug = |name, from, to, words| Bug {
        name,
        op: "layer_norm",
        dtype: DType::BF16,
        file: "layer_norm.cu",
        from,
        to,
        words,
    };
    let stride = "modulation += (u64)sample * stride;";
    is_caught(&bug("stride_of_the_modulation", stride, "modulation += (u64)sample * (stride / 2);", WRONG));
    let overwrites = "    __syncthreads();\n    UNROLL for (u32 s = 0; s < STEPS; s++) store4(&tile";
    let at_once = "    UNROLL for (u32 s = 0; s < STEPS; s++) store4(&tile";
    is_caught(&bug("barrier_before_the_next_sums", overwrites, at_once, RACE));
}

/// A stencil and its adjoint, each side of which can be wrong; state that must not be read.
#[test]
fn bugs_of_a_balanced_loss_are_caught() {
    let bug = |name, from, to, words| Bug {
        name,
        op: "balanced_loss",
        dtype: DType::F32,
        file: "balanced_loss.cu",
        from,
        to,
        words,
    };
    // The pixel right of a row's last is the next row's first, or beyond the last row.
    let right = "right = row - column > channels ? e + channels : e;";
    is_caught(&bug("right_of_the_image", right, "right = row - column >= channels ? e + channels : e;", OUTSIDE));
    let down = "down = elements - e > row ? e + row : e;";
    is_caught(&bug("below_the_image", down, "down = elements - e >= row ? e + row : e;", OUTSIDE));
    // The gradient's second ring, and the edges that come in from a neighbour.
    let ring = "u32 up2 = up + (e >= 2 * row ? row : 0)";
    is_caught(&bug("two_rows_up", ring, "u32 up2 = up + (e > 2 * row ? row : 0)", WRONG));
    is_caught(&bug("edge_from_above", "inverse(ur - u, d - u)", "inverse(ul - u, d - u)", WRONG));
    let column = &["outside its", "relative error"];
    is_caught(&bug("column_of_the_next_element", "column += step;", "column += blockDim.x;", column));
    // Zeros are the initial state.
    let unset = "state[TERMS] <= 0.0f || state[term] <= 0.0f";
    is_caught(&bug("factors_of_no_state", unset, "state[term] < 0.0f", WRONG));
    is_caught(&bug("every_thread_updates", "    if (i > TERMS) return;\n", "", OUTSIDE));
}
