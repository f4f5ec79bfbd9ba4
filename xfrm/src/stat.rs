//! `/proc/net/xfrm_stat`: counters of dropped packets, by reason.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

const PATH: &str = "/proc/net/xfrm_stat";

/// Reads the counters of this thread's network namespace. The keys are the kernel's names, such as
/// `XfrmInNoPols`, `XfrmInTmplMismatch`, `XfrmInPolBlock`, `XfrmOutPolBlock`,
/// `XfrmInStateProtoError`. Newer kernels have more counters.
pub fn read() -> Result<BTreeMap<String, u64>> {
    // /proc/net shows the namespace of the process's first thread, while /proc/thread-self/net
    // shows the namespace of this thread.
    let text = std::fs::read_to_string("/proc/thread-self/net/xfrm_stat")
        .map_err(|error| Error::Proc { path: PATH, reason: error.to_string() })?;
    parse(&text)
}

fn parse(text: &str) -> Result<BTreeMap<String, u64>> {
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            match (words.next(), words.next().map(str::parse)) {
                (Some(name), Some(Ok(count))) => Ok((name.to_owned(), count)),
                _ => Err(Error::Proc { path: PATH, reason: format!("{line:?} is not a name and a number") }),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_counts_are_read() {
        let counters = parse("XfrmInError             \t0\nXfrmInNoPols            \t17\n").unwrap();
        assert_eq!(counters["XfrmInNoPols"], 17);
        assert_eq!(counters.len(), 2);
    }

    #[test]
    fn a_line_without_a_number_is_an_error() {
        assert!(parse("XfrmInError\n").is_err());
    }
}
