//! From other people's files to a [`Dataset`].

use std::fs;
use std::path::Path;

use super::archive::{Next, for_each_member};
use super::dataset::{Dataset, Parts};
use super::source::{HashedFile, file_name, starts_with};
use super::{cifar, idx, images};
use crate::error::{Error, Result};
use crate::rng::{Philox, Purpose};

/// What a source consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// CIFAR-10's binary batches, in a folder or a tar archive.
    Cifar10,
    /// A folder of IDX files, as MNIST and Fashion-MNIST come.
    Idx,
    /// PNG or JPEG files by class, in a folder or a tar archive.
    Images,
}

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The set's name; by default the source's.
    pub name: Option<String>,
    /// What the source consists of; by default what it looks like.
    pub format: Option<Format>,
    /// Take what is there of a source that is cut short; the data set's notes say what that was.
    pub allow_partial: bool,
    /// Make pictures this wide and high: the shorter side is scaled (Lanczos), the middle kept.
    pub resize: Option<u32>,
    /// The share of each class to hold out for validation where the source has no split, 0 to 1 (1 excluded).
    pub validation: f64,
    /// Chooses which images are held out.
    pub seed: u64,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { name: None, format: None, allow_partial: false, resize: None, validation: 0.1, seed: 0 }
    }
}

/// Reads the images at `source`: CIFAR-10's binary batches (folder, `.tar`, `.tar.gz`), IDX files (folder; plain or
/// `.gz`), or PNG and JPEG files by class (folder, `.tar`, `.tar.gz`) as `train/CLASS/x.jpg` and `test/CLASS/x.jpg`, or as
/// `CLASS/x.png`, of which a share is held out.
///
/// ```no_run
/// use engine::data::{ImportOptions, import};
///
/// let set = import("pictures", &ImportOptions { resize: Some(32), ..ImportOptions::default() })?;
/// set.write("pictures.safetensors", false)?;
/// # Ok::<(), engine::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::File`] names the file that is damaged, short or unlike the others, and the option that would accept it.
pub fn import(source: impl AsRef<Path>, options: &ImportOptions) -> Result<Dataset> {
    let source = source.as_ref();
    if !(0.0..1.0).contains(&options.validation) {
        let message = format!("is {}, which is no share", options.validation);
        return Err(Error::config("--validation", message, "name a number from 0 to 1, such as 0.1"));
    }
    let is_folder = fs::metadata(source).map_err(Error::io(source, "read"))?.is_dir();
    let format = match options.format {
        Some(format) => format,
        None if is_folder => detect_folder(source)?,
        None => detect_file(source)?,
    };
    if options.resize.is_some() && format != Format::Images {
        let message = "applies to PNG and JPEG files only".to_owned();
        return Err(Error::config("--resize", message, "leave it out"));
    }
    let mut parts = match (format, is_folder) {
        (Format::Cifar10, true) => cifar::read_folder(source, options),
        (Format::Cifar10, false) => cifar::read_archive(source, options),
        (Format::Idx, true) => idx::read(source, options),
        (Format::Idx, false) => Err(Error::file(source, "is one file", "name the folder of the four IDX files")),
        (Format::Images, true) => images::read_folder(source, options),
        (Format::Images, false) => images::read_archive(source, options),
    }?;
    parts.name = options.name.clone().unwrap_or_else(|| default_name(source));
    Dataset::from_parts(parts).map_err(|e| Error::file(source, e.to_string(), "import a source that has them"))
}

/// The source's name without the endings of archives.
fn default_name(source: &Path) -> String {
    let name = source.canonicalize().map_or_else(|_| file_name(source), |path| file_name(&path));
    let stem = [".tar.gz", ".tgz", ".tar"].iter().find_map(|ending| name.strip_suffix(ending));
    stem.unwrap_or(&name).to_owned()
}

fn detect_folder(folder: &Path) -> Result<Format> {
    let mut format = Format::Images;
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let name = entry.map_err(Error::io(folder, "list"))?.file_name();
        let name = name.to_string_lossy();
        if cifar::is_batch(&name) || name == "cifar-10-batches-bin" {
            return Ok(Format::Cifar10);
        }
        if idx::is_images_file(&name) {
            format = Format::Idx;
        }
    }
    Ok(format)
}

fn detect_file(path: &Path) -> Result<Format> {
    let name = file_name(path);
    if name.ends_with(".safetensors") {
        return Err(Error::file(path, "is no source to import", "it is used as it is: `engine train --data FILE`"));
    }
    if idx::is_images_file(&name) || starts_with(path, &[0, 0, 8])? {
        return Ok(Format::Idx);
    }
    if starts_with(path, b"PK\x03\x04")? {
        return Err(Error::file(path, "is a zip archive", "unpack it and name the folder"));
    }
    let mut found = None;
    for_each_member(&mut HashedFile::open(path)?, |member| {
        let name = member.path.rsplit('/').next().unwrap_or_default();
        if cifar::is_batch(name) {
            found = Some(Format::Cifar10);
        } else if images::is_image(&member.path) {
            found = Some(Format::Images);
        }
        Ok(if found.is_some() { Next::Stop } else { Next::Continue })
    })?;
    found.ok_or_else(|| {
        let message = "is a tar archive without CIFAR-10 batches, PNG or JPEG files";
        Error::file(path, message, "name a source of a known form (see `engine data import --help`)")
    })
}

/// Turns a share of each class's training images into validation images, for a source without a split. The choice
/// depends on the seed and on each image's place alone.
pub(super) fn hold_out(parts: &mut Parts, options: &ImportOptions) {
    let bytes = parts.height * parts.width * parts.channels;
    let mut by_class = vec![Vec::new(); usize::from(u16::MAX) + 1];
    for (i, &label) in parts.labels.iter().enumerate() {
        by_class[usize::from(label)].push(i);
    }
    let philox = Philox::new(options.seed);
    let mut held = vec![false; parts.labels.len()];
    for mut members in by_class {
        let count = (members.len() as f64 * options.validation).round() as usize;
        members.sort_by_key(|&i| (philox.bits4(0, i as u32, 0, Purpose::Split)[0], i));
        // At least one of each class stays for training.
        for &i in members.iter().take(count.min(members.len().saturating_sub(1))) {
            held[i] = true;
        }
    }
    let (train, validation): (Vec<usize>, Vec<usize>) = (0..held.len()).partition(|&i| !held[i]);
    let order = || train.iter().chain(&validation);
    let mut images = Vec::with_capacity(parts.images.len());
    order().for_each(|&i| images.extend_from_slice(&parts.images[i * bytes..(i + 1) * bytes]));
    parts.images = images;
    parts.labels = order().map(|&i| parts.labels[i]).collect();
    parts.train = train.len();
    parts.notes.push(format!(
        "held out {} of {} images for validation (share {}, seed {})",
        validation.len(),
        held.len(),
        options.validation,
        options.seed
    ));
}
