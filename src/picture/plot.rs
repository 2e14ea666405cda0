//! The loss curve of a run.

mod curve;

use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::text::{draw_text, fitted, text_width};
use super::{Image, write_png};
use crate::{Error, Result};

use curve::over_own_scale;
pub use curve::{MetricCurve, render_metric_curve};

const WIDTH: i32 = 1080;
const HEIGHT: i32 = 640;
const LEFT: i32 = 76;
const RIGHT: i32 = 28;
/// The lower margin with a second scale.
const RIGHT_OF_SCALE: i32 = 76;
const TOP: i32 = 84;
/// Lines are drawn at this multiple of the size and then averaged, which smooths them; text is drawn at the final size.
const FINE: i32 = 2;
const INK: [u8; 3] = [38, 38, 42];
const FAINT: [u8; 3] = [110, 110, 118];
const AXIS: RGBColor = RGBColor(110, 110, 118);
const RULE: RGBColor = RGBColor(228, 228, 232);
const RAW: RGBColor = RGBColor(188, 207, 232);
const TRAINING: RGBColor = RGBColor(31, 90, 166);
const VALIDATION: RGBColor = RGBColor(214, 96, 30);
const MARK: RGBColor = RGBColor(38, 140, 78);
const METRIC: RGBColor = RGBColor(128, 70, 160);

/// Most points of a line; more are averaged.
const MAX_POINTS: usize = 3000;

/// Time statistics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Seconds per pass over the training images, if at least part of one was timed.
    pub seconds_per_epoch: Option<f64>,
    /// Total seconds of training, including resumed parts.
    pub total_seconds: f64,
}

/// The content of a loss curve. Points are (optimizer step, loss) in the order of steps; those that are not finite are left out.
#[derive(Clone, Debug, Default)]
pub struct LossCurve<'a> {
    /// The heading.
    pub title: &'a str,
    /// Training loss: the raw values in a faint line, a moving average in a bold one.
    pub training: &'a [(u64, f64)],
    /// Validation loss: drawn as points; the lowest is marked.
    pub validation: &'a [(u64, f64)],
    /// A metric's name and points, drawn on its own scale at the right edge.
    pub metric: Option<(&'a str, &'a [(u64, f64)])>,
    /// Steps per epoch, for a second scale along the lower edge.
    pub steps_per_epoch: Option<f64>,
    /// Time statistics, written below the heading.
    pub timing: Option<Timing>,
}

/// Draws the curve into a PNG file, atomically. The loss axis is logarithmic if the losses span more than a factor of five.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn loss_curve(path: impl AsRef<Path>, curve: &LossCurve) -> Result<()> {
    write_png(path, &render_loss_curve(curve)?, &[("Software", concat!("engine ", env!("CARGO_PKG_VERSION")))])
}

/// Draws the curve: 1080x640 RGB.
///
/// # Errors
/// [`Error::Unsupported`] if the plotting library fails, which no input is known to cause.
pub fn render_loss_curve(curve: &LossCurve) -> Result<Image> {
    rendered("loss curve", |area, words| draw(area, words, curve))
}

/// Renders the lines and the text of `draw`.
fn rendered(what: &'static str, draw: impl FnOnce(&Area, &mut Vec<Word>) -> Drawn) -> Result<Image> {
    let mut pixels = vec![255; (WIDTH * FINE * HEIGHT * FINE * 3) as usize];
    let mut words = Vec::new();
    {
        let size = ((WIDTH * FINE) as u32, (HEIGHT * FINE) as u32);
        let area = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
        draw(&area, &mut words).and_then(|()| Ok(area.present()?)).map_err(|error| Error::Unsupported {
            op: what,
            device: "the plotting library".into(),
            reason: error.to_string(),
        })?;
    }
    let mut image = averaged(&pixels)?;
    for word in words {
        word.draw(&mut image);
    }
    Ok(image)
}

