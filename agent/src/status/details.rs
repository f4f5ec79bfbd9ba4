//! Implements `edge-agent status PEER`, which shows everything about a few peers.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use super::document::{ChildStatus, Counters, IkeStatus, NatMapping, NotCarried, PeerReport, PolicyEntry, Status};

/// Removes everything from the status except the peers that match the patterns (`*` and `?` as in a
/// shell), with their SAs and policies. Fails if a pattern matches no peer.
pub fn only_peers(status: &mut Status, patterns: &[String]) -> Result<(), String> {
    let mut named = vec![false; status.peers.len()];
    for text in patterns {
        let pattern = glob::Pattern::new(text).map_err(|error| format!("{text:?} is not a pattern: {}", error.msg))?;
        let mut any = false;
        for (named, peer) in named.iter_mut().zip(&status.peers) {
            if pattern.matches(&peer.name) {
                (*named, any) = (true, true);
            }
        }
        if !any {
            return Err(format!("no peer is called {text}; `edge-agent status` lists them"));
        }
    }
    let mut named = named.into_iter();
    status.peers.retain(|_| named.next() == Some(true));
    let reqids: HashSet<u32> = status.peers.iter().flat_map(reqids).collect();
    status.states.retain(|state| reqids.contains(&state.reqid));
    let uses = |policy: &PolicyEntry| policy.template.as_ref().is_some_and(|template| reqids.contains(&template.reqid));
    status.policies.retain(uses);
    Ok(())
}

/// Returns the reqids of a peer's policies and SAs.
fn reqids(peer: &PeerReport) -> Vec<u32> {
    let mut reqids: Vec<u32> =
        peer.reqid.into_iter().chain(peer.child_sas.iter().filter_map(|child| child.reqid)).collect();
    reqids.sort_unstable();
    reqids.dedup();
    reqids
}

/// Renders each peer with its SAs.
pub fn render_peers(status: &Status) -> String {
    let mut text = String::new();
    let states = counts(status.states.iter().filter(|state| state.in_kernel).map(|state| state.reqid));
    let templates = status.policies.iter().filter_map(|policy| policy.template.as_ref());
    let policies = counts(templates.map(|template| template.reqid));
    for (number, peer) in status.peers.iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        render_peer(&mut text, peer);
        let reqids = reqids(peer);
        let sum = |counts: &HashMap<u32, usize>| -> usize { reqids.iter().filter_map(|reqid| counts.get(reqid)).sum() };
        let (states, policies) = (sum(&states), sum(&policies));
        let _ = writeln!(text, "  kernel     {states} states, {policies} policies");
        for NotCarried { child, local, remote } in &peer.not_carried {
            let _ = writeln!(text, "  missing    {local} - {remote} of child {child}: no CHILD_SA carries it");
        }
        if let Some(refusal) = &peer.relay_refused {
            let _ = writeln!(text, "  relay      {refusal}");
        }
        if let Some(problem) = &peer.tcp_problem {
            let _ = writeln!(text, "  TCP        {problem}");
        }
        if peer.requests_refused > 0 {
            let _ = writeln!(text, "  refused    {} rekeys and CHILD_SAs beyond the rate", peer.requests_refused);
        }
        if let Some(error) = &peer.last_error {
            let _ = writeln!(text, "  error      {error}");
        }
    }
    text
}

/// Returns how often each number occurs.
fn counts(numbers: impl Iterator<Item = u32>) -> HashMap<u32, usize> {
    let mut counts = HashMap::new();
    for number in numbers {
        *counts.entry(number).or_default() += 1;
    }
    counts
}

