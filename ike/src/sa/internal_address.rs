//! The configuration payload of IKE_AUTH (RFC 7296 2.19, 3.15): we ask the peer for internal
//! addresses, or give it addresses from a pool. A configuration payload of another exchange is
//! ignored.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::failure::IKE_AUTH;
use crate::address_assignment::{AddressAssignment, as_networks, is_assignable};
use crate::config::{PeerConfig, PeerName};
use crate::environment::Environment;
use crate::event::{PeerError, PeerErrorKind};
use crate::output::Context;
use crate::wire::{Configuration, Notify, NotifyType, Payloads};

/// The families of which a peer asks for an address, and the addresses that it would like to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WantedAddresses {
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
    /// At most one of each family.
    pub(crate) wishes: Vec<IpAddr>,
}

/// Leases a peer addresses of a pool: at most one of each family that it wants. The result is empty
/// if there are none left.
pub(crate) type LeaseAddresses<'a> =
    dyn FnMut(&PeerName, &[IpNetwork], &WantedAddresses, &mut dyn Environment) -> Vec<IpAddr> + 'a;

/// Returns our request, if the peer should give us addresses.
pub(super) fn request(config: &PeerConfig, previous: &[IpAddr]) -> Option<Configuration> {
    if config.address_assignment != AddressAssignment::Request {
        return None;
    }
    Some(Configuration::request(asks_for(config, true), asks_for(config, false), previous))
}

/// Returns whether we ask for an address of this family: CHILD_SAs can use one.
fn asks_for(config: &PeerConfig, ipv4: bool) -> bool {
    let of_family = |networks: &[IpNetwork]| networks.iter().any(|network| network.is_ipv4() == ipv4);
    config.children().any(|child| of_family(&child.local) && of_family(&child.remote))
}

/// Returns the addresses that the peer gives us: at most one of each family that we asked for.
/// Empty if we asked for none. Returns an error if we asked, and there is no address that we can
/// use, or one that is somebody's: the peer must not take over the traffic of that address.
/// `previous` are the addresses that the peer gave us last, and `remote` is the peer's own one.
pub(super) fn of_response(
    payloads: &Payloads,
    config: &PeerConfig,
    previous: &[IpAddr],
    remote: IpAddr,
    env: &mut dyn Environment,
) -> Result<Vec<IpAddr>, PeerError> {
    if config.address_assignment != AddressAssignment::Request {
        return Ok(Vec::new());
    }
    let reply = payloads.configuration(Configuration::REPLY);
    let given = |ipv4: bool| reply?.internal_address(ipv4)?.address();
    let given: Vec<IpAddr> = [true, false].into_iter().filter_map(given).collect();
    let local: Vec<IpNetwork> = config.children().flat_map(|child| &child.local).copied().collect();
    let mut usable = given.clone();
    usable.retain(|address| {
        let within = !as_networks(&[*address], &local).is_empty();
        within && is_assignable(*address) && asks_for(config, address.is_ipv4())
    });
    for address in &usable {
        if let Some(reason) = obstacle(*address, &config.name, previous, remote, env) {
            let detail = format!(
                "the peer gives us the internal address {address}, which we refuse: {reason}; correct the pool of addresses at the peer"
            );
            return Err(PeerError::new(IKE_AUTH, PeerErrorKind::InternalAddress, detail));
        }
    }
    if !usable.is_empty() {
        return Ok(usable);
    }
    let refusal = payloads.error().filter(|notify| notify.kind != NotifyType::InternalAddressFailure);
    if let Some(refusal) = refusal {
        return Err(super::failure::notified(IKE_AUTH, refusal.kind, config, None));
    }
    let detail = match (payloads.error(), given.as_slice()) {
        (Some(_), _) => "we asked for an internal address, and the peer answered INTERNAL_ADDRESS_FAILURE: it has none left, or none of this family; its log says more".to_owned(),
        (None, []) => "we asked for an internal address, and the peer gave none; give the peer a pool of addresses for us, or set request_address = false".to_owned(),
        (None, given) => {
            let texts = |list: Vec<String>| list.join(", ");
            format!(
                "the peer gives us {}, which is not within our networks ({}) or is no address of a host; compare the peer's pool with them",
                texts(given.iter().map(ToString::to_string).collect()),
                texts(local.iter().map(ToString::to_string).collect())
            )
        }
    };
    Err(PeerError::new(IKE_AUTH, PeerErrorKind::InternalAddress, detail))
}

/// Returns why we must not have an address that the peer gives us.
fn obstacle(
    address: IpAddr,
    peer: &PeerName,
    previous: &[IpAddr],
    remote: IpAddr,
    env: &mut dyn Environment,
) -> Option<String> {
    if address == remote {
        return Some("it is the peer's own address, to which ESP itself is sent".to_owned());
    }
    // While we have an internal address, it is one of this node's.
    if !previous.contains(&address) && env.source_address(address) == Some(address) {
        return Some("this node has it already".to_owned());
    }
    env.internal_address_obstacle(peer, address)
}

