//! Cached imports: the data set file is in the data folder under the source's checksum.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::dataset::{Dataset, hex};
use super::images::is_hidden;
use super::import::{ImportOptions, default_name, import};
use crate::error::{Error, Result};
use crate::progress::Reporter;

/// Increase when the same source would give a different data set.
const VERSION: u32 = 1;
/// The folder of imports in the data folder.
const FOLDER: &str = "imported";

/// The data set of `source`, a folder or a file, imported into `data_dir` unless it exists already: a source with the same bytes
/// and options has the same file. Returns the file, and whether it was written now.
///
/// # Errors
///
/// Those of [`import()`] and [`Dataset::write`].
pub fn import_once(source: &Path, options: &ImportOptions, data_dir: &Path) -> Result<(PathBuf, bool)> {
    let name = options.name.clone().unwrap_or_else(|| default_name(source));
    let scratch = Some(data_dir.join(FOLDER));
    let told =
        ImportOptions { name: Some(name.clone()), progress: Reporter::default(), scratch: None, ..options.clone() };
    let mut sha = Sha256::new();
    sha.update(format!("{VERSION} {told:?} {}", digest(source)?));
    let file = once_file(data_dir, &name, &hex(&sha.finalize()));
    if Dataset::open(&file).is_ok() {
        return Ok((file, false));
    }
    // A file that cannot be opened is of another version, or damaged.
    import(source, &ImportOptions { scratch, ..options.clone() })?.write(&file, true)?;
    Ok((file, true))
}

/// The images of several sets as one, written into `data_dir` unless it exists already. Returns the file, and whether it was
/// written now.
///
/// # Errors
///
/// Those of [`Dataset::joined`] and [`Dataset::write`].
pub fn join_once(sets: &[Dataset], data_dir: &Path) -> Result<(PathBuf, bool)> {
    let joined = Dataset::joined(sets)?;
    let digests = joined.digests();
    let mut sha = Sha256::new();
    sha.update(format!("{VERSION} {} {} {}", digests.images, digests.labels, digests.split));
    joined.class_names().iter().for_each(|name| sha.update(format!("{}:{name}", name.len())));
    let file = once_file(data_dir, joined.name(), &hex(&sha.finalize()));
    if Dataset::open(&file).is_ok() {
        return Ok((file, false));
    }
    joined.write(&file, true)?;
    Ok((file, true))
}

fn once_file(data_dir: &Path, name: &str, digest: &str) -> PathBuf {
    data_dir.join(FOLDER).join(format!("{}-{}.safetensors", safe(name), &digest[..12]))
}

/// A set's name as the start of its file's name.
fn safe(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() || "-_+".contains(c) { c } else { '_' }).take(60).collect()
}

/// The imported sets called `name` in the data folder, sorted.
pub(super) fn imported(data_dir: &Path, name: &str) -> Vec<PathBuf> {
    let prefix = format!("{}-", safe(name));
    let digest = |rest: &str| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_it = |path: &PathBuf| {
        let stem = path.file_name().and_then(|file| file.to_str()).and_then(|file| file.strip_suffix(".safetensors"));
        stem.and_then(|stem| stem.strip_prefix(&prefix)).is_some_and(digest)
    };
    let listed = fs::read_dir(data_dir.join(FOLDER)).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = listed.map(|entry| entry.path()).filter(is_it).collect();
    found.sort();
    found
}

/// SHA-256 of a file's bytes; for a folder, of the paths and checksums of all visible files below it.
fn digest(source: &Path) -> Result<String> {
    if !source.is_dir() {
        return file_digest(source);
    }
    let mut paths = Vec::new();
    list(source, "", &mut paths)?;
    paths.sort();
    let digests: Vec<Result<String>> = paths.par_iter().map(|path| file_digest(&source.join(path))).collect();
    let mut sha = Sha256::new();
    for (path, digest) in paths.iter().zip(digests) {
        sha.update(format!("{}  {path}\n", digest?));
    }
    Ok(hex(&sha.finalize()))
}

