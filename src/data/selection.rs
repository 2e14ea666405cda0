//! Parts of a data set: some of its classes, and validation images held out of its training images.

use std::sync::Arc;

use super::dataset::{Dataset, Parts, Split};
use super::storage::Storage;
use crate::error::{Error, Result};
use crate::names::{find_class, unknown_class};
use crate::rng::{Philox, Purpose};

/// The source of the classes, for errors.
const CLASSES: &str = "data.classes";
/// The source of the share, for errors.
const FRACTION: &str = "data.validation_fraction";

impl Dataset {
    /// The label of a class given by name or number; case matters only if names differ by case alone, as for a model's `--class`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] with the nearest class and a list of all.
    pub fn class_label(&self, text: &str) -> Result<usize> {
        let (names, count) = (self.class_names(), self.class_names().len());
        find_class(names, count, text).ok_or_else(|| unknown_class(CLASSES, self.name(), names, count, text))
    }

    /// Only the images of some classes, of every split. Labels are renumbered: the first given class is 0. No pixel is copied.
    ///
    /// ```
    /// let set = engine::data::shapes(0, 100).subset(&["Star".into(), "circle".into()])?;
    /// assert_eq!((set.len(), set.class_names()), (20, ["star", "circle"].map(String::from).as_slice()));
    /// assert_eq!(set.labels()[..2], [1, 0]);
    /// # Ok::<(), engine::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for no class, an unknown (see [`Dataset::class_label`]) or repeated class, a class without training
    /// images, or a split that becomes empty.
    pub fn subset(&self, classes: &[String]) -> Result<Self> {
        if classes.is_empty() {
            return Err(Error::config(CLASSES, "the list of classes is empty", "give one or more, as in cat,dog"));
        }
        // The new label of each old one.
        let mut renumbered = vec![None; self.class_names().len()];
        let mut names = Vec::with_capacity(classes.len());
        for (new, class) in classes.iter().enumerate() {
            let label = self.class_label(class)?;
            let name = &self.class_names()[label];
            if renumbered[label].replace(new as u16).is_some() {
                return Err(Error::config(CLASSES, format!("{name} is given twice"), "give each class once"));
            }
            names.push(name.clone());
        }
        if names == self.class_names() {
            return Ok(self.clone());
        }
        let kept = |split: Split| -> Vec<usize> {
            self.split_indices(split).filter(|&i| renumbered[usize::from(self.labels()[i])].is_some()).collect()
        };
        let splits = [Split::Train, Split::Validation, Split::Test].map(kept);
        let trained = |label: u16| splits[0].iter().any(|&i| renumbered[usize::from(self.labels()[i])] == Some(label));
        if let Some(bare) = (0..names.len()).find(|&label| !trained(label as u16)) {
            let message = format!("{} has no training images of {}", self.name(), names[bare]);
            return Err(Error::config(CLASSES, message, "leave that class out"));
        }
        for (split, indices, what) in [(Split::Validation, &splits[1], "validation"), (Split::Test, &splits[2], "test")]
        {
            if indices.is_empty() && self.split_len(split) > 0 {
                let message = format!("{} has no {what} images of {}", self.name(), names.join(", "));
                return Err(Error::config(CLASSES, message, "give further classes"));
            }
        }
        let note = format!("the subset of {} of {} classes: {}", names.len(), renumbered.len(), names.join(", "));
        let (mut subset, storage) = self.selected(&splits, note);
        subset.class_names = names;
        for label in &mut subset.labels {
            *label = renumbered[usize::from(*label)].unwrap_or_default();
        }
        self.derived(subset, storage)
    }

