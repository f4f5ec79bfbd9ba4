//! Simulates a node and its actions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use edge_types::{IpNetwork, JoinToken};
use hyper::Method;
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::dice::Dice;
use super::world::{CAPACITY, TimeLimit, World};
use crate::harness::{Connection, HttpResponse, Node, chain, kind, request_of};

const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];
/// Name under which the model records the request for the segments that a node gets when it joins.
const JOIN: &str = "join";

/// The reason why a segment request has no segments.
enum NotGranted {
    /// No segment is left.
    Exhausted,
    /// The request was answered before, and the node repeats requests too often.
    TooOften,
}

/// A node name. Each join begins a new life of the node.
pub(super) struct Member<'a> {
    world: &'a World<'a>,
    name: String,
    dice: Dice,
    life: u32,
    registered: Option<Registered>,
    /// Whether the node has a Kubernetes Node object. The deletion of that object deregisters the
    /// node.
    has_object: bool,
    /// Whether an interrupted action may have left segments: the node may hold more segments than
    /// it has received.
    leftovers: bool,
}

/// A node while it is registered.
struct Registered {
    node: Node,
    /// The segments of each answered segment request.
    answered: BTreeMap<String, Vec<IpNetwork>>,
    segment_requests: u32,
}

impl<'a> Member<'a> {
    pub(super) fn new(world: &'a World<'a>, name: &str, dice: Dice) -> Self {
        Self { world, name: name.into(), dice, life: 0, registered: None, has_object: false, leftovers: false }
    }

    /// Acts according to the dice until the sequence of operations ends.
    pub(super) async fn live(&mut self) {
        while !self.world.is_over() {
            match (self.registered.is_some(), self.dice.below(100)) {
                (false, _) => self.join().await,
                (true, 0..45) => {
                    let families = FAMILIES.iter().copied().filter(|_| self.dice.percent(60)).collect::<Vec<_>>();
                    let families = if families.is_empty() { vec!["ipv4"] } else { families };
                    self.request_segments(&families).await;
                }
                (true, 45..65) => self.repeat().await,
                (true, 65..82) => self.look().await,
                (true, _) => self.leave().await,
            }
        }
    }

    /// Joins, unless no segment is left.
    async fn join(&mut self) {
        self.life += 1;
        if !self.has_object && self.dice.percent(40) {
            self.has_object = self.world.testbed.create_node_object(&self.name).await;
        }
        #[expect(clippy::disallowed_methods, reason = "compared with the times of the controller under test")]
        let since = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        let limit = TimeLimit::new(format!("{} to join", self.name));
        let mut ways: Vec<(JoinToken, KeyPair)> = vec![(self.token().await, KeyPair::generate().unwrap())];
        let (mut turn, mut unsure) = (0, false);
        let node = loop {
            let (token, key) = &ways[turn % ways.len()];
            let address = self.world.any(&mut self.dice).address();
            let last = match Connection::anonymous(address, self.world.ca.clone()).await {
                // No request was sent.
                Err(error) => error.to_string(),
                Ok(mut connection) => {
                    self.world.sends();
                    let body = json!({"token": *token.credential(), "node": self.name, "csr": request_of(key)});
                    let response = connection.try_ask(Method::POST, "/v1/join", Some(body)).await;
                    match &response {
                        Ok((200, body)) => {
                            let certificate = chain(body["certificate"].as_str().unwrap());
                            break Node::at(address, self.world.ca.clone(), &self.name, certificate, key);
                        }
                        Ok((409, _)) if refused(&response, "range-exhausted") => {
                            self.leftovers |= unsure && self.world.lags();
                            return self.world.model.count("refused to join: exhausted");
                        }
                        // The token was used, and its node is not registered, or not known to this
                        // controller yet.
                        Ok((409, _)) if refused(&response, "token-used") && unsure => {
                            ways.push((self.token().await, KeyPair::generate().unwrap()));
                            turn = ways.len() - 1;
                        }
                        // An earlier attempt has joined the node, or this controller still has the
                        // row of its earlier life.
                        Ok((409, _)) if refused(&response, "name-taken") && (unsure || self.world.lags()) => turn += 1,
                        Ok((403, _)) if refused(&response, "token-unknown") && self.world.lags() => {}
                        Ok((503, _)) | Err(_) => unsure = true,
                        Ok(other) => panic!("{} is not let in: {other:?}", self.name),
                    }
                    format!("{response:?}")
                }
            };
            limit.pause(last).await;
        };
        self.leftovers |= unsure && self.world.lags();
        if unsure {
            self.world.model.count("joins repeated");
        }
        self.registered = Some(Registered { node, answered: BTreeMap::new(), segment_requests: 0 });
        let held = match self.world.testbed.granted_on_join(&self.name, since).await {
            Some(granted) => granted,
            None => self.list().await,
        };
        let count = |v4| held.iter().filter(|network| network.is_ipv4() == v4).count();
        assert!(count(true) >= 1 && count(false) >= 1, "{} joined, and was given {held:?}", self.name);
        held.iter().for_each(|network| self.world.model.heard(&self.name, self.life, JOIN, *network));
        self.registered.as_mut().unwrap().answered.insert(JOIN.into(), held.into_iter().collect());
    }

