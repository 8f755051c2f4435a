//! The kubectl plugin: `kubectl lockstep`.

fn main() -> std::process::ExitCode {
    lockstep::dev::main()
}
