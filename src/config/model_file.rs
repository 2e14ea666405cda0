//! The model file: one safetensors file with the weights and, in its metadata, everything that sampling needs.
//!
//! Metadata: `format` (`engine-model-1`), `config` (the whole configuration as JSON), `weights` (`ema` or `raw`), `step`,
//! `epoch`, `classes` (JSON list of names), `crc32c` of the tensors' bytes. Tensors are the model's parameters by name, f32,
//! bf16 or f16.
//!
//! A checkpoint (`engine-checkpoint-1`, written by training) is read as a model too: it holds the weights twice, as
//! `ema.NAME` and, raw, as `weights.NAME`, where it also has what is frozen, and running statistics.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::Digest as _;

use super::loaded::Loaded;
use super::pretrained::{named, nowhere};
use super::{Config, ModelConfig, Pretrained, pretrained};
use crate::diffusion::Denoiser;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::models::{self, Network};
use crate::nn::{Parameters, Spec};
use crate::tensor::{Context, DType};

const FORMAT: &str = "engine-model-1";
/// The format of checkpoints.
pub const CHECKPOINT_FORMAT: &str = "engine-checkpoint-1";
const MEND: &str = "take the file from its source again, or another checkpoint";

/// What a model file says besides its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The configuration that it was trained with.
    pub config: Config,
    /// `ema` (the moving average) or `raw`.
    pub weights: String,
    /// Optimizer steps behind it.
    pub step: u64,
    /// Epochs behind it.
    pub epoch: u64,
    /// Names of the classes, in the order of their labels.
    pub classes: Vec<String>,
}

/// Which of a run's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Their exponential moving average.
    Ema,
    /// As the optimizer left them.
    Raw,
}

impl Weights {
    /// The name in model files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ema => "ema",
            Self::Raw => "raw",
        }
    }

    /// What stands before a parameter's name in a checkpoint.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Ema => "ema.",
            Self::Raw => "weights.",
        }
    }
}

/// What a file stores weights in. They are computed with as always: in f32, or as the precision says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floating point: all bits of the weights.
    #[default]
    F32,
    /// bfloat16: half the size, 8 significant bits, any weight fits.
    Bf16,
    /// Half precision: half the size, 11 significant bits, weights up to 65504 fit and those below 6e-5 lose bits.
    F16,
}

impl Storage {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    /// The values as a file's bytes, rounded to nearest; the value that does not fit, where one does not.
    fn encode(self, values: &[f32]) -> Result<Cow<'_, [u8]>, f32> {
        Ok(match self {
            Self::F32 => Cow::Borrowed(bytemuck::cast_slice(values)),
            Self::Bf16 => values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect(),
            Self::F16 => {
                let fits = |value: f32| !value.is_finite() || half::f16::from_f32(value).is_finite();
                if let Some(stranger) = values.iter().find(|value| !fits(**value)) {
                    return Err(*stranger);
                }
                values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect()
            }
        })
    }
}

/// A model with its weights on a device.
pub struct Model {
    /// The network.
    pub model: Rc<dyn Denoiser>,
    /// Its weights.
    pub parameters: Rc<Parameters>,
    /// What the file says.
    pub info: ModelInfo,
    /// Where it came from: its file, or the name of a pretrained model.
    pub path: PathBuf,
    /// Of the file that it came from.
    pub digest: Digest,
}

/// Tells a file from all others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// SHA-256 of its bytes in hexadecimal; empty where there is no file.
    pub sha256: String,
    /// Its length in bytes.
    pub bytes: usize,
}

impl Digest {
    fn of(bytes: &[u8]) -> Self {
        let sha256 = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { sha256, bytes: bytes.len() }
    }
}

/// A named array of f32 in a file to be written.
pub struct Array<'a> {
    /// Its name.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its elements.
    pub values: &'a [f32],
}

