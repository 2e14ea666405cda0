//! The picture type: grey or RGB, 8 bits per channel.

use crate::image_size::ImageSize;
use crate::{Error, Result};

/// Most pixels of a picture: 2^28, or 16384 x 16384.
const MAX_PIXELS: usize = 1 << 28;

/// A grey (1 channel) or RGB (3 channels) picture: `[height, width, channels]`, 8 bits each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<u8>,
}

impl Image {
    /// A picture of the given pixels, `[height, width, channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if a size is 0, `channels` is neither 1 nor 3, or the number of values is wrong.
    pub fn new(width: usize, height: usize, channels: usize, pixels: Vec<u8>) -> Result<Self> {
        check_size(width, height)?;
        if !matches!(channels, 1 | 3) {
            return Err(Error::shape("picture", format!("{channels} channels; give 1 for grey or 3 for RGB")));
        }
        if pixels.len() != width * height * channels {
            let message =
                format!("{} values cannot be {}", pixels.len(), ImageSize::new(height, width).with_channels(channels));
            return Err(Error::shape("picture", message));
        }
        Ok(Self { width, height, channels, pixels })
    }

    /// A picture of a model's values in [-1, 1], `[height, width, channels]`: -1 is black. Values outside are clamped; NaN becomes
    /// black.
    ///
    /// # Errors
    /// As [`Image::new`].
    pub fn from_signed(width: usize, height: usize, channels: usize, values: &[f32]) -> Result<Self> {
        // A float cast saturates, and takes NaN to 0.
        let pixels = values.iter().map(|value| (value * 127.5 + 127.5).round() as u8).collect();
        Self::new(width, height, channels, pixels)
    }

    /// The values in [-1, 1], `[height, width, channels]`, for models: [`Image::from_signed`] restores the picture. Grey becomes
    /// RGB; RGB becomes grey if its channels are equal.
    ///
    /// # Errors
    /// [`Error::Shape`] if grey is requested of a coloured picture, or `channels` is neither 1 nor 3.
    pub fn to_signed(&self, channels: usize) -> Result<Vec<f32>> {
        let signed = |value: &u8| f32::from(*value) / 127.5 - 1.0;
        match (self.channels, channels) {
            (1, 3) => Ok(self.pixels.iter().flat_map(|value| [signed(value); 3]).collect()),
            (3, 1) => {
                if self.pixels.chunks_exact(3).any(|p| p[0] != p[1] || p[0] != p[2]) {
                    return Err(Error::shape("picture", "it is coloured, but grey is needed; convert it first"));
                }
                Ok(self.pixels.chunks_exact(3).map(|p| signed(&p[0])).collect())
            }
            (1, 1) | (3, 3) => Ok(self.pixels.iter().map(signed).collect()),
            _ => Err(Error::shape("picture", format!("{channels} channels; ask for 1 for grey or 3 for RGB"))),
        }
    }

