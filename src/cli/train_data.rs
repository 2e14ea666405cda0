//! `--data` of `engine train`: imports files, folders and archives as data sets, and adapts the model to them.

use std::path::{Path, PathBuf};

use super::bar::shown;
use super::data::{PictureArgs, counted_set};
use super::flags;
use crate::config::{Config, ModelConfig};
use crate::data::{Colour, Dataset, ImportOptions, OFFICIAL, ResolveOptions, Split, import_once, join_once, resolve};
use crate::error::{Error, Result};
use crate::models::Architecture;
use crate::ops::host::parallel::with_threads;
use crate::words::counted;

/// Sets with one size up to this keep it; larger pictures are resized to the model's size.
const KEPT_SIZE: usize = 64;

/// The configuration keys taken from the data unless the user set them.
const SIZE: &str = "model.image_size";
const CHANNELS: &str = "model.image_channels";
const CLASSES: &str = "model.num_classes";

/// The U-Net levels with attention; they keep it at other sizes.
const ATTENTION: &str = "model.attention_sizes";

/// The indices of a U-Net's levels with attention, largest level first; None for other models, and for an invalid one.
fn attended_levels(model: &ModelConfig) -> Option<Vec<usize>> {
    let ModelConfig::Unet(unet) = model else { return None };
    unet.validate().ok()?;
    Some((0..unet.channels.len()).filter(|&level| unet.has_attention(level)).collect())
}

/// The keys that the user set.
pub(super) struct Given {
    keys: Vec<String>,
}

impl Given {
    /// From `--set`, and from a configuration file with the text `file`.
    pub fn new(set: &[String], file: Option<&str>) -> Self {
        let key = |assignment: &String| assignment.split('=').next().unwrap_or_default().trim().to_owned();
        let mut keys: Vec<String> = set.iter().map(key).collect();
        let document: Option<serde_json::Value> = file.and_then(|text| serde_saphyr::from_str(text).ok());
        for known in [SIZE, CHANNELS, CLASSES, ATTENTION] {
            let pointer = format!("/{}", known.replace('.', "/"));
            if document.as_ref().is_some_and(|document| document.pointer(&pointer).is_some()) {
                keys.push(known.to_owned());
            }
        }
        Self { keys }
    }

    fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|given| given == key)
    }
}

/// The data set given with `--data`, once or more, as a file or a name. None without `--data`. `say` receives progress messages.
pub(super) fn find(
    data: &[String],
    pictures: &PictureArgs,
    data_dir: &Path,
    config: &Config,
    given: &Given,
    quiet: bool,
    say: &mut dyn FnMut(String),
) -> Result<Option<(String, Dataset)>> {
    let mut found = Vec::new();
    for data in data {
        found.push(one(data, pictures, data_dir, config, given, quiet, say)?);
    }
    if found.len() < 2 {
        return Ok(found.pop());
    }
    let sets: Vec<Dataset> = found.into_iter().map(|(_, set)| set).collect();
    let (file, fresh) = join_once(&sets, data_dir)?;
    let set = Dataset::open(&file)?;
    let images = counted(set.len(), "image");
    say(format!("{} {images} as {}", if fresh { "joined" } else { "joined before:" }, file.display()));
    Ok(Some((text(&file)?, set)))
}

fn one(
    data: &str,
    pictures: &PictureArgs,
    data_dir: &Path,
    config: &Config,
    given: &Given,
    quiet: bool,
    say: &mut dyn FnMut(String),
) -> Result<(String, Dataset)> {
    let path = Path::new(data);
    let options = ResolveOptions {
        data_dir,
        shapes_seed: config.data.shapes_seed,
        shapes_count: config.data.shapes_count,
        progress: shown(quiet),
        trains: true,
    };
    let is_set = !path.is_dir() && is_data_set(path);
    if !path.exists() || is_set {
        if !path.exists() && !data.contains(['/', '.']) && OFFICIAL.iter().all(|official| official.name != data) {
            // A set of the data folder, by name.
            let named = data_dir.join(format!("{data}.safetensors"));
            if named.exists() {
                return Ok((text(&named)?, Dataset::open(named)?));
            }
        }
        return Ok((data.to_owned(), resolve(&config.data.name, Some(data), &options)?));
    }
    let size = config.model.image_size();
    let mut options = ImportOptions {
        fallback_size: size,
        keep_size_to: Some(KEPT_SIZE.max(size.height).max(size.width)),
        keep_multiples_of: config.model.architecture().size_step(),
        progress: shown(quiet),
        ..pictures.options()
    };
    if given.has(SIZE) {
        options.resize.get_or_insert(size);
    }
    if given.has(CHANNELS) {
        options.color.get_or_insert(if config.model.image_channels() == 1 { Colour::Grey } else { Colour::Rgb });
    }
    // Arrays and published sets have their own size.
    let import = || match import_once(path, &options, data_dir) {
        Err(Error::Config { place, .. }) if place == "--resize" && !pictures.is_resized() => {
            import_once(path, &ImportOptions { resize: None, ..options.clone() }, data_dir)
        }
        imported => imported,
    };
    let (file, fresh) = match config.training.num_workers {
        0 => import(),
        workers => with_threads(workers, import),
    }?;
    let set = Dataset::open(&file)?;
    let said = if fresh { "imported" } else { "imported before:" };
    say(format!("{said} {data} as {} ({})", file.display(), counted_set(&set)));
    set.notes().iter().for_each(|note| say(format!("note: {}", shortened(&flags::noted(note)))));
    Ok((text(&file)?, set))
}

