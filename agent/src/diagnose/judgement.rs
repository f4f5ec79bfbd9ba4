//! Evaluates the data of a diagnosis and produces a finding for each fact. Causes come before their
//! effects, so that the first error is the one to correct.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::facts::{Carried, Disk, Drops, Facts, FirewallDrops, MAX_PROBED_PEERS, MAX_WATCHED_PEERS, Watch};
use super::ike_probe::{MAX_SIZE, ProbeOutcome, ProbedAddress};
use super::port_holders::HeldPort;
use super::target::Target;
use super::{clock, nat};
use crate::check::{Finding, Level, Report};
use crate::host::firewall::DroppedPackets;
use crate::status::{ChildStatus, PeerReport, Status};

/// Minimum free space of the state directory for a new view and certificate, in bytes.
const ENOUGH_SPACE: u64 = 4 << 20;
/// Maximum number of warnings about tunnels that are up. A diagnosis of a single peer shows all
/// warnings about that peer.
const MAX_DOUBTS: usize = 16;
/// The port on which a handshake begins (RFC 7296 section 2).
const IKE_PORT: u16 = 500;
/// Time in seconds without a message from the peer after which its IKE SA gets a warning.
const LONG_SILENCE: u64 = 120;
/// Minimum number of packets sent while the diagnosis runs, of which one should be answered. Fewer
/// may be on their way.
const SHOULD_BE_ANSWERED: u64 = 3;
/// Smallest path MTU, in bytes, that leaves pods the IPv6 minimum MTU of 1280 after the overhead of
/// ESP in UDP.
const SMALL_PATH_MTU: u32 = 1400;

/// Evaluates the facts and returns the findings.
pub(super) fn judge(facts: &Facts) -> Report {
    let mut report = Report::default();
    // A wrong clock makes valid certificates look ended.
    if let Some(readings) = facts.clock {
        let controller = facts.status.as_ref().ok().and_then(|status| status.controller.as_ref());
        clock::judge(&mut report, readings, controller);
    }
    if report.append_problems(&facts.configuration, usize::MAX) == 0 {
        report.add(Level::Ok, "configuration", "the file and the files that it names are good");
    }
    match &facts.disk {
        Ok(found) => disk(&mut report, found),
        Err(error) => {
            report.add(Level::Warning, "disk", format!("{error}; the agent makes its directory when it starts"))
        }
    }
    let status = match &facts.status {
        Ok(status) => status,
        Err(error) => {
            facts.held_ports.iter().for_each(|held| held_port(&mut report, held));
            report.add(Level::Error, "agent", error.clone());
            return report;
        }
    };
    report.add(Level::Ok, "agent", format!("version {} answers, pid {}", status.version, status.pid));
    controller(&mut report, status);
    host(&mut report, status);
    nat::judge(&mut report, status);
    if let Some(target) = &facts.target {
        about(&mut report, target);
    }
    peers(&mut report, facts, status);
    firewall_drops(&mut report, facts, status);
    match &facts.drops {
        Ok(found) => drops(&mut report, found),
        Err(error) => report.add(Level::Warning, "kernel", format!("its counters cannot be read: {error}")),
    }
    // The last one, since it explains nothing that is wrong now.
    sockets(&mut report, status);
    report
}

/// Returns the fault and its remedy in one sentence. A warning before the first error is included,
/// since it may be about the cause of that error.
pub(super) fn conclusion(report: &Report) -> String {
    let first = |level| report.iter().enumerate().find(|(_, finding)| finding.level == level);
    let text = |finding: &Finding| format!("{}: {}", finding.section, finding.what);
    match (first(Level::Error), first(Level::Warning)) {
        (Some((error_at, error)), Some((warning_at, warning))) if warning_at < error_at => {
            format!("What is wrong: {}. Perhaps because of this: {}", text(error), text(warning))
        }
        (Some((_, error)), _) => format!("What is wrong: {}", text(error)),
        (None, Some((_, warning))) => format!("Nothing is broken; look at this: {}", text(warning)),
        (None, None) => {
            "Nothing is wrong as far as this node can see; if packets are lost, run `edge-agent diagnose` at the other end"
                .to_owned()
        }
    }
}

fn disk(report: &mut Report, disk: &Disk) {
    let at = disk.directory.display();
    let (level, what) = if disk.read_only {
        (Level::Error, format!("{at} is read-only: a new view or certificate cannot be kept; mount it writable"))
    } else if disk.free_bytes < ENOUGH_SPACE {
        (
            Level::Error,
            format!("{at} has {} KiB left: a new view or certificate cannot be kept; make room", disk.free_bytes >> 10),
        )
    } else {
        (Level::Ok, format!("{at} is writable and has {} MiB left", disk.free_bytes >> 20))
    };
    report.add(level, "disk", what);
}

