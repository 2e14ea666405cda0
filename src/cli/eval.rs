//! `engine eval`: FID and other metrics of models and of sets of pictures.

mod against;
mod result;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::crew::Crew;
use super::eval_paths::{checkpoints, is_statistics};
use super::eval_seeds::{distinct, over_seeds};
use super::eval_text::{ablation, ablation_curve, settings, table};
use super::features::{FeatureOptions, Work, check_classes, network, of_floor};
use super::flags;
use super::machine::{Machine, MachineOptions};
use super::options::DataFolder;
use super::sampling::{GUIDANCE, SAMPLER, STEPS};
use crate::cluster::{Alone, Collective, Fact, agree};
use crate::diffusion::{NoiseSchedule, Plan, SamplerKind, SamplingConfig};
use crate::error::{Error, Result};
use crate::eval::evaluation::{
    Asking, Classes, Compared, DrawOrder, Drawn, Draws, Measured, MetricKind, Reference, check_statistics_suffice,
    class_places, warnings,
};
use crate::eval::{Extractor, Gallery, Statistics};
use crate::files::write_atomically;
use crate::model_file::ModelFile;
use crate::ops::host::parallel::{install, set_threads};
use crate::picture::{render_metric_curve, write_png};
use crate::pipeline::{Changes, Model};
use crate::words::counted;
use against::{Against, REFERENCE_RULES};

/// Evaluate models or sets of pictures: FID, KID, Inception Score, precision and recall and more, with their uncertainty.
///
/// Samples and features are cached: a stopped evaluation resumes, and a larger one reuses the samples of a smaller one. Without
/// InceptionV3's file (`engine fetch inception`) give a classifier with --extractor; its Fréchet distance is then called FD-NAME,
/// never FID.
#[derive(Clone, Debug, Args)]
pub struct EvalCommand {
    /// Models: files, checkpoints, run folders, or the name of a model that comes with the engine
    #[arg(long, visible_alias = "checkpoint", value_name = "FILE|RUN|NAME", num_args = 1..)]
    model: Vec<PathBuf>,
    /// Evaluate every checkpoint of a run, in one table
    #[arg(long, value_name = "RUN")]
    checkpoints: Option<PathBuf>,
    /// Pictures instead of a model's samples: a folder, an archive, an array (.npy, .npz) or a data set file
    #[arg(long, value_name = "PATH", conflicts_with_all = ["model", "checkpoints"])]
    samples: Option<PathBuf>,
    /// The reference data set: its training images; its held-out images give the floor [default: the model's]
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// Reference statistics (.npz with mu and sigma, as pytorch-fid, clean-fid and EDM write them) or pictures, in place of --data
    #[arg(long, value_name = "F.npz|PATH", conflicts_with = "data")]
    reference: Option<PathBuf>,
    /// The tool that wrote a statistics file, if the file does not record it
    #[arg(long, value_name = "TOOL", requires = "reference", value_parser = REFERENCE_RULES)]
    reference_rule: Option<String>,
    /// Number of samples [default: 10000, or all pictures of --samples]
    #[arg(long, value_name = "N")]
    num_samples: Option<usize>,
    /// Which metrics [default: fid, kid, is, precision-recall, density-coverage, authenticity; accuracy with a classifier]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METRIC,…")]
    metrics: Vec<MetricKind>,
    /// Short for --metrics fid
    #[arg(long)]
    calculate_fid: bool,
    /// Short for --metrics is
    #[arg(long)]
    calculate_is: bool,
    #[command(flatten)]
    features: FeatureOptions,
    /// A classifier that finds the samples' classes [default: the extractor, if it is one]
    #[arg(long, value_name = "FILE|RUN")]
    classifier: Option<PathBuf>,
    #[arg(long, value_delimiter = ',', value_name = "N,…", help = format!("{STEPS}; several make a table"))]
    steps: Vec<usize>,
    #[arg(long, value_delimiter = ',', value_name = "SCALE,…", help = format!("{GUIDANCE}; several make a table"))]
    guidance: Vec<f64>,
    #[arg(long, value_name = "SAMPLER", help = SAMPLER)]
    sampler: Option<SamplerKind>,
    /// Seed of the samples and of the subsets
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Seeds of the samples: evaluates each, and prints the mean with its standard error
    #[arg(long, value_delimiter = ',', value_name = "N,…", conflicts_with = "seed")]
    seeds: Vec<u64>,
    /// Samples computed together [default: up to 32 on the CPU, 256 on a GPU]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Write the reference's mean and covariance to this file, for reuse and for other tools
    #[arg(long, value_name = "F.npz")]
    write_statistics: Option<PathBuf>,
    /// The folder for results
    #[arg(long, value_name = "DIR", default_value = "outputs")]
    out: PathBuf,
    /// Replace the results of another command in --out, and an existing file of statistics
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    folder: DataFolder,
    #[command(flatten)]
    machine: MachineOptions,
    /// Number of processes on this machine, on the CPU unless --device is given: the same results in less time
    #[arg(long, value_name = "N", conflicts_with = "gpus")]
    processes: Option<usize>,
    /// Number of GPUs of this machine, with one process each
    #[arg(long, value_name = "N")]
    gpus: Option<usize>,
    /// Print only the table
    #[arg(long)]
    quiet: bool,
}

