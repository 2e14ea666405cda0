//! The text output and the picture of `engine compare`.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::eval::{Better, Comparison, Metric, rounded, with_error};
use crate::picture::{Image, Labels, beside, labelled_grid};
use crate::pipeline::{Choice, layout};

/// White pixels between the models' blocks.
const GAP: usize = 24;
/// The largest difference between a model's log-SNR and the common one that is not noted: 5 % of the ratio.
const LITTLE: f64 = 0.05;

/// The shortest path suffixes that distinguish the models, as in `dit-cifar10` for `runs/dit-cifar10/model.safetensors`;
/// duplicates are numbered.
pub(super) fn short_names(paths: &[PathBuf]) -> Vec<String> {
    let parts: Vec<Vec<String>> = paths.iter().map(|path| parts(path)).collect();
    let tail = |parts: &[String], length: usize| parts[parts.len().saturating_sub(length)..].join("/");
    let name = |own: &Vec<String>| {
        let unlike = |length: &usize| {
            parts.iter().filter(|other| *other != own).all(|other| tail(other, *length) != tail(own, *length))
        };
        tail(own, (1..own.len()).find(unlike).unwrap_or(own.len()))
    };
    let numbered = |(place, own): (usize, &Vec<String>)| {
        let same = |parts: &[Vec<String>]| parts.iter().filter(|other| *other == own).count();
        if same(&parts) == 1 { name(own) } else { format!("{} ({})", name(own), same(&parts[..=place])) }
    };
    parts.iter().enumerate().map(numbered).collect()
}

/// The parts of a path that identify the model.
fn parts(path: &Path) -> Vec<String> {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let mut parts: Vec<String> = whole.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    match parts.pop() {
        // A run's newest model is named after the run.
        Some(last) if last == "model.safetensors" && !parts.is_empty() => {}
        Some(last) => parts.push(last.strip_suffix(".safetensors").unwrap_or(&last).to_string()),
        None => parts.push("model".into()),
    }
    parts
}

