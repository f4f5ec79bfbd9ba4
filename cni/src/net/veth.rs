//! The pair of links that connects a pod with the bridge.

use std::time::{Duration, Instant};

use edge_types::IpNetwork;
use edge_types::api::Family;
use edge_xfrm::netlink::{LinkRequest, attribute};

use super::link::{BridgePortState, Link, Links, PortSettings};
use super::netns::Namespace;
use super::sysctl::InterfaceSettings;
use super::{fnv1a, sysctl};
use crate::bridge_filter::PORT_PREFIX;
use crate::error::{Code, Error, Result};
use crate::mac::Mac;
use crate::pod_route::PodRoute;
use crate::request::Attachment;
use crate::segment::{self, PodAddress};

/// Maximum time until a bridge port forwards. Without spanning tree it takes milliseconds.
const FORWARDING_DEADLINE: Duration = Duration::from_secs(5);

/// Maximum duration of duplicate address detection, and the time between two checks of its state.
/// Usually, it takes one to two seconds (RFC 4862, 5.4).
const DETECTION_DEADLINE: Duration = Duration::from_secs(10);
const DETECTION_PAUSE: Duration = Duration::from_millis(20);

const ALIAS_PREFIX: &str = "edge-cni ";

/// The pod end of the pair, after it is up and has its addresses.
#[derive(Debug)]
pub(crate) struct PodEnd {
    pub(crate) link: Link,
    /// The routes over the pod end.
    pub(crate) routes: Vec<PodRoute>,
    /// Access to the pod's namespace.
    links: Links,
}

impl PodEnd {
    /// Announces the addresses to the neighbours with gratuitous ARP (RFC 5227 2.3) and unsolicited
    /// neighbour advertisements (RFC 4861 7.2.6). The kernel sends them when a link's MAC address
    /// is set, even to the same value. (A packet socket could also send them, but closing such a
    /// socket takes as long as the rest of an ADD.)
    pub(crate) fn announce(&mut self) -> Result<()> {
        self.links.set_mac(&self.link, self.link.mac)
    }
}

/// Returns the name of the host end. It is derived from the attachment, so that DEL finds it
/// without a record.
pub(crate) fn host_name(attachment: &Attachment) -> String {
    let hash = fnv1a(&[attachment.container.as_bytes(), attachment.ifname.as_bytes()]);
    format!("{PORT_PREFIX}{:011x}", hash >> 20)
}

/// Returns the MAC address of the pod end if the runtime requests none. It is derived from the
/// attachment, so that the bridge's filter can be restored without data from the pod.
pub(crate) fn pod_mac(attachment: &Attachment) -> Mac {
    generated_mac(attachment, "pod", 0x0a)
}

/// Returns the MAC address of the host end. If an earlier release created the pair, its ends have
/// other MAC addresses than this one and [`pod_mac`].
pub(crate) fn host_mac(attachment: &Attachment) -> Mac {
    generated_mac(attachment, "host", 0x0e)
}

/// Derives a locally administered unicast address.
fn generated_mac(attachment: &Attachment, end: &str, first: u8) -> Mac {
    let hash = fnv1a(&[end.as_bytes(), attachment.container.as_bytes(), attachment.ifname.as_bytes()]);
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    [first, a, b, c, d, e]
}

/// Returns the alias of the host end. It is readable for operators, and identifies a link that was
/// renamed.
pub(crate) fn alias(attachment: &Attachment) -> String {
    format!("{ALIAS_PREFIX}{} {}", attachment.container, attachment.ifname)
}

/// Returns the attachment to which this host end belongs. `None` unless both the name and the alias
/// match.
pub(crate) fn attachment_of(link: &Link) -> Option<Attachment> {
    // The alias of another program's link may look the same, but the link's name would not match
    // it.
    attachment_by_alias(link).filter(|attachment| link.name == host_name(attachment))
}

/// Does the same as [`attachment_of`], but accepts a renamed link. The caller must verify the
/// attachment in another way, for example by its lease.
pub(crate) fn attachment_by_alias(link: &Link) -> Option<Attachment> {
    let (container, ifname) = link.alias.strip_prefix(ALIAS_PREFIX)?.split_once(' ')?;
    (link.kind == "veth").then(|| Attachment { container: container.into(), ifname: ifname.into() })
}

/// Creates the pair: one end as a port of the bridge, and the other end in the pod with this MAC
/// address. Both ends are down. The kernel creates both or none.
pub(crate) fn create(
    links: &mut Links,
    bridge: &Link,
    pod: &Namespace,
    attachment: &Attachment,
    pod_mac: Mac,
    mtu: Option<u32>,
) -> Result<()> {
    let name = host_name(attachment);
    let ifname = &attachment.ifname;
    let mut peer = LinkRequest::named(ifname);
    peer.attributes.bytes(attribute::ADDRESS, &pod_mac);
    peer.attributes.number(attribute::NETNS_FD, pod.raw_fd().cast_unsigned());
    let mut host = LinkRequest::named(&name);
    host.attributes.bytes(attribute::ADDRESS, &host_mac(attachment));
    host.attributes.number(attribute::CONTROLLER, bridge.index);
    if let Some(mtu) = mtu {
        peer.attributes.number(attribute::MTU, mtu);
        host.attributes.number(attribute::MTU, mtu);
    }
    host.veth(&peer);
    if links.create(&format!("the pair {name} and {ifname}"), &host)? {
        return Ok(());
    }
    Err(match links.find(&name)? {
        Some(_) => Error::new(
            Code::AlreadyAttached,
            format!(
                "{name}, the host's end of this interface, is there already: it is attached, or an ADD was cut off; run DEL first"
            ),
        ),
        None => Error::new(
            Code::NameTaken,
            format!(
                "the pod has an interface {ifname} already that is not ours; choose another CNI_IFNAME or remove it"
            ),
        ),
    })
}

