//! The convolution with its fused operations.

use super::super::scope::Scope;
use super::super::store::{Builder, Init, ParamId, ParameterKind};
use crate::error::Result;
use crate::ops::conv2d::{Geometry, conv2d};
use crate::tape::Var;

/// y = conv(x, weight) \[+ bias\]; `weight` `[out, k, k, in]`, `bias` `[out]`. The window is centred, with stride 1, unless
/// [`Conv2d::geometry`] says otherwise.
pub struct Conv2d {
    weight: ParamId,
    bias: Option<ParamId>,
    geometry: Geometry,
}

impl Conv2d {
    /// Declares `name.weight` and `name.bias`, the weight with Glorot initialization over the window, the bias zero. `kernel` is
    /// the window's height and width: odd.
    pub fn new(builder: &mut Builder, name: &str, channels_in: usize, channels_out: usize, kernel: usize) -> Self {
        let window = kernel * kernel;
        let init = Init::xavier(window * channels_in, window * channels_out);
        Self::with_init(builder, name, channels_in, channels_out, kernel, init)
    }

    /// As [`Conv2d::new`] with another initialization of the weight.
    pub fn with_init(
        builder: &mut Builder,
        name: &str,
        channels_in: usize,
        channels_out: usize,
        kernel: usize,
        init: Init,
    ) -> Self {
        let mut conv = Self::without_bias(builder, name, channels_in, channels_out, kernel, init);
        conv.bias =
            Some(builder.add(format!("{name}.bias"), [channels_out], ParameterKind::Vector, Init::Constant(0.0)));
        conv
    }

    /// Declares only `name.weight`, as before a batch norm, which has its own bias.
    pub fn without_bias(
        builder: &mut Builder,
        name: &str,
        channels_in: usize,
        channels_out: usize,
        kernel: usize,
        init: Init,
    ) -> Self {
        let shape = [channels_out, kernel, kernel, channels_in];
        let weight = builder.add(format!("{name}.weight"), shape, ParameterKind::Matrix, init);
        Self { weight, bias: None, geometry: Geometry::same(kernel) }
    }

    /// Sets the geometry of the window.
    pub fn geometry(self, geometry: Geometry) -> Self {
        Self { geometry, ..self }
    }

    /// Resizes the input to `size` (height, width) by nearest neighbour first.
    pub fn resized(mut self, size: [usize; 2]) -> Self {
        self.geometry.resize = Some(size);
        self
    }

    fn call(&self) -> Conv2dCall<'_> {
        Conv2dCall { layer: self, channel_add: None, residual: None }
    }

    /// Adds `channel_add` `[B, out]`, at every pixel.
    pub fn channel_add<'a>(&'a self, channel_add: impl Into<Option<&'a Var>>) -> Conv2dCall<'a> {
        self.call().channel_add(channel_add)
    }

    /// Adds `residual`, of the result's shape.
    pub fn residual<'a>(&'a self, residual: impl Into<Option<&'a Var>>) -> Conv2dCall<'a> {
        self.call().residual(residual)
    }

    /// `x` `[B, H, W, in]` to `[B, H', W', out]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for an input of another rank or number of channels.
    pub fn forward(&self, s: &Scope, x: &Var) -> Result<Var> {
        self.call().forward(s, x)
    }
}

/// A [`Conv2d`] with fused operations.
#[derive(Clone, Copy)]
pub struct Conv2dCall<'a> {
    layer: &'a Conv2d,
    channel_add: Option<&'a Var>,
    residual: Option<&'a Var>,
}

impl<'a> Conv2dCall<'a> {
    /// Adds `channel_add` `[B, out]`, at every pixel.
    pub fn channel_add(self, channel_add: impl Into<Option<&'a Var>>) -> Self {
        Self { channel_add: channel_add.into(), ..self }
    }

    /// Adds `residual`, of the result's shape.
    pub fn residual(self, residual: impl Into<Option<&'a Var>>) -> Self {
        Self { residual: residual.into(), ..self }
    }

    /// As [`Conv2d::forward`].
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for operands of mismatched shapes.
    pub fn forward(self, s: &Scope, x: &Var) -> Result<Var> {
        let Conv2d { weight, bias, geometry } = self.layer;
        let bias = bias.map(|bias| &s[bias]);
        conv2d(s, x, &s[*weight], bias, *geometry, self.channel_add, self.residual)
    }
}