fn list(root: &Path, below: &str, paths: &mut Vec<String>) -> Result<()> {
    let folder = root.join(below);
    for entry in fs::read_dir(&folder).map_err(Error::io(&folder, "list"))? {
        let entry = entry.map_err(Error::io(&folder, "list"))?;
        let kind = entry.file_type().map_err(Error::io(entry.path(), "read"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        if is_hidden(&name) {
            continue;
        }
        // Links are not followed, so this terminates.
        if kind.is_dir() {
            list(root, &path, paths)?;
        } else if kind.is_file() {
            paths.push(path);
        }
    }
    Ok(())
}

fn file_digest(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut sha = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(Error::io(path, "read"))? {
            0 => return Ok(hex(&sha.finalize())),
            read => sha.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ResolveOptions, resolve, shapes};
    use crate::picture::{Image, write_png};

    #[test]
    fn the_same_bytes_are_imported_once() {
        let folder = tempfile::tempdir().unwrap();
        let (photos, data) = (folder.path().join("my photos"), folder.path().join("data"));
        for k in 0..4 {
            write_png(photos.join(format!("{k}.png")), &Image::filled(8, 8, [k * 9; 3]), &[]).unwrap();
        }
        let options = ImportOptions::default();
        let (file, fresh) = import_once(&photos, &options, &data).unwrap();
        assert!(fresh && file.starts_with(data.join(FOLDER)), "{}", file.display());
        assert!(file.file_name().unwrap().to_str().unwrap().starts_with("my_photos-"));
        assert_eq!(Dataset::open(&file).unwrap().name(), "my photos");
        assert_eq!(import_once(&photos, &options, &data).unwrap(), (file.clone(), false));
        // A run trained on it finds it by its name.
        let places = ResolveOptions { data_dir: &data, ..ResolveOptions::default() };
        assert_eq!(resolve("my photos", None, &places).unwrap().path(), Some(file.as_path()));
        // Other options or other bytes give another file. A damaged one is rewritten.
        let other = ImportOptions { resize: Some(4.into()), ..options.clone() };
        assert_ne!(import_once(&photos, &other, &data).unwrap().0, file);
        let error = resolve("my photos", None, &places).unwrap_err().to_string();
        assert!(error.contains("2 imported sets have that name"), "{error}");
        std::fs::write(&file, b"damaged").unwrap();
        assert_eq!(import_once(&photos, &options, &data).unwrap(), (file.clone(), true));
        write_png(photos.join("4.png"), &Image::filled(8, 8, [1; 3]), &[]).unwrap();
        assert_ne!(import_once(&photos, &options, &data).unwrap().0, file);
    }

    #[test]
    fn sets_are_joined_by_their_classes_names() {
        let folder = tempfile::tempdir().unwrap();
        let all = shapes(0, 100);
        let (a, b) = (
            all.subset(&["star".into(), "ring".into()]).unwrap(),
            all.subset(&["ring".into(), "cross".into()]).unwrap(),
        );
        let (file, fresh) = join_once(&[a.clone(), b.clone()], folder.path()).unwrap();
        let set = Dataset::open(&file).unwrap();
        assert!(fresh && !join_once(&[a.clone(), b.clone()], folder.path()).unwrap().1);
        assert_eq!((set.len(), set.class_names()), (40, ["star", "ring", "cross"].map(String::from).as_slice()));
        let rings = set.labels().iter().filter(|&&label| label == 1).count();
        assert_eq!((rings, set.split_len(crate::data::Split::Train)), (20, a.split_len(crate::data::Split::Train) * 2));
        assert_eq!(set.image(0), a.image(0));
        assert!(
            set.notes().iter().any(|note| note == "joined of shapes (20 images) and shapes (20 images)"),
            "{:?}",
            set.notes()
        );
    }
}
