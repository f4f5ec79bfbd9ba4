//! The bridge's filter. A pod can send only with its own MAC address and its leased addresses.
//!
//! `table bridge edge-cni` is created once, in one nfnetlink transaction. After that, attaching or
//! detaching a pod changes only elements in the sets of the table. The program `nft` is not
//! necessary.
//!
//! The module `table` contains the sets, chains and rules of the table.

use std::collections::BTreeMap;
use std::net::IpAddr;

use edge_xfrm::netlink::{self, Netlink, RawMessage};
use netlink_packet_core::NLM_F_CREATE;

pub(crate) use table::PORT_PREFIX;

use self::table::{FilterSet, TABLE};
use crate::error::{Code, Error, Result};
use crate::mac::{self, Mac};
use crate::nftables::{self, IFNAMSIZ, Table, interface_key, interface_of, wire};
use crate::sort::sort_by;

mod table;
#[cfg(test)]
mod tests;

/// Maximum number of ports in one transaction. Their elements occupy about 80 KiB, well below the
/// smallest send buffer.
const PORTS_AT_ONCE: usize = 128;

/// Maximum number of attempts to remove elements while other processes also remove some.
const REMOVE_ATTEMPTS: usize = 8;

/// The kernel features that the filter requires, for error messages.
const NEEDED: &str = "; the kernel needs nf_tables with the family bridge (CONFIG_NF_TABLES_BRIDGE), or attach pods without protection from each \
    other by \"unfilteredPods\": [\"*\"] in the plugin's configuration";

/// A pod's bridge port, and the source addresses that the pod may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodPort {
    /// Name of the host end.
    pub(crate) name: String,
    /// The pod's MAC address.
    pub(crate) mac: Mac,
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether the operator has exempted the pod from the filter.
    pub(crate) unfiltered: bool,
}

/// Keys of elements, grouped by set.
type Elements = BTreeMap<FilterSet, Vec<Vec<u8>>>;

/// Access to the table through a netlink socket.
#[derive(Debug)]
pub(crate) struct Filter {
    netlink: Netlink,
}

impl Filter {
    /// Opens the socket in the thread's network namespace.
    pub(crate) fn open() -> Result<Self> {
        let netlink = Netlink::open(netlink_sys::protocols::NETLINK_NETFILTER);
        let netlink = netlink.map_err(|error| {
            Error::new(
                Code::Filter,
                format!("cannot open a socket to nf_tables, for the bridge's filter{NEEDED}: {error}"),
            )
        })?;
        Ok(Self { netlink })
    }

    /// Adds the elements of ports. Returns `false`, and does nothing, if no table of this version
    /// exists.
    pub(crate) fn add(&mut self, ports: &[PodPort]) -> Result<bool> {
        for some in ports.chunks(PORTS_AT_ONCE) {
            match self.transact("NFT_MSG_NEWSETELEM", element_messages(&elements_of(some), Table::add_elements)) {
                Ok(()) => {}
                Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(false),
                Err(error) => return Err(kernel_error("let a pod send through the bridge's filter", &error)),
            }
        }
        Ok(true)
    }

    /// Returns the generation of the host's nftables ruleset, which increases with every change.
    pub(crate) fn generation(&mut self) -> Result<u32> {
        let answer: RawMessage = self
            .netlink
            .get("NFT_MSG_GETGEN", wire::get_generation())
            .map_err(|error| kernel_error("read the generation of the ruleset", &error))?;
        wire::generation_in(&answer).ok_or_else(|| {
            Error::new(Code::Filter, "the kernel's answer to NFT_MSG_GETGEN has no generation of the ruleset")
        })
    }

    /// Ensures that the table exists and contains these ports, which must be all attached ports.
    /// Replaces a table of another version. If the table has this version, its other elements stay.
    /// Only one process may call this at a time. Returns `false`, and does nothing, if the ruleset
    /// no longer has this generation.
    pub(crate) fn ensure(&mut self, ports: &[PodPort], generation: Option<u32>) -> Result<bool> {
        // First checks that the table exists, since `add` does nothing if there are no ports.
        if self.elements(FilterSet::Ports)?.is_some() && self.add(ports)? {
            return Ok(true);
        }
        match self.create(ports, vec![TABLE.create()], generation) {
            Err(error) if error.errno() == Some(libc::EEXIST) => self.replace(ports, generation),
            made => unless_changed(made),
        }
    }

