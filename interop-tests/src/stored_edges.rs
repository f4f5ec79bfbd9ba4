//! Makes edges that exist only in a controller's store. These edges have no addresses, so no agent
//! negotiates with them, but they are peers in views.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result};
use edge_controller_domain::ca::{Ca, Files};
use edge_controller_domain::clock::Clock;
use edge_controller_domain::segments::SegmentRecord;
use edge_controller_domain::state::{Change, NodeRecord};
use edge_controller_domain::store::Store as _;
use edge_controller_domain::store::embedded::Embedded;
use edge_types::{NodeName, Role};
use ipnetwork::{IpNetwork, Ipv4Network};

use crate::edge_controller::CLUSTER_RANGE;

/// Returns the name of an edge, counted from 0.
#[must_use]
pub fn name(index: u32) -> String {
    format!("node-{index:05}")
}

/// Returns the segment of an edge.
///
/// # Errors
/// Returns an error if the index is too large for the range.
pub fn segment(index: u32) -> Result<IpNetwork> {
    let range: Ipv4Network = CLUSTER_RANGE.parse()?;
    // The address is in the upper half of the range, since the controller grants from the lower
    // half.
    let address = Ipv4Addr::from(u32::from(range.network()) + (range.size() / 2) + (index << 6));
    Ok(IpNetwork::from(Ipv4Network::new(address, 26)?))
}

/// Fills the store of a new controller with edges, each with a segment.
///
/// # Errors
/// Returns an error if the store cannot be written.
pub fn fill(state: &Path, count: u32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let now = Clock::system().now();
        Ca::open(Box::new(Files::new(state, now)), None, now).await?;
        let store = Embedded::open(state)?;
        let mut batch = Vec::new();
        for index in 0..count {
            let name: NodeName = name(index).parse()?;
            let row = SegmentRecord::new(segment(index)?, name.clone(), "request-0".to_owned(), now, None);
            let record = NodeRecord::new(name, Role::Edge, now);
            batch.push(vec![Change::GrantSegment(row), Change::PutNode(record)]);
        }
        let (to, mut events) = tokio::sync::mpsc::channel(1);
        store.load(to).await?;
        let committed = tokio::select! {
            committed = store.commit(batch, now) => committed,
            () = async { while events.recv().await.is_some() {} } => anyhow::bail!("the store is closed"),
        };
        committed.results.into_iter().collect::<Result<(), _>>().context("filling the store")?;
        Ok(())
    })
}
