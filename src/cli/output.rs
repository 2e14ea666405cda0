//! `--out`: the files and folders that commands write.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::files::write_atomically;

/// A kind of output, from the ending of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutputKind {
    /// One PNG: a single image, or a grid.
    Png,
    /// `.gif`.
    Gif,
    /// `.apng`.
    Apng,
    /// `.npy`: all images in one array.
    Array,
    /// `.safetensors`: a data set file.
    Set,
    /// A folder of PNGs.
    Folder,
}

impl OutputKind {
    /// Still images.
    pub const STILL: &'static [Self] = &[Self::Png, Self::Array, Self::Folder];
    /// Still images and animations.
    pub const FRAMES: &'static [Self] = &[Self::Png, Self::Gif, Self::Apng, Self::Array, Self::Folder];
    /// Still images and data sets.
    pub const SAMPLES: &'static [Self] = &[Self::Png, Self::Array, Self::Set, Self::Folder];

    /// The ending of a file's name.
    fn ending(self) -> Option<&'static str> {
        match self {
            Self::Png => Some("png"),
            Self::Gif => Some("gif"),
            Self::Apng => Some("apng"),
            Self::Array => Some("npy"),
            Self::Set => Some("safetensors"),
            Self::Folder => None,
        }
    }
}

/// The path of an output, and its kind.
#[derive(Clone, Debug)]
pub(super) struct OutputPath {
    pub path: PathBuf,
    pub kind: OutputKind,
}

impl OutputPath {
    /// The output of a command that writes `kinds`.
    ///
    /// # Errors
    /// [`Error::Config`] for another kind.
    pub fn new(path: &Path, kinds: &[OutputKind]) -> Result<Self> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let extension = extension.to_ascii_lowercase();
        let is_folder = path.is_dir() || path.as_os_str().to_string_lossy().ends_with('/') || extension.is_empty();
        const FILES: [OutputKind; 5] =
            [OutputKind::Png, OutputKind::Gif, OutputKind::Apng, OutputKind::Array, OutputKind::Set];
        let kind = match is_folder {
            true => Some(OutputKind::Folder),
            false => FILES.into_iter().find(|kind| kind.ending() == Some(&extension)),
        };
        if let Some(kind) = kind.filter(|kind| kinds.contains(kind)) {
            return Ok(Self { path: path.to_path_buf(), kind });
        }
        let shown = path.display();
        let message = match (kinds, kind) {
            ([OutputKind::Png], _) => format!("{shown} is not a PNG file"),
            (_, Some(OutputKind::Gif | OutputKind::Apng)) => format!("{shown} is an animation format"),
            _ => format!("{shown} is not a supported kind of file: .{extension}"),
        };
        Err(Error::config("--out", message, endings(kinds)))
    }

    /// Refuses to overwrite a file without `force`.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn refuse_taken(&self, force: bool) -> Result<()> {
        if self.kind == OutputKind::Folder { Ok(()) } else { refuse_taken(&self.path, force) }
    }

    /// Refuses to overwrite files in this folder without `force`.
    ///
    /// # Errors
    /// [`Error::File`] with the first that exists.
    pub fn refuse_taken_in(&self, names: impl IntoIterator<Item = String>, force: bool) -> Result<()> {
        let paths = names.into_iter().filter(|_| !force).map(|name| self.path.join(name));
        match paths.into_iter().find(|path| path.exists()) {
            Some(taken) => Err(Error::file(taken, "already exists", "give another folder, or replace with --force")),
            None => Ok(()),
        }
    }
}

/// Refuses a path that is taken, unless `force`: checked before the work, not after it. Every output of every command goes through
/// here, except for the files of run folders and of `engine eval --out`. Devices and pipes are never taken.
///
/// # Errors
/// [`Error::File`].
pub(super) fn refuse_taken(path: &Path, force: bool) -> Result<()> {
    let is_taken = path.metadata().is_ok_and(|found| found.is_file() || found.is_dir());
    if is_taken && !force {
        return Err(Error::file(path, "already exists", "give another file, or replace it with --force"));
    }
    Ok(())
}

