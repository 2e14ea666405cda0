//! Patches and back: images `[B, H, W, C]` (f32) to token vectors `[B, T, P·P·C]` and the reverse.
//!
//! Patches are in row-major order, a patch's elements in the order \[row, column, channel\]. Each direction is the other's
//! gradient. Images are f32 (noisy inputs, predictions and losses), tokens of the dtype of activations: the conversion
//! happens on the way.

mod cases;
mod cpu;
mod cuda;

pub use cases::cases;

use crate::error::{Error, Result};
use crate::ops::run;
use crate::tape::{Destination, Tape, Var};
use crate::tensor::{Cost, DType};

const OP: &str = "patchify";

/// Sizes of both sides. `skip` tokens before the patches belong to no image.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
    patch: usize,
    skip: usize,
}

impl Sizes {
    fn new(batch: usize, [height, width, channels]: [usize; 3], patch: usize, skip: usize) -> Result<Self> {
        if patch == 0 || height % patch != 0 || width % patch != 0 {
            return Err(Error::shape(OP, format!("patches of {patch} do not tile {height}x{width} pixels")));
        }
        Ok(Self { batch, height, width, channels, patch, skip })
    }

    /// Tokens of an image, the skipped ones included.
    fn length(&self) -> usize {
        self.skip + (self.height / self.patch) * (self.width / self.patch)
    }

    fn vector(&self) -> usize {
        self.patch * self.patch * self.channels
    }

    fn image_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Where element `e` of an image lies in its sequence of tokens.
    #[inline(always)]
    fn token_index(&self, e: usize) -> usize {
        let (row, rest) = (e / (self.width * self.channels), e % (self.width * self.channels));
        let (column, channel) = (rest / self.channels, rest % self.channels);
        let token = self.skip + row / self.patch * (self.width / self.patch) + column / self.patch;
        token * self.vector() + (row % self.patch * self.patch + column % self.patch) * self.channels + channel
    }

    fn cost(&self, dtype: DType) -> Cost {
        let images = self.batch * self.image_len() * DType::F32.size();
        Cost::memory(images + self.batch * self.length() * self.vector() * dtype.size())
    }
}

/// `x` `[B, H, W, C]` f32 to `[B, T, P·P·C]` of `dtype`, with T = H/P · W/P.
///
/// # Errors
/// [`Error::Shape`] where the patches do not tile the image.
pub fn patchify(tape: &Tape, x: &Var, patch: usize, dtype: DType) -> Result<Var> {
    let &[batch, height, width, channels] = x.sizes() else {
        return Err(Error::shape(OP, format!("images {}; they are [B, H, W, C]", x.shape())));
    };
    let sizes = Sizes::new(batch, [height, width, channels], patch, 0)?;
    let y = x.context().empty([batch, sizes.length(), sizes.vector()], dtype)?;
    x.context().charge("patchify_fwd", sizes.cost(dtype));
    run!(y, to_tokens(sizes, x.tensor(), &Destination::overwrite(&y)))?;
    let mut inputs = tape.inputs(OP);
    let dx = inputs.add("x", x);
    Ok(inputs.record(y, move |backward| {
        let dy = backward.gradient();
        backward.context().charge("patchify_bwd", sizes.cost(dtype));
        let Some(dx) = backward.destination(dx)? else { return Ok(()) };
        run!(dy, to_image(sizes, dy, &dx))
    }))
}

/// `tokens` `[B, skip + T, P·P·C]` to images `[B, H, W, C]` f32, of shape `[H, W, C] = image`; the first `skip` tokens of
/// each sequence are left out, and their gradient is zero.
///
/// # Errors
/// [`Error::Shape`] where the tokens are not those of such images.
pub fn unpatchify(tape: &Tape, tokens: &Var, skip: usize, image: [usize; 3], patch: usize) -> Result<Var> {
    let sizes = Sizes::new(tokens.sizes()[0], image, patch, skip)?;
    if tokens.sizes() != [sizes.batch, sizes.length(), sizes.vector()] {
        return Err(Error::shape(OP, format!("tokens {} for images {image:?}, {skip} skipped", tokens.shape())));
    }
    let dtype = tokens.dtype();
    let [height, width, channels] = image;
    let y = tokens.context().empty([sizes.batch, height, width, channels], dtype.exact())?;
    tokens.context().charge("unpatchify_fwd", sizes.cost(dtype));
    run!(tokens, to_image(sizes, tokens.tensor(), &Destination::overwrite(&y)))?;
    let mut inputs = tape.inputs(OP);
    let dtokens = inputs.add("tokens", tokens);
    Ok(inputs.record(y, move |backward| {
        backward.context().charge("unpatchify_bwd", sizes.cost(dtype));
        let Some(dtokens) = backward.destination(dtokens)? else { return Ok(()) };
        run!(dtokens, to_tokens(sizes, backward.gradient(), &dtokens))
    }))
}
