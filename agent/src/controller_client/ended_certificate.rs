//! Says that this node's certificate has ended, and what to do.

use edge_types::NodeName;

use super::tls::date;

/// Returns the message about a certificate that has ended; `None` if it has not. All times are
/// seconds since 1970-01-01 UTC. `grace` is the time in seconds for which the controller and the
/// peers accept the certificate after its end.
pub fn describe(node: Option<&NodeName>, not_after: i64, grace: u64, now: u64) -> Option<String> {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    if now <= not_after {
        return None;
    }
    let until = not_after.saturating_add(i64::try_from(grace).unwrap_or(i64::MAX));
    let end = date(not_after);
    if now < until {
        return Some(format!(
            "our certificate ended on {end}; grace until {}: known peers still accept it, and this node renews it by itself as soon as it \
             reaches the controller; make the controller reachable before that",
            date(until)
        ));
    }
    let grace = match grace {
        0 => "no grace is configured (grace_days of the controller)".to_owned(),
        _ => format!("the grace ended on {}", date(until)),
    };
    let name = node.map_or("NAME", NodeName::as_str);
    Some(format!(
        "our certificate ended on {end}; {grace}: neither peers nor the controller accept it; put a new join token for this node's name \
         into the token file (edge-controller token create --node {name}), or correct this node's clock if it runs ahead"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-12-01T00:00:00Z
    const END: i64 = 1_796_083_200;
    const NOW: u64 = 1_796_083_200;

    #[test]
    fn the_message_tells_the_end_the_grace_and_what_to_do() {
        let node: NodeName = "edge-1".parse().unwrap();
        let at = |grace, now| describe(Some(&node), END, grace, now);
        assert_eq!(at(0, NOW), None);
        let within = at(100, NOW + 1).unwrap();
        assert!(within.starts_with("our certificate ended on 2026-12-01T00:00:00Z; grace until 2026-12-01T00:01:40Z"));
        assert!(within.contains("reaches the controller"), "{within}");
        let over = at(100, NOW + 100).unwrap();
        assert!(over.contains("the grace ended on 2026-12-01T00:01:40Z") && over.contains("--node edge-1"), "{over}");
        let none = at(0, NOW + 1).unwrap();
        assert!(none.contains("no grace is configured") && none.contains("join token"), "{none}");
        assert!(at(u64::MAX, u64::MAX).is_some(), "extreme values are no error");
    }
}
