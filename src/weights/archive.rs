//! The zip archive around PyTorch's weights: its directory, and stored entries. `torch.save` never compresses, so nothing is ever
//! unpacked, and no entry can be longer than the file.
//!
//! PKWARE, APPNOTE.TXT: 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (its end), 4.5.3 (64-bit sizes).

use std::collections::BTreeMap;

use super::{Fault, Parsed, SAVE_AGAIN, short};

const END: &[u8] = b"PK\x05\x06";
const END_64: &[u8] = b"PK\x06\x06";
const LOCATOR_64: &[u8] = b"PK\x06\x07";
const ENTRY: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";

/// The entries of an archive by name.
pub(super) struct Archive<'a> {
    entries: BTreeMap<&'a str, Entry<'a>>,
}

struct Entry<'a> {
    bytes: &'a [u8],
    /// Zero if none was computed.
    crc32: u32,
}

impl<'a> Archive<'a> {
    pub fn open(file: &'a [u8]) -> Parsed<Self> {
        let (count, mut directory) = directory(file)?;
        let mut entries = BTreeMap::new();
        for index in 0..count {
            let (name, entry, rest) = entry(file, directory, index)?;
            if entries.insert(name, entry).is_some() {
                return Err(Fault::damaged(format!("the archive has two entries {}", short(name))));
            }
            directory = rest;
        }
        if !directory.is_empty() {
            return Err(Fault::damaged("the archive's directory has more in it than its entries"));
        }
        Ok(Self { entries })
    }

    /// The bytes of an entry, after verifying their checksum.
    pub fn get(&self, name: &str) -> Parsed<&'a [u8]> {
        let Some(entry) = self.entries.get(name) else {
            return Err(Fault::damaged(format!("the archive has no entry {}", short(name))));
        };
        // `torch.save` can be told not to compute one, and then writes zero.
        if entry.crc32 != 0 {
            let mut crc = flate2::Crc::new();
            crc.update(entry.bytes);
            if crc.sum() != entry.crc32 {
                let message = format!("the bytes of entry {} do not match their checksum", short(name));
                return Err(Fault::damaged(message));
            }
        }
        Ok(entry.bytes)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.entries.keys().copied()
    }
}

/// The number of entries and the directory's bytes.
fn directory(file: &[u8]) -> Parsed<(u64, &[u8])> {
    let cut = || Fault::damaged("the archive's directory is missing: the file is cut short or damaged");
    // A comment of at most 65535 bytes may follow the record.
    let last = file.len().checked_sub(22).ok_or_else(cut)?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    let is_end = |&at: &usize| {
        file[at..].starts_with(END)
            && u16_at(file, at + 20).is_some_and(|comment| at + 22 + usize::from(comment) == file.len())
    };
    let end = (first..=last).rev().find(is_end).ok_or_else(cut)?;
    let read = || {
        let (mut count, mut len, mut start) = (
            u64::from(u16_at(file, end + 10)?),
            u64::from(u32_at(file, end + 12)?),
            u64::from(u32_at(file, end + 16)?),
        );
        let mut before = end;
        if let Some(locator) = end.checked_sub(20).filter(|&at| file[at..].starts_with(LOCATOR_64)) {
            let at = usize::try_from(u64_at(file, locator + 8)?).ok()?;
            if !file.get(at..)?.starts_with(END_64) {
                return None;
            }
            (count, len, start) = (u64_at(file, at + 32)?, u64_at(file, at + 40)?, u64_at(file, at + 48)?);
            before = at;
        }
        let start = usize::try_from(start).ok()?;
        let directory = file.get(start..start.checked_add(usize::try_from(len).ok()?)?)?;
        // An entry takes 46 bytes and its name.
        (start + directory.len() <= before && count <= len / 46).then_some((count, directory))
    };
    read().ok_or_else(|| Fault::damaged(format!("the archive's end at byte {end} contradicts the file's length")))
}

/// The first entry of `directory`, and the rest of the directory.
fn entry<'a>(file: &'a [u8], directory: &'a [u8], index: u64) -> Parsed<(&'a str, Entry<'a>, &'a [u8])> {
    let damaged = || Fault::damaged(format!("entry {index} of the archive's directory is damaged"));
    let read = || {
        if !directory.starts_with(ENTRY) {
            return None;
        }
        let len = |at| u16_at(directory, at).map(usize::from);
        let (name_end, extra_end) = (46 + len(28)?, 46 + len(28)? + len(30)?);
        let name = std::str::from_utf8(directory.get(46..name_end)?).ok()?;
        let extra = directory.get(name_end..extra_end)?;
        let rest = directory.get(extra_end + len(32)?..)?;
        // Sizes beyond 32 bits are in the extra field, in this order.
        let mut wide = wide_sizes(extra);
        let mut size = |at| match u32_at(directory, at)? {
            u32::MAX => wide.next(),
            narrow => Some(u64::from(narrow)),
        };
        let (unpacked, packed, header) = (size(24)?, size(20)?, size(42)?);
        Some((
            name,
            rest,
            u16_at(directory, 8)?,
            u16_at(directory, 10)?,
            u32_at(directory, 16)?,
            unpacked,
            packed,
            header,
        ))
    };
    let (name, rest, flags, method, crc32, unpacked, packed, header) = read().ok_or_else(damaged)?;
    let shown = short(name);
    if flags & 1 != 0 {
        return Err(Fault::new(format!("entry {shown} of the archive is encrypted"), SAVE_AGAIN));
    }
    if method != 0 || unpacked != packed {
        let message = format!(
            "entry {shown} of the archive is compressed ({packed} bytes that claim to become {unpacked}), which \
             torch.save never does: it was not unpacked"
        );
        return Err(Fault::new(message, SAVE_AGAIN));
    }
    let content = || {
        let header = usize::try_from(header).ok()?;
        if !file.get(header..)?.starts_with(LOCAL) {
            return None;
        }
        let names = usize::from(u16_at(file, header + 26)?) + usize::from(u16_at(file, header + 28)?);
        let start = header + 30 + names;
        file.get(start..start.checked_add(usize::try_from(packed).ok()?)?)
    };
    let bytes = content().ok_or_else(|| {
        Fault::damaged(format!("entry {shown} of the archive claims {packed} bytes at {header}, beyond the file's end"))
    })?;
    Ok((name, Entry { bytes, crc32 }, rest))
}

/// The 64-bit sizes in an entry's extra field.
fn wide_sizes(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut found: &[u8] = &[];
    while let (Some(id), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let Some(body) = extra.get(4..4 + usize::from(len)) else { break };
        if id == 1 {
            found = body;
            break;
        }
        extra = &extra[4 + body.len()..];
    }
    found.as_chunks::<8>().0.iter().map(|&bytes| u64::from_le_bytes(bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
