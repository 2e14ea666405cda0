//! The flags of the command line for the fields that errors and notes of the library name.
//!
//! Layers below name a field of a request or a configuration: as the place of [`Error::Config`], and in backticks in advice, as
//! `skip_damaged`, `batch = 32` or `train(resume = runs/x)`. Here fields become flags, and functions commands.

use crate::error::Error;

/// A field, and its flag.
pub(super) type Flag = (&'static str, &'static str);

/// Fields of all commands, by name.
const FLAGS: &[Flag] = &[
    ("allow_partial", "--allow-partial"),
    ("base_url", "--base-url"),
    ("batch", "--batch"),
    ("cache", "--cache"),
    ("class", "--class"),
    ("classes", "--classes"),
    ("classifier", "--classifier"),
    ("color", "--color"),
    ("compare_with", "--compare-with"),
    ("config", "--config"),
    ("count", "--count"),
    ("counters", "--counters"),
    ("data", "--data"),
    ("device", "--device"),
    ("draws", "--draws"),
    ("epochs", "--epochs"),
    ("eta", "--eta"),
    ("extractor", "--extractor"),
    ("factor", "--factor"),
    ("feature_batch", "--feature-batch"),
    ("fit", "--fit"),
    ("force", "--force"),
    ("frames", "--frames"),
    ("from", "--from"),
    ("inception", "--inception"),
    ("json", "--json"),
    ("levels", "--levels"),
    ("like", "--like"),
    ("listen", "--listen"),
    ("memory", "--memory"),
    ("metrics", "--metrics"),
    ("model", "--model"),
    ("num_samples", "--num-samples"),
    ("on", "--on"),
    ("op", "--op"),
    ("out", "--out"),
    ("part", "--part"),
    ("preset", "--preset"),
    ("processes", "--processes"),
    ("reference", "--reference"),
    ("reference_count", "--reference-count"),
    ("resize", "--resize"),
    ("resume", "--resume"),
    ("rounds", "--resample"),
    ("rows", "--max-batch"),
    ("sampler", "--sampler"),
    ("set", "--set"),
    ("skip_damaged", "--skip-damaged"),
    ("split", "--split"),
    ("steps", "--steps"),
    ("strength", "--strength"),
    ("unlabelled", "--unlabelled"),
    ("validation", "--validation"),
];

/// Configuration keys that are flags of commands that sample. Elsewhere they are keys of a file or of `--set`.
pub(super) const SAMPLING: &[Flag] = &[
    ("guidance schedule", "--guidance-schedule"),
    ("sampling.eta", "--eta"),
    ("sampling.guidance", "--guidance"),
    ("sampling.guidance_schedule", "--guidance-schedule"),
    ("sampling.num_steps", "--steps"),
    ("sampling.sampler", "--sampler"),
    ("sampling.schedule", "--schedule"),
    ("sampling.temperature", "--temperature"),
    ("sampling.timesteps", "--timesteps"),
];

/// `engine serve` takes single models, and a folder of more.
pub(super) const SERVE: &[Flag] =
    &[("folder", "--models"), ("hosts", "--allow-host"), ("models", "--model"), ("origins", "--allow-origin")];

/// Functions of the library, and their commands.
const COMMANDS: &[(&str, &str)] = &[
    ("data::fetch", "engine data fetch"),
    ("data::import", "engine data import"),
    ("data::place_weights", "engine fetch"),
    ("profile", "engine profile"),
    ("train", "engine train"),
];

/// Other names in advice.
const NAMES: &[(&str, &str)] = &[("data::Format", "`engine data import --help`")];

/// Places that go on with a value or a key: `resume runs/x`, `set: training.batch_size`.
const LEADING: &[&str] = &["on ", "out ", "resume ", "set: "];

fn find(field: &str, own: &[Flag]) -> Option<&'static str> {
    own.iter().chain(FLAGS).find(|(name, _)| *name == field).map(|(_, flag)| *flag)
}

