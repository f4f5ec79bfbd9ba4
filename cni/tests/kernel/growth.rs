//! Tests the plugin when few addresses are free. A process of the test with the agent's protocol
//! listens on the socket. The real agent is tested in the demo.

use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use edge_types::IpNetwork;
use edge_types::agent_protocol::{AgentRequest, AgentResponse, Stock};
use edge_types::api::Family;
use edge_types::frame;
use edge_types::shared_files::{SegmentsFile, SegmentsSource};
use interop_tests::suite::Test;
use serde_json::json;

use crate::world::{World, pings};

pub(crate) const TESTS: &[Test] = &[
    ("a_full_segment_without_an_agent_means_try_again_later", a_full_segment_without_an_agent_means_try_again_later),
    ("a_full_segment_grows_through_the_agent", a_full_segment_grows_through_the_agent),
    ("every_add_tells_the_agent_what_is_left", every_add_tells_the_agent_what_is_left),
    ("a_full_range_is_no_reason_to_try_again", a_full_range_is_no_reason_to_try_again),
    (
        "an_agent_that_cannot_help_costs_no_pod_the_last_addresses",
        an_agent_that_cannot_help_costs_no_pod_the_last_addresses,
    ),
    (
        "an_agent_that_never_answers_is_not_waited_for_longer_than_the_limit",
        an_agent_that_never_answers_is_not_waited_for_longer_than_the_limit,
    ),
    ("the_first_segment_may_come_with_the_first_pod", the_first_segment_may_come_with_the_first_pod),
];

/// Starts a fake agent on the agent's socket. It answers each segment request with the next element
/// of `grants`, and after the last one with `refusal`. The receiver gets the requests in order.
fn agent(world: &World, grants: &[&str], refusal: Option<AgentResponse>) -> Receiver<AgentRequest> {
    let listener = UnixListener::bind(world.folder.path().join("agent.sock")).unwrap();
    let path = world.state("segments.json");
    let mut grants: Vec<IpNetwork> = grants.iter().rev().map(|grant| grant.parse().unwrap()).collect();
    let (heard, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let request: AgentRequest = frame::read(&mut stream).unwrap();
            let for_segment = matches!(request, AgentRequest::RequestSegment { .. });
            if heard.send(request).is_err() {
                return;
            }
            let response = match (for_segment, grants.pop()) {
                (false, grant) => {
                    grants.extend(grant);
                    Some(AgentResponse::Done)
                }
                (true, Some(grant)) => {
                    let mut file = fs::read(&path).map_or(
                        SegmentsFile {
                            version: 1,
                            source: SegmentsSource::Agent,
                            segments: Vec::new(),
                            cluster_ranges: Vec::new(),
                            mtu: 0,
                            networks: Vec::new(),
                            hub_networks: Vec::new(),
                            bridge: None,
                        },
                        |text| serde_json::from_slice(&text).unwrap(),
                    );
                    file.segments.push(grant);
                    fs::write(&path, serde_json::to_vec(&file).unwrap()).unwrap();
                    Some(AgentResponse::Done)
                }
                (true, None) => refusal.clone(),
            };
            match response {
                // The plugin may have closed the connection.
                Some(response) => drop(frame::write(&mut stream, &response)),
                None => std::mem::drop(
                    stream.set_read_timeout(None).and_then(|()| std::io::Read::read(&mut stream, &mut [0])),
                ),
            }
        }
    });
    requests
}

fn heard(requests: &Receiver<AgentRequest>) -> AgentRequest {
    requests.recv_timeout(Duration::from_secs(10)).unwrap()
}

fn a_full_segment_without_an_agent_means_try_again_later() {
    let world = World::new(&["10.77.3.0/29"]);
    let pods: Vec<_> = (0..5).map(|_| world.pod()).collect();
    pods.iter().for_each(|pod| drop(world.add(pod)));
    let message = world.add_fails(&world.pod(), 11);
    assert!(message.contains("5 IPv4 addresses") && message.contains("edge-agent"), "{message}");
    world.del(&pods[2]);
    assert_eq!(world.add(&world.pod()), ["10.77.3.4"]);
}