/// Returns whether the peer asks for an address that nobody configured here gives it.
pub(super) fn is_ignored(payloads: &Payloads, config: &PeerConfig) -> bool {
    config.address_assignment == AddressAssignment::Off
        && payloads.configuration(Configuration::REQUEST).and_then(WantedAddresses::of).is_some()
}

/// Gives the peer the addresses for which it asks, if it has a pool. The error holds the
/// notification for the response.
pub(super) fn assign(
    payloads: &Payloads,
    config: &PeerConfig,
    lease: &mut LeaseAddresses<'_>,
    cx: &mut Context<'_>,
) -> Result<Vec<IpAddr>, (PeerError, Notify)> {
    let refused = |kind: NotifyType, detail: String| {
        Err((PeerError::new(IKE_AUTH, PeerErrorKind::InternalAddress, detail), Notify::new(kind)))
    };
    let pool = match &config.address_assignment {
        AddressAssignment::Off => return Ok(Vec::new()),
        AddressAssignment::Request => {
            let detail = "this node asks the peer for an internal address, so only this node can initiate; let the peer wait for it";
            return refused(NotifyType::TsUnacceptable, detail.to_owned());
        }
        AddressAssignment::Pool(pool) => pool,
    };
    let Some(wanted) = payloads.configuration(Configuration::REQUEST).and_then(WantedAddresses::of) else {
        //= RFC 7296 2.19 MUST 6: FAILED_CP_REQUIRED
        let detail = "the peer has an address pool here, and did not ask for an internal address; let it ask for one (strongSwan: vips = 0.0.0.0), or configure remote_subnets instead of address_pool";
        return refused(NotifyType::FailedCpRequired, detail.to_owned());
    };
    let leased = lease(&config.name, pool, &wanted, cx.env);
    if leased.is_empty() {
        let networks: Vec<String> = pool.iter().map(ToString::to_string).collect();
        let families = match (wanted.ipv4, wanted.ipv6) {
            (true, true) => "",
            (true, false) => "IPv4 ",
            (false, _) => "IPv6 ",
        };
        let detail = format!(
            "the peer asks for an internal {families}address, and address_pool ({}) has none left; add a network to the pool",
            networks.join(", ")
        );
        return refused(NotifyType::InternalAddressFailure, detail);
    }
    Ok(leased)
}

/// Returns a response with these addresses, if there are any.
pub(super) fn response(addresses: &[IpAddr], payloads: &Payloads) -> Option<Configuration> {
    //= RFC 7296 2.19 MUST NOT 5: no CFG_REPLY without CFG_REQUEST
    let asked = payloads.configuration(Configuration::REQUEST).is_some() || mutation!("configuration_unasked");
    (asked && (!addresses.is_empty() || mutation!("configuration_unasked"))).then(|| Configuration::reply(addresses))
}

