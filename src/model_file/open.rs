//! A model file that has been opened and verified, before its weights are loaded.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::arrays::Bytes;
use super::info::FORMAT;
use super::loaded::refused;
use super::pretrained::{named, unknown_model};
use super::{ArrayFile, CHECKPOINT_FORMAT, FromNetwork, Loaded, ModelInfo, Pretrained, Weights, pretrained};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::models;
use crate::nn::{Builder, Parameters};
use crate::tensor::{Context, DType};

/// A model file with a valid header, checksum and metadata.
pub struct ModelFile {
    path: PathBuf,
    file: ArrayFile,
    info: ModelInfo,
}

impl ModelFile {
    /// Opens a model file, a checkpoint, the newest model of a run folder (its `model.safetensors`), or a
    /// [pretrained](pretrained()) model if `given` is only the name of one. All bytes are read once, for the checksum.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] for a file that is missing, damaged or foreign.
    pub fn open(given: impl AsRef<Path>) -> Result<Self> {
        Self::open_among(given.as_ref(), pretrained())
    }

    fn open_among(given: &Path, embedded: &[Pretrained]) -> Result<Self> {
        const FORMATS: [&str; 2] = [FORMAT, CHECKPOINT_FORMAT];
        let path = if given.is_dir() { given.join("model.safetensors") } else { given.to_path_buf() };
        if given.is_dir() && !path.is_file() {
            return Err(Error::file(
                given,
                "a folder without model.safetensors",
                "give a run folder whose training has saved a model, or a model file",
            ));
        }
        // If the path cannot be queried, opening it reports why.
        let file = if path.try_exists().unwrap_or(true) {
            ArrayFile::open(&path, &FORMATS, "a model")?
        } else {
            let model = named(given, embedded).ok_or_else(|| unknown_model(given, embedded))?;
            ArrayFile::check(given, Bytes::Embedded(model.bytes), &FORMATS, "a model")?
        };
        let checkpoint = file.format == CHECKPOINT_FORMAT;
        let config = file.config()?;
        let classes: Vec<String> = serde_json::from_str(file.entry("classes")?)
            .map_err(|fault| file.fault(format!("its list of classes cannot be read: {fault}")))?;
        let info = ModelInfo {
            weights: if checkpoint { Weights::Ema.name() } else { file.entry("weights")? }.to_string(),
            step: file.number("step")?,
            epoch: file.number(if checkpoint { "epochs" } else { "epoch" })?,
            classes,
            config,
        };
        Ok(Self { path, file, info })
    }

    /// Its metadata.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Loads the network and its weights onto `context`'s device, with activations in `precision`: `f32` or `bf16`.
    /// From a checkpoint, which holds both, the moving average unless `weights` says otherwise; a model file holds
    /// one kind.
    ///
    /// # Errors
    /// [`Error::File`] if the network is not of the kind `N`, or the file lacks the chosen weights or some of them; those of the
    /// device.
    pub fn load<N: FromNetwork>(
        self,
        context: &Context,
        precision: DType,
        weights: Option<Weights>,
    ) -> Result<Loaded<N>> {
        let path = self.path.clone();
        self.load_as(context, precision, weights, |config| {
            let (network, builder) = models::network(&config.model)?;
            let network = N::from_network(network, config.model.kind()).map_err(|why| refused(&path, why))?;
            Ok((network, builder))
        })
    }

