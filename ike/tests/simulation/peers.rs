//! Configurations for the tests.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_ike::config::{AgentNotifications, Cipher, EspProposal, Group, IkeProposal, Mode, NextLayer, Prf, Timing};
use edge_ike::event::{PeerError, PeerErrorKind};
use edge_ike::{
    AddressAssignment, Auth, ChildConfig, ChildName, Childless, Endpoint, EndpointConfig, Event, Identity, PeerConfig,
    PeerName, Secret,
};

use crate::network::{LinkQuality, Nat, Network};

pub const SECOND: Duration = Duration::from_secs(1);

/// The pre-shared key of both ends of [`Pair`].
pub const PSK: &[u8] = b"correct horse battery staple";
/// The pre-shared key that replaces [`PSK`].
pub const OTHER_PSK: &[u8] = b"another one";

pub fn name(text: &str) -> PeerName {
    PeerName::new(text)
}

/// Makes the configuration that our own nodes use for a peer.
pub fn peer(us: &str, them: &str, remotes: &[&str]) -> PeerConfig {
    let everything = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    PeerConfig {
        name: name(them),
        local: None,
        remotes: remotes.iter().map(|ip| SocketAddr::new(ip.parse::<IpAddr>().unwrap(), 500)).collect(),
        local_id: Identity::Fqdn(us.to_owned()),
        remote_id: Identity::Fqdn(them.to_owned()),
        auth: Auth::Psk(Secret::new(PSK.to_vec())),
        ike_proposals: vec![IkeProposal {
            ciphers: vec![Cipher::Aes256Gcm16, Cipher::ChaCha20Poly1305],
            prfs: vec![Prf::HmacSha256],
            groups: vec![Group::X25519, Group::P256],
        }],
        child: ChildConfig {
            name: ChildName::new("net"),
            proposals: vec![EspProposal { ciphers: vec![Cipher::Aes256Gcm16], groups: Vec::new(), esn: true }],
            local: everything.clone(),
            remote: everything,
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        },
        additional_children: vec![],
        max_children: 1,
        initiate: true,
        force_encapsulation: true,
        mobike: true,
        keep_existing: false,
        agent_notifications: AgentNotifications::Off,
        address_assignment: AddressAssignment::Off,
        childless: Childless::Allow,
        timing: Timing::default(),
    }
}

/// Gives a peer this number of CHILD_SAs, each for its own networks.
pub fn with_children(config: &mut PeerConfig, children: usize) {
    if children == 1 {
        return;
    }
    let child = |index: usize| {
        let networks = vec![format!("10.{index}.0.0/16").parse().unwrap()];
        let name = ChildName::new(&format!("net{index}"));
        ChildConfig { name, local: networks.clone(), remote: networks, ..config.child.clone() }
    };
    config.additional_children = (1..children).map(child).collect();
    config.child = child(0);
    config.max_children = children;
}

/// Two nodes. `b` has the larger identity.
pub struct Pair {
    pub network: Network,
    pub a: usize,
    pub b: usize,
    pub a_name: PeerName,
    pub b_name: PeerName,
    pub a_config: PeerConfig,
    pub b_config: PeerConfig,
}

impl Pair {
    pub fn new(seed: u64, quality: LinkQuality) -> Self {
        Self::with_nats(seed, quality, None, None)
    }

    pub fn with_nats(seed: u64, quality: LinkQuality, a_nat: Option<Nat>, b_nat: Option<Nat>) -> Self {
        let mut network = Network::new(seed, quality);
        let a_at = a_nat.as_ref().map_or("10.0.0.1".to_owned(), |nat| nat.public.to_string());
        let b_at = b_nat.as_ref().map_or("10.0.0.2".to_owned(), |nat| nat.public.to_string());
        let a = network.add("10.0.0.1", a_nat);
        let b = network.add("10.0.0.2", b_nat);
        Self {
            network,
            a,
            b,
            a_name: name("a.example"),
            b_name: name("b.example"),
            a_config: peer("a.example", "b.example", &[&b_at]),
            b_config: peer("b.example", "a.example", &[&a_at]),
        }
    }

    /// Makes two nodes whose owners report ESP.
    pub fn reporting_esp(seed: u64, quality: LinkQuality) -> Self {
        Self::new(seed, quality).reports_esp()
    }

