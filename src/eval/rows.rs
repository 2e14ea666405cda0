//! A growing file of equal rows: the cached work of an evaluation, which resumes from it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Bytes before the first row: the description of the rows as JSON, padded with spaces.
const HEAD: usize = 8192;

/// Equal rows on disk. Whole rows survive any end of the process; a partial row is dropped when the file is opened again.
pub struct Rows {
    path: PathBuf,
    file: File,
    row_bytes: usize,
    count: usize,
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
        let length = file.metadata().map_err(Error::io(&path, "read"))?.len() as usize;
        if length < HEAD {
            file.set_len(0).map_err(Error::io(&path, "write"))?;
            file.write_all(&head).map_err(Error::io(&path, "write"))?;
            return Ok(Self { path, file, row_bytes, count: 0 });
        }
        let mut found = vec![0; HEAD];
        file.read_exact(&mut found).map_err(Error::io(&path, "read"))?;
        if found != head {
            return Err(Error::file(&path, "its content does not match its name", "delete it"));
        }
        let mut rows = Self { path, file, row_bytes, count: (length - HEAD) / row_bytes };
        rows.truncate(rows.count)?;
        Ok(rows)
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
