//! The files of an evaluation.

use std::path::Path;

use serde_json::{Value, json};

use super::super::eval_paths::is_statistics;
use super::super::eval_seeds::over_seeds;
use super::super::eval_text::panel;
use super::super::output::refuse_taken;
use super::against::Against;
use super::{EvalCommand, Job};
use crate::error::{Error, Result};
use crate::eval::evaluation::Measured;
use crate::eval::{Extractor, Gallery, short_hash};
use crate::files::write_atomically;
use crate::picture::write_png;

/// The file of all results.
const RESULTS: &str = "evaluation_results.json";

impl EvalCommand {
    /// Identifies what is evaluated and how; not how fast or where to.
    pub(super) fn identity(&self) -> String {
        let of = (&self.model, &self.checkpoints, &self.samples, &self.data, &self.reference, &self.reference_rule);
        let how = (&self.features.extractor, &self.features.inception, &self.features.rule, &self.classifier);
        let numbers = (self.num_samples, self.features.reference_count, self.features.draws, self.seed, &self.seeds);
        let ways = (&self.steps, &self.guidance, self.sampler, &self.metrics, self.calculate_fid, self.calculate_is);
        short_hash(&json!(format!("{of:?}\n{how:?}\n{numbers:?}\n{ways:?}")))
    }

    /// Refuses places that cannot be written, or that hold something else, before any work.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for results of another command or a statistics file that exists; [`Error::Config`] for
    /// statistics that would not be written.
    pub(super) fn check_places(&self) -> Result<()> {
        std::fs::create_dir_all(&self.out).map_err(Error::io(&self.out, "create"))?;
        let probe = self.out.join(".written");
        std::fs::write(&probe, b"").map_err(Error::io(&self.out, "write into"))?;
        std::fs::remove_file(&probe).map_err(Error::io(&probe, "remove"))?;
        let results = self.out.join(RESULTS);
        let again = std::fs::read(&results).ok().is_some_and(|bytes| {
            serde_json::from_slice::<Value>(&bytes).is_ok_and(|found| found["command"] == self.identity())
        });
        if results.exists() && !again && !self.force {
            let advice = "give another folder with --out, or replace them with --force";
            return Err(Error::file(results, "has the results of another command", advice));
        }
        let Some(path) = &self.write_statistics else { return Ok(()) };
        if path.extension().is_none_or(|ending| ending != "npz") {
            let message = format!("{} does not end in .npz", path.display());
            return Err(Error::config("--write-statistics", message, "name a .npz file: other tools go by the ending"));
        }
        let has_model = self.data.is_some() || !self.model.is_empty() || self.checkpoints.is_some();
        let pictures = self.reference.as_ref().map_or(has_model, |path| !is_statistics(path));
        if !pictures {
            let message = "there are no reference pictures, whose statistics it would be";
            return Err(Error::config("--write-statistics", message, "give pictures with --reference or --data"));
        }
        refuse_taken(path, again || self.force)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match folder.is_dir() {
            true => Ok(()),
            false => Err(Error::file(folder, "is not a folder", "create it, or give another path")),
        }
    }

    /// Removes the files of an earlier evaluation, which would not belong to the new ones.
    pub(super) fn clear(&self) -> Result<()> {
        let entries = std::fs::read_dir(&self.out).map_err(Error::io(&self.out, "list"))?;
        for entry in entries {
            let path = entry.map_err(Error::io(&self.out, "list"))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let stem = name.strip_suffix(".png").map(|stem| stem.trim_end_matches(|c: char| c.is_ascii_digit()));
            let picture = matches!(stem, Some("real_vs_fake" | "nearest" | "ablation" | "real_vs_fake-" | "nearest-"));
            if picture || matches!(name, "ablation.md" | RESULTS) {
                std::fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
            }
        }
        Ok(())
    }

    /// `real_vs_fake.png`, numbered from the second model on, and `nearest.png`: the samples nearest to reference images, with those
    /// images. `described` goes into the files.
    pub(super) fn panels(
        &self,
        gallery: &Gallery,
        against: &Against,
        nearest: Option<&[(usize, f64)]>,
        (count, number): (usize, usize),
        described: &str,
    ) -> Result<()> {
        let real = against.held_out.as_ref().map(|held_out| &held_out.0).or(against.gallery.as_ref());
        let Some(real) = real else { return Ok(()) };
        let path = |name: &str| match number {
            0 => self.out.join(format!("{name}.png")),
            number => self.out.join(format!("{name}-{}.png", number + 1)),
        };
        let text = [("evaluation", described)];
        if let Some(picture) = panel(gallery, real, None, count)? {
            write_png(path("real_vs_fake"), &picture, &text)?;
        }
        if let (Some(nearest), Some(reference)) = (nearest, &against.gallery)
            && let Some(picture) = panel(gallery, reference, Some(nearest), count)?
        {
            write_png(path("nearest"), &picture, &text)?;
        }
        Ok(())
    }

    pub(super) fn result(
        &self,
        job: &Job,
        (count, described): (usize, Value),
        extractor: &Extractor,
        (found, floor): (&[Measured], &[Measured]),
        against: &Against,
        warned: &[String],
    ) -> Value {
        let mut result = json!({ "name": job.name, "group": job.group, "num_samples": count });
        if let Some(guidance) = job.changes.guidance {
            result["guidance"] = json!(guidance);
        }
        let Some(fields) = result.as_object_mut() else { return result };
        fields.extend(described.as_object().cloned().unwrap_or_default());
        for measured in found {
            fields.insert(file_key(&measured.key, extractor), json!(measured.value));
            if measured.key == "inception_score_mean" {
                let deviation = measured.more["std_over_splits"].clone();
                fields.insert(file_key("inception_score_std", extractor), deviation);
            }
        }
        let floor_of = |key: &str| floor.iter().find(|other| other.key == key).map(|other| other.value);
        let metrics: Vec<Value> = found
            .iter()
            .map(|measured| {
                json!({
                    "name": measured.name, "value": measured.value, "standard_error": measured.error,
                    "bias_of_this_number": measured.bias, "floor": floor_of(&measured.key), "more": measured.more,
                })
            })
            .collect();
        fields.insert("metrics".into(), json!(metrics));
        fields.insert("extractor".into(), extractor.identity());
        fields.insert("reference".into(), against.described.clone());
        fields.insert("floor".into(), against.floor_told.clone());
        fields.insert("subset_seed".into(), json!(self.seed));
        fields.insert("warnings".into(), json!(warned));
        fields.insert("engine".into(), json!(env!("CARGO_PKG_VERSION")));
        result
    }

    /// `evaluation_results.json`: one result, or all of several.
    pub(super) fn write(&self, results: &[Value]) -> Result<()> {
        let mut all = match results {
            [one] => one.clone(),
            several => json!({ "models": several, "over_seeds": over_seeds(several) }),
        };
        all["command"] = json!(self.identity());
        write_atomically(self.out.join(RESULTS), format!("{all:#}\n").as_bytes())
    }
}

/// A metric's key in files: `fid_score`, and `fd_score` on another network, whose numbers must not be taken for InceptionV3's.
fn file_key(key: &str, extractor: &Extractor) -> String {
    let of_others = [("fid_", "fd_"), ("kid_", "kd_"), ("inception_score_", "score_")];
    let renamed = of_others.iter().find_map(|(from, to)| key.strip_prefix(from).map(|rest| format!("{to}{rest}")));
    renamed.filter(|_| !extractor.is_inception()).unwrap_or_else(|| key.into())
}
