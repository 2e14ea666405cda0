//! Class and split of pictures: from their folders, or from a label file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::dataset::Split;
use super::images::is_archive_name;
use super::labels::{Label, Labels};
use crate::error::{Error, Result};
use crate::words::counted;

/// The one class of a set without labels.
pub(super) const UNLABELLED: &str = "unlabelled";
/// The most names that a note lists.
const MAX_LISTED: usize = 1000;

/// The arrangement of all pictures.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arranged {
    /// Split and label of each; None for omitted ones.
    pub places: Vec<Option<Place>>,
    pub class_names: Vec<String>,
    pub notes: Vec<String>,
    /// Whether the source defines the held-out images.
    pub has_split: bool,
}

/// The place of one picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub split: Split,
    pub label: u16,
}

/// The split indicated by a folder's name.
pub(super) fn split_of(folder: &str) -> Option<Split> {
    match folder.to_ascii_lowercase().as_str() {
        "train" | "training" => Some(Split::Train),
        "test" | "testing" | "val" | "valid" | "validation" => Some(Split::Validation),
        _ => None,
    }
}

/// `count things: a, b and 3 more`, for notes.
pub(super) fn listed(names: &[impl AsRef<str>]) -> String {
    let rest = names.len().saturating_sub(MAX_LISTED);
    let shown: Vec<&str> = names.iter().take(MAX_LISTED).map(AsRef::as_ref).collect();
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// Arranges the pictures of `paths`, at least one, in the source `root`.
pub(super) fn arrange(root: &Path, paths: &[&str], labels: &Labels, unlabelled: bool) -> Result<Arranged> {
    if unlabelled {
        return Ok(without_labels(paths, None));
    }
    if !labels.is_empty() {
        return by_labels(root, paths, labels);
    }
    let folders: Vec<Vec<&str>> = paths.iter().map(|path| folders(path)).collect();
    by_folders(root, paths, &folders)
}

fn folders(path: &str) -> Vec<&str> {
    let mut folders: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    folders.pop();
    // A shard is not a class.
    folders.retain(|folder| !is_archive_name(folder));
    folders
}

/// All pictures in one class; splits by folder names.
fn without_labels(paths: &[&str], note: Option<String>) -> Arranged {
    let splits: Vec<Option<Split>> = paths.iter().map(|path| folders(path).into_iter().find_map(split_of)).collect();
    let place = |split: &Option<Split>| Some(Place { split: split.unwrap_or(Split::Train), label: 0 });
    Arranged {
        places: splits.iter().map(place).collect(),
        class_names: vec![UNLABELLED.into()],
        notes: note.into_iter().collect(),
        has_split: splits.iter().any(Option::is_some),
    }
}

fn by_labels(root: &Path, paths: &[&str], labels: &Labels) -> Result<Arranged> {
    let (entries, missing) = labels.of(paths);
    let known: BTreeSet<&Label> = entries.iter().flatten().filter_map(|entry| entry.label).collect();
    if known.is_empty() {
        let note = format!("{} gives no classes: the set is unlabelled", labels.names());
        return Ok(without_labels(paths, Some(note)));
    }
    let mut notes = vec![format!("classes are those of {}", labels.names())];
    let numbers: Option<Vec<u64>> = known
        .iter()
        .map(|label| if let Label::Number(n) | Label::Index(n) = label { Some(*n) } else { None })
        .collect();
    let named = labels.class_names().filter(|names| known.iter().all(|label| place_in(names, label).is_some()));
    let class_names: Vec<String> = match (named, &numbers) {
        (Some(names), _) => names.to_vec(),
        // Numbers are used as labels, unless most labels would be unused.
        (None, Some(numbers)) if numbers.last().is_some_and(|&last| last < 2 * numbers.len() as u64 + 8) => {
            (0..=numbers.last().copied().unwrap_or(0)).map(|number| number.to_string()).collect()
        }
        _ => sorted(known.iter().map(|label| class_name(label)).collect::<BTreeSet<_>>().into_iter().collect()),
    };
    check_count(root, class_names.len())?;
    let is_named = named.is_some();
    let place = |label: &Label| match is_named {
        true => place_in(&class_names, label),
        false => class_names.iter().position(|known| *known == class_name(label)).and_then(|at| u16::try_from(at).ok()),
    };
    let label_of: BTreeMap<&Label, u16> = known.iter().filter_map(|label| Some((*label, place(label)?))).collect();
    let split_at = |i: usize| {
        let said = entries[i].and_then(|entry| entry.split);
        said.or_else(|| folders(paths[i]).into_iter().find_map(split_of))
    };
    let mut left_out = Vec::new();
    let mut places = Vec::with_capacity(paths.len());
    for (i, entry) in entries.iter().enumerate() {
        let label = entry.and_then(|entry| entry.label);
        let label = label.and_then(|label| label_of.get(label).copied());
        if label.is_none() {
            left_out.push(paths[i]);
        }
        places.push(label.map(|label| Place { split: split_at(i).unwrap_or(Split::Train), label }));
    }
    if !left_out.is_empty() {
        let pictures = counted(left_out.len(), "picture");
        notes.push(format!("left out {pictures} without a label: {}", listed(&left_out)));
    }
    if !missing.is_empty() {
        let labels = counted(missing.len(), "label");
        notes.push(format!("{labels} of no picture that is there: {}", listed(&missing)));
    }
    let has_split = (0..paths.len()).any(|i| places[i].is_some() && split_at(i).is_some());
    Ok(Arranged { places, class_names, notes, has_split })
}

/// The index of a label among the classes: by name, else by number.
fn place_in(names: &[String], label: &Label) -> Option<u16> {
    let name = || {
        let name = class_name(label);
        names.iter().position(|known| *known == name)
    };
    let within = |number: u64| usize::try_from(number).ok().filter(|&number| number < names.len());
    let place = match label {
        Label::Number(number) => name().or_else(|| within(*number)),
        Label::Index(number) => within(*number),
        Label::Name(_) => name(),
    };
    place.and_then(|place| u16::try_from(place).ok())
}

fn class_name(label: &Label) -> String {
    match label {
        Label::Number(number) | Label::Index(number) => number.to_string(),
        Label::Name(name) => name.clone(),
    }
}

/// Sorts names, numbers by value.
fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort_by(|a, b| {
        let key = |name: &str| name.parse::<u64>().unwrap_or(u64::MAX);
        (key(a), a).cmp(&(key(b), b))
    });
    names
}

