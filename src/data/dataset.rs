//! The data set and its file.
//!
//! One `safetensors` file, memory-mapped when read:
//!
//! | tensor | dtype | shape | |
//! |---|---|---|---|
//! | `images` | u8 | `[N, H, W, C]` | C is 1 (grey) or 3 (red, green, blue); training images first |
//! | `labels` | u16 | `[N]` | index into `class_names` |
//! | `split` | u8 | `[N]` | 0 training, 1 validation, 2 test; ascending |
//!
//! Metadata (strings, the structured ones as JSON): `format`, `name`, `class_names`, `counts`, `sources` (file, bytes,
//! SHA-256), `notes` (what the import left out or changed) and `sha256` (of each tensor's bytes).

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::storage::{Bytes, Storage};
use crate::error::{Error, Result, one_line};
use crate::image_size::ImageSize;

/// The value of the metadata key `format`.
pub(super) const FORMAT: &str = "engine data set 1";
/// The end of the note `N of M …` of an import of JPEG files.
pub(super) const FROM_JPEG: &str = "pictures: decoded from JPEG";
const REIMPORT: &str = "write it again with `engine data import`";

/// The part of a data set that an image belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Images for training.
    Train,
    /// Images held out for validation during training (`test` in many sources).
    Validation,
    /// Images that training never sees, if validation images are held out of the training images: the held-out images of the
    /// source (see [`Dataset::stratified`]). Most sets have none.
    Test,
}

/// A source of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The file's name without its folder; a folder of pictures ends in `/`.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// SHA-256 of its bytes, 64 hexadecimal digits. For a folder: the hash of a line `SHA-256  path` for each picture, sorted by
    /// path, as printed by `sha256sum`.
    pub sha256: String,
}

/// The content of a [`Dataset`].
#[derive(Debug, Clone, Default)]
pub struct Parts {
    /// A short name, for `--data` and on pictures.
    pub name: String,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// The class names, by label.
    pub class_names: Vec<String>,
    /// `[N, H, W, C]`, the training images first.
    pub images: Vec<u8>,
    /// `[N]`.
    pub labels: Vec<u16>,
    /// Number of training images, which come first.
    pub train: usize,
    /// Number of test images, which come last; those between are for validation.
    pub test: usize,
    /// Source files.
    pub sources: Vec<Source>,
    /// Notes of the import on omissions and changes, one sentence each.
    pub notes: Vec<String>,
}

/// A set of labelled 8-bit images of one size, in memory, mapped from its file, or a view of other sets. Cloning is cheap: clones share the data.
#[derive(Debug, Clone)]
pub struct Dataset(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    /// Everything but the images, which are in `storage`.
    pub(super) parts: Parts,
    storage: Storage,
    pub(super) path: Option<PathBuf>,
    /// SHA-256 by tensor, as stored in the file.
    stored: Option<Digests>,
}

