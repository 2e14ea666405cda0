//! Time and class as one vector.

use super::config::DitConfig;
use crate::error::Result;
use crate::models::Architecture;
use crate::nn::{Builder, Embedding, Mlp, Scope};
use crate::ops::linear::Activation;
use crate::ops::timestep_embedding::timestep_embedding;
use crate::tape::Var;

/// c = MLP(sinusoids of the time) + MLP(label embedding), each MLP a linear layer, SiLU, and a linear layer.
pub(in crate::models) struct Condition {
    width: usize,
    time: Mlp,
    class: Option<(Embedding, Mlp)>,
}

impl Condition {
    /// Declares `time` and, for a model with classes, `class`.
    pub fn new(builder: &mut Builder, config: &DitConfig) -> Self {
        let (width, embedded) = (config.time_embedding_dim, config.class_embedding_dim);
        let mlp = |builder: &mut Builder, name: &str, fan_in: usize| {
            Mlp::new(builder, name, [fan_in, config.condition_hidden_dim, config.hidden_dim], Activation::Silu)
        };
        let time = mlp(builder, "time", width);
        let class = (config.num_classes > 0).then(|| {
            let embedding = Embedding::new(builder, "class.embedding", config.interface().num_labels(), embedded);
            (embedding, mlp(builder, "class", embedded))
        });
        Self { width, time, class }
    }

    /// `time` `[B]` f32, `labels` `[B]` i32: `[B, D]` in the dtype of activations.
    pub fn forward(&self, s: &Scope, time: &Var, labels: &Var) -> Result<Var> {
        let time = timestep_embedding(s, time, self.width, s.precision())?;
        let time = self.time.forward(s, &time)?;
        match &self.class {
            Some((embedding, mlp)) => mlp.residual(&time).forward(s, &embedding.forward(s, labels)?),
            None => Ok(time),
        }
    }
}
