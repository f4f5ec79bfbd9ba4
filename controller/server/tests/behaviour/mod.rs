//! Tests the behaviour that every store must have. The same functions run on each store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use edge_controller::api::ApiError;
use edge_controller_domain::archive::{self, Archive};
use edge_controller_domain::ca::Files;
use edge_controller_domain::clock::Clock;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::segments::{SegmentPolicy, SegmentRecord, overlap};
use edge_controller_domain::state::{
    Certificate, Change, CommunityRecord, NodeRecord, Redemption, SegmentError, Snapshot, TokenRecord,
};
use edge_controller_domain::store::{Note, Store, StoreError, StoreEvent};
use edge_types::api::Family;
use edge_types::view::SegmentPrefix;
use edge_types::{IpNetwork, NodeName, Role};
use futures_util::future::{BoxFuture, join_all};
use tokio::sync::mpsc;

/// A testbed in which a store keeps its rows. It is empty at first.
pub(crate) trait StoreFixture: Sync {
    /// Opens a store on the existing rows. Stores that were opened before are not used any more.
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>>;
}

/// Sizes of segments in these tests.
pub(crate) const SIZES: SegmentPrefix = SegmentPrefix { v4: 28, v6: 124 };

/// Runs `$run` for each of the behaviours, by its name.
macro_rules! all {
    ($run:ident) => {
        $run! {
            what_was_committed_is_there_after_opening_again,
            a_segment_that_is_held_is_granted_to_no_other_node,
            a_released_segment_is_granted_again_and_remembers_who_held_it,
            elements_of_a_batch_that_share_rows_hold_in_order,
            what_is_deleted_is_gone_and_may_come_again,
            revisions_only_rise_also_when_opened_again,
            revisions_begin_above_those_of_another_store,
            many_who_request_at_once_get_segments_of_their_own,
            a_repeated_segment_request_gets_the_same_segment,
            a_clock_that_is_set_ahead_ends_no_quarantine,
            a_clock_that_is_set_back_ends_no_quarantine_and_keeps_none_from_ending,
            the_cluster_is_noted_with_the_rows,
            segments_of_a_node_that_vanished_are_kept_as_long_as_its_certificate,
            the_operator_lets_go_of_segments_that_are_kept_for_a_node,
            nothing_is_granted_after_a_restore_until_every_edge_has_reported,
            the_wait_after_a_restore_ends_also_where_an_edge_never_reports,
        }
    };
}
pub(crate) use all;

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

