//! Runs `edge-agent` on a host of the lab.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::scenario::Lab;
use crate::strongswan::Credentials;
use crate::strongswan::charon::Auth;
use crate::topology::{Node, Process};
use crate::wait;

const CONFIG: &str = "/etc/edge-cni/agent.toml";
const SOCKET_HOLDER: &str = "/run/edge-cni/socket-holder/holder.sock";

/// A `[[peer]]` table.
#[derive(Clone)]
pub struct StaticPeer {
    /// The peer's name in the agent's configuration and status.
    pub name: String,
    /// The peer's addresses; empty if the peer initiates.
    pub remote: Vec<String>,
    /// The agent's identity.
    pub local_id: String,
    /// The peer's identity.
    pub remote_id: String,
    /// Authentication of the agent and the peer.
    pub auth: Auth,
    /// Networks behind the agent.
    pub local_subnets: Vec<String>,
    /// Networks behind the peer.
    pub remote_subnets: Vec<String>,
    /// IKE proposals, in the form of `ike_proposals`; empty for the agent's defaults.
    pub ike: Vec<String>,
    /// ESP proposals, in the form of `esp_proposals`; empty for the agent's defaults.
    pub esp: Vec<String>,
    /// `initiate`, `respond` or `on-demand`.
    pub start: &'static str,
}

impl StaticPeer {
    /// Returns the table for `agent.toml`. Writes secrets and certificates to files in the same
    /// directory.
    fn install(&self, node: &Node) -> Result<String> {
        let directory = "/etc/edge-cni";
        let mut text = String::new();
        writeln!(text, "[[peer]]")?;
        writeln!(text, "name = {:?}", self.name)?;
        if !self.remote.is_empty() {
            writeln!(text, "remote = {:?}", self.remote)?;
        }
        writeln!(text, "local_id = {:?}\nremote_id = {:?}", self.local_id, self.remote_id)?;
        writeln!(text, "local_subnets = {:?}\nremote_subnets = {:?}", self.local_subnets, self.remote_subnets)?;
        if !self.ike.is_empty() {
            writeln!(text, "ike_proposals = {:?}", self.ike)?;
        }
        if !self.esp.is_empty() {
            writeln!(text, "esp_proposals = {:?}", self.esp)?;
        }
        writeln!(text, "start = {:?}", self.start)?;
        let file = |name: &str, content: &str| -> Result<String> {
            let path = format!("{directory}/{name}");
            node.write(&path, content)?;
            node.sh(&format!("chmod 600 {path}"))?;
            Ok(path)
        };
        match &self.auth {
            Auth::Psk(secret) => {
                writeln!(text, "psk_file = {:?}", file(&format!("{}.psk", self.name), &format!("{secret}\n"))?)?;
            }
            Auth::Certificate(Credentials { certificate_pem, key_pem, .. }, authority) => {
                writeln!(text, "certificate = {:?}", file("agent.pem", certificate_pem)?)?;
                writeln!(text, "key = {:?}", file("agent.key", key_pem)?)?;
                writeln!(text, "trust_anchors = {:?}", file("ca.pem", authority)?)?;
            }
        }
        Ok(text)
    }
}

/// A running agent.
pub struct Agent<'a> {
    node: &'a Node,
    program: PathBuf,
    process: Process,
}

/// SPIs of a CHILD_SA, from the output of `edge-agent status --json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildSpis {
    /// SPI of packets that the agent's host receives.
    pub spi_in: u32,
    /// SPI of packets that the agent's host sends.
    pub spi_out: u32,
}

impl<'a> Agent<'a> {
    /// Starts an agent with only static peers. `more` is further configuration at the top of the
    /// agent's file.
    ///
    /// # Errors
    /// Returns an error if the agent cannot be started.
    pub fn start(lab: &Lab, node: &'a Node, more: &str, peers: &[StaticPeer]) -> Result<Self> {
        let mut config = format!("{more}\n");
        for peer in peers {
            config.push_str(&peer.install(node)?);
        }
        Self::start_with(lab, node, &config, "trace")
    }

