//! Reads the underlay before a view from disk comes into force.

use anyhow::Context;

use super::observed::Observed;
use super::uplink;
use crate::underlay::{self, Underlay};

/// Reads addresses, gateways, uplinks and name servers of this node. To be called within a tokio
/// runtime. Fails if rtnetlink does.
pub async fn read_underlay(bridge: &str) -> anyhow::Result<Underlay> {
    let (connection, handle, _) = rtnetlink::new_connection().context("rtnetlink")?;
    let connection = tokio::spawn(connection);
    let observed = Observed::read(&handle).await;
    connection.abort();
    let found = uplink::uplink(&observed?, bridge, &[], None).underlay;
    Ok(Underlay { resolvers: underlay::host_resolvers(), ..found })
}