/// Advice: `end it in .png or .npy, or in / for a folder`.
fn endings(kinds: &[OutputKind]) -> String {
    let endings: Vec<String> = kinds.iter().filter_map(|kind| Some(format!(".{}", kind.ending()?))).collect();
    let listed = match endings.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    };
    let folder = if kinds.contains(&OutputKind::Folder) { ", or in / for a folder" } else { "" };
    format!("end it in {listed}{folder}")
}

/// A file for JSON; `-` is standard output.
#[derive(Clone, Debug)]
pub(super) struct JsonPath(PathBuf);

impl FromStr for JsonPath {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.into()))
    }
}

impl JsonPath {
    /// Whether JSON takes the place of text on standard output.
    pub fn is_printed(&self) -> bool {
        self.0.as_os_str() == "-"
    }

    /// Refuses to overwrite a file without `force`.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn refuse_taken(&self, force: bool) -> Result<()> {
        if self.is_printed() { Ok(()) } else { refuse_taken(&self.0, force) }
    }

    /// Writes or prints a value.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, value: &serde_json::Value) -> Result<()> {
        let text = format!("{value:#}\n");
        if self.is_printed() {
            print!("{text}");
            return Ok(());
        }
        write_atomically(&self.0, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_tells_the_kind() {
        let kind = |path: &str| OutputPath::new(Path::new(path), OutputKind::SAMPLES).map(|out| out.kind);
        for (path, expected) in [
            ("a.png", OutputKind::Png),
            ("a.PNG", OutputKind::Png),
            ("a.npy", OutputKind::Array),
            ("a.safetensors", OutputKind::Set),
            ("a", OutputKind::Folder),
            ("a.b/", OutputKind::Folder),
        ] {
            assert_eq!(kind(path).unwrap(), expected, "{path}");
        }
        let folder = tempfile::tempdir().unwrap();
        let named = folder.path().join("a.png");
        std::fs::create_dir(&named).unwrap();
        assert_eq!(kind(named.to_str().unwrap()).unwrap(), OutputKind::Folder);
    }

    #[test]
    fn other_kinds_are_refused() {
        for (path, kinds, expected) in [
            (
                "a.bmp",
                OutputKind::SAMPLES,
                "--out: a.bmp is not a supported kind of file: .bmp; end it in .png, .npy or .safetensors, or in / for a folder",
            ),
            (
                "a.gif",
                OutputKind::STILL,
                "--out: a.gif is an animation format; end it in .png or .npy, or in / for a folder",
            ),
            ("a.jpg", &[OutputKind::Png][..], "--out: a.jpg is not a PNG file; end it in .png"),
            ("a", &[OutputKind::Png][..], "--out: a is not a PNG file; end it in .png"),
        ] {
            assert_eq!(OutputPath::new(Path::new(path), kinds).unwrap_err().to_string(), expected);
        }
        assert!(OutputPath::new(Path::new("a.gif"), OutputKind::FRAMES).is_ok());
    }

    #[test]
    fn nothing_is_overwritten_without_force() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("1.png");
        std::fs::write(&file, "").unwrap();
        let (one, all) =
            (OutputPath { path: file, kind: OutputKind::Png }, OutputPath::new(folder.path(), OutputKind::STILL));
        let all = all.unwrap();
        assert!(one.refuse_taken(false).is_err() && one.refuse_taken(true).is_ok() && all.refuse_taken(false).is_ok());
        let json = |path: &Path| path.to_str().unwrap().parse::<JsonPath>().unwrap();
        assert!(json(&one.path).refuse_taken(false).is_err() && json(&one.path).refuse_taken(true).is_ok());
        for never in ["-", "/dev/null"] {
            json(Path::new(never)).refuse_taken(false).unwrap();
        }
        let names = || ["0.png", "1.png"].map(String::from);
        assert!(all.refuse_taken_in(names(), false).unwrap_err().to_string().contains("1.png: already exists"));
        assert!(all.refuse_taken_in(names(), true).is_ok() && all.refuse_taken_in(["0.png".into()], false).is_ok());
    }
}
