//! Tests joins by token, repeated joins, and renewals.

use crate::harness::{Cloud, Connection, Node, detail, kind, request_of};
use edge_controller_domain::ca::request::hash;
use hyper::Method;
use rcgen::KeyPair;
use serde_json::json;
use x509_parser::prelude::{FromDer, X509Certificate};

#[tokio::test]
async fn the_server_shows_the_authority_that_the_token_pins() {
    let cloud = Cloud::start().await;
    let token = cloud.token("edge", None).await;
    let connection = Connection::open(&cloud, None).await.unwrap();
    let last = connection.chain.last().unwrap();
    let (_, authority) = X509Certificate::from_der(last).unwrap();
    assert_eq!(hash(authority.public_key().raw), token.ca_hash);
    let (_, own) = X509Certificate::from_der(&connection.chain[0]).unwrap();
    let usage = own.extended_key_usage().unwrap().unwrap().value;
    assert!(
        usage.server_auth && !usage.client_auth,
        "no node's certificate passes for the controller's, nor the reverse"
    );
}

#[tokio::test]
async fn a_node_that_joined_has_role_segments_and_a_certificate_that_works() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "edge-1").await;
    let (status, body) = node.ask(Method::GET, "/segments", None).await;
    assert_eq!((status, body), (200, json!({"segments": ["10.77.0.0/26", "fd77::/120"]})));
    let (_, nodes) = cloud.operator(Method::GET, "/v1/nodes", None).await;
    assert_eq!((&nodes[0]["name"], &nodes[0]["role"]), (&json!("edge-1"), &json!("edge")));
}

#[tokio::test]
async fn both_kinds_of_key_serve_in_tls() {
    let cloud = Cloud::start().await;
    for (name, algorithm) in [("p256", &rcgen::PKCS_ECDSA_P256_SHA256), ("ed25519", &rcgen::PKCS_ED25519)] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let (_, body) = cloud.join(&cloud.token("edge", None).await, name, &request_of(&key)).await;
        let node = Node::new(&cloud, name, body["certificate"].as_str().unwrap(), &key);
        assert_eq!(node.ask(Method::GET, "/view", None).await.0, 200);
    }
}

#[tokio::test]
async fn nobody_joins_under_the_name_that_holds_unreadable_segments() {
    let cloud = Cloud::start().await;
    let (token, csr) = (cloud.token("edge", None).await, request_of(&KeyPair::generate().unwrap()));
    let refused = cloud.join(&token, "unreadable.invalid", &csr).await;
    assert_eq!(kind(&refused), (409, "name-taken"));
    assert!(detail(&refused).contains("choose another name"), "{}", detail(&refused));
    assert_eq!(cloud.join(&token, "edge-1", &csr).await.0, 200, "the token was not used up");
}

#[tokio::test]
async fn an_expired_a_used_and_an_unknown_token_are_refused_and_leave_nothing_behind() {
    let cloud = Cloud::start().await;
    let (used, expired, deleted) =
        (cloud.token("edge", None).await, cloud.token("edge", None).await, cloud.token("edge", None).await);
    let csr = || request_of(&KeyPair::generate().unwrap());
    assert_eq!(cloud.join(&used, "edge-1", &csr()).await.0, 200);
    let refused = cloud.join(&used, "edge-2", &csr()).await;
    assert_eq!(kind(&refused), (409, "token-used"));
    cloud.operator(Method::DELETE, &format!("/v1/tokens/{}", deleted.id), None).await;
    assert_eq!(kind(&cloud.join(&deleted, "edge-2", &csr()).await), (403, "token-unknown"));
    let mut forged = expired.clone();
    forged.secret = used.secret.clone();
    assert_eq!(kind(&cloud.join(&forged, "edge-2", &csr()).await), (403, "token-unknown"));
    cloud.clock.advance(3601);
    let refused = cloud.join(&expired, "edge-2", &csr()).await;
    assert_eq!(kind(&refused), (403, "token-expired"));
    assert!(detail(&refused).contains(&expired.id) && !detail(&refused).contains(&*expired.secret));
    let (_, nodes) = cloud.operator(Method::GET, "/v1/nodes", None).await;
    let (_, segments) = cloud.operator(Method::GET, "/v1/segments", None).await;
    assert_eq!((nodes.as_array().unwrap().len(), segments.as_array().unwrap().len()), (1, 2));
}

