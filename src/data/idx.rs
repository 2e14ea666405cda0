//! IDX files, the format of MNIST and its successors: big-endian extents, then bytes; plain or gzipped.
//!
//! LeCun, Cortes, Burges, *The MNIST database of handwritten digits*. A folder holds `train-images-idx3-ubyte`,
//! `train-labels-idx1-ubyte` and the same two files for `t10k`. EMNIST (Cohen et al. 2017) has several sets in one folder, each
//! with a prefix such as `emnist-balanced-`, and its images are transposed.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::dataset::{Parts, Source, hex};
use super::draft::{BLOCK, Draft};
use super::import::{ImportOptions, hold_out};
use super::official;
use super::source::{HashedFile, file_name, read_error};
use crate::error::{Error, Result};
use crate::image_size::ImageSize;

const DAMAGED: &str = "it is damaged or not an IDX file: copy or download it again";

/// Whether a file with this name can hold the images of a split.
pub(super) fn is_images_file(name: &str) -> bool {
    let name = without_gz(name);
    TRAIN.iter().chain(&TEST).any(|split| stems(split, "images", "idx3").iter().any(|stem| ends_with_stem(name, stem)))
}

/// Whether a name is a stem, alone or after a prefix of EMNIST's.
fn ends_with_stem(name: &str, stem: &str) -> bool {
    name.strip_suffix(stem).is_some_and(|prefix| prefix.is_empty() || is_emnist(prefix))
}

fn is_emnist(prefix: &str) -> bool {
    prefix.starts_with("emnist-") && prefix.ends_with('-')
}

/// The prefix of the requested set; `--part` chooses among several.
fn prefix(folder: &Path, options: &ImportOptions) -> Result<String> {
    let mut prefixes = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let name = entry.map_err(Error::io(folder, "list"))?.file_name().to_string_lossy().into_owned();
        let name = without_gz(&name);
        let stems = TRAIN.iter().chain(&TEST).flat_map(|split| stems(split, "images", "idx3"));
        prefixes.extend(
            stems.filter(|stem| ends_with_stem(name, stem)).map(|stem| name[..name.len() - stem.len()].to_owned()),
        );
    }
    let part = |prefix: &String| prefix.trim_start_matches("emnist-").trim_end_matches('-').to_owned();
    let parts: Vec<String> = prefixes.iter().map(part).collect();
    if let Some(wanted) = &options.part {
        let found = prefixes.iter().find(|prefix| part(prefix) == *wanted);
        let advice = format!("use one of {}", parts.join(", "));
        return found.cloned().ok_or_else(|| Error::config("part", format!("there is no {wanted:?}"), advice));
    }
    match prefixes.len() {
        0 => Ok(String::new()),
        1 => Ok(prefixes.into_iter().next().unwrap_or_default()),
        _ => {
            let message = format!("has several sets: {}", parts.join(", "));
            Err(Error::file(folder, message, format!("give one with `part = {}`", parts[0])))
        }
    }
}

const TRAIN: [&str; 1] = ["train"];
const TEST: [&str; 2] = ["t10k", "test"];

/// `train-images-idx3-ubyte`, or `train-images.idx3-ubyte` as in some copies.
fn stems(split: &str, what: &str, idx: &str) -> [String; 2] {
    [format!("{split}-{what}-{idx}-ubyte"), format!("{split}-{what}.{idx}-ubyte")]
}

fn without_gz(name: &str) -> &str {
    name.strip_suffix(".gz").unwrap_or(name)
}

