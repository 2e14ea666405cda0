//! The start of a run: a new one, or one resumed from its newest checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::memory::host_memory;
use super::observers::{self, find_extractor};
use super::space::check_space;
use super::{
    DataSizes, Event, Memory, Recipe, Residency, Run, RunFolder, RunState, Start, Task, TrainRequest, Trainer,
    backbone, checkpoint_config, fingerprint, folder, list_checkpoints, ranks,
};
use crate::config::{Config, LrSchedule};
use crate::data::{Dataset, Split};
use crate::error::{Error, Result};
use crate::tensor::Device;
use crate::words::counted;

type Report<'a> = &'a mut (dyn FnMut(&Event) + Send);

/// Does everything that comes before the first step.
pub(super) fn begin<'a>(request: &TrainRequest, report: Report<'a>) -> Result<Run<'a>> {
    match (&request.resume, &request.config) {
        (Some(root), _) => resume(request, root, report),
        (None, Some(config)) => new(request, config.clone(), report),
        (None, None) => Err(Error::config("configuration", "it is missing", "make the request with TrainRequest::new")),
    }
}

/// Prepares a follower's first step: nothing is written.
pub(super) fn join(request: &TrainRequest) -> Result<Trainer> {
    let team = ranks::team(request);
    let mut config = ranks::config_of_rank_0(team.as_ref())?;
    let mut found = config.clone();
    let dataset = request.find_data(&mut found)?;
    ranks::compare(team.as_ref(), ranks::asked(request)?, &dataset)?;
    // Rank 0 tells what happens; what is peculiar to this process it cannot know.
    let mut report = |event: &Event| {
        if let Event::Warning(text) = event {
            eprintln!("warning: rank {}: {text}", team.rank());
        }
    };
    let (mut trainer, _) = prepare(request, &mut config, &dataset, &mut report)?;
    trainer.share_state()?;
    Ok(trainer)
}

fn new<'a>(request: &TrainRequest, mut config: Config, report: Report<'a>) -> Result<Run<'a>> {
    if let Some(out) = &request.out {
        folder::refuse_taken(out)?;
    }
    set_length(request, &mut config)?;
    if let Some(task) = &request.task {
        config.model = task.model();
    }
    config.validate()?;
    let pretrained = backbone::find(&mut config)?;
    find_extractor(&mut config)?;
    let dataset = request.find_data(&mut config)?;
    let team = ranks::team(request);
    ranks::count_all(team.as_ref(), &mut config);
    ranks::lead(team.as_ref(), ranks::asked(request)?, &config, &dataset)?;
    let (trainer, start) = prepare(request, &mut config, &dataset, report)?;
    if let Some(pretrained) = &pretrained {
        trainer.set_backbone(pretrained)?;
    }
    let place = request.out.as_deref().unwrap_or(Path::new("runs"));
    check_space(&config, trainer.parameters().flat_len(), place)?;
    let folder = RunFolder::create(request.out.as_deref(), &request.name)?;
    folder.write_config(&config)?;
    started(request, trainer, folder, progress(&dataset), start, report)
}

fn resume<'a>(request: &TrainRequest, root: &Path, report: Report<'a>) -> Result<Run<'a>> {
    let folder = RunFolder::resume(root)?;
    let newest = newest_checkpoint(&folder, report)?;
    let before = recorded(&folder, newest.as_ref().map(|(_, config)| config))?;
    let mut config = before.clone();
    set_length(request, &mut config)?;
    if config.training != before.training && before.training.lr_schedule != LrSchedule::Constant {
        return Err(Error::config(
            "training.lr_schedule",
            "the learning rate of this run depends on its length, so the length is fixed",
            "leave `steps` and `epochs` out, or start a new run",
        ));
    }
    config.validate()?;
    if request.task.as_ref().is_some_and(|task| task.model() != config.model) {
        let message = "the run trains another model than this task's";
        return Err(Error::file(root, message, "give the task of its first start"));
    }
    let mut found = config.clone();
    let dataset = request.find_data(&mut found)?;
    ranks::lead(ranks::team(request).as_ref(), ranks::asked(request)?, &config, &dataset)?;
    let (mut trainer, mut start) = prepare(request, &mut config, &dataset, report)?;
    let fresh = progress(&dataset);
    let progress = match &newest {
        Some((path, _)) => trainer.load_checkpoint(path)?,
        None => {
            report(&Event::Warning("there is no checkpoint yet: the run starts from the beginning".into()));
            fresh.clone()
        }
    };
    if progress.data != fresh.data {
        let message = format!("the run was started on {}, and this is {}", progress.data, fresh.data);
        return Err(Error::config("data", message, "give the data set of the run's first start"));
    }
    start.from = trainer.step_count();
    if start.from > start.steps {
        let message = format!("the run already has {}", counted(start.from, "step"));
        return Err(Error::config("steps", message, "give more, or leave it out"));
    }
    if config.training != before.training {
        folder.write_config(&config)?;
    }
    started(request, trainer, folder, progress, start, report)
}

