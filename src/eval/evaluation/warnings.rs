//! Warnings about misleading results.

use super::Measured;
use crate::error::Result;
use crate::eval::{Gallery, Rule};
use crate::picture::Image;

/// Number of samples below which a Fréchet distance is mostly bias.
const USUAL: usize = 10_000;
/// Number of pictures checked.
const LOOKED_AT: usize = 16;

/// What is compared with what.
pub struct Compared<'a> {
    /// The samples.
    pub samples: &'a Gallery,
    /// The reference, if it is pictures.
    pub reference: Option<&'a Gallery>,
    /// Number of samples, and of the floor's held-out images.
    pub counts: (usize, Option<usize>),
    /// The metrics.
    pub found: &'a [Measured],
    /// Numbers of classes of the model and of the reference.
    pub classes: (Option<usize>, Option<usize>),
    /// The tool whose rule is followed.
    pub rule: Option<Rule>,
}

/// Warnings about samples, a reference and their metrics: few samples with the resulting bias, a floor of another number, the same
/// pictures on both sides, compressed pictures on one side, transparency, enlarged pictures, mixed and differing sizes, differing
/// classes.
///
/// # Errors
/// Those of the pictures.
pub fn warnings(compared: &Compared) -> Result<Vec<String>> {
    let &Compared { samples, reference, counts: (count, floor), found, classes, rule } = compared;
    let mut told = Vec::new();
    let distance = found.iter().find(|measured| measured.key == "fid_score");
    if let Some(distance) = distance.filter(|_| count < USUAL) {
        told.push(format!(
            "{count} samples are few for {}{}: compare it with other numbers of {count} samples alone",
            distance.name,
            due_to_number(distance)
        ));
    }
    if let Some(floor) = floor.filter(|&floor| floor != count) {
        told.push(format!(
            "the floor is of {floor} held-out images, and there are {count} samples: a floor of fewer is higher"
        ));
    }
    if let Some(reference) = reference {
        if samples.identity()?["sha256"] == reference.identity()?["sha256"] {
            told.push("the samples are the reference: the same pictures, by their hash".into());
        }
        if let (Some(a), Some(b)) = (samples.common_size()?, reference.common_size()?)
            && a != b
        {
            let size = |[height, width, channels]: [usize; 3]| format!("{width}x{height}x{channels}");
            told.push(format!("samples are {}, the reference {}", size(a), size(b)));
        }
        told.extend(compression(samples, reference)?);
        told.extend(of_files("reference", reference, rule)?);
        if enlarged(reference)? {
            told.push(
                "the reference's pictures were enlarged from half their size: no sample can be that smooth".into(),
            );
        }
    }
    told.extend(of_files("samples", samples, rule)?);
    if enlarged(samples)? {
        told.push("the samples were enlarged from half their size".into());
    }
    if let (Some(a), Some(b)) = classes
        && a != b
    {
        told.push(format!("the model draws {a} classes, the reference has {b}"));
    }
    Ok(told)
}

/// How much of a distance is due to the number of samples, as the rest of a sentence.
pub fn due_to_number(distance: &Measured) -> String {
    let value = distance.value;
    match distance.bias {
        Some(bias) if bias >= value => format!("; all of its {value:.2} may be due to the number"),
        Some(bias) if bias > 0.0 => format!("; about {bias:.2} of {value:.2} is due to the number"),
        _ => String::new(),
    }
}

/// A warning where one side was compressed and the other was not.
fn compression(samples: &Gallery, reference: &Gallery) -> Result<Option<String>> {
    let (a, b) = (samples.jpeg_share()?, reference.jpeg_share()?);
    if (a - b).abs() < 0.1 {
        return Ok(None);
    }
    let which = match (a, b) {
        (1.0, 0.0) => "the samples come from JPEG files and the reference does not".to_string(),
        (0.0, 1.0) => "the reference comes from JPEG files and the samples do not".to_string(),
        _ => format!("{:.0} % of the samples and {:.0} % of the reference come from JPEG files", 100.0 * a, 100.0 * b),
    };
    Ok(Some(format!("{which}: compression alone changes the distance")))
}

