//! Tests the whole controller in the cluster, with the shipped permissions, and nodes that connect.

use edge_controller_domain::segments::SegmentRecord;
use edge_controller_domain::state::Change;
use edge_controller_kubernetes::ca_secret;
use edge_controller_kubernetes::resources::{Community, EdgeNode};
use hyper::Method;
use interop_tests::kube::suite::Test;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::behaviour::{commit, loaded, name, network, until};
use crate::cluster::{CONTROLLER, Cluster, NAMESPACE, PLANE, as_user, clean, run};
use crate::harness::{Cloud, detail, kind};

pub(crate) const TESTS: &[Test] = &[
    ("kubectl_tells_the_whole_picture_of_a_node", picture),
    ("a_node_that_comes_back_to_a_replica_shows_what_it_says_there", back),
    ("labels_set_by_command_can_be_removed_when_there_is_a_node_object", unlabelled),
    ("two_replicas_serve_one_node_with_one_authority", two),
    ("the_trusted_certificates_are_published_follow_a_rollover_and_are_put_back", trust),
    ("an_object_that_is_made_anew_as_it_was_shows_its_status_again", anew),
    ("a_condition_keeps_its_time_until_its_status_changes_whoever_leads", transition),
    ("communities_are_listed_by_command_as_by_kubectl", communities),
    ("a_request_that_cannot_be_completed_any_more_leaves_nothing", all_or_none),
    ("a_node_that_joins_before_its_deregistration_is_complete_keeps_what_it_is_given", half_left),
];

/// Starts a controller that stores its rows in the cluster.
pub(crate) async fn controller(cluster: &Cluster) -> Cloud {
    controller_of(cluster, "fd77::/112", "").await
}

/// Starts a controller with this IPv6 range and these further keys in `[kubernetes]`.
pub(crate) async fn controller_of(cluster: &Cluster, range: &str, more: &str) -> Cloud {
    let cloud = Cloud::with(&format!(
        "cluster_ranges = [\"10.77.0.0/20\", \"{range}\"]\nv4_prefix = 28\nv6_prefix = 124\n[kubernetes]\nkubeconfig = {:?}\n\
         lease_seconds = 3\n{more}\n",
        *CONTROLLER
    ))
    .await;
    // The nodes in these tests read the CA certificate from this path.
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let secret = secrets.get(ca_secret::NAME).await.unwrap();
    let certificates = secret.data.unwrap().remove("ca.crt").unwrap().0;
    std::fs::write(cloud.directory.path().join("state/ca.crt"), certificates).unwrap();
    cloud
}

async fn status(cluster: &Cluster, node: &str, what: &str, is: impl Fn(&EdgeNode) -> bool) -> EdgeNode {
    until(what, async || cluster.edge_nodes().get_opt(node).await.unwrap().filter(|object| is(object))).await
}

