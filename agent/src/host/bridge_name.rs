//! Checks the name of the pods' bridge.

use super::network_state::NetworkState;

/// Fails if the bridge's name is that of another interface, whose packets the firewall would treat
/// as those of pods.
pub(super) fn check_name(name: &str, observed: &NetworkState) -> anyhow::Result<()> {
    match observed.link(name) {
        Some(link) if !link.bridge => anyhow::bail!(
            "bridge: {name} is an interface of this host and no bridge, and the node's firewall would take its packets for those of pods; \
             write another name, or leave the key out for ecni0"
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::network_state::Link;
    use super::*;

    #[test]
    fn the_name_of_an_interface_that_is_no_bridge_is_refused() {
        let uplink = Link { index: 2, name: "eth0".into(), up: true, ..Link::default() };
        let bridge = Link { index: 3, name: "ecni0".into(), bridge: true, ..Link::default() };
        let observed = NetworkState { links: vec![uplink, bridge], ..NetworkState::default() };
        let error = check_name("eth0", &observed).unwrap_err().to_string();
        assert!(error.contains("bridge: eth0 is an interface of this host") && error.contains("ecni0"), "{error}");
        check_name("ecni0", &observed).unwrap();
        check_name("ecni1", &observed).unwrap();
    }
}
