//! JPEG files, checked for completeness: decoders also accept half a file and fill the rest with one colour.

use image::DynamicImage;
use image::metadata::Orientation;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::jpeg_scan;
use super::read::{DECODER_BYTES, Note, Raw};
use crate::image_size::ImageSize;

/// Height and width of an upright JPEG, from its headers.
pub(super) fn header_size(bytes: &[u8]) -> Option<[usize; 2]> {
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), header_options());
    decoder.decode_headers().ok()?;
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let (width, height) = decoder.dimensions()?;
    orientation.is_none_or(|orientation| orientation == Orientation::NoTransforms).then_some([height, width])
}

fn header_options() -> DecoderOptions {
    DecoderOptions::default().set_strict_mode(false).set_max_width(1 << 16).set_max_height(1 << 16)
}

/// The picture in a JPEG file with all its rows and its end marker.
pub(super) fn decode(bytes: &[u8]) -> Result<Raw, String> {
    jpeg_scan::check(bytes)?;
    let options = header_options();
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let damaged = |error| format!("cannot be decoded: {}", format!("{error:?}").replace('\n', " "));
    decoder.decode_headers().map_err(damaged)?;
    let (Some((width, height)), Some(space)) = (decoder.dimensions(), decoder.input_colorspace()) else {
        return Err("cannot be decoded: it does not say its size".into());
    };
    let channels = if space == ColorSpace::Luma { 1 } else { 3 };
    let wanted = if channels == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    // A decoder of progressive files holds all coefficients, two bytes each.
    let needed = (width as u64).saturating_mul(height as u64).saturating_mul(3 * channels);
    if needed > DECODER_BYTES {
        return Err(format!("declares {} pixels, more than are decoded", ImageSize::new(height, width)));
    }
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let notes = [
        (Note::Inks, matches!(space, ColorSpace::CMYK | ColorSpace::YCCK)),
        (Note::Profile, decoder.icc_profile().is_some()),
    ];
    // Headers are handled as by other readers; no rows may be missing.
    decoder.set_options(options.set_strict_mode(true).jpeg_set_out_colorspace(wanted));
    let mut pixels = vec![0; decoder.output_buffer_size().ok_or("cannot be decoded: it does not say its size")?];
    decoder.decode_into(&mut pixels).map_err(damaged)?;
    let (columns, rows) = (width as u32, height as u32);
    let image = match channels {
        1 => image::GrayImage::from_raw(columns, rows, pixels).map(DynamicImage::ImageLuma8),
        _ => image::RgbImage::from_raw(columns, rows, pixels).map(DynamicImage::ImageRgb8),
    };
    Ok(Raw {
        image: image.ok_or("cannot be decoded: the number of pixels differs from its header")?,
        orientation: orientation.unwrap_or(Orientation::NoTransforms),
        notes: notes.iter().filter(|(_, is)| *is).map(|(note, _)| *note).collect(),
    })
}