/// SHA-256 of each tensor's bytes, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Digests {
    pub images: String,
    pub labels: String,
    pub split: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub train: usize,
    pub validation: usize,
    /// Omitted in files without test images.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub test: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Dataset {
    /// A data set in memory.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] unless there are 1 to 2³²−1 images, at least one for training, with 1 or 3 channels, matching numbers of
    /// bytes and labels, and labels below the number of class names, which are distinct.
    pub fn from_parts(mut parts: Parts) -> Result<Self> {
        // They name files and folders.
        parts.notes = parts.notes.into_iter().map(one_line).collect();
        let storage = Storage::owned(std::mem::take(&mut parts.images));
        Self::from_storage(parts, storage)
    }

    /// As [`Dataset::from_parts`], with the pixels in `storage`.
    pub(super) fn from_storage(parts: Parts, storage: Storage) -> Result<Self> {
        let size = parts.height.saturating_mul(parts.width).saturating_mul(parts.channels);
        let bytes = storage.len(size).unwrap_or(usize::MAX);
        check(&parts, bytes).map_err(|message| Error::shape("data set", message))?;
        Ok(Self(Arc::new(Inner { parts, storage, path: None, stored: None })))
    }

    /// Maps the data set file at `path`. Reads and checks everything but the images, whose bytes [`Dataset::verify`] checks.
    ///
    /// The file must not be truncated or rewritten in place while it is open; [`Dataset::write`] safely replaces it as a whole.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if it is not a consistent data set file, [`Error::Io`] if it cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bad = |message: String| Error::file(path, message, REIMPORT);
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let metadata = file.metadata().map_err(Error::io(path, "read"))?;
        if metadata.is_dir() {
            let advice = "import it first: `data::import(FOLDER, out = FILE.safetensors)`";
            return Err(Error::file(path, "is a folder, not a data set file", advice));
        }
        if metadata.len() < 8 {
            return Err(bad(format!("is {} bytes long: too short for a data set file", metadata.len())));
        }
        // SAFETY: the map is only read as bytes. That nobody truncates the file meanwhile is the documented condition of this
        // function, as of every memory-mapped reader.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        let (header, tensors) =
            SafeTensors::read_metadata(&map).map_err(|e| Error::file(path, describe(&e, map.len()), advice(&map)))?;
        let data = 8 + header;
        let entries = tensors.metadata().as_ref();
        let text = |key: &str| {
            entries.and_then(|entries| entries.get(key)).ok_or_else(|| {
                Error::file(path, format!("has no `{key}` in its metadata"), "give a file that `engine data` wrote")
            })
        };
        if text("format")? != FORMAT {
            return Err(bad(format!("its format is {:?} where {FORMAT:?} is known", text("format")?)));
        }
        let tensor = |name: &str, dtype: Dtype| {
            let info = tensors.info(name).ok_or_else(|| bad(format!("has no tensor `{name}`")))?;
            if info.dtype != dtype {
                return Err(bad(format!("tensor `{name}` is {:?}, not {dtype:?}", info.dtype)));
            }
            // `read_metadata` has checked that shape, dtype and extent agree and lie inside the file.
            Ok((info.shape.as_slice(), data + info.data_offsets.0..data + info.data_offsets.1))
        };
        let (&[n, height, width, channels], images) = tensor("images", Dtype::U8)? else {
            return Err(bad("tensor `images` is not [N, H, W, C]".into()));
        };
        let (labels_shape, labels) = tensor("labels", Dtype::U16)?;
        let (split_shape, split) = tensor("split", Dtype::U8)?;
        if labels_shape != [n] || split_shape != [n] {
            return Err(bad(format!("has {n} images, but labels {labels_shape:?} and split {split_shape:?}")));
        }
        let labels = map[labels].chunks_exact(2).map(|l| u16::from_le_bytes([l[0], l[1]])).collect();
        let split = &map[split];
        let [train, held_out] = [1, 2].map(|kind| split.iter().take_while(|&&s| s < kind).count());
        if let Some(i) = (0..n).find(|&i| split[i] != u8::from(i >= train) + u8::from(i >= held_out)) {
            return Err(bad(format!("split[{i}] is {}: not zeros, then ones, then twos", split[i])));
        }
        let (validation, test) = (held_out - train, n - held_out);
        let parts = Parts {
            name: text("name")?.clone(),
            height,
            width,
            channels,
            class_names: json(path, "class_names", text("class_names")?)?,
            images: Vec::new(),
            labels,
            train,
            test,
            sources: json(path, "sources", text("sources")?)?,
            notes: json(path, "notes", text("notes")?)?,
        };
        check(&parts, images.len()).map_err(bad)?;
        let counts: Counts = json(path, "counts", text("counts")?)?;
        if counts != (Counts { train, validation, test }) {
            return Err(bad(format!("its metadata counts {counts:?}, its tensors {train}, {validation} and {test}")));
        }
        let stored = Some(json(path, "sha256", text("sha256")?)?);
        Ok(Self(Arc::new(Inner {
            parts,
            storage: Storage::Whole(Bytes::Mapped(map), images),
            path: Some(path.to_path_buf()),
            stored,
        })))
    }

    /// A short name.
    pub fn name(&self) -> &str {
        &self.0.parts.name
    }

    /// The file of the set; `None` if it was not read from one.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// Number of images, N.
    #[expect(clippy::len_without_is_empty, reason = "a data set is never empty")]
    pub fn len(&self) -> usize {
        self.0.parts.labels.len()
    }

    /// Height and width of an image.
    pub fn size(&self) -> ImageSize {
        ImageSize::new(self.height(), self.width())
    }

    /// Rows of an image, H.
    pub fn height(&self) -> usize {
        self.0.parts.height
    }

    /// Columns of an image, W.
    pub fn width(&self) -> usize {
        self.0.parts.width
    }

    /// Channels of an image, C: 1 (grey) or 3 (red, green, blue).
    pub fn channels(&self) -> usize {
        self.0.parts.channels
    }

    /// Bytes of an image: H·W·C.
    pub fn image_bytes(&self) -> usize {
        self.height() * self.width() * self.channels()
    }

    /// The class names, by label.
    pub fn class_names(&self) -> &[String] {
        &self.0.parts.class_names
    }

    /// All images, `[N, H, W, C]`, the training images first.
    ///
    /// If the images are not contiguous ([`Dataset::subset`], [`Dataset::stratified`], [`Dataset::joined`]), they are copied into
    /// memory, once: for large sets use [`Dataset::image`].
    pub fn images(&self) -> &[u8] {
        self.0.storage.gathered(self.image_bytes())
    }

    /// The contiguous images of `split`, `[n, H, W, C]`, in memory or in a mapped file, if they are contiguous.
    pub fn in_one_piece(&self, split: Split) -> Option<&[u8]> {
        let (range, bytes) = (self.split_indices(split), self.image_bytes());
        self.0.storage.whole().map(|images| &images[range.start * bytes..range.end * bytes])
    }

    /// The images of `range` in order, as contiguous pieces.
    pub(crate) fn runs(&self, range: Range<usize>) -> impl Iterator<Item = &[u8]> {
        let bytes = self.image_bytes();
        let piece = self.0.storage.whole().map(|images| &images[range.start * bytes..range.end * bytes]);
        let single = if piece.is_some() { 0..0 } else { range };
        piece.into_iter().chain(single.map(|index| self.image(index)))
    }

    /// Image `index`, `[H, W, C]`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Dataset::len`].
    pub fn image(&self, index: usize) -> &[u8] {
        self.0.storage.image(index, self.image_bytes())
    }

    /// All labels, `[N]`, each below the number of [class names](Dataset::class_names).
    pub fn labels(&self) -> &[u16] {
        &self.0.parts.labels
    }

    /// Number of images of `split`; of [`Split::Train`] at least 1.
    pub fn split_len(&self, split: Split) -> usize {
        self.split_indices(split).len()
    }

    /// The indices of `split`'s images.
    pub fn split_indices(&self, split: Split) -> Range<usize> {
        match split {
            Split::Train => 0..self.0.parts.train,
            Split::Validation => self.0.parts.train..self.len() - self.0.parts.test,
            Split::Test => self.len() - self.0.parts.test..self.len(),
        }
    }

    /// The images of `split` in one piece, `[n, H, W, C]`: as [`Dataset::images`].
    pub fn split_images(&self, split: Split) -> &[u8] {
        let (range, bytes) = (self.split_indices(split), self.image_bytes());
        &self.images()[range.start * bytes..range.end * bytes]
    }

    /// The labels of `split`, `[n]`.
    pub fn split_labels(&self, split: Split) -> &[u16] {
        &self.labels()[self.split_indices(split)]
    }

    /// The labels of `split` as i32 for kernels, `[n]`.
    pub fn split_labels_i32(&self, split: Split) -> Vec<i32> {
        self.split_labels(split).iter().map(|&label| i32::from(label)).collect()
    }

    /// The source files.
    pub fn sources(&self) -> &[Source] {
        &self.0.parts.sources
    }

    /// Notes of the import on omissions and changes, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.0.parts.notes
    }

    /// The share of its pictures that were JPEG files, by the note of their import; None for a set that was not imported from
    /// picture files.
    pub fn jpeg_share(&self) -> Option<f64> {
        let of_pictures = self.notes().iter().find_map(|note| note.strip_suffix(FROM_JPEG));
        let (jpeg, total) = of_pictures?.trim_end().split_once(" of ")?;
        Some(jpeg.parse::<f64>().ok()? / total.parse::<f64>().ok()?)
    }

    pub(super) fn stored_digests(&self) -> Option<&Digests> {
        self.0.stored.as_ref()
    }

    pub(super) fn digests(&self) -> Digests {
        let mut images = Sha256::new();
        self.runs(0..self.len()).for_each(|run| images.update(run));
        Digests {
            images: hex(&images.finalize()),
            labels: hex(&Sha256::digest(self.label_bytes())),
            split: hex(&Sha256::digest(self.split_bytes())),
        }
    }

    pub(super) fn label_bytes(&self) -> Vec<u8> {
        self.labels().iter().flat_map(|label| label.to_le_bytes()).collect()
    }

    pub(super) fn split_bytes(&self) -> Vec<u8> {
        let mut split = vec![0; self.len()];
        split[self.split_indices(Split::Validation)].fill(1);
        split[self.split_indices(Split::Test)].fill(2);
        split
    }
}

