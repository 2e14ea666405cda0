//! The models that come with the engine, embedded: `engine sample --model NAME` needs no file and no network.

use std::path::Path;

use crate::config::presets;
use crate::error::{Error, nearest};

/// A model inside the engine.
#[derive(Clone, Copy)]
pub struct Pretrained {
    /// The name to use in place of a file.
    pub name: &'static str,
    /// A one-line description.
    pub description: &'static str,
    /// Its model file.
    pub bytes: &'static [u8],
}

impl std::fmt::Debug for Pretrained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} bytes, {}", self.name, self.bytes.len(), self.description)
    }
}

/// A line `NAME: DESCRIPTION` for each file `assets/NAME.safetensors`.
macro_rules! table {
    ($($name:literal: $description:literal,)*) => {
        &[$(Pretrained {
            name: $name,
            description: $description,
            bytes: include_bytes!(concat!("../../assets/", $name, ".safetensors")),
        }),*]
    };
}

/// All models that come with the engine.
pub fn pretrained() -> &'static [Pretrained] {
    table! {
        "unet-fashion-small": "garments of Fashion-MNIST's ten classes, 28x28 grey",
    }
}

/// The pretrained model called `given`.
pub(super) fn named<'a>(given: &Path, table: &'a [Pretrained]) -> Option<&'a Pretrained> {
    table.iter().find(|model| Path::new(model.name) == given)
}

/// The error for an unknown model, with a guess of what was meant.
pub(super) fn unknown_model(given: &Path, table: &[Pretrained]) -> Error {
    let name = given.to_str().unwrap_or_default();
    if presets().iter().any(|preset| preset.name == name) {
        let advice = format!("train it with `train(preset = {name})`, then give the run folder");
        return Error::file(given, "is a preset, not a trained model", advice);
    }
    let names: Vec<&str> = table.iter().map(|model| model.name).collect();
    let run = Path::new("runs").join(given);
    let advice = if run.join("model.safetensors").is_file() {
        format!("did you mean {}?", run.display())
    } else if let Some(near) = nearest(name, names.iter().copied()) {
        format!("did you mean {near}?")
    } else if names.is_empty() {
        "check the path".into()
    } else {
        format!("check the path, or use one of {}", names.join(", "))
    };
    Error::file(given, "there is no such model file, run folder or pretrained model", advice)
}

#[cfg(test)]
mod tests {
    use super::super::ModelFile;
    use super::*;

    const TABLE: &[Pretrained] = &[Pretrained { name: "unet-tiny", description: "nothing", bytes: &[] }];

    #[test]
    fn only_the_whole_name_is_a_name() {
        assert_eq!(named(Path::new("unet-tiny"), TABLE).unwrap().name, "unet-tiny");
        for other in ["unet-tin", "./unet-tiny", "unet-tiny.safetensors", ""] {
            // A path written as a path is never a name.
            assert!(named(Path::new(other), TABLE).is_none(), "{other}");
        }
    }

    #[test]
    fn what_is_nowhere_is_told_with_advice() {
        let text = |name: &str, table| unknown_model(Path::new(name), table).to_string();
        let message = "there is no such model file, run folder or pretrained model";
        assert_eq!(text("x/y.safetensors", &[]), format!("x/y.safetensors: {message}; check the path"));
        assert!(text("x/y.safetensors", TABLE).ends_with("; check the path, or use one of unet-tiny"));
        assert!(text("unet-tny", TABLE).ends_with("; did you mean unet-tiny?"));
        assert!(text("quickstart", TABLE).contains("is a preset, not a trained model; train it with"));
    }

    #[test]
    fn every_embedded_model_is_sound_and_small() {
        for model in pretrained() {
            assert!(model.bytes.len() <= 6 << 20, "{model:?}");
            let file = ModelFile::open(model.name).unwrap();
            assert!(file.info().step > 0 && !model.description.is_empty(), "{model:?}");
        }
    }
}
