//! Tests how much an unauthenticated sender can make an endpoint store and send.

use super::*;
use crate::crypto::{IkeCipher, IkeKeys, IkeRole, IkeSuite, InitiatorKeyExchange, Nonces, Opened};
use crate::endpoint::state::SaState;
use crate::event::IkeId;
use crate::wire::{
    AuthMethod, Authentication, ExchangeType, Header, Id, KeyExchange, Message, Notify, NotifyType, Payload, Payloads,
    Proposal, Protocol, Transform, TransformType,
};

const NONCE: [u8; 32] = [0x5a; 32];

/// An endpoint with one configured peer, and the datagrams that it sends to unknown senders.
pub(super) struct Victim {
    pub(super) endpoint: Endpoint,
    pub(super) host: Host,
    pub(super) now: Duration,
    sent: Vec<Transmit>,
    events: Vec<Event>,
}

impl Victim {
    pub(super) fn new() -> Self {
        Self::with(EndpointConfig::default())
    }

    pub(super) fn with(config: EndpointConfig) -> Self {
        let mut victim = Self {
            endpoint: Endpoint::new(config),
            host: Host::new(1),
            now: Duration::from_secs(1000),
            sent: Vec::new(),
            events: Vec::new(),
        };
        let peer = super::config(1, Auth::Psk(Secret::new(b"not known to strangers".to_vec())));
        let peer = PeerConfig { initiate: false, ..peer };
        victim.endpoint.set_peer(peer, Instant::new(victim.now), &mut victim.host).unwrap();
        victim
    }

    /// Handles a message from this address, which may stand for a TCP connection. Returns the first
    /// message that the endpoint sends back.
    pub(super) fn take(&mut self, datagram: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
        let connection = TcpConnectionId::of(from.ip());
        let (local, marker): (SocketAddr, &[u8]) = match connection {
            Some(connection) => (SocketAddr::new(connection.local(), 4500), &[0; 4]),
            None => (ADDRESSES[1].parse().unwrap(), &[]),
        };
        let received = [marker, datagram].concat();
        self.endpoint.handle(&received, local, from, Instant::new(self.now), &mut self.host);
        let sent: Vec<_> = std::iter::from_fn(|| self.endpoint.poll_transmit()).collect();
        let answer = sent.first().map(|transmit| transmit.payload[marker.len()..].to_vec());
        self.sent.extend(sent);
        self.events.extend(std::iter::from_fn(|| self.endpoint.poll_event()));
        answer
    }

    /// Handles an IKE_SA_INIT, with a cookie if the endpoint requests one.
    pub(super) fn take_init(&mut self, init: &Init, from: SocketAddr) -> Option<Vec<u8>> {
        let answer = self.take(&init.encode(None), from)?;
        let cookie = Message::decode(&answer).unwrap().payloads.notify(NotifyType::Cookie).map(|n| n.data.clone());
        match cookie {
            Some(cookie) => self.take(&init.encode(Some(cookie)), from),
            None => Some(answer),
        }
    }

    pub(super) fn half_open(&self) -> usize {
        self.endpoint.sas.len()
    }
}

/// An IKE_SA_INIT request.
pub(super) struct Init {
    spi: u64,
    share: KeyExchange,
    /// Key exchange methods that the initiator offers beside that of its share.
    groups: Vec<Group>,
    more: Vec<Payload>,
}

impl Init {
    pub(super) fn new(spi: u64) -> Self {
        let share = KeyExchange { group: Group::X25519.number(), data: vec![9; 32] };
        Self { spi, share, groups: Vec::new(), more: Vec::new() }
    }

