//! Tests the window for the peer's requests (RFC 7296 2.3) with a peer that sends several requests
//! at once, in any order, and loses some of them and of our responses.

use std::collections::BTreeMap;

use edge_ike::config::AgentNotifications;

use crate::foreign::{Foreign, Part, delete_child, notification};
use crate::network::Random;
use crate::oracle::octets::{Message, exchange, notify};
use crate::peers::{PSK, SECOND};

/// The window that our node announces.
const WINDOW: u32 = 4;

fn announced(message: &Message) -> Option<Vec<u8>> {
    message.notify(notify::SET_WINDOW_SIZE).map(|notify| notify.data)
}

/// Returns the message IDs of the responses among these datagrams.
fn answered(foreign: &Foreign, datagrams: &[Vec<u8>]) -> Vec<u32> {
    let headers = datagrams.iter().map(|datagram| foreign.open(datagram).header);
    headers.filter(|header| header.response()).map(|header| header.id).collect()
}

#[test]
fn a_window_is_announced_in_ike_auth_except_to_agents_of_ours() {
    //= RFC 7296 2.3 MUST 1: four octets
    let mut foreign = Foreign::new(1, |_| {});
    assert_eq!(announced(&foreign.authenticate(PSK)), Some(WINDOW.to_be_bytes().to_vec()));
    let mut agent = Foreign::new(1, |config| config.agent_notifications = AgentNotifications::Exchange);
    assert_eq!(announced(&agent.authenticate(PSK)), None);
    let next = agent.next_id;
    let early = agent.seal(exchange::INFORMATIONAL, false, next + 1, &[]);
    assert_eq!(agent.exchange(early), Vec::<Vec<u8>>::new());
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.extend(agent.request(exchange::INFORMATIONAL, &[]).iter().map(|message| message.header.id));
    }
    assert_eq!(ids, [next, next + 1], "each when it came");
}

#[test]
pub fn requests_that_overtake_each_other_are_carried_out_in_order_and_their_answers_are_kept() {
    //= RFC 7296 2.3 MUST 7: a copy of the response
    //= RFC 7296 2.3 REQUIRED 12: requests out of order
    let mut foreign = Foreign::established(1, |_| {});
    let next = foreign.next_id;
    // Each request needs the one before it.
    let parts = [
        (exchange::CREATE_CHILD_SA, Foreign::rekey_parts(foreign.child.0, 0xf002)),
        (exchange::INFORMATIONAL, vec![delete_child(foreign.child.0)]),
        (exchange::CREATE_CHILD_SA, rekey_parts(0xf002, 0xf003, 0xef)),
        (exchange::INFORMATIONAL, vec![delete_child(0xf002)]),
    ];
    let requests: Vec<Vec<u8>> =
        (next..).zip(&parts).map(|(id, (exchange, parts))| foreign.seal(*exchange, false, id, parts)).collect();
    for early in [3, 1, 1, 2] {
        assert_eq!(foreign.exchange(requests[early].clone()), Vec::<Vec<u8>>::new(), "request {early} waits");
    }
    let answers = foreign.exchange(requests[0].clone());
    assert_eq!(answered(&foreign, &answers), [next, next + 1, next + 2, next + 3]);
    assert!(answers.iter().all(|answer| foreign.open(answer).error().is_none()));
    assert_eq!(foreign.open(&answers[1]).deleted_children(), [foreign.child.1]);
    for again in [2, 0, 3, 1] {
        assert_eq!(foreign.exchange(requests[again].clone()), [answers[again].clone()], "request {again} again");
    }
    // The fifth request shows that the peer has the answer to the first one.
    foreign.next_id += 4;
    assert_eq!(foreign.request(exchange::INFORMATIONAL, &[]).len(), 1);
    assert_eq!(foreign.exchange(requests[0].clone()), Vec::<Vec<u8>>::new());
    assert_eq!(foreign.exchange(requests[1].clone()), [answers[1].clone()]);
}