/// Downsamples the picture: each pixel is the mean of [`FINE`] x [`FINE`] drawn ones.
fn averaged(fine: &[u8]) -> Result<Image> {
    let (width, height, factor) = (WIDTH as usize, HEIGHT as usize, FINE as usize);
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let at = |dx: usize, dy: usize| ((y * factor + dy) * width * factor + x * factor + dx) * 3 + channel;
                let all = (0..factor * factor).map(|i| u32::from(fine[at(i % factor, i / factor)])).sum::<u32>();
                pixels.push((all / (FINE * FINE) as u32) as u8);
            }
        }
    }
    Image::new(width, height, 3, pixels)
}

/// The anchor of a text.
#[derive(Clone, Copy)]
enum Anchor {
    Left,
    Middle,
    Right,
}

/// One line of text; `x` is its left end, middle or right end, `y` its upper edge.
struct Word {
    x: i32,
    y: i32,
    anchor: Anchor,
    text: String,
    size: f32,
    colour: [u8; 3],
}

impl Word {
    fn new((x, y): (i32, i32), anchor: Anchor, text: impl Into<String>, size: f32, colour: [u8; 3]) -> Self {
        Self { x, y, anchor, text: text.into(), size, colour }
    }

    fn draw(&self, image: &mut Image) {
        let text = fitted(&self.text, self.size, (WIDTH - 20) as usize);
        let width = text_width(&text, self.size) as i32;
        let x = match self.anchor {
            Anchor::Left => self.x,
            Anchor::Middle => self.x - width / 2,
            Anchor::Right => self.x - width,
        };
        draw_text(
            image,
            x.clamp(4, (WIDTH - width).max(4)) as usize,
            self.y.max(0) as usize,
            &text,
            self.size,
            self.colour,
        );
    }
}

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, BitMapBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// The vertical axis: plain, or the logarithm to base 10 if the values span more than a factor of five.
#[derive(Clone, Copy)]
struct Axis {
    log: bool,
    /// The position of the lower end: a value or its logarithm.
    floor: f64,
    /// The position of the upper end.
    top: f64,
}

impl Axis {
    /// An axis that has a margin around the values `low..=high`.
    fn around(low: f64, high: f64) -> Self {
        let log = low > 0.0 && high > 5.0 * low;
        let [bottom, top] = [low, high].map(|value| if log { value.log10() } else { value });
        let margin = ((top - bottom) * 0.06).max(top.abs() * 1e-3).max(1e-9);
        // A plain axis of values that are not negative does not extend below 0.
        let floor = if !log && low >= 0.0 { (bottom - margin).max(0.0) } else { bottom - margin };
        Self { log, floor, top: top + margin }
    }

    /// The position of a value.
    fn of(self, value: f64) -> f64 {
        if self.log { value.log10() } else { value }
    }

    /// The name of values on this axis.
    fn name(self, values: &str) -> String {
        if self.log { format!("{values} (logarithmic)") } else { values.into() }
    }
}