/// The parameters of a flat buffer as arrays, their names behind `prefix`.
pub fn arrays<'a>(specs: &[Spec], flat: &'a [f32], prefix: &str) -> Vec<Array<'a>> {
    let array = |spec: &Spec| Array {
        name: format!("{prefix}{}", spec.name),
        shape: spec.shape.sizes().to_vec(),
        values: &flat[spec.offset..][..spec.shape.len()],
    };
    specs.iter().map(array).collect()
}

/// Writes a safetensors file beside `path`, syncs it and renames it over `path`: whoever looks finds the old file or the
/// new one, never a part. A checksum of the tensors' bytes joins `metadata`.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] for a value that does not fit `storage`. What stood at `path` is then untouched.
pub fn write_arrays(
    path: &Path,
    arrays: &[Array],
    mut metadata: BTreeMap<String, String>,
    storage: Storage,
) -> Result<()> {
    let mut encoded = Vec::with_capacity(arrays.len());
    for array in arrays {
        encoded.push(storage.encode(array.values).map_err(|value| {
            let message = format!("{} holds {value}, which does not fit {}", array.name, storage.name());
            Error::file(path, message, "store the weights in bf16 or f32; the file was not written")
        })?);
    }
    let mut views = Vec::with_capacity(arrays.len());
    for (array, bytes) in arrays.iter().zip(&encoded) {
        let view = TensorView::new(storage.dtype(), array.shape.clone(), bytes)
            .map_err(|fault| Error::shape("model file", format!("{}: {fault}", array.name)))?;
        views.push((array.name.as_str(), view));
    }
    metadata
        .insert("crc32c".into(), format!("{:08x}", checksum(views.iter().map(|(name, view)| (*name, view.data())))));
    let bytes = safetensors::serialize(views, None)
        .map_err(|fault| Error::shape("model file", format!("{}: {fault}", path.display())))?;
    write_atomically(path, &with_metadata(bytes, &metadata))
}

/// A safetensors file with `metadata` in its header, which had none. The format's library would put the entries in an order
/// of chance, and equal runs shall give equal files.
fn with_metadata(mut file: Vec<u8>, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    // A length of 8 bytes, that much JSON, filled up with spaces to whole 8 bytes, then the tensors' bytes.
    let (length, rest) = file.split_at(8);
    let old = u64::from_le_bytes(length.try_into().expect("8 bytes")) as usize;
    let tensors = rest[..old].trim_ascii_end().strip_prefix(b"{").expect("a header is an object");
    let entries = serde_json::to_string(metadata).expect("text is JSON");
    let comma = if tensors == b"}" { "" } else { "," };
    let mut header = [format!("{{\"__metadata__\":{entries}{comma}").as_bytes(), tensors].concat();
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    // In place: a checkpoint is as long as four models.
    file.splice(..8 + old, length.into_iter().chain(header));
    file
}

/// CRC-32C over names and bytes in order of the names.
fn checksum<'a>(tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> u32 {
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_by_key(|(name, _)| *name);
    tensors
        .iter()
        .fold(0, |crc, (name, bytes)| crc32c::crc32c_append(crc32c::crc32c_append(crc, name.as_bytes()), bytes))
}

