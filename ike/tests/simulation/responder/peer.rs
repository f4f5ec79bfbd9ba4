//! The responder with its IKE SAs, and the requests that it sends itself.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::{Childless, PeerConfig};
use x25519_dalek::{PublicKey, StaticSecret};

use super::choices::{Asked, Choice, Own};
use crate::foreign::{FOREIGN_ID, Foreign, OUR_ID, Part, clear, delete_child, encode_chain, notification};
use crate::foreign::{esp_proposal, ike_proposal, key_exchange};
use crate::network::{LinkQuality, Network};
use crate::oracle;
use crate::oracle::keys::{CURVE25519, Keys, Suite};
use crate::oracle::octets::{FLAG_INITIATOR, FLAG_RESPONSE, Header, Message, Spis, chain, exchange, notify, payload};
use crate::peers::{SECOND, peer};

const PRIVATE_KEY: [u8; 32] = [7; 32];
/// Time after which a half-open IKE SA ends.
const HALF_OPEN: Duration = Duration::from_secs(30);
/// Time after which the responder sends a request again.
const RETRANSMIT: Duration = Duration::from_secs(2);
/// Number of transmissions of a request. Then the responder ends the IKE SA.
const TRANSMISSIONS: u8 = 5;
/// Silence after which it checks whether we are alive.
const LIVENESS: Duration = Duration::from_secs(20);
/// Number of responses that it keeps for each IKE SA, and of those to IKE_SA_INIT.
const KEPT: usize = 8;

/// A CHILD_SA of the responder.
#[derive(Debug, Clone)]
pub struct Child {
    /// Our inbound SPI.
    pub theirs: u32,
    /// The bodies of the TS payloads of the responder's side and of ours.
    pub selectors: (Vec<u8>, Vec<u8>),
}

/// The responder's request that waits for a response.
#[derive(Debug)]
struct Waiting {
    own: Own,
    id: u32,
    datagram: Vec<u8>,
    sent: u8,
    again_at: Duration,
    /// The SPI of the CHILD_SA that it is about.
    child: u32,
    /// The SPI of the new SA.
    new: u64,
    nonce: Vec<u8>,
}

/// An IKE SA of the responder.
#[derive(Debug)]
pub struct Sa {
    pub spis: Spis,
    /// Whether the responder is its original initiator, after a rekey.
    initiator: bool,
    pub keys: Keys,
    /// The responder's address and ours.
    path: (SocketAddr, SocketAddr),
    /// The IKE_SA_INIT exchange: the nonces, and the response.
    pub init: (Vec<u8>, Vec<u8>, Vec<u8>),
    pub up: bool,
    /// Whether another IKE SA has replaced this one by a rekey.
    replaced: bool,
    /// By the responder's inbound SPIs.
    pub children: BTreeMap<u32, Child>,
    next_id: u32,
    iv: u64,
    heard: Duration,
    waiting: Option<Waiting>,
    /// The responses to the last requests. `None` for a request that gets none.
    answers: VecDeque<(u32, Option<Vec<u8>>)>,
}

impl Sa {
    /// Returns the responder's SPI.
    pub fn own_spi(&self) -> u64 {
        if self.initiator { self.spis.0 } else { self.spis.1 }
    }

    fn seal(&mut self, exchange: u8, response: bool, id: u32, parts: &[Part]) -> Vec<u8> {
        self.iv += 1;
        let flags = if self.initiator { FLAG_INITIATOR } else { 0 } | if response { FLAG_RESPONSE } else { 0 };
        let header = Header { spis: self.spis, next: 0, version: 0x20, exchange, flags, id };
        let first = parts.first().map_or(0, |part| part.0);
        self.keys.seal(header, first, &encode_chain(parts), self.iv).unwrap()
    }

    fn open(&self, header: Header, datagram: &[u8]) -> Option<Message> {
        let opened = self.keys.open(!self.initiator, datagram)?;
        Some(Message { header, payloads: chain(opened.first, &opened.inner).ok()? })
    }

    /// Returns whether a request of the responder's own makes it put off this request.
    pub fn is_busy(&self, asked: Asked) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| match asked {
            Asked::Child { .. } => waiting.own != Own::Liveness,
            Asked::IkeRekey => waiting.own != Own::Liveness,
            _ => false,
        })
    }

    /// Returns when the responder does something by itself.
    fn due(&self) -> Duration {
        match &self.waiting {
            _ if !self.up => self.heard + HALF_OPEN,
            Some(waiting) => waiting.again_at,
            None => self.heard + LIVENESS,
        }
    }
}

