//! Resizing of pictures and conversion of channels.

use super::image::check_size;
use super::resample::{Region, resample};
use super::{Image, Note, Picture};
use crate::Result;

/// How a picture of another aspect ratio is fitted to a size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fit {
    /// Scaled to cover the size, then cropped at the centre.
    #[default]
    Crop,
    /// Scaled to lie within the size, then padded with background.
    Pad,
    /// Each side scaled independently.
    Stretch,
}

impl Image {
    /// The picture in `width` x `height` pixels (Lanczos, three lobes, as Pillow's). [`Fit::Pad`] adds `background`; if that is
    /// coloured, a grey picture becomes RGB. A picture of that size is returned unchanged.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for a size of 0 or one beyond 2^28 pixels.
    pub fn resized(&self, width: usize, height: usize, fit: Fit, background: [u8; 3]) -> Result<Self> {
        check_size(width, height)?;
        if (self.width(), self.height()) == (width, height) {
            return Ok(self.clone());
        }
        let (inner_width, inner_height) = match fit {
            Fit::Crop | Fit::Stretch => (width, height),
            Fit::Pad => self.within(width, height),
        };
        // The whole picture if it is stretched or padded.
        let aspect = match fit {
            Fit::Crop => width as f64 / height as f64,
            Fit::Stretch | Fit::Pad => self.width() as f64 / self.height() as f64,
        };
        let (channels, region) = (self.channels(), self.middle(aspect));
        let inner = Self::new(inner_width, inner_height, channels, resample(self, region, inner_width, inner_height))?;
        if (inner_width, inner_height) == (width, height) {
            return Ok(inner);
        }
        let mut canvas = Self::filled(width, height, background);
        canvas.paste(&inner, width.saturating_sub(inner_width) / 2, height.saturating_sub(inner_height) / 2);
        let [red, green, blue] = background;
        Ok(if channels == 1 && red == green && red == blue { canvas.to_grey() } else { canvas })
    }

    /// The picture in grey: the luma of ITU-R BT.601, rounded as in Pillow.
    pub fn to_grey(&self) -> Self {
        if self.channels() == 1 {
            return self.clone();
        }
        let luma = |p: &[u8]| {
            let [red, green, blue] = [p[0], p[1], p[2]].map(u32::from);
            ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16) as u8
        };
        self.with_pixels(1, self.pixels().chunks_exact(3).map(luma).collect())
    }

    /// The picture with 1 (grey) or 3 (RGB) channels.
    pub fn with_channels(&self, channels: usize) -> Self {
        if channels == 1 { self.to_grey() } else { self.to_rgb() }
    }

    /// The largest centred part with the aspect ratio `aspect` (width over height).
    fn middle(&self, aspect: f64) -> Region {
        let (width, height) = (self.width() as f64, self.height() as f64);
        let (inner_width, inner_height) = (width.min(height * aspect), height.min(width / aspect));
        Region {
            left: (width - inner_width) / 2.0,
            top: (height - inner_height) / 2.0,
            width: inner_width,
            height: inner_height,
        }
    }

    /// The largest size with this picture's aspect ratio within `width` x `height`, at least one pixel.
    fn within(&self, width: usize, height: usize) -> (usize, usize) {
        let scale = (width as f64 / self.width() as f64).min(height as f64 / self.height() as f64);
        let side = |length: usize, limit: usize| ((length as f64 * scale).round() as usize).clamp(1, limit);
        (side(self.width(), width), side(self.height(), height))
    }
}

impl Picture {
    /// The picture as `[height, width, channels]`, with notes on the changes.
    ///
    /// # Errors
    /// As [`Image::resized`].
    pub fn fitted(mut self, [height, width, channels]: [usize; 3], fit: Fit, background: [u8; 3]) -> Result<Self> {
        if (self.image.height(), self.image.width()) != (height, width) {
            self.image = self.image.resized(width, height, fit, background)?;
            self.notes.push(Note::Resized);
        }
        match (self.image.channels(), channels) {
            (1, 3) => self.notes.push(Note::Coloured),
            (3, 1) => self.notes.push(Note::Greyed),
            _ => {}
        }
        self.image = self.image.with_channels(channels);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_filled_padded_or_stretched() {
        // Two halves, black and white, twice as wide as high.
        let pixels: Vec<u8> = (0..32).map(|i| if i % 8 < 4 { 0 } else { 255 }).collect();
        let wide = Image::new(8, 4, 1, pixels).unwrap();
        let crop = wide.resized(4, 4, Fit::Crop, [9; 3]).unwrap();
        let pad = wide.resized(4, 4, Fit::Pad, [9; 3]).unwrap();
        let stretch = wide.resized(4, 4, Fit::Stretch, [9; 3]).unwrap();
        for image in [&crop, &pad, &stretch] {
            assert_eq!((image.width(), image.height(), image.channels()), (4, 4, 1));
        }
        assert_eq!((crop.pixels()[0], crop.pixels()[3]), (0, 255));
        assert_eq!((&pad.pixels()[..4], &pad.pixels()[12..]), (&[9; 4][..], &[9; 4][..]));
        assert!(pad.pixels()[4] < 30 && pad.pixels()[7] > 225, "{pad:?}");
        assert!(stretch.pixels()[0] < 30 && stretch.pixels()[15] > 225, "{stretch:?}");
        assert_eq!(wide.resized(4, 4, Fit::Pad, [9, 0, 0]).unwrap().colour(0, 0), Some([9, 0, 0]));
        assert_eq!(wide.resized(8, 4, Fit::Crop, [0; 3]).unwrap(), wide);
        assert!(wide.resized(0, 4, Fit::Crop, [0; 3]).is_err());
    }

    #[test]
    fn grey_is_the_luma_of_pillow() {
        let colours = [255, 0, 0, 0, 255, 0, 0, 0, 255, 12, 34, 56];
        let image = Image::new(4, 1, 3, colours.to_vec()).unwrap();
        // Pillow: Image.frombytes("RGB", (4, 1), …).convert("L").
        assert_eq!(image.to_grey().pixels(), [76, 150, 29, 30]);
        assert_eq!(image.with_channels(3), image);
    }
}
