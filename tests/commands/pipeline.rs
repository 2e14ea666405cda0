//! Long-term use of a model: loaded once, it serves many requests, shows previews, and stops on request; and no command opens its
//! model file twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use crate::tiny;
use engine::diffusion::SamplerKind;
use engine::pipeline::{Drawing, DrawingStage, Ends, Inpaint, Model, Previewed, SampleRequest};
use engine::tensor::{Context, DType};
use engine::{Error, Result};

/// An untrained model of 8x8 RGB images and three classes: its output is not trivial, and always the same.
fn model() -> Model {
    let settings =
        ["model.conditioning=token", "sampling.sampler=ddim", "sampling.num_steps=5", "sampling.guidance=1.5"];
    let mut model = Model::untrained(&tiny::config(&settings), &Context::cpu(), DType::F32, 5).unwrap();
    model.info.classes = ["a", "b", "c"].map(String::from).to_vec();
    model
}

/// Three images in batches of two, without fresh noise.
fn request(model: &Model, sampler: SamplerKind) -> SampleRequest {
    let mut request = model.request([0, 1, 2]);
    (request.seed, request.batch, request.first) = (7, 2, 4);
    (request.sampling.sampler, request.sampling.eta) = (sampler, 0.0);
    request
}

/// Every kind of drawing.
fn drawings(images: &[Vec<f32>; 2]) -> Vec<Drawing<'_>> {
    let [first, second] = images;
    const FREE: [bool; 64] = {
        let mut free = [false; 64];
        (free[9], free[10], free[63]) = (true, true, true);
        free
    };
    vec![
        Drawing::Sample,
        Drawing::Interpolate(Ends::Seeds(1, 2)),
        Drawing::Interpolate(Ends::Images(first, second)),
        Drawing::Vary { image: first, strength: 0.6 },
        Drawing::Inpaint(Inpaint { image: first, free: &FREE, rounds: 2 }),
        Drawing::Upscale { small: &second[..48], factor: 2, rounds: 1 },
    ]
}

fn images() -> [Vec<f32>; 2] {
    let value = |seed: usize, at: usize| ((at * 37 + seed * 91) % 255) as f32 / 127.5 - 1.0;
    [1, 2].map(|seed| (0..192).map(|at| value(seed, at)).collect())
}

fn ignored(_: &DrawingStage) -> Result<()> {
    Ok(())
}

#[test]
fn whoever_watches_changes_no_bit_and_sees_every_stage() {
    let model = model();
    let given = images();
    for drawing in drawings(&given) {
        let request = request(&model, SamplerKind::Ddim);
        let plain = model.draw(drawing, &request, &mut ignored).unwrap();
        let mut seen = Vec::new();
        let mut watch = Previewed(|stage: &DrawingStage| {
            let preview = stage.preview()?;
            assert_eq!(preview.as_ref().map_or(0, Vec::len), stage.images.len());
            seen.push((stage.done, stage.total, stage.images.clone(), preview));
            Ok(())
        });
        assert_eq!(model.draw(drawing, &request, &mut watch).unwrap(), plain, "{drawing:?}");
        // Evaluations are counted up to their total, and every image appears.
        assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "{drawing:?}");
        let last = seen.last().unwrap();
        assert_eq!((last.0, last.2.end), (last.1, 3));
        for (_, _, images, preview) in &seen {
            let Some(preview) = preview else { continue };
            match drawing {
                Drawing::Inpaint(Inpaint { image, free, .. }) => {
                    let kept = |at: &usize| !free[at / 3];
                    assert!(preview.iter().all(|shown| (0..192).filter(kept).all(|at| shown[at] == image[at])));
                }
                // After the last stage nothing is left except blending frames between images.
                Drawing::Sample | Drawing::Vary { .. } if images.end == 3 && Some(preview) == last.3.as_ref() => {
                    let (shown, drawn) = (preview.concat(), plain[images.clone()].concat());
                    assert!(shown.iter().zip(&drawn).all(|(a, b)| (a - b).abs() < 1e-5), "{drawing:?}");
                }
                _ => {}
            }
        }
        // None unless requested.
        let mut none = |stage: &DrawingStage| {
            assert_eq!(stage.preview()?, None);
            Ok(())
        };
        assert_eq!(model.draw(drawing, &request, &mut none).unwrap(), plain);
    }
}

