//! The environment's variables that the machine reads, and those that it refuses.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::model::{A100, Model};
use crate::exec::{Limits, MOST_CORES};

/// The prefix of every variable's name.
const PREFIX: &str = "PTX_MACHINE_";

/// The settings, with their defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `PTX_MACHINE_DEVICE`
    pub models: Vec<Model>,
    /// `PTX_MACHINE_CHECKS`
    pub checked: bool,
    /// `PTX_MACHINE_STEPS`, `PTX_MACHINE_CORES`
    pub limits: Limits,
    /// `PTX_MACHINE_DRIVER`, as the driver counts: 12040 for 12.4.
    pub version: i32,
    /// `PTX_MACHINE_REPLACE`
    pub replace: Option<PathBuf>,
    /// `PTX_MACHINE_COUNT`
    pub count: Option<PathBuf>,
    /// `PTX_MACHINE_EXECUTED`
    pub executed: Option<PathBuf>,
    /// `PTX_MACHINE_PROFILE`
    pub profile: Option<PathBuf>,
    /// `PTX_MACHINE_TRACE`
    pub trace: Option<PathBuf>,
    /// `PTX_MACHINE_FORKS`: whether a captured fork's work is done where it was submitted, or where it is joined.
    pub early_forks: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            models: vec![A100],
            checked: true,
            limits: Limits::default(),
            version: 12_040,
            replace: None,
            count: None,
            executed: None,
            profile: None,
            trace: None,
            early_forks: false,
        }
    }
}

/// A variable behind [`PREFIX`], the values that it may have, and how one is taken; false for another value.
type Variable = (&'static str, &'static str, fn(&mut Settings, &str) -> bool);

const VARIABLES: [Variable; 11] = [
    ("DEVICE", "a100, rtx4090, h100, h200, b200, or a list of them such as a100,h100", |settings, value| {
        let models = Model::list(value);
        models.map(|models| settings.models = models).is_some()
    }),
    ("CHECKS", "on or off", |settings, value| {
        settings.checked = value != "off";
        matches!(value, "on" | "off")
    }),
    ("STEPS", "a number of warp instructions, 1 or more", |settings, value| {
        let steps = value.parse().ok().filter(|&steps| steps > 0);
        steps.map(|steps| settings.limits.steps = steps).is_some()
    }),
    ("CORES", "a number of host threads from 1 to 64", |settings, value| {
        let cores = value.parse().ok().filter(|cores| (1..=MOST_CORES).contains(cores));
        cores.map(|cores| settings.limits.cores = cores).is_some()
    }),
    ("DRIVER", "a CUDA version such as 12.4 or 13.0", |settings, value| {
        version(value).map(|version| settings.version = version).is_some()
    }),
    ("REPLACE", "a folder that is there", |settings, value| {
        settings.replace = Some(value.into());
        Path::new(value).is_dir()
    }),
    ("COUNT", "a file in a folder that is there", |settings, value| {
        settings.count = Some(value.into());
        is_file_to_be(value)
    }),
    ("EXECUTED", "a file in a folder that is there", |settings, value| {
        settings.executed = Some(value.into());
        is_file_to_be(value)
    }),
    ("PROFILE", "a file in a folder that is there", |settings, value| {
        settings.profile = Some(value.into());
        is_file_to_be(value)
    }),
    ("TRACE", "a file in a folder that is there", |settings, value| {
        settings.trace = Some(value.into());
        is_file_to_be(value)
    }),
    ("FORKS", "early or late", |settings, value| {
        settings.early_forks = value == "early";
        matches!(value, "early" | "late")
    }),
];

/// `12.4` as 12040.
fn version(text: &str) -> Option<i32> {
    let (major, minor) = text.split_once('.')?;
    let number = |text: &str, most: i32| text.parse().ok().filter(|number| (0..=most).contains(number));
    Some(number(major, 99)? * 1000 + number(minor, 9)? * 10)
}

fn is_file_to_be(path: &str) -> bool {
    let path = Path::new(path);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    folder.is_dir() && !path.is_dir()
}

impl Settings {
    /// The settings that these variables of an environment make; those of other programs and empty ones count for nothing.
    ///
    /// # Errors
    /// One line that names the first variable that is not known or whose value is not, and what is allowed.
    pub fn read(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, String> {
        let mut set: HashMap<String, String> = HashMap::new();
        for (name, value) in environment {
            let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
            if let Some(name) = name.strip_prefix(PREFIX)
                && !value.is_empty()
            {
                set.insert(name.into(), value.into());
            }
        }
        let mut settings = Self::default();
        for (name, allowed, take) in VARIABLES {
            if let Some(value) = set.remove(name)
                && !take(&mut settings, value.trim())
            {
                return Err(format!("{PREFIX}{name}={} is not known; it takes {allowed}", value.escape_debug()));
            }
        }
        let devices = settings.models.len();
        if settings.profile.is_some() && devices > 1 {
            return Err(format!("{PREFIX}PROFILE counts on one device; {PREFIX}DEVICE names {devices}: name one"));
        }
        let Some(name) = set.into_keys().min() else { return Ok(settings) };
        let known: Vec<&str> = VARIABLES.iter().map(|(name, ..)| *name).collect();
        let name = name.escape_debug();
        Err(format!("{PREFIX}{name} is no variable of the machine; behind {PREFIX} it has {}", known.join(", ")))
    }
}