#[tokio::test]
async fn an_edges_token_makes_no_hub_whatever_the_node_says() {
    let cloud = Cloud::start().await;
    let token = cloud.token("edge", None).await;
    let key = KeyPair::generate().unwrap();
    let body = json!({"token": *token.credential(), "node": "edge-1", "csr": request_of(&key), "role": "hub"});
    let (status, response) =
        Connection::open(&cloud, None).await.unwrap().ask(Method::POST, "/v1/join", Some(body)).await;
    assert_eq!((status, &response["role"]), (200, &json!("edge")));
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names.push(rcgen::SanType::URI("edge-cni://hub/edge-2".try_into().unwrap()));
    let asking = params.serialize_request(&key).unwrap().pem().unwrap();
    let refused = cloud.join(&cloud.token("edge", None).await, "edge-2", &asking).await;
    assert_eq!(kind(&refused), (422, "bad-certificate-request"));
    let forged = cloud.token("edge", Some("edge-1")).await;
    let hub = cloud.token("hub", Some("edge-1")).await;
    let refused = cloud.join(&hub, "edge-1", &request_of(&key)).await;
    assert_eq!(kind(&refused), (409, "role-change"));
    assert_eq!(kind(&cloud.join(&forged, "hub-1", &request_of(&key)).await), (403, "token-of-another"));
}

#[tokio::test]
async fn certificate_requests_that_are_weak_foreign_or_no_requests_are_refused_and_the_token_stays_good() {
    let cloud = Cloud::start().await;
    let token = cloud.token("edge", None).await;
    let mut foreign = rcgen::CertificateParams::new(vec!["edge-2".to_owned()]).unwrap();
    foreign.distinguished_name = rcgen::DistinguishedName::new();
    let key = KeyPair::generate().unwrap();
    let foreign = foreign.serialize_request(&key).unwrap().pem().unwrap();
    for (csr, says) in [
        (foreign.as_str(), "edge-2"),
        (include_str!("../../../domain/tests/data/rsa-1024.csr"), "Ed25519 or ECDSA with P-256"),
        ("no request", "PEM"),
    ] {
        let refused = cloud.join(&token, "edge-1", csr).await;
        assert_eq!(kind(&refused), (422, "bad-certificate-request"));
        assert!(detail(&refused).contains(says), "{}", detail(&refused));
    }
    assert_eq!(cloud.join(&token, "edge-1", &request_of(&key)).await.0, 200);
}

#[tokio::test]
async fn a_name_is_taken_over_only_with_a_token_bound_to_it_and_the_old_certificate_ends() {
    let cloud = Cloud::start().await;
    let old = cloud.node("edge", "edge-1").await;
    cloud.label("edge-1", Some("alpha")).await;
    let key = KeyPair::generate().unwrap();
    let refused = cloud.join(&cloud.token("edge", None).await, "edge-1", &request_of(&key)).await;
    assert_eq!(kind(&refused), (409, "name-taken"));
    assert!(detail(&refused).contains("token create --node edge-1"));
    assert_eq!(old.ask(Method::GET, "/view", None).await.0, 200, "nothing happened to it");

    let bound = cloud.token("edge", Some("edge-1")).await;
    let (status, body) = cloud.join(&bound, "edge-1", &request_of(&key)).await;
    assert_eq!(status, 200);
    let new = Node::new(&cloud, "edge-1", body["certificate"].as_str().unwrap(), &key);
    let (_, view) = new.ask(Method::GET, "/view", None).await;
    assert_eq!(view["segments"], json!(["10.77.0.0/26", "fd77::/120"]), "segments stay");
    assert_eq!(view["communities"], json!(["alpha"]), "labels stay");
    assert_eq!(kind(&old.ask(Method::GET, "/view", None).await), (403, "certificate-superseded"));
}

#[tokio::test]
async fn a_join_whose_answer_was_lost_is_repeated_with_the_same_key() {
    let cloud = Cloud::start().await;
    let token = cloud.token("edge", None).await;
    let key = KeyPair::generate().unwrap();
    assert_eq!(cloud.join(&token, "edge-1", &request_of(&key)).await.0, 200);
    let (status, body) = cloud.join(&token, "edge-1", &request_of(&key)).await;
    assert_eq!(status, 200);
    let node = Node::new(&cloud, "edge-1", body["certificate"].as_str().unwrap(), &key);
    let (_, segments) = node.ask(Method::GET, "/segments", None).await;
    assert_eq!(segments["segments"].as_array().unwrap().len(), 2, "one a family, not two");
}

