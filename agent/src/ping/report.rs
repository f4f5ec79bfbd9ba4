//! The output of `edge-agent ping`.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::destination::Destination;
use super::echo::Answers;

/// The output of `edge-agent ping --json`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    results: Vec<PingResult>,
}

/// The results of the requests to one address.
#[derive(Debug, Serialize)]
struct PingResult {
    peer: String,
    address: IpAddr,
    source: IpAddr,
    /// The path after the last request; absent if the tunnel is not up.
    path: Option<Path>,
    sent: u16,
    received: usize,
    /// Share of the requests without a reply, 0 to 100.
    loss_percent: f64,
    /// Round-trip times; absent without a reply.
    round_trip_ms: Option<RoundTrip>,
    /// The latest error from the operating system.
    error: Option<String>,
}

/// The path of a tunnel.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Path {
    /// From node to node.
    Direct,
    /// Through the port of this hub.
    RelayedBy(String),
}

/// Round-trip times, in ms.
#[derive(Debug, Serialize)]
struct RoundTrip {
    min: f64,
    average: f64,
    max: f64,
}

impl Report {
    /// Creates the output. `path` returns the path of the tunnel to a peer.
    pub(super) fn new<'a>(
        asked: impl Iterator<Item = (&'a Destination, &'a Answers)>,
        path: impl Fn(&str) -> Option<Path>,
    ) -> Self {
        let result = |(destination, answers)| PingResult::new(destination, answers, &path);
        Self { results: asked.map(result).collect() }
    }

    pub(super) fn render(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header([
            "PEER",
            "ADDRESS",
            "FROM",
            "PATH",
            "SENT",
            "RECEIVED",
            "LOSS",
            "MIN ms",
            "AVERAGE ms",
            "MAX ms",
        ]);
        for result in &self.results {
            let time = |of: fn(&RoundTrip) -> f64| match &result.round_trip_ms {
                Some(round_trip) => format!("{:.2}", of(round_trip)),
                None => "-".into(),
            };
            table.add_row([
                result.peer.clone(),
                result.address.to_string(),
                result.source.to_string(),
                match &result.path {
                    Some(Path::Direct) => "direct".into(),
                    Some(Path::RelayedBy(hub)) => format!("relayed by {hub}"),
                    None => "-".into(),
                },
                result.sent.to_string(),
                result.received.to_string(),
                format!("{:.0}%", result.loss_percent),
                time(|trip| trip.min),
                time(|trip| trip.average),
                time(|trip| trip.max),
            ]);
        }
        let mut text = format!("{table}\n");
        for result in self.results.iter().filter(|result| result.received > 0) {
            if let Some(error) = &result.error {
                let _ = writeln!(text, "{}: {}: {error}", result.peer, result.address);
            }
        }
        text
    }

    /// Returns a text with the addresses that have answered no request; `None` if each has answered
    /// at least one.
    pub(super) fn silent(&self) -> Option<String> {
        let silent = self.results.iter().filter(|result| result.received == 0).map(|result| {
            let why = result.error.as_deref().unwrap_or("nothing came back");
            format!("{} at {}: {why}; `edge-agent diagnose {1}` looks for the reason", result.peer, result.address)
        });
        let silent: Vec<String> = silent.collect();
        (!silent.is_empty()).then(|| silent.join("\n"))
    }
}

impl PingResult {
    fn new(destination: &Destination, answers: &Answers, path: impl Fn(&str) -> Option<Path>) -> Self {
        let Destination { peer, address, source } = destination.clone();
        let path = path(&peer);
        let received = answers.round_trips.len();
        let lost = usize::from(answers.sent).saturating_sub(received);
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let times = answers.round_trips.iter().copied();
        let bounds = times.clone().min().zip(times.clone().max());
        Self {
            peer,
            address,
            source,
            path,
            sent: answers.sent,
            received,
            loss_percent: if answers.sent == 0 { 100.0 } else { 100.0 * lost as f64 / f64::from(answers.sent) },
            round_trip_ms: bounds.map(|(min, max)| RoundTrip {
                min: ms(min),
                average: ms(times.sum::<Duration>()) / received as f64,
                max: ms(max),
            }),
            error: answers.error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(sent: u16, round_trips: &[u64], error: Option<&str>) -> Report {
        let destination = Destination {
            peer: "edge-2".into(),
            address: "10.77.1.1".parse().unwrap(),
            source: "10.77.0.1".parse().unwrap(),
        };
        let round_trips = round_trips.iter().map(|ms| Duration::from_millis(*ms)).collect();
        let answers = Answers { sent, round_trips, error: error.map(str::to_owned) };
        let path = |peer: &str| (peer == "edge-2").then(|| Path::RelayedBy("hub".into()));
        Report::new([(&destination, &answers)].into_iter(), path)
    }

    #[test]
    fn losses_and_round_trips_are_computed() {
        let result = report(4, &[2, 6, 1], None);
        let json = serde_json::to_value(&result).unwrap();
        assert_eq!(json["results"][0]["loss_percent"], 25.0);
        assert_eq!(json["results"][0]["round_trip_ms"], serde_json::json!({"min": 1.0, "average": 3.0, "max": 6.0}));
        assert_eq!(json["results"][0]["path"], serde_json::json!({"relayed_by": "hub"}));
        for expected in ["25%", "relayed by hub"] {
            assert!(result.render().contains(expected), "{}", result.render());
        }
        assert!(result.silent().is_none());
    }

    #[test]
    fn an_address_that_never_answers_is_named_with_the_reason() {
        let silent = report(3, &[], Some("No route to host")).silent().unwrap();
        assert!(silent.contains("edge-2 at 10.77.1.1: No route to host"), "{silent}");
        assert!(report(3, &[], None).silent().unwrap().contains("nothing came back"));
        let nothing_sent = serde_json::to_value(report(0, &[], None)).unwrap();
        assert_eq!(nothing_sent["results"][0]["loss_percent"], 100.0);
        assert!(nothing_sent["results"][0]["round_trip_ms"].is_null());
    }
}