#[test]
pub fn no_more_requests_wait_than_were_announced_and_none_that_is_forged() {
    //= RFC 7296 2.3 MUST NOT 9: no answer outside of the window
    let mut foreign = Foreign::established(1, |_| {});
    let next = foreign.next_id;
    for id in [next + WINDOW, next + 2 * WINDOW - 1] {
        let beyond = foreign.seal(exchange::INFORMATIONAL, false, id, &[]);
        assert_eq!(foreign.exchange(beyond), Vec::<Vec<u8>>::new());
    }
    let mut forged = foreign.seal(exchange::INFORMATIONAL, false, next + 1, &[]);
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(foreign.exchange(forged), Vec::<Vec<u8>>::new());
    for id in next..next + WINDOW {
        let request = foreign.seal(exchange::INFORMATIONAL, false, id, &[]);
        let answers = foreign.exchange(request);
        assert_eq!(answered(&foreign, &answers), [id]);
    }
}

#[test]
fn an_ike_sa_that_was_rekeyed_begins_with_a_window_of_one() {
    //= RFC 7296 2.3 REQUIRED 11: one until the initial exchanges are complete
    let mut foreign = Foreign::established(1, |_| {});
    let (old, next) = (foreign.child.0, foreign.next_id);
    // The rekey and the deletion of the old IKE SA may be sent at once.
    let parts = foreign.rekey_ike_parts(0x77);
    let rekey = foreign.seal(exchange::CREATE_CHILD_SA, false, next, &parts);
    let answers = foreign.exchange(rekey);
    let response = foreign.open(&answers[0]);
    assert_eq!((response.error(), announced(&response)), (None, None), "it would be about the old IKE SA");
    foreign.take_rekeyed(&response, 0x77);
    let early = foreign.seal(exchange::INFORMATIONAL, false, 1, &[]);
    assert_eq!(foreign.exchange(early), Vec::<Vec<u8>>::new());
    let created = foreign.request(exchange::CREATE_CHILD_SA, &rekey_parts(old, 0xf002, 0xef));
    assert_eq!(created.len(), 1, "the early one did not wait");
    assert_eq!(announced(&created[0]), Some(WINDOW.to_be_bytes().to_vec()));
    let early = foreign.seal(exchange::INFORMATIONAL, false, 2, &[]);
    assert_eq!(foreign.exchange(early), Vec::<Vec<u8>>::new());
    let both = foreign.request(exchange::INFORMATIONAL, &[delete_child(old)]);
    assert_eq!(both.iter().map(|message| message.header.id).collect::<Vec<_>>(), [1, 2]);
    assert!(both.iter().all(|message| announced(message).is_none()), "once is enough");
}

#[test]
fn the_last_requests_of_an_ike_sa_that_is_rekeyed_and_deleted_may_come_early() {
    let mut foreign = Foreign::established(1, |_| {});
    let next = foreign.next_id;
    let parts = foreign.rekey_ike_parts(0x77);
    let rekey = foreign.seal(exchange::CREATE_CHILD_SA, false, next, &parts);
    let delete = foreign.seal(exchange::INFORMATIONAL, false, next + 1, &[(42, vec![1, 0, 0, 0])]);
    assert_eq!(foreign.exchange(delete), Vec::<Vec<u8>>::new());
    let answers = foreign.exchange(rekey);
    assert_eq!(answered(&foreign, &answers), [next, next + 1]);
    let response = foreign.open(&answers[0]);
    foreign.take_rekeyed(&response, 0x77);
    let deleted = foreign.request(exchange::INFORMATIONAL, &[delete_child(foreign.child.0)]).remove(0);
    assert_eq!(deleted.deleted_children(), [foreign.child.1], "the CHILD_SA moved before the DELETE");
}

/// Returns the payloads of a rekey with a nonce of these octets, since no two may have the same.
fn rekey_parts(old: u32, new: u32, nonce: u8) -> Vec<Part> {
    let mut parts = Foreign::rekey_parts(old, new);
    parts[2].1 = vec![nonce; 32];
    parts
}

