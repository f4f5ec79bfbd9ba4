//! The program `edge-controller`. All code is in the library, where tests can reach it.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    edge_controller::cli::main()
}
