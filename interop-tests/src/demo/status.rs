//! Reading `edge-agent status --json` as a script would.

use serde_json::Value;

/// A peer's entry.
#[must_use]
pub(super) fn peer<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["peers"].as_array()?.iter().find(|peer| peer["name"] == name)
}

/// Whether an entry shows an established IKE SA with a CHILD_SA.
#[must_use]
pub(super) fn is_up(peer: &Value) -> bool {
    peer["state"] == "up"
}
