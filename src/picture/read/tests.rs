//! Pictures of every format, made here: intact, rotated, transparent, truncated and with flipped bits.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageFormat};

use super::*;

const WHITE: [u8; 3] = [255; 3];

/// Values of 6 x 4 pixels.
fn values(channels: usize) -> Vec<u8> {
    (0..6 * 4 * channels).map(|i| (i * 7 % 251) as u8).collect()
}

fn encoded(pixels: &[u8], colour: ExtendedColorType, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image::write_buffer_with_format(&mut bytes, pixels, 6, 4, colour, format).unwrap();
    bytes.into_inner()
}

fn jpeg(width: u32, height: u32, pixels: &[u8], colour: ExtendedColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 95).write_image(pixels, width, height, colour).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Picture {
    decode_picture(bytes, WHITE).unwrap()
}

fn refused(bytes: &[u8]) -> String {
    let message = decode_picture(bytes, WHITE).map(|picture| picture.notes).unwrap_err();
    assert!(!message.contains('\n'), "{message}");
    message
}

/// A JPEG with an APP1 segment that holds only the orientation.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let exif =
        [&b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..], &[orientation, 0, 0, 0, 0, 0, 0]].concat();
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat()
}

/// A JPEG of one block of CMYK, each ink with one value, inverted as Adobe writes them.
fn cmyk(inks: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![0xff, 0xd8];
    let mut segment = |marker: u8, body: &[u8]| {
        bytes.extend([0xff, marker]);
        bytes.extend((body.len() as u16 + 2).to_be_bytes());
        bytes.extend(body);
    };
    segment(0xee, b"Adobe\0\x64\0\0\0\0\0");
    segment(0xdb, &[&[0][..], &[8; 64]].concat());
    segment(0xc0, &[8, 0, 8, 0, 8, 4, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0, 4, 0x11, 0]);
    // Nine categories of four bits each; one AC code of one bit, the block's end.
    segment(0xc4, &[&[0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0, 1, 2, 3, 4, 5, 6, 7, 8]].concat());
    segment(0xc4, &[0x10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    segment(0xda, &[4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 63, 0]);
    let mut bits = String::new();
    for ink in inks {
        let difference = i32::from(ink) - 128;
        let category = 32 - difference.unsigned_abs().leading_zeros();
        let value = if difference < 0 { difference + (1 << category) - 1 } else { difference };
        bits += &format!("{category:04b}");
        if category > 0 {
            bits += &format!("{value:0width$b}", width = category as usize);
        }
        bits.push('0');
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    for byte in bits.as_bytes().chunks(8) {
        let byte = u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap();
        bytes.push(byte);
        if byte == 0xff {
            bytes.push(0);
        }
    }
    [&bytes[..], &[0xff, 0xd9]].concat()
}

#[test]
fn every_lossless_form_gives_its_pixels() {
    use ExtendedColorType::{L8, Rgb8};
    let forms = [
        (ImageFormat::Png, PictureKind::Png),
        #[cfg(feature = "formats")]
        (ImageFormat::WebP, PictureKind::WebP),
        (ImageFormat::Bmp, PictureKind::Bmp),
        (ImageFormat::Pnm, PictureKind::Pnm),
        #[cfg(feature = "formats")]
        (ImageFormat::Tiff, PictureKind::Tiff),
    ];
    for (format, kind) in forms {
        for (channels, colour) in [(1, L8), (3, Rgb8)] {
            let bytes = encoded(&values(channels), colour, format);
            assert_eq!(PictureKind::of(&bytes), Some(kind));
            let picture = read(&bytes);
            assert_eq!((picture.image.width(), picture.image.height()), (6, 4), "{format:?}");
            // WebP has no grey, and BMP's is a palette.
            let image = picture.image.with_channels(3);
            let expected = Image::new(6, 4, channels, values(channels)).unwrap().with_channels(3);
            assert_eq!((image, picture.notes), (expected, vec![]), "{format:?} {colour:?}");
        }
    }
}

#[test]
fn a_gif_gives_its_first_frame() {
    let frame = |value: u8| {
        let mut frame = gif::Frame::from_indexed_pixels(6, 4, vec![value; 24], None);
        frame.palette = Some(vec![10, 20, 30, 40, 50, 60]);
        frame
    };
    for frames in [1, 3] {
        let mut bytes = Vec::new();
        let mut encoder = gif::Encoder::new(&mut bytes, 6, 4, &[]).unwrap();
        for k in 0..frames {
            encoder.write_frame(&frame((k == 0) as u8)).unwrap();
        }
        drop(encoder);
        let picture = read(&bytes);
        assert_eq!(picture.image.colour(5, 3), Some([40, 50, 60]));
        assert_eq!(picture.notes, if frames == 1 { vec![] } else { vec![Note::FirstFrame] });
    }
    // Of a second frame the header counts, not the pixels: decoding them would take as much memory again.
    let mut bytes = Vec::new();
    let mut encoder = gif::Encoder::new(&mut bytes, 6, 4, &[]).unwrap();
    encoder.write_frame(&frame(1)).unwrap();
    let mut damaged = frame(0);
    damaged.make_lzw_pre_encoded();
    damaged.buffer.to_mut()[1..].fill(0xff);
    encoder.write_lzw_pre_encoded_frame(&damaged).unwrap();
    drop(encoder);
    let picture = read(&bytes);
    assert_eq!((picture.image.colour(5, 3), picture.notes), (Some([40, 50, 60]), vec![Note::FirstFrame]));
}

#[test]
fn sixteen_bits_are_scaled() {
    let wide: Vec<u16> = vec![0, 127, 129, 0x1234, 0x8000, 0xffff];
    let wide: Vec<u16> = wide.iter().cycle().take(24).copied().collect();
    let bytes: Vec<u8> = wide.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let picture = read(&encoded(&bytes, ExtendedColorType::L16, ImageFormat::Png));
    // round(v · 255 / 65535).
    assert_eq!(picture.image.pixels()[..6], [0, 0, 1, 18, 128, 255]);
    assert_eq!(picture.notes, [Note::Scaled]);
    assert_eq!(read(b"P5\n3 1\n15\n\x00\x07\x0f").image.pixels(), [0, 119, 255], "a PGM of 15 steps");
    assert_eq!(read(b"P5 3 1 65535 \0\0\x80\0\xff\xff").image.pixels(), [0, 128, 255]);
}

#[test]
fn palettes_are_resolved_and_transparency_is_laid_on_the_background() {
    let mut bytes = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut bytes, 2, 1);
    encoder.set_color(::png::ColorType::Indexed);
    encoder.set_depth(::png::BitDepth::Eight);
    encoder.set_palette(vec![200, 100, 0, 1, 2, 3]);
    encoder.set_trns(vec![255, 0]);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[0, 1]).unwrap();
    writer.finish().unwrap();
    let picture = decode_picture(&bytes, [7, 8, 9]).unwrap();
    assert_eq!((picture.image.pixels(), &picture.notes[..]), (&[200, 100, 0, 7, 8, 9][..], &[Note::Transparent][..]));

    let mut clear = [90, 128].repeat(24);
    let grey = encoded(&clear, ExtendedColorType::La8, ImageFormat::Png);
    let picture = read(&grey);
    // (90·128 + 255·127 + 127) / 255.
    assert_eq!((picture.image.channels(), picture.image.pixels()[0]), (1, 172));
    assert_eq!(decode_picture(&grey, [255, 0, 0]).unwrap().image.colour(0, 0), Some([172, 45, 45]));
    clear.iter_mut().skip(1).step_by(2).for_each(|alpha| *alpha = 255);
    assert_eq!(read(&encoded(&clear, ExtendedColorType::La8, ImageFormat::Png)).notes, [], "an opaque alpha is none");
    let rgba = encoded(&[10, 20, 30, 0].repeat(24), ExtendedColorType::Rgba8, ImageFormat::Png);
    assert_eq!(read(&rgba).image.colour(0, 0), Some(WHITE));
}

#[test]
fn cmyk_becomes_rgb() {
    // Inverted: 255 is no ink. Only yellow, then only black.
    let yellow = read(&cmyk([255, 255, 0, 255]));
    assert_eq!((yellow.notes, yellow.image.colour(3, 3)), (vec![Note::Inks], Some([255, 255, 0])));
    assert_eq!(read(&cmyk([255, 255, 255, 0])).image.colour(0, 0), Some([0, 0, 0]));
}

#[test]
fn orientation_is_applied_and_told() {
    // Dark above, light below; 16 wide and 8 high.
    let pixels: Vec<u8> = (0..128).map(|i| if i < 64 { 0 } else { 255 }).collect();
    let plain = jpeg(16, 8, &pixels, ExtendedColorType::L8);
    let dark = |image: &Image, x, y| image.colour(x, y).unwrap()[0] < 128;
    for (orientation, width, dark_at, light_at) in
        [(1, 16, (0, 0), (0, 7)), (3, 16, (0, 7), (0, 0)), (6, 8, (7, 0), (0, 0)), (8, 8, (0, 0), (7, 0))]
    {
        let picture = read(&with_orientation(&plain, orientation));
        assert_eq!(picture.image.width(), width, "orientation {orientation}");
        assert!(dark(&picture.image, dark_at.0, dark_at.1) && !dark(&picture.image, light_at.0, light_at.1));
        assert_eq!(picture.notes, if orientation == 1 { vec![] } else { vec![Note::Oriented] });
    }
}

#[test]
fn a_colour_profile_is_told() {
    let mut bytes = Vec::new();
    let mut encoder = PngEncoder::new(&mut bytes);
    encoder.set_icc_profile(vec![1; 200]).unwrap();
    encoder.write_image(&values(3), 6, 4, ExtendedColorType::Rgb8).unwrap();
    assert_eq!(read(&bytes).notes, [Note::Profile]);
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new(&mut bytes);
    encoder.set_icc_profile(vec![1; 200]).unwrap();
    encoder.write_image(&values(3), 6, 4, ExtendedColorType::Rgb8).unwrap();
    assert_eq!(read(&bytes).notes, [Note::Profile]);
}

#[test]
fn a_jpeg_that_is_cut_short_is_damaged() {
    let noise: Vec<u8> = (0..64 * 64 * 3).map(|i: usize| (i * i % 253) as u8).collect();
    let whole = jpeg(64, 64, &noise, ExtendedColorType::Rgb8);
    assert_eq!(read(&whole).image.height(), 64);
    for share in [0.3, 0.5, 0.9, 0.99] {
        let cut = &whole[..(whole.len() as f64 * share) as usize];
        assert!(refused(cut).starts_with("is cut short"), "{share}");
        // With the end marker added again rows are missing.
        let message = refused(&[cut, &[0xff, 0xd9]].concat());
        assert!(message.contains("last rows are missing"), "{share}: {message}");
    }
    assert!(refused(&whole[..whole.len() - 2]).contains("end marker"));
    // Anything may follow the end marker.
    assert_eq!(read(&[&whole[..], b"trailer"].concat()).image.width(), 64);
}

/// A scan's header and its data.
type Scan = (Vec<u8>, Vec<u8>);

/// The parts of a progressive grey JPEG of 64x64 pixels of one colour: the head, and each scan with its header.
fn progressive() -> (Vec<u8>, Vec<Scan>) {
    let segment = |marker: u8, body: &[u8]| [&[0xff, marker, 0, 2 + body.len() as u8], body].concat();
    let counts = |codes: &[(usize, u8)]| -> Vec<u8> {
        let counts = (1..=16).map(|length| codes.iter().filter(|(of, _)| *of == length).count() as u8);
        counts.chain(codes.iter().map(|(_, value)| *value)).collect()
    };
    let head = [
        vec![0xff, 0xd8],
        segment(0xdb, &[&[0][..], &[1; 64]].concat()),
        segment(0xc2, &[8, 0, 64, 0, 64, 1, 1, 0x11, 0]),
        // DC: 0 for no difference. AC: 0 for a block without coefficients, 10 and five bits for 32 and more of them.
        segment(0xc4, &[&[0][..], &counts(&[(1, 0)]), &[0x10], &counts(&[(1, 0), (2, 0x50)])].concat()),
    ];
    let scan = |first: u8, last: u8, approximation: u8, data: &[u8]| {
        (segment(0xda, &[1, 1, 0, first, last, approximation]), data.to_vec())
    };
    let scans = vec![
        scan(0, 0, 0x01, &[0; 8]),
        scan(1, 5, 0x00, &[0; 8]),
        // Two runs of 32 blocks.
        scan(6, 63, 0x01, &[0b1000_0001, 0b0000_0011]),
        scan(0, 0, 0x10, &[0; 8]),
        scan(6, 63, 0x10, &[0; 8]),
    ];
    (head.concat(), scans)
}

#[test]
fn a_progressive_jpeg_without_all_its_scans_is_damaged() {
    let (head, scans) = progressive();
    let file = |scans: &[Scan]| {
        let scans = scans.iter().map(|(head, data)| [&head[..], data].concat()).collect::<Vec<_>>().concat();
        [&head[..], &scans, &[0xff, 0xd9]].concat()
    };
    let whole = read(&file(&scans)).image;
    assert_eq!((whole.width(), whole.height(), whole.pixels()[0]), (64, 64, 128));
    for left_out in 0..scans.len() {
        let mut fewer = scans.clone();
        fewer.remove(left_out);
        assert!(refused(&file(&fewer)).starts_with("is cut short: a JPEG file whose last scans"), "scan {left_out}");
        assert!(refused(&file(&scans[..left_out])).contains("last scans are missing"), "the first {left_out}");
    }
    // A scan that begins a band has all its blocks.
    for short in 0..3 {
        let mut cut = scans.clone();
        cut[short].1.pop();
        assert!(refused(&file(&cut)).contains("last rows are missing"), "scan {short}");
    }
}

#[test]
fn whole_jpegs_of_every_kind_are_whole() {
    // Noise and one colour, odd sizes, with and without restarts and subsampling.
    for (width, height) in [(1, 1), (7, 9), (64, 33), (200, 40)] {
        for channels in [1, 3] {
            for flat in [true, false] {
                let value = |i: usize| if flat { 200 } else { (i * i % 253) as u8 };
                let pixels: Vec<u8> = (0..(width * height) as usize * channels).map(value).collect();
                let colour = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
                let bytes = jpeg(width, height, &pixels, colour);
                assert_eq!(read(&bytes).image.width(), width as usize, "{width}x{height}x{channels}");
            }
        }
    }
}

#[test]
fn other_forms_cut_short_are_damaged() {
    let noise: Vec<u8> = (0..24 * 3).map(|i: usize| (i * i % 253) as u8).collect();
    let forms = [
        ImageFormat::Png,
        #[cfg(feature = "formats")]
        ImageFormat::WebP,
        ImageFormat::Bmp,
        ImageFormat::Pnm,
        ImageFormat::Gif,
    ];
    for format in forms {
        let whole = encoded(&noise, ExtendedColorType::Rgb8, format);
        read(&whole);
        refused(&whole[..whole.len() * 2 / 3]);
    }
}

#[test]
fn what_is_no_picture_is_named() {
    assert!(refused(b"<html></html>").starts_with("is a web page or XML, not a picture"));
    assert!(refused(b"P1ckle of text").contains("text"));
    assert!(refused(b"BMW is a car, and this is a longer text").contains("text"));
    assert!(refused(b"\0\0\0\x18ftypheic").contains("HEIC"));
    assert!(refused(b"").contains("empty"));
    assert!(PictureKind::is_named("a/B.JPeG"));
    assert!(!PictureKind::is_named("a.png/readme"));
}

#[test]
fn a_huge_declared_size_is_refused() {
    let mut bmp = encoded(&values(3), ExtendedColorType::Rgb8, ImageFormat::Bmp);
    bmp[18..26].copy_from_slice(&[0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0]);
    refused(&bmp);
    refused(b"P5 60000 60000 255 \0\0");
    let mut jpeg = jpeg(16, 8, &[0; 128], ExtendedColorType::L8);
    let size = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap() + 5;
    jpeg[size..size + 4].fill(0xff);
    assert!(refused(&jpeg).contains("rows are missing"));
}

#[test]
fn damaged_pictures_never_panic() {
    let mut state = 5u64;
    let mut random = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    let noise: Vec<u8> = (0..24 * 3).map(|i: usize| (i * i % 253) as u8).collect();
    let rgb = ExtendedColorType::Rgb8;
    let mut seeds = vec![jpeg(6, 4, &noise, rgb), with_orientation(&jpeg(6, 4, &noise, rgb), 6), cmyk([1, 2, 3, 4])];
    seeds.extend(
        [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Pnm, ImageFormat::Gif]
            .map(|format| encoded(&noise, rgb, format)),
    );
    #[cfg(feature = "formats")]
    seeds.extend([ImageFormat::Tiff, ImageFormat::WebP].map(|format| encoded(&noise, rgb, format)));
    for seed in &seeds {
        for _ in 0..300 {
            let mut bytes = seed.clone();
            let at = random() % bytes.len();
            match random() % 3 {
                0 => bytes.truncate(at),
                1 => bytes[at] = random() as u8,
                _ => bytes[at] ^= 1 << (random() % 8),
            }
            if let Err(message) = decode_picture(&bytes, WHITE) {
                assert!(!message.contains('\n'), "{message}");
            }
        }
    }
}

/// A few bytes cannot make the reader take hundreds of megabytes.
#[test]
fn a_size_that_the_file_cannot_hold_is_refused() {
    for (format, at, bytes) in [
        (ImageFormat::Gif, 6, vec![0x40, 0x1f, 0x40, 0x1f]),
        (ImageFormat::Bmp, 18, vec![0x40, 0x1f, 0, 0, 0x40, 0x1f]),
    ] {
        let mut file = encoded(&values(3), ExtendedColorType::Rgb8, format);
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        let message = refused(&file);
        assert!(message.contains("declares 8000x8000 pixels, more than a file of this length can hold"), "{message}");
    }
}