    /// An RGB picture of one colour. A size of 0 counts as 1.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        Self { width, height, channels: 3, pixels: colour.repeat(width * height) }
    }

    /// Height and width.
    pub fn size(&self) -> ImageSize {
        ImageSize::new(self.height, self.width)
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// 1 for grey, 3 for RGB.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The values, `[height, width, channels]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Takes the values, `[height, width, channels]`, without a copy.
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// The colour at column `x` and row `y`, or `None` outside.
    pub fn colour(&self, x: usize, y: usize) -> Option<[u8; 3]> {
        if x >= self.width || y >= self.height {
            return None;
        }
        let at = (y * self.width + x) * self.channels;
        Some(match self.channels {
            1 => [self.pixels[at]; 3],
            _ => [self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]],
        })
    }

    /// The picture in RGB.
    pub fn to_rgb(&self) -> Self {
        if self.channels == 3 {
            return self.clone();
        }
        let pixels = self.pixels.iter().flat_map(|grey| [*grey; 3]).collect();
        Self { channels: 3, pixels, ..*self }
    }

    /// A picture of the same size with other pixels.
    pub(super) fn with_pixels(&self, channels: usize, pixels: Vec<u8>) -> Self {
        debug_assert_eq!(pixels.len(), self.width * self.height * channels);
        Self { channels, pixels, ..*self }
    }

    /// Enlarges each pixel to a square of `scale` x `scale` pixels (nearest neighbour), so that small pictures are visible.
    ///
    /// # Errors
    /// [`Error::Shape`] if `scale` is 0 or the result would be too large.
    pub fn upscale(&self, scale: usize) -> Result<Self> {
        let (width, height) = (self.width.saturating_mul(scale), self.height.saturating_mul(scale));
        check_size(width, height)?;
        let mut pixels = Vec::with_capacity(width * height * self.channels);
        for row in self.pixels.chunks_exact(self.width * self.channels) {
            let start = pixels.len();
            for pixel in row.chunks_exact(self.channels) {
                for _ in 0..scale {
                    pixels.extend_from_slice(pixel);
                }
            }
            let end = pixels.len();
            for _ in 1..scale {
                pixels.extend_from_within(start..end);
            }
        }
        Ok(Self { width, height, channels: self.channels, pixels })
    }

    /// Draws `other` with its upper left corner at (`x`, `y`), clipped. `self` must be RGB.
    pub(super) fn paste(&mut self, other: &Image, x: usize, y: usize) {
        debug_assert_eq!(self.channels, 3);
        for from_y in 0..other.height.min(self.height.saturating_sub(y)) {
            for from_x in 0..other.width.min(self.width.saturating_sub(x)) {
                if let Some(colour) = other.colour(from_x, from_y) {
                    self.put(x + from_x, y + from_y, colour);
                }
            }
        }
    }

    /// Sets a pixel of an RGB picture; ignored outside.
    fn put(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        if x < self.width && y < self.height {
            let at = (y * self.width + x) * 3;
            self.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }

    /// Blends `colour` into a pixel of an RGB picture with weight `share` in [0, 1].
    pub(super) fn blend(&mut self, x: usize, y: usize, colour: [u8; 3], share: f32) {
        if let Some(under) = self.colour(x, y) {
            let mix = |under: u8, over: u8| (under as f32 + (over as f32 - under as f32) * share).round() as u8;
            self.put(x, y, std::array::from_fn(|c| mix(under[c], colour[c])));
        }
    }
}

/// Refuses empty and excessively large pictures.
pub(super) fn check_size(width: usize, height: usize) -> Result<()> {
    match width.checked_mul(height) {
        Some(1..=MAX_PIXELS) => Ok(()),
        _ => {
            let size = ImageSize::new(height, width);
            let message = format!("a picture of {size} pixels; give sizes above 0 with at most 2^28 pixels");
            Err(Error::shape("picture", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked() {
        assert!(Image::new(2, 2, 3, vec![0; 12]).is_ok());
        for (w, h, c, n) in [(2, 2, 3, 11), (0, 2, 3, 0), (2, 2, 2, 8), (usize::MAX, 2, 1, 4)] {
            let error = Image::new(w, h, c, vec![0; n]).unwrap_err().to_string();
            assert!(error.starts_with("picture: "), "{error}");
        }
    }

    #[test]
    fn signed_values_become_bytes() {
        let values = [-1.0, 0.0, 1.0, -7.0, 7.0, f32::NAN];
        assert_eq!(Image::from_signed(6, 1, 1, &values).unwrap().pixels(), [0, 128, 255, 0, 255, 0]);
        // Every byte survives the conversion to [-1, 1] and back.
        let bytes: Vec<u8> = (0..=255).collect();
        let signed: Vec<f32> = bytes.iter().map(|b| *b as f32 / 127.5 - 1.0).collect();
        assert_eq!(Image::from_signed(256, 1, 1, &signed).unwrap().pixels(), bytes);
    }

    #[test]
    fn upscaling_repeats_pixels() {
        let image = Image::new(2, 1, 1, vec![1, 2]).unwrap().upscale(2).unwrap();
        assert_eq!((image.width(), image.height()), (4, 2));
        assert_eq!(image.pixels(), [1, 1, 2, 2, 1, 1, 2, 2]);
        assert!(image.upscale(0).is_err() && image.upscale(usize::MAX).is_err());
        assert_eq!(image.to_rgb().colour(3, 1), Some([2; 3]));
        assert_eq!(image.colour(4, 0), None);
    }

    #[test]
    fn pasting_cuts_off_what_is_outside() {
        let mut image = Image::filled(3, 3, [0; 3]);
        image.paste(&Image::filled(2, 2, [9; 3]), 2, 2);
        image.paste(&Image::filled(2, 2, [9; 3]), 7, 0);
        assert_eq!(image.pixels().iter().filter(|v| **v == 9).count(), 3);
        image.blend(0, 0, [200, 100, 0], 0.5);
        assert_eq!(image.colour(0, 0), Some([100, 50, 0]));
    }
}
