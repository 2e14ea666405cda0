//! SVHN's cropped digits: MATLAB files of level 5 with `X`, bytes `[H, W, C, N]`, and `y`, `[N, 1]`.
//!
//! MathWorks, *MAT-File Format*, chapter 1. Arrays are column-major: the first index varies fastest. The digit 0 has label 10.
//! Netzer et al., *Reading Digits in Natural Images with Unsupervised Feature Learning*, 2011.

use std::path::Path;

use flate2::read::ZlibDecoder;

use super::dataset::Parts;
use super::draft::{Draft, Spool};
use super::import::{ImportOptions, hold_out};
use super::members::Members;
use super::storage::Bytes;
use crate::error::{Error, Result};
use crate::files::describe;

const AGAIN: &str = "it is damaged or not of SVHN: download it again";
/// Deflate's best compression ratio.
const RATIO: usize = 1032;
const COMPRESSED: u32 = 15;
const MATRIX: u32 = 14;

/// Whether a file with this name is one of SVHN's.
pub(super) fn is_member(name: &str) -> bool {
    matches!(name, "train_32x32.mat" | "test_32x32.mat" | "extra_32x32.mat")
}

pub(super) fn read(source: &Path, options: &ImportOptions) -> Result<Draft> {
    let members = Members::read(source, &[], |name| is_member(name) && name != "extra_32x32.mat", options)?;
    let mut parts = Draft::new(Parts::default(), options)?;
    let mut names: Vec<&String> = members.files.keys().collect();
    names.sort_by_key(|name| !name.starts_with("train"));
    for name in &names {
        append(&members, name, options, &mut parts)?;
        if !name.starts_with("test") {
            parts.train = parts.labels.len();
        }
    }
    if parts.labels.is_empty() {
        return Err(Error::file(source, "has no train_32x32.mat", "give SVHN's folder, or one of its files"));
    }
    if source.is_dir() && source.join("extra_32x32.mat").exists() {
        parts.notes.push("skipped extra_32x32.mat; import it separately".into());
    }
    parts.class_names = (0..=9).map(|digit: u8| digit.to_string()).collect();
    if let Some(&label) = parts.labels.iter().find(|&&label| label > 9) {
        return Err(Error::file(source, format!("has the label {label}, outside 1 to 10"), AGAIN));
    }
    let single = parts.train == parts.labels.len() || parts.train == 0;
    parts.sources = members.sources;
    if single {
        parts.train = parts.labels.len();
        hold_out(&mut parts, options);
    }
    Ok(parts)
}

fn append(members: &Members, name: &str, options: &ImportOptions, parts: &mut Draft) -> Result<()> {
    let bytes = members.get(name)?;
    let fault = |message: String| members.fault(name, message, AGAIN);
    if bytes.starts_with(b"\x89HDF") || bytes.starts_with(b"MATLAB 7.3") {
        let advice = "save it with -v7, or name SVHN's own files";
        return Err(members.fault(name, "is a MATLAB file of version 7.3 (HDF5), which is not read", advice));
    }
    if !bytes.starts_with(b"MATLAB 5.0") {
        return Err(fault(format!("is {}, not a MATLAB file of level 5", describe(bytes))));
    }
    let elements = elements(bytes, options.scratch.as_deref(), &members.place(name)).map_err(|error| match error {
        Fault::Content(message) => fault(message),
        Fault::Other(error) => error,
    })?;
    let arrays: Vec<Array> = elements.iter().filter_map(Element::matrix).collect();
    let find = |wanted: &str| arrays.iter().find(|array| array.name == wanted);
    let (Some(images), Some(labels)) = (find("X"), find("y")) else {
        return Err(fault("has no arrays X and y".into()));
    };
    let &[height, width, channels, count] = &images.shape[..] else {
        return Err(fault(format!("has X of shape {:?}, not [H, W, C, N]", images.shape)));
    };
    let (pixels, classes) = (images.bytes(), labels.numbers());
    let (Some(pixels), Some(classes)) = (pixels, classes) else {
        return Err(fault("has X or y of another type than bytes and numbers".into()));
    };
    if classes.len() != count || !matches!(channels, 1 | 3) {
        return Err(fault(format!("has X of shape {:?} and {} labels", images.shape, classes.len())));
    }
    if parts.height == 0 {
        (parts.height, parts.width, parts.channels) = (height, width, channels);
    }
    if (parts.height, parts.width, parts.channels) != (height, width, channels) {
        return Err(fault("has images of another size than the other file".into()));
    }
    let size = height * width * channels;
    let mut rows = Vec::with_capacity(size);
    for image in pixels.chunks_exact(size) {
        rows.clear();
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            rows.extend((0..channels).map(|channel| image[y + height * (x + width * channel)]));
        }
        parts.pixels.push(&rows)?;
    }
    for class in classes {
        // The digit 0 is stored as label 10.
        let label = if class == 10.0 { 0.0 } else { class };
        if !(0.0..=9.0).contains(&label) || label.fract() != 0.0 {
            return Err(fault(format!("has the label {class}, outside 1 to 10")));
        }
        parts.labels.push(label as u16);
    }
    Ok(())
}

