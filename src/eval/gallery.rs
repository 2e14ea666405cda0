//! Pictures in a fixed order, from any source: files, archives, arrays, data sets, drawn samples.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::images::in_proportion;
use super::rows::{MappedRows, hex};
use super::survey::Survey;
use crate::data::{Dataset, ImportOptions, Split, import_as_one, picture_files};
use crate::error::{Error, Result};
use crate::picture::{Image, read_picture};
use crate::rng::Permutation;

/// The background for transparent pixels.
const BACKGROUND: [u8; 3] = [255; 3];

enum Source {
    Files(Vec<PathBuf>),
    Set(Box<Dataset>, Vec<usize>),
    Drawn(MappedRows, [usize; 3], Vec<Option<usize>>),
}

/// Pictures in a fixed order, read one by one.
pub struct Gallery {
    source: Source,
    /// Its name.
    pub name: String,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// The names of the classes, by label; empty if they have none.
    pub class_names: Vec<String>,
    /// How the pictures were chosen, if they are a part: `in proportion to the classes`.
    pub chosen: Option<String>,
    /// The hash of files and what their headers tell.
    read: OnceCell<(String, Survey)>,
}

impl Gallery {
    /// The pictures at a path: all in a folder and below it (each in its own size), or those of an archive or an array, which have
    /// one size.
    ///
    /// # Errors
    /// [`Error::File`] for a folder without pictures; those of [`import_as_one`].
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if path.is_dir() {
            let files = picture_files(path)?;
            if files.is_empty() {
                return Err(Error::file(path, "has no pictures", "give a folder of pictures, an archive or an array"));
            }
            let mut notes = Vec::new();
            let nested = files.iter().filter(|file| file.parent() != Some(path)).count();
            if nested > 0 {
                notes.push(format!("{nested} of {} pictures of {name} are in subfolders; all are used", files.len()));
            }
            return Ok(Self { notes, ..Self::new(Source::Files(files), name, Vec::new()) });
        }
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            let set = Dataset::open(path)?;
            let (train, all, mut notes) = (set.split_indices(Split::Train), set.len(), Vec::new());
            if train.len() < all {
                notes.push(format!("the {} training images of {name}, which holds {all} images in all", train.len()));
            }
            let (classes, places) = (set.class_names().to_vec(), train.collect());
            return Ok(Self { notes, ..Self::new(Source::Set(Box::new(set), places), name, classes) });
        }
        let options = ImportOptions { unlabelled: true, validation: 0.0, ..ImportOptions::default() };
        let set = import_as_one(path, &options)?;
        let (notes, classes, all) = (set.notes().to_vec(), set.class_names().to_vec(), (0..set.len()).collect());
        Ok(Self { notes, ..Self::new(Source::Set(Box::new(set), all), name, classes) })
    }

    fn new(source: Source, name: String, class_names: Vec<String>) -> Self {
        Self { source, name, class_names, notes: Vec::new(), chosen: None, read: OnceCell::new() }
    }

    /// `count` of the pictures: in proportion to the classes where there are several, else at random by `seed`, in their order;
    /// unchanged if there are no more. Of a model's samples the first, whose classes are in turn.
    pub fn part(mut self, count: usize, seed: u64) -> Self {
        let all = self.len();
        if count >= all {
            return self;
        }
        let random = || {
            let order = Permutation::new(all as u32, seed, 0);
            let mut places: Vec<usize> = (0..count as u32).map(|place| order.apply(place) as usize).collect();
            places.sort_unstable();
            places
        };
        let mut how = format!("at random, seed {seed}");
        self.source = match self.source {
            Source::Files(files) => Source::Files(random().into_iter().map(|place| files[place].clone()).collect()),
            Source::Set(set, places) if self.class_names.len() > 1 => {
                how = "in proportion to the classes".into();
                let places = in_proportion(&set, &places, count);
                Source::Set(set, places)
            }
            Source::Set(set, places) => Source::Set(set, random().into_iter().map(|place| places[place]).collect()),
            Source::Drawn(rows, shape, mut labels) => {
                how = "the first".into();
                labels.truncate(count);
                Source::Drawn(rows, shape, labels)
            }
        };
        self.notes.push(format!("{count} of {all} pictures of {}, {how}", self.name));
        self.chosen = Some(how);
        self.read = OnceCell::new();
        self
    }

    /// The images of a split of a data set, or up to `count` of them, in proportion to its classes.
    ///
    /// # Errors
    /// [`Error::Config`] for a split without images.
    pub fn of_set(set: Dataset, split: Split, count: Option<usize>) -> Result<Self> {
        let all: Vec<usize> = set.split_indices(split).collect();
        if all.is_empty() {
            let message = format!("it has no images in its split {split:?}");
            return Err(Error::config(format!("data set {:?}", set.name()), message, "give another data set"));
        }
        let places = match count {
            Some(count) if count < all.len() => in_proportion(&set, &all, count),
            _ => all,
        };
        let name = format!("{} ({split:?})", set.name()).to_lowercase();
        let classes = set.class_names().to_vec();
        Ok(Self::new(Source::Set(Box::new(set), places), name, classes))
    }

    /// Drawn samples: u8 `[N, H, W, C]`, and the class of each, if any; the model's name, and the names of its classes.
    pub(super) fn drawn(
        rows: MappedRows,
        shape: [usize; 3],
        labels: Vec<Option<usize>>,
        (name, class_names): (String, Vec<String>),
    ) -> Self {
        Self::new(Source::Drawn(rows, shape, labels), name, class_names)
    }

    /// The number of pictures.
    pub fn len(&self) -> usize {
        match &self.source {
            Source::Files(files) => files.len(),
            Source::Set(_, places) => places.len(),
            Source::Drawn(_, _, labels) => labels.len(),
        }
    }

    /// Whether there are no pictures.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Picture `index`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] for a file that cannot be read.
    pub fn picture(&self, index: usize) -> Result<Image> {
        match &self.source {
            Source::Files(files) => Ok(read_picture(&files[index], BACKGROUND)?.image),
            Source::Set(set, places) => {
                Image::new(set.width(), set.height(), set.channels(), set.image(places[index]).to_vec())
            }
            Source::Drawn(rows, [height, width, channels], labels) => {
                let len = height * width * channels;
                let pixels = &rows.bytes(labels.len())[index * len..][..len];
                Image::new(*width, *height, *channels, pixels.to_vec())
            }
        }
    }

    /// The class of picture `index`, if known.
    pub fn label(&self, index: usize) -> Option<usize> {
        match &self.source {
            Source::Files(_) => None,
            Source::Set(set, places) => Some(usize::from(set.labels()[places[index]])),
            Source::Drawn(_, _, labels) => labels[index],
        }
    }

    /// The share of pictures that were JPEG files, by content, or by the record of their import.
    ///
    /// # Errors
    /// As [`Gallery::identity`].
    pub fn jpeg_share(&self) -> Result<f64> {
        Ok(match &self.source {
            Source::Files(files) => self.survey()?.map_or(0.0, |survey| survey.jpeg as f64 / files.len() as f64),
            Source::Set(set, _) => set.jpeg_share().unwrap_or(0.0),
            Source::Drawn(..) => 0.0,
        })
    }

    /// Whether the pictures are a model's samples.
    pub fn is_drawn(&self) -> bool {
        matches!(self.source, Source::Drawn(..))
    }

    /// What the headers of the files tell; None if the pictures are not files.
    ///
    /// # Errors
    /// As [`Gallery::identity`].
    pub fn survey(&self) -> Result<Option<&Survey>> {
        let Source::Files(files) = &self.source else { return Ok(None) };
        self.read(files).map(|read| Some(&read.1))
    }

    fn read(&self, files: &[PathBuf]) -> Result<&(String, Survey)> {
        if self.read.get().is_none() {
            let (mut sha, mut survey) = (Sha256::new(), Survey::default());
            for file in files {
                let bytes = std::fs::read(file).map_err(Error::io(file, "read"))?;
                sha.update((bytes.len() as u64).to_le_bytes());
                sha.update(&bytes);
                survey.add(&bytes);
            }
            let hash = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = self.read.set((hash, survey));
        }
        Ok(self.read.get().expect("just set"))
    }

    /// Identifies the pictures and their order, for a cache: a hash of the files' bytes, or of the pixels.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read.
    pub fn identity(&self) -> Result<Value> {
        let mut sha = Sha256::new();
        match &self.source {
            Source::Files(files) => {
                return Ok(json!({ "pictures": self.len(), "sha256": self.read(files)?.0 }));
            }
            Source::Set(set, places) => {
                let sizes = [set.height(), set.width(), set.channels()];
                sha.update(format!("{sizes:?}"));
                places.iter().for_each(|&place| sha.update(set.image(place)));
            }
            Source::Drawn(rows, shape, labels) => {
                sha.update(format!("{shape:?}"));
                sha.update(rows.bytes(labels.len()));
            }
        }
        let hash: String = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(json!({ "pictures": self.len(), "sha256": hash }))
    }

    /// The common size of the first pictures: height, width and channels where they agree.
    ///
    /// # Errors
    /// As [`Gallery::picture`].
    pub fn common_size(&self) -> Result<Option<[usize; 3]>> {
        let size = |image: Image| [image.height(), image.width(), image.channels()];
        let first = size(self.picture(0)?);
        for index in 1..self.len().min(64) {
            if size(self.picture(index)?) != first {
                return Ok(None);
            }
        }
        Ok(Some(first))
    }
}