/// What changed pictures while they were read: their sizes, transparency, depth.
fn of_files(which: &str, gallery: &Gallery, rule: Option<Rule>) -> Result<Vec<String>> {
    let Some(survey) = gallery.survey()? else { return Ok(Vec::new()) };
    let (all, mut told) = (survey.pictures, Vec::new());
    if survey.sizes.len() > 1 {
        let sizes = survey.sizes.len();
        told.push(format!("{which}: {all} pictures of {sizes} sizes, each resized by itself"));
    }
    let tool = |what: &str| rule.map_or(String::new(), |rule| format!("; {} {what}", rule.name()));
    if survey.transparent > 0 {
        let tool = tool("drops the transparency and keeps the colours under it");
        told.push(format!(
            "{which}: {} of {all} pictures have transparent pixels, laid on white here{tool}",
            survey.transparent
        ));
    }
    if survey.deep > 0 {
        let tool = tool("reads them by Pillow, which cuts or clips the values");
        told.push(format!("{which}: {} of {all} pictures have more than 8 bits, scaled to 8 here{tool}", survey.deep));
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
    use serde_json::Value;

    use super::*;
    use crate::eval::Better;

    #[test]
    fn bias_beyond_the_value_is_all_of_it() {
        let of = |value, bias| {
            let (key, name) = ("fid_score".into(), "FID".into());
            let (error, better, more) = (None, Better::Lower, Value::Null);
            due_to_number(&Measured { key, name, value, error, bias, better, more })
        };
        assert_eq!(of(51.63, Some(5.934)), "; about 5.93 of 51.63 is due to the number");
        assert_eq!(of(0.0, Some(8.66)), "; all of its 0.00 may be due to the number");
        assert_eq!([of(3.0, Some(-0.1)), of(3.0, None)], ["", ""]);
    }

    /// A folder with one of each: another size, JPEG, transparent, 16 bits.
    #[test]
    fn files_that_rules_treat_differently_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let gallery = |name: &str, pictures: &[(&str, image::DynamicImage)]| {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            for (file, picture) in pictures {
                picture.save(path.join(file)).unwrap();
            }
            Gallery::open(&path).unwrap()
        };
        let plain = |side: u32| image::DynamicImage::new_rgb8(side, side);
        let a =
            gallery("a", &[("1.png", plain(8)), ("2.png", plain(9)), ("3.png", image::DynamicImage::new_rgba8(8, 8))]);
        let b = gallery("b", &[("1.jpg", plain(8)), ("2.png", image::DynamicImage::new_rgb16(8, 8))]);
        let told = |samples: &Gallery, reference: &Gallery| {
            let (rule, reference) = (Some(Rule::PytorchFid), Some(reference));
            let compared = Compared {
                samples,
                reference,
                counts: (10_000, Some(500)),
                found: &[],
                classes: (Some(2), Some(3)),
                rule,
            };
            warnings(&compared).unwrap().join("\n")
        };
        let text = told(&a, &b);
        for part in [
            "the floor is of 500 held-out images, and there are 10000 samples",
            "0 % of the samples and 50 % of the reference come from JPEG files",
            "samples: 3 pictures of 2 sizes, each resized by itself",
            "samples: 1 of 3 pictures have transparent pixels, laid on white here; pytorch-fid drops",
            "reference: 1 of 2 pictures have more than 8 bits",
            "the model draws 2 classes, the reference has 3",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("the samples are the reference"));
        assert!(told(&a, &a).contains("the samples are the reference"));
    }

    #[test]
    fn enlarged_pictures_are_seen() {
        let small = Image::new(2, 2, 1, vec![1, 2, 3, 4]).unwrap();
        assert!(!in_blocks(&small));
        assert!(in_blocks(&small.upscale(2).unwrap()));
        assert!(!in_blocks(&Image::filled(4, 4, [7; 3])));
    }
}