/// Number of samples by default.
const SAMPLES: usize = 10_000;
/// Tells the other processes to end.
const END: &[u8] = b"end";

/// The object to evaluate: a model with sampling settings, or pictures.
struct Job {
    name: String,
    /// The name without the seed.
    group: String,
    /// Settings of the samples.
    seed: u64,
    /// Its index among the jobs.
    number: usize,
    model: Option<PathBuf>,
    changes: Changes,
}

impl EvalCommand {
    /// Draws, extracts, measures, prints and writes.
    ///
    /// # Errors
    /// Those of the models, the data, the network's file and the metrics.
    pub fn run(self) -> Result<()> {
        let option = if self.gpus.is_some() { "--gpus" } else { "--processes" };
        let crew = Crew::gather(self.processes.or(self.gpus), option)?;
        let outcome = self.run_in(crew.as_ref());
        if let Some(crew) = &crew {
            crew.team.leave(outcome.as_ref().err().map(|error| flags::with_flags(error, flags::SAMPLING)).as_deref());
        }
        outcome
    }

    fn run_in(self, crew: Option<&Crew>) -> Result<()> {
        let threads = self.machine.checked_threads()?;
        if let Some(crew) = crew {
            crew.share_threads(threads)?;
        }
        if crew.is_none() || threads.is_some() {
            set_threads(threads)?;
        }
        let device = self.machine.device.parse()?;
        let device = Crew::device_of(crew, device, self.gpus.is_some(), self.processes.is_some());
        let machine = self.machine.opened(device)?;
        let team = crew.map_or_else(|| Arc::new(Alone::default()) as Arc<dyn Collective>, |crew| crew.team.clone());
        install(move || match team.rank() {
            0 => self.evaluate(&machine, &team),
            _ => self.assist(&machine, team.as_ref()),
        })
    }

    /// Settings that all processes must share.
    fn fact(&self) -> [Fact; 1] {
        let ways = (&self.model, &self.checkpoints, &self.steps, &self.guidance, self.sampler, self.seed, &self.seeds);
        let networks = (&self.features.extractor, &self.features.inception, &self.classifier, self.features.rule);
        let value = format!("{ways:?}\n{networks:?}\nin batches of {}", self.features.feature_batch);
        [Fact { name: "command", value }]
    }

