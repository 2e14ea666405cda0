//! Conversion between picture files and model values.

use std::path::Path;

use crate::error::{Error, Result};
use crate::image_size::ImageSize;
use crate::picture::{Fit, Image, Note, Picture, read_picture};

/// Describes how a picture was fitted to a model's input; None if it was not changed.
pub fn fitted_note(name: &Path, was: ImageSize, picture: &Picture) -> Option<String> {
    let done: Vec<String> = picture
        .notes
        .iter()
        .map(|note| match note {
            Note::Resized => {
                format!("resized from {was} to {}", picture.image.size())
            }
            note => note.to_string(),
        })
        .collect();
    (!done.is_empty()).then(|| format!("{}: {}", name.display(), done.join(", ")))
}

/// Reads a picture file of any format, fitted to `[height, width, channels]`. Returns its values in [-1, 1], and a description of
/// the changes, if any.
///
/// # Errors
/// Those of [`read_picture`] and [`Picture::fitted`].
pub fn read_fitted(
    path: &Path,
    shape: [usize; 3],
    fit: Fit,
    background: [u8; 3],
) -> Result<(Vec<f32>, Option<String>)> {
    let picture = read_picture(path, background)?;
    let was = picture.image.size();
    let picture = picture.fitted(shape, fit, background)?;
    Ok((image_values(&picture.image, path, shape)?, fitted_note(path, was, &picture)))
}

/// A picture of `[height, width, channels]` as values in [-1, 1]; `name` is its name in errors.
///
/// # Errors
/// [`Error::File`] for a picture of another size, or a coloured one if grey is needed.
pub fn image_values(image: &Image, name: &Path, [height, width, channels]: [usize; 3]) -> Result<Vec<f32>> {
    if (image.height(), image.width()) != (height, width) {
        let message = format!("is {} pixels, but {} are needed", image.size(), ImageSize::new(height, width));
        return Err(Error::file(name, message, "resize it first"));
    }
    image
        .to_signed(channels)
        .map_err(|_| Error::file(name, "is coloured, but the model's images are grey", "convert it to grey first"))
}

/// The free pixels of a mask of `[height, width]`: those brighter than the middle. `name` is its name in errors.
///
/// # Errors
/// [`Error::File`] for a mask of another size, or one without free pixels.
pub fn free_pixels(mask: &Image, name: &Path, [height, width]: [usize; 2]) -> Result<Vec<bool>> {
    if (mask.height(), mask.width()) != (height, width) {
        let message = format!("this mask is {} pixels, the image {}", mask.size(), ImageSize::new(height, width));
        return Err(Error::file(name, message, "draw it over a copy of the image"));
    }
    let bright = |pixel: &[u8]| pixel.iter().map(|value| usize::from(*value)).sum::<usize>() > 127 * pixel.len();
    let free: Vec<bool> = mask.pixels().chunks_exact(mask.channels()).map(bright).collect();
    if !free.contains(&true) {
        return Err(Error::file(name, "this mask has no white area", "paint the area to fill white"));
    }
    Ok(free)
}

/// Values in [-1, 1] as pictures of `[height, width, channels]`.
///
/// # Errors
/// Those of [`Image::from_signed`].
pub fn pictures(images: &[Vec<f32>], [height, width, channels]: [usize; 3]) -> Result<Vec<Image>> {
    images.iter().map(|values| Image::from_signed(width, height, channels, values)).collect()
}
