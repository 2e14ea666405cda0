//! A metric over steps: of training, or of sampling.

use super::*;

/// Colours of lines, in rotation.
const COLOURS: [RGBColor; 4] = [TRAINING, VALIDATION, MARK, AXIS];

/// The content of a metric curve.
#[derive(Clone, Debug, Default)]
pub struct MetricCurve {
    /// The heading.
    pub title: String,
    /// The name of the y values, as in `FID`.
    pub metric: String,
    /// The name of the x values, as in `optimizer step`.
    pub over: String,
    /// Lines with names; points sorted by x. Those that are not finite are left out.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
    /// Error bars: x, y, and the error on either side.
    pub errors: Vec<(f64, f64, f64)>,
    /// A horizontal line with its name.
    pub level: Option<(String, f64)>,
}

/// Draws the curve: 1080x640 RGB.
///
/// # Errors
/// [`Error::Unsupported`] if the plotting library fails, which no input is known to cause.
pub fn render_metric_curve(curve: &MetricCurve) -> Result<Image> {
    rendered("metric curve", |area, words| lines(area, words, curve))
}

fn lines(area: &Area, words: &mut Vec<Word>, curve: &MetricCurve) -> Drawn {
    area.fill(&WHITE)?;
    let finite = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        points.iter().copied().filter(|(x, y)| x.abs() < 1e15 && y.abs() < 1e30).collect()
    };
    let shown: Vec<(&str, Vec<(f64, f64)>)> =
        curve.lines.iter().map(|(name, points)| (name.as_str(), finite(points))).collect();
    let title = fitted(&curve.title, 22.0, (WIDTH - LEFT - RIGHT) as usize);
    words.push(Word::new((LEFT, 18), Anchor::Left, title, 22.0, INK));
    let all = || shown.iter().flat_map(|line| line.1.iter().copied());
    let last = all().map(|point| point.0).fold(0.0, f64::max).max(1.0);
    let bars: Vec<(f64, f64, f64)> = curve.errors.iter().copied().filter(|bar| bar.1.abs() + bar.2 < 1e30).collect();
    let level = curve.level.as_ref().filter(|level| level.1.abs() < 1e30);
    let ends = bars.iter().flat_map(|&(_, y, error)| [y - error, y + error]);
    let heights = || all().map(|point| point.1).chain(ends.clone()).chain(level.map(|level| level.1));
    let low = heights().fold(f64::INFINITY, f64::min);
    let high = heights().fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = if low.is_finite() { (low, high) } else { (0.0, 1.0) };
    let axis = Axis::around(low, high);
    let legends = usize::from(level.is_some()) + if shown.len() > 1 || level.is_some() { shown.len() } else { 0 };
    // The legend lies above all points.
    let covered = if legends > 0 { (32.0 + 22.0 * legends as f64) / f64::from(HEIGHT - TOP - 56) } else { 0.0 };
    let axis = Axis { top: axis.floor + (axis.top - axis.floor) / (1.0 - covered.min(0.8)), ..axis };
    let mut chart = chart(area, (RIGHT, 56), last, axis)?;
    axes(words, &mut chart, (None, &curve.over, &curve.metric), last, axis)?;
    let mut legend: Vec<(&str, ShapeStyle, i32)> = Vec::new();
    if let Some((name, value)) = level {
        let (ends, style) =
            ([(0.0, axis.of(*value)), (last * 1.01, axis.of(*value))], RULE.stroke_width((3 * FINE) as u32));
        chart.draw_series(LineSeries::new(ends, style))?;
        legend.push((name, style, 0));
    }
    for (x, y, error) in bars {
        let ends = [(x, axis.of(y - error)), (x, axis.of(y + error))];
        chart.draw_series(LineSeries::new(ends, AXIS.stroke_width(FINE as u32)))?;
    }
    for ((name, points), colour) in shown.iter().zip(COLOURS.iter().cycle()) {
        let points: Vec<(f64, f64)> = points.iter().map(|&(x, y)| (x, axis.of(y))).collect();
        chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width((2 * FINE) as u32)))?;
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 4 * FINE, colour.filled())))?;
        legend.push((name, colour.filled(), 4));
    }
    draw_legend(area, words, RIGHT, if legends > 0 { &legend } else { &[] })
}

/// Points on their own scale, with numbers at the right edge and the name above them.
pub(super) fn over_own_scale(
    words: &mut Vec<Word>,
    chart: &mut Chart,
    (name, points): (&str, &[(f64, f64)]),
    axis: Axis,
    last: f64,
) -> Drawn {
    let low = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let room = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-9);
    let (low, high) = (low - room, high + room);
    let place = |value: f64| axis.floor + (value - low) / (high - low) * (axis.top - axis.floor);
    let shown: Vec<(f64, f64)> = points.iter().map(|&(step, value)| (step, place(value))).collect();
    chart.draw_series(LineSeries::new(shown.clone(), METRIC.stroke_width((2 * FINE) as u32)))?;
    chart.draw_series(shown.iter().map(|point| Circle::new(*point, 4 * FINE, METRIC.filled())))?;
    let edge = WIDTH - RIGHT_OF_SCALE;
    for value in round_values(low, high, 7).into_iter().filter(|value| (low..=high).contains(value)) {
        let (_, y) = chart.backend_coord(&(last, place(value)));
        words.push(Word::new((edge + 8, y / FINE - 7), Anchor::Left, number(value), 14.0, INK));
    }
    words.push(Word::new((WIDTH - 12, TOP - 20), Anchor::Right, name, 14.0, INK));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_of_any_points_are_drawn() {
        let line = |points: &[(f64, f64)]| ("10 steps".to_string(), points.to_vec());
        for lines in [
            vec![],
            vec![line(&[(1.0, 5.0)])],
            vec![line(&[(0.0, 300.0), (100.0, 20.0), (200.0, f64::NAN)]), line(&[(0.0, 0.0), (50.0, 1.0)])],
        ] {
            let (metric, over, errors) = ("FID".into(), "steps".into(), vec![(100.0, 20.0, 3.0)]);
            let curve =
                MetricCurve { title: "a".into(), metric, over, lines, errors, level: Some(("floor".into(), 2.0)) };
            let image = render_metric_curve(&curve).unwrap();
            assert_eq!((image.width(), image.height()), (1080, 640));
            let dark = image.pixels().iter().filter(|&&value| value < 128).count();
            assert!(dark > 500, "{dark}");
        }
    }
}
