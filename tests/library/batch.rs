//! Images of many requests in one batch: each has the same bits as alone.

use engine::Result;
use engine::config::Config;
use engine::diffusion::{GuidanceSchedule, SamplerKind, TimestepSchedule};
use engine::pipeline::{Batch, Drawing, DrawingStage, DrawingTask, Ends, Inpaint, Model, SampleRequest, Ticket};
use engine::tensor::{Context, DType, Device};

use crate::{emulator, tiny};

/// A small model with nonzero weights, so that labels, times and guidance matter.
fn model(device: &Device) -> Model {
    let mut config: Config = tiny::config(&tiny::TOKEN);
    for set in ["sampling.num_steps=4", "diffusion.prediction=epsilon"] {
        config.set(set).unwrap();
    }
    let model = Model::untrained(&config, &Context::new(device.clone()), DType::F32, 9).unwrap();
    let flat = model.parameters.flat_len();
    let weights: Vec<f32> = (0..flat).map(|i| 0.3 * ((i as f32 * 0.7).sin() + (i as f32 * 0.013).cos())).collect();
    model.parameters.set_flat(&weights).unwrap();
    model
}

/// Different requests: sampler, steps, guidance, temperature, seed, first image, classes.
fn requests(model: &Model) -> Vec<SampleRequest> {
    let samplers = [SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::Heun, SamplerKind::Dpmpp2m];
    let null = model.info.config.model.null_label().unwrap();
    (0..9usize)
        .map(|k| {
            let labels: Vec<usize> = (0..1 + k % 3).map(|image| (image + k) % 3).collect();
            let mut request = model.request(if k == 7 { vec![null] } else { labels });
            (request.seed, request.first) = (0x1_0000_0001 * (k as u64 % 4), k as u32);
            let sampling = &mut request.sampling;
            (sampling.sampler, sampling.num_steps) = (samplers[k % 4], 2 + k % 5);
            sampling.guidance = if k % 2 == 0 { 1.0 } else { 1.5 + k as f64 };
            if k == 5 {
                sampling.guidance_schedule = GuidanceSchedule::Adaptive;
            }
            sampling.schedule = TimestepSchedule::ALL[k % 3];
            (sampling.temperature, sampling.eta) = (1.0 - 0.05 * k as f64, if k == 1 { 0.7 } else { 0.0 });
            request
        })
        .collect()
}

/// Runs tasks through one batch; one joins at every step, the last ones first with `reverse`. `cancel` leaves after its second
/// step and has no result.
fn together(
    model: &Model,
    rows: usize,
    mut tasks: Vec<DrawingTask>,
    reverse: bool,
    cancel: Option<usize>,
) -> Result<Vec<Vec<Vec<f32>>>> {
    let mut batch = Batch::new(model, rows)?;
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    if reverse {
        order.reverse();
    }
    let mut steps = 0;
    let mut gone = false;
    let ends = |number: usize, task: &DrawingTask, gone: bool| task.is_done() || gone && cancel == Some(number);
    while !tasks.iter().enumerate().all(|(number, task)| ends(number, task, gone)) {
        for &number in order.iter().take(steps + 1) {
            let task = &mut tasks[number];
            if gone && cancel == Some(number) {
                continue;
            }
            while let Some(place) = task.next_place(batch.room()) {
                let ticket = batch.join(task.joining(place))?;
                task.joined(place, ticket);
            }
        }
        for (ticket, image) in batch.step()? {
            for task in &mut tasks {
                task.take(model, ticket, image.clone())?;
            }
        }
        steps += 1;
        if let Some(cancelled) = cancel.filter(|&number| !gone && !tasks[number].underway().is_empty()) {
            let tickets: Vec<Ticket> = tasks[cancelled].underway().iter().map(|(ticket, _)| *ticket).collect();
            if tickets.iter().any(|ticket| batch.stages_done(*ticket) >= Some(2)) {
                tickets.into_iter().for_each(|ticket| batch.leave(ticket));
                gone = true;
            }
        }
        assert!(steps < 10_000, "no end");
    }
    Ok(tasks.into_iter().map(DrawingTask::into_images).collect())
}

#[test]
fn an_image_is_the_same_whoever_shares_its_batch() -> Result<()> {
    let model = model(&Device::Cpu);
    let requests = requests(&model);
    let alone: Vec<Vec<Vec<f32>>> = requests.iter().map(|request| model.sample(request)).collect::<Result<_>>()?;
    assert!(alone.iter().flatten().flatten().all(|value| value.is_finite()));
    let tasks =
        || requests.iter().map(|request| DrawingTask::new(&model, Drawing::Sample, request)).collect::<Result<_>>();
    for rows in [2, 3, 7, 40] {
        for reverse in [false, true] {
            assert!(together(&model, rows, tasks()?, reverse, None)? == alone, "{rows} rows, reverse {reverse}");
        }
    }
    for cancelled in [1, 4, 8] {
        let mut images = together(&model, 7, tasks()?, false, Some(cancelled))?;
        images[cancelled] = alone[cancelled].clone();
        assert!(images == alone, "after {cancelled} was cancelled");
    }
    Ok(())
}

