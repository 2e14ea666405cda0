//! Images for evaluation: from files and from data sets.

use std::path::{Path, PathBuf};

use crate::data::{Dataset, ResolveOptions, Split, picture_files, resolve};
use crate::error::{Error, Result};
use crate::image_size::ImageSize;
use crate::model_file::ModelInfo;
use crate::picture::{Fit, Image};
use crate::pipeline::read_fitted;
use crate::progress::Reporter;

/// Images in [-1, 1], with their metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Images {
    /// The names of the images.
    pub names: Vec<String>,
    /// `[N, H, W, C]`.
    pub values: Vec<f32>,
    /// The class index of each image, if known.
    pub truth: Option<Vec<usize>>,
    /// The names of the data set and the split, for images of a data set.
    pub data: Option<(String, &'static str)>,
    /// How files were fitted to the model's size and channels.
    pub notes: Vec<String>,
}

impl Images {
    /// Pictures of any format, fitted to the model's size and channels; from a folder, all pictures below it.
    ///
    /// # Errors
    /// Those of [`read_fitted`]; [`Error::File`] for a folder without pictures.
    pub fn of_files(paths: &[PathBuf], info: &ModelInfo, fit: Fit, background: [u8; 3]) -> Result<Self> {
        let mut images = Self::default();
        for path in paths {
            let files = if path.is_dir() { picture_files(path)? } else { vec![path.clone()] };
            if files.is_empty() {
                return Err(Error::file(path, "has no pictures", "give a folder of pictures, or the files"));
            }
            for path in files {
                let (values, note) = read_fitted(&path, info.config.model.image_shape(), fit, background)?;
                images.values.extend(values);
                images.names.push(path.display().to_string());
                images.notes.extend(note);
            }
        }
        Ok(images)
    }

    fn extend(&mut self, set: &Dataset, index: usize) {
        self.values.extend(set.image(index).iter().map(|value| f32::from(*value) / 127.5 - 1.0));
    }
}

/// The split of a data set, as defined by its file and a model's training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Division {
    /// The held-out images of the data set file.
    Test,
    /// The validation images of the training run: as `Test`, unless data.validation_fraction held images out of the training images.
    Validation,
    /// The training images.
    Train,
}

impl Division {
    /// As text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Validation => "validation",
            Self::Train => "training",
        }
    }
}

/// The whole data set called `name`, or the model's training set; `option` is the source of `name`. A download reports to
/// `progress`.
///
/// # Errors
/// Those of [`resolve`]; [`Error::Config`] if its image size differs from the model's.
pub fn data_of(
    info: &ModelInfo,
    name: Option<&str>,
    option: &str,
    data_dir: &Path,
    progress: &Reporter,
) -> Result<Dataset> {
    let config = &info.config.data;
    let (shapes_seed, shapes_count) = (config.shapes_seed, config.shapes_count);
    let options = ResolveOptions { data_dir, shapes_seed, shapes_count, progress: progress.clone(), trains: false };
    let trained = config.path.as_ref().and_then(|path| path.to_str());
    let set = resolve(&config.name, name.or(trained), &options)?;
    let (size, channels) = (info.config.model.image_size(), info.config.model.image_channels());
    if (set.size(), set.channels()) != (size, channels) {
        let (own, models) = (set.size().with_channels(set.channels()), size.with_channels(channels));
        let message = format!("its images are {own}, the model's {models}");
        let advice = format!("give another with `{option}`");
        return Err(Error::config(format!("data set {:?}", set.name()), message, advice));
    }
    Ok(set)
}

