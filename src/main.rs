//! The `engine` binary: everything is in the library, `main` only calls `cli`.

fn main() -> std::process::ExitCode {
    engine::cli::main()
}