    /// Rank 0 reads, measures and writes.
    fn evaluate(&self, machine: &Machine, team: &Arc<dyn Collective>) -> Result<()> {
        let jobs = self.jobs()?;
        let (asked, by_default) = self.asked();
        if self.reference.as_ref().is_some_and(|path| is_statistics(path)) {
            check_statistics_suffice(&asked)?;
        }
        let given = self.checked(&jobs)?;
        let count = given.as_ref().map_or(self.num_samples.unwrap_or(SAMPLES), Gallery::len);
        agree(team.as_ref(), &self.fact())?;
        let mut extractor = self.features.extractor(machine)?.shared_with(team, 0);
        let opened = |path: &PathBuf| self.features.opened(machine, path, "classifier");
        let mut classifier = self.classifier.as_ref().map(opened).transpose()?.map(|own| own.shared_with(team, 1));
        if !by_default && asked.contains(&MetricKind::Accuracy) {
            self.check_classes(&jobs, given.as_ref(), classifier.as_ref().unwrap_or(&extractor))?;
        }
        self.check_sizes(&jobs, &extractor, classifier.as_ref())?;
        let work = self.work(team);
        let all = match team.ranks() {
            1 => String::new(),
            ranks => format!(", {ranks} processes, by {}", team.name()),
        };
        work.note(&format!("features by {}, on {}{all}", network(&extractor), machine.note));
        let against = self.against(&jobs, count, &mut extractor, &work)?;
        if let (Some(path), Some(Reference::Pictures(set))) = (&self.write_statistics, &against.reference) {
            let mut statistics = Statistics::of_features(&set.features()?)?;
            statistics.rule = extractor.rule().map(|rule| rule.name().to_string());
            statistics.network = Some(extractor.hash().to_string());
            statistics.data = against.described["sha256"].as_str().map(String::from);
            statistics.write(path)?;
        }
        let floor = self.floor(&asked, &extractor, &against, &work)?;
        let all = (&against, floor.as_slice(), &work);
        let (mut results, mut given) = (Vec::with_capacity(jobs.len()), given);
        let asked = (asked.as_slice(), by_default);
        for job in &jobs {
            results.push(self.one(job, given.take(), asked, (&mut extractor, classifier.as_mut()), all, machine)?);
            self.write(&results)?;
        }
        if jobs.len() > 1 {
            self.write_tables(&results, &network(&extractor))?;
        }
        work.note(&format!("written to {}", self.out.display()));
        team.tell(END)
    }

    /// `ablation.md` and `ablation.png`: all jobs in one table, printed too, and one plot.
    fn write_tables(&self, results: &[Value], network: &str) -> Result<()> {
        let mut markdown = ablation(results);
        markdown += &over_seeds(results).map(|seeds| format!("\n{}", ablation(&seeds))).unwrap_or_default();
        print!("{markdown}");
        let mut how: Vec<String> = results.iter().map(settings).collect();
        how.dedup();
        let described = format!("Features by {network}.\n\n{}", how.join("\n"));
        write_atomically(self.out.join("ablation.md"), format!("{markdown}\n{described}").as_bytes())?;
        let seeds = over_seeds(results);
        if let Some(curve) = ablation_curve(seeds.as_deref().unwrap_or(results)) {
            let picture = render_metric_curve(&curve)?;
            write_png(self.out.join("ablation.png"), &picture, &[("evaluation", &described)])?;
        }
        Ok(())
    }

    /// Checks everything that can be checked before work begins, and opens the pictures of --samples.
    fn checked(&self, jobs: &[Job]) -> Result<Option<Gallery>> {
        for (option, number, what) in
            [("--num-samples", self.num_samples, "samples"), ("--batch", self.batch, "images in a batch")]
        {
            if number == Some(0) {
                return Err(Error::config(option, format!("0 {what}"), "give 1 or more"));
            }
        }
        for job in jobs {
            let Some(path) = &job.model else { continue };
            let file = ModelFile::open(path)?;
            let mut sampling = file.info().config.sampling.clone();
            job.changes.apply(&mut sampling);
            sampling.validate(file.info().config.diffusion.num_steps)?;
        }
        let given = match &self.samples {
            Some(path) => {
                let gallery = Gallery::open(path)?;
                let count = self.num_samples.unwrap_or(gallery.len());
                let few = (count > gallery.len())
                    .then(|| format!("{} has {}, not {count}", gallery.name, counted(gallery.len(), "picture")));
                let mut gallery = gallery.part(count, self.seed);
                gallery.notes.extend(few);
                Some(gallery)
            }
            None => None,
        };
        self.check_places()?;
        Ok(given)
    }