    /// Splits the training images into training and validation images, with the same share of each class; previously held-out
    /// images become [`Split::Test`], which training never sees.
    ///
    /// Of the n training images of a class, round(`fraction`·n), halves up, are held out: those with the smallest random numbers,
    /// where the random number of the class's k-th image is Philox's for `seed`, the class's name and k. So the choice is the same
    /// on every machine, and in every [subset](Dataset::subset) with the class. The images keep their order within each split.
    ///
    /// ```
    /// use engine::data::{Split, shapes};
    ///
    /// let set = shapes(0, 1000).stratified(0.1, 7)?;
    /// assert_eq!([Split::Train, Split::Validation, Split::Test].map(|split| set.split_len(split)), [810, 90, 100]);
    /// # Ok::<(), engine::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a fraction outside (0, 1), a set that already has test images, or a class that would be left without
    /// training or without validation images.
    pub fn stratified(&self, fraction: f64, seed: u64) -> Result<Self> {
        if !(fraction > 0.0 && fraction < 1.0) {
            let message = format!("{fraction} is outside (0, 1)");
            return Err(Error::config(FRACTION, message, "0.1 is usual, null holds nothing out"));
        }
        if self.split_len(Split::Test) > 0 {
            let message = format!("{} has training, validation and test images already", self.name());
            return Err(Error::config(FRACTION, message, "set it to null"));
        }
        let philox = Philox::new(seed);
        let mut by_class = vec![Vec::new(); self.class_names().len()];
        for i in self.split_indices(Split::Train) {
            by_class[usize::from(self.labels()[i])].push(i);
        }
        let mut held = vec![false; self.split_len(Split::Train)];
        for (name, members) in self.class_names().iter().zip(&by_class) {
            let count = (members.len() as f64 * fraction).round() as usize;
            let bare = match count {
                0 => "validation",
                count if count == members.len() => "training",
                _ => "",
            };
            if !bare.is_empty() {
                let (n, images) = (members.len(), if members.len() == 1 { "image" } else { "images" });
                let message =
                    format!("{fraction} of the {n} training {images} of {name} leaves it without {bare} images");
                let advice = "give another share, or leave the class out with data.classes";
                return Err(Error::config(FRACTION, message, advice));
            }
            let class = crc32c::crc32c(name.as_bytes());
            let mut order: Vec<([u32; 4], usize)> = (members.iter().enumerate())
                .map(|(k, &i)| (philox.bits4(0, k as u32, class, Purpose::Split), i))
                .collect();
            order.sort_unstable();
            order[..count].iter().for_each(|&(_, i)| held[i] = true);
        }
        let (validation, train): (Vec<usize>, Vec<usize>) = self.split_indices(Split::Train).partition(|&i| held[i]);
        let note = format!(
            "{} of {} training images are held out for validation (share {fraction}, seed {seed})",
            validation.len(),
            held.len()
        );
        let (parts, storage) =
            self.selected(&[train, validation, self.split_indices(Split::Validation).collect()], note);
        self.derived(parts, storage)
    }

