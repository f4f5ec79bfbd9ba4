//! Lets connections to the controller bypass the policies and routes that a view installs.
//! Otherwise a wrong view could cut the node off from the controller, which could then never
//! correct it.
//!
//! The socket of each connection has a policy that allows it to send without encryption, like the
//! IKE sockets, so that no other XFRM policy blocks or encrypts its packets. If the controller's
//! address lies within a network that is routed into the guard's device, the socket is bound to the
//! uplink's interface, and the route lookup considers that interface alone. The policy and the
//! binding apply to this socket only: pods and other programs stay guarded.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use edge_types::NodeView;
use edge_xfrm::socket::{bypass, prefer_lasting_source};
use ipnetwork::IpNetwork;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tracing::debug;

use crate::membership::UplinkFacts;
use crate::underlay;

/// Opens connections to the controller that bypass the guard.
#[derive(Debug)]
pub(super) struct GuardBypass {
    uplink: watch::Receiver<UplinkFacts>,
    /// Networks that the current view makes unreachable outside of a tunnel.
    guarded: Mutex<Vec<IpNetwork>>,
    /// Addresses from the last DNS lookup, by host. There are at most as many hosts as controller
    /// URLs.
    lookups: Mutex<BTreeMap<String, Vec<IpAddr>>>,
}

impl GuardBypass {
    pub(super) fn new(uplink: watch::Receiver<UplinkFacts>) -> Self {
        Self { uplink, guarded: Mutex::default(), lookups: Mutex::default() }
    }

    /// Sets the guarded networks to those of `view`, which is about to be applied.
    pub(super) fn set_guarded(&self, view: &NodeView) {
        *self.guarded.lock().unwrap_or_else(PoisonError::into_inner) = underlay::guarded(view);
    }

