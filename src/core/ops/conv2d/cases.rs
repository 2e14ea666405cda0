//! Cases of the convolution.

use super::{Geometry, conv2d};
use crate::ops::case::{Case, Input};

/// The terms added to the sums.
#[derive(Clone, Copy, Default)]
struct With {
    bias: bool,
    channel_add: bool,
    residual: bool,
}

const NOTHING: With = With { bias: false, channel_add: false, residual: false };
const BIAS: With = With { bias: true, ..NOTHING };
const ALL: With = With { bias: true, channel_add: true, residual: true };

/// x `[b, h, w, cin]`, weight `[cout, k, k, cin]`.
fn case(name: &str, x: [usize; 4], cout: usize, k: usize, geometry: Geometry, with: With) -> Case {
    window(name, x, cout, [k, k], geometry, with)
}

/// x `[b, h, w, cin]`, weight `[cout, ky, kx, cin]`.
fn window(name: &str, x: [usize; 4], cout: usize, kernel: [usize; 2], geometry: Geometry, with: With) -> Case {
    let ([b, h, w, cin], [ky, kx]) = (x, kernel);
    let size = geometry.resize.unwrap_or([h, w]);
    let [ho, wo] = [0, 1].map(|axis| geometry.out(size[axis], kernel[axis], axis).expect("a window that fits"));
    let mut inputs = vec![Input::activation("x", x), Input::weight("weight", [cout, ky, kx, cin])];
    if with.bias {
        inputs.push(Input::parameter("bias", [cout]));
    }
    if with.channel_add {
        inputs.push(Input::activation("channel_add", [b, cout]));
    }
    if with.residual {
        inputs.push(Input::activation("residual", [b, ho, wo, cout]));
    }
    Case::new("conv2d", name, inputs, move |tape, inputs| {
        let mut rest = inputs[2..].iter();
        let bias = with.bias.then(|| rest.next()).flatten();
        let channel_add = with.channel_add.then(|| rest.next()).flatten();
        let residual = with.residual.then(|| rest.next()).flatten();
        Ok(vec![conv2d(tape, &inputs[0], &inputs[1], bias, geometry, channel_add, residual)?])
    })
    .sums((ky * kx * cin.max(cout)).max(b * ho * wo))
}