/// Brings the host end up. As a port of the bridge it needs no address, not even a link-local one.
pub(crate) fn set_host_up(links: &mut Links, attachment: &Attachment, port: PortSettings) -> Result<()> {
    let name = host_name(attachment);
    let link = links.find(&name)?.ok_or_else(|| vanished(&name))?;
    let ipv6 = InterfaceSettings::open(&name, Family::V6)?;
    ipv6.ignore_router_advertisements()?;
    ipv6.set_if_present("disable_ipv6", "1")?;
    links.bring_port_up(&link, &alias(attachment), port)
}

fn vanished(name: &str) -> Error {
    Error::new(Code::Kernel, format!("{name} vanished while the pod was being attached; was the pod stopped?"))
}

/// Sets the addresses and routes of the pod end, and brings it up. `routes` receives the pod's
/// links and chooses the routes. With `detect_duplicates`, waits for the duplicate address
/// detection of the IPv6 addresses.
pub(crate) fn configure(
    pod: &Namespace,
    ifname: &str,
    addresses: &[PodAddress],
    detect_duplicates: bool,
    routes: impl FnOnce(&mut Links) -> Result<Vec<PodRoute>>,
) -> Result<PodEnd> {
    let segments: Vec<IpNetwork> = addresses.iter().map(|assigned| assigned.segment).collect();
    pod.within(|| {
        let mut links = Links::open()?;
        let link = links.find(ifname)?.ok_or_else(|| vanished(ifname))?;
        // This is necessary even without IPv6 in the cluster, since another pod could advertise a
        // default route.
        let ipv6 = InterfaceSettings::open(ifname, Family::V6)?;
        ipv6.ignore_router_advertisements()?;
        // The bridge's filter expects the link-local address that is derived from the MAC address.
        ipv6.set_if_present("addr_gen_mode", "0")?;
        // `PodEnd::announce` needs this.
        sysctl::announce_addresses(&InterfaceSettings::open(ifname, Family::V4)?, &ipv6)?;
        if segment::families(&segments).contains(&Family::V6) {
            // IPv6 is turned on explicitly, since some runtimes turn it off in new namespaces.
            ipv6.set("disable_ipv6", "0")?;
            // Without duplicate address detection, the link-local address can be used immediately.
            let accept_dad = if detect_duplicates { "1" } else { "0" };
            ipv6.set("accept_dad", accept_dad)?;
        }
        for assigned in addresses {
            links.add_address(&link, assigned.address, assigned.segment.prefix(), detect_duplicates)?;
        }
        links.set_up(&link)?;
        if detect_duplicates {
            wait_for_detection(&mut links, &link)?;
        }
        let routes = routes(&mut links)?;
        routes.iter().try_for_each(|route| links.add_route(&link, route))?;
        Ok(PodEnd { link, routes, links })
    })
}

/// Waits until duplicate address detection has finished without a duplicate.
fn wait_for_detection(links: &mut Links, link: &Link) -> Result<()> {
    let deadline = Instant::now() + DETECTION_DEADLINE;
    while links.detects_duplicates(link)? {
        if Instant::now() >= deadline {
            return Err(Error::new(
                Code::Kernel,
                format!("duplicate address detection on {} has not ended after {DETECTION_DEADLINE:?}", link.name),
            ));
        }
        #[expect(clippy::disallowed_methods, reason = "the kernel sends no event for this to a socket without groups")]
        std::thread::sleep(DETECTION_PAUSE);
    }
    Ok(())
}

/// Waits until the bridge forwards the pod's frames. Announcements before that would be lost.
pub(crate) fn wait_until_forwarding(links: &mut Links, attachment: &Attachment) -> Result<Link> {
    let name = host_name(attachment);
    let deadline = Instant::now() + FORWARDING_DEADLINE;
    let mut pause = Duration::from_micros(200);
    loop {
        let link = links.find(&name)?.ok_or_else(|| vanished(&name))?;
        if link.port_state == Some(BridgePortState::Forwarding) {
            return Ok(link);
        }
        if Instant::now() >= deadline {
            let state = link.port_state.map_or_else(|| "not a port of the bridge".into(), |state| state.to_string());
            return Err(Error::new(
                Code::Kernel,
                format!(
                    "the bridge's port {name} does not forward after {FORWARDING_DEADLINE:?} ({state}); turn spanning tree off on the bridge"
                ),
            ));
        }
        #[expect(clippy::disallowed_methods, reason = "the kernel sends no event for this to a socket without groups")]
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Removes the pair if it exists, even if the host end was renamed.
pub(crate) fn remove(links: &mut Links, attachment: &Attachment) -> Result<()> {
    match links.find(&host_name(attachment))? {
        Some(link) if link.kind == "veth" => return links.delete(&link),
        _ => {}
    }
    let alias = alias(attachment);
    let renamed = links.all()?.into_iter().find(|link| link.kind == "veth" && link.alias == alias);
    renamed.map_or(Ok(()), |link| links.delete(&link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_end_has_a_name_that_fits_and_follows_from_the_attachment() {
        let attachment =
            |container: &str, ifname: &str| Attachment { container: container.into(), ifname: ifname.into() };
        let longest = attachment(&"a".repeat(200), "0123456789abcde");
        assert_eq!(host_name(&longest).len(), 15);
        assert!(alias(&longest).len() < 256);
        assert_ne!(host_name(&attachment("a", "eth0")), host_name(&attachment("a", "eth1")));
    }
}
