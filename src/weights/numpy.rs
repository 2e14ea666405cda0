//! Dictionaries of NumPy arrays as pickles, such as CIFAR's batches for Python: parsed like weights, never executed.

use std::collections::BTreeMap;

use super::pickle::{self, Array, Dialect, Id, Pickle, Value};
use super::{Fault, Parsed, short};

/// A value of the dictionary.
#[derive(Clone, Debug, PartialEq)]
pub enum Pickled {
    /// An array of bytes (u8), in row-major order.
    Bytes {
        /// Its sizes, outermost first.
        shape: Vec<usize>,
        /// Its elements.
        values: Vec<u8>,
    },
    /// A list of integers, or a one-dimensional array of them.
    Numbers(Vec<i64>),
    /// A list of strings.
    Texts(Vec<String>),
    /// Anything else, described.
    Other(&'static str),
}

/// The values of a pickled dictionary by key. The pickle takes all of `bytes`.
///
/// # Errors
/// The message and the advice for a pickle that is damaged, is not a dictionary, or needs anything but NumPy arrays.
pub fn numpy_pickle(bytes: &[u8]) -> Result<BTreeMap<String, Pickled>, (String, String)> {
    read(bytes).map_err(|fault| (fault.message, fault.advice))
}

fn read(bytes: &[u8]) -> Parsed<BTreeMap<String, Pickled>> {
    let pickle = pickle::read_as(Dialect::Numpy, bytes, 0, "the pickle")?;
    let Value::Dict(entries) = &pickle.values[pickle.root] else {
        let message = format!("it holds {}, not a dictionary", pickle.values[pickle.root].kind());
        return Err(Fault::new(message, "give a file of the data set as it was published"));
    };
    let mut room = bytes.len();
    let mut values = BTreeMap::new();
    for &(key, value) in entries {
        let Value::Text(key) = pickle.values[key] else { continue };
        values.insert(
            key.to_owned(),
            convert(&pickle, value, &mut room)
                .ok_or_else(|| Fault::damaged(format!("{} would hold more than the file does", short(key))))?,
        );
    }
    Ok(values)
}

/// None if there is no `room` for it: values may be referred to repeatedly.
fn convert(pickle: &Pickle, id: Id, room: &mut usize) -> Option<Pickled> {
    let mut take = |count: usize| {
        let left = room.checked_sub(count)?;
        *room = left;
        Some(())
    };
    Some(match &pickle.values[id] {
        Value::Array(array) => {
            take(bytes_of(pickle, array).len())?;
            array_value(pickle, array)
        }
        Value::List(items) | Value::Tuple(items) => {
            take(items.len())?;
            let numbers: Option<Vec<i64>> = items
                .iter()
                .map(|&item| match pickle.values[item] {
                    Value::Int(number) => Some(number),
                    _ => None,
                })
                .collect();
            if let Some(numbers) = numbers {
                return Some(Pickled::Numbers(numbers));
            }
            let mut texts = Vec::with_capacity(items.len());
            for &item in items {
                let Value::Text(text) = pickle.values[item] else { return Some(Pickled::Other("a mixed list")) };
                take(text.len())?;
                texts.push(text.to_owned());
            }
            Pickled::Texts(texts)
        }
        other => Pickled::Other(other.kind()),
    })
}

fn bytes_of<'p>(pickle: &'p Pickle, array: &Array) -> &'p [u8] {
    match array.data.map(|data| &pickle.values[data]) {
        Some(Value::Bytes(bytes)) => bytes,
        Some(Value::Text(text)) => text.as_bytes(),
        _ => &[],
    }
}

fn array_value(pickle: &Pickle, array: &Array) -> Pickled {
    let bytes = bytes_of(pickle, array);
    let Some(dtype) = array.dtype else { return Pickled::Other("an empty array") };
    match (dtype.kind, dtype.size, &array.shape[..]) {
        (b'u', 1, _) => {
            let values = if array.fortran { row_major(bytes, &array.shape) } else { bytes.to_vec() };
            Pickled::Bytes { shape: array.shape.clone(), values }
        }
        (b'u' | b'i', size, [_]) => bytes
            .chunks_exact(size)
            .map(|bytes| dtype.integer(bytes))
            .collect::<Option<_>>()
            .map_or(Pickled::Other("an array of another type"), Pickled::Numbers),
        _ => Pickled::Other("an array of another type"),
    }
}

/// Converts the elements of an array from column-major to row-major order.
fn row_major(bytes: &[u8], shape: &[usize]) -> Vec<u8> {
    let mut values = Vec::with_capacity(bytes.len());
    let mut index = vec![0; shape.len()];
    for _ in 0..bytes.len() {
        let at = shape.iter().zip(&index).rev().fold(0, |at, (&size, &index)| at * size + index);
        values.push(bytes[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"data": array([[1, 2, 3], [200, 5, 6]], u1), "labels": [7, 8], "names": ["a", "b"]}` as Python 2 wrote it, protocol 2.
    fn python2(fortran: bool) -> Vec<u8> {
        let mut bytes = b"\x80\x02}q\x01(U\x04data".to_vec();
        bytes.extend(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R");
        bytes.extend(b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb");
        bytes.push(if fortran { 0x88 } else { 0x89 });
        bytes.extend(b"U\x06\x01\x02\x03\xc8\x05\x06tb");
        bytes.extend(b"U\x06labels](K\x07K\x08eU\x05names](U\x01aU\x01beu.");
        bytes
    }

    #[test]
    fn arrays_lists_and_texts_are_read() {
        let read = numpy_pickle(&python2(false)).unwrap();
        assert_eq!(read["data"], Pickled::Bytes { shape: vec![2, 3], values: vec![1, 2, 3, 200, 5, 6] });
        assert_eq!(read["labels"], Pickled::Numbers(vec![7, 8]));
        assert_eq!(read["names"], Pickled::Texts(vec!["a".into(), "b".into()]));
        let fortran = numpy_pickle(&python2(true)).unwrap();
        assert_eq!(fortran["data"], Pickled::Bytes { shape: vec![2, 3], values: vec![1, 3, 5, 2, 200, 6] });
    }

    #[test]
    fn nothing_else_is_asked_for() {
        for call in ["cos\nsystem\n)R.", "cbuiltins\neval\n)R.", "ctorch._utils\n_rebuild_tensor_v2\n)R."] {
            let bytes = [&b"\x80\x02"[..], call.as_bytes()].concat();
            let (message, _) = numpy_pickle(&bytes).unwrap_err();
            assert!(message.contains("refused, nothing was run"), "{message}");
        }
        let (message, _) = numpy_pickle(b"\x80\x02K\x01.").unwrap_err();
        assert!(message.contains("a number, not a dictionary"), "{message}");
    }

    #[test]
    fn damaged_pickles_never_panic() {
        let whole = python2(false);
        for at in 0..whole.len() {
            let _ = numpy_pickle(&whole[..at]);
            for flip in [1, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                let _ = numpy_pickle(&bytes);
            }
        }
    }
}
