//! CREATE_CHILD_SA for the IKE SA itself (RFC 7296 1.3.2, 2.18), as responder. We do not begin it:
//! we replace an IKE SA by IKE_SA_INIT and IKE_AUTH (2.8.3), which check the certificate again.

use super::error_response::{ErrorResponse, invalid_share, single_notify};
use crate::config::Group;
use crate::crypto::{IkeRole, KeyExchangeError, Nonces, ResponderKeyExchange};
use crate::event::{Event, IkeDetails, IkeId};
use crate::negotiate;
use crate::output::Context;
use crate::sa::channel::Channel;
use crate::sa::failure::{self, CREATE_CHILD_SA};
use crate::sa::ike_sa::{IkeSa, Initiation, Lifecycle, SaStep};
use crate::sa::task::PendingRequest;
use crate::tunnel::Tunnel;
use crate::wire::{ExchangeType, InvalidMessage, Notify, NotifyType, Payload, Payloads};

/// Answers a request that rekeys the IKE SA.
pub(super) fn answer(sa: &mut IkeSa, payloads: &Payloads, tunnel: &mut Tunnel, cx: &mut Context<'_>) -> SaStep {
    match negotiate(sa, payloads, cx) {
        Ok((new, answer)) => {
            sa.channel.respond(ExchangeType::CreateChildSa, &answer, cx);
            tunnel.move_to(sa.spi(), new.spi());
            sa.lifecycle = Lifecycle::Superseded(new.ike());
            sa.schedule_cleanup(cx.now);
            SaStep::Rekeyed(new)
        }
        Err((notify, error)) => {
            sa.channel.respond(ExchangeType::CreateChildSa, &single_notify(notify), cx);
            if let Some(error) = error {
                cx.out.event(Event::PeerFailed { peer: sa.profile.config.name.clone(), error });
            }
            SaStep::Continue
        }
    }
}