    async fn token(&mut self) -> JoinToken {
        let limit = TimeLimit::new("a token");
        loop {
            let request = json!({"role": "edge", "ttl_seconds": 3600, "uses": 1});
            let replica = self.world.any(&mut self.dice);
            let response = self.world.operator(replica, Method::POST, "/v1/tokens", Some(request)).await;
            match response {
                Ok((201, body)) => return body["token"].as_str().unwrap().parse().unwrap(),
                Ok((503, _)) | Err(_) => limit.pause(response).await,
                Ok(other) => panic!("no token: {other:?}"),
            }
        }
    }

    /// Sends a request as the node to any controller. The error contains whether the request was
    /// sent, and the reason why there is no response.
    async fn ask(&mut self, method: Method, below: &str, body: Option<Value>) -> Result<HttpResponse, (bool, String)> {
        let address = self.world.any(&mut self.dice).address();
        let node = &mut self.registered.as_mut().unwrap().node;
        node.move_to_address(address);
        let mut connection = node.connect().await.map_err(|error| (false, error.to_string()))?;
        self.world.sends();
        let path = format!("/v1/nodes/{}{below}", self.name);
        connection.try_ask(method, &path, body).await.map_err(|error| (true, error.to_string()))
    }

    /// Returns the segments that it holds, according to some controller.
    async fn list(&mut self) -> BTreeSet<IpNetwork> {
        let limit = TimeLimit::new(format!("what {} holds", self.name));
        loop {
            let response = self.ask(Method::GET, "/segments", None).await;
            match &response {
                Ok((200, body)) => return networks(body).into_iter().collect(),
                Ok((403, _)) if self.world.lags() => {}
                Err(_) => {}
                Ok(other) => panic!("{} may not see its segments: {other:?}", self.name),
            }
            limit.pause(response).await;
        }
    }

    /// Requests a segment, and repeats the request until it is answered. `None` if no segment is
    /// left.
    async fn request_segments(&mut self, families: &[&str]) -> Option<Vec<IpNetwork>> {
        let registered = self.registered.as_mut().unwrap();
        registered.segment_requests += 1;
        let request = format!("{}-{}-{}", self.name, self.life, registered.segment_requests);
        let granted = self.until_granted(&request, families, false).await.ok()?;
        let of = |v4: bool| granted.iter().filter(|network| network.is_ipv4() == v4).count();
        let wanted = |family| usize::from(families.contains(&family));
        assert_eq!((of(true), of(false)), (wanted("ipv4"), wanted("ipv6")), "{request}: {granted:?}");
        granted.iter().for_each(|network| self.world.model.heard(&self.name, self.life, &request, *network));
        self.registered.as_mut().unwrap().answered.insert(request, granted.clone());
        Some(granted)
    }

