//! Tests a machine's clock that is set ahead and back.

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
    let cloud = cloud.restart_with(edge_controller_domain::clock::Clock::system()).await;
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
