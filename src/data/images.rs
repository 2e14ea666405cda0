//! PNG and JPEG files by class: `train/CLASS/x.jpg` and `test/CLASS/x.jpg`, or `CLASS/x.png`; in a folder or a tar archive.
//!
//! Classes are the folders' names, sorted (numbers by value), and images are sorted by class and path, so that the result
//! does not depend on the order of a folder or an archive. All images must have one size and one number of channels;
//! nothing is scaled or converted silently.

use std::collections::BTreeSet;
use std::fs;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use image::codecs::{jpeg::JpegDecoder, png::PngDecoder};
use image::imageops::FilterType;
use image::{ColorType, DynamicImage, ImageDecoder, Limits};
use indicatif::ProgressBar;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::archive::{Next, for_each_member};
use super::dataset::{Parts, Source, Split, hex};
use super::import::{ImportOptions, hold_out};
use super::source::{HashedFile, file_name};
use crate::error::{Error, Result};

/// The longest picture file that is read.
const LONGEST_FILE: u64 = 64 << 20;
/// The most memory one decoder may ask for.
const DECODER_BYTES: u64 = 256 << 20;
/// How much of an archive is read before it is decoded in parallel.
const BATCH_BYTES: usize = 16 << 20;
/// How deep below the source a picture can lie.
const DEEPEST: usize = 8;

/// Whether a path ends as a picture's does. Hidden files are none: `._x.jpg` is what macOS puts beside `x.jpg`.
pub(super) fn is_image(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    !name.starts_with('.') && matches!(ending.as_deref(), Some("png" | "jpg" | "jpeg"))
}

/// Reads the pictures below `folder`.
pub(super) fn read_folder(folder: &Path, options: &ImportOptions) -> Result<Parts> {
    let mut found = Found::default();
    found.list(folder, "", 0)?;
    found.paths.sort();
    let mut pictures = Pictures::new(folder, options)?;
    let mut bytes = 0;
    let mut sha = Sha256::new();
    for batch in found.paths.chunks(4096) {
        let read = |path: &String| {
            let place = folder.join(path);
            let len = fs::metadata(&place).map_err(Error::io(&place, "read"))?.len();
            if len > LONGEST_FILE {
                return Err(Error::file(place, format!("is {len} bytes long"), "leave it out of the folder"));
            }
            let bytes = fs::read(&place).map_err(Error::io(&place, "read"))?;
            Ok((hex(&Sha256::digest(&bytes)), path.clone(), bytes))
        };
        // All results first, so that of several errors it is the first file's that is reported.
        let files = batch.par_iter().map(read).collect::<Vec<Result<_>>>();
        let mut members = Vec::with_capacity(batch.len());
        for file in files {
            let (digest, path, content) = file?;
            bytes += content.len() as u64;
            sha.update(format!("{digest}  {path}\n"));
            members.push((path, content));
        }
        pictures.decode(members)?;
    }
    let name = folder.canonicalize().map_or_else(|_| file_name(folder), |path| file_name(&path));
    let source = Source { file: format!("{name}/"), bytes, sha256: hex(&sha.finalize()) };
    pictures.finish(found.others, found.links, source)
}

/// Reads the pictures in an archive.
pub(super) fn read_archive(path: &Path, options: &ImportOptions) -> Result<Parts> {
    let mut pictures = Pictures::new(path, options)?;
    let (mut batch, mut batch_bytes, mut others) = (Vec::new(), 0, 0);
    let mut file = HashedFile::open(path)?;
    let links = for_each_member(&mut file, |mut member| {
        if !is_image(&member.path) {
            others += 1;
            return Ok(Next::Continue);
        }
        let bytes = member.read(path, LONGEST_FILE)?;
        batch_bytes += bytes.len();
        batch.push((member.path, bytes));
        if batch_bytes >= BATCH_BYTES || batch.len() >= 8192 {
            pictures.decode(std::mem::take(&mut batch))?;
            batch_bytes = 0;
        }
        Ok(Next::Continue)
    })?;
    pictures.decode(batch)?;
    pictures.finish(others, links, file.finish()?)
}

