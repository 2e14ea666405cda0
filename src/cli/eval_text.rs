//! The output of `engine eval`: a table, a table of several models, and pictures.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::Result;
use crate::eval::evaluation::Measured;
use crate::eval::{Gallery, rounded, with_error};
use crate::picture::{Image, Labels, Layout, MetricCurve, beside, labelled_grid};
use crate::words::counted;

/// Most pictures of a panel.
const SHOWN: usize = 40;
/// Most pairs of a panel of nearest images.
const PAIRS: usize = 16;
/// White pixels between two panels.
const GAP: usize = 24;

/// How samples were drawn, from what, and against what they are measured: one line.
pub(super) fn settings(result: &Value) -> String {
    let mut parts = Vec::new();
    let short =
        |hash: &Value| hash.as_str().map(|hash| format!(" ({}…)", &hash[..hash.len().min(8)])).unwrap_or_default();
    let sampling = &result["sampling"];
    if sampling.is_object() {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
        let (sampler, steps, guidance) = (text(&sampling["sampler"]), &sampling["num_steps"], &sampling["guidance"]);
        let (seed, precision) = (&result["seed"], text(&result["sampling_precision"]));
        parts.push(format!("seed {seed}, {sampler}, {}, guidance {guidance}, {precision}", stepped(steps)));
    } else {
        parts.push(format!("samples{}", short(&result["sha256"])));
    }
    for (what, described) in [("reference", &result["reference"]), ("floor", &result["floor"])] {
        let Some(name) = described["name"].as_str() else { continue };
        let images = described["images"]
            .as_u64()
            .map_or("an unknown number of images".into(), |images| counted(images, "image"));
        let hash = if described["file_sha256"].is_string() { &described["file_sha256"] } else { &described["sha256"] };
        parts.push(format!("{what}: {images} of {name}{}", short(hash)));
    }
    format!("{}\n", parts.join("; "))
}

/// The number of steps in a result.
fn stepped(steps: &Value) -> String {
    steps.as_u64().map_or_else(|| format!("{steps} steps"), |steps| counted(steps, "step"))
}

/// Metrics of one model, with standard error and floor; `settings` is the second line.
pub(super) fn table(
    name: &str,
    (count, network): (usize, &str),
    settings: &str,
    found: &[Measured],
    floor: &[Measured],
) -> String {
    let mut text = format!("{name}: {}, {network}\n  {settings}", counted(count, "sample"));
    let width = found.iter().map(|measured| measured.name.chars().count()).max().unwrap_or(0);
    for measured in found {
        let value = number(measured.value, measured.error);
        let floor = floor.iter().find(|other| other.key == measured.key).map(|other| {
            let as_exact = measured.error.filter(|&error| error > 0.0).unwrap_or(other.value.abs() / 1000.0);
            format!("   real held-out: {}", rounded(other.value, as_exact))
        });
        let pad = " ".repeat(width - measured.name.chars().count());
        text += &format!("  {}{pad}  {value}{}{}\n", measured.name, spread(measured), floor.unwrap_or_default());
    }
    text
}

/// A value with its error. One that does not vary has none, and rounding errors are not digits.
fn number(value: f64, error: Option<f64>) -> String {
    match error {
        Some(error) if error > 1e-9 * value.abs() && error > 1e-12 => with_error(value, error),
        _ if value.abs() < 1e-9 => "0".into(),
        _ if value.fract() == 0.0 => value.to_string(),
        _ => rounded(value, value.abs() / 1000.0),
    }
}

/// The further numbers that belong to a metric: the deviation over splits or subsets.
fn spread(measured: &Measured) -> String {
    let [splits, subsets] = ["std_over_splits", "std_over_subsets"].map(|key| measured.more[key].as_f64());
    match (splits, subsets, measured.error) {
        (Some(deviation), ..) => {
            format!(" (std {} over {} splits)", rounded(deviation, deviation), measured.more["splits"])
        }
        (_, Some(_), Some(error)) => {
            let bound = |sign: f64| rounded(measured.value + sign * 1.96 * error, error);
            format!(" (95 %: {} to {})", bound(-1.0), bound(1.0))
        }
        _ => String::new(),
    }
}

