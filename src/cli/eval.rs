//! `engine eval`: FID and other metrics of models and of sets of pictures.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::crew::Crew;
use super::eval_paths::{checkpoints, is_statistics};
use super::eval_seeds::over_seeds;
use super::eval_text::{ablation, ablation_curve, panel, table};
use super::features::{FeatureOptions, Work, data_set, network, of_floor};
use super::flags;
use super::machine::{Machine, MachineOptions};
use super::options::DataFolder;
use super::sampling::{GUIDANCE, SAMPLER, STEPS};
use crate::cluster::{Alone, Collective, Fact, agree};
use crate::data::Split;
use crate::diffusion::{SamplerKind, SamplingConfig};
use crate::error::{Error, Result};
use crate::eval::evaluation::{Asking, DrawOrder, Drawn, Draws, FeatureSet, Measured, MetricKind, Reference, warnings};
use crate::eval::{Extractor, Gallery, Rule, Statistics};
use crate::files::write_atomically;
use crate::ops::host::parallel::{install, set_threads};
use crate::picture::{render_metric_curve, write_png};
use crate::pipeline::{Changes, Model};

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
    #[arg(long, value_name = "TOOL", requires = "reference")]
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

/// The reference of all jobs.
struct Against {
    reference: Option<Reference>,
    gallery: Option<Gallery>,
    classes: Option<usize>,
    /// For files: name, hash and number of images.
    told: Value,
    /// Real held-out images.
    held_out: Option<(Gallery, FeatureSet)>,
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
            crew.team.leave(outcome.as_ref().err().map(|error| flags::told(error, flags::SAMPLING)).as_deref());
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
    fn facts(&self) -> [Fact; 1] {
        let ways = (&self.model, &self.checkpoints, &self.steps, &self.guidance, self.sampler, self.seed, &self.seeds);
        let networks = (&self.features.extractor, &self.features.inception, &self.classifier, self.features.rule);
        let value = format!("{ways:?}\n{networks:?}\nin batches of {}", self.features.feature_batch);
        [Fact { name: "command", value }]
    }

    /// Rank 0 reads, measures and writes.
    fn evaluate(&self, machine: &Machine, team: &Arc<dyn Collective>) -> Result<()> {
        let jobs = self.jobs()?;
        let asked = self.asked();
        agree(team.as_ref(), &self.facts())?;
        let mut extractor = self.features.extractor(machine)?.shared_with(team, 0);
        let opened = |path: &PathBuf| self.features.opened(machine, path, "classifier");
        let mut classifier = self.classifier.as_ref().map(opened).transpose()?.map(|own| own.shared_with(team, 1));
        let work = self.work(team);
        let all = match team.ranks() {
            1 => String::new(),
            ranks => format!(", {ranks} processes, by {}", team.name()),
        };
        work.note(&format!("features by {}, on {}{all}", network(&extractor), machine.note));
        let against = self.against(&jobs, &mut extractor, &work)?;
        if let (Some(path), Some(Reference::Pictures(set))) = (&self.write_statistics, &against.reference) {
            let mut statistics = Statistics::of_features(&set.features()?)?;
            statistics.rule = extractor.rule().map(|rule| rule.name().to_string());
            statistics.network = Some(extractor.hash().to_string());
            statistics.data = against.told["sha256"].as_str().map(String::from);
            statistics.write(path)?;
        }
        let floor = self.floor(&asked, &extractor, &against, &work)?;
        let all = (&against, floor.as_slice(), &work);
        let mut results = Vec::with_capacity(jobs.len());
        for job in &jobs {
            results.push(self.one(job, &asked, &mut extractor, classifier.as_mut(), all, machine)?);
            self.write(&results)?;
        }
        if jobs.len() > 1 {
            let mut markdown = ablation(&results);
            markdown += &over_seeds(&results).map(|seeds| format!("\n{}", ablation(&seeds))).unwrap_or_default();
            print!("{markdown}");
            write_atomically(self.out.join("ablation.md"), markdown.as_bytes())?;
            if let Some(curve) = ablation_curve(&results) {
                write_png(self.out.join("ablation.png"), &render_metric_curve(&curve)?, &[])?;
            }
        }
        work.note(&format!("written to {}", self.out.display()));
        team.tell(END)
    }