/// Up to `count` images of a split of a data set, which has only the classes to distinguish: the first ones of each class, in
/// proportion.
///
/// # Errors
/// [`Error::Config`] if there are none.
pub fn divided(set: Dataset, info: &ModelInfo, choice: Division, count: Option<usize>) -> Result<Images> {
    let config = &info.config.data;
    let (set, split) = match (choice, config.validation_fraction) {
        (Division::Test, _) => (set.clone(), set.held_out()),
        // Split as in training. A file with three splits defines them itself.
        (_, Some(fraction)) if set.split_len(Split::Test) == 0 => {
            let divided = set.stratified(fraction, config.split_seed)?;
            (divided, if choice == Division::Train { Split::Train } else { Split::Validation })
        }
        (Division::Validation, _) => (set, Split::Validation),
        (Division::Train, _) => (set, Split::Train),
    };
    if set.split_len(split) == 0 {
        let message = format!("it has no {} images", choice.name());
        return Err(Error::config(format!("data set {:?}", set.name()), message, "give `split = train`"));
    }
    let all: Vec<usize> = set.split_indices(split).collect();
    let indices = in_proportion(&set, &all, count.unwrap_or(usize::MAX));
    let mut images = Images {
        names: Vec::with_capacity(indices.len()),
        values: Vec::with_capacity(indices.len() * set.image_bytes()),
        truth: Some(indices.iter().map(|&index| usize::from(set.labels()[index])).collect()),
        data: Some((set.name().to_string(), choice.name())),
        ..Images::default()
    };
    let first = set.split_indices(split).start;
    for index in indices {
        images.extend(&set, index);
        images.names.push(format!("{} {}", choice.name(), index - first));
    }
    Ok(images)
}

/// Up to `count` images of a split, evenly spread over it, of one of the model's classes if one is given.
///
/// # Errors
/// [`Error::Config`] if there are none, or `count` is 0.
pub fn spread(set: &Dataset, info: &ModelInfo, split: Split, class: Option<usize>, count: usize) -> Result<Images> {
    // By name: a model of some classes renumbers them.
    let names = info.class_names();
    let same = |class: usize| set.class_names().iter().position(|name| names.get(class) == Some(name));
    let wanted = class.map(|class| same(class).unwrap_or(class));
    let fits = |index: &usize| wanted.is_none_or(|wanted| usize::from(set.labels()[*index]) == wanted);
    let indices: Vec<usize> = set.split_indices(split).filter(fits).collect();
    if indices.is_empty() || count == 0 {
        let of = class.map_or(String::new(), |class| format!(" of class {}", names[class]));
        let message = format!("{} of its images{of} are requested, but it has {}", count, indices.len());
        return Err(Error::config(format!("data set {:?}", set.name()), message, "give another number or class"));
    }
    let count = count.min(indices.len());
    let mut images = Images { names: Vec::with_capacity(count), ..Images::default() };
    for k in 0..count {
        let index = indices[k * indices.len() / count];
        images.extend(set, index);
        let label = usize::from(set.labels()[index]);
        let class = set.class_names().get(label).cloned().unwrap_or_else(|| label.to_string());
        images.names.push(format!("{} {index} ({class})", set.name()));
    }
    Ok(images)
}

/// Up to `count` of some images with ascending indices: the first ones of each class, in proportion.
pub(super) fn in_proportion(set: &Dataset, images: &[usize], count: usize) -> Vec<usize> {
    let class = |index: usize| usize::from(set.labels()[index]);
    let mut totals = vec![0u32; set.class_names().len()];
    images.iter().for_each(|&index| totals[class(index)] += 1);
    let mut seen = vec![0u32; totals.len()];
    let mut order: Vec<(f64, usize)> = images
        .iter()
        .map(|&index| {
            let class = class(index);
            seen[class] += 1;
            ((f64::from(seen[class]) - 0.5) / f64::from(totals[class]), index)
        })
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut indices: Vec<usize> = order.into_iter().take(count).map(|(_, index)| index).collect();
    indices.sort_unstable();
    indices
}

