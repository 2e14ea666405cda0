//! The diffusion transformer (Peebles and Xie 2023, *Scalable Diffusion Models with Transformers*) with grouped-query
//! attention (Ainslie et al. 2023).
//!
//! Two ways of conditioning: `token`, where time and class are one more token before the patches, and `adaln_zero`, where
//! they modulate the layer norms and gate the residual branches. `tools/goldens/README.md` lists every parameter; its
//! names, shapes and order are these.

mod config;

pub use config::{Conditioning, DitConfig};

use crate::diffusion::Denoiser;
use crate::error::{Error, Result};
use crate::nn::{Builder, Embedding, Init, Kind, LayerNorm, Linear, ParamId, Scope};
use crate::ops::attention::attention;
use crate::ops::elementwise::{gate, silu};
use crate::ops::head_norm::head_norm;
use crate::ops::layer_norm::{Affine, layer_norm};
use crate::ops::linear::Activation;
use crate::ops::patchify::{patchify, unpatchify};
use crate::ops::timestep_embedding::timestep_embedding;
use crate::ops::tokens::tokens;
use crate::tape::Var;

/// ε of QK-norm.
const HEAD_NORM_EPSILON: f32 = 1e-6;

/// Sinusoidal or looked-up features to the hidden width: linear, SiLU, linear.
pub(in crate::models) struct ConditionMlp {
    fc1: Linear,
    fc2: Linear,
}

impl ConditionMlp {
    pub fn new(builder: &mut Builder, name: &str, input: usize, config: &DitConfig) -> Self {
        Self {
            fc1: Linear::new(builder, &format!("{name}.fc1"), input, config.condition_hidden_dim),
            fc2: Linear::new(builder, &format!("{name}.fc2"), config.condition_hidden_dim, config.hidden_dim),
        }
    }

    pub fn forward(&self, s: &Scope, x: &Var, residual: Option<&Var>) -> Result<Var> {
        let hidden = self.fc1.forward(s, x, Activation::Silu, None)?;
        self.fc2.forward(s, &hidden, Activation::None, residual)
    }
}

/// A label's part of the condition.
pub(in crate::models) struct ClassCondition {
    embedding: Embedding,
    mlp: ConditionMlp,
}

impl ClassCondition {
    /// None for a model without classes.
    pub fn new(builder: &mut Builder, config: &DitConfig) -> Option<Self> {
        (config.num_classes > 0).then(|| Self {
            embedding: Embedding::new(builder, "class.embedding", config.num_labels(), config.class_embedding_dim),
            mlp: ConditionMlp::new(builder, "class", config.class_embedding_dim, config),
        })
    }

    /// Added to `time` `[B, D]`.
    pub fn forward(&self, s: &Scope, labels: &Var, time: &Var) -> Result<Var> {
        let class = self.embedding.forward(s, labels)?;
        self.mlp.forward(s, &class, Some(time))
    }
}

/// How a block's branches are normalised and added back.
enum BlockNorm {
    /// Pre-norm with weights; the residual is added by the branch's last linear layer.
    Plain { norm1: LayerNorm, norm2: LayerNorm },
    /// Shift, scale and gate for each branch out of the condition.
    AdalnZero { modulation: Linear },
}

/// A transformer block.
pub(in crate::models) struct Block {
    norm: BlockNorm,
    qkv: Linear,
    head_norms: Option<(ParamId, ParamId)>,
    out: Linear,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    /// Declares block `number`, its names behind `blocks.N.`.
    pub fn new(builder: &mut Builder, number: usize, config: &DitConfig) -> Self {
        let (hidden, head) = (config.hidden_dim, config.head_dim());
        let name = |part: &str| format!("blocks.{number}.{part}");
        let plain = config.conditioning == Conditioning::Token;
        let norm1 = plain.then(|| LayerNorm::new(builder, &name("norm1"), hidden));
        let modulation =
            (!plain).then(|| Linear::with_init(builder, &name("modulation"), hidden, 6 * hidden, Init::Constant(0.0)));
        let qkv = Linear::new(builder, &name("attn.qkv"), hidden, (config.num_heads + 2 * config.num_kv_heads) * head);
        let head_norms = config.qk_norm.then(|| {
            let mut weight = |part| builder.add(name(part), [head], Kind::Vector, Init::Constant(1.0));
            (weight("attn.q_norm.weight"), weight("attn.k_norm.weight"))
        });
        let out = Linear::new(builder, &name("attn.out"), hidden, hidden);
        let norm2 = plain.then(|| LayerNorm::new(builder, &name("norm2"), hidden));
        let fc1 = Linear::new(builder, &name("mlp.fc1"), hidden, config.mlp_ratio * hidden);
        let fc2 = Linear::new(builder, &name("mlp.fc2"), config.mlp_ratio * hidden, hidden);
        let norm = match (norm1, norm2, modulation) {
            (Some(norm1), Some(norm2), _) => BlockNorm::Plain { norm1, norm2 },
            (_, _, Some(modulation)) => BlockNorm::AdalnZero { modulation },
            _ => unreachable!("one of the two ways of conditioning"),
        };
        Self { norm, qkv, head_norms, out, fc1, fc2 }
    }

