//! Finds addresses on which two of the controller's listeners would have to listen.

use std::net::{IpAddr, SocketAddr};

use super::Config;

impl Config {
    /// Fails if an address is no host's, or if two listeners need the same port at one address. The
    /// error has the key.
    pub(super) fn check_listeners(&self) -> Result<(), (&'static str, String)> {
        let mut before: Vec<(&'static str, &SocketAddr)> = Vec::new();
        for (key, addresses) in
            [("listen", &self.listen), ("observe.listen", &self.observe.listen), ("page.listen", &self.page.listen)]
        {
            for address in addresses {
                if address.ip().is_multicast() || address.ip() == std::net::Ipv4Addr::BROADCAST {
                    let why = format!("{address} is no address of a host; name one of this machine, or [::] for all");
                    return Err((key, why));
                }
                let clash = |(other_key, other): &&(&'static str, &SocketAddr)| {
                    address.port() != 0
                        && address.port() == other.port()
                        && (address.ip() == other.ip()
                            || *other_key != key
                                && (covers(address.ip(), other.ip()) || covers(other.ip(), address.ip())))
                };
                if let Some((other_key, other)) = before.iter().find(clash) {
                    let why = if *other_key == key {
                        format!("{address} is there twice; leave one of them out")
                    } else {
                        format!("{address} is taken by {other} of {other_key}; choose another port for one of them")
                    };
                    return Err((key, why));
                }
                before.push((key, address));
            }
        }
        Ok(())
    }
}

/// Returns whether a socket on `wildcard` takes the port of the other address too.
fn covers(wildcard: IpAddr, other: IpAddr) -> bool {
    wildcard.is_unspecified() && (wildcard.is_ipv6() || other.is_ipv4())
}
