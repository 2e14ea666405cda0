//! A transformer of linear attention with a residual decoder, for small images and few classes.
//!
//! Linear attention (Katharopoulos et al. 2020, *Transformers are RNNs*) costs as much per token at 1,024 tokens as at 64. With
//! LN_c a layer norm whose shift and scale are linear in the condition c (Perez et al. 2018, *FiLM*; Peebles and Xie 2023):
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
//! `tools/goldens/README.md` lists every parameter; its names, shapes and order are these.

mod config;

pub use config::LinearTransformerConfig;

use crate::diffusion::Denoiser;
use crate::error::{Error, Result};
use crate::nn::{Builder, ConstantId, Conv2d, Embedding, GroupNorm, Init, LayerNorm, Linear, Scope, grid};
use crate::ops::conv2d::Geometry;
use crate::ops::elementwise::{cast, silu};
use crate::ops::layer_norm::{Affine, layer_norm};
use crate::ops::linear::Activation;
use crate::ops::linear_attention::linear_attention;
use crate::ops::patchify::{patchify, unpatchify};
use crate::ops::timestep_embedding::timestep_embedding;
use crate::ops::tokens::tokens;
use crate::tape::Var;
use crate::tensor::DType;

const ZERO: Init = Init::Constant(0.0);

/// Shift and scale of `count` layer norms, linear in the condition, from zero: every norm begins as a plain one.
struct Modulation {
    linear: Linear,
    width: usize,
}

impl Modulation {
    fn new(builder: &mut Builder, name: &str, config: &LinearTransformerConfig, count: usize) -> Self {
        let width = config.hidden_dim;
        let linear = Linear::with_init(builder, name, config.condition_dim, 2 * count * width, ZERO);
        Self { linear, width }
    }

    fn forward(&self, s: &Scope, condition: &Var) -> Result<Var> {
        self.linear.forward(s, condition, Activation::None, None)
    }

    /// Norm `number` of those that `matrix`, the result of [`Modulation::forward`], modulates.
    fn norm(&self, s: &Scope, matrix: &Var, number: usize, x: &Var) -> Result<Var> {
        let shift = 2 * number * self.width;
        layer_norm(s, x, Affine::Modulation { matrix, shift, scale: shift + self.width }, LayerNorm::EPSILON)
    }
}

/// Linear, GELU, linear, plus the residual.
struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    fn new(builder: &mut Builder, name: &str, config: &LinearTransformerConfig) -> Self {
        let (width, hidden) = (config.hidden_dim, config.mlp_ratio * config.hidden_dim);
        Self {
            fc1: Linear::new(builder, &format!("{name}.fc1"), width, hidden),
            fc2: Linear::new(builder, &format!("{name}.fc2"), hidden, width),
        }
    }

    fn forward(&self, s: &Scope, x: &Var, residual: &Var) -> Result<Var> {
        let hidden = self.fc1.forward(s, x, Activation::Gelu, None)?;
        self.fc2.forward(s, &hidden, Activation::None, Some(residual))
    }
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
            modulation: Modulation::new(builder, &name("modulation"), config, 2),
            qkv: Linear::new(builder, &name("attn.qkv"), width, 3 * width),
            out: Linear::new(builder, &name("attn.out"), width, width),
            mlp: Mlp::new(builder, &name("mlp"), config),
            heads: config.num_heads,
        }
    }

    fn forward(&self, s: &Scope, x: &Var, condition: &Var) -> Result<Var> {
        let matrix = self.modulation.forward(s, condition)?;
        let normed = self.modulation.norm(s, &matrix, 0, x)?;
        let qkv = self.qkv.forward(s, &normed, Activation::None, None)?;
        let attended = linear_attention(s, &qkv, self.heads)?;
        let x = self.out.forward(s, &attended, Activation::None, Some(x))?;
        let normed = self.modulation.norm(s, &matrix, 1, &x)?;
        self.mlp.forward(s, &normed, &x)
    }
}

/// The residual decoder: a patch MLP, then convolutions over the whole image.
struct Decoder {
    modulation: Modulation,
    mlp: Mlp,
    head: Linear,
    conv_coarse: Conv2d,
    conv_noisy: Conv2d,
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(builder: &mut Builder, config: &LinearTransformerConfig) -> Self {
        let (colours, refine, groups) = (config.image_channels, config.refine_channels, config.norm_groups);
        Self {
            modulation: Modulation::new(builder, "decoder.modulation", config, 2),
            mlp: Mlp::new(builder, "decoder.mlp", config),
            head: Linear::new(builder, "decoder.head", config.hidden_dim, config.patch_dim()),
            conv_coarse: Conv2d::new(builder, "decoder.conv_coarse", colours, refine, 3),
            conv_noisy: Conv2d::new(builder, "decoder.conv_noisy", colours, refine, 3),
            norm1: GroupNorm::new(builder, "decoder.norm1", refine, groups, true),
            conv1: Conv2d::new(builder, "decoder.conv1", refine, refine, 3),
            norm2: GroupNorm::new(builder, "decoder.norm2", refine, groups, true),
            conv_out: Conv2d::with_init(builder, "decoder.conv_out", refine, colours, 3, ZERO),
        }
    }

