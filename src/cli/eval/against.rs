//! The reference of an evaluation, and the held-out images of its floor.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::eval_paths::is_statistics;
use super::super::features::{Work, data_set};
use super::super::flags;
use super::{EvalCommand, Job};
use crate::data::Split;
use crate::error::{Error, Result};
use crate::eval::evaluation::{FeatureSet, Reference};
use crate::eval::{Extractor, Gallery, Rule};

/// The rules that a statistics file may be said to follow.
pub(super) const REFERENCE_RULES: [&str; 4] = ["pytorch-fid", "torch-fidelity", "clean-fid", "edm"];

/// The reference of all jobs.
pub(super) struct Against {
    pub reference: Option<Reference>,
    pub gallery: Option<Gallery>,
    pub classes: Option<usize>,
    /// For files: name, hash and number of images.
    pub described: Value,
    /// Real held-out images.
    pub held_out: Option<(Gallery, FeatureSet)>,
    /// For files: the held-out images' number and hash.
    pub floor_told: Value,
    /// Warnings about the reference itself.
    pub warned: Vec<String>,
}

const NONE: Against = Against {
    reference: None,
    gallery: None,
    classes: None,
    described: Value::Null,
    held_out: None,
    floor_told: Value::Null,
    warned: Vec::new(),
};

impl EvalCommand {
    /// The reference, and for its floor as many held-out images as there are samples, if there are so many.
    pub(super) fn against(
        &self,
        jobs: &[Job],
        count: usize,
        extractor: &mut Extractor,
        work: &Work,
    ) -> Result<Against> {
        if let Some(path) = &self.reference {
            if is_statistics(path) {
                let reference = Reference::of_statistics(path)?;
                let (described, warned) = self.describe_statistics(path, &reference, extractor)?;
                return Ok(Against { reference: Some(reference), described, warned, ..NONE });
            }
            if self.reference_rule.is_some() {
                let message = "applies to a statistics file, and the reference is pictures";
                return Err(Error::config("--reference-rule", message, "leave it out"));
            }
            let mut gallery = Gallery::open(path)?;
            if let Some(count) = self.features.reference_count {
                gallery = gallery.part(count, self.seed);
            }
            if gallery.len() < 2 {
                let message = format!("a reference of {} picture", gallery.len());
                return Err(Error::file(path, message, "give 2 pictures or more; all training images are usual"));
            }
            return self.of_pictures(gallery, None, extractor, work);
        }
        let model = jobs.first().and_then(|job| job.model.as_deref());
        let Some(set) = data_set(self.data.as_deref(), model, &self.folder.data_dir, self.quiet)? else {
            return Ok(NONE);
        };
        let classes = set.class_names().len();
        let held_out = set.held_out();
        let gallery = Gallery::of_set(set.clone(), Split::Train, self.features.reference_count)?;
        let mut against = self.of_pictures(gallery, Some(classes), extractor, work)?;
        if set.split_len(held_out) > 1 {
            let gallery = Gallery::of_set(set, held_out, Some(count))?;
            let of = gallery.identity()?;
            let features = work.features(&gallery, &of, gallery.len(), extractor, "held-out images")?;
            against.floor_told = json!({ "name": gallery.name, "images": gallery.len(), "sha256": of["sha256"] });
            against.held_out = Some((gallery, features));
        }
        Ok(against)
    }

    fn of_pictures(
        &self,
        gallery: Gallery,
        classes: Option<usize>,
        extractor: &mut Extractor,
        work: &Work,
    ) -> Result<Against> {
        gallery.notes.iter().for_each(|note| work.note(&format!("note: {}", flags::noted(note))));
        let of = gallery.identity()?;
        let set = work.features(&gallery, &of, gallery.len(), extractor, "reference")?;
        let (name, chosen) = (&gallery.name, &gallery.chosen);
        let described = json!({ "name": name, "images": gallery.len(), "sha256": of["sha256"], "chosen": chosen });
        let reference = Some(Reference::Pictures(Box::new(set)));
        Ok(Against { reference, gallery: Some(gallery), classes, described, ..NONE })
    }

    /// The identity that a statistics file records, and warnings where it may not fit.
    fn describe_statistics(
        &self,
        path: &Path,
        reference: &Reference,
        extractor: &Extractor,
    ) -> Result<(Value, Vec<String>)> {
        let Reference::Statistics(both) = reference else { return Ok((Value::Null, Vec::new())) };
        let statistics = &both.0;
        if statistics.mean.len() != extractor.width() {
            let message = format!(
                "statistics of {} features, and {} has {}",
                statistics.mean.len(),
                extractor.name(),
                extractor.width()
            );
            return Err(Error::file(path, message, "give statistics of the same network"));
        }
        let (given, own) = (self.reference_rule.as_deref(), statistics.rule.as_deref());
        let warned =
            rule_warning(extractor.rule(), given, own)?.map(|warning| format!("{}: {warning}", path.display()));
        if statistics.network.as_deref().is_some_and(|network| network != extractor.hash()) {
            let message = "statistics of another network's file";
            return Err(Error::file(path, message, "give statistics of the same network, or use that network"));
        }
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let file: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let described = json!({
            "name": path.display().to_string(), "images": statistics.count, "rule": given.or(own),
            "sha256": statistics.data, "file_sha256": file,
        });
        Ok((described, warned.into_iter().collect()))
    }
}

/// A warning where a file's rule may not be the extractor's. `given` is --reference-rule, `own` what the file records.
fn rule_warning(ours: Option<Rule>, given: Option<&str>, own: Option<&str>) -> Result<Option<String>> {
    let refused = |message: String| Error::config("--reference-rule", message, "leave it out");
    if let (Some(given), Some(own)) = (given, own)
        && given != own
    {
        return Err(refused(format!("{given} was given, and the file records that it is by {own}")));
    }
    let Some(ours) = ours.map(Rule::name) else {
        // Other networks have one preparation each.
        return match given {
            Some(given) => {
                Err(refused(format!("{given} prepares pictures for InceptionV3, which is not the extractor")))
            }
            None => Ok(None),
        };
    };
    Ok(match given.or(own) {
        Some(rule) if rule == ours => None,
        Some(rule) => Some(format!("the reference is by the rule of {rule}, the samples by {ours}")),
        None => Some(format!("the file does not record its rule; {ours} is assumed")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_rule_is_checked_and_told() {
        let ours = Some(Rule::TorchFidelity);
        let described = |given, own| rule_warning(ours, given, own).unwrap();
        assert_eq!(described(None, Some("torch-fidelity")), None);
        assert!(described(None, None).unwrap().contains("does not record its rule"));
        assert!(described(Some("edm"), None).unwrap().contains("by the rule of edm, the samples by torch-fidelity"));
        assert!(rule_warning(ours, Some("edm"), Some("clean-fid")).unwrap_err().to_string().contains("by clean-fid"));
        assert!(
            rule_warning(None, Some("edm"), None).is_err() && rule_warning(None, None, Some("edm")).unwrap().is_none()
        );
    }
}
