//! The operator's end.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, bail};

use super::{Answer, Request};
use crate::config::Config;
use crate::status;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// `edge-agent status`.
pub fn status(config: &Config, json: bool) -> anyhow::Result<()> {
    let Answer::Status { status } = ask(config, &Request::Status)? else { bail!("the agent gave another answer") };
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
        return Ok(());
    }
    print!("{}", status::render(&status));
    Ok(())
}

/// `edge-agent rekey`.
pub fn rekey(config: &Config, peer: &str) -> anyhow::Result<()> {
    ask(config, &Request::Rekey { peer: peer.into() }).map(drop)
}

fn ask(config: &Config, request: &Request) -> anyhow::Result<Answer> {
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
        Answer::Failed { reason } => bail!(reason),
        answer => Ok(answer),
    }
}
