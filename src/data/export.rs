//! Exports a [`Dataset`] to files for other tools: PNG files in folders, NumPy's `.npz`, parquet as the datasets library writes
//! it, and the zip of StyleGAN and EDM.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use zip::ZipWriter;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;

use super::dataset::{Dataset, Split, part_path, refuse_to_overwrite};
use crate::error::{Error, Result};
use crate::picture::{Image, encode_png};

/// Limits of pictures encoded before they are written: a number, and bytes of pixels, unless a single picture is larger.
const BATCH: usize = 4096;
const BATCH_BYTES: usize = 32 << 20;

/// The format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// A folder of PNG files, `SPLIT/CLASS/000000.png`, with `labels.csv` and `classes.txt`.
    Png,
    /// `images` u8 `[N, H, W, C]`, `labels` i64 `[N]`, `split` u8 `[N]` (0 training, 1 validation, 2 test) and `class_names`.
    Npz,
    /// A parquet file for each split, with the columns `image` (PNG) and `label`.
    Parquet,
    /// A zip of `00000/img00000000.png` … and `dataset.json`.
    Edm,
}

impl ExportFormat {
    /// The format from the name of the output: `.npz`, `.parquet`, `.zip`, else a folder.
    pub fn of(out: &Path) -> Self {
        match out.extension().and_then(|ending| ending.to_str()) {
            Some("npz") => Self::Npz,
            Some("parquet") => Self::Parquet,
            Some("zip") => Self::Edm,
            _ => Self::Png,
        }
    }
}

/// Writes the images of `split`, or all of them, to `out`. Returns the written paths.
///
/// # Errors
///
/// [`Error::Io`] if it cannot be written; [`Error::File`] if it exists, unless `force`.
pub fn export(
    set: &Dataset,
    out: impl AsRef<Path>,
    format: ExportFormat,
    split: Option<Split>,
    force: bool,
) -> Result<Vec<PathBuf>> {
    let out = out.as_ref();
    let splits: Vec<Split> = [Split::Train, Split::Validation, Split::Test]
        .into_iter()
        .filter(|one| split.is_none_or(|split| split == *one) && set.split_len(*one) > 0)
        .collect();
    if splits.is_empty() {
        return Err(Error::config("split", "the set has no such images", "give another split"));
    }
    match format {
        ExportFormat::Png => folder(set, out, &splits, force),
        ExportFormat::Npz => whole(out, force, |file| npz(set, out, &splits, file)),
        ExportFormat::Edm => whole(out, force, |file| edm(set, out, &splits, file)),
        ExportFormat::Parquet => parquet_files(set, out, &splits, force),
    }
}

/// Its name in folders and files.
fn split_name(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Validation => "validation",
        Split::Test => "test",
    }
}

/// Writes a file under a temporary name, syncs it and renames it.
fn whole(
    out: &Path,
    force: bool,
    write: impl FnOnce(BufWriter<File>) -> Result<BufWriter<File>>,
) -> Result<Vec<PathBuf>> {
    refuse_to_overwrite(out, force)?;
    if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    }
    let part = part_path(out);
    let written = File::create(&part).map_err(Error::io(&part, "write")).and_then(|file| {
        let file = write(BufWriter::with_capacity(1 << 20, file))?;
        let file = file.into_inner().map_err(|error| Error::io(out, "write")(error.into_error()))?;
        file.sync_all().map_err(Error::io(out, "write"))?;
        fs::rename(&part, out).map_err(Error::io(out, "write"))
    });
    if written.is_err() {
        // Best effort: the first error is the one reported.
        let _ = fs::remove_file(&part);
    }
    written.map(|()| vec![out.to_path_buf()])
}

/// Image `index` as a PNG file.
fn png(set: &Dataset, index: usize) -> Result<Vec<u8>> {
    let image = Image::new(set.width(), set.height(), set.channels(), set.image(index).to_vec())?;
    encode_png(&image, &[])
}

/// Passes the images of the splits as PNG files to `write`, in order, encoded on all processors.
fn each_png(set: &Dataset, splits: &[Split], mut write: impl FnMut(usize, Vec<u8>) -> Result<()>) -> Result<()> {
    let indices: Vec<usize> = splits.iter().flat_map(|split| set.split_indices(*split)).collect();
    for batch in indices.chunks((BATCH_BYTES / set.image_bytes()).clamp(1, BATCH)) {
        let pictures: Vec<_> = batch.par_iter().map(|&index| png(set, index)).collect();
        batch.iter().zip(pictures).try_for_each(|(&index, picture)| write(index, picture?))?;
    }
    Ok(())
}

/// A class as a folder name: invalid characters become `_`.
fn folder_name(class: &str, label: usize) -> String {
    let safe: String =
        class.chars().map(|c| if c.is_alphanumeric() || " -_.,()+&".contains(c) { c } else { '_' }).take(100).collect();
    let safe = safe.trim().trim_start_matches('.');
    if safe.is_empty() { format!("class {label}") } else { safe.to_owned() }
}