/// The responder, and the network with our node, which is the initiator.
pub struct Responder {
    pub network: Network,
    pub config: PeerConfig,
    /// Decides what the responder does with a request.
    pub policy: Box<dyn FnMut(Asked) -> Choice>,
    /// By the responder's SPIs.
    pub sas: BTreeMap<u64, Sa>,
    /// When a request of ours arrived, and what it was for. Contains retransmissions.
    pub requests: Vec<(Duration, u8)>,
    inits: VecDeque<(Vec<u8>, Option<Vec<u8>>)>,
    count: u64,
}

impl Responder {
    pub fn new(seed: u64, change: impl FnOnce(&mut PeerConfig)) -> Self {
        let mut network = Network::new(seed, LinkQuality::RELIABLE);
        network.add("10.0.0.1", None);
        let mut config = peer(OUR_ID, FOREIGN_ID, &[&Foreign::address().ip().to_string()]);
        config.force_encapsulation = false;
        config.timing.liveness = 60 * SECOND;
        change(&mut config);
        let set = config.clone();
        network.call(0, |endpoint, now, env| endpoint.set_peer(set, now, env)).unwrap();
        Self {
            network,
            config,
            policy: Box::new(|_| Choice::Agree),
            sas: BTreeMap::new(),
            requests: Vec::new(),
            inits: VecDeque::new(),
            count: 0,
        }
    }

