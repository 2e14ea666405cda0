//! CIFAR-10's binary batches, in a folder or in the published archive.
//!
//! A record is a label byte and the red, green and blue planes of 32x32 bytes; a batch is 10,000 records. Krizhevsky,
//! *Learning Multiple Layers of Features from Tiny Images*, 2009.

use std::io::Read;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::archive::{Next, for_each_member};
use super::dataset::{Parts, Source};
use super::draft::Draft;
use super::import::ImportOptions;
use super::official;
use super::source::HashedFile;
use crate::error::{Error, Result};

const BATCHES: [&str; 6] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
    "test_batch.bin",
];
const TEST: usize = 5;
const SIZE: usize = 32;
const PLANE: usize = SIZE * SIZE;
const IMAGE: usize = 3 * PLANE;
const RECORD: usize = 1 + IMAGE;
const RECORDS: usize = 10_000;
const BATCH_BYTES: usize = RECORDS * RECORD;

/// Whether a file with this name is one of the batches.
pub(super) fn is_batch(name: &str) -> bool {
    BATCHES.contains(&name)
}

/// Reads the batches in `folder`, or in its subfolder with the archive's name.
pub(super) fn read_folder(folder: &Path, options: &ImportOptions) -> Result<Draft> {
    let inner = folder.join("cifar-10-batches-bin");
    let folder = if inner.is_dir() { &inner } else { folder };
    let mut batches = Batches::new(options)?;
    for (index, name) in BATCHES.iter().enumerate() {
        let path = folder.join(name);
        if !path.exists() {
            continue;
        }
        let mut file = HashedFile::open(&path)?;
        let len = path.metadata().map_err(Error::io(&path, "read"))?.len();
        batches.check_length(&path, "", index, len)?;
        let mut bytes = Vec::new();
        (&mut file).take(BATCH_BYTES as u64).read_to_end(&mut bytes).map_err(Error::io(&path, "read"))?;
        batches.add(&path, "", index, &bytes)?;
        batches.parts.sources.push(file.finish()?);
    }
    batches.finish(folder)
}

/// Reads the batches in an archive.
pub(super) fn read_archive(path: &Path, options: &ImportOptions) -> Result<Draft> {
    let mut batches = Batches::new(options)?;
    let mut file = HashedFile::open(path)?;
    for_each_member(&mut file, |mut member| {
        let name = member.path.rsplit('/').next().unwrap_or_default();
        if let Some(index) = BATCHES.iter().position(|batch| *batch == name) {
            batches.check_length(path, &format!("{name} "), index, member.size)?;
            let bytes = member.read(path, BATCH_BYTES as u64)?;
            batches.add(path, &format!("{} ", BATCHES[index]), index, &bytes)?;
        }
        Ok(Next::Continue)
    })?;
    let source: Source = file.finish()?;
    batches.parts.sources.push(source);
    batches.finish(path)
}

/// The batches read so far, in the archive's order.
struct Batches<'a> {
    options: &'a ImportOptions,
    /// The number of images of each, in reading order.
    read: [Option<Range<usize>>; 6],
    parts: Draft,
}

impl<'a> Batches<'a> {
    fn new(options: &'a ImportOptions) -> Result<Self> {
        let parts = Parts { height: SIZE, width: SIZE, channels: 3, ..Parts::default() };
        Ok(Self { options, read: Default::default(), parts: Draft::new(parts, options)? })
    }

    /// `member` is the batch's name, followed by a space, if `path` is an archive.
    fn check_length(&self, path: &Path, member: &str, index: usize, len: u64) -> Result<()> {
        if len == BATCH_BYTES as u64 || (len < BATCH_BYTES as u64 && self.options.allow_partial) {
            return Ok(());
        }
        let message = format!(
            "{member}is {len} bytes long where a CIFAR-10 batch has {BATCH_BYTES} ({RECORDS} records of {RECORD})"
        );
        let advice = match len / RECORD as u64 {
            whole if whole < RECORDS as u64 => {
                format!("get the whole file, or take its {whole} whole records with `allow_partial`")
            }
            _ => format!("{} is not a file of the binary version: download it again", BATCHES[index]),
        };
        Err(Error::file(path, message, advice))
    }

    fn add(&mut self, path: &Path, member: &str, index: usize, bytes: &[u8]) -> Result<()> {
        let name = BATCHES[index];
        let records = bytes.chunks_exact(RECORD);
        let (count, rest) = (records.len(), records.remainder().len());
        if let Some(bad) = records.clone().position(|record| record[0] > 9) {
            let label = bytes[bad * RECORD];
            let message = format!("{member}record {bad} (byte {}) has label {label}, outside 0 to 9", bad * RECORD);
            return Err(Error::file(
                path,
                message,
                "it is damaged or not CIFAR-10's binary version: download it again",
            ));
        }
        if count < RECORDS {
            let left = if rest > 0 { format!(" and left {rest} bytes of a broken one") } else { String::new() };
            self.parts.notes.push(format!("{name} is short: took its {count} whole records of {RECORDS}{left}"));
        }
        let first = self.parts.labels.len();
        self.parts.labels.extend(records.map(|record| u16::from(record[0])));
        let mut images = vec![0; count * IMAGE];
        images.par_chunks_exact_mut(IMAGE).zip(bytes.par_chunks_exact(RECORD)).for_each(|(image, record)| {
            let planes = &record[1..];
            for (i, pixel) in image.chunks_exact_mut(3).enumerate() {
                pixel.copy_from_slice(&[planes[i], planes[PLANE + i], planes[2 * PLANE + i]]);
            }
        });
        self.parts.pixels.push(&images)?;
        match self.read[index].replace(first..first + count) {
            None => Ok(()),
            Some(_) => Err(Error::file(path, format!("has {name} twice"), "leave one out")),
        }
    }

    fn finish(mut self, path: &Path) -> Result<Draft> {
        let mut order = Vec::with_capacity(self.parts.labels.len());
        for (index, batch) in self.read.into_iter().enumerate() {
            match batch {
                Some(places) => order.extend(places),
                None if self.options.allow_partial => self.parts.notes.push(format!("there is no {}", BATCHES[index])),
                None => {
                    let advice = "download the whole set, or do without it with `allow_partial`";
                    return Err(Error::file(path, format!("has no {}", BATCHES[index]), advice));
                }
            }
            if index + 1 == TEST {
                self.parts.train = order.len();
            }
        }
        if !order.is_sorted() {
            self.parts.permute(&order);
        }
        if self.parts.train == 0 {
            return Err(Error::file(path, "has no training records", "download the whole set"));
        }
        self.parts.class_names = official::official("cifar10").map(official::Official::classes).unwrap_or_default();
        Ok(self.parts)
    }
}
