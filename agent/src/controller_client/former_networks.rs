//! Keeps the networks of a hub guarded after the hub has disappeared from the view. Packets to them
//! must not leave without encryption while the hub is not in the view: the hub may be joining
//! again, or the controller may not know the hub because an old backup was restored. So these
//! networks stay guarded for a day, or until a hub in the view has them again. If a hub is still in
//! the view but no longer has a network, that network does not stay guarded, since the operator
//! corrected the hub's networks.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use edge_types::network::contains;
use edge_types::{NodeView, Role};
use tracing::warn;

use super::client::ControllerClient;
use crate::clock::{BootTime, boot_id, boot_time};
use crate::membership::{FormerNetwork, Membership};
use crate::state_dir::StateDirError;
use crate::underlay::guarded;

/// File in the state directory with a list of [`FormerNetwork`].
const FORMER_NETWORKS_FILE: &str = "former-networks.json";
/// How long a network stays guarded after its hub has disappeared from the view.
const GUARDED_SECONDS: i64 = 24 * 3600;
/// Maximum number of networks that stay guarded; the networks of the hubs that disappeared last
/// take precedence. A hub has few networks.
const MAX_FORMER_NETWORKS: usize = 256;

impl ControllerClient {
    /// Reads from disk the networks that an earlier run kept guarded.
    pub(super) fn load_former_networks(&self) {
        let read = self.state.read_json::<Vec<FormerNetwork>>(FORMER_NETWORKS_FILE, "it is ignored");
        let former = read.unwrap_or_else(|error| {
            warn!("{error}");
            None
        });
        self.set_former_networks(former.unwrap_or_default());
    }

    /// Stops guarding former networks, because they belong to an identity that this node no longer
    /// has.
    pub(super) fn forget_former_networks(&self) {
        self.set_former_networks(vec![]);
        if let Err(error) = self.state.remove(FORMER_NETWORKS_FILE) {
            warn!("{error}");
        }
    }

    /// Returns the hub networks that the view no longer names.
    pub(super) fn former_networks(&self) -> Arc<Vec<FormerNetwork>> {
        self.former_networks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Guards the networks of hubs that are in `before` but not in `view`. Stops guarding networks
    /// whose day is over, whose hub is in the view again, or that the view itself guards. Writes
    /// the guarded networks to disk and returns them. `before` is the view that `view` replaces;
    /// `None` if no further networks are to be guarded.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn update_former_networks(
        &self,
        before: Option<&NodeView>,
        view: &NodeView,
    ) -> Result<Arc<Vec<FormerNetwork>>, StateDirError> {
        let known = self.former_networks();
        let former = guarded_under(&known, before, view, &ClockReadings::read(self.clock.unix_time()));
        if former == *known {
            return Ok(known);
        }
        self.state.write_json(FORMER_NETWORKS_FILE, &former)?;
        Ok(self.set_former_networks(former))
    }

    /// Stops guarding the networks whose day is over, and publishes the remaining ones.
    pub(super) fn expire_former_networks(&self, view: &NodeView) {
        let known = self.former_networks();
        match self.update_former_networks(None, view) {
            Ok(former) if former != known => {
                let publish = |membership: &mut Option<Membership>| {
                    membership.as_mut().map(|membership| membership.former_networks = former).is_some()
                };
                self.membership.send_if_modified(publish);
            }
            Ok(_) => {}
            Err(error) => warn!("{error}"),
        }
    }

    fn set_former_networks(&self, former: Vec<FormerNetwork>) -> Arc<Vec<FormerNetwork>> {
        let former = Arc::new(former);
        *self.former_networks.lock().unwrap_or_else(PoisonError::into_inner) = former.clone();
        former
    }
}

/// The current time by the system clock and by the boot-time clock. Within one boot, only the
/// boot-time clock is used, so that setting the system clock does not end the guarding of a
/// network.
struct ClockReadings {
    /// Seconds since 1970-01-01 UTC.
    unix_time: u64,
    boot: BootTime,
}

impl ClockReadings {
    fn read(unix_time: u64) -> Self {
        let seconds = i64::try_from(boot_time().since_start().as_secs()).unwrap_or(i64::MAX);
        Self { unix_time, boot: BootTime { boot_id: boot_id(), seconds } }
    }

