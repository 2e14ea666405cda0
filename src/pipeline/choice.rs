//! Chooses the classes of the images to draw.

use crate::error::{Error, Result};
use crate::model_file::ModelInfo;

/// Most images of one request.
const MOST: usize = 10_000_000;

/// The chosen images, which determine their layout.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// This many of each class, class by class.
    Each(usize),
    /// The classes in turn.
    InTurn,
    /// One label.
    One,
}

impl Choice {
    /// The choice, and the label of each image. `class` is a name, a number, `none` or `all`; without it all classes are used in
    /// turn. `count` is the number of images, with `all` per class; without it one of each class in turn, else
    /// `sampling.count_per_class`.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown class, no images, or too many.
    pub fn new(info: &ModelInfo, class: Option<&str>, count: Option<usize>) -> Result<(Self, Vec<usize>)> {
        if count == Some(0) {
            return Err(Error::config("count", "0 images", "give 1 or more"));
        }
        let classes = info.class_names().len();
        let usual = info.config.sampling.count_per_class;
        let (choice, count, label): (Self, usize, Box<dyn Fn(usize) -> usize>) = match class {
            None if classes == 0 => (Self::One, count.unwrap_or(usual), Box::new(|_| 0)),
            None => (Self::InTurn, count.unwrap_or(classes.min(100)), Box::new(move |k| k % classes)),
            Some("all") if classes > 0 => {
                let each = count.unwrap_or(usual);
                (Self::Each(each), each.saturating_mul(classes), Box::new(move |k| k / each))
            }
            Some(class) => {
                let label = info.class_label(class)?;
                (Self::One, count.unwrap_or(usual), Box::new(move |_| label))
            }
        };
        if count > MOST {
            return Err(Error::config("count", format!("{count} images at once"), "give up to 10000000 in all"));
        }
        Ok((choice, (0..count).map(label).collect()))
    }
}
