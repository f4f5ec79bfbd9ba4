//! Durations in the configuration: `500ms`, `4s`, `10m`, `1h`.

use std::time::Duration;

/// The maximum duration, 10 years. With this limit, the current time plus a duration never exceeds
/// the range of a clock.
const LONGEST: Duration = Duration::from_secs(87_600 * 3600);

/// The accepted form of a duration, for error messages.
pub(crate) const EXPECTED: &str =
    "write a whole number above 0 and ms, s, m or h, as in \"500ms\", of at most 10 years";

/// Reads a duration. `None` if the text does not have the form that [`EXPECTED`] describes.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    match &text[digits..] {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
    .filter(|duration| !duration.is_zero() && *duration <= LONGEST)
}

pub(super) mod optional {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de::Error};

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(from)?;
        super::parse(&text)
            .map(Some)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not a duration: {}", super::EXPECTED)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        assert_eq!(parse("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse("2h"), Some(Duration::from_secs(7200)));
        assert_eq!(parse("87600h"), Some(LONGEST));
        for bad in
            ["", "87601h", "5", "s", "0s", "-1s", "1.5s", "5 s", "1d", "99999999999999999999s", "18446744073709551615h"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
