//! Formats numbers of bytes for people.

const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];

/// Formats a number of bytes with two or three digits and an SI unit.
pub(super) fn bytes(count: u64) -> String {
    if count < 1000 {
        return format!("{count} B");
    }
    // In thousandths of the unit.
    let mut thousandths = count;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while thousandths >= 1_000_000 {
        thousandths /= 1000;
        unit = units.next();
    }
    let (whole, tenths) = (thousandths / 1000, thousandths % 1000 / 100);
    let unit = unit.copied().unwrap_or_default();
    if whole < 10 { format!("{whole}.{tenths} {unit}") } else { format!("{whole} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_all_sizes_are_short_and_never_too_large() {
        for (count, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1999, "1.9 kB"),
            (9_999, "9.9 kB"),
            (10_000, "10 kB"),
            (999_999, "999 kB"),
            (1_000_000, "1.0 MB"),
            (340_000_000, "340 MB"),
            (1_234_567_890, "1.2 GB"),
            (u64::MAX, "18 EB"),
        ] {
            assert_eq!(bytes(count), shown, "{count}");
        }
    }
}
