//! The reader of single pictures: PNG, JPEG, WebP, GIF, BMP, TIFF and PNM, detected by their first bytes.
//!
//! The result is always grey or RGB with 8 bits per channel, upright, without transparency. Every conversion is reported as a
//! [`Note`].

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::pnm::PnmDecoder;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, Limits};

use super::{Image, jpeg};
use crate::files::describe;
use crate::image_size::ImageSize;
use crate::{Error, Result};

/// Size limit of a picture file, in bytes.
pub const LONGEST_FILE: u64 = 256 << 20;
/// Memory limit of one decoder, in bytes.
pub(super) const DECODER_BYTES: u64 = 512 << 20;

/// The supported picture formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PictureKind {
    /// Portable Network Graphics.
    Png,
    /// JPEG, baseline or progressive.
    Jpeg,
    /// WebP, lossy or lossless.
    WebP,
    /// GIF, first frame only.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF, first page only.
    Tiff,
    /// The portable maps of Netpbm: PBM, PGM, PPM, PAM.
    Pnm,
}

impl PictureKind {
    /// The format of a file that starts with `bytes`, of which 32 suffice. None if it is not supported.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Some(Self::Tiff),
            // Two letters are not enough: the reserved bytes must be 0 and the header must have a known length.
            [b'B', b'M', _, _, _, _, 0, 0, 0, 0, _, _, _, _, 12 | 16 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0, ..] => {
                Some(Self::Bmp)
            }
            [b'P', b'1'..=b'7', after, next, ..]
                if after.is_ascii_whitespace() && (next.is_ascii_digit() || matches!(next, b'#' | b'W' | b'H')) =>
            {
                Some(Self::Pnm)
            }
            _ => None,
        }
    }

    /// Whether a file has a picture's ending, supported or not.
    pub fn is_named(path: &str) -> bool {
        const ENDINGS: [&str; 22] = [
            "png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "dib", "tif", "tiff", "pnm", "pbm",
            "pgm", "ppm", "pam", "heic", "heif", "avif", "jxl", "jp2",
        ];
        let name = path.rsplit('/').next().unwrap_or_default();
        let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
        ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
    }
}

/// A conversion of a picture to 8-bit grey or RGB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Note {
    /// Scaled from 16 bits or floats per channel to 8 bits.
    Scaled,
    /// Converted from CMYK to RGB.
    Inks,
    /// Transparent pixels were composited on the background.
    Transparent,
    /// Rotated or mirrored by its EXIF orientation.
    Oriented,
    /// The ICC colour profile was ignored.
    Profile,
    /// The first of several frames or pages was used.
    FirstFrame,
    /// Resized.
    Resized,
    /// Converted from grey to RGB.
    Coloured,
    /// Converted from colour to grey.
    Greyed,
}

