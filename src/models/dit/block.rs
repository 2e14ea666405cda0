//! A transformer block.

use super::config::{Conditioning, DitConfig};
use crate::error::Result;
use crate::nn::{Builder, Init, LayerNorm, Linear, Mlp, Modulation, ParamId, ParameterKind, Scope};
use crate::ops::attention::attention;
use crate::ops::linear::{Activation, Gate};
use crate::ops::qk_norm::qk_norm;
use crate::tape::Var;

/// ε of QK-norm.
const HEAD_NORM_EPSILON: f32 = 1e-6;

/// Attention with `kv_heads` heads of keys and values, each shared by `heads / kv_heads` query heads, between linear layers.
struct Attention {
    qkv: Linear,
    out: Linear,
    /// The QK-norm weights of queries and keys, if used.
    norms: Option<(ParamId, ParamId)>,
    heads: usize,
    kv_heads: usize,
}

impl Attention {
    fn new(builder: &mut Builder, name: &str, config: &DitConfig) -> Self {
        let (heads, kv_heads, width) = (config.num_heads, config.num_kv_heads, config.head_dim());
        let qkv = Linear::new(builder, &format!("{name}.qkv"), config.hidden_dim, (heads + 2 * kv_heads) * width);
        let norms = config.qk_norm.then(|| {
            let mut weight = |part: &str| {
                builder.add(format!("{name}.{part}.weight"), [width], ParameterKind::Vector, Init::Constant(1.0))
            };
            (weight("q_norm"), weight("k_norm"))
        });
        let out = Linear::new(builder, &format!("{name}.out"), config.hidden_dim, config.hidden_dim);
        Self { qkv, out, norms, heads, kv_heads }
    }

    /// `x` `[B, T, D]` to the same shape; through `gate`, if there is one, and added to `residual`.
    fn forward(&self, s: &Scope, x: &Var, gate: Option<Gate>, residual: &Var) -> Result<Var> {
        let mut qkv = self.qkv.forward(s, x)?;
        if let Some((q, k)) = self.norms {
            qkv = qk_norm(s, &qkv, &s[q], &s[k], self.heads, self.kv_heads, HEAD_NORM_EPSILON)?;
        }
        let mixed = attention(s, &qkv, self.heads, self.kv_heads)?;
        self.out.gate(gate).residual(residual).forward(s, &mixed)
    }
}

/// How a block's branches are normalized and added back: a branch's last linear layer adds the residual.
enum Norm {
    /// By layer norms with weights.
    Plain { norm1: LayerNorm, norm2: LayerNorm },
    /// By shift, scale and gate of each branch, computed from the condition.
    AdalnZero(Modulation),
}

/// A transformer block: attention and an MLP, each on a normalized residual branch.
pub(in crate::models) struct Block {
    norm: Norm,
    attention: Attention,
    mlp: Mlp,
}

impl Block {
    /// Declares block `number`, with names under `blocks.N.`.
    pub fn new(builder: &mut Builder, number: usize, config: &DitConfig) -> Self {
        let width = config.hidden_dim;
        let name = |part: &str| format!("blocks.{number}.{part}");
        let plain = |builder: &mut Builder, part| LayerNorm::new(builder, &name(part), width);
        let attend = |builder: &mut Builder| Attention::new(builder, &name("attn"), config);
        let (norm, attention) = match config.conditioning {
            Conditioning::Token => {
                let (norm1, attention, norm2) = (plain(builder, "norm1"), attend(builder), plain(builder, "norm2"));
                (Norm::Plain { norm1, norm2 }, attention)
            }
            Conditioning::AdalnZero => {
                let modulation = Modulation::new(builder, &name("modulation"), width, width, 6);
                (Norm::AdalnZero(modulation), attend(builder))
            }
        };
        let mlp = Mlp::new(builder, &name("mlp"), [width, config.mlp_ratio * width, width], Activation::Gelu);
        Self { norm, attention, mlp }
    }

    /// `x` `[B, T, D]`; `condition` `[B, D]` after its SiLU.
    pub fn forward(&self, s: &Scope, x: &Var, condition: &Var) -> Result<Var> {
        match &self.norm {
            Norm::Plain { norm1, norm2 } => {
                let x = self.attention.forward(s, &norm1.forward(s, x)?, None, x)?;
                self.mlp.residual(&x).forward(s, &norm2.forward(s, &x)?)
            }
            Norm::AdalnZero(modulation) => {
                let m = modulation.forward(s, condition)?;
                let x = self.attention.forward(s, &m.norm(s, x, 0)?, Some(m.gate(2)), x)?;
                self.mlp.gate(m.gate(5)).residual(&x).forward(s, &m.norm(s, &x, 3)?)
            }
        }
    }
}
