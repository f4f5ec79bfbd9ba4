//! `edge-cni ingress` creates the table that controls which packets this host forwards, even while
//! the agent's table exists. `edge-agent down` runs this command before it removes the agent's
//! table.

use std::path::Path;

use serde_json::{Value, json};

use crate::config_file;
use crate::error::{Code, Error, Result};
use crate::forward_filter;
use crate::ipam::StateDir;
use crate::net::bridge;
use crate::net::link::Links;

/// Prevents outside hosts from reaching the attached pods, as the configuration in this file
/// requires. `table` in the result states whether the table is necessary and was created.
pub(crate) fn ingress(path: &Path) -> Result<Value> {
    let config = config_file::read(path)?;
    let segments = StateDir::create(&config, bridge::count_attached)?.lock()?.segments(&config)?.ok_or_else(|| {
        Error::new(
            Code::TryAgainLater,
            "this node has no segment, so that it is not known which sources may reach pods; start edge-agent, or add `segments` to the configuration",
        )
    })?;
    let made = forward_filter::recreate_beside_agents(&mut Links::open()?, &config, &segments)?;
    Ok(json!({ "table": made }))
}
