//! How a certificate says who its holder is.
//!
//! A node's certificate has the node's name as dNSName, and as URI the name with the role, so that
//! an edge's certificate can never pass for a hub's: `edge-cni://hub/NAME`. Extended key usages:
//! nodes of every role `id-kp-clientAuth` (towards the controller) and `id-kp-ipsecIKE` (RFC 4945
//! 5.1.3.12); the controller `id-kp-serverAuth` alone.

use crate::name::NodeName;
use crate::view::Role;

/// id-kp-ipsecIKE, 1.3.6.1.5.5.7.3.17 (RFC 4945).
pub const EKU_IPSEC_IKE: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 17];

/// DER content (without tag and length) of [`EKU_IPSEC_IKE`], the form that webpki takes.
pub const EKU_IPSEC_IKE_DER: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 3, 17];

/// URI that a controller's certificate carries.
pub const CONTROLLER_URI: &str = "edge-cni://controller";

/// URI that a node's certificate carries.
pub fn node_uri(role: Role, node: &NodeName) -> String {
    format!("edge-cni://{role}/{node}")
}

/// Reads a URI made by [`node_uri`].
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
