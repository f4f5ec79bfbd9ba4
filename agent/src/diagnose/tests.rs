use std::net::SocketAddr;

use super::facts::{Carried, Disk, Drops, Facts, FirewallDrops, Watch};
use super::ike_probe::{ProbeOutcome, ProbedAddress};
use super::judgement::{conclusion, judge};
use super::target::Target;
use crate::check::{Level, Report};
use crate::clock::ClockReadings;
use crate::host::Obstacle;
use crate::host::firewall::DroppedPackets;
use crate::membership::ControllerStatus;
use crate::status::{
    ChildStatus, Counters, IkeStatus, NatMapping, PathMtuStatus, PeerReport, PolicyEntry, SocketHolder, SocketHolding,
    StateEntry, Status, TemplateEntry,
};

const ADDRESS: &str = "203.0.113.10:500";
const NOW: ClockReadings =
    ClockReadings { system: 1_800_000_000, certificates: 1_800_000_000, controller: Some(1_800_000_000) };

fn policy(destination: &str, priority: u32, action: &str, reqid: Option<u32>) -> PolicyEntry {
    PolicyEntry {
        direction: "out".into(),
        source: "0.0.0.0/0".parse().unwrap(),
        destination: destination.parse().unwrap(),
        priority,
        action: action.into(),
        template: reqid.map(|reqid| TemplateEntry { reqid, source: None, destination: None }),
    }
}

fn child() -> ChildStatus {
    let counters = Some(Counters { packets: 7, bytes: 588 });
    ChildStatus {
        child: "net".into(),
        reqid: None,
        protocol: 0,
        local_port: None,
        remote_port: None,
        inbound_spi: "0xc0000001".into(),
        outbound_spi: "0xc0000002".into(),
        cipher: "aes256gcm16".into(),
        esn: true,
        mode: "tunnel".into(),
        encapsulated: true,
        local: "192.0.2.1:4500".into(),
        remote: "203.0.113.10:4500".into(),
        local_selectors: vec![],
        remote_selectors: vec![],
        usage: "in-use".into(),
        since: "2026-01-01T00:00:00Z".into(),
        received: counters,
        sent: counters,
    }
}

fn ike_sa() -> IkeStatus {
    IkeStatus {
        initiator_spi: "0011223344556677".into(),
        responder_spi: "8899aabbccddeeff".into(),
        local: "192.0.2.1:4500".into(),
        remote: "203.0.113.10:4500".into(),
        initiator: true,
        proposal: "AES_GCM_16-256/PRF_HMAC_SHA2_256/CURVE_25519".into(),
        authentication: "psk".into(),
        nat_local: false,
        nat_remote: false,
        nat_assumed: false,
        mobike: true,
        internal_addresses: vec![],
        not_served: vec![],
        since: "2026-01-01T00:00:00Z".into(),
        heard_seconds_ago: 3,
        renewed_in_seconds: 600,
    }
}

fn peer(name: &str, reqid: u32, phase: &str) -> PeerReport {
    PeerReport {
        name: name.into(),
        origin: "view".into(),
        phase: phase.into(),
        reqid: Some(reqid),
        endpoints: vec![ADDRESS.into()],
        ike_sas: vec![],
        child_sas: if phase == "up" { vec![child()] } else { vec![] },
        not_carried: vec![],
        blocked: vec![],
        relayed_by: None,
        tcp: false,
        tcp_problem: None,
        relay_refused: None,
        mapping: None,
        path_mtu: None,
        last_error: None,
        requests_refused: 0,
    }
}