    /// Starts an agent with this configuration file and this log filter.
    ///
    /// # Errors
    /// Returns an error if the agent cannot be started.
    pub fn start_with(lab: &Lab, node: &'a Node, config: &str, log: &str) -> Result<Self> {
        Self::start_program(lab.program("edge-agent")?, node, config, log)
    }

    /// Starts an agent as [`Self::start_with`] does, from this program.
    ///
    /// # Errors
    /// Returns an error if the agent cannot be started.
    pub fn start_program(program: PathBuf, node: &'a Node, config: &str, log: &str) -> Result<Self> {
        Self::start_by(program, node, config, log, &[])
    }

    /// Starts an agent as [`Self::start_with`] does, in a PID namespace of its own, as in a
    /// container. Its end is that of all its processes.
    ///
    /// # Errors
    /// Returns an error if the agent cannot be started.
    pub fn start_in_container(lab: &Lab, node: &'a Node, config: &str, log: &str) -> Result<Self> {
        let container = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
        Self::start_by(lab.program("edge-agent")?, node, config, log, &container)
    }

    /// Starts the program by means of another one, `before`, if there is one.
    fn start_by(program: PathBuf, node: &'a Node, config: &str, log: &str, before: &[&str]) -> Result<Self> {
        node.write(CONFIG, config)?;
        node.sh(&format!("chmod 600 {CONFIG}"))?;
        let mut words = before.iter().map(OsStr::new).chain([program.as_os_str()]);
        let mut command = node.command(words.next().context("a program")?);
        command.args(words).args(["run", "--config", CONFIG]).env("EDGE_AGENT_LOG", log);
        let process = node.start("edge-agent", &mut command)?;
        Ok(Self { node, program, process })
    }

