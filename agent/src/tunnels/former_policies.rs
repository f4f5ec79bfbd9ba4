//! Policies that an earlier run of the agent left in the kernel. They show the ends of tunnels that
//! are down, of which no SA is left. Without them, the policies of such a tunnel would be deleted
//! at the start, and its packets would leave in clear.

use std::collections::HashMap;

use edge_ike::config::{ChildConfig, Mode, NextLayer};
use edge_xfrm::{Direction, InstalledPolicy, PortMask, Reqid, Selector};
use ipnetwork::IpNetwork;

use crate::desired::TunnelEnds;

/// `XFRM_MODE_TRANSPORT`.
const TRANSPORT: u8 = 0;

/// The `out` policies of an earlier run that send packets into tunnels, by reqid. They are kept
/// until the first complete desired state has been applied.
#[derive(Debug, Default)]
pub(super) struct FormerPolicies {
    by_reqid: HashMap<u32, Vec<InstalledPolicy>>,
}

impl FormerPolicies {
    /// Chooses the policies from all policies in the kernel.
    pub(super) fn new(installed: Vec<InstalledPolicy>) -> Self {
        let mut by_reqid: HashMap<u32, Vec<InstalledPolicy>> = HashMap::new();
        for policy in installed {
            let sends = policy.is_ours() && policy.direction == Direction::Out && !policy.blocks;
            if let [template] = policy.templates.as_slice()
                && let Some(reqid) =
                    Reqid::ours(template.reqid).filter(|reqid| sends && reqid.tunnel_number().is_some())
            {
                by_reqid.entry(reqid.raw()).or_default().push(policy);
            }
        }
        Self { by_reqid }
    }

    /// Returns the ends of a tunnel of this child, which is down, with the selectors that the
    /// policies have. Selectors that the child's configuration no longer contains are left out.
    /// `None` if no policy is left.
    pub(super) fn ends(&self, reqid: Reqid, child: &ChildConfig) -> Option<TunnelEnds> {
        let policies = self.by_reqid.get(&reqid.raw())?;
        let mut found: Option<TunnelEnds> = None;
        for policy in policies {
            let [template] = policy.templates.as_slice() else { continue };
            let (source, destination) = (policy.selector.source(), policy.selector.destination());
            let Some(next_layer) = next_layer(&policy.selector) else { continue };
            let configured = (template.mode == TRANSPORT) == (child.mode == Mode::Transport)
                && contains_any(&child.local, source)
                && contains_any(&child.remote, destination)
                && contains(child.next_layer, next_layer);
            if !configured {
                continue;
            }
            // In transport mode, templates have no addresses: the ends are those of the selector.
            let (local, remote) = match child.mode {
                Mode::Transport => (source.ip(), destination.ip()),
                Mode::Tunnel => (template.source, template.destination),
            };
            let ends = found.get_or_insert_with(|| TunnelEnds {
                local,
                remote,
                local_selectors: vec![],
                remote_selectors: vec![],
                next_layer,
                mode: child.mode,
                up: false,
            });
            if ends.next_layer != next_layer {
                continue;
            }
            add(&mut ends.local_selectors, source);
            add(&mut ends.remote_selectors, destination);
        }
        found.filter(|ends| !ends.remote.is_unspecified())
    }
}

fn add(networks: &mut Vec<IpNetwork>, network: IpNetwork) {
    if !networks.contains(&network) {
        networks.push(network);
    }
}

fn contains_any(networks: &[IpNetwork], inner: IpNetwork) -> bool {
    let contains = |outer: &IpNetwork| outer.prefix() <= inner.prefix() && outer.contains(inner.network());
    networks.iter().any(contains)
}

/// Returns whether the traffic of `outer` contains that of `inner`.
fn contains(outer: NextLayer, inner: NextLayer) -> bool {
    let port = |outer: Option<u16>, inner: Option<u16>| outer.is_none() || outer == inner;
    (outer.protocol == 0 || outer.protocol == inner.protocol)
        && port(outer.local_port, inner.local_port)
        && port(outer.remote_port, inner.remote_port)
}

/// Returns the protocol and the ports of an `out` policy's selector. `None` for a range of ports,
/// which the agent's policies do not have.
fn next_layer(selector: &Selector) -> Option<NextLayer> {
    let port = |mask: PortMask| match mask {
        PortMask::ANY => Some(None),
        PortMask { value, mask: 0xffff } => Some(Some(value)),
        _ => None,
    };
    Some(NextLayer {
        protocol: selector.protocol(),
        local_port: port(selector.source_port())?,
        remote_port: port(selector.destination_port())?,
    })
}

#[cfg(test)]
mod tests {
    use edge_ike::{ChildName, PeerName};
    use edge_xfrm::policy::InstalledTemplate;

    use super::*;
    use crate::config::Config;
    use crate::desired::Desired;

