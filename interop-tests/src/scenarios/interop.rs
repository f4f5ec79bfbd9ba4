//! The table of what edge-agent shows against the IKE daemons of other projects: which scenario
//! runs it, with which daemon, and which end initiates.

use std::fmt::Write as _;

use comfy_table::Table;
use comfy_table::presets::NOTHING;

use crate::scenario::{Outcome, TestResult};

/// Headings of the columns with scenarios. The second heading of each pair is for edge-agent as
/// responder.
const COLUMNS: [&str; 4] = ["to charon", "from charon", "to pluto", "from pluto"];

/// A row: what is shown, and the scenarios of the four columns. If there is none, the reason.
struct Row {
    what: &'static str,
    scenarios: [Cell; 4],
}

/// A cell of the table.
#[derive(Clone, Copy)]
enum Cell {
    /// A scenario's name without its area.
    Scenario(&'static str),
    /// Why there is no scenario.
    None(&'static str),
}

use Cell::{None as No, Scenario as In};

const ROWS: &[Row] = &[
    row("pre-shared key, NAT", [In("psk-initiator"), In("psk-responder"), In("psk-initiator"), In("psk-responder")]),
    row(
        "pre-shared key as `0x` and `0s`",
        [In("identities-initiator"), In("identities-responder"), In("variants-initiator"), In("variants-responder")],
    ),
    row(
        "certificates: Ed25519",
        [In("cert-initiator"), In("cert-responder"), No("not in libreswan"), No("not in libreswan")],
    ),
    row(
        "certificates: P-256",
        [In("cert-initiator"), In("cert-responder"), In("certificates-initiator"), In("certificates-responder")],
    ),
    row(
        "certificates: RSA",
        [In("rsa-initiator"), In("rsa-responder"), In("certificates-initiator"), In("certificates-responder")],
    ),
    row(
        "identities: distinguished names",
        [
            In("distinguished-name-initiator"),
            In("distinguished-name-responder"),
            In("certificates-initiator"),
            In("certificates-responder"),
        ],
    ),
    row(
        "identities: address, user@domain, key ID",
        [In("identities-initiator"), In("identities-responder"), In("variants-initiator"), In("variants-responder")],
    ),
    row(
        "neither end has proposals configured",
        [
            In("default-proposals-initiator"),
            In("default-proposals-responder"),
            In("psk-initiator"),
            In("psk-responder"),
        ],
    ),
    row(
        "aes256-sha256-modp2048",
        [
            In("aes256-sha256-modp2048-initiator"),
            In("aes256-sha256-modp2048-responder"),
            In("variants-initiator"),
            In("variants-responder"),
        ],
    ),
    row(
        "P-384, P-521, MODP-3072, MODP-4096, AES-CBC with SHA-384 and SHA-512",
        [In("algorithms-initiator"), In("algorithms-responder"), In("variants-initiator"), In("variants-responder")],
    ),
    row(
        "extended sequence numbers",
        [In("algorithms-initiator"), In("algorithms-responder"), In("variants-initiator"), In("variants-responder")],
    ),
    row(
        "rekeys of CHILD_SA and IKE SA by each end, with pings",
        [In("psk-initiator"), In("psk-responder"), In("psk-initiator"), In("psk-responder")],
    ),
    row(
        "several CHILD_SAs",
        [In("children-initiator"), In("children-responder"), In("subnets-initiator"), In("subnets-responder")],
    ),
    row(
        "selectors of one protocol and port",
        [In("selectors-initiator"), In("selectors-responder"), In("selectors-initiator"), In("selectors-responder")],
    ),
    row(
        "own LAN within the peer's networks",
        [In("own-lan-initiator"), In("own-lan-responder"), In("subnets-initiator"), In("subnets-responder")],
    ),
    row(
        "transport mode",
        [In("transport-initiator"), In("transport-responder"), In("transport-initiator"), In("transport-responder")],
    ),
    row(
        "forward secrecy by different groups",
        [
            In("groups-differ-initiator"),
            In("groups-differ-responder"),
            In("child-lost-initiator"),
            In("child-lost-responder"),
        ],
    ),
    row(
        "the peer deletes only the CHILD_SA",
        [In("childless-initiator"), In("childless-responder"), In("child-lost-initiator"), In("child-lost-responder")],
    ),
    row(
        "start on demand, by a packet of the initiator",
        [In("on-demand-initiator"), In("on-demand-responder"), In("on-demand-initiator"), In("on-demand-responder")],
    ),
    row(
        "MOBIKE",
        [In("mobike-initiator"), In("mobike-responder"), In("client-initiator"), No("pluto returns no COOKIE2")],
    ),
    row(
        "a name instead of an address",
        [In("name-initiator"), In("name-responder"), In("name-initiator"), In("name-responder")],
    ),
    row(
        "the pre-shared key changes while the tunnel is up",
        [
            In("secret-changed-initiator"),
            In("secret-changed-responder"),
            In("secret-changed-initiator"),
            In("secret-changed-responder"),
        ],
    ),
    row(
        "the NAT forgets its mappings",
        [
            In("nat-rebinding-initiator"),
            In("nat-rebinding-responder"),
            In("nat-rebinding-initiator"),
            In("nat-rebinding-responder"),
        ],
    ),
    row(
        "another authentication, make before break",
        [
            In("reauthentication-initiator"),
            In("reauthentication-responder"),
            In("reauthentication-initiator"),
            In("reauthentication-responder"),
        ],
    ),
    row(
        "configuration payload",
        [
            In("configuration-payload-initiator"),
            In("configuration-payload-responder"),
            In("client-initiator"),
            In("client-responder"),
        ],
    ),
    row(
        "childless initiation",
        [In("childless-initiator"), In("childless-responder"), No("not in libreswan"), No("not in libreswan")],
    ),
    row(
        "a certificate is revoked (CRL)",
        [In("revoked-initiator"), In("revoked-responder"), In("revoked-initiator"), In("revoked-responder")],
    ),
    row(
        "IKE fragmentation",
        [
            In("fragmentation-initiator"),
            In("fragmentation-responder"),
            In("fragmentation-initiator"),
            In("fragmentation-responder"),
        ],
    ),
    row(
        "a certificate that we do not trust is refused",
        [In("cert-initiator"), In("cert-responder"), In("refused-initiator"), In("refused-responder")],
    ),
    row(
        "nothing in common is reported",
        [
            In("nothing-in-common-initiator"),
            In("nothing-in-common-responder"),
            In("nothing-in-common-initiator"),
            In("nothing-in-common-responder"),
        ],
    ),
];

const fn row(what: &'static str, scenarios: [Cell; 4]) -> Row {
    Row { what, scenarios }
}

/// Returns the whole name of the scenario in this column.
fn scenario(column: usize, name: &str) -> String {
    let area = if column < 2 { "strongswan" } else { "libreswan" };
    format!("{area}/{name}")
}

/// Returns the table with the results of a run, or `None` if the run had none of its scenarios.
#[must_use]
pub fn summary(outcomes: &[Outcome]) -> Option<String> {
    let result = |name: &str| outcomes.iter().find(|outcome| outcome.scenario == name).map(|outcome| outcome.result);
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["edge-agent initiates to charon and pluto, or they to it"].iter().chain(&COLUMNS));
    let mut any = false;
    for row in ROWS {
        let mut cells = vec![row.what.to_owned()];
        for (column, cell) in row.scenarios.iter().enumerate() {
            cells.push(match *cell {
                No(why) => why.to_owned(),
                In(name) => match result(&scenario(column, name)) {
                    Some(TestResult::Pass) => "pass".to_owned(),
                    Some(TestResult::Fail) => "FAIL".to_owned(),
                    Some(TestResult::Skip) => "skipped".to_owned(),
                    None => "not run".to_owned(),
                },
            });
            any |= matches!(*cell, In(name) if result(&scenario(column, name)).is_some());
        }
        table.add_row(cells);
    }
    any.then(|| table.to_string())
}

/// Returns the table as a document.
#[must_use]
pub fn document() -> String {
    let mut text = "# Interoperability\n\n\
        What the lab shows with `edge-agent` against the IKE daemons of other projects, and which scenario shows it\n\
        ([lab.md](lab.md)): Debian bookworm's charon (strongSwan 5.9.8, scenarios `strongswan/`) and pluto (libreswan 4.10,\n\
        scenarios `libreswan/`). In the columns *to*, `edge-agent` initiates; in the columns *from*, the other end does. `make interop`\n\
        runs them and ends with the same table and their results. With bookworm's iked (OpenIKED 7.2, scenarios `openiked/`) both ends'\n\
        default proposals come up in either direction, by pre-shared key and by certificate (P-256, RSA), with rekeys by each end.\n\n\
        Made from `interop-tests/src/scenarios/interop.rs`: `EDGE_UPDATE=1 cargo test -p interop-tests --lib interop` writes this document,\n\
        and without `EDGE_UPDATE` the test fails if they differ.\n\n"
        .to_owned();
    writeln!(text, "| what | {} |\n|---|---|---|---|---|", COLUMNS.join(" | ")).expect("a String takes all text");
    for row in ROWS {
        let cells = row.scenarios.map(|cell| match cell {
            In(name) => format!("`{name}`"),
            No(why) => why.to_owned(),
        });
        writeln!(text, "| {} | {} |", row.what, cells.join(" | ")).expect("a String takes all text");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Scenarios of other subjects: moves from strongSwan, and variants of rows.
    const OTHERS: [&str; 12] = [
        "strongswan/migrate-psk",
        "strongswan/migrate-certificates",
        "strongswan/mobike-ipv6-",
        "strongswan/transport-ipv6-",
        "strongswan/transport-refused-",
        "strongswan/transport-nat-",
        "strongswan/chacha-p256-ipv6",
        "strongswan/mobike-nat-",
        "strongswan/first-child-refused",
        "strongswan/groups-differ-children",
        "strongswan/agent-restarted-responder",
        "strongswan/refused-sa",
    ];

    #[test]
    fn the_table_names_every_scenario_with_another_projects_daemon_and_no_other() {
        let named: BTreeSet<String> = ROWS
            .iter()
            .flat_map(|row| row.scenarios.iter().enumerate())
            .filter_map(|(column, cell)| match *cell {
                In(name) => Some(scenario(column, name)),
                No(_) => None,
            })
            .collect();
        let all: BTreeSet<String> = super::super::all()
            .iter()
            .map(|scenario| scenario.name.to_owned())
            .filter(|name| name.starts_with("strongswan/") || name.starts_with("libreswan/"))
            .collect();
        let unknown: Vec<_> = named.difference(&all).collect();
        assert!(unknown.is_empty(), "there are no such scenarios: {unknown:?}");
        let left_out: Vec<_> =
            all.difference(&named).filter(|name| !OTHERS.iter().any(|other| name.starts_with(other))).collect();
        assert!(left_out.is_empty(), "the table does not name {left_out:?}");
    }

    #[test]
    fn the_summary_has_the_results_of_a_run_that_had_its_scenarios() {
        let outcome =
            |name: &str, result| Outcome { scenario: name.to_owned(), result, seconds: 1.0, why: String::new() };
        assert!(summary(&[outcome("lab/nodes-are-apart", TestResult::Pass)]).is_none());
        let text = summary(&[
            outcome("strongswan/psk-initiator", TestResult::Pass),
            outcome("libreswan/psk-responder", TestResult::Fail),
            outcome("libreswan/psk-initiator", TestResult::Skip),
        ])
        .unwrap();
        let line = text.lines().find(|line| line.contains("NAT")).unwrap();
        let results: Vec<&str> = line.split("  ").map(str::trim).filter(|word| !word.is_empty()).skip(1).collect();
        assert_eq!(results, ["pass", "not run", "skipped", "FAIL"]);
    }

    #[test]
    fn the_document_has_the_same_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/interop.md");
        if std::env::var_os("EDGE_UPDATE").is_some() {
            std::fs::write(&path, document()).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == document(), "{} is not the table's; EDGE_UPDATE=1 writes it", path.display());
    }
}
