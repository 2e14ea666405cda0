//! Weights of other programs: PyTorch's `.pth` and `.pt`, and `.safetensors`, as named arrays of f32.
//!
//! [`WeightFile::open`] detects the format by its bytes: the zip archive that PyTorch writes since 1.6, the older pickle stream
//! (many of torchvision's files), and safetensors. [`WeightFile::matched`] compares the content with what a network expects.
//!
//! A pickle is a program, and Python runs whatever it imports. Here nothing runs: the reader knows the dozen operations and names
//! that weights consist of, builds plain values from them, and refuses anything else. It is our own, like the archive reader,
//! because existing readers skip what they do not know instead of refusing it, unpack compressed entries and copy what a pickle
//! repeats: their memory is not bounded by the file's size. Here it is: arrays hold at most as many f32 as the file has bytes, and
//! nothing is ever unpacked.

mod archive;
mod numpy;
mod pickle;
mod torch;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};

use crate::error::{Error, Result};

pub use numpy::{Pickled, numpy_pickle};

const COPY_AGAIN: &str = "copy or download it again";
/// Advice for a file that is not weights.
const SAVE_AGAIN: &str = "save a state_dict with torch.save, or as safetensors";
/// The prefixes of PyTorch's wrappers, in their possible nesting order.
const WRAPPERS: [&str; 4] = ["_orig_mod.", "module.", "_orig_mod.", "module."];
/// Most names per kind in one error.
const MAX_LISTED: usize = 200;

/// An array of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightArray {
    /// Its sizes, outermost first; empty for a single number.
    pub shape: Vec<usize>,
    /// Its elements in row-major order, converted to f32.
    pub values: Vec<f32>,
}

/// The arrays of a weight file.
#[derive(Clone, Debug)]
pub struct WeightFile {
    path: PathBuf,
    arrays: BTreeMap<String, WeightArray>,
    /// The common prefix of the names.
    wrapper: Option<String>,
}

impl WeightArray {
    /// The first element that is NaN or infinite.
    fn first_bad(&self) -> Option<usize> {
        self.values.iter().position(|value| !value.is_finite())
    }
}