/// The pictures below a folder, as paths relative to it with `/` between the components.
#[derive(Default)]
struct Found {
    paths: Vec<String>,
    others: usize,
    links: usize,
}

impl Found {
    fn list(&mut self, root: &Path, below: &str, depth: usize) -> Result<()> {
        let folder = root.join(below);
        for entry in fs::read_dir(&folder).map_err(Error::io(&folder, "list"))? {
            let entry = entry.map_err(Error::io(&folder, "list"))?;
            let kind = entry.file_type().map_err(Error::io(entry.path(), "read"))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let path = if below.is_empty() { name.to_string() } else { format!("{below}/{name}") };
            if kind.is_symlink() {
                self.links += 1;
            } else if kind.is_dir() && !name.starts_with('.') {
                if depth == DEEPEST {
                    let message = format!("is more than {DEEPEST} folders below {}", root.display());
                    return Err(Error::file(entry.path(), message, "name the folder of the classes"));
                }
                self.list(root, &path, depth + 1)?;
            } else if kind.is_file() && is_image(&path) {
                self.paths.push(path);
            } else if kind.is_file() {
                self.others += 1;
            }
        }
        Ok(())
    }
}

/// Rows, columns and channels.
type Extent = [usize; 3];

/// Decoded pictures, in the order they came.
struct Pictures<'a> {
    options: &'a ImportOptions,
    root: &'a Path,
    /// The extent of all, and the file that set it.
    first: Option<(Extent, String)>,
    decoded: Vec<(String, Box<[u8]>)>,
    progress: ProgressBar,
}

impl<'a> Pictures<'a> {
    fn new(root: &'a Path, options: &'a ImportOptions) -> Result<Self> {
        if options.resize.is_some_and(|size| !(1..=4096).contains(&size)) {
            return Err(Error::config("--resize", "is not from 1 to 4096", "name a width in pixels, such as 32"));
        }
        let progress = ProgressBar::new_spinner();
        progress.set_message("pictures");
        Ok(Self { options, root, first: None, decoded: Vec::new(), progress })
    }

    fn decode(&mut self, batch: Vec<(String, Vec<u8>)>) -> Result<()> {
        let Some((path, bytes)) = batch.first() else { return Ok(()) };
        if self.first.is_none() {
            let (extent, _) = decode(bytes, self.options.resize, None).map_err(|e| self.error(path, e))?;
            self.first = Some((extent, path.clone()));
        }
        let expected = self.first.as_ref().map(|(extent, _)| *extent);
        let resize = self.options.resize;
        let images: Vec<_> = batch.par_iter().map(|(_, bytes)| decode(bytes, resize, expected)).collect();
        for ((path, _), image) in batch.into_iter().zip(images) {
            let (_, pixels) = image.map_err(|e| self.error(&path, e))?;
            self.decoded.push((path, pixels));
        }
        self.progress.set_position(self.decoded.len() as u64);
        Ok(())
    }

    fn error(&self, path: &str, unfit: Unfit) -> Error {
        let place = member(self.root, path);
        match (unfit, &self.first) {
            (Unfit::Damaged(message), _) => Error::file(place, message, "repair it or leave it out"),
            (Unfit::Size(rows, columns), Some(([height, width, _], first))) => Error::file(
                place,
                format!("is {columns}x{rows}, the first picture ({first}) {width}x{height}"),
                "bring all to one size with --resize N",
            ),
            (Unfit::Channels(channels), Some(([.., expected], first))) => {
                let named = |channels| if channels == 1 { "grey" } else { "coloured" };
                Error::file(
                    place,
                    format!("is {}, the first picture ({first}) {}", named(channels), named(*expected)),
                    "convert one kind to the other",
                )
            }
            (Unfit::Size(..) | Unfit::Channels(_), None) => Error::file(place, "is unlike the others", "leave it out"),
        }
    }

