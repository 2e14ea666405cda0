//! Files of a job's images.

use super::job::Job;
use super::refusal::Refusal;
use crate::picture::{AnimationTiming, Image, encode_apng, encode_gif, encode_npy, encode_png};
use crate::pipeline::strip;

/// A file of a job's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// The image at an index.
    Png(usize),
    /// All images on one sheet.
    Sheet,
    /// All images as an array.
    Npy,
    /// All images as a GIF animation.
    Gif(AnimationTiming),
    /// All images as an animation with full colours.
    Apng(AnimationTiming),
}

impl File {
    /// The file with this name.
    ///
    /// # Errors
    /// 404.
    pub fn named(name: &str, delay: u16, bounce: bool) -> Result<Self, Refusal> {
        let timing = AnimationTiming { delay, bounce };
        match name {
            "images.npy" => Ok(Self::Npy),
            "sheet.png" => Ok(Self::Sheet),
            "animation.gif" => Ok(Self::Gif(timing)),
            "animation.apng" => Ok(Self::Apng(timing)),
            _ => Err(Refusal::unknown("a job has images.npy, sheet.png, animation.gif and animation.apng")),
        }
    }
}

/// The media type and the bytes of a file.
///
/// # Errors
/// Those of the encoders.
pub fn encode(job: &Job, images: &[Image], file: File) -> Result<(&'static str, Vec<u8>), Refusal> {
    let texts = job.texts(if let File::Png(place) = file { place } else { 0 });
    let texts: Vec<(&str, &str)> = texts.iter().map(|(keyword, text)| (*keyword, text.as_str())).collect();
    let nothing = || Refusal::unknown("there is no image");
    Ok(match file {
        File::Png(_) => ("image/png", encode_png(images.first().ok_or_else(nothing)?, &texts)?),
        File::Sheet => ("image/png", encode_png(&strip(images)?, &texts)?),
        File::Npy => ("application/octet-stream", encode_npy(images)?),
        File::Gif(timing) => ("image/gif", encode_gif(images, timing)?),
        File::Apng(timing) => ("image/apng", encode_apng(images, timing, &texts)?),
    })
}
