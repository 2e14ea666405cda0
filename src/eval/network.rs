//! A network that was trained as a classifier.

use std::rc::Rc;

use super::Classification;
use crate::error::{Error, Result};
use crate::models::Classifier;
use crate::nn::Parameters;
use crate::ops::elementwise::cast;
use crate::tape::{PreparedWeights, Tape};
use crate::tensor::{Context, DType, Program, Tensor};

/// Classifies images with a network trained for it: p(c | x) is the softmax of its logits.
pub struct NetworkClassifier {
    context: Context,
    network: Rc<dyn Classifier>,
    parameters: Rc<Parameters>,
    /// The weights in the CPU's layout, repacked at each call.
    prepared: Rc<PreparedWeights>,
    images: Tensor,
    logits: Tensor,
    program: Program,
}

impl NetworkClassifier {
    /// Plans a forward pass of `batch` images.
    ///
    /// # Errors
    /// [`Error::Config`] for a batch of 0; those of the device.
    pub fn new(
        context: &Context,
        network: Rc<dyn Classifier>,
        parameters: Rc<Parameters>,
        batch: usize,
    ) -> Result<Self> {
        if !(1..=1 << 20).contains(&batch) {
            return Err(Error::config("batch", format!("{batch} images in a batch"), "give 1 or more"));
        }
        let [h, w, c] = network.image_shape();
        let images = context.zeros([batch, h, w, c], DType::F32)?;
        let logits = context.zeros([batch, network.num_classes()], DType::F32)?;
        let prepared = Rc::new(parameters.prepared());
        let weights = (&*parameters, &prepared);
        let program = Program::plan(context, || forward(context, network.as_ref(), weights, &images, &logits))?;
        Ok(Self { context: context.clone(), network, parameters, prepared, images, logits, program })
    }

    /// A forward pass: memory and cost.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Classifies images `[N, H, W, C]` in [-1, 1] among all classes of the network; `progress(done, total)` counts batches. The
    /// result for an image does not depend on other images, the batch or threads.
    ///
    /// # Errors
    /// [`Error::Shape`] for incomplete images; those of the device.
    pub fn classify(&mut self, images: &[f32], mut progress: impl FnMut(usize, usize)) -> Result<Vec<Classification>> {
        let len: usize = self.network.image_shape().iter().product();
        if !images.len().is_multiple_of(len) {
            let message = format!("{} values, which do not make whole images of {len}", images.len());
            return Err(Error::shape("classifier", message));
        }
        let (batch, classes) = (self.images.sizes()[0], self.logits.shape().last());
        let chunks = images.chunks(batch * len);
        let total = chunks.len();
        self.prepared.refresh()?;
        let mut found = Vec::with_capacity(images.len() / len);
        // A batch is always full: the last one is padded with images whose results are not read.
        let mut full = vec![0f32; batch * len];
        for (number, chunk) in chunks.enumerate() {
            full[..chunk.len()].copy_from_slice(chunk);
            self.images.upload(&full)?;
            let (context, network, weights) =
                (&self.context, self.network.as_ref(), (&*self.parameters, &self.prepared));
            let (images, logits) = (&self.images, &self.logits);
            self.program.run(|| forward(context, network, weights, images, logits))?;
            let logits = self.logits.download::<f32>()?;
            // The smallest "error" is the largest logit.
            let rows = logits.chunks(classes).take(chunk.len() / len);
            found.extend(rows.map(|row| Classification::of(row.iter().map(|&logit| -f64::from(logit)).collect())));
            progress(number + 1, total);
        }
        Ok(found)
    }
}

fn forward(
    context: &Context,
    network: &dyn Classifier,
    (parameters, prepared): (&Parameters, &Rc<PreparedWeights>),
    images: &Tensor,
    logits: &Tensor,
) -> Result<()> {
    let tape = Tape::inference(context).with_prepared(prepared);
    let s = parameters.bind(&tape, None)?;
    let found = cast(&s, &network.forward(&s, &s.constant(images))?, DType::F32)?;
    logits.copy_from(found.tensor())
}