    fn finish(self, others: usize, links: usize, source: Source) -> Result<Parts> {
        self.progress.finish_and_clear();
        let Some(([height, width, channels], _)) = self.first else {
            let message =
                format!("has no PNG or JPEG files ({others} other files, {links} links, which are not followed)");
            return Err(Error::file(self.root, message, "name a folder or tar archive of class folders"));
        };
        let paths: Vec<&str> = self.decoded.iter().map(|(path, _)| path.as_str()).collect();
        let places = places(self.root, &paths)?;
        let mut class_names: Vec<&str> =
            places.iter().map(|place| place.class).collect::<BTreeSet<_>>().into_iter().collect();
        class_names.sort_by_key(|name| (name.parse::<u64>().unwrap_or(u64::MAX), *name));
        if class_names.len() > usize::from(u16::MAX) {
            let message = format!("has {} classes", class_names.len());
            return Err(Error::file(self.root, message, format!("have at most {} class folders", u16::MAX)));
        }
        let label = |class: &str| {
            let found = class_names.binary_search_by_key(&(class.parse::<u64>().unwrap_or(u64::MAX), class), |name| {
                (name.parse::<u64>().unwrap_or(u64::MAX), *name)
            });
            found.unwrap_or_default()
        };
        let mut order: Vec<(bool, usize, &str, usize)> = places
            .iter()
            .enumerate()
            .map(|(i, place)| (place.split == Some(Split::Validation), label(place.class), paths[i], i))
            .collect();
        order.par_sort_unstable();
        if let Some(pair) = order.windows(2).find(|pair| pair[0].2 == pair[1].2) {
            return Err(Error::file(member(self.root, pair[0].2), "is there twice", "leave one out"));
        }
        let mut parts = Parts {
            height,
            width,
            channels,
            class_names: class_names.iter().map(|&name| name.to_owned()).collect(),
            images: Vec::with_capacity(order.len() * height * width * channels),
            labels: order.iter().map(|&(_, label, ..)| label as u16).collect(),
            train: order.iter().filter(|&&(validation, ..)| !validation).count(),
            sources: vec![source],
            ..Parts::default()
        };
        order.iter().for_each(|&(.., i)| parts.images.extend_from_slice(&self.decoded[i].1));
        if let Some(size) = self.options.resize {
            parts.notes.push(format!("pictures were scaled and cut to {size}x{size}"));
        }
        if others > 0 {
            parts.notes.push(format!("passed over {others} files that are neither PNG nor JPEG"));
        }
        if links > 0 {
            parts.notes.push(format!("passed over {links} links"));
        }
        if places.first().is_some_and(|place| place.split.is_none()) {
            hold_out(&mut parts, self.options);
        }
        Ok(parts)
    }
}

/// How a picture is named in messages; in an archive, as if the archive were a folder.
fn member(root: &Path, path: &str) -> PathBuf {
    root.join(path)
}

/// What a picture's path says.
struct Place<'a> {
    split: Option<Split>,
    class: &'a str,
}

fn split_of(folder: &str) -> Option<Split> {
    match folder.to_ascii_lowercase().as_str() {
        "train" | "training" => Some(Split::Train),
        "test" | "testing" | "val" | "valid" | "validation" => Some(Split::Validation),
        _ => None,
    }
}

/// Split and class of each path. Either all pictures lie in `SPLIT/CLASS/` or all in `CLASS/`, below one common folder.
fn places<'a>(root: &Path, paths: &[&'a str]) -> Result<Vec<Place<'a>>> {
    let mut common: Option<(Vec<&str>, bool)> = None;
    let mut places = Vec::with_capacity(paths.len());
    for path in paths {
        let mut folders: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        folders.pop();
        let Some(class) = folders.pop().filter(|class| folders.is_empty() || split_of(class).is_none()) else {
            let mend = "put each picture into a folder named after its class";
            return Err(Error::file(member(root, path), "lies in no class folder", mend));
        };
        let split = folders.last().and_then(|folder| split_of(folder));
        if split.is_some() {
            folders.pop();
        }
        match &common {
            None => common = Some((folders, split.is_some())),
            Some((first, first_split)) if *first != folders || *first_split != split.is_some() => {
                let message = format!("lies otherwise than {}", paths[0]);
                let mend = "have all pictures in train/CLASS and test/CLASS, or all in CLASS";
                return Err(Error::file(member(root, path), message, mend));
            }
            Some(_) => {}
        }
        places.push(Place { split, class });
    }
    Ok(places)
}

