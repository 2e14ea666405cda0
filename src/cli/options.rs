//! Options that commands share.

use std::path::PathBuf;

use clap::Args;

/// How a command that writes files runs.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct RunOptions {
    /// Replace existing files
    #[arg(long)]
    pub force: bool,
    /// Print only errors
    #[arg(long)]
    pub quiet: bool,
}

/// Where data sets are.
#[derive(Clone, Debug, Args)]
pub(super) struct DataFolder {
    /// The folder of data sets
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub data_dir: PathBuf,
}
