//! Pictures in a fixed order, from any source: files, archives, arrays, data sets, drawn samples.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::images::in_proportion;
use super::rows::{MappedRows, hex};
use crate::data::{Dataset, ImportOptions, Split, import, picture_files};
use crate::error::{Error, Result};
use crate::picture::{Image, read_picture};

/// The background for transparent pixels.
const BACKGROUND: [u8; 3] = [255; 3];

enum Source {
    Files(Vec<PathBuf>),
    Set(Box<Dataset>, Vec<usize>),
    Drawn(MappedRows, [usize; 3], Vec<Option<usize>>),
}

/// Pictures in a fixed order, read one by one.
pub struct Gallery {
    source: Source,
    /// Its name.
    pub name: String,
    /// Notes for the user.
    pub notes: Vec<String>,
}

impl Gallery {
    /// The pictures at a path: all in a folder and below it (each in its own size), or those of an archive or an array, which have
    /// one size.
    ///
    /// # Errors
    /// [`Error::File`] for a folder without pictures; those of [`import`].
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if path.is_dir() {
            let files = picture_files(path)?;
            if files.is_empty() {
                return Err(Error::file(path, "has no pictures", "give a folder of pictures, an archive or an array"));
            }
            let mut notes = Vec::new();
            let nested = files.iter().filter(|file| file.parent() != Some(path)).count();
            if nested > 0 {
                notes.push(format!("{nested} of {} pictures of {name} are in subfolders; all are used", files.len()));
            }
            return Ok(Self { source: Source::Files(files), name, notes });
        }
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            let set = Dataset::open(path)?;
            let all = (0..set.len()).collect();
            return Ok(Self { source: Source::Set(Box::new(set), all), name, notes: Vec::new() });
        }
        let options = ImportOptions { unlabelled: true, validation: 0.0, ..ImportOptions::default() };
        let set = import(path, &options)?;
        let (notes, all) = (set.notes().to_vec(), (0..set.len()).collect());
        Ok(Self { source: Source::Set(Box::new(set), all), name, notes })
    }

    /// The images of a split of a data set, or up to `count` of them, in proportion to its classes.
    ///
    /// # Errors
    /// [`Error::Config`] for a split without images.
    pub fn of_set(set: Dataset, split: Split, count: Option<usize>) -> Result<Self> {
        let all: Vec<usize> = set.split_indices(split).collect();
        if all.is_empty() {
            let message = format!("it has no images in its split {split:?}");
            return Err(Error::config(format!("data set {:?}", set.name()), message, "give another data set"));
        }
        let places = match count {
            Some(count) if count < all.len() => in_proportion(&set, &all, count),
            _ => all,
        };
        let name = format!("{} ({split:?})", set.name()).to_lowercase();
        Ok(Self { source: Source::Set(Box::new(set), places), name, notes: Vec::new() })
    }

    /// Drawn samples: u8 `[N, H, W, C]`, and the class of each, if any.
    pub(super) fn drawn(rows: MappedRows, shape: [usize; 3], labels: Vec<Option<usize>>, name: String) -> Self {
        Self { source: Source::Drawn(rows, shape, labels), name, notes: Vec::new() }
    }

    /// The number of pictures.
    pub fn len(&self) -> usize {
        match &self.source {
            Source::Files(files) => files.len(),
            Source::Set(_, places) => places.len(),
            Source::Drawn(_, _, labels) => labels.len(),
        }
    }

    /// Whether there are no pictures.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Picture `index`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] for a file that cannot be read.
    pub fn picture(&self, index: usize) -> Result<Image> {
        match &self.source {
            Source::Files(files) => Ok(read_picture(&files[index], BACKGROUND)?.image),
            Source::Set(set, places) => {
                Image::new(set.width(), set.height(), set.channels(), set.image(places[index]).to_vec())
            }
            Source::Drawn(rows, [height, width, channels], labels) => {
                let len = height * width * channels;
                let pixels = &rows.bytes(labels.len())[index * len..][..len];
                Image::new(*width, *height, *channels, pixels.to_vec())
            }
        }
    }

    /// The class of picture `index`, if known.
    pub fn label(&self, index: usize) -> Option<usize> {
        match &self.source {
            Source::Files(_) => None,
            Source::Set(set, places) => Some(usize::from(set.labels()[places[index]])),
            Source::Drawn(_, _, labels) => labels[index],
        }
    }

    /// The share of files with a JPEG ending; None if the pictures are not files.
    pub fn jpeg_share(&self) -> Option<f64> {
        let Source::Files(files) = &self.source else { return None };
        let jpeg = |file: &&PathBuf| {
            let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
            ending == "jpg" || ending == "jpeg"
        };
        Some(files.iter().filter(jpeg).count() as f64 / files.len() as f64)
    }

    /// Identifies the pictures and their order, for a cache: a hash of the files' bytes, or of the pixels.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read.
    pub fn identity(&self) -> Result<Value> {
        let mut sha = Sha256::new();
        match &self.source {
            Source::Files(files) => {
                for file in files {
                    let bytes = std::fs::read(file).map_err(Error::io(file, "read"))?;
                    sha.update((bytes.len() as u64).to_le_bytes());
                    sha.update(&bytes);
                }
            }
            Source::Set(set, places) => {
                let sizes = [set.height(), set.width(), set.channels()];
                sha.update(format!("{sizes:?}"));
                places.iter().for_each(|&place| sha.update(set.image(place)));
            }
            Source::Drawn(rows, shape, labels) => {
                sha.update(format!("{shape:?}"));
                sha.update(rows.bytes(labels.len()));
            }
        }
        let hash: String = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(json!({ "pictures": self.len(), "sha256": hash }))
    }

    /// The common size of the first pictures: height, width and channels where they agree.
    ///
    /// # Errors
    /// As [`Gallery::picture`].
    pub fn common_size(&self) -> Result<Option<[usize; 3]>> {
        let size = |image: Image| [image.height(), image.width(), image.channels()];
        let first = size(self.picture(0)?);
        for index in 1..self.len().min(64) {
            if size(self.picture(index)?) != first {
                return Ok(None);
            }
        }
        Ok(Some(first))
    }
}

/// A short key for a JSON value: the first digits of its hash.
pub fn short_hash(value: &Value) -> String {
    hex(value.to_string().as_bytes())[..12].to_string()
}