    pub(super) fn encode(&self, cookie: Option<Vec<u8>>) -> Vec<u8> {
        let mut transforms = vec![
            Transform::encryption(Cipher::Aes256Gcm16),
            Transform::prf(Prf::HmacSha256),
            Transform::new(TransformType::KeyExchange, self.share.group),
        ];
        transforms.extend(self.groups.iter().map(|group| Transform::group(*group)));
        let proposal = Proposal { number: 1, protocol: Protocol::Ike, spi: Vec::new(), transforms };
        let header = Header {
            initiator_spi: self.spi,
            responder_spi: 0,
            exchange: ExchangeType::IkeSaInit,
            from_initiator: true,
            response: false,
            message_id: 0,
        };
        let cookie = cookie.map(|data| Payload::Notify(Notify::with_data(NotifyType::Cookie, data)));
        let payloads: Payloads = cookie
            .into_iter()
            .chain([
                Payload::SecurityAssociation(vec![proposal]),
                Payload::KeyExchange(self.share.clone()),
                Payload::Nonce(NONCE.to_vec()),
            ])
            .chain(self.more.clone())
            .collect();
        Message { header, payloads }.encode()
    }
}

pub(super) fn source(number: u32) -> SocketAddr {
    SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0000 + number).into(), 500)
}

#[test]
fn a_share_of_another_length_than_the_groups_is_not_kept() {
    let mut victim = Victim::new();
    for len in [0, 31, 33, 60_000] {
        let mut init = Init::new(1);
        init.share.data = vec![9; len];
        assert_eq!(victim.take(&init.encode(None), source(1)), None, "{len} octets");
        assert_eq!(victim.half_open(), 0, "{len} octets");
    }
    assert!(victim.take(&Init::new(1).encode(None), source(1)).is_some());
    assert_eq!(victim.half_open(), 1);
}

#[test]
fn a_first_message_larger_than_any_honest_one_is_not_read() {
    //= RFC 7296 2 MUST 1: messages of 1280 octets
    //= RFC 7296 2 SHOULD 2: messages of 3000 octets
    let mut victim = Victim::new();
    let mut init = Init::new(1);
    init.more = vec![Payload::VendorId(vec![7; 3000])];
    assert!(victim.take(&init.encode(None), source(1)).is_some(), "3000 octets are honest (RFC 7296 2)");
    init.spi = 2;
    init.more = vec![Payload::VendorId(vec![7; 5000])];
    assert_eq!(victim.take(&init.encode(None), source(1)), None);
    assert_eq!(victim.half_open(), 1);
}

#[test]
fn one_address_does_not_take_all_places_of_half_open_ike_sas() {
    let mut victim = Victim::new();
    for spi in 1..=5000 {
        victim.take_init(&Init::new(spi), source(1));
    }
    assert!(victim.half_open() < 128, "{}", victim.half_open());
    for other in 2..=1000 {
        let answer = victim.take_init(&Init::new(7), source(other)).expect("it is served");
        assert_ne!(Message::decode(&answer).unwrap().header.responder_spi, 0, "address {other}");
    }
}

/// Makes a request with a share that is expensive to answer.
pub(super) fn expensive(spi: u64) -> Init {
    let share = KeyExchange { group: Group::Modp4096.number(), data: [vec![0; 511], vec![9]].concat() };
    Init { share, ..Init::new(spi) }
}

/// Makes an endpoint whose peer may use an expensive group.
pub(super) fn victim_with_modp() -> Victim {
    let mut victim = Victim::new();
    let peer = PeerConfig {
        initiate: false,
        ike_proposals: vec![IkeProposal {
            ciphers: vec![Cipher::Aes256Gcm16],
            prfs: vec![Prf::HmacSha256],
            groups: vec![Group::X25519, Group::Modp4096],
        }],
        ..super::config(1, Auth::Psk(Secret::new(b"not known to strangers".to_vec())))
    };
    victim.endpoint.set_peer(peer, Instant::new(victim.now), &mut victim.host).unwrap();
    victim
}

#[test]
fn strangers_cause_a_bounded_amount_of_expensive_key_exchanges() {
    let mut victim = victim_with_modp();
    let is_cookie = |answer: &[u8]| Message::decode(answer).unwrap().payloads.notify(NotifyType::Cookie).is_some();
    for second in 0..2 {
        // The sources may be forged. The endpoint soon requests a cookie, although few IKE SAs are
        // half-open.
        let answers: Vec<_> = (0..20)
            .map(|n| victim.take(&expensive(n + 1).encode(None), source(second * 1000 + n as u32)).unwrap())
            .collect();
        let answered = answers.iter().filter(|answer| !is_cookie(answer)).count();
        assert!((1..=4).contains(&answered), "{answered} without a cookie");
        // The sources are real. They get at most a quarter of a processor's time.
        let served =
            (100..160).filter(|&n| victim.take_init(&expensive(n), source(second * 1000 + n as u32)).is_some());
        let served = served.count() + answered;
        assert!((20..=34).contains(&served), "{served} in a second");
        // Initiators with other key exchange methods do not have to wait.
        assert!(!is_cookie(&victim.take_init(&Init::new(999), source(5000 + second)).unwrap()));
        victim.now += Duration::from_secs(1);
    }
}

