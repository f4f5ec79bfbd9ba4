//! Tests joining: how a node becomes and stays a member, and which errors are reported if it does
//! not.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use edge_agent::clock::CertificateClock;
use edge_types::{JoinToken, NodeView, Role};
use serde_json::json;
use zeroize::Zeroizing;

use crate::lab::{Controller, Node, exists, parsed, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_with_a_key_of_its_own_and_gets_its_view_and_segments() {
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, member) = node.start_as_member().await;
    assert_eq!(member.view.node.as_str(), "edge-1");
    assert_eq!(member.view.role, Role::Edge);
    assert_eq!(node.segments().segments, member.view.segments);
    assert_eq!(node.segments().cluster_ranges, member.view.cluster_ranges);
    for secret in ["identity.json", "view.json", "segments.json", "agent.lock"] {
        let mode = std::fs::metadata(node.file(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{secret}");
    }
    assert!(!exists(node.file("key.pending")));
    let status = agent.status("the stream", |status| status.connected).await;
    assert_eq!(status.url.unwrap().trim_end_matches('/'), controller.url());
    assert_eq!(status.last_error, None);
    agent.end().await;
    assert!(exists(node.file("clock.json")));
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_reported_at_once_when_they_change() {
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let agent = node.start();
    agent.joined().await;
    for address in ["192.0.2.7", "2001:db8::7"] {
        agent.node.uplink.send_modify(|uplink| uplink.addresses = vec![address.parse().unwrap()]);
        until("the report", || async {
            let endpoints = controller.nodes().await[0]["endpoints"].to_string();
            endpoints.contains(address) && endpoints.contains("4500")
        })
        .await;
    }
    agent.node.uplink.send_modify(|uplink| uplink.pod_mtu = 1371);
    until("the pods' MTU", || async { node.segments().mtu == 1371 }).await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_forty_addresses_gets_its_view_and_reports_the_likeliest_seven() {
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let forty: Vec<IpAddr> = (0..40).map(|n| IpAddr::from([192, 168, 1, 100 + n])).collect();
    let agent = node.start();
    agent.node.uplink.send_modify(|uplink| {
        uplink.addresses = forty.clone();
        uplink
            .addresses
            .extend(["2001:db8::7", "169.254.169.254", "10.77.0.9"].map(|text| text.parse::<IpAddr>().unwrap()));
    });
    agent.membership("segments of both families", |m| m.view.segments.len() == 2).await;
    agent.status("the stream", |status| status.connected).await;
    until("the report", || async {
        let endpoints = controller.nodes().await[0]["endpoints"].clone();
        let reported: Vec<String> = endpoints
            .as_array()
            .unwrap()
            .iter()
            .filter(|endpoint| endpoint["source"] == "reported")
            .map(|endpoint| endpoint["address"].to_string())
            .collect();
        reported.len() == 7 && reported.iter().any(|address| address.contains("2001:db8::7"))
    })
    .await;
    // Other nodes join and leave while this node runs. The view stream of this node continues.
    agent.node.uplink.send_modify(|uplink| uplink.addresses.reverse());
    until("the next report", || async {
        controller.nodes().await[0]["endpoints"].to_string().contains("192.168.1.139")
    })
    .await;
    assert_eq!(agent.node.controller_status.borrow().last_error, None);
    assert!(agent.node.controller_status.borrow().connected);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn used_expired_and_foreign_tokens_are_refused_in_words_and_leave_nothing_behind() {
    let controller = Controller::start().await;
    let used = controller.token(Role::Edge, None).await;
    let first = Node::new("edge-1", &controller);
    first.put_token(&used);
    let agent = first.start();
    agent.joined().await;
    agent.end().await;
    let bound = controller.token(Role::Edge, Some("edge-9")).await;
    let expired = controller.token(Role::Edge, None).await;
    for (token, words) in [(used, "has been used"), (bound, "for edge-9 alone"), (expired, "expired at")] {
        if words == "expired at" {
            controller.clock.advance(3601);
        }
        let node = Node::new("edge-2", &controller);
        node.put_token(&token);
        let agent = node.start();
        let error = agent.error().await;
        assert!(error.contains(words), "{error}");
        assert!(!error.contains(&*parsed(&token).secret));
        agent.end().await;
        node.assert_no_member();
    }
    assert_eq!(controller.nodes().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_an_edge_makes_no_hub() {
    let controller = Controller::start().await;
    let token = controller.token(Role::Edge, None).await;
    let mut node = Node::new("edge-1", &controller);
    node.extra = "role = \"hub\"";
    node.put_token(&token);
    let agent = node.start();
    let error = agent.error().await;
    assert!(error.contains("says role hub") && error.contains("for role edge"), "{error}");
    agent.end().await;
    node.assert_no_member();
    // Altering the token's text has no effect, because the controller uses its own record of the
    // token.
    let altered = JoinToken { role: Role::Hub, ..parsed(&token) };
    let text: Zeroizing<String> = altered.encode();
    node.put_token(&text);
    let agent = node.start();
    let error = agent.error().await;
    assert!(error.contains("it is for role edge, not hub"), "{error}");
    agent.end().await;
    node.assert_no_member();
    // The same node can still use the token with the same key.
    node.extra = "";
    node.put_token(&token);
    let (agent, member) = node.start_as_member().await;
    assert_eq!(member.view.role, Role::Edge);
    agent.end().await;
    assert_eq!(controller.nodes().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_for_which_no_segment_is_left_does_not_join_and_its_token_stays_good() {
    let controller = Controller::with_ranges("\"10.77.0.0/26\", \"fd77::/120\"").await;
    let (first, _) = controller.edge("edge-1").await.start_as_member().await;
    first.end().await;
    let node = controller.edge("edge-2").await;
    let agent = node.start();
    let error = agent.error().await;
    assert!(error.contains("No segment is left") && error.contains("edge-1 holds 1"), "{error}");
    agent.end().await;
    node.assert_no_member();
    assert_eq!(controller.nodes().await.len(), 1);
    controller.operator("DELETE", "/v1/nodes/edge-1", json!(null)).await;
    controller.clock.advance(61);
    let (agent, _) = node.start_as_member().await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_damaged_or_missing_is_asked_for_and_taken_when_it_comes() {
    let controller = Controller::start().await;
    let node = Node::new("edge-1", &controller);
    let agent = node.start();
    let error = agent.error().await;
    assert!(error.contains("edge-controller token create --role edge") && error.contains("/token"), "{error}");
    node.put_token("ecni1.garbage");
    agent.end().await;
    let agent = node.start();
    agent.error_with("copy it whole").await;
    node.put_token(&controller.token(Role::Edge, None).await);
    agent.joined().await;
    agent.status("no error", |status| status.last_error.is_none()).await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_answer_to_a_join_was_lost_with_the_power_the_same_token_still_does() {
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    // The disk is in the state of a power cut after the request was sent.
    std::fs::create_dir_all(node.state()).unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
    std::fs::write(node.file("key.pending"), &key).unwrap();
    let agent = node.start();
    agent.joined().await;
    // The agent is ended instead of killed, since otherwise a pending write could end up in the
    // restored directory.
    agent.end().await;
    std::fs::remove_dir_all(node.state()).unwrap();
    std::fs::create_dir_all(node.state()).unwrap();
    std::fs::write(node.file("key.pending"), &key).unwrap();
    let agent = node.start();
    agent.joined().await;
    assert!(!exists(node.file("key.pending")));
    agent.end().await;
    assert_eq!(controller.nodes().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_half_life_the_certificate_is_renewed_with_a_new_key_and_nothing_else_changes() {
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, before) = node.start_as_member().await;
    agent.end().await;
    // Four of the seven days for which the certificate is valid have passed.
    let clock = Arc::new(CertificateClock::default());
    clock.raise_floor(clock.unix_time() + 4 * 24 * 3600);
    controller.clock.advance(4 * 24 * 3600);
    let agent = node.try_start(clock).unwrap();
    let after = agent.membership("renewal", |m| m.credentials.not_after > before.credentials.not_after).await;
    assert!(after.credentials.key != before.credentials.key);
    // The controller sends the same view again, possibly with a later version.
    assert_eq!(NodeView { version: before.view.version, ..(*after.view).clone() }, *before.view);
    // The controller drops the old certificate only after the new one has been used.
    agent.status("the stream", |status| status.connected).await;
    agent.end().await;
    assert!(!exists(node.file("key.pending")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_certificate_ended_while_it_was_away_renews_it_within_the_grace() {
    const WEEK: u64 = 7 * 24 * 3600;
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, before) = node.start_as_member().await;
    agent.end().await;
    // The certificate is valid for a week, and then has a week of grace.
    let clock = Arc::new(CertificateClock::default());
    clock.raise_floor(clock.unix_time() + 2 * WEEK - 3600);
    controller.clock.advance(i64::try_from(2 * WEEK).unwrap() - 3600);
    let agent = node.try_start(clock).unwrap();
    let after = agent.membership("renewal", |m| m.credentials.not_after > before.credentials.not_after).await;
    assert_eq!(after.view.node, before.view.node);
    agent.status("the connection", |status| status.connected && status.last_error.is_none()).await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_runs_ahead_by_more_than_half_a_lifetime_renews_once_and_then_pauses() {
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, before) = node.start_as_member().await;
    agent.end().await;
    // The node's clock is four days ahead of the controller's, so the new certificate is due for
    // renewal at once.
    let clock = Arc::new(CertificateClock::default());
    clock.raise_floor(clock.unix_time() + 4 * 24 * 3600);
    let agent = node.try_start(clock).unwrap();
    let after = agent.membership("renewal", |m| m.credentials.key != before.credentials.key).await;
    // After a renewal, the agent opens the stream again. A second renewal without a pause would
    // come before that.
    agent.status("the stream", |status| status.connected).await;
    controller.operator("PATCH", "/v1/nodes/edge-1/labels", json!({"fabedge/edge-community": "alpha"})).await;
    agent.membership("the community", |m| !m.view.communities.is_empty()).await;
    assert!(agent.joined().await.credentials.key == after.credentials.key, "no second renewal");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deregistered_node_keeps_what_it_has_says_why_and_comes_back_with_a_new_token() {
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, before) = node.start_as_member().await;
    agent.status("the stream", |status| status.connected).await;
    controller.operator("DELETE", "/v1/nodes/edge-1", json!(null)).await;
    let error = agent.error_with("deregistered").await;
    assert!(error.contains("token"), "{error}");
    agent.status("no stream", |status| !status.connected && status.refused).await;
    let kept = agent.joined().await;
    assert_eq!(kept.view, before.view);
    assert!(exists(node.file("view.json")) && exists(node.file("identity.json")));
    node.put_token(&controller.token(Role::Edge, None).await);
    let is_new = |m: &edge_agent::membership::Membership| m.credentials.key != before.credentials.key;
    // The node's former segments are in quarantine. It now has other segments, and assigns no
    // addresses from the former ones.
    let has_others = |m: &edge_agent::membership::Membership| {
        m.view.segments.len() == 2 && !m.view.segments.iter().any(|segment| before.view.segments.contains(segment))
    };
    let after = agent.membership("a new membership", |m| is_new(m) && has_others(m)).await;
    until("the new segments", || async { node.segments().segments == after.view.segments }).await;
    // The first stream lasted only a moment, and the refusal came after its end.
    agent
        .status("no error of before", |status| status.connected && status.last_error.is_none() && !status.refused)
        .await;
    soon("the end", agent.end()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_token_goes_to_the_controller_that_its_ca_vouches_for_and_to_no_other() {
    let (controller, other) = (Controller::start().await, Controller::start().await);
    let mut node = Node::new("edge-1", &controller);
    node.credential = "service_account_token_file = \"token\"\nca_file = \"ca.crt\"";
    // A JWT with the header `{}` and the claims
    // {"kubernetes.io":{"node":{"name":"edge-1"},"pod":{"uid":"u"}}}.
    let claims = "eyJrdWJlcm5ldGVzLmlvIjp7Im5vZGUiOnsibmFtZSI6ImVkZ2UtMSJ9LCJwb2QiOnsidWlkIjoidSJ9fX0";
    node.put_token(&format!("e30.{claims}.eA"));
    for (authority, says) in [(&controller, "this controller takes none"), (&other, "not trusted")] {
        std::fs::copy(authority.file("ca.crt"), node.token_file().with_file_name("ca.crt")).unwrap();
        let agent = node.start();
        let error = agent.error_with(says).await;
        assert!(!error.contains(claims), "{error}");
        agent.end().await;
        node.assert_no_member();
    }
}