fn held_port(report: &mut Report, HeldPort { port, program }: &HeldPort) {
    match program {
        Some((name, pid)) => report.add(
            Level::Error,
            "ports",
            format!(
                "{name} (process {pid}) holds UDP port {port}, so the agent cannot start: stop that program, or set port and nat_port"
            ),
        ),
        None => report.add(
            Level::Warning,
            "ports",
            format!("UDP port {port} is held by a process that is not visible here; on the host, `ss -ulpn` names it"),
        ),
    }
}

fn controller(report: &mut Report, status: &Status) {
    let Some(controller) = &status.controller else {
        return report.add(Level::Ok, "controller", "none is configured: all peers are in the file");
    };
    let url = controller.url.as_deref().unwrap_or("(none tried yet)");
    let why = controller.last_error.as_deref().map_or(String::new(), |error| format!(": {error}"));
    match (controller.connected, status.view_version) {
        (true, _) => report.add(Level::Ok, "controller", format!("{url} is connected")),
        // The peers get the same word from the controller, so their refusals follow from this.
        (false, Some(_)) if controller.refused => {
            let what = format!("{url} refuses this node, so its peers do too; the last view goes on{why}");
            report.add(Level::Error, "controller", what)
        }
        (false, Some(_)) => {
            report.add(Level::Warning, "controller", format!("{url} is not connected, and the last view goes on{why}"))
        }
        (false, None) => {
            report.add(Level::Error, "controller", format!("{url} is not connected, and there is no view{why}"))
        }
    }
    match (status.view_version, &controller.refused_view) {
        (_, Some(why)) => report.add(Level::Error, "view", why.clone()),
        (Some(version), None) => {
            let source = controller.view_source.as_deref().unwrap_or("?");
            report.add(
                Level::Ok,
                "view",
                format!("version {version}, from the {source}, with {} peers", status.peers.len()),
            );
        }
        (None, None) => {
            report.add(Level::Error, "view", "there is none: this node has not joined, or its first view has not come")
        }
    }
    if let Some(ended) = &controller.certificate_ended {
        report.add(Level::Error, "certificate", ended.clone());
    }
    for conflict in &controller.conflicts {
        report.add(Level::Warning, "view", conflict.clone());
    }
}

fn host(report: &mut Report, status: &Status) {
    if status.view_version.is_some() {
        let (level, what) = match status.host.firewall {
            true => (Level::Ok, "the table inet edge-cni is in place"),
            false => (Level::Error, "the table inet edge-cni is missing: see the agent's log for what nft says"),
        };
        report.add(level, "firewall", what);
    }
    for obstacle in &status.obstacles {
        report.add(Level::Error, "host", format!("{}; do: {}", obstacle.what, obstacle.command));
    }
    let missing = status.states.iter().filter(|state| !state.in_kernel).count();
    if missing > 0 {
        report.add(
            Level::Error,
            "kernel",
            format!(
                "{missing} of {} SAs are missing; the agent's log says why it cannot restore them",
                status.states.len()
            ),
        );
    }
    if status.host.pod_mtu > 0 {
        report.add(Level::Ok, "host", format!("pods have an MTU of {}", status.host.pod_mtu));
    }
    if let Some(too_large) = status.host.too_large_packets() {
        report.add(Level::Warning, "host", too_large);
    }
}

/// A cloud node has no tunnels, so it needs no socket.
fn sockets(report: &mut Report, status: &Status) {
    let Some(sockets) = status.sockets.as_ref().filter(|_| status.role.as_deref() != Some("cloud")) else { return };
    let level = if sockets.holder.is_some() { Level::Ok } else { Level::Warning };
    report.add(level, "sockets", format!("the UDP sockets {sockets}"));
}

fn about(report: &mut Report, target: &Target) {
    match target {
        Target::Peer(_) => {}
        Target::PeerAddress { address, network, peer } => {
            report.add(Level::Ok, "policy", format!("{address} is in {network}, to which the tunnel to {peer} leads"));
        }
        Target::Local(address) => {
            report.add(Level::Ok, "policy", format!("{address} is on this node: no tunnel is involved"));
        }
        Target::Blocked { address, range } => report.add(
            Level::Error,
            "policy",
            format!(
                "{address} is in {range}, and no member of this node's communities has it: its packets are dropped; \
                 `edge-controller segment list` says who has it, `edge-controller community list` who is a member"
            ),
        ),
        Target::Outside(address) => report.add(
            Level::Warning,
            "policy",
            format!("{address} is in no network of the cluster: packets leave by the node's routes, in clear"),
        ),
    }
}

