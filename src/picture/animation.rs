//! Animations: GIF, which every program shows, and APNG, which keeps all colours.

use std::path::Path;

use gif::{Encoder, EncodingError, Frame, Repeat};
use png::{BitDepth, ColorType, Compression};

use super::Image;
use crate::files::write_atomically;
use crate::image_size::ImageSize;
use crate::{Error, Result};

/// The order and timing of frames, which repeat forever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Duration of a frame in hundredths of a second, above 0. Browsers show GIF frames for at least 2.
    pub delay: u16,
    /// Whether the frames are repeated in reverse, so that the animation loops.
    pub bounce: bool,
}

impl Timing {
    /// The frames of an animation of `given` frames, with those repeated in reverse.
    pub fn count(self, given: usize) -> usize {
        given + if self.bounce { given.saturating_sub(2) } else { 0 }
    }
}

/// The bytes of a GIF. Grey frames keep their values; coloured ones are reduced to the best 256 colours of each frame.
///
/// # Errors
/// [`Error::Shape`] if there is no frame, their sizes differ, or one is larger than 65535 pixels per side.
pub fn encode_gif(frames: &[Image], timing: Timing) -> Result<Vec<u8>> {
    let (width, height, channels) = check(frames, timing)?;
    let (Ok(width), Ok(height)) = (u16::try_from(width), u16::try_from(height)) else {
        let size = ImageSize::new(height, width);
        return Err(Error::shape("gif", format!("frames of {size}; give at most 65535 a side")));
    };
    let refused = |error: EncodingError| Error::shape("gif", error.to_string());
    let greys: Vec<u8> = if channels == 1 { (0..=255u8).flat_map(|grey| [grey; 3]).collect() } else { Vec::new() };
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, width, height, &greys).map_err(refused)?;
    encoder.set_repeat(Repeat::Infinite).map_err(refused)?;
    for image in order(frames, timing) {
        let mut frame = match channels {
            1 => Frame { width, height, buffer: image.pixels().into(), ..Frame::default() },
            _ => Frame::from_rgb_speed(width, height, image.to_rgb().pixels(), 10),
        };
        frame.delay = timing.delay;
        encoder.write_frame(&frame).map_err(refused)?;
    }
    drop(encoder);
    Ok(bytes)
}

/// The bytes of an animated PNG; programs without APNG support show its first frame. `text` is embedded as by
/// [`encode_png`](super::encode_png).
///
/// # Errors
/// [`Error::Shape`] if there is no frame or their sizes differ; [`Error::Config`] for an invalid PNG keyword.
pub fn encode_apng(frames: &[Image], timing: Timing, text: &[(&str, &str)]) -> Result<Vec<u8>> {
    let (width, height, channels) = check(frames, timing)?;
    let refused = |error: png::EncodingError| Error::config("APNG", error.to_string(), "give other frames or texts");
    let count = order(frames, timing).count();
    let mut bytes = Vec::new();
    // The sizes fit: a picture has at most 2^28 pixels.
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(if channels == 1 { ColorType::Grayscale } else { ColorType::Rgb });
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Balanced);
    let count = u32::try_from(count).map_err(|_| Error::shape("apng", format!("{count} frames")))?;
    encoder.set_animated(count, 0).map_err(refused)?;
    encoder.set_frame_delay(timing.delay, 100).map_err(refused)?;
    for (keyword, text) in text {
        encoder.add_itxt_chunk(keyword.to_string(), text.to_string()).map_err(refused)?;
    }
    let mut writer = encoder.write_header().map_err(refused)?;
    for image in order(frames, timing) {
        let pixels = if channels == 1 { image.clone() } else { image.to_rgb() };
        writer.write_image_data(pixels.pixels()).map_err(refused)?;
    }
    writer.finish().map_err(refused)?;
    Ok(bytes)
}

/// Writes frames to `path`, atomically: an APNG if it ends in `.apng` or `.png`, else a GIF.
///
/// # Errors
/// Those of [`encode_gif`] and [`encode_apng`]; [`Error::Io`] with the path.
pub fn write_animation(path: impl AsRef<Path>, frames: &[Image], timing: Timing, text: &[(&str, &str)]) -> Result<()> {
    let path = path.as_ref();
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    let bytes = match ending.as_str() {
        "apng" | "png" => encode_apng(frames, timing, text)?,
        _ => encode_gif(frames, timing)?,
    };
    write_atomically(path, &bytes)
}