#[test]
fn one_stranger_does_not_use_up_the_expensive_key_exchanges_of_all() {
    let mut victim = victim_with_modp();
    let served = (0..100).filter(|&n| victim.take_init(&expensive(n + 1), source(1)).is_some()).count();
    assert!((8..=17).contains(&served), "{served} for one stranger");
    assert!(victim.take_init(&expensive(200), source(2)).is_some(), "another stranger");
    // Also many strangers leave a configured peer its own share.
    for n in 0..200 {
        victim.take_init(&expensive(n + 300), source(n as u32 + 10));
    }
    assert_eq!(victim.take_init(&expensive(600), source(600)), None);
    assert!(victim.take_init(&expensive(700), ADDRESSES[0].parse().unwrap()).is_some(), "a configured address");
}

#[test]
fn addresses_of_one_ipv6_network_count_as_one() {
    let mut victim = Victim::new();
    let within = |network: u16, host: u16| SocketAddr::new([0x2001, 0xdb8, 0, network, 0, 0, 0, host].into(), 500);
    for host in 1..=5000 {
        victim.take_init(&Init::new(host.into()), within(1, host));
    }
    assert!(victim.half_open() < 128, "{}", victim.half_open());
    assert!(victim.take_init(&Init::new(7), within(2, 1)).is_some());
}

#[test]
fn places_are_free_again_when_half_open_ike_sas_have_gone() {
    let mut victim = Victim::new();
    for _ in 0..3 {
        for spi in 1..=500 {
            victim.take_init(&Init::new(spi), source(1));
        }
        let taken = victim.half_open();
        assert!(taken >= 64, "{taken}");
        victim.now += Duration::from_secs(31);
        victim.endpoint.handle_timeout(Instant::new(victim.now), &mut victim.host);
        assert_eq!(victim.half_open(), 0);
    }
}

/// The initiator of a half-open IKE SA.
pub(super) struct Initiator {
    cipher: IkeCipher,
    header: Header,
    pub(super) from: SocketAddr,
}

impl Initiator {
    /// Exchanges IKE_SA_INIT with this SPI, and with a cookie if one is requested.
    pub(super) fn begin(victim: &mut Victim, spi: u64, from: SocketAddr) -> Option<Self> {
        let mut host = Host::new(spi);
        let key = InitiatorKeyExchange::start(Group::X25519, &mut host).unwrap();
        let init = Init { share: key.payload(), ..Init::new(spi) };
        let response = Message::decode(&victim.take_init(&init, from)?).unwrap();
        let ike = IkeId { initiator: spi, responder: response.header.responder_spi };
        let shared = key.finish(response.payloads.key_exchange().unwrap()).unwrap();
        let suite = IkeSuite { cipher: Cipher::Aes256Gcm16, prf: Prf::HmacSha256, group: Group::X25519 };
        let nonces = Nonces { initiator: &NONCE, responder: response.payloads.nonce().unwrap() };
        let cipher = IkeCipher::new(IkeKeys::initial(suite, nonces, ike, &shared), IkeRole::Initiator);
        let header = Header {
            initiator_spi: ike.initiator,
            responder_spi: ike.responder,
            exchange: ExchangeType::IkeAuth,
            from_initiator: true,
            response: false,
            message_id: 1,
        };
        Some(Self { cipher, header, from })
    }

    /// Sends an IKE_AUTH that nobody accepts, in fragments. Returns the response.
    pub(super) fn authenticate(&mut self, victim: &mut Victim, octets: usize) -> Option<Vec<u8>> {
        let fragments = self.fragments(octets);
        fragments.iter().filter_map(|fragment| victim.take(fragment, self.from)).last()
    }

