//! Kernel settings: forwarding, without which pods' packets do not leave this host; router
//! advertisements; and settings that would turn policies off.

use std::fs;
use std::path::{Path, PathBuf};

use edge_types::forwarding::{FORWARDING_FILE, Forwarding};
use edge_xfrm::guard::DEVICE;

use super::Obstacle;
use super::network_state::{Link, NetworkState};
use super::uplink;
use crate::incidents::Incidents;

const ROOT: &str = "/proc/sys/net";

/// Reads and writes the settings.
#[derive(Debug)]
pub(super) struct Sysctls {
    root: PathBuf,
    forwarding: Forwarding,
}

/// Outcome of [`Sysctls::prepare`] and [`Sysctls::forward`].
#[derive(Debug, Default)]
pub(super) struct SysctlOutcome {
    /// For IPv4 and IPv6: whether forwarding was off before the agent or the plugin turned it on.
    /// If it was off, the node was not a router, and must not start to route between its other
    /// networks.
    pub(super) ours: [bool; 2],
    /// Settings that could not be written.
    pub(super) obstacles: Vec<Obstacle>,
}

impl Sysctls {
    pub(super) fn new(state_dir: &Path, run_dir: &Path) -> Self {
        Self { root: ROOT.into(), forwarding: Forwarding::new(state_dir, run_dir) }
    }

    /// Records whether forwarding is off for the families in `forward` (IPv4, IPv6), before it is
    /// turned on. If `guarded`, also turns off the settings that let packets bypass policies.
    pub(super) fn prepare(
        &mut self,
        observed: &NetworkState,
        bridge: &str,
        forward: [bool; 2],
        guarded: bool,
        incidents: &Incidents,
    ) -> SysctlOutcome {
        let mut outcome = SysctlOutcome::default();
        if guarded {
            let uplinks = uplink::uplinks(observed, bridge);
            self.enforce_policies(&uplinks, &observed.pod_bridges(bridge), incidents, &mut outcome);
        }
        if let Err(error) = self.forwarding.note(forward) {
            outcome.obstacles.push(Obstacle {
                what: format!(
                    "{FORWARDING_FILE} can be written neither to the state directory ({error}) nor beside the sockets: a restarted agent takes this \
                     node for a router, and lets it forward between its own networks"
                ),
                command: "df -h /var/lib/edge-cni /run; findmnt -T /var/lib/edge-cni".into(),
            });
        }
        outcome.ours = self.forwarding.ours();
        outcome
    }

    /// Turns on forwarding for the families in `forward`. The caller must ensure that the table
    /// `inet edge-cni` is in place: without it, a host that was not a router would route between
    /// its other networks.
    pub(super) fn forward(
        &mut self,
        observed: &NetworkState,
        bridge: &str,
        forward: [bool; 2],
        outcome: &mut SysctlOutcome,
    ) {
        let off = self.forwarding_is_off();
        if forward[0] && off[0] {
            self.set("ipv4/ip_forward", "1", "pods' packets are not forwarded", outcome);
        }
        // This setting also applies to interfaces that appear later. A host that was already a
        // router keeps its settings.
        if forward[1] && (off[1] || outcome.ours[1]) {
            self.accept_router_advertisements(&uplink::uplinks(observed, bridge), outcome);
        }
        if forward[1] && off[1] {
            self.set("ipv6/conf/all/forwarding", "1", "pods' IPv6 packets are not forwarded", outcome);
        }
    }

    /// Returns whether forwarding is off, for IPv4 and IPv6.
    pub(super) fn forwarding_is_off(&self) -> [bool; 2] {
        [self.is("ipv4/ip_forward", "0"), self.is("ipv6/conf/all/forwarding", "0")]
    }

    /// Sets `accept_ra` to 2 on uplinks (ip-sysctl.rst). Otherwise a host that forwards ignores
    /// router advertisements and loses its default route. Other interfaces are left unchanged, so
    /// that advertisements from pods have no effect.
    fn accept_router_advertisements(&mut self, uplinks: &[&Link], outcome: &mut SysctlOutcome) {
        for link in uplinks {
            let name = format!("ipv6/conf/{}/accept_ra", link.name);
            if self.is(&name, "1") {
                // `prepare` returns an obstacle if the record cannot be written.
                let _ = self.forwarding.note_accept_ra(&link.name);
                let what =
                    format!("{} ignores router advertisements, and this host loses its IPv6 default route", link.name);
                self.set(&name, "2", &what, outcome);
            }
        }
    }