#[tokio::test]
async fn two_nodes_with_one_token_for_one_at_once_bring_in_exactly_one() {
    let cloud = Cloud::start().await;
    let token = cloud.token("edge", None).await;
    let (a, b) = (request_of(&KeyPair::generate().unwrap()), request_of(&KeyPair::generate().unwrap()));
    let (one, other) = tokio::join!(cloud.join(&token, "edge-1", &a), cloud.join(&token, "edge-2", &b));
    let mut statuses = [one.0, other.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
}

#[tokio::test]
async fn a_renewed_certificate_works_and_the_old_one_until_the_next_renewal() {
    let cloud = Cloud::start().await;
    let first = cloud.node("edge", "edge-1").await;
    let renew = async |node: &Node| {
        let key = KeyPair::generate().unwrap();
        let (status, body) = node.ask(Method::POST, "/certificate", Some(json!({"csr": request_of(&key)}))).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["role"], "edge");
        Node::new(&cloud, "edge-1", body["certificate"].as_str().unwrap(), &key)
    };
    let second = renew(&first).await;
    assert_eq!(first.ask(Method::GET, "/view", None).await.0, 200, "the response might have been lost");
    assert_eq!(second.ask(Method::GET, "/view", None).await.0, 200);
    renew(&second).await;
    assert_eq!(kind(&first.ask(Method::GET, "/view", None).await), (403, "certificate-superseded"));
}

#[tokio::test]
async fn a_node_that_asks_for_certificates_or_all_segments_without_end_is_served_seldom() {
    const ASKED: usize = 40;
    let cloud = Cloud::start().await;
    let other = cloud.node("edge", "edge-2").await;
    let token = cloud.token("edge", None).await;
    let csr = request_of(&KeyPair::generate().unwrap());
    let mut joined = 0;
    // The requests are repeated as if each response had been lost.
    for _ in 0..ASKED {
        let answer = cloud.join(&token, "edge-1", &csr).await;
        joined += usize::from(answer.0 == 200);
        assert!(answer.0 == 200 || kind(&answer) == (429, "too-often"), "{answer:?}");
    }
    assert!((4..ASKED / 2).contains(&joined), "{joined} of {ASKED} joins");
    // A caller that may not have the name does not use up the node's limit.
    let stranger = cloud.token("edge", None).await;
    for _ in 0..ASKED {
        let foreign = request_of(&KeyPair::generate().unwrap());
        assert_eq!(kind(&cloud.join(&stranger, "edge-2", &foreign).await), (409, "name-taken"));
    }
    let mut latest = other;
    let mut renewed = 0;
    for _ in 0..ASKED {
        let key = KeyPair::generate().unwrap();
        let answer = latest.ask(Method::POST, "/certificate", Some(json!({"csr": request_of(&key)}))).await;
        if answer.0 == 200 {
            renewed += 1;
            latest = Node::new(&cloud, "edge-2", answer.1["certificate"].as_str().unwrap(), &key);
        } else {
            assert_eq!(kind(&answer), (429, "too-often"));
            assert!(detail(&answer).contains("edge-2"), "{}", detail(&answer));
        }
    }
    assert!((4..ASKED / 2).contains(&renewed), "{renewed} of {ASKED} renewals");
    let again = json!({"request_id": "a", "families": ["ipv4"], "repeated": true});
    let mut reloads = 0;
    for _ in 0..ASKED {
        let answer = latest.ask(Method::POST, "/segments", Some(again.clone())).await;
        reloads += usize::from(answer.0 == 200);
        assert!(answer.0 == 200 || kind(&answer) == (429, "too-often"), "{answer:?}");
    }
    assert!((4..ASKED / 2).contains(&reloads), "{reloads} of {ASKED} lists of all segments");
    assert_eq!(latest.request_segments("b", &["ipv4"]).await.0, 200, "other requests are served");
}

#[tokio::test]
async fn a_full_range_refuses_the_join_and_says_who_holds_it() {
    let cloud = Cloud::with("cluster_ranges = [\"10.77.0.0/26\"]").await;
    cloud.node("edge", "edge-1").await;
    let token = cloud.token("edge", None).await;
    let csr = request_of(&KeyPair::generate().unwrap());
    let refused = cloud.join(&token, "edge-2", &csr).await;
    assert_eq!(kind(&refused), (409, "range-exhausted"));
    assert!(detail(&refused).contains("edge-1 holds 1"), "{}", detail(&refused));
    let (_, nodes) = cloud.operator(Method::GET, "/v1/nodes", None).await;
    assert_eq!(nodes.as_array().unwrap().len(), 1);
    let (_, tokens) = cloud.operator(Method::GET, "/v1/tokens", None).await;
    let unused = tokens.as_array().unwrap().iter().find(|row| row["id"] == token.id.as_str()).unwrap();
    assert_eq!(unused["used_by"], json!([]), "the token is still good");
}