    /// Sends all fragments of an IKE_AUTH except the last one. An initiator can encrypt them, since
    /// it has the keys from IKE_SA_INIT.
    pub(super) fn begin_to_authenticate(&mut self, victim: &mut Victim, octets: usize) {
        let fragments = self.fragments(octets);
        for fragment in &fragments[..fragments.len() - 1] {
            victim.take(fragment, self.from);
        }
    }

    pub(super) fn fragments(&mut self, octets: usize) -> Vec<Vec<u8>> {
        let payloads = Payloads::from(vec![Payload::VendorId(vec![7; octets])]);
        self.cipher.seal(&self.header, &payloads, Some(1232)).unwrap()
    }
}

#[test]
fn fragments_before_authentication_take_little_memory_in_all() {
    let mut victim = Victim::new();
    for number in 1..=600 {
        let from = source(u32::try_from(number).unwrap() / 8);
        if let Some(mut initiator) = Initiator::begin(&mut victim, number, from) {
            initiator.begin_to_authenticate(&mut victim, 31_000);
        }
    }
    let kept = victim.endpoint.sas.values().map(|state| match state {
        SaState::HalfOpen(half_open, _) => half_open.octets() + half_open.fragment_octets(),
        _ => 0,
    });
    let kept: usize = kept.sum();
    assert!((1 << 20..8 << 20).contains(&kept), "{kept} octets are kept");
    assert!(victim.take_init(&Init::new(9999), source(99_999)).is_some(), "others are served");
}

#[test]
fn one_source_of_many_fragments_keeps_nobody_else_from_authenticating() {
    let mut victim = Victim::new();
    let fill = |victim: &mut Victim, from: u64| {
        for spi in from..from + 80 {
            Initiator::begin(victim, spi, source(1)).unwrap().begin_to_authenticate(victim, 31_000);
        }
    };
    fill(&mut victim, 1);
    let mut honest = Initiator::begin(&mut victim, 1000, source(2)).unwrap();
    let [first, last] = &honest.fragments(2000)[..] else { panic!("two fragments") };
    assert_eq!(victim.take(first, honest.from), None);
    fill(&mut victim, 2000);
    assert!(victim.take(last, honest.from).is_some(), "an answer, although it is a refusal");
}

#[test]
fn many_sources_of_small_fragments_and_a_configured_address_with_many_keep_nobody_out() {
    let mut victim = Victim::new();
    let known = ADDRESSES[0].parse().unwrap();
    // A host behind the NAT of a peer.
    for spi in 1..=80 {
        Initiator::begin(&mut victim, spi, known).unwrap().begin_to_authenticate(&mut victim, 31_000);
    }
    let mut stranger = Initiator::begin(&mut victim, 1000, source(1)).unwrap();
    let [first, last] = &stranger.fragments(2000)[..] else { panic!("two fragments") };
    assert_eq!(victim.take(first, stranger.from), None);
    Initiator::begin(&mut victim, 1001, known).unwrap().begin_to_authenticate(&mut victim, 31_000);
    assert!(victim.take(last, stranger.from).is_some(), "a stranger is not crowded out by a configured address");
    // As many strangers as it takes, each with less than the peer needs.
    let mut peer = Initiator::begin(&mut victim, 2000, "192.0.2.1:4500".parse().unwrap()).unwrap();
    let [first, second, last] = &peer.fragments(3000)[..] else { panic!("three fragments") };
    victim.take(first, peer.from);
    victim.take(second, peer.from);
    for number in 2..2000 {
        if let Some(mut initiator) = Initiator::begin(&mut victim, 10_000 + u64::from(number), source(number)) {
            initiator.begin_to_authenticate(&mut victim, 1500);
        }
    }
    assert!(victim.take(last, peer.from).is_some(), "a configured address is not crowded out by strangers");
}

