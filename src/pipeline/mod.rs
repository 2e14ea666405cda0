//! A loaded model: sampling and editing of images. This module reads no flags and prints nothing.
//!
//! A [`Model`] is loaded once, on the thread that uses it, and draws any number of times. [`Model::draw`] takes every kind of
//! drawing, notifies a [`Watch`] of each stage, with a preview on request, and stops on its error:
//!
//! ```
//! use engine::Error;
//! use engine::config::Config;
//! use engine::pipeline::{Drawing, Model, Previewed, DrawingStage};
//! use engine::tensor::{Context, DType};
//!
//! # let mut config = Config::preset("quickstart")?;
//! # let sampling = ["sampling.sampler=ddim", "sampling.num_steps=3"];
//! # for set in ["model.depth=1", "model.hidden_dim=32", "model.conditioning=token"].iter().chain(&sampling) {
//! #     config.set(set)?;
//! # }
//! # let model = Model::untrained(&config, &Context::cpu(), DType::F32, 0)?;
//! let request = model.request([3, 7]);
//! let mut previews = Vec::new();
//! let mut watch = Previewed(|stage: &DrawingStage| {
//!     previews.push(stage.preview()?.unwrap());
//!     Ok(())
//! });
//! let images = model.draw(Drawing::Sample, &request, &mut watch)?;
//! assert_eq!((images.len(), previews.len(), previews[0].len()), (2, 3, 2));
//!
//! // A watcher can stop it; the model is unchanged.
//! let mut stop = |stage: &DrawingStage| match stage.done {
//!     2 => Err(Error::Interrupted { message: "nobody waits for these images any more".into() }),
//!     _ => Ok(()),
//! };
//! assert!(model.draw(Drawing::Sample, &request, &mut stop).is_err());
//! assert_eq!(model.sample(&request)?, images);
//! # Ok::<(), engine::Error>(())
//! ```

mod batch;
mod changes;
mod choice;
mod draw;
mod editing;
mod pictures;
mod recipe;
mod request;
mod sheet;
mod task;

use std::rc::Rc;

use crate::diffusion::Denoiser;
use crate::model_file::Loaded;

pub use batch::{Batch, Joining, Ticket};
pub use changes::Changes;
pub use choice::Choice;
pub use draw::{Drawing, DrawingStage, Previewed, Watch};
pub use editing::{Ends, Inpaint, OnProgress};
pub use pictures::{free_pixels, image_values, pictures, read_fitted};
pub use recipe::{Edit, EditRecipe, Recipe, png_text};
pub use request::{SampleRequest, even_batch};
pub use sheet::{layout, sheet, strip};
pub use task::DrawingTask;

/// A model that draws, with its weights on a device.
pub type Model = Loaded<Rc<dyn Denoiser>>;