    /// As [`ModelFile::load`], for a network made by `build` with its declared parameters: for networks that are not part of the
    /// engine. `build` is called twice.
    ///
    /// # Errors
    /// As [`ModelFile::load`], and those of `build`.
    pub fn load_as<N>(
        self,
        context: &Context,
        precision: DType,
        weights: Option<Weights>,
        build: impl Fn(&Config) -> Result<(N, Builder)>,
    ) -> Result<Loaded<N>> {
        let Self { path, file, mut info } = self;
        let prefix = if file.format == CHECKPOINT_FORMAT {
            let weights = weights.unwrap_or(Weights::Ema);
            info.weights = weights.name().into();
            weights.prefix()
        } else if let Some(weights) = weights.filter(|weights| weights.name() != info.weights) {
            let message = format!("it holds only the {} weights, not the {}", info.weights, weights.name());
            return Err(Error::file(path, message, "give a checkpoint, as in RUN/checkpoints/step-1000.safetensors"));
        } else {
            ""
        };
        // A damaged configuration may describe a network of any size: check its size before allocating.
        let (_, builder) = build(&info.config)?;
        let count = Parameters::new(&Context::shape_only(), builder, DType::F32)?.count();
        if count > file.len() / 2 {
            return Err(file.fault(format!("its configuration has {count} parameters, more than its bytes can hold")));
        }
        let (network, builder) = build(&info.config)?;
        let parameters = Parameters::new(context, builder, precision)?;
        let flat = if prefix.is_empty() {
            file.flat(parameters.specs(), parameters.flat_len(), prefix, true)?
        } else {
            // A checkpoint has no average of weights that are not trained.
            let mut flat = file.flat(parameters.specs(), parameters.flat_len(), Weights::Raw.prefix(), false)?;
            let trained = file.flat(&parameters.trained_specs(), parameters.trained_len(), prefix, false)?;
            flat[..trained.len()].copy_from_slice(&trained);
            flat
        };
        parameters.set_flat(&flat)?;
        let digest = file.digest();
        Ok(Loaded { network, parameters: Rc::new(parameters), info, path, digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Denoiser;
    use crate::model_file::Storage;

    type Model = Loaded<Rc<dyn Denoiser>>;

    #[test]
    fn an_embedded_model_is_found_by_name_and_its_bf16_weights_are_computed_with_in_f32() {
        let mut config = Config::preset("quickstart").unwrap();
        for set in ["model.depth=1", "model.hidden_dim=32", "model.conditioning=token"] {
            config.set(set).unwrap();
        }
        let context = Context::cpu();
        let model = Model::untrained(&config, &context, DType::F32, 7).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("small.safetensors");
        model.save_as(&file, Storage::Bf16).unwrap();
        let bytes: &'static [u8] = std::fs::read(&file).unwrap().leak();
        let table = [Pretrained { name: "some-model", description: "untrained", bytes }];

        let load = |name: &str, table: &[Pretrained]| -> Result<Model> {
            ModelFile::open_among(Path::new(name), table)?.load(&context, DType::F32, None)
        };
        let embedded = load("some-model", &table).unwrap();
        assert_eq!((embedded.path.to_str(), embedded.digest.bytes), (Some("some-model"), bytes.len()));
        let weights = |model: &Model| model.parameters.master().download::<f32>().unwrap();
        let rounded = |value: &f32| half::bf16::from_f32(*value).to_f32();
        assert_eq!(weights(&embedded), weights(&model).iter().map(rounded).collect::<Vec<_>>());
        assert_eq!(embedded.parameters.precision(), DType::F32);
        // Loaded as a custom network.
        let opened = ModelFile::open_among(Path::new("some-model"), &table).unwrap();
        let own = opened.load_as(&context, DType::F32, None, |config| models::build(&config.model)).unwrap();
        assert_eq!(weights(&own), weights(&embedded));
        // Loaded from the file.
        let loaded = Model::load(&file, &context, DType::F32).unwrap();
        assert_eq!((weights(&loaded), &loaded.digest), (weights(&embedded), &embedded.digest));
        assert_eq!(loaded.digest.sha256.len(), 64);

        let fault = |name: &str, table: &[Pretrained]| load(name, table).err().unwrap().to_string();
        assert!(fault("some-model", &[]).contains("no such model file, run folder or pretrained model"));
        let cut = [Pretrained { bytes: &bytes[..bytes.len() / 2], ..table[0] }];
        assert!(fault("some-model", &cut).starts_with("some-model: damaged or cut short"));
    }
}
