//! Metrics of models, and the statistics of their differences.

use std::f64::consts::FRAC_2_PI;

use serde::Serialize;

/// The joint coverage of the intervals of all comparisons.
const CONFIDENCE: f64 = 0.95;
/// With this many degrees of freedom or more, Student's distribution is replaced by the normal one (the quantiles differ by 1e-4 relative).
const NORMAL: usize = 10_000;

/// The direction of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

/// One number for each of several models, with its uncertainty if known.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name, as in `mean ε-error`.
    pub name: String,
    /// Its unit, as in `ms/image`; empty for a pure number.
    pub unit: String,
    /// Its direction.
    pub better: Better,
    /// A value for each model.
    pub values: Vec<f64>,
    /// The values' standard errors; None if unknown, and then differences are not tested.
    pub standard_errors: Option<Vec<f64>>,
    /// For each model the values of single images, the same images for all.
    items: Option<Vec<Vec<f64>>>,
}

/// The difference between two models.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The difference of the values.
    pub mean: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Its 95 % interval; for several comparisons the intervals hold jointly (Bonferroni).
    pub interval: [f64; 2],
    /// Whether it is paired per image, which cancels the difficulty of an image.
    pub paired: bool,
}

impl Difference {
    /// Whether the interval excludes 0.
    pub fn is_shown(&self) -> bool {
        self.interval[0] > 0.0 || self.interval[1] < 0.0
    }
}

impl Metric {
    /// The means over images; `items` has one list per model, with the same images in the same order. Standard errors are those of
    /// the means over the images.
    pub fn of_images(name: impl Into<String>, unit: &str, better: Better, items: Vec<Vec<f64>>) -> Self {
        let (values, errors) = items.iter().map(|items| mean_and_error(items)).unzip();
        Self { name: name.into(), unit: unit.into(), better, values, standard_errors: Some(errors), items: Some(items) }
    }

    /// Values with standard errors from elsewhere, or None. Models are assumed to be measured independently.
    pub fn of_values(
        name: impl Into<String>,
        unit: &str,
        better: Better,
        values: Vec<f64>,
        standard_errors: Option<Vec<f64>>,
    ) -> Self {
        Self { name: name.into(), unit: unit.into(), better, values, standard_errors, items: None }
    }

    /// The index of the best model; the first of equal ones. NaN is the worst.
    pub fn best(&self) -> usize {
        let key = |place: usize| match self.better {
            _ if self.values[place].is_nan() => f64::INFINITY,
            Better::Lower => self.values[place],
            Better::Higher => -self.values[place],
        };
        (1..self.values.len()).fold(0, |best, place| if key(place) < key(best) { place } else { best })
    }

    /// Model `a`'s value minus model `b`'s, or None without standard errors.
    ///
    /// If per-image values are known, the difference is paired: the mean of the differences, its standard error, and an interval
    /// by Student's t. Else the variances of the independent values add up, with the normal distribution. Each of the m(m − 1)/2
    /// pairs of m models has its share of the 5 % (Bonferroni), so that the best may be chosen after the fact.
    pub fn difference(&self, a: usize, b: usize) -> Option<Difference> {
        let models = self.values.len();
        let pairs = (models * models.saturating_sub(1) / 2).max(1);
        let (mean, standard_error, freedom) = match (&self.items, &self.standard_errors) {
            (Some(items), _) => {
                let differences: Vec<f64> = items[a].iter().zip(&items[b]).map(|(a, b)| a - b).collect();
                let (mean, error) = mean_and_error(&differences);
                (mean, error, differences.len().saturating_sub(1))
            }
            (None, Some(errors)) => (self.values[a] - self.values[b], errors[a].hypot(errors[b]), NORMAL),
            (None, None) => return None,
        };
        let half = standard_error * student(freedom, (1.0 - CONFIDENCE) / pairs as f64);
        let interval = [mean - half, mean + half];
        Some(Difference { mean, standard_error, interval, paired: self.items.is_some() })
    }