    /// The other ranks draw and extract on commands of rank 0, until it ends the evaluation.
    fn assist(&self, machine: &Machine, team: &dyn Collective) -> Result<()> {
        let jobs = self.jobs()?;
        agree(team, &self.facts())?;
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
                    group.extend(steps.filter(|_| self.steps.len() > 1).map(|steps| format!(", {steps} steps")));
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

    fn asked(&self) -> Vec<MetricKind> {
        use MetricKind::{Accuracy, Authenticity, DensityCoverage, Fid, Is, Kid, PrecisionRecall};
        let mut asked = self.metrics.clone();
        asked.extend(self.calculate_fid.then_some(Fid));
        asked.extend(self.calculate_is.then_some(Is));
        if asked.is_empty() {
            asked = match self.reference.as_ref().is_some_and(|path| is_statistics(path)) {
                true => vec![Fid, Is],
                false => vec![Fid, Kid, Is, PrecisionRecall, DensityCoverage, Authenticity],
            };
            let has_classifier = self.classifier.is_some() || self.features.extractor.is_some();
            asked.extend((has_classifier && self.samples.is_none()).then_some(Accuracy));
        }
        let mut seen = Vec::new();
        asked.retain(|kind| {
            !seen.contains(kind) && {
                seen.push(*kind);
                true
            }
        });
        asked
    }

    /// The reference, and the held-out images for its floor.
    fn against(&self, jobs: &[Job], extractor: &mut Extractor, work: &Work) -> Result<Against> {
        let none = Against { reference: None, gallery: None, classes: None, told: Value::Null, held_out: None };
        if let Some(path) = &self.reference {
            if is_statistics(path) {
                let reference = Reference::of_statistics(path)?;
                let told = self.statistics_told(path, &reference, extractor, work)?;
                return Ok(Against { reference: Some(reference), told, ..none });
            }
            let gallery = Gallery::open(path)?;
            return self.of_pictures(gallery, None, extractor, work);
        }
        let model = jobs.first().and_then(|job| job.model.as_deref());
        let Some(set) = data_set(self.data.as_deref(), model, &self.folder.data_dir, self.quiet)? else {
            return Ok(none);
        };
        let classes = set.class_names().len();
        let held_out = set.held_out();
        let gallery = Gallery::of_set(set.clone(), Split::Train, self.features.reference_count)?;
        let mut against = self.of_pictures(gallery, Some(classes), extractor, work)?;
        if set.split_len(held_out) > 1 {
            let count = self.num_samples.unwrap_or(10_000);
            let gallery = Gallery::of_set(set, held_out, Some(count))?;
            let of = gallery.identity()?;
            let features = work.features(&gallery, &of, gallery.len(), extractor, "held-out images")?;
            against.held_out = Some((gallery, features));
        }
        Ok(against)
    }

    fn of_pictures(
        &self,
        gallery: Gallery,
        classes: Option<usize>,
        extractor: &mut Extractor,
        work: &Work,
    ) -> Result<Against> {
        gallery.notes.iter().for_each(|note| work.note(&format!("note: {}", flags::noted(note))));
        let of = gallery.identity()?;
        let count = self.features.reference_count.unwrap_or(gallery.len()).min(gallery.len());
        let set = work.features(&gallery, &of, count, extractor, "reference")?;
        let told = json!({ "name": gallery.name, "images": count, "sha256": of["sha256"] });
        let reference = Some(Reference::Pictures(Box::new(set)));
        Ok(Against { reference, gallery: Some(gallery), classes, told, held_out: None })
    }

    /// The identity that a statistics file records, and whether it fits.
    fn statistics_told(&self, path: &Path, reference: &Reference, extractor: &Extractor, work: &Work) -> Result<Value> {
        let Reference::Statistics(both) = reference else { return Ok(Value::Null) };
        let statistics = &both.0;
        if statistics.mean.len() != extractor.width() {
            let message = format!(
                "statistics of {} features, and {} has {}",
                statistics.mean.len(),
                extractor.name(),
                extractor.width()
            );
            return Err(Error::file(path, message, "give statistics of the same network"));
        }
        let ours = extractor.rule().map_or("", Rule::name);
        match self.reference_rule.as_deref().or(statistics.rule.as_deref()) {
            // Our classifiers take pictures unscaled.
            _ if ours.is_empty() => {}
            Some(rule) if rule != ours => {
                work.note(&format!("warning: {} is by the rule of {rule}, the samples by {ours}", path.display()));
            }
            Some(_) => {}
            None => work.note(&format!("warning: {} does not record its rule; {ours} is assumed", path.display())),
        }
        if statistics.network.as_deref().is_some_and(|network| network != extractor.hash()) {
            let message = "statistics of another network's file";
            return Err(Error::file(path, message, "give statistics of the same network, or use that network"));
        }
        let rule = self.reference_rule.clone().or(statistics.rule.clone());
        Ok(
            json!({ "name": path.display().to_string(), "images": statistics.count, "rule": rule, "sha256": statistics.data }),
        )
    }

    fn one(
        &self,
        job: &Job,
        asked: &[MetricKind],
        extractor: &mut Extractor,
        classifier: Option<&mut Extractor>,
        (against, floor, work): (&Against, &[Measured], &Work),
        machine: &Machine,
    ) -> Result<Value> {
        let (gallery, of, told, classes) = self.pictures(job, machine, work)?;
        gallery.notes.iter().for_each(|note| work.note(&format!("note: {}", flags::noted(note))));
        let count = self.num_samples.unwrap_or(gallery.len()).min(gallery.len());
        let set = work.features(&gallery, &of, count, extractor, "features")?;
        let judged = match classifier {
            Some(classifier) => Some(work.features(&gallery, &of, count, classifier, "classes")?),
            None => None,
        };
        let labels: Vec<Option<usize>> = (0..count).map(|index| gallery.label(index)).collect();
        let by_classifier = judged.as_ref().or((!extractor.is_inception()).then_some(&set));
        let logits = by_classifier.map(FeatureSet::logits).transpose()?;
        let classes_of = logits.filter(|_| labels.iter().any(Option::is_some)).map(|logits| (labels, logits));
        let asking = Asking { classes: classes_of, ..self.features.asking(asked, extractor, self.seed) };
        let (found, nearest) = work.measured(&set, against.reference.as_ref(), &asking)?;
        let warned = warnings(&gallery, against.gallery.as_ref(), (count, &found), (classes, against.classes))?;
        print!("{}", table(&job.name, count, &network(extractor), &found, floor));
        warned.iter().for_each(|warning| eprintln!("warning: {warning}"));
        self.panels(&gallery, against, nearest.as_deref(), (count, job.number))?;
        Ok(self.result(job, (count, told), extractor, (&found, floor), &against.told, &warned))
    }

    /// The pictures of a job, its cache key, its description, and the model's classes.
    fn pictures(&self, job: &Job, machine: &Machine, work: &Work) -> Result<(Gallery, Value, Value, Option<usize>)> {
        let Some(path) = &job.model else {
            let gallery = Gallery::open(self.samples.as_deref().unwrap_or(Path::new("")))?;
            let of = gallery.identity()?;
            let told = json!({ "samples": gallery.name, "sha256": of["sha256"] });
            return Ok((gallery, of, told, None));
        };
        let model: Model = machine.load(path)?;
        let mut sampling: SamplingConfig = model.info.config.sampling.clone();
        job.changes.apply(&mut sampling);
        let count = self.num_samples.unwrap_or(10_000);
        let Drawn { gallery, of } = work.drawn(&model, &sampling, job.seed, (count, self.batch), job.number)?;
        let told = json!({
            "checkpoint": path.display().to_string(), "step": model.info.step, "epoch": model.info.epoch,
            "model_sha256": model.digest.sha256, "weights": model.info.weights, "seed": job.seed, "sampling": sampling,
            "sampling_precision": model.parameters.precision().to_string(),
        });
        let classes = Some(model.class_names().len()).filter(|&classes| classes > 0);
        Ok((gallery, of, told, classes))
    }

    /// `real_vs_fake.png`, numbered from the second model on, and `nearest.png`: the samples nearest to reference images, with those images.
    fn panels(
        &self,
        gallery: &Gallery,
        against: &Against,
        nearest: Option<&[(usize, f64)]>,
        (count, number): (usize, usize),
    ) -> Result<()> {
        let real = against.held_out.as_ref().map(|held_out| &held_out.0).or(against.gallery.as_ref());
        let Some(real) = real else { return Ok(()) };
        std::fs::create_dir_all(&self.out).map_err(Error::io(&self.out, "create"))?;
        let path = |name: &str| match number {
            0 => self.out.join(format!("{name}.png")),
            number => self.out.join(format!("{name}-{}.png", number + 1)),
        };
        if let Some(picture) = panel(gallery, real, None, count)? {
            write_png(path("real_vs_fake"), &picture, &[])?;
        }
        if let (Some(nearest), Some(reference)) = (nearest, &against.gallery)
            && let Some(picture) = panel(gallery, reference, Some(nearest), count)?
        {
            write_png(path("nearest"), &picture, &[])?;
        }
        Ok(())
    }

    fn result(
        &self,
        job: &Job,
        (count, told): (usize, Value),
        extractor: &Extractor,
        (found, floor): (&[Measured], &[Measured]),
        reference: &Value,
        warned: &[String],
    ) -> Value {
        let mut result = json!({ "name": job.name, "group": job.group, "num_samples": count });
        if let Some(guidance) = job.changes.guidance {
            result["guidance"] = json!(guidance);
        }
        let Some(fields) = result.as_object_mut() else { return result };
        fields.extend(told.as_object().cloned().unwrap_or_default());
        for measured in found {
            // Only distances on InceptionV3's features are called FID.
            let key = if extractor.is_inception() { measured.key.clone() } else { measured.key.replace("fid_", "fd_") };
            fields.insert(key, json!(measured.value));
            if measured.key == "inception_score_mean" {
                fields.insert("inception_score_std".into(), measured.more["std_over_splits"].clone());
            }
        }
        let floor_of = |key: &str| floor.iter().find(|other| other.key == key).map(|other| other.value);
        let metrics: Vec<Value> = found
            .iter()
            .map(|measured| {
                json!({
                    "name": measured.name, "value": measured.value, "standard_error": measured.error,
                    "bias_of_this_number": measured.bias, "floor": floor_of(&measured.key), "more": measured.more,
                })
            })
            .collect();
        fields.insert("metrics".into(), json!(metrics));
        fields.insert("extractor".into(), extractor.identity());
        fields.insert("reference".into(), reference.clone());
        fields.insert("subset_seed".into(), json!(self.seed));
        fields.insert("warnings".into(), json!(warned));
        fields.insert("engine".into(), json!(env!("CARGO_PKG_VERSION")));
        result
    }

    /// `evaluation_results.json`: one result, or all of several.
    fn write(&self, results: &[Value]) -> Result<()> {
        std::fs::create_dir_all(&self.out).map_err(Error::io(&self.out, "create"))?;
        let all = match results {
            [one] => one.clone(),
            several => json!({ "models": several, "over_seeds": over_seeds(several) }),
        };
        write_atomically(self.out.join("evaluation_results.json"), format!("{all:#}\n").as_bytes())
    }
}
