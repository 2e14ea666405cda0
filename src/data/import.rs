//! Imports other programs' files as a [`Dataset`].

use std::fs;
use std::path::{Path, PathBuf};

use super::archive::{Next, for_each_member, is_archive, is_zip};
use super::dataset::Dataset;
use super::draft::Draft;
#[cfg(feature = "formats")]
use super::parquet;
use super::source::{HashedFile, file_name, peek};
use super::{cifar, cifar_python, idx, images, mat, numpy, stl10};
use crate::error::{Error, Result};
use crate::files::describe;
use crate::image_size::ImageSize;
use crate::picture::{Fit, PictureKind};
use crate::progress::Reporter;
use crate::rng::{Philox, Purpose};

const SEE_HELP: &str = "give a source of a known format (see `data::Format`)";

/// The format of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// CIFAR-10's binary batches, in a folder or a tar archive.
    Cifar10,
    /// A folder of IDX files, the format of MNIST and Fashion-MNIST.
    Idx,
    /// CIFAR-10's Python batches, in a folder or an archive.
    Cifar10Python,
    /// CIFAR-100, Python or binary version, in a folder or an archive.
    Cifar100,
    /// SVHN's cropped digits: MATLAB files.
    Svhn,
    /// STL-10's binary files, in a folder or an archive.
    Stl10,
    /// Parquet files with a column `image`, as the datasets library writes them.
    Parquet,
    /// A NumPy array or an archive of them.
    Numpy,
    /// Pictures, in a folder or an archive.
    Images,
}

/// Which labels of a set that has two kinds of labels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum LabelKind {
    /// The finer ones: CIFAR-100's 100 classes.
    #[default]
    Fine,
    /// The coarser ones: CIFAR-100's 20 superclasses.
    Coarse,
}

/// The colour mode of imported pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Colour {
    /// Red, green, blue.
    Rgb,
    /// One channel: the luma of ITU-R BT.601.
    Grey,
}

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The set's name; by default the source's.
    pub name: Option<String>,
    /// The format of the source; by default detected.
    pub format: Option<Format>,
    /// Take the complete records of a truncated source; the data set's notes list them.
    pub allow_partial: bool,
    /// Resize pictures to this height and width.
    pub resize: Option<ImageSize>,
    /// How pictures of another aspect ratio are fitted.
    pub fit: Fit,
    /// The size for pictures of several sizes if `resize` is not given.
    pub fallback_size: ImageSize,
    /// Pictures of one size that are higher or wider than this are resized to `fallback_size` too; None keeps any size.
    pub keep_size_to: Option<usize>,
    /// So are those of one size with a side that is not a multiple of this: a transformer cuts images into patches.
    pub keep_multiples_of: usize,
    /// RGB or grey; by default RGB if any picture is coloured.
    pub color: Option<Colour>,
    /// The colour under transparent pixels and for padding.
    pub background: [u8; 3],
    /// Skip damaged pictures and list them, instead of failing.
    pub skip_damaged: bool,
    /// Ignore folders and label files, and import a set of one class.
    pub unlabelled: bool,
    /// Which labels of a set that has two kinds of labels.
    pub labels: LabelKind,
    /// Which of several sets in one folder: EMNIST's `balanced`, `letters` and so on.
    pub part: Option<String>,
    /// The receiver of the progress.
    pub progress: Reporter,
    /// The folder, on a disk with room for the whole set, for pixels until the set is written; None keeps them in memory. No file
    /// is left there.
    pub scratch: Option<PathBuf>,
    /// The share of each class to hold out for validation if the source has no split, 0 to 1 (1 excluded).
    pub validation: f64,
    /// Seed for choosing the held-out images.
    pub seed: u64,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            name: None,
            format: None,
            allow_partial: false,
            resize: None,
            fit: Fit::Crop,
            fallback_size: 32.into(),
            keep_size_to: None,
            keep_multiples_of: 1,
            color: None,
            background: [255; 3],
            skip_damaged: false,
            unlabelled: false,
            labels: LabelKind::Fine,
            part: None,
            progress: Reporter::default(),
            scratch: None,
            validation: 0.1,
            seed: 0,
        }
    }
}

