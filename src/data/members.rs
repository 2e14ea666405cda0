//! The files of a published set, in a folder or in the published archive.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::archive::{Next, for_each_member, is_archive};
use super::dataset::Source;
use super::draft::Spool;
use super::import::ImportOptions;
use super::source::HashedFile;
use super::storage::Bytes;
use crate::error::{Error, Result};

/// The longest file of a published set: SVHN's and STL-10's are below 3 GB.
const LONGEST: u64 = 4 << 30;

/// Decompressed files by name without folders: mapped from the scratch folder, if there is one.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub files: BTreeMap<String, Bytes>,
    pub sources: Vec<Source>,
    scratch: Option<PathBuf>,
    root: PathBuf,
    is_folder: bool,
}

impl Members {
    /// Reads the files that `wanted` accepts from a folder, from its subfolder `inner`, or from an archive.
    pub fn read(source: &Path, inner: &[&str], wanted: impl Fn(&str) -> bool, options: &ImportOptions) -> Result<Self> {
        let mut members = Self { root: source.to_path_buf(), scratch: options.scratch.clone(), ..Self::default() };
        if source.is_dir() {
            members.is_folder = true;
            let inner = inner.iter().map(|inner| source.join(inner)).find(|inner| inner.is_dir());
            members.root = inner.unwrap_or_else(|| source.to_path_buf());
            members.folder(&wanted)?;
        } else if is_archive(source)? {
            members.archive(&wanted)?;
        } else {
            members.file(source)?;
        }
        Ok(members)
    }

    fn folder(&mut self, wanted: &impl Fn(&str) -> bool) -> Result<()> {
        let root = self.root.clone();
        let mut paths = Vec::new();
        for entry in fs::read_dir(&root).map_err(Error::io(&root, "list"))? {
            let path = entry.map_err(Error::io(&root, "list"))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_file() && wanted(name.strip_suffix(".gz").unwrap_or(&name)) {
                paths.push(path);
            }
        }
        paths.sort();
        paths.iter().try_for_each(|path| self.file(path))
    }

    fn file(&mut self, path: &Path) -> Result<()> {
        let mut file = HashedFile::open(path)?;
        let mut spool = Spool::new(self.scratch.as_deref())?;
        if spool.take(file.content()?, LONGEST + 1, path)? > LONGEST {
            return Err(Error::file(path, format!("is longer than {LONGEST} bytes"), "leave it out"));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.files.insert(name.strip_suffix(".gz").unwrap_or(&name).to_owned(), spool.finish()?);
        self.sources.push(file.finish()?);
        Ok(())
    }

    fn archive(&mut self, wanted: &impl Fn(&str) -> bool) -> Result<()> {
        let path = self.root.clone();
        let mut file = HashedFile::open(&path)?;
        for_each_member(&mut file, |mut member| {
            let name = member.path.rsplit('/').next().unwrap_or_default().to_owned();
            if wanted(&name) && !super::images::is_hidden(&member.path) {
                let mut spool = Spool::new(self.scratch.as_deref())?;
                member.spool(&path, LONGEST, &mut spool)?;
                if self.files.insert(name.clone(), spool.finish()?).is_some() {
                    return Err(Error::file(&path, format!("has {name} twice"), "leave one out"));
                }
            }
            Ok(Next::Continue)
        })?;
        self.sources.push(file.finish()?);
        Ok(())
    }

    /// The name of a file in messages.
    pub fn place(&self, name: &str) -> PathBuf {
        if self.is_folder { self.root.join(name) } else { self.root.clone() }
    }

    /// An error about a file.
    pub fn fault(&self, name: &str, message: impl std::fmt::Display, advice: &str) -> Error {
        let named = if self.is_folder { String::new() } else { format!("{name} ") };
        Error::file(self.place(name), format!("{named}{message}"), advice)
    }

    /// An error if `name` is missing.
    pub fn get(&self, name: &str) -> Result<&[u8]> {
        let missing = || Error::file(&self.root, format!("has no {name}"), "download the whole set");
        self.files.get(name).map(|bytes| &**bytes).ok_or_else(missing)
    }

    /// The lines of a text file; none if it is missing.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = self.files.get(name).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default();
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect()
    }
}

/// Converts planes `[C, H, W]` to pixels `[H, W, C]`.
pub(super) fn interleave(planes: &[u8], channels: usize, pixels: &mut Vec<u8>) {
    let size = planes.len() / channels.max(1);
    for i in 0..size {
        pixels.extend((0..channels).map(|channel| planes[channel * size + i]));
    }
}