#[test]
fn messages_with_a_wrong_spi_of_the_initiator_change_nothing() {
    let mut victim = Victim::new();
    for _ in 0..3 {
        for spi in 1..=64 {
            let answer = victim.take_init(&Init::new(spi), source(1)).unwrap();
            let header = Message::decode(&answer).unwrap().header;
            for exchange in [ExchangeType::IkeAuth, ExchangeType::Informational] {
                let header = Header {
                    initiator_spi: spi ^ 1,
                    exchange,
                    from_initiator: true,
                    response: false,
                    message_id: 1,
                    ..header
                };
                let bare = Message { header, payloads: Payloads::new() }.encode();
                assert_eq!(victim.take(&bare, source(1)), None);
            }
        }
        assert_eq!(victim.half_open(), 64);
        assert_eq!(victim.endpoint.init_request_guard.half_open.len(), 64);
        victim.now += Duration::from_secs(31);
        victim.endpoint.handle_timeout(Instant::new(victim.now), &mut victim.host);
        assert_eq!(victim.half_open(), 0);
        assert_eq!(victim.endpoint.init_request_guard.half_open.len(), 0);
        let answer = victim.take(&Init::new(999).encode(None), source(1)).unwrap();
        assert!(Message::decode(&answer).unwrap().payloads.notify(NotifyType::Cookie).is_none());
        victim.now += Duration::from_secs(31);
        victim.endpoint.handle_timeout(Instant::new(victim.now), &mut victim.host);
    }
}

/// Fills the table of half-open IKE SAs from as many networks as it takes.
fn fill_from_many_networks(victim: &mut Victim) {
    for network in 0..64 {
        for host in 1..=64 {
            let from = SocketAddr::new([0x2001, 0xdb8, 1, network, 0, 0, 0, host].into(), 500);
            victim.take_init(&Init::new(u64::from(network) * 100 + u64::from(host)), from).unwrap();
        }
    }
    assert_eq!(victim.half_open(), EndpointConfig::default().half_open_limit);
}

#[test]
fn a_full_table_of_half_open_ike_sas_keeps_nobody_out_who_returns_a_cookie() {
    let mut victim = Victim::new();
    fill_from_many_networks(&mut victim);
    // A configured address, and a stranger's.
    for from in [ADDRESSES[0].parse().unwrap(), source(1)] {
        let mut initiator = Initiator::begin(&mut victim, 7_000_000, from).expect("it is answered");
        assert!(initiator.authenticate(&mut victim, 100).is_some());
    }
    // The oldest one made room, and no state is left of it.
    let known = Initiator::begin(&mut victim, 7_000_001, ADDRESSES[0].parse().unwrap());
    for spi in 1..=5000 {
        let from = SocketAddr::new([0x2001, 0xdb8, 2, spi, 0, 0, 0, 1].into(), 500);
        victim.take_init(&Init::new(spi.into()), from).unwrap();
    }
    let limit = EndpointConfig::default().half_open_limit;
    assert_eq!(victim.endpoint.init_request_guard.half_open.len(), limit);
    let half_open = victim.endpoint.sas.values().filter(|state| matches!(state, SaState::HalfOpen(..)));
    assert_eq!(half_open.count(), limit);
    assert!(known.unwrap().authenticate(&mut victim, 100).is_some(), "no stranger takes the place of a known address");
}

#[test]
fn who_cannot_authenticate_learns_nothing_about_who_is_configured() {
    let mut victim = Victim::new();
    // Of two more peers, one does not have the proposal that is used here.
    let other = PeerConfig {
        name: PeerName::new("other"),
        remote_id: Identity::Fqdn("other.example".into()),
        initiate: false,
        ike_proposals: vec![IkeProposal {
            ciphers: vec![Cipher::Aes256Gcm16],
            prfs: vec![Prf::HmacSha256],
            groups: vec![Group::P256],
        }],
        ..super::config(1, Auth::Psk(Secret::new(b"not known either".to_vec())))
    };
    victim.endpoint.set_peer(other, Instant::new(victim.now), &mut victim.host).unwrap();
    for (number, claimed) in (1..).zip([NAMES[0], "other.example", "nobody.example"]) {
        let mut initiator = Initiator::begin(&mut victim, number, source(1)).unwrap();
        let payloads = Payloads::from(vec![
            Payload::IdInitiator(Id::from(&Identity::Fqdn(claimed.into()))),
            Payload::Authentication(Authentication { method: AuthMethod::SharedKey, data: vec![1; 32] }),
            // RFC 4555 3.9: these addresses are not those of the IP header.
            Payload::Notify(Notify::with_data(NotifyType::NoNatsAllowed, vec![9; 12])),
        ]);
        let request = initiator.cipher.seal(&initiator.header, &payloads, None).unwrap();
        let response = victim.take(&request[0], initiator.from).unwrap();
        let Ok(Opened::Message(answer)) = initiator.cipher.open(&response) else { panic!("one message") };
        let kinds: Vec<_> = answer.notifies().map(|notify| notify.kind).collect();
        assert_eq!(kinds, [NotifyType::AuthenticationFailed], "{claimed}");
    }
}