/// Several models in one Markdown table: a row for each, a column for each metric.
pub(super) fn ablation(results: &[Value]) -> String {
    let metrics = |result: &Value| result["metrics"].as_array().cloned().unwrap_or_default();
    if results.is_empty() {
        return String::new();
    }
    let mut names: Vec<String> = Vec::new();
    for metric in results.iter().flat_map(metrics) {
        let name = metric["name"].as_str().unwrap_or_default();
        if !names.iter().any(|known| known == name) {
            names.push(name.to_string());
        }
    }
    let mut text = format!("| model | step | samples | evaluations | {} | s/image |\n", names.join(" | "));
    text += &format!("|---|{}\n", "---:|".repeat(names.len() + 4));
    for result in results {
        let found = metrics(result);
        let shown = |name: &String| {
            let metric = found.iter().find(|metric| metric["name"] == **name)?;
            metric["value"].as_f64().map(|value| number(value, metric["standard_error"].as_f64()))
        };
        let values: Vec<String> = names.iter().map(|name| shown(name).unwrap_or_default()).collect();
        let evaluations = result["evaluations_per_image"].as_u64().map(|count| count.to_string()).unwrap_or_default();
        let seconds = result["seconds_per_image"].as_f64().map(|seconds| rounded(seconds, seconds / 10.0));
        let name = result["name"].as_str().unwrap_or_default();
        let step = result["step"].as_u64().map(|step| step.to_string()).unwrap_or_default();
        let (count, seconds) = (&result["num_samples"], seconds.unwrap_or_default());
        text += &format!("| {name} | {step} | {count} | {evaluations} | {} | {seconds} |\n", values.join(" | "));
    }
    text
}

/// The first metric of several models: over sampling steps if these differ, with a line for each model and guidance; else over
/// optimizer steps. None if neither differs.
pub(super) fn ablation_curve(results: &[Value]) -> Option<MetricCurve> {
    let number = |result: &Value, by_sampling: bool| match by_sampling {
        true => result["sampling"]["num_steps"].as_f64(),
        false => result["step"].as_f64(),
    };
    let differ = |by_sampling: bool| {
        let first = results.first().and_then(|result| number(result, by_sampling));
        results.iter().any(|result| number(result, by_sampling) != first)
    };
    let by_sampling = differ(true);
    if !by_sampling && !differ(false) {
        return None;
    }
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    let mut errors = Vec::new();
    for result in results {
        let (Some(x), Some(y)) = (number(result, by_sampling), result["metrics"][0]["value"].as_f64()) else {
            continue;
        };
        errors.extend(result["metrics"][0]["standard_error"].as_f64().map(|error| (x, y, error)));
        let guidance = result["guidance"].as_f64().map(|scale| format!("guidance {scale}")).unwrap_or_default();
        let name = match (by_sampling, result["checkpoint"].as_str()) {
            (true, Some(checkpoint)) => format!("{checkpoint} {guidance}").trim().to_string(),
            _ => guidance,
        };
        match lines.iter_mut().find(|line| line.0 == name) {
            Some(line) => line.1.push((x, y)),
            None => lines.push((name, vec![(x, y)])),
        }
    }
    lines.iter_mut().for_each(|line| line.1.sort_by(|a, b| a.0.total_cmp(&b.0)));
    let metric = results.first()?["metrics"][0]["name"].as_str()?.to_string();
    let over = if by_sampling { "sampling steps" } else { "optimizer step" };
    let floor = results.first()?["metrics"][0]["floor"].as_f64();
    let level = floor.map(|floor| ("real held-out images".to_string(), floor));
    Some(MetricCurve { title: format!("{metric} by {over}"), metric, over: over.into(), lines, errors, level })
}