fn draw(area: &Area, words: &mut Vec<Word>, curve: &LossCurve) -> Drawn {
    area.fill(&WHITE)?;
    let finite = |points: &[(u64, f64)]| -> Vec<(f64, f64)> {
        // Losses near the largest float would overflow the axis margins.
        points.iter().filter(|(_, loss)| loss.abs() < 1e30).map(|(step, loss)| (*step as f64, *loss)).collect()
    };
    let (training, validation) = (finite(curve.training), finite(curve.validation));
    let smooth = thinned(&smoothed(&training));
    let raw = thinned(&training);

    let title = fitted(curve.title, 22.0, (WIDTH - LEFT - RIGHT) as usize);
    words.push(Word::new((LEFT, 18), Anchor::Left, title, 22.0, INK));
    words.push(Word::new((LEFT, 50), Anchor::Left, status_line(curve, &training, &validation), 15.0, FAINT));

    let metric = curve.metric.map(|(name, points)| (name, finite(points))).filter(|(_, points)| !points.is_empty());
    let right = if metric.is_some() { RIGHT_OF_SCALE } else { RIGHT };
    let measured = metric.iter().flat_map(|(_, points)| points);
    let last = training.iter().chain(&validation).chain(measured).map(|point| point.0).fold(0.0, f64::max).max(1.0);
    let (low, high) = extent(&raw, smooth.iter().chain(&validation));
    let axis = Axis::around(low, high);
    let lower = if curve.steps_per_epoch.is_some() { 74 } else { 56 };
    let mut chart = chart(area, (right, lower), last, axis)?;
    axes(words, &mut chart, (curve.steps_per_epoch, "optimizer step", "loss"), last, axis)?;

    let line = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        let inside = |loss: f64| axis.of(if axis.log { loss.max(low * 0.1) } else { loss }).clamp(axis.floor, axis.top);
        points.iter().map(|(step, loss)| (*step, inside(*loss))).collect()
    };
    let mut legend: Vec<(&str, ShapeStyle, i32)> = Vec::new();
    let stroke = |colour: RGBColor, width: i32| colour.stroke_width((width * FINE) as u32);
    let averaging = window(training.len()) > 0;
    if averaging {
        chart.draw_series(LineSeries::new(line(&raw), stroke(RAW, 1)))?;
        legend.push(("training loss", stroke(RAW, 2), 0));
    }
    if !smooth.is_empty() {
        chart.draw_series(LineSeries::new(line(&smooth), stroke(TRAINING, 2)))?;
        let name = if averaging { "training loss, moving average" } else { "training loss" };
        legend.push((name, stroke(TRAINING, 2), 0));
    }
    if !validation.is_empty() {
        let points = line(&validation);
        chart.draw_series(LineSeries::new(points.clone(), stroke(VALIDATION, 1)))?;
        let radius = FINE * if points.len() > 60 { 2 } else { 4 };
        chart.draw_series(points.iter().map(|point| Circle::new(*point, radius, VALIDATION.filled())))?;
        legend.push(("validation loss", VALIDATION.filled(), 4));
        if let Some(best) = lowest(&validation) {
            let best = line(&[best]);
            chart.draw_series(best.iter().map(|point| Circle::new(*point, 7 * FINE, stroke(MARK, 2))))?;
            legend.push(("lowest validation loss", stroke(MARK, 2), 6));
        }
    }
    if let Some((name, points)) = &metric {
        over_own_scale(words, &mut chart, (name, points), axis, last)?;
        legend.push((name, METRIC.filled(), 4));
    }
    if training.is_empty() && validation.is_empty() {
        let middle = (WIDTH / 2, HEIGHT / 2);
        words.push(Word::new(middle, Anchor::Middle, "no loss has been logged yet", 18.0, FAINT));
    }
    draw_legend(area, words, right, &legend)
}

/// The range of the loss axis. The first few raw losses of a run are far above the rest; the smoothed line and validation set the
/// axis, and the raw line only widens it as far as most of its points need.
fn extent<'a>(raw: &[(f64, f64)], others: impl Iterator<Item = &'a (f64, f64)>) -> (f64, f64) {
    let mut shown: Vec<f64> = others.map(|point| point.1).collect();
    let mut sorted: Vec<f64> = raw.iter().map(|point| point.1).collect();
    sorted.sort_by(f64::total_cmp);
    if let (Some(low), Some(high)) = (sorted.get(sorted.len() / 200), sorted.get(sorted.len() * 199 / 200)) {
        shown.extend([low, high]);
    }
    let low = shown.iter().copied().fold(f64::INFINITY, f64::min);
    let high = shown.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if low.is_finite() { (low, high) } else { (0.0, 1.0) }
}

