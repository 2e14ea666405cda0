//! A diffusion transformer on the features of a pretrained residual network.
//!
//! The backbone (or EfficientNet-lite0's stages, with batch norms folded) is frozen: its stem and first layers, with batch norms
//! in evaluation mode, turn the noisy image into a feature map. An adapter maps its channels to the transformer's width, one token
//! per pixel. A class token carries time and, optionally, the label. A decoder maps back to the image with convolutions that
//! double the map, and a skip from the noisy image, without which its noise could not be separated from the features:
//!
//! ```text
//! c = MLP(sinusoids of the time) + MLP(label embedding)
//! h = [c | adapter(backbone(x))] + learned positions
//! h = h + attention(LN(h)), h = h + MLP(LN(h))                each block
//! u = LN(h) without the class token, as a map
//! u = conv(double(u)), with SiLU(GN(u)) between doublings
//! u = conv(SiLU(GN([u | conv(x)]) · (1 + scale(c)) + shift(c)))
//! y = conv(SiLU(GN(u)))                                      from zero
//! ```
//!
//! `tools/goldens/README.md` lists every parameter with name, shape and order.

mod config;
mod decoder;
mod features;

pub use config::ResnetDitConfig;
pub use features::BackboneKind;

use decoder::Decoder;
use features::Features;

use crate::diffusion::Denoiser;
use crate::error::Result;
use crate::models::dit::{Block, Condition};
use crate::models::{Architecture, check_images};
use crate::nn::{Builder, Init, LayerNorm, Linear, ParamId, ParameterKind, Scope};
use crate::ops::elementwise::cast;
use crate::ops::patchify::unpatchify;
use crate::ops::tokens::tokens;
use crate::tape::Var;
use crate::tensor::DType;

/// The prefix of the backbone's parameter names.
pub const BACKBONE: &str = "backbone.";

/// A transformer on the features of a pretrained network.
pub struct ResnetDit {
    config: ResnetDitConfig,
    backbone: Features,
    adapter: Linear,
    position: ParamId,
    condition: Condition,
    blocks: Vec<Block>,
    norm: LayerNorm,
    decoder: Decoder,
}

impl ResnetDit {
    /// Declares the model's parameters.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for inconsistent sizes.
    pub fn new(builder: &mut Builder, config: &ResnetDitConfig) -> Result<Self> {
        config.validate()?;
        let (transformer, width) = (config.transformer(), config.hidden_dim);
        let backbone = builder.freeze(config.freeze_backbone, |builder| Features::new(builder, config));
        let grid = Init::Grid { skip: 1, columns: config.feature_size().width };
        Ok(Self {
            backbone,
            adapter: Linear::new(builder, "adapter", config.feature_channels(), width),
            position: builder.add("position", [transformer.num_tokens(), width], ParameterKind::Vector, grid),
            condition: Condition::new(builder, &transformer),
            blocks: (0..config.depth).map(|number| Block::new(builder, number, &transformer)).collect(),
            norm: LayerNorm::new(builder, "norm", width),
            decoder: Decoder::new(builder, config),
            config: config.clone(),
        })
    }
}

impl Denoiser for ResnetDit {
    fn image_shape(&self) -> [usize; 3] {
        self.config.interface().image_shape()
    }

    fn forward(&self, s: &Scope, x: &Var, time: &Var, labels: &Var) -> Result<Var> {
        check_images("resnet_dit", x, self.image_shape())?;
        let features = self.backbone.forward(s, x)?;
        let &[batch, height, width, channels] = features.sizes() else { unreachable!("a map has four dimensions") };
        let features = self.adapter.forward(s, &features.view([batch, height * width, channels])?)?;
        let c = self.condition.forward(s, time, labels)?;
        let mut h = tokens(s, &features, Some(&c), &s[self.position])?;
        for block in &self.blocks {
            h = block.forward(s, &h, &c)?;
        }
        h = self.norm.forward(s, &h)?;
        let map = unpatchify(s, &h, 1, [height, width, self.config.hidden_dim], 1)?;
        let (map, noisy) = (cast(s, &map, s.precision())?, cast(s, x, s.precision())?);
        cast(s, &self.decoder.forward(s, &map, &noisy, &c)?, DType::F32)
    }
}