fn peers(report: &mut Report, facts: &Facts, status: &Status) {
    let up = status.peers.iter().filter(|peer| peer.phase == "up").count();
    match &facts.target {
        Some(target) => {
            for found in status.peers.iter().filter(|peer| target.peer() == Some(&peer.name)) {
                peer(report, facts, found);
            }
        }
        None => {
            report.add(Level::Ok, "peers", format!("{up} of {} tunnels are up", status.peers.len()));
            let mut doubts = Report::default();
            let (up_peers, down): (Vec<_>, Vec<_>) = status.peers.iter().partition(|peer| peer.phase == "up");
            up_peers.into_iter().for_each(|peer| tunnel(&mut doubts, facts, peer));
            report.append_problems(&doubts, MAX_DOUBTS);
            let rest = down.len().saturating_sub(MAX_PROBED_PEERS);
            down.into_iter().take(MAX_PROBED_PEERS).for_each(|found| peer(report, facts, found));
            if rest > 0 {
                report.add(
                    Level::Warning,
                    "peers",
                    format!("{rest} further tunnels are not up; name one to diagnose it"),
                );
            }
        }
    }
}

fn peer(report: &mut Report, facts: &Facts, peer: &PeerReport) {
    let probes = facts.probes.get(&peer.name).map(Vec::as_slice).unwrap_or_default();
    let remotes: BTreeSet<IpAddr> = probes.iter().map(|probe| probe.address.ip()).collect();
    for remote in remotes {
        match facts.routes.get(&remote) {
            Some(Ok(route)) => report.add(Level::Ok, &peer.name, format!("packets to {remote} {route}")),
            // Some of a peer's addresses may be of a family that this node does not have.
            Some(Err(error)) => report.add(Level::Ok, &peer.name, format!("there is no route to {remote}: {error}")),
            None => {}
        }
    }
    ways(report, peer, probes);
    if peer.phase == "up" {
        tunnel(report, facts, peer);
    } else {
        down(report, facts, peer, probes);
    }
}

/// Reports the results of the probes to a peer's addresses.
fn ways(report: &mut Report, peer: &PeerReport, probes: &[ProbedAddress]) {
    for ProbedAddress { address, outcome } in probes {
        match outcome {
            ProbeOutcome::Answered { path_mtu, passed } => answered(report, peer, *address, *path_mtu, *passed),
            // What follows from these results is reported once for the peer.
            ProbeOutcome::Silent => report.add(Level::Ok, &peer.name, format!("nothing answers at UDP {address}")),
            ProbeOutcome::Closed => report.add(Level::Ok, &peer.name, format!("UDP {address} is closed")),
            ProbeOutcome::Unsent(error) => report.add(Level::Ok, &peer.name, format!("UDP {address}: {error}")),
        }
    }
}

/// Reports that an IKE daemon answers, and the size of packets that the path to it carries.
fn answered(report: &mut Report, peer: &PeerReport, at: SocketAddr, path_mtu: Option<u32>, passed: Option<u32>) {
    let known = path_mtu.map_or(String::new(), |mtu| format!(", path MTU {mtu}"));
    let tried = passed.map_or(String::new(), |size| format!(", packets of {size} bytes pass"));
    report.add(Level::Ok, &peer.name, format!("an IKE daemon answers at {at}{known}{tried}"));
    // Larger packets than this one are not tried.
    let lost = path_mtu.zip(passed).filter(|(path_mtu, size)| size < path_mtu && *size < MAX_SIZE);
    if let Some((path_mtu, size)) = lost {
        let what = format!(
            "packets of {} bytes to {at} get lost although the kernel's path MTU is {path_mtu}, and packets of {size} bytes pass: let ICMP \
             \"fragmentation needed\" and \"packet too big\" through on the way, or set the link's MTU",
            path_mtu.min(MAX_SIZE)
        );
        report.add(Level::Warning, &peer.name, what);
    } else if let Some(mtu) = path_mtu.filter(|mtu| *mtu < SMALL_PATH_MTU) {
        let what = format!("the path to {at} takes only {mtu} bytes: pods' packets of full size are cut or lost");
        report.add(Level::Warning, &peer.name, what);
    }
}

