//! A transformer of linear attention with a residual decoder, for small images and few classes.
//!
//! Linear attention (Katharopoulos et al. 2020, *Transformers are RNNs*) costs the same per token at 1,024 tokens as at 64. LN_c
//! is a layer norm whose shift and scale are linear in the condition c (Perez et al. 2018, *FiLM*; Peebles and Xie 2023):
//!
//! ```text
//! c      = SiLU(MLP(sinusoids of the noise level) + label embedding)
//! h      = patches(x) · W + 2D sinusoidal positions
//! h      = h + attention(LN_c(h)), h = h + MLP(LN_c(h))           each encoder layer
//! h      = h + MLP(LN_c(h))                                       the decoder's, patch by patch
//! coarse = pixels of LN_c(h) · W
//! r      = conv(coarse) + conv(x)                                 the skip from the noisy image
//! r      = r + conv(SiLU(GN(r)))
//! y      = coarse + conv(SiLU(GN(r)))                             the last convolution begins at zero
//! ```
//!
//! `tools/goldens/README.md` lists every parameter with name, shape and order.

mod config;
mod decoder;

pub use config::LinearTransformerConfig;

use decoder::Decoder;

use crate::diffusion::Denoiser;
use crate::error::Result;
use crate::models::{Architecture, check_images};
use crate::nn::{Builder, ConstantId, Embedding, Linear, Mlp, Modulation, Scope, grid};
use crate::ops::elementwise::silu;
use crate::ops::linear::Activation;
use crate::ops::linear_attention::linear_attention;
use crate::ops::patchify::patchify;
use crate::ops::timestep_embedding::timestep_embedding;
use crate::ops::tokens::tokens;
use crate::tape::Var;

/// Linear, GELU, linear.
fn mlp(builder: &mut Builder, name: &str, config: &LinearTransformerConfig) -> Mlp {
    let width = config.hidden_dim;
    Mlp::new(builder, name, [width, config.mlp_ratio * width, width], Activation::Gelu)
}

/// An encoder layer.
struct Layer {
    modulation: Modulation,
    qkv: Linear,
    out: Linear,
    mlp: Mlp,
    heads: usize,
}

impl Layer {
    fn new(builder: &mut Builder, number: usize, config: &LinearTransformerConfig) -> Self {
        let (width, name) = (config.hidden_dim, |part: &str| format!("layers.{number}.{part}"));
        Self {
            modulation: Modulation::new(builder, &name("modulation"), config.condition_dim, width, 4),
            qkv: Linear::new(builder, &name("attn.qkv"), width, 3 * width),
            out: Linear::new(builder, &name("attn.out"), width, width),
            mlp: mlp(builder, &name("mlp"), config),
            heads: config.num_heads,
        }
    }

    /// `h` `[B, T, D]`, the condition `c` `[B, condition_dim]`.
    fn forward(&self, s: &Scope, h: &Var, c: &Var) -> Result<Var> {
        let m = self.modulation.forward(s, c)?;
        let qkv = self.qkv.forward(s, &m.norm(s, h, 0)?)?;
        let h = self.out.residual(h).forward(s, &linear_attention(s, &qkv, self.heads)?)?;
        self.mlp.residual(&h).forward(s, &m.norm(s, &h, 2)?)
    }
}

/// A transformer of linear attention.
pub struct LinearTransformer {
    config: LinearTransformerConfig,
    patch_embed: Linear,
    position: ConstantId,
    time: Mlp,
    class: Embedding,
    layers: Vec<Layer>,
    decoder: Decoder,
}

impl LinearTransformer {
    /// Declares the model's parameters.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for inconsistent sizes.
    pub fn new(builder: &mut Builder, config: &LinearTransformerConfig) -> Result<Self> {
        config.validate()?;
        let (width, condition, labels) = (config.hidden_dim, config.condition_dim, config.interface().num_labels());
        let [rows, columns] = config.patches();
        let time = [config.time_embedding_dim, condition, condition];
        Ok(Self {
            patch_embed: Linear::new(builder, "patch_embed", config.patch_dim(), width),
            position: builder.constant([config.num_tokens(), width], grid(rows, columns, width)),
            time: Mlp::new(builder, "time", time, Activation::Silu),
            class: Embedding::new(builder, "class.embedding", labels, condition),
            layers: (0..config.depth).map(|number| Layer::new(builder, number, config)).collect(),
            decoder: Decoder::new(builder, config),
            config: config.clone(),
        })
    }

    /// The condition `[B, condition_dim]`, after its SiLU.
    fn condition(&self, s: &Scope, time: &Var, labels: &Var) -> Result<Var> {
        let time = timestep_embedding(s, time, self.config.time_embedding_dim, s.precision())?;
        let class = self.class.forward(s, labels)?;
        silu(s, &self.time.residual(&class).forward(s, &time)?)
    }
}

impl Denoiser for LinearTransformer {
    fn image_shape(&self) -> [usize; 3] {
        self.config.interface().image_shape()
    }

    fn forward(&self, s: &Scope, x: &Var, time: &Var, labels: &Var) -> Result<Var> {
        check_images("linear_transformer", x, self.image_shape())?;
        let c = self.condition(s, time, labels)?;
        let patches = patchify(s, x, self.config.patch_size, s.precision())?;
        let patches = self.patch_embed.forward(s, &patches)?;
        let mut h = tokens(s, &patches, None, &s[self.position])?;
        for layer in &self.layers {
            h = layer.forward(s, &h, &c)?;
        }
        self.decoder.forward(s, &h, x, &c)
    }
}
