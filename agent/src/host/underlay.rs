//! One look at the host before anything is decided.

use anyhow::Context;

use super::observed::Observed;
use super::uplink;
use crate::underlay::{self, Underlay};

/// What the view on disk must not take away. To be called within a tokio runtime.
pub async fn read_underlay(bridge: &str) -> anyhow::Result<Underlay> {
    let (connection, handle, _) = rtnetlink::new_connection().context("rtnetlink")?;
    let connection = tokio::spawn(connection);
    let observed = Observed::read(&handle).await;
    connection.abort();
    let found = uplink::uplink(&observed?, bridge, &[], None).underlay;
    Ok(Underlay { resolvers: underlay::resolvers_here(), ..found })
}
