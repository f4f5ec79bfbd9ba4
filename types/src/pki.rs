//! The names and key usages in certificates.
//!
//! A node's certificate has the node's name as dNSName. It also has a URI with the node's role and
//! name, `edge-cni://hub/NAME`, so that a peer cannot mistake an edge's certificate for a hub's.
//! Nodes of every role have the extended key usages `id-kp-clientAuth` (towards the controller) and
//! `id-kp-ipsecIKE` (RFC 4945 5.1.3.12). The controller has only `id-kp-serverAuth`.

use crate::name::NodeName;
use crate::view::Role;

/// id-kp-ipsecIKE, 1.3.6.1.5.5.7.3.17 (RFC 4945).
pub const EKU_IPSEC_IKE: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 17];

/// DER content of [`EKU_IPSEC_IKE`], without tag and length, as webpki takes it.
pub const EKU_IPSEC_IKE_DER: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 3, 17];

/// URI in a controller's certificate.
pub const CONTROLLER_URI: &str = "edge-cni://controller";

/// Returns the URI in a node's certificate.
pub fn node_uri(role: Role, node: &NodeName) -> String {
    format!("edge-cni://{role}/{node}")
}

/// Parses a URI that [`node_uri`] made. Returns `None` if the URI has another format.
pub fn parse_node_uri(uri: &str) -> Option<(Role, NodeName)> {
    let (role, node) = uri.strip_prefix("edge-cni://")?.split_once('/')?;
    Some((role.parse().ok()?, node.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_and_name_survive_the_uri_and_nothing_else_passes() {
        let name: NodeName = "edge-a1.site".parse().unwrap();
        assert_eq!(parse_node_uri(&node_uri(Role::Hub, &name)), Some((Role::Hub, name)));
        for bad in
            ["edge-cni://controller", "edge-cni://root/a", "edge-cni://hub/a/b", "https://hub/a", "edge-cni://hub/"]
        {
            assert_eq!(parse_node_uri(bad), None, "{bad}");
        }
    }
}