    /// Converts the time in `former` to this boot's clock. A `since` in the future counts as now.
    fn anchored(&self, former: &FormerNetwork) -> FormerNetwork {
        let mut former = former.clone();
        if former.boot_time.as_ref().is_none_or(|time| time.boot_id != self.boot.boot_id) {
            former.since = former.since.min(self.unix_time);
            let elapsed = i64::try_from(self.unix_time - former.since).unwrap_or(i64::MAX);
            let seconds = self.boot.seconds.saturating_sub(elapsed);
            former.boot_time = Some(BootTime { boot_id: self.boot.boot_id.clone(), seconds });
        }
        former
    }

    /// Returns the seconds that have passed since `time`, a reading of this boot's clock.
    fn since(&self, time: &BootTime) -> i64 {
        self.boot.seconds.saturating_sub(time.seconds)
    }
}

/// Returns the networks that stay guarded after `view` has replaced `before`.
fn guarded_under(
    known: &[FormerNetwork],
    before: Option<&NodeView>,
    view: &NodeView,
    now: &ClockReadings,
) -> Vec<FormerNetwork> {
    if view.role == Role::Cloud {
        // A cloud node reaches the cloud's networks without a tunnel, so it guards none of them.
        return vec![];
    }
    let hubs = before.into_iter().flat_map(|before| &before.peers).filter(|peer| peer.role == Role::Hub);
    let disappeared = hubs.flat_map(|hub| {
        let former = |network| FormerNetwork {
            hub: hub.name.clone(),
            network,
            since: now.unix_time,
            boot_time: Some(now.boot.clone()),
        };
        hub.networks.iter().copied().map(former)
    });
    let present = guarded(view);
    let lasts = |former: &FormerNetwork| {
        former.boot_time.as_ref().is_some_and(|time| now.since(time) < GUARDED_SECONDS)
            && !view.peers.iter().any(|peer| peer.name == former.hub)
            && !present.iter().any(|network| contains(network, &former.network))
    };
    // If several hubs had a network, the entry of the hub that disappeared last is kept.
    let known = known.iter().map(|former| now.anchored(former));
    let each: BTreeMap<_, _> = known.chain(disappeared).map(|former| (former.network, former)).collect();
    let mut former: Vec<FormerNetwork> = each.into_values().filter(lasts).collect();
    if former.len() > MAX_FORMER_NETWORKS {
        former.sort_by_key(|former| std::cmp::Reverse(former.since));
        former.truncate(MAX_FORMER_NETWORKS);
        former.sort_by_key(|former| former.network);
    }
    former
}

#[cfg(test)]
mod tests {
    use edge_types::{IpNetwork, Peer};

    use super::*;
    use crate::test_view::empty_view;

    fn hub(name: &str, networks: &[&str]) -> Peer {
        Peer {
            name: name.parse().unwrap(),
            role: Role::Hub,
            endpoints: vec![],
            segments: vec![],
            networks: networks.iter().map(|text| text.parse().unwrap()).collect(),
            mapped: vec![],
            tcp_port: None,
            on_demand_in: Default::default(),
            certificates_from: 0,
        }
    }

    fn view(role: Role, peers: Vec<Peer>) -> NodeView {
        NodeView { role, peers: peers.into_iter().map(Into::into).collect(), ..empty_view() }
    }

    /// Returns clock readings of the first boot, taken this many seconds after its start.
    fn at(seconds: i64) -> ClockReadings {
        let unix_time = 1_800_000_000 + u64::try_from(seconds).unwrap();
        ClockReadings { unix_time, boot: BootTime { boot_id: "b1".into(), seconds } }
    }

    fn texts(former: &[FormerNetwork]) -> Vec<String> {
        former.iter().map(|former| format!("{} {}", former.hub, former.network)).collect()
    }

