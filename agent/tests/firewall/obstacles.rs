//! Tests the handling of rules of other programs that drop pods' packets.

use edge_agent::host::obstacles::{self, Obstacle, PodRequirements};

use super::Test;
use super::world::{BOTH, World};

pub(crate) const TESTS: &[Test] = &[
    ("where_forward_drops_by_policy_accept_rules_are_added_kept_and_taken_away", forward_drops),
    ("other_chains_that_drop_are_named_with_the_command_that_helps", named),
    ("rules_of_the_older_iptables_that_cannot_be_read_are_named", unreadable),
    ("a_reverse_path_check_of_a_firewall_is_named", reverse_path),
];

fn needs(accept: bool) -> PodRequirements {
    PodRequirements {
        bridge: "ecni0".into(),
        ranges: vec!["10.77.0.0/16".parse().unwrap(), "fd77::/64".parse().unwrap()],
        elsewhere: vec!["10.244.0.0/16".parse().unwrap()],
        accept,
    }
}

fn look(world: &World, accept: bool) -> Vec<Obstacle> {
    let found = world.on("edge", move || obstacles::check(&needs(accept)));
    // Obstacles that depend on the kernel of the test are ignored.
    found.into_iter().filter(|obstacle| !obstacle.what.contains("bridge-nf-call")).collect()
}

fn forward_drops() {
    for programs in [["iptables-nft", "ip6tables-nft"], ["iptables-legacy", "ip6tables-legacy"]] {
        let world = World::new();
        world.serve("far");
        world.apply(&World::edge());
        for program in programs {
            world.sh("edge", &format!("{program} -P FORWARD DROP && {program} -A FORWARD -d 198.51.100.1 -j ACCEPT || {program} -A FORWARD -d 2001:db8::1 -j ACCEPT"));
        }
        for family in BOTH {
            world.cannot_fetch("pod", family.far, 80);
        }
        let said = look(&world, false);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].command.contains("FORWARD -s "), "{said:?}");
        for family in BOTH {
            world.cannot_fetch("pod", family.far, 80);
        }
        assert_eq!(look(&world, true), [], "it is repaired");
        for family in BOTH {
            assert_eq!(world.fetch("pod", family.far, 80).as_deref(), Some(family.pod));
        }
        let rules = |world: &World| programs.map(|program| world.sh("edge", &format!("{program} -S FORWARD"))).concat();
        let before = rules(&world);
        assert_eq!((look(&world, true), rules(&world)), (vec![], before), "once");
        // When the range changes, the rules for the former range are removed.
        let other = PodRequirements { ranges: vec!["10.78.0.0/16".parse().unwrap()], ..needs(true) };
        world.on("edge", move || obstacles::check(&other));
        assert!(!rules(&world).contains("10.77.") && rules(&world).contains("10.78.0.0/16"), "{}", rules(&world));
        world.on("edge", obstacles::remove_accepts).unwrap();
        assert!(!rules(&world).contains("edge-cni") && rules(&world).contains("198.51.100.1"), "{}", rules(&world));
    }
}

fn named() {
    let world = World::new();
    world.serve("far");
    world.apply(&World::edge());
    world.sh("edge", "nft 'add table inet filter; add chain inet filter forward { type filter hook forward priority filter; policy drop; }'");
    world.cannot_fetch("pod", "10.77.2.2", 80);
    let said = look(&world, true);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].what.contains("inet filter forward"), "{said:?}");
    world.sh("edge", &said[0].command);
    for family in BOTH {
        assert!(world.fetch("pod", family.far, 80).is_some(), "the command helps");
    }
    assert_eq!(look(&world, true), []);
    // The last rule of the chain rejects all packets, as in firewalld.
    world.sh(
        "edge",
        "nft 'delete table inet filter; add table inet firewalld; add chain inet firewalld filter_FORWARD { type filter hook forward priority filter + 10; }; \
         add rule inet firewalld filter_FORWARD ct state established,related accept; add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited'",
    );
    let said = look(&world, true);
    assert!(
        said.len() == 1
            && said[0].command.starts_with("firewall-cmd --permanent --zone=trusted --add-source=10.77.0.0/16"),
        "{said:?}"
    );
    // If only the ranges are in the zone `trusted`, the cloud's pods still cannot reach pods on
    // this node.
    world.sh(
        "edge",
        "nft 'add chain inet firewalld filter_FORWARD_ZONES; add rule inet firewalld filter_FORWARD_ZONES ip saddr 10.77.0.0/16 accept; \
         add rule inet firewalld filter_FORWARD_ZONES ip6 saddr fd77::/64 accept'",
    );
    let said = look(&world, true);
    assert!(
        said.len() == 1
            && said[0].command.starts_with("firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16 &&"),
        "{said:?}"
    );
    world.sh("edge", "nft add rule inet firewalld filter_FORWARD_ZONES ip saddr 10.0.0.0/8 accept");
    assert_eq!(look(&world, true), []);
}

/// Without CAP_NET_RAW, the rules of iptables-legacy cannot be read, because reading them requires
/// a raw socket.
fn unreadable() {
    let world = World::new();
    world.sh("edge", "iptables-legacy -P FORWARD DROP && ip6tables-legacy -P FORWARD ACCEPT");
    let mut said = world.on("edge", || {
        // Removing the capability affects only this thread and its children.
        rustix::thread::remove_capability_from_bounding_set(rustix::thread::CapabilitySet::NET_RAW).unwrap();
        obstacles::check(&needs(true))
    });
    said.retain(|obstacle| !obstacle.what.contains("bridge-nf-call"));
    let commands: Vec<&str> = said.iter().map(|obstacle| obstacle.command.as_str()).collect();
    assert_eq!(commands, ["iptables-legacy -S FORWARD", "ip6tables-legacy -S FORWARD"], "{said:?}");
    assert!(said.iter().all(|obstacle| obstacle.what.contains("cannot be read (")), "{said:?}");
}

fn reverse_path() {
    let world = World::new();
    assert_eq!(look(&world, true), []);
    world.sh("edge", "nft 'add table inet fw; add chain inet fw pre { type filter hook prerouting priority raw + 10; }; add rule inet fw pre meta nfproto ipv6 fib saddr . mark . iif oif missing drop'");
    let said = look(&world, true);
    assert!(said.len() == 1 && said[0].what.contains("inet fw pre") && said[0].what.ends_with("by IPv6"), "{said:?}");
    world.sh("edge", &said[0].command);
    assert_eq!(look(&world, true), [], "the command helps");
}
