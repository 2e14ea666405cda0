//! The two containers of `torch.save`, and tensors as arrays.

use std::collections::{BTreeMap, HashMap};

use super::archive::Archive;
use super::pickle::{self, Id, Pickle, Storage, Tensor, Value};
use super::{Element, Fault, Parsed, SAVE_AGAIN, WeightArray, short};

/// The start of files before PyTorch 1.6: protocol 2 or 3 and the number 0x1950a86a20f9469cfc6c, as a separate pickle.
const MAGIC: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const MAGIC_LEN: usize = 15;
/// The protocol number in those files.
const PROTOCOL: i64 = 1001;
/// The keys of the weights in checkpoints with other content.
const WITHIN: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// The arrays of a file written by `torch.save`; none for another kind of file.
pub(super) fn read(file: &[u8]) -> Option<Parsed<BTreeMap<String, WeightArray>>> {
    if file.starts_with(b"PK") {
        return Some(read_archive(file));
    }
    let is_stream = matches!(file, [0x80, 2 | 3, rest @ ..] if rest.starts_with(&MAGIC));
    is_stream.then(|| read_stream(file))
}

fn read_archive(file: &[u8]) -> Parsed<BTreeMap<String, WeightArray>> {
    let archive = Archive::open(file)?;
    let is_root = |root: &str| root.is_empty() || root.find('/') == Some(root.len() - 1);
    let root = archive.names().filter_map(|name| name.strip_suffix("data.pkl")).find(|root| is_root(root));
    let root =
        root.ok_or_else(|| Fault::new("the archive has no data.pkl: torch.save did not write it", SAVE_AGAIN))?;
    if archive.contains(&format!("{root}constants.pkl")) {
        return Err(Fault::new("the archive is a TorchScript program, not weights", SAVE_AGAIN));
    }
    let order = format!("{root}byteorder");
    if archive.contains(&order) && archive.get(&order)?.trim_ascii() != b"little" {
        return Err(big_endian());
    }
    let entry = format!("{root}data.pkl");
    let bytes = archive.get(&entry)?;
    let pickle = pickle::read(bytes, 0, &format!("entry {}", short(&entry)))?;
    if pickle.len != bytes.len() {
        return Err(Fault::damaged(format!("{} bytes follow the pickle in its entry", bytes.len() - pickle.len)));
    }
    let mut storages = HashMap::new();
    for storage in &pickle.storages {
        if !storages.contains_key(storage.key) {
            storages.insert(storage.key, archive.get(&format!("{root}data/{}", storage.key))?);
        }
    }
    arrays(&pickle, &storages, file.len())
}

/// Consecutive pickles (the magic number, the protocol, the machine, the object, the storages' keys), then each storage in the
/// order of the keys: its number of elements, 8 bytes, and the elements.
fn read_stream(file: &[u8]) -> Parsed<BTreeMap<String, WeightArray>> {
    let mut at = MAGIC_LEN;
    if file.get(MAGIC_LEN - 1) != Some(&b'.') {
        return Err(Fault::damaged("damaged or cut short at byte 14"));
    }
    let mut next = || -> Parsed<Pickle> {
        let pickle = pickle::read(&file[at..], at, "the pickle stream")?;
        at += pickle.len;
        Ok(pickle)
    };
    let (protocol, machine, object, keys) = (next()?, next()?, next()?, next()?);
    if !matches!(protocol.values[protocol.root], Value::Int(PROTOCOL)) {
        return Err(Fault::new(format!("not of the protocol {PROTOCOL} of pickle streams"), SAVE_AGAIN));
    }
    match entry(&machine, "little_endian") {
        Some(Value::Bool(true)) => {}
        Some(Value::Bool(false)) => return Err(big_endian()),
        _ => return Err(Fault::damaged("it does not say its order of bytes")),
    }
    let mut declared: HashMap<&str, (Element, usize)> = HashMap::new();
    for storage in &object.storages {
        let is = (storage.element, storage.len);
        if *declared.entry(storage.key).or_insert(is) != is {
            return Err(Fault::damaged(format!("storage {} has two types or lengths", short(storage.key))));
        }
    }
    let Value::List(keys_listed) = &keys.values[keys.root] else {
        return Err(Fault::damaged("it does not list its storages"));
    };
    let mut storages = HashMap::new();
    for &key in keys_listed {
        let Value::Text(key) = keys.values[key] else {
            return Err(Fault::damaged("a storage's key is not text"));
        };
        let Some(&(element, len)) = declared.get(key) else {
            return Err(Fault::damaged(format!("no tensor uses storage {}", short(key))));
        };
        let stated = file.get(at..).and_then(|rest| rest.first_chunk()).map(|&bytes| u64::from_le_bytes(bytes));
        if stated.is_some_and(|stated| stated != len as u64) {
            let message = format!("storage {} at byte {at} does not have its {len} elements", short(key));
            return Err(Fault::damaged(message));
        }
        let end = len.checked_mul(element.size()).and_then(|size| size.checked_add(at + 8));
        let Some(bytes) = end.and_then(|end| file.get(at + 8..end)) else {
            let message = format!("storage {} at byte {at} goes beyond the file's end: it is cut short", short(key));
            return Err(Fault::damaged(message));
        };
        if storages.insert(key, bytes).is_some() {
            return Err(Fault::damaged(format!("storage {} occurs twice", short(key))));
        }
        at += 8 + bytes.len();
    }
    if at != file.len() {
        return Err(Fault::damaged(format!("{} bytes follow the last storage, at byte {at}", file.len() - at)));
    }
    arrays(&object, &storages, file.len())
}