/// Builds the facts of a node without any problem, with the peers `hub` and `edge-2`.
fn healthy() -> Facts {
    let status = Status {
        version: "1".into(),
        pid: 1,
        node: Some("edge-1".into()),
        role: Some("edge".into()),
        view_version: Some(7),
        controller: Some(ControllerStatus {
            url: Some("https://cloud:8443".into()),
            connected: true,
            view_source: Some("controller".into()),
            ..ControllerStatus::default()
        }),
        clock: Some(NOW),
        peers: vec![peer("hub", 1, "up"), peer("edge-2", 2, "up")],
        states: vec![StateEntry {
            source: "192.0.2.1".parse().unwrap(),
            destination: "203.0.113.10".parse().unwrap(),
            protocol: "esp".into(),
            spi: "0xc0000001".into(),
            reqid: 1,
            mode: "tunnel".into(),
            direction: "in".into(),
            algorithm: None,
            encap: None,
            in_kernel: true,
        }],
        policies: vec![
            policy("10.96.0.0/12", 10_100, "allow", Some(1)),
            policy("10.233.2.0/28", 10_050, "allow", Some(2)),
            policy("10.233.1.0/28", 20_000, "allow", None),
            policy("10.233.0.0/16", 30_000, "block", Some(0xecf0_0000)),
        ],
        relayed_pairs: 0,
        ike: Default::default(),
        refusals: vec![],
        missing_ciphers: vec![],
        sockets: Some(SocketHolding::by(SocketHolder::Systemd)),
        host: crate::host::HostState { firewall: true, pod_mtu: 1420, ..Default::default() },
        obstacles: vec![],
        dropped: vec![],
        incidents: vec![],
    };
    Facts {
        clock: Some(NOW),
        configuration: Report::default(),
        status: Ok(Box::new(status)),
        held_ports: vec![],
        target: None,
        disk: Ok(Disk { directory: "/var/lib/edge-agent".into(), free_bytes: 1 << 30, read_only: false }),
        probes: Default::default(),
        routes: Default::default(),
        watch: None,
        drops: Ok(vec![]),
    }
}

/// Applies a change to the facts of a healthy node and returns the conclusion.
fn concluded(change: impl FnOnce(&mut Facts, &mut Status)) -> String {
    let mut facts = healthy();
    let mut status = *std::mem::replace(&mut facts.status, Err(String::new())).unwrap();
    change(&mut facts, &mut status);
    if facts.status == Err(String::new()) {
        facts.status = Ok(Box::new(status));
    }
    conclusion(&judge(&facts))
}

/// Returns the conclusion if edge-2 is not up and the probes of its ports have these results.
fn with_probes(outcomes: &[(u16, ProbeOutcome)]) -> String {
    concluded(|facts, status| {
        status.peers[1] = peer("edge-2", 2, "waiting");
        status.peers[1].last_error = Some("the peer did not accept our pre-shared key".into());
        let probe = |(port, outcome): &(u16, ProbeOutcome)| ProbedAddress {
            address: SocketAddr::new("203.0.113.10".parse().unwrap(), *port),
            outcome: outcome.clone(),
        };
        facts.probes.insert("edge-2".into(), outcomes.iter().map(probe).collect());
    })
}

#[test]
fn a_healthy_node_has_no_complaint_and_points_at_the_other_end() {
    let facts = healthy();
    let report = judge(&facts);
    assert!(report.iter().all(|finding| finding.level == Level::Ok), "{}", report.render());
    assert!(conclusion(&report).starts_with("Nothing is wrong as far as this node can see"));
}