/// A matrix of numbers.
struct Array<'a> {
    name: String,
    shape: Vec<usize>,
    /// The type of its elements in the file.
    kind: u32,
    data: &'a [u8],
}

impl Array<'_> {
    fn bytes(&self) -> Option<&[u8]> {
        (self.kind == 2).then_some(self.data)
    }

    fn numbers(&self) -> Option<Vec<f64>> {
        Some(match self.kind {
            1 => self.data.iter().map(|&byte| f64::from(byte as i8)).collect(),
            2 => self.data.iter().map(|&byte| f64::from(byte)).collect(),
            3 => self.data.as_chunks::<2>().0.iter().map(|&b| f64::from(i16::from_le_bytes(b))).collect(),
            4 => self.data.as_chunks::<2>().0.iter().map(|&b| f64::from(u16::from_le_bytes(b))).collect(),
            5 => self.data.as_chunks::<4>().0.iter().map(|&b| f64::from(i32::from_le_bytes(b))).collect(),
            6 => self.data.as_chunks::<4>().0.iter().map(|&b| f64::from(u32::from_le_bytes(b))).collect(),
            9 => self.data.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            _ => return None,
        })
    }
}

/// A top-level element of a file.
enum Element<'a> {
    Plain(&'a [u8]),
    /// A decompressed element with its header.
    Unpacked(Bytes),
}

impl Element<'_> {
    fn matrix(&self) -> Option<Array<'_>> {
        match self {
            Self::Plain(body) => matrix(body),
            Self::Unpacked(bytes) => {
                element(bytes).filter(|(kind, ..)| *kind == MATRIX).and_then(|(_, body, _)| matrix(body))
            }
        }
    }
}

/// An error in the content, or one that is already complete.
enum Fault {
    Content(String),
    Other(Error),
}

/// The elements of `bytes` after the header, which is 128 bytes long; compressed ones are unpacked into the scratch folder.
fn elements<'a>(bytes: &'a [u8], scratch: Option<&Path>, path: &Path) -> Result<Vec<Element<'a>>, Fault> {
    let content = |message: &str| Fault::Content(message.into());
    if bytes.get(126..128) != Some(b"IM") {
        return Err(content("is a MATLAB file of another byte order"));
    }
    let mut elements = Vec::new();
    let mut rest = &bytes[128..];
    while !rest.is_empty() {
        let (kind, body, after) = element(rest).ok_or_else(|| content("is cut short"))?;
        match kind {
            COMPRESSED => {
                let mut unpacked = Spool::new(scratch).map_err(Fault::Other)?;
                let limit = body.len().saturating_mul(RATIO) as u64;
                unpacked.take(ZlibDecoder::new(body), limit, path).map_err(Fault::Other)?;
                let unpacked = unpacked.finish().map_err(Fault::Other)?;
                element(&unpacked).ok_or_else(|| content("is cut short"))?;
                elements.push(Element::Unpacked(unpacked));
            }
            MATRIX => elements.push(Element::Plain(body)),
            _ => {}
        }
        rest = after;
    }
    Ok(elements)
}

/// Type and body of the first element of `bytes`, and the rest.
fn element(bytes: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let first = word(0)?;
    if first >> 16 != 0 {
        // The small format: type and length in one word, at most four bytes in the next.
        let len = (first >> 16) as usize;
        return (len <= 4).then_some(()).and_then(|()| Some((first & 0xffff, bytes.get(4..4 + len)?, bytes.get(8..)?)));
    }
    let len = word(4)? as usize;
    let end = len.checked_add(8)?;
    let body = bytes.get(8..end)?;
    // A compressed element is not padded.
    let next = if first == COMPRESSED { end } else { end.next_multiple_of(8).min(bytes.len()) };
    Some((first, body, &bytes[next..]))
}

/// A matrix: flags, dimensions, name, elements. None if it is not numeric.
fn matrix(body: &[u8]) -> Option<Array<'_>> {
    let (_, _flags, rest) = element(body)?;
    let (kind, dimensions, rest) = element(rest)?;
    let (_, name, rest) = element(rest)?;
    let (data_kind, data, _) = element(rest)?;
    if kind != 5 {
        return None;
    }
    let shape: Vec<usize> = dimensions
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&b| usize::try_from(i32::from_le_bytes(b)).ok())
        .collect::<Option<_>>()?;
    let size = match data_kind {
        1 | 2 => 1,
        3 | 4 => 2,
        5..=7 => 4,
        9 | 12 | 13 => 8,
        _ => return None,
    };
    let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size))?;
    let whole = count.checked_mul(size) == Some(data.len()) && count > 0;
    whole.then(|| Array { name: String::from_utf8_lossy(name).into_owned(), shape, kind: data_kind, data })
}
