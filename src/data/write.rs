//! Writing of the data set file: image by image, whatever stores the set's pixels.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::dataset::{Counts, Dataset, Digests, FORMAT, Split, hex, part_path, refuse_to_overwrite, to_json};
use crate::error::{Error, Result};

impl Dataset {
    /// Writes the data set to `path`: to a temporary file first (`.part`), which is synced and renamed, so that a partial file is
    /// never read as a data set.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be written, and if `path` exists, unless `force`.
    pub fn write(&self, path: impl AsRef<Path>, force: bool) -> Result<()> {
        let path = path.as_ref();
        refuse_to_overwrite(path, force)?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
        }
        let part = part_path(path);
        let written = self.write_part(&part).map_err(Error::io(&part, "write")).and_then(|()| {
            refuse_to_overwrite(path, force)?;
            fs::rename(&part, path).map_err(Error::io(path, "write"))
        });
        if written.is_err() {
            // Best effort: the first error is the one reported.
            let _ = fs::remove_file(&part);
        }
        written
    }

    fn write_part(&self, part: &Path) -> std::io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(part)?);
        let (labels, split) = (self.label_bytes(), self.split_bytes());
        let digest = |bytes: &[u8]| hex(&Sha256::digest(bytes));
        // A placeholder of the same length for values known only after the last image.
        let unknown = "0".repeat(64);
        let mut digests = Digests { images: unknown, labels: digest(&labels), split: digest(&split) };
        let header = self.header(&digests);
        file.write_all(&header)?;
        file.write_all(&labels)?;
        let mut sha = Sha256::new();
        for run in self.runs(0..self.len()) {
            sha.update(run);
            file.write_all(run)?;
        }
        file.write_all(&split)?;
        digests.images = hex(&sha.finalize());
        file.seek(SeekFrom::Start(0))?;
        let told = self.header(&digests);
        debug_assert_eq!(told.len(), header.len());
        file.write_all(&told)?;
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    }

    /// The length and text of the header. Tensors are in the order of safetensors' own writer: by element size, then by name.
    fn header(&self, digests: &Digests) -> Vec<u8> {
        let [train, validation, test] =
            [Split::Train, Split::Validation, Split::Test].map(|split| self.split_len(split));
        let metadata: BTreeMap<&str, String> = [
            ("format", FORMAT.to_owned()),
            ("name", self.name().to_owned()),
            ("class_names", to_json(&self.class_names())),
            ("counts", to_json(&Counts { train, validation, test })),
            ("sources", to_json(&self.sources())),
            ("notes", to_json(&self.notes())),
            ("sha256", to_json(digests)),
        ]
        .into();
        let n = self.len();
        let shape = [n, self.height(), self.width(), self.channels()];
        let mut text = format!("{{\"__metadata__\":{}", json!(metadata));
        let mut at = 0;
        for (name, dtype, shape, bytes) in [
            ("labels", "U16", &[n][..], 2 * n),
            ("images", "U8", &shape[..], n * self.image_bytes()),
            ("split", "U8", &[n][..], n),
        ] {
            text += &format!(
                ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{},\"data_offsets\":[{at},{}]}}",
                json!(shape),
                at + bytes
            );
            at += bytes;
        }
        text.push('}');
        // Tensors start at a multiple of eight bytes.
        text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }
}
