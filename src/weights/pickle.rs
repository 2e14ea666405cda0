//! A pickle of weights as plain values: a stack machine with the operations that `torch.save` writes, protocols 2 to 5 (CPython,
//! Lib/pickletools.py), and the few names that tensors need. It imports nothing and calls nothing; anything else in a file is an
//! error.
//!
//! Values are in one table and refer to each other by index, so that a value that is used twice is not copied, and deep nesting
//! needs no recursion, not even to free it.

mod numpy;

use std::borrow::Cow;
use std::collections::HashMap;

pub(super) use numpy::{Array, Dtype};

use super::{Element, Fault, Parsed, SAVE_AGAIN, short};

/// Most values of one pickle. A tensor takes about 25, so there is room for some 40,000.
const MAX_VALUES: usize = 1_000_000;
/// Most dimensions of a tensor, as in PyTorch.
const MAX_RANK: usize = 64;

/// The index of a value in [`Pickle::values`].
pub(super) type Id = usize;

pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// A number that weights do not depend on.
    Number,
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Name(Name),
    Storage(Storage<'a>),
    Tensor(Tensor<'a>),
    /// Only in NumPy's pickles, like the next two.
    Bytes(Cow<'a, [u8]>),
    Dtype(Dtype),
    Array(Array),
}

impl Value<'_> {
    /// Its kind, for errors.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a truth value",
            Self::Int(_) | Self::Number => "a number",
            Self::Text(_) => "text",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Name(_) => "a type or function",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::Bytes(_) => "bytes",
            Self::Dtype(_) => "an element type",
            Self::Array(_) => "a NumPy array",
        }
    }
}

/// The kind of pickle; each refuses the names of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Weights of `torch.save`.
    Torch,
    /// Dictionaries of NumPy arrays, lists and texts.
    Numpy,
}

/// The names that weights may need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Name {
    OrderedDict,
    RebuildTensor,
    RebuildTensorV2,
    RebuildParameter,
    Parameter,
    Size,
    Storage(Element),
    Numpy(numpy::Name),
}

impl Name {
    fn find(dialect: Dialect, module: &str, name: &str) -> Option<Self> {
        if dialect == Dialect::Numpy {
            return match (module, name) {
                ("collections", "OrderedDict") => Some(Self::OrderedDict),
                _ => numpy::Name::find(module, name).map(Self::Numpy),
            };
        }
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensorV2,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch.nn.parameter", "Parameter") => Self::Parameter,
            ("torch", "Size") => Self::Size,
            ("torch", storage) => Self::Storage(match storage.strip_suffix("Storage")? {
                "Float" => Element::F32,
                "Double" => Element::F64,
                "Half" => Element::F16,
                "BFloat16" => Element::Bf16,
                "Long" => Element::I64,
                "Int" => Element::I32,
                "Short" => Element::I16,
                "Char" => Element::I8,
                "Byte" => Element::U8,
                "Bool" => Element::Bool,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

/// A storage in the file, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Storage<'a> {
    pub element: Element,
    pub key: &'a str,
    /// Elements of the whole storage.
    pub len: usize,
    /// The first element of the part, and its length.
    pub part: (usize, usize),
}

/// The layout of a tensor in its storage.
#[derive(Clone, Debug)]
pub(super) struct Tensor<'a> {
    pub storage: Storage<'a>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// The parsed pickle.
pub(super) struct Pickle<'a> {
    pub values: Vec<Value<'a>>,
    pub root: Id,
    /// Every reference to a storage.
    pub storages: Vec<Storage<'a>>,
    /// The length of the pickle in bytes.
    pub len: usize,
}

/// Reads the pickle at the start of `bytes`. For errors, they are at byte `base` of `place`.
pub(super) fn read<'a>(bytes: &'a [u8], base: usize, place: &str) -> Parsed<Pickle<'a>> {
    read_as(Dialect::Torch, bytes, base, place)
}

/// As [`read`], for a given dialect.
pub(super) fn read_as<'a>(dialect: Dialect, bytes: &'a [u8], base: usize, place: &str) -> Parsed<Pickle<'a>> {
    let mut machine = Machine {
        dialect,
        bytes,
        at: 0,
        op_at: 0,
        base,
        place,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        storages: Vec::new(),
        copied: 0,
        encoded: 0,
    };
    while machine.step()? {}
    let root = machine.pop()?;
    Ok(Pickle { values: machine.values, root, storages: machine.storages, len: machine.at })
}

