//! Asks the kernel for the route of packets to an address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use edge_types::error::with_causes;
use futures_util::StreamExt;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::RouteMessageBuilder;
use rustix::net::{AddressFamily, SocketType, socket};

/// The way of packets that this node sends to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// Name of the interface.
    pub(super) device: String,
    /// The next host; `None` if the address is on the interface's own network.
    pub(super) gateway: Option<IpAddr>,
    /// The source address that the kernel chooses.
    pub(super) source: Option<IpAddr>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leave by {}", self.device)?;
        if let Some(gateway) = self.gateway {
            write!(f, " through the gateway {gateway}")?;
        }
        self.source.map_or(Ok(()), |source| write!(f, ", with the source {source}"))
    }
}

/// Returns the routes to these addresses, in their order.
///
/// # Errors
/// For each address, the kernel's reason why there is none.
pub(super) async fn routes(addresses: &[IpAddr]) -> Vec<Result<Route, String>> {
    let mut routes = Vec::new();
    for &address in addresses {
        routes.push(route(address).await);
    }
    routes
}

async fn route(remote: IpAddr) -> Result<Route, String> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| error.to_string())?;
    // The task ends when the handle is dropped.
    tokio::spawn(connection);
    let request = match remote {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build(),
        IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build(),
    };
    let mut replies = std::pin::pin!(handle.route().get(request).execute());
    match replies.next().await {
        Some(Ok(message)) => Ok(read(&message)),
        Some(Err(error)) => Err(with_causes(&error)),
        None => Err("the kernel gives no answer".to_owned()),
    }
}

fn read(message: &RouteMessage) -> Route {
    let mut route = Route { device: "an unknown interface".to_owned(), gateway: None, source: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.device = name(*index).unwrap_or_else(|| format!("interface {index}")),
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            _ => {}
        }
    }
    route
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// Returns an interface's name.
fn name(index: u32) -> Option<String> {
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    rustix::net::netdevice::index_to_name(any.as_fd(), index).ok()
}