/// The text of an error with flags for fields; `own` are flags of the command alone, which come first.
pub(super) fn with_flags(error: &Error, own: &[Flag]) -> String {
    let (text, advice) = (error.to_string(), error.advice());
    // Every message ends with its advice.
    let message = text.strip_suffix(advice).unwrap_or(&text);
    let message = match error {
        Error::Config { place, .. } => placed(place, own) + message.strip_prefix(place.as_str()).unwrap_or(message),
        _ => message.to_string(),
    };
    message + &advised(advice, own)
}

/// The place of an error: the flag, if all of it or its first word is a field.
fn placed(place: &str, own: &[Flag]) -> String {
    if let Some(flag) = find(place, own) {
        return flag.to_string();
    }
    let leading = LEADING.iter().find_map(|leading| Some((*leading, place.strip_prefix(leading)?)));
    let flagged = leading.and_then(|(leading, rest)| {
        let field = leading.trim_end_matches([' ', ':']);
        Some(find(field, own)?.to_string() + &leading[field.len()..] + rest)
    });
    flagged.unwrap_or_else(|| place.to_string())
}

/// A note of the library, with flags for the fields in it.
pub(super) fn noted(note: &str) -> String {
    advised(note, &[])
}

/// Advice of a running server, with flags for its settings.
#[cfg(feature = "serve")]
pub(super) fn of_server(advice: &str) -> String {
    advised(advice, SERVE)
}

/// The text with flags for the fields in backticks. Anything else in backticks stays.
fn advised(advice: &str, own: &[Flag]) -> String {
    let (mut text, mut rest) = (String::with_capacity(advice.len()), advice);
    while let Some((before, after)) = rest.split_once('`') {
        let Some((quoted, after)) = after.split_once('`') else { break };
        text += before;
        match flagged(quoted, own) {
            Some(flags) => text += &flags,
            None => text += &format!("`{quoted}`"),
        }
        rest = after;
    }
    text + rest
}

/// What stands for quoted text: flags, a command with flags, or `--set` and a configuration key.
fn flagged(quoted: &str, own: &[Flag]) -> Option<String> {
    if let Some((_, shown)) = NAMES.iter().find(|(name, _)| *name == quoted) {
        return Some(shown.to_string());
    }
    if let Some((function, given)) = quoted.strip_suffix(')').and_then(|quoted| quoted.split_once('(')) {
        let (_, command) = COMMANDS.iter().find(|(name, _)| *name == function)?;
        let mut line = command.to_string();
        for (place, one) in given.split(", ").enumerate() {
            // A value may have a comma.
            let comma = if place == 0 { " " } else { ", " };
            line += &assigned(one, own).map_or_else(|| format!("{comma}{one}"), |flag| format!(" {flag}"));
        }
        return Some(format!("`{line}`"));
    }
    if let Some((key, value)) = quoted.split_once(" = ").filter(|(key, _)| key.contains('.')) {
        let known = key.chars().all(|c| c.is_ascii_lowercase() || matches!(c, '_' | '.'));
        return known.then(|| format!("--set {key}={value}"));
    }
    let all: Option<Vec<String>> = quoted.split(", ").map(|one| assigned(one, own)).collect();
    all.map(|all| all.join(" "))
}

