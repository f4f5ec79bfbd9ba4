//! The static peers, with what changes while the agent runs: the addresses of the host names in
//! `remote`, and the revocation lists. Names are resolved in separate tasks, never on the thread of
//! the tunnels. Lookups continue for as long as the agent runs, so that a peer with a dynamic
//! address is found again. If a name cannot be resolved, its last addresses stay in use. Revocation
//! lists are read again when their files change.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use edge_ike::{Auth, PeerConfig, check_credentials};
use edge_types::jitter;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::Instrument;

use crate::config::{Config, Remote, RemoteHost};
use crate::crl_files::{CrlFiles, FORMER_STAY};
use crate::incidents::Incidents;

/// The intervals at which a name is looked up, and at which files are looked at.
#[derive(Debug, Clone, Copy)]
struct LookupTiming {
    /// Maximum time between two lookups. Up to a fifth of it is subtracted at random.
    interval: Duration,
    /// Delay after the first failed lookup. It is doubled after each further failure, up to
    /// `interval`.
    first_retry: Duration,
    /// The interval at which the files of revocation lists are looked at.
    crls: Duration,
}

/// The intervals for real names: providers of dynamic DNS names use a TTL of about a minute.
const LOOKUP_TIMING: LookupTiming =
    LookupTiming { interval: Duration::from_secs(60), first_retry: Duration::from_secs(2), crls: CRL_INTERVAL };
/// Maximum number of addresses of one name that are used. Each address is tried.
const MAX_ADDRESSES: usize = 8;

/// The addresses of each name that has been resolved.
type Addresses = BTreeMap<String, Vec<IpAddr>>;

/// Interval at which the files of revocation lists are looked at.
const CRL_INTERVAL: Duration = Duration::from_secs(10);

/// The static peers in the configuration.
#[derive(Debug, Clone)]
pub struct StaticPeers {
    peers: Vec<StaticPeer>,
    crls: CrlFiles,
}

/// A static peer.
#[derive(Debug, Clone)]
struct StaticPeer {
    config: PeerConfig,
    /// The addresses and names in `remote`.
    remotes: Vec<Remote>,
    /// The file or directory with its revocation lists.
    crls: Option<PathBuf>,
}

impl StaticPeers {
    /// Reads the files that the `[[peer]]` tables name. Fails if one of the files cannot be used.
    pub fn load(config: &Config) -> Result<Self, String> {
        let mut crls = CrlFiles::default();
        let peers = config.peers.iter().map(|peer| {
            Ok(StaticPeer {
                config: peer.resolve(config, &mut crls)?,
                remotes: peer.remote.clone(),
                crls: peer.crls_path(config),
            })
        });
        Ok(Self { peers: peers.collect::<Result<_, String>>()?, crls })
    }

    /// Returns the peers, with the addresses that are known without a lookup.
    pub fn unresolved(&self) -> Vec<PeerConfig> {
        self.with(&Addresses::new())
    }

    /// Looks up the names and reads revocation lists that have changed, until the receivers of `to`
    /// are dropped. Sends the peers whenever addresses or lists have changed. Returns immediately
    /// if there are neither names nor lists.
    pub async fn follow(self, incidents: Incidents, to: watch::Sender<Vec<PeerConfig>>) {
        self.follow_by(lookup, LOOKUP_TIMING, incidents, to).await;
    }

