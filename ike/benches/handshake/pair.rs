//! Two endpoints. Each receives the other's datagrams immediately.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use edge_ike::config::{
    AgentNotifications, Auth, CertificateAuth, ChildConfig, Cipher, EspProposal, Group, IkeProposal, Mode, NextLayer,
    PeerConfig, Prf, Timing,
};
use edge_ike::{
    AddressAssignment, ChildName, Childless, Endpoint, EndpointConfig, Environment, Event, Identity, Instant, PeerName,
    Secret, Transmit,
};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType,
    SignatureAlgorithm,
};
use ring::rand::{SecureRandom, SystemRandom};

const NAMES: [&str; 2] = ["left.example", "right.example"];
const ADDRESSES: [SocketAddr; 2] = [address(1), address(2)];

const fn address(host: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)), 500)
}

/// How both ends authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Authentication {
    /// Pre-shared key.
    Psk,
    /// Ed25519 certificates. The CA's key is also Ed25519.
    Ed25519,
    /// ECDSA P-256 certificates. The CA's key is also P-256.
    P256,
}

/// The configuration of both ends.
pub(crate) struct Recipe([PeerConfig; 2]);

impl Recipe {
    pub(crate) fn new(authentication: Authentication) -> Self {
        let auths = match authentication {
            Authentication::Psk => {
                [(); 2].map(|()| Auth::Psk(Secret::new(b"a pre-shared key of 32 octets...".to_vec())))
            }
            Authentication::Ed25519 => certificates(&PKCS_ED25519).map(Auth::Certificate),
            Authentication::P256 => certificates(&PKCS_ECDSA_P256_SHA256).map(Auth::Certificate),
        };
        let [left, right] = auths;
        Self([peer(0, left), peer(1, right)])
    }
}

/// Makes the configuration that end `us` has for its peer.
fn peer(us: usize, auth: Auth) -> PeerConfig {
    let them = 1 - us;
    let everything = || vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    PeerConfig {
        name: PeerName::new(NAMES[them]),
        local: Some(ADDRESSES[us].ip()),
        remotes: vec![ADDRESSES[them]],
        local_id: Identity::Fqdn(NAMES[us].into()),
        remote_id: Identity::Fqdn(NAMES[them].into()),
        auth,
        ike_proposals: vec![IkeProposal {
            ciphers: vec![Cipher::Aes256Gcm16],
            prfs: vec![Prf::HmacSha256],
            groups: vec![Group::X25519],
        }],
        child: ChildConfig {
            name: ChildName::new("net"),
            proposals: vec![EspProposal { ciphers: vec![Cipher::Aes256Gcm16], groups: vec![Group::X25519], esn: true }],
            local: everything(),
            remote: everything(),
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        },
        additional_children: vec![],
        max_children: 1,
        initiate: false,
        force_encapsulation: false,
        mobike: true,
        keep_existing: false,
        agent_notifications: AgentNotifications::Off,
        address_assignment: AddressAssignment::Off,
        childless: Childless::Allow,
        timing: Timing::default(),
    }
}

fn certificates(algorithm: &'static SignatureAlgorithm) -> [CertificateAuth; 2] {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().der().to_vec();
    let issuer = Issuer::new(params, key);
    NAMES.map(|name| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        CertificateAuth {
            chain: vec![params.signed_by(&key, &issuer).unwrap().der().to_vec()],
            key: Secret::new(key.serialize_der()),
            trust_anchors: vec![root.clone()],
            remote_uri: None,
            remote_key_usages: Vec::new(),
            remote_not_before: 0,
            remote_grace: Duration::ZERO,
            revocation: None,
        }
    })
}

/// Random numbers from the system, and consecutive SPIs.
struct System(u32);

impl Environment for System {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        SystemRandom::new().fill(bytes).unwrap();
    }
    fn random_is_from_system(&self) -> bool {
        true
    }
    fn unix_time(&self) -> u64 {
        1_800_000_000
    }
    fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
        self.0 += 1;
        Some(self.0)
    }
    fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
}

/// Two endpoints that are configured for each other and have not sent any message yet.
pub(crate) struct Pair([(Endpoint, System); 2]);

impl Pair {
    pub(crate) fn new(recipe: &Recipe) -> Self {
        Self([0, 1].map(|us| {
            let (mut endpoint, mut system) = (Endpoint::new(EndpointConfig::default()), System(256));
            endpoint.set_peer(recipe.0[us].clone(), Instant::default(), &mut system).unwrap();
            (endpoint, system)
        }))
    }

    /// Makes two endpoints, of which the right one is this one.
    pub(crate) fn with_responder(recipe: &Recipe, right: Endpoint) -> Self {
        let mut pair = Self::new(recipe);
        let (endpoint, system) = &mut pair.0[1];
        *endpoint = right;
        endpoint.set_peer(recipe.0[1].clone(), Instant::default(), system).unwrap();
        pair
    }

    /// Returns the left end's IKE_SA_INIT request.
    pub(crate) fn first_request(&mut self) -> Vec<u8> {
        let (left, system) = &mut self.0[0];
        assert!(left.connect(&PeerName::new(NAMES[1]), Instant::default(), system), "left knows right");
        left.poll_transmit().expect("a request").payload
    }

    /// Gives a datagram to the right end. Returns its answer.
    pub(crate) fn responder_takes(&mut self, datagram: &[u8], from: SocketAddr, now: Instant) -> Option<Transmit> {
        let (right, system) = &mut self.0[1];
        right.handle(datagram, ADDRESSES[1], from, now, system);
        right.poll_transmit()
    }

    /// Establishes a CHILD_SA; the left end initiates. Returns the lengths of all datagrams. Panics
    /// if either end has no CHILD_SA afterwards.
    pub(crate) fn shake(&mut self) -> Vec<usize> {
        let now = Instant::default();
        let [(left, system), _] = &mut self.0;
        assert!(left.connect(&PeerName::new(NAMES[1]), now, system), "left knows right");
        let (mut lengths, mut datagrams, mut up) = (Vec::new(), Vec::new(), [false; 2]);
        loop {
            for ((endpoint, _), up) in self.0.iter_mut().zip(&mut up) {
                while let Some(event) = endpoint.poll_event() {
                    *up |= matches!(event, Event::ChildUp { .. });
                }
                datagrams.extend(std::iter::from_fn(|| endpoint.poll_transmit()));
            }
            if datagrams.is_empty() {
                break;
            }
            for datagram in datagrams.drain(..) {
                lengths.push(datagram.payload.len());
                let to = ADDRESSES.iter().position(|address| address.ip() == datagram.remote.ip()).unwrap();
                let (endpoint, system) = &mut self.0[to];
                endpoint.handle(&datagram.payload, datagram.remote, datagram.local, now, system);
            }
        }
        assert_eq!(up, [true; 2], "both ends have a CHILD_SA");
        lengths
    }
}
