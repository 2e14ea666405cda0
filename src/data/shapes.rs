//! The built-in set: ten classes of coloured shapes, drawn from a seed.
//!
//! Every pixel is computed with Philox, `+ - * /` and square roots only, all exactly rounded, so the set has the same bits on
//! every machine. A shape is a signed distance (negative inside, in pixels), and a pixel's coverage is that distance clamped:
//! edges are smooth without oversampling.

use rayon::prelude::*;

use super::dataset::{Dataset, Parts};
use crate::rng::{Philox, Purpose};

/// Number of images of `--data builtin`, a tenth of them for validation.
pub const SHAPES_COUNT: usize = 20_000;

const SIZE: usize = 32;
const IMAGE: usize = SIZE * SIZE * 3;
const CLASSES: [&str; 10] =
    ["circle", "ring", "square", "triangle", "star", "cross", "heart", "crescent", "stripes", "checkerboard"];

/// `count` images, 32x32x3, of ten classes of shapes: image `i` depends only on `seed` and `i`, and its label is `i % 10`. The
/// last tenth is for validation.
///
/// ```
/// let set = engine::data::shapes(0, 50);
/// assert_eq!(set.len(), 50);
/// assert_eq!(set.class_names()[3], "triangle");
/// ```
///
/// # Panics
///
/// If `count` is 0 or more than 2³²−1.
pub fn shapes(seed: u64, count: usize) -> Dataset {
    let philox = Philox::new(seed);
    let mut images = vec![0; count * IMAGE];
    images.par_chunks_exact_mut(IMAGE).enumerate().for_each(|(i, image)| {
        let look = Look::draw(&philox, i as u32);
        look.paint(i % CLASSES.len(), image);
    });
    Dataset::from_parts(Parts {
        name: "shapes".into(),
        height: SIZE,
        width: SIZE,
        channels: 3,
        class_names: CLASSES.map(String::from).into(),
        images,
        labels: (0..count).map(|i| (i % CLASSES.len()) as u16).collect(),
        train: count - count / 10,
        ..Parts::default()
    })
    .expect("one to 2^32 - 1 shapes are a data set")
}

/// The random parameters of an image. Lengths are in pixels.
struct Look {
    centre: [f32; 2],
    radius: f32,
    /// Cosine and sine of the rotation.
    rotation: [f32; 2],
    colour: [f32; 3],
    /// The background at the top and at the bottom.
    background: [[f32; 3]; 2],
}

impl Look {
    fn draw(philox: &Philox, item: u32) -> Self {
        let block = |block| philox.uniform4(block, item, 0, Purpose::Shapes);
        let [x, y, radius, turn] = block(0);
        let [hue, value, saturation, _] = block(1);
        let [tint, dark, light, _] = block(2);
        // With t = tan(angle / 2), cosine and sine are rational: at most 17 degrees either way.
        let t = 0.15 * (2.0 * turn - 1.0);
        let norm = 1.0 + t * t;
        let level = 0.06 + 0.10 * dark;
        let background = |level: f32| hsv(0.55 + 0.2 * tint, 0.5, level);
        Self {
            centre: [15.5 + 1.5 * (2.0 * x - 1.0), 15.5 + 1.5 * (2.0 * y - 1.0)],
            radius: 10.0 + 2.0 * radius,
            rotation: [(1.0 - t * t) / norm, 2.0 * t / norm],
            colour: hsv(hue, 0.5 + 0.35 * saturation, 0.9 + 0.1 * value),
            background: [background(level), background(level + 0.05 + 0.10 * light)],
        }
    }

    fn paint(&self, class: usize, image: &mut [u8]) {
        let [cos, sin] = self.rotation;
        for (i, pixel) in image.chunks_exact_mut(3).enumerate() {
            let (row, column) = (i / SIZE, i % SIZE);
            let (dx, dy) = (column as f32 - self.centre[0], row as f32 - self.centre[1]);
            let (x, y) = (cos * dx + sin * dy, cos * dy - sin * dx);
            let coverage = (0.5 - distance(class, x, y, self.radius)).clamp(0.0, 1.0);
            let down = row as f32 / (SIZE - 1) as f32;
            for (channel, out) in pixel.iter_mut().enumerate() {
                let [top, bottom] = [self.background[0][channel], self.background[1][channel]];
                let back = top + down * (bottom - top);
                let value = back + coverage * (self.colour[channel] - back);
                *out = (255.0 * value + 0.5) as u8;
            }
        }
    }
}

/// Distance of the point (x, y) from the edge of a shape of `class` around the origin, negative inside; y points down.
fn distance(class: usize, x: f32, y: f32, r: f32) -> f32 {
    match class {
        0 => length(x, y) - 0.95 * r,
        1 => (length(x, y) - 0.76 * r).abs() - 0.22 * r,
        2 => boxed(x, y, 0.82 * r, 0.82 * r),
        3 => polygon(&[[0.0, -1.0], [1.0, 0.8], [-1.0, 0.8]], x / r, y / r) * r,
        4 => polygon(&STAR, x / r, y / r) * r,
        5 => boxed(x, y, 0.32 * r, r).min(boxed(x, y, r, 0.32 * r)),
        6 => heart(x / r, y / r) * r,
        7 => (length(x, y) - r).max(0.82 * r - length(x - 0.48 * r, y)),
        8 => [-0.68f32, 0.0, 0.68].iter().map(|at| boxed(x, y - at * r, 0.9 * r, 0.2 * r)).fold(f32::MAX, f32::min),
        _ => checkerboard(x, y, r),
    }
}