/// DDIM goes from x to a'·x_0 + s'·ε with ε = (x − a·x_0) / s: each preview leads from one state to the next.
#[test]
fn a_preview_is_what_the_step_was_made_of() {
    let model = model();
    let mut request = request(&model, SamplerKind::Ddim);
    (request.labels, request.batch) = (vec![1, 2], 2);
    for (guidance, clip) in [(1.0, false), (2.5, true)] {
        (request.sampling.guidance, request.sampling.clip_x0) = (guidance, clip);
        let mut previews = Vec::new();
        let mut watch = Previewed(|stage: &DrawingStage| {
            previews.push(stage.preview()?.unwrap().concat());
            Ok(())
        });
        model.draw(Drawing::Sample, &request, &mut watch).unwrap();
        let mut sampler = model.sampler_for(&request).unwrap();
        sampler.begin(request.first, &[1, 2]).unwrap();
        let levels: Vec<_> = sampler.plan().stages().iter().map(|stage| stage.level).collect();
        for (stage, shown) in previews.iter().enumerate() {
            let before = sampler.state().unwrap();
            sampler.advance(stage).unwrap();
            let (from, to) =
                (levels[stage], levels.get(stage + 1).map_or((1.0, 0.0), |level| (level.alpha, level.sigma)));
            for ((x, x0), next) in before.iter().zip(shown).zip(sampler.state().unwrap()) {
                let (x, x0) = (f64::from(*x), f64::from(*x0));
                let expected = to.0 * x0 + to.1 * (x - from.alpha * x0) / from.sigma;
                assert!((expected - f64::from(next)).abs() < 1e-4, "stage {stage}: {next}, not {expected}");
                assert!(!clip || x0.abs() <= 1.0);
            }
        }
    }
}

#[test]
fn a_drawing_ends_where_it_is_told_to_and_the_model_goes_on() {
    let model = model();
    let given = images();
    for drawing in drawings(&given) {
        let request = request(&model, SamplerKind::Ddim);
        let whole = model.draw(drawing, &request, &mut ignored).unwrap();
        for end in [1, 4, 7] {
            let mut stages = 0;
            let mut stop = |_: &DrawingStage| {
                stages += 1;
                match stages == end {
                    true => Err(Error::Interrupted { message: format!("after {end}") }),
                    false => Ok(()),
                }
            };
            let outcome = model.draw(drawing, &request, &mut stop);
            match outcome {
                Err(Error::Interrupted { message }) => assert_eq!(message, format!("after {end}")),
                outcome => assert!(outcome.is_ok() && stages < end, "{drawing:?}, {end}: {stages}"),
            }
        }
        assert_eq!(model.draw(drawing, &request, &mut ignored).unwrap(), whole, "{drawing:?}");
    }
}

/// A message to the thread that has the model.
struct Job {
    labels: Vec<usize>,
    seed: u64,
    cancelled: Arc<AtomicBool>,
    events: mpsc::Sender<Event>,
}

enum Event {
    Preview(Vec<Vec<f32>>),
    End(Result<Vec<Vec<f32>>>),
}

fn serve(jobs: &mpsc::Receiver<Job>) {
    let model = model();
    for Job { labels, seed, cancelled, events } in jobs {
        let request = SampleRequest { seed, ..model.request(labels) };
        let mut watch = Previewed(|stage: &DrawingStage| {
            if cancelled.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { message: "cancelled".into() });
            }
            // A client that has gone needs no preview.
            let _ = events.send(Event::Preview(stage.preview()?.unwrap_or_default()));
            Ok(())
        });
        let end = model.draw(Drawing::Sample, &request, &mut watch);
        let _ = events.send(Event::End(end));
    }
}

#[test]
fn a_thread_with_a_model_draws_for_many() {
    let (jobs, queue) = mpsc::channel();
    let device = std::thread::spawn(move || serve(&queue));
    let ask = |labels: &[usize], seed: u64, cancelled: bool| {
        let (events, answer) = mpsc::channel();
        let cancelled = Arc::new(AtomicBool::new(cancelled));
        jobs.send(Job { labels: labels.to_vec(), seed, cancelled, events }).unwrap();
        answer
    };
    let answers = [ask(&[0, 1], 3, false), ask(&[2], 3, true), ask(&[1], 4, false), ask(&[0, 1], 3, false)];
    let ends: Vec<_> = answers
        .into_iter()
        .map(|events| {
            let (mut previews, mut end) = (0, None);
            for event in events {
                match event {
                    Event::Preview(images) => previews += images.len(),
                    Event::End(outcome) => end = Some(outcome),
                }
            }
            (previews, end.unwrap())
        })
        .collect();
    drop(jobs);
    device.join().unwrap();
    let model = model();
    let own = |labels: &[usize], seed: u64| model.sample(&SampleRequest { seed, ..model.request(labels) }).unwrap();
    assert_eq!(ends[0].1.as_ref().unwrap(), &own(&[0, 1], 3));
    assert_eq!(ends[2].1.as_ref().unwrap(), &own(&[1], 4));
    assert_eq!(ends[3].1.as_ref().unwrap(), &own(&[0, 1], 3));
    assert!(matches!(ends[1], (0, Err(Error::Interrupted { .. }))));
    assert_eq!([ends[0].0, ends[2].0], [2 * 5, 5]);
}

/// The opened files, as reported by the kernel.
#[cfg(target_os = "linux")]
mod opens {
    use std::ffi::CString;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::FromRawFd;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::process::Command;

    use engine::config::Config;
    use engine::model_file::ClassifierModel;
    use engine::picture::{Image, write_png};
    use engine::tensor::{Context, DType};

