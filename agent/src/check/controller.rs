//! Checks `[controller]`: controller URLs, join credential, and this node's certificate.

use x509_parser::parse_x509_certificate;

use super::report::{Level, RenewedBy, Report, validity};
use crate::config::Config;
use crate::controller_client::{self, ControllerError};

const SECTION: &str = "[controller]";

/// Returns section and text of each URL that only earlier releases accepted.
pub(super) fn deprecated(config: &Config) -> impl Iterator<Item = (String, String)> {
    let urls = config.controller.iter().flat_map(|controller| &controller.urls);
    urls.filter_map(|url| Some((SECTION.to_owned(), text(&controller_client::check_url(url).err()?))))
}

/// Returns the error's text without the section, which the finding names anyway.
fn text(error: &ControllerError) -> String {
    let text = error.to_string();
    text.strip_prefix(&format!("{SECTION}: ")).map_or_else(|| text.clone(), str::to_owned)
}

pub(super) fn check(config: &Config, now: i64, report: &mut Report) {
    let Some(controller) = &config.controller else { return };
    for url in &controller.urls {
        match controller_client::check_url(url) {
            Ok(()) => report.add(Level::Ok, SECTION, format!("controller at {url}")),
            Err(problem) => report.add(Level::Error, SECTION, text(&problem)),
        }
    }
    match controller_client::certificate_on_disk(&config.state_dir) {
        Ok(Some((node, der))) => {
            if let Some(name) = config.name.as_ref().filter(|name| **name != node) {
                report.add(
                    Level::Error,
                    SECTION,
                    format!(
                        "the certificate in {} is for {node}, the configuration says {name}",
                        config.state_dir.display()
                    ),
                );
            }
            if let Ok((_, certificate)) = parse_x509_certificate(&der) {
                validity(report, SECTION, &format!("the certificate of {node}"), &certificate, now, RenewedBy::Agent);
            }
        }
        Ok(None) => match controller_client::check_join_credential(config) {
            Ok(what) => report.add(Level::Ok, SECTION, what),
            Err(problem) => report.add(Level::Error, SECTION, text(&problem)),
        },
        Err(problem) => report.add(Level::Error, SECTION, text(&problem)),
    }
}