fn picture() {
    run(async {
        let cluster = clean().await;
        let cloud = controller(&cluster).await;
        PLANE
            .apply_text(
                "apiVersion: v1\nkind: Node\nmetadata:\n  name: edge-1\n  labels: {node-role.kubernetes.io/edge: \"\", \
                 fabedge/edge-community: alpha_-_b}\n",
            )
            .unwrap();
        let node = cloud.node("edge", "edge-1").await;
        let mut stream = node.watch().await;
        while stream.view().await.communities.len() != 2 {}
        let obstacle = "chain FORWARD of ufw drops packets";
        let report = json!({
            "addresses": ["192.0.2.1"], "port": 4500, "tunnels": {"up": 3, "wanted": 4, "down": ["edge-9"]},
            "version": "7.8.9", "obstacles": [obstacle],
        });
        assert_eq!(node.ask(Method::PUT, "", Some(report)).await.0, 204);
        assert_eq!(node.request_segments("r", &["ipv4"]).await.0, 200);
        let object = status(&cluster, "edge-1", "all of it to be shown", |object| {
            object.status.as_ref().is_some_and(|status| {
                status.connected_since.is_some()
                    && status.segments.len() == 3
                    && status.communities == ["alpha", "b"]
                    && status.addresses.first().is_some_and(|address| address == "192.0.2.1:4500")
                    && status.certificate_until.is_some()
                    && status.tunnels.as_ref().is_some_and(|tunnels| tunnels.shown == "3/4")
                    && status.agent_version.as_deref() == Some("7.8.9")
                    && status.obstacles.as_ref().is_some_and(|obstacles| obstacles.list == [obstacle])
            })
        })
        .await;
        assert_eq!(object.status.unwrap().conditions[0].status, "True");
        let shown = PLANE.kubectl(&["get", "en", "edge-1"]).unwrap();
        for part in ["edge", r#"["alpha","b"]"#, "192.0.2.1:4500", "3/4", "OBSTACLES", "LAST SEEN", "7.8.9"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        // Another replica returns the same data, including that a node has never connected.
        let other = controller(&cluster).await;
        other.node("edge", "edge-2").await;
        let of_other = async |name: &str| {
            let (code, overview) = other.operator(Method::GET, "/v1/status", None).await;
            assert_eq!(code, 200, "{overview}");
            overview["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name).unwrap().clone()
        };
        until("the other replica to show the node", async || {
            let node = of_other("edge-1").await;
            (node["connected"] == true
                && node["replica"].is_string()
                && node["tunnels"] == json!({"up": 3, "wanted": 4, "down": ["edge-9"]})
                && node["obstacles"] == json!([obstacle]))
            .then_some(())
        })
        .await;
        status(&cluster, "edge-2", "it to be shown as never connected", |object| {
            let conditions = object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            conditions.iter().any(|condition| condition.reason == "NeverConnected" && condition.status == "False")
        })
        .await;
        // Nodes on which the label has no effect are named.
        for (name, labels) in [("edge-away", "node-role.kubernetes.io/edge: \"\", "), ("no-edge", "")] {
            let node = format!(
                "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels: {{{labels}fabedge/edge-community: alpha}}\n"
            );
            PLANE.apply_text(&node).unwrap();
        }
        until("the Nodes without effect", async || {
            let (_, overview) = other.operator(Method::GET, "/v1/status", None).await;
            let problems = overview["problems"].to_string();
            (problems.contains("1 Node(s) (edge-away) with a community label have not joined")
                && problems.contains("1 Node(s) (no-edge) with a community label are no edges"))
            .then_some(())
        })
        .await;
        // The Events refer to the objects concerned.
        let events: Api<Event> = Api::namespaced(as_user(PLANE.kubeconfig()).await.client, "default");
        for (reason, about, note) in [
            ("Joined", "EdgeNode", "joined as edge"),
            ("SegmentGranted", "EdgeNode", "10.77."),
            ("LabelRefused", "Node", "\"-\""),
        ] {
            until(reason, async || {
                let all = events.list(&ListParams::default()).await.unwrap();
                let told = |event: &&Event| {
                    let regarding = event.regarding.clone().unwrap_or_default();
                    event.reason.as_deref() == Some(reason)
                        && regarding.kind.as_deref() == Some(about)
                        && regarding.name.as_deref() == Some("edge-1")
                        && regarding.uid.is_some()
                        && event.note.as_ref().is_some_and(|text| text.contains(note))
                };
                all.iter().find(told).map(drop)
            })
            .await;
        }
        let described = PLANE.kubectl(&["describe", "edgenode", "edge-1"]).unwrap();
        assert!(described.contains("SegmentGranted"), "{described}");
        // Labels of a node with a Node object belong to Kubernetes.
        let patch = Some(json!({"fabedge/edge-community": "gamma"}));
        let refused = cloud.operator(Method::PATCH, "/v1/nodes/edge-1/labels", patch).await;
        assert_eq!(kind(&refused), (409, "labelled-elsewhere"));
        drop(stream);
        status(&cluster, "edge-1", "the node to be shown as away", |object| {
            object.status.as_ref().is_some_and(|status| {
                status.connected_since.is_none() && status.last_seen.is_some() && status.conditions[0].status == "False"
            })
        })
        .await;
        until("the other replica to know when it was last seen", async || {
            let node = of_other("edge-1").await;
            (node["connected"] == false && node["last_seen"].is_i64() && node["version"] == "7.8.9").then_some(())
        })
        .await;
        other.server.stop().await;
        PLANE.kubectl(&["delete", "node", "edge-1"]).unwrap();
        until("the node to be refused", async || {
            (node.ask(Method::GET, "/segments", None).await.0 == 403).then_some(())
        })
        .await;
        cloud.server.stop().await;
    });
}

fn anew() {
    run(async {
        let cluster = clean().await;
        let cloud = controller(&cluster).await;
        let node = cloud.node("edge", "edge-1").await;
        let community =
            "apiVersion: edge-cni.io/v1alpha1\nkind: Community\nmetadata: {name: alpha}\nspec: {members: [edge-1]}\n";
        PLANE.apply_text(community).unwrap();
        let listed = async |what: &str| {
            until(what, async || {
                let shown = PLANE.kubectl(&["get", "community", "alpha", "-o", "jsonpath={.status.listed}"]).unwrap();
                (shown == "1").then_some(())
            })
            .await;
        };
        let segments = |object: &EdgeNode| object.status.as_ref().is_some_and(|status| status.segments.len() == 2);
        listed("the community's status").await;
        let before = status(&cluster, "edge-1", "the node's status", segments).await;

        // Both objects are deleted and created again between two comparisons of the leader.
        PLANE.kubectl(&["delete", "community", "alpha"]).unwrap();
        PLANE.apply_text(community).unwrap();
        let nodes: Api<EdgeNode> = Api::all(as_user(PLANE.kubeconfig()).await.client);
        nodes.delete("edge-1", &DeleteParams::default()).await.unwrap();
        let object = EdgeNode::new("edge-1", before.spec);
        until("the node to be made anew", async || nodes.create(&PostParams::default(), &object).await.ok()).await;
        listed("the new community's status").await;
        status(&cluster, "edge-1", "the new node's status", segments).await;
        drop(node);
        cloud.server.stop().await;
    });
}

fn transition() {
    run(async {
        let cluster = clean().await;
        let first = controller(&cluster).await;
        let shown = async |community: &str, listed: i32| {
            let communities: Api<Community> = Api::all(cluster.client.clone());
            let status = until("the community's status", async || {
                communities.get(community).await.unwrap().status.filter(|status| status.listed == listed)
            })
            .await;
            let condition = &status.conditions[0];
            (condition.status.clone(), condition.last_transition_time.0.as_second())
        };
        let list = async |cloud: &Cloud, community: &str, members: &[&str]| {
            let members = Some(json!({"members": members}));
            let path = format!("/v1/communities/{community}");
            assert_eq!(cloud.operator(Method::PUT, &path, members).await.0, 204);
        };
        list(&first, "alpha", &["later"]).await;
        assert_eq!(shown("alpha", 1).await.0, "False");
        first.server.stop().await;
        // The condition is old.
        let patch = json!([{"op": "replace", "path": "/status/conditions/0/lastTransitionTime", "value": "2026-01-01T00:00:00Z"}]);
        PLANE
            .kubectl(&[
                "patch",
                "community",
                "alpha",
                "--subresource=status",
                "--type=json",
                "--patch",
                &patch.to_string(),
            ])
            .unwrap();
        let long_ago = shown("alpha", 1).await;
        let second = controller(&cluster).await;
        // All statuses are compared before the last one is written.
        list(&second, "beta", &[]).await;
        shown("beta", 0).await;
        assert_eq!(shown("alpha", 1).await, long_ago, "another one leads, and nothing else happened");
        list(&second, "alpha", &["later", "still-later"]).await;
        assert_eq!(shown("alpha", 2).await, long_ago, "something changed, and it is as incomplete as before");
        list(&second, "alpha", &[]).await;
        let (status, since) = shown("alpha", 0).await;
        assert!(status == "True" && since > long_ago.1, "{status} since {since}");
        second.server.stop().await;
    });
}

fn two() {
    run(async {
        let cluster = clean().await;
        let one = controller(&cluster).await;
        let mut node = one.node("edge", "edge-1").await;
        let (_, first) = node.request_segments("r", &["ipv4", "ipv6"]).await;
        let other = controller(&cluster).await;
        let stream = node.watch().await;
        let of_one = status(&cluster, "edge-1", "the first to show it", |object| {
            object.status.as_ref().is_some_and(|status| status.replica.is_some())
        })
        .await;
        let replica = of_one.status.unwrap().replica;
        // The other replica serves the node in its present state, and has the segment request that
        // the first replica answered.
        node.move_to(&other);
        let stream_of_other = node.watch().await;
        let (code, again) = node.request_segments("r", &["ipv4", "ipv6"]).await;
        assert_eq!((code, again), (200, first));
        drop(stream);
        one.server.stop().await;
        status(&cluster, "edge-1", "the other to show it", |object| {
            object.status.as_ref().is_some_and(|status| status.replica.is_some() && status.replica != replica)
        })
        .await;
        drop(stream_of_other);
        other.server.stop().await;
    });
}

fn back() {
    run(async {
        let cluster = clean().await;
        let one = controller(&cluster).await;
        let mut node = one.node("edge", "edge-1").await;
        let other = controller(&cluster).await;
        // The node acts like an agent: it reports and then follows its view.
        for (place, up) in [(&one, 3), (&other, 0), (&one, 3)] {
            node.move_to(place);
            let report = json!({"addresses": ["192.0.2.1"], "port": 4500, "tunnels": {"up": up, "wanted": 3}});
            assert_eq!(node.ask(Method::PUT, "", Some(report)).await.0, 204);
            let stream = node.watch().await;
            status(&cluster, "edge-1", "what it says to be shown", |object| {
                let tunnels = object.status.as_ref().and_then(|status| status.tunnels.as_ref());
                tunnels.is_some_and(|tunnels| tunnels.shown == format!("{up}/3"))
            })
            .await;
            drop(stream);
        }
        // The reports of a deregistered node are not shown for another one of its name.
        let tunnels = async || {
            let (_, nodes) = one.operator(Method::GET, "/v1/nodes", None).await;
            nodes[0]["tunnels"].clone()
        };
        assert_eq!(tunnels().await["up"], 3);
        assert_eq!(one.deregister("edge-1").await.0, 200);
        one.node("edge", "edge-1").await;
        assert_eq!(tunnels().await, Value::Null);
        one.server.stop().await;
        other.server.stop().await;
    });
}

fn unlabelled() {
    run(async {
        for trusted in [true, false] {
            let cluster = clean().await;
            let cloud = controller_of(&cluster, "fd77::/112", &format!("trust_node_labels = {trusted}")).await;
            cloud.node("edge", "edge-1").await;
            let label = async |value: Value| {
                let patch = json!({"fabedge/edge-community": value});
                cloud.operator(Method::PATCH, "/v1/nodes/edge-1/labels", Some(patch)).await
            };
            let (code, info) = label(json!("alpha")).await;
            assert_eq!((code, &info["communities"]), (200, &json!(["alpha"])));
            PLANE
                .apply_text(
                    "apiVersion: v1\nkind: Node\nmetadata:\n  name: edge-1\n  labels: {node-role.kubernetes.io/edge: \"\"}\n",
                )
                .unwrap();
            let refused = until("the Node object to be seen", async || {
                let response = label(json!("alpha")).await;
                (response.0 != 200).then_some(response)
            })
            .await;
            assert_eq!(kind(&refused), (409, "labelled-elsewhere"));
            let said = detail(&refused);
            assert!(said.contains("kubectl label") == trusted && said.contains("in a Community"), "{said}");
            let (code, info) = label(Value::Null).await;
            assert_eq!((code, &info["communities"]), (200, &json!([])), "{info}");
            cloud.server.stop().await;
        }
    });
}

fn trust() {
    run(async {
        let cluster = clean().await;
        let cloud = controller(&cluster).await;
        let administrator = as_user(PLANE.kubeconfig()).await;
        let maps: Api<ConfigMap> = Api::namespaced(administrator.client.clone(), NAMESPACE);
        let trusted = async || {
            let (_, listed) = cloud.operator(Method::GET, "/v1/ca", None).await;
            let trusted = listed.as_array().unwrap().iter().rev().filter(|authority| authority["state"] != "retired");
            trusted.map(|authority| authority["certificate"].as_str().unwrap()).collect::<String>()
        };
        // The agents' DaemonSets use this name.
        let published = async |what: &str, certificates: &str| {
            let holds = |map: &ConfigMap| {
                map.data.as_ref().and_then(|data| data.get("ca.crt")).is_some_and(|held| held == certificates)
            };
            until(what, async || maps.get_opt("edge-cni-trust").await.unwrap().filter(holds)).await
        };
        let first = trusted().await;
        published("it to be published", &first).await;
        let (code, new) = cloud.operator(Method::POST, "/v1/ca/rollover", None).await;
        assert_eq!(code, 201, "{new}");
        let both = trusted().await;
        assert_eq!(both, format!("{}{first}", new["certificate"].as_str().unwrap()));
        published("both authorities to be published", &both).await;

        maps.delete("edge-cni-trust", &DeleteParams::default()).await.unwrap();
        published("what was deleted to be put back", &both).await;
        let another = json!({"data": {"ca.crt": "another's", "note": "ours"}});
        maps.patch("edge-cni-trust", &PatchParams::default(), &Patch::Merge(another)).await.unwrap();
        let map = published("what was changed to be put right", &both).await;
        assert_eq!(map.data.unwrap().get("note").map(String::as_str), Some("ours"));

        let (_, listed) = cloud.operator(Method::GET, "/v1/ca", None).await;
        let old = listed[0]["id"].as_str().unwrap().to_owned();
        let (code, response) = cloud.operator(Method::DELETE, &format!("/v1/ca/{old}?force=true"), None).await;
        assert_eq!(code, 200, "{response}");
        published("the retired one to be gone", new["certificate"].as_str().unwrap()).await;
        cloud.server.stop().await;
    });
}

fn all_or_none() {
    run(async {
        let cluster = clean().await;
        // One IPv6 segment, which the node gets when it joins.
        let cloud = controller_of(&cluster, "fd77::/124", "").await;
        let node = cloud.node("edge", "edge-1").await;
        // Of two grants one succeeded, and another replica took the other segment.
        let (other, ..) = loaded(&cluster).await;
        let half = SegmentRecord::new(network("10.77.1.0/28"), name("edge-1"), "r".into(), 1_793_491_300, None);
        commit(&other, vec![Change::GrantSegment(half)]).await.unwrap();
        let count = async || node.ask(Method::GET, "/segments", None).await.1["segments"].as_array().unwrap().len();
        until("the half to be known", async || (count().await == 3).then_some(())).await;
        assert_eq!(kind(&node.request_segments("r", &["ipv4", "ipv6"]).await), (409, "range-exhausted"));
        assert_eq!(count().await, 2, "what was refused holds nothing");
        cloud.server.stop().await;
    });
}

fn half_left() {
    run(async {
        let cluster = clean().await;
        let cloud = controller(&cluster).await;
        // Another replica has deleted the node and not released its segments yet.
        let (other, ..) = loaded(&cluster).await;
        let rows = ["10.77.0.0/28", "fd77::/124"]
            .map(|segment| SegmentRecord::new(network(segment), name("edge-1"), "join".into(), 1_793_491_300, None));
        commit(&other, rows.iter().cloned().map(Change::GrantSegment).collect()).await.unwrap();
        until("the segments to be known", async || {
            let (_, segments) = cloud.operator(Method::GET, "/v1/segments", None).await;
            (segments.as_array().unwrap().len() == 2).then_some(())
        })
        .await;
        let node = cloud.node("edge", "edge-1").await;
        let (_, given) = node.ask(Method::GET, "/segments", None).await;
        assert_eq!(given["segments"].as_array().unwrap().len(), 2, "{given}");
        // Now the replica continues with its earlier plan.
        let released = rows.map(|row| Change::PutSegment(SegmentRecord { released_at: Some(1_793_491_400), ..row }));
        commit(&other, [vec![Change::DeleteNode(name("gone"))], released.into()].concat()).await.unwrap();
        let (_, snapshot, _) = loaded(&cluster).await;
        assert_eq!(snapshot.segments.len(), 2);
        for row in snapshot.segments {
            assert!(
                row.node == name("edge-1") && row.released_at.is_none(),
                "{row:?} is taken from a node that has it"
            );
        }
        cloud.server.stop().await;
    });
}

fn communities() {
    run(async {
        let cluster = clean().await;
        let cloud = controller(&cluster).await;
        let node = cloud.node("edge", "a").await;
        let mut stream = node.watch().await;
        let members = Some(json!({"members": ["a", "later"]}));
        assert_eq!(cloud.operator(Method::PUT, "/v1/communities/alpha", members).await.0, 204);
        while stream.view().await.communities.is_empty() {}
        let shown = until("what came of it", async || {
            let shown = PLANE.kubectl(&["get", "community", "alpha", "-o", "jsonpath={.status}"]).unwrap();
            (!shown.is_empty()).then_some(shown)
        })
        .await;
        for part in [r#""listed":2"#, r#""registered":1"#, r#""missing":["later"]"#, "SomeNotRegistered"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert_eq!(cloud.operator(Method::DELETE, "/v1/communities/alpha", None).await.0, 204);
        assert_eq!(
            kind(&cloud.operator(Method::DELETE, "/v1/communities/alpha", None).await),
            (404, "no-such-community")
        );
        assert_eq!(cloud.operator(Method::PUT, "/v1/communities/a_b", Some(json!({"members": []}))).await.0, 422);
        while !stream.view().await.communities.is_empty() {}
        cloud.server.stop().await;
    });
}
