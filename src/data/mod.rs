//! Data sets: the engine's file format, the built-in set, and readers of other formats.
//!
//! The result is always a [`Dataset`]: 8-bit images `[N, H, W, C]` with one label each, training images first. [`import()`] reads
//! pictures in folders and archives, and data sets in common formats; [`import_once()`] caches the result for the same bytes;
//! [`export()`] writes files for other tools; [`shapes()`] draws the built-in set; [`fetch()`] downloads published sets,
//! [`fetch_weights()`] a pretrained network's file, which [`place_weights()`] copies from a local file; [`resolve()`] finds the
//! set of a preset. [`Dataset::subset`] keeps some classes, and [`Dataset::stratified`] holds validation images out of the
//! training images.
//!
//! ```
//! use engine::data::{Split, shapes};
//!
//! let set = shapes(1, 200);
//! assert_eq!((set.height(), set.width(), set.channels()), (32, 32, 3));
//! assert_eq!(set.split_images(Split::Train).len(), set.split_len(Split::Train) * 32 * 32 * 3);
//! assert_eq!(set.class_names()[usize::from(set.labels()[0])], "circle");
//! ```
//!
//! The readers do not trust their input: they never panic, execute nothing, write only the requested file, and allocate no more
//! memory than the size of the input can justify.

mod archive;
mod cifar;
mod cifar_python;
mod dataset;
mod draft;
mod export;
mod fetch;
#[cfg(test)]
mod formats_tests;
#[cfg(test)]
mod fuzz_tests;
mod idx;
mod images;
mod import;
mod labels;
mod layout;
mod mat;
mod members;
mod npz;
mod numpy;
mod official;
mod once;
#[cfg(feature = "formats")]
mod parquet;
#[cfg(feature = "formats")]
mod parquet_pages;
#[cfg(test)]
mod readers_tests;
mod resolve;
mod selection;
mod shapes;
mod source;
mod stl10;
mod storage;
mod verify;
mod write;

pub use dataset::{Dataset, Parts, Source, Split};
pub use export::{ExportFormat, export};
pub use fetch::{FetchOptions, fetch, fetch_weights, place_weights};
pub use images::picture_files;
pub use import::{Colour, Format, ImportOptions, LabelKind, import, import_as_one};
pub use npz::{NpzArray, read_npz, write_npz};
pub use official::{OFFICIAL, Official, OfficialFile, OfficialWeights, WEIGHTS, WEIGHTS_DIR};
pub use once::{import_once, join_once};
pub use resolve::{BUILTIN, ResolveOptions, at_hand, resolve};
pub use shapes::{SHAPES_COUNT, shapes};
pub use verify::{ClassCount, Recognised, Verification};
