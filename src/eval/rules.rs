//! Preprocessing for InceptionV3: the rules of common tools. They give different distances for the same images, because of the resize alone.
//!
//! | rule | resize to 299x299 | scaling of u8 |
//! |---|---|---|
//! | pytorch-fid | bilinear, pixels' centres aligned, no antialias | 2 x / 255 − 1 |
//! | torch-fidelity | bilinear as TensorFlow 1's, pixels' corners aligned, no antialias | (x − 128) / 128 |
//! | clean-fid | bicubic of PIL (a = −½), antialiased where it shrinks, each channel in floating point, clipped to 0 … 255 | (x − 128) / 128 |
//!
//! Moments are the same in all three: the mean, and the covariance over N − 1; here both in f64. Pytorch-fid and clean-fid add
//! 1e-6 to the diagonals if SciPy's matrix square root of the product is not finite; that is not needed here
//! ([`metrics`](super::metrics)).
//!
//! EDM's statistics (`fid-refs/*.npz`) were made with StyleGAN's port of the 2015 graph, with TensorFlow 1's resize, closest to
//! torch-fidelity's rule. They can be read and are labelled as EDM's; the engine does not reimplement that network.

pub use crate::config::Rule;
use crate::models::inception::SIZE;

/// A kernel of a resize along one axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Resize {
    /// Linear between the two nearest pixels; pixel i of the result lies at (i + ½) · scale − ½: pixel centres are aligned.
    Bilinear,
    /// Linear, with pixel i at i · scale, both in f32: pixel corners are aligned, as in TensorFlow 1.
    TensorFlowBilinear,
    /// The cubic kernel with a = −½ over (i + ½) · scale, stretched by the scale where the image shrinks.
    BicubicAntialiased,
}

/// Maps pixel values, 0 to 255, to the network's input: `factor` · x + `shift`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// The factor.
    pub factor: f64,
    /// The offset.
    pub shift: f64,
}

impl Rule {
    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::PytorchFid => "pytorch-fid",
            Self::TorchFidelity => "torch-fidelity",
            Self::CleanFid => "clean-fid",
        }
    }

    /// The resize.
    pub fn resize(self) -> Resize {
        match self {
            Self::PytorchFid => Resize::Bilinear,
            Self::TorchFidelity => Resize::TensorFlowBilinear,
            Self::CleanFid => Resize::BicubicAntialiased,
        }
    }

    /// The scaling.
    pub fn scaling(self) -> Scaling {
        match self {
            Self::PytorchFid => Scaling { factor: 2.0 / 255.0, shift: -1.0 },
            Self::TorchFidelity | Self::CleanFid => Scaling { factor: 1.0 / 128.0, shift: -1.0 },
        }
    }

    /// The preprocessing of a picture for InceptionV3.
    pub fn treatment(self) -> Treatment {
        Treatment { resize: self.resize(), scaling: self.scaling(), size: SIZE }
    }
}

/// The whole preprocessing of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Treatment {
    /// The resize.
    pub resize: Resize,
    /// The scaling of values.
    pub scaling: Scaling,
    /// Height and width of the result.
    pub size: usize,
}

/// Source pixels of one result pixel along an axis: the index of the first, and the weights.
struct Taps {
    first: usize,
    weights: Vec<f64>,
}

/// The preprocessing for images of one size.
pub struct PreparedTreatment {
    treatment: Treatment,
    size: [usize; 2],
    rows: Vec<Taps>,
    columns: Vec<Taps>,
}

impl PreparedTreatment {
    /// For images of `height` x `width` pixels.
    ///
    /// # Panics
    /// For an image without pixels.
    pub fn new(treatment: Treatment, height: usize, width: usize) -> Self {
        assert!(height > 0 && width > 0, "an image without pixels");
        let taps = |length| taps(treatment.resize, length, treatment.size);
        Self { treatment, size: [height, width], rows: taps(height), columns: taps(width) }
    }

    /// Height and width of its input images.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// The network's input for an image `[height, width, channels]` with one or three channels: `[size, size, 3]`. Grey is copied
    /// to red, green and blue.
    ///
    /// # Panics
    /// For a wrong number of pixels.
    pub fn apply(&self, pixels: &[u8], channels: usize, to: &mut [f64]) {
        let ([height, width], Treatment { resize, scaling, size }) = (self.size, self.treatment);
        assert_eq!(pixels.len(), height * width * channels, "an image of another size");
        assert_eq!(to.len(), size * size * 3, "a result of another size");
        let mut wide = vec![0.0; height * size * channels];
        for (source, row) in pixels.chunks_exact(width * channels).zip(wide.chunks_exact_mut(size * channels)) {
            for (taps, to) in self.columns.iter().zip(row.chunks_exact_mut(channels)) {
                for (weight, pixel) in taps.weights.iter().zip(source[taps.first * channels..].chunks_exact(channels)) {
                    to.iter_mut().zip(pixel).for_each(|(to, &x)| *to += weight * f64::from(x));
                }
            }
        }
        let clip = resize == Resize::BicubicAntialiased;
        let Scaling { factor, shift } = scaling;
        let mut row = vec![0.0; size * channels];
        for (taps, to) in self.rows.iter().zip(to.chunks_exact_mut(size * 3)) {
            row.fill(0.0);
            for (weight, source) in
                taps.weights.iter().zip(wide[taps.first * row.len()..].chunks_exact(size * channels))
            {
                row.iter_mut().zip(source).for_each(|(to, x)| *to += weight * x);
            }
            for (pixel, to) in row.chunks_exact(channels).zip(to.chunks_exact_mut(3)) {
                for (channel, to) in to.iter_mut().enumerate() {
                    let value = pixel[channel.min(channels - 1)];
                    let value = if clip { value.clamp(0.0, 255.0) } else { value };
                    *to = value * factor + shift;
                }
            }
        }
    }
}

