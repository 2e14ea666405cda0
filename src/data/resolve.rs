//! Finds the data set of a run.

use std::path::Path;

use super::dataset::Dataset;
use super::fetch::{FetchOptions, data_file, fetch};
use super::official::official;
use super::once::imported;
use super::shapes::{SHAPES_COUNT, shapes};
use crate::error::{Error, Result};
use crate::progress::Reporter;

/// The value of `--data` for the built-in set.
pub const BUILTIN: &str = "builtin";
/// The built-in set's name.
const SHAPES: &str = "shapes";

/// Where [`resolve`] looks, and the parameters of the built-in set.
#[derive(Debug, Clone)]
pub struct ResolveOptions<'a> {
    /// The folder of data sets.
    pub data_dir: &'a Path,
    /// Seed of the built-in set.
    pub shapes_seed: u64,
    /// Images of the built-in set, a tenth of them for validation.
    pub shapes_count: usize,
    /// The receiver of the progress of a download.
    pub progress: Reporter,
}

impl Default for ResolveOptions<'_> {
    fn default() -> Self {
        Self { data_dir: Path::new("data"), shapes_seed: 0, shapes_count: SHAPES_COUNT, progress: Reporter::default() }
    }
}

/// The data set of a run: `explicit` (`--data`: a data set file, or `builtin`), else the set called `name`: `shapes` is built in,
/// any other is `NAME.safetensors` in the data folder, or the only import of that name; a missing published set is downloaded.
///
/// A set is never replaced by another.
///
/// ```
/// use engine::data::{BUILTIN, ResolveOptions, resolve};
///
/// let options = ResolveOptions { shapes_count: 100, ..ResolveOptions::default() };
/// assert_eq!(resolve("cifar10", Some(BUILTIN), &options)?.name(), "shapes");
/// # Ok::<(), engine::Error>(())
/// ```
///
/// # Errors
///
/// Those of [`Dataset::open`]; [`Error::Config`] if the set is missing, with the command that gets it.
pub fn resolve(name: &str, explicit: Option<&str>, options: &ResolveOptions) -> Result<Dataset> {
    let built_in = |name| name == BUILTIN || name == SHAPES;
    match explicit {
        Some(explicit) if Path::new(explicit).exists() => Dataset::open(explicit),
        Some(explicit) if built_in(explicit) => built_in_set(options),
        // A published set's name is equivalent to its file in the data folder.
        Some(explicit) if official(explicit).is_some() => named(explicit, options),
        Some(explicit) => Dataset::open(explicit),
        None if built_in(name) => built_in_set(options),
        None => named(name, options),
    }
}

/// As [`resolve`] for the set called `name`, but without downloading: None if the set is missing.
///
/// # Errors
///
/// Those of [`Dataset::open`].
pub fn at_hand(name: &str, options: &ResolveOptions) -> Result<Option<Dataset>> {
    if name == BUILTIN || name == SHAPES {
        return built_in_set(options).map(Some);
    }
    let path = data_file(options.data_dir, name);
    path.exists().then(|| Dataset::open(path)).transpose()
}

fn built_in_set(options: &ResolveOptions) -> Result<Dataset> {
    if options.shapes_count == 0 || u32::try_from(options.shapes_count).is_err() {
        let message = format!("is {}", options.shapes_count);
        return Err(Error::config("data.shapes_count", message, format!("give 1 to {} images", u32::MAX)));
    }
    Ok(shapes(options.shapes_seed, options.shapes_count))
}

fn named(name: &str, options: &ResolveOptions) -> Result<Dataset> {
    let path = data_file(options.data_dir, name);
    if path.exists() {
        return Dataset::open(path);
    }
    let place = format!("data set {name:?}");
    match &imported(options.data_dir, name)[..] {
        [] => {}
        [one] => return Dataset::open(one),
        several => {
            let files: Vec<String> = several.iter().map(|file| file.display().to_string()).collect();
            let message = format!("{} imported sets have that name", several.len());
            return Err(Error::config(place, message, format!("give the intended file: {}", files.join(", "))));
        }
    }
    if official(name).is_none() {
        let advice = format!(
            "import it with `data::import(SRC, out = {})`, or give a file or folder with `data`",
            path.display()
        );
        return Err(Error::config(place, format!("is not in {}", options.data_dir.display()), advice));
    }
    let fetch_options = FetchOptions {
        data_dir: options.data_dir.into(),
        progress: options.progress.clone(),
        ..FetchOptions::default()
    };
    fetch(name, &fetch_options).map_err(|error| match error {
        // A network error: the set can still be obtained in another way.
        Error::Config { message, place: url, .. } => {
            let message = format!("is not in {}, and {url} {message}", options.data_dir.display());
            let advice = format!(
                "run `engine data fetch {name}` where there is a network, or import a copy with \
                 `data::import(SRC, out = {})`, or train on the built-in shapes with `data = {BUILTIN}`",
                path.display()
            );
            Error::config(place, message, advice)
        }
        error => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_finds_its_own_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let options = ResolveOptions { data_dir: folder.path(), shapes_count: 20, ..ResolveOptions::default() };
        let file = data_file(folder.path(), "mine");
        assert_eq!(resolve("shapes", None, &options).unwrap().len(), 20);
        shapes(1, 30).write(&file, false).unwrap();
        assert_eq!(resolve("mine", None, &options).unwrap().len(), 30);
        assert_eq!(resolve("cifar10", file.to_str(), &options).unwrap().len(), 30);
        let found = |name| at_hand(name, &options).unwrap().map(|set| set.len());
        assert_eq!(
            [found("shapes"), found("mine"), found("yours"), found("cifar10")],
            [Some(20), Some(30), None, None]
        );
        let error = resolve("yours", None, &options).unwrap_err().to_string();
        assert!(error.contains("`data::import(SRC, out = ") && error.contains("yours.safetensors"), "{error}");
        let error = resolve("mine", Some("absent.safetensors"), &options).unwrap_err().to_string();
        assert!(error.contains("absent.safetensors: cannot open"), "{error}");
        let none = ResolveOptions { shapes_count: 0, ..options };
        assert!(resolve("shapes", None, &none).is_err());
    }
}
