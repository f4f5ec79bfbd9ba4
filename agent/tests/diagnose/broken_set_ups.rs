//! Broken set-ups, each of which the last line of `edge-agent diagnose` names. `main` has eight
//! more: no agent here, none at the peer, another pre-shared key, UDP 4500 dropped, both ports
//! dropped, a cable without a link, other proposals for IKE, other proposals for ESP.
//!
//! Those that need a controller, a view or ESP are tested elsewhere:
//! - the policy of FORWARD drops (Docker, ufw), by nftables or iptables-legacy; another table's
//!   chain drops or rejects (firewalld); unreadable rules; a reverse path check: `obstacles` in
//!   `tests/firewall`.
//! - another community, a node that was deregistered, no controller: the lab's `demo`.
//! - a hub that was never up, an outdated view, a tunnel through which nothing comes back, SAs that
//!   the kernel lacks, packets that XFRM drops: unit tests of `diagnose`.

use std::net::UdpSocket;

use interop_tests::netns::{enter, is_root_or_skips};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};

use super::node::{Node, SECRET, joined};

/// Years in which a certificate is valid.
type Years = (i32, i32);

const VALID: Years = (2020, 2120);

/// A CA that issues certificates to the nodes.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self(Issuer::new(parameters, key), pem)
    }

    /// Replaces the node's pre-shared key by a certificate of this authority. The node trusts
    /// `anchor`.
    fn certify(&self, node: &Node, years: Years, anchor: &Self) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut parameters = CertificateParams::new(vec![format!("{}.example", node.name)]).unwrap();
        (parameters.not_before, parameters.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
        node.write("own.pem", &parameters.signed_by(&key, &self.0).unwrap().pem());
        node.write("own.key", &key.serialize_pem());
        node.write("ca.pem", &anchor.1);
        let keys = "certificate = \"own.pem\"\nkey = \"own.key\"\ntrust_anchors = \"ca.pem\"";
        node.reconfigure(&format!("psk = \"{SECRET}\""), keys);
    }
}

/// Makes two nodes that would reach each other, and changes one of them.
fn nodes(change: impl FnOnce(&Node, &Node)) -> (Node, Node) {
    let (earth, moon) = joined();
    earth.configure("192.0.2.2", SECRET, "");
    moon.configure("192.0.2.1", SECRET, "");
    change(&earth, &moon);
    (earth, moon)
}

/// Starts both agents, and waits until the diagnosis at the first one ends with these words.
fn concludes((earth, moon): (Node, Node), expected: &[&str]) {
    let _agents = (earth.start(), moon.start());
    earth.concludes_with(expected);
}

/// Makes two nodes with certificates: the first one's is valid in these years, the second one's has
/// another issuer if `other_issuer` says so.
fn certified(years: Years, other_issuer: bool) -> (Node, Node) {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    nodes(|earth, moon| {
        ours.certify(earth, years, &ours);
        if other_issuer { &other } else { &ours }.certify(moon, VALID, &ours);
    })
}

#[test]
fn an_expired_certificate_is_named() {
    if is_root_or_skips() {
        concludes(certified((2000, 2001), false), &["our certificate", "ended at Jan  1", "2001"]);
    }
}

#[test]
fn a_certificate_of_the_future_is_named_because_a_clock_may_be_wrong() {
    if is_root_or_skips() {
        concludes(certified((2120, 2130), false), &["our certificate", "2120", "clock"]);
    }
}

#[test]
fn a_certificate_of_another_authority_is_named() {
    if is_root_or_skips() {
        concludes(certified(VALID, true), &["moon: the tunnel is not up", "certificate"]);
    }
}

#[test]
fn another_identity_of_the_peer_is_named() {
    if is_root_or_skips() {
        let change = |moon: &Node| moon.reconfigure("local_id = \"moon.example\"", "local_id = \"mars.example\"");
        concludes(nodes(|_, moon| change(moon)), &["moon: the tunnel is not up", "the identities on both sides"]);
    }
}

#[test]
fn a_file_that_is_missing_is_named() {
    if !is_root_or_skips() {
        return;
    }
    let (earth, _moon) = certified(VALID, false);
    std::fs::remove_file(earth.path("ca.pem")).unwrap();
    let output = earth.agent(&["diagnose"]).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(said.contains("ca.pem") && !output.status.success(), "{said}");
}

