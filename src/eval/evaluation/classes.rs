//! The classes of samples in a classifier's numbering.

use crate::eval::metrics::Features;

/// The intended classes of samples, and a classifier's logits of them.
pub struct Classes<'a> {
    /// The class of each sample, an index into `names`.
    pub truth: Vec<Option<usize>>,
    /// The names of the classifier's classes, by logit.
    pub names: Vec<String>,
    /// Its logits.
    pub logits: Features<'a>,
}

/// Where each of the samples' classes is among a classifier's: by name, never by number, because a model of some classes numbers
/// them anew.
///
/// ```
/// use engine::eval::evaluation::class_places;
///
/// let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
/// let classifier = names(&["circle", "star", "heart"]);
/// assert_eq!(class_places(&names(&["heart", "star"]), &classifier), Ok(vec![2, 1]));
/// assert!(class_places(&names(&["boot"]), &classifier).unwrap_err().contains("does not know \"boot\""));
/// ```
///
/// # Errors
/// Why they cannot be compared, as a sentence.
pub fn class_places(samples: &[String], classifier: &[String]) -> Result<Vec<usize>, String> {
    if samples.is_empty() || classifier.is_empty() {
        let which = if samples.is_empty() { "the samples have" } else { "the classifier has" };
        return Err(format!("{which} no class names, so their classes cannot be matched"));
    }
    let place = |name: &String| classifier.iter().position(|known| known == name);
    let unknown: Vec<&String> = samples.iter().filter(|name| place(name).is_none()).collect();
    match unknown.as_slice() {
        [] => Ok(samples.iter().filter_map(place).collect()),
        [name] => Err(format!("the classifier does not know {name:?}, a class of the samples")),
        [name, ..] => {
            let (count, all) = (unknown.len(), samples.len());
            Err(format!("the classifier does not know {count} of the samples' {all} classes, such as {name:?}"))
        }
    }
}