    /// Replaces the table with a new one with these ports, which must be all attached ports. This
    /// is necessary if another program may have changed the rules of the table. Only one process
    /// may call this at a time. Returns `false`, and does nothing, if the ruleset no longer has
    /// this generation.
    pub(crate) fn replace(&mut self, ports: &[PodPort], generation: Option<u32>) -> Result<bool> {
        unless_changed(self.create(ports, TABLE.delete_and_create().into(), generation))
    }

    /// Fails if the elements of another pod could not be added. STATUS calls this. Nothing changes,
    /// since the kernel reverts the attempt.
    pub(crate) fn dry_run(&mut self) -> Result<()> {
        let (make, _) = TABLE.create();
        // If the table does not exist in this version, a table with its name may belong to another
        // release or program, so it is deleted first.
        let messages = match self.elements(FilterSet::Ports)? {
            Some(_) => vec![(make, NLM_F_CREATE)],
            None => TABLE.delete_and_create().into_iter().chain(content_messages()).collect(),
        };
        let tried = self.netlink.transaction("NFT_MSG_NEWTABLE", wire::begin(), messages, None);
        tried.map_err(|error| cannot_make(&error))
    }

    fn create(
        &mut self,
        ports: &[PodPort],
        mut messages: Vec<(RawMessage, u16)>,
        generation: Option<u32>,
    ) -> Result<(), netlink::Error> {
        messages.extend(content_messages());
        // The elements are added in the same transaction, so that attached pods are not cut off.
        let (first, rest) = ports.split_at(ports.len().min(PORTS_AT_ONCE));
        messages.extend(element_messages(&elements_of(first), Table::add_elements));
        let begin = generation.map_or_else(wire::begin, wire::begin_at);
        self.netlink.transaction("NFT_MSG_NEWTABLE", begin, messages, Some(wire::end()))?;
        let chunks = rest.chunks(PORTS_AT_ONCE);
        chunks
            .map(elements_of)
            .try_for_each(|some| self.transact("NFT_MSG_NEWSETELEM", element_messages(&some, Table::add_elements)))
    }

    /// Removes all elements of these ports. Does nothing if the table does not exist.
    pub(crate) fn remove(&mut self, ports: &[String]) -> Result<()> {
        self.remove_where(|port| ports.iter().any(|name| name == port))
    }

    /// Returns the names of the ports that have elements.
    pub(crate) fn ports(&mut self) -> Result<Vec<String>> {
        let keys = self.elements(FilterSet::Ports)?.unwrap_or_default();
        Ok(keys.iter().map(|key| interface_of(key)).collect())
    }

    /// Returns the names of the ports of exempted pods.
    pub(crate) fn unfiltered(&mut self) -> Result<Vec<String>> {
        let keys = self.elements(FilterSet::Unfiltered)?.unwrap_or_default();
        Ok(keys.iter().map(|key| interface_of(key)).collect())
    }

    /// Returns the source MAC addresses that ports may use, by port.
    pub(crate) fn macs(&mut self) -> Result<Vec<(String, Mac)>> {
        let keys = self.elements(FilterSet::Macs)?.unwrap_or_default();
        let mac = |key: &Vec<u8>| key.get(IFNAMSIZ..IFNAMSIZ + 6).and_then(|octets| octets.try_into().ok());
        Ok(keys.iter().filter_map(|key| Some((interface_of(key), mac(key)?))).collect())
    }

    /// Describes the elements that a port lacks, for CHECK. `None` if it lacks none.
    pub(crate) fn missing_for(&mut self, port: &PodPort) -> Result<Option<String>> {
        for (set, keys) in elements_of(std::slice::from_ref(port)) {
            let Some(present) = self.elements(set)? else {
                return Ok(Some("the bridge's filter, `table bridge edge-cni`, is gone".into()));
            };
            if keys.iter().any(|key| !present.contains(key)) {
                let (set, name) = (set.name(), &port.name);
                return Ok(Some(format!("set {set} of `table bridge edge-cni` has lost the entry for {name}")));
            }
        }
        Ok(None)
    }

    fn remove_where(&mut self, gone: impl Fn(&str) -> bool) -> Result<()> {
        // The kernel refuses the whole transaction if another process has removed one of the
        // elements.
        for _ in 0..REMOVE_ATTEMPTS {
            let elements = self.find(&gone)?;
            match self.transact("NFT_MSG_DELSETELEM", element_messages(&elements, Table::delete_elements)) {
                Ok(()) => return Ok(()),
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                Err(error) => return Err(kernel_error("take a pod's elements from the bridge's filter", &error)),
            }
        }
        Err(Error::new(
            Code::Filter,
            format!(
                "elements of `table bridge edge-cni` changed during each of {REMOVE_ATTEMPTS} attempts to take a pod's away"
            ),
        ))
    }

