//! The steps of a controller's use.

use std::collections::BTreeSet;

use edge_controller_domain::segments::SegmentRecord;
use edge_controller_domain::state::Change;
use edge_controller_kubernetes::resources::token::object_name as token_object_name;
use edge_controller_kubernetes::resources::{Community, EdgeNode};
use edge_types::JoinToken;
use hyper::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::right::Right;
use super::world::{OLD, World, expect, wait};
use crate::behaviour::{commit, loaded, name, network};
use crate::cluster::{NAMESPACE, as_user};
use crate::harness::{Cloud, Connection, Node, monitoring_page, request_of};

/// What a controller is used for.
pub(super) struct Tour<'a> {
    pub(super) world: &'a World,
    pub(super) cloud: &'a Cloud,
    pub(super) old: &'a Node,
    /// Counts the tours, for names that are new.
    pub(super) number: usize,
    /// What cannot succeed, so that nothing waits for it.
    pub(super) broken: &'a [&'a str],
    pub(super) failed: BTreeSet<&'static str>,
    pub(super) said: String,
}

impl Tour<'_> {
    pub(super) fn note<T>(&mut self, step: &'static str, outcome: Result<T, String>) -> Option<T> {
        outcome
            .inspect_err(|why| {
                self.failed.insert(step);
                self.said += &format!("{step}: {why}\n");
            })
            .ok()
    }

    /// Notes a step that can only be waited for.
    pub(super) async fn waits<T>(&mut self, step: &'static str, probe: impl AsyncFnMut() -> Option<T>) {
        let outcome = match self.broken.contains(&step) {
            true => Err("not waited for".to_owned()),
            false => wait(step, probe).await,
        };
        self.note(step, outcome);
    }

    pub(super) async fn operator(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        status: u16,
    ) -> Result<Value, String> {
        expect(self.cloud.operator(method, path, body).await, status)
    }

    pub(super) async fn run(&mut self) {
        self.joins().await;
        self.segments().await;
        self.communities().await;
        self.watched().await;
    }

    pub(super) async fn joins(&mut self) {
        let new = format!("edge-{}", self.number);
        let request = json!({"role": "edge", "ttl_seconds": 3600, "uses": 2});
        let created = self.operator(Method::POST, "/v1/tokens", Some(request), 201).await;
        let created = self.note("token", created);
        let joined = match &created {
            Some(created) => {
                let token: JoinToken = created["token"].as_str().unwrap().parse().unwrap();
                let key = KeyPair::generate().unwrap();
                expect(self.cloud.join(&token, &new, &request_of(&key)).await, 200).map(drop)
            }
            None => Err("no token".into()),
        };
        self.note("join", joined);
        let gone = expect(self.cloud.deregister(&new).await, 200).map(drop);
        self.note("deregister", gone);
        let id = created.as_ref().map(|created| created["id"].as_str().unwrap().to_owned()).unwrap_or_default();
        let deleted = self.operator(Method::DELETE, &format!("/v1/tokens/{id}"), None, 204).await;
        self.note("token's end", deleted);
        let key = KeyPair::generate().unwrap();
        let body = json!({
            "service_account_token": self.world.pod_token, "node": "cloud-1", "csr": request_of(&key),
        });
        let mut stranger = Connection::open(self.cloud, None).await.unwrap();
        let joined = expect(stranger.ask(Method::POST, "/v1/join", Some(body)).await, 200);
        self.note("service account", joined);
    }

    pub(super) async fn segments(&mut self) {
        let requested = self.old.request_segments(&format!("r{}", self.number), &["ipv4"]).await;
        let granted = self.note("segments", expect(requested, 200));
        let segment = granted.map(|granted| granted["segments"][0].to_string()).unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.world.client(), "default");
        let segment = segment.trim_matches('"').to_owned();
        self.waits("event", async || {
            let all = events.list(&ListParams::default()).await.unwrap();
            let is = |event: &&Event| event.note.as_ref().is_some_and(|note| note.contains(&segment));
            all.iter().find(is).map(drop)
        })
        .await;
        // The row of a segment of another size, which a grant replaces.
        let row = network(&format!("10.99.{}.0/28", self.number));
        let account = as_user(&self.world.account).await;
        let (store, ..) = loaded(&account).await;
        let record = SegmentRecord::new(row, name("ghost"), "r".into(), 1_793_491_300, None);
        let mut written = commit(&store, vec![Change::GrantSegment(record)]).await;
        if written.is_ok() {
            written = commit(&store, vec![Change::DeleteSegment(row)]).await;
        }
        // What the account may not remove would keep the next controller from starting.
        let (store, ..) = loaded(&self.world.administrator).await;
        drop(commit(&store, vec![Change::DeleteSegment(row)]).await);
        self.note("segment row", written.map_err(|error| error.to_string()));
    }

    pub(super) async fn communities(&mut self) {
        let path = format!("/v1/communities/c{}", self.number);
        let members = |names: &[&str]| Some(json!({"members": names}));
        let created = self.operator(Method::PUT, &path, members(&[OLD]), 204).await;
        self.note("community", created);
        let changed = match self.failed.contains("community") {
            true => Err("there is none".to_owned()),
            false => self.operator(Method::PUT, &path, members(&[OLD, "later"]), 204).await,
        };
        self.note("community's members", changed);
        let deleted = self.operator(Method::DELETE, &path, None, 204).await;
        self.note("community's end", deleted);
        let by_kubectl = format!("k{}", self.number);
        let communities: Api<Community> = Api::all(self.world.client());
        let community = json!({
            "apiVersion": "edge-cni.io/v1alpha1", "kind": "Community",
            "metadata": {"name": by_kubectl}, "spec": {"members": [OLD]},
        });
        let community: Community = serde_json::from_value(community).unwrap();
        communities.create(&PostParams::default(), &community).await.unwrap();
        let cloud = self.cloud;
        self.waits("community by kubectl", async || {
            let (_, listed) = cloud.operator(Method::GET, "/v1/communities", None).await;
            listed.as_array().unwrap().iter().any(|one| one["name"] == *by_kubectl).then_some(())
        })
        .await;
        self.waits("community's status", async || {
            let object = communities.get(&by_kubectl).await.unwrap();
            object.status.is_some().then_some(())
        })
        .await;
    }

    pub(super) async fn watched(&mut self) {
        let (cloud, client, number) = (self.cloud, self.world.client(), self.number);
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client.clone());
        let label =
            json!({"metadata": {"labels": {"node-restriction.kubernetes.io/edge-community": format!("l{number}")}}});
        nodes.patch(OLD, &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
        self.waits("node object", async || {
            let (_, listed) = cloud.operator(Method::GET, "/v1/nodes", None).await;
            let old = listed.as_array().unwrap().iter().find(|node| node["name"] == OLD).unwrap().to_string();
            old.contains(&format!("\"l{number}\"")).then_some(())
        })
        .await;
        let observe = cloud.server.observe[0];
        self.waits("labels", async || {
            let (_, page) = monitoring_page(observe, "/readyz").await;
            page.contains("\n[i]node-labels: community labels of Node objects count").then_some(())
        })
        .await;
        self.waits("leader", async || {
            let (_, page) = monitoring_page(observe, "/metrics").await;
            page.contains("\nedge_controller_leader 1\n").then_some(())
        })
        .await;
        let report = json!({"addresses": ["192.0.2.1"], "port": 4500, "version": format!("0.0.{number}")});
        let stream = self.old.watch().await;
        assert_eq!(self.old.ask(Method::PUT, "", Some(report)).await.0, 204);
        let edge_nodes: Api<EdgeNode> = Api::all(client.clone());
        self.waits("status", async || {
            let status = edge_nodes.get(OLD).await.unwrap().status?;
            (status.agent_version? == format!("0.0.{number}")).then_some(())
        })
        .await;
        drop(stream);
        let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        self.waits("trust", async || {
            let map = maps.get_opt("edge-cni-trust").await.unwrap()?;
            map.data?.get("ca.crt")?.contains("BEGIN CERTIFICATE").then_some(())
        })
        .await;
    }

    /// Changes an object while somebody else changes it too, until the controller has asked what is
    /// there now.
    pub(super) async fn conflict(&self, right: &Right, since: usize) {
        let client = self.world.client();
        let (secrets, communities): (Api<Secret>, Api<Community>) =
            (Api::namespaced(client.clone(), NAMESPACE), Api::all(client));
        let request = json!({"role": "edge", "ttl_seconds": 3600, "uses": 200});
        let token = self.operator(Method::POST, "/v1/tokens", Some(request), 201).await.unwrap();
        let (id, token) = (token["id"].as_str().unwrap().to_owned(), token["token"].as_str().unwrap().to_owned());
        let token: JoinToken = token.parse().unwrap();
        let object = token_object_name(&id);
        let path = format!("/v1/communities/x{}", self.number);
        let mut round = 0;
        wait(&format!("a conflict for {right}"), async || {
            round += 1;
            let params = PatchParams::default();
            if right.resource == "secrets" {
                let key = KeyPair::generate().unwrap();
                let (node, csr) = (format!("x-{}-{round}", self.number), request_of(&key));
                tokio::select! {
                    () = keep_changing(&secrets, &object) => {}
                    _ = self.cloud.join(&token, &node, &csr) => {}
                }
            } else {
                let members = json!({"members": [OLD, format!("later-{round}")]});
                let name = format!("x{}", self.number);
                let put = self.cloud.operator(Method::PUT, &path, Some(members));
                let patch = Patch::Merge(json!({"metadata": {"annotations": {"round": round.to_string()}}}));
                drop(tokio::join!(put, communities.patch(&name, &params, &patch)));
            }
            self.world.forbidden(since).iter().any(|request| right.covers(request)).then_some(())
        })
        .await
        .unwrap();
    }
}

/// Changes the object's annotations again and again.
async fn keep_changing(secrets: &Api<Secret>, object: &str) {
    for round in 0_u64.. {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {"round": round.to_string()}}}));
        secrets.patch(object, &PatchParams::default(), &patch).await.unwrap();
    }
}