fn check_count(root: &Path, classes: usize) -> Result<()> {
    if classes > usize::from(u16::MAX) {
        let advice = format!("have at most {} classes, or import it with `unlabelled`", u16::MAX);
        return Err(Error::file(root, format!("has {classes} classes"), advice));
    }
    Ok(())
}

/// The common leading folders of all paths.
fn common<'a>(folders: impl Iterator<Item = &'a [&'a str]>) -> usize {
    let mut first: Option<&[&str]> = None;
    let mut length = 0;
    for folders in folders {
        match first {
            None => (first, length) = (Some(folders), folders.len()),
            Some(first) => {
                let same = first.iter().zip(folders).take(length).take_while(|(a, b)| a == b).count();
                length = same;
            }
        }
    }
    length
}

fn by_folders(root: &Path, paths: &[&str], folders: &[Vec<&str>]) -> Result<Arranged> {
    let shared = common(folders.iter().map(Vec::as_slice));
    let above = folders.first().map_or(&[][..], |folders| &folders[..shared]);
    // A single split: only `train/CLASS/…`.
    let whole = above.iter().find_map(|folder| split_of(folder));
    let below: Vec<&[&str]> = folders.iter().map(|folders| &folders[shared..]).collect();
    if below.iter().all(|below| below.is_empty()) {
        let class = above.last().filter(|folder| split_of(folder).is_none());
        return Ok(match class {
            Some(class) => Arranged { class_names: vec![(*class).to_owned()], ..without_labels(paths, None) },
            None => without_labels(paths, Some("there are no class folders: the set is unlabelled".into())),
        });
    }
    let split_below = |below: &[&str]| below.first().and_then(|folder| split_of(folder));
    let has_split = whole.is_some() || below.iter().any(|below| split_below(below).is_some());
    // A picture outside every split, or outside every class, is a stray.
    let in_splits = whole.is_none() && has_split;
    let inner: Vec<Option<(Split, &[&str])>> = below
        .iter()
        .map(|below| match (in_splits, split_below(below)) {
            (true, Some(split)) => Some((split, &below[1..])),
            (true, None) => None,
            (false, _) => Some((whole.unwrap_or(Split::Train), *below)),
        })
        .collect();
    let shared = if in_splits { common(inner.iter().flatten().map(|(_, inner)| *inner)) } else { 0 };
    if inner.iter().flatten().all(|(_, inner)| inner.len() == shared) {
        let mut arranged = without_labels(paths, Some("there are no class folders: the set is unlabelled".into()));
        let strays = leave_out(&mut arranged.places, paths, |i| inner[i].is_none());
        arranged.notes.extend(strays);
        return Ok(arranged);
    }
    let classes: Vec<Option<&str>> =
        inner.iter().map(|inner| inner.and_then(|(_, inner)| inner.get(shared)).copied()).collect();
    if let Some(deep) = (0..paths.len()).find(|&i| inner[i].is_some_and(|(_, inner)| inner.len() > shared + 1)) {
        let fine = (0..paths.len()).find(|&i| inner[i].is_some_and(|(_, inner)| inner.len() == shared + 1));
        let message = match fine {
            Some(fine) => format!("lies deeper than {}", paths[fine]),
            None => "lies in a folder of a folder, so that its class is not clear".into(),
        };
        let advice = "have all pictures in train/CLASS and test/CLASS, or all in CLASS, or take them without classes with `unlabelled`";
        return Err(Error::file(root.join(paths[deep]), message, advice));
    }
    if classes.iter().zip(paths).all(|(class, path)| is_shard(class, path)) {
        let note = "its folders are numbered parts, and there is no dataset.json: the set is unlabelled";
        return Ok(without_labels(paths, Some(note.into())));
    }
    let names: BTreeSet<&str> = classes.iter().flatten().copied().collect();
    let class_names = sorted(names.into_iter().map(String::from).collect());
    check_count(root, class_names.len())?;
    let labels: BTreeMap<&str, u16> = class_names.iter().zip(0..).map(|(name, label)| (name.as_str(), label)).collect();
    let place = |i: usize| {
        let (split, class) = (inner[i]?.0, classes[i]?);
        Some(Place { split, label: *labels.get(class)? })
    };
    let mut places: Vec<Option<Place>> = (0..paths.len()).map(place).collect();
    let notes = leave_out(&mut places, paths, |i| classes[i].is_none());
    Ok(Arranged { places, class_names, notes, has_split })
}

