//! What the headers of picture files tell: sizes, compression, transparency, depth.

use std::collections::BTreeSet;

use crate::picture::{Note, PictureKind, decode_picture, header_size};

/// Counts over picture files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Number of files.
    pub pictures: usize,
    /// Those that are JPEG, by their first bytes.
    pub jpeg: usize,
    /// Those with transparent pixels.
    pub transparent: usize,
    /// Those with more than 8 bits per channel.
    pub deep: usize,
    /// Their different heights and widths.
    pub sizes: BTreeSet<[usize; 2]>,
}

impl Survey {
    /// Counts a file by its `bytes`. Only kinds other than JPEG and opaque 8-bit PNG are decoded; a damaged file only counts.
    pub fn add(&mut self, bytes: &[u8]) {
        self.pictures += 1;
        self.jpeg += usize::from(PictureKind::of(bytes) == Some(PictureKind::Jpeg));
        if let Some(size) = header_size(bytes) {
            self.sizes.insert(size);
        } else if let Ok(picture) = decode_picture(bytes, [255; 3]) {
            self.sizes.insert([picture.image.height(), picture.image.width()]);
            self.transparent += usize::from(picture.notes.contains(&Note::Transparent));
            self.deep += usize::from(picture.notes.contains(&Note::Scaled));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{DynamicImage, ImageFormat};

    use super::*;
    use crate::picture::{Image, encode_png};

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn kinds_are_counted_by_content() {
        let mut survey = Survey::default();
        survey.add(&encode_png(&Image::filled(9, 4, [1, 2, 3]), &[]).unwrap());
        survey.add(&encoded(&DynamicImage::new_rgb8(9, 5), ImageFormat::Jpeg));
        // Fully transparent black, and an opaque picture with an alpha channel.
        survey.add(&encoded(&DynamicImage::new_rgba8(9, 4), ImageFormat::Png));
        let mut opaque = image::RgbaImage::new(9, 4);
        opaque.pixels_mut().for_each(|pixel| pixel.0[3] = 255);
        survey.add(&encoded(&opaque.into(), ImageFormat::Png));
        survey.add(&encoded(&DynamicImage::new_luma16(9, 4), ImageFormat::Png));
        survey.add(b"nothing");
        let sizes = BTreeSet::from([[4, 9], [5, 9]]);
        assert_eq!(survey, Survey { pictures: 6, jpeg: 1, transparent: 1, deep: 1, sizes });
    }
}
