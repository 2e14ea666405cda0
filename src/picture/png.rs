//! PNG files with embedded text.

use std::io::{Cursor, Read};
use std::path::Path;

use png::{BitDepth, ColorType, Compression, Decoder, DecodingError, Encoder, Limits, Transformations};

use super::Image;
use crate::files::write_atomically;
use crate::{Error, Result};

/// Size limit of a PNG file, in bytes.
const MAX_BYTES: u64 = 1 << 28;

/// The bytes of a PNG file. `text` is embedded as pairs of keyword (1 to 79 characters of Latin-1) and text (any): as `tEXt` for
/// ASCII, else as `iTXt`.
///
/// # Errors
/// [`Error::Config`] for an invalid PNG keyword.
pub fn encode_png(image: &Image, text: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let refused = |error: png::EncodingError| {
        Error::config("PNG text", error.to_string(), "use keywords of 1 to 79 Latin letters, without line breaks")
    };
    // The sizes fit: a picture has at most 2^28 pixels.
    let mut encoder = Encoder::new(&mut bytes, image.width() as u32, image.height() as u32);
    encoder.set_color(if image.channels() == 1 { ColorType::Grayscale } else { ColorType::Rgb });
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Balanced);
    for (keyword, text) in text {
        let added = if text.is_ascii() {
            encoder.add_text_chunk(keyword.to_string(), text.to_string())
        } else {
            encoder.add_itxt_chunk(keyword.to_string(), text.to_string())
        };
        added.map_err(refused)?;
    }
    let mut writer = encoder.write_header().map_err(refused)?;
    writer.write_image_data(image.pixels()).map_err(refused)?;
    writer.finish().map_err(refused)?;
    Ok(bytes)
}

/// Writes a PNG file, atomically, with `text` inside as [`encode_png`] does.
///
/// # Errors
/// [`Error::Io`] with the path, [`Error::Config`] for an invalid PNG keyword.
pub fn write_png(path: impl AsRef<Path>, image: &Image, text: &[(&str, &str)]) -> Result<()> {
    write_atomically(path, &encode_png(image, text)?)
}

/// Reads a PNG file and its texts, in the order of the file's kinds of text. Palettes are resolved, 16 bits become 8, and
/// transparent pixels are composited on white.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::File`] if it is not a PNG, damaged, or declares a size that its bytes cannot hold.
pub fn read_png(path: impl AsRef<Path>) -> Result<(Image, Vec<(String, String)>)> {
    let path = path.as_ref();
    let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::file(path, format!("is larger than {MAX_BYTES} bytes"), "give a smaller picture"));
    }
    decode(&bytes).map_err(|message| Error::file(path, message, "give an intact PNG file, or create it again"))
}

fn decode(bytes: &[u8]) -> Result<(Image, Vec<(String, String)>), String> {
    let say = |error: DecodingError| format!("is not a whole PNG: {error}");
    // Deflate's ratio is at most about 1032, so the file's length bounds the real size.
    let bound = bytes.len().saturating_mul(1040).saturating_add(1 << 16);
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: bound });
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(say)?;
    let size = reader.output_buffer_size().filter(|size| *size <= bound);
    let mut pixels = vec![0; size.ok_or("claims more pixels than its bytes can hold")?];
    let frame = reader.next_frame(&mut pixels).map_err(say)?;
    reader.finish().map_err(say)?;
    pixels.truncate(frame.buffer_size());

    let over_white =
        |value: u8, alpha: u8| ((value as u32 * alpha as u32 + 255 * (255 - alpha as u32) + 127) / 255) as u8;
    let (channels, pixels) = match frame.color_type {
        ColorType::Grayscale => (1, pixels),
        ColorType::Rgb => (3, pixels),
        ColorType::GrayscaleAlpha => (1, pixels.chunks_exact(2).map(|p| over_white(p[0], p[1])).collect()),
        ColorType::Rgba => {
            (3, pixels.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]].map(|v| over_white(v, p[3]))).collect())
        }
        ColorType::Indexed => return Err("has a palette that cannot be resolved".into()),
    };
    let image = Image::new(frame.width as usize, frame.height as usize, channels, pixels).map_err(|e| e.to_string())?;

    let info = reader.info();
    let mut texts: Vec<(String, String)> =
        info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone())).collect();
    for chunk in &info.compressed_latin1_text {
        let mut chunk = chunk.clone();
        chunk.decompress_text().map_err(say)?;
        texts.push((chunk.keyword.clone(), chunk.get_text().map_err(say)?));
    }
    for chunk in &info.utf8_text {
        let mut chunk = chunk.clone();
        chunk.decompress_text().map_err(say)?;
        texts.push((chunk.keyword.clone(), chunk.get_text().map_err(say)?));
    }
    Ok((image, texts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(channels: usize) -> Image {
        Image::new(7, 5, channels, (0..7 * 5 * channels).map(|i| (i * 3) as u8).collect()).unwrap()
    }

    #[test]
    fn pictures_and_words_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/grid.png");
        let text =
            [("Software", "engine"), ("engine.sampling", r#"{"seed":7,"guidance":2.0}"#), ("note", "β = 1e-4\n…")];
        for channels in [1, 3] {
            write_png(&path, &gradient(channels), &text).unwrap();
            let (image, texts) = read_png(&path).unwrap();
            assert_eq!(image, gradient(channels));
            let expected: Vec<_> = text.iter().map(|(k, t)| (k.to_string(), t.to_string())).collect();
            assert_eq!(texts, expected);
        }
    }

    #[test]
    fn bad_keywords_are_refused() {
        for keyword in ["", &"k".repeat(80), "ключ"] {
            let error = encode_png(&gradient(1), &[(keyword, "x")]).unwrap_err().to_string();
            assert!(error.starts_with("PNG text: ") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn transparency_is_laid_on_white() {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 2, 1);
        encoder.set_color(ColorType::Rgba);
        encoder.write_header().unwrap().write_image_data(&[10, 20, 30, 0, 10, 20, 30, 255]).unwrap();
        assert_eq!(decode(&bytes).unwrap().0.pixels(), [255, 255, 255, 10, 20, 30]);
    }

    #[test]
    fn damage_never_panics_and_names_the_file() {
        let bytes = encode_png(&gradient(3), &[("a", "b"), ("c", "ß")]).unwrap();
        for length in 0..bytes.len() - 12 {
            assert!(decode(&bytes[..length]).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let _ = decode(&damaged);
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        std::fs::write(&path, b"GIF89a").unwrap();
        let error = read_png(&path).unwrap_err().to_string();
        assert!(error.contains("a.png: is not a whole PNG") && !error.contains('\n'), "{error}");
        assert!(read_png(folder.path().join("b.png")).unwrap_err().to_string().contains("cannot open"));
    }

    #[test]
    fn a_giant_in_a_small_file_is_refused_without_memory() {
        let mut bytes = Vec::new();
        Encoder::new(&mut bytes, 2_000_000_000, 2_000_000_000).write_header().unwrap();
        assert!(decode(&bytes).is_err());
    }
}
