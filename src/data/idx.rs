//! IDX files, as MNIST and its successors come: big-endian extents, then bytes; plain or gzipped.
//!
//! LeCun, Cortes, Burges, *The MNIST database of handwritten digits*. A folder holds `train-images-idx3-ubyte`,
//! `train-labels-idx1-ubyte` and the same two of `t10k`.

use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::dataset::{Parts, Source, hex};
use super::import::{ImportOptions, hold_out};
use super::official;
use super::source::{HashedFile, file_name, read_error};
use crate::error::{Error, Result};

const DAMAGED: &str = "it is damaged or not an IDX file: copy or download it again";

/// Whether a file of this name can hold a split's images.
pub(super) fn is_images_file(name: &str) -> bool {
    TRAIN.iter().chain(&TEST).any(|split| stems(split, "images", "idx3").iter().any(|stem| without_gz(name) == stem))
}

const TRAIN: [&str; 1] = ["train"];
const TEST: [&str; 2] = ["t10k", "test"];

/// `train-images-idx3-ubyte`, and `train-images.idx3-ubyte` as some copies have it.
fn stems(split: &str, what: &str, idx: &str) -> [String; 2] {
    [format!("{split}-{what}-{idx}-ubyte"), format!("{split}-{what}.{idx}-ubyte")]
}

fn without_gz(name: &str) -> &str {
    name.strip_suffix(".gz").unwrap_or(name)
}

/// Reads the four files in `folder`; with `allow_partial` only the training pair need be there.
pub(super) fn read(folder: &Path, options: &ImportOptions) -> Result<Parts> {
    let mut parts = Parts { channels: 1, ..Parts::default() };
    let train = pair(folder, &TRAIN)?.ok_or_else(|| missing(folder, "train"))?;
    let labels_sha = append(&mut parts, train)?;
    parts.train = parts.labels.len();
    match pair(folder, &TEST)? {
        Some(test) => {
            append(&mut parts, test)?;
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
    Ok(parts)
}

fn missing(folder: &Path, split: &str) -> Error {
    let message = format!("has no {split}-images-idx3-ubyte with {split}-labels-idx1-ubyte (.gz or plain)");
    let mend = match split {
        "train" => "name the folder of the four IDX files",
        _ => "add it, or hold out some training images instead with --allow-partial",
    };
    Error::file(folder, message, mend)
}

/// The images' and the labels' file of a split; an error where only one is there.
fn pair(folder: &Path, splits: &[&str]) -> Result<Option<[PathBuf; 2]>> {
    for split in splits {
        let find = |what, idx| {
            let names = stems(split, what, idx).into_iter().flat_map(|stem| [format!("{stem}.gz"), stem]);
            names.map(|name| folder.join(name)).find(|path| path.exists())
        };
        match (find("images", "idx3"), find("labels", "idx1")) {
            (Some(images), Some(labels)) => return Ok(Some([images, labels])),
            (Some(images), None) => {
                let mend = format!("put {split}-labels-idx1-ubyte.gz beside it");
                return Err(Error::file(images, "has no labels beside it", mend));
            }
            (None, Some(labels)) => {
                let mend = format!("put {split}-images-idx3-ubyte.gz beside it");
                return Err(Error::file(labels, "has no images beside it", mend));
            }
            (None, None) => {}
        }
    }
    Ok(None)
}

/// Adds a split to `parts`. Returns SHA-256 of the labels' file, decompressed.
fn append(parts: &mut Parts, [images, labels]: [PathBuf; 2]) -> Result<String> {
    let (extents, source) = read_file(&images, 3, &mut parts.images)?;
    let [n, height, width] = extents[..] else {
        return Err(Error::file(images, "does not have three extents", DAMAGED));
    };
    if n == 0 || height == 0 || width == 0 {
        return Err(Error::file(images, format!("declares {n} images of {width}x{height}"), DAMAGED));
    }
    if parts.height == 0 {
        (parts.height, parts.width) = (height, width);
    } else if (parts.height, parts.width) != (height, width) {
        let message =
            format!("has images of {width}x{height}, the training images are {}x{}", parts.width, parts.height);
        return Err(Error::file(images, message, "put only the files of one data set into the folder"));
    }
    parts.sources.push(source);
    let mut label_bytes = Vec::new();
    let (extents, source) = read_file(&labels, 1, &mut label_bytes)?;
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

/// Appends the bytes of an IDX file of unsigned bytes with `rank` extents to `data`. Returns the extents.
fn read_file(path: &Path, rank: u8, data: &mut Vec<u8>) -> Result<(Vec<usize>, Source)> {
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
    let extents: Vec<u32> = words.chunks_exact(4).map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]])).collect();
    let total = extents.iter().try_fold(1u64, |product, &extent| product.checked_mul(u64::from(extent)));
    let Some(total) = total.filter(|&total| total <= content.limit) else {
        let message = format!("declares {extents:?} bytes, more than a file of its size can hold");
        return Err(Error::file(path, message, DAMAGED));
    };
    let before = data.len();
    // One byte more than declared, so that a longer file shows.
    (&mut content).take(total.saturating_add(1)).read_to_end(data).map_err(|e| read_error(path, e))?;
    let read = (data.len() - before) as u64;
    if read != total {
        let what = if read > total { "more".to_owned() } else { format!("only {read}") };
        let message = format!("declares {extents:?} = {total} bytes after its header and has {what}");
        return Err(Error::file(path, message, DAMAGED));
    }
    drop(content);
    Ok((extents.iter().map(|&extent| extent as usize).collect(), file.finish()?))
}