    /// `tokens` `[B, T, D]`, `noisy` `[B, H, W, C]` f32: the prediction `[B, H, W, C]`, f32.
    fn forward(
        &self,
        s: &Scope,
        config: &LinearTransformerConfig,
        tokens: &Var,
        noisy: &Var,
        condition: &Var,
    ) -> Result<Var> {
        let matrix = self.modulation.forward(s, condition)?;
        let normed = self.modulation.norm(s, &matrix, 0, tokens)?;
        let x = self.mlp.forward(s, &normed, tokens)?;
        let normed = self.modulation.norm(s, &matrix, 1, &x)?;
        let patches = self.head.forward(s, &normed, Activation::None, None)?;
        let shape = [config.image_size, config.image_size, config.image_channels];
        let coarse = cast(s, &unpatchify(s, &patches, 0, shape, config.patch_size)?, s.precision())?;

        let noisy = cast(s, noisy, s.precision())?;
        let conv =
            |conv: &Conv2d, x: &Var, residual: Option<&Var>| conv.forward(s, x, Geometry::same(3), None, residual);
        let mut r = conv(&self.conv_noisy, &noisy, None)?;
        r = conv(&self.conv_coarse, &coarse, Some(&r))?;
        let normed = self.norm1.forward(s, &r, None, None)?;
        r = conv(&self.conv1, &normed, Some(&r))?;
        let normed = self.norm2.forward(s, &r, None, None)?;
        cast(s, &conv(&self.conv_out, &normed, Some(&coarse))?, DType::F32)
    }
}

/// A transformer of linear attention.
pub struct LinearTransformer {
    config: LinearTransformerConfig,
    patch_embed: Linear,
    position: ConstantId,
    time_fc1: Linear,
    time_fc2: Linear,
    class_embedding: Embedding,
    layers: Vec<Layer>,
    decoder: Decoder,
}

impl LinearTransformer {
    /// Declares the model's parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that do not fit together.
    pub fn new(builder: &mut Builder, config: &LinearTransformerConfig) -> Result<Self> {
        config.validate()?;
        let (width, condition, tokens) = (config.hidden_dim, config.condition_dim, config.num_tokens());
        let columns = config.image_size / config.patch_size;
        Ok(Self {
            patch_embed: Linear::new(builder, "patch_embed", config.patch_dim(), width),
            position: builder.constant([tokens, width], grid(columns, columns, width)),
            time_fc1: Linear::new(builder, "time.fc1", config.time_embedding_dim, condition),
            time_fc2: Linear::new(builder, "time.fc2", condition, condition),
            class_embedding: Embedding::new(builder, "class.embedding", config.num_labels(), condition),
            layers: (0..config.depth).map(|number| Layer::new(builder, number, config)).collect(),
            decoder: Decoder::new(builder, config),
            config: config.clone(),
        })
    }

    /// The condition `[B, condition_dim]`, after its SiLU.
    fn condition(&self, s: &Scope, time: &Var, labels: &Var) -> Result<Var> {
        let time = timestep_embedding(s, time, self.config.time_embedding_dim, s.precision())?;
        let time = self.time_fc1.forward(s, &time, Activation::Silu, None)?;
        let class = self.class_embedding.forward(s, labels)?;
        silu(s, &self.time_fc2.forward(s, &time, Activation::None, Some(&class))?)
    }
}

impl Denoiser for LinearTransformer {
    fn image_shape(&self) -> [usize; 3] {
        [self.config.image_size, self.config.image_size, self.config.image_channels]
    }

    fn forward(&self, s: &Scope, x: &Var, time: &Var, labels: &Var) -> Result<Var> {
        let (config, shape) = (&self.config, self.image_shape());
        if x.sizes().len() != 4 || x.sizes()[1..] != shape {
            let message = format!("images {} for a model of {shape:?}", x.shape());
            return Err(Error::shape("linear_transformer", message));
        }
        let condition = self.condition(s, time, labels)?;
        let patches = patchify(s, x, config.patch_size, s.precision())?;
        let patches = self.patch_embed.forward(s, &patches, Activation::None, None)?;
        let mut h = tokens(s, &patches, None, &s[self.position])?;
        for layer in &self.layers {
            h = layer.forward(s, &h, &condition)?;
        }
        self.decoder.forward(s, config, &h, x, &condition)
    }
}