    /// Turns off `disable_policy` and `disable_xfrm`, which let incoming and outgoing packets
    /// bypass policies. Many instructions for VTI interfaces set them for `all`.
    fn enforce_policies(
        &self,
        uplinks: &[&Link],
        bridges: &[String],
        incidents: &Incidents,
        outcome: &mut SysctlOutcome,
    ) {
        let interfaces = uplinks.iter().map(|link| link.name.as_str()).chain(bridges.iter().map(String::as_str));
        for interface in ["all", DEVICE].into_iter().chain(interfaces) {
            for (family, key) in [("ipv4", "disable_policy"), ("ipv4", "disable_xfrm"), ("ipv6", "disable_policy")] {
                let name = format!("{family}/conf/{interface}/{key}");
                // The kernel takes every number but 0 for true. Not every interface has the
                // setting.
                let Some(value) = self.read(&name).filter(|value| value != "0") else { continue };
                let what = "packets bypass policies, so that the guard is off";
                if self.set(&name, "0", what, outcome) {
                    incidents.repaired(format!("{} was {value}: {what}", dotted(&name)));
                }
            }
        }
    }

    fn is(&self, name: &str, value: &str) -> bool {
        self.read(name).is_some_and(|text| text == value)
    }

    /// Returns the value of a setting; `None` if there is no such setting.
    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.root.join(name)).ok().map(|text| text.trim().to_owned())
    }

    fn set(&self, name: &str, value: &str, otherwise: &str, outcome: &mut SysctlOutcome) -> bool {
        match fs::write(self.root.join(name), value) {
            Ok(()) => {
                tracing::info!("{} set to {value}", dotted(name));
                true
            }
            Err(error) => {
                outcome.obstacles.push(Obstacle {
                    what: format!("{} cannot be set to {value} ({error}): {otherwise}", dotted(name)),
                    command: format!("sysctl -w {}={value}", dotted(name)),
                });
                false
            }
        }
    }
}