/// The legend, in the upper right corner of the plot on white: names, styles, and radii of points (0 for a line).
fn draw_legend(area: &Area, words: &mut Vec<Word>, right: i32, entries: &[(&str, ShapeStyle, i32)]) -> Drawn {
    if entries.is_empty() {
        return Ok(());
    }
    let widest = entries.iter().map(|entry| text_width(entry.0, 14.0) as i32).max().unwrap_or(0);
    let (width, height) = (widest + 56, 12 + 22 * entries.len() as i32);
    let (x, y) = (WIDTH - right - width - 8, TOP + 8);
    let fine = |x: i32, y: i32| (x * FINE, y * FINE);
    let corners = [fine(x, y), fine(x + width, y + height)];
    area.draw(&Rectangle::new(corners, WHITE.filled()))?;
    area.draw(&Rectangle::new(corners, RULE.stroke_width(FINE as u32)))?;
    for (index, (name, style, radius)) in entries.iter().enumerate() {
        let y = y + 17 + 22 * index as i32;
        match radius {
            0 => area.draw(&PathElement::new(vec![fine(x + 10, y), fine(x + 34, y)], *style))?,
            radius => area.draw(&Circle::new(fine(x + 22, y), radius * FINE, *style))?,
        }
        words.push(Word::new((x + 44, y - 7), Anchor::Left, *name, 14.0, INK));
    }
    Ok(())
}

/// An empty chart from 0 to `last`, with margins at the right and below.
fn chart<'a, 'b>(
    area: &'a Area<'b>,
    (right, lower): (i32, i32),
    last: f64,
    axis: Axis,
) -> std::result::Result<Chart<'a, 'b>, Box<dyn std::error::Error>> {
    let chart = ChartBuilder::on(area)
        .margin_left(LEFT * FINE)
        .margin_right(right * FINE)
        .margin_top(TOP * FINE)
        .margin_bottom(lower * FINE)
        .build_cartesian_2d(0.0..last * 1.01, axis.floor..axis.top)?;
    Ok(chart)
}

/// Grid lines, numbers and names of the axes.
fn axes(
    words: &mut Vec<Word>,
    chart: &mut Chart,
    (steps_per_epoch, over, of): (Option<f64>, &str, &str),
    last: f64,
    axis: Axis,
) -> Drawn {
    let Axis { floor, top, .. } = axis;
    let place = |chart: &Chart, x: f64, y: f64| {
        let (x, y) = chart.backend_coord(&(x, y));
        (x / FINE, y / FINE)
    };
    let rule = RULE.stroke_width(FINE as u32);
    let (left, lower) = place(chart, 0.0, floor);
    for loss in ticks(axis) {
        let y = axis.of(loss);
        chart.draw_series(LineSeries::new([(0.0, y), (last * 1.01, y)], rule))?;
        let at = place(chart, 0.0, y).1;
        words.push(Word::new((left - 8, at - 7), Anchor::Right, number(loss), 14.0, INK));
    }
    for step in round_steps(last) {
        chart.draw_series(LineSeries::new([(step, floor), (step, top)], rule))?;
        let at = place(chart, step, floor).0;
        words.push(Word::new((at, lower + 6), Anchor::Middle, grouped(step as u64), 14.0, INK));
    }
    let corner = [(0.0, top), (0.0, floor), (last * 1.01, floor)];
    chart.draw_series(LineSeries::new(corner, AXIS.stroke_width(FINE as u32)))?;

    let mut name = over.to_string();
    if let Some(steps) = steps_per_epoch.filter(|steps| *steps >= 1.0 && steps.is_finite()) {
        name = format!("optimizer step ({} an epoch)", grouped(steps.round() as u64));
        if last >= steps {
            for epoch in round_steps(last / steps) {
                let at = place(chart, epoch * steps, floor).0;
                words.push(Word::new((at, lower + 25), Anchor::Middle, grouped(epoch as u64), 12.0, FAINT));
            }
            words.push(Word::new((left - 8, lower + 25), Anchor::Right, "epoch", 12.0, FAINT));
        }
    }
    let below = HEIGHT - 26;
    words.push(Word::new((WIDTH - RIGHT, below), Anchor::Right, name, 14.0, INK));
    words.push(Word::new((left, below), Anchor::Left, axis.name(of), 14.0, INK));
    Ok(())
}

