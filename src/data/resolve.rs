//! Finds the data set of a run.

use std::path::Path;

use super::dataset::Dataset;
use super::fetch::{FetchOptions, data_file, fetch};
use super::official::{OFFICIAL, official};
use super::once::imported;
use super::shapes::{SHAPES_COUNT, shapes};
use crate::error::{Error, Result, nearest};
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
    /// Whether the set is to be trained on, so that another one would do.
    pub trains: bool,
}

impl Default for ResolveOptions<'_> {
    fn default() -> Self {
        Self {
            data_dir: Path::new("data"),
            shapes_seed: 0,
            shapes_count: SHAPES_COUNT,
            progress: Reporter::default(),
            trains: false,
        }
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
        Some(explicit) => Dataset::open(explicit).map_err(|error| with_known_sets(explicit, error)),
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

/// Adds the names that mean a set to the error of a path that does not exist.
fn with_known_sets(given: &str, error: Error) -> Error {
    let Error::Io { path, doing, source } = error else { return error };
    if source.kind() != std::io::ErrorKind::NotFound {
        return Error::Io { path, doing, source };
    }
    let known = known_sets();
    let advice = match nearest(given, known.iter().copied()) {
        Some(near) => format!("did you mean {near}? Check the path, or name a known set: {}", known.join(", ")),
        None => format!("check the path, or name a known set: {}", known.join(", ")),
    };
    Error::file(path, format!("cannot {doing}: {source}"), advice)
}

/// The names that mean a set without a file: the built-in one, then the published ones.
pub fn known_sets() -> Vec<&'static str> {
    std::iter::once(BUILTIN).chain(OFFICIAL.iter().map(|set| set.name)).collect()
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
            "import it with `data::import(SRC, out = {})`, or give a file or folder with `data`, or name a known set: {}",
            path.display(),
            known_sets().join(", ")
        );
        return Err(Error::config(place, format!("is not in {}", options.data_dir.display()), advice));
    }
    let fetch_options = FetchOptions {
        data_dir: options.data_dir.into(),
        progress: options.progress.clone(),
        ..FetchOptions::default()
    };
    fetch(name, &fetch_options).map_err(|error| unfetched(name, &path, error, options))
}

/// The error of a download, with ways to get the set that the caller of [`resolve`] has.
fn unfetched(name: &str, path: &Path, error: Error, options: &ResolveOptions) -> Error {
    match error {
        // A network error: the set can still be obtained in another way.
        Error::Config { message, place: url, .. } => {
            let message = format!("is not in {}, and {url} {message}", options.data_dir.display());
            let advice = format!(
                "run `engine data fetch {name}` where there is a network, or import a copy with \
                 `data::import(SRC, out = {})`{}",
                path.display(),
                match options.trains {
                    true => format!(", or train on the built-in shapes with `data = {BUILTIN}`"),
                    false => String::new(),
                }
            );
            Error::config(format!("data set {name:?}"), message, advice)
        }
        Error::File { path, message, advice } if advice.contains("`base_url`") => Error::file(
            path,
            message,
            format!("fetch it from another server with `data::fetch({name}, base_url = URL)`"),
        ),
        error => error,
    }
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
        assert!(error.ends_with("or name a known set: builtin, cifar10, fashion-mnist"), "{error}");
        let error = resolve("mine", Some("absent.safetensors"), &options).unwrap_err().to_string();
        assert!(error.contains("absent.safetensors: cannot open"), "{error}");
        assert!(error.contains("check the path, or name a known set: builtin, "), "{error}");
        assert!(OFFICIAL.iter().all(|set| error.contains(set.name)), "{error}");
        let error = resolve("mine", Some("cifar-10"), &options).unwrap_err().to_string();
        assert!(error.contains("did you mean cifar10? Check the path"), "{error}");
        let none = ResolveOptions { shapes_count: 0, ..options };
        assert!(resolve("shapes", None, &none).is_err());
    }

    #[test]
    fn a_failed_download_is_answered_with_what_the_caller_can_do() {
        let told = |trains, error| {
            let options = ResolveOptions { trains, ..ResolveOptions::default() };
            unfetched("cifar10", Path::new("data/cifar10.safetensors"), error, &options).to_string()
        };
        let offline = || Error::config("https://x/", "cannot be fetched: offline", "give a mirror with `base_url`");
        for trains in [false, true] {
            let error = told(trains, offline());
            assert!(error.contains("run `engine data fetch cifar10`") && !error.contains("base_url"), "{error}");
            // Only a run can do with another set.
            assert_eq!(error.contains("built-in shapes"), trains, "{error}");
        }
        let error = told(false, Error::file("x.tar.gz", "is another file", "fetch again, or with `base_url`"));
        assert!(error.ends_with("with `data::fetch(cifar10, base_url = URL)`"), "{error}");
        let error = told(false, Error::file("x.tar.gz", "is damaged", "fetch it again"));
        assert!(error.ends_with("is damaged; fetch it again"), "{error}");
    }
}
