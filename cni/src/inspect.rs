//! Commands for people who inspect a node: `edge-cni leases`, `edge-cni segments` and `edge-cni
//! check`.

use std::ffi::OsString;
use std::path::PathBuf;

use edge_types::shared_files::SegmentsSource;
use serde_json::{Value, json};

use crate::error::{Code, Error, Result};
use crate::ipam::{LockedLeases, StateDir};
use crate::sort::sort_by;
use crate::{config_file, segment, status};

/// The arguments of these commands.
struct Arguments {
    json: bool,
    /// The file with the network configuration: a list, or the configuration of one plugin.
    file: PathBuf,
}

/// Lists the leases, sorted by container. With `--json`, prints an array.
pub(crate) fn leases(arguments: &[OsString]) -> Result<String> {
    let arguments = parse(arguments)?;
    let leases = open_leases(&arguments)?;
    let mut leases: Vec<_> = match &leases {
        Some(leases) => leases.all()?.collect(),
        None => Vec::new(),
    };
    sort_by(&mut leases, |(one, _), (other, _)| one < other);
    let leases: Vec<Value> = leases
        .into_iter()
        .map(|(attachment, lease)| {
            json!({
                "addresses": lease.addresses,
                "pod": lease.pod,
                "network": lease.network,
                "container": attachment.container,
                "interface": attachment.ifname,
            })
        })
        .collect();
    Ok(print(arguments.json, &["addresses", "pod", "network", "container", "interface"], leases))
}

/// Lists the segments, with the numbers of leased and free addresses of each, and the program that
/// provided them. With `--json`, prints an array.
pub(crate) fn segments(arguments: &[OsString]) -> Result<String> {
    let arguments = parse(arguments)?;
    let config = config_file::read(&arguments.file)?;
    let leases = open_leases(&arguments)?;
    let mut rows = Vec::new();
    if let Some(file) = StateDir::written_segments(&config)? {
        let source = match file.source {
            SegmentsSource::Agent => "agent",
            SegmentsSource::Configuration => "configuration",
        };
        for segment in &file.segments {
            let stock = match &leases {
                Some(leases) => leases.stock(&[*segment])?.first().copied(),
                None => None,
            };
            let (leased, free) =
                stock.map_or_else(|| (0, config.reserved.capacity(segment)), |stock| (stock.leased, stock.free));
            rows.push(json!({
                "segment": segment,
                "gateway": segment::gateway(segment),
                "leased": leased,
                "free": free,
                "source": source,
            }));
        }
    }
    Ok(print(arguments.json, &["segment", "gateway", "leased", "free", "source"], rows))
}

/// Describes each problem that prevents the node from attaching pods, with its solution. The
/// boolean is `true` if the next ADD is not certain to fail and no setting bypasses the guard. With
/// `--json`, prints an object.
pub(crate) fn check(arguments: &[OsString]) -> Result<(String, bool)> {
    let arguments = parse(arguments)?;
    let found = status::findings(&config_file::read(&arguments.file)?);
    let failures: Vec<&str> = found.failures.iter().map(|error| error.message.as_str()).collect();
    let good = failures.is_empty();
    if arguments.json {
        return Ok((format!("{}\n", json!({ "failures": failures, "obstacles": found.obstacles })), good));
    }
    let mut text = String::new();
    failures.iter().for_each(|message| text.push_str(&format!("failure: {message}\n")));
    found.obstacles.iter().for_each(|message| text.push_str(&format!("obstacle: {message}\n")));
    text.push_str(if good { "pods can be attached\n" } else { "no pod can be attached, or the guard is off\n" });
    Ok((text, good))
}

fn parse(arguments: &[OsString]) -> Result<Arguments> {
    let (mut json, mut file) = (false, None);
    for argument in arguments {
        match argument.to_str() {
            Some("--json") => json = true,
            Some(option) if option.starts_with('-') => {
                return Err(Error::new(
                    Code::InvalidEnvironment,
                    format!("the option {option} is not understood; see `edge-cni --help`"),
                ));
            }
            _ if file.is_none() => file = Some(PathBuf::from(argument)),
            _ => {
                return Err(Error::new(
                    Code::InvalidEnvironment,
                    format!("{argument:?} is one file too many; see `edge-cni --help`"),
                ));
            }
        }
    }
    Ok(Arguments { json, file: file.unwrap_or_else(|| config_file::DEFAULT_CONFLIST.into()) })
}

/// Opens the leases of this configuration. `None` if there is no journal yet.
fn open_leases(arguments: &Arguments) -> Result<Option<LockedLeases>> {
    StateDir::existing(&config_file::read(&arguments.file)?).map(|state_dir| state_dir.lock()).transpose()
}

/// Formats the rows as JSON, or as a table with these columns.
fn print(json: bool, columns: &[&str], rows: Vec<Value>) -> String {
    if json {
        return format!("{}\n", Value::Array(rows));
    }
    let cell = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    };
    let mut table = vec![columns.iter().map(|column| column.to_uppercase()).collect::<Vec<String>>()];
    table.extend(rows.iter().map(|row| columns.iter().map(|column| cell(&row[*column])).collect()));
    let width = |index: usize| table.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns.len()).filter_map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    table.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![json!({"a": ["x", "y"], "b": null}), json!({"a": 7, "b": "long"})];
        assert_eq!(print(false, &["a", "b"], rows.clone()), "A    B\nx,y  -\n7    long\n");
        assert_eq!(print(true, &["a", "b"], rows), "[{\"a\":[\"x\",\"y\"],\"b\":null},{\"a\":7,\"b\":\"long\"}]\n");
    }

    #[test]
    fn one_file_and_one_option_are_understood() {
        let arguments = |texts: &[&str]| parse(&texts.iter().map(OsString::from).collect::<Vec<_>>());
        let parsed = arguments(&["list.conflist", "--json"]).unwrap();
        assert!(parsed.json && parsed.file.ends_with("list.conflist"));
        for wrong in [&["--yaml"][..], &["a", "b"]] {
            assert!(arguments(wrong).is_err(), "{wrong:?}");
        }
    }
}
