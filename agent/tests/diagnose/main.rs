//! Tests that `edge-agent diagnose` names the fault between two real agents in separate namespaces
//! that a veth pair connects.
//!
//! - `node`: the two nodes.
//! - `broken_set_ups`: further faults, and where those are tested that need a controller.

mod broken_set_ups;
mod node;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use edge_ike::wire::ExchangeType;
use etherparse::{SlicedPacket, TransportSlice};
use interop_tests::netns::{KilledOnDrop, is_root_or_skips};
use interop_tests::wait;
use node::{HANG, Node, SECRET, joined};
use pcap_file::pcap::PcapReader;

#[test]
fn what_keeps_two_agents_apart_is_named() {
    if !is_root_or_skips() {
        return;
    }
    let (earth, moon) = joined();
    earth.configure("192.0.2.2", SECRET, "");
    moon.configure("192.0.2.1", "another", "");
    let (conclusion, code) = earth.conclusion(&[]);
    assert!(
        conclusion.starts_with("What is wrong: agent: ") && conclusion.contains("no agent answers"),
        "{conclusion}"
    );
    assert_eq!(code, Some(1));

    let _agent = earth.start();
    earth.concludes("no IKE daemon runs at 192.0.2.2:500");
    let other = moon.start();
    earth.concludes("moon: the tunnel is not up");
    earth.concludes("pre-shared key");
    moon.nft("table inet t { chain c { type filter hook input priority 0; udp dport 4500 drop; }; }");
    earth.concludes("192.0.2.2 answers at UDP port 500 alone: open port 4500 too");
    moon.nft("table inet t { chain c { udp dport 500 drop; }; }");
    earth.concludes("nothing answers at 192.0.2.2:500 192.0.2.2:4500: UDP ports 500 and 4500 must be open");
    earth.ip("link set cable down");
    earth.concludes("this host has no route to any peer, such as moon at 192.0.2.2");
    earth.ip("link set cable up");
    earth.concludes("nothing answers at 192.0.2.2:500");
    drop(other);

    let (unknown, code) = earth.conclusion(&["sun"]);
    assert_eq!((unknown.as_str(), code), ("", Some(1)), "neither a peer nor an address");
    let (outside, code) = earth.conclusion(&["8.8.8.8"]);
    assert!(outside.contains("8.8.8.8 is in no network of the cluster"), "{outside}");
    assert_eq!(code, Some(0));
    let json = earth.agent(&["diagnose", "10.2.0.9", "--json"]).output().unwrap().stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert!(json["conclusion"].as_str().unwrap().starts_with("What is wrong: moon: "), "{json}");
    assert!(!json.to_string().contains("horse"), "no secret");
}

