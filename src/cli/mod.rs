//! One file per command.

mod bar;
pub mod bench_step;
mod choices;
pub mod classify;
pub mod compare;
mod compare_samples;
mod compare_text;
pub mod convert;
mod crew;
pub mod data;
pub mod doctor;
mod edit_options;
pub mod eval;
mod eval_paths;
mod eval_seeds;
mod eval_text;
mod features;
pub mod fetch;
mod flags;
pub mod inpaint;
pub mod interpolate;
pub mod machine;
mod options;
mod output;
pub mod plan;
mod plan_ranks;
pub mod presets;
pub mod profile;
mod profile_check;
mod progress;
pub mod sample;
mod sampling;
pub mod score;
#[cfg(feature = "serve")]
pub mod serve;
pub mod train;
mod train_data;
pub mod upscale;
pub mod vary;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::device::instructions::chosen;
use crate::error::{Error, Result};
use crate::picture::is_decoding;

/// Trains, samples and evaluates small diffusion models.
#[derive(Debug, Parser)]
#[command(name = "engine", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(train::TrainCommand),
    Sample(sample::SampleCommand),
    Interpolate(interpolate::InterpolateCommand),
    Vary(vary::VaryCommand),
    Inpaint(inpaint::InpaintCommand),
    Upscale(upscale::UpscaleCommand),
    Score(score::ScoreCommand),
    #[cfg(feature = "serve")]
    Serve(serve::ServeCommand),
    Classify(classify::ClassifyCommand),
    Eval(eval::EvalCommand),
    Compare(compare::CompareCommand),
    Convert(convert::ConvertCommand),
    Plan(plan::PlanCommand),
    Profile(profile::ProfileCommand),
    Presets(presets::PresetsCommand),
    Data(data::DataCommand),
    Fetch(fetch::FetchCommand),
    Doctor(doctor::DoctorCommand),
    #[command(hide = true)]
    BenchStep(bench_step::BenchStepCommand),
    #[command(hide = true)]
    ProfileCount(profile::ProfileCountCommand),
}

/// Runs the command line of this process. Errors are one line on standard error.
///
/// The exit code is 0, 1 for an error, 2 for a command line that cannot be read, and 130 for a run that was interrupted.
pub fn main() -> ExitCode {
    end_with_the_reader();
    // Panics of a decoder over a damaged picture are caught and reported as a damaged picture.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_decoding() {
            hook(panic);
        }
    }));
    run(std::env::args_os())
}

/// Lets a closed pipe end the process quietly, like other tools: `engine doctor | head -1`.
fn end_with_the_reader() {
    // SAFETY: the default action is set before any thread or handler exists; the standard library writes sockets with
    // MSG_NOSIGNAL, so a peer that hangs up raises no signal.
    #[cfg(unix)]
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // If this cannot be printed, nothing else can be done.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let own = cli.command.own_flags();
    // A bad ENGINE_CPU is an error of every command, before anything is computed.
    match chosen().and_then(|_| cli.command.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = one_line(&flags::with_flags(&error, own));
            match error {
                Error::Interrupted { .. } => {
                    eprintln!("{text}");
                    ExitCode::from(130)
                }
                _ => {
                    eprintln!("error: {text}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

impl Command {
    fn run(self) -> Result<()> {
        match self {
            Self::Train(command) => command.run(),
            Self::Sample(command) => command.run(),
            Self::Interpolate(command) => command.run(),
            Self::Vary(command) => command.run(),
            Self::Inpaint(command) => command.run(),
            Self::Upscale(command) => command.run(),
            Self::Score(command) => command.run(),
            #[cfg(feature = "serve")]
            Self::Serve(command) => command.run(),
            Self::Classify(command) => command.run(),
            Self::Eval(command) => command.run(),
            Self::Compare(command) => command.run(),
            Self::Convert(command) => command.run(),
            Self::Plan(command) => command.run(),
            Self::Profile(command) => command.run(),
            Self::Presets(command) => command.run(),
            Self::Data(command) => command.run(),
            Self::Fetch(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::BenchStep(command) => command.run(),
            Self::ProfileCount(command) => command.run(),
        }
    }
}

impl Command {
    /// Fields that are flags of this command alone.
    fn own_flags(&self) -> &'static [flags::Flag] {
        match self {
            Self::Sample(_) | Self::Interpolate(_) | Self::Vary(_) | Self::Inpaint(_) | Self::Upscale(_) => {
                flags::SAMPLING
            }
            Self::Eval(_) | Self::Compare(_) => flags::SAMPLING,
            #[cfg(feature = "serve")]
            Self::Serve(_) => flags::SERVE,
            _ => &[],
        }
    }
}

/// A message without line breaks, which errors of dependencies may contain; other control characters, as in names, are escaped.
fn one_line(message: &str) -> String {
    let parts = message.split(['\n', '\r']).map(str::trim).filter(|part| !part.is_empty());
    crate::error::one_line(parts.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn messages_are_one_line() {
        assert_eq!(one_line("a\n  b\r\nc"), "a b c");
        // A path may hold what a terminal would obey.
        assert_eq!(one_line("a\u{1b}[2J"), "a\\u{1b}[2J");
    }
}