/// Whether a path is like those of StyleGAN's and EDM's tools: `00000/img00000000.png`.
fn is_shard(class: &Option<&str>, path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = name.strip_prefix("img").and_then(|rest| rest.split('.').next());
    class.is_some_and(|class| digits(class, 5)) && number.is_some_and(|number| digits(number, 8))
}

/// Leaves the strays out, with a note.
fn leave_out(places: &mut [Option<Place>], paths: &[&str], is_stray: impl Fn(usize) -> bool) -> Vec<String> {
    let strays: Vec<&str> = (0..paths.len()).filter(|&i| is_stray(i)).map(|i| paths[i]).collect();
    places.iter_mut().enumerate().filter(|(i, _)| is_stray(*i)).for_each(|(_, place)| *place = None);
    match strays.len() {
        0 => Vec::new(),
        count => vec![format!("left out {} outside the class folders: {}", counted(count, "picture"), listed(&strays))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arranged(paths: &[&str]) -> Arranged {
        arrange(Path::new("set"), paths, &Labels::default(), false).unwrap()
    }

    fn labels_of(arranged: &Arranged) -> Vec<String> {
        let place = |place: &Option<Place>| match place {
            Some(Place { split, label }) => {
                let split = if *split == Split::Train { "" } else { "held out " };
                format!("{split}{}", arranged.class_names[usize::from(*label)])
            }
            None => "-".into(),
        };
        arranged.places.iter().map(place).collect()
    }

    #[test]
    fn folders_tell_classes_and_splits() {
        let cases: [(&[&str], &[&str], bool); 10] = [
            (&["1.png", "2.png"], &["unlabelled", "unlabelled"], false),
            (&["set/1.png", "set/2.png"], &["set", "set"], false),
            (&["a/1.png", "b/2.png"], &["a", "b"], false),
            (&["x/y/a/1.png", "x/y/b/2.png"], &["a", "b"], false),
            (&["a/1.png", "stray.png"], &["a", "-"], false),
            (&["train/a/1.png", "test/a/2.png", "test/b/2.png"], &["a", "held out a", "held out b"], true),
            (&["./s/train/a/1.png", "./s/val/b/2.png", "s/3.png"], &["a", "held out b", "-"], true),
            (&["train/1.png", "test/2.png"], &["unlabelled", "held out unlabelled"], true),
            (&["train/images/a/1.png", "test/images/b/2.png"], &["a", "held out b"], true),
            (&["00000/img00000000.png", "00001/img00001000.png"], &["unlabelled", "unlabelled"], false),
        ];
        for (paths, expected, has_split) in cases {
            let arranged = arranged(paths);
            assert_eq!(
                (labels_of(&arranged), arranged.has_split),
                (expected.iter().map(|e| e.to_string()).collect(), has_split),
                "{paths:?}"
            );
        }
        assert_eq!(arranged(&["9/x.png", "10/x.png"]).class_names, ["9", "10"], "numbers by value");
        let note = &arranged(&["a/1.png", "stray.png"]).notes[0];
        assert_eq!(note, "left out 1 picture outside the class folders: stray.png");
        let error = arrange(Path::new("set"), &["a/1.png", "b/c/2.png"], &Labels::default(), false).unwrap_err();
        assert!(error.to_string().contains("set/b/c/2.png: lies deeper than a/1.png"), "{error}");
        let all = arrange(Path::new("set"), &["a/1.png", "b/c/2.png"], &Labels::default(), true).unwrap();
        assert_eq!(labels_of(&all), ["unlabelled", "unlabelled"]);
    }

    #[test]
    fn label_files_go_before_folders() {
        let mut labels = Labels::default();
        let table = b"file,label\n00000/1.png,2\n00000/2.png,0\n00000/4.png,1\n";
        labels.add(Path::new("set"), "labels.csv", super::super::labels::Form::Csv, table).unwrap();
        let paths = ["00000/1.png", "00000/2.png", "00000/3.png"];
        let arranged = arrange(Path::new("set"), &paths, &labels, false).unwrap();
        assert_eq!(labels_of(&arranged), ["2", "0", "-"]);
        assert_eq!(arranged.class_names, ["0", "1", "2"]);
        assert_eq!(arranged.notes[1], "left out 1 picture without a label: 00000/3.png");
        assert_eq!(arranged.notes[2], "1 label of no picture that is there: 00000/4.png");
    }
}
