//! Pictures in a folder or an archive: flat, by class (`CLASS/x.png`, or `train/CLASS/x.jpg` and `test/CLASS/x.jpg`), with a
//! label file beside them, or as WebDataset shards.
//!
//! Classes are the folders' names, sorted (numbers by value), and images are sorted by class and path, so that the result does not
//! depend on the order of a folder or an archive. The data set's notes list all changes and omissions.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::archive::{Next, for_each_member};
use super::dataset::{FROM_JPEG, Parts, Source, Split, hex};
use super::draft::{Draft, Spool};
use super::import::{Colour, ImportOptions, hold_out};
use super::labels::{self, Labels};
use super::layout::{arrange, listed};
use super::source::{HashedFile, file_name};
use crate::error::{Error, Result};
use crate::image_size::ImageSize;
use crate::picture::{Image, LONGEST_FILE, Note, Picture, PictureKind, decode_picture};
use crate::progress::{Activity, Unit};
use crate::words::counted;

/// Bytes read before decoding in parallel.
const BATCH_BYTES: u64 = 16 << 20;
const BATCH_FILES: usize = 4096;
/// Bytes of decoded pictures in memory at a time, unless one picture per processor is larger.
const DECODED_BYTES: usize = 16 << 20;
/// Deepest folder level of a picture below the source.
const DEEPEST: usize = 16;
/// Number of leading bytes that identify a file.
const START: u64 = 32;

/// Whether a path is hidden, or in a hidden folder: `.ipynb_checkpoints/`, and `._x.jpg`, which macOS puts beside `x.jpg`.
pub(super) fn is_hidden(path: &str) -> bool {
    path.split('/').any(|part| (part.starts_with('.') && !matches!(part, "." | "..")) || part == "__MACOSX")
}

/// Whether a path has a picture's ending.
pub(super) fn is_image(path: &str) -> bool {
    !is_hidden(path) && PictureKind::is_named(path)
}

/// Reads the pictures below `folder`, which may also be in archives (shards).
pub(super) fn read_folder(folder: &Path, options: &ImportOptions) -> Result<Draft> {
    let mut found = Found::default();
    found.list(folder, "", 0)?;
    found.files.sort();
    let mut pictures = Pictures::new(folder, options, Some(found.files.len()))?;
    pictures.hidden = found.hidden;
    pictures.links = found.links;
    let mut bytes = 0;
    let mut sha = Sha256::new();
    let mut at = 0;
    while at < found.files.len() {
        let mut batch_bytes = 0;
        let small = |file: &&(String, u64)| {
            batch_bytes += file.1;
            batch_bytes <= BATCH_BYTES
        };
        let count = found.files[at..].iter().take(BATCH_FILES).take_while(small).count().max(1);
        let batch = &found.files[at..at + count];
        at += count;
        // All results first, so that the error of the first file is reported.
        let files = batch.par_iter().map(|(path, len)| read_file(folder, path, *len)).collect::<Vec<Result<_>>>();
        for (file, (path, _)) in files.into_iter().zip(batch) {
            if let Some((digest, content)) = file? {
                bytes += content.len() as u64;
                sha.update(format!("{digest}  {path}\n"));
                pictures.member(path, content)?;
            } else {
                pictures.others.push(path.clone());
            }
        }
        pictures.decode()?;
    }
    if pictures.is_empty() && !found.archives.is_empty() {
        return read_shards(folder, &found.archives, pictures);
    }
    pictures.others.extend(found.archives);
    let name = folder.canonicalize().map_or_else(|_| file_name(folder), |path| file_name(&path));
    let source = Source { file: format!("{name}/"), bytes, sha256: hex(&sha.finalize()) };
    pictures.finish(vec![source])
}

/// The pictures below a folder, sorted by path: files with a picture's first bytes or ending. Hidden files and links are skipped.
///
/// # Errors
/// [`Error::Io`] if a folder cannot be listed, [`Error::File`] if it is too deep.
pub fn picture_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Found::default();
    found.list(folder, "", 0)?;
    found.files.sort();
    let mut files = Vec::new();
    for (path, _) in found.files {
        let place = folder.join(&path);
        let mut start = Vec::new();
        let file = File::open(&place).map_err(Error::io(&place, "open"))?;
        file.take(START).read_to_end(&mut start).map_err(Error::io(&place, "read"))?;
        if PictureKind::is_named(&path) || PictureKind::of(&start).is_some() {
            files.push(place);
        }
    }
    Ok(files)
}

/// Reads the pictures in an archive.
pub(super) fn read_archive(path: &Path, options: &ImportOptions) -> Result<Draft> {
    let mut pictures = Pictures::new(path, options, None)?;
    let source = pictures.archive(path, "")?;
    pictures.finish(vec![source])
}

