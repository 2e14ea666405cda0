//! Resampling as in Pillow: separable, antialiased (the kernel widens when downscaling), Lanczos with three lobes.
//!
//! Unlike there, nothing is rounded or clipped between the two passes.
//!
//! Cost: a picture `H x W x C` to `h x w` takes `6 max(H, h) W C + 6 h max(W, w) C` products, the first part vectorized. Memory: `h W C` floats.

use std::f64::consts::PI;

use pulp::{Arch, Simd, WithSimd};

use super::Image;

/// A part of a picture, in pixels; its bounds may be fractional.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

/// Source pixels of one result pixel along an axis: the index of the first, and the weights.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

/// Resamples `region` of the picture to `width` x `height` pixels. Neighbours outside of the region count, those outside of the picture do not.
pub(super) fn resample(source: &Image, region: Region, width: usize, height: usize) -> Vec<u8> {
    let channels = source.channels();
    let columns = taps(region.left, region.width, source.width(), width);
    let rows = taps(region.top, region.height, source.height(), height);
    let wide = source.width() * channels;
    let mut sums = vec![0f32; height * wide];
    let mut line = vec![0f32; wide];
    // Each row of the source is converted once and added to every row of the result that uses it.
    let mut begin = 0;
    for (y, pixels) in source.pixels().chunks_exact(wide).enumerate() {
        while rows.get(begin).is_some_and(|taps| taps.first + taps.weights.len() <= y) {
            begin += 1;
        }
        line.iter_mut().zip(pixels).for_each(|(to, &from)| *to = f32::from(from));
        for (row, taps) in rows.iter().enumerate().skip(begin).take_while(|(_, taps)| taps.first <= y) {
            if let Some(&weight) = taps.weights.get(y - taps.first) {
                Arch::new().dispatch(Add { to: &mut sums[row * wide..][..wide], from: &line, weight });
            }
        }
    }
    let mut pixels = Vec::with_capacity(height * width * channels);
    for row in sums.chunks_exact(wide) {
        for taps in &columns {
            for channel in 0..channels {
                let values = row[taps.first * channels + channel..].iter().step_by(channels);
                let sum: f32 = taps.weights.iter().zip(values).map(|(weight, value)| weight * value).sum();
                pixels.push(sum.round() as u8);
            }
        }
    }
    pixels
}

/// The taps of `count` pixels spread evenly over `[begin, begin + extent)` of an axis of `length` pixels; weights add up to 1.
fn taps(begin: f64, extent: f64, length: usize, count: usize) -> Vec<Taps> {
    let scale = extent / count as f64;
    let stretch = scale.max(1.0);
    let support = 3.0 * stretch;
    (0..count)
        .map(|i| {
            let centre = begin + (i as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(length);
            let weights: Vec<f64> = (first..end).map(|at| lanczos((at as f64 + 0.5 - centre) / stretch)).collect();
            let sum: f64 = weights.iter().sum();
            Taps { first, weights: weights.into_iter().map(|weight| (weight / sum) as f32).collect() }
        })
        .collect()
}

/// Duchon 1979: sinc(x) sinc(x / 3) within three pixels.
fn lanczos(x: f64) -> f64 {
    match x.abs() {
        0.0 => 1.0,
        x if x < 3.0 => 3.0 * (PI * x).sin() * (PI * x / 3.0).sin() / (PI * x).powi(2),
        _ => 0.0,
    }
}

/// `to += weight · from`. Product and sum are rounded separately, so that pixels do not depend on the instruction set.
struct Add<'a> {
    to: &'a mut [f32],
    from: &'a [f32],
    weight: f32,
}

impl WithSimd for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (to, to_tail) = S::as_mut_simd_f32s(self.to);
        let (from, from_tail) = S::as_simd_f32s(self.from);
        let weight = simd.splat_f32s(self.weight);
        for (to, &from) in to.iter_mut().zip(from) {
            *to = simd.add_f32s(*to, simd.mul_f32s(weight, from));
        }
        for (to, from) in to_tail.iter_mut().zip(from_tail) {
            *to += self.weight * from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(image: &Image) -> Region {
        Region { left: 0.0, top: 0.0, width: image.width() as f64, height: image.height() as f64 }
    }

    fn picture(width: usize, height: usize, channels: usize) -> Image {
        let pixels = (0..width * height * channels).map(|i| 70 + (i * i * 31 % 113) as u8).collect();
        Image::new(width, height, channels, pixels).unwrap()
    }

    /// A picture, the region, the size, and the expected pixels.
    type Case = (Image, Region, (usize, usize), &'static [u8]);

    /// `Image.frombytes(…).resize(size, Image.LANCZOS, box=…)` of Pillow 12, which rounds and clips between its two passes: at
    /// most one level apart if nothing is clipped.
    #[test]
    fn pixels_are_pillows() {
        let cases: [Case; 4] = include!("resample_pillow.in");
        for (source, region, (width, height), expected) in cases {
            let found = resample(&source, region, width, height);
            assert_eq!(found.len(), expected.len());
            let far = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(far <= Some(1), "{far:?}: {found:?}, Pillow: {expected:?}");
        }
    }

    #[test]
    fn a_flat_picture_stays_flat_and_the_same_size_is_the_same_picture() {
        let flat = Image::filled(37, 23, [7, 255, 100]);
        for (width, height) in [(1, 1), (5, 50), (74, 3)] {
            let found = resample(&flat, whole(&flat), width, height);
            assert!(found.chunks_exact(3).all(|pixel| pixel == [7, 255, 100]), "{width} x {height}");
        }
        let source = picture(19, 11, 3);
        assert_eq!(resample(&source, whole(&source), 19, 11), source.pixels());
    }
}