#[test]
fn a_disk_that_is_full_and_one_that_is_read_only_are_named() {
    if !is_root_or_skips() {
        return;
    }
    let (earth, _moon) = nodes(|_, _| {});
    let state = earth.path("state");
    std::fs::create_dir(&state).unwrap();
    for (options, expected) in [("size=16k", "has 16 KiB left"), ("size=16k,ro", "is read-only")] {
        let script = "mount -t tmpfs -o \"$1\" none \"$2\"; shift 2; exec \"$@\"";
        let mut command = earth.namespace.command("unshare");
        command.args(["--mount", "sh", "-c", script, "sh", options]).arg(&state);
        command.args([env!("CARGO_BIN_EXE_edge-agent"), "diagnose", "--config"]).arg(earth.path("agent.toml"));
        let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let last = output.lines().last().unwrap_or_default();
        assert!(last.starts_with("What is wrong: disk: ") && last.contains(expected), "{options}: {output}");
    }
}

#[test]
fn another_program_that_holds_a_port_of_the_agent_is_named() {
    if !is_root_or_skips() {
        return;
    }
    let (earth, _moon) = nodes(|_, _| {});
    let namespace = earth.namespace.path();
    let bound = std::thread::spawn(move || {
        enter(namespace.as_ref());
        UdpSocket::bind("0.0.0.0:4500").unwrap()
    });
    let bound = bound.join().unwrap();
    let (conclusion, code) = earth.conclusion(&[]);
    let holder = format!("(process {}) holds UDP port 4500, so the agent cannot start", std::process::id());
    assert!(conclusion.starts_with("What is wrong: ports: diagnose-") && conclusion.contains(&holder), "{conclusion}");
    assert_eq!(code, Some(1));
    drop(bound);
    // A process that another test starts has a copy of the socket until it runs its program.
    earth.concludes("What is wrong: agent: ");
}

#[test]
fn a_name_that_does_not_resolve_is_named() {
    if !is_root_or_skips() {
        return;
    }
    let (earth, _moon) = nodes(|earth, _| earth.reconfigure("\"192.0.2.2\"", "\"moon.invalid\""));
    let _agent = earth.start();
    earth.concludes_with(&["moon: the tunnel is not up", "\"moon.invalid\" cannot be resolved"]);
}

#[test]
fn a_peer_at_an_ipv6_address_while_ipv6_is_off_is_named() {
    if !is_root_or_skips() {
        return;
    }
    let change = |earth: &Node, moon: &Node| {
        earth.reconfigure("\"192.0.2.2\"", "\"2001:db8::2\"");
        moon.reconfigure("\"192.0.2.1\"", "\"2001:db8::1\"");
        let off = earth.namespace.command("sysctl").args(["-q", "net.ipv6.conf.all.disable_ipv6=1"]).status();
        assert!(off.unwrap().success());
    };
    concludes(nodes(change), &["no route to any peer", "2001:db8::2"]);
}

#[test]
fn a_path_that_takes_small_packets_only_is_named() {
    if !is_root_or_skips() {
        return;
    }
    let change = |earth: &Node, moon: &Node| {
        earth.ip("route replace 192.0.2.2/32 dev cable mtu lock 1300");
        moon.reconfigure(SECRET, "another key of a sufficient length");
    };
    concludes(nodes(change), &["pre-shared key", "Perhaps because of this", "takes only 1300 bytes"]);
}

#[test]
fn networks_that_overlap_are_named() {
    if is_root_or_skips() {
        let change = |earth: &Node| {
            earth.reconfigure("remote_subnets = [\"10.2.0.0/24\"]", "remote_subnets = [\"10.1.0.0/16\"]")
        };
        concludes(nodes(|earth, _| change(earth)), &["10.1.0.0/24", "10.1.0.0/16"]);
    }
}

#[test]
fn a_join_token_that_was_not_copied_whole_is_named() {
    if !is_root_or_skips() {
        return;
    }
    let (earth, _moon) = nodes(|_, _| {});
    earth.write("token", "cni1.eyJ");
    earth.write(
        "agent.toml",
        "name = \"earth\"\nstate_dir = \"state\"\nrun_dir = \"run\"\nhold_sockets = false\n[controller]\nurls = [\"https://192.0.2.2:8443\"]\ntoken_file = \"token\"\n",
    );
    let (conclusion, code) = earth.conclusion(&[]);
    assert!(conclusion.contains("a join token begins with") && code == Some(1), "{conclusion}");
}