    /// Starts a process that holds the sockets of agents in containers on this node, without any
    /// capability, as in the pods of the chart.
    ///
    /// # Errors
    /// Returns an error if it cannot be started.
    pub fn start_socket_holder(lab: &Lab, node: &Node) -> Result<Process> {
        let mut command = node.command("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]).arg(lab.program("edge-agent")?);
        node.start("socket-holder", command.args(["hold-sockets", "--listen", SOCKET_HOLDER]))
    }

    /// Waits until a process of another container holds the agent's sockets.
    ///
    /// # Errors
    /// Returns an error if no such process holds them in time.
    pub fn wait_held(&self) -> Result<()> {
        self.wait_holder(Some("pod"))
    }

    /// Waits until the agent knows that no process holds its sockets.
    ///
    /// # Errors
    /// Returns an error if the status does not say so in time.
    pub fn wait_not_held(&self) -> Result<()> {
        self.wait_holder(None)
    }

    fn wait_holder(&self, holder: Option<&str>) -> Result<()> {
        wait::for_event(&format!("{} to say who holds its sockets: {holder:?}", self.node.name()), || {
            let status = self.status()?;
            let sockets = status.get("sockets").context("no sockets in the status")?;
            ensure!(sockets.get("held_by").and_then(Value::as_str) == holder, "{sockets}");
            Ok(())
        })
    }

    /// Waits until the agent answers on its socket.
    ///
    /// # Errors
    /// Returns an error if the agent ends or does not answer in time.
    pub fn wait_ready(&mut self) -> Result<()> {
        let mut ended = None;
        wait::for_event("the agent to answer", || {
            ended = self.process.exit_status()?;
            if ended.is_some() { Ok(()) } else { self.status().map(drop) }
        })?;
        if let Some(status) = ended {
            bail!("edge-agent on {} ended ({status}):\n{}", self.node.name(), self.process.log());
        }
        Ok(())
    }

    /// Returns the output of `edge-agent status --json`.
    ///
    /// # Errors
    /// Returns an error if the agent does not answer.
    pub fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.status_text()?).context("the agent's status is not JSON")
    }

    /// Returns the same status as [`Self::status`], as the printed text.
    ///
    /// # Errors
    /// Returns an error if the agent does not answer.
    pub fn status_text(&self) -> Result<String> {
        self.node.run(self.node.command(&self.program).args(["status", "--json", "--config", CONFIG]))
    }

    /// Returns the CHILD_SA in use with a peer.
    ///
    /// # Errors
    /// Returns an error if there is no such CHILD_SA or more than one.
    pub fn tunnel(&self, peer: &str) -> Result<ChildSpis> {
        tunnel(&self.status()?, peer)
    }

    /// Returns the CHILD_SAs in use with several peers, from one status.
    ///
    /// # Errors
    /// Returns an error if a peer has no such CHILD_SA or more than one.
    pub fn tunnels(&self, peers: impl IntoIterator<Item = String>) -> Result<Vec<ChildSpis>> {
        let status = self.status()?;
        peers.into_iter().map(|peer| tunnel(&status, &peer)).collect()
    }

    /// Returns the CHILD_SAs in use with a peer, keyed by the peer's networks for which they carry
    /// traffic.
    ///
    /// # Errors
    /// Returns an error if the agent does not answer.
    pub fn children(&self, peer: &str) -> Result<BTreeMap<String, ChildSpis>> {
        let status = self.status()?;
        let children = list(report(&status, peer)?, "child_sas");
        let in_use = children.iter().filter(|child| child.get("usage").and_then(Value::as_str) == Some("in-use"));
        let networks = |child: &Value| {
            let texts: Vec<String> =
                list(child, "remote_selectors").iter().filter_map(|text| Some(text.as_str()?.to_owned())).collect();
            texts.join(" ")
        };
        in_use.map(|child| Ok((networks(child), spis(child)?))).collect()
    }

    /// Returns the SPIs of all CHILD_SAs in use with a peer.
    ///
    /// # Errors
    /// Returns an error if the agent does not answer.
    pub fn spis(&self, peer: &str) -> Result<Vec<ChildSpis>> {
        let status = self.status()?;
        let children = list(report(&status, peer)?, "child_sas");
        let in_use = children.iter().filter(|child| child.get("usage").and_then(Value::as_str) == Some("in-use"));
        in_use.map(spis).collect()
    }

    /// Returns the networks of a peer that no CHILD_SA carries although they are configured.
    ///
    /// # Errors
    /// Returns an error if the agent does not answer.
    pub fn not_carried(&self, peer: &str) -> Result<Vec<String>> {
        let status = self.status()?;
        let missing = list(report(&status, peer)?, "not_carried");
        Ok(missing.iter().filter_map(|pair| Some(pair.get("remote")?.as_str()?.to_owned())).collect())
    }

    /// Waits for the CHILD_SA with a peer.
    ///
    /// # Errors
    /// Returns an error if no CHILD_SA is in use in time.
    pub fn wait_up(&mut self, peer: &str) -> Result<ChildSpis> {
        let mut ended = None;
        let got = wait::for_event(&format!("the agent's tunnel to {peer}"), || {
            ended = self.process.exit_status()?;
            match ended {
                Some(_) => Ok(None),
                None => self.tunnel(peer).map(Some),
            }
        })?;
        match got {
            Some(tunnel) => Ok(tunnel),
            None => bail!(
                "edge-agent on {} ended ({}):\n{}",
                self.node.name(),
                ended.map(|status| status.to_string()).unwrap_or_default(),
                self.process.log()
            ),
        }
    }

    /// Waits until the status shows a peer in this phase.
    ///
    /// # Errors
    /// Returns an error if the status does not show the phase in time.
    pub fn wait_phase(&self, peer: &str, phase: &str) -> Result<()> {
        wait::for_event(&format!("{} to show {peer} as {phase}", self.node.name()), || {
            let status = self.status()?;
            let found = report(&status, peer)?.get("phase").and_then(Value::as_str).unwrap_or_default().to_owned();
            ensure!(found == phase, "it is {found}");
            Ok(())
        })
    }

    /// Returns the reason why the latest attempt with a peer failed.
    ///
    /// # Errors
    /// Returns an error if no attempt failed, or one has succeeded since.
    pub fn last_error(&self, peer: &str) -> Result<String> {
        let status = self.status()?;
        let error = report(&status, peer)?.get("last_error").and_then(Value::as_str);
        error.map(str::to_owned).with_context(|| format!("the agent has no error with {peer}: {status}"))
    }

    /// Runs `edge-agent rekey PEER`, then waits until another CHILD_SA is in use.
    ///
    /// # Errors
    /// Returns an error if the command is refused, or no new SA is in use in time.
    pub fn rekey(&self, peer: &str) -> Result<ChildSpis> {
        let before = self.tunnel(peer)?;
        self.ask_to_rekey(peer, false)?;
        wait::for_event("the agent's new CHILD_SA", || {
            let now = self.tunnel(peer)?;
            ensure!(now.spi_in != before.spi_in && now.spi_out != before.spi_out, "it still has {before:x?}");
            Ok(now)
        })
    }

    /// Runs `edge-agent rekey --ike PEER`, then waits until another IKE SA is the only one.
    ///
    /// # Errors
    /// Returns an error if the command is refused, or no new SA is in use in time.
    pub fn rekey_ike(&self, peer: &str) -> Result<()> {
        let before = self.ike_sas(peer)?;
        self.ask_to_rekey(peer, true)?;
        wait::for_event("the agent's new IKE SA", || {
            let now = self.ike_sas(peer)?;
            ensure!(now.len() == 1 && now.iter().all(|spis| !before.contains(spis)), "it has {now:?}, had {before:?}");
            Ok(())
        })
    }

    /// Runs `edge-agent rekey PEER`, optionally with `--ike`, and does not wait for the rekey.
    ///
    /// # Errors
    /// Returns an error if the command is refused.
    pub fn ask_to_rekey(&self, peer: &str, ike: bool) -> Result<()> {
        self.run_rekey(peer, if ike { &["--ike"] } else { &[] })
    }

    /// Runs `edge-agent rekey PEER --child CHILD` and does not wait for the rekey.
    ///
    /// # Errors
    /// Returns an error if the command is refused.
    pub fn ask_to_rekey_child(&self, peer: &str, child: &str) -> Result<()> {
        self.run_rekey(peer, &["--child", child])
    }

    fn run_rekey(&self, peer: &str, what: &[&str]) -> Result<()> {
        let mut command = self.node.command(&self.program);
        self.node.run(command.args(["rekey", "--config", CONFIG, peer]).args(what)).map(drop)
    }

    /// Runs a command of `edge-agent` while the agent runs. Returns its standard output.
    ///
    /// # Errors
    /// Returns an error if the command does not exit with status 0. The message has its output.
    pub fn command(&self, words: &[&str]) -> Result<String> {
        self.node.run(self.node.command(&self.program).args(words).args(["--config", CONFIG]))
    }

    /// Returns the output of `edge-agent diagnose`, whatever it concludes.
    ///
    /// # Errors
    /// Returns an error if the command cannot be run.
    pub fn diagnosis(&self) -> Result<String> {
        let output = self.node.command(&self.program).args(["diagnose", "--config", CONFIG]).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Returns the output of `edge-agent diagnose` about a peer or an address, whatever it
    /// concludes.
    ///
    /// # Errors
    /// Returns an error if the command cannot be run.
    pub fn diagnosis_of(&self, subject: &str) -> Result<String> {
        let output = self.node.command(&self.program).args(["diagnose", "--config", CONFIG, subject]).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits until `edge-agent diagnose` has a line with these words.
    ///
    /// # Errors
    /// Returns an error if none comes.
    pub fn wait_diagnosis(&self, words: &str) -> Result<()> {
        wait::for_event(&format!("a diagnosis with {words:?}"), || {
            let found = self.diagnosis()?;
            ensure!(found.lines().any(|line| line.contains(words)), "it says {found}");
            Ok(())
        })
    }

    /// Returns the SPIs of the IKE SAs with a peer, as the status shows them.
    ///
    /// # Errors
    /// Returns an error if the agent does not answer.
    pub fn ike_sas(&self, peer: &str) -> Result<Vec<(String, String)>> {
        let status = self.status()?;
        let text = |sa: &Value, key| sa.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let sas = report(&status, peer)?.get("ike_sas").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(sas.iter().map(|sa| (text(sa, "initiator_spi"), text(sa, "responder_spi"))).collect())
    }

    /// Returns whether both ends of every IKE SA with a peer support MOBIKE, as the status shows
    /// it.
    ///
    /// # Errors
    /// Returns an error if the agent does not answer, or there is no IKE SA.
    pub fn mobike(&self, peer: &str) -> Result<bool> {
        let status = self.status()?;
        let sas = report(&status, peer)?.get("ike_sas").and_then(Value::as_array).cloned().unwrap_or_default();
        ensure!(!sas.is_empty(), "there is no IKE SA with {peer}");
        Ok(sas.iter().all(|sa| sa.get("mobike").and_then(Value::as_bool) == Some(true)))
    }

    /// Runs `edge-agent install-cni`, which installs the plugin and its list of network
    /// configurations.
    ///
    /// # Errors
    /// Returns an error if the command does not exit with status 0.
    pub fn install_cni(&self, lab: &Lab) -> Result<()> {
        let plugin = lab.program("edge-cni")?;
        let mut command = self.node.command(&self.program);
        self.node.run(command.args(["install-cni", "--config", CONFIG, "--plugin"]).arg(plugin)).map(drop)
    }

    /// Returns the agent's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Counts the peers that have a CHILD_SA in use according to this output of
/// `edge-agent status --json`.
#[must_use]
pub fn count_up(status: &Value) -> usize {
    let in_use = |child: &Value| child.get("usage").and_then(Value::as_str) == Some("in-use");
    list(status, "peers").iter().filter(|peer| list(peer, "child_sas").iter().any(in_use)).count()
}

fn list(value: &Value, key: &str) -> Vec<Value> {
    value.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
}

fn spis(child: &Value) -> Result<ChildSpis> {
    let spi = |key| -> Result<u32> {
        let text = child.get(key).and_then(Value::as_str).with_context(|| format!("no {key} in {child}"))?;
        Ok(u32::from_str_radix(text.trim_start_matches("0x"), 16)?)
    };
    Ok(ChildSpis { spi_in: spi("inbound_spi")?, spi_out: spi("outbound_spi")? })
}

/// Returns a peer's entry in the status.
fn report<'s>(status: &'s Value, peer: &str) -> Result<&'s Value> {
    status
        .get("peers")
        .and_then(Value::as_array)
        .and_then(|peers| peers.iter().find(|report| report.get("name").and_then(Value::as_str) == Some(peer)))
        .with_context(|| format!("the agent's status has no peer {peer}: {status}"))
}

