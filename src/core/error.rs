//! The error type. Every message is one line with the place (op, shapes, device or path), the fault and advice.

use std::path::{Path, PathBuf};

use crate::words;

/// `Result` with the engine's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// All errors, worded for the person who must act on them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes, dtypes or parameters that an op cannot take.
    #[error("{op}: {message}")]
    Shape { op: &'static str, message: String },

    /// An op that a device lacks for this dtype or size.
    #[error("{op} is not supported on {device}: {reason}")]
    Unsupported { op: &'static str, device: String, reason: String },

    /// A device that is missing or failed, with advice.
    #[error("{device}: {message}; {advice}")]
    Device { device: String, message: String, advice: String },

    /// Not enough memory.
    #[error("{device}: out of memory: {}; {advice}", shortage(*needed, *available))]
    OutOfMemory { device: String, needed: u64, available: u64, advice: String },

    /// Prebuilt PTX that does not match its source.
    #[error(
        "kernel module {module}: the prebuilt PTX is older than kernels/{module}.cu; \
         run `cargo run --release -p prebuild-kernels -- --nvrtc FOLDER` (see CONTRIBUTING.md) or build where nvcc is on the PATH"
    )]
    StaleKernel { module: String },

    /// A kernel that could not be launched or failed while it ran.
    #[error("kernel {kernel}: {message}")]
    Kernel { kernel: String, message: String },

    /// A file with invalid content: `message` gives the offset or field.
    #[error("{}: {message}; {advice}", shown(path))]
    File { path: PathBuf, message: String, advice: String },

    /// An error of the operating system.
    #[error("{}: cannot {doing}: {source}{}", shown(path), io_ending(source))]
    Io { path: PathBuf, doing: &'static str, source: std::io::Error },

    /// An invalid configuration key or value: `place` is `file: section.key`, or a field of the request, such as `batch`.
    #[error("{place}: {message}; {advice}")]
    Config { place: String, message: String, advice: String },

    /// Ranks of a job that do not meet, or of which one is gone, with advice.
    #[error("{message}; {advice}")]
    Cluster { message: String, advice: String },

    /// The user asked to stop: what was saved and how to resume.
    #[error("interrupted: {message}")]
    Interrupted { message: String },
}

/// A text on one line, with control characters as escapes: names in files may contain them, and a terminal would obey them.
pub fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let mut line = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// A path on one line: members of archives may be called anything.
fn shown(path: &Path) -> String {
    one_line(path.display().to_string())
}

impl Error {
    /// A shape error of `op`.
    pub fn shape(op: &'static str, message: impl Into<String>) -> Self {
        Self::Shape { op, message: message.into() }
    }

    /// A damaged file, or one of another kind. The message may quote the file: control characters are escaped.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), message: one_line(message.into()), advice: advice.into() }
    }

    /// For `map_err` on an [`std::io::Result`]: `doing` completes "cannot …".
    pub fn io(path: impl AsRef<Path>, doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, doing, source }
    }

    /// A bad configuration value, or a bad field of a request.
    pub fn config(place: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Config { place: one_line(place.into()), message: message.into(), advice: advice.into() }
    }

    /// Ranks of a job that do not meet, or of which one is gone.
    pub fn cluster(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Cluster { message: message.into(), advice: advice.into() }
    }

    /// A device that is missing or failed.
    pub fn device(device: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Device { device: device.into(), message: message.into(), advice: advice.into() }
    }

    /// The end of the message that says what to do; empty if there is none.
    ///
    /// It names fields of requests and configurations, and functions, in backticks: `skip_damaged`, `batch = 32`,
    /// `train(resume = runs/x)`. A program with other names for them can put its own there; the rest of a message may quote
    /// anything.
    pub fn advice(&self) -> &str {
        match self {
            Self::Device { advice, .. }
            | Self::OutOfMemory { advice, .. }
            | Self::File { advice, .. }
            | Self::Config { advice, .. }
            | Self::Cluster { advice, .. } => advice,
            Self::Io { source, .. } => io_advice(source),
            Self::Interrupted { message } => message.split_once("; ").map_or("", |(_, advice)| advice),
            Self::Shape { .. } | Self::Unsupported { .. } | Self::StaleKernel { .. } | Self::Kernel { .. } => "",
        }
    }
}

/// `135.9 GiB needed, 20.6 GiB available`
fn shortage(needed: u64, available: u64) -> String {
    let [needed, available] = words::memory_pair(needed, available);
    format!("{needed} needed, {available} available")
}

/// Advice for common errors of the operating system.
fn io_advice(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::NotFound => "check the path",
        ErrorKind::PermissionDenied => "check its permissions or give another place",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space or give another disk with `out`",
        _ => "",
    }
}

/// That advice as the end of a message.
fn io_ending(source: &std::io::Error) -> String {
    match io_advice(source) {
        "" => String::new(),
        advice => format!("; {advice}"),
    }
}

/// The candidate most similar to `name`, if any is similar enough; case is ignored. For "did you mean …?".
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name: String = name.chars().take(100).collect::<String>().to_lowercase();
    let rated = candidates.into_iter().map(|candidate| {
        let folded = candidate.to_lowercase();
        let edits = strsim::damerau_levenshtein(&name, &folded) as f64;
        let share = 1.0 - edits / name.chars().count().max(folded.chars().count()).max(1) as f64;
        // An abbreviation or a part (`lr_warmup_steps`, `batch`) is similar too, however many letters differ;
        // so are initials (`lr`).
        let part = name.len() >= 3 && (folded.contains(name.as_str()) || name.contains(&folded));
        let initials = name.len() >= 2 && folded.split('_').filter_map(|word| word.chars().next()).eq(name.chars());
        (if part || initials { share.max(0.6) } else { share }, candidate)
    });
    rated.filter(|(score, _)| *score >= 0.5).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_line_break_stays_on_one_line() {
        let io = Error::io("a\nb", "open")(std::io::Error::other("no"));
        for error in [Error::file("a\nb", "is damaged", "repair it"), io, Error::config("a\nb: key", "is 0", "give 1")]
        {
            let text = error.to_string();
            assert!(text.starts_with("a\\nb: ") && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn a_lack_of_memory_is_told_in_units_for_people() {
        let (needed, available) = (145_960_369_624, 22_118_658_048);
        let error =
            Error::OutOfMemory { device: "cpu".into(), needed, available, advice: "use a smaller model".into() };
        assert_eq!(error.to_string(), "cpu: out of memory: 135.9 GiB needed, 20.6 GiB available; use a smaller model");
    }
}
