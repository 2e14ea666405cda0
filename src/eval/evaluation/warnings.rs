//! Warnings about misleading results.

use super::Measured;
use crate::error::Result;
use crate::eval::Gallery;
use crate::picture::Image;

/// Number of samples below which a Fréchet distance is mostly bias.
const USUAL: usize = 10_000;
/// Number of pictures checked.
const LOOKED_AT: usize = 16;

/// Warnings about samples, a reference and their metrics: few samples with the resulting bias, compressed pictures on one side
/// only, enlarged pictures, differing sizes and classes.
///
/// # Errors
/// Those of the pictures.
pub fn warnings(
    samples: &Gallery,
    reference: Option<&Gallery>,
    (count, found): (usize, &[Measured]),
    (sample_classes, reference_classes): (Option<usize>, Option<usize>),
) -> Result<Vec<String>> {
    let mut told = Vec::new();
    let distance = found.iter().find(|measured| measured.key == "fid_score");
    if let Some(distance) = distance.filter(|_| count < USUAL) {
        let bias = match distance.bias {
            Some(bias) => format!("; about {bias:.2} of {:.2} is due to the number", distance.value),
            None => String::new(),
        };
        told.push(format!(
            "{count} samples are few for {}{bias}: compare it with other numbers of {count} samples alone",
            distance.name
        ));
    }
    if let Some(reference) = reference {
        if let (Some(a), Some(b)) = (samples.common_size()?, reference.common_size()?)
            && a != b
        {
            let size = |[height, width, channels]: [usize; 3]| format!("{width}x{height}x{channels}");
            told.push(format!("samples are {}, the reference {}", size(a), size(b)));
        }
        let lossy = |gallery: &Gallery| gallery.jpeg_share().map(|share| share > 0.5);
        if let (Some(a), Some(b)) = (lossy(samples), lossy(reference))
            && a != b
        {
            let which = if a { "the samples" } else { "the reference" };
            told.push(format!(
                "{which} come from JPEG files and the others do not: compression alone changes the distance"
            ));
        }
        if enlarged(reference)? {
            told.push(
                "the reference's pictures were enlarged from half their size: no sample can be that smooth".into(),
            );
        }
    }
    if enlarged(samples)? {
        told.push("the samples were enlarged from half their size".into());
    }
    if let (Some(a), Some(b)) = (sample_classes, reference_classes)
        && a != b
    {
        told.push(format!("the model draws {a} classes, the reference has {b}"));
    }
    Ok(told)
}

/// Whether the first pictures consist of blocks of 2x2 equal pixels.
fn enlarged(gallery: &Gallery) -> Result<bool> {
    for index in 0..gallery.len().min(LOOKED_AT) {
        if !in_blocks(&gallery.picture(index)?) {
            return Ok(false);
        }
    }
    Ok(!gallery.is_empty())
}

fn in_blocks(image: &Image) -> bool {
    let (width, height, channels) = (image.width(), image.height(), image.channels());
    let pixel = |x: usize, y: usize| &image.pixels()[(y * width + x) * channels..][..channels];
    let even = width.is_multiple_of(2) && height.is_multiple_of(2);
    let plain = image.pixels().iter().all(|value| value == &image.pixels()[0]);
    even && !plain && (0..height).all(|y| (0..width).all(|x| pixel(x, y) == pixel(x & !1, y & !1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enlarged_pictures_are_seen() {
        let small = Image::new(2, 2, 1, vec![1, 2, 3, 4]).unwrap();
        assert!(!in_blocks(&small));
        assert!(in_blocks(&small.upscale(2).unwrap()));
        assert!(!in_blocks(&Image::filled(4, 4, [7; 3])));
    }
}