fn tunnel(report: &mut Report, facts: &Facts, peer: &PeerReport) {
    for sa in &peer.ike_sas {
        let path = peer.relayed_by.as_ref().map_or(String::new(), |hub| format!(" (relayed by {hub})"));
        let level = if sa.heard_seconds_ago > LONG_SILENCE { Level::Warning } else { Level::Ok };
        report.add(
            level,
            &peer.name,
            format!(
                "IKE SA {} - {}{path}, {}, last heard {} s ago",
                sa.local,
                sa.remote,
                sa.nat(),
                sa.heard_seconds_ago
            ),
        );
    }
    for sa in peer.child_sas.iter().filter(|sa| sa.usage == "in-use") {
        let carried = match &facts.watch {
            Some(Watch::Seen { carried, .. }) => carried.get(&sa.inbound_spi),
            _ => None,
        };
        traffic(report, peer, sa, carried);
    }
    if let Some(path_mtu) = peer.path_mtu {
        let narrow = path_mtu.limited || path_mtu.unanswered;
        let level = if narrow { Level::Warning } else { Level::Ok };
        let found = if path_mtu.limited {
            "the path does not carry all packets of pods"
        } else {
            "the path carries packets of pods"
        };
        report.add(level, &peer.name, format!("{found}: {path_mtu}"));
    }
}

fn traffic(report: &mut Report, peer: &PeerReport, sa: &ChildStatus, carried: Option<&Carried>) {
    let Some((received, sent)) = sa.received.zip(sa.sent) else {
        let what = format!("the kernel lacks an SA of the CHILD_SA {}; the agent's log says why", sa.inbound_spi);
        return report.add(Level::Error, &peer.name, what);
    };
    let what = format!("{} packets received, {} sent since {}", received.packets, sent.packets, sa.since);
    let transport = if sa.encapsulated { "UDP port 4500" } else { "IP protocol 50 (ESP)" };
    let unanswered = carried.filter(|carried| carried.sent >= SHOULD_BE_ANSWERED && carried.received == 0);
    if let Some(Carried { sent, .. }) = unanswered.filter(|_| received.packets > 0) {
        let what = format!(
            "{what}, but while this ran {sent} were sent and none came back: either nobody answers there, or {transport} does not pass any more, \
             or in one direction alone, or the answers come through another hub; `edge-agent ping` asks the other node, and `edge-agent diagnose` there shows what arrives"
        );
        return report.add(Level::Warning, &peer.name, what);
    }
    if sent.packets > 0 && received.packets == 0 {
        return report.add(
            Level::Warning,
            &peer.name,
            format!(
                "{what}: either nobody answers there, or {transport} does not pass; run `edge-agent diagnose` there too"
            ),
        );
    }
    report.add(Level::Ok, &peer.name, what);
}

/// Returns the reason why the name in a static peer's `remote` has no address, as the agent
/// recorded it.
fn unresolved<'a>(facts: &'a Facts, peer: &PeerReport) -> Option<&'a str> {
    let status = facts.status.as_ref().ok().filter(|_| peer.origin == "configuration")?;
    let is_about_peer = |what: &&str| {
        let peers = what.strip_prefix("peer ").and_then(|rest| rest.split_once(": remote "));
        peers.is_some_and(|(peers, _)| peers.split(", ").any(|name| name == peer.name))
    };
    status.incidents.iter().rev().map(|incident| incident.what.as_str()).find(is_about_peer)
}

fn down(report: &mut Report, facts: &Facts, peer: &PeerReport, probes: &[ProbedAddress]) {
    if let Some(refusal) = &peer.relay_refused {
        report.add(Level::Warning, &peer.name, refusal.clone());
    }
    let state = if peer.blocked.is_empty() {
        format!("the tunnel is not up ({})", peer.phase)
    } else {
        format!("the tunnel was never up ({}), so packets to its networks are dropped", peer.phase)
    };
    // An IKE SA shows that the peer is reached, so only what failed then matters.
    let reached = !peer.ike_sas.is_empty();
    if peer.endpoints.is_empty() && !reached {
        let hint = unresolved(facts, peer).unwrap_or(
            "its address is not known here: it must connect to this node, and is not connected to the controller or behind a NAT",
        );
        return report.add(Level::Error, &peer.name, format!("{state}: {hint}"));
    }
    if let Some(hint) = closed_way(probes).filter(|_| !reached) {
        return report.add(Level::Error, &peer.name, format!("{state}: {hint}"));
    }
    let why =
        peer.last_error.clone().unwrap_or_else(|| "no attempt has failed yet; ask again in a few seconds".to_owned());
    report.add(Level::Error, &peer.name, format!("{state}: {why}"));
}

