//! The device part of sampling: rows of images in progress, each at its own stage.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::{Denoiser, Stage, StageCoefficients};
use crate::error::{Error, Result};
use crate::nn::Parameters;
use crate::ops::elementwise::cast;
use crate::ops::sampler_step::{ROW_WORDS, Row, STAGE_WORDS, SamplerState, fill_noise, sampler_step, sampler_time};
use crate::tape::{PreparedWeights, Tape};
use crate::tensor::{Context, DType, Program, Tensor};

/// Which optional buffers exist, each as large as the state.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Buffers {
    /// The state that a stage saved.
    pub saved_state: bool,
    /// The combination that a stage saved.
    pub saved: bool,
    /// The buffers for [`Rows::predicted`].
    pub kept: bool,
}

/// Persistent buffers of `capacity` rows.
#[derive(Clone)]
struct State {
    table: Tensor,
    x: Tensor,
    time: Tensor,
    labels: Tensor,
    saved_state: Option<Tensor>,
    saved: Option<Tensor>,
    kept: Option<Kept>,
}

/// The state before a stage's update, and the network's output.
#[derive(Clone)]
struct Kept {
    x: Tensor,
    prediction: Tensor,
}

impl State {
    fn new(context: &Context, image: [usize; 3], capacity: usize, buffers: Buffers) -> Result<Self> {
        let [h, w, c] = image;
        let images = || context.zeros([capacity, h, w, c], DType::F32);
        let wanted = |wanted: bool| wanted.then(images).transpose();
        let kept = buffers.kept.then(|| Ok(Kept { x: images()?, prediction: images()? }));
        Ok(Self {
            table: context.zeros([capacity, ROW_WORDS], DType::U32)?,
            x: images()?,
            time: context.zeros([capacity], DType::F32)?,
            labels: context.zeros([capacity], DType::I32)?,
            saved_state: wanted(buffers.saved_state)?,
            saved: wanted(buffers.saved)?,
            kept: kept.transpose()?,
        })
    }

    /// The first `rows` rows of every buffer.
    fn first(&self, rows: usize) -> Result<Self> {
        let first = |tensor: &Tensor| {
            let mut sizes = tensor.sizes().to_vec();
            sizes[0] = rows;
            tensor.part(0, sizes.as_slice())
        };
        let optional = |tensor: &Option<Tensor>| tensor.as_ref().map(first).transpose();
        let kept = self.kept.as_ref().map(|kept| Ok(Kept { x: first(&kept.x)?, prediction: first(&kept.prediction)? }));
        Ok(Self {
            table: first(&self.table)?,
            x: first(&self.x)?,
            time: first(&self.time)?,
            labels: first(&self.labels)?,
            saved_state: optional(&self.saved_state)?,
            saved: optional(&self.saved)?,
            kept: kept.transpose()?,
        })
    }
}

/// A denoising step over the first rows of its buffers, with a program for each number of rows in use.
pub(crate) struct Rows {
    context: Context,
    model: Rc<dyn Denoiser>,
    parameters: Rc<Parameters>,
    /// The weights in the CPU's layout, as of the last [`Rows::refresh`].
    prepared: Rc<PreparedWeights>,
    capacity: usize,
    state: State,
    programs: BTreeMap<usize, (Program, State)>,
    /// The table, on the host.
    rows: Vec<Row>,
    /// Tables of future steps, `[steps, capacity, words]`.
    course: Option<Tensor>,
}

/// A row's work in the next step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Going<'a> {
    pub stage: &'a Stage,
    /// Philox's step, 1 for the first stage.
    pub step: u32,
    pub seed: u64,
    /// The index of the image.
    pub item: u32,
    /// The row without the label.
    pub partner: Option<usize>,
}