impl WantedAddresses {
    /// Returns what a CFG_REQUEST asks for, or `None` if it does not ask for an address.
    fn of(request: &Configuration) -> Option<Self> {
        let asked = [true, false].map(|ipv4| request.internal_address(ipv4));
        let [ipv4, ipv6] = asked.map(|attribute| attribute.is_some());
        let wishes = asked.into_iter().flatten().filter_map(|attribute| attribute.address()).collect();
        (ipv4 || ipv6).then_some(Self { ipv4, ipv6, wishes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sa::tests::Host;
    use crate::wire::{ConfigurationAttribute, Payload};

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn config(local: &[&str], remote: &[&str]) -> PeerConfig {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let mut config = PeerConfig::clone(&crate::sa::tests::profile().config);
        config.address_assignment = AddressAssignment::Request;
        (config.child.local, config.child.remote) = (networks(local), networks(remote));
        config
    }

    fn reply(addresses: &[&str]) -> Payloads {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Payloads::from(vec![Payload::Configuration(Configuration::reply(&addresses))])
    }

    #[test]
    fn only_an_address_that_a_host_may_have_and_that_we_asked_for_is_used() {
        let all = config(&["0.0.0.0/0", "::/0"], &["10.2.0.0/16", "fd02::/64"]);
        let given = |addresses: &[&str], config: &PeerConfig| {
            let used = of_response(&reply(addresses), config, &[], PEER, &mut Host);
            used.map(|used| used.iter().map(ToString::to_string).collect::<Vec<_>>()).map_err(|error| error.to_string())
        };
        assert_eq!(given(&["10.9.0.1", "fd09::1", "10.9.0.2"], &all).unwrap(), ["10.9.0.1", "fd09::1"]);
        let special = ["127.0.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "169.254.0.1"];
        for address in special.into_iter().chain(["::1", "::", "fe80::1", "ff02::1", "::ffff:10.9.0.1"]) {
            let error = given(&[address], &all).unwrap_err();
            assert!(error.contains("no address of a host"), "{address}: {error}");
        }
        let ipv4 = config(&["0.0.0.0/0", "::/0"], &["10.2.0.0/16"]);
        assert_eq!(given(&["fd09::1", "10.9.0.1"], &ipv4).unwrap(), ["10.9.0.1"], "IPv6 was not asked for");
        let narrow = config(&["10.77.0.0/16"], &["10.2.0.0/16"]);
        let error = given(&["10.9.0.1"], &narrow).unwrap_err();
        assert!(error.contains("10.9.0.1") && error.contains("10.77.0.0/16"), "{error}");
        assert_eq!(given(&["10.77.0.1"], &narrow).unwrap(), ["10.77.0.1"]);
    }

    /// A node with the address 192.0.2.1, whose owner keeps 10.77.0.0/16 for itself.
    struct Owner;

    impl Environment for Owner {
        fn fill_random(&mut self, bytes: &mut [u8]) {
            Host.fill_random(bytes);
        }
        fn unix_time(&self) -> u64 {
            0
        }
        fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
            None
        }
        fn source_address(&mut self, _: IpAddr) -> Option<IpAddr> {
            Some([192, 0, 2, 1].into())
        }
        fn internal_address_obstacle(&mut self, _: &PeerName, address: IpAddr) -> Option<String> {
            address.to_string().starts_with("10.77.").then(|| "it is within the owner's network".to_owned())
        }
        fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
    }

    #[test]
    fn an_address_that_is_somebodys_is_refused_with_the_reason() {
        let config = config(&["0.0.0.0/0", "::/0"], &["10.2.0.0/16", "fd02::/64"]);
        let given = |addresses: &[&str], previous: &[IpAddr]| {
            of_response(&reply(addresses), &config, previous, PEER, &mut Owner)
        };
        for (addresses, words) in [
            (&["192.0.2.1"][..], ["192.0.2.1", "this node has it already"]),
            (&["192.0.2.2"], ["192.0.2.2", "the peer's own address"]),
            (&["10.77.1.2"], ["10.77.1.2", "the owner's network"]),
            (&["10.77.1.2", "fd09::1"], ["10.77.1.2", "the owner's network"]),
        ] {
            let error = given(addresses, &[]).unwrap_err();
            assert_eq!(error.kind, PeerErrorKind::InternalAddress);
            assert!(words.iter().all(|word| error.detail.contains(word)), "{addresses:?}: {error}");
        }
        let ours: IpAddr = [192, 0, 2, 1].into();
        assert_eq!(given(&["192.0.2.1"], &[ours]).unwrap(), [ours], "the peer gave it to us before");
        let theirs: IpAddr = [10, 77, 1, 2].into();
        assert!(given(&["10.77.1.2"], &[theirs]).is_err(), "it has become the owner's");
        assert_eq!(given(&["10.9.0.1"], &[]).unwrap(), [IpAddr::from([10, 9, 0, 1])]);
    }

    #[test]
    fn an_answer_without_an_address_says_what_is_wrong() {
        let config = config(&["0.0.0.0/0"], &["10.2.0.0/16"]);
        let error =
            |payloads: Vec<Payload>| of_response(&Payloads::from(payloads), &config, &[], PEER, &mut Host).unwrap_err();
        assert!(error(vec![]).detail.contains("gave none"));
        let short = ConfigurationAttribute { kind: 1, value: vec![10, 9] };
        let short = Configuration { kind: Configuration::REPLY, attributes: vec![short] };
        assert!(error(vec![Payload::Configuration(short)]).detail.contains("gave none"));
        let request = Configuration { kind: Configuration::REQUEST, ..Configuration::reply(&[[10, 9, 0, 1].into()]) };
        assert!(error(vec![Payload::Configuration(request)]).detail.contains("gave none"), "it is not CFG_REPLY");
        let notify = |kind| vec![Payload::Notify(Notify::new(kind))];
        assert!(error(notify(NotifyType::InternalAddressFailure)).detail.contains("none left"));
        assert_eq!(error(notify(NotifyType::NoProposalChosen)).kind, PeerErrorKind::NoProposalChosen);
    }

    #[test]
    fn we_ask_for_the_families_that_a_child_sa_can_use_and_for_what_we_had() {
        let previous: Vec<IpAddr> = vec!["10.9.0.7".parse().unwrap()];
        let asked = |local: &[&str], remote: &[&str]| {
            let request = request(&config(local, remote), &previous).unwrap();
            request.attributes.iter().map(|one| (one.kind, one.value.clone())).collect::<Vec<_>>()
        };
        let (v4, v6) = ((1, vec![10, 9, 0, 7]), (8, vec![]));
        assert_eq!(asked(&["0.0.0.0/0", "::/0"], &["10.2.0.0/16", "fd02::/64"]), [v4.clone(), v6.clone()]);
        assert_eq!(asked(&["0.0.0.0/0", "::/0"], &["10.2.0.0/16"]), [v4]);
        assert_eq!(asked(&["::/0"], &["::/0"]), [v6]);
    }
}