impl WeightFile {
    /// Reads all arrays of a `.pth`, `.pt` or `.safetensors` file. Elements of f16, bf16, f64 and integer types become f32,
    /// rounded to nearest. From a checkpoint with other content, `state_dict`, `model_state_dict` or `model` is read. The prefixes
    /// of PyTorch's wrappers are removed (see [`WeightFile::wrapper`]).
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::File`], with the entry or the byte, for a file of another kind, a damaged one,
    /// one with anything but arrays, and one with NaN or infinity in an array.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let metadata = file.metadata().map_err(Error::io(path, "read"))?;
        if !metadata.is_file() || metadata.len() == 0 {
            return Err(Error::file(path, "holds no bytes of weights", "give a .pth or .safetensors file"));
        }
        // SAFETY: the bytes are only read. A file that is truncated meanwhile would raise SIGBUS, as with any mapped file;
        // downloads of this engine are renamed into place.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Self::parse(path, &map)
    }

    /// Reads `bytes`, which came from `path`.
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let arrays = torch::read(bytes).unwrap_or_else(|| safetensors(bytes));
        let mut arrays = arrays.map_err(|fault| Error::file(path, fault.message, fault.advice))?;
        if let Some((name, at)) = arrays.iter().find_map(|(name, array)| Some((name, array.first_bad()?))) {
            let message = format!("{} has {} at element {at}", short(name), arrays[name].values[at]);
            return Err(Error::file(path, message, "the training that made it diverged: use an earlier checkpoint"));
        }
        let mut wrapper = None;
        for prefix in WRAPPERS {
            if arrays.keys().all(|name| name.len() > prefix.len() && name.starts_with(prefix)) {
                arrays = arrays.into_iter().map(|(name, array)| (name[prefix.len()..].to_owned(), array)).collect();
                wrapper = Some(format!("{}{prefix}", wrapper.unwrap_or_default()));
            }
        }
        Ok(Self { path: path.to_path_buf(), arrays, wrapper })
    }

    /// The removed common prefix of the names: `module.` of DistributedDataParallel, `_orig_mod.` of torch.compile.
    pub fn wrapper(&self) -> Option<&str> {
        self.wrapper.as_deref()
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All arrays, by name.
    pub fn arrays(&self) -> &BTreeMap<String, WeightArray> {
        &self.arrays
    }

    /// The elements of the arrays that are `expected` by name and shape, in that order. The file must have exactly these names,
    /// except for the optional counters `….num_batches_tracked` of batch norms.
    ///
    /// # Errors
    /// One [`Error::File`] with all missing and unexpected arrays, and all wrong shapes.
    pub fn matched(&self, expected: &[(&str, &[usize])]) -> Result<Vec<&[f32]>> {
        let known: BTreeSet<&str> = expected.iter().map(|(name, _)| *name).collect();
        let mut found = Vec::with_capacity(expected.len());
        let (mut missing, mut different) = (Vec::new(), Vec::new());
        for (name, shape) in expected {
            match self.arrays.get(*name) {
                None if is_counter(name) => found.push([].as_slice()),
                None => missing.push((*name).to_owned()),
                Some(array) if array.shape != *shape => {
                    different.push(format!("{name} (has {:?}, expected {shape:?})", array.shape));
                }
                Some(array) => found.push(&array.values),
            }
        }
        let strangers =
            self.arrays.keys().map(String::as_str).filter(|name| !known.contains(name) && !is_counter(name));
        let unexpected: Vec<String> = strangers.map(short).collect();
        let faults: Vec<String> = [("missing", missing), ("unexpected", unexpected), ("of another shape", different)]
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| listed(what, names))
            .collect();
        if faults.is_empty() {
            return Ok(found);
        }
        let message = format!("its arrays are not those of the network: {}", faults.join("; "));
        Err(Error::file(&self.path, message, "give a file of the same network, saved as its state_dict"))
    }
}

/// Batch norm's count of training steps, which inference does not need and older files lack.
fn is_counter(name: &str) -> bool {
    name == "num_batches_tracked" || name.ends_with(".num_batches_tracked")
}

fn listed(what: &str, names: &[String]) -> String {
    let rest = names.len().saturating_sub(MAX_LISTED);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    format!("{} {what}: {}{more}", names.len(), names[..names.len() - rest].join(", "))
}

/// A name of the file for an error message.
fn short(name: &str) -> String {
    let mut shown: String = name.chars().take(100).collect::<String>().escape_debug().collect();
    if name.chars().nth(100).is_some() {
        shown.push('…');
    }
    shown
}

/// An error in a file's bytes, and advice.
#[derive(Debug)]
struct Fault {
    message: String,
    advice: String,
}

impl Fault {
    fn new(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { message: message.into(), advice: advice.into() }
    }

    /// Contradictory bytes.
    fn damaged(message: impl Into<String>) -> Self {
        Self::new(message, COPY_AGAIN)
    }
}

/// The result of the format readers.
type Parsed<T> = std::result::Result<T, Fault>;

/// The element type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    F32,
    F64,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Element {
    /// Its size in bytes.
    fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Appends the little-endian elements in `bytes`.
    fn decode(self, bytes: &[u8], values: &mut Vec<f32>) {
        macro_rules! each {
            ($size:literal, $convert:expr) => {
                values.extend(bytes.as_chunks::<$size>().0.iter().map(|&bytes| $convert(bytes)))
            };
        }
        match self {
            Self::F32 => each!(4, f32::from_le_bytes),
            Self::F64 => each!(8, |bytes| f64::from_le_bytes(bytes) as f32),
            Self::F16 => each!(2, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
            Self::Bf16 => each!(2, |bytes| half::bf16::from_le_bytes(bytes).to_f32()),
            Self::I64 => each!(8, |bytes| i64::from_le_bytes(bytes) as f32),
            Self::I32 => each!(4, |bytes| i32::from_le_bytes(bytes) as f32),
            Self::I16 => each!(2, |bytes| f32::from(i16::from_le_bytes(bytes))),
            Self::I8 => each!(1, |bytes| f32::from(i8::from_le_bytes(bytes))),
            Self::U8 => each!(1, |[byte]: [u8; 1]| f32::from(byte)),
            Self::Bool => each!(1, |[byte]: [u8; 1]| f32::from(u8::from(byte != 0))),
        }
    }
}

/// The arrays of a safetensors file.
fn safetensors(bytes: &[u8]) -> Parsed<BTreeMap<String, WeightArray>> {
    if bytes.get(8) != Some(&b'{') {
        let what = match bytes {
            [b'<', ..] => "a web page, not weights",
            [0x80, 2..=5, ..] => "a pickle that torch.save did not write",
            _ if bytes.get(257..262) == Some(b"ustar") => "a tar archive, not weights",
            _ => "neither a file of torch.save nor safetensors",
        };
        return Err(Fault::new(what, format!("{SAVE_AGAIN}; a damaged file: {COPY_AGAIN}")));
    }
    let tensors = SafeTensors::deserialize(bytes)
        .map_err(|fault| Fault::damaged(format!("damaged or cut short: {}", short(&fault.to_string()))))?;
    let mut arrays = BTreeMap::new();
    for (name, view) in tensors.tensors() {
        let element = match view.dtype() {
            Dtype::F32 => Element::F32,
            Dtype::F64 => Element::F64,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            Dtype::I64 => Element::I64,
            Dtype::I32 => Element::I32,
            Dtype::I16 => Element::I16,
            Dtype::I8 => Element::I8,
            Dtype::U8 => Element::U8,
            Dtype::BOOL => Element::Bool,
            other => {
                let message = format!("{} is of type {other:?}, which is not read", short(&name));
                return Err(Fault::new(message, "save it in f32, f16 or bf16"));
            }
        };
        let mut values = Vec::with_capacity(view.data().len() / element.size());
        element.decode(view.data(), &mut values);
        arrays.insert(name, WeightArray { shape: view.shape().to_vec(), values });
    }
    Ok(arrays)
}

#[cfg(test)]
mod tests;