impl Rows {
    /// Makes the buffers.
    ///
    /// # Errors
    /// [`Error::Config`] for no rows; those of the device.
    pub fn new(
        context: &Context,
        model: Rc<dyn Denoiser>,
        parameters: Rc<Parameters>,
        capacity: usize,
        buffers: Buffers,
    ) -> Result<Self> {
        if capacity == 0 {
            return Err(Error::config("batch", "0 images in a batch", "give 1 or more"));
        }
        let state = State::new(context, model.image_shape(), capacity, buffers)?;
        Ok(Self {
            context: context.clone(),
            prepared: Rc::new(parameters.prepared()),
            model,
            parameters,
            capacity,
            state,
            programs: BTreeMap::new(),
            rows: vec![Row::default(); capacity],
            course: None,
        })
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Elements of an image.
    pub fn image_len(&self) -> usize {
        self.state.x.len() / self.capacity
    }

    pub fn prepared_bytes(&self) -> usize {
        self.prepared.bytes()
    }

    /// Plans the step over `count` rows, once.
    pub fn plan(&mut self, count: usize) -> Result<()> {
        if self.programs.contains_key(&count) {
            return Ok(());
        }
        let state = self.state.first(count)?;
        let (context, model) = (&self.context, self.model.as_ref());
        let program = Program::plan(context, || step(context, model, &self.parameters, &self.prepared, &state))?;
        self.programs.insert(count, (program, state));
        Ok(())
    }

    /// The planned step over `count` rows.
    pub fn program(&self, count: usize) -> Option<&Program> {
        self.programs.get(&count).map(|(program, _)| program)
    }

    /// Uses the parameters' current values.
    pub fn refresh(&self) -> Result<()> {
        self.prepared.refresh()
    }

    /// Repacks weights in a layout that a new step needs.
    pub fn prepare(&self) -> Result<()> {
        if self.prepared.is_ready() { Ok(()) } else { self.prepared.refresh() }
    }

    /// Sets the labels of the first rows.
    pub fn set_labels(&mut self, labels: &[i32]) -> Result<()> {
        self.state.labels.part(0, [labels.len()])?.upload(labels)
    }

    /// Leaves row `row` unchanged in the next steps.
    pub fn idle(&mut self, row: usize) {
        // The network still evaluates it, at any valid time.
        self.rows[row] = Row { stage: [0; STAGE_WORDS], partner: row as u32, ..Row::default() };
    }

    /// Sets the work of row `row` in the next step.
    pub fn set(&mut self, row: usize, going: Going) {
        let words = |coefficients: StageCoefficients| bytemuck::cast::<_, [u32; STAGE_WORDS]>(coefficients);
        let mut coefficients = going.stage.coefficients();
        let time = coefficients.time_input;
        coefficients.flags |= Row::OWNS;
        self.rows[row] = Row {
            stage: words(coefficients),
            seed: [going.seed as u32, (going.seed >> 32) as u32],
            item: going.item,
            step: going.step,
            partner: going.partner.unwrap_or(row) as u32,
            ..Row::default()
        };
        if let Some(partner) = going.partner {
            self.idle(partner);
            self.rows[partner].stage[0] = time.to_bits();
        }
    }

    /// Fills the rows of images, and their partners, with their initial noise.
    pub fn begin(&mut self, images: &[Beginning]) -> Result<()> {
        let mut rows = vec![Row::default(); self.capacity];
        for image in images {
            rows[image.row] = image.words();
        }
        Row::upload(&rows, &self.state.table)?;
        fill_noise(&self.context, &self.state.x, &self.state.table)
    }

    /// Uploads the current table for the next step.
    pub fn table(&self) -> &[Row] {
        &self.rows
    }

    /// Allocates device memory for the tables of `steps` steps.
    pub fn reserve_course(&mut self, steps: usize) -> Result<()> {
        self.course = Some(self.context.zeros([steps, self.capacity, ROW_WORDS], DType::U32)?);
        Ok(())
    }

    /// Uploads the tables of all future steps.
    pub fn set_course(&mut self, tables: &[Row]) -> Result<()> {
        match &self.course {
            Some(course) => Row::upload(tables, course),
            None => Err(Error::shape("sampler", "no room was reserved for the tables")),
        }
    }

    /// Runs step `step` of the uploaded tables, for all rows: on an accelerator it is only submitted, without waiting.
    pub fn advance(&mut self, step: usize) -> Result<()> {
        if let Some(course) = &self.course {
            let table = course.part(step * self.capacity * ROW_WORDS, [self.capacity, ROW_WORDS])?;
            self.state.table.copy_from(&table)?;
        }
        self.submit(self.capacity)
    }

    /// Runs a step of the first `count` rows, for which it has been planned.
    pub fn step(&mut self, count: usize) -> Result<()> {
        let table = self.state.table.part(0, [count, ROW_WORDS])?;
        Row::upload(&self.rows[..count], &table)?;
        self.submit(count)
    }

    fn submit(&mut self, count: usize) -> Result<()> {
        let Some((program, state)) = self.programs.get_mut(&count) else {
            return Err(Error::shape("sampler", format!("no step over {count} rows has been planned")));
        };
        let (context, model) = (&self.context, self.model.as_ref());
        program.run(|| step(context, model, &self.parameters, &self.prepared, state))
    }

    /// The states of `count` rows from `row` on.
    pub fn read(&self, row: usize, count: usize) -> Result<Vec<f32>> {
        self.part(&self.state.x, row, count)?.download()
    }

    /// Replaces the states of the rows from `row` on.
    pub fn write(&self, row: usize, values: &[f32]) -> Result<()> {
        self.part(&self.state.x, row, values.len() / self.image_len())?.upload(values)
    }

    /// Copies row `from`'s state and its saved buffers to row `to`.
    pub fn copy(&self, from: usize, to: usize) -> Result<()> {
        let State { x, saved_state, saved, kept, .. } = &self.state;
        let kept = kept.as_ref().map(|kept| [&kept.x, &kept.prediction]);
        let all = [x].into_iter().chain(saved_state).chain(saved).chain(kept.into_iter().flatten());
        for tensor in all {
            self.part(tensor, to, 1)?.copy_from(&self.part(tensor, from, 1)?)?;
        }
        Ok(())
    }

    /// The predicted x_0 of `count` rows from `row` on in the last step, which was `stage`, with unlabelled rows `partner` rows
    /// further: clamped if the stage clamps. None without the buffers for it.
    pub fn predicted(
        &self,
        stage: &Stage,
        row: usize,
        count: usize,
        partner: Option<usize>,
    ) -> Result<Option<Vec<f32>>> {
        let Some(Kept { x, prediction }) = &self.state.kept else { return Ok(None) };
        let read = |tensor: &Tensor, row: usize| self.part(tensor, row, count)?.download::<f32>();
        let (x, labelled) = (read(x, row)?, read(prediction, row)?);
        let unlabelled = partner.map(|partner| read(prediction, partner)).transpose()?;
        let guided = |at: usize| match &unlabelled {
            None => f64::from(labelled[at]),
            Some(unlabelled) => {
                stage.guidance * f64::from(labelled[at]) + (1.0 - stage.guidance) * f64::from(unlabelled[at])
            }
        };
        let x0 = |at: usize| {
            let raw = stage.inverse.x0_x * f64::from(x[at]) + stage.inverse.x0_pred * guided(at);
            raw.clamp(-stage.clip, stage.clip) as f32
        };
        Ok(Some((0..x.len()).map(x0).collect()))
    }

    fn part(&self, tensor: &Tensor, row: usize, count: usize) -> Result<Tensor> {
        tensor.part(row * self.image_len(), [count * self.image_len()])
    }
}

/// An image at its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beginning {
    pub row: usize,
    pub partner: Option<usize>,
    pub seed: u64,
    pub item: u32,
    pub scale: f32,
}