/// The newest readable checkpoint, and its configuration; None if there is none at all.
fn newest_checkpoint(folder: &RunFolder, report: &mut (dyn FnMut(&Event) + Send)) -> Result<Option<(PathBuf, Config)>> {
    let checkpoints = list_checkpoints(&folder.checkpoints())?;
    let count = checkpoints.len();
    let mut damage = None;
    for (_, path) in checkpoints {
        match checkpoint_config(&path) {
            Ok(config) => return Ok(Some((path, config))),
            Err(error) => {
                report(&Event::Warning(format!("this checkpoint is skipped: {error}")));
                damage.get_or_insert(error);
            }
        }
    }
    let Some(error) = damage else { return Ok(None) };
    let message = format!("none of its {count} checkpoints can be read ({error})");
    Err(Error::file(folder.root(), message, "start a new run; its model.safetensors may still be intact"))
}

/// The configuration of a resumed run: that of its folder, which must match its checkpoint except for the length.
fn recorded(folder: &RunFolder, checkpoint: Option<&Config>) -> Result<Config> {
    let path = folder.config();
    let config = match (Config::from_file(&path), checkpoint) {
        (Ok(config), _) => config,
        // A deleted config.yaml is no loss: each checkpoint contains it.
        (Err(Error::Io { .. }), Some(config)) => config.clone(),
        (Err(error), _) => return Err(error),
    };
    if let Some(then) = checkpoint {
        let mut then = then.clone();
        (then.training.num_steps, then.training.num_epochs) = (config.training.num_steps, config.training.num_epochs);
        // The placement of images changes no bit.
        then.data.device_memory = config.data.device_memory;
        if then != config {
            return Err(Error::file(
                path,
                "it was changed after the start, so the run cannot resume exactly",
                "undo the change, or start a new run with `config`",
            ));
        }
    }
    Ok(config)
}

/// Before the first step.
fn progress(dataset: &Dataset) -> RunState {
    RunState { classes: dataset.class_names().to_vec(), data: fingerprint(dataset), ..RunState::default() }
}

fn started<'a>(
    request: &TrainRequest,
    mut trainer: Trainer,
    folder: RunFolder,
    progress: RunState,
    mut start: Start,
    report: Report<'a>,
) -> Result<Run<'a>> {
    trainer.share_state()?;
    if let Some(team) = &request.team {
        start.ranks = format!("{} processes, by {}", team.ranks(), trainer.exchange());
    }
    start.folder = folder.root().to_path_buf();
    let mut run = Run::new(request, trainer, folder, progress, report)?;
    run.reopen()?;
    run.report(&Event::Start(Box::new(start)));
    Ok(run)
}

/// Applies a request's own length.
fn set_length(request: &TrainRequest, config: &mut Config) -> Result<()> {
    let training = &mut config.training;
    match (request.steps, request.epochs) {
        (Some(steps), None) => (training.num_steps, training.num_epochs) = (Some(steps), None),
        (None, Some(epochs)) => (training.num_steps, training.num_epochs) = (None, Some(epochs)),
        (None, None) => {}
        (Some(_), Some(_)) => {
            return Err(Error::config("epochs", "the length is given in steps already", "give one of the two"));
        }
    }
    Ok(())
}