    /// Returns a number that was not returned before.
    pub fn fresh(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// Returns a nonce that was not returned before.
    pub fn nonce(&mut self) -> Vec<u8> {
        [[0x5a; 24].as_slice(), &self.fresh().to_be_bytes()].concat()
    }

    pub fn public() -> [u8; 32] {
        PublicKey::from(&StaticSecret::from(PRIVATE_KEY)).to_bytes()
    }

    /// Returns the secret that is shared with the sender of a message.
    pub fn secret(message: &Message) -> Option<[u8; 32]> {
        let theirs: [u8; 32] = message.key_exchange()?.1.try_into().ok()?;
        Some(StaticSecret::from(PRIVATE_KEY).diffie_hellman(&PublicKey::from(theirs)).to_bytes())
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.network.now + time;
        while self.network.now < end {
            let due = self.sas.values().map(Sa::due).min().unwrap_or(end);
            self.network.run_until_outside(end.min(due.max(self.network.now)));
            for (from, to, octets) in std::mem::take(&mut self.network.outside) {
                let marker = if to.port() == 4500 { 4 } else { 0 };
                self.receive((to, from), octets.get(marker..).unwrap_or_default());
            }
            self.keep();
        }
    }

    fn send(&mut self, (local, remote): (SocketAddr, SocketAddr), datagram: Vec<u8>) {
        let marker: &[u8] = if local.port() == 4500 { &[0; 4] } else { &[] };
        self.network.inject(local, remote, [marker, &datagram].concat());
    }

    fn receive(&mut self, path: (SocketAddr, SocketAddr), datagram: &[u8]) {
        let Ok(header) = Header::read(datagram) else { return };
        if !header.response() {
            self.requests.push((self.network.now, header.exchange));
        }
        if header.exchange == exchange::IKE_SA_INIT {
            return self.receive_init(path, datagram);
        }
        let spi = if header.initiator_flag() { header.spis.1 } else { header.spis.0 };
        let now = self.network.now;
        let Some(sa) = self.sas.get_mut(&spi) else { return };
        let Some(message) = sa.open(header, datagram) else { return };
        (sa.heard, sa.path) = (now, path);
        if header.response() { self.concluded(spi, &message) } else { self.answer(spi, &message) }
    }

    fn receive_init(&mut self, path: (SocketAddr, SocketAddr), datagram: &[u8]) {
        let known = self.inits.iter().find(|(request, _)| request == datagram).map(|(_, answer)| answer.clone());
        let answer = known.unwrap_or_else(|| {
            let request = oracle::clear(datagram).unwrap();
            let choice = (self.policy)(Asked::Init);
            let answer = self.answer_init(path, &request, choice);
            self.inits.push_front((datagram.to_vec(), answer.clone()));
            self.inits.truncate(KEPT);
            answer.filter(|_| choice != Choice::Loss)
        });
        if let Some(answer) = answer {
            self.send(path, answer);
        }
    }

    /// Makes the response to IKE_SA_INIT, and the IKE SA if there is one.
    fn answer_init(&mut self, path: (SocketAddr, SocketAddr), request: &Message, choice: Choice) -> Option<Vec<u8>> {
        if choice == Choice::Silence {
            return None;
        }
        let header = |spi| Header { spis: (request.header.spis.0, spi), flags: FLAG_RESPONSE, ..request.header };
        let known = request.key_exchange().is_some_and(|(group, _)| group == CURVE25519);
        let choice = if known || choice == Choice::Cookie { choice } else { Choice::OtherGroup(CURVE25519) };
        if let Some(parts) = self.refusal(request, choice) {
            return Some(clear(&header(0), &parts));
        }
        let (spi, nonce) = (self.fresh(), self.nonce());
        let mut parts = vec![ike_proposal(None), key_exchange(&Self::public()), (payload::NONCE, nonce.clone())];
        if self.config.childless == Childless::Prefer {
            parts.push(notification(notify::CHILDLESS_IKEV2_SUPPORTED, 0, &[], &[]));
        }
        Self::change(&mut parts, choice);
        let response = clear(&header(spi), &parts);
        let spis = (request.header.spis.0, spi);
        let theirs = request.nonce()?.to_vec();
        let suite = Suite::of(&oracle::clear(&response)?.proposals()[0]);
        let keys = Keys::initial(suite, (&theirs, &nonce), spis, &Self::secret(request)?)?;
        self.add(path, spis, false, keys, (theirs, nonce, response.clone()));
        Some(response)
    }

    /// Adds an IKE SA that is not up.
    fn add(
        &mut self,
        path: (SocketAddr, SocketAddr),
        spis: Spis,
        initiator: bool,
        keys: Keys,
        init: (Vec<u8>, Vec<u8>, Vec<u8>),
    ) -> u64 {
        let sa = Sa {
            spis,
            initiator,
            keys,
            path,
            init,
            up: false,
            replaced: false,
            children: BTreeMap::new(),
            next_id: 0,
            iv: 0,
            heard: self.network.now,
            waiting: None,
            answers: VecDeque::new(),
        };
        let spi = sa.own_spi();
        self.sas.insert(spi, sa);
        spi
    }

    /// Adds the IKE SA that a rekey creates. It takes the CHILD_SAs. `message` is ours, and
    /// `nonces` are those of the request and the response.
    pub fn add_rekeyed(&mut self, old: u64, spis: Spis, initiator: bool, message: &Message, nonces: (&[u8], &[u8])) {
        let old = self.sas.get_mut(&old).unwrap();
        let children = std::mem::take(&mut old.children);
        old.replaced = true;
        let (suite, secret) = (Suite::of(&message.proposals()[0]), Self::secret(message).unwrap());
        let (path, keys) = (old.path, old.keys.rekeyed(suite, nonces, spis, &secret).unwrap());
        let spi = self.add(path, spis, initiator, keys, Default::default());
        let new = self.sas.get_mut(&spi).unwrap();
        (new.children, new.up) = (children, true);
    }

    /// Answers a request of ours on an IKE SA.
    fn answer(&mut self, spi: u64, request: &Message) {
        let sa = &self.sas[&spi];
        let (id, path) = (request.header.id, sa.path);
        if let Some((_, answer)) = sa.answers.iter().find(|(known, _)| *known == id) {
            if let Some(answer) = answer.clone() {
                self.send(path, answer);
            }
            return;
        }
        let asked = Asked::of(request);
        if !sa.up && asked != Asked::Auth {
            return;
        }
        let choice = (self.policy)(asked);
        let answer = (choice != Choice::Silence).then(|| self.parts(spi, asked, request, choice));
        if let Choice::Before(own) = choice {
            self.begin(spi, own);
        }
        let Some(sa) = self.sas.get_mut(&spi) else { return };
        let answer = answer.map(|parts| sa.seal(request.header.exchange, true, id, &parts));
        sa.answers.push_front((id, answer.clone()));
        sa.answers.truncate(KEPT);
        let (ends, sent) = (!sa.up && answer.is_some(), answer.filter(|_| choice != Choice::Loss));
        if let Some(answer) = sent {
            self.send(path, answer);
        }
        if ends {
            // It answers a repeated request as long as a half-open IKE SA exists.
            self.sas.get_mut(&spi).unwrap().children.clear();
        }
        if let Choice::Then(own) = choice {
            self.begin(spi, own);
        }
    }

    /// Sends a request of the responder's own on the newest IKE SA.
    pub fn begin_on_newest(&mut self, own: Own) {
        if let Some(spi) = self.sas.values().filter(|sa| sa.up).map(Sa::own_spi).max() {
            self.begin(spi, own);
        }
    }

    /// Sends a request of the responder's own, unless another one waits or there is nothing to send
    /// it for.
    fn begin(&mut self, spi: u64, own: Own) {
        let (new, nonce) = (self.fresh(), self.nonce());
        let Some(sa) = self.sas.get(&spi).filter(|sa| sa.up && sa.waiting.is_none()) else { return };
        let newest = sa.children.last_key_value().map(|(spi, child)| (*spi, child.clone()));
        let about = newest.as_ref().map_or(0, |(spi, _)| *spi);
        let parts = match (own, newest) {
            (Own::Liveness, _) => Vec::new(),
            (Own::IkeDeletion, _) => vec![(payload::DELETE, vec![1, 0, 0, 0])],
            (Own::IkeRekey, _) if sa.replaced => return,
            (Own::IkeRekey, _) => {
                vec![ike_proposal(Some(new)), (payload::NONCE, nonce.clone()), key_exchange(&Self::public())]
            }
            (Own::ChildDeletion, Some((child, _))) => vec![delete_child(child)],
            (Own::ChildRekey, Some((child, Child { selectors, .. }))) => vec![
                notification(notify::REKEY_SA, 3, &child.to_be_bytes(), &[]),
                esp_proposal(new as u32),
                (payload::NONCE, nonce.clone()),
                (payload::TS_INITIATOR, selectors.0),
                (payload::TS_RESPONDER, selectors.1),
            ],
            (Own::ChildDeletion | Own::ChildRekey, None) => return,
        };
        self.request(spi, own, about, (new, nonce), &parts);
    }

    fn request(&mut self, spi: u64, own: Own, child: u32, (new, nonce): (u64, Vec<u8>), parts: &[Part]) {
        let again_at = self.network.now + RETRANSMIT;
        let Some(sa) = self.sas.get_mut(&spi) else { return };
        let exchange = match own {
            Own::ChildRekey | Own::IkeRekey => exchange::CREATE_CHILD_SA,
            Own::Liveness | Own::ChildDeletion | Own::IkeDeletion => exchange::INFORMATIONAL,
        };
        let id = sa.next_id;
        sa.next_id += 1;
        let (datagram, path) = (sa.seal(exchange, false, id, parts), sa.path);
        sa.waiting = Some(Waiting { own, id, datagram: datagram.clone(), sent: 1, again_at, child, new, nonce });
        self.send(path, datagram);
    }

    /// Handles the response to a request of the responder's own.
    fn concluded(&mut self, spi: u64, response: &Message) {
        let Some(sa) = self.sas.get_mut(&spi) else { return };
        let Some(Waiting { own, child, new, nonce, .. }) =
            sa.waiting.take_if(|waiting| waiting.id == response.header.id)
        else {
            return;
        };
        let done = response.error().is_none();
        match own {
            Own::Liveness => {}
            Own::ChildDeletion => {
                sa.children.remove(&child);
            }
            Own::IkeDeletion => {
                self.sas.remove(&spi);
            }
            Own::ChildRekey if done => {
                let theirs = response.proposals()[0].spi32();
                let of = |kind| response.find(kind).unwrap_or_default().to_vec();
                let selectors = (of(payload::TS_INITIATOR), of(payload::TS_RESPONDER));
                sa.children.insert(new as u32, Child { theirs, selectors });
                self.request(spi, Own::ChildDeletion, child, (0, Vec::new()), &[delete_child(child)]);
            }
            Own::IkeRekey if done => {
                let spis = (new, response.proposals()[0].spi64());
                self.add_rekeyed(spi, spis, true, response, (&nonce, response.nonce().unwrap()));
                self.request(spi, Own::IkeDeletion, 0, (0, Vec::new()), &[(payload::DELETE, vec![1, 0, 0, 0])]);
            }
            Own::ChildRekey if response.error() == Some(notify::CHILD_SA_NOT_FOUND) => {
                sa.children.remove(&child);
            }
            Own::ChildRekey | Own::IkeRekey => {}
        }
    }

    /// Ends IKE SAs that are half-open for too long or on which we do not respond, sends requests
    /// again, and checks whether we are alive.
    fn keep(&mut self) {
        let now = self.network.now;
        let given_up = |sa: &Sa| !sa.up || sa.waiting.as_ref().is_some_and(|waiting| waiting.sent >= TRANSMISSIONS);
        self.sas.retain(|_, sa| sa.due() > now || !given_up(sa));
        let due: Vec<u64> = self.sas.values().filter(|sa| sa.due() <= now).map(Sa::own_spi).collect();
        for spi in due {
            let sa = self.sas.get_mut(&spi).unwrap();
            let (path, Some(waiting)) = (sa.path, &mut sa.waiting) else {
                self.begin(spi, Own::Liveness);
                continue;
            };
            (waiting.sent, waiting.again_at) = (waiting.sent + 1, now + RETRANSMIT);
            let datagram = waiting.datagram.clone();
            self.send(path, datagram);
        }
    }
}

impl Drop for Responder {
    /// Shows what came before a failure that the oracle does not report.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.network.oracle.story());
        }
    }
}
