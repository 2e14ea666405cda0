//! `engine presets`: the configurations that come with the engine.

use std::path::Path;

use clap::Args;

use super::machine::PrecisionChoice;
use crate::config::{Config, ModelConfig, presets};
use crate::error::{Error, Result};
use crate::model_file::pretrained;

/// List the presets, or print one as YAML, as a start for your own configuration.
#[derive(Clone, Debug, Args)]
pub struct PresetsCommand {
    /// The preset to print
    name: Option<String>,
}

impl PresetsCommand {
    /// Prints to standard output.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown name; the nearest one is named.
    pub fn run(self) -> Result<()> {
        print!("{}", self.text()?);
        Ok(())
    }

    fn text(&self) -> Result<String> {
        match &self.name {
            // Print it in full: defaults are part of a preset.
            Some(name) => Config::preset(name)?.to_yaml(),
            None => {
                let presets = presets().iter().map(|preset| (preset.name, preset.description));
                let models = pretrained().iter().map(|model| (model.name, model.description));
                let widest = presets.clone().chain(models.clone()).map(|(name, _)| name.len()).max().unwrap_or(0);
                let line = |(name, description): (&str, &str)| format!("{name:widest$}  {description}\n");
                let (presets, models): (String, String) = (presets.map(line).collect(), models.map(line).collect());
                Ok(format!("{presets}\nTrained, and part of the engine (`engine sample --model NAME`):\n{models}"))
            }
        }
    }
}

/// The configuration of a file, else of a preset (`quickstart` by default), with the flags applied, and its name.
///
/// # Errors
/// [`Error::Config`] for unknown names, missing files and invalid combinations.
pub(super) fn configuration(
    preset: Option<&str>,
    file: Option<&Path>,
    set: &[String],
    batch: Option<usize>,
    precision: Option<PrecisionChoice>,
) -> Result<(String, Config)> {
    let (name, mut config) = match file {
        Some(path) => (path.display().to_string(), Config::from_file(path)?),
        None => {
            let name = preset.unwrap_or("quickstart");
            (name.to_string(), Config::preset(name)?)
        }
    };
    set.iter().try_for_each(|assignment| config.set(assignment))?;
    if let Some(batch) = batch {
        if batch == 0 {
            return Err(Error::config("--batch", "0 images in a batch", "give 1 or more"));
        }
        config.training.batch_size = batch;
    }
    if let Some(precision) = precision {
        config.training.precision = precision.into();
    }
    if let ModelConfig::ResnetDit(model) = &mut config.model {
        model.follow_backbone();
    }
    config.validate()?;
    Ok((name, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_preset_has_a_line_and_reads_back_equal() {
        let list = PresetsCommand { name: None }.text().unwrap();
        assert_eq!(list.lines().count(), presets().len() + 2 + pretrained().len());
        assert!(pretrained().iter().all(|model| list.ends_with('\n') && list.contains(model.description)));
        for preset in presets() {
            assert!(list.contains(preset.name) && list.contains(preset.description));
            let yaml = PresetsCommand { name: Some(preset.name.into()) }.text().unwrap();
            assert_eq!(Config::from_yaml(&yaml, "printed").unwrap(), Config::preset(preset.name).unwrap());
        }
        let error = PresetsCommand { name: Some("quickstar".into()) }.text().unwrap_err().to_string();
        assert!(error.contains("quickstart"), "{error}");
    }
}