    /// `x` `[B, T, D]`; `condition` `[B, D]` after its SiLU.
    pub fn forward(&self, s: &Scope, config: &DitConfig, x: &Var, condition: &Var) -> Result<Var> {
        match &self.norm {
            BlockNorm::Plain { norm1, norm2 } => {
                let normed = norm1.forward(s, x)?;
                let attended = self.attend(s, config, &normed)?;
                let x = self.out.forward(s, &attended, Activation::None, Some(x))?;
                let normed = norm2.forward(s, &x)?;
                let hidden = self.fc1.forward(s, &normed, Activation::Gelu, None)?;
                self.fc2.forward(s, &hidden, Activation::None, Some(&x))
            }
            BlockNorm::AdalnZero { modulation } => {
                let d = config.hidden_dim;
                let matrix = modulation.forward(s, condition, Activation::None, None)?;
                let norm = |x: &Var, shift: usize| {
                    let affine = Affine::Modulation { matrix: &matrix, shift, scale: shift + d };
                    layer_norm(s, x, affine, LayerNorm::EPSILON)
                };
                let attended = self.attend(s, config, &norm(x, 0)?)?;
                let branch = self.out.forward(s, &attended, Activation::None, None)?;
                let x = gate(s, x, &branch, &matrix, 2 * d)?;
                let hidden = self.fc1.forward(s, &norm(&x, 3 * d)?, Activation::Gelu, None)?;
                let branch = self.fc2.forward(s, &hidden, Activation::None, None)?;
                gate(s, &x, &branch, &matrix, 5 * d)
            }
        }
    }

    fn attend(&self, s: &Scope, config: &DitConfig, x: &Var) -> Result<Var> {
        let mut qkv = self.qkv.forward(s, x, Activation::None, None)?;
        if let Some((q, k)) = self.head_norms {
            let (q, k) = (&s[q], &s[k]);
            qkv = head_norm(s, &qkv, q, k, config.num_heads, config.num_kv_heads, HEAD_NORM_EPSILON)?;
        }
        attention(s, &qkv, config.num_heads, config.num_kv_heads)
    }
}

enum FinalNorm {
    Plain(LayerNorm),
    AdalnZero(Linear),
}

/// A diffusion transformer.
pub struct Dit {
    config: DitConfig,
    patch_embed: Linear,
    position: ParamId,
    time: ConditionMlp,
    class: Option<ClassCondition>,
    blocks: Vec<Block>,
    final_norm: FinalNorm,
    final_linear: Linear,
}

impl Dit {
    /// Declares the model's parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that do not fit together.
    pub fn new(builder: &mut Builder, config: &DitConfig) -> Result<Self> {
        config.validate()?;
        let hidden = config.hidden_dim;
        let patch_embed = Linear::new(builder, "patch_embed", config.patch_dim(), hidden);
        // Learned positions that begin as a grid: patches know their neighbours from the first step on.
        let grid = Init::Grid {
            skip: config.num_tokens() - config.num_patches(),
            columns: config.image_size / config.patch_size,
        };
        let position = builder.add("position", [config.num_tokens(), hidden], Kind::Vector, grid);
        let time = ConditionMlp::new(builder, "time", config.time_embedding_dim, config);
        let class = ClassCondition::new(builder, config);
        let blocks = (0..config.depth).map(|number| Block::new(builder, number, config)).collect();
        let (final_norm, init) = match config.conditioning {
            Conditioning::Token => {
                let norm = LayerNorm::new(builder, "final.norm", hidden);
                (FinalNorm::Plain(norm), Init::xavier(hidden, config.patch_dim()))
            }
            // The zero of adaLN-zero: every block is the identity and the first prediction is zero.
            Conditioning::AdalnZero => {
                let zero = Init::Constant(0.0);
                let modulation = Linear::with_init(builder, "final.modulation", hidden, 2 * hidden, zero);
                (FinalNorm::AdalnZero(modulation), zero)
            }
        };
        let final_linear = Linear::with_init(builder, "final.linear", hidden, config.patch_dim(), init);
        Ok(Self { config: config.clone(), patch_embed, position, time, class, blocks, final_norm, final_linear })
    }
}

impl Denoiser for Dit {
    fn image_shape(&self) -> [usize; 3] {
        [self.config.image_size, self.config.image_size, self.config.image_channels]
    }

    fn forward(&self, s: &Scope, x: &Var, time: &Var, labels: &Var) -> Result<Var> {
        let config = &self.config;
        let shape = self.image_shape();
        if x.sizes().len() != 4 || x.sizes()[1..] != shape {
            return Err(Error::shape("dit", format!("images {} for a model of {shape:?}", x.shape())));
        }
        let precision = s.precision();
        let patches = patchify(s, x, config.patch_size, precision)?;
        let patches = self.patch_embed.forward(s, &patches, Activation::None, None)?;

        let time = timestep_embedding(s, time, config.time_embedding_dim, precision)?;
        let time = self.time.forward(s, &time, None)?;
        let condition = match &self.class {
            Some(class) => class.forward(s, labels, &time)?,
            None => time,
        };

        let position = &s[self.position];
        let (mut x, condition) = match config.conditioning {
            Conditioning::Token => (tokens(s, &patches, Some(&condition), position)?, condition),
            Conditioning::AdalnZero => (tokens(s, &patches, None, position)?, silu(s, &condition)?),
        };
        for block in &self.blocks {
            x = block.forward(s, config, &x, &condition)?;
        }
        let x = match &self.final_norm {
            FinalNorm::Plain(norm) => norm.forward(s, &x)?,
            FinalNorm::AdalnZero(modulation) => {
                let matrix = modulation.forward(s, &condition, Activation::None, None)?;
                let affine = Affine::Modulation { matrix: &matrix, shift: 0, scale: config.hidden_dim };
                layer_norm(s, &x, affine, LayerNorm::EPSILON)?
            }
        };
        let x = self.final_linear.forward(s, &x, Activation::None, None)?;
        let skip = config.num_tokens() - config.num_patches();
        unpatchify(s, &x, skip, shape, config.patch_size)
    }
}
