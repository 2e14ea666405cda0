//! What the headers of picture files tell: sizes, compression, transparency, depth.

use std::collections::BTreeSet;

use crate::picture::{Note, PictureKind, decode_picture};

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
        let kind = PictureKind::of(bytes);
        if kind == Some(PictureKind::Jpeg) {
            self.jpeg += 1;
        }
        let head = match kind {
            Some(PictureKind::Png) => png_head(bytes),
            Some(PictureKind::Jpeg) => jpeg_head(bytes),
            _ => None,
        };
        if let Some(size) = head {
            self.sizes.insert(size);
        } else if let Ok(picture) = decode_picture(bytes, [255; 3]) {
            self.sizes.insert([picture.image.height(), picture.image.width()]);
            self.transparent += usize::from(picture.notes.contains(&Note::Transparent));
            self.deep += usize::from(picture.notes.contains(&Note::Scaled));
        }
    }
}

/// Height and width of a PNG of 8 bits or fewer without an alpha channel, a transparent colour or an orientation.
fn png_head(bytes: &[u8]) -> Option<[usize; 2]> {
    let head = bytes.get(16..26)?;
    let (depth, colour) = (head[8], head[9]);
    let data = bytes.windows(4).position(|four| four == b"IDAT")?;
    let has = |name: &[u8; 4]| bytes[..data].windows(4).any(|four| four == name);
    if depth > 8 || colour & 4 != 0 || has(b"tRNS") || has(b"eXIf") {
        return None;
    }
    let side = |at: usize| head[at..].first_chunk().map(|four| u32::from_be_bytes(*four) as usize);
    Some([side(4)?, side(0)?])
}

/// Height and width of a JPEG without an EXIF block, from its frame header.
fn jpeg_head(bytes: &[u8]) -> Option<[usize; 2]> {
    let mut at = 2;
    loop {
        let &[0xff, marker] = bytes.get(at..at + 2)?.first_chunk()? else { return None };
        let length = usize::from(u16::from_be_bytes(*bytes.get(at + 2..at + 4)?.first_chunk()?));
        let body = bytes.get(at + 4..at + 2 + length)?;
        match marker {
            0xe1 => return None,
            // Start of frame; C4, C8 and CC are other segments.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                let side = |at: usize| body.get(at..at + 2).map(|two| usize::from(two[0]) << 8 | usize::from(two[1]));
                return Some([side(1)?, side(3)?]);
            }
            _ => at += 2 + length,
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
