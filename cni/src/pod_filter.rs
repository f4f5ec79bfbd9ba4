//! The pods' elements in the bridge's filter, and the options of their ports (hairpin, isolation).
//! ADD adds a pod's elements before its port forwards, and DEL removes them with its lease. If the
//! table was removed, the elements are restored for all leases.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::bridge_filter::{Filter, PodPort};
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::ipam::{Lease, LockedLeases, StateDir};
use crate::mac::{self, Mac};
use crate::net::link::{Links, PortSettings};
use crate::net::{bridge, veth};
use crate::request::{Attachment, RuntimeRequest};
use crate::segment::PodAddress;
use crate::sort::SortedSet;

/// Maximum number of attempts to create the table while the ruleset changes.
const ATTEMPTS: usize = 8;

/// Allows a pod to send with its leased addresses, and with the MAC address that the runtime
/// requested for it. Returns `false` if this kernel does not support the filter and the operator
/// has exempted the pod.
pub(crate) fn admit(
    config: &Config,
    state_dir: &StateDir,
    links: &mut Links,
    request: &RuntimeRequest,
    mac: Option<Mac>,
    addresses: &[PodAddress],
) -> Result<bool> {
    let port = PodPort {
        name: veth::host_name(&request.attachment),
        mac: mac.unwrap_or_else(|| veth::pod_mac(&request.attachment)),
        addresses: addresses.iter().map(|assigned| assigned.address).collect(),
        unfiltered: config.excepts(request.pod.as_deref()),
    };
    let unfiltered = port.unfiltered;
    let admitted = Filter::open().and_then(|mut filter| filter.add(std::slice::from_ref(&port))).and_then(|added| {
        if added {
            return Ok(());
        }
        // This is the first pod since the boot, or the table was removed. The table is created with
        // all attached pods. The lock prevents another ADD from doing the same at the same time.
        let leases = state_dir.lock()?;
        with_all_ports(config, &leases, links, Filter::ensure).map(drop)
    });
    match admitted {
        Ok(()) => Ok(true),
        Err(error) if unfiltered => {
            eprintln!("edge-cni: {request} is attached without a filter, as unfilteredPods says: {error}");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Replaces the filter's table with one that contains every attached pod.
pub(crate) fn restore(config: &Config, leases: &LockedLeases, links: &mut Links) -> Result<()> {
    let ports = match with_all_ports(config, leases, links, Filter::replace) {
        Err(error) if config.excepts(None) => {
            eprintln!("edge-cni: pods are attached without a filter, as unfilteredPods says: {error}");
            return Ok(());
        }
        outcome => outcome?,
    };
    // An earlier release or another configuration may have configured ports differently. Ports of
    // another network's bridge are not changed.
    let wanted = PortSettings { hairpin: config.hairpin_mode, isolated: config.port_isolation };
    let all = links.all()?;
    let bridge = all.iter().find(|link| link.name == config.bridge).map(|link| link.index);
    let others = all.iter().filter(|link| link.port != Some(wanted) && ports.iter().any(|port| port.name == link.name));
    let here = others.filter(|link| link.master.is_some() && link.master == bridge);
    here.into_iter().try_for_each(|link| links.configure_port(link, wanted))
}

/// Creates the table with the ports of all pods, including pods of other networks on this host.
/// Returns the ports. The leases of networks with another state directory are read without their
/// lock: any change of leases in the meantime also changes the ruleset, and in that case everything
/// is read again.
fn with_all_ports(
    config: &Config,
    leases: &LockedLeases,
    links: &mut Links,
    make: impl Fn(&mut Filter, &[PodPort], Option<u32>) -> Result<bool>,
) -> Result<Vec<PodPort>> {
    let mut filter = Filter::open()?;
    for _ in 0..ATTEMPTS {
        let directories = other_state_dirs(config, links)?;
        let generation = if directories.is_empty() { None } else { Some(filter.generation()?) };
        let mut ports = attached_ports(config, leases, links)?;
        // Only the other network's configuration states whether its pods are exempt, so this is
        // taken from the existing elements.
        let unfiltered = if directories.is_empty() { Vec::new() } else { filter.unfiltered()? };
        for directory in directories {
            let leases = StateDir::leases_in(&directory)?;
            ports.extend(ports_of(leases.into_iter(), links, |port, _| unfiltered.iter().any(|name| name == port))?);
        }
        if make(&mut filter, &ports, generation)? {
            return Ok(ports);
        }
    }
    Err(Error::new(
        Code::Filter,
        format!(
            "the host's nf_tables rules changed during each of {ATTEMPTS} attempts to make the bridge's filter; try again"
        ),
    ))
}

/// Returns the state directories of other networks on this host.
fn other_state_dirs(config: &Config, links: &mut Links) -> Result<SortedSet<PathBuf>> {
    let directories = links.all()?;
    Ok(directories.iter().filter_map(bridge::state_dir_of).filter(|directory| *directory != config.state_dir).collect())
}

/// Removes the elements of these attachments. A failure is reported on standard error. It is
/// harmless, since only the same container can get a port with that name again.
pub(crate) fn remove_elements(ended: &[Attachment]) {
    let names: Vec<String> = ended.iter().map(veth::host_name).collect();
    remove_ports(&names);
}

/// A removal of the elements of ports, which runs in the kernel while the caller does other work.
#[derive(Debug)]
pub(crate) struct ElementRemoval {
    /// The filter; `None` if this kernel does not support it.
    filter: Option<Filter>,
    names: Vec<String>,
}

impl ElementRemoval {
    /// Removes the elements of these attachments. Reports failures on standard error.
    pub(crate) fn begin(ended: &[Attachment]) -> Self {
        let names: Vec<String> = ended.iter().map(veth::host_name).collect();
        let filter = Filter::open().inspect_err(|error| eprintln!("edge-cni: {error}")).ok();
        let mut removal = Self { filter, names };
        removal.remove();
        removal
    }

    /// Removes elements that were added again in the meantime. Called after links and leases were
    /// removed.
    pub(crate) fn finish(&mut self) {
        let known = self.filter.as_mut().and_then(|filter| filter.ports().ok()).unwrap_or_default();
        if known.iter().any(|name| self.names.contains(name)) {
            self.remove();
        }
    }

    fn remove(&mut self) {
        if let Some(filter) = &mut self.filter
            && let Err(error) = filter.remove(&self.names)
        {
            eprintln!("edge-cni: {error}");
        }
    }
}

/// Removes the elements of ports that no longer exist.
pub(crate) fn remove_vanished(links: &mut Links) {
    let vanished = Filter::open().and_then(|mut filter| {
        // The elements are read before the links, since a port is created before its elements are
        // added.
        let known = filter.ports()?;
        let present: SortedSet<String> = links.all()?.into_iter().map(|link| link.name).collect();
        Ok(known.into_iter().filter(|name| !present.contains(name)).collect::<Vec<_>>())
    });
    match vanished {
        Ok(names) => remove_ports(&names),
        Err(error) => eprintln!("edge-cni: {error}"),
    }
}

fn remove_ports(names: &[String]) {
    if names.is_empty() {
        return;
    }
    if let Err(error) = Filter::open().and_then(|mut filter| filter.remove(names)) {
        eprintln!("edge-cni: {error}");
    }
}

/// Describes the elements that the filter lacks for a pod. `None` if none are missing, or if the
/// pod is exempt and the filter does not exist.
pub(crate) fn missing_elements(
    config: &Config,
    links: &mut Links,
    leases: &LockedLeases,
    attachment: &Attachment,
) -> Result<Option<String>> {
    let Some(port) = port_of(config, leases, links, attachment)? else { return Ok(None) };
    match Filter::open().and_then(|mut filter| filter.missing_for(&port)) {
        // An exempt pod needs no filter.
        Err(_) if port.unfiltered => Ok(None),
        outcome => outcome,
    }
}

/// Returns the port of one lease, if its host end exists.
fn port_of(
    config: &Config,
    leases: &LockedLeases,
    links: &mut Links,
    attachment: &Attachment,
) -> Result<Option<PodPort>> {
    let name = veth::host_name(attachment);
    let link = links.find(&name)?.filter(|link| link.kind == "veth");
    let (Some(link), Some(lease)) = (link, leases.lease(attachment)?) else { return Ok(None) };
    // All ports are read, since the MAC address that a pod of an earlier release keeps depends on
    // the other ports.
    if link.mac != veth::host_mac(attachment) {
        return Ok(attached_ports(config, leases, links)?.into_iter().find(|port| port.name == name));
    }
    let unfiltered = config.excepts(lease.pod.as_deref());
    let mac = lease.mac.unwrap_or_else(|| veth::pod_mac(attachment));
    Ok(Some(PodPort { name, mac, addresses: lease.addresses, unfiltered }))
}

/// Returns the ports of all leases whose host end exists.
fn attached_ports(config: &Config, leases: &LockedLeases, links: &mut Links) -> Result<Vec<PodPort>> {
    ports_of(leases.all()?, links, |_, pod| config.excepts(pod))
}

/// Does the same as [`attached_ports`]. `excepted` is called with the port's name and the pod, and
/// returns whether the pod is exempt.
fn ports_of(
    leases: impl Iterator<Item = (Attachment, Lease)>,
    links: &mut Links,
    excepted: impl Fn(&str, Option<&str>) -> bool,
) -> Result<Vec<PodPort>> {
    let present = links.all()?;
    let mut ports = Vec::new();
    let mut former = Vec::new();
    for (attachment, lease) in leases {
        let name = veth::host_name(&attachment);
        let Some(link) = present.iter().find(|link| link.name == name && link.kind == "veth") else { continue };
        // For a pod that an earlier release attached, the kernel chose the MAC address, so the
        // address is read. For a pod of this release, it is not read, since the pod may have
        // changed it.
        if link.mac != veth::host_mac(&attachment) {
            let Some(mac) = links.peer_mac(link)? else { continue };
            former.push(EarlierPort { name: name.clone(), pod: lease.pod.clone().unwrap_or_default(), mac });
        }
        let unfiltered = excepted(&name, lease.pod.as_deref());
        let mac = lease.mac.unwrap_or_else(|| veth::pod_mac(&attachment));
        ports.push(PodPort { name, mac, addresses: lease.addresses.clone(), unfiltered });
    }
    let of_host = present.iter().map(|link| link.mac).collect();
    let known = || Filter::open().and_then(|mut filter| filter.macs()).unwrap_or_default();
    let chosen = macs_to_keep(&former, &ports, &of_host, known);
    for port in &mut ports {
        if let Some(mac) = chosen.get(&port.name) {
            port.mac = *mac;
        }
    }
    Ok(ports)
}

/// A port that an earlier release created, with the current MAC address of its pod, which the
/// kernel or the pod chose.
struct EarlierPort {
    name: String,
    pod: String,
    mac: Mac,
}

/// Returns the names of the ports that may keep their MAC address, each with this address. A pod
/// may have set the address of a neighbour, of the bridge or of this host, so an address that is in
/// use elsewhere is refused. If two ports have the same address, the port that is already in the
/// filter with this address keeps it. For the remaining ports, the filter contains the address that
/// is derived from their attachment, so their pods cannot send.
fn macs_to_keep(
    former: &[EarlierPort],
    ports: &[PodPort],
    of_host: &SortedSet<Mac>,
    known: impl Fn() -> Vec<(String, Mac)>,
) -> BTreeMap<String, Mac> {
    let mut holders: BTreeMap<Mac, Vec<&EarlierPort>> = BTreeMap::new();
    former.iter().for_each(|port| holders.entry(port.mac).or_default().push(port));
    let mut generated = BTreeMap::new();
    generated.extend(ports.iter().map(|port| (port.mac, port.name.as_str())));
    let mut chosen = BTreeMap::new();
    for (mac, same) in holders {
        let mut rightful = same.clone();
        if same.len() > 1 {
            let known = known();
            rightful.retain(|port| known.iter().any(|(name, known)| *name == port.name && *known == mac));
        }
        let rightful = match rightful.as_slice() {
            [port] if !of_host.contains(&mac) && generated.get(&mac).is_none_or(|name| *name == port.name) => {
                chosen.insert(port.name.clone(), mac);
                Some(&port.name)
            }
            _ => None,
        };
        for EarlierPort { name, pod, .. } in same.into_iter().filter(|port| Some(&port.name) != rightful) {
            let mac = mac::text(mac);
            eprintln!(
                "edge-cni: pod {pod}, attached as {name} by an earlier release, has the MAC address {mac}, which another pod or this host has, too; the \
                 bridge lets it send nothing with it. Delete the pod, so that it is attached again with an address of its own"
            );
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_of_an_earlier_release_keeps_its_mac_address_where_no_other_has_it() {
        let port = |name: &str, last| PodPort {
            name: name.into(),
            mac: [0x0a, last, 0, 0, 0, 0],
            addresses: vec![],
            unfiltered: false,
        };
        let ports = [port("a", 1), port("b", 2), port("ours", 3)];
        let of_host = SortedSet::from_iter([[2, 0, 0, 0, 0, 1]]);
        let (own, neighbours): (Mac, Mac) = ([0x72, 0, 0, 0, 0, 1], [0x72, 0, 0, 0, 0, 2]);
        let choice = |a: Mac, known: &[(&str, Mac)]| {
            let former = [("a", a), ("b", neighbours)].map(|(name, mac)| EarlierPort {
                name: name.into(),
                pod: name.into(),
                mac,
            });
            let known = || known.iter().map(|(name, mac)| ((*name).to_owned(), *mac)).collect();
            macs_to_keep(&former, &ports, &of_host, known).into_iter().collect::<Vec<_>>()
        };
        let b = ("b".to_owned(), neighbours);
        assert_eq!(choice(own, &[]), [("a".to_owned(), own), b.clone()]);
        assert_eq!(choice(ports[0].mac, &[]), [("a".to_owned(), ports[0].mac), b.clone()]);
        // The addresses are the host's address, the address of a pod of this release, and the
        // address that is derived from the neighbour's attachment.
        for taken in [[2, 0, 0, 0, 0, 1], ports[2].mac, ports[1].mac] {
            assert_eq!(choice(taken, &[]), std::slice::from_ref(&b));
        }
        assert_eq!(choice(neighbours, &[]), []);
        assert_eq!(choice(neighbours, &[("a", own), ("b", neighbours)]), [b]);
        assert_eq!(choice(neighbours, &[("a", neighbours), ("b", neighbours)]), []);
    }
}
