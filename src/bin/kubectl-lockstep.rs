//! The kubectl plugin: `kubectl lockstep`.

fn main() -> std::process::ExitCode {
    lockstep::cli::main()
}