fn big_endian() -> Fault {
    Fault::new("its numbers are big-endian, which is not read", "save it on a little-endian machine")
}

/// The value of `key` in a root dictionary.
fn entry<'p, 'a>(pickle: &'p Pickle<'a>, key: &str) -> Option<&'p Value<'a>> {
    let Value::Dict(entries) = &pickle.values[pickle.root] else { return None };
    let is_it = |id: Id| matches!(pickle.values[id], Value::Text(text) if text == key);
    // As in Python, the last assignment counts.
    entries.iter().rev().find(|(name, _)| is_it(*name)).map(|&(_, value)| &pickle.values[value])
}

/// The tensors of a dictionary, from the bytes of `storages`. In total they have at most `max_elements`: tensors may share a
/// storage or repeat its elements, so the file's size alone is not a bound.
fn arrays(
    pickle: &Pickle,
    storages: &HashMap<&str, &[u8]>,
    max_elements: usize,
) -> Parsed<BTreeMap<String, WeightArray>> {
    let values = &pickle.values;
    let Value::Dict(root) = &values[pickle.root] else {
        let message = format!("it holds {}, not a dictionary of tensors", values[pickle.root].kind());
        return Err(Fault::new(message, SAVE_AGAIN));
    };
    let mut entries = root;
    if !root.iter().any(|&(_, value)| matches!(values[value], Value::Tensor(_))) {
        let within = WITHIN.iter().find_map(|key| match entry(pickle, key) {
            Some(Value::Dict(entries)) => Some(entries),
            _ => None,
        });
        entries = within.unwrap_or(root);
    }
    let mut arrays = BTreeMap::new();
    let mut room = max_elements;
    for &(key, value) in entries {
        let Value::Text(name) = values[key] else {
            return Err(Fault::new(format!("a tensor's name is {}, not text", values[key].kind()), SAVE_AGAIN));
        };
        let Value::Tensor(tensor) = &values[value] else {
            let message = format!("{} is {}, not a tensor", short(name), values[value].kind());
            return Err(Fault::new(message, SAVE_AGAIN));
        };
        let count = tensor.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
        let Some(count) = count.filter(|&count| count <= room) else {
            let message =
                format!("{} of shape {:?} would make more numbers than the file has bytes", short(name), tensor.shape);
            return Err(Fault::new(message, SAVE_AGAIN));
        };
        room -= count;
        let array = WeightArray { shape: tensor.shape.clone(), values: elements(name, tensor, count, storages)? };
        if arrays.insert(name.to_owned(), array).is_some() {
            return Err(Fault::damaged(format!("{} occurs twice", short(name))));
        }
    }
    Ok(arrays)
}

/// The `count` elements of a tensor in row-major order.
fn elements(name: &str, tensor: &Tensor, count: usize, storages: &HashMap<&str, &[u8]>) -> Parsed<Vec<f32>> {
    let Storage { element, key, len, part } = tensor.storage;
    let Some(bytes) = storages.get(key) else {
        return Err(Fault::damaged(format!("storage {} of {} is not in the file", short(key), short(name))));
    };
    if len.checked_mul(element.size()) != Some(bytes.len()) {
        let message =
            format!("storage {} has {} bytes where {} says {len} elements", short(key), bytes.len(), short(name));
        return Err(Fault::damaged(message));
    }
    let mut values = Vec::with_capacity(count);
    if count == 0 {
        return Ok(values);
    }
    let steps = || tensor.shape.iter().zip(&tensor.strides);
    let last = steps().try_fold(tensor.offset, |last, (&size, &stride)| {
        (size - 1).checked_mul(stride).and_then(|step| step.checked_add(last))
    });
    if last.is_none_or(|last| last >= part.1) {
        let message = format!(
            "{} of shape {:?} and strides {:?} at {} goes beyond the {} elements of storage {}",
            short(name),
            tensor.shape,
            tensor.strides,
            tensor.offset,
            part.1,
            short(key)
        );
        return Err(Fault::damaged(message));
    }
    let start = part.0 + tensor.offset;
    let run = |at: usize, len: usize| &bytes[at * element.size()..][..len * element.size()];
    // A dimension of one element may have any stride.
    let mut dense = 1;
    let contiguous = steps().rev().all(|(&size, &stride)| {
        let follows = size == 1 || stride == dense;
        dense *= size;
        follows
    });
    if contiguous {
        element.decode(run(start, count), &mut values);
        return Ok(values);
    }
    let mut index = vec![0; tensor.shape.len()];
    let mut at = start;
    while values.len() < count {
        element.decode(run(at, 1), &mut values);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += tensor.strides[axis];
            if index[axis] < tensor.shape[axis] {
                break;
            }
            at -= tensor.shape[axis] * tensor.strides[axis];
            index[axis] = 0;
        }
    }
    Ok(values)
}
