//! Compares what was measured on a path with what is permitted.

use edge_types::connectivity::{PathMeasurement, PathResult, Verdict};

use super::plan::Path;
use crate::text;

/// Maximum length of a reason that a node reports, in characters.
const LONGEST_REASON: usize = 300;
/// Phases in which a tunnel carries packets, or is set up by the first packet.
const USABLE: [&str; 2] = ["up", "on-demand"];

/// Judges a measurement. Texts from the node are limited in length, and characters that hide,
/// reorder or break text are removed. A number of replies above the number of requests is reduced
/// to it.
#[must_use]
pub fn judge(path: &Path, measured: PathMeasurement) -> PathResult {
    let shown = |text: String| text::shown(&text, LONGEST_REASON);
    let measured = PathMeasurement {
        received: measured.received.min(measured.sent),
        error: measured.error.map(shown),
        tunnel: measured.tunnel.map(shown),
        ..measured
    };
    let (verdict, why) = verdict(path, &measured);
    PathResult { from: path.from.clone(), permitted: path.permitted, verdict, why, measured }
}

fn verdict(path: &Path, measured: &PathMeasurement) -> (Verdict, Option<String>) {
    let PathMeasurement { sent, received, error, tunnel, address, .. } = measured;
    match (path.permitted, address) {
        (true, Some(_)) if *received > 0 => (Verdict::Reached, None),
        (true, Some(_)) if *sent > 0 => {
            let why = error.clone().unwrap_or_else(|| "nothing came back".into());
            let remedy = format!("`edge-agent diagnose {}` on {} looks for the reason", path.to, path.from);
            (Verdict::Unreached, Some(format!("{why}; {remedy}")))
        }
        (true, None) => match tunnel {
            Some(phase) if USABLE.contains(&phase.as_str()) => {
                let why = format!("no address behind {} is known to answer; the tunnel is {phase}", path.to);
                (Verdict::Tunnel, Some(why))
            }
            Some(phase) => {
                let why = error.clone().unwrap_or_default();
                (Verdict::Unreached, Some(format!("the tunnel is {phase}: {why}")))
            }
            None => (Verdict::Unreached, Some(format!("{} is no peer in the view of {}", path.to, path.from))),
        },
        (false, Some(_)) if *received > 0 => {
            let why = format!("{} must not reach {}; who changed its policies or routes?", path.from, path.to);
            (Verdict::Exposed, Some(why))
        }
        (false, Some(_)) if *sent > 0 => (Verdict::Separate, None),
        // No address behind the other node is known, so no packet was sent.
        (false, None) if tunnel.is_none() => (Verdict::Separate, Some("no address behind it is known".into())),
        (false, None) => (Verdict::Exposed, Some(format!("{} is a peer of {}", path.to, path.from))),
        (_, Some(_)) => (Verdict::Unknown, Some(error.clone().unwrap_or_else(|| "no packet was sent".into()))),
    }
}

/// Returns the result for a path that was not measured, with this reason.
#[must_use]
pub fn unknown(path: &Path, why: &str) -> PathResult {
    let measured = PathMeasurement {
        node: path.to.clone(),
        tunnel: None,
        address: None,
        sent: 0,
        received: 0,
        round_trip: None,
        mtu: None,
        bits_per_second: None,
        error: None,
    };
    let why = Some(text::shown(why, LONGEST_REASON));
    PathResult { from: path.from.clone(), permitted: path.permitted, verdict: Verdict::Unknown, why, measured }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(permitted: bool, address: Option<&str>, sent: u16, received: u16, tunnel: Option<&str>) -> PathResult {
        let path = Path { from: "a".parse().unwrap(), to: "b".parse().unwrap(), permitted };
        let unmeasured = unknown(&path, "").measured;
        let address = address.map(|text| text.parse().unwrap());
        let error = Some("bad\u{1b}[31m".to_owned());
        judge(&path, PathMeasurement { address, sent, received, tunnel: tunnel.map(Into::into), error, ..unmeasured })
    }

    #[test]
    fn what_was_measured_is_compared_with_what_is_permitted() {
        let at = Some("10.77.0.1");
        for (permitted, address, sent, received, tunnel, expected) in [
            (true, at, 3, 1, Some("up"), Verdict::Reached),
            (true, at, 3, 0, Some("up"), Verdict::Unreached),
            (true, at, 3, 0, None, Verdict::Unreached),
            (true, at, 0, 0, Some("up"), Verdict::Unknown),
            (true, None, 0, 0, Some("up"), Verdict::Tunnel),
            (true, None, 0, 0, Some("on-demand"), Verdict::Tunnel),
            (true, None, 0, 0, Some("waiting"), Verdict::Unreached),
            (true, None, 0, 0, None, Verdict::Unreached),
            (false, at, 3, 0, None, Verdict::Separate),
            (false, at, 3, 1, None, Verdict::Exposed),
            (false, at, 0, 0, None, Verdict::Unknown),
            (false, None, 0, 0, None, Verdict::Separate),
            (false, None, 0, 0, Some("up"), Verdict::Exposed),
            // The node reports replies to packets that it has not sent.
            (true, at, 0, 9, Some("up"), Verdict::Unknown),
        ] {
            let result = judged(permitted, address, sent, received, tunnel);
            assert_eq!(result.verdict, expected, "{permitted} {address:?} {sent} {received} {tunnel:?}");
            assert!(result.measured.received <= sent);
            let text = format!("{}{}", result.why.unwrap_or_default(), result.measured.error.unwrap_or_default());
            assert!(!text.contains('\u{1b}'), "{text:?}");
        }
    }

    #[test]
    fn an_unmeasured_path_is_neither_right_nor_silent() {
        let path = Path { from: "a".parse().unwrap(), to: "b".parse().unwrap(), permitted: true };
        let result = unknown(&path, "too\u{202e} old");
        assert_eq!((result.verdict, result.why.as_deref()), (Verdict::Unknown, Some("too old")));
        assert!(!result.verdict.is_right());
    }
}