#[test]
fn what_is_wrong_with_the_node_itself_is_named_before_its_consequences() {
    let cases: Vec<(&str, String)> = vec![
        (
            "configuration: psk is empty",
            concluded(|facts, status| {
                facts.configuration.add(Level::Error, "configuration", "psk is empty");
                status.peers[0].phase = "waiting".into();
            }),
        ),
        (
            "disk: /var/lib/edge-agent is read-only",
            concluded(|facts, _| {
                facts.disk.as_mut().unwrap().read_only = true;
            }),
        ),
        (
            "disk: /var/lib/edge-agent has 12 KiB left",
            concluded(|facts, _| {
                facts.disk.as_mut().unwrap().free_bytes = 12 << 10;
            }),
        ),
        (
            "[controller]: the certificate of edge-1 ended. Perhaps because of this: clock: 40 d 0 h ahead of the controller's",
            concluded(|facts, _| {
                facts.clock = Some(ClockReadings { system: NOW.system + 40 * 86_400, ..NOW });
                facts.configuration.add(Level::Error, "[controller]", "the certificate of edge-1 ended");
            }),
        ),
        ("agent: no agent answers", concluded(|facts, _| facts.status = Err("no agent answers".into()))),
        (
            "controller: https://cloud:8443 is not connected, and there is no view: refused",
            concluded(|_, status| {
                let controller = status.controller.as_mut().unwrap();
                (controller.connected, controller.last_error) = (false, Some("refused".into()));
                status.view_version = None;
            }),
        ),
        (
            "view: its ranges hold the gateway",
            concluded(|_, status| {
                status.controller.as_mut().unwrap().refused_view = Some("its ranges hold the gateway".into());
            }),
        ),
        ("firewall: the table inet edge-cni is missing", concluded(|_, status| status.host.firewall = false)),
        (
            "host: FORWARD drops; do: iptables -P FORWARD ACCEPT",
            concluded(|_, status| {
                let (what, command) = ("FORWARD drops".into(), "iptables -P FORWARD ACCEPT".into());
                status.obstacles.push(Obstacle { what, command });
            }),
        ),
        ("kernel: 1 of 1 SAs are missing", concluded(|_, status| status.states[0].in_kernel = false)),
    ];
    for (expected, found) in cases {
        assert!(found.starts_with(&format!("What is wrong: {expected}")), "{expected}: {found}");
    }
}

#[test]
fn a_tunnel_that_is_not_up_is_explained_by_the_first_thing_on_its_way_that_fails() {
    use ProbeOutcome::{Answered, Closed, Silent, Unsent};
    let answered = || Answered { path_mtu: Some(1500), passed: None };
    let unsent = || Unsent("Network is unreachable".into());
    let cases = [
        ("did not accept our pre-shared key", with_probes(&[(500, answered()), (4500, answered())])),
        ("answers at UDP port 500 alone: open port 4500", with_probes(&[(500, answered()), (4500, Silent)])),
        ("nothing answers at 203.0.113.10:500 203.0.113.10:4500", with_probes(&[(500, Silent), (4500, Silent)])),
        ("no IKE daemon runs at 203.0.113.10:500", with_probes(&[(500, Closed), (4500, Closed)])),
        ("this node cannot send to 203.0.113.10:500", with_probes(&[(500, unsent()), (4500, unsent())])),
        (
            "its address is not known here",
            concluded(|_, status| {
                status.peers[1] = peer("edge-2", 2, "idle");
                status.peers[1].endpoints.clear();
            }),
        ),
        (
            "the kernel refused an SA",
            concluded(|_, status| {
                status.peers[1] = peer("edge-2", 2, "connecting");
                status.peers[1].endpoints.clear();
                status.peers[1].ike_sas = vec![ike_sa()];
                status.peers[1].last_error = Some("peer edge-2: the kernel refused an SA: no".into());
            }),
        ),
    ];
    for (expected, found) in cases {
        assert!(
            found.starts_with("What is wrong: edge-2: the tunnel is not up") && found.contains(expected),
            "{found}"
        );
    }
}

#[test]
fn what_an_error_may_follow_from_is_said_behind_it() {
    let both = concluded(|_, status| {
        let controller = status.controller.as_mut().unwrap();
        (controller.connected, controller.last_error) = (false, Some("no route to it".into()));
        status.peers[1] = peer("edge-2", 2, "waiting");
        status.peers[1].last_error = Some("the peer does not accept us".into());
    });
    assert!(both.starts_with("What is wrong: edge-2: ") && both.ends_with("no route to it"), "{both}");
}

#[test]
fn the_controllers_refusal_of_this_node_is_the_cause_and_comes_before_the_peers() {
    let found = concluded(|_, status| {
        let controller = status.controller.as_mut().unwrap();
        controller.connected = false;
        (controller.last_error, controller.refused) = (Some("this node was deregistered".into()), true);
        status.peers[1] = peer("edge-2", 2, "waiting");
        status.peers[1].last_error = Some("the peer does not accept us".into());
    });
    let refused = "What is wrong: controller: https://cloud:8443 refuses this node";
    assert!(found.starts_with(refused) && found.ends_with("this node was deregistered"), "{found}");
}

