//! A data set during import: pixels are written to disk as they arrive, so that no import holds a whole set in memory.
//!
//! Without a scratch folder ([`ImportOptions::scratch`](super::ImportOptions::scratch)) they are collected in memory.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::Mmap;

use super::dataset::{Dataset, Parts};
use super::import::ImportOptions;
use super::source::read_error;
use super::storage::{Bytes, Storage};
use crate::error::{Error, Result};

/// Bytes per read.
pub(super) const BLOCK: usize = 4 << 20;

/// A growing sequence of bytes: in memory, or in an unlinked file in a scratch folder, which disappears in any case.
#[derive(Debug)]
pub(super) enum Spool {
    Memory(Vec<u8>),
    File { writer: BufWriter<File>, len: u64, folder: PathBuf },
}

impl Spool {
    /// An empty one; in memory without a scratch folder.
    pub fn new(scratch: Option<&Path>) -> Result<Self> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let Some(folder) = scratch else { return Ok(Self::Memory(Vec::new())) };
        fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
        loop {
            let number = MADE.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!(".engine-{}-{number}.scratch", std::process::id()));
            match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                // Left over from an earlier process with the same id.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(path, "write")(error)),
                Ok(file) => {
                    fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
                    let writer = BufWriter::with_capacity(1 << 20, file);
                    return Ok(Self::File { writer, len: 0, folder: folder.to_path_buf() });
                }
            }
        }
    }

    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    pub fn push(&mut self, more: &[u8]) -> Result<()> {
        match self {
            Self::Memory(bytes) => bytes.extend_from_slice(more),
            Self::File { writer, len, folder } => {
                writer.write_all(more).map_err(Error::io(&*folder, "write"))?;
                *len += more.len() as u64;
            }
        }
        Ok(())
    }

    /// Appends the data of `reader`, at most `limit` bytes, of the file at `path`; returns their number.
    pub fn take(&mut self, reader: impl Read, limit: u64, path: &Path) -> Result<u64> {
        let mut reader = reader.take(limit);
        if let Self::Memory(bytes) = self {
            return reader.read_to_end(bytes).map(|read| read as u64).map_err(|e| read_error(path, e));
        }
        let mut buffer = vec![0; 1 << 17];
        let mut total = 0;
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(total),
                Ok(read) => {
                    self.push(&buffer[..read])?;
                    total += read as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(path, error)),
            }
        }
    }

    /// All bytes, mapped if they are on disk.
    pub fn finish(self) -> Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(Bytes::Owned(bytes)),
            Self::File { len: 0, .. } => Ok(Bytes::Owned(Vec::new())),
            Self::File { writer, folder, .. } => {
                let file = writer.into_inner().map_err(|error| Error::io(&*folder, "write")(error.into_error()))?;
                // SAFETY: nobody else can open the file, which has no name, and it is only read from here on.
                unsafe { Mmap::map(&file) }.map(Bytes::Mapped).map_err(Error::io(&*folder, "map"))
            }
        }
    }
}

/// The result of an importer: the set without its images in `parts`, and the pixels.
pub(super) struct Draft {
    parts: Parts,
    /// The images in sequence.
    pub pixels: Spool,
    /// The index in `pixels` of each image, if the order differs.
    order: Option<Vec<u32>>,
}

impl Deref for Draft {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl DerefMut for Draft {
    fn deref_mut(&mut self) -> &mut Parts {
        &mut self.parts
    }
}

impl Draft {
    /// With `parts` but without pixels.
    pub fn new(parts: Parts, options: &ImportOptions) -> Result<Self> {
        Ok(Self { parts, pixels: Spool::new(options.scratch.as_deref())?, order: None })
    }

    /// With `parts` and images in `pixels`, image k at index `order[k]`.
    pub fn of(parts: Parts, pixels: Spool, order: Vec<u32>) -> Self {
        Self { parts, pixels, order: Some(order) }
    }

    /// Reorders images and labels: the new k-th is the old `order[k]`-th.
    pub fn permute(&mut self, order: &[usize]) {
        let place = |&i: &usize| self.order.as_ref().map_or(i as u32, |order| order[i]);
        self.order = Some(order.iter().map(place).collect());
        self.parts.labels = order.iter().map(|&i| self.parts.labels[i]).collect();
    }

    /// The finished set; its pixels are not copied.
    ///
    /// # Errors
    /// As [`Dataset::from_parts`].
    pub fn finish(self) -> Result<Dataset> {
        let bytes = self.pixels.finish()?;
        let len = bytes.len();
        let size = [self.parts.width, self.parts.channels].iter().try_fold(self.parts.height, |n, &m| n.checked_mul(m));
        let storage = match self.order {
            Some(order)
                if size.is_none_or(|size| order.iter().any(|&i| (i as usize + 1).saturating_mul(size) > len)) =>
            {
                return Err(Error::shape("data set", format!("{} images do not take {len} bytes", order.len())));
            }
            Some(order) => Storage::Ordered(bytes, order, OnceLock::new()),
            None => Storage::Whole(bytes, 0..len),
        };
        Dataset::from_storage(self.parts, storage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_on_the_disk_is_one_in_memory_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut spools = [Spool::new(Some(folder.path())).unwrap(), Spool::new(None).unwrap()];
        for spool in &mut spools {
            for part in 0..50u8 {
                spool.push(&vec![part; 100_000]).unwrap();
            }
            assert_eq!(spool.take(&[7u8; 9][..], 5, Path::new("x")).unwrap(), 5);
            assert_eq!(spool.len(), 5_000_005);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let [on_disk, in_memory] = spools.map(|spool| spool.finish().unwrap());
        assert!(matches!(on_disk, Bytes::Mapped(_)) && *on_disk == *in_memory);
        assert!(Spool::new(Some(folder.path())).unwrap().finish().unwrap().is_empty());
    }

    #[test]
    fn a_draft_on_the_disk_is_one_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let sets = [None, Some(folder.path().to_path_buf())].map(|scratch| {
            let parts = Parts { height: 1, width: 2, channels: 1, class_names: vec!["a".into()], ..Parts::default() };
            let options = ImportOptions { scratch, ..ImportOptions::default() };
            let mut draft = Draft::new(parts, &options).unwrap();
            for i in 0..4 {
                draft.pixels.push(&[i, 10 + i]).unwrap();
                draft.labels.push(0);
            }
            draft.train = 3;
            draft.permute(&[3, 2, 1, 0]);
            draft.permute(&[1, 0, 2, 3]);
            draft.finish().unwrap()
        });
        assert_eq!(sets[0].images(), [2, 12, 3, 13, 1, 11, 0, 10]);
        assert_eq!((sets[0].images(), sets[1].image(1)), (sets[1].images(), &[3, 13][..]));
        let short = Draft::of(sets[0].0.parts.clone(), Spool::Memory(vec![0; 7]), vec![0, 1, 2, 3]);
        assert!(short.finish().unwrap_err().to_string().contains("do not take 7 bytes"));
    }
}
