//! External files, read with their checksum and without trusting what they declare.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::dataset::{Source, hex};
use crate::error::{Error, Result};

/// Deflate's best compression ratio, which bounds the decompressed size.
const DEFLATE_RATIO: u64 = 1032;
/// Zstandard's: a block of 128 KiB of one byte takes four.
const ZSTANDARD_RATIO: u64 = 1 << 15;
/// Window limit of a Zstandard file: 128 MiB, as in its own tool.
const ZSTANDARD_WINDOW: u32 = 27;
pub(super) const COPY_AGAIN: &str = "it is damaged: copy or download it again";

/// A file that is hashed while it is read.
pub(super) struct HashedFile {
    file: File,
    path: PathBuf,
    len: u64,
    sha: Sha256,
}

impl HashedFile {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let metadata = file.metadata().map_err(Error::io(path, "read"))?;
        if !metadata.is_file() {
            return Err(Error::file(path, "is not a regular file", "give a file"));
        }
        Ok(Self { file, path: path.to_path_buf(), len: metadata.len(), sha: Sha256::new() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content, decompressed if it starts as gzip or Zstandard.
    pub fn content(&mut self) -> Result<Content<'_>> {
        let (path, len) = (self.path.clone(), self.len);
        decompressed(self, &path, len)
    }

    /// Name, size and checksum of the whole file, however much has been read.
    pub fn finish(mut self) -> Result<Source> {
        let mut buffer = vec![0; 1 << 17];
        while self.read(&mut buffer).map_err(Error::io(self.path.clone(), "read"))? > 0 {}
        Ok(Source { file: file_name(&self.path), bytes: self.len, sha256: hex(&self.sha.finalize()) })
    }
}

impl Read for HashedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.sha.update(&buffer[..read]);
        Ok(read)
    }
}

/// The content of `raw`, a file of `len` bytes at `path`, decompressed if it starts as gzip or Zstandard.
fn decompressed<'a>(raw: impl Read + 'a, path: &Path, len: u64) -> Result<Content<'a>> {
    let mut raw = BufReader::with_capacity(1 << 17, raw);
    let start = raw.fill_buf().map_err(Error::io(path, "read"))?;
    if start.starts_with(&[0x1f, 0x8b]) {
        let limit = len.saturating_mul(DEFLATE_RATIO);
        return Ok(Content { reader: Box::new(MultiGzDecoder::new(raw)), limit });
    }
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return zstandard(raw, path, len);
    }
    Ok(Content { reader: Box::new(raw), limit: len })
}

#[cfg(feature = "formats")]
fn zstandard<'a>(raw: BufReader<impl Read + 'a>, path: &Path, len: u64) -> Result<Content<'a>> {
    let mut reader = zstd::stream::read::Decoder::with_buffer(raw).map_err(Error::io(path, "read"))?;
    reader.window_log_max(ZSTANDARD_WINDOW).map_err(Error::io(path, "read"))?;
    Ok(Content { reader: Box::new(reader), limit: len.saturating_mul(ZSTANDARD_RATIO) })
}

#[cfg(not(feature = "formats"))]
fn zstandard<'a>(_: BufReader<impl Read + 'a>, path: &Path, _: u64) -> Result<Content<'a>> {
    let message = "is compressed by Zstandard, which this build does not read";
    Err(Error::file(path, message, "build with the feature `formats`, or decompress it"))
}

/// The first bytes of a file, at most `count`, decompressed if it is gzip or Zstandard; from a damaged one as many as possible.
pub(super) fn peek(path: &Path, count: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let len = file.metadata().map_err(Error::io(path, "read"))?.len();
    let mut start = Vec::new();
    // Damage is reported when the whole file is read.
    let _ = decompressed(file, path, len)?.take(count).read_to_end(&mut start);
    Ok(start)
}

/// The decompressed content of a file.
pub(super) struct Content<'a> {
    reader: Box<dyn Read + 'a>,
    /// The maximum decompressed size for a file of this size.
    pub limit: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

/// The last component of a path, for messages and records.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The error of a read: the operating system's, or that of a damaged archive.
pub(super) fn read_error(path: &Path, error: io::Error) -> Error {
    if error.raw_os_error().is_some() {
        return Error::io(path, "read")(error);
    }
    let message = match error.kind() {
        io::ErrorKind::UnexpectedEof => "ends too early".to_owned(),
        _ => format!("cannot be unpacked: {}", error.to_string().replace('\n', " ")),
    };
    Error::file(path, message, COPY_AGAIN)
}
