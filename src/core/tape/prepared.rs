//! Weights in the form in which an op reads them, made once for many runs of a program.
//!
//! On the CPU an op may rearrange a weight before it uses it: a product packs it into panels, a convolution transforms its
//! taps. While a sampler runs, the weights stay and only the activations change, so this is done once, when the run begins.
//! Which op wants which form of which weight shows itself when the program is planned: only then is memory asked for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use crate::error::Result;
use crate::tensor::{Backend, Context, DType, Device, Tensor};

type Make = Box<dyn Fn(&Tensor, &Tensor) -> Result<()>>;

/// One weight in one form.
struct Form {
    source: Tensor,
    made: Tensor,
    make: Make,
}

/// Storage and first element of the weight, name and bytes of the form: one weight may be used in several, as images of several sizes ask
/// for them.
type Key = (usize, usize, &'static str, usize);

/// A snapshot of weights in the forms in which ops read them: [`PreparedWeights::refresh`] takes it, and until the next one the
/// weights themselves may change unseen. Empty on devices other than the CPU.
pub struct PreparedWeights {
    sources: Vec<Tensor>,
    forms: RefCell<BTreeMap<Key, Form>>,
    ready: Cell<bool>,
}

impl PreparedWeights {
    /// For parts of `sources`, whose elements stay as they are between refreshes: the flat buffers of a model's parameters.
    pub fn new(context: &Context, sources: impl IntoIterator<Item = Tensor>) -> Self {
        let sources = match context.device() {
            Device::Cpu => sources.into_iter().collect(),
            Device::Accelerator(_) => Vec::new(),
        };
        Self { sources, forms: RefCell::default(), ready: Cell::new(false) }
    }

    /// Whether every form that has been asked for is made.
    pub fn is_ready(&self) -> bool {
        self.ready.get()
    }

    /// Makes every form anew from its weight as it now is.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn refresh(&self) -> Result<()> {
        self.ready.set(false);
        for Form { source, made, make } in self.forms.borrow().values() {
            if !matches!(source.context().backend(), Backend::Plan) {
                make(source, made)?;
            }
        }
        self.ready.set(true);
        Ok(())
    }

    /// Bytes of all forms.
    pub fn bytes(&self) -> usize {
        self.forms.borrow().values().map(|form| form.made.bytes()).sum()
    }

    /// As [`super::Tape::prepared`].
    pub(super) fn form(
        &self,
        source: &Tensor,
        name: &'static str,
        (len, dtype): (usize, DType),
        make: impl Fn(&Tensor, &Tensor) -> Result<()> + 'static,
    ) -> Result<Option<Tensor>> {
        let (storage, first) = source.place();
        if !self.sources.iter().any(|whole| whole.place().0 == storage) {
            return Ok(None);
        }
        let key = (storage, first, name, len * dtype.size());
        if !matches!(source.context().backend(), Backend::Plan) {
            let forms = self.forms.borrow();
            let form = forms.get(&key).filter(|form| self.ready.get() && form.source.shape() == source.shape());
            return Ok(form.map(|form| form.made.clone()));
        }
        if !self.forms.borrow().contains_key(&key) {
            let made = source.context().persistent([len], dtype)?;
            self.forms.borrow_mut().insert(key, Form { source: source.clone(), made, make: Box::new(make) });
            self.ready.set(false);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::Tape;
    use super::*;
    use crate::tensor::Program;

    /// Twice the elements of `source`: by the prepared form where there is one, which is then -2 x.
    fn doubled(tape: &Tape, source: &Tensor) -> Result<Vec<f32>> {
        let made = tape.prepared(source, "negated", (source.len(), DType::F32), |from, to| {
            let negated = from.host::<f32>().iter().map(|x| -x);
            to.host_mut::<f32>().iter_mut().zip(negated).for_each(|(to, x)| *to = x);
            Ok(())
        })?;
        match source.context().backend() {
            Backend::Plan => Ok(Vec::new()),
            _ => Ok(made.as_ref().unwrap_or(source).host::<f32>().iter().map(|x| 2.0 * x).collect()),
        }
    }

    #[test]
    fn a_form_is_planned_then_made_at_each_refresh() -> Result<()> {
        let context = Context::cpu();
        let (flat, other) = (context.tensor(&[1f32, 2.0, 3.0, 4.0], [4])?, context.tensor(&[5f32], [1])?);
        let weight = flat.part(1, [2])?;
        let before = context.persistent_bytes();
        let prepared = Rc::new(PreparedWeights::new(&context, [flat.clone()]));
        let tape = Tape::inference(&context).with_prepared(&prepared);
        // Nothing was planned, so nothing is made.
        prepared.refresh()?;
        assert_eq!(doubled(&tape, &weight)?, [4.0, 6.0]);
        Program::plan(&context, || {
            doubled(&tape, &weight)?;
            doubled(&tape, &weight)?;
            doubled(&tape, &other).map(drop)
        })?;
        assert_eq!((prepared.bytes(), context.persistent_bytes()), (8, before + 8));
        assert_eq!(doubled(&tape, &weight)?, [4.0, 6.0], "not made yet");
        prepared.refresh()?;
        assert_eq!(doubled(&tape, &weight)?, [-4.0, -6.0]);
        assert_eq!(doubled(&Tape::inference(&context), &weight)?, [4.0, 6.0]);
        assert_eq!(doubled(&tape, &weight.view([2, 1])?)?, [4.0, 6.0], "the form is that of another shape");
        assert_eq!(doubled(&tape, &other)?, [10.0], "another buffer");
        flat.upload(&[0f32, 7.0, 8.0, 0.0])?;
        assert_eq!(doubled(&tape, &weight)?, [-4.0, -6.0], "a snapshot");
        prepared.refresh()?;
        assert_eq!(doubled(&tape, &weight)?, [-14.0, -16.0]);
        drop((tape, prepared));
        assert_eq!(context.persistent_bytes(), before);
        Ok(())
    }

    #[test]
    fn a_weight_has_forms_of_several_sizes() -> Result<()> {
        let context = Context::cpu();
        let flat = context.tensor(&[1f32, 2.0], [2])?;
        let prepared = Rc::new(PreparedWeights::new(&context, [flat.clone()]));
        let tape = Tape::inference(&context).with_prepared(&prepared);
        let lens = [2, 3].map(|len| (len, DType::F32));
        let form = |form| tape.prepared(&flat, "form", form, |_, _| Ok(()));
        Program::plan(&context, || lens.into_iter().try_for_each(|of| form(of).map(drop)))?;
        prepared.refresh()?;
        for of in lens {
            assert_eq!(form(of)?.map(|made| made.len()), Some(of.0));
        }
        Ok(())
    }

    #[test]
    fn shape_only_contexts_count_forms_and_make_none() -> Result<()> {
        let context = Context::shape_only();
        let flat = context.zeros([1 << 20, 1 << 20], DType::F32)?;
        let prepared = Rc::new(PreparedWeights::new(&context, [flat.clone()]));
        let tape = Tape::inference(&context).with_prepared(&prepared);
        Program::plan(&context, || doubled(&tape, &flat).map(drop))?;
        prepared.refresh()?;
        assert_eq!(prepared.bytes(), 1 << 42);
        Ok(())
    }
}
