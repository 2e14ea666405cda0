//! NumPy's `.npy` and `.npz`: bytes, or numbers in [0, 1] or [-1, 1], as `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`, with
//! labels; and the `.npz` of `engine data export`.
//!
//! Images are found under the keys `images`, `x`, `arr_0` and the like, labels under `labels`, `y`, `arr_1`; `train`, `val` and
//! `test` in a key give the split (`x_train`, `test_images`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::archive::{Next, for_each_member};
use super::dataset::{Parts, Split};
use super::draft::{BLOCK, Draft, Spool};
use super::import::{ImportOptions, hold_out};
use super::layout::{UNLABELLED, split_of};
use super::members::interleave;
use super::npz::NpzArray;
use super::source::HashedFile;
use super::storage::Bytes;
use crate::error::{Error, Result};
use crate::picture::NpyHeader;

/// The longest array that is read.
const LONGEST: u64 = 16 << 30;
const IMAGES: [&str; 9] = ["images", "image", "x", "arr_0", "data", "img", "imgs", "samples", "array"];
const LABELS: [&str; 8] = ["labels", "label", "y", "arr_1", "targets", "target", "classes", "class"];
const ADVICE: &str = "save images as u8 [N, H, W, C] under `images` and whole numbers [N] under `labels`";

/// An array as stored in its file.
struct Array {
    shape: Vec<usize>,
    /// As in NumPy's type codes: b, i, u, f, U, S.
    kind: char,
    size: usize,
    big_endian: bool,
    /// Whether the first index varies fastest, instead of the last.
    fortran: bool,
    /// The file, and the offset of its elements.
    bytes: Bytes,
    start: usize,
}

/// Images and labels of one split.
#[derive(Default)]
struct Pair {
    images: Option<Array>,
    labels: Option<Array>,
}

pub(super) fn read(source: &Path, options: &ImportOptions) -> Result<Draft> {
    let bad = |message: String| Error::file(source, message, ADVICE);
    let (mut arrays, source_file) = load(source, options)?;
    let class_names = arrays.remove("class_names").map(|names| names.texts());
    let split = arrays.remove("split");
    let mut pairs: BTreeMap<u8, Pair> = BTreeMap::new();
    let mut passed_over = Vec::new();
    for (key, array) in arrays {
        let (split, base) = split_key(&key);
        let pair = pairs.entry(split).or_default();
        if IMAGES.contains(&base.as_str()) && array.shape.len() >= 3 && pair.images.is_none() {
            pair.images = Some(array);
        } else if LABELS.contains(&base.as_str()) && pair.labels.is_none() {
            pair.labels = Some(array);
        } else {
            passed_over.push(key);
        }
    }
    let mut parts = Draft::new(Parts { sources: vec![source_file], ..Parts::default() }, options)?;
    let mut names: Option<Vec<String>> = class_names;
    let mut labelled = None;
    let mut counts = [0; 3];
    for (split, pair) in pairs {
        let Some(images) = pair.images else { continue };
        let count = images.shape[0];
        append_images(&images, &mut parts, &bad)?;
        if *labelled.get_or_insert(pair.labels.is_some()) != pair.labels.is_some() {
            return Err(bad("has labels only for some of its splits".into()));
        }
        match pair.labels {
            Some(labels) => append_labels(&labels, count, &mut names, &mut parts).map_err(bad)?,
            None => parts.labels.extend(vec![0; count]),
        }
        counts[usize::from(split)] += count;
    }
    if parts.labels.is_empty() {
        let message = match passed_over.as_slice() {
            [] => "has no images: no array that can be read, or none with a picture in it".to_string(),
            others => format!("has no array of images among {}", others.join(", ")),
        };
        return Err(bad(message));
    }
    if !passed_over.is_empty() {
        parts.notes.push(format!("skipped the arrays {}", passed_over.join(", ")));
    }
    if labelled != Some(true) {
        parts.notes.push("there are no labels: the set is unlabelled".into());
        names = Some(vec![UNLABELLED.into()]);
    }
    let most = parts.labels.iter().copied().max().unwrap_or(0);
    let numbered = || (0..=most).map(|label| label.to_string()).collect();
    parts.class_names = names.filter(|names| names.len() > usize::from(most)).unwrap_or_else(numbered);
    parts.train = counts[0];
    parts.test = counts[2];
    if let Some(split) = split {
        by_split(&split, &mut parts).map_err(bad)?;
    } else if counts[0] == parts.labels.len() || counts[0] == 0 {
        parts.train = parts.labels.len();
        parts.test = 0;
        hold_out(&mut parts, options);
    } else if counts[1] == 0 {
        // The held-out images of the source are for validation.
        parts.test = 0;
    }
    Ok(parts)
}

