//! NumPy's `.npz` as named arrays of numbers and strings: feature statistics of evaluation tools.

use std::collections::BTreeMap;
use std::path::Path;

use zip::ZipWriter;

use super::export::{member, npy_head, zip_fault};
use super::numpy;
use crate::error::Result;
use crate::files::write_atomically;

/// An array of an archive.
#[derive(Clone, Debug, PartialEq)]
pub enum NpzArray {
    /// Numbers of any type, converted to row-major order.
    Numbers {
        /// Its shape; `[]` for a single number.
        shape: Vec<usize>,
        /// Its elements.
        values: Vec<f64>,
    },
    /// Strings.
    Texts(Vec<String>),
}

/// The arrays of an archive by lower-case key. Arrays of objects, which are pickles, are skipped.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) and [`Error::File`](crate::Error::File) for a file that is not an archive, damaged or truncated.
pub fn read_npz(path: impl AsRef<Path>) -> Result<BTreeMap<String, NpzArray>> {
    numpy::named_arrays(path.as_ref())
}

/// Writes arrays of f64 and of strings, atomically.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) with the path.
pub fn write_npz(path: impl AsRef<Path>, arrays: &[(&str, NpzArray)]) -> Result<()> {
    let path = path.as_ref();
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, array) in arrays {
        let (head, data) = match array {
            NpzArray::Numbers { shape, values } => {
                let sides: Vec<String> = shape.iter().map(usize::to_string).collect();
                let comma = if shape.len() == 1 { "," } else { "" };
                let data = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
                (npy_head("<f8", &format!("({}{comma})", sides.join(", "))), data)
            }
            NpzArray::Texts(texts) => {
                let longest = texts.iter().map(|text| text.chars().count()).max().unwrap_or(1).max(1);
                let code = |text: &String| {
                    text.chars().map(u32::from).chain(std::iter::repeat(0)).take(longest).collect::<Vec<u32>>()
                };
                let data = texts.iter().flat_map(code).flat_map(u32::to_le_bytes).collect();
                (npy_head(&format!("<U{longest}"), &format!("({},)", texts.len())), data)
            }
        };
        member(&mut zip, path, &format!("{name}.npy"), &[&head, &data])?;
    }
    let bytes = zip.finish().map_err(zip_fault(path))?.into_inner();
    write_atomically(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let arrays = [
            ("mu", NpzArray::Numbers { shape: vec![3], values: vec![1.0, -2.5, 1e-300] }),
            ("sigma", NpzArray::Numbers { shape: vec![2, 2], values: vec![1.0, 0.5, 0.5, 2.0] }),
            ("count", NpzArray::Numbers { shape: vec![], values: vec![50_000.0] }),
            ("rule", NpzArray::Texts(vec!["clean-fid".into()])),
        ];
        write_npz(&path, &arrays).unwrap();
        let read = read_npz(&path).unwrap();
        assert_eq!(read.len(), 4);
        for (name, array) in arrays {
            assert_eq!(read[name], array, "{name}");
        }
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(read_npz(&path).is_err());
    }
}