    /// Finds the elements of the wanted ports, without duplicates.
    fn find(&mut self, wanted: impl Fn(&str) -> bool) -> Result<Elements> {
        let mut elements = Elements::new();
        for set in FilterSet::ALL {
            let Some(keys) = self.elements(set)? else { continue };
            let mut keys: Vec<_> = keys.into_iter().filter(|key| wanted(&interface_of(key))).collect();
            // While a hash table grows, a dump may contain an element twice.
            sort_by(&mut keys, |one, other| one < other);
            keys.dedup();
            if !keys.is_empty() {
                elements.insert(set, keys);
            }
        }
        Ok(elements)
    }

    /// Returns the keys in a set. `None` if no table of this version exists.
    fn elements(&mut self, set: FilterSet) -> Result<Option<Vec<Vec<u8>>>> {
        nftables::elements(&mut self.netlink, &TABLE, set.name())
            .map_err(|error| kernel_error("read the bridge's filter, `table bridge edge-cni`", &error))
    }

    fn transact(&mut self, request: &'static str, messages: Vec<(RawMessage, u16)>) -> Result<(), netlink::Error> {
        self.netlink.transaction(request, wire::begin(), messages, Some(wire::end()))
    }
}

/// Returns the messages that create the content of the table, without elements.
fn content_messages() -> Vec<(RawMessage, u16)> {
    let chains = table::CHAINS.iter().map(|(name, base)| TABLE.new_chain(name, base.as_ref()));
    let sets = FilterSet::ALL.into_iter().map(|set| TABLE.new_set(&set.definition()));
    chains.chain(sets).chain(table::rules().iter().map(|rule| TABLE.new_rule(rule))).collect()
}

/// Returns the elements of ports, as keys of the sets.
fn elements_of(ports: &[PodPort]) -> Elements {
    let mut elements = Elements::new();
    let mut put = |set, parts: &[&[u8]]| elements.entry(set).or_default().push(parts.concat());
    for port in ports {
        let name = interface_key(&port.name);
        put(FilterSet::Ports, &[&name, &name]);
        if port.unfiltered {
            put(FilterSet::Unfiltered, &[&name]);
            continue;
        }
        // Each part of a key occupies a multiple of four octets.
        let padded = [&port.mac[..], &[0, 0]].concat();
        put(FilterSet::Macs, &[&name, &padded]);
        for address in port.addresses.iter().copied().chain([IpAddr::V6(mac::link_local(port.mac))]) {
            match address {
                IpAddr::V4(address) => {
                    put(FilterSet::Ipv4, &[&name, &padded, &address.octets()]);
                    put(FilterSet::ErrorTargets, &[&name, &address.octets()]);
                }
                IpAddr::V6(address) => {
                    put(FilterSet::Ipv6, &[&name, &padded, &address.octets()]);
                    put(FilterSet::Targets, &[&name, &address.octets()]);
                }
            }
        }
    }
    elements
}

fn element_messages(
    elements: &Elements,
    message: impl Fn(&Table, &str, &[Vec<u8>]) -> (RawMessage, u16),
) -> Vec<(RawMessage, u16)> {
    let each = elements.iter().flat_map(|(set, keys)| keys.chunks(wire::ELEMENTS).map(|some| (set.name(), some)));
    each.map(|(set, some)| message(&TABLE, set, some)).collect()
}

/// Returns whether the table was created. If not, the ruleset had changed.
fn unless_changed(made: Result<(), netlink::Error>) -> Result<bool> {
    match made {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(libc::ERESTART) => Ok(false),
        Err(error) => Err(cannot_make(&error)),
    }
}

fn cannot_make(error: &netlink::Error) -> Error {
    kernel_error("make the bridge's filter, `table bridge edge-cni`", error)
}

fn kernel_error(what: &str, error: &netlink::Error) -> Error {
    let hint = match error.errno() {
        Some(libc::EPERM) => {
            "; edge-cni must run as root with CAP_NET_ADMIN, and no other program may own `table bridge edge-cni`"
        }
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EINVAL | libc::ENOENT) => NEEDED,
        _ => "",
    };
    Error::new(Code::Filter, format!("cannot {what}{hint}: {error}"))
}
