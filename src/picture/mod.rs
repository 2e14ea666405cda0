//! Pictures: a reader of single pictures in any common format; grids, strips, loss curves; PNG and NumPy files.
//!
//! Nothing here depends on the system: the font comes with the engine. Files are written to a temporary name, synced, and then
//! renamed, so that a reader never sees a partial file.
//!
//! ```
//! use engine::picture::{Image, Labels, Layout, labelled_grid};
//!
//! let images: Vec<Image> = (0..6u8).map(|i| Image::filled(32, 32, [40 * i, 90, 160])).collect();
//! let labels = Labels { rows: vec!["cat".into(), "dog".into()], ..Labels::default() };
//! let sheet = labelled_grid(&images, Layout { columns: 3, ..Layout::default() }, &labels)?;
//! assert!(sheet.width() > 3 * 32 && sheet.height() > 2 * 32);
//! # Ok::<(), engine::Error>(())
//! ```

mod animation;
mod fit;
mod grid;
mod image;
mod jpeg;
mod jpeg_scan;
mod npy;
mod npy_header;
#[cfg(feature = "plots")]
mod plot;
mod png;
mod read;
mod resample;
#[cfg(feature = "plots")]
mod text;
#[cfg(not(feature = "plots"))]
#[path = "no_text.rs"]
mod text;

pub use self::image::Image;
pub use self::npy::{encode_npy, write_npy};
pub use self::npy_header::NpyHeader;
pub use self::png::{encode_png, read_png, write_png};
#[cfg(feature = "formats")]
pub(crate) use self::read::guarded;
pub use self::read::{
    LONGEST_FILE, Note, Picture, PictureKind, decode_picture, header_size, is_decoding, read_picture,
};
pub use animation::{Timing as AnimationTiming, encode_apng, encode_gif, write_animation};
pub use fit::Fit;
pub use grid::{Labels, Layout, beside, grid, labelled_grid, strip};
#[cfg(feature = "plots")]
pub use plot::{LossCurve, MetricCurve, Timing, loss_curve, render_loss_curve, render_metric_curve};