#[test]
fn a_path_that_carries_only_small_packets_is_a_warning_with_the_size() {
    let judged = |path_mtu| {
        let mut facts = healthy();
        facts.status.as_mut().unwrap().peers[1].path_mtu = Some(path_mtu);
        judge(&facts)
    };
    let found = judged(PathMtuStatus { bytes: 1200, limited: true, unanswered: false, ipv6_in_fragments: false });
    let warning = found.iter().find(|finding| finding.level == Level::Warning).unwrap();
    assert!(warning.what.contains("up to 1200 bytes") && warning.what.contains("IPv6 needs 1280"), "{}", warning.what);
    let wide = judged(PathMtuStatus { bytes: 1418, limited: false, unanswered: false, ipv6_in_fragments: false });
    assert!(wide.iter().all(|finding| finding.level == Level::Ok));
}

#[test]
fn a_tunnel_that_is_up_is_doubted_if_nothing_comes_back_or_the_kernel_lacks_it() {
    let one_way = concluded(|_, status| {
        status.peers[1].child_sas[0].received = Some(Counters { packets: 0, bytes: 0 });
    });
    assert!(
        one_way.contains("Nothing is broken") && one_way.contains("run `edge-agent diagnose` there too"),
        "{one_way}"
    );
    let stopped = |received, sent| {
        concluded(|facts, status| {
            let spi = status.peers[1].child_sas[0].inbound_spi.clone();
            let carried = [(spi, Carried { received, sent })].into();
            facts.watch = Some(Watch::Seen { carried, dropped: vec![] });
        })
    };
    assert!(stopped(0, 9).contains("while this ran 9 were sent and none came back"), "{}", stopped(0, 9));
    for answered in [stopped(0, 0), stopped(0, 2), stopped(1, 9)] {
        assert!(answered.starts_with("Nothing is wrong"), "{answered}");
    }
    let missing = concluded(|facts, status| {
        status.peers[1].child_sas[0].sent = None;
        facts.target = Some(Target::Peer("edge-2".into()));
    });
    assert!(missing.contains("the kernel lacks an SA of the CHILD_SA 0xc0000001"), "{missing}");
}

#[test]
fn drops_count_only_while_one_looks() {
    let drops = |now| {
        concluded(|facts, _| {
            facts.drops = Ok(vec![Drops { counter: "XfrmInNoPols".into(), packets: 9, now }]);
        })
    };
    assert!(drops(0).starts_with("Nothing is wrong"));
    let growing = drops(2);
    assert!(
        growing.contains("XfrmInNoPols: 9 packets dropped, 2 of them just now: they came out of a tunnel"),
        "{growing}"
    );
}

#[test]
fn the_firewalls_drops_count_only_while_one_looks_too() {
    let what = || "packets with a pod's source from the LAN".to_owned();
    let drops = |now| {
        concluded(|facts, _| {
            let dropped = vec![FirewallDrops { packets: 9, now, what: what() }];
            facts.watch = Some(Watch::Seen { carried: Default::default(), dropped });
        })
    };
    assert!(drops(0).starts_with("Nothing is wrong"));
    assert!(drops(2).contains("look at this: firewall: has dropped 9 packets, 2 of them just now: packets with"));
    let stopped = concluded(|facts, status| {
        status.dropped = vec![DroppedPackets { counter: "lan".into(), packets: 9, what: what() }];
        facts.watch = Some(Watch::Failed("nobody listens".into()));
    });
    assert!(stopped.contains("agent: it did not answer a second time: nobody listens"), "{stopped}");
}

