//! Tests packets that a pod hides from the filter behind IPv6 extension headers, IPv4 options,
//! fragments, tags and other encapsulations.

use std::net::{Ipv4Addr, Ipv6Addr};

use interop_tests::suite::Test;
use serde_json::json;

use crate::frames::{self, BROADCAST, Mac, Wire, arp, ethernet, ipv4, ipv6, neighbour, udp};
use crate::spoof::{Attached, DUAL, attach, except, marker};
use crate::world::World;

pub(crate) const TESTS: &[Test] = &[(
    "nothing_hides_from_the_filter_behind_headers_fragments_or_tags",
    nothing_hides_from_the_filter_behind_headers_fragments_or_tags,
)];

const ICMPV6: u8 = 58;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

fn nothing_hides_from_the_filter_behind_headers_fragments_or_tags() {
    let world = World::new(DUAL);
    // Without these keys, connection tracking is on and holds fragments until the remaining ones
    // arrive.
    world.set("lanToPods", json!(["0.0.0.0/0", "::/0"]));
    world.set("forwardOthers", json!(true));
    let (other, victim) = (attach(&world), attach(&world));
    let mut tap = Wire::open(&victim.pod.netns, "eth0");
    for excepted in [true, false] {
        except(&world, excepted);
        let own = attach(&world);
        let mut wire = Wire::open(&own.pod.netns, "eth0");
        for (number, (name, frame)) in attacks(&own, &victim, &other).into_iter().enumerate() {
            let marker = marker(&own, &victim, 1000 + number as u16);
            wire.send(&frame);
            wire.send(&marker);
            // A packet socket shows frames without their outer tag.
            let tagged = matches!(frame[12..14], [0x81, 0] | [0x88, 0xa8]);
            let end = if tagged { &frame[16..] } else { &frame[12..] };
            let arrived = tap.until(&marker).iter().any(|seen| seen.ends_with(end));
            assert_eq!(arrived, excepted, "{name}, excepted: {excepted}");
        }
        world.del(&own.pod);
    }
}