/// Returns the name in `sysctl`'s notation. Dots in an interface's name become slashes.
fn dotted(name: &str) -> String {
    let swapped: String = name
        .chars()
        .map(|character| match character {
            '/' => '.',
            '.' => '/',
            other => other,
        })
        .collect();
    format!("net.{swapped}")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        directory: tempfile::TempDir,
        observed: NetworkState,
        incidents: Incidents,
    }

    impl Host {
        /// Creates a host that receives router advertisements on a NIC and has Docker.
        fn new() -> Self {
            let link = |index, name: &str| Link { index, name: name.into(), up: true, ..Link::default() };
            let host = Self {
                directory: tempfile::tempdir().unwrap(),
                observed: NetworkState {
                    links: vec![
                        link(2, "eth0.5"),
                        Link { virtual_kind: true, ..link(3, "docker0") },
                        link(4, "ecni0"),
                        Link { veth: true, ..link(5, "veth1") },
                    ],
                    ..NetworkState::default()
                },
                incidents: Incidents::default(),
            };
            for interface in ["all", "default", "eth0.5", "docker0", "ecni0", "veth1", DEVICE] {
                host.write(&format!("ipv6/conf/{interface}/accept_ra"), "1");
                for name in ["ipv4/conf/I/disable_policy", "ipv4/conf/I/disable_xfrm", "ipv6/conf/I/disable_policy"] {
                    host.write(&name.replace('I', interface), "0");
                }
            }
            host.write("ipv6/conf/all/forwarding", "0");
            host.write("ipv4/ip_forward", "0");
            host
        }

        fn write(&self, name: &str, value: &str) {
            let path = self.directory.path().join("net").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.directory.path().join("net").join(name)).unwrap().trim().to_owned()
        }

        fn sysctls(&self, boot: &str) -> Sysctls {
            let root = self.directory.path().join("net");
            let directories = [self.directory.path().join("state"), self.directory.path().join("run")];
            Sysctls { forwarding: Forwarding::at(root.clone(), [&directories[0], &directories[1]], boot), root }
        }

        fn ensure(&self, boot: &str, forward: [bool; 2]) -> SysctlOutcome {
            self.ensure_by(&mut self.sysctls(boot), forward)
        }

        fn ensure_by(&self, sysctls: &mut Sysctls, forward: [bool; 2]) -> SysctlOutcome {
            let mut outcome = sysctls.prepare(&self.observed, "ecni0", forward, true, &self.incidents);
            sysctls.forward(&self.observed, "ecni0", forward, &mut outcome);
            outcome
        }
    }

    #[test]
    fn uplinks_alone_go_on_listening_also_one_that_comes_later() {
        let mut host = Host::new();
        assert_eq!(host.ensure("b1", [true, true]).ours, [true, true]);
        let accepts = |host: &Host, name: &str| host.read(&format!("ipv6/conf/{name}/accept_ra"));
        assert_eq!(accepts(&host, "eth0.5"), "2");
        for other in ["all", "default", "docker0", "ecni0", "veth1"] {
            assert_eq!(accepts(&host, other), "1", "{other}");
        }
        assert_eq!((host.read("ipv6/conf/all/forwarding"), host.read("ipv4/ip_forward")), ("1".into(), "1".into()));

        // When the node is no longer a router, the interfaces accept router advertisements as
        // before.
        host.sysctls("b1").forwarding.clone().restore().unwrap();
        assert_eq!((accepts(&host, "eth0.5"), host.read("ipv6/conf/all/forwarding")), ("1".into(), "0".into()));
        assert_eq!(host.ensure("b1", [true, true]).ours, [true, true]);

        host.observed.links.push(Link { index: 9, name: "usb0".into(), ..Link::default() });
        host.write("ipv6/conf/usb0/accept_ra", "1");
        // The agent restarts and finds forwarding turned on.
        assert_eq!(host.ensure("b1", [true, true]).ours, [true, true]);
        assert_eq!(accepts(&host, "usb0"), "2");
    }

    #[test]
    fn where_nothing_can_be_written_the_node_is_no_router_either_and_status_says_it() {
        let host = Host::new();
        std::fs::write(host.directory.path().join("run"), "no directory").unwrap();
        let mut sysctls = host.sysctls("b1");
        for pass in 0..2 {
            let outcome = host.ensure_by(&mut sysctls, [true, true]);
            assert_eq!(outcome.ours, [true, true], "pass {pass}");
            let said: Vec<&str> = outcome.obstacles.iter().map(|obstacle| obstacle.what.as_str()).collect();
            assert!(said.iter().any(|what| what.starts_with(FORWARDING_FILE)), "pass {pass}: {said:?}");
            assert_eq!(host.read("ipv4/ip_forward"), "1");
        }
        fs::create_dir(host.directory.path().join("state")).unwrap();
        let outcome = host.ensure_by(&mut sysctls, [true, true]);
        assert_eq!((outcome.ours, outcome.obstacles), ([true, true], vec![]));
        assert_eq!(host.ensure("b1", [true, true]).ours, [true, true], "after a restart");
    }

    #[test]
    fn a_host_that_was_a_router_stays_as_it_was() {
        let host = Host::new();
        host.write("ipv6/conf/all/forwarding", "1");
        host.write("ipv4/ip_forward", "1");
        assert_eq!(host.ensure("b1", [true, true]).ours, [false, false]);
        assert_eq!(host.read("ipv6/conf/eth0.5/accept_ra"), "1");
    }

    #[test]
    fn only_families_of_pods_are_forwarded() {
        let host = Host::new();
        assert_eq!(host.ensure("b1", [true, false]).ours, [true, false]);
        assert_eq!(host.read("ipv6/conf/all/forwarding"), "0");
        assert_eq!(host.read("ipv6/conf/eth0.5/accept_ra"), "1");
    }

    #[test]
    fn policies_that_a_recipe_turned_off_are_asked_again() {
        let host = Host::new();
        let off = [
            "ipv4/conf/all/disable_policy",
            "ipv4/conf/eth0.5/disable_policy",
            "ipv4/conf/ecni-guard/disable_xfrm",
            "ipv6/conf/all/disable_policy",
        ];
        // The kernel takes every number but 0 for true.
        off.iter().zip(["2", "1", "2", "-1"]).for_each(|(name, value)| host.write(name, value));
        // The setting of another program's interface, which may be a VTI, stays.
        host.write("ipv4/conf/docker0/disable_policy", "1");
        assert!(host.ensure("b1", [false; 2]).obstacles.is_empty());
        for name in off {
            assert_eq!(host.read(name), "0", "{name}");
        }
        assert_eq!(host.read("ipv4/conf/docker0/disable_policy"), "1");
        let said: Vec<String> = host.incidents.latest().into_iter().map(|entry| entry.what).collect();
        assert!(said.iter().any(|what| what.starts_with("net.ipv4.conf.eth0/5.disable_policy was 1")), "{said:?}");
    }

    #[test]
    fn what_cannot_be_set_is_named_with_the_command() {
        let mut outcome = SysctlOutcome::default();
        assert!(!Host::new().sysctls("b1").set("ipv4/gone/eth0.5", "1", "nothing works", &mut outcome));
        let obstacle = &outcome.obstacles[0];
        assert_eq!(obstacle.command, "sysctl -w net.ipv4.gone.eth0/5=1");
        assert!(
            obstacle.what.starts_with("net.ipv4.gone.eth0/5 cannot be set to 1 (")
                && obstacle.what.ends_with("nothing works")
        );
    }
}