/// A file's bytes.
enum Bytes {
    Mapped(memmap2::Mmap),
    Embedded(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

/// A safetensors file that has been read and whose checksum holds.
pub struct ArrayFile {
    path: PathBuf,
    bytes: Bytes,
    /// The one of the formats asked for that it has.
    pub format: &'static str,
    /// Its metadata.
    pub metadata: HashMap<String, String>,
}

impl ArrayFile {
    /// Maps the file, checks that it has one of the `formats`, its header against its length and its bytes against their
    /// checksum. `what` it should be is for the errors, as in `a model`.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::File`] for one that is cut short, damaged or of another kind.
    pub fn open(path: impl AsRef<Path>, formats: &[&'static str], what: &str) -> Result<Self> {
        let path = path.as_ref();
        let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
        if file.metadata().map_err(Error::io(path, "read"))?.len() < 8 {
            return Err(Error::file(path, format!("too short to be {what}"), MEND));
        }
        // SAFETY: files of these kinds are replaced by renaming, never changed in place; a file that somebody cuts short
        // meanwhile would raise SIGBUS, as with any mapped file.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Self::check(path, Bytes::Mapped(map), formats, what)
    }

    fn check(path: &Path, bytes: Bytes, formats: &[&'static str], what: &str) -> Result<Self> {
        let fault = |message: String| Error::file(path, message, MEND);
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|e| fault(format!("damaged or cut short: {e}")))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let Some(found) = metadata.get("format") else {
            return Err(fault(format!("a safetensors file, but not {what} of this engine")));
        };
        let Some(format) = formats.iter().find(|format| *format == found) else {
            let short: String = found.chars().take(40).collect();
            let message =
                format!("this is a file of format {}, not {what} ({})", short.escape_debug(), formats.join(" or "));
            return Err(fault(message));
        };
        let file = Self { path: path.to_path_buf(), bytes, format, metadata };
        let tensors = file.tensors()?;
        let views: Vec<_> = tensors.tensors();
        let found = format!("{:08x}", checksum(views.iter().map(|(name, view)| (name.as_str(), view.data()))));
        if file.metadata.get("crc32c") != Some(&found) {
            return Err(fault("its bytes do not match their checksum: the file is damaged".into()));
        }
        Ok(file)
    }

    fn tensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|e| self.fault(format!("damaged: {e}")))
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What tells it from other files.
    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// A fault of this file.
    pub fn fault(&self, message: String) -> Error {
        Error::file(&self.path, message, MEND)
    }

    /// A metadata entry that has to be there.
    pub fn entry(&self, key: &str) -> Result<&str> {
        self.metadata.get(key).map(String::as_str).ok_or_else(|| self.fault(format!("its metadata has no `{key}`")))
    }

    /// A metadata entry that is a whole number.
    pub fn number(&self, key: &str) -> Result<u64> {
        let text = self.entry(key)?;
        text.parse().map_err(|_| self.fault(format!("its metadata's `{key}` is not a whole number: {text:.40}")))
    }

    /// The configuration in the metadata.
    pub fn config(&self) -> Result<Config> {
        let json = self.entry("config")?;
        Config::from_json(json, &self.path.display().to_string())
    }

    /// Reads the parameters named `prefix` + name (f32, bf16 or f16) into a flat buffer of `len` elements. With `exact`,
    /// tensors under the prefix that no parameter claims are an error too.
    pub fn flat(&self, specs: &[Spec], len: usize, prefix: &str, exact: bool) -> Result<Vec<f32>> {
        let tensors = self.tensors()?;
        if exact {
            let known: std::collections::HashSet<String> =
                specs.iter().map(|spec| format!("{prefix}{}", spec.name)).collect();
            if let Some(stranger) = tensors.names().into_iter().find(|name| !known.contains(*name)) {
                return Err(self.fault(format!("it holds {stranger}, which its model does not have")));
            }
        }
        let mut flat = vec![0f32; len];
        for spec in specs {
            let name = format!("{prefix}{}", spec.name);
            let view = tensors.tensor(&name).map_err(|_| self.fault(format!("{name} is missing")))?;
            if view.shape() != spec.shape.sizes() {
                return Err(self.fault(format!("{name} is {:?}, the model's is {}", view.shape(), spec.shape)));
            }
            let values = &mut flat[spec.offset..][..spec.shape.len()];
            match view.dtype() {
                Dtype::F32 => {
                    for (value, bytes) in values.iter_mut().zip(view.data().chunks_exact(4)) {
                        *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                    }
                }
                Dtype::BF16 => {
                    for (value, bytes) in values.iter_mut().zip(view.data().chunks_exact(2)) {
                        *value = half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                    }
                }
                Dtype::F16 => {
                    for (value, bytes) in values.iter_mut().zip(view.data().chunks_exact(2)) {
                        *value = half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                    }
                }
                other => return Err(self.fault(format!("{name} is {other:?}; weights are f32, bf16 or f16"))),
            }
        }
        Ok(flat)
    }
}

/// Writes a model file; `flat` are the weights in the order of `specs`.
///
/// # Errors
/// As [`write_arrays`].
pub fn write_model(path: &Path, info: &ModelInfo, specs: &[Spec], flat: &[f32], storage: Storage) -> Result<()> {
    // Model files are handed on; where the data lay on its maker's machine is not for others to know.
    let mut config = info.config.clone();
    config.data.path = None;
    if let ModelConfig::ResnetDit(model) = &mut config.model {
        model.backbone = None;
    }
    let entries = [
        ("format", FORMAT.to_string()),
        ("config", config.to_json()?),
        ("weights", info.weights.clone()),
        ("step", info.step.to_string()),
        ("epoch", info.epoch.to_string()),
        ("classes", serde_json::Value::from(info.classes.clone()).to_string()),
    ];
    let metadata = entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    write_arrays(path, &arrays(specs, flat, ""), metadata, storage)
}

impl Model {
    /// A new model, its weights drawn from `seed` and never trained: for tests, and to start from.
    ///
    /// # Errors
    /// [`Error::Config`] for a configuration of which no network can be built.
    pub fn untrained(config: &Config, context: &Context, precision: DType, seed: u64) -> Result<Self> {
        let (model, builder) = models::build(&config.model)?;
        let parameters = Parameters::new(context, builder, precision)?;
        parameters.initialise(seed)?;
        let info = ModelInfo { config: config.clone(), weights: "raw".into(), step: 0, epoch: 0, classes: Vec::new() };
        let (path, digest) = (PathBuf::new(), Digest::default());
        Ok(Self { model, parameters: Rc::new(parameters), info, path, digest })
    }

    /// Writes the model file, all bits of the weights.
    ///
    /// # Errors
    /// [`Error::Io`]; what stood at `path` is then untouched.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_as(path, Storage::F32)
    }

    /// Writes the model file with weights rounded to `storage`.
    ///
    /// # Errors
    /// As [`write_arrays`].
    pub fn save_as(&self, path: impl AsRef<Path>, storage: Storage) -> Result<()> {
        let flat = self.parameters.download()?;
        write_model(path.as_ref(), &self.info, self.parameters.specs(), &flat, storage)
    }

    /// Loads a model file, a checkpoint (its moving average), the newest model of a run folder (`model.safetensors` in it),
    /// or, where `path` is the name of one and of nothing else, a [pretrained](pretrained()) model, onto `context`'s device.
    ///
    /// `precision` is the dtype of activations: `f32`, or `bf16` on accelerators.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] for a file that is missing, damaged or foreign.
    pub fn load(path: impl AsRef<Path>, context: &Context, precision: DType) -> Result<Self> {
        Self::load_weights(path, context, precision, None)
    }

    /// As [`Model::load`], with a choice of the weights: a checkpoint holds both, a model file one kind.
    ///
    /// # Errors
    /// As [`Model::load`], and [`Error::File`] where the file does not hold the chosen ones.
    pub fn load_weights(
        path: impl AsRef<Path>,
        context: &Context,
        precision: DType,
        weights: Option<Weights>,
    ) -> Result<Self> {
        Self::from_opened(open_model(path.as_ref(), pretrained())?, context, precision, weights)
    }

    fn from_opened(
        opened: (PathBuf, ArrayFile, ModelInfo),
        context: &Context,
        precision: DType,
        weights: Option<Weights>,
    ) -> Result<Self> {
        let Loaded { network, parameters, info, path, digest } = Loaded::new(opened, context, precision, weights)?;
        match network {
            Network::Denoiser(model) => Ok(Self { model, parameters, info, path, digest }),
            Network::Classifier(_) => {
                let message = format!("it is a classifier ({}): it draws nothing", info.config.model.kind());
                Err(Error::file(path, message, "name a diffusion model; `engine classify` takes classifiers"))
            }
        }
    }

    /// What a model file, a checkpoint, the newest model of a run folder, or a pretrained model says besides its weights.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn inspect(path: impl AsRef<Path>) -> Result<ModelInfo> {
        open_model(path.as_ref(), pretrained()).map(|(_, _, info)| info)
    }
}

