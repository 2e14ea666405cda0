//! Hugging Face's parquet files: a column `image` (a struct of `bytes` and `path`, or only bytes) and a column `label`.
//!
//! The class names come from the metadata that the `datasets` library writes. Splits come from the names of files
//! (`train-00000-of-00001.parquet`) or folders.

use std::fs::{self, File};
use std::path::Path;

use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};

use super::dataset::Split;
use super::draft::Draft;
use super::images::Pictures;
use super::import::{ImportOptions, LabelKind};
use super::labels::Label;
use super::layout::split_of;
use super::parquet_pages;
use super::source::HashedFile;
use crate::error::{Error, Result};
use crate::picture::guarded;

const IMAGES: [&str; 4] = ["image", "img", "images", "picture"];
const AGAIN: &str = "it is damaged or not of images: download it again";
/// Rows per read.
const ROWS: usize = 256;
/// Most bytes of pictures per read, unless one has more.
const ROWS_BYTES: usize = 16 << 20;

/// Reads one file, or those below a folder.
pub(super) fn read(source: &Path, options: &ImportOptions) -> Result<Draft> {
    let mut files = Vec::new();
    if source.is_dir() {
        list(source, "", 0, &mut files)?
    } else {
        files.push(String::new())
    }
    files.sort();
    let mut pictures = Pictures::new(source, options, None)?;
    let splits: Vec<Split> = files.iter().map(|file| split(file)).collect();
    let divided = splits.iter().any(|split| *split != Split::Train);
    let mut sources = Vec::new();
    for (number, (file, split)) in files.iter().zip(splits).enumerate() {
        let path = if file.is_empty() { source.to_path_buf() } else { source.join(file) };
        let folder = match (divided, split) {
            (false, _) => format!("{number:05}"),
            (true, Split::Train) => format!("train/{number:05}"),
            (true, _) => format!("test/{number:05}"),
        };
        let read = guarded(|| append(&path, &folder, options, &mut pictures));
        read.unwrap_or_else(|| Err(Error::file(&path, "cannot be decoded: it is damaged", AGAIN)))?;
        sources.push(HashedFile::open(&path)?.finish()?);
    }
    pictures.finish(sources)
}

fn list(root: &Path, below: &str, depth: usize, files: &mut Vec<String>) -> Result<()> {
    let folder = root.join(below);
    for entry in fs::read_dir(&folder).map_err(Error::io(&folder, "list"))? {
        let entry = entry.map_err(Error::io(&folder, "list"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        if name.starts_with('.') {
            continue;
        }
        if entry.path().is_dir() && depth < 4 {
            list(root, &path, depth + 1, files)?;
        } else if name.ends_with(".parquet") {
            files.push(path);
        }
    }
    Ok(())
}

/// The split in a file's path.
fn split(path: &str) -> Split {
    let words = path.split(|c: char| !c.is_ascii_alphabetic());
    words.filter_map(split_of).next_back().unwrap_or(Split::Train)
}

/// The indices of the columns.
struct Columns {
    image: usize,
    label: Option<usize>,
    /// The label column's name.
    name: String,
}

fn append(path: &Path, folder: &str, options: &ImportOptions, pictures: &mut Pictures) -> Result<()> {
    let bad = |error: ParquetError| {
        Error::file(path, format!("cannot be decoded: {}", error.to_string().replace('\n', " ")), AGAIN)
    };
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let pages = file.try_clone().map_err(Error::io(path, "open"))?;
    let reader = SerializedFileReader::new(file).map_err(bad)?;
    let columns = columns(path, &reader, options)?;
    if let Some(names) = class_names(&reader, &columns.name) {
        pictures.labels.name_classes(names);
    }
    if columns.label.is_none() {
        pictures.unlabelled = true;
    }
    let mut row = 0usize;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(bad)?;
        let count = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        for column in columns.label.iter().chain([&columns.image]) {
            let chunk = group.metadata().column(*column);
            let (start, len) = chunk.byte_range();
            let fault = |message| Error::file(path, message, AGAIN);
            parquet_pages::check(&pages, start, len, chunk.compression()).map_err(fault)?;
        }
        let labels = match columns.label {
            Some(column) => Some(labels(group.as_ref(), column, count).map_err(bad)?),
            None => None,
        };
        let ColumnReader::ByteArrayColumnReader(mut images) = group.get_column_reader(columns.image).map_err(bad)?
        else {
            return Err(Error::file(path, "has an image column that is not of bytes", AGAIN));
        };
        let level = group.metadata().column(columns.image).column_descr().max_def_level();
        let (mut at, mut rows) = (0, 1);
        while at < count {
            let batch = some(&mut images, level, rows.min(count - at)).map_err(bad)?;
            let bytes: usize = batch.iter().flatten().map(ByteArray::len).sum();
            rows = (ROWS_BYTES / (bytes / batch.len().max(1)).max(1)).clamp(1, ROWS.min(8 * rows));
            if batch.is_empty() {
                return Err(Error::file(path, format!("has only {at} of {count} images in a row group"), AGAIN));
            }
            for image in batch {
                let name = format!("{folder}/{row:08}");
                let label = labels.as_ref().and_then(|labels| labels.get(at)).cloned().flatten();
                pictures.labels.insert(&name, label);
                pictures.member(&name, image.map(|image: ByteArray| image.data().to_vec()).unwrap_or_default())?;
                (row, at) = (row + 1, at + 1);
            }
            pictures.decode_when_full()?;
        }
    }
    pictures.decode()
}

fn columns(path: &Path, reader: &impl FileReader, options: &ImportOptions) -> Result<Columns> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let find =
        |wanted: &dyn Fn(&[String]) -> bool| schema.columns().iter().position(|column| wanted(column.path().parts()));
    let image = IMAGES.iter().find_map(|name| {
        find(&|parts| parts.len() == 2 && parts[0] == *name && parts[1] == "bytes")
            .or_else(|| find(&|parts| parts.len() == 1 && parts[0] == *name))
    });
    let Some(image) = image else {
        let all: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
        let message = format!("has no column of images among {}", all.join(", "));
        return Err(Error::file(path, message, "give a file with a column `image`, as the datasets library writes it"));
    };
    let wanted: &[&str] = match options.labels {
        LabelKind::Fine => &["label", "labels", "fine_label", "class", "target"],
        LabelKind::Coarse => &["coarse_label"],
    };
    let named = wanted.iter().find_map(|name| Some((find(&|parts| parts.len() == 1 && parts[0] == *name)?, *name)));
    Ok(Columns {
        image,
        label: named.map(|(at, _)| at),
        name: named.map(|(_, name)| name.to_owned()).unwrap_or_default(),
    })
}