/// Returns a description of the fault on the path to a peer, if an IKE daemon answers at none of
/// the peer's addresses, or only on port 500.
fn closed_way(probes: &[ProbedAddress]) -> Option<String> {
    let (answering, rest): (Vec<_>, Vec<_>) =
        probes.iter().partition(|probe| matches!(probe.outcome, ProbeOutcome::Answered { .. }));
    let addresses = rest.iter().map(|probe| probe.address.to_string()).collect::<Vec<_>>().join(" ");
    if let Some(only) = answering.first().filter(|_| answering.iter().all(|probe| probe.address.port() == IKE_PORT)) {
        let ip = only.address.ip();
        return rest.iter().any(|probe| probe.address.ip() == ip).then(|| {
            format!("{ip} answers at UDP port {IKE_PORT} alone: open port 4500 too, on the way and there; ESP and the end of the handshake use it")
        });
    }
    if !answering.is_empty() || rest.is_empty() {
        return None;
    }
    Some(if rest.iter().all(|probe| matches!(probe.outcome, ProbeOutcome::Unsent(_))) {
        format!("this node cannot send to {addresses}: look at its links, routes and firewall")
    } else if rest.iter().any(|probe| probe.outcome == ProbeOutcome::Closed) {
        format!("no IKE daemon runs at {addresses}: start it there")
    } else {
        format!(
            "nothing answers at {addresses}: UDP ports 500 and 4500 must be open on the way and there, and the machine must be up"
        )
    })
}

/// Reports packets that the firewall dropped, with a warning if it dropped some during the
/// diagnosis.
fn firewall_drops(report: &mut Report, facts: &Facts, status: &Status) {
    let once =
        |dropped: &DroppedPackets| FirewallDrops { packets: dropped.packets, now: 0, what: dropped.what.clone() };
    let drops = match &facts.watch {
        Some(Watch::Seen { dropped, .. }) => dropped.clone(),
        _ => status.dropped.iter().map(once).collect(),
    };
    for FirewallDrops { packets, now, what } in drops {
        let (level, just_now) =
            if now > 0 { (Level::Warning, format!(", {now} of them just now")) } else { (Level::Ok, String::new()) };
        report.add(level, "firewall", format!("has dropped {packets} packets{just_now}: {what}"));
    }
    match &facts.watch {
        Some(Watch::TooManyPeers) => {
            let what = format!(
                "what tunnels carry and the firewall drops is not watched with more than {MAX_WATCHED_PEERS} peers"
            );
            report.add(Level::Ok, "agent", what);
        }
        Some(Watch::Failed(error)) => {
            report.add(Level::Warning, "agent", format!("it did not answer a second time: {error}"))
        }
        Some(Watch::Seen { .. }) | None => {}
    }
}

/// Reports packets that XFRM dropped. Only a counter that increases during the diagnosis gets a
/// warning.
fn drops(report: &mut Report, drops: &[Drops]) {
    for Drops { counter, packets, now } in drops {
        let level = if *now > 0 { Level::Warning } else { Level::Ok };
        let meaning = meaning(counter);
        report.add(level, "kernel", format!("{counter}: {packets} packets dropped, {now} of them just now: {meaning}"));
    }
}

/// Returns the meaning of a counter of `/proc/net/xfrm_stat` on a node (Linux
/// Documentation/networking/xfrm/xfrm_proc.rst).
fn meaning(counter: &str) -> &'static str {
    match counter {
        "XfrmOutPolBlock" => "a pod or this node sent to a range to which no tunnel leads",
        "XfrmInPolBlock" => {
            "they came in clear with a source in the cluster's ranges: forged, or from a neighbour on the LAN"
        }
        "XfrmInNoPols" => "they came out of a tunnel, and no peer may use their source",
        "XfrmInTmplMismatch" => {
            "they came out of a tunnel and their source belongs to another peer, or in clear where a tunnel is demanded"
        }
        "XfrmInStateProtoError" => "their integrity check failed: damaged, forged, or from a sender with other keys",
        "XfrmInNoStates" => "their SA is gone here: the peer still sends with old keys, or somebody guesses",
        "XfrmOutNoStates" => "there was no SA yet, or no longer",
        "XfrmInStateSeqError" => "they came twice, or too late for the replay window",
        "XfrmInStateModeError" | "XfrmInStateMismatch" => "their SA does not fit the policy",
        "XfrmOutStateExpired" | "XfrmInStateExpired" => "their SA had ended",
        "XfrmInError" | "XfrmOutError" | "XfrmInBufferError" | "XfrmOutBundleGenError" => {
            "the kernel lacked memory or a route"
        }
        _ => "see the kernel's documentation, xfrm_proc.rst",
    }
}