/// The taps of each result pixel, along an axis of `length` pixels.
fn taps(resize: Resize, length: usize, size: usize) -> Vec<Taps> {
    let scale = length as f64 / size as f64;
    let linear = |at: f64| {
        let first = (at as usize).min(length - 1);
        let share = at - first as f64;
        match first + 1 < length {
            true => Taps { first, weights: vec![1.0 - share, share] },
            false => Taps { first, weights: vec![1.0] },
        }
    };
    let bicubic = |i: usize| {
        let stretch = scale.max(1.0);
        let (centre, support) = ((i as f64 + 0.5) * scale, 2.0 * stretch);
        let first = (centre - support + 0.5).max(0.0) as usize;
        let last = ((centre + support + 0.5) as usize).min(length);
        let weights: Vec<f64> = (first..last).map(|at| cubic((at as f64 - centre + 0.5) / stretch)).collect();
        let sum: f64 = weights.iter().sum();
        Taps { first, weights: weights.into_iter().map(|weight| weight / sum).collect() }
    };
    (0..size)
        .map(|i| match resize {
            _ if length == size => Taps { first: i, weights: vec![1.0] },
            Resize::Bilinear => linear(((i as f64 + 0.5) * scale - 0.5).max(0.0)),
            Resize::TensorFlowBilinear => linear(f64::from(i as f32 * scale as f32)),
            Resize::BicubicAntialiased => bicubic(i),
        })
        .collect()
}

/// Keys 1981, a = −½.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(rule: Rule, pixels: &[u8], size: [usize; 2], channels: usize) -> Vec<f64> {
        let mut to = vec![0.0; SIZE * SIZE * 3];
        PreparedTreatment::new(rule.treatment(), size[0], size[1]).apply(pixels, channels, &mut to);
        to
    }

    #[test]
    fn a_flat_image_stays_flat_and_grey_is_three_channels() {
        for (rule, expected) in [
            (Rule::PytorchFid, 2.0 * 200.0 / 255.0 - 1.0),
            (Rule::TorchFidelity, 72.0 / 128.0),
            (Rule::CleanFid, 72.0 / 128.0),
        ] {
            for (size, channels) in [([1, 1], 1), ([7, 5], 3), ([400, 301], 1)] {
                let found = applied(rule, &vec![200; size[0] * size[1] * channels], size, channels);
                assert!(found.iter().all(|x| (x - expected).abs() < 1e-12), "{rule:?} {size:?}");
            }
        }
    }

    /// Two columns, 0 and 255: TensorFlow's first pixels lie left of the middle of the ramp, the half-pixel rule's are symmetric.
    #[test]
    fn the_rules_differ_where_they_should() {
        let ramp = |rule| applied(rule, &[0, 255], [1, 2], 1).into_iter().step_by(3).take(SIZE).collect::<Vec<f64>>();
        let half = ramp(Rule::PytorchFid);
        assert!((0..SIZE).all(|i| (half[i] + half[SIZE - 1 - i]).abs() < 1e-12));
        let first = ramp(Rule::TorchFidelity);
        assert_eq!(first[0], -1.0);
        // Pixel 149 lies at 149 · 2 / 299 in f32, just before the second column; later pixels are that column.
        assert!((first[149] - (255.0 * 298.0 / 299.0 - 128.0) / 128.0).abs() < 1e-6);
        assert!(first[150..].iter().all(|&x| x == 127.0 / 128.0));
        // A cubic kernel overshoots, and is clipped.
        let cubic = ramp(Rule::CleanFid);
        assert_eq!((cubic[0], cubic[SIZE - 1]), (-1.0, 127.0 / 128.0));
    }

    #[test]
    fn images_of_the_networks_size_are_only_scaled() {
        let pixels: Vec<u8> = (0..SIZE * SIZE * 3).map(|i| (i * 31 % 256) as u8).collect();
        for rule in [Rule::PytorchFid, Rule::TorchFidelity, Rule::CleanFid] {
            let Scaling { factor, shift } = rule.scaling();
            let found = applied(rule, &pixels, [SIZE, SIZE], 3);
            assert!(found.iter().zip(&pixels).all(|(x, &p)| (x - (f64::from(p) * factor + shift)).abs() < 1e-12));
        }
    }
}