/// A short key for a JSON value: the first digits of its hash.
pub fn short_hash(value: &Value) -> String {
    hex(value.to_string().as_bytes())[..12].to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::data::{Parts, shapes};
    use crate::picture::encode_npy;

    #[test]
    fn a_source_of_test_images_alone_is_a_set() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.npz");
        let images: Vec<Image> = (0..5).map(|k| Image::filled(4, 4, [k; 3])).collect();
        let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        zip.start_file("x_test.npy", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&encode_npy(&images).unwrap()).unwrap();
        zip.finish().unwrap();
        let gallery = Gallery::open(&path).unwrap();
        assert_eq!((gallery.len(), gallery.picture(3).unwrap().pixels()[0]), (5, 3));
    }

    #[test]
    fn parts_are_fair_and_have_their_own_identity() {
        let folder = tempfile::tempdir().unwrap();
        // Of class a 30 images, then of b 10; two held out.
        let parts = Parts {
            name: "sorted".into(),
            height: 1,
            width: 1,
            channels: 1,
            class_names: ["a", "b"].map(String::from).into(),
            images: (0..42).collect(),
            labels: [vec![0; 30], vec![1; 10], vec![0; 2]].concat(),
            train: 40,
            ..Parts::default()
        };
        let path = folder.path().join("sorted.safetensors");
        Dataset::from_parts(parts).unwrap().write(&path, false).unwrap();
        let open = || Gallery::open(&path).unwrap();
        assert_eq!((open().len(), open().notes.len()), (40, 1));
        let part = open().part(8, 0);
        let labels: Vec<Option<usize>> = (0..8).map(|index| part.label(index)).collect();
        assert_eq!(labels.iter().filter(|label| **label == Some(1)).count(), 2);
        assert_eq!(part.chosen.as_deref(), Some("in proportion to the classes"));
        assert_ne!(part.identity().unwrap(), open().identity().unwrap());
        assert!(open().part(40, 0).chosen.is_none());
        // Without classes at random: not the first ones, in order, the same for a seed.
        let set = shapes(0, 60);
        let images: Vec<Image> =
            (0..50).map(|index| Image::new(set.width(), set.height(), 3, set.image(index).to_vec()).unwrap()).collect();
        let path = folder.path().join("a.npy");
        std::fs::write(&path, encode_npy(&images).unwrap()).unwrap();
        let part = |seed| Gallery::open(&path).unwrap().part(10, seed).identity().unwrap();
        assert!(part(0) == part(0) && part(0) != part(1));
        let gallery = Gallery::open(&path).unwrap().part(10, 0);
        assert!((0..10).any(|index| gallery.picture(index).unwrap() != images[index]));
    }
}