    async fn follow_by<L>(
        mut self,
        lookup: impl Fn(String) -> L,
        timing: LookupTiming,
        incidents: Incidents,
        to: watch::Sender<Vec<PeerConfig>>,
    ) where
        L: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        let (mut known, mut lookups) = (Addresses::new(), JoinSet::new());
        let mut crl_tick = interval(timing.crls);
        crl_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let first = |name: String| {
            let found = lookup(name.clone());
            async move { (name, found.await, timing.first_retry) }.in_current_span()
        };
        for name in self.names() {
            lookups.spawn(first(name));
        }
        while !lookups.is_empty() || !self.crls.is_empty() {
            let finished = tokio::select! {
                Some(finished) = lookups.join_next() => finished,
                _ = crl_tick.tick(), if !self.crls.is_empty() => {
                    let incidents = incidents.clone();
                    let read = move || {
                        let changed = self.refresh_crls(&incidents);
                        (self, changed)
                    };
                    // This does not fail, because reading does not panic and is never cancelled.
                    let Ok((with_lists, changed)) = tokio::task::spawn_blocking(read).await else { return };
                    self = with_lists;
                    if changed {
                        to.send_replace(self.with(&known));
                    }
                    continue;
                }
                () = to.closed() => return,
            };
            let (name, found, retry) = match finished {
                // This does not occur, because a lookup does not panic and is never cancelled.
                Err(_) => continue,
                Ok(finished) => finished,
            };
            let (wait, retry) = match found {
                Ok(addresses) => {
                    let before = known.insert(name.clone(), addresses);
                    if before.as_ref() != known.get(&name) {
                        tracing::info!(%name, addresses = ?known.get(&name), "resolved");
                        to.send_replace(self.with(&known));
                    }
                    (timing.interval, timing.first_retry)
                }
                Err(error) => {
                    let peers = self.peers_at(&name).join(", ");
                    let last =
                        if known.contains_key(&name) { "its last addresses are used" } else { "it is tried again" };
                    incidents.error(format!("peer {peers}: remote {name:?} cannot be resolved ({error}); {last}"));
                    (retry, (retry * 2).min(timing.interval))
                }
            };
            let next = lookup(name.clone());
            let again = async move {
                sleep(jitter::between(wait * 4 / 5, wait)).await;
                (name, next.await, retry)
            };
            lookups.spawn(again.in_current_span());
        }
    }

    /// Reads the revocation lists that have changed, and gives them to the peers that use them.
    /// Returns whether a peer has other lists now.
    fn refresh_crls(&mut self, incidents: &Incidents) -> bool {
        let changed = self.crls.refresh(incidents);
        let mut any = false;
        for StaticPeer { config, crls, .. } in &mut self.peers {
            let (Auth::Certificate(auth), Some(path)) = (&config.auth, &crls) else { continue };
            let Some(policy) = auth.revocation.as_ref().map(|revocation| revocation.policy) else { continue };
            if !changed.contains(path) {
                continue;
            }
            let mut auth = auth.clone();
            let outcome = self.crls.load(path, policy).and_then(|revocation| {
                auth.revocation = Some(revocation);
                let auth = Auth::Certificate(auth);
                check_credentials(&auth).map(|()| auth).map_err(|problem| problem.to_string())
            });
            match outcome {
                Ok(auth) => {
                    config.auth = auth;
                    any = true;
                }
                Err(problem) => incidents.error(format!("peer {}: {problem}; {FORMER_STAY}", config.name)),
            }
        }
        any
    }

    /// Returns the names, each once.
    fn names(&self) -> Vec<String> {
        let hosts = self.peers.iter().flat_map(|peer| &peer.remotes).map(|remote| &remote.host);
        let mut names: Vec<String> = hosts.filter_map(RemoteHost::name).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names
    }

    fn peers_at(&self, name: &str) -> Vec<&str> {
        let here = |peer: &&StaticPeer| peer.remotes.iter().any(|remote| remote.host.name() == Some(name));
        self.peers.iter().filter(here).map(|peer| peer.config.name.as_str()).collect()
    }

    /// Returns the peers with these addresses in place of names, in the order of `remote`.
    fn with(&self, known: &Addresses) -> Vec<PeerConfig> {
        let peers = self.peers.iter().map(|StaticPeer { config, remotes, .. }| {
            let addresses = remotes.iter().flat_map(|remote| {
                let found = match &remote.host {
                    RemoteHost::Address(address) => std::slice::from_ref(address),
                    RemoteHost::Name(name) => known.get(name).map_or(&[][..], Vec::as_slice),
                };
                found.iter().map(|address| SocketAddr::new(*address, remote.port_or_default()))
            });
            PeerConfig { remotes: addresses.collect(), ..config.clone() }
        });
        peers.collect()
    }
}

/// Queries the system's resolver. The addresses are sorted, since resolvers change their order. All
/// addresses are candidates.
async fn lookup(name: String) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
    addresses.sort_by_key(|address| (address.is_ipv4(), *address));
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    if addresses.is_empty() {
        return Err(io::Error::other("it has no address"));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
        KeyIdMethod, KeyPair, PKCS_ED25519, RevokedCertParams, date_time_ymd,
    };

    use super::*;

    const PEERS: &str = "
[[peer]]
name = 'moon'
remote = ['192.0.2.9', 'moon.example:4500', '192.0.2.10']
local_id = 'sun.example'
remote_id = 'moon.example'
psk = 'correct horse battery staple'
local_subnets = ['10.1.0.0/16']
remote_subnets = ['10.2.0.0/16']