/// Reads the archives in a folder as parts of one set. Their names give the splits: `train-00000.tar`.
fn read_shards(folder: &Path, archives: &[String], mut pictures: Pictures) -> Result<Draft> {
    let split = |name: &str| {
        let word: String = name.chars().take_while(|c| c.is_ascii_alphabetic()).collect();
        super::layout::split_of(&word).map_or("train", |split| if split == Split::Train { "train" } else { "test" })
    };
    let several = archives.iter().any(|name| split(name) == "test");
    let mut sources = Vec::new();
    for name in archives {
        let below = if several { format!("{}/{name}", split(name)) } else { name.clone() };
        sources.push(pictures.archive(&folder.join(name), &below)?);
    }
    pictures.finish(sources)
}

/// The bytes of a file with their SHA-256; None if it is neither a picture nor a label file.
fn read_file(folder: &Path, path: &str, len: u64) -> Result<Option<(String, Vec<u8>)>> {
    let place = folder.join(path);
    let mut file = File::open(&place).map_err(Error::io(&place, "open"))?;
    let mut bytes = Vec::new();
    let known = PictureKind::is_named(path) || labels::form_of(path).is_some() || labels::is_keyed(path);
    if !known {
        (&mut file).take(START).read_to_end(&mut bytes).map_err(Error::io(&place, "read"))?;
        if PictureKind::of(&bytes).is_none() {
            return Ok(None);
        }
    }
    if len > LONGEST_FILE {
        return Err(Error::file(place, format!("is {len} bytes long"), "leave it out of the folder"));
    }
    file.take(LONGEST_FILE).read_to_end(&mut bytes).map_err(Error::io(&place, "read"))?;
    Ok(Some((hex(&Sha256::digest(&bytes)), bytes)))
}

/// The files below a folder, as relative paths with `/` between the components.
#[derive(Default)]
struct Found {
    /// Paths with lengths.
    files: Vec<(String, u64)>,
    /// Archives in the folder itself.
    archives: Vec<String>,
    hidden: Vec<String>,
    links: Vec<String>,
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
            if is_hidden(&name) {
                self.hidden.push(path);
            } else if kind.is_symlink() {
                self.links.push(path);
            } else if kind.is_dir() {
                if depth == DEEPEST {
                    let message = format!("is more than {DEEPEST} folders below {}", root.display());
                    return Err(Error::file(entry.path(), message, "give the folder of the classes"));
                }
                self.list(root, &path, depth + 1)?;
            } else if kind.is_file() && below.is_empty() && is_archive_name(&path) {
                self.archives.push(path);
                self.archives.sort();
            } else if kind.is_file() {
                let len = entry.metadata().map_err(Error::io(entry.path(), "read"))?.len();
                self.files.push((path, len));
            }
        }
        Ok(())
    }
}

/// Whether a file with this name is an archive that may contain pictures.
pub(super) fn is_archive_name(name: &str) -> bool {
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".zip"].iter().any(|ending| name.ends_with(ending))
}

/// The size limit of an archive member with this name; None if it is neither a picture nor a label file.
fn longest(name: &str) -> Option<u64> {
    if labels::form_of(name).is_some() {
        Some(labels::LONGEST_LABELS)
    } else if labels::is_keyed(name) {
        Some(labels::LONGEST_LABEL)
    } else {
        // Without an ending, the bytes decide.
        let bare = !name.rsplit('/').next().unwrap_or_default().contains('.');
        (PictureKind::is_named(name) || bare).then_some(LONGEST_FILE)
    }
}

/// A picture whose pixels are stored.
struct Decoded {
    path: String,
    height: u32,
    width: u32,
    channels: u8,
    /// The offset of its bytes.
    at: u64,
}

impl Decoded {
    fn bytes(&self) -> usize {
        self.height as usize * self.width as usize * usize::from(self.channels)
    }

    /// The picture, of all pixels.
    fn image(&self, pixels: &[u8]) -> Result<Image> {
        let own = pixels[self.at as usize..][..self.bytes()].to_vec();
        Image::new(self.width as usize, self.height as usize, self.channels.into(), own)
    }
}

