//! Translates proposals from `swanctl.conf`.

use super::keys::ImportReport;
use super::swanctl_file::Section;

/// Returns the proposals in a section that the agent supports; empty to use the agent's defaults.
/// Unsupported proposals are left out with a note. If none is supported, a problem is added to the
/// report.
pub(super) fn proposals(
    section: &Section,
    key: &str,
    parse: impl Fn(&str) -> Result<(), String>,
    report: &mut ImportReport,
) -> Vec<String> {
    let texts = section.list(key);
    let (defaults, texts): (Vec<&str>, Vec<&str>) = texts.into_iter().partition(|text| *text == "default");
    let mut known = Vec::new();
    let mut unknown = Vec::new();
    for text in &texts {
        match parse(text) {
            Ok(()) => known.push((*text).to_owned()),
            Err(problem) => unknown.push(problem),
        }
    }
    if !texts.is_empty() && known.is_empty() && defaults.is_empty() {
        report.problems.push(format!("{}: {key}: no proposal is supported: {}", section.at, unknown.join("; ")));
    } else {
        report.notes.extend(unknown.into_iter().map(|problem| format!("{}: {key}: left out: {problem}", section.at)));
    }
    if !defaults.is_empty() {
        if !known.is_empty() {
            report.notes.push(format!("{}: {key}: default: the agent's defaults are offered", section.at));
        }
        return Vec::new();
    }
    known
}
