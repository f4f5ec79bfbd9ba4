//! Tests IKE_AUTH without the first CHILD_SA (RFC 6023), which CREATE_CHILD_SA creates instead.

use std::time::Duration;

use edge_ike::config::Group;
use edge_ike::event::PeerErrorKind;
use edge_ike::{Childless, Event};

use crate::foreign::Foreign;
use crate::network::LinkQuality;
use crate::oracle::octets::{notify, payload};
use crate::peers::{PSK, Pair, SECOND, with_children};

impl Pair {
    fn childless(mut self, a: Childless, b: Childless) -> Self {
        self.a_config.childless = a;
        self.b_config.childless = b;
        self
    }

    /// Returns when `a` reported its first IKE SA and its first CHILD_SA.
    fn first_up(&self) -> (Duration, Duration) {
        let events = &self.network.nodes[self.a].events;
        let first = |is: fn(&Event) -> bool| events.iter().find(|(_, event)| is(event)).expect("it is up").0;
        (first(|event| matches!(event, Event::IkeUp { .. })), first(|event| matches!(event, Event::ChildUp { .. })))
    }
}

#[test]
pub fn each_pair_of_settings_leaves_out_the_child_sa_as_the_words_say() {
    use Childless::{Allow, Force, Never, Prefer};
    for (initiator, responder, left_out) in [
        (Never, Never, false),
        (Never, Allow, false),
        (Never, Prefer, false),
        (Allow, Never, false),
        (Allow, Allow, false),
        (Allow, Prefer, false),
        (Prefer, Never, false),
        (Prefer, Allow, true),
        (Prefer, Prefer, true),
        (Prefer, Force, true),
        (Force, Allow, true),
        (Force, Prefer, true),
        (Force, Force, true),
    ] {
        let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided().childless(initiator, responder);
        pair.start();
        pair.traffic(5 * SECOND);
        pair.assert_connected();
        let (ike, child) = pair.first_up();
        assert_eq!(child > ike, left_out, "{initiator:?} to {responder:?}: IKE SA {ike:?}, CHILD_SA {child:?}");
        assert!(pair.network.nodes[pair.a].errors().is_empty(), "{initiator:?} to {responder:?}");
    }
}

#[test]
fn settings_that_exclude_each_other_are_named_at_the_end_that_can_tell() {
    //= RFC 6023 3 MUST NOT 5: and no other one
    let refused = |a, b| Pair::new(1, LinkQuality::RELIABLE).one_sided().childless(a, b).refused();
    let unsupported = refused(Childless::Force, Childless::Never);
    unsupported.a.is(PeerErrorKind::Protocol, &["RFC 6023", "childless = \"force\"", "\"prefer\""]);
    for initiator in [Childless::Never, Childless::Allow] {
        let wanted = refused(initiator, Childless::Force);
        wanted.b.is(PeerErrorKind::NoProposalChosen, &["IKE_AUTH", "childless = \"force\"", "\"allow\""]);
    }
}

#[test]
fn the_first_child_sa_has_a_key_exchange_of_its_own_and_follows_the_peer_to_its_group() {
    let time_for_child = |groups: &[Group]| {
        let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided().childless(Childless::Force, Childless::Force);
        pair.a_config.child.proposals[0].groups = groups.to_vec();
        pair.b_config.child.proposals[0].groups = vec![Group::P256];
        pair.start();
        pair.traffic(5 * SECOND);
        pair.assert_connected();
        assert!(pair.network.nodes[pair.a].errors().is_empty());
        let (ike, child) = pair.first_up();
        child - ike
    };
    // The wrong guess costs a round trip, so there is a key exchange.
    assert!(time_for_child(&[Group::X25519, Group::P256]) > time_for_child(&[Group::P256]));
}

#[test]
fn a_new_authentication_without_a_child_sa_loses_nothing() {
    for seed in 0..20 {
        let mut pair = Pair::new(seed, LinkQuality::REORDERING).childless(Childless::Prefer, Childless::Prefer);
        pair.start();
        pair.traffic(5 * SECOND);
        for (node, peer) in [(pair.a, pair.b_name.clone()), (pair.b, pair.a_name.clone())] {
            assert!(pair.network.call(node, |endpoint, now, env| endpoint.reauthenticate(&peer, now, env)));
            pair.traffic(20 * SECOND);
            pair.assert_connected();
        }
    }
}

#[test]
fn both_ends_beginning_at_once_without_a_child_sa_end_with_one_of_each_despite_loss() {
    for seed in 0..40 {
        let quality = if seed % 2 == 0 { LinkQuality::REORDERING } else { LinkQuality::LOSSY };
        let mut pair = Pair::new(seed, quality).childless(Childless::Force, Childless::Prefer);
        pair.start();
        pair.network.run_for(40 * SECOND);
        pair.network.quality = LinkQuality::RELIABLE;
        pair.network.run_for(60 * SECOND);
        pair.assert_connected();
    }
}

#[test]
fn several_child_sas_are_all_made_after_ike_auth() {
    let mut pair = Pair::new(1, LinkQuality::REORDERING).both(|config| with_children(config, 3));
    pair = pair.one_sided().childless(Childless::Prefer, Childless::Allow);
    pair.start();
    pair.network.run_for(12 * SECOND);
    let tunnel = &pair.network.nodes[pair.a].host.kernel.tunnels[&pair.b_name];
    assert_eq!(tunnel.outbound.len(), 3, "{}", pair.network.history());
    pair.network.assert_tidy();
}

#[test]
fn a_responder_says_whether_the_child_sa_may_be_left_out_and_keeps_to_it() {
    //= RFC 6023 3 SHOULD 6: otherwise INVALID_SYNTAX
    //= RFC 6023 4 MUST 2: no SPI
    const INVALID_SYNTAX: u16 = 7;
    for (childless, supported) in [(Childless::Never, false), (Childless::Allow, true), (Childless::Force, true)] {
        let ours = || Foreign::new(1, |config| config.childless = childless);
        let mut foreign = ours();
        let request = foreign.init_request(&foreign.init_parts());
        let response = crate::oracle::clear(&foreign.exchange(request).remove(0)).unwrap();
        let announced = response.notify(notify::CHILDLESS_IKEV2_SUPPORTED);
        assert_eq!(announced.map(|notify| notify.spi), supported.then(Vec::new), "{childless:?}");
        let answer = ours().authenticate_with(PSK, |parts| parts.truncate(2));
        assert_eq!(answer.error(), (!supported).then_some(INVALID_SYNTAX), "{childless:?}");
        assert!(answer.find(payload::AUTH).is_some() && answer.find(payload::SA).is_none());
        // A request that leaves out a part only is malformed.
        let answer = ours().authenticate_with(PSK, |parts| parts.truncate(4));
        assert!(answer.error().is_some() && answer.find(payload::SA).is_none(), "{childless:?}");
    }
}