impl Note {
    /// A phrase that fits one picture or several.
    pub fn words(self) -> &'static str {
        match self {
            Self::Scaled => "scaled from more than 8 bits per channel to 8",
            Self::Inks => "converted from CMYK to RGB",
            Self::Transparent => "composited on the background",
            Self::Oriented => "rotated by the EXIF orientation",
            Self::Profile => "ICC colour profile ignored",
            Self::FirstFrame => "the first of several frames or pages used",
            Self::Resized => "resized",
            Self::Coloured => "converted from grey to RGB",
            Self::Greyed => "converted from colour to grey",
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// A picture and its conversions.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Its pixels.
    pub image: Image,
    /// The conversions, each once, in order.
    pub notes: Vec<Note>,
}

/// Reads a picture file. Transparent pixels are composited on `background`, red, green and blue.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::File`] if it is not a picture, damaged, truncated, or too large.
pub fn read_picture(path: impl AsRef<Path>, background: [u8; 3]) -> Result<Picture> {
    let path = path.as_ref();
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut bytes = Vec::new();
    file.take(LONGEST_FILE + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > LONGEST_FILE {
        return Err(Error::file(path, format!("is larger than {LONGEST_FILE} bytes"), "give a smaller picture"));
    }
    decode_picture(&bytes, background)
        .map_err(|message| Error::file(path, message, "give an intact picture file, or create it again"))
}

/// The picture in a file's `bytes`. Transparent pixels are composited on `background`.
///
/// At most 512 MiB are allocated, whatever the bytes declare.
///
/// # Errors
/// The fault as a sentence without subject: `is cut short: …`.
pub fn decode_picture(bytes: &[u8], background: [u8; 3]) -> Result<Picture, String> {
    guarded(|| decode(bytes, background)).unwrap_or_else(|| Err("cannot be decoded: it is damaged".into()))
}

/// Height and width that [`decode_picture`] would give, from the header alone: of a PNG or JPEG that needs no conversion to 8 bits
/// without transparency, upright. `None` for other pictures.
pub fn header_size(bytes: &[u8]) -> Option<[usize; 2]> {
    let of_png = || {
        let mut decoder = PngDecoder::with_limits(Cursor::new(bytes), limits(DECODER_BYTES)).ok()?;
        let plain = matches!(decoder.color_type(), ColorType::L8 | ColorType::Rgb8)
            && decoder.orientation().is_ok_and(|orientation| orientation == Orientation::NoTransforms);
        let (width, height) = decoder.dimensions();
        plain.then_some([height as usize, width as usize])
    };
    match PictureKind::of(bytes)? {
        PictureKind::Png => guarded(of_png).flatten(),
        PictureKind::Jpeg => guarded(|| jpeg::header_size(bytes)).flatten(),
        _ => None,
    }
}

/// Calls third-party decoders: a panic means a damaged file (`None`), and must not end the program.
pub(crate) fn guarded<R>(decode: impl FnOnce() -> R) -> Option<R> {
    let before = DECODING.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(before);
    outcome.ok()
}

thread_local! {
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a third-party decoder, whose panics are caught: a panic hook should not report them.
pub fn is_decoding() -> bool {
    DECODING.get()
}

/// A decoded picture before conversion to 8 bits without transparency.
pub(super) struct Raw {
    pub image: DynamicImage,
    pub orientation: Orientation,
    pub notes: Vec<Note>,
}

fn decode(bytes: &[u8], background: [u8; 3]) -> Result<Picture, String> {
    let Some(kind) = PictureKind::of(bytes) else {
        return Err(format!(
            "is {}, not a picture that can be read (PNG, JPEG, WebP, GIF, BMP, TIFF, PNM)",
            describe(bytes)
        ));
    };
    let input = || Cursor::new(bytes);
    let raw = match kind {
        PictureKind::Jpeg => jpeg::decode(bytes),
        PictureKind::Png => {
            // Deflate's ratio is at most about 1032.
            let bound = bound(bytes, 1040);
            let decoder = PngDecoder::with_limits(input(), limits(bound)).map_err(damaged)?;
            let animated = decoder.is_apng().map_err(damaged)?;
            raw(decoder, bound, animated)
        }
        PictureKind::WebP => webp(bytes),
        PictureKind::Gif => {
            let decoder = GifDecoder::new(input()).map_err(damaged)?;
            // A code of LZW has 12 bits at most and stands for at most 4096 pixels, of 4 bytes.
            let found = raw(decoder, bound(bytes, 11_000), false)?;
            Ok(Raw { notes: noted(found.notes, Note::FirstFrame, is_animated_gif(bytes)), ..found })
        }
        // Run lengths: two bytes stand for at most 255 pixels, of 4 bytes.
        PictureKind::Bmp => raw(BmpDecoder::new(input()).map_err(damaged)?, bound(bytes, 512), false),
        PictureKind::Pnm => raw(PnmDecoder::new(input()).map_err(damaged)?, DECODER_BYTES, false),
        PictureKind::Tiff => tiff(bytes),
    }?;
    upright(raw, background)
}

/// Whether a GIF has a second frame. Frames are not decoded: each would take as much memory as the picture.
fn is_animated_gif(bytes: &[u8]) -> bool {
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let Ok(mut frames) = options.read_info(Cursor::new(bytes)) else { return false };
    (0..2).all(|_| matches!(frames.next_frame_info(), Ok(Some(_))))
}

#[cfg(feature = "formats")]
fn tiff(bytes: &[u8]) -> Result<Raw, String> {
    let decoder = image::codecs::tiff::TiffDecoder::new(Cursor::new(bytes)).map_err(damaged)?;
    // A line of a blank fax is one bit, however long: the file's length bounds nothing.
    raw(decoder, DECODER_BYTES, false)
}

#[cfg(feature = "formats")]
fn webp(bytes: &[u8]) -> Result<Raw, String> {
    let decoder = image::codecs::webp::WebPDecoder::new(Cursor::new(bytes)).map_err(damaged)?;
    let animated = decoder.has_animation();
    raw(decoder, DECODER_BYTES, animated)
}

#[cfg(not(feature = "formats"))]
fn tiff(_: &[u8]) -> Result<Raw, String> {
    Err("is a TIFF picture, which this build does not read: build with the feature `formats`".into())
}

#[cfg(not(feature = "formats"))]
fn webp(_: &[u8]) -> Result<Raw, String> {
    Err("is a WebP picture, which this build does not read: build with the feature `formats`".into())
}

/// Decodes bytes with the `image` crate, with at most `bound` bytes of memory.
fn raw(mut decoder: impl ImageDecoder, bound: u64, animated: bool) -> Result<Raw, String> {
    let mut limits = limits(bound);
    if limits.reserve(decoder.total_bytes()).is_err() {
        let (width, height) = decoder.dimensions();
        let reason = if bound < DECODER_BYTES { "a file of this length can hold" } else { "are decoded" };
        return Err(format!("declares {} pixels, more than {reason}", ImageSize::new(height as usize, width as usize)));
    }
    decoder.set_limits(limits).map_err(damaged)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let profile = decoder.icc_profile().is_ok_and(|profile| profile.is_some());
    let inks =
        matches!(decoder.original_color_type(), image::ExtendedColorType::Cmyk8 | image::ExtendedColorType::Cmyk16);
    let image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    let notes = [(Note::Inks, inks), (Note::Profile, profile), (Note::FirstFrame, animated)];
    Ok(Raw { image, orientation, notes: notes.iter().filter(|(_, is)| *is).map(|(note, _)| *note).collect() })
}

/// Most bytes of a picture that `bytes` can hold, where one byte holds at most `ratio` of it: a file that declares more is damaged.
fn bound(bytes: &[u8], ratio: u64) -> u64 {
    (bytes.len() as u64).saturating_mul(ratio).saturating_add(1 << 16).min(DECODER_BYTES)
}

fn limits(bound: u64) -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(bound);
    limits
}

/// A decoder's error as a sentence without subject.
fn damaged(error: image::ImageError) -> String {
    format!("cannot be decoded: {}", error.to_string().replace('\n', " "))
}

fn noted(mut notes: Vec<Note>, note: Note, is: bool) -> Vec<Note> {
    if is {
        notes.push(note);
    }
    notes
}

/// Rotates a picture, scales it to 8 bits and composites it on the background.
fn upright(raw: Raw, background: [u8; 3]) -> Result<Picture, String> {
    let Raw { mut image, orientation, mut notes } = raw;
    if orientation != Orientation::NoTransforms {
        image.apply_orientation(orientation);
        notes.push(Note::Oriented);
    }
    if !matches!(image.color(), ColorType::L8 | ColorType::La8 | ColorType::Rgb8 | ColorType::Rgba8) {
        notes.push(Note::Scaled);
    }
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (has_colour, has_alpha) = (image.color().has_color(), image.color().has_alpha());
    let (channels, pixels) = match (has_colour, has_alpha) {
        (false, false) => (1, image.into_luma8().into_raw()),
        (true, false) => (3, image.into_rgb8().into_raw()),
        (false, true) => {
            let pixels = image.into_luma_alpha8().into_raw();
            let clear = pixels.chunks_exact(2).any(|p| p[1] != 255);
            notes = noted(notes, Note::Transparent, clear);
            let [red, green, blue] = background;
            if clear && (red != green || red != blue) {
                let laid = |p: &[u8]| background.map(|under| over(p[0], under, p[1]));
                (3, pixels.chunks_exact(2).flat_map(laid).collect())
            } else {
                (1, pixels.chunks_exact(2).map(|p| over(p[0], red, p[1])).collect())
            }
        }
        (true, true) => {
            let pixels = image.into_rgba8().into_raw();
            let clear = pixels.chunks_exact(4).any(|p| p[3] != 255);
            notes = noted(notes, Note::Transparent, clear);
            let laid = |p: &[u8]| -> [u8; 3] { std::array::from_fn(|c| over(p[c], background[c], p[3])) };
            (3, pixels.chunks_exact(4).flat_map(laid).collect())
        }
    };
    notes.sort_unstable();
    let image = Image::new(width, height, channels, pixels).map_err(|error| error.to_string())?;
    Ok(Picture { image, notes })
}

/// `value` of opacity `alpha` over `under`, rounded.
fn over(value: u8, under: u8, alpha: u8) -> u8 {
    let (value, under, alpha) = (u32::from(value), u32::from(under), u32::from(alpha));
    ((value * alpha + under * (255 - alpha) + 127) / 255) as u8
}

#[cfg(test)]
mod tests;
