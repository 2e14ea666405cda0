//! Loads a model and draws with it, in ten lines.
//!
//! ```sh
//! cargo run --release --example sample -- garments.png
//! ```

use engine::picture::{Layout, grid, write_png};
use engine::pipeline::pictures;
use engine::prelude::*;

/// Draws one image of each class with the model that comes with the engine.
pub fn draw(out: &str) -> Result<()> {
    let model = Model::load("unet-fashion-small", &Context::cpu(), DType::F32)?;
    let labels: Vec<usize> = (0..model.class_names().len()).collect();
    let images = model.sample(&model.request(labels))?;
    let pictures = pictures(&images, model.image_shape())?;
    write_png(out, &grid(&pictures, Layout { columns: 5, ..Layout::default() })?, &[])
}

fn main() -> Result<()> {
    draw(&std::env::args().nth(1).unwrap_or_else(|| "garments.png".into()))
}