    /// By how much model `a` is better than model `b`: a [difference](Self::difference) above 0 if it is.
    pub fn margin(&self, a: usize, b: usize) -> Option<Difference> {
        match self.better {
            Better::Lower => self.difference(b, a),
            Better::Higher => self.difference(a, b),
        }
    }

    /// The best model against the others, in one line that claims no more than the intervals. `more(best, other)` may add text to
    /// a pair. None if the uncertainty is unknown, or there is only one model.
    pub fn verdict(&self, names: &[String], more: impl Fn(usize, usize) -> String) -> Option<String> {
        let best = self.best();
        let others = (0..self.values.len()).filter(|other| *other != best);
        let margins: Vec<(usize, Difference)> =
            others.map(|other| Some((other, self.margin(best, other)?))).collect::<Option<_>>()?;
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        let by = |margin: &Difference, what: &str| {
            let [low, high] = margin.interval.map(|bound| rounded(bound, margin.standard_error));
            format!("{}{unit} ({what}{low} … {high})", with_error(margin.mean, margin.standard_error))
        };
        let (first, name) = (&names[best], &self.name);
        if let [(other, margin)] = margins.as_slice() {
            let (by, more, other) = (by(margin, "95 % interval "), more(best, *other), &names[*other]);
            return Some(match (margin.is_shown(), self.better) {
                (true, _) => format!("{first} is better than {other} by {by} in {name}{more}"),
                (false, Better::Lower) => format!("no difference shown: {other} − {first} = {by} in {name}{more}"),
                (false, Better::Higher) => format!("no difference shown: {first} − {other} = {by} in {name}{more}"),
            });
        }
        let list = |shown: bool, word: &str| -> Vec<String> {
            let some = margins.iter().filter(|(_, margin)| margin.is_shown() == shown);
            some.map(|(other, margin)| format!("{word} {} by {}{}", names[*other], by(margin, ""), more(best, *other)))
                .collect()
        };
        let (better, unclear) = (list(true, "than"), list(false, "ahead of"));
        let pairs = self.values.len() * (self.values.len() - 1) / 2;
        let parts = [
            (!better.is_empty()).then(|| format!("{first} is better {}", better.join(", "))),
            (!unclear.is_empty()).then(|| format!("no difference shown: {first} is {}", unclear.join(", "))),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty())
            .then(|| format!("in {name}, {} (95 % intervals that hold together for {pairs} pairs)", parts.join("; ")))
    }
}

/// The mean and its standard error √(Σ (x − mean)² / (n − 1) / n), which is infinite for fewer than two values.
///
/// ```
/// // The deviations are −1, 0 and 1, their variance 1.
/// assert_eq!(engine::eval::mean_and_error(&[1.0, 2.0, 3.0]), (2.0, (1.0f64 / 3.0).sqrt()));
/// ```
pub fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, f64::INFINITY);
    }
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0) / n).sqrt())
}

/// `0.0123 ± 0.0011`: as many decimals as the error's first two digits need.
pub fn with_error(value: f64, error: f64) -> String {
    format!("{} ± {}", rounded(value, error), rounded(error, error))
}

/// A value with as many decimals as its error's first two digits need.
pub fn rounded(value: f64, error: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let decimals = match error.abs() {
        error if error > 0.0 && error.is_finite() => (1.0 - error.log10().floor()).clamp(0.0, 12.0) as usize,
        _ => 6,
    };
    let text = format!("{value:.decimals$}");
    let nothing = |rest: &&str| rest.chars().all(|c| matches!(c, '0' | '.'));
    text.strip_prefix('-').filter(nothing).map(String::from).unwrap_or(text)
}

