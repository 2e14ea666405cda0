//! STL-10's binary version: `train_X.bin`, `train_y.bin` and the same files for `test`, in a folder or the published archive.
//!
//! An image is three planes of 96x96 bytes, each column by column; labels count from 1. Coates, Lee, Ng, *An Analysis of
//! Single Layer Networks in Unsupervised Feature Learning*, 2011.

use std::path::Path;

use super::dataset::Parts;
use super::draft::Draft;
use super::import::ImportOptions;
use super::members::Members;
use crate::error::Result;

const SIZE: usize = 96;
const PLANE: usize = SIZE * SIZE;
const FILES: [&str; 4] = ["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"];
const AGAIN: &str = "it is damaged or not of STL-10: download it again";

/// Whether a file with this name belongs to the set.
pub(super) fn is_member(name: &str) -> bool {
    FILES.contains(&name)
}

pub(super) fn read(source: &Path, options: &ImportOptions) -> Result<Draft> {
    let known = |name: &str| is_member(name) || name == "class_names.txt";
    let members = Members::read(source, &["stl10_binary"], known, options)?;
    let parts = Parts { height: SIZE, width: SIZE, channels: 3, ..Parts::default() };
    let mut parts = Draft::new(parts, options)?;
    for [images, labels] in [["train_X.bin", "train_y.bin"], ["test_X.bin", "test_y.bin"]] {
        let (pixels, classes) = (members.get(images)?, members.get(labels)?);
        if pixels.len() != classes.len() * 3 * PLANE {
            let message = format!("is {} bytes long for {} labels of {}", pixels.len(), classes.len(), 3 * PLANE);
            return Err(members.fault(images, message, AGAIN));
        }
        if let Some(&label) = classes.iter().find(|&&label| !(1..=10).contains(&label)) {
            return Err(members.fault(labels, format!("has the label {label}, outside 1 to 10"), AGAIN));
        }
        parts.labels.extend(classes.iter().map(|&label| u16::from(label) - 1));
        let mut upright = Vec::with_capacity(3 * PLANE);
        for image in pixels.chunks_exact(3 * PLANE) {
            upright.clear();
            for (y, x) in (0..SIZE).flat_map(|y| (0..SIZE).map(move |x| (y, x))) {
                upright.extend((0..3).map(|channel| image[channel * PLANE + x * SIZE + y]));
            }
            parts.pixels.push(&upright)?;
        }
        if images == "train_X.bin" {
            parts.train = parts.labels.len();
        }
    }
    let known = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"].map(String::from);
    parts.class_names =
        Some(members.lines("class_names.txt")).filter(|names| names.len() == 10).unwrap_or(known.into());
    parts.sources = members.sources;
    Ok(parts)
}