/// `batch` or `batch = 32` as a flag.
fn assigned(text: &str, own: &[Flag]) -> Option<String> {
    match text.split_once(" = ") {
        Some((field, value)) => Some(format!("{} {value}", find(field, own)?)),
        None => find(text, own).map(str::to_string),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_flag_is_one_of_a_command() {
        fn collect(command: &clap::Command, found: &mut BTreeSet<String>) {
            found.extend(command.get_arguments().filter_map(|argument| Some(format!("--{}", argument.get_long()?))));
            command.get_subcommands().for_each(|command| collect(command, found));
        }
        let mut known = BTreeSet::new();
        collect(&crate::cli::Cli::command(), &mut known);
        for (field, flag) in FLAGS.iter().chain(SAMPLING).chain(SERVE) {
            // `engine serve` is a feature.
            assert!(
                known.contains(*flag) || cfg!(not(feature = "serve")),
                "{field} stands for {flag}, which no command has"
            );
        }
        assert!(FLAGS.windows(2).all(|pair| pair[0].0 < pair[1].0), "fields in order, each once");
    }

    #[test]
    fn places_become_flags() {
        let place = |place: &str, own: &[Flag]| with_flags(&Error::config(place, "`batch` is bad", "stop"), own);
        assert_eq!(place("batch", &[]), "--batch: `batch` is bad; stop");
        assert_eq!(place("resume runs/x", &[]), "--resume runs/x: `batch` is bad; stop");
        assert_eq!(place("set: training.x", &[]), "--set: training.x: `batch` is bad; stop");
        assert_eq!(place("on here", &[]), "--on here: `batch` is bad; stop");
        assert_eq!(place("sampling.num_steps", SAMPLING), "--steps: `batch` is bad; stop");
        assert_eq!(place("models", SERVE), "--model: `batch` is bad; stop");
        // Keys of files, and names that only begin like a field.
        for other in ["sampling.num_steps", "x.yaml:3: sampling.num_steps", "data set \"x\"", "model.depth", "--list"] {
            assert_eq!(place(other, &[]), format!("{other}: `batch` is bad; stop"));
        }
        assert_eq!(
            place("x.yaml:3: sampling.num_steps", SAMPLING),
            "x.yaml:3: sampling.num_steps: `batch` is bad; stop"
        );
    }

    #[cfg(feature = "serve")]
    #[test]
    fn advice_of_a_server_names_its_flags() {
        for (advice, expected) in [
            ("start it with `hosts = NAME`", "start it with --allow-host NAME"),
            ("start it with `origins = ORIGIN`", "start it with --allow-origin ORIGIN"),
            ("start the server with more `memory`", "start the server with more --memory"),
        ] {
            assert_eq!(of_server(advice), expected);
        }
    }

    #[test]
    fn advice_names_flags() {
        for (advice, expected) in [
            ("leave them out with `skip_damaged`", "leave them out with --skip-damaged"),
            ("`batch = 32` would fit", "--batch 32 would fit"),
            ("give `sampler = ddim, eta = 0` or x", "give --sampler ddim --eta 0 or x"),
            ("keep `training.keep_checkpoints = 1`", "keep --set training.keep_checkpoints=1"),
            ("see `data::Format`", "see `engine data import --help`"),
            ("do `data::fetch(cifar10, base_url = URL)`", "do `engine data fetch cifar10 --base-url URL`"),
            ("do `data::place_weights(resnet18, from = FILE)`", "do `engine fetch resnet18 --from FILE`"),
            ("do `data::import(SRC, out = a, b.x)`", "do `engine data import SRC --out a, b.x`"),
            (
                "as `train(processes)` or `train(resume = runs/a (1))`",
                "as `engine train --processes` or `engine train --resume runs/a (1)`",
            ),
            ("write `preset: x`, `a, batch`, `x(batch)` or `", "write `preset: x`, `a, batch`, `x(batch)` or `"),
            ("", ""),
        ] {
            assert_eq!(noted(advice), expected);
            assert_eq!(
                with_flags(&Error::file("batch", "is `batch`", advice), &[]),
                format!("batch: is `batch`; {expected}")
            );
        }
        let interrupted = Error::Interrupted { message: "step 3 is saved; resume with `train(resume = x)`".into() };
        assert_eq!(
            with_flags(&interrupted, &[]),
            "interrupted: step 3 is saved; resume with `engine train --resume x`"
        );
        let full = Error::io("x", "write")(std::io::ErrorKind::StorageFull.into());
        assert!(with_flags(&full, &[]).ends_with("; free some space or give another disk with --out"), "{full}");
        let denied = Error::Kernel { kernel: "batch".into(), message: "`batch`".into() };
        assert_eq!(with_flags(&denied, &[]), denied.to_string());
    }
}
