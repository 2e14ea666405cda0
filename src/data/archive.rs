//! Tar archives as a stream of files. Nothing is unpacked to the disk, links are passed over, and what comes before a
//! file (long names, extended headers) is bounded.

use std::io::{self, Read};
use std::path::Path;

use tar::{Archive, EntryType, PaxExtensions};

use super::source::{HashedFile, read_error};
use crate::error::{Error, Result};

/// The longest extended header that is read: far more than any path takes.
const LONGEST_HEADER: u64 = 1 << 16;

/// Whether to go on with an archive.
#[derive(PartialEq, Eq)]
pub(super) enum Next {
    Continue,
    Stop,
}

/// A regular file in an archive.
pub(super) struct Member<'a> {
    /// Its path, as the archive spells it.
    pub path: String,
    pub size: u64,
    reader: &'a mut dyn Read,
}

impl Member<'_> {
    /// The bytes, of which at most `limit` are allowed.
    pub fn read(&mut self, archive: &Path, limit: u64) -> Result<Vec<u8>> {
        if self.size > limit {
            let message = format!("{} is declared {} bytes long, more than the {limit} allowed", self.path, self.size);
            return Err(Error::file(archive, message, "leave it out of the archive"));
        }
        let mut bytes = Vec::new();
        self.reader.take(self.size).read_to_end(&mut bytes).map_err(|e| read_error(archive, e))?;
        if bytes.len() as u64 != self.size {
            let message = format!("ends inside {} ({} of {} bytes)", self.path, bytes.len(), self.size);
            return Err(Error::file(archive, message, "it is damaged: copy or download it again"));
        }
        Ok(bytes)
    }
}

/// Shows `visit` each regular file of the archive (`.tar`, or `.tar.gz`) in order. Returns how many links there were.
pub(super) fn for_each_member(
    file: &mut HashedFile,
    mut visit: impl FnMut(Member<'_>) -> Result<Next>,
) -> Result<usize> {
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
                // Before POSIX, a folder was a file with a slash at its end.
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

/// Counts the zero bytes at the end of what was read: an archive ends with at least one block of them.
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