fn a_full_segment_grows_through_the_agent() {
    let world = World::new(&["10.77.3.0/30", "fd77:0:0:3::/120"]);
    let first = world.pod();
    world.add(&first);
    let requests = agent(&world, &["10.77.9.0/30", "10.77.5.0/29"], None);
    for (expected, leased) in [("10.77.9.2", 1), ("10.77.5.2", 2)] {
        let pod = world.pod();
        let got = world.add(&pod);
        assert_eq!(got[0], expected);
        let short = vec![Stock { family: Family::V4, free: 0, leased }];
        assert_eq!(heard(&requests), AgentRequest::RequestSegment { stock: short });
        assert!(matches!(heard(&requests), AgentRequest::AddressesTaken { .. }));
        // The gateway, guard and routes of the new segment exist.
        assert!(pings(&pod.netns, "10.77.3.2") && pings(&first.netns, expected) && pings(&world.host, expected));
        assert!(world.ip("xfrm policy").contains(&format!("{}.0/", expected.rsplit_once('.').unwrap().0)));
    }
}

fn every_add_tells_the_agent_what_is_left() {
    let world = World::new(&["10.77.3.0/29", "fd77:0:0:3::/120"]);
    let requests = agent(&world, &[], None);
    world.add(&world.pod());
    world.add(&world.pod());
    let stock = |taken| {
        vec![
            Stock { family: Family::V4, free: 5 - taken, leased: taken },
            Stock { family: Family::V6, free: 254 - taken, leased: taken },
        ]
    };
    assert_eq!(heard(&requests), AgentRequest::AddressesTaken { stock: stock(1) });
    assert_eq!(heard(&requests), AgentRequest::AddressesTaken { stock: stock(2) });
}

fn a_full_range_is_no_reason_to_try_again() {
    let world = World::new(&["10.77.3.0/30"]);
    world.add(&world.pod());
    let reason = "cluster range 10.77.0.0/16 is full; widen it";
    let _requests = agent(&world, &[], Some(AgentResponse::Failed { reason: reason.into(), temporary: false }));
    let message = world.add_fails(&world.pod(), 105);
    assert!(message.contains(reason), "{message}");
}

fn an_agent_that_cannot_help_costs_no_pod_the_last_addresses() {
    let world = World::new(&["10.77.3.0/29"]);
    world.set("lowWater", json!(4));
    let reason = "the controller cannot be reached";
    let requests = agent(&world, &[], Some(AgentResponse::Failed { reason: reason.into(), temporary: true }));
    for _ in 0..5 {
        world.add(&world.pod());
    }
    let message = world.add_fails(&world.pod(), 11);
    assert!(message.contains(reason), "{message}");
    let all: Vec<AgentRequest> = requests.try_iter().collect();
    let requests_for_segments =
        all.iter().filter(|request| matches!(request, AgentRequest::RequestSegment { .. })).count();
    // Requests are sent when 3, 2, 1 and 0 addresses are left before the ADD.
    assert_eq!(requests_for_segments, 4, "{all:?}");
}

fn an_agent_that_never_answers_is_not_waited_for_longer_than_the_limit() {
    let world = World::new(&["10.77.3.0/30"]);
    world.add(&world.pod());
    let _requests = agent(&world, &[], None);
    let message = world.add_fails(&world.pod(), 11);
    assert!(message.contains("within 5 s"), "{message}");
}

fn the_first_segment_may_come_with_the_first_pod() {
    let world = World::new(&[]);
    let requests = agent(&world, &["10.77.3.0/29"], None);
    let pod = world.pod();
    assert_eq!(world.add(&pod), ["10.77.3.2"]);
    assert!(pings(&pod.netns, "10.77.3.1"));
    let AgentRequest::RequestSegment { stock } = heard(&requests) else { panic!("no segment request") };
    assert_eq!(stock.iter().map(|stock| stock.family).collect::<Vec<_>>(), [Family::V4, Family::V6]);
}
