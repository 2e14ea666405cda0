//! NumPy's `.npy`, for use in Python.

use std::path::Path;

use super::Image;
use super::npy_header::NpyHeader;
use crate::files::write_atomically;
use crate::{Error, Result};

/// Writes pictures of one size to a file, as [`encode_npy`] does.
///
/// # Errors
/// Those of [`encode_npy`]; [`Error::Io`] with the path.
pub fn write_npy(path: impl AsRef<Path>, images: &[Image]) -> Result<()> {
    write_atomically(path, &encode_npy(images)?)
}

/// The bytes of pictures of one size as f32 in [0, 1]: `[N, H, W]` if they are grey, `[N, H, W, 3]` if they are RGB.
///
/// # Errors
/// [`Error::Shape`] if there is no picture or they differ in size or channels.
pub fn encode_npy(images: &[Image]) -> Result<Vec<u8>> {
    let Some(first) = images.first() else {
        return Err(Error::shape("npy", "no pictures; give at least one"));
    };
    let size = |image: &Image| [image.height(), image.width(), image.channels()];
    if let Some((index, other)) = images.iter().enumerate().find(|(_, image)| size(image) != size(first)) {
        let message = format!(
            "picture {index} is {:?} and the first {:?}; all must have the same shape",
            size(other),
            size(first)
        );
        return Err(Error::shape("npy", message));
    }
    let mut shape = vec![images.len(), first.height(), first.width()];
    if first.channels() > 1 {
        shape.push(first.channels());
    }
    let mut bytes = NpyHeader::encode("<f4", &shape);
    bytes.reserve(images.len() * first.pixels().len() * 4);
    let pixels = images.iter().flat_map(|image| image.pixels());
    bytes.extend(pixels.flat_map(|value| (f32::from(*value) / 255.0).to_le_bytes()));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numpy_would_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        for (channels, expected) in [(1, vec![2, 4, 3]), (3, vec![2, 4, 3, 3])] {
            let image = |seed: usize| {
                Image::new(3, 4, channels, (0..12 * channels).map(|i| (i * 20 + seed) as u8).collect()).unwrap()
            };
            let images = [image(0), image(15)];
            write_npy(&path, &images).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(&bytes[..6], b"\x93NUMPY");
            let npy = npyz::NpyFile::new(bytes.as_slice()).unwrap();
            assert_eq!(npy.shape(), expected);
            assert_eq!(npy.dtype().descr(), "'<f4'");
            let values = npy.into_vec::<f32>().unwrap();
            let wanted = images.iter().flat_map(|image| image.pixels()).map(|v| *v as f32 / 255.0).collect::<Vec<_>>();
            assert_eq!(values, wanted);
        }
    }

    #[test]
    fn unlike_pictures_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        assert!(write_npy(&path, &[]).unwrap_err().to_string().starts_with("npy: no pictures"));
        let unlike = [Image::filled(2, 2, [0; 3]), Image::filled(3, 2, [0; 3])];
        assert!(write_npy(&path, &unlike).unwrap_err().to_string().contains("picture 1 is [2, 3, 3]"));
        assert!(!path.exists());
    }
}