[[peer]]
name = 'luna'
remote = 'luna.example'
local_id = 'sun.example'
remote_id = 'luna.example'
psk = 'correct horse battery staple'
local_subnets = ['10.1.0.0/16']
remote_subnets = ['10.3.0.0/16']
";

    /// A resolver that returns the stored addresses of some names. The lookup of any other name
    /// fails.
    #[derive(Clone, Default)]
    struct Resolver(Arc<Mutex<BTreeMap<String, Vec<IpAddr>>>>);

    impl Resolver {
        fn set(&self, name: &str, addresses: &[&str]) {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            self.0.lock().unwrap().insert(name.into(), addresses);
        }

        async fn lookup(self, name: String) -> io::Result<Vec<IpAddr>> {
            let found = self.0.lock().unwrap().get(&name).filter(|found| !found.is_empty()).cloned();
            found.ok_or_else(|| io::Error::other("no such name"))
        }
    }

    const QUICK: LookupTiming = LookupTiming {
        interval: Duration::from_millis(20),
        first_retry: Duration::from_millis(5),
        crls: Duration::from_millis(5),
    };

    fn start(resolver: &Resolver) -> (watch::Receiver<Vec<PeerConfig>>, Incidents) {
        let config = Config::parse(PEERS, Path::new("agent.toml")).unwrap();
        let peers = StaticPeers::load(&config).unwrap();
        let (to, from) = watch::channel(peers.unresolved());
        let (incidents, resolver) = (Incidents::default(), resolver.clone());
        let follow = peers.follow_by(move |name| resolver.clone().lookup(name), QUICK, incidents.clone(), to);
        tokio::spawn(follow);
        (from, incidents)
    }

    fn remotes(peers: &watch::Receiver<Vec<PeerConfig>>, peer: usize) -> Vec<String> {
        peers.borrow()[peer].remotes.iter().map(ToString::to_string).collect()
    }

    async fn changed(peers: &mut watch::Receiver<Vec<PeerConfig>>) {
        peers.changed().await.unwrap();
    }

    #[tokio::test]
    async fn names_are_resolved_in_their_place_and_followed_when_they_change() {
        let resolver = Resolver::default();
        resolver.set("moon.example", &["2001:db8::1", "198.51.100.1"]);
        let (mut peers, incidents) = start(&resolver);
        assert_eq!(remotes(&peers, 0), ["192.0.2.9:500", "192.0.2.10:500"]);
        assert!(remotes(&peers, 1).is_empty());
        changed(&mut peers).await;
        assert_eq!(remotes(&peers, 0), ["192.0.2.9:500", "[2001:db8::1]:4500", "198.51.100.1:4500", "192.0.2.10:500"]);
        resolver.set("moon.example", &["198.51.100.2"]);
        changed(&mut peers).await;
        assert_eq!(remotes(&peers, 0), ["192.0.2.9:500", "198.51.100.2:4500", "192.0.2.10:500"]);
        assert!(incidents.latest().iter().all(|incident| incident.what.contains("luna")));
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_resolved_keeps_its_last_addresses_and_is_named() {
        let resolver = Resolver::default();
        let (mut peers, incidents) = start(&resolver);
        resolver.set("luna.example", &["198.51.100.7"]);
        changed(&mut peers).await;
        assert_eq!(remotes(&peers, 1), ["198.51.100.7:500"]);
        resolver.set("luna.example", &[]);
        let failed =
            || incidents.latest().into_iter().any(|incident| incident.what.contains("last addresses are used"));
        while !failed() {
            tokio::task::yield_now().await;
        }
        assert_eq!(remotes(&peers, 1), ["198.51.100.7:500"]);
        let named: Vec<_> = incidents.latest().into_iter().map(|incident| incident.what).collect();
        assert!(named.iter().any(|what| what.contains("moon.example") && what.contains("tried again")), "{named:?}");
        resolver.set("luna.example", &["198.51.100.8"]);
        changed(&mut peers).await;
        assert_eq!(remotes(&peers, 1), ["198.51.100.8:500"]);
    }

    /// An authority, and how many lists it has issued.
    struct Authority {
        issuer: CertifiedIssuer<'static, KeyPair>,
        lists: u32,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "CA");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
            Self { issuer: CertifiedIssuer::self_signed(params, key).unwrap(), lists: 0 }
        }

        /// Returns a list in PEM that revokes this many certificates.
        fn list(&mut self, revoked: u64) -> String {
            self.lists += 1;
            let entry = |serial: u64| RevokedCertParams {
                serial_number: serial.into(),
                revocation_time: date_time_ymd(2025, 1, 1),
                reason_code: None,
                invalidity_date: None,
            };
            let list = CertificateRevocationListParams {
                this_update: date_time_ymd(2025, 1, 1),
                next_update: date_time_ymd(2100, 1, 1),
                crl_number: u64::from(self.lists).into(),
                issuing_distribution_point: None,
                revoked_certs: (1..=revoked).map(entry).collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            list.signed_by(&self.issuer).unwrap().pem().unwrap()
        }
    }

    fn entries(peers: &watch::Receiver<Vec<PeerConfig>>) -> usize {
        let Auth::Certificate(auth) = &peers.borrow()[0].auth else { panic!() };
        auth.revocation.as_ref().unwrap().lists.entries()
    }

    #[tokio::test]
    async fn revocation_lists_are_read_again_when_they_change_and_stay_if_the_new_ones_cannot_be_used() {
        let (mut authority, mut stranger) = (Authority::new(), Authority::new());
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let params = CertificateParams::new(vec!["sun.example".to_owned()]).unwrap();
        std::fs::write(path("sun.pem"), params.signed_by(&key, &authority.issuer).unwrap().pem()).unwrap();
        std::fs::write(path("ca.pem"), authority.issuer.pem()).unwrap();
        std::fs::write(path("sun.key"), key.serialize_pem()).unwrap();
        std::fs::set_permissions(path("sun.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        // Each list takes the place of the one before in one step.
        let replace = |text: &str| {
            std::fs::write(path("new"), text).unwrap();
            std::fs::rename(path("new"), path("ca.crl")).unwrap();
        };
        replace(&authority.list(1));
        let config = "
[[peer]]
name = 'moon'
local_id = 'sun.example'
remote_id = 'moon.example'
certificate = 'sun.pem'
key = 'sun.key'
trust_anchors = 'ca.pem'
crls = 'ca.crl'
start = 'respond'
local_subnets = ['10.1.0.0/16']
remote_subnets = ['10.2.0.0/16']
";
        std::fs::write(path("agent.toml"), config).unwrap();
        let config = Config::load(&path("agent.toml")).unwrap();
        let statics = StaticPeers::load(&config).unwrap();
        let (to, mut peers) = watch::channel(statics.unresolved());
        let incidents = Incidents::default();
        tokio::spawn(statics.follow_by(|name| async move { unreachable!("{name}") }, QUICK, incidents.clone(), to));
        assert_eq!(entries(&peers), 1);
        replace(&authority.list(2));
        changed(&mut peers).await;
        assert_eq!(entries(&peers), 2);
        for (text, why) in [(stranger.list(3), "not signed with the key"), ("cut".to_owned(), "not DER of a CRL")] {
            replace(&text);
            while !incidents.latest().iter().any(|incident| incident.what.contains(why)) {
                tokio::task::yield_now().await;
            }
        }
        std::fs::remove_file(path("ca.crl")).unwrap();
        while !incidents.latest().iter().any(|incident| incident.what.contains("cannot be read")) {
            tokio::task::yield_now().await;
        }
        assert!(incidents.latest().iter().all(|incident| incident.what.contains("stay in force")));
        assert!(!peers.has_changed().unwrap());
        replace(&authority.list(4));
        changed(&mut peers).await;
        assert_eq!(entries(&peers), 4);
    }

    #[tokio::test]
    async fn without_names_nothing_is_looked_up() {
        let config = Config::parse(&PEERS.replace("'luna.example'", "'192.0.2.7'"), Path::new("agent.toml")).unwrap();
        assert_eq!(StaticPeers::load(&config).unwrap().names(), ["moon.example"]);
        let addresses =
            PEERS.replace("remote = 'luna.example'", "start = 'respond'").replace(", 'moon.example:4500'", "");
        let config = Config::parse(&addresses, Path::new("agent.toml")).unwrap();
        let peers = StaticPeers::load(&config).unwrap();
        let (to, _from) = watch::channel(peers.unresolved());
        peers.follow_by(|name| async move { unreachable!("{name}") }, QUICK, Incidents::default(), to).await;
    }
}