/// A note for the terminal; the data set file has the full text.
fn shortened(note: &str) -> String {
    const LONGEST: usize = 300;
    match note.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}… (`engine data info` lists all)", &note[..end]),
        None => note.to_owned(),
    }
}

/// Whether a file looks like one of our data sets; others are imported.
pub(super) fn is_data_set(path: &Path) -> bool {
    use std::io::Read;
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(512).read_to_end(&mut start));
    let named = path.extension().is_some_and(|ending| ending == "safetensors");
    named || (read.is_ok() && crate::files::describe(&start) == "a safetensors file")
}

fn text(path: &Path) -> Result<String> {
    let absolute: PathBuf = std::path::absolute(path).map_err(Error::io(path, "find"))?;
    let absolute = absolute.into_os_string().into_string();
    absolute
        .map_err(|path| Error::config("--data-dir", format!("{} is not UTF-8", path.display()), "give another folder"))
}

/// Sets the model's image size, channels and classes from the set, unless the user set them.
pub(super) fn follow(config: &mut Config, set: &Dataset, given: &Given, say: &mut dyn FnMut(String)) -> Result<()> {
    let mut changed = Vec::new();
    let mut change = |config: &mut Config, key: &str, value: String| -> Result<()> {
        config.set(&format!("{key}={value}"))?;
        changed.push(format!("{key} {value}"));
        Ok(())
    };
    if !given.has(SIZE) && set.size() != config.model.image_size() {
        let attended = attended_levels(&config.model);
        change(config, SIZE, set.size().as_value())?;
        if let (Some(levels), ModelConfig::Unet(unet), false) = (attended, &config.model, given.has(ATTENTION)) {
            let heights: Vec<usize> = levels.iter().map(|&level| unet.sizes()[level].height).collect();
            if heights != unet.attention_sizes {
                change(config, ATTENTION, format!("{heights:?}"))?;
            }
        }
    }
    if !given.has(CHANNELS) && set.channels() != config.model.image_channels() {
        change(config, CHANNELS, set.channels().to_string())?;
    }
    let classes = match config.data.classes.len() {
        0 => set.class_names().len(),
        kept => kept,
    };
    let known = config.model.num_classes();
    if !given.has(CLASSES) && known > 0 && classes != known {
        if classes > 1 || config.model.is_classifier() {
            change(config, CLASSES, classes.to_string())?;
        } else {
            // With a single class, train unconditionally.
            for (key, value) in [
                (CLASSES, "0"),
                ("model.null_label", "false"),
                ("training.label_dropout", "0"),
                ("sampling.guidance", "1"),
            ] {
                config.set(&format!("{key}={value}"))?;
            }
            changed.push("without classes (the set has one)".into());
        }
    }
    if !changed.is_empty() {
        say(format!("the model follows the data: {}", changed.join(", ")));
    }
    let (images, batch) = (set.split_len(Split::Train), config.training.batch_size);
    if images < batch {
        say(format!(
            "note: a batch of {batch} is more than the {}: they repeat within it",
            counted(images, "training image")
        ));
    }
    let held_out = config.data.validation_fraction.is_some() || set.split_len(Split::Validation) > 0;
    if !held_out {
        say("note: the set is too small to hold images out: there is no validation loss, and the newest weights are the best".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Parts, shapes};

    fn grey(classes: usize) -> Dataset {
        let parts = Parts {
            name: "grey".into(),
            height: 48,
            width: 48,
            channels: 1,
            class_names: (0..classes).map(|label| format!("c{label}")).collect(),
            images: vec![0; 48 * 48 * 4],
            labels: vec![0; 4],
            train: 4,
            ..Parts::default()
        };
        Dataset::from_parts(parts).unwrap()
    }

    #[test]
    fn the_model_follows_the_data_where_nobody_set_it() {
        let mut messages = Vec::new();
        let mut config = Config::preset("quickstart").unwrap();
        follow(&mut config, &grey(3), &Given::new(&[], None), &mut |text| messages.push(text)).unwrap();
        assert_eq!((config.model.image_shape(), config.model.num_classes()), ([48, 48, 1], 3));
        assert!(
            messages[0].contains("model.image_size 48, model.image_channels 1, model.num_classes 3"),
            "{messages:?}"
        );
        assert!(messages[1].contains("is more than the 4 training images: they repeat"), "{messages:?}");
        assert!(messages[2].contains("no validation loss"), "{messages:?}");
        let mut config = Config::preset("quickstart").unwrap();
        follow(&mut config, &grey(1), &Given::new(&[], None), &mut |_| ()).unwrap();
        assert_eq!((config.model.num_classes(), config.model.null_label()), (0, None));
        config.validate().unwrap();
        let given =
            Given::new(&["model.image_size=32".into()], Some("model:\n  image_channels: 3\n  num_classes: 10\n"));
        let mut config = Config::preset("quickstart").unwrap();
        follow(&mut config, &grey(3), &given, &mut |_| ()).unwrap();
        assert_eq!((config.model.image_shape(), config.model.num_classes()), ([32, 32, 3], 10));
        let mut messages = Vec::new();
        follow(&mut Config::preset("quickstart").unwrap(), &shapes(0, 100), &Given::new(&[], None), &mut |text| {
            messages.push(text)
        })
        .unwrap();
        assert_eq!(messages, Vec::<String>::new());
    }
}