impl Beginning {
    fn words(&self) -> Row {
        let mut stage = [0; STAGE_WORDS];
        stage[STAGE_WORDS - 1] = Row::BEGINS;
        Row {
            stage,
            seed: [self.seed as u32, (self.seed >> 32) as u32],
            item: self.item,
            partner: self.partner.unwrap_or(self.row) as u32,
            scale: self.scale,
            ..Row::default()
        }
    }
}

/// One step: each row's time, the network's predictions, each row's update.
fn step(
    context: &Context,
    model: &dyn Denoiser,
    parameters: &Parameters,
    prepared: &Rc<PreparedWeights>,
    state: &State,
) -> Result<()> {
    let tape = Tape::inference(context).with_prepared(prepared);
    sampler_time(context, &state.time, &state.table)?;
    let s = parameters.bind(&tape, None)?;
    let (x, time, labels) = (s.constant(&state.x), s.constant(&state.time), s.constant(&state.labels));
    let prediction = cast(&s, &model.forward(&s, &x, &time, &labels)?, DType::F32)?;
    if let Some(kept) = &state.kept {
        kept.x.copy_from(&state.x)?;
        kept.prediction.copy_from(prediction.tensor())?;
    }
    let buffers = SamplerState {
        x: &state.x,
        prediction: prediction.tensor(),
        saved_state: state.saved_state.as_ref(),
        saved: state.saved.as_ref(),
    };
    sampler_step(context, &buffers, &state.table)
}