/// Pictures during collection.
pub(super) struct Pictures<'a> {
    options: &'a ImportOptions,
    root: &'a Path,
    /// Read but not yet decoded.
    batch: Vec<(String, Vec<u8>)>,
    batch_bytes: u64,
    decoded: Vec<Decoded>,
    /// Their pixels.
    pixels: Spool,
    /// Bytes of the largest one.
    largest: usize,
    pub labels: Labels,
    /// Whether to ignore folders and label files.
    pub unlabelled: bool,
    /// The common height and width of all.
    target: Option<ImageSize>,
    /// The reason for it, if not `--resize`.
    reason: Option<String>,
    counts: BTreeMap<Note, usize>,
    /// Number of JPEG files.
    jpeg: usize,
    damaged: Vec<String>,
    others: Vec<String>,
    links: Vec<String>,
    hidden: Vec<String>,
    progress: Activity,
}

impl<'a> Pictures<'a> {
    pub fn new(root: &'a Path, options: &'a ImportOptions, files: Option<usize>) -> Result<Self> {
        let sides = options.resize.map_or([1, 1], ImageSize::sides);
        if sides.iter().any(|side| !(1..=4096).contains(side)) {
            let advice = "give a size in pixels such as 32, or HEIGHTxWIDTH";
            return Err(Error::config("resize", "is not from 1 to 4096", advice));
        }
        let progress = options.progress.begin("pictures", Unit::Pictures, files.map(|files| files as u64));
        Ok(Self {
            options,
            root,
            batch: Vec::new(),
            batch_bytes: 0,
            decoded: Vec::new(),
            pixels: Spool::new(options.scratch.as_deref())?,
            largest: 0,
            labels: Labels::default(),
            unlabelled: options.unlabelled,
            target: options.resize,
            reason: None,
            counts: BTreeMap::new(),
            jpeg: 0,
            damaged: Vec::new(),
            others: Vec::new(),
            links: Vec::new(),
            hidden: Vec::new(),
            progress,
        })
    }

    fn is_empty(&self) -> bool {
        self.decoded.is_empty() && self.damaged.is_empty()
    }

    /// Adds the pictures of an archive, as if it were the folder `below`.
    fn archive(&mut self, path: &Path, below: &str) -> Result<Source> {
        let mut file = HashedFile::open(path)?;
        let links = for_each_member(&mut file, |mut member| {
            let name = if below.is_empty() { member.path.clone() } else { format!("{below}/{}", member.path) };
            if is_hidden(&member.path) {
                self.hidden.push(name);
                return Ok(Next::Continue);
            }
            let sure = PictureKind::is_named(&name) || labels::form_of(&name).is_some();
            let Some(limit) = longest(&name).filter(|&limit| sure || member.size <= limit) else {
                self.others.push(name);
                return Ok(Next::Continue);
            };
            let bytes = member.read(path, limit)?;
            if !sure && !labels::is_keyed(&name) && PictureKind::of(&bytes).is_none() {
                self.others.push(name);
                return Ok(Next::Continue);
            }
            self.member(&name, bytes)?;
            self.decode_when_full()?;
            Ok(Next::Continue)
        })?;
        if links > 0 {
            self.links.push(format!("{links} in {}", file_name(path)));
        }
        self.decode()?;
        file.finish()
    }

    /// Processes a label file immediately, a picture with the next batch.
    pub fn member(&mut self, path: &str, bytes: Vec<u8>) -> Result<()> {
        if let Some(form) = labels::form_of(path) {
            return self.labels.add(self.root, path, form, &bytes);
        }
        if labels::is_keyed(path) {
            self.labels.add_keyed(path, &bytes);
            return Ok(());
        }
        self.batch_bytes += bytes.len() as u64;
        self.batch.push((path.to_owned(), bytes));
        Ok(())
    }

    /// Decodes the read files once there are enough for all processors.
    pub fn decode_when_full(&mut self) -> Result<()> {
        if self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_FILES { self.decode() } else { Ok(()) }
    }

    /// Decodes the read files.
    pub fn decode(&mut self) -> Result<()> {
        let mut batch = std::mem::take(&mut self.batch).into_iter();
        self.batch_bytes = 0;
        let (target, options) = (self.target, self.options);
        let decode = |(path, bytes): (String, Vec<u8>)| {
            let picture =
                decode_picture(&bytes, options.background).and_then(|picture| fitted(picture, target, options));
            (path, picture, PictureKind::of(&bytes) == Some(PictureKind::Jpeg))
        };
        while batch.len() > 0 {
            let some: Vec<_> = batch.by_ref().take(self.at_a_time()).collect();
            let pictures: Vec<_> = some.into_par_iter().map(decode).collect();
            for (path, picture, is_jpeg) in pictures {
                match picture {
                    Ok(Picture { image, notes }) => {
                        self.jpeg += usize::from(is_jpeg);
                        notes.into_iter().for_each(|note| *self.counts.entry(note).or_default() += 1);
                        self.put(path, &image)?;
                    }
                    Err(message) if self.options.skip_damaged => self.damaged.push(format!("{path} ({message})")),
                    Err(message) => {
                        let advice = "repair it, or leave damaged pictures out with `skip_damaged`";
                        return Err(Error::file(self.root.join(path), message, advice));
                    }
                }
            }
        }
        self.progress.at(self.decoded.len() as u64);
        self.choose_size()
    }