fn negotiate(
    sa: &mut IkeSa,
    payloads: &Payloads,
    cx: &mut Context<'_>,
) -> Result<(Box<IkeSa>, Payloads), ErrorResponse> {
    // RFC 7296 2.25.2: refused while CHILD_SAs are being made or deleted on it, and when it is
    // about to go.
    let quiet = matches!(sa.pending, None | Some(PendingRequest::Liveness)) && sa.queue.is_empty();
    if !quiet || sa.lifecycle != Lifecycle::Active {
        return Err((Notify::new(NotifyType::TemporaryFailure), None));
    }
    let malformed = |error: InvalidMessage| (error.notify(), Some(failure::invalid(CREATE_CHILD_SA, error)));
    let config = &sa.profile.config;
    let offers = payloads.proposals().map_err(malformed)?;
    let nonce = payloads.nonce().map_err(malformed)?;
    let theirs = payloads.key_exchange().map_err(malformed)?;
    let chosen = negotiate::choose_ike(offers, &config.ike_proposals, Some(theirs.group)).ok_or_else(|| {
        (Notify::new(NotifyType::NoProposalChosen), Some(failure::no_ike_proposal(&config.ike_proposals)))
    })?;
    chosen.suite.prf.check_nonce(nonce).map_err(malformed)?;
    let peer_spi = chosen.spi.as_slice().try_into().map(u64::from_be_bytes).unwrap_or_default();
    if peer_spi == 0 {
        return Err((Notify::new(NotifyType::InvalidSyntax), None));
    }
    let group: Group = chosen.suite.group;
    if theirs.group != group.number() {
        return Err((Notify::invalid_ke(group.number()), None));
    }
    let failed = |error: KeyExchangeError| match error.is_local() {
        true => (Notify::new(NotifyType::TemporaryFailure), None),
        false => invalid_share(error),
    };
    let ours = ResponderKeyExchange::respond(group, theirs, cx.env).map_err(failed)?;
    let payload = Payload::KeyExchange(ours.payload());
    let shared = ours.secret().map_err(failed)?;
    let our_nonce: [u8; 32] = cx.random();
    let our_spi = u64::from_be_bytes(cx.random()).max(1);
    let ike = IkeId { initiator: peer_spi, responder: our_spi };
    let keys = sa.channel.keys.rekey(chosen.suite, Nonces { initiator: nonce, responder: &our_nonce }, ike, &shared);
    let timing = config.timing;
    let channel = Channel::new(keys, ike, IkeRole::Responder, sa.channel.path, sa.channel.fragments(), timing, cx.now);
    let details = IkeDetails { proposal: chosen.suite.to_string(), ..sa.details.clone() };
    let mut new = IkeSa::new(channel, sa.profile.clone(), details, Initiation::ByPeer(cx.now), cx);
    new.inherit_lifetime(sa, cx);
    let mut answer = Payloads::new();
    answer.push(Payload::SecurityAssociation(vec![chosen.response(our_spi.to_be_bytes().to_vec())]));
    answer.push(Payload::Nonce(our_nonce.to_vec()));
    answer.push(payload);
    Ok((Box::new(new), answer))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::config::{Aead, Auth, ChildConfig, IkeProposal, PeerConfig, PeerName, Prf, Timing};
    use crate::crypto::{IkeKeys, IkeSuite, InitiatorKeyExchange};
    use crate::event::DownReason;
    use crate::output::Output;
    use crate::sa::Profile;
    use crate::sa::path::Path;
    use crate::{EndpointConfig, Environment, Identity, Instant, Secret};

    struct Host;

    impl Environment for Host {
        fn fill_random(&mut self, bytes: &mut [u8]) {
            bytes.fill(7);
        }
        fn unix_time(&self) -> u64 {
            0
        }
        fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
            None
        }
        fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
    }

    const SUITE: IkeSuite = IkeSuite { aead: Aead::Aes256Gcm16, prf: Prf::HmacSha256, group: Group::X25519 };

    fn profile() -> Profile {
        let proposal = IkeProposal { aeads: vec![SUITE.aead], prfs: vec![SUITE.prf], groups: vec![SUITE.group] };
        Profile::new(PeerConfig {
            name: PeerName::new("peer"),
            local: None,
            remotes: Vec::new(),
            local_id: Identity::Fqdn("us.example".into()),
            remote_id: Identity::Fqdn("peer.example".into()),
            auth: Auth::Psk(Secret::new(b"secret".to_vec())),
            ike_proposals: vec![proposal],
            child: ChildConfig { proposals: Vec::new(), local: Vec::new(), remote: Vec::new() },
            initiate: false,
            force_encapsulation: false,
            keep_existing: false,
            timing: Timing::default(),
        })
        .unwrap()
    }

    #[test]
    fn a_rekey_of_the_ike_sa_does_not_put_off_the_peers_next_authentication() {
        let profile = Arc::new(profile());
        let (mut out, config) = (Output::default(), EndpointConfig::default());
        let ike = IkeId { initiator: 1, responder: 2 };
        let nonces = Nonces { initiator: &[1; 32], responder: &[2; 32] };
        let keys = IkeKeys::initial(SUITE, nonces, ike, &Secret::new(vec![3; 32]));
        let (local, remote) = ("192.0.2.1:500".parse().unwrap(), "192.0.2.2:500".parse().unwrap());
        let path = Path { local, remote, nat_local: false, nat_remote: false };
        let hour = Duration::from_secs(3600);
        let at = |hours| Instant::new(hour * hours);
        let channel = Channel::new(keys, ike, IkeRole::Responder, path, false, Timing::default(), at(0));
        let details = IkeDetails {
            proposal: String::new(),
            authentication: String::new(),
            nat_local: false,
            nat_remote: false,
            certificate: None,
        };
        let mut cx = Context { now: at(0), env: &mut Host, out: &mut out, config: &config };
        let mut sa = IkeSa::new(channel, profile, details, Initiation::ByPeer(at(0)), &mut cx);
        // The configured lifetime is 4 hours. The responder replaces the IKE SA after 5, and it
        // ends after 6. The peer rekeys it every 2 hours.
        for hours in [2, 4] {
            let mut cx = Context { now: at(hours), env: &mut Host, out: &mut out, config: &config };
            let share = InitiatorKeyExchange::start(SUITE.group, cx.env).unwrap().payload();
            let offers = negotiate::offer_ike(&sa.profile.config.ike_proposals, &7_u64.to_be_bytes());
            let payloads = Payloads::from(vec![
                Payload::SecurityAssociation(offers),
                Payload::Nonce(vec![9; 32]),
                Payload::KeyExchange(share),
            ]);
            sa = *negotiate(&mut sa, &payloads, &mut cx).unwrap().0;
            assert_eq!(sa.reauthenticate_at(), at(5), "rekeyed after {hours} hours");
        }
        let mut tunnel = Tunnel::new(PeerName::new("peer"));
        let mut due = |hours: u32, second: u64| {
            let now = at(hours) + Duration::from_secs(second);
            sa.handle_timeout(&mut tunnel, &mut Context { now, env: &mut Host, out: &mut out, config: &config })
        };
        assert!(matches!(due(5, 1), SaStep::Reauthenticate));
        assert!(matches!(due(6, 0), SaStep::End(DownReason::Expired, _)));
    }
}