/// The error in `parts`, whose images are `image_bytes` long, if any.
fn check(parts: &Parts, image_bytes: usize) -> Result<(), String> {
    let &Parts { height, width, channels, train, test, .. } = parts;
    let n = parts.labels.len();
    if n == 0 || u32::try_from(n).is_err() {
        return Err(format!("has {n} images, outside 1 to {}", u32::MAX));
    }
    if train == 0 || train > n {
        return Err(format!("has {train} training images of {n} in all"));
    }
    if test > n - train {
        return Err(format!("has {train} training and {test} test images of {n} in all"));
    }
    if height == 0 || width == 0 || !matches!(channels, 1 | 3) {
        let size = ImageSize::new(height, width);
        return Err(format!("has images of {size} with {channels} channels; 1 or 3 channels are known"));
    }
    let expected = [height, width, channels].iter().try_fold(n, |product, &extent| product.checked_mul(extent));
    if expected != Some(image_bytes) {
        let size = ImageSize::new(height, width).with_channels(channels);
        return Err(format!("{n} images of {size} do not take {image_bytes} bytes"));
    }
    let classes = parts.class_names.len();
    if let Some(i) = parts.labels.iter().position(|&label| usize::from(label) >= classes) {
        return Err(format!("labels[{i}] is {}, but there are {classes} classes", parts.labels[i]));
    }
    let mut names: Vec<&String> = parts.class_names.iter().collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("two classes are named {:?}", pair[0])),
        None => Ok(()),
    }
}