fn render_peer(text: &mut String, peer: &PeerReport) {
    let _ = writeln!(text, "{}, from the {}: {}", peer.name, peer.origin, peer.phase);
    let addresses = if peer.endpoints.is_empty() { "not known".into() } else { peer.endpoints.join(" ") };
    let _ = writeln!(text, "  addresses  {addresses}");
    match &peer.relayed_by {
        Some(hub) => {
            let tcp = if peer.tcp { ", to which it goes by TCP" } else { "" };
            let _ = writeln!(text, "  path       relayed by {hub}{tcp}");
        }
        None if peer.tcp => text.push_str("  path       direct, via TCP\n"),
        None if !peer.ike_sas.is_empty() => text.push_str("  path       direct\n"),
        None => {}
    }
    if let Some(NatMapping { local, mapped }) = &peer.mapping {
        let nat = if local == mapped { "no NAT" } else { "a NAT" };
        let _ = writeln!(text, "  seen as    {mapped}: {nat} in front of {local}");
    }
    if let Some(path_mtu) = &peer.path_mtu {
        let _ = writeln!(text, "  path MTU   {path_mtu}");
    }
    for sa in &peer.ike_sas {
        ike_sa(text, sa);
    }
    for sa in &peer.child_sas {
        child_sa(text, sa);
    }
}

fn ike_sa(text: &mut String, sa: &IkeStatus) {
    let began = if sa.initiator { "we began" } else { "the peer began" };
    let nat = sa.nat();
    let mobike = if sa.mobike { "MOBIKE" } else { "no MOBIKE" };
    let _ = writeln!(
        text,
        "  IKE SA     {} {}, {} - {}, {began}, {nat}, {mobike}",
        sa.initiator_spi, sa.responder_spi, sa.local, sa.remote
    );
    if !sa.internal_addresses.is_empty() {
        let addresses: Vec<String> = sa.internal_addresses.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "             address in the tunnel: {}", addresses.join(" "));
    }
    for sentence in &sa.not_served {
        let _ = writeln!(text, "             not served: {sentence}");
    }
    let _ = writeln!(text, "             {}, the peer proved itself by {}", sa.proposal, sa.authentication);
    let _ = writeln!(
        text,
        "             since {}, heard {} s ago, renewed in {} s",
        sa.since, sa.heard_seconds_ago, sa.renewed_in_seconds
    );
}

fn child_sa(text: &mut String, sa: &ChildStatus) {
    let esn = if sa.esn { ", ESN" } else { "" };
    let udp = if sa.encapsulated { ", in UDP" } else { "" };
    let mode = if sa.mode == "transport" { ", transport mode" } else { "" };
    let _ = writeln!(
        text,
        "  CHILD_SA   {} in, {} out, {}, {}{esn}{udp}{mode}, since {}",
        sa.inbound_spi, sa.outbound_spi, sa.usage, sa.cipher, sa.since
    );
    let networks =
        |networks: &[ipnetwork::IpNetwork]| networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let port = |port: Option<u16>| port.map_or(String::new(), |port| format!(" port {port}"));
    let protocol = if sa.protocol == 0 { String::new() } else { format!(", protocol {}", sa.protocol) };
    let (local, remote) = (networks(&sa.local_selectors), networks(&sa.remote_selectors));
    let (local_port, remote_port) = (port(sa.local_port), port(sa.remote_port));
    let _ = writeln!(text, "             {}: {local}{local_port} - {remote}{remote_port}{protocol}", sa.child);
    let _ = writeln!(text, "             received {}, sent {}", traffic(sa.received), traffic(sa.sent));
}