/// Windows of 1 and 3, strides, both ways of padding, resizing, odd sizes, and those of `window_cases` and `large_cases`.
pub fn cases() -> Vec<Case> {
    let same = Geometry::same(3);
    let point = Geometry::same(1);
    let down = Geometry { stride: 2, ..same };
    let down_after = Geometry { stride: 2, pad_before: [0, 0], ..same };
    let up = |h, w| Geometry { resize: Some([h, w]), ..same };
    let mut cases = vec![
        case("b2_h5_w6_c8_o16", [2, 5, 6, 8], 16, 3, same, BIAS),
        case("all_b3_h4_w4_c16_o24", [3, 4, 4, 16], 24, 3, same, ALL),
        case("from_rgb_b2_h7_w5_c3_o40", [2, 7, 5, 3], 40, 3, same, BIAS),
        case("to_gray_b2_h6_w7_c24_o1", [2, 6, 7, 24], 1, 3, same, BIAS),
        case("odd_channels_b1_h3_w9_c5_o7", [1, 3, 9, 5], 7, 3, same, NOTHING),
        case("point_b2_h3_w5_c9_o12", [2, 3, 5, 9], 12, 1, point, ALL),
        case("one_pixel_b3_c2_o3", [3, 1, 1, 2], 3, 3, same, BIAS),
        case("down_b2_h8_w8_c8_o16", [2, 8, 8, 8], 16, 3, down, BIAS),
        case("down_fours_b2_h8_w8_c4_o12", [2, 8, 8, 4], 12, 3, down, BIAS),
        case("down_odd_b2_h7_w5_c6_o9", [2, 7, 5, 6], 9, 3, down, ALL),
        case("down_after_b2_h6_w8_c8_o8", [2, 6, 8, 8], 8, 3, down_after, BIAS),
        case("point_down_b2_h5_w4_c8_o8", [2, 5, 4, 8], 8, 1, Geometry { stride: 2, ..point }, BIAS),
        case("up_b2_h3_w4_to_h6_w8_c8_o8", [2, 3, 4, 8], 8, 3, up(6, 8), BIAS),
        case("up_all_b3_h5_w3_to_h10_w6_c20_o33", [3, 5, 3, 20], 33, 3, up(10, 6), ALL),
        case("up_odd_b2_h4_w3_to_h7_w5_c5_o6", [2, 4, 3, 5], 6, 3, up(7, 5), ALL),
        case("tiles_b2_h9_w17_c40_o72", [2, 9, 17, 40], 72, 3, same, ALL),
        case("wide_b1_h3_w70_c4_o4", [1, 3, 70, 4], 4, 3, same, BIAS),
        // Sums over pixels in several parts and splits, and the tiles of 128 that take many pixels.
        case("split_odd_b2_h13_w20_c3_o5", [2, 13, 20, 3], 5, 3, same, ALL),
        case("split_b2_h17_w20_c4_o8", [2, 17, 20, 4], 8, 3, same, ALL),
        case("large_tile_b1_h91_w90_c8_o65", [1, 91, 90, 8], 65, 3, same, BIAS),
        case("large_tile_bwd_input_b2_h64_w64_c65_o2", [2, 64, 64, 65], 2, 3, same, NOTHING),
        case("large_tiles_bwd_weight_b1_h32_w32_c16_o65", [1, 32, 32, 16], 65, 3, same, NOTHING),
        case("large_tile_b1_h95_w91_c8_o72", [1, 95, 91, 8], 72, 3, same, BIAS).constants(&["x", "weight"]),
        case("large_tile_bwd_input_b2_h64_w68_c72_o8", [2, 64, 68, 72], 8, 3, same, NOTHING).constants(&["weight"]),
        case("large_tile_down_b2_h64_w68_c72_o8", [2, 64, 68, 72], 8, 3, down, NOTHING).constants(&["weight"]),
        case("five_down_b2_h6_w8_c16_o40", [2, 6, 8, 16], 40, 5, Geometry { stride: 2, ..Geometry::same(5) }, BIAS),
        case("large_tile_bwd_weight_b1_h4_w8_c120_o1080", [1, 4, 8, 120], 1080, 3, same, NOTHING).constants(&["x"]),
        case("large_tile_bwd_weight_odd_b1_h5_w7_c120_o1080", [1, 5, 7, 120], 1080, 3, same, NOTHING).constants(&["x"]),
        // Tiles of 64 with more than one block a multiprocessor: they take four warps, not eight.
        case("small_tiles_b1_h95_w91_c8_o8", [1, 95, 91, 8], 8, 3, same, BIAS),
        case("small_tiles_bwd_weight_b1_h4_w8_c112_o520", [1, 4, 8, 112], 520, 3, same, BIAS).constants(&["x"]),
        // Tiles of 128x64, whose columns are most of them used; by parity too.
        case("tall_tile_b1_h131_w130_c8_o40", [1, 131, 130, 8], 40, 3, same, BIAS).constants(&["x", "weight"]),
        case("tall_tile_bwd_input_b1_h131_w130_c40_o8", [1, 131, 130, 40], 8, 3, same, NOTHING).constants(&["weight"]),
        case("tall_tile_down_b1_h132_w130_c40_o8", [1, 132, 130, 40], 8, 3, down, NOTHING).constants(&["weight"]),
        // Whole pieces of 16 bytes that begin between two such places.
        case("misaligned_b2_h4_w5_c16_o24", [2, 4, 5, 16], 24, 3, same, ALL).misaligned(&["x", "residual"]),
        case("misaligned_cotangent_b2_h4_w5_c16_o24", [2, 4, 5, 16], 24, 3, same, ALL).misaligned(&["cotangent"]),
        // Whole rows a step: images that repeat their padding after 1, 2, 8 and 32 steps (of 32 pixels; in TF32 of 16), of several splits.
        case("strips_b5_h4_w8_c8_o16", [5, 4, 8, 8], 16, 3, same, NOTHING),
        case("strips_b3_h16_w16_c16_o8", [3, 16, 16, 16], 8, 3, same, BIAS),
        case("strips_b1_h32_w32_c8_o8", [1, 32, 32, 8], 8, 3, same, NOTHING),
        case("strips_b1_h32_w16_c8_o8", [1, 32, 16, 8], 8, 3, same, NOTHING),
        case("strips_down_b2_h32_w16_c8_o8", [2, 32, 16, 8], 8, 3, down, NOTHING),
        case("strips_down_after_b9_h16_w16_c8_o8", [9, 16, 16, 8], 8, 3, down_after, NOTHING),
        // Few channels on one side, several patches an image, wide ones beyond a block's.
        case("thin_b3_h19_w37_c4_o72", [3, 19, 37, 4], 72, 3, same, NOTHING),
        case("thin_b2_h9_w33_c66_o2", [2, 9, 33, 66], 2, 3, same, BIAS),
        case("thin_b2_h5_w34_c3_o18", [2, 5, 34, 3], 18, 3, same, BIAS),
        case("thin_b2_h17_w5_c3_o16", [2, 17, 5, 3], 16, 3, same, NOTHING),
        // Whole blocks of channels: odd images, several tasks and chunks of tiles, a long sum, a resized image.
        case("blocks_b2_h5_w7_c32_o48", [2, 5, 7, 32], 48, 3, same, ALL),
        case("blocks_b3_h14_w17_c16_o32", [3, 14, 17, 16], 32, 3, same, BIAS),
        case("blocks_b1_h2_w3_c288_o16", [1, 2, 3, 288], 16, 3, same, NOTHING),
        case("blocks_b2_h3_w2_c16_o288", [2, 3, 2, 16], 288, 3, same, ALL),
        case("blocks_up_b2_h3_w4_to_h6_w8_c32_o16", [2, 3, 4, 32], 16, 3, up(6, 8), BIAS),
        case("blocks_up_odd_b2_h2_w4_to_h3_w7_c16_o16", [2, 2, 4, 16], 16, 3, up(3, 7), ALL),
        case("blocks_up_b1_h8_w9_to_h16_w18_c16_o16", [1, 8, 9, 16], 16, 3, up(16, 18), BIAS),
        case("blocks_up_odd_b1_h7_w9_to_h13_w17_c16_o16", [1, 7, 9, 16], 16, 3, up(13, 17), ALL),
    ];
    cases.extend(window_cases());
    cases.extend(large_cases());
    cases
}

