//! The client: `edge-agent status` and `edge-agent rekey`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, bail};

use super::{AdminRequest, AdminResponse};
use crate::config::Config;
use crate::status;

/// Longest wait for the response.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Prints the agent's status, as a table or as JSON. Fails if no agent answers.
pub fn status(config: &Config, json: bool) -> anyhow::Result<()> {
    let AdminResponse::Status { status } = send(config, &AdminRequest::Status)? else {
        bail!("the agent sent another response than the status")
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
        return Ok(());
    }
    print!("{}", status::render(&status));
    Ok(())
}

/// Has the agent rekey the CHILD_SA with `peer`, or the IKE SA. Fails if there is no such peer or
/// SA.
pub fn rekey(config: &Config, peer: &str, ike: bool) -> anyhow::Result<()> {
    send(config, &AdminRequest::Rekey { peer: peer.into(), ike }).map(drop)
}

fn send(config: &Config, request: &AdminRequest) -> anyhow::Result<AdminResponse> {
    let path = config.admin_socket();
    let mut socket = UnixStream::connect(&path).with_context(|| {
        format!("{}: no agent answers here; is `edge-agent run` running with this configuration?", path.display())
    })?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    socket.write_all(line.as_bytes())?;
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).context("the agent did not answer")?;
    match serde_json::from_str(&line).context("the agent's answer is not understood; are both of one release?")? {
        AdminResponse::Failed { reason } => bail!(reason),
        response => Ok(response),
    }
}