/// Why a picture cannot be taken.
enum Unfit {
    Damaged(String),
    /// Other rows and columns than the first's.
    Size(usize, usize),
    /// Another number of channels than the first's.
    Channels(usize),
}

/// The pixels of a PNG or JPEG file, `[H, W, C]`. With `expected`, another extent is an error before it is decoded.
fn decode(bytes: &[u8], resize: Option<u32>, expected: Option<Extent>) -> Result<(Extent, Box<[u8]>), Unfit> {
    // Decoders of other people's making: a panic in one is a damaged file, not the end of the import.
    catch_unwind(AssertUnwindSafe(|| decode_unguarded(bytes, resize, expected)))
        .unwrap_or_else(|_| Err(Unfit::Damaged("cannot be decoded".into())))
}

fn decode_unguarded(bytes: &[u8], resize: Option<u32>, expected: Option<Extent>) -> Result<(Extent, Box<[u8]>), Unfit> {
    let damaged =
        |e: image::ImageError| Unfit::Damaged(format!("cannot be decoded: {}", e.to_string().replace('\n', " ")));
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(DECODER_BYTES);
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits.clone()).map_err(damaged)?;
        pixels(decoder, limits, resize, expected)
    } else if bytes.starts_with(&[0xff, 0xd8]) {
        let decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(damaged)?;
        pixels(decoder, limits, resize, expected)
    } else {
        Err(Unfit::Damaged("is neither PNG nor JPEG, whatever its name says".into()))
    }
}

fn pixels(
    mut decoder: impl ImageDecoder,
    mut limits: Limits,
    resize: Option<u32>,
    expected: Option<Extent>,
) -> Result<(Extent, Box<[u8]>), Unfit> {
    let damaged =
        |e: image::ImageError| Unfit::Damaged(format!("cannot be decoded: {}", e.to_string().replace('\n', " ")));
    let (columns, rows) = decoder.dimensions();
    let (rows, columns) = (rows as usize, columns as usize);
    if let Some([height, width, _]) = expected.filter(|_| resize.is_none())
        && (rows, columns) != (height, width)
    {
        return Err(Unfit::Size(rows, columns));
    }
    limits.reserve(decoder.total_bytes()).map_err(damaged)?;
    decoder.set_limits(limits).map_err(damaged)?;
    let mut image = match decoder.color_type() {
        // The common cases without the copies that `DynamicImage` makes.
        ColorType::L8 | ColorType::Rgb8 if resize.is_none() => {
            let channels = usize::from(decoder.color_type().channel_count());
            if expected.is_some_and(|[.., expected]| expected != channels) {
                return Err(Unfit::Channels(channels));
            }
            let mut pixels = vec![0; rows * columns * channels].into_boxed_slice();
            decoder.read_image(&mut pixels).map_err(damaged)?;
            return Ok(([rows, columns, channels], pixels));
        }
        _ => DynamicImage::from_decoder(decoder).map_err(damaged)?,
    };
    if image.color().has_alpha() && image.to_rgba8().pixels().any(|pixel| pixel.0[3] != 255) {
        return Err(Unfit::Damaged("has transparent pixels, for which there is no colour".into()));
    }
    if let Some(size) = resize {
        image = image.resize_to_fill(size, size, FilterType::Lanczos3);
    }
    let (rows, columns) = (image.height() as usize, image.width() as usize);
    let (channels, pixels) =
        if image.color().has_color() { (3, image.into_rgb8().into_raw()) } else { (1, image.into_luma8().into_raw()) };
    match expected {
        Some([.., expected]) if expected != channels => Err(Unfit::Channels(channels)),
        _ => Ok(([rows, columns, channels], pixels.into_boxed_slice())),
    }
}
