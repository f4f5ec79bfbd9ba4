//! Ends leases of pods that disappeared without a DEL, for example after the runtime was killed.
//!
//! A pod whose host end does not exist has certainly disappeared, since the kernel removes the host
//! end together with the pod's network namespace, and an ADD creates the host end before it leases
//! an address.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use edge_types::durable::replace_file;
use serde_json::{Value, json};

use crate::config_file;
use crate::error::{Code, Context, Error, Result};
use crate::ipam::{LockedLeases, StateDir};
use crate::net::link::Links;
use crate::net::veth;
use crate::pod_filter;
use crate::request::Attachment;

/// Time in seconds for which the host end must have been missing before `edge-cni reclaim` ends the
/// lease. This gives a runtime that restarts time to run DEL.
const GRACE_SECONDS: u64 = 120;

/// The file in the state directory with the time at which each host end was first found missing, in
/// seconds since the boot, by attachment.
const MISSED_FILE: &str = "missed.json";

/// The time at which each host end was first found missing, by the attachment as text.
type MissingLeases = BTreeMap<String, u64>;

/// Ends the leases whose host end has been missing for the grace time, in all networks of the state
/// directory. Returns these leases.
pub(crate) fn reclaim(arguments: &[OsString]) -> Result<Value> {
    let (grace, file) = parse(arguments)?;
    let config = config_file::read(&file)?;
    let Some(state_dir) = StateDir::existing(&config) else { return Ok(json!({ "reclaimed": [], "missed": 0 })) };
    let mut leases = state_dir.lock()?;
    let mut links = Links::open()?;
    let now = leases.now()?;
    let path = config.state_dir.join(MISSED_FILE);
    let before = read_missed(&path);
    let missing = without_host_end(&leases, &mut links, |_| true)?;
    let missed = missed_since(&before, &missing, now);
    let due = |attachment: &Attachment| {
        missed.get(&attachment.to_string()).is_some_and(|since| now.saturating_sub(*since) >= grace)
    };
    let mut reclaimed = Vec::new();
    let ended = leases.reclaim(|attachment, lease| {
        let ends = missing.contains(attachment) && due(attachment);
        if ends {
            let (container, interface) = (&attachment.container, &attachment.ifname);
            reclaimed.push(json!({
                "addresses": lease.addresses, "pod": lease.pod, "network": lease.network, "container": container, "interface": interface,
            }));
        }
        ends
    })?;
    let left: MissingLeases =
        missed.into_iter().filter(|(name, _)| !ended.iter().any(|ended| ended.to_string() == *name)).collect();
    if left != before {
        let text = serde_json::to_vec(&left).map_err(|error| Error::io("write", &path, error))?;
        replace_file(&path, &text, 0o600).context("replace", &path)?;
    }
    pod_filter::remove_elements(&ended);
    if !ended.is_empty() {
        leases.commit()?;
    }
    Ok(json!({ "reclaimed": reclaimed, "missed": left.len() }))
}

/// Ends the leases of the chosen attachments that have no host end, without a grace time. Returns
/// their number.
pub(crate) fn end_without_host_end(
    state_dir: &StateDir,
    links: &mut Links,
    chosen: impl Fn(&Attachment) -> bool,
) -> Result<usize> {
    let mut leases = state_dir.lock()?;
    let missing = without_host_end(&leases, links, chosen)?;
    let ended = leases.reclaim(|attachment, _| missing.contains(attachment))?;
    pod_filter::remove_elements(&ended);
    leases.commit()?;
    Ok(ended.len())
}

/// Returns the chosen attachments that have a lease but no host end. The host end counts as present
/// if a link with its name or its alias exists.
fn without_host_end(
    leases: &LockedLeases,
    links: &mut Links,
    chosen: impl Fn(&Attachment) -> bool,
) -> Result<Vec<Attachment>> {
    let present = links.all()?;
    let is_missing = |attachment: &Attachment| {
        let (name, alias) = (veth::host_name(attachment), veth::alias(attachment));
        chosen(attachment) && !present.iter().any(|link| link.name == name || link.alias == alias)
    };
    Ok(leases.all()?.map(|(attachment, _)| attachment).filter(is_missing).collect())
}

/// Returns, for each attachment in `missing`, the time since which its host end has been missing.
fn missed_since(before: &MissingLeases, missing: &[Attachment], now: u64) -> MissingLeases {
    let since = |name: &String| before.get(name).copied().filter(|since| *since <= now).unwrap_or(now);
    missing.iter().map(ToString::to_string).map(|name| (name.clone(), since(&name))).collect()
}

/// Reads the findings of the previous call. If the file cannot be read, the grace time starts
/// again.
fn read_missed(path: &Path) -> MissingLeases {
    std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn parse(arguments: &[OsString]) -> Result<(u64, PathBuf)> {
    let wrong = |what: String| Error::new(Code::InvalidEnvironment, format!("{what}; see `edge-cni --help`"));
    let (mut grace, mut file) = (GRACE_SECONDS, None);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--grace") => {
                let seconds = arguments.next().and_then(|text| text.to_str()?.parse().ok());
                grace = seconds.ok_or_else(|| wrong("--grace needs a number of seconds".into()))?;
            }
            Some(option) if option.starts_with('-') => {
                return Err(wrong(format!("the option {option} is not understood")));
            }
            _ if file.is_none() => file = Some(PathBuf::from(argument)),
            _ => return Err(wrong(format!("{argument:?} is one file too many"))),
        }
    }
    Ok((grace, file.unwrap_or_else(|| config_file::DEFAULT_CONFLIST.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str) -> Attachment {
        Attachment { container: container.into(), ifname: "eth0".into() }
    }

    #[test]
    fn the_grace_time_runs_from_the_first_miss_and_begins_again_after_a_return_or_a_boot() {
        let (a, b) = (attachment("a"), attachment("b"));
        let names =
            |missed: &MissingLeases| missed.iter().map(|(name, since)| (name.clone(), *since)).collect::<Vec<_>>();
        let first = missed_since(&MissingLeases::new(), std::slice::from_ref(&a), 100);
        let second = missed_since(&first, &[a.clone(), b.clone()], 150);
        assert_eq!(names(&second), [(a.to_string(), 100), (b.to_string(), 150)]);
        let returned = missed_since(&second, std::slice::from_ref(&b), 160);
        assert_eq!(names(&missed_since(&returned, std::slice::from_ref(&a), 170)), [(a.to_string(), 170)]);
        assert_eq!(names(&missed_since(&second, std::slice::from_ref(&b), 20)), [(b.to_string(), 20)]);
    }

    #[test]
    fn the_grace_time_is_a_number() {
        let parsed = |texts: &[&str]| parse(&texts.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(parsed(&["--grace", "7", "list"]).unwrap(), (7, "list".into()));
        assert_eq!(parsed(&[]).unwrap().0, GRACE_SECONDS);
        for wrong in [&["--grace"][..], &["--grace", "-1"], &["--now"], &["a", "b"]] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }
}
