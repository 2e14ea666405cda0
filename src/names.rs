//! Lookup of classes by user input, for data sets and models.

use crate::error::{Error, nearest};

/// The class that `text` means, of `count` classes whose names may be unknown: by name, number, or name in another case if that is
/// unique.
pub fn find_class(names: &[String], count: usize, text: &str) -> Option<usize> {
    let number = || text.parse().ok().filter(|&label: &usize| label < count);
    let folded = || {
        let mut alike = (0..names.len()).filter(|&label| names[label].to_lowercase() == text.to_lowercase());
        alike.next().filter(|_| alike.next().is_none())
    };
    names.iter().position(|name| name == text).or_else(number).or_else(folded)
}

/// Names as a list for `--classes`: those with a comma are quoted.
pub fn listed<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let quoted = |name: &String| {
        if name.contains([',', '"']) { format!("\"{}\"", name.replace('"', "\"\"")) } else { name.clone() }
    };
    names.into_iter().map(quoted).collect::<Vec<_>>().join(", ")
}

/// The error for a `text` that is none of `owner`'s classes, with the nearest one and a list of all. `place` is where the text was given.
pub fn unknown_class(place: &str, owner: &str, names: &[String], count: usize, text: &str) -> Error {
    let more = if names.len() > 40 { ", …" } else { "" };
    let all = format!("{}{more}, or a number below {count}", listed(names.iter().take(40)));
    let advice = match nearest(text, names.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {near}? Known: {all}"),
        None => format!("use one of {all}"),
    };
    let short: String = text.chars().take(60).collect();
    Error::config(place, format!("{owner} has no class `{}`", short.escape_debug()), advice)
}
