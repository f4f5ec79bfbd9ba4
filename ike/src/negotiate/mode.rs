//! The mode of a CHILD_SA (RFC 7296 1.3.1).

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::config::{ChildConfig, Mode};
use crate::wire::{Notify, NotifyType, Payload, Payloads};

/// The ends of an IKE SA, which are also the ends of a CHILD_SA in transport mode.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    /// Our address.
    pub(crate) local: IpAddr,
    /// The peer's address.
    pub(crate) remote: IpAddr,
    /// Whether there is a NAT between the ends.
    pub(crate) nat: bool,
}

/// The reason why the mode of a configured child is not possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModeObstacle {
    /// Transport mode was requested for addresses other than the addresses of the IKE SA.
    Addresses,
    /// The peer requests tunnel mode, and the child is in transport mode.
    TunnelAsked,
    /// The peer does not accept transport mode.
    Declined,
    /// The peer responds with transport mode, which we did not request.
    NotAsked,
}

/// Checks that the mode of a child is possible between these ends.
pub(crate) fn check_ends(child: &ChildConfig, ends: Ends) -> Result<(), ModeObstacle> {
    if child.mode == Mode::Tunnel {
        return Ok(());
    }
    //= RFC 7296 2.23 MUST 14: one address each in transport mode
    //= RFC 7296 2.23.1 MUST 3: our address as we see it
    //= RFC 7296 2.23.1 MUST 4: the peer's address as we see it
    let is = |networks: &[IpNetwork], end: IpAddr| networks == [IpNetwork::from(end)];
    let at_ends = is(&child.local, ends.local) && is(&child.remote, ends.remote);
    if at_ends { Ok(()) } else { Err(ModeObstacle::Addresses) }
}

/// Checks, as the responder, that a child is acceptable for a request for this mode. A child in
/// tunnel mode is acceptable for either mode: if the response does not contain USE_TRANSPORT_MODE,
/// the CHILD_SA is in tunnel mode.
pub(super) fn check_request(child: &ChildConfig, asked: Mode, ends: Ends) -> Result<(), ModeObstacle> {
    match (child.mode, asked) {
        (Mode::Transport, Mode::Tunnel) => Err(ModeObstacle::TunnelAsked),
        _ => check_ends(child, ends),
    }
}

/// Checks, as the initiator, that the peer's response is for the mode that we requested.
pub(crate) fn check_response(child: &ChildConfig, response: &Payloads) -> Result<(), ModeObstacle> {
    match (child.mode, mode_of(response)) {
        (Mode::Transport, Mode::Tunnel) if !mutation!("declined_transport_mode_used") => Err(ModeObstacle::Declined),
        (Mode::Tunnel, Mode::Transport) => Err(ModeObstacle::NotAsked),
        _ => Ok(()),
    }
}

/// Returns the mode that a request asks for or a response accepts.
pub(crate) fn mode_of(payloads: &Payloads) -> Mode {
    match payloads.notify(NotifyType::UseTransportMode) {
        Some(_) => Mode::Transport,
        None => Mode::Tunnel,
    }
}

/// Returns the payload that a request or response contains for this mode: USE_TRANSPORT_MODE for
/// transport mode, `None` for tunnel mode.
//= RFC 7296 1.3.1 MUST 1: USE_TRANSPORT_MODE in the response
pub(crate) fn mode_payload(mode: Mode) -> Option<Payload> {
    (mode == Mode::Transport).then(|| Payload::Notify(Notify::new(NotifyType::UseTransportMode)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NextLayer;
    use crate::purpose::ChildName;

    fn child(mode: Mode, local: &[&str], remote: &[&str]) -> ChildConfig {
        let parse = |networks: &[&str]| networks.iter().map(|text| text.parse().unwrap()).collect();
        ChildConfig {
            name: ChildName::new("host"),
            proposals: Vec::new(),
            local: parse(local),
            remote: parse(remote),
            next_layer: NextLayer::ANY,
            mode,
        }
    }

    #[test]
    fn transport_mode_is_for_the_addresses_of_the_ike_sa_as_we_see_them() {
        //= RFC 7296 2.23 MUST 14: one address each in transport mode
        let ends = Ends { local: "192.0.2.1".parse().unwrap(), remote: "192.0.2.2".parse().unwrap(), nat: false };
        let host = child(Mode::Transport, &["192.0.2.1"], &["192.0.2.2"]);
        assert_eq!(check_ends(&host, ends), Ok(()));
        assert_eq!(check_ends(&host, Ends { nat: true, ..ends }), Ok(()));
        for (local, remote) in [
            (&["192.0.2.9"][..], &["192.0.2.2"][..]),
            (&["192.0.2.1"], &["192.0.2.0/24"]),
            (&["192.0.2.1"], &["192.0.2.2", "192.0.2.3"]),
            (&[], &["192.0.2.2"]),
        ] {
            assert_eq!(check_ends(&child(Mode::Transport, local, remote), ends), Err(ModeObstacle::Addresses));
            assert_eq!(check_ends(&child(Mode::Tunnel, local, remote), Ends { nat: true, ..ends }), Ok(()));
        }
    }

    #[test]
    fn a_peer_that_asks_for_transport_mode_may_be_given_a_tunnel_and_not_the_other_way_round() {
        let ends = Ends { local: "192.0.2.1".parse().unwrap(), remote: "192.0.2.2".parse().unwrap(), nat: false };
        let of = |mode| child(mode, &["192.0.2.1"], &["192.0.2.2"]);
        assert_eq!(check_request(&of(Mode::Tunnel), Mode::Transport, ends), Ok(()));
        assert_eq!(check_request(&of(Mode::Transport), Mode::Transport, ends), Ok(()));
        assert_eq!(check_request(&of(Mode::Transport), Mode::Tunnel, ends), Err(ModeObstacle::TunnelAsked));
        let answer = |mode| mode_payload(mode).into_iter().collect::<Payloads>();
        assert_eq!(check_response(&of(Mode::Transport), &answer(Mode::Transport)), Ok(()));
        assert_eq!(check_response(&of(Mode::Transport), &answer(Mode::Tunnel)), Err(ModeObstacle::Declined));
        assert_eq!(check_response(&of(Mode::Tunnel), &answer(Mode::Transport)), Err(ModeObstacle::NotAsked));
    }
}
