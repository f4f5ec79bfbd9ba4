//! The table of `edge-agent status`.

use std::fmt::Write;

use comfy_table::{Table, presets};

use super::document::{ChildStatus, NotCarried, PeerReport, Refusal, Status};
use crate::clock::ClockReadings;
use crate::incidents::IncidentKind;

/// Renders the status as text for a terminal.
pub fn render(status: &Status) -> String {
    let mut text = String::new();
    let name = status.node.as_deref().unwrap_or("(no view: static peers only)");
    let _ = write!(text, "{name}");
    if let Some(role) = &status.role {
        let _ = write!(text, ", {role}");
    }
    if let Some(version) = status.view_version {
        let _ = write!(text, ", view {version}");
    }
    text.push('\n');
    if let Some(fault) = status.clock.and_then(ClockReadings::fault) {
        let _ = writeln!(text, "{fault}");
    }
    if let Some(controller) = &status.controller {
        let how = if controller.connected { "connected" } else { "not connected" };
        let _ = writeln!(text, "controller {}: {how}", controller.url.as_deref().unwrap_or("(none yet)"));
        if let Some(error) = &controller.last_error {
            // A stream that ended early keeps its error until the next one has lasted.
            let when = if controller.connected { "before: " } else { "" };
            let _ = writeln!(text, "  {when}{error}");
        }
        if let Some(why) = controller
            .refused_view
            .as_ref()
            .filter(|why| controller.last_error.as_ref().is_none_or(|error| !error.contains(*why)))
        {
            let _ = writeln!(text, "  {why}");
        }
        if let Some(ended) = &controller.certificate_ended {
            let _ = writeln!(text, "  {ended}");
        }
        for conflict in &controller.conflicts {
            let _ = writeln!(text, "  {conflict}");
        }
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "PEER",
        "STATE",
        "REMOTE",
        "SPIS IN/OUT",
        "CIPHER",
        "RECEIVED",
        "SENT",
    ]);
    for peer in &status.peers {
        let mut sending = peer.child_sas.iter().filter(|child| child.usage == "in-use");
        table.add_row(row(peer, sending.next()));
        for child in sending {
            table.add_row(of_child(format!("{} {}", peer.name, child.child), String::new(), child));
        }
    }
    if !status.peers.is_empty() {
        let _ = writeln!(text, "\n{table}");
    }
    for peer in &status.peers {
        for NotCarried { child, local, remote } in &peer.not_carried {
            let _ = writeln!(
                text,
                "peer {}: no CHILD_SA carries {local} - {remote} (child {child}): compare the networks with the peer's",
                peer.name
            );
        }
    }
    for peer in &status.peers {
        // After a rekey or a new authentication, the newest IKE SA is the last one.
        for sentence in peer.ike_sas.last().iter().flat_map(|sa| &sa.not_served) {
            let _ = writeln!(text, "peer {}: {sentence}", peer.name);
        }
    }
    for error in status.peers.iter().filter_map(|peer| peer.last_error.as_ref()) {
        let _ = writeln!(text, "{error}");
    }
    for peer in &status.peers {
        if let Some(problem) = &peer.tcp_problem {
            let _ = writeln!(text, "peer {}: neither UDP nor TCP reaches it: {problem}", peer.name);
        }
        if let Some(refusal) = &peer.relay_refused {
            let _ = writeln!(text, "peer {}: {refusal}", peer.name);
        }
    }
    for peer in &status.peers {
        if let Some(path_mtu) = peer.path_mtu.filter(|path_mtu| path_mtu.limited) {
            let _ = writeln!(text, "peer {}: the path does not carry all packets of pods: {path_mtu}", peer.name);
        }
    }
    if let Some(too_large) = status.host.too_large_packets() {
        let _ = writeln!(text, "{too_large}");
    }
    let _ = writeln!(
        text,
        "\n{} states, {} policies, {} routes",
        status.states.len(),
        status.policies.len(),
        status.host.routes.len()
    );
    // A cloud node has no tunnels.
    if let Some(sockets) = status.sockets.as_ref().filter(|_| status.role.as_deref() != Some("cloud")) {
        let _ = writeln!(text, "UDP sockets {sockets}");
    }
    if status.relayed_pairs > 0 {
        let _ = writeln!(text, "relay between {} pairs of nodes", status.relayed_pairs);
    }
    if !status.missing_ciphers.is_empty() {
        let _ = writeln!(
            text,
            "this kernel has no ESP with {}: peers are not offered it",
            status.missing_ciphers.join(", ")
        );
    }
    for Refusal { at, from, identity, error, times } in &status.refusals {
        let identity = identity.as_deref().map(|identity| format!(" as {identity}")).unwrap_or_default();
        let times = if *times > 1 { format!(" ({times} times)") } else { String::new() };
        let _ = writeln!(text, "{at} refused {from}{identity}: {error}{times}");
    }
    for obstacle in &status.obstacles {
        let _ = writeln!(text, "\nobstacle: {}\n  do: {}", obstacle.what, obstacle.command);
    }
    if !status.dropped.is_empty() {
        text.push('\n');
    }
    for dropped in &status.dropped {
        let _ = writeln!(text, "dropped by the firewall: {} packets: {}", dropped.packets, dropped.what);
    }
    if !status.incidents.is_empty() {
        text.push('\n');
    }
    for incident in status.incidents.iter().rev().take(10).rev() {
        let kind = match incident.kind {
            IncidentKind::Repaired => "repaired",
            IncidentKind::Foreign => "in the way",
            IncidentKind::Error => "error",
        };
        let times = if incident.times > 1 { format!(" ({} times)", incident.times) } else { String::new() };
        let _ = writeln!(text, "{} {kind}: {}{times}", incident.at, incident.what);
    }
    text
}

fn row(peer: &PeerReport, child: Option<&ChildStatus>) -> Vec<String> {
    let relayed = match &peer.relayed_by {
        Some(hub) => format!(", relayed by {hub}"),
        None if peer.tcp => " via TCP".to_owned(),
        None => String::new(),
    };
    match child {
        Some(child) => of_child(peer.name.clone(), format!("{}{relayed}", peer.phase), child),
        None => {
            let nothing = std::iter::repeat_n(String::new(), 4);
            [peer.name.clone(), peer.phase.clone(), peer.endpoints.join(" ")].into_iter().chain(nothing).collect()
        }
    }
}

fn of_child(name: String, phase: String, child: &ChildStatus) -> Vec<String> {
    let packets = |counters: Option<super::Counters>| {
        counters.map_or(String::new(), |counters| format!("{} packets", counters.packets))
    };
    vec![
        name,
        phase,
        child.remote.clone(),
        format!("{} {}", child.inbound_spi, child.outbound_spi),
        child.cipher.clone(),
        packets(child.received),
        packets(child.sent),
    ]
}
