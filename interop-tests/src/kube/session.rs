//! Runs a control plane for interactive use.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use super::control_plane::{ControlPlane, Options};
use super::programs;
use crate::progress::Progress;

/// Runs `argv`, by default a shell, with a fresh control plane. Returns the exit status of `argv`.
///
/// # Errors
/// Returns an error if the control plane or the command does not start.
pub fn session(api_server: Vec<String>, argv: Vec<String>) -> Result<ExitCode> {
    let programs = programs::ensure()?;
    let progress = Progress::start("starting etcd and kube-apiserver");
    let plane = ControlPlane::start_with("session", Options { api_server, ..Options::default() })?;
    progress.done();
    eprintln!("Kubernetes {} at {}; logs are in {}", programs::RELEASE, plane.url(), plane.logs().display());
    let argv = if argv.is_empty() { vec![std::env::var("SHELL").unwrap_or_else(|_| "sh".to_owned())] } else { argv };
    let tools = programs.kubectl.parent().context("kubectl lies in no directory")?;
    let status = Command::new(&argv[0])
        .args(&argv[1..])
        .env("KUBECONFIG", plane.kubeconfig())
        .env("PATH", format!("{}:{}", tools.display(), crate::executables::search_path()))
        .status()
        .with_context(|| format!("{} cannot be run", argv[0]))?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
