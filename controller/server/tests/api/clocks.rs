//! Tests a machine's clock that is set ahead and back.

use edge_controller_domain::clock::Clock;
use hyper::Method;
use rcgen::KeyPair;
use serde_json::json;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::harness::{Cloud, Node, kind, request_of};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

fn begins(node: &Node) -> i64 {
    X509Certificate::from_der(&node.leaf).unwrap().1.validity().not_before.timestamp()
}

#[tokio::test]
async fn a_clock_that_is_set_back_reopens_no_token_and_keeps_none_from_ending() {
    let cloud = Cloud::start().await;
    let csr = request_of(&KeyPair::generate().unwrap());
    let ttl = |seconds| json!({"role": "edge", "ttl_seconds": seconds, "uses": 1});
    let early = cloud.token_with(ttl(60)).await;
    cloud.clock.advance(60);
    assert_eq!(kind(&cloud.join(&early, "a", &csr).await), (403, "token-expired"));
    cloud.clock.step(-6 * HOUR);
    assert_eq!(kind(&cloud.join(&early, "a", &csr).await), (403, "token-expired"));
    let late = cloud.token_with(ttl(60)).await;
    cloud.clock.advance(120);
    assert_eq!(kind(&cloud.join(&late, "a", &csr).await), (403, "token-expired"));
    // Every write also stores the time, so the time is known after a restart.
    cloud.token("edge", None).await;
    let cloud = cloud.restart_with(Clock::system()).await;
    for token in [early, late] {
        assert_eq!(kind(&cloud.join(&token, "a", &csr).await), (403, "token-expired"));
    }
}

#[tokio::test]
async fn a_certificate_begins_early_enough_for_all_whatever_the_clock_was_for_a_while() {
    let cloud = Cloud::start().await;
    let truth = cloud.clock.now();
    cloud.node("edge", "a").await;
    cloud.clock.step(2 * DAY);
    cloud.node("edge", "b").await;
    cloud.clock.step(-2 * DAY);
    let after = cloud.node("edge", "c").await;
    assert!(begins(&after) <= truth, "{} s late", begins(&after) - truth);
    assert_eq!(after.ask(Method::GET, "/segments", None).await.0, 200);
    // The clock is set back by an hour. The renewed certificate does not begin before the previous
    // one, and is already valid.
    cloud.clock.step(-HOUR);
    let renewed = after.renew(&cloud, &KeyPair::generate().unwrap()).await;
    assert!(begins(&renewed) >= begins(&after) && begins(&renewed) <= truth);
}

#[tokio::test]
async fn a_stored_time_far_ahead_stops_the_start_until_the_operator_says_which_clock_is_wrong() {
    let cloud = Cloud::start().await;
    let mut node = cloud.node("edge", "a").await;
    cloud.clock.step(20 * 365 * DAY);
    // Every write also stores the time.
    let (status, body) = cloud.operator(Method::PUT, "/v1/communities/alpha", Some(json!({"members": ["a"]}))).await;
    assert_eq!(status, 204, "{body}");
    let (mut stopped, error) = cloud.stop().await.start(Clock::system()).await.err().expect("it must not start");
    let time = error.split("accept_clock = \"").nth(1).and_then(|rest| rest.split('"').next());
    let time = time.unwrap_or_else(|| panic!("{error}")).to_owned();
    assert!(time.starts_with("20") && error.contains("stop all replicas"), "{error}");
    stopped.config.accept_clock = Some(time);
    let cloud = stopped.start(Clock::system()).await.map_err(|(_, error)| error).unwrap();
    node.move_to(&cloud);
    assert_eq!(node.ask(Method::GET, "/segments", None).await.0, 200, "its certificate is accepted again");
    // The store has the true time now.
    let mut stopped = cloud.stop().await;
    stopped.config.accept_clock = None;
    stopped.start(Clock::system()).await.map_err(|(_, error)| error).unwrap();
}
