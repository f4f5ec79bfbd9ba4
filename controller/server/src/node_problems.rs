//! Describes the problems that the operator should check, for each node and for the network as a
//! whole. `status` and the page show the same problems.

use edge_controller_domain::clock::rfc3339;
use edge_types::api::{ControllerStatus, NodeInfo, TunnelCount};
use edge_types::{AddressSource, NodeName};

/// Remaining validity of the authority's certificate, in seconds, below which its expiry is
/// reported as a problem: half a year.
const AUTHORITY_ENDS_SOON: i64 = 183 * 24 * 3600;

/// Returns all problems of a node.
pub(crate) fn node_problems(node: &NodeInfo, now: i64) -> Vec<String> {
    let away = match (node.connected, node.last_seen) {
        (true, _) => None,
        (false, Some(at)) => Some(format!("it has not been connected for {}", span(now - at))),
        (false, None) if never_connected(node) => {
            Some("it has never connected: is its agent running, and does it reach the controller?".into())
        }
        (false, None) => Some("it is not connected".into()),
    };
    let down = node.tunnels.as_ref().and_then(down_tunnels);
    let end = node.certificate_not_after;
    let certificate = node.certificate_ends_soon.then(|| match end > now {
        true => format!(
            "its certificate ends in {} ({}), and it should have been renewed: see the log of its agent",
            span(end - now),
            rfc3339(end)
        ),
        false => format!(
            "its certificate ended at {}: for grace_days after that it renews by itself when it reaches the controller; later it must join again \
             with a token for its name",
            rfc3339(end)
        ),
    });
    let all = away.into_iter().chain(down).chain(certificate).chain(problems(node));
    all.chain(node.obstacles.iter().cloned()).collect()
}

/// Returns the tunnels that are down, in words.
fn down_tunnels(count: &TunnelCount) -> Option<String> {
    let down = count.wanted.checked_sub(count.up).filter(|down| *down > 0)?;
    let named: Vec<&str> = count.down.iter().map(NodeName::as_str).collect();
    let more = if (named.len() as u64) < u64::from(down) { ", ..." } else { "" };
    let to = if named.is_empty() { String::new() } else { format!(", to {}{more}", named.join(", ")) };
    Some(format!("{down} of {} tunnels are down{to}", count.wanted))
}

/// Returns the problems of a node that its connection, tunnels and certificate do not show.
pub(crate) fn problems(node: &NodeInfo) -> Vec<String> {
    let missing = "its Node object is gone, with so many others that it was not believed: \
                   edge-controller node deregister --confirm, if it is meant";
    let refused = node.refused_view.as_ref().map(|why| format!("it does not take its view: {why}"));
    let missing = node.missing.then(|| missing.to_owned());
    // What a node reported that is away says nothing about now.
    let unreached = node.unreached_hubs.iter().filter(|_| node.connected);
    let unreached = unreached.map(|hub| {
        format!("it does not reach {hub}, and uses another hub: edge-agent diagnose {hub} on the node says why")
    });
    let all = missing.into_iter().chain(refused).chain(unreached);
    all.chain(node.conflicts.iter().cloned()).collect()
}

/// Returns all problems that concern no single node.
pub(crate) fn common_problems(status: &ControllerStatus) -> Vec<String> {
    let ControllerStatus { time: now, ranges, authority_not_after, problems, .. } = status;
    let authority = (authority_not_after - now < AUTHORITY_ENDS_SOON).then(|| {
        format!(
            "the certificate of the authority ends at {}: edge-controller ca rollover",
            rfc3339(*authority_not_after)
        )
    });
    let full = ranges.iter().filter(|range| range.free == 0);
    let full = full.map(|range| format!("no segment is left in {}: add a range to cluster_ranges", range.range));
    problems.iter().cloned().chain(authority).chain(full).collect()
}

/// Returns whether the node has joined but has not been seen since.
pub(crate) fn never_connected(node: &NodeInfo) -> bool {
    // Before the first report, addresses that the operator sets have no port either.
    node.endpoints.iter().all(|endpoint| endpoint.source == AddressSource::Configured)
}

/// Formats a time span in its largest unit: `3d`.
pub(crate) fn span(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: i64 = 1_793_491_200;

    fn node(change: serde_json::Value) -> NodeInfo {
        let mut node = json!({
            "name": "a", "role": "edge", "labels": {}, "communities": ["alpha"], "segments": ["10.77.0.0/26"],
            "endpoints": [{"address": "192.0.2.1:4500", "source": "reported"}], "connected": true, "last_seen": NOW,
            "tunnels": {"up": 2, "wanted": 2}, "version": "1.2.3", "certificate_not_after": NOW + 30 * 86_400,
        });
        node.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn every_problem_of_a_node_is_named_and_a_healthy_one_has_none() {
        assert_eq!(node_problems(&node(json!({})), NOW), [""; 0]);
        for (change, says) in [
            (json!({"connected": false, "last_seen": NOW - 7200}), "not been connected for 2h"),
            (json!({"connected": false, "last_seen": null}), "it is not connected"),
            (json!({"connected": false, "last_seen": null, "endpoints": []}), "never connected"),
            (json!({"tunnels": {"up": 1, "wanted": 3}}), "2 of 3 tunnels are down"),
            (json!({"tunnels": {"up": 1, "wanted": 3, "down": ["b", "c"]}}), "2 of 3 tunnels are down, to b, c"),
            (json!({"tunnels": {"up": 1, "wanted": 9, "down": ["b"]}}), "8 of 9 tunnels are down, to b, ..."),
            (json!({"certificate_ends_soon": true}), "ends in 30d"),
            (json!({"certificate_ends_soon": true, "certificate_not_after": NOW}), "ended at"),
            (json!({"obstacles": ["ufw drops"]}), "ufw drops"),
            (json!({"refused_view": "cut off"}), "does not take its view: cut off"),
            (json!({"conflicts": ["10.77.0.64/26"]}), "10.77.0.64/26"),
            (json!({"missing": true}), "its Node object is gone"),
            (json!({"unreached_hubs": ["hub-1"]}), "does not reach hub-1"),
            (json!({"unreached_hubs": ["hub-1"], "connected": false, "last_seen": null}), "it is not connected"),
        ] {
            let found = node_problems(&node(change.clone()), NOW);
            assert!(found.len() == 1 && found[0].contains(says), "{change}: {found:?}");
        }
    }

    #[test]
    fn spans_have_one_unit() {
        let spans = [-5, 59, 60, 3599, 3600, 172_799, 172_800].map(span);
        assert_eq!(spans, ["0s", "59s", "1m", "59m", "1h", "47h", "2d"]);
    }
}