    /// Number of pictures decoded at a time: the size of the first ones is unknown.
    fn at_a_time(&self) -> usize {
        let processors = rayon::current_num_threads();
        DECODED_BYTES.checked_div(self.largest).map_or(processors, |count| count.max(processors))
    }

    fn put(&mut self, path: String, image: &Image) -> Result<()> {
        let (height, width, channels) = (image.height() as u32, image.width() as u32, image.channels() as u8);
        self.decoded.push(Decoded { path, height, width, channels, at: self.pixels.len() });
        self.largest = self.largest.max(image.pixels().len());
        self.pixels.push(image.pixels())
    }

    /// Resizes all pictures as soon as there are several sizes, or a large one that is not wanted.
    fn choose_size(&mut self) -> Result<()> {
        if self.target.is_some() || self.decoded.is_empty() {
            return Ok(());
        }
        let sizes =
            || self.decoded.iter().map(|picture| ImageSize::new(picture.height as usize, picture.width as usize));
        let Some(first) = sizes().next() else { return Ok(()) };
        let reason = if let Some(other) = sizes().find(|&size| size != first) {
            format!("they have several sizes, as {first} and {other}")
        } else if self.options.keep_size_to.is_some_and(|most| first.sides().iter().any(|&side| side > most)) {
            format!("they are {first}")
        } else if let step = self.options.keep_multiples_of.max(1)
            && first.sides().iter().any(|side| !side.is_multiple_of(step))
        {
            format!("they are {first}, and the model needs multiples of {step}")
        } else {
            return Ok(());
        };
        self.reason = Some(reason);
        self.target = Some(self.options.fallback_size);
        let (target, options) = (self.target, self.options);
        let pixels = std::mem::replace(&mut self.pixels, Spool::new(options.scratch.as_deref())?).finish()?;
        let mut before = std::mem::take(&mut self.decoded).into_iter();
        while before.len() > 0 {
            let some: Vec<_> = before.by_ref().take(self.at_a_time()).collect();
            let fit = |picture: Decoded| {
                let fitted = picture.image(&pixels).map_err(|error| error.to_string());
                let fitted = fitted.and_then(|image| fitted_to(image, target, options));
                (picture.path, fitted)
            };
            let resized: Vec<_> = some.into_par_iter().map(fit).collect();
            for (path, picture) in resized {
                let Picture { image, notes } =
                    picture.map_err(|message| Error::file(self.root.join(&path), message, "leave it out"))?;
                notes.into_iter().for_each(|note| *self.counts.entry(note).or_default() += 1);
                self.put(path, &image)?;
            }
        }
        self.largest = 0;
        Ok(())
    }