/// The line below the heading: current losses, and the time statistics.
fn status_line(curve: &LossCurve, training: &[(f64, f64)], validation: &[(f64, f64)]) -> String {
    let mut facts = Vec::new();
    if let Some((_, loss)) = smoothed(training).last() {
        facts.push(format!("training loss {}", number(*loss)));
    }
    if let Some((step, loss)) = lowest(validation) {
        facts.push(format!("lowest validation loss {} at step {}", number(loss), grouped(step as u64)));
    }
    if let Some(timing) = curve.timing {
        if let Some(seconds) = timing.seconds_per_epoch.filter(|seconds| seconds.is_finite()) {
            facts.push(format!("{} s per epoch", number(seconds)));
        }
        if timing.total_seconds.is_finite() {
            let hours = timing.total_seconds / 3600.0;
            let minutes = if hours < 1.0 { format!(" ({} min)", number(hours * 60.0)) } else { String::new() };
            facts.push(format!("{} h{minutes} in all", number(hours)));
        }
    }
    facts.join("  ·  ")
}

fn lowest(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    points.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))
}

/// Points on either side in the moving average, of `count`.
fn window(count: usize) -> usize {
    (count / 40).min(250)
}

/// Moving average: [`window`] points on either side. At the start, where losses fall fastest, fewer on both sides, so that the
/// fall is not smeared.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = window(points.len());
    let mean = |(index, point): (usize, &(f64, f64))| {
        let reach = reach.min(index / 3);
        let (from, to) = (index - reach, (index + reach + 1).min(points.len()));
        (point.0, points[from..to].iter().map(|point| point.1).sum::<f64>() / (to - from) as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

/// At most [`MAX_POINTS`] points: averages of as many neighbours as needed.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let count = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / count, part.iter().map(|p| p.1).sum::<f64>() / count)
    };
    points.chunks(size).map(mean).collect()
}

/// Values of the axis' grid lines.
fn ticks(Axis { log, floor, top }: Axis) -> Vec<f64> {
    if !log {
        return round_values(floor, top, 7);
    }
    let decades = (floor.floor() as i32)..=(top.ceil() as i32);
    // The wider the range, the fewer numbers per decade.
    let digits: &[f64] = match top - floor {
        span if span < 1.0 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
        span if span < 2.5 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let all = decades.flat_map(|decade| digits.iter().map(move |digit| digit * 10f64.powi(decade)));
    let inside: Vec<f64> = all.filter(|loss| (floor..=top).contains(&loss.log10())).collect();
    let every = inside.len().div_ceil(12).max(1);
    inside.into_iter().step_by(every).collect()
}

/// About `count` round numbers within `low..high`: multiples of 1, 2 or 5 times a power of ten.
fn round_values(low: f64, high: f64, count: u32) -> Vec<f64> {
    let rough = ((high - low) / f64::from(count)).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= rough).unwrap_or(rough);
    let first = (low / step).ceil();
    (0..=2 * count).map(|i| (first + f64::from(i)) * step).take_while(|value| *value <= high + step * 1e-9).collect()
}

/// Round whole numbers from 0 to `high`.
fn round_steps(high: f64) -> Vec<f64> {
    round_values(0.0, high, 8).into_iter().filter(|value| value.fract().abs() < 1e-9).collect()
}

/// Three significant digits, without trailing zeros.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    if !(1e-4..1e6).contains(&value.abs()) {
        return format!("{value:.2e}");
    }
    let decimals = (2 - value.abs().log10().floor() as i32).max(0) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