pub(crate) fn network(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

pub(crate) fn edge(text: &str) -> NodeRecord {
    NodeRecord::new(name(text), Role::Edge, 1_793_491_200)
}

pub(crate) fn row(text: &str, node: &str) -> SegmentRecord {
    SegmentRecord::new(network(text), name(node), format!("request of {node}"), 1_793_491_300, None)
}

pub(crate) fn token(id: &str) -> TokenRecord {
    TokenRecord {
        id: id.into(),
        secret_hash: "5e".into(),
        role: Role::Edge,
        node: None,
        uses_left: 2,
        created_uses: 2,
        created_at: 1_793_491_200,
        expires_at: 1_893_491_200,
        authority: "ab".into(),
        redemptions: Vec::new(),
    }
}

/// Returns a loaded store, its rows and its events.
pub(crate) async fn loaded(fixture: &dyn StoreFixture) -> (Arc<dyn Store>, Snapshot, mpsc::Receiver<StoreEvent>) {
    let store = fixture.open().await;
    let (followed, news) = mpsc::channel(64);
    let snapshot = store.load(followed).await.unwrap();
    (store, snapshot, news)
}

pub(crate) async fn commit(store: &Arc<dyn Store>, changes: Vec<Change>) -> Result<(), StoreError> {
    store.commit(vec![changes], 1_793_492_000).await.results.remove(0)
}

pub(crate) async fn what_was_committed_is_there_after_opening_again(fixture: &dyn StoreFixture) {
    let mut node = edge("edge-1");
    node.set_labels([("fabedge/edge-community".to_owned(), "alpha".to_owned())].into()).unwrap();
    node.port = 4500;
    let community = CommunityRecord::new("Beta".parse().unwrap(), [name("edge-1"), name("later")].into());
    let held = [row("10.77.0.0/28", "edge-1"), row("fd77::/124", "edge-1")];
    let token =
        TokenRecord { redemptions: vec![Redemption { node: name("edge-1"), key: "aa".into() }], ..token("Tok_-1") };
    let (store, ..) = loaded(fixture).await;
    let changes = held.iter().cloned().map(Change::GrantSegment).chain([
        Change::PutToken(token.clone()),
        Change::PutNode(node.clone()),
        Change::PutCommunity(community.clone()),
    ]);
    commit(&store, changes.collect()).await.unwrap();
    drop(store);
    let (_, snapshot, _) = loaded(fixture).await;
    assert_eq!((snapshot.nodes, snapshot.tokens), (vec![node], vec![token]));
    assert_eq!((snapshot.segments, snapshot.communities), (held.to_vec(), vec![community]));
    assert!(snapshot.time >= 1_793_491_300);
}

pub(crate) async fn a_segment_that_is_held_is_granted_to_no_other_node(fixture: &dyn StoreFixture) {
    let (store, ..) = loaded(fixture).await;
    commit(&store, vec![Change::GrantSegment(row("10.77.0.0/28", "a"))]).await.unwrap();
    let second = fixture.open().await;
    let (followed, _news) = mpsc::channel(64);
    second.load(followed).await.unwrap();
    let later = row("10.77.0.0/28", "b");
    match commit(&second, vec![Change::GrantSegment(later), Change::PutNode(edge("b"))]).await {
        Err(StoreError::Conflict { current, .. }) => {
            assert_eq!(current, [Change::PutSegment(row("10.77.0.0/28", "a"))])
        }
        other => panic!("{other:?}"),
    }
    let (_, snapshot, _) = loaded(fixture).await;
    assert_eq!(snapshot.segments, [row("10.77.0.0/28", "a")]);
    assert!(snapshot.nodes.is_empty(), "who does not get a segment does not join");
}

pub(crate) async fn a_released_segment_is_granted_again_and_remembers_who_held_it(fixture: &dyn StoreFixture) {
    let (store, ..) = loaded(fixture).await;
    let first = row("10.77.0.0/28", "a");
    commit(&store, vec![Change::GrantSegment(first.clone())]).await.unwrap();
    let released = SegmentRecord { released_at: Some(1_793_491_400), ..first };
    commit(&store, vec![Change::PutSegment(released.clone())]).await.unwrap();
    let anew = released.regranted(name("b"), "r".into(), 1_793_491_500);
    commit(&store, vec![Change::GrantSegment(anew.clone())]).await.unwrap();
    drop(store);
    let (_, snapshot, _) = loaded(fixture).await;
    assert_eq!(anew.past[0].node, name("a"));
    assert_eq!(snapshot.segments, [anew]);
}

pub(crate) async fn elements_of_a_batch_that_share_rows_hold_in_order(fixture: &dyn StoreFixture) {
    let (store, ..) = loaded(fixture).await;
    let with_port = |port| NodeRecord { port, ..edge("a") };
    let mut batch: Vec<Vec<Change>> = (1..=5).map(|port| vec![Change::PutNode(with_port(port))]).collect();
    batch.push(vec![Change::PutNode(edge("b"))]);
    batch.push(vec![Change::DeleteNode(name("b"))]);
    let committed = store.commit(batch, 1).await;
    committed.results.into_iter().for_each(|result| result.unwrap());
    drop(store);
    let (_, snapshot, _) = loaded(fixture).await;
    assert_eq!(snapshot.nodes, [with_port(5)]);
}

pub(crate) async fn what_is_deleted_is_gone_and_may_come_again(fixture: &dyn StoreFixture) {
    let (store, ..) = loaded(fixture).await;
    let community = CommunityRecord::new("alpha".parse().unwrap(), BTreeSet::new());
    let puts = || {
        let segment = SegmentRecord { released_at: Some(1_793_491_400), ..row("10.77.0.16/28", "a") };
        vec![
            Change::PutSegment(segment),
            Change::PutToken(token("t")),
            Change::PutNode(edge("a")),
            Change::PutCommunity(community.clone()),
        ]
    };
    commit(&store, puts()).await.unwrap();
    let deletions = vec![
        Change::DeleteNode(name("a")),
        Change::DeleteSegment(network("10.77.0.16/28")),
        Change::DeleteToken("t".into()),
        Change::DeleteCommunity(community.name.clone()),
    ];
    commit(&store, deletions.clone()).await.unwrap();
    commit(&store, deletions).await.unwrap();
    commit(&store, puts()).await.unwrap();
    drop(store);
    let (_, snapshot, _) = loaded(fixture).await;
    assert_eq!((snapshot.nodes.len(), snapshot.tokens.len()), (1, 1));
    assert_eq!((snapshot.segments.len(), snapshot.communities.len()), (1, 1));
}

pub(crate) async fn revisions_only_rise_also_when_opened_again(fixture: &dyn StoreFixture) {
    let mut last = 0;
    for _ in 0..2 {
        let (store, snapshot, _news) = loaded(fixture).await;
        assert!(snapshot.revision >= last, "{} after {last}", snapshot.revision);
        for batch in [vec![Vec::new()], vec![vec![Change::PutNode(edge("a"))]], vec![Vec::new()]] {
            let committed = store.commit(batch, 1).await;
            committed.results.into_iter().for_each(|result| result.unwrap());
            assert!(committed.revision > last, "{} after {last}", committed.revision);
            last = committed.revision;
        }
        commit(&store, vec![Change::DeleteNode(name("a"))]).await.unwrap();
    }
}

pub(crate) async fn revisions_begin_above_those_of_another_store(fixture: &dyn StoreFixture) {
    let foreign = 1 << 40;
    let (store, ..) = loaded(fixture).await;
    store.raise_revision(foreign).await.unwrap();
    let committed = store.commit(vec![vec![Change::PutNode(edge("a"))]], 1).await;
    assert!(committed.revision > foreign, "{}", committed.revision);
    drop(store);
    let (_, snapshot, _news) = loaded(fixture).await;
    assert!(snapshot.revision >= committed.revision);
}

/// A registry on a store, with plans as the API makes them.
#[derive(Clone)]
pub(crate) struct Grants {
    pub(crate) registry: Registry,
    pub(crate) policy: SegmentPolicy,
}

impl Grants {
    pub(crate) async fn start(store: Arc<dyn Store>) -> Self {
        let registry = Registry::start(store, Clock::system(), true).await.unwrap();
        let policy = SegmentPolicy {
            ranges: vec![network("10.77.0.0/20"), network("fd77::/112")],
            reserved: Vec::new(),
            prefix: SIZES,
            max_per_node: 64,
            quarantine: 1,
            restore_grace: 600,
            claims_after_restore: 7 * 24 * 3600,
        };
        Self { registry, policy }
    }

    pub(crate) async fn register(&self, node: &str) {
        self.register_as(node, Role::Edge).await;
    }

    /// Registers a node of a role.
    pub(crate) async fn register_as(&self, node: &str, role: Role) {
        let record = NodeRecord { role, ..edge(node) };
        self.registry.change(move |_| Ok::<_, StoreError>(((), vec![Change::PutNode(record.clone())]))).await.unwrap();
    }

    /// Requests one segment of each family, as `POST /v1/nodes/{node}/segments` does.
    pub(crate) async fn request_segments(&self, node: &str, request: &str) -> Vec<IpNetwork> {
        self.try_request_segments(node, request).await.unwrap_or_else(|error| panic!("{node} {request}: {error}"))
    }

    pub(crate) async fn try_request_segments(&self, node: &str, request: &str) -> Result<Vec<IpNetwork>, ApiError> {
        let (node, request, policy) = (name(node), request.to_owned(), self.policy.clone());
        let now = self.registry.clock.now();
        let families = [Family::V4, Family::V6];
        self.registry
            .change(move |state| {
                state.plan_segment_request(&policy, &node, &families, &request, now).map_err(ApiError::from)
            })
            .await
    }

    /// Deregisters a node as the operator does.
    pub(crate) async fn deregister(&self, node: &str) {
        let (node, now) = (name(node), self.registry.clock.now());
        self.registry
            .change(move |state| Ok::<_, StoreError>(((), state.deregistration(&node, now).unwrap().1)))
            .await
            .unwrap();
    }

    /// Returns all held segments with their nodes.
    pub(crate) async fn held(&self) -> Vec<(IpNetwork, NodeName)> {
        let state = self.registry.read().await;
        let held = state.ledger().rows().filter(|row| row.released_at.is_none());
        held.map(|row| (row.network, row.node.clone())).collect()
    }
}

/// Asserts that no address belongs to two nodes.
pub(crate) fn assert_disjoint(networks: &[IpNetwork]) {
    for (index, network) in networks.iter().enumerate() {
        for other in &networks[index + 1..] {
            assert!(!overlap(network, other), "{network} and {other} overlap");
        }
    }
}

pub(crate) async fn many_who_request_at_once_get_segments_of_their_own(fixture: &dyn StoreFixture) {
    let grants = Grants::start(fixture.open().await).await;
    let nodes: Vec<String> = (0..20).map(|n| format!("n{n}")).collect();
    join_all(nodes.iter().map(|node| grants.register(node))).await;
    let granted: Vec<IpNetwork> = join_all(nodes.iter().map(|node| grants.request_segments(node, "r"))).await.concat();
    assert_eq!(granted.len(), 40);
    assert_disjoint(&granted);
    let again = Grants::start(fixture.open().await).await;
    assert_eq!(again.held().await, grants.held().await);
}

pub(crate) async fn a_repeated_segment_request_gets_the_same_segment(fixture: &dyn StoreFixture) {
    let grants = Grants::start(fixture.open().await).await;
    grants.register("a").await;
    let first = grants.request_segments("a", "r1").await;
    assert_eq!(grants.request_segments("a", "r1").await, first);
    assert_disjoint(&[first.clone(), grants.request_segments("a", "r2").await].concat());
    let grants = Grants::start(fixture.open().await).await;
    assert_eq!(grants.request_segments("a", "r1").await, first);
}

/// Makes a store in which two nodes held all segments and the first one is deregistered.
async fn one_of_two_has_left(fixture: &dyn StoreFixture) -> Grants {
    let mut grants = Grants::start(fixture.open().await).await;
    grants.policy.ranges = vec![network("10.77.0.0/27"), network("fd77::/123")];
    grants.policy.quarantine = 100;
    for node in ["a", "b", "c"] {
        grants.register(node).await;
    }
    for node in ["a", "b"] {
        grants.request_segments(node, "r").await;
    }
    grants.deregister("a").await;
    grants
}

pub(crate) async fn a_clock_that_is_set_ahead_ends_no_quarantine(fixture: &dyn StoreFixture) {
    let grants = one_of_two_has_left(fixture).await;
    let clock = &grants.registry.clock;
    clock.step(3 * 24 * 3600);
    grants.try_request_segments("c", "r").await.expect_err("no peer has had the time to forget who held it");
    clock.advance(30);
    grants.try_request_segments("c", "r").await.expect_err("not yet");
    clock.advance(70);
    assert_eq!(grants.request_segments("c", "r").await, [network("10.77.0.0/28"), network("fd77::/124")]);
    // A replica that starts now has only its clock, and takes no held segment from its node.
    let held = grants.held().await;
    drop(grants);
    let mut grants = Grants::start(fixture.open().await).await;
    grants.policy.ranges = vec![network("10.77.0.0/27"), network("fd77::/123")];
    assert_eq!(grants.held().await, held);
    grants.try_request_segments("c", "r2").await.expect_err("all is held");
}

pub(crate) async fn a_clock_that_is_set_back_ends_no_quarantine_and_keeps_none_from_ending(fixture: &dyn StoreFixture) {
    let grants = one_of_two_has_left(fixture).await;
    let clock = &grants.registry.clock;
    let before = clock.now();
    clock.step(-5 * 3600);
    assert!(clock.now() >= before);
    clock.advance(30);
    grants.try_request_segments("c", "r").await.expect_err("not yet");
    // The quarantine may last longer than configured, but not until the clock has caught up.
    clock.advance(170);
    grants.request_segments("c", "r").await;
}

pub(crate) async fn the_cluster_is_noted_with_the_rows(fixture: &dyn StoreFixture) {
    let (store, ..) = loaded(fixture).await;
    assert_eq!(store.note(Note::Cluster).await.unwrap(), None);
    for uid in ["one", "another"] {
        store.set_note(Note::Cluster, uid.into()).await.unwrap();
    }
    drop(store);
    let (store, ..) = loaded(fixture).await;
    assert_eq!(store.note(Note::Cluster).await.unwrap().as_deref(), Some("another"));
}

/// Makes a store into which edges a and b were imported, each with a segment. They have not
/// reported.
async fn imported(fixture: &dyn StoreFixture) -> Grants {
    let row = |segment, node| SegmentRecord::new(network(segment), name(node), "r".into(), 1_793_491_200, None);
    let rows = Snapshot {
        nodes: vec![edge("a"), edge("b")],
        segments: vec![row("10.77.0.0/28", "a"), row("10.77.0.16/28", "b")],
        ..Snapshot::default()
    };
    let (directory, now) = (tempfile::tempdir().unwrap(), Clock::system().now());
    let archive = Archive::new(now, rows, None);
    archive::import(&*fixture.open().await, &Files::new(directory.path(), now), archive, now).await.unwrap();
    Grants::start(fixture.open().await).await
}

/// Returns the edges that a refused segment request waits for.
async fn waits_for(grants: &Grants, request: &str) -> Vec<String> {
    match grants.try_request_segments("a", request).await {
        Err(ApiError::Segment(SegmentError::GrantsPaused(paused))) => paused.named,
        other => panic!("expected that the grant waits, got {other:?}"),
    }
}

pub(crate) async fn nothing_is_granted_after_a_restore_until_every_edge_has_reported(fixture: &dyn StoreFixture) {
    let grants = imported(fixture).await;
    assert_eq!(waits_for(&grants, "r1").await, ["a", "b"]);
    for (node, missing) in [("a", Some("b")), ("b", None)] {
        // The change is the same as after a report.
        let reported = grants.registry.change(move |state| -> Result<_, StoreError> {
            let mut record = state.node(&name(node)).unwrap().clone();
            state.note_reported(&mut record);
            Ok(((), vec![Change::PutNode(record)]))
        });
        reported.await.unwrap();
        // A controller that starts now also has the record of the report.
        let grants = Grants::start(fixture.open().await).await;
        match missing {
            Some(missing) => assert_eq!(waits_for(&grants, "r1").await, [missing]),
            None => assert_eq!(grants.request_segments("a", "r1").await.len(), 2),
        }
    }
}

pub(crate) async fn the_wait_after_a_restore_ends_also_where_an_edge_never_reports(fixture: &dyn StoreFixture) {
    let grants = imported(fixture).await;
    grants.registry.clock.advance(300);
    assert_eq!(waits_for(&grants, "r1").await, ["a", "b"]);
    // The waiting time began with the first start, and this start does not begin it again.
    let grants = Grants::start(fixture.open().await).await;
    grants.registry.clock.advance(300);
    assert_eq!(waits_for(&grants, "r1").await, ["a", "b"]);
    grants.registry.clock.advance(300);
    assert_eq!(grants.request_segments("a", "r1").await.len(), 2);
}

/// Registers `a`, with a certificate that is valid for 3000 s and has a grace of 2000 s, and `b`.
/// Grants `a` segments, then deregisters it as a node whose machine may still exist. Returns the
/// segments.
async fn segments_of_a_node_that_vanished(grants: &Grants) -> Vec<IpNetwork> {
    let now = grants.registry.clock.now();
    let (serial, key, issuer) = ("1".into(), "k".into(), "i".into());
    let certificate = Certificate { serial, key, not_after: now + 3000, not_before: now, issuer, used: true };
    let record = NodeRecord { certificates: vec![certificate], ..edge("a") };
    grants.registry.change(move |_| Ok::<_, StoreError>(((), vec![Change::PutNode(record.clone())]))).await.unwrap();
    grants.register("b").await;
    let segments = grants.request_segments("a", "r").await;
    grants
        .registry
        .change(move |state| {
            Ok::<_, StoreError>(((), state.deregistration_keeping_segments(&name("a"), now, 2000).unwrap().1))
        })
        .await
        .unwrap();
    segments
}

pub(crate) async fn segments_of_a_node_that_vanished_are_kept_as_long_as_its_certificate(fixture: &dyn StoreFixture) {
    let mut grants = Grants::start(fixture.open().await).await;
    (grants.policy.ranges, grants.policy.quarantine) = (vec![network("10.77.0.0/28"), network("fd77::/124")], 100);
    let all = segments_of_a_node_that_vanished(&grants).await;
    grants.registry.clock.advance(4000);
    grants.try_request_segments("b", "r").await.expect_err("it may use them");
    // The same holds for a replica that starts now.
    let (policy, clock) = (grants.policy.clone(), grants.registry.clock.clone());
    drop(grants);
    let mut grants = Grants::start(fixture.open().await).await;
    (grants.policy, grants.registry.clock) = (policy, clock);
    grants.try_request_segments("b", "r").await.expect_err("it may use them");
    grants.registry.clock.advance(1001);
    assert_eq!(grants.request_segments("b", "r").await, all);
}

pub(crate) async fn the_operator_lets_go_of_segments_that_are_kept_for_a_node(fixture: &dyn StoreFixture) {
    let mut grants = Grants::start(fixture.open().await).await;
    (grants.policy.ranges, grants.policy.quarantine) = (vec![network("10.77.0.0/28"), network("fd77::/124")], 0);
    let now = grants.registry.clock.now();
    let all = segments_of_a_node_that_vanished(&grants).await;
    grants.try_request_segments("b", "r").await.expect_err("it may use them");
    grants
        .registry
        .change(move |state| Ok::<_, StoreError>(((), state.end_keeping_segments(&name("a"), now).unwrap().1)))
        .await
        .unwrap();
    assert_eq!(grants.request_segments("b", "r").await, all);
    assert!(grants.registry.read().await.end_keeping_segments(&name("a"), now).is_none(), "nothing is kept any more");
}

/// Waits until the probe returns a value.
pub(crate) async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited 60 s for {what}"))
}
