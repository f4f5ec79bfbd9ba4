//! MAC addresses as people and the CNI result write them.

/// Six octets in hexadecimal, such as `02:00:00:00:00:01`.
pub(crate) fn text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