/// Windows of other sizes, ways and places than 3x3 around a pixel.
fn window_cases() -> Vec<Case> {
    let doubled = |geometry| Geometry { resize: Some([6, 8]), ..geometry };
    vec![
        // Windows larger than the image, the stem of a ResNet for large images, and one of 5.
        case("stem_b2_h14_w13_c3_o16", [2, 14, 13, 3], 16, 7, Geometry { stride: 2, ..Geometry::same(7) }, NOTHING),
        case("stem_wide_b1_h9_w10_c16_o32", [1, 9, 10, 16], 32, 7, Geometry { stride: 2, ..Geometry::same(7) }, ALL),
        case("seven_b2_h6_w7_c5_o9", [2, 6, 7, 5], 9, 7, Geometry::same(7), BIAS),
        case("seven_small_b2_h2_w3_c4_o8", [2, 2, 3, 4], 8, 7, Geometry::same(7), ALL),
        case("five_up_b1_h3_w4_to_h6_w8_c4_o8", [1, 3, 4, 4], 8, 5, doubled(Geometry::same(5)), BIAS),
        // Windows that are no squares, and windows that stay within the image.
        window("row_b2_h5_w9_c8_o16", [2, 5, 9, 8], 16, [1, 7], Geometry::centred([1, 7]), BIAS),
        window("column_b2_h9_w5_c16_o9", [2, 9, 5, 16], 9, [7, 1], Geometry::centred([7, 1]), ALL),
        window("row3_b1_h4_w6_c5_o7", [1, 4, 6, 5], 7, [1, 3], Geometry::centred([1, 3]), NOTHING),
        window("tall_down_b2_h7_w6_c6_o8", [2, 7, 6, 6], 8, [5, 3], Geometry::centred([5, 3]).strided(2), BIAS),
        window("row_up_b1_h3_w4_to_h6_w8_c4_o8", [1, 3, 4, 4], 8, [1, 7], doubled(Geometry::centred([1, 7])), BIAS),
        case("within_b2_h6_w9_c16_o16", [2, 6, 9, 16], 16, 3, Geometry::within(1), ALL),
        case("within_down_b2_h9_w8_c3_o8", [2, 9, 8, 3], 8, 3, Geometry::within(2), BIAS),
        case("within_exact_b1_h3_w3_c5_o6", [1, 3, 3, 5], 6, 3, Geometry::within(2), NOTHING),
    ]
}

/// The presets' shapes.
fn large_cases() -> Vec<Case> {
    let same = Geometry::same(3);
    let down = Geometry { stride: 2, ..same };
    let up = Geometry { resize: Some([32, 32]), ..same };
    vec![
        window("row_b16_h17_c192_o192", [16, 17, 17, 192], 192, [1, 7], Geometry::centred([1, 7]), BIAS).large(),
        case("level0_b32_h32_c64_o64", [32, 32, 32, 64], 64, 3, same, ALL).large(),
        case("level1_b32_h16_c128_o128", [32, 16, 16, 128], 128, 3, same, ALL).large(),
        case("level2_b32_h8_c256_o256", [32, 8, 8, 256], 256, 3, same, ALL).large(),
        case("down_b32_h32_c64_o64", [32, 32, 32, 64], 64, 3, down, BIAS).large(),
        case("up_b32_h16_to_h32_c128_o128", [32, 16, 16, 128], 128, 3, up, BIAS).large(),
        case("stem_b16_h224_c3_o64", [16, 224, 224, 3], 64, 7, Geometry { stride: 2, ..Geometry::same(7) }, NOTHING)
            .large(),
        case("gpu_b128_h32_c128_o128", [128, 32, 32, 128], 128, 3, same, ALL).large(),
    ]
}