/// A peer that uses the whole window, on a network that loses and reorders.
struct Peer {
    foreign: Foreign,
    random: Random,
    /// The requests without a response, by message ID.
    outstanding: BTreeMap<u32, Vec<u8>>,
    /// All responses, by message ID.
    answers: BTreeMap<u32, Vec<u8>>,
    spi: u32,
    /// The SPIs of our CHILD_SAs, newest last.
    children: Vec<u32>,
}

impl Peer {
    fn send_next(&mut self) {
        let id = self.foreign.next_id;
        self.foreign.next_id += 1;
        let newest = *self.children.last().unwrap();
        let (exchange, parts) = match self.random.below(6) {
            0 => (exchange::INFORMATIONAL, Vec::new()),
            1 => {
                // An SPI that may be unknown, redundant, or in use.
                let spi = newest.saturating_sub(1 + self.random.below(3) as u32);
                (exchange::INFORMATIONAL, vec![delete_child(spi)])
            }
            2 | 3 => {
                self.spi += 1;
                self.children.push(self.spi);
                (exchange::CREATE_CHILD_SA, rekey_parts(newest, self.spi, self.spi as u8 ^ 0x80))
            }
            4 => (exchange::INFORMATIONAL, vec![notification(40_000, 0, &[], &[7; 300])]),
            _ => (200, Vec::new()),
        };
        let datagram = self.foreign.seal(exchange, false, id, &parts);
        self.outstanding.insert(id, datagram);
    }

    fn round(&mut self) {
        while self.outstanding.len() < WINDOW as usize
            && self.outstanding.first_key_value().is_none_or(|(id, _)| self.foreign.next_id < id + WINDOW)
        {
            self.send_next();
        }
        let mut datagrams: Vec<Vec<u8>> = self.outstanding.values().cloned().collect();
        datagrams.sort_by_cached_key(|_| self.random.next());
        for datagram in datagrams {
            if self.random.chance(30) {
                continue;
            }
            for arrived in self.foreign.exchange(datagram) {
                self.take(&arrived);
            }
        }
        self.foreign.network.run_for(SECOND / 10);
        for arrived in self.foreign.arrived() {
            self.take(&arrived);
        }
    }

    fn take(&mut self, datagram: &[u8]) {
        let message = self.foreign.open(datagram);
        if !message.header.response() {
            // The peer answers our node's requests, now and then late.
            if self.random.chance(70) {
                for arrived in answer(&mut self.foreign, &message) {
                    self.take(&arrived);
                }
            }
            return;
        }
        let id = message.header.id;
        let first = self.answers.entry(id).or_insert_with(|| datagram.to_vec());
        assert_eq!(first, datagram, "response {id} is always the same");
        if self.random.chance(70) {
            self.outstanding.remove(&id);
        }
    }
}

fn answer(foreign: &mut Foreign, request: &Message) -> Vec<Vec<u8>> {
    let parts = if request.header.exchange == exchange::CREATE_CHILD_SA {
        vec![notification(notify::TEMPORARY_FAILURE, 0, &[], &[])]
    } else {
        Vec::new()
    };
    let datagram = foreign.seal(request.header.exchange, true, request.header.id, &parts);
    foreign.exchange(datagram)
}

#[test]
pub fn a_peer_that_uses_the_whole_window_on_a_bad_network_is_answered_in_order() {
    for seed in 0..20 {
        let foreign = Foreign::established(seed, |_| {});
        let (outstanding, answers, children) = (BTreeMap::new(), BTreeMap::new(), vec![foreign.child.0]);
        let first = foreign.next_id;
        let random = Random(seed);
        let mut peer = Peer { foreign, random, outstanding, answers, spi: 0xf001, children };
        for _ in 0..30 {
            peer.round();
        }
        assert!(peer.answers.len() >= 20, "seed {seed}: {} responses", peer.answers.len());
        let ids: Vec<u32> = peer.answers.keys().copied().collect();
        assert_eq!(ids, (first..first + ids.len() as u32).collect::<Vec<_>>(), "seed {seed}");
    }
}
