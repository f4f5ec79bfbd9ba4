//! Refuses to take away what attached pods need.

use anyhow::bail;

use crate::host;

/// Maximum number of pods that one message names.
const NAMED_PODS: usize = 10;

/// Fails if pods of the plugin are attached on this host, and names their interfaces. `remedy` is
/// the end of the message: what to do.
pub(crate) fn refuse(remedy: &str) -> anyhow::Result<()> {
    let pods = host::plugin_interfaces()?.pods;
    if pods.is_empty() {
        return Ok(());
    }
    let named = pods.iter().take(NAMED_PODS).cloned().collect::<Vec<_>>().join(", ");
    let more = pods.len().checked_sub(NAMED_PODS).filter(|more| *more > 0);
    let more = more.map_or_else(String::new, |more| format!(" and {more} more"));
    bail!("pods are attached: {named}{more}. {remedy}")
}
