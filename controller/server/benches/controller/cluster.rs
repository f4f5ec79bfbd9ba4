//! Makes the authority and the store of a cluster with many nodes, and the key and certificate of
//! each node.

use std::path::PathBuf;
use std::sync::Arc;

use edge_controller_domain::ca::storage::CaStorage;
use edge_controller_domain::ca::{self, Ca, Files, Term};
use edge_controller_domain::clock::Clock;
use edge_controller_domain::segments::SegmentRecord;
use edge_controller_domain::state::{Certificate, Change, NodeRecord};
use edge_controller_domain::store::Store;
use edge_controller_domain::store::embedded::Embedded;
use edge_types::name::COMMUNITY_LABEL;
use edge_types::{IpNetwork, NodeName, Role};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ED25519};
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::Size;

/// Segments of each node, half of them IPv4.
const SEGMENTS: usize = 4;

pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    /// The nodes. The first is a hub; the others are edges, community after community.
    pub(crate) nodes: Vec<Node>,
    /// All nodes share one key, because their keys are not measured.
    key: Vec<u8>,
    roots: Arc<RootCertStore>,
    /// Further configuration for the controller.
    pub(crate) config: String,
}

pub(crate) struct Node {
    pub(crate) name: NodeName,
    certificate: CertificateDer<'static>,
}

impl Cluster {
    /// Makes a cluster with its store in a state directory.
    pub(crate) fn embedded(size: Size) -> Self {
        let directory = directory();
        let state = directory.path().join("state");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let ca_storage = Box::new(Files::new(&state, Clock::system().now()));
        let store = Embedded::open(&state).expect("a store");
        runtime.block_on(Self::fill(size, directory, &store, ca_storage, String::new()))
    }

    /// Makes a cluster in another store, which the configuration in `config` names.
    pub(crate) async fn elsewhere(
        size: Size,
        store: &dyn Store,
        ca_storage: Box<dyn CaStorage>,
        config: String,
    ) -> Self {
        Self::fill(size, directory(), store, ca_storage, config).await
    }

    async fn fill(
        size: Size,
        directory: tempfile::TempDir,
        store: &dyn Store,
        ca_storage: Box<dyn CaStorage>,
        config: String,
    ) -> Self {
        let now = Clock::system().now();
        let ca = Ca::open(ca_storage, None, now).await.expect("an authority");
        let ca = ca.current();
        let mut roots = RootCertStore::empty();
        roots.add(ca.active().certificate().clone()).expect("the authority's certificate");
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let mut request = CertificateParams::default();
        request.distinguished_name = DistinguishedName::new();
        let csr = request.serialize_request(&key).and_then(|csr| csr.pem()).expect("a request");
        let mut batch = Vec::new();
        let mut nodes = Vec::new();
        for index in 0..size.nodes {
            let name: NodeName = format!("node-{index:05}").parse().expect("a name");
            let role = if index == 0 { Role::Hub } else { Role::Edge };
            let public = ca::request::read(&csr, &name).expect("the request's key");
            let issued =
                ca.sign_node(&name, role, &public, &Term::days(7, now).expect("a term")).expect("a certificate");
            let mut record = NodeRecord::new(name.clone(), role, now);
            if index > 0 {
                let community = format!("c{}", (index - 1) / size.community);
                record.set_labels([(COMMUNITY_LABEL.to_owned(), community)].into()).expect("a label");
            }
            let [_, b, c, d] = (index as u32).to_be_bytes();
            record.reported = vec![[192, b, c, d].into()];
            record.port = 4500;
            record.observed = Some([203, b, c, d].into());
            let Term { serial, not_before, not_after } = issued.term;
            let (key, issuer) = ("00".repeat(32), issued.issuer);
            record.certificates = vec![Certificate { serial, key, not_after, not_before, issuer, used: true }];
            let rows = (0..SEGMENTS).map(|nth| {
                let row = SegmentRecord::new(segment(index, nth), name.clone(), format!("request-{nth}"), now, None);
                Change::GrantSegment(row)
            });
            batch.push(rows.chain([Change::PutNode(record)]).collect());
            let certificate = CertificateDer::from_pem_slice(issued.chain.as_bytes()).expect("PEM");
            nodes.push(Node { name, certificate });
        }
        let (followed, mut news) = tokio::sync::mpsc::channel(1);
        store.load(followed).await.expect("an empty store");
        let reading = async { while news.recv().await.is_some() {} };
        let committed = tokio::select! {
            committed = store.commit(batch, now) => committed,
            () = reading => panic!("the store is closed"),
        };
        committed.results.into_iter().collect::<Result<(), _>>().expect("a filled store");
        Self { directory, nodes, key: key.serialize_der(), roots: Arc::new(roots), config }
    }

    /// Returns a path next to the state directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Returns the TLS configuration of a node.
    pub(crate) fn tls(&self, node: &Node) -> Arc<ClientConfig> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(vec![node.certificate.clone()], key)
            .expect("key and certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }
}

/// Makes a directory for the state.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    std::fs::create_dir(directory.path().join("state")).expect("a directory for the state");
    directory
}

/// Returns a different segment for each pair of arguments. No returned segment lies where the next
/// segments are granted.
fn segment(node: usize, nth: usize) -> IpNetwork {
    let number = (node * SEGMENTS / 2 + nth / 2) as u32;
    if nth.is_multiple_of(2) {
        IpNetwork::new(std::net::Ipv4Addr::from((10 << 24 | 1 << 23) + number * 64).into(), 26).expect("a segment")
    } else {
        let address = 0xfd77 << 112 | 1 << 79 | u128::from(number) << 8;
        IpNetwork::new(std::net::Ipv6Addr::from(address).into(), 120).expect("a segment")
    }
}
