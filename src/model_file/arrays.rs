//! Named arrays in a safetensors file, written atomically and verified when read.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::Digest as _;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::nn::Spec;

/// The advice for a file that is not intact.
const ADVICE: &str = "take the file from its source again, or another checkpoint";

/// The storage type of weights. Computation does not depend on it: f32, or as the precision says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floating point: all bits of the weights.
    #[default]
    F32,
    /// bfloat16: half the size, 8 significant bits, the range of f32.
    Bf16,
    /// Half precision: half the size, 11 significant bits, weights up to 65504; those below 6e-5 lose bits.
    F16,
}

impl Storage {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    /// The values as a file's bytes, rounded to nearest; or the value that does not fit.
    fn encode(self, values: &[f32]) -> Result<Cow<'_, [u8]>, f32> {
        Ok(match self {
            Self::F32 => Cow::Borrowed(bytemuck::cast_slice(values)),
            Self::Bf16 => values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect(),
            Self::F16 => {
                let fits = |value: f32| !value.is_finite() || half::f16::from_f32(value).is_finite();
                if let Some(stranger) = values.iter().find(|value| !fits(**value)) {
                    return Err(*stranger);
                }
                values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect()
            }
        })
    }
}

/// Identifies a file by its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// SHA-256 of its bytes in hexadecimal; empty without a file.
    pub sha256: String,
    /// Its length in bytes.
    pub bytes: usize,
}

impl Digest {
    fn of(bytes: &[u8]) -> Self {
        let sha256 = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { sha256, bytes: bytes.len() }
    }
}

/// A named f32 array for writing.
pub struct Array<'a> {
    /// Its name.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its elements.
    pub values: &'a [f32],
}

/// The parameters of a flat buffer as arrays, with `prefix` before their names.
pub fn arrays<'a>(specs: &[Spec], flat: &'a [f32], prefix: &str) -> Vec<Array<'a>> {
    let array = |spec: &Spec| Array {
        name: format!("{prefix}{}", spec.name),
        shape: spec.shape.sizes().to_vec(),
        values: &flat[spec.offset..][..spec.shape.len()],
    };
    specs.iter().map(array).collect()
}

/// Writes a safetensors file next to `path`, syncs it and renames it to `path`, so that a reader finds the old or the new file,
/// never a part. Adds a checksum of the tensors' bytes to `metadata`.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] for a value that does not fit `storage`. An existing file at `path` is then unchanged.
pub fn write_arrays(
    path: &Path,
    arrays: &[Array],
    mut metadata: BTreeMap<String, String>,
    storage: Storage,
) -> Result<()> {
    let mut encoded = Vec::with_capacity(arrays.len());
    for array in arrays {
        encoded.push(storage.encode(array.values).map_err(|value| {
            let message = format!("{} holds {value}, which does not fit {}", array.name, storage.name());
            Error::file(path, message, "store the weights in bf16 or f32; the file was not written")
        })?);
    }
    let mut views = Vec::with_capacity(arrays.len());
    for (array, bytes) in arrays.iter().zip(&encoded) {
        let view = TensorView::new(storage.dtype(), array.shape.clone(), bytes)
            .map_err(|fault| Error::shape("model file", format!("{}: {fault}", array.name)))?;
        views.push((array.name.as_str(), view));
    }
    metadata
        .insert("crc32c".into(), format!("{:08x}", checksum(views.iter().map(|(name, view)| (*name, view.data())))));
    let bytes = safetensors::serialize(views, None)
        .map_err(|fault| Error::shape("model file", format!("{}: {fault}", path.display())))?;
    write_atomically(path, &with_metadata(bytes, &metadata))
}

/// Adds `metadata` to a safetensors file without any. The library writes entries in random order, but equal runs must give equal
/// files.
fn with_metadata(mut file: Vec<u8>, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    // A length of 8 bytes, the JSON of that length, padded with spaces to a multiple of 8 bytes, then the tensors' bytes.
    let (length, rest) = file.split_at(8);
    let old = u64::from_le_bytes(length.try_into().expect("8 bytes")) as usize;
    let tensors = rest[..old].trim_ascii_end().strip_prefix(b"{").expect("a header is an object");
    let entries = serde_json::to_string(metadata).expect("text is JSON");
    let comma = if tensors == b"}" { "" } else { "," };
    let mut header = [format!("{{\"__metadata__\":{entries}{comma}").as_bytes(), tensors].concat();
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    // In place: a checkpoint is four times as large as a model.
    file.splice(..8 + old, length.into_iter().chain(header));
    file
}

/// CRC-32C over names and bytes, sorted by name.
fn checksum<'a>(tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> u32 {
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_by_key(|(name, _)| *name);
    tensors
        .iter()
        .fold(0, |crc, (name, bytes)| crc32c::crc32c_append(crc32c::crc32c_append(crc, name.as_bytes()), bytes))
}