    #[test]
    fn networks_of_a_hub_that_vanishes_are_held_for_a_day_or_until_a_hub_has_them() {
        let both = view(
            Role::Edge,
            vec![hub("cloud-1", &["10.244.0.0/16", "10.96.0.0/12"]), hub("cloud-2", &["10.96.0.0/12", "10.50.0.0/16"])],
        );
        let second = view(Role::Edge, vec![hub("cloud-2", &["10.96.0.0/12"])]);
        let none = view(Role::Edge, vec![]);
        let known = guarded_under(&[], Some(&both), &second, &at(1000));
        assert_eq!(texts(&known), ["cloud-1 10.244.0.0/16"], "another has 10.96, and 10.50 was corrected");
        let known = guarded_under(&known, Some(&second), &none, &at(2000));
        assert_eq!(texts(&known), ["cloud-2 10.96.0.0/12", "cloud-1 10.244.0.0/16"]);
        assert_eq!(guarded_under(&known, Some(&none), &none, &at(2001)), known);
        assert_eq!(texts(&guarded_under(&known, None, &none, &at(1000 + GUARDED_SECONDS))), ["cloud-2 10.96.0.0/12"]);
        assert_eq!(guarded_under(&known, None, &none, &at(2000 + GUARDED_SECONDS)), []);
        // When a hub is back, its networks are no longer former networks.
        let back = view(Role::Edge, vec![hub("cloud-1", &["10.240.0.0/16"])]);
        assert_eq!(texts(&guarded_under(&known, Some(&none), &back, &at(2002))), ["cloud-2 10.96.0.0/12"]);
        let other = view(Role::Edge, vec![hub("cloud-9", &["10.0.0.0/8"])]);
        assert_eq!(guarded_under(&known, Some(&none), &other, &at(2002)), []);
        assert_eq!(guarded_under(&known, Some(&both), &view(Role::Cloud, vec![]), &at(2002)), []);
    }

    #[test]
    fn no_more_than_so_many_are_held() {
        let networks: Vec<String> = (0..300).map(|n| format!("10.{}.{}.0/24", 100 + n / 256, n % 256)).collect();
        let networks: Vec<&str> = networks.iter().map(String::as_str).collect();
        let before = view(Role::Edge, vec![hub("cloud-1", &networks)]);
        let old: IpNetwork = "10.50.0.0/16".parse().unwrap();
        let known =
            FormerNetwork { hub: "cloud-2".parse().unwrap(), network: old, since: 1_800_000_000, boot_time: None };
        let former = guarded_under(&[known], Some(&before), &view(Role::Edge, vec![]), &at(1000));
        assert_eq!(former.len(), MAX_FORMER_NETWORKS);
        assert!(former.iter().all(|former| former.network != old));
    }

    #[test]
    fn a_step_of_the_system_clock_ends_no_hold_and_prolongs_none() {
        let (before, none) = (view(Role::Edge, vec![hub("cloud-1", &["10.244.0.0/16"])]), view(Role::Edge, vec![]));
        let known = guarded_under(&[], Some(&before), &none, &at(1000));
        let day = GUARDED_SECONDS;
        for unix_time in [1, u64::MAX] {
            let stepped = |seconds| ClockReadings { unix_time, ..at(seconds) };
            assert_eq!(guarded_under(&known, None, &none, &stepped(1000 + day - 1)), known, "{unix_time}");
            assert_eq!(guarded_under(&known, None, &none, &stepped(1000 + day)), [], "{unix_time}");
        }
        // After a reboot, the system clock determines how much of the day has passed.
        let next = |unix_time, seconds| ClockReadings { unix_time, boot: BootTime { boot_id: "b2".into(), seconds } };
        let half = guarded_under(&known, None, &none, &next(at(1000 + day / 2).unix_time, 5));
        assert_eq!(half.len(), 1);
        assert_eq!(guarded_under(&half, None, &none, &next(1, 5 + day / 2 - 1)).len(), 1);
        assert_eq!(guarded_under(&half, None, &none, &next(1, 5 + day / 2)), []);
        // If the system clock is behind after a reboot, the day starts again with the boot.
        let behind = guarded_under(&known, None, &none, &next(2000, 5));
        assert_eq!(behind[0].since, 2000);
        assert_eq!(guarded_under(&behind, None, &none, &next(u64::MAX, 5 + day - 1)), behind);
        assert_eq!(guarded_under(&behind, None, &none, &next(2000, 5 + day)), []);
    }
}