/// The t with P(|T| > t) = `tail` under Student's distribution.
fn student(freedom: usize, tail: f64) -> f64 {
    if freedom == 0 {
        return f64::INFINITY;
    }
    let freedom = freedom.min(NORMAL);
    let (mut low, mut high) = (0.0, 2.0);
    while central(high, freedom) < 1.0 - tail {
        (low, high) = (high, 2.0 * high);
    }
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if central(middle, freedom) < 1.0 - tail { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// P(|T| ≤ t) under Student's distribution (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4).
fn central(t: f64, freedom: usize) -> f64 {
    let theta = (t / (freedom as f64).sqrt()).atan();
    let (sin, cos) = theta.sin_cos();
    // cosⁿ and its weights, n = 1, 3, … for odd degrees of freedom and 0, 2, … for even ones, below freedom - 1.
    let odd = freedom % 2;
    let (mut term, mut sum) = (if odd == 1 { cos } else { 1.0 }, 0.0);
    for n in (odd..freedom.saturating_sub(1)).step_by(2) {
        sum += term;
        term *= cos * cos * (n + 1) as f64 / (n + 2) as f64;
    }
    if odd == 1 { FRAC_2_PI * (theta + sin * sum) } else { sin * sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        ["A", "B", "C", "D"][..count].iter().map(|name| name.to_string()).collect()
    }

    fn none(_: usize, _: usize) -> String {
        String::new()
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, tail, expected) in [
            (1, 0.05, 12.706_204_736),
            (2, 0.05, 4.302_652_730),
            (3, 0.01, 5.840_909_310),
            (10, 0.05, 2.228_138_852),
            (29, 0.05, 2.045_229_642),
            (120, 0.05, 1.979_930_405),
            (255, 0.05, 1.969_311_0),
            (100_000, 0.05, 1.960_201_2),
        ] {
            let found = student(freedom, tail);
            assert!((found / expected - 1.0).abs() < 1e-6, "{freedom}: {found}, not {expected}");
        }
        assert_eq!(student(0, 0.05), f64::INFINITY);
    }

    #[test]
    fn a_difference_by_hand() {
        // B − A is 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 = 14, standard error √(14/3/4) = 1.0801234, t of 3 degrees
        // 3.1824463, so the interval is 3 ± 3.4374.
        let items = vec![vec![1.0, 2.0, 3.0, 4.0], vec![2.0, 4.0, 6.0, 10.0]];
        let metric = Metric::of_images("error", "", Better::Lower, items.clone());
        assert_eq!(metric.values, [2.5, 5.5]);
        let errors = metric.standard_errors.clone().unwrap();
        // Of A: squares 2.25 + 0.25 + 0.25 + 2.25 = 5, √(5/3/4).
        assert!((errors[0] - (5.0f64 / 12.0).sqrt()).abs() < 1e-15);
        let difference = metric.difference(1, 0).unwrap();
        assert_eq!((difference.mean, difference.paired), (3.0, true));
        assert!((difference.standard_error - (14.0f64 / 12.0).sqrt()).abs() < 1e-15);
        let half = (14.0f64 / 12.0).sqrt() * 3.182_446_305;
        assert!((difference.interval[0] - (3.0 - half)).abs() < 1e-8, "{difference:?}");
        assert!((difference.interval[1] - (3.0 + half)).abs() < 1e-8, "{difference:?}");
        assert!(!difference.is_shown());
        // With the sign reversed; and with a metric where lower is better.
        let reversed =
            Difference { mean: -difference.mean, interval: difference.interval.map(|end| -end), ..difference };
        let [high, low] = reversed.interval;
        assert_eq!(metric.difference(0, 1).unwrap(), Difference { interval: [low, high], ..reversed });
        assert_eq!((metric.best(), metric.margin(0, 1)), (0, Some(difference)));
        let higher = Metric { better: Better::Higher, ..metric };
        assert_eq!((higher.best(), higher.margin(1, 0)), (1, Some(difference)));

        // With three models each of three pairs has a third of the 5 %: t is 4.8567 (3 degrees, 0.05/3).
        let three = Metric::of_images("error", "", Better::Lower, [items, vec![vec![0.0; 4]]].concat());
        let wider = three.difference(1, 0).unwrap();
        let ratio = (wider.interval[1] - wider.mean) / wider.standard_error;
        assert!((ratio - 4.8567).abs() < 1e-3, "{ratio}");
    }

    #[test]
    fn independent_errors_add_as_squares() {
        let metric = Metric::of_values("FID", "", Better::Lower, vec![10.0, 6.0], Some(vec![0.3, 0.4]));
        let difference = metric.difference(0, 1).unwrap();
        assert_eq!((difference.mean, difference.standard_error, difference.paired), (4.0, 0.5, false));
        assert!((difference.interval[1] - 4.98).abs() < 1e-3);
        assert_eq!(
            metric.verdict(&names(2), none).unwrap(),
            "B is better than A by 4.00 ± 0.50 (95 % interval 3.02 … 4.98) in FID"
        );
        let bare = Metric::of_values("sampling", "ms/image", Better::Lower, vec![1.0, 2.0], None);
        assert_eq!((bare.difference(0, 1), bare.verdict(&names(2), none)), (None, None));
    }

    #[test]
    fn a_verdict_is_no_stronger_than_its_interval() {
        let of = |better, items| Metric::of_images("error", "", better, items);
        let close = vec![vec![1.0, 2.0, 3.0, 4.0], vec![1.5, 1.9, 3.6, 4.0]];
        let verdict = of(Better::Lower, close.clone()).verdict(&names(2), none).unwrap();
        assert!(
            verdict.starts_with("no difference shown: B − A = 0.25 ± 0.18 (95 % interval -0.31 … 0.81) in"),
            "{verdict}"
        );
        let verdict = of(Better::Higher, close.clone()).verdict(&names(2), none).unwrap();
        assert!(verdict.starts_with("no difference shown: B − A = 0.25 ± 0.18 "), "{verdict}");
        // Against itself: no difference.
        let same = of(Better::Lower, vec![close[0].clone(), close[0].clone()]);
        assert_eq!(
            same.verdict(&names(2), none).unwrap(),
            "no difference shown: B − A = 0 ± 0 (95 % interval 0 … 0) in error"
        );
        // NaN is never the best.
        let broken = of(Better::Lower, vec![vec![f64::NAN; 4], close[0].clone()]);
        assert_eq!(broken.best(), 1);
        assert!(broken.verdict(&names(2), none).unwrap().starts_with("no difference shown"));
        // A single image has no error.
        let single = of(Better::Lower, vec![vec![1.0], vec![2.0]]);
        assert!(!single.difference(0, 1).unwrap().is_shown());
    }

    #[test]
    fn of_several_the_best_stands_against_each() {
        let base: Vec<f64> = (0..40).map(|k| f64::from(k) / 40.0).collect();
        let above = |by: f64, wiggle: f64| -> Vec<f64> {
            base.iter().enumerate().map(|(k, x)| x + by + if k % 2 == 0 { wiggle } else { -wiggle }).collect()
        };
        let items = vec![above(0.01, 0.1), base.clone(), above(0.5, 0.01)];
        let metric = Metric::of_images("error", "", Better::Lower, items);
        let verdict = metric.verdict(&names(3), |best, other| format!(" <{best}{other}>")).unwrap();
        assert!(verdict.starts_with("in error, B is better than C by 0.5000 ± 0.0016 (0.49"), "{verdict}");
        assert!(verdict.contains("<12>; no difference shown: B is ahead of A by 0.010 ± 0.016 (-0.03"), "{verdict}");
        assert!(verdict.ends_with("<10> (95 % intervals that hold together for 3 pairs)"), "{verdict}");
    }

    #[test]
    fn numbers_have_the_digits_that_their_errors_allow() {
        assert_eq!(with_error(0.012_345, 0.001_1), "0.0123 ± 0.0011");
        assert_eq!(with_error(123.4, 17.0), "123 ± 17");
        assert_eq!((rounded(-0.004, 0.1), rounded(-0.006, 0.1)), ("0.00".into(), "-0.01".into()));
        assert_eq!((with_error(0.0, 0.0), with_error(0.5, 0.0)), ("0 ± 0".into(), "0.500000 ± 0".into()));
        assert_eq!(with_error(1.0, f64::INFINITY), "1.000000 ± inf");
    }
}
