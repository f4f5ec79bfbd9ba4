//! `edge-controller`; everything is in the library, where tests reach it.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    edge_controller::cli::main()
}