struct Machine<'a, 'p> {
    dialect: Dialect,
    bytes: &'a [u8],
    at: usize,
    /// The position of the current operation.
    op_at: usize,
    base: usize,
    place: &'p str,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// The stack heights of marks, below which nothing is popped.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    storages: Vec<Storage<'a>>,
    /// Pairs and sizes copied from other values: operations that produce more than their own bytes.
    copied: usize,
    /// Bytes decoded from text.
    encoded: usize,
}

impl<'a> Machine<'a, '_> {
    /// Runs the next operation; false for the last one.
    fn step(&mut self) -> Parsed<bool> {
        self.op_at = self.at;
        match self.number::<1>()? as u8 {
            b'.' => return Ok(false),
            0x80 => self.protocol()?,
            // A frame's length only matters to stream readers.
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' | b'M' | b'J' | 0x8a => {
                let value = self.integer()?;
                self.push(value)?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Number)?;
            }
            b'T' | b'B' if self.dialect == Dialect::Numpy => self.byte_string::<4>()?,
            b'U' | b'C' if self.dialect == Dialect::Numpy => self.byte_string::<1>()?,
            0x8e | 0x96 if self.dialect == Dialect::Numpy => self.byte_string::<8>()?,
            b'X' | b'T' => self.text::<4>()?,
            0x8c | b'U' => self.text::<1>()?,
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            op @ (b't' | 0x85..=0x87 | b'a' | b'e' | b's' | b'u') => self.gather(op)?,
            op @ (b'q' | b'r' | 0x94 | b'h' | b'j') => self.look_up(op)?,
            op @ (b'c' | 0x93 | b'Q' | b'R' | 0x81 | b'b') => self.call(op)?,
            op => {
                let message = format!("operation 0x{op:02x} of pickles, which weights do not need: it was not done");
                return Err(Fault { advice: SAVE_AGAIN.into(), ..self.fault(message) });
            }
        }
        Ok(true)
    }

    fn protocol(&mut self) -> Parsed<()> {
        let protocol = self.number::<1>()?;
        match (2..=5).contains(&protocol) {
            true => Ok(()),
            false => Err(self.fault(format!("pickle protocol {protocol} is not one of 2 to 5"))),
        }
    }

    /// Tuples from the stack (`t` and 0x85 to 0x87), and items of lists (`a`, `e`) and dictionaries (`s`, `u`).
    fn gather(&mut self, op: u8) -> Parsed<()> {
        match op {
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))?;
            }
            0x85..=0x87 => {
                let mut items = Vec::with_capacity(3);
                for _ in 0x84..op {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Value::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])?;
            }
            _ => {
                let items = self.pop_to_mark()?;
                self.set(&items)?;
            }
        }
        Ok(())
    }

    /// Stores the top of the stack in the memo (`q`, `r`, 0x94), and loads it (`h`, `j`).
    fn look_up(&mut self, op: u8) -> Parsed<()> {
        match op {
            b'q' => {
                let slot = self.number::<1>()?;
                self.remember(slot as u32)?;
            }
            b'r' => {
                let slot = self.number::<4>()?;
                self.remember(slot as u32)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let slot = self.number::<1>()?;
                self.recall(slot as u32)?;
            }
            _ => {
                let slot = self.number::<4>()?;
                self.recall(slot as u32)?;
            }
        }
        Ok(())
    }

    /// Names (`c`, 0x93), storages (`Q`), calls (`R`, 0x81) and attributes (`b`): the few that weights need.
    fn call(&mut self, op: u8) -> Parsed<()> {
        match op {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.name(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.values[module], &self.values[name]) {
                    (&Value::Text(module), &Value::Text(name)) => self.name(module, name)?,
                    _ => return Err(self.fault("a name is not text")),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.storages.push(storage);
                self.push(Value::Storage(storage))?;
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.make(callable, arguments)?;
            }
            _ => {
                // Attributes of a dictionary (`_metadata`) or a tensor (hooks) change no weight.
                let state = self.pop()?;
                let owner = self.top()?;
                if self.dialect == Dialect::Numpy {
                    self.build(owner, state)?;
                } else if !matches!(self.values[owner], Value::Dict(_) | Value::Tensor(_)) {
                    return Err(self.fault(format!("{} is given attributes", self.values[owner].kind())));
                }
            }
        }
        Ok(())
    }

    /// An error at the current operation.
    fn fault(&self, message: impl std::fmt::Display) -> Fault {
        Fault::damaged(format!("{}, byte {}: {message}", self.place, self.base + self.op_at))
    }

    fn take(&mut self, len: usize) -> Parsed<&'a [u8]> {
        let bytes = self.at.checked_add(len).and_then(|end| self.bytes.get(self.at..end));
        let bytes = bytes.ok_or_else(|| self.fault("the pickle is cut short"))?;
        self.at += len;
        Ok(bytes)
    }

    /// An unsigned number of `N` bytes, at most 8.
    fn number<const N: usize>(&mut self) -> Parsed<u64> {
        Ok(self.take(N)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// The operand of `BININT1`, `BININT2`, `BININT` or `LONG1`, whose byte has just been read.
    fn integer(&mut self) -> Parsed<Value<'a>> {
        Ok(match self.bytes[self.op_at] {
            b'K' => Value::Int(self.number::<1>()? as i64),
            b'M' => Value::Int(self.number::<2>()? as i64),
            b'J' => Value::Int(i64::from(self.number::<4>()? as u32 as i32)),
            _ => {
                let len = self.number::<1>()? as usize;
                let bytes = self.take(len)?;
                if len > 8 {
                    return Ok(Value::Number);
                }
                // Two's complement: extends the sign of the last byte.
                let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { -1 } else { 0 };
                Value::Int(bytes.iter().rev().fold(sign, |number, &byte| number << 8 | i64::from(byte)))
            }
        })
    }

    /// Text with a length of `N` bytes.
    fn text<const N: usize>(&mut self) -> Parsed<()> {
        let len = self.number::<N>()? as usize;
        let bytes = self.take(len)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.fault("text is not UTF-8"))?;
        self.push(Value::Text(text))
    }

    fn line(&mut self) -> Parsed<&'a str> {
        let rest = &self.bytes[self.at..];
        // No known name is nearly this long.
        let end =
            rest.iter().take(256).position(|&byte| byte == b'\n').ok_or_else(|| self.fault("a name has no end"))?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| self.fault("a name is not UTF-8"))
    }

    fn push(&mut self, value: Value<'a>) -> Parsed<()> {
        if self.values.len() >= MAX_VALUES {
            let message = format!("more than {MAX_VALUES} values, far more than weights need");
            return Err(Fault { advice: SAVE_AGAIN.into(), ..self.fault(message) });
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    fn top(&self) -> Parsed<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.get(floor..).and_then(|open| open.last()).copied().ok_or_else(|| self.fault("a value is missing"))
    }

    fn pop(&mut self) -> Parsed<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Parsed<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| self.fault("a mark is missing"))?;
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, items: &[Id]) -> Parsed<()> {
        let list = self.top()?;
        match &mut self.values[list] {
            Value::List(list) => list.extend(items),
            other => {
                let kind = other.kind();
                return Err(self.fault(format!("{kind} is appended to")));
            }
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Parsed<()> {
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.values[dict] {
            Value::Dict(entries) if rest.is_empty() => entries.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Value::Dict(_) => return Err(self.fault("a key has no value")),
            other => {
                let kind = other.kind();
                return Err(self.fault(format!("{kind} is given keys")));
            }
        }
        Ok(())
    }

    fn remember(&mut self, slot: u32) -> Parsed<()> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Parsed<()> {
        let id = *self.memo.get(&slot).ok_or_else(|| self.fault(format!("nothing was stored as number {slot}")))?;
        self.stack.push(id);
        Ok(())
    }

    /// `GLOBAL`: Python would import here.
    fn name(&mut self, module: &str, name: &str) -> Parsed<()> {
        let Some(known) = Name::find(self.dialect, module, name) else {
            let message = format!(
                "asks for {}.{}, which weights do not need and which Python would run: refused, nothing was run",
                short(module),
                short(name)
            );
            let advice = "take weights from a source you trust, saved as a state_dict or as safetensors";
            return Err(Fault { advice: advice.into(), ..self.fault(message) });
        };
        self.push(Value::Name(known))
    }

    /// A persistent id: `("storage", type, key, location, len[, part])`.
    fn storage(&self, id: Id) -> Parsed<Storage<'a>> {
        let read = || {
            let Value::Tuple(fields) = &self.values[id] else { return None };
            let (&[tag, class, key, _, len], rest) = fields.split_first_chunk()?;
            let (Value::Text("storage"), &Value::Name(Name::Storage(element)), &Value::Text(key)) =
                (&self.values[tag], &self.values[class], &self.values[key])
            else {
                return None;
            };
            let len = self.size(len)?;
            let part = match rest {
                [] => (0, len),
                [part] => match &self.values[*part] {
                    Value::None => (0, len),
                    // A part of a storage in an older file: `(key, offset, len)`.
                    Value::Tuple(fields) => match fields[..] {
                        [_, first, count] => (self.size(first)?, self.size(count)?),
                        _ => return None,
                    },
                    _ => return None,
                },
                _ => return None,
            };
            part.0.checked_add(part.1).filter(|&end| end <= len)?;
            Some(Storage { element, key, len, part })
        };
        read().ok_or_else(|| self.fault("this does not describe a storage"))
    }

    /// A count that fits in `usize`.
    fn size(&self, id: Id) -> Option<usize> {
        match self.values[id] {
            Value::Int(size) => usize::try_from(size).ok(),
            _ => None,
        }
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        match &self.values[id] {
            Value::Tuple(items) | Value::List(items) if items.len() <= MAX_RANK => {
                items.iter().map(|&item| self.size(item)).collect()
            }
            _ => None,
        }
    }

    /// `REDUCE` and `NEWOBJ`: Python would call here. Each known name has a plain value instead.
    fn make(&mut self, callable: Id, arguments: Id) -> Parsed<()> {
        let (&Value::Name(name), Value::Tuple(arguments)) = (&self.values[callable], &self.values[arguments]) else {
            let message = format!("{} is called: refused, nothing was run", self.values[callable].kind());
            return Err(self.fault(message));
        };
        // No call takes more: this prevents repeated copies of a long tuple.
        let arguments: Vec<Id> = arguments.iter().take(16).copied().collect();
        let made = match (name, &arguments[..]) {
            (Name::OrderedDict, []) => Some(Value::Dict(Vec::new())),
            (Name::OrderedDict, &[pairs]) => self.pairs(pairs).map(Value::Dict),
            (Name::RebuildTensor, &[storage, offset, shape, strides])
            | (Name::RebuildTensorV2, &[storage, offset, shape, strides, _, _, ..]) => {
                self.tensor(storage, offset, shape, strides).map(Value::Tensor)
            }
            (Name::RebuildParameter | Name::Parameter, &[tensor, ..]) => match &self.values[tensor] {
                Value::Tensor(tensor) => Some(Value::Tensor(tensor.clone())),
                _ => None,
            },
            (Name::Size, &[sizes]) => self.sizes(sizes).and_then(|_| match &self.values[sizes] {
                Value::Tuple(items) | Value::List(items) => Some(Value::Tuple(items.clone())),
                _ => None,
            }),
            (Name::Numpy(name), arguments) => self.make_numpy(name, arguments),
            _ => None,
        };
        let Some(made) = made else {
            return Err(self.fault(format!("{name:?} does not go with what it is given")));
        };
        // The same list or shape may be copied repeatedly.
        self.copied += match &made {
            Value::Dict(pairs) => pairs.len(),
            Value::Tuple(items) => items.len(),
            Value::Tensor(tensor) => 2 * tensor.shape.len(),
            Value::Array(array) => array.shape.len(),
            _ => 0,
        };
        if self.copied > MAX_VALUES {
            let message = format!("more than {MAX_VALUES} entries, far more than weights need");
            return Err(Fault { advice: SAVE_AGAIN.into(), ..self.fault(message) });
        }
        self.push(made)
    }

    /// The pairs of a list, as Python 2 wrote ordered dictionaries.
    fn pairs(&self, list: Id) -> Option<Vec<(Id, Id)>> {
        let Value::List(items) = &self.values[list] else { return None };
        let pair = |&item: &Id| match &self.values[item] {
            Value::Tuple(pair) | Value::List(pair) => {
                <[Id; 2]>::try_from(&pair[..]).ok().map(|[key, value]| (key, value))
            }
            _ => None,
        };
        items.iter().map(pair).collect()
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Option<Tensor<'a>> {
        let Value::Storage(storage) = self.values[storage] else { return None };
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        (shape.len() == strides.len()).then_some(Tensor { storage, offset: self.size(offset)?, shape, strides })
    }
}
