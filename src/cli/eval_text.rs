//! The output of `engine eval`: a table, a table of several models, and pictures.

use serde_json::Value;

use crate::error::Result;
use crate::eval::evaluation::Measured;
use crate::eval::{Gallery, rounded, with_error};
use crate::picture::{Image, Labels, Layout, MetricCurve, beside, labelled_grid};

/// Most pictures of a panel.
const SHOWN: usize = 40;
/// Most pairs of a panel of nearest images.
const PAIRS: usize = 16;
/// White pixels between two panels.
const GAP: usize = 24;

/// Metrics of one model, with standard error and floor.
pub(super) fn table(name: &str, count: usize, network: &str, found: &[Measured], floor: &[Measured]) -> String {
    let mut text = format!("{name}: {count} samples, {network}\n");
    let width = found.iter().map(|measured| measured.name.chars().count()).max().unwrap_or(0);
    for measured in found {
        let value = match measured.error {
            Some(error) => with_error(measured.value, error),
            None => rounded(measured.value, measured.value.abs() / 1000.0),
        };
        let floor = floor.iter().find(|other| other.key == measured.key).map(|other| {
            format!("   real held-out: {}", rounded(other.value, measured.error.unwrap_or(other.value.abs() / 1000.0)))
        });
        let pad = " ".repeat(width - measured.name.chars().count());
        text += &format!("  {}{pad}  {value}{}\n", measured.name, floor.unwrap_or_default());
    }
    text
}

/// Several models in one Markdown table: a row for each, a column for each metric.
pub(super) fn ablation(results: &[Value]) -> String {
    let metrics = |result: &Value| result["metrics"].as_array().cloned().unwrap_or_default();
    let Some(first) = results.first() else { return String::new() };
    let names: Vec<String> =
        metrics(first).iter().map(|metric| metric["name"].as_str().unwrap_or_default().to_string()).collect();
    let mut text = format!("| model | step | samples | {} |\n", names.join(" | "));
    text += &format!("|---|{}\n", "---:|".repeat(names.len() + 2));
    for result in results {
        let values: Vec<String> = metrics(result)
            .iter()
            .map(|metric| match (metric["value"].as_f64(), metric["standard_error"].as_f64()) {
                (Some(value), Some(error)) => with_error(value, error),
                (Some(value), None) => rounded(value, value.abs() / 1000.0),
                _ => String::new(),
            })
            .collect();
        let name = result["name"].as_str().unwrap_or_default();
        let step = result["step"].as_u64().map(|step| step.to_string()).unwrap_or_default();
        text += &format!("| {name} | {step} | {} | {} |\n", result["num_samples"], values.join(" | "));
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
    for result in results {
        let (Some(x), Some(y)) = (number(result, by_sampling), result["metrics"][0]["value"].as_f64()) else {
            continue;
        };
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
    Some(MetricCurve { title: format!("{metric} by {over}"), metric, over: over.into(), lines })
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
            let spread = |len: usize| (0..SHOWN.min(len)).map(|i| i * len / SHOWN.min(len)).collect::<Vec<usize>>();
            (spread(count.min(samples.len())), spread(real.len()), ["generated", "real"])
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