    /// The images of several sets, split by split, in this order. Classes with the same name are merged.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for no set, and for images of different sizes or channels.
    pub fn joined(sets: &[Self]) -> Result<Self> {
        let [first, rest @ ..] = sets else {
            return Err(Error::config("data", "no data set is named", "give one or more"));
        };
        if rest.is_empty() {
            return Ok(first.clone());
        }
        let extent = |set: &Self| (set.size(), set.channels());
        if let Some(other) = rest.iter().find(|set| extent(set) != extent(first)) {
            let said = |set: &Self| set.size().with_channels(set.channels());
            let message =
                format!("{} has images of {}, {} of {}", other.name(), said(other), first.name(), said(first));
            return Err(Error::config("data", message, "import them in one size with `resize` and `color`"));
        }
        let mut class_names: Vec<String> = Vec::new();
        let mut renumbered = Vec::with_capacity(sets.len());
        for set in sets {
            let label = |name: &String| {
                let known = class_names.iter().position(|known| known == name);
                known.unwrap_or_else(|| {
                    class_names.push(name.clone());
                    class_names.len() - 1
                }) as u16
            };
            renumbered.push(set.class_names().iter().map(label).collect::<Vec<u16>>());
        }
        let mut parts = Parts { class_names, images: Vec::new(), labels: Vec::new(), ..first.0.parts.clone() };
        let mut places = Vec::with_capacity(sets.iter().map(Self::len).sum());
        for split in [Split::Train, Split::Validation, Split::Test] {
            for ((number, set), renumbered) in (0..).zip(sets).zip(&renumbered) {
                places.extend(set.split_indices(split).map(|index| (number, index as u32)));
                parts.labels.extend(set.split_labels(split).iter().map(|&label| renumbered[usize::from(label)]));
            }
        }
        let sum = |split| sets.iter().map(|set| set.split_len(split)).sum();
        (parts.train, parts.test) = (sum(Split::Train), sum(Split::Test));
        let named: Vec<String> = sets.iter().map(|set| format!("{} ({} images)", set.name(), set.len())).collect();
        parts.name = sets.iter().map(Self::name).collect::<Vec<_>>().join("+");
        parts.sources = sets.iter().flat_map(Self::sources).cloned().collect();
        parts.notes = sets.iter().flat_map(Self::notes).cloned().collect();
        parts.notes.push(format!("joined of {}", named.join(" and ")));
        Self::from_storage(parts, Storage::of(sets.to_vec(), places))
    }

    /// Applies the `data` section of a configuration to a set: [`Dataset::subset`] if `classes` is not empty, then
    /// [`Dataset::stratified`] if there is a `fraction`.
    ///
    /// # Errors
    ///
    /// Those of both.
    pub fn arranged(&self, classes: &[String], fraction: Option<f64>, seed: u64) -> Result<Self> {
        let set = if classes.is_empty() { self.clone() } else { self.subset(classes)? };
        fraction.map_or_else(|| Ok(set.clone()), |fraction| set.stratified(fraction, seed))
    }

    /// The held-out images of the source: the test images if there are any, else the validation images.
    pub fn held_out(&self) -> Split {
        if self.split_len(Split::Test) > 0 { Split::Test } else { Split::Validation }
    }

    /// The images at the indices of each split, with an additional note.
    fn selected(&self, splits: &[Vec<usize>; 3], note: String) -> (Parts, Storage) {
        let order = || splits.iter().flatten();
        let places = order().map(|&i| (0, i as u32)).collect();
        let labels = order().map(|&i| self.labels()[i]).collect();
        let (train, test) = (splits[0].len(), splits[2].len());
        let notes = self.notes().iter().cloned().chain([note]).collect();
        let parts = &self.0.parts;
        let parts = Parts {
            name: parts.name.clone(),
            class_names: parts.class_names.clone(),
            sources: parts.sources.clone(),
            images: Vec::new(),
            labels,
            train,
            test,
            notes,
            ..*parts
        };
        (parts, Storage::of(vec![self.clone()], places))
    }

