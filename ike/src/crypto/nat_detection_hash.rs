//! NAT detection (RFC 7296 2.23).

use std::net::{IpAddr, SocketAddr};

use ring::digest;

use crate::event::IkeId;

/// Returns the data of NAT_DETECTION_SOURCE_IP or NAT_DETECTION_DESTINATION_IP: SHA-1 of SPIi |
/// SPIr | address | port. The responder's SPI is 0 in the first message.
pub fn nat_detection_hash(ike: IkeId, address: SocketAddr) -> [u8; 20] {
    //= RFC 7296 2.23 REQUIRED 9: what is hashed
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(&ike.initiator.to_be_bytes());
    hash.update(&ike.responder.to_be_bytes());
    // A socket for both families reports IPv4 peers as mapped IPv6 addresses, but the hash must
    // cover the IPv4 address.
    match address.ip().to_canonical() {
        IpAddr::V4(address) => hash.update(&address.octets()),
        IpAddr::V6(address) => hash.update(&address.octets()),
    }
    if !mutation!("nat_hash_without_port") {
        hash.update(&address.port().to_be_bytes());
    }
    hash.finish().as_ref().first_chunk().copied().unwrap_or_default()
}