    /// Stores the addresses to which a controller's host name was resolved.
    pub(super) fn record_lookup(&self, host: &str, addresses: &[SocketAddr]) {
        let addresses = addresses.iter().map(SocketAddr::ip).collect();
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner).insert(host.to_owned(), addresses);
    }

    /// Returns the known addresses of the controllers, from `urls` and from the last lookups.
    pub(super) fn controller_addresses(&self, urls: &[String]) -> Vec<IpAddr> {
        let literal = |url: &String| {
            let uri: hyper::Uri = url.parse().ok()?;
            uri.host()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
        };
        let mut addresses: Vec<IpAddr> = urls.iter().filter_map(literal).collect();
        addresses.extend(self.lookups.lock().unwrap_or_else(PoisonError::into_inner).values().flatten());
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// Opens a TCP connection that bypasses the guard.
    pub(super) async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Err(error) = bypass(&socket, address.is_ipv6()) {
            debug!(%error, "the connection to the controller is not exempt from policies");
        }
        // The controller passes this address on to peers.
        if address.is_ipv6()
            && let Err(error) = prefer_lasting_source(&socket)
        {
            debug!(%error, "the connection to the controller may have a temporary address");
        }
        if let Some(device) = self.interface_past_guard(address.ip())
            && let Err(error) = socket.bind_device(Some(device.as_bytes()))
        {
            debug!(%error, device, "the connection to the controller is not exempt from the guard's routes");
        }
        socket.connect(address).await
    }

    /// Returns the uplink's interface if `address` lies within a guarded network, otherwise `None`.
    fn interface_past_guard(&self, address: IpAddr) -> Option<String> {
        let guarded = self.guarded.lock().unwrap_or_else(PoisonError::into_inner);
        guarded.iter().find(|network| network.contains(address))?;
        self.uplink.borrow().underlay.uplink(address.is_ipv4()).map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use interop_tests::netns::{
        add_far_host, ignored_test, is_in_namespaces, is_root_or_skips, passes_in_namespaces, run,
    };

    use super::*;

    #[test]
    fn controller_addresses_are_those_of_urls_and_of_the_last_lookup() {
        let bypass = GuardBypass::new(watch::channel(UplinkFacts::default()).1);
        let urls = ["https://203.0.113.1:8443", "https://[2001:db8::1]:8443", "https://controller.example:8443"]
            .map(String::from);
        let expect = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(bypass.controller_addresses(&urls), expect(&["203.0.113.1", "2001:db8::1"]));
        bypass.record_lookup("controller.example", &["198.51.100.1:8443".parse().unwrap()]);
        bypass.record_lookup("controller.example", &["198.51.100.2:8443".parse().unwrap()]);
        assert_eq!(bypass.controller_addresses(&urls), expect(&["198.51.100.2", "203.0.113.1", "2001:db8::1"]));
    }

    #[test]
    fn only_a_controller_within_a_guarded_network_is_reached_by_the_uplinks_interface() {
        let mut uplink = UplinkFacts::default();
        uplink.underlay.uplink_v4 = Some("eth0".into());
        let bypass = GuardBypass::new(watch::channel(uplink).1);
        let interface = |text: &str| bypass.interface_past_guard(text.parse().unwrap());
        assert_eq!(interface("10.244.0.1"), None);
        *bypass.guarded.lock().unwrap() = vec!["10.244.0.0/16".parse().unwrap(), "fd77::/48".parse().unwrap()];
        assert_eq!(interface("10.244.0.1").as_deref(), Some("eth0"));
        assert_eq!(interface("10.245.0.1"), None);
        assert_eq!(interface("fd77::1"), None, "there is no uplink of this family");
    }

    const NEAR: &str = "controller_client::guard_bypass::tests::near_end";
    const FAR: &str = "controller_client::guard_bypass::tests::far_end";
    const CONTROLLERS: [&str; 2] = ["10.99.0.1:8443", "[fd99::1]:8443"];

    #[test]
    fn the_controller_is_reached_past_guard_policies_and_routes_and_nothing_else_is() {
        if is_root_or_skips() {
            passes_in_namespaces(NEAR);
        }
    }

    /// Runs a node in a separate namespace. Its view contains the controller's address, and the
    /// controller is behind the node's gateway.
    #[tokio::test]
    #[ignore = "runs in a namespace, started by the test before"]
    async fn near_end() {
        if !is_in_namespaces() {
            return;
        }
        use std::io::BufRead;
        add_far_host();
        for line in [
            "ip addr add 192.0.2.2/24 dev uplink",
            "ip addr add 2001:db8:5::2/64 dev uplink nodad",
            "ip -n far addr add 192.0.2.1/24 dev far",
            "ip -n far addr add 2001:db8:5::1/64 dev far nodad",
            "ip -n far addr add 10.99.0.1/32 dev lo",
            "ip -n far addr add fd99::1/128 dev lo nodad",
            "ip route add default via 192.0.2.1",
            "ip -6 route add default via 2001:db8:5::1",
        ] {
            run(line);
        }
        let mut far =
            ignored_test(&["ip", "netns", "exec", "far"], FAR).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufReader::new(far.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("listening")));
        let addresses = CONTROLLERS.map(|text| text.parse::<SocketAddr>().unwrap());
        for address in addresses {
            TcpStream::connect(address).await.expect("before the guard everything gets through");
        }
        let ranges: Vec<IpNetwork> = vec!["10.99.0.0/16".parse().unwrap(), "fd99::/48".parse().unwrap()];
        let guard = edge_xfrm::guard::GuardConfig { cluster_ranges: ranges.clone(), ..Default::default() };
        edge_xfrm::guard::install(&guard).unwrap();
        let mut uplink = UplinkFacts::default();
        uplink.underlay.uplink_v4 = Some("uplink".into());
        uplink.underlay.uplink_v6 = Some("uplink".into());
        let bypass = GuardBypass::new(watch::channel(uplink).1);
        *bypass.guarded.lock().unwrap() = ranges;
        for address in addresses {
            let connected = tokio::time::timeout(std::time::Duration::from_secs(20), bypass.connect(address)).await;
            connected.expect("in time").unwrap_or_else(|error| panic!("{address}: {error}"));
            let others = tokio::time::timeout(std::time::Duration::from_secs(2), TcpStream::connect(address)).await;
            assert!(!matches!(others, Ok(Ok(_))), "{address}: other programs are guarded");
        }
        far.kill().unwrap();
        far.wait().unwrap();
    }

    #[test]
    #[ignore = "runs in a namespace, started by the test before"]
    fn far_end() {
        if !is_in_namespaces() {
            return;
        }
        let listeners = CONTROLLERS.map(|address| std::net::TcpListener::bind(address).unwrap());
        println!("listening");
        let accepting = listeners.map(|listener| {
            std::thread::spawn(move || {
                let held: Vec<_> = listener.incoming().collect();
                drop(held);
            })
        });
        accepting.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
