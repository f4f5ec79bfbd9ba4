//! All scenarios, by name.
//!
//! To add one: write a function that takes a [`Lab`](crate::runner::Lab) in a module here, and name
//! it in that module's table.

mod charon;
pub(crate) mod crate_tests;
mod failure_reports;
mod lab;
mod strongswan;

use crate::runner::Scenario;

/// Every scenario there is.
#[must_use]
pub fn all() -> Vec<&'static Scenario> {
    [lab::SCENARIOS, charon::SCENARIOS, crate_tests::SCENARIOS, failure_reports::SCENARIOS, strongswan::SCENARIOS]
        .into_iter()
        .flatten()
        .chain([&crate::demo::FIREWALL, &crate::demo::SCENARIO, &crate::demo::KUBERNETES])
        .collect()
}

/// The scenario of that very name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}

/// The scenarios that the words name: each is a whole name or the beginning of some. No word means
/// all that run by default.
///
/// # Errors
/// When a word names none; returns the word.
pub fn select(words: &[String]) -> Result<Vec<&'static Scenario>, String> {
    let all = all();
    if words.is_empty() {
        return Ok(all.into_iter().filter(|scenario| scenario.by_default).collect());
    }
    let mut chosen: Vec<&'static Scenario> = Vec::new();
    for word in words {
        let exact: Vec<_> = all.iter().filter(|scenario| scenario.name == *word).collect();
        let named = if exact.is_empty() {
            all.iter().filter(|scenario| scenario.by_default && scenario.name.starts_with(word.as_str())).collect()
        } else {
            exact
        };
        if named.is_empty() {
            return Err(word.clone());
        }
        for scenario in named {
            if !chosen.iter().any(|have| have.name == scenario.name) {
                chosen.push(scenario);
            }
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let names: Vec<_> = select(&words).unwrap().iter().map(|scenario| scenario.name).collect();
        assert!(names.contains(&"lab/clear-ping-is-captured"));
        let mut unique = names.clone();
        unique.dedup();
        assert_eq!(names, unique);
    }

    #[test]
    fn a_word_that_names_nothing_is_refused() {
        assert_eq!(select(&["nonsense".to_owned()]).unwrap_err(), "nonsense");
    }
}