fn folder(set: &Dataset, out: &Path, splits: &[Split], force: bool) -> Result<Vec<PathBuf>> {
    let taken = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if taken && !force {
        return Err(Error::file(out, "exists and is not empty", "give another folder, or write into it with `force`"));
    }
    let mut names: Vec<String> = Vec::new();
    for (label, class) in set.class_names().iter().enumerate() {
        let name = folder_name(class, label);
        let is_new = !names.iter().any(|taken| taken.eq_ignore_ascii_case(&name));
        names.push(if is_new { name } else { format!("{name} {label}") });
    }
    let mut table = csv::Writer::from_writer(Vec::new());
    let refused = |error: csv::Error| Error::file(out, format!("labels.csv: {error}"), "report this as a bug");
    table.write_record(["file_name", "label", "split"]).map_err(refused)?;
    let mut paths = Vec::with_capacity(set.len());
    for &split in splits {
        for (label, name) in names.iter().enumerate() {
            let folder = out.join(split_name(split)).join(name);
            if set.split_labels(split).iter().any(|&found| usize::from(found) == label) {
                fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
            }
        }
        for index in set.split_indices(split) {
            let label = usize::from(set.labels()[index]);
            let path = format!("{}/{}/{index:06}.png", split_name(split), names[label]);
            table.write_record([&path, &set.class_names()[label], split_name(split)]).map_err(refused)?;
            paths.push((index, path));
        }
    }
    let written: Vec<Result<()>> = paths
        .par_iter()
        .map(|(index, path)| {
            let place = out.join(path);
            fs::write(&place, png(set, *index)?).map_err(Error::io(place, "write"))
        })
        .collect();
    written.into_iter().collect::<Result<()>>()?;
    let table = table.into_inner().map_err(|error| refused(error.into_error().into()))?;
    let classes = set.class_names().join("\n") + "\n";
    for (name, bytes) in [("labels.csv", &table[..]), ("classes.txt", classes.as_bytes())] {
        fs::write(out.join(name), bytes).map_err(Error::io(out.join(name), "write"))?;
    }
    Ok(vec![out.to_path_buf()])
}

pub(super) fn zip_fault(out: &Path) -> impl Fn(ZipError) -> Error {
    let out = out.to_path_buf();
    move |error| match error {
        ZipError::Io(error) => Error::io(&out, "write")(error),
        error => Error::file(&out, format!("cannot be written as a zip archive: {error}"), "report this as a bug"),
    }
}

pub(super) fn member<W: Write + Seek>(zip: &mut ZipWriter<W>, out: &Path, name: &str, parts: &[&[u8]]) -> Result<()> {
    begin(zip, out, name, parts.iter().map(|part| part.len()).sum())?;
    parts.iter().try_for_each(|part| zip.write_all(part)).map_err(Error::io(out, "write"))
}

/// Starts a member of the given number of bytes.
fn begin<W: Write + Seek>(zip: &mut ZipWriter<W>, out: &Path, name: &str, bytes: usize) -> Result<()> {
    let long = bytes as u64 > u64::from(u32::MAX) / 2;
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored).large_file(long);
    zip.start_file(name, options).map_err(zip_fault(out))
}

fn npz(set: &Dataset, out: &Path, splits: &[Split], file: BufWriter<File>) -> Result<BufWriter<File>> {
    let mut zip = ZipWriter::new(file);
    let labels: Vec<u8> = splits
        .iter()
        .flat_map(|split| set.split_labels(*split))
        .flat_map(|&label| i64::from(label).to_le_bytes())
        .collect();
    let split: Vec<u8> = splits.iter().flat_map(|&split| vec![split as u8; set.split_len(split)]).collect();
    let longest = set.class_names().iter().map(|name| name.chars().count()).max().unwrap_or(1).max(1);
    let name = |name: &String| -> Vec<u8> {
        let codes = name.chars().map(u32::from).chain(std::iter::repeat(0)).take(longest);
        codes.flat_map(u32::to_le_bytes).collect()
    };
    let names: Vec<u8> = set.class_names().iter().flat_map(name).collect();
    let n = split.len();
    let (height, width, channels) = (set.height(), set.width(), set.channels());
    let head = npy_head("|u1", &format!("({n}, {height}, {width}, {channels})"));
    begin(&mut zip, out, "images.npy", head.len() + n * set.image_bytes())?;
    let runs = splits.iter().flat_map(|&split| set.runs(set.split_indices(split)));
    std::iter::once(&head[..]).chain(runs).try_for_each(|part| zip.write_all(part)).map_err(Error::io(out, "write"))?;
    let arrays: [(&str, String, String, &[u8]); 3] = [
        ("labels", "<i8".into(), format!("({n},)"), &labels),
        ("split", "|u1".into(), format!("({n},)"), &split),
        ("class_names", format!("<U{longest}"), format!("({},)", set.class_names().len()), &names),
    ];
    for (name, dtype, shape, data) in arrays {
        member(&mut zip, out, &format!("{name}.npy"), &[&npy_head(&dtype, &shape), data])?;
    }
    zip.finish().map_err(zip_fault(out))
}