    /// A set derived from this one, which comes from the same file.
    fn derived(&self, parts: Parts, storage: Storage) -> Result<Self> {
        let mut set = Self::from_storage(parts, storage)?;
        if let Some(inner) = Arc::get_mut(&mut set.0) {
            inner.path.clone_from(&self.0.path);
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shapes;

    /// 30 training images of a, 20 of B, 1 of c; 4 and 2 held-out ones of a and B, in turns; image i is the byte i.
    fn small() -> Parts {
        let counted = |counts: &[usize]| -> Vec<u16> {
            let most = counts.iter().max().copied().unwrap_or(0);
            (0..most).flat_map(|k| (0..counts.len()).filter(move |&c| k < counts[c]).map(|c| c as u16)).collect()
        };
        let labels = [counted(&[30, 20, 1]), counted(&[4, 2])].concat();
        Parts {
            name: "small".into(),
            height: 1,
            width: 1,
            channels: 1,
            class_names: ["a", "B", "c"].map(String::from).into(),
            images: (0..labels.len() as u8).collect(),
            labels,
            train: 51,
            notes: vec!["made".into()],
            ..Parts::default()
        }
    }

    fn set() -> Dataset {
        Dataset::from_parts(small()).unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    fn sizes(set: &Dataset) -> [usize; 3] {
        [Split::Train, Split::Validation, Split::Test].map(|split| set.split_len(split))
    }

    fn fault(result: Result<Dataset>) -> String {
        let text = result.unwrap_err().to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    }

    #[test]
    fn a_subset_is_renumbered_in_the_order_given_and_keeps_its_images() {
        let whole = set();
        let subset = whole.subset(&names(&["b", "A"])).unwrap();
        assert_eq!((subset.class_names(), sizes(&subset)), (names(&["B", "a"]).as_slice(), [50, 6, 0]));
        for i in 0..subset.len() {
            let was = usize::from(subset.image(i)[0]);
            assert_eq!(subset.labels()[i], 1 - whole.labels()[was], "image {i}, which was {was}");
            assert_eq!(i < 50, was < 51);
            assert!(i == 0 || was > usize::from(subset.image(i - 1)[0]), "the order is kept");
        }
        assert_eq!(subset.notes(), ["made", "the subset of 2 of 3 classes: B, a"]);
        // By number, and all of them: nothing is copied.
        assert_eq!(whole.subset(&names(&["1", "0"])).unwrap().labels(), subset.labels());
        assert_eq!(whole.subset(&names(&["a", "b", "C"])).unwrap().images().as_ptr(), whole.images().as_ptr());
    }

    #[test]
    fn a_name_is_found_in_its_own_case_first() {
        let mut parts = small();
        parts.class_names = names(&["a", "A", "2"]);
        let set = Dataset::from_parts(parts).unwrap();
        assert_eq!([set.class_label("a"), set.class_label("A")].map(Result::unwrap), [0, 1]);
        assert_eq!([set.class_label("2"), set.class_label("1")].map(Result::unwrap), [2, 1]);
    }

    #[test]
    fn a_bad_subset_is_told_in_one_line() {
        let shapes = shapes(0, 40);
        let told = fault(shapes.subset(&names(&["circle", "Stripe"])));
        let expected =
            "data.classes: shapes has no class `Stripe`; did you mean stripes? Known: circle, ring, square, ";
        assert!(told.starts_with(expected), "{told}");
        assert!(fault(shapes.subset(&names(&["10"]))).contains("no class `10`; use one of circle, "));
        let told = fault(shapes.subset(&names(&["ring", "star", "RING"])));
        assert_eq!(told, "data.classes: ring is given twice; give each class once");
        assert!(fault(shapes.subset(&[])).starts_with("data.classes: the list of classes is empty"));
        let told = fault(set().subset(&names(&["c"])));
        assert_eq!(told, "data.classes: small has no validation images of c; give further classes");
        let mut parts = small();
        (parts.labels[2], parts.class_names) = (1, names(&["a", "B", "c"]));
        let told = fault(Dataset::from_parts(parts).unwrap().subset(&names(&["a", "c"])));
        assert_eq!(told, "data.classes: small has no training images of c; leave that class out");
        // A set without held-out images needs none of a class.
        let unsplit = Parts { train: 57, ..small() };
        assert_eq!(sizes(&Dataset::from_parts(unsplit).unwrap().subset(&names(&["c"])).unwrap()), [1, 0, 0]);
    }

    #[test]
    fn every_class_is_divided_in_the_same_share() {
        let whole = set().subset(&names(&["a", "b"])).unwrap();
        let divided = whole.stratified(0.125, 3).unwrap();
        // round(30/8) = 4, round(20/8 = 2.5) = 3.
        assert_eq!((sizes(&divided), divided.held_out()), ([43, 7, 6], Split::Test));
        assert_eq!((whole.held_out(), sizes(&whole)), (Split::Validation, [50, 6, 0]));
        let of = |label: u16| divided.split_labels(Split::Validation).iter().filter(|&&l| l == label).count();
        assert_eq!([of(0), of(1)], [4, 3]);
        assert_eq!(divided.split_images(Split::Test), whole.split_images(Split::Validation));
        let counts: Vec<_> = divided.class_counts().iter().map(|c| [c.train, c.validation, c.test]).collect();
        assert_eq!(counts, [[26, 4, 4], [17, 3, 2]]);
        // Each image occurs once, in order within each split, with its label.
        let mut seen = divided.images().to_vec();
        seen.sort();
        let mut all = whole.images().to_vec();
        all.sort();
        assert_eq!(seen, all);
        for split in [Split::Train, Split::Validation, Split::Test] {
            assert!(divided.split_images(split).is_sorted());
        }
        let label = |set: &Dataset, byte: u8| (0..set.len()).find(|&i| set.image(i) == [byte]).map(|i| set.labels()[i]);
        assert!((0..57).all(|byte| label(&divided, byte) == label(&whole, byte)));
    }

    #[test]
    fn the_choice_is_of_the_seed_and_the_class_alone() {
        let held = |set: &Dataset, seed: u64, byte: &dyn Fn(u16) -> bool| -> Vec<u8> {
            let set = set.stratified(0.2, seed).unwrap();
            set.split_indices(Split::Validation).filter(|&i| byte(set.labels()[i])).map(|i| set.image(i)[0]).collect()
        };
        let (ab, ba) = (set().subset(&names(&["a", "b"])).unwrap(), set().subset(&names(&["b", "a"])).unwrap());
        let a = set().subset(&names(&["a"])).unwrap();
        let first = held(&ab, 5, &|label| label == 0);
        assert_eq!((held(&ba, 5, &|label| label == 1), held(&a, 5, &|_| true)), (first.clone(), first.clone()));
        assert_ne!(held(&ab, 6, &|label| label == 0), first);
        // Expected values from an independent implementation in Python.
        assert_eq!(held(&a, 0, &|_| true), [7, 13, 31, 41, 44, 49]);
    }

    #[test]
    fn a_bad_split_is_told_in_one_line() {
        let pair = set().subset(&names(&["a", "b"])).unwrap();
        for fraction in [0.0, 1.0, -1.0, f64::NAN, f64::INFINITY] {
            let told = fault(pair.stratified(fraction, 0));
            assert!(told.starts_with("data.validation_fraction: ") && told.contains("is outside (0, 1)"), "{told}");
        }
        let told = fault(set().stratified(0.25, 0));
        assert!(told.contains("0.25 of the 1 training image of c leaves it without validation images; give"), "{told}");
        let told = fault(pair.stratified(0.98, 0));
        assert!(told.contains("0.98 of the 20 training images of B leaves it without training images"), "{told}");
        let told = fault(pair.stratified(0.5, 0).unwrap().stratified(0.5, 0));
        assert!(told.contains("small has training, validation and test images already"), "{told}");
    }

    #[test]
    fn three_splits_go_through_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("divided.safetensors");
        let divided = set().arranged(&names(&["a", "b"]), Some(0.1), 1).unwrap();
        divided.write(&path, false).unwrap();
        let read = Dataset::open(&path).unwrap();
        assert_eq!((sizes(&read), read.labels()), ([45, 5, 6], divided.labels()));
        assert_eq!((read.images(), read.notes()), (divided.images(), divided.notes()));
        read.verify().unwrap();
        // A subset of it comes from the same file, and loses its last split if that becomes empty.
        let subset = read.subset(&names(&["b"])).unwrap();
        assert_eq!((sizes(&subset), subset.path()), ([18, 2, 2], Some(path.as_path())));
        assert!(subset.verify().is_ok());
    }
}