    /// Refuses to count classes that the classifier does not know.
    fn check_classes(&self, jobs: &[Job], given: Option<&Gallery>, classifier: &Extractor) -> Result<()> {
        let mut of_samples: Vec<Vec<String>> = given.iter().map(|gallery| gallery.class_names.clone()).collect();
        for path in jobs.iter().filter_map(|job| job.model.as_ref()) {
            of_samples.push(ModelFile::open(path)?.info().classes.clone());
        }
        for names in of_samples {
            check_classes(&names, classifier, "--classifier")?;
        }
        Ok(())
    }

    /// Refuses classifiers that do not take the pictures which the models draw.
    fn check_sizes(&self, jobs: &[Job], extractor: &Extractor, classifier: Option<&Extractor>) -> Result<()> {
        for path in jobs.iter().filter_map(|job| job.model.as_ref()) {
            let file = ModelFile::open(path)?;
            let [height, width, _] = file.info().config.model.image_shape();
            extractor.check_size([height, width])?;
            if let Some(classifier) = classifier {
                classifier.check_size([height, width]).map_err(of_classifier)?;
            }
        }
        Ok(())
    }

    /// The other ranks draw and extract on commands of rank 0, until it ends the evaluation.
    fn assist(&self, machine: &Machine, team: &dyn Collective) -> Result<()> {
        let jobs = self.jobs()?;
        agree(team, &self.fact())?;
        let (mut extractor, mut classifier) = (None, None);
        let mut model: Option<(usize, Model)> = None;
        loop {
            let order = team.listen()?;
            let unknown = || Error::cluster("rank 0 sent an unknown message", "start all ranks with the same engine");
            if order == END {
                return Ok(());
            }
            if let Some(draw) = DrawOrder::read(&order) {
                let job = jobs.get(draw.job).ok_or_else(unknown)?;
                let path = job.model.as_ref().ok_or_else(unknown)?;
                let known = model.take().filter(|(number, _)| *number == draw.job);
                let load = || Ok::<_, Error>((draw.job, machine.load(path)?));
                let (_, model) = model.insert(known.map_or_else(load, Ok)?);
                let mut sampling = model.info.config.sampling.clone();
                job.changes.apply(&mut sampling);
                Draws { model, sampling: &sampling, seed: job.seed, batch: draw.batch }.assist(team, &draw)?;
                continue;
            }
            match (Extractor::is_asked_of(&order), &self.classifier) {
                (Some(0), _) => {
                    let known = extractor.take().map_or_else(|| self.features.extractor(machine), Ok)?;
                    extractor.insert(known).assist(team, &order)?;
                }
                (Some(1), Some(path)) => {
                    let open = || self.features.opened(machine, path, "classifier");
                    let known = classifier.take().map_or_else(open, Ok)?;
                    classifier.insert(known).assist(team, &order)?;
                }
                _ => return Err(unknown()),
            }
        }
    }

    fn work(&self, team: &Arc<dyn Collective>) -> Work {
        let cache = self.features.cache.clone().unwrap_or_else(|| self.folder.data_dir.join("evaluation"));
        Work { cache, quiet: self.quiet, team: team.clone() }
    }

    /// The metrics of real held-out images, if there are enough of them.
    fn floor(
        &self,
        asked: &[MetricKind],
        extractor: &Extractor,
        against: &Against,
        work: &Work,
    ) -> Result<Vec<Measured>> {
        let Some((_, set)) = &against.held_out else { return Ok(Vec::new()) };
        let kinds = of_floor(asked, set.count());
        let asking = Asking { draws: 0, ..self.features.asking(&kinds, extractor, self.seed) };
        Ok(work.measured(set, against.reference.as_ref(), &asking)?.0)
    }

