//! Tests that the tests detect mistakes: each mistake in `edge_ike::mutations` is activated, and
//! some test in this folder must fail. Two ends with the same mistake often agree with each other,
//! so most mistakes are found by the oracle.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use edge_ike::mutations::{ALL, activate};

use crate::faults::Run;
use crate::network::LinkQuality;
use crate::peers::{Pair, SECOND};
use crate::{
    certificates, changes, childless, children, internal_addresses, liveness, messages, mobike, rates,
    refused_first_child, rekey, rules, suites, transport, windows,
};

/// Number of runs under faults, which are tried after all other tests.
const FAULTY_RUNS: u64 = 200;

thread_local! {
    /// Whether the test expects this thread to panic, so that the panic is not printed.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// The tests to try, fastest first.
const TESTS: &[(&str, fn())] = &[
    ("a foreign peer", rules::a_foreign_peer_comes_up_and_is_let_in_by_its_secret_alone),
    ("rekey of an IKE SA", rules::an_ike_sa_is_rekeyed_when_nothing_else_is_under_way),
    ("rekey of a busy IKE SA", rules::an_ike_sa_is_not_rekeyed_while_a_child_sa_is),
    ("rekey of what is deleted", rules::a_child_sa_that_is_being_deleted_is_not_rekeyed),
    (
        "rekey of what survived a collision",
        rules::the_redundant_child_sa_of_a_collision_goes_although_the_other_one_was_rekeyed_meanwhile,
    ),
    ("rekey of what is unknown", rules::a_child_sa_that_is_unknown_is_not_rekeyed),
    ("rekey of what is not known yet", rules::a_child_sa_that_our_unanswered_request_may_have_made_is_rekeyed_later),
    ("deletion of what is not known yet", rules::a_child_sa_that_the_peer_deleted_before_its_late_response_is_not_used),
    ("TEMPORARY_FAILURE", rules::what_is_asked_to_wait_waits),
    (
        "TEMPORARY_FAILURE for minutes",
        messages::a_child_sa_that_the_peer_always_puts_off_is_asked_for_less_and_less_often_until_a_new_ike_sa_comes,
    ),
    ("window", rules::requests_outside_of_the_window_are_not_answered),
    (
        "requests that overtake",
        windows::requests_that_overtake_each_other_are_carried_out_in_order_and_their_answers_are_kept,
    ),
    ("too many requests", windows::no_more_requests_wait_than_were_announced_and_none_that_is_forged),
    ("repeated requests", rules::a_response_is_repeated_to_the_same_request_and_to_nothing_else),
    ("paths", rules::a_peer_without_a_nat_is_answered_where_it_is_but_not_followed),
    ("check of a foreign initiator", mobike::a_foreign_initiator_is_checked_before_esp_follows_it),
    ("another COOKIE2", mobike::another_cookie2_closes_the_ike_sa),
    ("no update", mobike::who_asks_from_elsewhere_without_an_update_moves_nothing),
    ("forbidden NAT", mobike::a_nat_that_the_peer_forbids_is_found),
    ("moves", mobike::the_responder_moves_and_the_initiator_follows_in_two_round_trips),
    ("forged source", mobike::a_copied_update_with_a_forged_source_diverts_nothing),
    ("another mapping", mobike::another_mapping_of_the_initiators_nat_is_noticed_by_a_liveness_check),
    ("another mapping and a refusal", mobike::another_mapping_is_noticed_when_the_peer_refuses_because_of_it),
    ("cookies", rules::with_many_half_open_ike_sas_only_the_right_cookie_makes_one_more),
    ("fragments", rules::who_does_not_support_fragments_gets_none),
    ("crossing deletions", rules::deletions_that_cross_name_each_spi_once),
    ("CHILD_SA while the IKE SA is rekeyed", rules::no_child_sa_is_made_while_we_rekey_the_ike_sa),
    ("second rekey of an IKE SA", rules::an_ike_sa_that_was_rekeyed_is_not_rekeyed_again),
    ("TEMPORARY_FAILURE of an IKE SA", rules::a_rekey_of_the_ike_sa_that_is_asked_to_wait_waits),
    ("refused rekey of an IKE SA", rules::a_peer_that_refuses_to_rekey_the_ike_sa_is_authenticated_again_instead),
    ("selectors", rules::a_rekey_does_not_narrow_the_selectors),
    ("refused rekey of a CHILD_SA", rules::a_child_sa_that_the_peer_does_not_rekey_comes_with_a_new_ike_sa),
    ("refused rekey of the peer", rules::a_peer_whose_rekey_we_refuse_gets_a_new_ike_sa_and_not_too_many),
    ("deleted CHILD_SA", rekey::a_child_sa_that_only_the_peer_deletes_is_back_at_once_and_a_fight_has_a_bound),
    ("traffic", traffic_through_rekeys),
    ("rekeys of the IKE SA", rekey::a_rekey_of_the_ike_sa_by_either_end_moves_the_child_sa_and_loses_nothing),
    (
        "simultaneous rekeys of the IKE SA",
        rekey::simultaneous_rekeys_of_the_ike_sa_in_fair_weather_delete_the_one_with_the_lowest_nonce,
    ),
    ("authentication", rekey::a_rekeyed_ike_sa_is_replaced_by_a_new_authentication_in_time),
    ("late deletion", rekey::a_redundant_child_sa_goes_and_the_other_stays_when_its_deletion_is_late),
    ("jitter", rekey::the_ages_at_which_child_sas_are_rekeyed_are_spread_over_a_tenth_of_the_lifetime),
    ("dead peer", changes::a_dead_peer_is_noticed_in_less_than_ten_seconds_and_found_again),
    ("signs of life", liveness::a_peer_whose_esp_arrives_is_not_given_up_when_requests_are_lost),
    ("lost mapping", liveness::child_sas_are_replaced_once_if_esp_stops_although_a_peer_without_mobike_answers),
    ("idle peer", liveness::an_idle_peer_is_asked_every_two_minutes),
    ("unanswered ESP", liveness::the_first_packet_to_a_peer_that_died_long_ago_leads_to_a_check),
    (
        "patience",
        liveness::a_peer_for_which_we_have_patience_is_found_again_soon_after_a_restart_and_given_up_in_the_end,
    ),
    ("superseded IKE SA", liveness::an_ike_sa_that_a_restarted_peer_has_forgotten_goes_soon_after_its_successor_came),
    ("several CHILD_SAs", children::each_child_sa_is_rekeyed_by_itself_and_the_others_stay),
    ("too many CHILD_SAs", children::a_child_sa_beyond_the_limit_is_refused_and_the_others_stay),
    ("rate of rekeys", rates::a_peer_that_rekeys_in_a_loop_is_made_to_wait_and_keeps_its_tunnel),
    ("rekey of the IKE SA of several", children::a_rekey_of_the_ike_sa_moves_all_child_sas),
    ("authentication of several", children::a_new_authentication_makes_all_child_sas_before_the_old_ones_go),
    ("no CHILD_SA in IKE_AUTH", childless::each_pair_of_settings_leaves_out_the_child_sa_as_the_words_say),
    (
        "refused first CHILD_SA",
        refused_first_child::the_other_children_come_up_although_ike_auth_has_refused_the_first_one,
    ),
    ("transport mode", transport::two_hosts_in_transport_mode_rekey_and_lose_nothing),
    (
        "transport mode through NATs",
        transport::through_nats_each_end_has_the_addresses_that_it_sees_and_rekeys_lose_nothing,
    ),
    ("declined transport mode", transport::a_host_that_is_given_a_tunnel_instead_deletes_it_and_says_so),
    ("algorithms", suites::every_algorithm_carries_an_ike_sa_and_a_child_sa_through_their_rekeys),
    (
        "internal addresses",
        internal_addresses::the_clients_of_one_pool_have_different_addresses_and_the_last_one_waits_for_a_free_one,
    ),
    (
        "refused responder",
        certificates::an_initiator_that_does_not_believe_the_responder_tells_it_and_both_are_rid_of_it,
    ),
    ("faults", faulty_runs),
];

fn traffic_through_rekeys() {
    for seed in 0..3 {
        let mut pair = Pair::new(seed, LinkQuality::REORDERING).one_sided();
        pair.start();
        pair.traffic(SECOND);
        for (node, peer) in [(pair.a, pair.b_name.clone()), (pair.b, pair.a_name.clone())] {
            pair.network.call(node, |endpoint, now, env| endpoint.rekey_children(&peer, now, env));
            pair.traffic(SECOND);
        }
        pair.network.run_for(10 * SECOND);
        pair.assert_connected();
    }
}

fn faulty_runs() {
    for seed in 0..FAULTY_RUNS {
        Run::new(seed).whole();
    }
}

/// Returns the first test that detects a mistake, and its message.
fn noticed(mistake: &'static str) -> Option<(&'static str, String)> {
    activate(Some(mistake));
    EXPECTED.set(true);
    let failed = TESTS.iter().find_map(|(name, test)| {
        let said = catch_unwind(AssertUnwindSafe(test)).err()?;
        let said = said.downcast_ref::<String>().cloned().unwrap_or_default();
        Some((*name, said.lines().find(|line| !line.starts_with("replay")).unwrap_or_default().to_owned()))
    });
    activate(None);
    EXPECTED.set(false);
    failed
}

#[test]
fn every_mistake_is_noticed() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !EXPECTED.get() {
            print(info);
        }
    }));
    let (next, unnoticed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((mistake, rule)) = ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
            match noticed(mistake) {
                Some((test, said)) => println!("{mistake}: {test}: {said}"),
                None => unnoticed.lock().unwrap().push(format!("{mistake} ({rule})")),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let unnoticed = unnoticed.into_inner().unwrap();
    assert!(unnoticed.is_empty(), "nothing notices {unnoticed:#?}");
    assert!(ALL.len() >= 25, "{} mistakes", ALL.len());
}