/// A model file, a checkpoint, a run folder's `model.safetensors`, or one of the `embedded` models.
pub(super) fn open_model(given: &Path, embedded: &[Pretrained]) -> Result<(PathBuf, ArrayFile, ModelInfo)> {
    const FORMATS: [&str; 2] = [FORMAT, CHECKPOINT_FORMAT];
    let path = if given.is_dir() { given.join("model.safetensors") } else { given.to_path_buf() };
    if given.is_dir() && !path.is_file() {
        return Err(Error::file(
            given,
            "a folder without model.safetensors",
            "name a run folder whose training has saved a model, or a model file",
        ));
    }
    // What cannot be asked about cannot be opened either, and opening it tells why.
    let file = if path.try_exists().unwrap_or(true) {
        ArrayFile::open(&path, &FORMATS, "a model")?
    } else {
        let model = named(given, embedded).ok_or_else(|| nowhere(given, embedded))?;
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
    Ok((path, file, info))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_contents_make_equal_files() {
        let folder = tempfile::tempdir().unwrap();
        let metadata: BTreeMap<_, _> =
            ["format", "z", "a \"quoted\" key", "m"].map(|key| (key.to_string(), format!("{key}\n"))).into();
        let values = [1.0, -2.5, 3.0];
        let array = |name: &str, shape: &[usize], values| Array { name: name.into(), shape: shape.to_vec(), values };
        for arrays in [vec![array("b", &[3], &values), array("a", &[2, 1], &values[1..])], vec![]] {
            let written = [(); 8].map(|()| {
                let path = folder.path().join("file.safetensors");
                write_arrays(&path, &arrays, metadata.clone(), Storage::F32).unwrap();
                std::fs::read(path).unwrap()
            });
            assert!(written.iter().all(|bytes| *bytes == written[0]));
            // The format's own reader agrees.
            let (_, header) = SafeTensors::read_metadata(&written[0]).unwrap();
            let found = header.metadata().clone().unwrap();
            assert!(metadata.iter().all(|(key, value)| found.get(key) == Some(value)) && found.contains_key("crc32c"));
            let tensors = SafeTensors::deserialize(&written[0]).unwrap();
            assert_eq!(tensors.len(), arrays.len());
            for Array { name, shape, values } in &arrays {
                let tensor = tensors.tensor(name).unwrap();
                assert_eq!((tensor.shape(), tensor.data()), (shape.as_slice(), bytemuck::cast_slice(values)));
            }
        }
    }

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
            Model::from_opened(open_model(Path::new(name), table)?, &context, DType::F32, None)
        };
        let embedded = load("some-model", &table).unwrap();
        assert_eq!((embedded.path.to_str(), embedded.digest.bytes), (Some("some-model"), bytes.len()));
        let weights = |model: &Model| model.parameters.master().download::<f32>().unwrap();
        let rounded = |value: &f32| half::bf16::from_f32(*value).to_f32();
        assert_eq!(weights(&embedded), weights(&model).iter().map(rounded).collect::<Vec<_>>());
        assert_eq!(embedded.parameters.precision(), DType::F32);
        // The same from the file.
        let loaded = Model::load(&file, &context, DType::F32).unwrap();
        assert_eq!((weights(&loaded), &loaded.digest), (weights(&embedded), &embedded.digest));
        assert_eq!(loaded.digest.sha256.len(), 64);

        let fault = |name: &str, table: &[Pretrained]| load(name, table).err().unwrap().to_string();
        assert!(fault("some-model", &[]).contains("no such model file, run folder or pretrained model"));
        let cut = [Pretrained { bytes: &bytes[..bytes.len() / 2], ..table[0] }];
        assert!(fault("some-model", &cut).starts_with("some-model: damaged or cut short"));
    }
}
