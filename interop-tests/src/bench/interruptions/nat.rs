//! What happens to routers that translate addresses.

use anyhow::Result;

use crate::topology::Node;

/// Lets the router forget its mappings. New mappings use other ports. `wire` is the router's public
/// interface. The rules for it replace all others, and `gateway` is the next router on it, if there
/// is one.
pub(super) fn reboot(router: &Node, wire: &str, gateway: Option<&str>) -> Result<()> {
    // The kernel drops the mappings of an interface that goes down.
    router.sh(&format!(
        "nft flush ruleset
         ip link set {wire} down
         from=$((20000 + $(od -An -N2 -tu2 /dev/urandom) % 20000))
         nft 'add table ip nat; add chain ip nat post {{ type nat hook postrouting priority srcnat; }}'
         nft add rule ip nat post oifname {wire} ip protocol udp masquerade to :$from-$((from + 99))
         nft add rule ip nat post oifname {wire} masquerade
         ip link set {wire} up
         {}",
        default_route(gateway)
    ))?;
    Ok(())
}

/// Gives the router another public address. It uses both addresses by turns. Parameters are as in
/// [`reboot`].
pub(super) fn change_address(router: &Node, wire: &str, by_turns: [&str; 2], gateway: Option<&str>) -> Result<()> {
    replace_address(router, wire, by_turns)?;
    router.sh(&default_route(gateway)).map(drop)
}

/// Replaces the IPv4 address of a node's interface by another one with prefix length 24. The node
/// uses both addresses by turns.
pub(super) fn replace_address(node: &Node, wire: &str, [one, other]: [&str; 2]) -> Result<()> {
    node.sh(&format!(
        "old=$(ip -4 -o addr show dev {wire} | awk '{{print $4}}')
         case $old in {one}/24) new={other}/24;; *) new={one}/24;; esac
         ip addr del $old dev {wire} && ip addr add $new dev {wire}"
    ))?;
    Ok(())
}

fn default_route(gateway: Option<&str>) -> String {
    gateway.map_or("true".to_owned(), |gateway| format!("ip route replace default via {gateway}"))
}