#[test]
fn refused_ike_auths_of_one_source_cost_a_bounded_amount_of_work() {
    let mut victim = Victim::new();
    for _ in 0..2 {
        let initiators: Vec<_> = (1..=60).map(|spi| Initiator::begin(&mut victim, spi, source(1)).unwrap()).collect();
        let mut answered = 0;
        for mut initiator in initiators {
            answered += usize::from(initiator.authenticate(&mut victim, 100).is_some());
        }
        assert!((8..=32).contains(&answered), "{answered} were looked at");
        let answer = victim.take(&Init::new(100).encode(None), source(1)).unwrap();
        assert!(Message::decode(&answer).unwrap().payloads.notify(NotifyType::Cookie).is_some());
        // Another source does not have to wait.
        assert!(Initiator::begin(&mut victim, 101, source(2)).unwrap().authenticate(&mut victim, 100).is_some());
        victim.now += Duration::from_secs(31);
        victim.endpoint.handle_timeout(Instant::new(victim.now), &mut victim.host);
    }
}

#[test]
fn copies_of_a_first_request_are_answered_as_often_as_an_honest_initiator_sends_it_again() {
    //= RFC 7296 2.1 REQUIRED 9: IKE_SA_INIT again is the whole message
    let mut victim = Victim::new();
    let request = Init::new(1).encode(None);
    let answers = (0..1000).filter(|_| victim.take(&request, source(1)).is_some()).count();
    assert!((12..=20).contains(&answers), "{answers} answers");
}

#[test]
fn refusals_and_cookies_go_to_one_source_at_a_limited_rate() {
    //= RFC 7296 2.21.4 REQUIRED 11: rate of answers
    let busy = EndpointConfig { cookie_threshold: 0, ..EndpointConfig::default() };
    let no_group = |spi| Init { share: KeyExchange { group: 1, data: vec![0; 96] }, ..Init::new(spi) };
    let other_group = |spi| Init {
        share: KeyExchange { group: 1, data: vec![0; 96] },
        groups: vec![Group::X25519],
        ..Init::new(spi)
    };
    type MakeInit<'a> = &'a dyn Fn(u64) -> Init;
    let cases: [(EndpointConfig, MakeInit<'_>, NotifyType); 3] = [
        (busy, &Init::new, NotifyType::Cookie),
        (EndpointConfig::default(), &other_group, NotifyType::InvalidKePayload),
        (EndpointConfig::default(), &no_group, NotifyType::NoProposalChosen),
    ];
    for (config, init, expected) in cases {
        let mut victim = Victim::with(config);
        let mut answers = 0;
        for spi in 1..=1000 {
            let request = init(spi).encode(None);
            let Some(answer) = victim.take(&request, source(1)) else { continue };
            assert!(Message::decode(&answer).unwrap().payloads.notify(expected).is_some(), "{expected}");
            assert!(answer.len() < request.len(), "{expected}: a forged source gets less than was sent");
            answers += 1;
        }
        assert_eq!(answers, 256, "{expected}");
        assert!(victim.take(&init(1).encode(None), source(2)).is_some(), "{expected}: another source");
        victim.now += Duration::from_secs(1);
        assert!(victim.take(&init(1).encode(None), source(1)).is_some(), "{expected}: later");
    }
}