/// The header of an array in row-major order (NEP 1, version 1.0).
pub(super) fn npy_head(dtype: &str, shape: &str) -> Vec<u8> {
    let mut text = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}");
    // Elements start at a multiple of 64 bytes.
    while (10 + text.len() + 1) % 64 != 0 {
        text.push(' ');
    }
    text.push('\n');
    [b"\x93NUMPY\x01\0", &(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat()
}

fn edm(set: &Dataset, out: &Path, splits: &[Split], file: BufWriter<File>) -> Result<BufWriter<File>> {
    let mut zip = ZipWriter::new(file);
    let mut labels = Vec::with_capacity(set.len());
    let mut number = 0;
    each_png(set, splits, |index, picture| {
        let name = format!("{:05}/img{number:08}.png", number / 1000);
        number += 1;
        member(&mut zip, out, &name, &[&picture])?;
        labels.push((name, set.labels()[index]));
        Ok(())
    })?;
    let labels = if set.class_names().len() > 1 { serde_json::json!(labels) } else { serde_json::Value::Null };
    let json = serde_json::json!({ "labels": labels }).to_string();
    member(&mut zip, out, "dataset.json", &[json.as_bytes()])?;
    zip.finish().map_err(zip_fault(out))
}

#[cfg(not(feature = "formats"))]
fn parquet_files(_: &Dataset, out: &Path, _: &[Split], _: bool) -> Result<Vec<PathBuf>> {
    Err(Error::file(out, "would be parquet, which this build does not write", "build with the feature `formats`"))
}

/// The output files: one, or `set-train.parquet` and so on for each split of `set.parquet`.
#[cfg(feature = "formats")]
fn parquet_files(set: &Dataset, out: &Path, splits: &[Split], force: bool) -> Result<Vec<PathBuf>> {
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    let path = |&split: &Split| match splits.len() {
        1 => out.to_path_buf(),
        _ => out.with_file_name(format!("{stem}-{}.parquet", split_name(split))),
    };
    let paths: Vec<PathBuf> = splits.iter().map(path).collect();
    // Before the first is written: all or none.
    paths.iter().try_for_each(|path| refuse_to_overwrite(path, force))?;
    let mut written = Vec::new();
    for (path, &split) in paths.iter().zip(splits) {
        written.extend(whole(path, force, |file| parquet_file(set, path, split, file))?);
    }
    Ok(written)
}

#[cfg(feature = "formats")]
fn parquet_file(set: &Dataset, out: &Path, split: Split, file: BufWriter<File>) -> Result<BufWriter<File>> {
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::errors::ParquetError;
    use parquet::file::metadata::KeyValue;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    /// Rows per group, as in the datasets library for images; fewer for large ones.
    const GROUP: usize = 1000;
    // Optional as in the datasets library, which accepts the features below only with an identical schema.
    const SCHEMA: &str = "message schema { optional group image { optional binary bytes; optional binary path (UTF8); } \
                          optional int64 label; }";
    let fault = |error: ParquetError| match error {
        ParquetError::External(error) => match error.downcast::<std::io::Error>() {
            Ok(error) => Error::io(out, "write")(*error),
            Err(error) => Error::file(out, format!("cannot be written: {error}"), "report this as a bug"),
        },
        error => Error::file(out, format!("cannot be written: {error}"), "report this as a bug"),
    };
    let features = serde_json::json!({ "info": { "features": {
        "image": { "_type": "Image" },
        "label": { "names": set.class_names(), "_type": "ClassLabel" },
    }}});
    let properties = WriterProperties::builder()
        // PNG is compressed already.
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false)
        .set_key_value_metadata(Some(vec![KeyValue::new("huggingface".to_owned(), features.to_string())]))
        .build();
    let schema = Arc::new(parse_message_type(SCHEMA).map_err(fault)?);
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(fault)?;
    let indices: Vec<usize> = set.split_indices(split).collect();
    for group in indices.chunks((BATCH_BYTES / set.image_bytes()).clamp(1, GROUP)) {
        let pictures: Vec<Result<Vec<u8>>> = group.par_iter().map(|&index| png(set, index)).collect();
        let pictures = pictures.into_iter().map(|picture| picture.map(ByteArray::from)).collect::<Result<Vec<_>>>()?;
        let names: Vec<ByteArray> =
            group.iter().map(|index| ByteArray::from(format!("{index:06}.png").as_str())).collect();
        let labels: Vec<i64> = group.iter().map(|&index| i64::from(set.labels()[index])).collect();
        let mut rows = writer.next_row_group().map_err(fault)?;
        for column in 0..3 {
            let Some(mut column_writer) = rows.next_column().map_err(fault)? else { break };
            // Nothing is null: every value is at the deepest definition level.
            let (deep, flat) = (vec![2; group.len()], vec![1; group.len()]);
            match column {
                0 => column_writer.typed::<ByteArrayType>().write_batch(&pictures, Some(&deep), None),
                1 => column_writer.typed::<ByteArrayType>().write_batch(&names, Some(&deep), None),
                _ => column_writer.typed::<Int64Type>().write_batch(&labels, Some(&flat), None),
            }
            .map_err(fault)?;
            column_writer.close().map_err(fault)?;
        }
        rows.close().map_err(fault)?;
    }
    writer.into_inner().map_err(fault)
}