/// The numeric and string arrays of an archive.
pub(super) fn named_arrays(source: &Path) -> Result<BTreeMap<String, NpzArray>> {
    let (arrays, _) = load(source, &ImportOptions::default())?;
    let named = arrays.into_iter().filter_map(|(key, array)| {
        let found = match array.kind {
            'U' | 'S' => NpzArray::Texts(array.texts()),
            _ => NpzArray::Numbers { values: array.numbers()?.collect(), shape: array.shape.clone() },
        };
        Some((key, found))
    });
    Ok(named.collect())
}

/// The arrays of a file by lower-case key.
fn load(source: &Path, options: &ImportOptions) -> Result<(BTreeMap<String, Array>, super::Source)> {
    let mut file = HashedFile::open(source)?;
    let bad = |key: &str, message: String| {
        let named = if key.is_empty() { String::new() } else { format!("array {key} ") };
        Error::file(source, format!("{named}{message}"), ADVICE)
    };
    let mut arrays = BTreeMap::new();
    if super::source::peek(source, 6)?.starts_with(b"\x93NUMPY") {
        let mut spool = Spool::new(options.scratch.as_deref())?;
        let content = file.content()?;
        let limit = content.limit;
        spool.take(content, limit, source)?;
        arrays.insert("images".to_owned(), parse(spool.finish()?).map_err(|message| bad("", message))?);
    } else {
        for_each_member(&mut file, |mut member| {
            if let Some(key) = member.path.clone().strip_suffix(".npy") {
                let mut spool = Spool::new(options.scratch.as_deref())?;
                member.spool(source, LONGEST, &mut spool)?;
                // Arrays of objects are pickles, which may be there beside the images.
                match parse(spool.finish()?) {
                    Ok(array) => drop(arrays.insert(key.to_ascii_lowercase(), array)),
                    Err(message) if is_needed(key) => return Err(bad(key, message)),
                    Err(_) => {}
                }
            }
            Ok(Next::Continue)
        })?;
    }
    Ok((arrays, file.finish()?))
}

fn is_needed(key: &str) -> bool {
    let (_, base) = split_key(&key.to_ascii_lowercase());
    IMAGES.contains(&base.as_str()) || LABELS.contains(&base.as_str())
}

/// The split (0 training, 1 validation, 2 test) in a key, and the rest of the key.
fn split_key(key: &str) -> (u8, String) {
    let mut split = 0;
    let kept: Vec<&str> = key
        .split('_')
        .filter(|word| match (*word, split_of(word)) {
            ("test" | "testing", _) => {
                split = 2;
                false
            }
            (_, Some(Split::Train)) => false,
            (_, Some(_)) => {
                split = 1;
                false
            }
            _ => true,
        })
        .collect();
    (split, kept.join("_"))
}

fn parse(bytes: Bytes) -> Result<Array, String> {
    let NpyHeader { kind, size, big_endian, fortran, shape, start } = NpyHeader::parse(&bytes)?;
    let count = shape.iter().try_fold(1usize, |count, &n| count.checked_mul(n));
    let found = bytes.len() - start;
    if count.and_then(|count| count.checked_mul(size)) != Some(found) {
        return Err(format!("of shape {shape:?} has {found} bytes of elements: it is cut short or damaged"));
    }
    Ok(Array { shape, kind, size, big_endian, fortran, bytes, start })
}

impl Array {
    fn data(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Converts an element to a number; None if the type is not numeric.
    fn number(&self) -> Option<impl Fn(&[u8]) -> f64 + Sync + '_> {
        let native = |element: &[u8]| -> [u8; 8] {
            let mut wide = [0; 8];
            wide[..element.len()].copy_from_slice(element);
            if self.big_endian {
                wide[..element.len()].reverse();
            }
            wide
        };
        let number: fn([u8; 8]) -> f64 = match (self.kind, self.size) {
            ('u' | 'b', 1..=8) => |b| u64::from_le_bytes(b) as f64,
            ('i', 1) => |b| f64::from(b[0] as i8),
            ('i', 2) => |b| f64::from(i16::from_le_bytes([b[0], b[1]])),
            ('i', 4) => |b| f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            ('i', 8) => |b| i64::from_le_bytes(b) as f64,
            ('f', 2) => |b| half::f16::from_le_bytes([b[0], b[1]]).to_f64(),
            ('f', 4) => |b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            ('f', 8) => f64::from_le_bytes,
            _ => return None,
        };
        Some(move |element: &[u8]| number(native(element)))
    }