/// Waits until the diagnosis of the node's peer `moon` has all of these lines, or parts of them.
fn says_of_moon(earth: &Node, expected: &[&str]) {
    let found = wait::until(&expected.join(", "), HANG, || {
        let output = earth.agent(&["diagnose", "moon"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        anyhow::ensure!(expected.iter().all(|words| text.contains(words)), "{text}");
        Ok(())
    });
    found.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_route_to_a_peer_and_the_size_of_packets_that_it_carries_are_shown() {
    if !is_root_or_skips() {
        return;
    }
    for (here, there, at) in
        [("192.0.2.1", "192.0.2.2", "192.0.2.2:4500"), ("2001:db8::1", "2001:db8::2", "[2001:db8::2]:4500")]
    {
        let (earth, moon) = joined();
        earth.configure(there, SECRET, "");
        moon.configure(here, SECRET, "");
        let _agents = (earth.start(), moon.start());
        let route = format!("packets to {there} leave by cable, with the source {here}");
        let answers = format!("an IKE daemon answers at {at}, path MTU 1500");
        says_of_moon(&earth, &[&route, &format!("{answers}, packets of 1500 bytes pass")]);
        // Large packets vanish without an ICMP error.
        moon.nft(
            "table inet t { chain c { type filter hook prerouting priority -500; udp dport 4500 meta length > 1399 drop; }; }",
        );
        let lost = format!("packets of 1500 bytes to {at} get lost although the kernel's path MTU is 1500");
        says_of_moon(&earth, &[&format!("{answers}, packets of 1280 bytes pass"), &lost]);
        // A router's address on the way.
        let hop = if here.contains(':') { "2001:db8::9" } else { "192.0.2.9" };
        earth.ip(&format!("route add {there} via {hop} dev cable"));
        says_of_moon(&earth, &[&format!("packets to {there} leave by cable through the gateway {hop}")]);
        earth.ip("link set cable down");
        says_of_moon(&earth, &[&format!("there is no route to {there}: ")]);
    }
}

#[test]
fn a_ping_that_cannot_be_sent_says_why() {
    if !is_root_or_skips() {
        return;
    }
    let (earth, _moon) = joined();
    earth.configure("192.0.2.2", SECRET, "");
    let refused = |words: &[&str]| {
        let output = earth.agent(&[&["ping"], words].concat()).output().unwrap();
        assert!(output.stdout.is_empty(), "{output:?}");
        (String::from_utf8(output.stderr).unwrap(), output.status.code())
    };
    let (why, code) = refused(&["moon"]);
    assert!(why.contains("no agent answers") && code == Some(1), "{why}");
    assert_eq!(why.matches("os error").count(), 1, "each cause once: {why}");
    let _agent = earth.start();
    earth.concludes("no IKE daemon runs at 192.0.2.2:500");
    for (about, expected) in [
        ("moon", "moon: there is no tunnel"),
        ("10.2.0.9", "moon: there is no tunnel"),
        ("192.0.2.1", "an address of this node"),
        ("8.8.8.8", "8.8.8.8 is in no network to which a tunnel of this node leads"),
        ("fd99::1", "fd99::1 is in no network"),
        ("sun", "neither a peer nor an address"),
    ] {
        let (why, code) = refused(&[about]);
        assert!(why.contains(expected) && code == Some(1), "{about}: {why}");
    }
    for wrong in
        [["--count", "0"], ["--count", "10001"], ["--interval", "9ms"], ["--interval", "1"], ["--timeout", "x"]]
    {
        let (why, code) = refused(&[&["moon"], wrong.as_slice()].concat());
        assert_eq!(code, Some(2), "{wrong:?}: {why}");
    }
}

/// Returns the IKE message in a packet, which must not be encrypted.
fn message(packet: &[u8]) -> edge_ike::wire::Message {
    let Some(TransportSlice::Udp(udp)) = SlicedPacket::from_ip(packet).unwrap().transport else { panic!("no UDP") };
    let marked = [udp.source_port(), udp.destination_port()].contains(&4500);
    let message = if marked { udp.payload().strip_prefix(&[0; 4]).expect("a marker") } else { udp.payload() };
    edge_ike::wire::Message::decode(message).expect("a message in clear")
}

#[test]
fn a_capture_has_both_directions_in_clear_and_no_secret() {
    if is_root_or_skips() {
        captures_in_clear("192.0.2.1", "192.0.2.2", "192.0.2.2:500");
    }
}

#[test]
fn a_capture_over_ipv6_has_the_same() {
    if is_root_or_skips() {
        captures_in_clear("2001:db8::1", "2001:db8::2", "[2001:db8::2]:500");
    }
}

fn captures_in_clear(here: &str, there: &str, closed: &str) {
    let (earth, moon) = joined();
    earth.configure(there, SECRET, "");
    moon.configure(here, SECRET, "");
    let _earth = earth.start();
    earth.concludes(&format!("no IKE daemon runs at {closed}"));
    let output = earth.agent(&["capture", "sun"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no peer \"sun\""), "{output:?}");
    let taken = earth.directory.path().join("agent.toml");
    let output = earth.agent(&["capture", "moon", "--write", taken.to_str().unwrap()]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("agent.toml: cannot be made"), "{output:?}");

    let mut capture = KilledOnDrop(earth.agent(&["capture", "moon"]).stdout(Stdio::piped()).spawn().unwrap());
    // The file header is written when the capture has begun.
    let mut reader = PcapReader::new(capture.0.stdout.take().unwrap()).unwrap();
    let _moon = moon.start();
    let (mut seen, mut octets) = (BTreeSet::new(), Vec::new());
    // Waits for the requests and responses of IKE_SA_INIT and IKE_AUTH.
    while seen.len() < 4 {
        let packet = reader.next_packet().expect("the capture goes on").unwrap();
        octets.extend_from_slice(&packet.data);
        let message = message(&packet.data);
        let header = message.header;
        if header.exchange == ExchangeType::IkeAuth && !header.response {
            assert!(message.payloads.authentication().is_ok(), "{message:?}");
        }
        let begins = header.exchange == ExchangeType::IkeSaInit;
        if begins || header.exchange == ExchangeType::IkeAuth {
            seen.insert((begins, header.response));
        }
    }
    let holds = |secret: &[u8]| octets.windows(secret.len()).any(|part| part == secret);
    assert!(holds(b"earth.example") && !holds(SECRET.as_bytes()));

    // A second capture replaces the first one, which reports this and ends.
    let mut second = KilledOnDrop(earth.agent(&["capture", "moon"]).stdout(Stdio::piped()).spawn().unwrap());
    let second_reader = PcapReader::new(second.0.stdout.take().unwrap()).unwrap();
    assert_eq!(capture.0.wait().unwrap().code(), Some(1));
    // A capture ends without an error if its reader closes the output.
    drop(second_reader);
    assert_eq!(second.0.wait().unwrap().code(), Some(0));
    earth.ends_captures(1);
}

#[test]
fn a_capture_ends_with_its_process_its_time_a_full_disk_and_the_agent() {
    if !is_root_or_skips() {
        return;
    }
    let (earth, moon) = joined();
    earth.configure("192.0.2.2", SECRET, "");
    moon.configure("192.0.2.1", "another", "");
    let agent = earth.start();
    earth.concludes("no IKE daemon runs at 192.0.2.2:500");
    let mut killed = earth.agent(&["capture", "moon"]).stdout(Stdio::piped()).spawn().unwrap();
    let reader = PcapReader::new(killed.stdout.take().unwrap()).unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    earth.ends_captures(1);
    drop(reader);
    // While the output of a capture is not read, the agent continues to copy messages, and serves
    // another command.
    let mut unread = KilledOnDrop(earth.agent(&["capture", "moon"]).stdout(Stdio::piped()).spawn().unwrap());
    let mut reader = PcapReader::new(unread.0.stdout.take().unwrap()).unwrap();
    let _moon = moon.start();
    earth.concludes("moon: the tunnel is not up");
    assert!(reader.next_packet().expect("a message").is_ok());
    drop(unread);
    earth.ends_captures(2);

    let file = earth.directory.path().join("moon.pcap");
    let output =
        earth.agent(&["capture", "moon", "--duration", "100ms", "--write", file.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("the capture ends after 100ms"), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    PcapReader::new(fs::File::open(&file).unwrap()).unwrap();

    let refused = |command: &mut Command, why: &str| {
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(why) && output.status.code() == Some(1), "{said}");
        assert_eq!(said.matches("os error").count(), 1, "{said}");
    };
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let no_room = "the capture ends: it cannot be written: No space left on device";
    refused(earth.agent(&["capture", "moon"]).stdout(full), no_room);
    // On a disk of 4096 octets, all packets in the file are complete.
    let small = earth.directory.path().join("small");
    fs::create_dir(&small).unwrap();
    let script =
        "mount -t tmpfs -o size=4k none \"$1\"; shift; \"$@\"; status=$?; cat \"$disk/moon.pcap\"; exit $status";
    let mut mounted = earth.namespace.command("unshare");
    mounted.env("disk", &small).args(["--mount", "sh", "-c", script, "sh"]).arg(&small);
    let capture = earth.agent(&["capture", "moon", "--write", small.join("moon.pcap").to_str().unwrap()]);
    mounted.arg(env!("CARGO_BIN_EXE_edge-agent")).args(capture.get_args().skip_while(|word| *word != "capture"));
    let output = mounted.output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains(no_room), "{output:?}");
    let mut reader = PcapReader::new(output.stdout.as_slice()).unwrap();
    let mut packets = 0;
    while let Some(packet) = reader.next_packet() {
        message(&packet.expect("a whole packet").data);
        packets += 1;
    }
    assert!(packets > 1, "{packets}");

    // The capture has begun when the file header has been written.
    let mut last = earth.agent(&["capture", "moon"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _reader = PcapReader::new(last.stdout.take().unwrap()).unwrap();
    drop(agent);
    let output = last.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the agent has stopped, so the capture has ended"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn what_two_agents_do_not_agree_on_is_named() {
    if !is_root_or_skips() {
        return;
    }
    for (more, expected) in [
        ("ike_proposals = [\"chacha20poly1305-prfsha256-x25519\"]\n", "proposal"),
        ("esp_proposals = [\"chacha20poly1305\"]\n", "proposal"),
    ] {
        let (earth, moon) = joined();
        earth.configure("192.0.2.2", SECRET, more);
        moon.configure("192.0.2.1", SECRET, &more.replace("chacha20poly1305", "aes256gcm16"));
        let _agents = (earth.start(), moon.start());
        earth.concludes(expected);
    }
}
