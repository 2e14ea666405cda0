//! The guidance scale as a function of a sample's progress.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, Result};

/// Most scales of a list.
const MOST: usize = 1000;
/// Largest scale.
const LARGEST: f64 = 100.0;

/// The classifier-free guidance scale (Ho & Salimans 2022) over a sample's progress p, 0 at its first step and 1 at its last (0 if
/// there is only one). In YAML and on the command line: `constant`, `adaptive`, or a list of scales.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum GuidanceSchedule {
    /// `sampling.guidance` at every step.
    #[default]
    Constant,
    /// Low while the layout forms, the full scale in the middle, higher at the end: 1 + (`sampling.guidance` - 1) · f(p), where f
    /// rises linearly from 0 at p = 0 to 1 at p = 0.3, is 1 up to p = 0.7, and rises to 1.5 at p = 1.
    Adaptive,
    /// These scales at equal distances of progress, the first at p = 0 and the last at p = 1, interpolated linearly;
    /// `sampling.guidance` is not used.
    List(Vec<f64>),
}

/// f of [`GuidanceSchedule::Adaptive`] as (progress, factor).
const ADAPTIVE: [(f64, f64); 4] = [(0.0, 0.0), (0.3, 1.0), (0.7, 1.0), (1.0, 1.5)];

/// Piecewise linear interpolation at `x` of points in ascending order; exact at the points and between equal neighbours.
fn lines(points: impl IntoIterator<Item = (f64, f64)>, x: f64) -> f64 {
    let mut before: Option<(f64, f64)> = None;
    for (right, high) in points {
        if x <= right {
            let Some((left, low)) = before else { return high };
            let share = (x - left) / (right - left);
            return if low == high || share == 1.0 { high } else { low + (high - low) * share };
        }
        before = Some((right, high));
    }
    before.map_or(1.0, |(_, value)| value)
}

impl GuidanceSchedule {
    /// The scale at progress `p` in [0, 1]; `scale` is `sampling.guidance`.
    pub fn at(&self, scale: f64, p: f64) -> f64 {
        match self {
            Self::Constant => scale,
            // 1 stays exactly 1: guidance stays off.
            Self::Adaptive if scale == 1.0 => 1.0,
            Self::Adaptive => 1.0 + (scale - 1.0) * lines(ADAPTIVE, p),
            Self::List(scales) => {
                let last = (scales.len().max(2) - 1) as f64;
                lines(scales.iter().enumerate().map(|(i, &scale)| (i as f64 / last, scale)), p)
            }
        }
    }

    /// Whether any step is guided; `scale` is `sampling.guidance`.
    pub fn is_guided(&self, scale: f64) -> bool {
        match self {
            Self::Constant | Self::Adaptive => scale != 1.0,
            Self::List(scales) => scales.iter().any(|&scale| scale != 1.0),
        }
    }

    /// Refuses invalid lists.
    ///
    /// # Errors
    /// [`Error::Config`] with the key and advice.
    pub fn validate(&self) -> Result<()> {
        let Self::List(scales) = self else { return Ok(()) };
        let refuse = |message: String| {
            Err(Error::config(
                "sampling.guidance_schedule",
                message,
                "give `constant`, `adaptive` or scales such as [1, 2, 3]",
            ))
        };
        if !(1..=MOST).contains(&scales.len()) {
            return refuse(format!("a list of {} scales; it takes 1 to {MOST}", scales.len()));
        }
        match scales.iter().find(|scale| !(0.0..=LARGEST).contains(*scale)) {
            Some(scale) => refuse(format!("a scale of {scale} is outside [0, {LARGEST}]")),
            None => Ok(()),
        }
    }
}

impl fmt::Display for GuidanceSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => f.write_str("constant"),
            Self::Adaptive => f.write_str("adaptive"),
            Self::List(scales) => {
                let scales: Vec<String> = scales.iter().map(f64::to_string).collect();
                f.write_str(&scales.join(","))
            }
        }
    }
}