#[test]
fn an_address_behind_a_hub_that_was_never_up_leads_to_that_hub() {
    let address = "10.96.0.10";
    let found = concluded(|facts, status| {
        status.peers[0] = peer("hub", 1, "waiting");
        status.peers[0].blocked = vec!["10.96.0.0/12".parse().unwrap(), "fd96::/112".parse().unwrap()];
        status.peers[0].last_error = Some("peer hub: no answer".into());
        status.policies[0] = policy("10.96.0.0/12", 10_100, "block", Some(0xecf0_0000));
        let target = Target::find(address, status, &[]).unwrap();
        assert_eq!(target.peer(), Some(&"hub".to_owned()), "{target:?}");
        facts.target = Some(target);
    });
    let expected = "What is wrong: hub: the tunnel was never up (waiting), so packets to its networks are dropped: peer hub: no answer";
    assert_eq!(found, expected);
    // A range that no peer has is no hub's.
    let mut status = *healthy().status.unwrap();
    status.peers[0].blocked = vec!["10.96.0.0/12".parse().unwrap()];
    assert!(matches!(Target::find("10.233.9.9", &status, &[]), Ok(Target::Blocked { .. })));
}

#[test]
fn an_address_leads_to_the_peer_of_the_strongest_policy() {
    let status = *healthy().status.unwrap();
    let found = |text: &str| Target::find(text, &status, &[]);
    assert_eq!(found("edge-2"), Ok(Target::Peer("edge-2".into())));
    let edge_2 = found("10.233.2.5").unwrap();
    assert_eq!(edge_2.peer(), Some(&"edge-2".to_owned()), "although the guard's range holds it too");
    assert_eq!(found("10.96.0.10").unwrap().peer(), Some(&"hub".to_owned()));
    assert_eq!(found("10.233.1.3"), Ok(Target::Local("10.233.1.3".parse().unwrap())));
    assert!(matches!(found("10.233.9.9"), Ok(Target::Blocked { .. })));
    assert_eq!(found("8.8.8.8"), Ok(Target::Outside("8.8.8.8".parse().unwrap())));
    assert!(found("edge-9").unwrap_err().contains("neither a peer nor an address"));
    let blocked = concluded(|facts, _| facts.target = Some(found("10.233.9.9").unwrap()));
    assert!(
        blocked.contains("10.233.9.9 is in 10.233.0.0/16, and no member of this node's communities has it"),
        "{blocked}"
    );
}

/// Returns the finding about NATs, if the hubs `hub` and `hub-2` see these addresses of this node.
fn nat(mapped: &[&str], phase_of_edge_2: &str) -> (Level, String) {
    let mut facts = healthy();
    let status = facts.status.as_mut().unwrap();
    status.peers.push(peer("hub-2", 3, "up"));
    status.peers[1].phase = phase_of_edge_2.into();
    for (index, mapped) in [0, 2].into_iter().zip(mapped) {
        let local = "192.168.1.10:4500".parse().unwrap();
        status.peers[index].mapping = Some(NatMapping { local, mapped: mapped.parse().unwrap() });
    }
    let report = judge(&facts);
    let finding = report.iter().find(|finding| finding.section == "NAT").unwrap();
    (finding.level, finding.what.clone())
}

#[test]
fn the_kind_of_nat_is_a_finding_and_a_warning_only_if_a_tunnel_may_fail_because_of_it() {
    let (own, one, other) = ("192.168.1.10:4500", "203.0.113.7:61000", "203.0.113.7:61001");
    for (mapped, phase, level, words) in [
        (&[][..], "up", Level::Ok, "not known: no hub has said"),
        (&[own], "up", Level::Ok, "none in front of 192.168.1.10:4500, as hub says"),
        (&[one], "waiting", Level::Ok, "becomes 203.0.113.7:61000 towards hub; a second hub"),
        (&[one, one], "waiting", Level::Ok, "endpoint-independent: 192.168.1.10:4500 becomes 203.0.113.7:61000"),
        (&[own, one], "up", Level::Ok, "on some paths"),
        (&[one, other], "up", Level::Ok, "203.0.113.7:61000 towards hub, 203.0.113.7:61001 towards hub-2"),
        (&[one, other], "on-demand", Level::Ok, "address-dependent"),
        (&[one, other], "waiting", Level::Warning, "only by a hub's relay"),
    ] {
        let (found, what) = nat(mapped, phase);
        assert!(found == level && what.contains(words), "{mapped:?} {phase}: {found:?} {what}");
    }
}
