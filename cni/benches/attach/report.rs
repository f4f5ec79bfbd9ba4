//! The results: a table for people and a file for programs.

use std::path::Path;

use serde_json::{Value, json};

use crate::program::{FLOOR, OURS, STOCK};

#[derive(Default)]
pub(crate) struct Report {
    results: Vec<Value>,
}

/// The maximum acceptable value.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    None,
    /// The plugin's value.
    Ours(f64),
    /// The plugin's value divided by the value of bridge and host-local.
    OfStock(f64),
    /// The plugin's value divided by the value of the baseline.
    OfFloor(f64),
}

impl Report {
    /// Adds a case. `value` returns the value of a program, if there is one.
    pub(crate) fn add(&mut self, case: &str, unit: &str, value: impl Fn(&str) -> Option<f64>, goal: Goal) {
        let Some(ours) = value(OURS) else { return };
        let (stock, floor) = (value(STOCK), value(FLOOR));
        let to = |reference: Option<f64>| reference.map(|reference| ours / reference).filter(|ratio| ratio.is_finite());
        let (judged, most, of) = match goal {
            Goal::None => (None, None, None),
            Goal::Ours(most) => (Some(ours), Some(most), Some("ours")),
            Goal::OfStock(most) => (to(stock), Some(most), Some("ratio")),
            Goal::OfFloor(most) => (to(floor), Some(most), Some("ratio_to_floor")),
        };
        let verdict = match (judged, most) {
            (Some(value), Some(most)) if value <= most => "met",
            (Some(_), Some(_)) => "MISSED",
            _ => "",
        };
        let shown = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.2}"));
        println!(
            "{case:<34} {:>9} {unit:<12} {STOCK} {:>9} (ratio {:>5})  floor {:>8} (ratio {:>5})  {verdict}",
            shown(Some(ours)),
            shown(stock),
            shown(to(stock)),
            shown(floor),
            shown(to(floor)),
        );
        self.results.push(json!({
            "case": case, "unit": unit, "ours": ours,
            "reference": stock, "reference_name": STOCK, "ratio": to(stock),
            "floor": floor, "ratio_to_floor": to(floor),
            "goal": most, "goal_of": of,
        }));
    }

    /// Writes the results to a file.
    pub(crate) fn write(self, file: &Path) {
        let folder = file.parent().expect("the file is in a folder");
        std::fs::create_dir_all(folder).expect("target/bench can be made");
        let text = format!("{:#}\n", json!({ "name": "cni", "results": self.results }));
        std::fs::write(file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}