/// A file's bytes.
pub(super) enum Bytes {
    Mapped(memmap2::Mmap),
    Embedded(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

/// A safetensors file whose checksum has been verified.
pub struct ArrayFile {
    path: PathBuf,
    bytes: Bytes,
    /// Its format, one of those requested.
    pub format: &'static str,
    /// Its metadata.
    pub metadata: HashMap<String, String>,
}

impl ArrayFile {
    /// Maps the file, checks that it has one of the `formats`, and verifies its header against its length and its bytes against
    /// their checksum. `what` is the expected kind for errors, as in `a model`.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::File`] for one that is truncated, damaged or of another kind.
    pub fn open(path: impl AsRef<Path>, formats: &[&'static str], what: &str) -> Result<Self> {
        let path = path.as_ref();
        let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
        if file.metadata().map_err(Error::io(path, "read"))?.len() < 8 {
            return Err(Error::file(path, format!("too short to be {what}"), ADVICE));
        }
        // SAFETY: files of these kinds are replaced by renaming, never changed in place; if someone truncates a file meanwhile,
        // that raises SIGBUS, as with any mapped file.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Self::check(path, Bytes::Mapped(map), formats, what)
    }

    pub(super) fn check(path: &Path, bytes: Bytes, formats: &[&'static str], what: &str) -> Result<Self> {
        let fault = |message: String| Error::file(path, message, ADVICE);
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|e| fault(format!("damaged or cut short: {e}")))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let Some(found) = metadata.get("format") else {
            return Err(fault(format!("a safetensors file, but not {what} of this engine")));
        };
        let Some(format) = formats.iter().find(|format| *format == found) else {
            let short: String = found.chars().take(40).collect();
            let message =
                format!("this is a file of format {}, not {what} ({})", short.escape_debug(), formats.join(" or "));
            return Err(fault(message));
        };
        let file = Self { path: path.to_path_buf(), bytes, format, metadata };
        let tensors = file.tensors()?;
        let views: Vec<_> = tensors.tensors();
        let found = format!("{:08x}", checksum(views.iter().map(|(name, view)| (name.as_str(), view.data()))));
        if file.metadata.get("crc32c") != Some(&found) {
            return Err(fault("its bytes do not match their checksum: the file is damaged".into()));
        }
        Ok(file)
    }

    fn tensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|e| self.fault(format!("damaged: {e}")))
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Its identity.
    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// An error about this file.
    pub fn fault(&self, message: String) -> Error {
        Error::file(&self.path, message, ADVICE)
    }

    /// A required metadata entry.
    pub fn entry(&self, key: &str) -> Result<&str> {
        self.metadata.get(key).map(String::as_str).ok_or_else(|| self.fault(format!("its metadata has no `{key}`")))
    }

    /// A metadata entry that is a whole number.
    pub fn number(&self, key: &str) -> Result<u64> {
        let text = self.entry(key)?;
        text.parse().map_err(|_| self.fault(format!("its metadata's `{key}` is not a whole number: {text:.40}")))
    }

    /// The configuration in the metadata.
    pub fn config(&self) -> Result<Config> {
        let json = self.entry("config")?;
        Config::from_json(json, &self.path.display().to_string())
    }

    /// Reads the parameters named `prefix` + name (f32, bf16 or f16) into a flat buffer of `len` elements. With `exact`,
    /// unexpected tensors under the prefix are an error too.
    pub fn flat(&self, specs: &[Spec], len: usize, prefix: &str, exact: bool) -> Result<Vec<f32>> {
        let tensors = self.tensors()?;
        if exact {
            let known: std::collections::HashSet<String> =
                specs.iter().map(|spec| format!("{prefix}{}", spec.name)).collect();
            if let Some(stranger) = tensors.names().into_iter().find(|name| !known.contains(*name)) {
                return Err(self.fault(format!("it holds {stranger}, which its model does not have")));
            }
        }
        let mut flat = vec![0f32; len];
        for spec in specs {
            let name = format!("{prefix}{}", spec.name);
            let view = tensors.tensor(&name).map_err(|_| self.fault(format!("{name} is missing")))?;
            if view.shape() != spec.shape.sizes() {
                return Err(self.fault(format!("{name} is {:?}, the model's is {}", view.shape(), spec.shape)));
            }
            let values = &mut flat[spec.offset..][..spec.shape.len()];
            match view.dtype() {
                Dtype::F32 => {
                    for (value, bytes) in values.iter_mut().zip(view.data().chunks_exact(4)) {
                        *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                    }
                }
                Dtype::BF16 => {
                    for (value, bytes) in values.iter_mut().zip(view.data().chunks_exact(2)) {
                        *value = half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                    }
                }
                Dtype::F16 => {
                    for (value, bytes) in values.iter_mut().zip(view.data().chunks_exact(2)) {
                        *value = half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                    }
                }
                other => return Err(self.fault(format!("{name} is {other:?}; weights are f32, bf16 or f16"))),
            }
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                let message = format!("{name} has {} at element {at}: the training that made it diverged", values[at]);
                return Err(self.fault(message));
            }
        }
        Ok(flat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_contents_make_equal_files() {
        let folder = tempfile::tempdir().unwrap();
        let metadata: BTreeMap<_, _> =
            ["format", "z", "a \"quoted\" key", "m"].map(|key| (key.to_string(), format!("{key}\n"))).into();
        let values = [1.0, -2.5, 3.0];
        let array = |name: &str, shape: &[usize], values| Array { name: name.into(), shape: shape.to_vec(), values };
        for arrays in [vec![array("b", &[3], &values), array("a", &[2, 1], &values[1..])], vec![]] {
            let written = [(); 8].map(|()| {
                let path = folder.path().join("file.safetensors");
                write_arrays(&path, &arrays, metadata.clone(), Storage::F32).unwrap();
                std::fs::read(path).unwrap()
            });
            assert!(written.iter().all(|bytes| *bytes == written[0]));
            // The format's own reader agrees.
            let (_, header) = SafeTensors::read_metadata(&written[0]).unwrap();
            let found = header.metadata().clone().unwrap();
            assert!(metadata.iter().all(|(key, value)| found.get(key) == Some(value)) && found.contains_key("crc32c"));
            let tensors = SafeTensors::deserialize(&written[0]).unwrap();
            assert_eq!(tensors.len(), arrays.len());
            for Array { name, shape, values } in &arrays {
                let tensor = tensors.tensor(name).unwrap();
                assert_eq!((tensor.shape(), tensor.data()), (shape.as_slice(), bytemuck::cast_slice(values)));
            }
        }
    }
}
