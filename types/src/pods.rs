//! Patterns for pods, in the plugin's `unfilteredPods` and the agent's `unfiltered_pods`, and the
//! limits of the keys `lanToPods` and `serviceRanges` (plugin), and `lan_to_pods` and
//! `service_ranges` (agent).

/// Maximum number of networks from which hosts outside the cluster may reach pods. The plugin makes
/// a rule for each, all in one message.
pub const MAX_LAN_TO_PODS: usize = 128;

/// Maximum number of ranges of Services. A cluster has one or two, and more if they were extended.
pub const MAX_SERVICE_RANGES: usize = 64;

/// The allowed forms of a pattern, for error messages.
pub const EXPECTED: &str = "\"namespace/name\", \"namespace/beginning*\", or \"*\" for all pods";

/// Returns whether a text is a valid pattern.
pub fn is_pattern(pattern: &str) -> bool {
    let beginning = pattern.strip_suffix('*').unwrap_or(pattern);
    let (namespace, name) = beginning.split_once('/').unwrap_or_default();
    let whole = !namespace.is_empty() && (pattern.ends_with('*') || !name.is_empty());
    pattern == "*" || (whole && !beginning.contains('*') && !name.contains('/'))
}

/// Returns whether a pattern matches a pod, `namespace/name`. Only `*` matches a pod without a
/// name.
pub fn matches(pattern: &str, pod: Option<&str>) -> bool {
    match (pattern.strip_suffix('*'), pod) {
        (Some(""), _) => true,
        (Some(beginning), Some(pod)) => pod.starts_with(beginning),
        (None, Some(pod)) => pattern == pod,
        (_, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_meant_by_name_beginning_or_all() {
        for (pattern, pod, meant) in [
            ("default/web", "default/web", true),
            ("default/web", "default/web-0", false),
            ("default/web-*", "default/web-0", true),
            ("default/*", "default/web", true),
            ("default/*", "default2/web", false),
            ("*", "default/web", true),
        ] {
            assert!(is_pattern(pattern));
            assert_eq!(matches(pattern, Some(pod)), meant, "{pattern} {pod}");
        }
        assert!(!matches("default/*", None) && matches("*", None));
        for wrong in ["", "kube*", "default/", "/web", "default/a*b*", "**", "a/b/c", "default"] {
            assert!(!is_pattern(wrong), "{wrong}");
        }
    }
}