    /// Repeats a request until it is answered.
    async fn until_granted(
        &mut self,
        request: &str,
        families: &[&str],
        mut repeated: bool,
    ) -> Result<Vec<IpNetwork>, NotGranted> {
        let limit = TimeLimit::new(format!("a response to {request}"));
        let mut unsure = false;
        loop {
            let body = json!({"request_id": request, "families": families, "repeated": repeated});
            let response = self.ask(Method::POST, "/segments", Some(body)).await;
            match &response {
                Ok((200, body)) => {
                    if unsure {
                        self.world.model.count("segment requests repeated");
                    }
                    return Ok(networks(body));
                }
                Ok(refusal) if kind(refusal).1 == "range-exhausted" => {
                    // A controller may have granted half of the request and died before it granted
                    // the rest or took that half back.
                    self.leftovers |= unsure && self.world.lags();
                    self.world.model.count("exhausted");
                    return Err(NotGranted::Exhausted);
                }
                Ok((403, _)) if self.world.lags() => {}
                // The node waits. It need not repeat a request that was answered before.
                Ok((429, _)) if repeated => {
                    self.world.model.count("repeated too often");
                    if !unsure {
                        return Err(NotGranted::TooOften);
                    }
                }
                Ok((503, _)) | Err((true, _)) => (unsure, repeated) = (true, true),
                Err((false, _)) => {}
                Ok(other) => panic!("{request} is refused: {other:?}"),
            }
            limit.pause(response).await;
        }
    }

    /// Repeats an answered segment request.
    async fn repeat(&mut self) {
        let answered: Vec<_> = self.segment_requests();
        if !answered.is_empty() {
            let (request, granted) = answered[self.dice.below(answered.len())].clone();
            self.repeat_this(&request, &granted).await;
        }
    }

    fn segment_requests(&self) -> Vec<(String, Vec<IpNetwork>)> {
        let answered = self.registered.iter().flat_map(|registered| &registered.answered);
        answered.filter(|(request, _)| *request != JOIN).map(|(id, granted)| (id.clone(), granted.clone())).collect()
    }

    async fn repeat_this(&mut self, request: &str, granted: &[IpNetwork]) {
        let families: Vec<&str> =
            granted.iter().map(|network| if network.is_ipv4() { "ipv4" } else { "ipv6" }).collect();
        match self.until_granted(request, &families, true).await {
            Ok(again) => {
                assert_eq!(again, granted, "{request} is repeated");
                self.world.model.count("asked once more");
            }
            Err(NotGranted::Exhausted) => {
                panic!("{request} was answered with {granted:?}, and nothing is left when it is repeated")
            }
            Err(NotGranted::TooOften) => {
                let limit = TimeLimit::new(format!("{} to hold what answered {request}", self.name));
                loop {
                    let held = self.list().await;
                    if granted.iter().all(|network| held.contains(network)) {
                        break;
                    }
                    limit.pause(held).await;
                }
            }
        }
    }

    /// Asserts that the node holds the segments that it was granted.
    async fn look(&mut self) {
        let known: BTreeSet<IpNetwork> =
            self.registered.as_ref().unwrap().answered.values().flatten().copied().collect();
        let limit = TimeLimit::new(format!("all that {} was told", self.name));
        loop {
            let held = self.list().await;
            let lost: Vec<_> = known.difference(&held).collect();
            if lost.is_empty() {
                let more: Vec<_> = held.difference(&known).collect();
                assert!(self.leftovers || more.is_empty(), "{} holds what it was never told: {more:?}", self.name);
                return;
            }
            assert!(self.world.lags(), "{} lost {lost:?}", self.name);
            limit.pause(lost).await;
        }
    }