    /// The sampling settings for each of the models.
    fn jobs(&self) -> Result<Vec<Job>> {
        if let Some(path) = &self.samples {
            let name = path.display().to_string();
            let (group, changes) = (name.clone(), Changes::default());
            return Ok(vec![Job { name, group, seed: self.seed, number: 0, model: None, changes }]);
        }
        let mut models = self.model.clone();
        if let Some(run) = &self.checkpoints {
            models.extend(checkpoints(run)?);
        }
        // Repeated values would pass for independent ones.
        let same = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        distinct("--model", &models.iter().map(|path| same(path).display().to_string()).collect::<Vec<_>>())?;
        distinct("--steps", &self.steps)?;
        distinct("--guidance", &self.guidance)?;
        distinct("--seeds", &self.seeds)?;
        if models.is_empty() {
            return Err(Error::config(
                "engine eval",
                "nothing to evaluate",
                "give --model, --checkpoints or --samples",
            ));
        }
        let each = |steps: &[usize]| steps.iter().copied().map(Some).collect::<Vec<_>>();
        let steps = if self.steps.is_empty() { vec![None] } else { each(&self.steps) };
        let guidance =
            if self.guidance.is_empty() { vec![None] } else { self.guidance.iter().copied().map(Some).collect() };
        let seeds = if self.seeds.is_empty() { vec![self.seed] } else { self.seeds.clone() };
        let mut jobs = Vec::new();
        for model in &models {
            for &steps in &steps {
                for &guidance in &guidance {
                    let mut group = model.display().to_string();
                    group.extend(
                        steps.filter(|_| self.steps.len() > 1).map(|steps| format!(", {}", counted(steps, "step"))),
                    );
                    group.extend(
                        guidance.filter(|_| self.guidance.len() > 1).map(|scale| format!(", guidance {scale}")),
                    );
                    for &seed in &seeds {
                        let several = if seeds.len() > 1 { format!(", seed {seed}") } else { String::new() };
                        let changes = Changes { sampler: self.sampler, steps, guidance, ..Changes::default() };
                        let (name, group, number) = (format!("{group}{several}"), group.clone(), jobs.len());
                        jobs.push(Job { name, group, seed, number, model: Some(model.clone()), changes });
                    }
                }
            }
        }
        Ok(jobs)
    }

    /// The metrics, and whether they are those by default, to which the class accuracy belongs where classes are known.
    fn asked(&self) -> (Vec<MetricKind>, bool) {
        use MetricKind::{Authenticity, DensityCoverage, Fid, Is, Kid, PrecisionRecall};
        let mut asked = self.metrics.clone();
        asked.extend(self.calculate_fid.then_some(Fid));
        asked.extend(self.calculate_is.then_some(Is));
        let by_default = asked.is_empty();
        if by_default {
            asked = match self.reference.as_ref().is_some_and(|path| is_statistics(path)) {
                true => vec![Fid, Is],
                false => vec![Fid, Kid, Is, PrecisionRecall, DensityCoverage, Authenticity],
            };
        }
        let mut seen = Vec::new();
        asked.retain(|kind| {
            !seen.contains(kind) && {
                seen.push(*kind);
                true
            }
        });
        (asked, by_default)
    }