fn tunnel(status: &Value, peer: &str) -> Result<ChildSpis> {
    let report = report(status, peer)?;
    let children = report.get("child_sas").and_then(Value::as_array).context("no child_sas")?;
    let in_use: Vec<_> =
        children.iter().filter(|child| child.get("usage").and_then(Value::as_str) == Some("in-use")).collect();
    let [child] = in_use.as_slice() else {
        bail!("the agent has {} CHILD_SAs in use with {peer}: {report}", in_use.len());
    };
    spis(child)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_in_use_is_told_from_one_that_lingers() {
        let child = |usage, spi| serde_json::json!({"usage": usage, "inbound_spi": spi, "outbound_spi": "0x00000002"});
        let status = |children: Vec<Value>| serde_json::json!({"peers": [{"name": "moon", "child_sas": children}]});
        let one = status(vec![child("lingering", "0x00000009"), child("in-use", "0xc0000001")]);
        assert_eq!(tunnel(&one, "moon").unwrap(), ChildSpis { spi_in: 0xc000_0001, spi_out: 2 });
        assert!(tunnel(&one, "sun").is_err());
        assert!(tunnel(&status(vec![child("lingering", "0x00000009")]), "moon").is_err());
        assert_eq!((count_up(&one), count_up(&status(vec![child("lingering", "0x00000009")]))), (1, 0));
    }
}
