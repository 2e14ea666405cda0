//! The Python versions of CIFAR-10 and CIFAR-100, and CIFAR-100's binary version: in a folder or the published archive.
//!
//! A batch is a pickled dictionary of an array of bytes `[N, 3072]`, red, green and blue planes of 32x32, and lists of labels.
//! Pickles are parsed, never executed. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.

use std::path::Path;

use super::dataset::Parts;
use super::draft::Draft;
use super::import::{ImportOptions, LabelKind};
use super::members::{Members, interleave};
use super::official;
use crate::error::Result;
use crate::weights::{Pickled, numpy_pickle};

const SIZE: usize = 32;
const IMAGE: usize = 3 * SIZE * SIZE;
const AGAIN: &str = "it is damaged or not of CIFAR: download it again";
const BATCHES: [&str; 6] =
    ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"];

/// Whether a file with this name belongs to CIFAR-10's Python version.
pub(super) fn is_batch(name: &str) -> bool {
    BATCHES.contains(&name) || name == "batches.meta"
}

/// CIFAR-10's Python version.
pub(super) fn read_10(source: &Path, options: &ImportOptions) -> Result<Draft> {
    let members = Members::read(source, &["cifar-10-batches-py"], is_batch, options)?;
    let parts = Parts { height: SIZE, width: SIZE, channels: 3, ..Parts::default() };
    let mut parts = Draft::new(parts, options)?;
    for (index, name) in BATCHES.iter().enumerate() {
        match members.files.get(*name) {
            Some(_) => append_pickle(&members, name, "labels", &mut parts)?,
            None if options.allow_partial => parts.notes.push(format!("there is no {name}")),
            None => drop(members.get(name)?),
        }
        if index == 4 {
            parts.train = parts.labels.len();
        }
    }
    let names = meta(&members, "batches.meta", "label_names")?;
    let official = || official::official("cifar10").map(official::Official::classes);
    parts.class_names = names.or_else(official).unwrap_or_default();
    finish(members, parts)
}

/// CIFAR-100's Python or binary version, with the 100 fine or the 20 coarse labels.
pub(super) fn read_100(source: &Path, options: &ImportOptions) -> Result<Draft> {
    let known = |name: &str| {
        let names =
            ["train", "test", "meta", "train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt"];
        names.contains(&name)
    };
    let members = Members::read(source, &["cifar-100-python", "cifar-100-binary"], known, options)?;
    let parts = Parts { height: SIZE, width: SIZE, channels: 3, ..Parts::default() };
    let mut parts = Draft::new(parts, options)?;
    let fine = options.labels == LabelKind::Fine;
    let kind = if fine { "fine" } else { "coarse" };
    let binary = members.files.contains_key("train.bin");
    for split in ["train", "test"] {
        if binary {
            append_binary(&members, &format!("{split}.bin"), usize::from(fine), &mut parts)?;
        } else {
            append_pickle(&members, split, &format!("{kind}_labels"), &mut parts)?;
        }
        if split == "train" {
            parts.train = parts.labels.len();
        }
    }
    let names = match binary {
        true => Some(members.lines(&format!("{kind}_label_names.txt"))).filter(|names| !names.is_empty()),
        false => meta(&members, "meta", &format!("{kind}_label_names"))?,
    };
    let numbered = || (0..if fine { 100 } else { 20 }).map(|label: u16| label.to_string()).collect();
    parts.class_names = names.unwrap_or_else(numbered);
    finish(members, parts)
}

fn finish(members: Members, mut parts: Draft) -> Result<Draft> {
    let classes = parts.class_names.len();
    if let Some(&label) = parts.labels.iter().find(|&&label| usize::from(label) >= classes) {
        return Err(members.fault("", format!("has label {label} of {classes} classes"), AGAIN));
    }
    parts.sources = members.sources;
    Ok(parts)
}

/// The names of the classes, if their file exists.
fn meta(members: &Members, name: &str, key: &str) -> Result<Option<Vec<String>>> {
    let Some(bytes) = members.files.get(name) else { return Ok(None) };
    let mut values = numpy_pickle(bytes).map_err(|(message, advice)| members.fault(name, message, &advice))?;
    match values.remove(key) {
        Some(Pickled::Texts(names)) => Ok(Some(names)),
        _ => Err(members.fault(name, format!("has no {key}"), AGAIN)),
    }
}

fn append_pickle(members: &Members, name: &str, key: &str, parts: &mut Draft) -> Result<()> {
    let mut values =
        numpy_pickle(members.get(name)?).map_err(|(message, advice)| members.fault(name, message, &advice))?;
    let Some(Pickled::Bytes { shape, values: planes }) = values.remove("data") else {
        return Err(members.fault(name, "has no array of bytes under `data`", AGAIN));
    };
    let Some(Pickled::Numbers(labels)) = values.remove(key) else {
        return Err(members.fault(name, format!("has no list of numbers under `{key}`"), AGAIN));
    };
    if shape != [labels.len(), IMAGE] {
        let message = format!("has `data` of shape {shape:?} for {} labels", labels.len());
        return Err(members.fault(name, message, AGAIN));
    }
    let mut pixels = Vec::with_capacity(IMAGE);
    for (label, planes) in labels.iter().zip(planes.chunks_exact(IMAGE)) {
        let Ok(label) = u16::try_from(*label) else {
            return Err(members.fault(name, format!("has the label {label}"), AGAIN));
        };
        parts.labels.push(label);
        pixels.clear();
        interleave(planes, 3, &mut pixels);
        parts.pixels.push(&pixels)?;
    }
    Ok(())
}

/// Records of the coarse label, the fine label and the planes.
fn append_binary(members: &Members, name: &str, label: usize, parts: &mut Draft) -> Result<()> {
    let bytes = members.get(name)?;
    let records = bytes.chunks_exact(2 + IMAGE);
    if !records.remainder().is_empty() || records.len() == 0 {
        let message = format!("is {} bytes long, not a number of records of {}", bytes.len(), 2 + IMAGE);
        return Err(members.fault(name, message, AGAIN));
    }
    let mut pixels = Vec::with_capacity(IMAGE);
    for record in records {
        parts.labels.push(u16::from(record[label]));
        pixels.clear();
        interleave(&record[2..], 3, &mut pixels);
        parts.pixels.push(&pixels)?;
    }
    Ok(())
}