/// Reads the images at `source`: pictures in a folder or an archive (`.zip`, `.tar`, `.tar.gz`, `.tar.zst`), flat, as
/// `CLASS/x.png`, as `train/CLASS/x.jpg` and `test/CLASS/x.jpg`, or with a label file; or a data set in one of the formats of
/// [`Format`]. If the source has no split, a share is held out.
///
/// With a [scratch folder](ImportOptions::scratch) the set is never in memory: pixels are written there as they are decoded, in
/// the order of the source, and [`Dataset::write`] sorts them. An import then needs a fixed amount of memory, plus the pictures
/// being decoded (16 MiB, or one per processor if they are larger), and for each image its label and index; for each picture also
/// its path, its entry in a label file, and its entry in a zip directory: up to about half a kilobyte. In addition, a batch of
/// CIFAR for Python is in memory (31 MB; CIFAR-100's 154 MB), as are a page of a parquet file and a picture's own file (256 MiB at
/// most).
///
/// ```no_run
/// use engine::data::{ImportOptions, import};
///
/// let options = ImportOptions { resize: Some(32.into()), scratch: Some(".".into()), ..ImportOptions::default() };
/// import("pictures", &options)?.write("pictures.safetensors", false)?;
/// # Ok::<(), engine::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::File`] with the file that is damaged, truncated or unlike the others, and the option that would accept it.
pub fn import(source: impl AsRef<Path>, options: &ImportOptions) -> Result<Dataset> {
    finished(source.as_ref(), read(source.as_ref(), options)?)
}

/// As [`import`], with all images as training images, whatever their split: a source of test images alone is a set too.
///
/// # Errors
/// As [`import`].
pub fn import_as_one(source: impl AsRef<Path>, options: &ImportOptions) -> Result<Dataset> {
    let mut draft = read(source.as_ref(), options)?;
    (draft.train, draft.test) = (draft.labels.len(), 0);
    finished(source.as_ref(), draft)
}

fn finished(source: &Path, draft: Draft) -> Result<Dataset> {
    draft.finish().map_err(|e| Error::file(source, e.to_string(), "import a source that has them"))
}

fn read(source: &Path, options: &ImportOptions) -> Result<Draft> {
    if !(0.0..1.0).contains(&options.validation) {
        let message = format!("is {}, which is not a share", options.validation);
        return Err(Error::config("validation", message, "give a number from 0 to 1, such as 0.1"));
    }
    let is_folder = fs::metadata(source).map_err(Error::io(source, "read"))?.is_dir();
    let format = match options.format {
        Some(format) => format,
        None if is_folder => detect_folder(source)?,
        None => detect_file(source)?,
    };
    if options.resize.is_some() && !matches!(format, Format::Images | Format::Parquet) {
        let message = "applies to pictures only".to_owned();
        return Err(Error::config("resize", message, "leave it out"));
    }
    let mut draft = match (format, is_folder) {
        (Format::Cifar10, true) => cifar::read_folder(source, options),
        (Format::Cifar10, false) => cifar::read_archive(source, options),
        (Format::Idx, true) => idx::read(source, options),
        (Format::Idx, false) => Err(Error::file(source, "is one file", "give the folder of the four IDX files")),
        (Format::Cifar10Python, _) => cifar_python::read_10(source, options),
        (Format::Cifar100, _) => cifar_python::read_100(source, options),
        (Format::Svhn, _) => mat::read(source, options),
        (Format::Stl10, _) => stl10::read(source, options),
        #[cfg(feature = "formats")]
        (Format::Parquet, _) => parquet::read(source, options),
        #[cfg(not(feature = "formats"))]
        (Format::Parquet, _) => {
            Err(Error::file(source, "is parquet, which this build does not read", "build with the feature `formats`"))
        }
        (Format::Numpy, _) => numpy::read(source, options),
        (Format::Images, true) => images::read_folder(source, options),
        (Format::Images, false) => images::read_archive(source, options),
    }?;
    draft.name = options.name.clone().unwrap_or_else(|| default_name(source));
    Ok(draft)
}

/// The source's name without archive endings.
pub(super) fn default_name(source: &Path) -> String {
    let name = source.canonicalize().map_or_else(|_| file_name(source), |path| file_name(&path));
    let stem = [".tar.gz", ".tgz", ".tar.zst", ".tar", ".zip"].iter().find_map(|ending| name.strip_suffix(ending));
    stem.unwrap_or(&name).to_owned()
}

/// The format indicated by the name of a file in a folder or an archive.
fn of_name(path: &str) -> Option<Format> {
    let parts: Vec<&str> = path.split('/').collect();
    let name = *parts.last()?;
    let within = |folder: &str| parts.contains(&folder);
    if within("cifar-100-python") || within("cifar-100-binary") {
        Some(Format::Cifar100)
    } else if cifar::is_batch(name) || name == "cifar-10-batches-bin" {
        Some(Format::Cifar10)
    } else if cifar_python::is_batch(name) || name == "cifar-10-batches-py" {
        Some(Format::Cifar10Python)
    } else if mat::is_member(name) {
        Some(Format::Svhn)
    } else if stl10::is_member(name) || name == "stl10_binary" {
        Some(Format::Stl10)
    } else if idx::is_images_file(name) {
        Some(Format::Idx)
    } else if name.ends_with(".parquet") {
        Some(Format::Parquet)
    } else {
        None
    }
}