/// An error if `path` exists and must not be replaced.
pub(super) fn refuse_to_overwrite(path: &Path, force: bool) -> Result<()> {
    if !force && path.exists() {
        return Err(Error::file(path, "already exists", "give another file, or replace it with `force`"));
    }
    Ok(())
}

/// The temporary path for writing `path`.
pub(super) fn part_path(path: &Path) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

/// Hexadecimal digits of a digest.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn describe(error: &SafeTensorError, len: usize) -> String {
    match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            format!("is cut short or has something appended: its {len} bytes are not what its header declares")
        }
        SafeTensorError::InvalidHeaderLength => {
            format!("its header is declared longer than the whole file, {len} bytes: cut short, or not safetensors")
        }
        error => format!("is not a safetensors file: {error}"),
    }
}

/// Advice for a file that is not safetensors: it may be a source to import.
fn advice(bytes: &[u8]) -> &'static str {
    let is_source = bytes.starts_with(&[0x1f, 0x8b]) || bytes.get(257..262) == Some(b"ustar");
    if is_source { "import it first: `data::import(SRC, out = FILE.safetensors)`" } else { REIMPORT }
}

fn json<T: for<'de> Deserialize<'de>>(path: &Path, key: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::file(path, format!("metadata `{key}`: {e}"), REIMPORT))
}

pub(super) fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("strings and numbers are always JSON")
}

#[cfg(test)]
mod tests;