    /// The storage index of element `index`, which is counted with the last axis varying fastest.
    fn place(&self, index: usize) -> usize {
        if !self.fortran {
            return index;
        }
        let (mut rest, mut stride, mut place) = (index, self.shape.iter().product::<usize>(), 0);
        for &extent in self.shape.iter().rev() {
            stride /= extent;
            place += rest % extent * stride;
            rest /= extent;
        }
        place
    }

    /// The elements as numbers, the last axis varying fastest; None if they are not numeric.
    fn numbers(&self) -> Option<impl Iterator<Item = f64> + '_> {
        let (number, size) = (self.number()?, self.size);
        let count = self.data().len() / size;
        Some((0..count).map(move |index| number(&self.data()[self.place(index) * size..][..size])))
    }

    /// The strings of a string array; none for other types.
    fn texts(&self) -> Vec<String> {
        let unicode = |element: &[u8]| -> String {
            let code = |b: &[u8; 4]| if self.big_endian { u32::from_be_bytes(*b) } else { u32::from_le_bytes(*b) };
            element.as_chunks::<4>().0.iter().filter_map(|b| char::from_u32(code(b))).filter(|c| *c != '\0').collect()
        };
        match self.kind {
            'U' => self.data().chunks_exact(self.size.max(1)).map(unicode).collect(),
            'S' => {
                let text = |b: &[u8]| String::from_utf8_lossy(b).trim_end_matches('\0').to_owned();
                self.data().chunks_exact(self.size.max(1)).map(text).collect()
            }
            _ => Vec::new(),
        }
    }

    /// How elements become image bytes: a factor, an addend, and a description. None if they already are bytes.
    fn scale(&self) -> Result<Option<(f64, f64, &'static str)>, String> {
        if (self.kind, self.size) == ('u', 1) {
            return Ok(None);
        }
        let number = self.number().ok_or("has images of elements that are not numbers")?;
        let (mut least, mut most, mut whole) = (f64::MAX, f64::MIN, true);
        for number in self.data().chunks_exact(self.size).map(number) {
            if !number.is_finite() {
                return Err("has images with NaN or infinity".into());
            }
            (least, most) = (least.min(number), most.max(number));
            whole &= number.fract() == 0.0;
        }
        match (least, most) {
            // Zeros and ones of an integer type are bytes, not shares.
            (0.0.., ..=255.0) if self.kind != 'f' || (most > 1.0 && whole) => {
                Ok(Some((1.0, 0.0, "numbers from 0 to 255")))
            }
            (0.0.., ..=1.0) => Ok(Some((255.0, 0.0, "numbers in [0, 1]"))),
            (-1.0.., ..=1.0) => Ok(Some((127.5, 127.5, "numbers in [-1, 1]"))),
            _ => Err(format!("has images from {least} to {most}, neither in [0, 1], [-1, 1] nor 0 to 255")),
        }
    }

    /// The elements of the `items`, in sequence; each has the given number of elements.
    fn rows(&self, items: Range<usize>, elements: usize) -> Cow<'_, [u8]> {
        let size = self.size;
        if !self.fortran {
            return Cow::Borrowed(&self.data()[items.start * elements * size..items.end * elements * size]);
        }
        // Elements of consecutive items are adjacent.
        let mut rows = vec![0; items.len() * elements * size];
        for element in 0..elements {
            let run = &self.data()[(self.place(element) + items.start) * size..][..items.len() * size];
            for (item, value) in run.chunks_exact(size).enumerate() {
                rows[(item * elements + element) * size..][..size].copy_from_slice(value);
            }
        }
        Cow::Owned(rows)
    }
}