fn traffic(counters: Option<Counters>) -> String {
    match counters {
        Some(Counters { packets, bytes }) => format!("{packets} packets ({bytes} bytes)"),
        None => "nothing: the kernel has no such SA".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ClockReadings;
    use crate::membership::ControllerStatus;
    use crate::status::{PathMtuStatus, StateEntry, TemplateEntry};

    fn status() -> Status {
        let child = ChildStatus {
            child: "net".into(),
            reqid: None,
            inbound_spi: "0xc0000001".into(),
            outbound_spi: "0xc0000002".into(),
            cipher: "aes256gcm16".into(),
            esn: true,
            mode: "tunnel".into(),
            encapsulated: true,
            local: "192.0.2.1:4500".into(),
            remote: "203.0.113.10:4500".into(),
            local_selectors: vec!["10.1.0.0/24".parse().unwrap()],
            remote_selectors: vec!["10.2.0.0/24".parse().unwrap(), "fd02::/64".parse().unwrap()],
            protocol: 6,
            local_port: None,
            remote_port: Some(443),
            usage: "in-use".into(),
            since: "2026-01-01T00:00:00Z".into(),
            received: Some(Counters { packets: 7, bytes: 588 }),
            sent: None,
        };
        let ike = IkeStatus {
            initiator_spi: "0011223344556677".into(),
            responder_spi: "8899aabbccddeeff".into(),
            local: "192.0.2.1:4500".into(),
            remote: "203.0.113.10:4500".into(),
            initiator: true,
            proposal: "aes256gcm16-prfsha256-x25519".into(),
            authentication: "psk".into(),
            nat_local: true,
            nat_remote: false,
            nat_assumed: false,
            mobike: true,
            internal_addresses: vec!["10.9.0.1".parse().unwrap(), "fd09::1".parse().unwrap()],
            not_served: vec!["the peer asks for transport mode".into()],
            since: "2026-01-01T00:00:00Z".into(),
            heard_seconds_ago: 3,
            renewed_in_seconds: 600,
        };
        let peer = |name: &str, reqid: u32| PeerReport {
            name: name.into(),
            origin: "view".into(),
            phase: "up".into(),
            reqid: Some(reqid),
            endpoints: vec!["203.0.113.10:4500".into()],
            ike_sas: vec![ike.clone()],
            child_sas: vec![child.clone()],
            not_carried: vec![],
            blocked: vec![],
            relayed_by: None,
            tcp: false,
            tcp_problem: None,
            relay_refused: None,
            mapping: None,
            path_mtu: None,
            last_error: Some(format!("{name} does not answer")),
            requests_refused: 0,
        };
        let state = |reqid| StateEntry {
            source: "192.0.2.1".parse().unwrap(),
            destination: "203.0.113.10".parse().unwrap(),
            protocol: "esp".into(),
            spi: "0xc0000001".into(),
            reqid,
            mode: "tunnel".into(),
            direction: "in".into(),
            algorithm: None,
            encap: None,
            in_kernel: true,
        };
        let policy = |reqid: Option<u32>| PolicyEntry {
            direction: "out".into(),
            source: "10.1.0.0/24".parse().unwrap(),
            destination: "10.2.0.0/24".parse().unwrap(),
            priority: 1,
            action: "allow".into(),
            template: reqid.map(|reqid| TemplateEntry { reqid, source: None, destination: None }),
        };
        Status {
            version: "1".into(),
            pid: 1,
            node: None,
            role: None,
            view_version: None,
            controller: None,
            clock: None,
            peers: vec![peer("edge-1", 1), peer("edge-2", 2), peer("hub", 3)],
            states: vec![state(1), state(2), state(3)],
            policies: vec![policy(Some(1)), policy(Some(3)), policy(None)],
            relayed_pairs: 0,
            ike: Default::default(),
            refusals: vec![],
            missing_ciphers: vec![],
            sockets: None,
            host: Default::default(),
            obstacles: vec![],
            dropped: vec![],
            incidents: vec![],
        }
    }

    #[test]
    fn patterns_choose_peers_with_their_states_and_policies() {
        let chosen = |patterns: &[&str]| {
            let mut status = status();
            let patterns: Vec<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
            only_peers(&mut status, &patterns)?;
            let names = status.peers.iter().map(|peer| peer.name.clone()).collect::<Vec<_>>().join(" ");
            Ok::<_, String>((names, status.states.len(), status.policies.len()))
        };
        assert_eq!(chosen(&["hub"]).unwrap(), ("hub".into(), 1, 1));
        assert_eq!(chosen(&["edge-*", "edge-1"]).unwrap(), ("edge-1 edge-2".into(), 2, 1));
        assert!(chosen(&["hub", "moon"]).unwrap_err().contains("no peer is called moon"));
        assert!(chosen(&["["]).unwrap_err().contains("not a pattern"));
    }

    #[test]
    fn the_table_says_that_the_clock_is_wrong_and_that_the_certificate_has_ended() {
        let mut status = status();
        let right = ClockReadings { system: 1_800_000_000, certificates: 1_800_000_000, controller: None };
        status.clock = Some(right);
        let ended = "our certificate ended on 2027-01-15T08:00:00Z";
        let controller = ControllerStatus { certificate_ended: Some(ended.into()), ..ControllerStatus::default() };
        status.controller = Some(controller);
        let table = crate::status::render(&status);
        assert!(table.contains(ended) && !table.contains("clock"), "{table}");
        status.clock = Some(ClockReadings { system: 2_115_360_000, ..right });
        let table = crate::status::render(&status);
        assert!(table.contains("this node's clock is wrong: it says 2037-01-12T08:00:00Z"), "{table}");
    }

    #[test]
    fn a_peer_is_shown_with_its_path_keys_and_traffic() {
        let mut status = status();
        only_peers(&mut status, &["hub".into()]).unwrap();
        assert_eq!(
            render_peers(&status),
            "hub, from the view: up\n\
             \x20 addresses  203.0.113.10:4500\n\
             \x20 path       direct\n\
             \x20 IKE SA     0011223344556677 8899aabbccddeeff, 192.0.2.1:4500 - 203.0.113.10:4500, we began, NAT at our end, MOBIKE\n\
             \x20            address in the tunnel: 10.9.0.1 fd09::1\n\
             \x20            not served: the peer asks for transport mode\n\
             \x20            aes256gcm16-prfsha256-x25519, the peer proved itself by psk\n\
             \x20            since 2026-01-01T00:00:00Z, heard 3 s ago, renewed in 600 s\n\
             \x20 CHILD_SA   0xc0000001 in, 0xc0000002 out, in-use, aes256gcm16, ESN, in UDP, since 2026-01-01T00:00:00Z\n\
             \x20            net: 10.1.0.0/24 - 10.2.0.0/24 fd02::/64 port 443, protocol 6\n\
             \x20            received 7 packets (588 bytes), sent nothing: the kernel has no such SA\n\
             \x20 kernel     1 states, 1 policies\n\
             \x20 error      hub does not answer\n"
        );
    }

    #[test]
    fn a_tunnel_in_tcp_and_a_hub_without_tcp_are_shown() {
        let mut status = status();
        status.peers[0].tcp = true;
        status.peers[1].tcp_problem = Some("this kernel cannot carry ESP in TCP".into());
        let table = crate::status::render(&status);
        for expected in
            [" up via TCP ", "peer edge-2: neither UDP nor TCP reaches it: this kernel cannot carry ESP in TCP"]
        {
            assert!(table.contains(expected), "{table}");
        }
        let details = render_peers(&status);
        for expected in ["  path       direct, via TCP\n", "  TCP        this kernel cannot"] {
            assert!(details.contains(expected), "{details}");
        }
    }

    #[test]
    fn what_a_peer_asks_for_in_vain_is_shown() {
        let status = status();
        let (table, details) = (crate::status::render(&status), render_peers(&status));
        assert!(table.contains("peer edge-1: the peer asks for transport mode\n"), "{table}");
        assert!(details.contains("             not served: the peer asks for transport mode\n"), "{details}");
    }

    #[test]
    fn a_peer_whose_requests_were_refused_is_shown_with_their_number() {
        let mut status = status();
        assert!(!render_peers(&status).contains("refused"));
        status.peers[1].requests_refused = 17;
        let text = render_peers(&status);
        assert_eq!(text.matches("  refused    17 rekeys and CHILD_SAs beyond the rate\n").count(), 1, "{text}");
    }

    #[test]
    fn a_path_that_carries_only_small_packets_is_shown_with_their_size() {
        let path_mtu =
            |bytes, limited, unanswered| Some(PathMtuStatus { bytes, limited, unanswered, ipv6_in_fragments: false });
        let mut status = status();
        status.peers[0].path_mtu = path_mtu(1366, true, false);
        status.peers[1].path_mtu = path_mtu(1218, true, false);
        status.peers[2].path_mtu = path_mtu(1418, false, true);
        let table = crate::status::render(&status);
        assert!(
            table.contains("peer edge-1: the path does not carry all packets of pods: up to 1366 bytes\n"),
            "{table}"
        );
        assert!(table.contains("up to 1218 bytes; IPv6 needs 1280, so large IPv6 packets are lost\n"), "{table}");
        assert!(!table.contains("peer hub: the path"), "{table}");
        assert!(!table.contains("IPv6 packets of pods"), "{table}");
        (status.host.pod_mtu, status.host.small_uplink) = (1280, Some(1280));
        let table = crate::status::render(&status);
        assert!(
            table.contains("IPv6 packets of pods of 1280 bytes may be lost: with ESP they have up to 1364 bytes"),
            "{table}"
        );
        let in_fragments = PathMtuStatus { ipv6_in_fragments: true, ..status.peers[1].path_mtu.unwrap() };
        assert!(
            in_fragments
                .to_string()
                .ends_with("IPv6 needs 1280, so large IPv6 packets travel in fragments (Linux 5.19 and later)")
        );
        let details = render_peers(&status);
        assert!(details.contains("  path MTU   up to 1366 bytes\n"), "{details}");
        assert!(
            details.contains("  path MTU   up to 1418 bytes; not confirmed, since the peer does not answer probes\n"),
            "{details}"
        );
    }

    #[test]
    fn initiators_that_were_refused_are_shown_with_address_identity_and_reason() {
        let refusal = |identity: Option<&str>, times| crate::status::Refusal {
            at: "2026-11-28T00:00:00Z".into(),
            from: "192.0.2.9:4500".parse().unwrap(),
            identity: identity.map(ToOwned::to_owned),
            error: "no peer has this identity".into(),
            times,
        };
        let status = Status { refusals: vec![refusal(Some("mallory"), 3), refusal(None, 1)], ..status() };
        let table = crate::status::render(&status);
        for expected in [
            "2026-11-28T00:00:00Z refused 192.0.2.9:4500 as mallory: no peer has this identity (3 times)\n",
            "2026-11-28T00:00:00Z refused 192.0.2.9:4500: no peer has this identity\n",
        ] {
            assert!(table.contains(expected), "{table}");
        }
    }

    #[test]
    fn a_relayed_peer_and_a_refused_relay_are_shown_with_the_hub() {
        let mut status = status();
        status.peers[0].relayed_by = Some("hub".into());
        status.peers[1].relay_refused = Some("hub hub does not relay: it cannot open UDP ports".into());
        let mut by_tcp = status.peers[0].clone();
        by_tcp.tcp = true;
        let mut text = String::new();
        render_peer(&mut text, &by_tcp);
        assert!(text.contains("  path       relayed by hub, to which it goes by TCP\n"), "{text}");
        status.relayed_pairs = 3;
        let table = crate::status::render(&status);
        let row = table.lines().find(|line| line.starts_with(" edge-1")).unwrap();
        assert!(row.contains(" up, relayed by hub "), "{row}");
        for expected in ["peer edge-2: hub hub does not relay: it cannot", "relay between 3 pairs of nodes"] {
            assert!(table.contains(expected), "{table}");
        }
        let details = render_peers(&status);
        for expected in
            ["  path       relayed by hub\n", "  path       direct\n", "  relay      hub hub does not relay"]
        {
            assert!(details.contains(expected), "{details}");
        }
    }
}