impl FromStr for GuidanceSchedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let schedule = match text.trim() {
            "constant" => Self::Constant,
            "adaptive" => Self::Adaptive,
            list => {
                let scales = list.split(',').map(|scale| scale.trim().parse::<f64>());
                Self::List(scales.collect::<std::result::Result<_, _>>().map_err(|_| {
                    let short: String = list.chars().take(60).collect();
                    let message = format!("`{}` is not a guidance schedule", short.escape_debug());
                    Error::config("guidance schedule", message, "write constant, adaptive, or scales such as 1,2,3")
                })?)
            }
        };
        schedule.validate()?;
        Ok(schedule)
    }
}

impl Serialize for GuidanceSchedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::List(scales) => scales.serialize(serializer),
            named => serializer.collect_str(named),
        }
    }
}

impl<'de> Deserialize<'de> for GuidanceSchedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = GuidanceSchedule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`constant`, `adaptive` or a list of guidance scales")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<GuidanceSchedule, E> {
                match text {
                    "constant" => Ok(GuidanceSchedule::Constant),
                    "adaptive" => Ok(GuidanceSchedule::Adaptive),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<GuidanceSchedule, A::Error> {
                let mut scales = Vec::new();
                while let Some(scale) = list.next_element()? {
                    scales.push(scale);
                    if scales.len() > MOST {
                        return Err(de::Error::invalid_length(scales.len(), &self));
                    }
                }
                Ok(GuidanceSchedule::List(scales))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_adaptive_scale_follows_its_law() {
        let at = |p| GuidanceSchedule::Adaptive.at(3.0, p);
        assert_eq!([0.0, 0.3, 0.5, 0.7, 1.0].map(at), [1.0, 3.0, 3.0, 3.0, 4.0]);
        assert!((at(0.15) - 2.0).abs() < 1e-12 && (at(0.85) - 3.5).abs() < 1e-12);
        // Below 1, guidance away from the class scales in the same way.
        assert_eq!(GuidanceSchedule::Adaptive.at(0.0, 1.0), -0.5);
        for p in [0.0, 0.1, 0.37, 0.9, 1.0] {
            assert_eq!(GuidanceSchedule::Adaptive.at(1.0, p), 1.0);
            assert_eq!(GuidanceSchedule::Constant.at(2.5, p), 2.5);
        }
    }

    #[test]
    fn a_list_is_met_at_its_points_and_straight_between() {
        let list = GuidanceSchedule::List(vec![1.0, 2.0, 6.0]);
        assert_eq!([0.0, 0.25, 0.5, 0.75, 1.0].map(|p| list.at(9.0, p)), [1.0, 1.5, 2.0, 4.0, 6.0]);
        assert_eq!(GuidanceSchedule::List(vec![4.0]).at(9.0, 0.7), 4.0);
        assert!(list.is_guided(1.0) && !GuidanceSchedule::List(vec![1.0; 3]).is_guided(2.0));
    }

    #[test]
    fn each_reads_its_own_writing_and_bad_ones_are_refused() {
        let list = GuidanceSchedule::List(vec![1.0, 2.5]);
        for schedule in [GuidanceSchedule::Constant, GuidanceSchedule::Adaptive, list] {
            assert_eq!(schedule.to_string().parse::<GuidanceSchedule>().unwrap(), schedule);
            let json = serde_json::to_string(&schedule).unwrap();
            assert_eq!(serde_json::from_str::<GuidanceSchedule>(&json).unwrap(), schedule, "{json}");
        }
        for bad in ["", "rising", "1,,2", "1,-2", "NaN", "1,101"] {
            assert!(bad.parse::<GuidanceSchedule>().is_err(), "{bad}");
        }
        assert!(GuidanceSchedule::List(Vec::new()).validate().is_err());
        assert!(serde_json::from_str::<GuidanceSchedule>("3").is_err());
    }
}
