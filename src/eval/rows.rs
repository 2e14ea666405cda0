//! A growing file of equal rows: the cached work of an evaluation, which resumes from it.
//!
//! Beside it lies a file `NAME.crc` with the CRC-32C of each row (u32, little endian), written after the row. A row without its
//! checksum, or with another, is dropped with all that follow, and computed again.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Bytes before the first row: the description of the rows as JSON, padded with spaces.
const HEAD: usize = 8192;

/// Equal rows on disk. Whole rows survive any end of the process; a partial row, and one whose bytes have changed, is dropped when
/// the file is opened again.
pub struct Rows {
    path: PathBuf,
    file: File,
    checksums: File,
    row_bytes: usize,
    count: usize,
    damage: Option<String>,
}

impl Rows {
    /// The rows described by `of`, in `folder`, under a name from its hash; created if missing. `of` must contain everything that
    /// a row depends on.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for a file that another process writes, and for one with other content.
    pub fn open(folder: &Path, kind: &str, of: &Value, row_bytes: usize) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
        let head = head(of, row_bytes);
        let path = folder.join(format!("{}.{kind}", &hex(&head)[..24]));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io(&path, "open"))?;
        if file.try_lock().is_err() {
            let message = "another evaluation is writing it";
            return Err(Error::file(&path, message, "wait for it, or give another folder with `cache`"));
        }
        let checksums = checksum_path(&path);
        let checksums = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&checksums)
            .map_err(Error::io(&checksums, "open"))?;
        let length = file.metadata().map_err(Error::io(&path, "read"))?.len() as usize;
        if length < HEAD {
            file.set_len(0).map_err(Error::io(&path, "write"))?;
            file.write_all(&head).map_err(Error::io(&path, "write"))?;
            let mut rows = Self { path, file, checksums, row_bytes, count: 0, damage: None };
            rows.truncate(0)?;
            return Ok(rows);
        }
        let mut found = vec![0; HEAD];
        file.read_exact(&mut found).map_err(Error::io(&path, "read"))?;
        if found != head {
            return Err(Error::file(&path, "its content does not match its name", "delete it"));
        }
        let mut rows = Self { path, file, checksums, row_bytes, count: (length - HEAD) / row_bytes, damage: None };
        let intact = rows.intact()?;
        rows.truncate(intact)?;
        Ok(rows)
    }

    /// The number of leading rows that match their checksums.
    fn intact(&mut self) -> Result<usize> {
        let mut recorded = Vec::new();
        self.checksums.read_to_end(&mut recorded).map_err(Error::io(checksum_path(&self.path), "read"))?;
        let known = self.count.min(recorded.len() / 4);
        if known == 0 {
            return Ok(0);
        }
        // Without rows beyond their checksums, which a killed process leaves.
        self.count = known;
        let map = self.map()?;
        let same = |(row, recorded): &(&[u8], &[u8])| crc32c::crc32c(row).to_le_bytes() == *recorded;
        let rows = map.bytes(known).chunks_exact(self.row_bytes).zip(recorded.chunks_exact(4));
        let intact = rows.take_while(same).count();
        if intact < known {
            let path = self.path.display();
            self.damage = Some(format!("{path}: row {intact} of {known} is damaged; computed again from there"));
        }
        Ok(intact)
    }

    /// The damage that was found on opening, as a sentence.
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// Number of whole rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the rows from `count` on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn truncate(&mut self, count: usize) -> Result<()> {
        self.count = self.count.min(count);
        let end = (HEAD + self.count * self.row_bytes) as u64;
        self.file.set_len(end).map_err(Error::io(&self.path, "write"))?;
        self.file.seek(SeekFrom::Start(end)).map_err(Error::io(&self.path, "write"))?;
        let (path, end) = (checksum_path(&self.path), 4 * self.count as u64);
        self.checksums.set_len(end).map_err(Error::io(&path, "write"))?;
        self.checksums.seek(SeekFrom::Start(end)).map_err(Error::io(&path, "write"))?;
        Ok(())
    }

    /// Appends whole rows, which are synced to disk on return.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// For incomplete rows.
    pub fn append(&mut self, rows: &[u8]) -> Result<()> {
        assert!(rows.len().is_multiple_of(self.row_bytes), "{} bytes of rows of {}", rows.len(), self.row_bytes);
        self.file.write_all(rows).map_err(Error::io(&self.path, "write"))?;
        self.file.sync_data().map_err(Error::io(&self.path, "write"))?;
        let checksums: Vec<u8> =
            rows.chunks_exact(self.row_bytes).flat_map(|row| crc32c::crc32c(row).to_le_bytes()).collect();
        self.checksums.write_all(&checksums).map_err(Error::io(checksum_path(&self.path), "write"))?;
        self.count += rows.len() / self.row_bytes;
        Ok(())
    }

    /// The rows, memory-mapped, so that the system can reclaim the memory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn map(&self) -> Result<MappedRows> {
        // SAFETY: whole rows never change, and opening the file truncates only what is beyond them.
        let map = unsafe { Mmap::map(&self.file) }.map_err(Error::io(&self.path, "map"))?;
        Ok(MappedRows { map, row_bytes: self.row_bytes, count: self.count })
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        // A map keeps the file open and locked as long as it lives.
        let _ = self.file.unlock();
    }
}