/// A real image for each of the classes (None: any class), from the held-out images if there are any, in the data set's order;
/// repeated if a class has too few.
///
/// # Errors
/// [`Error::Config`] if its image size differs from `shape` `[H, W, C]`, or it lacks a class.
pub fn real_images(dataset: &Dataset, classes: &[Option<String>], shape: [usize; 3]) -> Result<Vec<Image>> {
    const PLACE: &str = "compare_with";
    let sizes = [dataset.height(), dataset.width(), dataset.channels()];
    let said = |[h, w, c]: [usize; 3]| ImageSize::new(h, w).with_channels(c);
    if sizes != shape {
        let message = format!("{} holds images of {}, the model draws {}", dataset.name(), said(sizes), said(shape));
        return Err(Error::config(PLACE, message, "give the model's training set"));
    }
    let held_out = dataset.split_len(Split::Validation) > 0;
    let indices = dataset.split_indices(if held_out { Split::Validation } else { Split::Train });
    // The images of each class, and last those of any.
    let known = dataset.class_names();
    let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); known.len()];
    for index in indices.clone() {
        if let Some(list) = of_class.get_mut(usize::from(dataset.labels()[index])) {
            list.push(index);
        }
    }
    of_class.push(indices.collect());
    let mut taken = vec![0; of_class.len()];
    classes
        .iter()
        .map(|class| {
            let list = match class {
                Some(name) => known.iter().position(|known| known == name),
                None => Some(known.len()),
            };
            let Some(list) = list.filter(|&list| !of_class[list].is_empty()) else {
                let name = class.as_deref().unwrap_or("any class");
                let message = format!("{} holds no image of {}", dataset.name(), name.escape_debug());
                return Err(Error::config(PLACE, message, format!("its classes are {}", known.join(", "))));
            };
            let index = of_class[list][taken[list] % of_class[list].len()];
            taken[list] += 1;
            Image::new(sizes[1], sizes[0], sizes[2], dataset.image(index).to_vec())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Parts, shapes};

    #[test]
    fn each_class_gives_its_share_and_more_images_keep_the_fewer() {
        // 60 of a, then 30 of b, then 10 of c; the last 4 are held out.
        let labels: Vec<u16> = [vec![0; 60], vec![1; 30], vec![2; 14]].concat();
        let set = Dataset::from_parts(Parts {
            name: "sorted".into(),
            height: 1,
            width: 1,
            channels: 1,
            class_names: ["a", "b", "c"].map(String::from).into(),
            images: vec![0; 104],
            labels,
            train: 100,
            ..Parts::default()
        })
        .unwrap();
        let counts =
            |indices: &[usize]| [0, 1, 2].map(|class| indices.iter().filter(|i| set.labels()[**i] == class).count());
        let of = |split, count| in_proportion(&set, &set.split_indices(split).collect::<Vec<_>>(), count);
        let ten = of(Split::Train, 10);
        let twenty = of(Split::Train, 20);
        assert_eq!((counts(&ten), counts(&twenty)), ([6, 3, 1], [12, 6, 2]));
        assert!(ten.iter().all(|index| twenty.contains(index)) && ten.is_sorted());
        assert_eq!(of(Split::Train, 1000), (0..100).collect::<Vec<_>>());
        assert_eq!(of(Split::Validation, 2), [100, 101]);
    }

    #[test]
    fn real_images_are_held_out_ones_of_the_asked_classes() {
        let dataset = shapes(3, 200);
        let class = |label: usize| Some(dataset.class_names()[label].clone());
        let asked: Vec<Option<String>> = (0..30).map(|k| class(k % 3)).chain([None]).collect();
        let images = real_images(&dataset, &asked, [32, 32, 3]).unwrap();
        let held_out = dataset.split_indices(Split::Validation);
        let found = |image: &Image| held_out.clone().find(|&index| dataset.image(index) == image.pixels()).unwrap();
        for (k, image) in images[..30].iter().enumerate() {
            assert_eq!(usize::from(dataset.labels()[found(image)]), k % 3);
        }
        assert_eq!(found(&images[30]), held_out.start);
        // Twenty held-out images of ten classes: each class repeats.
        assert_ne!(images[0], images[3]);
        assert!(images[3..30].contains(&images[0]));

        let fault = |classes: &[Option<String>], shape| real_images(&dataset, classes, shape).unwrap_err().to_string();
        assert!(fault(&asked, [28, 28, 1]).contains("holds images of 32x32x3, the model draws 28x28x1"));
        assert!(fault(&[Some("dog".into())], [32, 32, 3]).contains("holds no image of dog; its classes are"));
    }
}