    /// Replaces both endpoints by some whose owners report ESP.
    pub fn reports_esp(mut self) -> Self {
        let config = EndpointConfig { esp_reported: true, ..EndpointConfig::default() };
        for node in &mut self.network.nodes {
            node.endpoint = Endpoint::new(config.clone());
        }
        self
    }

    /// Lets only `a` initiate.
    pub fn one_sided(mut self) -> Self {
        self.b_config.initiate = false;
        self
    }

    /// Changes both configurations.
    pub fn both(mut self, change: impl Fn(&mut PeerConfig)) -> Self {
        change(&mut self.a_config);
        change(&mut self.b_config);
        self
    }

    pub fn start_a(&mut self) {
        let config = self.a_config.clone();
        self.network.call(self.a, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    }

    pub fn start_b(&mut self) {
        let config = self.b_config.clone();
        self.network.call(self.b, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    }

    /// Configures both ends, `b` first.
    pub fn start(&mut self) {
        self.start_b();
        self.start_a();
    }

    /// Runs a connection attempt by `a` that must fail. Checks that no state is left at either end
    /// afterwards, and that no readable output contains the secret.
    pub fn refused(mut self) -> Refused {
        self.start();
        self.network.run_for(20 * SECOND);
        let shown: Vec<String> =
            self.network.nodes.iter().map(|node| format!("{:?}", node.endpoint.snapshot())).collect();
        let b_name = self.b_name.clone();
        self.network.call(self.a, |endpoint, now, env| endpoint.terminate(&b_name, now, env));
        // 60 s is longer than the lifetimes of a half-open IKE SA and of a deleted IKE SA's last
        // response.
        self.network.run_for(60 * SECOND);
        self.network.assert_nothing_left();
        let [a, b] = [self.a, self.b].map(|node| &self.network.nodes[node]);
        let up = |(_, event): &(Duration, Event)| matches!(event, Event::ChildUp { .. });
        assert!(!a.events.iter().any(up), "there was a tunnel:{}", self.network.history());
        let shown = format!("{shown:?} {:?} {:?}", a.events, b.events);
        assert!(!shown.contains("correct horse"), "{shown}");
        Refused {
            a: ReportedErrors(a.reported_errors()),
            b: ReportedErrors(b.reported_errors()),
            network: self.network,
        }
    }

    /// Advances the time with traffic in both directions. After the first packet of a direction has
    /// arrived, all later ones must arrive.
    pub fn traffic(&mut self, time: Duration) {
        self.network.watch = true;
        let (a_name, b_name) = (self.a_name.clone(), self.b_name.clone());
        self.network.run_with_traffic(time, (self.a, &a_name), (self.b, &b_name));
    }

    /// Checks that both ends have one IKE SA and one CHILD_SA with each other, and agree.
    pub fn assert_connected(&self) {
        let (a, b) = (&self.network.nodes[self.a].host.kernel, &self.network.nodes[self.b].host.kernel);
        let a_out = a.tunnels[&self.b_name].sole_outbound().expect("a sends");
        let b_out = b.tunnels[&self.a_name].sole_outbound().expect("b sends");
        assert_eq!(a_out.outbound_spi, b_out.inbound_spi);
        assert_eq!(b_out.outbound_spi, a_out.inbound_spi);
        assert!(a_out.outbound_key == b_out.inbound_key && b_out.outbound_key == a_out.inbound_key);
        assert_eq!((a.ike_sas.len(), b.ike_sas.len()), (1, 1));
        self.network.assert_tidy();
    }
}

/// The errors that both ends reported about a tunnel that did not come up.
pub struct Refused {
    pub a: ReportedErrors,
    pub b: ReportedErrors,
    pub network: Network,
}

/// The errors that one end reported.
#[derive(Debug)]
pub struct ReportedErrors(Vec<PeerError>);

impl ReportedErrors {
    /// Checks that there are errors, and that all are of this kind and contain all these words.
    pub fn is(&self, kind: PeerErrorKind, words: &[&str]) {
        assert!(!self.0.is_empty(), "nothing was reported");
        for error in &self.0 {
            assert_eq!(error.kind, kind, "{error}");
            let text = error.to_string();
            let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
            assert!(missing.is_empty(), "{text} does not say {missing:?}");
        }
    }
}