/// Five points, the first upwards; the inner corners lie at 0.45 of the radius.
const STAR: [[f32; 2]; 10] = [
    [0.0, -1.1],
    [0.2910, -0.4005],
    [1.0462, -0.3399],
    [0.4708, 0.1530],
    [0.6466, 0.8899],
    [0.0, 0.4950],
    [-0.6466, 0.8899],
    [-0.4708, 0.1530],
    [-1.0462, -0.3399],
    [-0.2910, -0.4005],
];

fn length(x: f32, y: f32) -> f32 {
    (x * x + y * y).sqrt()
}

/// A box of the given half extents.
fn boxed(x: f32, y: f32, half_width: f32, half_height: f32) -> f32 {
    let (dx, dy) = (x.abs() - half_width, y.abs() - half_height);
    length(dx.max(0.0), dy.max(0.0)) + dx.max(dy).min(0.0)
}

/// The distance from the nearest edge, negative if an odd number of edges lies to one side of the point.
fn polygon<const N: usize>(corners: &[[f32; 2]; N], x: f32, y: f32) -> f32 {
    let mut nearest = f32::MAX;
    let mut inside = false;
    let mut a = corners[N - 1];
    for &b in corners {
        let (ex, ey) = (b[0] - a[0], b[1] - a[1]);
        let (px, py) = (x - a[0], y - a[1]);
        let along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0.0, 1.0);
        let (gx, gy) = (px - along * ex, py - along * ey);
        nearest = nearest.min(gx * gx + gy * gy);
        // The edge crosses the point's row; the sign of the cross product gives the side.
        inside ^= (a[1] > y) != (b[1] > y) && (py * ex > px * ey) == (ey > 0.0);
        a = b;
    }
    if inside { -nearest.sqrt() } else { nearest.sqrt() }
}

/// Two adjacent discs and the kite formed by their tangents and the point below.
fn heart(x: f32, y: f32) -> f32 {
    let x = x.abs();
    let disc = length(x - 0.47, y + 0.35) - 0.51;
    // The tangent from (0, 1) touches the right disc at (0.868, -0.032).
    let kite =
        polygon(&[[0.0, -0.52], [0.47, -0.35], [0.868, -0.032], [0.0, 1.0], [-0.868, -0.032], [-0.47, -0.35]], x, y);
    disc.min(kite)
}

/// Three by three cells, five of them filled.
fn checkerboard(x: f32, y: f32, r: f32) -> f32 {
    let half = 0.9 * r / 3.0;
    let mut nearest = f32::MAX;
    for row in -1i8..=1 {
        for column in -1i8..=1 {
            if (row + column) % 2 == 0 {
                let (cx, cy) = (2.0 * half * f32::from(column), 2.0 * half * f32::from(row));
                nearest = nearest.min(boxed(x - cx, y - cy, half, half));
            }
        }
    }
    nearest
}

/// Red, green and blue of a hue (in turns), a saturation and a value in 0..1.
fn hsv(hue: f32, saturation: f32, value: f32) -> [f32; 3] {
    [0.0, 4.0, 2.0].map(|offset: f32| {
        let mut place = 6.0 * hue + offset;
        while place >= 6.0 {
            place -= 6.0;
        }
        let pure = ((place - 3.0).abs() - 1.0).clamp(0.0, 1.0);
        value * (1.0 - saturation * (1.0 - pure))
    })
}

#[cfg(test)]
mod tests {
    use super::super::dataset::Split;
    use super::*;

    #[test]
    fn the_set_is_the_same_bits_everywhere() {
        let digests = shapes(0, 100).digests();
        assert_eq!(digests.images, "66561df78792ebb7e7e38c5ee58ffc3931912eb19ee093992d0629a1cccd5078");
    }

    #[test]
    fn an_image_depends_on_its_seed_and_index_alone() {
        let (a, b) = (shapes(3, 20), shapes(3, 40));
        assert_eq!(a.images(), &b.images()[..a.images().len()]);
        assert_ne!(a.images(), shapes(4, 20).images());
    }

    #[test]
    fn classes_and_splits_are_balanced() {
        let set = shapes(0, 1000);
        assert_eq!(set.split_len(Split::Validation), 100);
        for split in [Split::Train, Split::Validation] {
            for class in 0..10 {
                let count = set.split_labels(split).iter().filter(|&&label| label == class).count();
                assert_eq!(count * 10, set.split_len(split));
            }
        }
    }

    #[test]
    fn every_shape_is_bold_and_inside_the_picture() {
        let set = shapes(5, 400);
        for i in 0..set.len() {
            let image = set.image(i);
            let bright = |p: &[u8]| *p.iter().max().unwrap() > 128;
            let share = image.chunks_exact(3).filter(|p| bright(p)).count() as f32 / (32.0 * 32.0);
            let name = &set.class_names()[usize::from(set.labels()[i])];
            assert!((0.12..0.55).contains(&share), "{name} {i}: {share}");
            let edge = (0..32).flat_map(|k| [k, 31 * 32 + k, 32 * k, 32 * k + 31]);
            let touching = edge.filter(|&p| bright(&image[3 * p..3 * p + 3])).count();
            assert!(touching <= 2, "{name} {i} touches the edge at {touching} pixels");
        }
    }
}