/// Digits in groups of three.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_round() {
        for (value, text) in [
            (0.0, "0"),
            (0.1, "0.1"),
            (0.03127, "0.0313"),
            (1.0, "1"),
            (105.32, "105"),
            (12_345.6, "12346"),
            (2e-5, "2.00e-5"),
            (-0.25, "-0.25"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!((grouped(0), grouped(999), grouped(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
    }

    #[test]
    fn rules_are_few_and_inside() {
        for (low, high) in [(0.0, 1.0), (0.03, 0.031), (-3.0, 500.0), (0.0, 1e-9)] {
            let values = round_values(low, high, 7);
            assert!((2..=15).contains(&values.len()), "{values:?}");
            assert!(values.iter().all(|v| *v >= low - 1e-9 && *v <= high + 1e-9));
        }
        for (floor, top) in [(-1.6, -0.9), (-2.0, 0.1), (-9.0, 3.0)] {
            let values = ticks(Axis { log: true, floor, top });
            assert!((2..=12).contains(&values.len()), "{values:?}");
        }
    }

    #[test]
    fn smoothing_starts_at_the_start_and_calms() {
        let points: Vec<_> = (0..400).map(|i| (f64::from(i), 1.0 + f64::from(i % 2))).collect();
        let smooth = smoothed(&points);
        assert_eq!((smooth.len(), smooth[0]), (400, (0.0, 1.0)));
        assert!(smooth[20..].iter().all(|point| (point.1 - 1.5).abs() < 0.1));
        assert_eq!(smoothed(&points[..30]), points[..30]);
        assert_eq!(thinned(&points).len(), 400);
        let many: Vec<_> = (0..10_000).map(|i| (f64::from(i), 2.0)).collect();
        assert!(thinned(&many).len() <= MAX_POINTS && thinned(&many).iter().all(|p| p.1 == 2.0));
    }

    #[test]
    fn curves_of_every_kind_are_drawn() {
        let falling: Vec<_> = (1..500).map(|i| (i * 10, 1.0 / i as f64)).collect();
        let flat = vec![(1, 0.5); 3];
        let wild = vec![(0, f64::NAN), (1, f64::INFINITY), (2, 1e308), (3, -4.0), (u64::MAX, 0.0), (5, 1e-300)];
        let timing = Timing { seconds_per_epoch: Some(105.3), total_seconds: 4000.0 };
        type Points<'a> = &'a [(u64, f64)];
        let cases: [(Points, Points); 6] = [
            (&falling, &falling[5..9]),
            (&flat, &[]),
            (&[], &flat),
            (&[], &[]),
            (&wild, &wild),
            (&[(7, 0.3)], &[(7, 0.2)]),
        ];
        for (training, validation) in cases {
            for steps_per_epoch in [None, Some(100.0), Some(0.0), Some(f64::NAN)] {
                let title = "a title\nof two lines";
                let timing = Some(timing);
                let curve = LossCurve { title, training, validation, metric: None, steps_per_epoch, timing };
                let image = render_loss_curve(&curve).unwrap();
                let ink = |image: &Image| image.pixels().chunks(3).filter(|pixel| *pixel != [255; 3]).count();
                assert!(ink(&image) > 2000, "{}", ink(&image));
                let with_metric = LossCurve { metric: Some(("FID", validation)), ..curve };
                assert!(ink(&render_loss_curve(&with_metric).unwrap()) > 2000);
            }
        }
    }

    #[test]
    fn the_line_of_facts_tells_the_time() {
        let timing = Some(Timing { seconds_per_epoch: Some(105.32), total_seconds: 5400.0 });
        let curve = LossCurve { timing, ..LossCurve::default() };
        let facts = status_line(&curve, &[(1.0, 0.5)], &[(10.0, 0.4), (2000.0, 0.3)]);
        let expected =
            "training loss 0.5  ·  lowest validation loss 0.3 at step 2,000  ·  105 s per epoch  ·  1.5 h in all";
        assert_eq!(facts, expected);
    }

    #[test]
    fn the_file_is_a_png() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plots/loss.png");
        loss_curve(&path, &LossCurve { title: "run", training: &[(1, 0.5), (2, 0.4)], ..LossCurve::default() })
            .unwrap();
        let (image, texts) = super::super::read_png(&path).unwrap();
        assert_eq!((image.width(), image.height()), (WIDTH as usize, HEIGHT as usize));
        assert_eq!(texts[0].0, "Software");
    }
}
