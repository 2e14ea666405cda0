//! Tar and zip archives as a stream of files. Nothing is unpacked to disk, links are skipped, and headers before a file (long
//! names, extended headers) are bounded.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use tar::{Archive, EntryType, PaxExtensions};
use zip::ZipArchive;
use zip::result::ZipError;

use super::draft::Spool;
use super::source::{COPY_AGAIN, HashedFile, peek, read_error};
use crate::error::{Error, Result};
use crate::files::describe;

/// The longest extended header that is read: far longer than any path needs.
const LONGEST_HEADER: u64 = 1 << 16;

/// Whether to continue with an archive.
#[derive(PartialEq, Eq)]
pub(super) enum Next {
    Continue,
    Stop,
}

/// A regular file in an archive.
pub(super) struct Member<'a> {
    /// Its path in the archive.
    pub path: String,
    pub size: u64,
    reader: &'a mut dyn Read,
}

impl Member<'_> {
    /// The bytes, at most `limit`.
    pub fn read(&mut self, archive: &Path, limit: u64) -> Result<Vec<u8>> {
        self.check_size(archive, limit)?;
        let mut bytes = Vec::new();
        self.reader.take(self.size).read_to_end(&mut bytes).map_err(|e| read_error(archive, e))?;
        self.check_whole(archive, bytes.len() as u64)?;
        Ok(bytes)
    }

    /// Copies the bytes, at most `limit`, into `spool`.
    pub fn spool(&mut self, archive: &Path, limit: u64, spool: &mut Spool) -> Result<()> {
        self.check_size(archive, limit)?;
        let taken = spool.take(&mut *self.reader, self.size, archive)?;
        self.check_whole(archive, taken)
    }

    fn check_size(&self, archive: &Path, limit: u64) -> Result<()> {
        if self.size <= limit {
            return Ok(());
        }
        let message = format!("{} is declared {} bytes long, more than the {limit} allowed", self.path, self.size);
        Err(Error::file(archive, message, "leave it out of the archive"))
    }

    fn check_whole(&self, archive: &Path, read: u64) -> Result<()> {
        if read == self.size {
            return Ok(());
        }
        let message = format!("ends inside {} ({read} of {} bytes)", self.path, self.size);
        Err(Error::file(archive, message, "it is damaged: copy or download it again"))
    }
}

/// Whether the file is an archive: zip, or tar, plain or compressed with gzip or Zstandard.
pub(super) fn is_archive(path: &Path) -> Result<bool> {
    let start = peek(path, 512)?;
    Ok(is_zip(&start) || is_tar(&start))
}

/// Whether a file that starts with `start` is a zip archive.
pub(super) fn is_zip(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06")
}

/// Whether the block is a tar header: by its magic, or by its checksum as in archives before POSIX.
fn is_tar(block: &[u8]) -> bool {
    let Some(block) = block.get(..512) else { return false };
    if &block[257..262] == b"ustar" {
        return true;
    }
    let stated = std::str::from_utf8(&block[148..156]).ok();
    let stated = stated.and_then(|text| u32::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok());
    let field = |at: usize| (148..156).contains(&at);
    let sum = block.iter().enumerate().map(|(at, &byte)| if field(at) { 32 } else { u32::from(byte) }).sum::<u32>();
    block[0] != 0 && stated == Some(sum)
}

/// Passes each regular file of the archive (`.zip`, `.tar`, `.tar.gz`, `.tar.zst`) to `visit` in order. Returns the number of
/// links.
pub(super) fn for_each_member(file: &mut HashedFile, visit: impl FnMut(Member<'_>) -> Result<Next>) -> Result<usize> {
    let start = peek(file.path(), 512)?;
    if is_zip(&start) {
        return for_each_in_zip(file.path(), visit);
    }
    if !is_tar(&start) {
        let message = format!("is {}, not a tar or zip archive", describe(&start));
        return Err(Error::file(file.path(), message, "give a source of a known format (see `data::Format`)"));
    }
    for_each_in_tar(file, visit)
}

fn for_each_in_zip(path: &Path, mut visit: impl FnMut(Member<'_>) -> Result<Next>) -> Result<usize> {
    let bad = |e: ZipError| match e {
        ZipError::Io(e) => read_error(path, e),
        e => Error::file(path, format!("is a damaged zip archive: {}", e.to_string().replace('\n', " ")), COPY_AGAIN),
    };
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut archive = ZipArchive::new(BufReader::with_capacity(1 << 17, file)).map_err(bad)?;
    let mut links = 0;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|e| match e {
            ZipError::UnsupportedArchive(what) => {
                let advice = "make it with deflate and without a password, or unpack it and name the folder";
                Error::file(path, format!("has a member that cannot be unpacked: {what}"), advice)
            }
            e => bad(e),
        })?;
        if entry.is_symlink() {
            links += 1;
        } else if entry.is_file() {
            let (name, size) = (entry.name().map_err(bad)?.replace('\\', "/"), entry.size());
            if visit(Member { path: name, size, reader: &mut entry })? == Next::Stop {
                break;
            }
        }
    }
    Ok(links)
}

fn for_each_in_tar(file: &mut HashedFile, mut visit: impl FnMut(Member<'_>) -> Result<Next>) -> Result<usize> {
    let path = file.path().to_path_buf();
    let content = file.content()?;
    let limit = content.limit;
    let mut zeros = TrailingZeros { reader: content.take(limit), count: 0 };
    let mut links = 0;
    let mut long_name = None;
    let mut archive = Archive::new(&mut zeros);
    for entry in archive.entries().map_err(|e| read_error(&path, e))?.raw(true) {
        let mut entry = entry.map_err(|e| read_error(&path, e))?;
        let size = entry.header().entry_size().map_err(|e| read_error(&path, e))?;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::GNULongName | EntryType::XHeader => {
                let mut header = Member { path: "an extended header".into(), size, reader: &mut entry };
                let bytes = header.read(&path, LONGEST_HEADER)?;
                let name = if kind == EntryType::XHeader { pax_path(&bytes) } else { Some(c_string(&bytes)) };
                long_name = name.or(long_name);
            }
            EntryType::Regular | EntryType::Continuous => {
                let name = long_name.take().unwrap_or_else(|| lossy(&entry.path_bytes()));
                // Before POSIX, a folder was a file with a trailing slash.
                if !name.ends_with('/') && visit(Member { path: name, size, reader: &mut entry })? == Next::Stop {
                    return Ok(links);
                }
            }
            _ => {
                links += usize::from(matches!(kind, EntryType::Symlink | EntryType::Link));
                if !matches!(kind, EntryType::XGlobalHeader | EntryType::GNULongLink) {
                    long_name = None;
                }
            }
        }
    }
    if zeros.count < 512 {
        let message = "ends without the mark that closes a tar archive: cut short";
        return Err(Error::file(path, message, "it is damaged: copy or download it again"));
    }
    Ok(links)
}

fn pax_path(header: &[u8]) -> Option<String> {
    let mut records = PaxExtensions::new(header).filter_map(|record| record.ok());
    records.find(|record| record.key_bytes() == b"path").map(|record| lossy(record.value_bytes()))
}

fn c_string(bytes: &[u8]) -> String {
    lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Counts the zero bytes at the end of the stream: an archive ends with at least one block of them.
struct TrailingZeros<R> {
    reader: R,
    count: usize,
}

impl<R: Read> Read for TrailingZeros<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        let zeros = buffer[..read].iter().rev().take_while(|&&byte| byte == 0).count();
        self.count = if zeros == read { self.count.saturating_add(read) } else { zeros };
        Ok(read)
    }
}
