//! GC removes the pairs of links and the leases of this network that belong to no attachment in the
//! runtime's list. For runtimes that never call GC, `reclaim` ends the leases of pods that
//! disappeared.

use serde_json::Value;

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::ipam::StateDir;
use crate::net::link::Links;
use crate::net::veth;
use crate::pod_filter;
use crate::request::Attachment;
use crate::sort::SortedSet;

/// Ends the leases and removes the pairs of all attachments of this network that are not in the
/// configuration's list of valid ones. As with DEL, pairs are removed before leases. If a pair
/// cannot be removed, its lease stays, and the remaining pairs are still removed.
pub(crate) fn gc(config: &Config) -> Result<()> {
    let Some(valid) = valid_attachments(config.valid_attachments.as_ref())? else {
        eprintln!(
            "edge-cni: GC without cni.dev/valid-attachments removes nothing, because it is unknown what is in use"
        );
        return Ok(());
    };
    let mut links = Links::open()?;
    let mut stuck = Vec::new();
    let mut failures = Vec::new();
    let Some(state_dir) = StateDir::existing(config) else { return Ok(()) };
    let mut leases = state_dir.lock()?;
    let bridge = links.find(&config.bridge)?.map(|bridge| bridge.index);
    for link in links.all()? {
        let Some(attachment) = veth::attachment_by_alias(&link) else { continue };
        let lease = leases.lease(&attachment)?;
        // A link whose name does not match its alias may belong to another program, unless there is
        // a lease for the attachment in the alias.
        if lease.is_none() && veth::attachment_of(&link).is_none() {
            continue;
        }
        // The lease says whose pod it is, also where another program has detached the link or
        // deleted the bridge.
        let ours = match lease {
            Some(lease) => lease.network == config.name,
            None => bridge.is_some() && link.master == bridge,
        };
        if !ours || valid.contains(&attachment) {
            continue;
        }
        if let Err(error) = links.delete(&link) {
            failures.push(error.to_string());
            stuck.push(attachment);
        }
    }
    let ended = leases.reclaim(|attachment, lease| {
        lease.network == config.name && !valid.contains(attachment) && !stuck.contains(attachment)
    });
    pod_filter::remove_vanished(&mut links);
    match ended.and_then(|ended| if ended.is_empty() { Ok(()) } else { leases.commit() }) {
        // The pods are detached from the bridge. A later ADD ends their leases.
        Err(error) if error.code == Code::Io => {
            eprintln!("edge-cni: GC could not end all leases that no container needs: {error}; an ADD will end them");
        }
        outcome => outcome?,
    }
    if failures.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Code::Kernel,
        format!("some resources that no container needs could not be removed: {}", failures.join("; ")),
    ))
}

/// Reads `cni.dev/valid-attachments` (the specification, "GC"), each `{"containerID": .., "ifname":
/// ..}`. An absent list is not the same as an empty one. `cnitool gc` sends no list.
fn valid_attachments(list: Option<&Value>) -> Result<Option<SortedSet<Attachment>>> {
    let Some(list) = list.filter(|list| !list.is_null()) else { return Ok(None) };
    let wrong = |why: &str| {
        Error::new(
            Code::InvalidConfig,
            format!("cni.dev/valid-attachments {why}; nothing was removed, because it is unknown what is in use"),
        )
    };
    let list = list.as_array().ok_or_else(|| wrong("is not a list"))?;
    let read = |entry: &Value| {
        let text = |key: &str| entry[key].as_str().map(str::to_owned);
        Some(Attachment { container: text("containerID")?, ifname: text("ifname")? })
    };
    let mut valid = Vec::new();
    for entry in list {
        valid.push(read(entry).ok_or_else(|| wrong(&format!("has the entry {entry}")))?);
    }
    Ok(Some(valid.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_that_cannot_be_read_is_not_an_empty_one() {
        for wrong in [json!({}), json!([{"containerID": "a"}]), json!(["a"])] {
            assert_eq!(valid_attachments(Some(&wrong)).unwrap_err().code, Code::InvalidConfig, "{wrong}");
        }
        for absent in [None, Some(json!(null))] {
            assert_eq!(valid_attachments(absent.as_ref()).unwrap(), None);
        }
        let list = |list: Value| valid_attachments(Some(&list)).unwrap().unwrap();
        assert!(list(json!([])).is_empty());
        let one = list(json!([{"containerID": "a", "ifname": "eth0"}]));
        assert!(one.contains(&Attachment { container: "a".into(), ifname: "eth0".into() }));
    }
}