/// Frames in display order.
fn order(frames: &[Image], timing: Timing) -> impl Iterator<Item = &Image> {
    let back = if timing.bounce && frames.len() > 2 { &frames[1..frames.len() - 1] } else { &[] };
    frames.iter().chain(back.iter().rev())
}

/// Width and height of the frames; 1 channel if all are grey, else 3.
fn check(frames: &[Image], timing: Timing) -> Result<(usize, usize, usize)> {
    let Some(first) = frames.first() else {
        return Err(Error::shape("animation", "no frames; give at least one"));
    };
    if let Some((index, other)) = frames.iter().enumerate().find(|(_, image)| image.size() != first.size()) {
        let message =
            format!("frame {index} is {} and the first {}; all must be of one size", other.size(), first.size());
        return Err(Error::shape("animation", message));
    }
    if timing.delay == 0 {
        return Err(Error::shape("animation", "the delay of frames is 0; give a delay above 0"));
    }
    let channels = frames.iter().map(Image::channels).max().unwrap_or(1);
    Ok((first.width(), first.height(), channels))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing { delay: 8, bounce: false };

    fn frames(channels: usize, count: usize) -> Vec<Image> {
        let pixels = |seed: usize| (0..6 * 5 * channels).map(|i| (i * 3 + seed * 40) as u8).collect();
        (0..count).map(|seed| Image::new(6, 5, channels, pixels(seed)).unwrap()).collect()
    }

    /// Frames, each with its delay, and the number of repeats (0: forever).
    fn read_gif(bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::RGBA);
        let mut decoder = options.read_info(bytes).unwrap();
        let mut frames = Vec::new();
        while let Some(frame) = decoder.read_next_frame().unwrap() {
            let rgb = frame.buffer.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
            frames.push((frame.delay, rgb));
        }
        assert_eq!(decoder.repeat(), Repeat::Infinite);
        frames
    }

    #[test]
    fn gifs_come_back_frame_by_frame() {
        for channels in [1, 3] {
            let images = frames(channels, 4);
            // 30 colours a frame: none is lost.
            let wanted: Vec<_> = images.iter().map(|image| (8, image.to_rgb().into_pixels())).collect();
            assert_eq!(read_gif(&encode_gif(&images, TIMING).unwrap()), wanted);
            let bounced = read_gif(&encode_gif(&images, Timing { bounce: true, ..TIMING }).unwrap());
            assert_eq!(bounced.len(), 6);
            assert!(bounced[4] == wanted[2] && bounced[5] == wanted[1]);
        }
    }

    #[test]
    fn apngs_come_back_frame_by_frame() {
        for channels in [1, 3] {
            let images = frames(channels, 3);
            let bytes = encode_apng(&images, TIMING, &[("Software", "engine")]).unwrap();
            let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
            let control = reader.info().animation_control.unwrap();
            assert_eq!((control.num_frames, control.num_plays), (3, 0));
            for image in &images {
                let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
                reader.next_frame(&mut pixels).unwrap();
                assert_eq!(pixels, image.pixels());
                let frame = reader.info().frame_control.unwrap();
                assert_eq!((frame.delay_num, frame.delay_den), (8, 100));
            }
        }
    }

    #[test]
    fn what_cannot_be_shown_is_refused() {
        let unlike = [Image::filled(2, 2, [0; 3]), Image::filled(3, 2, [0; 3])];
        for frames in [&[][..], &unlike] {
            assert!(encode_gif(frames, TIMING).unwrap_err().to_string().starts_with("animation: "));
            assert!(encode_apng(frames, TIMING, &[]).unwrap_err().to_string().starts_with("animation: "));
        }
        assert!(encode_gif(&unlike[..1], Timing { delay: 0, ..TIMING }).is_err());
        let wide = [Image::filled(70_000, 1, [0; 3])];
        assert!(encode_gif(&wide, TIMING).unwrap_err().to_string().contains("65535"));
    }
}