/// Reads the four files in `folder`; with `allow_partial` only the training pair is required.
pub(super) fn read(folder: &Path, options: &ImportOptions) -> Result<Draft> {
    // torchvision unpacks into `raw`, EMNIST's archive into `gzip`.
    let inner = ["raw", "gzip"].iter().map(|inner| folder.join(inner)).find(|inner| inner.is_dir());
    let folder = inner.as_deref().unwrap_or(folder);
    let prefix = prefix(folder, options)?;
    let mut parts = Draft::new(Parts { channels: 1, ..Parts::default() }, options)?;
    let upright = is_emnist(&prefix);
    let train = pair(folder, &prefix, &TRAIN)?.ok_or_else(|| missing(folder, "train"))?;
    let labels_sha = append(&mut parts, train, upright)?;
    parts.train = parts.labels.len();
    match pair(folder, &prefix, &TEST)? {
        Some(test) => {
            append(&mut parts, test, upright)?;
        }
        None if options.allow_partial => {
            parts.notes.push("there is no t10k pair".into());
            hold_out(&mut parts, options);
        }
        None => return Err(missing(folder, "t10k")),
    }
    parts.class_names = match official::of_idx_labels(&labels_sha) {
        Some(official) => official.classes(),
        None => (0..=parts.labels.iter().copied().max().unwrap_or(0)).map(|label| label.to_string()).collect(),
    };
    if upright {
        emnist(folder, &prefix, &mut parts)?;
    }
    Ok(parts)
}

/// Transposes square images, as EMNIST needs it.
fn transpose(images: &mut [u8], size: usize) {
    for image in images.chunks_exact_mut(size * size) {
        for (y, x) in (0..size).flat_map(|y| (0..y).map(move |x| (y, x))) {
            image.swap(y * size + x, x * size + y);
        }
    }
}

/// Notes that EMNIST's images were transposed, and reads its class names from the file that maps them to characters.
fn emnist(folder: &Path, prefix: &str, parts: &mut Parts) -> Result<()> {
    if parts.height == parts.width {
        parts.notes.push("images were transposed, which sets EMNIST's letters upright".into());
    }
    let path = folder.join(format!("{prefix}mapping.txt"));
    if path.exists() {
        let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        for line in text.lines() {
            let mut numbers = line.split_whitespace().map(str::parse::<u32>);
            if let (Some(Ok(label)), Some(Ok(code))) = (numbers.next(), numbers.next())
                && let (Some(name), Some(character)) = (parts.class_names.get_mut(label as usize), char::from_u32(code))
            {
                *name = character.to_string();
            }
        }
        // Letters count from 1: labels without a character keep their number, unless it equals a character.
        let distinct: BTreeSet<&String> = parts.class_names.iter().collect();
        if distinct.len() < parts.class_names.len() {
            parts.class_names = (0..parts.class_names.len()).map(|label| label.to_string()).collect();
        }
    }
    Ok(())
}

fn missing(folder: &Path, split: &str) -> Error {
    let message = format!("has no {split}-images-idx3-ubyte with {split}-labels-idx1-ubyte (.gz or plain)");
    let advice = match split {
        "train" => "give the folder of the four IDX files",
        _ => "add it, or hold out some training images instead with `allow_partial`",
    };
    Error::file(folder, message, advice)
}

/// The image and label files of a split; an error if only one exists.
fn pair(folder: &Path, prefix: &str, splits: &[&str]) -> Result<Option<[PathBuf; 2]>> {
    for split in splits {
        let find = |what, idx| {
            let names = stems(split, what, idx).into_iter().flat_map(|stem| [format!("{stem}.gz"), stem]);
            names.map(|name| folder.join(format!("{prefix}{name}"))).find(|path| path.exists())
        };
        match (find("images", "idx3"), find("labels", "idx1")) {
            (Some(images), Some(labels)) => return Ok(Some([images, labels])),
            (Some(images), None) => {
                let advice = format!("put {split}-labels-idx1-ubyte.gz beside it");
                return Err(Error::file(images, "has no labels beside it", advice));
            }
            (None, Some(labels)) => {
                let advice = format!("put {split}-images-idx3-ubyte.gz beside it");
                return Err(Error::file(labels, "has no images beside it", advice));
            }
            (None, None) => {}
        }
    }
    Ok(None)
}

