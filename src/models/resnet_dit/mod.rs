//! A diffusion transformer on the features of a pretrained residual network.
//!
//! The backbone's stem and first layers, frozen, with batch norm by running statistics, turn the noisy image into a feature
//! map; an adapter brings its channels to the transformer's width, a token for each of its pixels. A class token carries time
//! and, optionally, the label. A decoder leads back to the image by convolutions that double the map, with a skip from the
//! noisy image, without which its noise could not be told from what the features kept of it:
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
//! `tools/goldens/README.md` lists every parameter; its names, shapes and order are these.

mod config;

pub use config::ResnetDitConfig;

use crate::diffusion::Denoiser;
use crate::error::{Error, Result};
use crate::models::dit::{Block, ClassCondition, ConditionMlp, DitConfig};
use crate::models::resnet::Backbone;
use crate::nn::{Builder, Conv2d, GroupNorm, Init, Kind, LayerNorm, Linear, Moving, ParamId, Scope};
use crate::ops::conv2d::Geometry;
use crate::ops::elementwise::{cast, silu};
use crate::ops::linear::Activation;
use crate::ops::patchify::unpatchify;
use crate::ops::timestep_embedding::timestep_embedding;
use crate::ops::tokens::tokens;
use crate::tape::Var;
use crate::tensor::DType;

/// What stands before the names of the backbone's parameters.
pub const BACKBONE: &str = "backbone.";

/// A convolution to twice the size, and the norm before it where another came before.
struct Doubling {
    norm: Option<GroupNorm>,
    conv: Conv2d,
    size: usize,
}

/// From the feature map back to the image.
struct Decoder {
    doublings: Vec<Doubling>,
    /// Where nothing is to be doubled.
    project: Option<Conv2d>,
    noisy: Conv2d,
    modulation: Linear,
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(builder: &mut Builder, config: &ResnetDitConfig) -> Self {
        let (width, groups, colours) = (config.decoder_channels, config.norm_groups, config.image_channels);
        let mut channels = config.hidden_dim;
        let mut doublings = Vec::new();
        for (number, size) in config.decoder_sizes().into_iter().enumerate() {
            let name = |part: &str| format!("decoder.up.{number}.{part}");
            let norm = (number > 0).then(|| GroupNorm::new(builder, &name("norm"), channels, groups, true));
            let conv = Conv2d::new(builder, &name("conv"), std::mem::replace(&mut channels, width), width, 3);
            doublings.push(Doubling { norm, conv, size });
        }
        let project = doublings.is_empty().then(|| Conv2d::new(builder, "decoder.project", channels, width, 1));
        let zero = Init::Constant(0.0);
        Self {
            doublings,
            project,
            noisy: Conv2d::new(builder, "decoder.noisy", colours, width, 3),
            modulation: Linear::with_init(builder, "decoder.modulation", config.hidden_dim, 4 * width, zero),
            norm1: GroupNorm::new(builder, "decoder.norm1", 2 * width, groups, true),
            conv1: Conv2d::new(builder, "decoder.conv1", 2 * width, width, 3),
            norm2: GroupNorm::new(builder, "decoder.norm2", width, groups, true),
            conv_out: Conv2d::with_init(builder, "decoder.conv_out", width, colours, 3, zero),
        }
    }

    /// `features` `[B, h, w, D]`, `noisy` `[B, H, W, C]` and `condition` `[B, D]` in the dtype of activations: `[B, H, W, C]`.
    fn forward(&self, s: &Scope, features: &Var, noisy: &Var, condition: &Var) -> Result<Var> {
        let conv = |conv: &Conv2d, x: &Var, geometry: Geometry| conv.forward(s, x, geometry, None, None);
        let mut x = features.clone();
        for doubling in &self.doublings {
            if let Some(norm) = &doubling.norm {
                x = norm.forward(s, &x, None, None)?;
            }
            let resize = Some([doubling.size; 2]);
            x = conv(&doubling.conv, &x, Geometry { resize, ..Geometry::same(3) })?;
        }
        if let Some(project) = &self.project {
            x = conv(project, &x, Geometry::same(1))?;
        }
        let skip = conv(&self.noisy, noisy, Geometry::same(3))?;
        let condition = silu(s, condition)?;
        let modulation = self.modulation.forward(s, &condition, Activation::None, None)?;
        x = self.norm1.forward(s, &x, Some(&skip), Some(&modulation))?;
        x = conv(&self.conv1, &x, Geometry::same(3))?;
        x = self.norm2.forward(s, &x, None, None)?;
        conv(&self.conv_out, &x, Geometry::same(3))
    }
}

/// A transformer on the features of a residual network.
pub struct ResnetDit {
    config: ResnetDitConfig,
    transformer: DitConfig,
    backbone: Backbone,
    adapter: Linear,
    position: ParamId,
    time: ConditionMlp,
    class: Option<ClassCondition>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    decoder: Decoder,
}

impl ResnetDit {
    /// Declares the model's parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that do not fit together.
    pub fn new(builder: &mut Builder, config: &ResnetDitConfig) -> Result<Self> {
        config.validate()?;
        let transformer = config.transformer();
        let backbone = builder.freeze(config.freeze_backbone, |builder| {
            Backbone::new(builder, BACKBONE, &config.backbone(), config.backbone_layers, Moving::Never)
        });
        let width = config.hidden_dim;
        let grid = Init::Grid { skip: 1, columns: config.feature_size() };
        Ok(Self {
            backbone,
            adapter: Linear::new(builder, "adapter", config.feature_channels(), width),
            position: builder.add("position", [transformer.num_tokens(), width], Kind::Vector, grid),
            time: ConditionMlp::new(builder, "time", config.time_embedding_dim, &transformer),
            class: ClassCondition::new(builder, &transformer),
            blocks: (0..config.depth).map(|number| Block::new(builder, number, &transformer)).collect(),
            norm: LayerNorm::new(builder, "norm", width),
            decoder: Decoder::new(builder, config),
            config: config.clone(),
            transformer,
        })
    }
}

impl Denoiser for ResnetDit {
    fn image_shape(&self) -> [usize; 3] {
        [self.config.image_size, self.config.image_size, self.config.image_channels]
    }

    fn forward(&self, s: &Scope, x: &Var, time: &Var, labels: &Var) -> Result<Var> {
        let (shape, precision) = (self.image_shape(), s.precision());
        if x.sizes().len() != 4 || x.sizes()[1..] != shape {
            return Err(Error::shape("resnet_dit", format!("images {} for a model of {shape:?}", x.shape())));
        }
        let features = self.backbone.forward(s, x)?;
        let &[batch, height, width, channels] = features.sizes() else { unreachable!("a map has four dimensions") };
        let features = features.view([batch, height * width, channels])?;
        let features = self.adapter.forward(s, &features, Activation::None, None)?;

        let time = timestep_embedding(s, time, self.config.time_embedding_dim, precision)?;
        let mut condition = self.time.forward(s, &time, None)?;
        if let Some(class) = &self.class {
            condition = class.forward(s, labels, &condition)?;
        }
        let mut h = tokens(s, &features, Some(&condition), &s[self.position])?;
        for block in &self.blocks {
            h = block.forward(s, &self.transformer, &h, &condition)?;
        }
        let h = self.norm.forward(s, &h)?;
        let map = unpatchify(s, &h, 1, [height, width, self.config.hidden_dim], 1)?;
        let (map, noisy) = (cast(s, &map, precision)?, cast(s, x, precision)?);
        cast(s, &self.decoder.forward(s, &map, &noisy, &condition)?, DType::F32)
    }
}