    use super::model;

    /// The number of times a file is opened during `work`. The kernel merges equal unread events, so each opening is counted with
    /// its closing.
    fn opens(path: &Path, work: impl FnOnce()) -> usize {
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: no pointers; the descriptor belongs to the file from now on.
        let mut events = unsafe {
            let descriptor = libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC);
            assert!(descriptor >= 0, "{}", std::io::Error::last_os_error());
            File::from_raw_fd(descriptor)
        };
        let mask = libc::IN_OPEN | libc::IN_CLOSE_NOWRITE | libc::IN_CLOSE_WRITE;
        // SAFETY: a zero-terminated text.
        let watch = unsafe { libc::inotify_add_watch(std::os::fd::AsRawFd::as_raw_fd(&events), name.as_ptr(), mask) };
        assert!(watch >= 0, "{}", std::io::Error::last_os_error());
        work();
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = events.read(&mut chunk) {
            bytes.extend_from_slice(&chunk[..read]);
        }
        // A file's own event: watch, mask, cookie, length 0.
        let masks = bytes.chunks_exact(16).map(|event| u32::from_ne_bytes(event[4..8].try_into().unwrap()));
        masks.filter(|mask| mask & libc::IN_OPEN != 0).count()
    }

    fn engine(folder: &Path, arguments: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        let output = command.args(arguments.split(' ')).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn classifier() -> ClassifierModel {
        let mut config = Config::preset("resnet18-cifar10").unwrap();
        let tiny = ["model.blocks=[1, 1]", "model.widths=[4, 6]", "data.name=shapes", "data.shapes_count=40"];
        tiny.iter().for_each(|set| config.set(set).unwrap());
        ClassifierModel::untrained(&config, &Context::cpu(), DType::F32, 1).unwrap()
    }

    #[test]
    fn a_command_opens_its_model_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut drawing = model();
        drawing.info.config.sampling.guidance = 1.0;
        drawing.save(path("m.safetensors")).unwrap();
        let classifier = classifier();
        classifier.save(path("c.safetensors")).unwrap();
        // A model of the built-in set's size, for commands that use data.
        let mut config = Config::preset("quickstart").unwrap();
        let small = ["model.hidden_dim=32", "model.depth=1", "sampling.num_steps=2", "data.shapes_count=60"];
        small.iter().for_each(|set| config.set(set).unwrap());
        let large = engine::pipeline::Model::untrained(&config, &Context::cpu(), DType::F32, 2).unwrap();
        large.save(path("l.safetensors")).unwrap();
        large.save(path("k.safetensors")).unwrap();
        for (name, size) in [("a", 8), ("b", 8), ("mask", 8), ("half", 4)] {
            let shade = if name == "mask" { 255 } else { 90 };
            write_png(path(&format!("{name}.png")), &Image::filled(size, size, [shade; 3]), &[]).unwrap();
        }
        // Checks the counting: two consecutive openings count as two.
        let read = || drop(std::fs::read(path("m.safetensors")).unwrap());
        assert_eq!(opens(&path("m.safetensors"), || (read(), read()).0), 2);

        let cpu = "--device cpu --quiet";
        for (file, command) in [
            ("m", format!("sample --model m.safetensors --count 1 --out s.png {cpu}")),
            ("m", format!("sample --like s.png --out again.png {cpu}")),
            ("m", format!("interpolate --model m.safetensors --seeds 1 2 --frames 2 {cpu}")),
            ("m", format!("vary --model m.safetensors --image a.png {cpu}")),
            ("m", format!("inpaint --model m.safetensors --image a.png --mask mask.png {cpu}")),
            ("m", format!("upscale --model m.safetensors --image half.png {cpu}")),
            ("m", format!("classify a.png b.png --model m.safetensors --levels 1 {cpu}")),
            ("c", format!("classify --model c.safetensors --data builtin {cpu}")),
            ("l", format!("score --model l.safetensors --data builtin --count 2 --reference-count 2 --levels 1 {cpu}")),
            ("l", format!("compare l.safetensors k.safetensors --data builtin --images 2 --levels 1 --count 1 {cpu}")),
            ("m", "convert m.safetensors half.safetensors --dtype bf16 --quiet".into()),
            (
                "c",
                "train --preset resnet-dit --set model.backbone=c.safetensors --set model.hidden_dim=16 \
                 --set model.depth=1 --set model.num_heads=2 --set model.mlp_ratio=2 --set model.time_embedding_dim=8 \
                 --set model.decoder_channels=8 --set model.norm_groups=2 --set data.name=shapes \
                 --set data.shapes_count=40 --set training.num_steps=1 --set training.batch_size=2 \
                 --set training.sample_every=never --set sampling.num_steps=1 --set sampling.count_per_class=1 \
                 --device cpu --quiet --out run"
                    .into(),
            ),
        ] {
            let file = path(&format!("{file}.safetensors"));
            assert_eq!(opens(&file, || engine(folder.path(), &command)), 1, "{command}");
        }
    }
}
