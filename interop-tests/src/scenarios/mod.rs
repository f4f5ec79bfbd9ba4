//! All scenarios.
//!
//! To add one, write a function that takes a [`Lab`](crate::scenario::Lab) in a module here, and
//! add it to that module's table.

mod agents;
mod charon;
mod charon_keys;
mod clocks;
mod connectivity;
mod crate_tests;
mod diagnosed_clock;
mod diagnosed_data_path;
mod failure_reports;
mod hub_and_edges;
pub mod interop;
mod kubeedge;
mod kubeedge_services;
mod lab;
mod libreswan;
mod nats;
mod openiked;
mod own_addresses;
mod path_mtu;
mod site;
mod strongswan;
mod tcp;
mod tcp_relays;
mod two_uplinks;
mod upgrade;
mod view_changes;

use crate::scenario::Scenario;

/// Returns all scenarios.
#[must_use]
pub fn all() -> Vec<&'static Scenario> {
    [
        agents::SCENARIOS,
        kubeedge::SCENARIOS,
        kubeedge_services::SCENARIOS,
        lab::SCENARIOS,
        libreswan::SCENARIOS,
        charon::SCENARIOS,
        charon_keys::SCENARIOS,
        clocks::SCENARIOS,
        connectivity::SCENARIOS,
        crate_tests::SCENARIOS,
        diagnosed_clock::SCENARIOS,
        diagnosed_data_path::SCENARIOS,
        failure_reports::SCENARIOS,
        nats::SCENARIOS,
        openiked::SCENARIOS,
        own_addresses::SCENARIOS,
        path_mtu::SCENARIOS,
        strongswan::SCENARIOS,
        tcp::SCENARIOS,
        tcp_relays::SCENARIOS,
        two_uplinks::SCENARIOS,
        upgrade::SCENARIOS,
        view_changes::SCENARIOS,
    ]
    .into_iter()
    .flatten()
    .chain(crate::bench::scenarios())
    .chain([
        &crate::demo::FIREWALL,
        &crate::demo::DOCKER_AND_FIREWALLD,
        &crate::demo::SCENARIO,
        &crate::demo::KUBERNETES,
        &crate::demo::tour::SCENARIO,
        &crate::demo::chaos::SHORT,
        &crate::demo::chaos::LONG,
    ])
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::select;

    #[test]
    fn names_are_unique_and_say_their_area() {
        let mut names: Vec<_> = all().iter().map(|scenario| scenario.name).collect();
        assert!(names.iter().all(|name| name.contains('/')));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_beginning_selects_its_scenarios_once() {
        let words = ["lab/".to_owned(), "lab/clear-ping-is-captured".to_owned()];
        let names: Vec<_> = select(&all(), &words).unwrap().iter().map(|scenario| scenario.name).collect();
        assert!(names.contains(&"lab/clear-ping-is-captured"));
        let mut unique = names.clone();
        unique.dedup();
        assert_eq!(names, unique);
    }

    #[test]
    fn a_word_that_names_nothing_is_refused() {
        assert_eq!(select(&all(), &["nonsense".to_owned()]).unwrap_err(), "nonsense");
    }
}