/// The rows of a file, read-only.
pub struct MappedRows {
    map: Mmap,
    row_bytes: usize,
    count: usize,
}

impl MappedRows {
    /// The bytes of the first `count` rows.
    ///
    /// # Panics
    /// For more rows than there are.
    pub fn bytes(&self, count: usize) -> &[u8] {
        assert!(count <= self.count, "{count} rows of {}", self.count);
        &self.map[HEAD..HEAD + count * self.row_bytes]
    }

    /// The first `count` rows as f32.
    ///
    /// # Panics
    /// For more rows than there are.
    pub fn floats(&self, count: usize) -> &[f32] {
        bytemuck::cast_slice(self.bytes(count))
    }
}

/// The path of the checksums of the rows at `path`.
fn checksum_path(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(".crc");
    path.into()
}

fn head(of: &Value, row_bytes: usize) -> Vec<u8> {
    let mut text = serde_json::json!({ "format": "engine-rows-1", "row_bytes": row_bytes, "of": of }).to_string();
    if text.len() >= HEAD {
        // A very long description (such as a list of classes) is replaced by its hash.
        text = serde_json::json!({ "format": "engine-rows-1", "row_bytes": row_bytes, "of": hex(text.as_bytes()) })
            .to_string();
    }
    let mut head = text.into_bytes();
    head.resize(HEAD - 1, b' ');
    head.push(b'\n');
    head
}

/// SHA-256 in hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changed_rows_are_dropped_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Rows::open(folder.path(), "features", &json!(1), 4).unwrap();
        let mut rows = open();
        rows.append(bytemuck::cast_slice(&[1.0f32, 2.0, 3.0, 4.0])).unwrap();
        let path = rows.path().to_path_buf();
        drop(rows);
        let rows = open();
        assert_eq!((rows.count(), rows.damage()), (4, None));
        drop(rows);
        // Zeroed bytes, as after a disk's fault.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEAD + 8..HEAD + 12].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        let mut rows = open();
        assert_eq!(rows.count(), 2);
        assert!(rows.damage().unwrap().contains("row 2 of 4 is damaged"));
        rows.append(bytemuck::cast_slice(&[5.0f32])).unwrap();
        drop(rows);
        let rows = open();
        assert_eq!((rows.count(), rows.damage()), (3, None));
        drop(rows);
        // Rows without checksums cannot be trusted.
        std::fs::remove_file(checksum_path(&path)).unwrap();
        assert_eq!(open().count(), 0);
    }

    #[test]
    fn whole_rows_stay_and_a_piece_goes() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Rows::open(folder.path(), "features", &json!({ "a": 1 }), 8);
        let mut rows = open().unwrap();
        rows.append(bytemuck::cast_slice(&[1.0f32, 2.0, 3.0, 4.0])).unwrap();
        let path = rows.path().to_path_buf();
        assert!(open().err().unwrap().to_string().contains("another evaluation"));
        drop(rows);
        // As if the process had been killed in the middle of a row.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend([7; 5]);
        std::fs::write(&path, &bytes).unwrap();
        let mut rows = open().unwrap();
        assert_eq!(rows.count(), 2);
        rows.append(bytemuck::cast_slice(&[5.0f32, 6.0])).unwrap();
        assert_eq!(rows.map().unwrap().floats(3), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        rows.truncate(1).unwrap();
        let mapped = rows.map().unwrap();
        drop(rows);
        // A map does not prevent appending.
        open().unwrap().append(bytemuck::cast_slice(&[7.0f32, 8.0])).unwrap();
        assert_eq!(mapped.floats(1), [1.0, 2.0]);
        // Other content gets another file; a wrong name is refused.
        let other = Rows::open(folder.path(), "features", &json!({ "a": 2 }), 8).unwrap();
        assert_eq!((other.count(), other.path() == path), (0, false));
        let (from, to) = (other.path().to_path_buf(), path);
        drop(other);
        std::fs::copy(from, to).unwrap();
        assert!(open().err().unwrap().to_string().contains("does not match its name"));
    }
}