/// A row of the first table: its title, and a value for each model.
pub(super) type Row = (&'static str, Vec<String>);

/// The tables: `facts`, then the metrics, then the errors by noise level with the differences from the best model.
pub(super) fn tables(comparison: &Comparison, facts: &[Row]) -> String {
    let names = comparison.names();
    let mut rows = vec![[vec![String::new()], names.to_vec()].concat()];
    rows.extend(facts.iter().map(|(what, words)| [vec![what.to_string()], words.clone()].concat()));
    for metric in comparison.metrics() {
        let unit = if metric.unit.is_empty() { String::new() } else { format!(", {}", metric.unit) };
        let what = match metric.better {
            Better::Lower => format!("{}{unit}", metric.name),
            Better::Higher => format!("{}{unit} (more is better)", metric.name),
        };
        rows.push([vec![what], (0..names.len()).map(|model| value(metric, model)).collect()].concat());
    }
    let error = comparison.error();
    let best = error.best();
    let others: Vec<usize> = (0..names.len()).filter(|other| *other != best).collect();
    let difference = |metric: &Metric, other: usize| {
        let found = metric.difference(other, best);
        found.map_or("-".into(), |found| with_error(found.mean, found.standard_error))
    };
    let heads = others.iter().map(|other| format!("{} − {}", names[*other], names[best]));
    let mut levels = vec![[vec!["log-SNR".to_string()], names.to_vec(), heads.collect()].concat()];
    let row = |what: String, metric: &Metric| {
        let values = (0..names.len()).map(|model| value(metric, model));
        let differences = others.iter().map(|other| difference(metric, *other));
        [what].into_iter().chain(values).chain(differences).collect::<Vec<_>>()
    };
    for (level, log_snr) in comparison.levels().log_snr.iter().enumerate() {
        levels.push(row(format!("{log_snr:7.2}"), &comparison.at_level(level)));
    }
    levels.push(row("mean".into(), error));
    let intervals = others.iter().map(|other| match error.difference(*other, best) {
        Some(found) => found.interval.map(|bound| rounded(bound, found.standard_error)).join(" … "),
        None => "-".into(),
    });
    let pairs = names.len() * (names.len() - 1) / 2;
    let what = if pairs == 1 { "95 % interval".into() } else { format!("95 % of all {pairs} pairs") };
    levels.push([vec![what], vec![String::new(); names.len()], intervals.collect()].concat());
    format!("{}\n{}", aligned(&rows), aligned(&levels))
}

fn value(metric: &Metric, model: usize) -> String {
    let value = metric.values[model];
    match &metric.standard_errors {
        Some(errors) => with_error(value, errors[model]),
        // Counts and other values without decimals.
        None if (value.fract() == 0.0 || value.abs() >= 1e3) && value.abs() < 1e15 => thousands(value.round() as i64),
        // Times are measured to three digits.
        None => rounded(value, value / 10.0),
    }
}

/// `19,107,920`
fn thousands(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let group = |(place, digit): (usize, char)| {
        let comma = place > 0 && (digits.len() - place).is_multiple_of(3);
        [comma.then_some(','), Some(digit)].into_iter().flatten()
    };
    let grouped: String = digits.chars().enumerate().flat_map(group).collect();
    if number < 0 { format!("-{grouped}") } else { grouped }
}

/// Rows as a table: the first column aligned left, the others right.
fn aligned(rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = format!("{:1$}", row[0], widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            line += &format!("  {cell:>width$}");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// A note if a model has no noise level near a common one.
pub(super) fn deviations(comparison: &Comparison) -> Vec<String> {
    let levels = comparison.levels();
    let of = |(name, actual): (&String, &Vec<f64>)| {
        let far: Vec<String> = (levels.log_snr.iter().zip(actual))
            .filter(|(common, own)| (*common - *own).abs() > LITTLE)
            .map(|(common, own)| format!("{own:.2} for {common:.2}"))
            .collect();
        (!far.is_empty()).then(|| format!("{name} has no nearer log-SNR than {}", far.join(", ")))
    };
    comparison.names().iter().zip(&levels.actual).filter_map(of).collect()
}

/// One titled block per model, with the same places in each; `cells` are captions below the pictures.
pub(super) fn picture(blocks: &[(String, Vec<Image>)], cells: &[String], shape: [usize; 3]) -> Result<Image> {
    let count = cells.len();
    let square = count.isqrt() + usize::from(count.isqrt() * count.isqrt() < count);
    // Prefer a wide block to one whose last row is not full.
    let columns = (square..=2 * square).find(|columns| count.is_multiple_of(*columns)).unwrap_or(square);
    let layout = layout(&Choice::Each(columns), count, 0, shape, blocks.len())?;
    let block = |(title, images): &(String, Vec<Image>)| {
        let labels = Labels { title: title.clone(), cells: cells.to_vec(), ..Labels::default() };
        labelled_grid(images, layout, &labels)
    };
    beside(&blocks.iter().map(block).collect::<Result<Vec<_>>>()?, GAP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{DiffusionConfig, NoiseSchedule};
    use crate::eval::CommonLevels;

    #[test]
    fn names_are_as_long_as_they_need_to_be() {
        let named = |paths: &[&str]| short_names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(named(&["runs/a/model.safetensors", "runs/b/model.safetensors"]), ["a", "b"]);
        assert_eq!(
            named(&["runs/a/best.safetensors", "runs/b/best.safetensors", "b.safetensors"]),
            ["a/best", "b/best", "b"]
        );
        let steps = ["x/checkpoints/step-5.safetensors", "y/checkpoints/step-5.safetensors"];
        assert_eq!(named(&steps), ["x/checkpoints/step-5", "y/checkpoints/step-5"]);
        assert_eq!(named(&["unet", "unet", "dit"]), ["unet (1)", "unet (2)", "dit"]);
        assert_eq!(named(&["model.safetensors", "/"]), ["model", "/"]);
    }

    #[test]
    fn numbers_are_grouped_and_rounded() {
        let times =
            Metric::of_values("sampling", "ms/image", Better::Lower, vec![1.2345, 67.605, 319.21, 4096.0], None);
        assert_eq!([0, 1, 2, 3].map(|model| value(&times, model)), ["1.23", "67.6", "319", "4,096"]);
        assert_eq!([0, 999, 1000, -1_234_567].map(thousands), ["0", "999", "1,000", "-1,234,567"]);
    }

    fn comparison(models: usize) -> Comparison {
        let few = DiffusionConfig { num_steps: 20, beta_start: 0.005, beta_end: 0.6, ..DiffusionConfig::default() };
        let mut schedules = vec![NoiseSchedule::new(&DiffusionConfig::default()).unwrap(); models - 1];
        schedules.push(NoiseSchedule::new(&few).unwrap());
        let levels = CommonLevels::new(&schedules, 3).unwrap();
        let errors = |model: usize| (0..4).map(|k| vec![0.5 + 0.1 * (model * k) as f64, 0.25, 0.125]).collect();
        let names = ["first", "the-second", "C"].map(String::from)[..models].to_vec();
        let mut comparison = Comparison::new(names, levels, (0..models).map(errors).collect()).unwrap();
        let sizes = (0..models).map(|model| (model * 1_000_000 + 5) as f64).collect();
        comparison.add(Metric::of_values("parameters", "", Better::Lower, sizes, None)).unwrap();
        comparison
    }

    #[test]
    fn tables_are_aligned() {
        let facts = [("kind", vec!["dit".to_string(), "unet".to_string()])];
        let text = tables(&comparison(2), &facts);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "                     first     the-second", "{text}");
        assert_eq!(lines[1], "kind                   dit           unet", "{text}");
        assert_eq!(lines[2], "mean ε-error  0.291667 ± 0  0.342 ± 0.022", "{text}");
        assert_eq!(lines[3], "parameters               5      1,000,005", "{text}");
        assert!(lines[5].starts_with("log-SNR ") && lines[5].ends_with("the-second − first"), "{text}");
        assert!(lines[6].ends_with("  0.500000 ± 0  0.650 ± 0.065       0.150 ± 0.065"), "{text}");
        assert!(
            lines[9].starts_with("mean ") && lines[10].starts_with("95 % interval ") && lines.len() == 11,
            "{text}"
        );
        assert!(lines[10].trim_end().ends_with(" -0.018 … 0.118"), "{text}");
        let text = tables(&comparison(3), &[]);
        assert!(
            text.contains("  the-second − first  ")
                && text.contains("  C − first\n")
                && text.contains("95 % of all 3 pairs"),
            "{text}"
        );
    }

    #[test]
    fn blocks_stand_side_by_side_with_the_same_places() {
        let images: Vec<Image> = (0..7).map(|k| Image::filled(8, 8, [30 * k; 3])).collect();
        let cells: Vec<String> = (0..7).map(|k| format!("{k}")).collect();
        let blocks = [("one: ddim 5 steps".to_string(), images.clone()), ("two".to_string(), images)];
        let both = picture(&blocks, &cells, [8, 8, 3]).unwrap();
        let alone = picture(&blocks[1..], &cells, [8, 8, 3]).unwrap();
        assert_eq!(both.height(), alone.height());
        // The right block has the same pixels as alone, at the right edge.
        for y in (0..alone.height()).step_by(3) {
            for x in (0..alone.width()).step_by(3) {
                assert_eq!(both.colour(both.width() - alone.width() + x, y), alone.colour(x, y));
            }
        }
        let ink = |from: usize, to: usize| {
            (from..to).any(|x| (0..24).any(|y| both.colour(x, y).is_some_and(|colour| colour[0] < 90)))
        };
        let middle = both.width() - alone.width();
        assert!(ink(0, middle - GAP) && ink(middle, both.width()) && !ink(middle - GAP, middle));
    }

    #[test]
    fn levels_that_miss_are_told() {
        // All but the coarse model have levels near the common ones.
        assert!(deviations(&comparison(2)).is_empty());
        let mut few = [10, 11].map(|num_steps| {
            let config = DiffusionConfig { num_steps, beta_start: 0.01, beta_end: 0.9, ..DiffusionConfig::default() };
            NoiseSchedule::new(&config).unwrap()
        });
        few.reverse();
        let levels = CommonLevels::new(&few, 4).unwrap();
        let errors = vec![vec![vec![0.5; levels.len()]; 2]; 2];
        let comparison = Comparison::new(vec!["eleven".into(), "ten".into()], levels, errors).unwrap();
        let told = deviations(&comparison);
        assert!(told.len() == 1 && told[0].starts_with("eleven has no nearer log-SNR than "), "{told:?}");
    }
}
