//! The diffusion transformer (Peebles and Xie 2023, *Scalable Diffusion Models with Transformers*) with grouped-query
//! attention (Ainslie et al. 2023).
//!
//! There are two ways of conditioning. `token` puts time and class into one more token before the patches:
//!
//! ```text
//! c = MLP(sinusoids of the time) + MLP(label embedding)
//! h = [c | patches(x) · W] + learned positions
//! h = h + attention(LN(h)), h = h + MLP(LN(h))                                        each block
//! y = pixels of LN(h) · W
//! ```
//!
//! `adaln_zero` shifts, scales and gates with vectors that are linear in SiLU(c) and start at zero:
//!
//! ```text
//! h = patches(x) · W + learned positions
//! β1, γ1, α1, β2, γ2, α2 = SiLU(c) · W                                                each block
//! h = h + α1 · attention(LN(h) · (1 + γ1) + β1), h = h + α2 · MLP(LN(h) · (1 + γ2) + β2)
//! y = pixels of (LN(h) · (1 + γ) + β) · W                                             W from zero
//! ```
//!
//! `tools/goldens/README.md` lists every parameter with name, shape and order.

mod block;
mod condition;
mod config;

pub(in crate::models) use block::Block;
pub(in crate::models) use condition::Condition;
pub use config::{Conditioning, DitConfig};

use crate::diffusion::Denoiser;
use crate::error::Result;
use crate::models::{Architecture, check_images};
use crate::nn::{Builder, Init, LayerNorm, Linear, Modulation, ParamId, ParameterKind, Scope};
use crate::ops::elementwise::silu;
use crate::ops::patchify::{patchify, unpatchify};
use crate::ops::tokens::tokens;
use crate::tape::Var;

/// The norm before the last linear layer.
enum FinalNorm {
    Plain(LayerNorm),
    AdalnZero(Modulation),
}

/// A diffusion transformer.
pub struct Dit {
    config: DitConfig,
    patch_embed: Linear,
    position: ParamId,
    condition: Condition,
    blocks: Vec<Block>,
    final_norm: FinalNorm,
    final_linear: Linear,
}

impl Dit {
    /// Declares the model's parameters.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for inconsistent sizes.
    pub fn new(builder: &mut Builder, config: &DitConfig) -> Result<Self> {
        config.validate()?;
        let (width, patch) = (config.hidden_dim, config.patch_dim());
        let patch_embed = Linear::new(builder, "patch_embed", patch, width);
        // Learned positions that start as a sinusoidal grid: neighbouring patches are similar from the first step.
        let grid = Init::Grid { skip: config.condition_tokens(), columns: config.patches()[1] };
        let position = builder.add("position", [config.num_tokens(), width], ParameterKind::Vector, grid);
        let condition = Condition::new(builder, config);
        let blocks = (0..config.depth).map(|number| Block::new(builder, number, config)).collect();
        let (final_norm, init) = match config.conditioning {
            Conditioning::Token => {
                (FinalNorm::Plain(LayerNorm::new(builder, "final.norm", width)), Init::xavier(width, patch))
            }
            // The zero of adaLN-zero: every block is the identity and the first prediction is zero.
            Conditioning::AdalnZero => {
                let modulation = Modulation::new(builder, "final.modulation", width, width, 2);
                (FinalNorm::AdalnZero(modulation), Init::Constant(0.0))
            }
        };
        let final_linear = Linear::with_init(builder, "final.linear", width, patch, init);
        Ok(Self { config: config.clone(), patch_embed, position, condition, blocks, final_norm, final_linear })
    }
}

impl Denoiser for Dit {
    fn image_shape(&self) -> [usize; 3] {
        self.config.interface().image_shape()
    }

    fn forward(&self, s: &Scope, x: &Var, time: &Var, labels: &Var) -> Result<Var> {
        let (config, shape) = (&self.config, self.image_shape());
        check_images("dit", x, shape)?;
        let patches = self.patch_embed.forward(s, &patchify(s, x, config.patch_size, s.precision())?)?;
        let c = self.condition.forward(s, time, labels)?;
        let (mut h, c) = match config.conditioning {
            Conditioning::Token => (tokens(s, &patches, Some(&c), &s[self.position])?, c),
            Conditioning::AdalnZero => (tokens(s, &patches, None, &s[self.position])?, silu(s, &c)?),
        };
        for block in &self.blocks {
            h = block.forward(s, &h, &c)?;
        }
        h = match &self.final_norm {
            FinalNorm::Plain(norm) => norm.forward(s, &h)?,
            FinalNorm::AdalnZero(modulation) => modulation.forward(s, &c)?.norm(s, &h, 0)?,
        };
        let y = self.final_linear.forward(s, &h)?;
        unpatchify(s, &y, config.condition_tokens(), shape, config.patch_size)
    }
}