    /// Repeats, at the end of the history, all segment requests of the node and compares the
    /// responses.
    pub(super) async fn settle(&mut self) {
        if self.registered.is_some() {
            for (request, granted) in self.segment_requests() {
                self.repeat_this(&request, &granted).await;
            }
            self.look().await;
        }
    }

    /// Deregisters the node if it is registered. It receives nothing afterwards.
    pub(super) async fn leave(&mut self) {
        if self.registered.is_none() {
            return;
        }
        let by_object = self.has_object && self.dice.percent(50);
        if by_object {
            self.world.testbed.node_object_is_known(&self.name).await;
        }
        self.world.model.leaves(&self.name, self.life);
        if by_object {
            self.world.testbed.delete_node_object(&self.name).await;
            self.has_object = false;
            self.world.model.count("left with their object");
            self.half_left();
        } else if self.is_deregistered().await {
            self.half_left();
        }
        self.world.model.count("left");
        let limit = TimeLimit::new(format!("{} to be refused", self.name));
        loop {
            let response = self.ask(Method::GET, "/segments", None).await;
            match &response {
                Ok(refusal) if kind(refusal) == (403, "node-deregistered") => break,
                Ok(other) => assert!(self.world.lags(), "{} was deregistered, and is told {other:?}", self.name),
                Err(_) => {}
            }
            limit.pause(response).await;
        }
        self.registered = None;
    }

    fn half_left(&mut self) {
        if self.world.lags() {
            self.world.model.half_left(&self.name, self.life);
            self.leftovers = true;
        }
    }

    /// Deregisters the node as the operator. Returns whether the deregistration may be incomplete,
    /// or was done by a controller whose state was not up to date.
    async fn is_deregistered(&mut self) -> bool {
        let known: BTreeSet<IpNetwork> =
            self.registered.as_ref().unwrap().answered.values().flatten().copied().collect();
        let limit = TimeLimit::new(format!("{} to be deregistered", self.name));
        let mut unsure = false;
        loop {
            let replica = self.world.any(&mut self.dice);
            let path = format!("/v1/nodes/{}", self.name);
            let response = self.world.operator(replica, Method::DELETE, &path, None).await;
            match &response {
                Ok((200, body)) => {
                    let rows = body.as_array().unwrap().iter();
                    let released: BTreeSet<IpNetwork> =
                        rows.map(|row| row["segment"].as_str().unwrap().parse().unwrap()).collect();
                    assert!(self.world.lags() || released == known, "{released:?} and not {known:?}");
                    return unsure || !released.is_superset(&known);
                }
                Ok((404, _)) if unsure => return true,
                Ok((404, _)) if self.world.lags() => {}
                Ok((503, _)) | Err(_) => unsure = true,
                Ok(other) => panic!("{} is not deregistered: {other:?}", self.name),
            }
            limit.pause(response).await;
        }
    }

    /// Takes all segments when no other node is left.
    pub(super) async fn fill(&mut self) {
        let limit = TimeLimit::new("every segment to be granted again");
        while self.registered.is_none() {
            self.join().await;
            limit.pause("no segment for a first node").await;
        }
        for (family, v4) in [("ipv4", true), ("ipv6", false)] {
            loop {
                while self.request_segments(&[family]).await.is_some() {}
                let held = self.list().await.into_iter().filter(|network| network.is_ipv4() == v4).count();
                if held == CAPACITY {
                    break;
                }
                assert!(held < CAPACITY, "{held} {family} segments");
                limit.pause(held).await;
            }
        }
        self.settle().await;
        self.leave().await;
    }
}

fn refused(response: &std::io::Result<HttpResponse>, why: &str) -> bool {
    response.as_ref().is_ok_and(|response| kind(response).1 == why)
}

fn networks(body: &Value) -> Vec<IpNetwork> {
    body["segments"].as_array().unwrap().iter().map(|network| network.as_str().unwrap().parse().unwrap()).collect()
}
