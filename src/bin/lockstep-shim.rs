fn main() -> std::process::ExitCode {
    lockstep::shim::main()
}