fn detect_folder(folder: &Path) -> Result<Format> {
    let mut found = None;
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let name = entry.map_err(Error::io(folder, "list"))?.file_name().to_string_lossy().into_owned();
        found = found.or(of_name(&name));
        names.push(name);
    }
    let has = |name: &str| names.iter().any(|found| found == name);
    let is_100 = has("train") && has("test") && has("meta") && !folder.join("train").is_dir();
    if is_100 || (has("train.bin") && has("test.bin")) || has("fine_label_names.txt") {
        return Ok(Format::Cifar100);
    }
    // torchvision's `FashionMNIST/raw/`, and Hugging Face's `data/*.parquet`.
    for inner in ["raw", "data", "gzip"].iter().filter(|inner| found.is_none() && has(inner)) {
        let inner = folder.join(inner);
        let listed = fs::read_dir(&inner).into_iter().flatten().flatten();
        let mut formats = listed.filter_map(|entry| of_name(&entry.file_name().to_string_lossy()));
        if let Some(format) = formats.find(|format| matches!(format, Format::Idx | Format::Parquet)) {
            return Ok(format);
        }
    }
    Ok(found.unwrap_or(Format::Images))
}

fn detect_file(path: &Path) -> Result<Format> {
    let name = file_name(path);
    let start = peek(path, 512)?;
    if name.ends_with(".safetensors") || describe(&start) == "a safetensors file" {
        return Err(Error::file(path, "is not a source to import", "it is used as it is: `train(data = FILE)`"));
    }
    if idx::is_images_file(&name) || start.starts_with(&[0, 0, 8]) {
        return Ok(Format::Idx);
    }
    if start.starts_with(b"\x93NUMPY") {
        return Ok(Format::Numpy);
    }
    if start.starts_with(b"PAR1") {
        return Ok(Format::Parquet);
    }
    if start.starts_with(b"MATLAB") {
        return Ok(Format::Svhn);
    }
    if PictureKind::of(&start).is_some() {
        let message = format!("is {}, a single file", describe(&start));
        return Err(Error::file(path, message, "give the folder of the pictures"));
    }
    if !is_archive(path)? {
        let message = format!("is {}, which is not a source of images", describe(&start));
        return Err(Error::file(path, message, SEE_HELP));
    }
    let mut found = None;
    for_each_member(&mut HashedFile::open(path)?, |member| {
        if images::is_hidden(&member.path) {
            return Ok(Next::Continue);
        }
        found = of_name(&member.path).filter(|format| !matches!(format, Format::Idx | Format::Parquet));
        if found.is_none() && images::is_image(&member.path) {
            found = Some(Format::Images);
        } else if found.is_none() && is_zip(&start) && member.path.ends_with(".npy") {
            found = Some(Format::Numpy);
        }
        Ok(if found.is_some() { Next::Stop } else { Next::Continue })
    })?;
    found.ok_or_else(|| Error::file(path, "is an archive without pictures or a data set of a known format", SEE_HELP))
}

/// Turns a share of each class's training images into validation images, for a source without a split. The choice depends only on
/// the seed and on each image's index.
pub(super) fn hold_out(draft: &mut Draft, options: &ImportOptions) {
    let mut by_class = vec![Vec::new(); usize::from(u16::MAX) + 1];
    for (i, &label) in draft.labels.iter().enumerate() {
        by_class[usize::from(label)].push(i);
    }
    let philox = Philox::new(options.seed);
    let mut held = vec![false; draft.labels.len()];
    for mut members in by_class {
        let count = (members.len() as f64 * options.validation).round() as usize;
        members.sort_by_key(|&i| (philox.bits4(0, i as u32, 0, Purpose::Split)[0], i));
        // At least one of each class stays in training.
        for &i in members.iter().take(count.min(members.len().saturating_sub(1))) {
            held[i] = true;
        }
    }
    let (train, validation): (Vec<usize>, Vec<usize>) = (0..held.len()).partition(|&i| !held[i]);
    let order: Vec<usize> = train.iter().chain(&validation).copied().collect();
    draft.permute(&order);
    draft.train = train.len();
    draft.notes.push(format!(
        "held out {} of {} images for validation (share {}, seed {})",
        validation.len(),
        held.len(),
        options.validation,
        options.seed
    ));
}