    fn child(keys: &str) -> ChildConfig {
        let text =
            "[[peer]]\nname = 'moon'\nremote = '192.0.2.1'\nlocal_id = 'sun'\nremote_id = 'moon'\npsk = 'secret'\n";
        let config = Config::parse(&format!("{text}{keys}"), std::path::Path::new("x")).unwrap();
        let peers = [config.peers[0].resolve(&config, &mut crate::crl_files::CrlFiles::default()).unwrap()];
        Desired::compute(&config, &peers, None).tunnels[&PeerName::new("moon")].peer.child.clone()
    }

    fn out(reqid: Reqid, source: &str, destination: &str) -> InstalledPolicy {
        InstalledPolicy {
            direction: Direction::Out,
            selector: Selector::new(source.parse().unwrap(), destination.parse().unwrap()).unwrap(),
            priority: 1,
            index: 1,
            blocks: false,
            templates: vec![InstalledTemplate {
                source: "192.0.2.7".parse().unwrap(),
                destination: "192.0.2.1".parse().unwrap(),
                spi: 0,
                reqid: reqid.raw(),
                mode: 1,
                protocol: 50,
                optional: false,
                any_algorithm: true,
            }],
            mark: (0, 0),
            if_id: 0,
            flags: 0,
        }
    }

    #[test]
    fn the_selectors_of_a_tunnel_that_is_down_are_those_that_were_negotiated() {
        let [ours, other] = [1, 2].map(|number| Reqid::tunnel(number).unwrap());
        let former = FormerPolicies::new(vec![
            out(ours, "10.1.0.0/24", "10.2.0.0/25"),
            out(ours, "10.1.0.0/24", "10.3.0.0/24"),
            out(other, "10.1.0.0/24", "10.2.9.0/24"),
            // The configuration no longer contains this network.
            out(ours, "10.1.0.0/24", "10.9.0.0/24"),
            InstalledPolicy { blocks: true, ..out(ours, "10.1.0.0/24", "10.2.4.0/24") },
            InstalledPolicy { mark: (1, 1), ..out(ours, "10.1.0.0/24", "10.2.5.0/24") },
            InstalledPolicy { direction: Direction::Fwd, ..out(ours, "10.1.0.0/24", "10.2.6.0/24") },
        ]);
        let configured = child("local_subnets = ['10.1.0.0/16']\nremote_subnets = ['10.2.0.0/16', '10.3.0.0/16']\n");
        assert_eq!(configured.name, ChildName::new("net"));
        let ends = former.ends(ours, &configured).unwrap();
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNetwork>>();
        assert_eq!(
            (ends.local.to_string(), ends.remote.to_string(), ends.up),
            ("192.0.2.7".into(), "192.0.2.1".into(), false)
        );
        assert_eq!(ends.local_selectors, networks(&["10.1.0.0/24"]));
        assert_eq!(ends.remote_selectors, networks(&["10.2.0.0/25", "10.3.0.0/24"]));
        assert_eq!(former.ends(Reqid::tunnel(3).unwrap(), &configured), None);
    }

    #[test]
    fn policies_of_another_mode_protocol_or_network_than_configured_are_not_taken_over() {
        let reqid = Reqid::tunnel(1).unwrap();
        let networks = "local_subnets = ['10.1.0.1']\nremote_subnets = ['10.2.0.1']\n";
        let some = |keys: &str| child(&format!("[[peer.child]]\nname = 'some'\n{networks}{keys}\n"));
        let plain = out(reqid, "10.1.0.1/32", "10.2.0.1/32");
        let of = |policy: InstalledPolicy, child: &ChildConfig| FormerPolicies::new(vec![policy]).ends(reqid, child);
        assert!(of(plain.clone(), &some("")).is_some());
        assert_eq!(of(plain.clone(), &some("protocol = 'tcp'")), None);
        assert_eq!(of(plain.clone(), &some("mode = 'transport'")), None);
        assert_eq!(of(out(reqid, "10.0.0.0/8", "10.2.0.1/32"), &some("")), None);
        let mut transport = plain.clone();
        transport.templates[0].mode = TRANSPORT;
        transport.templates[0].destination = "0.0.0.0".parse().unwrap();
        let ends = of(transport, &some("mode = 'transport'")).unwrap();
        assert_eq!((ends.local.to_string(), ends.remote.to_string()), ("10.1.0.1".into(), "10.2.0.1".into()));
        // A template without addresses is no tunnel's.
        let mut nowhere = plain;
        nowhere.templates[0].destination = "0.0.0.0".parse().unwrap();
        assert_eq!(of(nowhere, &some("")), None);
        let ssh = PortMask::exactly(22);
        let mut narrowed = out(reqid, "10.1.0.1/32", "10.2.0.1/32");
        narrowed.selector = narrowed.selector.with_protocol(6, PortMask::ANY, ssh);
        let ends = of(narrowed, &some("protocol = 'tcp'")).unwrap();
        assert_eq!(ends.next_layer, NextLayer { protocol: 6, local_port: None, remote_port: Some(22) });
    }
}