fn append_images(images: &Array, parts: &mut Draft, bad: &dyn Fn(String) -> Error) -> Result<()> {
    let (height, width, channels, planes) = match images.shape[..] {
        [_, height, width] => (height, width, 1, false),
        [_, height, width, channels @ (1 | 3)] => (height, width, channels, false),
        [_, channels @ (1 | 3), height, width] => (height, width, channels, true),
        _ => {
            return Err(bad(format!(
                "has images of shape {:?}, not [N, H, W(, 1 or 3)] or [N, 1 or 3, H, W]",
                images.shape
            )));
        }
    };
    if parts.height == 0 {
        (parts.height, parts.width, parts.channels) = (height, width, channels);
    }
    if (parts.height, parts.width, parts.channels) != (height, width, channels) {
        return Err(bad("has images of different sizes in its splits".into()));
    }
    let (scale, number) = (images.scale().map_err(bad)?, images.number());
    let note = scale.map(|(.., how)| format!("images were {how}, scaled to bytes"));
    let note = note.filter(|note| !parts.notes.contains(note));
    parts.notes.extend(note);
    let (count, elements) = (images.shape[0], height * width * channels);
    let block = (BLOCK / (elements * images.size).max(1)).max(1);
    let mut interleaved = Vec::new();
    for first in (0..if elements > 0 { count } else { 0 }).step_by(block) {
        let rows = images.rows(first..count.min(first + block), elements);
        let pixels: Cow<[u8]> = match (scale, &number) {
            (Some((factor, addend, _)), Some(number)) => {
                let pixel = |element: &[u8]| (number(element) * factor + addend).round() as u8;
                Cow::Owned(rows.par_chunks_exact(images.size).map(pixel).collect())
            }
            _ => rows,
        };
        if planes {
            interleaved.clear();
            pixels.chunks_exact(elements).for_each(|image| interleave(image, channels, &mut interleaved));
            parts.pixels.push(&interleaved)?;
        } else {
            parts.pixels.push(&pixels)?;
        }
    }
    Ok(())
}

fn append_labels(
    labels: &Array,
    count: usize,
    names: &mut Option<Vec<String>>,
    parts: &mut Parts,
) -> Result<(), String> {
    let wrong = || format!("has labels of shape {:?} for {count} images", labels.shape);
    if matches!(labels.kind, 'U' | 'S') {
        let texts = labels.texts();
        if texts.len() != count {
            return Err(wrong());
        }
        let known = names.get_or_insert_with(Vec::new);
        // Sorted by name.
        let mut all: Vec<String> = known.iter().chain(&texts).cloned().collect();
        all.sort();
        all.dedup();
        let label = |name: &String| all.binary_search(name).unwrap_or_default() as u16;
        let renumbered: Vec<u16> = known.iter().map(label).collect();
        parts.labels.iter_mut().for_each(|old| *old = renumbered[usize::from(*old)]);
        parts.labels.extend(texts.iter().map(label));
        *known = all;
        return Ok(());
    }
    let mut elements = labels.numbers().ok_or("has labels that are not numbers")?;
    let numbers: Vec<f64> = match labels.shape[..] {
        [n] | [n, 1] if n == count => elements.collect(),
        // One-hot.
        [n, classes] if n == count && classes > 0 => {
            let mut numbers = Vec::with_capacity(count);
            for _ in 0..count {
                let mut place = None;
                for (class, element) in elements.by_ref().take(classes).enumerate() {
                    match element {
                        0.0 => {}
                        1.0 => drop(place.get_or_insert(class)),
                        _ => return Err(wrong()),
                    }
                }
                numbers.push(place.unwrap_or(0) as f64);
            }
            numbers
        }
        _ => return Err(wrong()),
    };
    if let Some(bad) = numbers.iter().find(|&&n| n.fract() != 0.0 || !(0.0..f64::from(u16::MAX)).contains(&n)) {
        return Err(format!("has the label {bad}, not a whole number from 0"));
    }
    parts.labels.extend(numbers.iter().map(|&number| number as u16));
    Ok(())
}

/// Arranges the images by the array `split`: 0 training, 1 validation, 2 test.
fn by_split(split: &Array, parts: &mut Draft) -> Result<(), String> {
    let numbers = split
        .numbers()
        .map(|numbers| numbers.collect::<Vec<f64>>())
        .filter(|numbers| numbers.len() == parts.labels.len())
        .ok_or("has a `split` that is not one number for each image")?;
    if let Some(bad) = numbers.iter().find(|&&n| ![0.0, 1.0, 2.0].contains(&n)) {
        return Err(format!("has {bad} in `split`, outside 0 to 2"));
    }
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by_key(|&i| numbers[i] as u8);
    if !order.is_sorted() {
        parts.permute(&order);
    }
    parts.train = numbers.iter().filter(|&&n| n == 0.0).count();
    parts.test = numbers.iter().filter(|&&n| n == 2.0).count();
    Ok(())
}
