//! Cases of batches from a data set.

use super::{Augment, Order, assemble_batch};
use crate::ops::case::{Case, Input};
use crate::ops::control::Control;

fn case(name: &str, shape: [usize; 4], batch: usize, order: Order, augment: Augment) -> Case {
    let count = shape[0] as u32;
    let control = Control { step: 5, epoch: 2, cursor: count - 2, first_item: 40, ..Control::default() };
    let inputs = vec![
        Input::bytes("images", shape),
        Input::indices("labels", [shape[0]], 10),
        Input::words("control", &control.words()),
    ];
    Case::new("assemble_batch", name, inputs, move |tape, inputs| {
        let [images, labels, control] = [&inputs[0], &inputs[1], &inputs[2]].map(|var| var.tensor());
        let (x0, labels) = assemble_batch(tape.context(), images, labels, control, batch, order, augment)?;
        Ok(vec![tape.constant(&x0), tape.constant(&labels)])
    })
}

/// Shuffled and in order, mirrored and not, shifted and not, by more than the image too, batches that wrap, odd sizes.
pub fn cases() -> Vec<Case> {
    let shuffled = Order::Shuffled { seed: 0x1234_5678_9abc_def0 };
    let flip = Augment { seed: 0xfeed_0000_0001, flip: true, crop: 0 };
    let crop = Augment { seed: 3, flip: false, crop: 4 };
    let both = Augment { flip: true, ..crop };
    vec![
        case("shuffled_flip_n10_b6_8x8x3", [10, 8, 8, 3], 6, shuffled, flip),
        case("sequential_odd_n3_b5_3x5x1", [3, 3, 5, 1], 5, Order::Sequential, Augment::default()),
        case("shuffled_flip_n7_b4_17x23x3", [7, 17, 23, 3], 4, shuffled, Augment { seed: 3, ..flip }),
        case("crop_n4_b6_8x8x3", [4, 8, 8, 3], 6, shuffled, crop),
        case("crop_flip_odd_n5_b9_7x5x1", [5, 7, 5, 1], 9, Order::Sequential, both),
        case("crop_flip_far_n3_b8_2x3x3", [3, 2, 3, 3], 8, shuffled, both),
        case("shuffled_flip_n2000_b256_32x32x3", [2000, 32, 32, 3], 256, shuffled, Augment { seed: 3, ..flip }).large(),
        case("crop_flip_n2000_b256_32x32x3", [2000, 32, 32, 3], 256, shuffled, both).large(),
    ]
}
