//! Resolves the host names in the static peers' `remote`. Names are resolved in separate tasks,
//! never on the thread of the tunnels. Lookups continue for as long as the agent runs, so that a
//! peer with a dynamic address is found again. If a name cannot be resolved, its last addresses
//! stay in use.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_ike::PeerConfig;
use edge_types::jitter;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::Instrument;

use crate::config::{Config, Remote, RemoteHost};
use crate::incidents::Incidents;

/// The intervals at which a name is looked up.
#[derive(Debug, Clone, Copy)]
struct LookupTiming {
    /// Maximum time between two lookups. Up to a fifth of it is subtracted at random.
    interval: Duration,
    /// Delay after the first failed lookup. It is doubled after each further failure, up to
    /// `interval`.
    first_retry: Duration,
}

/// The intervals for real names: providers of dynamic DNS names use a TTL of about a minute.
const LOOKUP_TIMING: LookupTiming =
    LookupTiming { interval: Duration::from_secs(60), first_retry: Duration::from_secs(2) };
/// Maximum number of addresses of one name that are used. Each address is tried.
const MAX_ADDRESSES: usize = 8;

/// The addresses of each name that has been resolved.
type Addresses = BTreeMap<String, Vec<IpAddr>>;

/// The static peers in the configuration, with the addresses and names in `remote`.
#[derive(Debug, Clone)]
pub struct StaticPeers(Vec<(PeerConfig, Vec<Remote>)>);

impl StaticPeers {
    /// Reads the files that the `[[peer]]` tables name. Fails if one of the files cannot be used.
    pub fn load(config: &Config) -> Result<Self, String> {
        let peers = config.peers.iter().map(|peer| Ok((peer.resolve(config)?, peer.remote.clone())));
        peers.collect::<Result<_, _>>().map(Self)
    }

    /// Returns the peers, with the addresses that are known without a lookup.
    pub fn unresolved(&self) -> Vec<PeerConfig> {
        self.with(&Addresses::new())
    }

    /// Looks up the names until the receivers of `to` are dropped. Sends the peers whenever
    /// addresses have changed. Returns immediately if there is no name.
    pub async fn follow_names(self, incidents: Incidents, to: watch::Sender<Vec<PeerConfig>>) {
        self.follow_names_by(lookup, LOOKUP_TIMING, incidents, to).await;
    }

    async fn follow_names_by<L>(
        self,
        lookup: impl Fn(String) -> L,
        timing: LookupTiming,
        incidents: Incidents,
        to: watch::Sender<Vec<PeerConfig>>,
    ) where
        L: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        let (mut known, mut lookups) = (Addresses::new(), JoinSet::new());
        let first = |name: String| {
            let found = lookup(name.clone());
            async move { (name, found.await, timing.first_retry) }.in_current_span()
        };
        for name in self.names() {
            lookups.spawn(first(name));
        }
        loop {
            let finished = tokio::select! {
                finished = lookups.join_next() => finished,
                () = to.closed() => return,
            };
            let (name, found, retry) = match finished {
                None => return,
                // This does not occur, because a lookup does not panic and is never cancelled.
                Some(Err(_)) => continue,
                Some(Ok(finished)) => finished,
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

    /// Returns the names, each once.
    fn names(&self) -> Vec<String> {
        let hosts = self.0.iter().flat_map(|(_, remotes)| remotes).map(|remote| &remote.host);
        let mut names: Vec<String> = hosts.filter_map(RemoteHost::name).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names
    }

    fn peers_at(&self, name: &str) -> Vec<&str> {
        let here = |remotes: &[Remote]| remotes.iter().any(|remote| remote.host.name() == Some(name));
        self.0.iter().filter(|(_, remotes)| here(remotes)).map(|(peer, _)| peer.name.as_str()).collect()
    }

    /// Returns the peers with these addresses in place of names, in the order of `remote`.
    fn with(&self, known: &Addresses) -> Vec<PeerConfig> {
        let peers = self.0.iter().map(|(peer, remotes)| {
            let addresses = remotes.iter().flat_map(|remote| {
                let found = match &remote.host {
                    RemoteHost::Address(address) => std::slice::from_ref(address),
                    RemoteHost::Name(name) => known.get(name).map_or(&[][..], Vec::as_slice),
                };
                found.iter().map(|address| SocketAddr::new(*address, remote.port_or_default()))
            });
            PeerConfig { remotes: addresses.collect(), ..peer.clone() }
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
    use super::*;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

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

    const QUICK: LookupTiming =
        LookupTiming { interval: Duration::from_millis(20), first_retry: Duration::from_millis(5) };

    fn start(resolver: &Resolver) -> (watch::Receiver<Vec<PeerConfig>>, Incidents) {
        let config = Config::parse(PEERS, Path::new("agent.toml")).unwrap();
        let peers = StaticPeers::load(&config).unwrap();
        let (to, from) = watch::channel(peers.unresolved());
        let (incidents, resolver) = (Incidents::default(), resolver.clone());
        let follow = peers.follow_names_by(move |name| resolver.clone().lookup(name), QUICK, incidents.clone(), to);
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

    #[tokio::test]
    async fn without_names_nothing_is_looked_up() {
        let config = Config::parse(&PEERS.replace("'luna.example'", "'192.0.2.7'"), Path::new("agent.toml")).unwrap();
        assert_eq!(StaticPeers::load(&config).unwrap().names(), ["moon.example"]);
        let addresses =
            PEERS.replace("remote = 'luna.example'", "start = 'respond'").replace(", 'moon.example:4500'", "");
        let config = Config::parse(&addresses, Path::new("agent.toml")).unwrap();
        let peers = StaticPeers::load(&config).unwrap();
        let (to, _from) = watch::channel(peers.unresolved());
        peers.follow_names_by(|name| async move { unreachable!("{name}") }, QUICK, Incidents::default(), to).await;
    }
}
