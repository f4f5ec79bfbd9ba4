//! Deliberate mistakes, each of which the tests must detect. `tests/simulation/mutations.rs`
//! activates one after another. They exist only with the feature `mutations` and with debug
//! assertions. In every other build `mutation!` is false, and the compiler removes the mistake.

/// Returns whether the mistake with this name is active.
macro_rules! mutation {
    ($name:literal) => {
        $crate::mutations::is_active($name)
    };
}

/// Returns false, since this build contains no mistakes.
#[cfg(not(all(feature = "mutations", debug_assertions)))]
#[inline(always)]
pub(crate) const fn is_active(_: &str) -> bool {
    false
}

#[cfg(all(feature = "mutations", debug_assertions))]
mod active {
    use std::cell::Cell;

    /// The names of all mistakes, and the rules that they violate.
    pub const ALL: &[(&str, &str)] = &[
        ("nonce_rule_inverted", "RFC 7296 2.8.1: the other SA of a collision is redundant."),
        (
            "redundant_child_not_marked",
            "RFC 7296 2.8.1: the end that keeps its SA does not know that the other one is redundant.",
        ),
        ("redundant_child_not_deleted", "RFC 7296 2.8.1: the redundant SA stays."),
        (
            "rekey_of_survivor_not_followed",
            "RFC 7296 2.8.1: the redundant SA stays if the other one is rekeyed before the end of the collision.",
        ),
        ("replaced_child_not_deleted", "RFC 7296 2.8: the initiator of a rekey does not delete the old SA."),
        ("temporary_failure_ignored", "RFC 7296 2.25: the request is repeated at once."),
        ("temporary_failure_repeated_often", "RFC 7296 2.25: the waits after TEMPORARY_FAILURE do not grow."),
        ("any_cookie_accepted", "RFC 7296 2.6: a cookie is not compared."),
        ("no_cookies", "RFC 7296 2.6: no cookie is asked for."),
        ("no_half_open_limit", "RFC 7296 2.6: half-open IKE SAs without limit."),
        ("cookie_without_address", "RFC 7296 2.6: a cookie is good for any address."),
        ("window_not_enforced", "RFC 7296 2.3: requests outside of the window are taken."),
        ("requests_overtake", "RFC 7296 2.3: a request is carried out before an earlier one, which is forgotten."),
        ("window_wider_than_announced", "RFC 7296 2.3: more requests are taken than were announced."),
        ("older_responses_forgotten", "RFC 7296 2.3: of the announced number of responses only the last one is kept."),
        ("no_jitter", "RFC 7296 2.8: timing is not jittered."),
        ("followed_without_nat", "RFC 7296 2.23: a peer without a NAT is followed."),
        ("followed_by_old_message", "RFC 7296 2.23: a peer is followed by an old message that nothing authenticates."),
        ("followed_without_update", "RFC 4555 3.8: a peer that speaks MOBIKE is followed without UPDATE_SA_ADDRESSES."),
        ("update_by_responder", "RFC 4555 3.5: the responder sends UPDATE_SA_ADDRESSES."),
        ("esp_moves_before_the_check", "RFC 4555 3.7: ESP follows before return routability is shown."),
        ("any_cookie2_accepted", "RFC 4555 3.7: COOKIE2 is not compared."),
        ("cookie2_repeated", "RFC 4555 4.2.5: COOKIE2 is the same every time."),
        ("mobike_announced_with_data", "RFC 4555 4.2.1: MOBIKE_SUPPORTED has data."),
        ("cookie2_not_returned", "RFC 4555 3.7: COOKIE2 is not returned."),
        ("any_answer_shows_path", "RFC 4555 3.7: an answer to what was sent to several addresses counts as a check."),
        ("unexpected_nat_accepted", "RFC 4555 3.9: NO_NATS_ALLOWED is not compared with the IP header."),
        ("lost_mapping_ignored", "RFC 7296 2.23: ESP that goes to an old mapping of our NAT is not replaced."),
        ("nat_mapping_not_compared", "RFC 4555 3.8: another mapping of our NAT is not noticed."),
        (
            "mapping_not_checked_after_refusal",
            "RFC 4555 3.8: another mapping of our NAT is not noticed while the peer refuses because of it.",
        ),
        ("any_old_request_answered", "RFC 7296 2.1: the response is sent again to whoever names its message ID."),
        ("request_changes", "RFC 7296 2.1: a request is sent again with other octets."),
        ("response_not_kept", "RFC 7296 2.1: a response is not kept."),
        ("response_sent_elsewhere", "RFC 7296 2.11: a response does not go back to where its request came from."),
        ("fragments_unasked", "RFC 7383 2.3: fragments to a peer that does not support them."),
        ("waits_do_not_grow", "RFC 7296 2.1: waits between retransmissions do not grow."),
        ("lossy_path_counts_as_failure", "RFC 7296 2.4: an only peer is given up after few transmissions."),
        ("ike_rekeyed_while_busy", "RFC 7296 2.25.2: the IKE SA is rekeyed while a CHILD_SA is."),
        ("nonce_rule_of_ike_inverted", "RFC 7296 2.8.2: the other IKE SA of a collision is redundant."),
        ("redundant_ike_sa_not_deleted", "RFC 7296 2.8.2: the redundant IKE SA stays."),
        ("rekeyed_ike_sa_kept", "RFC 7296 2.8: an IKE SA stays after its rekey."),
        ("children_left_with_rekeyed_ike_sa", "RFC 7296 2.18: CHILD_SAs do not move to the new IKE SA."),
        ("ike_rekeyed_twice", "RFC 7296 2.8.2: an IKE SA is rekeyed that was rekeyed before."),
        ("child_made_while_ike_is_rekeyed", "RFC 7296 2.25.2: a CHILD_SA is made while we rekey the IKE SA."),
        ("refused_ike_rekey_repeated_at_once", "RFC 7296 2.25: the rekey of an IKE SA is repeated at once."),
        ("refused_ike_rekey_given_up", "RFC 7296 2.8: an IKE SA that the peer does not rekey is not replaced."),
        ("authentication_prolonged_by_rekey", "RFC 4478: a rekey counts as authentication."),
        ("deleted_child_recreated_without_bound", "a CHILD_SA that the peer deletes is made again at once, for ever."),
        ("deleted_child_recreated_late", "a CHILD_SA that is wanted and deleted is made again after a while only."),
        ("refused_child_rekey_given_up", "a CHILD_SA that the peer does not rekey is lost in the end."),
        (
            "children_given_up_with_first",
            "RFC 7296 1.2: no child comes up, because IKE_AUTH has refused the first one.",
        ),
        ("refused_rekey_of_peer_ignored", "a CHILD_SA whose rekey we refuse the peer is lost in the end."),
        ("selectors_narrowed_by_rekey", "RFC 7296 2.9.2: a rekey narrows the selectors."),
        ("nonce_repeated", "RFC 5282 3.1: one nonce for all messages."),
        ("nonce_of_rekey_not_drawn", "RFC 7296 2.10: the nonce of a rekey is no random number."),
        ("icv_without_header", "RFC 7296 3.14: the ICV does not cover the header, at both ends."),
        ("encryption_keys_first", "RFC 7296 2.14: SK_ei and SK_er come before SK_ai and SK_ar, at both ends."),
        ("child_keys_swapped", "RFC 7296 2.17: the keys of the two directions are exchanged, at both ends."),
        ("child_keys_without_secret", "RFC 7296 2.17: forward secrecy in name only."),
        ("ike_keys_without_spi", "RFC 7296 2.14: the seed lacks an SPI."),
        ("skeyseed_of_one_nonce", "RFC 7296 2.14: SKEYSEED from one of the nonces."),
        ("auth_not_verified", "RFC 7296 2.15: any AUTH is taken."),
        ("no_key_pad", "RFC 7296 2.15: AUTH without the key pad, at both ends."),
        ("delete_names_peers_spi", "RFC 7296 1.4.1: DELETE names the SPI of the other direction."),
        ("crossing_deletion_repeated", "RFC 7296 1.4.1: deletions that cross name an SPI twice."),
        ("deletion_of_one_direction", "RFC 7296 1.4.1: the response to a deletion does not name the other direction."),
        ("responder_deletes_replaced", "RFC 7296 2.8: the responder of a rekey deletes the old SA."),
        ("deleted_child_rekeyed", "RFC 7296 2.25.1: an SA is rekeyed while it is deleted."),
        ("unknown_child_not_named", "RFC 7296 2.25: CHILD_SA_NOT_FOUND does not name the SPI."),
        (
            "child_of_late_response_not_found",
            "RFC 7296 2.25: CHILD_SA_NOT_FOUND for what our request made whose response has not come yet.",
        ),
        (
            "deletion_before_response_forgotten",
            "RFC 7296 1.4.1: a CHILD_SA is used that the peer deleted before the response that made it came.",
        ),
        ("superseded_ike_sa_not_asked", "RFC 7296 2.4: an IKE SA stays that the peer has forgotten."),
        ("initial_contact_always", "RFC 7296 2.4: INITIAL_CONTACT beside another IKE SA."),
        ("nonce_changes_with_cookie", "RFC 7296 2.6: the request with the cookie has another nonce."),
        ("cookie_is_last", "RFC 7296 2.6: the cookie is not the first payload."),
        ("liveness_never_checked", "RFC 7296 2.4: a dead peer is not noticed."),
        ("esp_is_no_sign_of_life", "RFC 7296 2.4: a peer is given up while its ESP arrives."),
        ("esp_sent_needs_no_answer", "RFC 7296 2.4: a peer that does not answer ESP is not asked."),
        ("second_ike_sa_kept", "RFC 7296 2.8.3: of two IKE SAs both stay."),
        ("nat_hash_without_port", "RFC 7296 2.23: the hash lacks the port, at both ends."),
        ("purposes_mixed_up", "RFC 7296 1.3.1: one CHILD_SA takes the place of another one with other selectors."),
        (
            "transport_mode_granted_silently",
            "RFC 7296 1.3.1: the response does not grant transport mode, and it is used.",
        ),
        ("declined_transport_mode_used", "RFC 7296 1.3.1: transport mode is used, which the peer has declined."),
        (
            "transport_addresses_not_substituted",
            "RFC 7296 2.23.1: the addresses of transport mode are those that the peer sees.",
        ),
        ("transport_addresses_not_undone", "RFC 7296 2.23.1: the response names other addresses than the request."),
        ("additional_child_forgotten", "a CHILD_SA that is wanted beside the first one is not asked for."),
        ("children_without_limit", "CHILD_SAs of one IKE SA without limit."),
        ("peer_without_rate", "rekeys for one peer without limit of their rate."),
        ("replaced_before_children_are_made", "RFC 7296 2.8.3: an IKE SA goes before the new one has its CHILD_SAs."),
        ("nothing_lingers", "RFC 7296 2.8: the old inbound SA goes at once."),
        ("refused_responder_not_told", "RFC 7296 2.21.2: a responder that is not accepted is not told."),
        ("refused_responder_not_deleted", "a responder that is not accepted is told so without DELETE."),
        ("childless_unasked", "RFC 6023 3: IKE_AUTH without a CHILD_SA to a responder that has not announced it."),
        ("configuration_unasked", "RFC 7296 2.19: CFG_REPLY without CFG_REQUEST."),
        ("address_given_twice", "RFC 7296 2.19: two peers get the same internal address."),
        ("sent_before_peer_is_ready", "RFC 7296 2.8: the responder of a rekey sends before the initiator is ready."),
    ];

    thread_local! {
        static ACTIVE: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// Activates this mistake in this thread. Deactivates the previous one.
    pub fn activate(name: Option<&'static str>) {
        ACTIVE.set(name);
    }

    pub(crate) fn is_active(name: &str) -> bool {
        ACTIVE.get() == Some(name)
    }
}

#[cfg(all(feature = "mutations", debug_assertions))]
pub(crate) use active::is_active;
#[cfg(all(feature = "mutations", debug_assertions))]
pub use active::{ALL, activate};