    fn one(
        &self,
        job: &Job,
        given: Option<Gallery>,
        (asked, by_default): (&[MetricKind], bool),
        (extractor, classifier): (&mut Extractor, Option<&mut Extractor>),
        (against, floor, work): (&Against, &[Measured], &Work),
        machine: &Machine,
    ) -> Result<Value> {
        let (gallery, of, described, classes) = self.pictures(job, given, machine, work)?;
        gallery.notes.iter().for_each(|note| work.note(&format!("note: {}", flags::noted(note))));
        let count = gallery.len();
        let set = work.features(&gallery, &of, count, extractor, "features")?;
        let mut class_names = extractor.class_names().to_vec();
        let judged = match classifier {
            Some(classifier) => {
                class_names = classifier.class_names().to_vec();
                let judged = work.features(&gallery, &of, count, classifier, "classes");
                Some(judged.map_err(of_classifier)?)
            }
            None => None,
        };
        let mut asking = self.features.asking(asked, extractor, self.seed);
        let mut asked = asked.to_vec();
        if let Ok(places) = class_places(&gallery.class_names, &class_names) {
            let truth: Vec<Option<usize>> =
                (0..count).map(|index| gallery.label(index).and_then(|label| places.get(label).copied())).collect();
            if truth.iter().any(Option::is_some) {
                asked.extend((by_default && gallery.is_drawn()).then_some(MetricKind::Accuracy));
                let logits = judged.as_ref().unwrap_or(&set).logits()?;
                asking.classes = Some(Classes { truth, names: class_names, logits });
            }
        }
        asking.metrics = &asked;
        let (found, nearest) = work.measured(&set, against.reference.as_ref(), &asking)?;
        let mut warned = against.warned.clone();
        warned.extend(unpublished(extractor));
        warned.extend(warnings(&Compared {
            samples: &gallery,
            reference: against.gallery.as_ref(),
            counts: (count, against.held_out.as_ref().map(|held_out| held_out.0.len())),
            found: &found,
            classes: (classes, against.classes),
            rule: extractor.rule(),
        })?);
        let result = self.result(job, (count, described), extractor, (&found, floor), against, &warned);
        print!("{}", table(&job.name, (count, &network(extractor)), &settings(&result), &found, floor));
        warned.iter().for_each(|warning| eprintln!("warning: {warning}"));
        if job.number == 0 {
            self.clear()?;
        }
        self.panels(&gallery, against, nearest.as_deref(), (count, job.number), &settings(&result))?;
        Ok(result)
    }

    /// The pictures of a job, its cache key, its description, and the model's classes.
    fn pictures(
        &self,
        job: &Job,
        given: Option<Gallery>,
        machine: &Machine,
        work: &Work,
    ) -> Result<(Gallery, Value, Value, Option<usize>)> {
        if let Some(gallery) = given {
            let of = gallery.identity()?;
            let described = json!({ "samples": gallery.name, "sha256": of["sha256"], "chosen": gallery.chosen });
            return Ok((gallery, of, described, None));
        }
        let path = job.model.as_deref().unwrap_or(Path::new(""));
        let model: Model = machine.load(path)?;
        let mut sampling: SamplingConfig = model.info.config.sampling.clone();
        job.changes.apply(&mut sampling);
        let count = self.num_samples.unwrap_or(SAMPLES);
        let Drawn { gallery, of, seconds_per_image } =
            work.drawn(&model, &sampling, job.seed, (count, self.batch), job.number)?;
        let config = &model.info.config.diffusion;
        let plan = Plan::new(&NoiseSchedule::new(config)?, config.prediction, &sampling)?;
        let evaluations: usize = plan.stages().iter().map(|stage| 1 + usize::from(stage.is_guided())).sum();
        let described = json!({
            "checkpoint": path.display().to_string(), "step": model.info.step, "epoch": model.info.epoch,
            "model_sha256": model.digest.sha256, "weights": model.info.weights, "seed": job.seed, "sampling": sampling,
            "sampling_precision": model.parameters.precision_name(), "evaluations_per_image": evaluations,
            "seconds_per_image": seconds_per_image,
        });
        let classes = Some(model.class_names().len()).filter(|&classes| classes > 0);
        Ok((gallery, of, described, classes))
    }
}

/// An extractor's error, of the network that --classifier names.
fn of_classifier(error: Error) -> Error {
    match error {
        Error::Config { place, message, advice } if place == "extractor" => {
            Error::config("--classifier", message, advice)
        }
        other => other,
    }
}

/// A warning where the weights are not the published ones.
fn unpublished(extractor: &Extractor) -> Option<String> {
    (extractor.is_published() == Some(false)).then(|| {
        let hash = &extractor.hash()[..8];
        format!(
            "the file of InceptionV3 ({hash}…) is not the published one (6726825d…): unless it holds the same weights, \
             these numbers do not compare with others"
        )
    })
}
