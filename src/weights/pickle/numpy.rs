//! The pickled form of NumPy's arrays and element types: their names and states.

use std::borrow::Cow;

use super::{Id, Machine, Value};
use crate::weights::Parsed;

/// The names that NumPy's pickles may need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::weights) enum Name {
    /// `numpy.core.multiarray._reconstruct`: an empty array, whose state follows.
    Reconstruct,
    /// `numpy.core.numeric._frombuffer`: a whole array, protocol 5.
    FromBuffer,
    /// `numpy.core.multiarray.scalar`: one number.
    Scalar,
    Ndarray,
    Dtype,
    /// `_codecs.encode`: bytes, in protocol 2 written as text.
    Encode,
}

impl Name {
    pub fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Self::Reconstruct,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Self::Scalar,
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Self::FromBuffer,
            ("numpy", "ndarray") => Self::Ndarray,
            ("numpy", "dtype") => Self::Dtype,
            ("_codecs", "encode") => Self::Encode,
            _ => return None,
        })
    }
}

/// NumPy's element type: its kind as in `u1` and its size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::weights) struct Dtype {
    pub kind: u8,
    pub size: usize,
    pub big_endian: bool,
}

/// An array whose elements are the bytes of the value `data`. Without a state it has no elements.
#[derive(Clone, Debug, Default)]
pub(in crate::weights) struct Array {
    pub shape: Vec<usize>,
    pub dtype: Option<Dtype>,
    pub fortran: bool,
    pub data: Option<Id>,
}

impl<'a> Machine<'a, '_> {
    /// A byte string with a length of `N` bytes. Python 2 wrote text in this way too: valid UTF-8 counts as text.
    pub(super) fn byte_string<const N: usize>(&mut self) -> Parsed<()> {
        let len = self.number::<N>()?;
        let len = usize::try_from(len).map_err(|_| self.fault("the pickle is cut short"))?;
        let bytes = self.take(len)?;
        let value = match std::str::from_utf8(bytes) {
            Ok(text) => Value::Text(text),
            Err(_) => Value::Bytes(Cow::Borrowed(bytes)),
        };
        self.push(value)
    }

    /// `REDUCE` of one of NumPy's names.
    pub(super) fn make_numpy(&mut self, name: Name, arguments: &[Id]) -> Option<Value<'a>> {
        match (name, arguments) {
            (Name::Reconstruct, &[class, ..]) => {
                matches!(self.values[class], Value::Name(super::Name::Numpy(Name::Ndarray)))
                    .then(|| Value::Array(Array::default()))
            }
            (Name::Dtype, &[code, ..]) => match self.values[code] {
                Value::Text(code) => dtype(code).map(Value::Dtype),
                _ => None,
            },
            (Name::FromBuffer, &[data, dtype, shape, order]) => {
                let fortran = matches!(self.values[order], Value::Text("F"));
                self.array(shape, dtype, fortran, data).map(Value::Array)
            }
            (Name::Scalar, &[dtype, data]) => {
                let Value::Dtype(dtype) = self.values[dtype] else { return None };
                dtype.integer(self.bytes_of(data)?).map(Value::Int)
            }
            (Name::Encode, &[text, codec]) => {
                let (Value::Text(text), Value::Text("latin1" | "latin-1")) = (&self.values[text], &self.values[codec])
                else {
                    return None;
                };
                // The same text may be encoded repeatedly.
                self.encoded += text.len();
                if self.encoded > self.bytes.len() {
                    return None;
                }
                let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
                bytes.map(|bytes| Value::Bytes(Cow::Owned(bytes)))
            }
            _ => None,
        }
    }

    /// `BUILD`: the state of an array or of an element type.
    pub(super) fn build(&mut self, owner: Id, state: Id) -> Parsed<()> {
        let fields = match &self.values[state] {
            Value::Tuple(fields) => fields.clone(),
            _ => Vec::new(),
        };
        let built = match (&self.values[owner], &fields[..]) {
            (Value::Dict(_), _) => return Ok(()),
            (Value::Array(_), &[_, shape, dtype, fortran, data]) => {
                let fortran = matches!(self.values[fortran], Value::Bool(true) | Value::Int(1));
                self.array(shape, dtype, fortran, data).map(Value::Array)
            }
            (Value::Dtype(dtype), &[_, order, ..]) => match self.values[order] {
                Value::Text(order) => Some(Value::Dtype(Dtype { big_endian: order == ">", ..*dtype })),
                _ => None,
            },
            _ => None,
        };
        let kind = self.values[owner].kind();
        self.values[owner] = built.ok_or_else(|| self.fault(format!("{kind} is given a state that it cannot have")))?;
        Ok(())
    }

    fn array(&self, shape: Id, dtype: Id, fortran: bool, data: Id) -> Option<Array> {
        let Value::Dtype(dtype) = self.values[dtype] else { return None };
        let shape = self.sizes(shape)?;
        let count = shape.iter().try_fold(dtype.size, |bytes, &size| bytes.checked_mul(size))?;
        (self.bytes_of(data)?.len() == count).then_some(Array { shape, dtype: Some(dtype), fortran, data: Some(data) })
    }

    fn bytes_of(&self, id: Id) -> Option<&[u8]> {
        match &self.values[id] {
            Value::Bytes(bytes) => Some(bytes),
            Value::Text(text) => Some(text.as_bytes()),
            _ => None,
        }
    }
}

fn dtype(code: &str) -> Option<Dtype> {
    let (kind, size) = (code.bytes().next()?, code.get(1..)?.parse().ok()?);
    (matches!(kind, b'u' | b'i' | b'f' | b'b') && matches!(size, 1 | 2 | 4 | 8)).then_some(Dtype {
        kind,
        size,
        big_endian: false,
    })
}

impl Dtype {
    /// An integer of this type.
    pub fn integer(self, bytes: &[u8]) -> Option<i64> {
        if bytes.len() != self.size || !matches!(self.kind, b'u' | b'i') {
            return None;
        }
        let mut bytes = bytes.to_vec();
        if self.big_endian {
            bytes.reverse();
        }
        let negative = self.kind == b'i' && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(&bytes);
        Some(i64::from_le_bytes(wide))
    }
}
