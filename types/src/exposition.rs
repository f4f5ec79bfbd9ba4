//! The text formats of `/metrics`: OpenMetrics 1.0, which our programs generate, and the older text
//! format of Prometheus (0.0.4), which `promtool check metrics` and many scrapers read.

/// A text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format of Prometheus, version 0.0.4.
    Prometheus,
}

impl Exposition {
    /// Chooses the format for a request with this `Accept` header (RFC 9110 section 12.5.1). The
    /// result is OpenMetrics if the header names it and does not prefer text. Otherwise the result
    /// is the text format, which every scraper reads.
    #[must_use]
    pub fn accepted(accept: Option<&str>) -> Self {
        let (mut open_metrics, mut text) = (0, 0);
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut weight, mut version) = (1000, None);
            for (key, value) in parts.filter_map(|part| part.split_once('=')) {
                match key.trim().to_ascii_lowercase().as_str() {
                    "q" => weight = thousandths(value.trim()),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            match media_type.as_str() {
                "application/openmetrics-text" if version.is_none_or(|version| version == "1.0.0") => {
                    open_metrics = open_metrics.max(weight);
                }
                "text/plain" if version.is_none_or(|version| version == "0.0.4") => text = text.max(weight),
                _ => {}
            }
        }
        if open_metrics > 0 && open_metrics >= text { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Returns the format's media type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Writes metrics in this format. The input is OpenMetrics text without exemplars and
    /// timestamps.
    #[must_use]
    pub fn write(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Prometheus => prometheus(&open_metrics),
        }
    }
}

/// Reads a weight (RFC 9110 section 12.4.2) in thousandths. A malformed weight counts as 0.
fn thousandths(weight: &str) -> u32 {
    match weight.parse::<f32>() {
        // The range was checked, so the conversion cannot overflow, and it is exact enough.
        Ok(weight) if (0.0..=1.0).contains(&weight) => (weight * 1000.0) as u32,
        _ => 0,
    }
}

fn prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // The HELP line of the metric family whose TYPE line comes next.
    let mut help = None;
    for line in open_metrics.lines() {
        let Some(metadata) = line.strip_prefix("# ") else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let mut words = metadata.splitn(3, ' ');
        let (what, name, rest) = (words.next(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match what {
            Some("HELP") => help = Some(rest),
            Some("TYPE") => {
                // In this format the TYPE and HELP lines contain the name of the samples.
                let (name, kind) = match rest {
                    "counter" => (format!("{name}_total"), "counter"),
                    "info" => (format!("{name}_info"), "gauge"),
                    "unknown" => (name.to_owned(), "untyped"),
                    kind => (name.to_owned(), kind),
                };
                if let Some(help) = help.take() {
                    text.push_str(&format!("# HELP {name} {help}\n"));
                }
                text.push_str(&format!("# TYPE {name} {kind}\n"));
            }
            // UNIT and EOF exist only in OpenMetrics.
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_those_that_ask_for_it() {
        let scraper = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                       application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3";
        for accept in [scraper, "application/openmetrics-text", "Application/OpenMetrics-Text; version=\"1.0.0\""] {
            assert_eq!(Exposition::accepted(Some(accept)), Exposition::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.2,text/plain;q=0.3",
            "application/openmetrics-text;q=-1",
            "application/openmetrics-text;q=NaN",
            "application/openmetrics-text;q=",
            ";;,;=;q,=",
        ] {
            assert_eq!(Exposition::accepted(Some(accept)), Exposition::Prometheus, "{accept}");
        }
        assert_eq!(Exposition::accepted(None), Exposition::Prometheus);
    }

    #[test]
    fn in_the_older_format_metadata_names_the_samples_and_nothing_of_open_metrics_is_left() {
        let open_metrics = "# HELP a_requests All.\n# TYPE a_requests counter\na_requests_total{x=\"# HELP\"} 1\n\
                            # HELP a_build Release.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
                            # HELP a_end_seconds End.\n# TYPE a_end_seconds gauge\n# UNIT a_end_seconds seconds\na_end_seconds 2\n\
                            # HELP a_odd Odd.\n# TYPE a_odd unknown\na_odd 3\n# EOF\n";
        let text = "# HELP a_requests_total All.\n# TYPE a_requests_total counter\na_requests_total{x=\"# HELP\"} 1\n\
                    # HELP a_build_info Release.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
                    # HELP a_end_seconds End.\n# TYPE a_end_seconds gauge\na_end_seconds 2\n\
                    # HELP a_odd Odd.\n# TYPE a_odd untyped\na_odd 3\n";
        assert_eq!(Exposition::Prometheus.write(open_metrics.to_owned()), text);
        assert_eq!(Exposition::OpenMetrics.write(open_metrics.to_owned()), open_metrics);
    }
}
