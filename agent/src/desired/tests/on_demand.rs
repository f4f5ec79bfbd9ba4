use super::*;

#[test]
fn tunnels_to_members_of_large_communities_wait_for_a_packet_and_those_of_hubs_do_not() {
    let with = |own, edges: usize| {
        let edge = |n: usize| {
            let segment = format!("10.77.{}.{}/30", 16 + n / 64, n % 64 * 4);
            peer(&format!("edge-{n}"), Role::Edge, "203.0.113.2:4500", &[&segment], &[])
        };
        let mut peers: Vec<Peer> = (0..edges).map(edge).collect();
        peers.push(peer("hub-1", Role::Hub, "203.0.113.1:4500", &[], &["10.244.0.0/16"]));
        membership(own, &["10.77.1.0/26"], &[], peers)
    };
    let on_demand = |keys: &str, own, edges| {
        let desired = Desired::compute(&config(keys), &[], Some(&with(own, edges)));
        assert!(desired.tunnels.values().all(|tunnel| tunnel.on_demand != tunnel.peer.initiate));
        assert!(!desired.tunnels[&PeerName::new("hub-1")].on_demand);
        desired.tunnels.values().filter(|tunnel| tunnel.on_demand).count()
    };
    for (keys, own, edges, expected) in [
        ("", Role::Edge, 63, 0),
        ("", Role::Edge, 64, 64),
        ("", Role::Hub, 200, 0),
        ("[on_demand]\neager = 1\n", Role::Edge, 1, 1),
        ("[on_demand]\neager = 2\n", Role::Edge, 1, 0),
        ("[on_demand]\neager = 1000\n", Role::Edge, 999, 0),
    ] {
        assert_eq!(on_demand(keys, own, edges), expected, "{keys} {own} {edges}");
    }
    // With one member more, all tunnels change to on-demand, except the tunnel to the hub.
    let (before, now) = (with(Role::Edge, 63), with(Role::Edge, 64));
    let now = Membership { credentials: Arc::clone(&before.credentials), ..now };
    let known = Arc::new(Desired::compute(&config(""), &[], Some(&before)));
    let updated = Desired::update(&config(""), &[], Some(&now), Some((&before, &known)));
    assert_eq!(updated.tunnels, Desired::compute(&config(""), &[], Some(&now)).tunnels);
    assert_eq!(updated.changes_since(&known).set.len(), 64);
}

#[test]
fn a_community_decides_when_the_tunnels_between_its_members_are_set_up() {
    // Which of edge-a2's communities decide, and whether they say on-demand; whether the tunnel
    // then waits for a packet, with an own limit of 64 and of 0 members.
    for (decided, expected) in [
        (&[][..], [false, true]),
        (&[("alpha", true)][..], [true, true]),
        (&[("alpha", false)][..], [false, false]),
        // One decides at once, another on demand.
        (&[("alpha", true), ("beta", false)][..], [false, false]),
        (&[("alpha", false), ("beta", true)][..], [false, false]),
        // This node is no member of gamma.
        (&[("gamma", true)][..], [false, true]),
        (&[("beta", true), ("gamma", false)][..], [true, true]),
    ] {
        for (keys, expected) in ["", "[on_demand]\neager = 0\n"].into_iter().zip(expected) {
            let mut edge = peer("edge-a2", Role::Edge, "203.0.113.2:4500", &["10.77.2.0/26"], &[]);
            edge.on_demand_in = decided.iter().map(|(name, waits)| (name.parse().unwrap(), *waits)).collect();
            let mut hub = peer("hub-1", Role::Hub, "203.0.113.1:4500", &[], &["10.244.0.0/16"]);
            hub.on_demand_in = edge.on_demand_in.clone();
            let mut membership = membership(Role::Edge, &["10.77.1.0/26"], &[], vec![edge, hub]);
            Arc::make_mut(&mut membership.view).communities =
                ["alpha", "beta"].map(|name| name.parse().unwrap()).into();
            let desired = Desired::compute(&config(keys), &[], Some(&membership));
            let waits = |name| desired.tunnels[&PeerName::new(name)].on_demand;
            assert_eq!((waits("edge-a2"), waits("hub-1")), (expected, false), "{decided:?} {keys}");
        }
    }
}

#[test]
fn members_of_a_community_that_decides_do_not_count_for_the_others() {
    let edge = |n: usize, waits: Option<bool>| {
        let mut edge =
            peer(&format!("edge-{n}"), Role::Edge, "203.0.113.2:4500", &[&format!("10.77.16.{}/32", n)], &[]);
        edge.on_demand_in = waits.into_iter().map(|waits| ("alpha".parse().unwrap(), waits)).collect();
        edge
    };
    let peers = (0..70).map(|n| edge(n, Some(true))).chain((70..80).map(|n| edge(n, None))).collect();
    let mut before = membership(Role::Edge, &["10.77.1.0/26"], &[], peers);
    Arc::make_mut(&mut before.view).communities = ["alpha", "beta"].map(|name| name.parse().unwrap()).into();
    let known = Arc::new(Desired::compute(&config(""), &[], Some(&before)));
    assert_eq!(known.tunnels.values().filter(|tunnel| tunnel.on_demand).count(), 70);
    // This node leaves alpha, and its peers are seen through beta alone: all 81 count.
    let mut now = before.clone();
    Arc::make_mut(&mut now.view).communities = ["beta".parse().unwrap()].into();
    let updated = Desired::update(&config(""), &[], Some(&now), Some((&before, &known)));
    assert_eq!(updated.tunnels, Desired::compute(&config(""), &[], Some(&now)).tunnels);
    assert_eq!(updated.tunnels.values().filter(|tunnel| tunnel.on_demand).count(), 80);
}