/// The class names, as the `datasets` library stores them.
fn class_names(reader: &impl FileReader, column: &str) -> Option<Vec<String>> {
    let entries = reader.metadata().file_metadata().key_value_metadata()?;
    let text = entries.iter().find(|entry| entry.key == "huggingface")?.value.as_ref()?;
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let names = value.pointer("/info/features")?.get(column)?.get("names")?.as_array()?;
    names.iter().map(|name| name.as_str().map(String::from)).collect()
}

/// The next values of a column, at most `rows`, None for nulls.
fn some<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    level: i16,
    rows: usize,
) -> Result<Vec<Option<T::T>>, ParquetError> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let (records, ..) = reader.read_records(rows, Some(&mut levels), None, &mut values)?;
    if level == 0 {
        return Ok(values.into_iter().map(Some).collect());
    }
    let mut values = values.into_iter();
    Ok(levels.iter().take(records).map(|&found| if found == level { values.next() } else { None }).collect())
}

fn labels(group: &dyn RowGroupReader, column: usize, count: usize) -> Result<Vec<Option<Label>>, ParquetError> {
    let level = group.metadata().column(column).column_descr().max_def_level();
    let number = |number: i64| u64::try_from(number).ok().map(Label::Index);
    let mut labels = Vec::new();
    macro_rules! gather {
        ($reader:ident, $convert:expr) => {
            while labels.len() < count {
                let batch = some(&mut $reader, level, (count - labels.len()).min(1 << 16))?;
                if batch.is_empty() {
                    break;
                }
                labels.extend(batch.into_iter().map(|value| value.and_then($convert)));
            }
        };
    }
    match group.get_column_reader(column)? {
        ColumnReader::Int64ColumnReader(mut reader) => gather!(reader, number),
        ColumnReader::Int32ColumnReader(mut reader) => gather!(reader, |value| number(i64::from(value))),
        ColumnReader::ByteArrayColumnReader(mut reader) => {
            type Text = <ByteArrayType as DataType>::T;
            gather!(reader, |value: Text| Some(Label::Name(String::from_utf8_lossy(value.data()).into_owned())))
        }
        _ => return Err(ParquetError::General("the label column is neither of numbers nor of texts".into())),
    }
    Ok(labels)
}