    pub fn finish(mut self, sources: Vec<Source>) -> Result<Draft> {
        if self.decoded.is_empty() {
            let message = match self.damaged.len() {
                0 => format!(
                    "has no pictures ({} other files, {} links, which are not followed, {} hidden)",
                    self.others.len(),
                    self.links.len(),
                    self.hidden.len()
                ),
                damaged => format!("has no intact pictures: {damaged} are damaged, as {}", self.damaged[0]),
            };
            return Err(Error::file(self.root, message, "give a folder or an archive of pictures"));
        }
        self.decoded.sort_by(|a, b| a.path.cmp(&b.path));
        if let Some(pair) = self.decoded.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(Error::file(self.root.join(&pair[0].path), "occurs twice", "leave one out"));
        }
        let paths: Vec<&str> = self.decoded.iter().map(|picture| picture.path.as_str()).collect();
        let arranged = arrange(self.root, &paths, &self.labels, self.unlabelled)?;
        let channels = self.channels();
        // With listed labels the order is that of the paths; else sorted by class.
        let listed = !self.labels.is_empty();
        let mut order: Vec<(bool, u16, usize)> = (arranged.places.iter().enumerate())
            .filter_map(|(i, place)| place.map(|place| (place.split != Split::Train, place.label, i)))
            .collect();
        order.sort_unstable_by_key(|&(held_out, label, i)| (held_out, if listed { 0 } else { label }, i));
        let Some((height, width)) = self.decoded.first().map(|picture| (picture.height, picture.width)) else {
            return Err(Error::file(self.root, "has no pictures", "give a folder or an archive of pictures"));
        };
        if order.is_empty() {
            return Err(Error::file(self.root, "has no pictures that have a class", "take them with `unlabelled`"));
        }
        let parts = Parts {
            height: height as usize,
            width: width as usize,
            channels,
            class_names: arranged.class_names,
            labels: order.iter().map(|&(_, label, _)| label).collect(),
            train: order.iter().filter(|&&(held_out, ..)| !held_out).count(),
            sources,
            ..Parts::default()
        };
        let places: Vec<usize> = order.into_iter().map(|(.., i)| i).collect();
        let mut draft = self.draft(parts, &places)?;
        draft.notes = self.notes(arranged.notes);
        if !arranged.has_split {
            hold_out(&mut draft, self.options);
        }
        Ok(draft)
    }

    /// The set of the pictures at `places`, converted to the same number of channels.
    fn draft(&mut self, parts: Parts, places: &[usize]) -> Result<Draft> {
        let channels = parts.channels;
        let of = |other: usize| places.iter().filter(|&&i| usize::from(self.decoded[i].channels) == other).count();
        let (coloured, greyed) = (if channels == 3 { of(1) } else { 0 }, if channels == 1 { of(3) } else { 0 });
        let pixels = std::mem::replace(&mut self.pixels, Spool::Memory(Vec::new()));
        self.counts
            .extend([(Note::Coloured, coloured), (Note::Greyed, greyed)].into_iter().filter(|(_, count)| *count > 0));
        if self.decoded.iter().all(|picture| usize::from(picture.channels) == channels) {
            // All have the same size, so the offset gives the index.
            let size = self.decoded.first().map_or(1, Decoded::bytes) as u64;
            let order = places.iter().map(|&i| (self.decoded[i].at / size) as u32).collect();
            return Ok(Draft::of(parts, pixels, order));
        }
        let pixels = pixels.finish()?;
        let mut draft = Draft::new(parts, self.options)?;
        for &i in places {
            draft.pixels.push(self.decoded[i].image(&pixels)?.with_channels(channels).pixels())?;
        }
        Ok(draft)
    }

    /// 1 or 3, for all pictures.
    fn channels(&self) -> usize {
        match self.options.color {
            Some(Colour::Rgb) => 3,
            Some(Colour::Grey) => 1,
            None => self.decoded.iter().map(|picture| picture.channels.into()).max().unwrap_or(1),
        }
    }

    /// Notes on changes and omissions, one sentence each.
    fn notes(&self, arranged: Vec<String>) -> Vec<String> {
        let mut notes = arranged;
        let total = self.decoded.len();
        for (note, count) in self.counts.iter().filter(|(note, _)| **note != Note::Resized) {
            notes.push(format!("{count} of {}: {note}", counted(total, "picture")));
        }
        if let (Some(size), Some(count)) = (self.target, self.counts.get(&Note::Resized)) {
            let why = match &self.reason {
                Some(reason) => format!(", since {reason}; `resize` takes another size"),
                None => String::new(),
            };
            let fit = format!("{:?}", self.options.fit).to_lowercase();
            let all = counted(total, "picture");
            notes.push(format!("{count} of {all}: resized to {size} (`fit = {fit}`){why}"));
        }
        // What was done with one of them, and with several.
        for (one, several, names) in [
            ("left out 1 damaged picture", "left out {} damaged pictures", &self.damaged),
            ("skipped 1 file that is not a picture", "skipped {} files that are not pictures", &self.others),
            ("skipped 1 link, which is not followed", "skipped {} links, which are not followed", &self.links),
            ("skipped 1 hidden file or folder", "skipped {} hidden files and folders", &self.hidden),
        ] {
            let what = match names.len() {
                0 => continue,
                1 => one.to_string(),
                count => several.replace("{}", &count.to_string()),
            };
            notes.push(format!("{what}: {}", listed(names)));
        }
        if self.jpeg > 0 {
            notes.push(format!("{} of {total} {FROM_JPEG}", self.jpeg));
        }
        notes
    }
}

/// A stored picture in the requested size.
fn fitted_to(image: Image, target: Option<ImageSize>, options: &ImportOptions) -> Result<Picture, String> {
    fitted(Picture { image, notes: Vec::new() }, target, options)
}

/// A picture in the requested size.
fn fitted(picture: Picture, target: Option<ImageSize>, options: &ImportOptions) -> Result<Picture, String> {
    let Some(ImageSize { height, width }) = target else { return Ok(picture) };
    let shape = [height, width, picture.image.channels()];
    picture.fitted(shape, options.fit, options.background).map_err(|error| error.to_string())
}