/// Opens the device, settles the precision, plans the run, checks that it fits, and builds the trainer.
fn prepare(
    request: &TrainRequest,
    config: &mut Config,
    dataset: &Dataset,
    report: &mut (dyn FnMut(&Event) + Send),
) -> Result<(Trainer, Start)> {
    let chosen = request.device.open()?;
    let described = chosen.describe();
    let device = chosen.accelerator.map_or(Device::Cpu, Device::Accelerator);
    config.training.precision = ranks::settled(ranks::team(request).as_ref(), config.training.precision, &device)?;
    if let Some(warning) = config.training.precision.warning(&device) {
        report(&Event::Warning(warning.into()));
    }
    let task: Arc<dyn Task> = request.task.clone().unwrap_or_else(|| Arc::new(config.model.clone()));
    let sizes =
        DataSizes { training: dataset.split_len(Split::Train), validation: dataset.split_len(Split::Validation) };
    let (residency, plan, memory) = place(task.as_ref(), config, dataset, sizes, &device)?;
    match (memory.check(&chosen.note, config.training.batch_size), &device) {
        (Ok(()), _) => {}
        // The operating system may still free memory, by ending other processes or by swapping, but only up to its total.
        (Err(error), Device::Cpu) if host_memory().is_none_or(|most| memory.needed() <= most) => {
            report(&Event::Warning(error.to_string()))
        }
        (Err(error), _) => return Err(error),
    }
    let start = Start {
        name: request.name.clone(),
        folder: Default::default(),
        config: config.clone(),
        parameters: plan.parameters().count(),
        data: format!(
            "{}: {} training and {} validation images {}, {}{}",
            dataset.path().map_or_else(|| format!("{} (built in)", dataset.name()), |path| path.display().to_string()),
            sizes.training,
            sizes.validation,
            dataset.size().with_channels(dataset.channels()),
            counted(dataset.class_names().len(), "class"),
            match (residency, &device) {
                (Residency::Streamed, Device::Accelerator(_)) => ", streamed to the device batch by batch",
                _ => "",
            }
        ),
        ranks: String::new(),
        device: described,
        memory,
        steps: plan.total_steps(),
        steps_per_epoch: plan.steps_per_epoch(),
        from: 0,
    };
    drop(plan);
    let recipe = Recipe { residency: Some(residency), team: ranks::team(request), ..Recipe::new(config, device) };
    let mut trainer = Trainer::new(task.as_ref(), dataset, &recipe)?;
    trainer.set_graphs(request.graphs);
    Ok((trainer, start))
}

/// The placement of the images, with the plan and the memory of the run: on an accelerator if it has room for them, else streamed.
fn place(
    task: &dyn Task,
    config: &Config,
    dataset: &Dataset,
    sizes: DataSizes,
    device: &Device,
) -> Result<(Residency, Trainer, Memory)> {
    let evaluation = observers::network_bytes(config)?;
    let planned = |residency: Residency| -> Result<_> {
        let plan = Trainer::plan_with(task, config, sizes, residency)?;
        let memory = Memory::of(&plan, evaluation, device);
        Ok((residency, plan, memory))
    };
    let first = planned(Residency::of(device, dataset, config.data.device_memory))?;
    match first {
        (Residency::Resident, _, memory) if !memory.fits() => planned(Residency::Streamed),
        first => Ok(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shapes;
    use crate::device::emulator::EmulatorDevice;

    #[test]
    fn images_stream_where_the_device_has_no_room_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let emulator = Arc::new(EmulatorDevice::load(folder.path()).unwrap());
        let device = Device::Accelerator(emulator.clone());
        let mut config = Config::preset("quickstart").unwrap();
        for set in ["model.hidden_dim=16", "model.depth=1", "training.batch_size=4", "training.precision=f32"] {
            config.set(set).unwrap();
        }
        let set = shapes(0, 1000);
        let sizes = DataSizes { training: set.split_len(Split::Train), validation: set.split_len(Split::Validation) };
        let placed = |config: &Config| {
            let (residency, _, memory) = place(&config.model, config, &set, sizes, &device).unwrap();
            (residency, memory)
        };
        let (residency, resident) = placed(&config);
        assert_eq!(residency, Residency::Resident);
        emulator.set_capacity(resident.needed());
        assert_eq!(placed(&config), (residency, Memory { available: Some(resident.needed()), ..resident }));
        emulator.set_capacity(resident.needed() - 1);
        let (residency, streamed) = placed(&config);
        assert_eq!(residency, Residency::Streamed);
        let images = set.images().len() as u64;
        assert!(streamed.fits() && streamed.needed() < resident.needed() - images + 20_000, "{streamed:?}");
        emulator.set_capacity(1 << 30);
        config.set("data.device_memory=2").unwrap();
        assert_eq!(placed(&config).0, Residency::Streamed);
        let cpu = place(&config.model, &config, &set, sizes, &Device::Cpu).unwrap();
        assert!(cpu.0 == Residency::InPlace && cpu.2.needed() < streamed.needed() + 20_000);
    }
}