/// Adds a split to `parts`, transposing its images if `upright`. Returns SHA-256 of the decompressed label file.
fn append(parts: &mut Draft, [images, labels]: [PathBuf; 2], upright: bool) -> Result<String> {
    let pixels = &mut parts.pixels;
    let (extents, source) = read_file(&images, 3, |extents, bytes| {
        if upright && extents[1] == extents[2] {
            transpose(bytes, extents[1]);
        }
        pixels.push(bytes)
    })?;
    let [n, height, width] = extents[..] else {
        return Err(Error::file(images, "does not have three extents", DAMAGED));
    };
    if n == 0 || height == 0 || width == 0 {
        return Err(Error::file(images, format!("declares {n} images of {}", ImageSize::new(height, width)), DAMAGED));
    }
    if parts.height == 0 {
        (parts.height, parts.width) = (height, width);
    } else if (parts.height, parts.width) != (height, width) {
        let [found, expected] = [[height, width], [parts.height, parts.width]].map(ImageSize::from);
        let message = format!("has images of {found}, the training images are {expected}");
        return Err(Error::file(images, message, "put only the files of one data set into the folder"));
    }
    parts.sources.push(source);
    let mut label_bytes = Vec::new();
    let (extents, source) = read_file(&labels, 1, |_, bytes| {
        label_bytes.extend_from_slice(bytes);
        Ok(())
    })?;
    if extents != [n] {
        let message = format!("has {} labels for the {n} images of {}", label_bytes.len(), file_name(&images));
        return Err(Error::file(labels, message, "put the files of one split together"));
    }
    parts.sources.push(source);
    let mut sha = Sha256::new();
    sha.update(0x0801u32.to_be_bytes());
    sha.update((n as u32).to_be_bytes());
    sha.update(&label_bytes);
    parts.labels.extend(label_bytes.into_iter().map(u16::from));
    Ok(hex(&sha.finalize()))
}

/// Passes the bytes of an IDX file of unsigned bytes with `rank` extents to `take`, some whole items at a time, with the extents.
/// Returns the extents.
fn read_file(
    path: &Path,
    rank: u8,
    mut take: impl FnMut(&[usize], &mut [u8]) -> Result<()>,
) -> Result<(Vec<usize>, Source)> {
    let mut file = HashedFile::open(path)?;
    let mut content = file.content()?;
    let mut header = vec![0; 4 + 4 * usize::from(rank)];
    content.read_exact(&mut header).map_err(|e| read_error(path, e))?;
    let (magic, words) = header.split_at(4);
    if magic != [0, 0, 8, rank] {
        let message = format!(
            "starts with 0x{:02x}{:02x}{:02x}{:02x} where unsigned bytes of {rank} dimensions start with 0x000008{rank:02x}",
            magic[0], magic[1], magic[2], magic[3]
        );
        return Err(Error::file(path, message, DAMAGED));
    }
    let extents: Vec<usize> =
        words.chunks_exact(4).map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]]) as usize).collect();
    let total = extents.iter().try_fold(1u64, |product, &extent| product.checked_mul(extent as u64));
    let Some(total) = total.filter(|&total| total <= content.limit) else {
        let message = format!("declares {extents:?} bytes, more than a file of its size can hold");
        return Err(Error::file(path, message, DAMAGED));
    };
    let item = extents[1..].iter().fold(1u64, |product, &extent| product.saturating_mul(extent as u64)).max(1);
    let block = (BLOCK as u64 / item).max(1).saturating_mul(item);
    let mut buffer = Vec::new();
    let mut read = 0;
    while read < total {
        let wanted = block.min(total - read);
        buffer.clear();
        (&mut content).take(wanted).read_to_end(&mut buffer).map_err(|e| read_error(path, e))?;
        read += buffer.len() as u64;
        if (buffer.len() as u64) < wanted {
            break;
        }
        take(&extents, &mut buffer)?;
    }
    // One byte more than declared, to detect a longer file.
    let mut more = Vec::new();
    (&mut content).take(1).read_to_end(&mut more).map_err(|e| read_error(path, e))?;
    if read < total || !more.is_empty() {
        let what = if more.is_empty() { format!("only {read}") } else { "more".to_owned() };
        let message = format!("declares {extents:?} = {total} bytes after its header and has {what}");
        return Err(Error::file(path, message, DAMAGED));
    }
    drop(content);
    Ok((extents, file.finish()?))
}