/// Up to `most` places, the classes in turn and each class evenly spread; without classes all evenly spread.
fn shown(labels: &[Option<usize>], most: usize) -> Vec<usize> {
    let mut classes: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
    labels.iter().enumerate().for_each(|(place, label)| classes.entry(*label).or_default().push(place));
    let count = most.min(labels.len());
    // Of more classes than places, evenly spread ones.
    let taken = classes.len().min(count);
    let classes: Vec<&Vec<usize>> = classes.values().collect();
    let chosen: Vec<&Vec<usize>> = (0..taken).map(|i| classes[i * classes.len() / taken]).collect();
    // How many of each: in turn, as long as there are any.
    let mut each = vec![0; taken];
    let mut left = count;
    while left > 0 && chosen.iter().zip(&each).any(|(class, each)| each < &class.len()) {
        for (class, each) in chosen.iter().zip(&mut each) {
            if left > 0 && *each < class.len() {
                (*each, left) = (*each + 1, left - 1);
            }
        }
    }
    let most_of_one = each.iter().copied().max().unwrap_or(0);
    let place = |round: usize| {
        let of = chosen.iter().zip(&each).filter(move |(_, each)| round < **each);
        of.map(move |(class, each)| class[round * class.len() / each]).collect::<Vec<_>>()
    };
    (0..most_of_one).flat_map(place).collect()
}

/// Samples beside real images; with `nearest`, the samples nearest to reference images, beside those. None if there is nothing to
/// show.
pub(super) fn panel(
    samples: &Gallery,
    real: &Gallery,
    nearest: Option<&[(usize, f64)]>,
    count: usize,
) -> Result<Option<Image>> {
    let (left, right, titles) = match nearest {
        Some(nearest) => {
            let mut order: Vec<usize> = (0..nearest.len()).collect();
            order.sort_by(|&a, &b| nearest[a].1.total_cmp(&nearest[b].1));
            order.truncate(PAIRS);
            let others = order.iter().map(|&index| nearest[index].0).collect();
            (order, others, ["samples nearest to the reference", "their nearest reference images"])
        }
        None => {
            let label =
                |gallery: &Gallery, count: usize| (0..count).map(|index| gallery.label(index)).collect::<Vec<_>>();
            let [left, right] = [label(samples, count.min(samples.len())), label(real, real.len())];
            (shown(&left, SHOWN), shown(&right, SHOWN), ["generated", "real"])
        }
    };
    let side = |gallery: &Gallery, places: &[usize], title: &str| -> Result<Option<Image>> {
        let pictures = places.iter().map(|&place| gallery.picture(place)).collect::<Result<Vec<_>>>()?;
        let Some(first) = pictures.first() else { return Ok(None) };
        let size = (first.width(), first.height());
        // Pictures of different sizes do not form a grid.
        let alike: Vec<Image> =
            pictures.iter().filter(|picture| (picture.width(), picture.height()) == size).map(Image::to_rgb).collect();
        let scale = (96 / size.0).clamp(1, 3);
        let layout = Layout { columns: 8, scale, ..Layout::default() };
        labelled_grid(&alike, layout, &Labels { title: title.into(), ..Labels::default() }).map(Some)
    };
    match (side(samples, &left, titles[0])?, side(real, &right, titles[1])?) {
        (Some(left), Some(right)) => beside(&[left, right], GAP).map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_they_can_have() {
        let found = [
            number(51.634, Some(3.61)),
            number(100.0, Some(0.0)),
            number(3.1e-13, Some(2e-14)),
            number(0.5, None),
            number(0.0, Some(0.0)),
        ];
        assert_eq!(found, ["51.6 ± 3.6", "100", "0", "0.50000", "0"]);
    }

    #[test]
    fn all_classes_are_shown_and_each_is_spread() {
        // 10,000 samples, ten classes in turn: every 250th would be of one class.
        let labels: Vec<Option<usize>> = (0..10_000).map(|index| Some(index % 10)).collect();
        let places = shown(&labels, 40);
        assert_eq!(places.len(), 40);
        for class in 0..10 {
            let own: Vec<usize> = places.iter().copied().filter(|place| place % 10 == class).collect();
            assert!(own.len() == 4 && own[3] > 7000 && own[0] < 10, "{own:?}");
        }
        assert_eq!(places[..3], [0, 1, 2]);
        // Sorted by class, with a rare one; without classes; more classes than places.
        let sorted: Vec<Option<usize>> = (0..100).map(|index| Some(usize::from(index >= 98))).collect();
        assert_eq!(shown(&sorted, 8).iter().filter(|&&place| place >= 98).count(), 2);
        assert_eq!(shown(&[None; 100], 4), [0, 25, 50, 75]);
        let many: Vec<Option<usize>> = (0..100).map(Some).collect();
        assert_eq!(shown(&many, 4), [0, 25, 50, 75]);
        assert!(shown(&[], 4).is_empty());
    }
}