#[test]
fn every_kind_of_drawing_shares_a_batch() -> Result<()> {
    let model = model(&Device::Cpu);
    let image: Vec<f32> = (0..8 * 8 * 3).map(|i| (i as f32 * 0.37).sin()).collect();
    let other: Vec<f32> = image.iter().map(|x| -0.5 * x).collect();
    let small: Vec<f32> = image[..4 * 4 * 3].to_vec();
    let free: Vec<bool> = (0..64).map(|i| i % 8 > 3).collect();
    let request = |sampler, guidance| {
        let mut request = model.request([0, 1, 2]);
        (request.seed, request.sampling.sampler, request.sampling.guidance) = (4, sampler, guidance);
        request
    };
    let (ddim, guided) = (request(SamplerKind::Ddim, 1.0), request(SamplerKind::Ddpm, 2.0));
    let drawings: Vec<(Drawing, &SampleRequest)> = vec![
        (Drawing::Sample, &guided),
        (Drawing::Vary { image: &image, strength: 0.6 }, &guided),
        (Drawing::Vary { image: &image, strength: 0.0 }, &guided),
        (Drawing::Vary { image: &image, strength: 1.0 }, &ddim),
        (Drawing::Inpaint(Inpaint { image: &image, free: &free, rounds: 3 }), &guided),
        (Drawing::Upscale { small: &small, factor: 2, rounds: 2 }, &ddim),
        (Drawing::Interpolate(Ends::Seeds(3, 9)), &ddim),
        (Drawing::Interpolate(Ends::Images(&image, &other)), &ddim),
    ];
    let mut silent = |_: &DrawingStage| Ok(());
    let alone: Vec<Vec<Vec<f32>>> =
        drawings.iter().map(|(drawing, request)| model.draw(*drawing, request, &mut silent)).collect::<Result<_>>()?;
    for rows in [3, 30] {
        let tasks = drawings.iter().map(|(drawing, request)| DrawingTask::new(&model, *drawing, request));
        let images = together(&model, rows, tasks.collect::<Result<_>>()?, true, None)?;
        for (number, (ours, expected)) in images.iter().zip(&alone).enumerate() {
            assert!(ours == expected, "drawing {number} in {rows} rows");
        }
    }
    Ok(())
}

#[test]
fn previews_are_those_of_a_drawing_alone() -> Result<()> {
    let model = model(&Device::Cpu);
    let mut request = model.request([1]);
    (request.sampling.guidance, request.sampling.sampler) = (2.0, SamplerKind::Heun);
    let mut expected = Vec::new();
    let mut watch = engine::pipeline::Previewed(|stage: &DrawingStage| {
        expected.push(stage.preview()?.unwrap()[0].clone());
        Ok(())
    });
    model.draw(Drawing::Sample, &request, &mut watch)?;
    let mut batch = Batch::new(&model, 8)?;
    let other = DrawingTask::new(&model, Drawing::Sample, &model.request([2, 0]))?;
    batch.join(other.joining(0))?;
    batch.join(other.joining(1))?;
    batch.step()?;
    let task = DrawingTask::new(&model, Drawing::Sample, &request)?;
    let ticket = batch.join(task.joining(0))?;
    assert_eq!(batch.preview(ticket)?, None);
    for (stage, expected) in expected[..expected.len() - 1].iter().enumerate() {
        batch.step()?;
        assert!(batch.preview(ticket)?.as_ref() == Some(expected), "stage {stage}");
    }
    assert_eq!(batch.step()?.len(), 1);
    assert_eq!(batch.preview(ticket)?, None);
    Ok(())
}

#[test]
fn what_cannot_be_is_refused() -> Result<()> {
    let model = model(&Device::Cpu);
    assert!(Batch::new(&model, 1).is_err());
    let mut batch = Batch::new(&model, 2)?;
    let task = DrawingTask::new(&model, Drawing::Sample, &model.request([1, 1, 1]))?;
    assert!(task.rows() <= 2);
    for place in 0..2 / task.rows() {
        batch.join(task.joining(place))?;
    }
    assert!(batch.join(task.joining(0)).is_err(), "no room");
    let mut bad = model.request([1]);
    bad.sampling.num_steps = 0;
    assert!(DrawingTask::new(&model, Drawing::Sample, &bad).is_err());
    assert!(DrawingTask::new(&model, Drawing::Sample, &model.request([99])).is_err());
    Ok(())
}

/// On kernels, whose steps are captured: every size is a separate program.
#[test]
fn on_the_emulator_too() -> Result<()> {
    let model = model(&Device::Accelerator(emulator::device()));
    let requests: Vec<SampleRequest> = requests(&model).into_iter().skip(1).take(3).collect();
    let alone: Vec<Vec<Vec<f32>>> = requests.iter().map(|request| model.sample(request)).collect::<Result<_>>()?;
    let tasks =
        requests.iter().map(|request| DrawingTask::new(&model, Drawing::Sample, request)).collect::<Result<_>>()?;
    assert!(together(&model, 6, tasks, false, None)? == alone);
    Ok(())
}

/// Batches grow and shrink as images join and leave; each of the few sizes is captured at its second step and never again.
#[test]
fn every_size_is_captured_once() -> Result<()> {
    let emulator = emulator::device();
    let model = model(&Device::Accelerator(emulator.clone()));
    let mut request = model.request([1]);
    (request.sampling.guidance, request.sampling.num_steps, request.sampling.sampler) = (1.0, 40, SamplerKind::Ddim);
    let before = emulator.captures();
    let mut batch = Batch::new(&model, 6)?;
    let task = DrawingTask::new(&model, Drawing::Sample, &request)?;
    let mut tickets = Vec::new();
    // From the smallest size to the largest: the arena of earlier graphs must not move.
    for _ in 0..2 {
        for size in [1, 2, 3, 4, 5, 6, 5, 3, 1] {
            while tickets.len() < size {
                tickets.push(batch.join(task.joining(0))?);
            }
            while tickets.len() > size {
                batch.leave(tickets.remove(0));
            }
            batch.step()?;
            batch.step()?;
        }
        assert_eq!(emulator.captures() - before, 4, "steps of 1, 2, 4 and 6 rows");
    }
    Ok(())
}
