//! The models that a server knows by name, before loading any.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result, nearest};
use crate::model_file::{ModelFile, ModelInfo, pretrained};
use crate::models;
use crate::nn::Parameters;
use crate::tensor::{Context, DType};

use super::refusal::Refusal;

/// Most models of a server.
const MOST: usize = 1000;

/// An available model.
#[derive(Debug)]
pub struct Card {
    /// The name in requests.
    pub name: String,
    /// Its source: a file, a run folder, or the name of a pretrained one.
    pub path: PathBuf,
    /// The metadata of its file.
    pub info: ModelInfo,
    /// Height, width, channels.
    pub shape: [usize; 3],
    /// Number of trained parameters.
    pub parameters: usize,
}

impl Card {
    fn read(path: &Path) -> Result<Self> {
        let info = ModelFile::open(path)?.info().clone();
        let (network, builder) = models::build(&info.config.model)?;
        let parameters = Parameters::new(&Context::shape_only(), builder, DType::F32)?.count();
        let name = name_of(path);
        if name.is_empty() {
            return Err(Error::file(path, "has no name that a request could use", "rename it"));
        }
        Ok(Self { name, path: path.to_path_buf(), info, shape: network.image_shape(), parameters })
    }
}

/// `runs/shapes` is `shapes`, `a/b.safetensors` is `b`, `runs/shapes/model.safetensors` is `shapes`.
fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let stem = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    if whole.is_dir() {
        return whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    }
    match (stem(&whole).as_str(), whole.parent()) {
        ("model" | "best", Some(folder)) if folder.join("config.yaml").is_file() => stem(folder),
        (name, _) => name.to_string(),
    }
}

/// The models of a server; the first is the default of requests.
#[derive(Debug)]
pub struct Models {
    cards: Vec<Arc<Card>>,
}

impl Models {
    /// The given models, then those in a folder: its `.safetensors` files and run folders. With neither, the models that come with
    /// the engine. Other files in the folder are reported with `note`.
    ///
    /// # Errors
    /// Those of [`ModelFile::open`] for a given one; [`Error::Config`] for duplicate names, or no models.
    pub fn find(named: &[PathBuf], folder: Option<&Path>, mut note: impl FnMut(String)) -> Result<Self> {
        let mut cards: Vec<Arc<Card>> = Vec::new();
        for path in named {
            cards.push(Arc::new(Card::read(path)?));
        }
        if let Some(folder) = folder {
            let listed = std::fs::read_dir(folder).map_err(Error::io(folder, "list the folder"))?;
            let mut paths: Vec<PathBuf> = listed.filter_map(|entry| Some(entry.ok()?.path())).collect();
            paths.sort();
            let is_model = |path: &&PathBuf| {
                path.extension().is_some_and(|ending| ending == "safetensors")
                    || path.join("model.safetensors").is_file()
            };
            for path in paths.iter().filter(is_model) {
                match Card::read(path) {
                    Ok(card) if cards.iter().any(|other| other.name == card.name) => {
                        note(format!("{}: left out, another model is called {}", path.display(), card.name));
                    }
                    Ok(card) => cards.push(Arc::new(card)),
                    Err(error) => note(format!("left out: {error}")),
                }
            }
        }
        if named.is_empty() && folder.is_none() {
            for model in pretrained() {
                cards.push(Arc::new(Card::read(Path::new(model.name))?));
            }
        }
        for (at, card) in cards.iter().enumerate() {
            if cards[..at].iter().any(|other| other.name == card.name) {
                let message = format!("two models are called {}", card.name);
                return Err(Error::config("models", message, "rename one of the files"));
            }
        }
        if cards.is_empty() || cards.len() > MOST {
            let message = format!("{} models", cards.len());
            return Err(Error::config("folder", message, format!("give a folder with 1 to {MOST} model files")));
        }
        Ok(Self { cards })
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<Card>] {
        &self.cards
    }

    /// The requested model, or the first.
    ///
    /// # Errors
    /// 404 with the nearest name.
    pub fn get(&self, name: Option<&str>) -> Result<&Arc<Card>, Refusal> {
        let Some(name) = name else { return Ok(&self.cards[0]) };
        self.cards.iter().find(|card| card.name == name).ok_or_else(|| {
            let names = self.cards.iter().map(|card| card.name.as_str());
            let near = nearest(name, names).unwrap_or(&self.cards[0].name);
            let short: String = name.chars().take(60).collect();
            let message = format!("no model is called `{}`; did you mean {near}?", short.escape_debug());
            Refusal { code: "model_not_found", param: Some("model".into()), ..Refusal::unknown(message) }
        })
    }
}
