//! The data check: checksums, class balance, and comparison with published sets, byte for byte.

use rayon::prelude::*;

use super::dataset::{Dataset, Split};
use super::official::OFFICIAL;
use crate::error::{Error, Result};

/// Number of images of a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassCount {
    /// The class.
    pub name: String,
    /// Its training images.
    pub train: usize,
    /// Its validation images.
    pub validation: usize,
    /// Its test images.
    pub test: usize,
}

/// A published set that a data set was compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recognised {
    /// Its display name: `CIFAR-10`.
    pub title: &'static str,
    /// Official files with exactly the content of the data set.
    pub equal: Vec<&'static str>,
    /// Official files with different content.
    pub different: Vec<&'static str>,
}

/// The result of [`Dataset::verify`] for an intact data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// The classes, by label.
    pub classes: Vec<ClassCount>,
    /// SHA-256 of `images`, `labels` and `split`.
    pub sha256: [(&'static str, String); 3],
    /// The published set that it equals, in whole or in part.
    pub recognised: Option<Recognised>,
}

impl Verification {
    /// Whether all classes have the same number of images, in every split.
    pub fn is_balanced(&self) -> bool {
        let counts = |class: &ClassCount| (class.train, class.validation, class.test);
        self.classes.windows(2).all(|pair| counts(&pair[0]) == counts(&pair[1]))
    }
}

impl Dataset {
    /// Reads every byte: compares the tensors with the checksums stored at import, counts the classes, and compares the
    /// content with the published sets'.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if a tensor differs from what was written.
    pub fn verify(&self) -> Result<Verification> {
        let digests = self.digests();
        if let Some(stored) = self.stored_digests() {
            let tensors = [
                ("images", &digests.images, &stored.images),
                ("labels", &digests.labels, &stored.labels),
                ("split", &digests.split, &stored.split),
            ];
            for (name, actual, stored) in tensors {
                if actual != stored {
                    let path = self.path().unwrap_or(std::path::Path::new(self.name()));
                    let message = format!("tensor `{name}` has SHA-256 {actual}, but {stored} was written");
                    return Err(Error::file(path, message, "it is damaged: copy it again or import its source again"));
                }
            }
        }
        let sha256 = [("images", digests.images), ("labels", digests.labels), ("split", digests.split)];
        Ok(Verification { classes: self.class_counts(), sha256, recognised: self.recognise() })
    }

    /// Number of images of each class, by label.
    pub fn class_counts(&self) -> Vec<ClassCount> {
        let none = |name: &String| ClassCount { name: name.clone(), train: 0, validation: 0, test: 0 };
        let mut classes: Vec<ClassCount> = self.class_names().iter().map(none).collect();
        let mut count = |split: Split, of: fn(&mut ClassCount) -> &mut usize| {
            self.split_labels(split).iter().for_each(|&label| *of(&mut classes[usize::from(label)]) += 1);
        };
        count(Split::Train, |class| &mut class.train);
        count(Split::Validation, |class| &mut class.validation);
        count(Split::Test, |class| &mut class.test);
        classes
    }

    fn recognise(&self) -> Option<Recognised> {
        let extent = [self.height(), self.width(), self.channels()];
        OFFICIAL.iter().filter(|official| official.extent == extent).find_map(|official| {
            let found: Vec<bool> = official.contents.par_iter().map(|content| content.is_in(self)).collect();
            let named = |wanted: bool| {
                let files = official.contents.iter().zip(&found);
                files.filter(|(_, found)| **found == wanted).map(|(content, _)| content.name).collect()
            };
            let (equal, different): (Vec<_>, Vec<_>) = (named(true), named(false));
            (!equal.is_empty()).then_some(Recognised { title: official.title, equal, different })
        })
    }
}