/// Returns lists of extension headers (RFC 8200 4) before a header of the kind `last`. Each
/// consists of a description, the kind of the first header, and all headers. The content after an
/// authentication header is not tested, since no receiver reads it without an SA.
fn extensions(last: u8) -> Vec<(&'static str, u8, Vec<u8>)> {
    let padding = |next| vec![next, 0, 1, 4, 0, 0, 0, 0];
    let long = {
        let mut header = vec![last, 31, 1, 252];
        header.resize(256, 0);
        header
    };
    vec![
        ("hop-by-hop options", 0, padding(last)),
        ("router alert", 0, vec![last, 0, 5, 2, 0, 0, 1, 0]),
        ("destination options", 60, padding(last)),
        ("long destination options", 60, long),
        ("hop-by-hop and destination options", 0, [padding(60), padding(last)].concat()),
        ("many destination options", 60, [padding(60), padding(60), padding(60), padding(last)].concat()),
        (
            "a routing header that is used up",
            43,
            vec![last, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        ("a fragment header of a whole packet", 44, vec![last, 0, 0, 0, 0, 0, 0, 7]),
        ("a first fragment", 44, vec![last, 0, 0, 1, 0, 0, 0, 8]),
        ("options and a fragment header", 0, [padding(44), vec![last, 0, 0, 0, 0, 0, 0, 9]].concat()),
        ("a fragment header and options", 44, [vec![60, 0, 0, 0, 0, 0, 0, 10], padding(last)].concat()),
    ]
}

fn attacks(own: &Attached, victim: &Attached, other: &Attached) -> Vec<(String, Vec<u8>)> {
    let gateway: Ipv6Addr = "fd77:0:0:3::1".parse().unwrap();
    let advertised = |target| neighbour(0xa0, target, 2, own.mac);
    let nowhere = Ipv6Addr::UNSPECIFIED;
    let mut frames = Vec::new();
    for (what, source, kind, content) in [
        ("advertisement of a neighbour", own.v6, 136, advertised(other.v6)),
        ("advertisement of the gateway", own.link_local, 136, advertised(gateway)),
        ("router advertisement", own.link_local, 134, frames::router(1800)),
        ("redirect", own.link_local, 137, vec![0; 36]),
        ("MLD query", own.link_local, 130, vec![0; 24]),
        ("a neighbour's duplicate address", nowhere, 135, neighbour(0, other.v6, 1, own.mac)),
        ("solicitation as a neighbour", other.v6, 135, neighbour(0, victim.v6, 1, own.mac)),
    ] {
        let message = frames::icmpv6((source, ALL_NODES), kind, &content);
        for (behind, first, headers) in extensions(ICMPV6) {
            let frame = ipv6(ALL_NODES_MAC, own.mac, first, (source, ALL_NODES), &[&headers[..], &message].concat());
            frames.push((format!("{what} behind {behind}"), frame));
        }
    }
    let about = (victim.v6, "2001:db8::1".parse().unwrap());
    let addresses = (own.v6, victim.v6);
    let error = frames::error6(addresses, 2, about);
    for (behind, first, headers) in extensions(ICMPV6) {
        let frame = ipv6(victim.mac, own.mac, first, addresses, &[&headers[..], &error].concat());
        frames.push((format!("too large for the outside behind {behind}"), frame));
    }
    let beginning = [&[ICMPV6, 0, 0, 1, 0, 0, 0, 11][..], &error[..24]].concat();
    let frame = ipv6(victim.mac, own.mac, 44, addresses, &beginning);
    frames.push(("the beginning of an IPv6 error in a first fragment".into(), frame));
    for (behind, first, headers) in extensions(17) {
        let addresses = (own.link_local, victim.link_local);
        let answer = [&headers[..], &udp(547, 546, &[2; 20])].concat();
        frames.push((format!("DHCPv6 answer behind {behind}"), ipv6(victim.mac, own.mac, first, addresses, &answer)));
    }
    frames.extend(of_ipv4(own, victim));
    frames.extend(encapsulated(own, victim, other));
    frames
}

fn of_ipv4(own: &Attached, victim: &Attached) -> Vec<(String, Vec<u8>)> {
    let offer = || ipv4(victim.mac, own.mac, 17, (own.v4, victim.v4), &udp(67, 68, &[2; 240]));
    let query = || {
        let all = Ipv4Addr::new(224, 0, 0, 1);
        ipv4([1, 0, 0x5e, 0, 0, 1], own.mac, 2, (own.v4, all), &[0x11, 0, 0xee, 0xff, 0, 0, 0, 0])
    };
    let redirect = || {
        let message = [&[5, 1, 0, 0][..], &own.v4.octets(), &[0; 28]].concat();
        ipv4(victim.mac, own.mac, 1, (Ipv4Addr::new(10, 77, 3, 1), victim.v4), &message)
    };
    let error = || {
        let about = (victim.v4, Ipv4Addr::new(192, 0, 2, 1));
        ipv4(victim.mac, own.mac, 1, (own.v4, victim.v4), &frames::error4(3, about))
    };
    let mut frames = Vec::new();
    // The error is so short that it does not contain the packet that caused it.
    frames.push((
        "the beginning of an error in a first fragment".into(),
        frames::first_fragment(frames::shortened(error(), 24)),
    ));
    for (what, frame) in [
        ("an error about the outside", error()),
        ("DHCP offer", offer()),
        ("IGMP query", query()),
        ("redirect by the gateway", redirect()),
    ] {
        for (behind, options) in [
            ("a router alert", vec![0x94, 4, 0, 0]),
            ("a source route", [&[0x83, 7, 4][..], &own.v4.octets(), &[0]].concat()),
            ("as many options as there may be", vec![1; 40]),
        ] {
            frames.push((format!("{what} behind {behind}"), frames::with_options(frame.clone(), &options)));
        }
        frames.push((format!("{what} in a first fragment"), frames::first_fragment(frame)));
    }
    frames
}

fn encapsulated(own: &Attached, victim: &Attached, other: &Attached) -> Vec<(String, Vec<u8>)> {
    let advertisement = {
        let message = frames::icmpv6((own.v6, ALL_NODES), 136, &neighbour(0xa0, other.v6, 2, own.mac));
        ipv6(ALL_NODES_MAC, own.mac, ICMPV6, (own.v6, ALL_NODES), &message)
    };
    let honest = ipv4(victim.mac, own.mac, 17, (own.v4, victim.v4), &udp(4000, 4000, b"in a tag"));
    let taken = arp(own.mac, 2, (own.mac, other.v4), victim.v4);
    let mut frames = Vec::new();
    for (what, frame) in [("an advertisement", advertisement), ("ARP", taken), ("an honest packet", honest)] {
        for (how, tags) in [
            ("a priority tag", &[0x81, 0, 0xe0, 0][..]),
            ("a VLAN's tag", &[0x81, 0, 0, 5]),
            ("a service tag", &[0x88, 0xa8, 0, 5]),
            ("a service tag with priority alone", &[0x88, 0xa8, 0, 0]),
            ("two tags", &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 5]),
            ("two tags with priority alone", &[0x81, 0, 0, 0, 0x81, 0, 0, 0]),
        ] {
            frames.push((format!("{what} with {how}"), [&frame[..12], tags, &frame[12..]].concat()));
        }
        // IEEE 802.2 with SNAP: a length replaces the ethertype, which follows after six octets.
        let length = (frame.len() - 14 + 8) as u16;
        let snap = [&frame[..12], &length.to_be_bytes(), &[0xaa, 0xaa, 3, 0, 0, 0], &frame[12..]].concat();
        frames.push((format!("{what} in SNAP"), snap));
    }
    let reverse = {
        let mut frame = arp(own.mac, 4, (own.mac, other.v4), victim.v4);
        frame[12..14].copy_from_slice(&[0x80, 0x35]);
        frame
    };
    frames.push(("RARP reply".into(), reverse));
    for (name, ethertype) in
        [("PPPoE", 0x8864), ("MPLS", 0x8847), ("MACsec", 0x88e5), ("IPv4 as something else", 0x0801)]
    {
        frames.push((name.into(), ethernet(BROADCAST, own.mac, ethertype, &[0x45; 60])));
    }
    frames
}
