//! The program `edge-controller`. All other code is in the library, where tests can use it.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    edge_controller::cli::main()
}
