//! Captures what a test of `ike` compares its keys with: the messages of IKE SAs between two
//! charons, and the secrets and keys that charon logs at its highest level.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use data_encoding::{HEXLOWER, HEXUPPER};

use crate::scenario::{Lab, Needs, Scenario};
use crate::strongswan::Charon;
use crate::strongswan::charon::{Auth, Connection};
use crate::topology::NetworkPlan;
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "lab/charon-key-schedule",
    about: "writes the messages and keys of two charons, for each suite, as ike/tests/charon has them",
    deadline: Duration::from_secs(300),
    by_default: false,
    needs: Needs::Nothing,
    run: capture,
}];

const SECRET: &str = "correct horse battery";

const GROUPS: [&str; 7] = ["x25519", "ecp256", "ecp384", "ecp521", "modp2048", "modp3072", "modp4096"];

/// charon's names for what it logs, and the names in the files.
const NAMES: [(&str, &str); 14] = [
    ("shared Diffie Hellman secret", "shared"),
    ("DH secret", "shared"),
    ("SKEYSEED", "SKEYSEED"),
    ("Sk_d secret", "SK_d"),
    ("Sk_ai secret", "SK_ai"),
    ("Sk_ar secret", "SK_ar"),
    ("Sk_ei secret", "SK_ei"),
    ("Sk_er secret", "SK_er"),
    ("Sk_pi secret", "SK_pi"),
    ("Sk_pr secret", "SK_pr"),
    ("encryption initiator key", "encryption-initiator"),
    ("integrity initiator key", "integrity-initiator"),
    ("encryption responder key", "encryption-responder"),
    ("integrity responder key", "integrity-responder"),
];

/// Returns the IKE and ESP proposals: each AEAD with each PRF, and AES-CBC with each key length and
/// integrity algorithm, among them each PRF.
fn suites() -> Vec<(String, String)> {
    let hashes = ["256", "384", "512"];
    let mut ciphers = Vec::new();
    for aead in ["aes128gcm16", "aes256gcm16", "chacha20poly1305"] {
        ciphers.extend(hashes.map(|prf| (aead.to_owned(), prf)));
    }
    for (row, key) in ["128", "192", "256"].into_iter().enumerate() {
        for (column, hash) in hashes.into_iter().enumerate() {
            ciphers.push((format!("aes{key}-sha{hash}"), hashes[(row + column) % 3]));
        }
    }
    let with_group = |(index, (cipher, prf)): (usize, (String, &str))| {
        let (ike, esp) = (GROUPS[index % 7], GROUPS[(index + 3) % 7]);
        (format!("{cipher}-prfsha{prf}-{ike}"), format!("{cipher}-{esp}"))
    };
    ciphers.into_iter().enumerate().map(with_group).collect()
}

fn capture(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("sun").on("wire", &["192.0.2.1/24"]);
    plan.host("moon").on("wire", &["192.0.2.2/24"]);
    let net = lab.build(&plan)?;
    let [sun, moon] = ["sun", "moon"].map(|name| net.node(name));
    let ends = [("192.0.2.1", "sun.example", "10.1.0.0/24"), ("192.0.2.2", "moon.example", "10.2.0.0/24")];
    let connection = |[ours, theirs]: [(&str, &str, &str); 2], (ike, esp): &(String, String)| {
        let between = Connection::new("peer", Auth::Psk(SECRET.to_owned()))
            .local(ours.0, ours.1, ours.2)
            .remote(theirs.0, theirs.1, theirs.2)
            .proposals(ike, esp);
        Connection { more: "mobike = no".to_owned(), ..between }
    };
    let suites = suites();
    let first = suites.first().context("there are suites")?;
    let mut sun = Charon::start_with_key_log(sun, &connection(ends, first))?;
    let mut moon = Charon::start_with_key_log(moon, &connection([ends[1], ends[0]], first))?;
    for suite in &suites {
        sun.load(&connection(ends, suite))?;
        moon.load(&connection([ends[1], ends[0]], suite))?;
        let begin = [&mut sun, &mut moon].map(|charon| charon.process().log().len());
        sun.initiate()?;
        sun.rekey_child()?;
        sun.rekey_ike()?;
        sun.rekey_child()?;
        let logs = [&mut sun, &mut moon].map(|charon| charon.process().log());
        let [ours, theirs] = [0, 1].map(|end| logs[end].get(begin[end]..).unwrap_or_default());
        std::fs::write(lab.out().join(format!("{}.txt", suite.0)), file(ours, theirs)?)?;
        sun.terminate()?;
        wait::for_event("moon to have no SA", || {
            ensure!(moon.sas()?.is_empty(), "it still has one");
            Ok(())
        })?;
        lab.step(&format!("captured {} and {}", suite.0, suite.1));
    }
    Ok(())
}

/// Makes the text of a file from the logs of the initiator and the responder.
fn file(initiator: &str, responder: &str) -> Result<String> {
    let requests = dumps(responder)?.into_iter().filter(|(what, _)| what == "received packet");
    let mut requests: Vec<Vec<u8>> = requests.map(|(_, octets)| message(octets)).collect();
    // A request that was sent again has the same octets.
    requests.dedup();
    let mut requests = requests.into_iter();
    let mut exchanges: Vec<Vec<(&str, Vec<u8>)>> = Vec::new();
    let mut last = Vec::new();
    for (what, octets) in dumps(initiator)? {
        if what == "received packet" {
            let response = message(octets);
            if response != last {
                let request = requests.next().context("moon has received fewer requests than sun has responses")?;
                exchanges.push(vec![("request", request), ("response", response.clone())]);
                last = response;
            }
        } else if let Some((_, name)) = NAMES.iter().find(|(known, _)| *known == what)
            && let Some(exchange) = exchanges.last_mut()
        {
            exchange.push((name, octets));
        }
    }
    // Deletions make no keys.
    exchanges.retain(|exchange| exchange.len() > 2);
    let lens: Vec<usize> = exchanges.iter().map(Vec::len).collect();
    ensure!(matches!(lens[..], [9, 4, 5, 9, 5] | [11, 6, 7, 11, 7]), "the log lacks something: {lens:?}");
    let mut text =
        "# charon 5.9.8 (strongSwan) with another one: messages, and what its log shows with ike = 4 and chd = 4\n"
            .to_owned();
    writeln!(text, "psk {}", HEXLOWER.encode(SECRET.as_bytes()))?;
    for exchange in exchanges {
        writeln!(text)?;
        for (name, octets) in exchange {
            writeln!(text, "{name} {}", HEXLOWER.encode(&octets))?;
        }
    }
    Ok(text)
}

/// Removes the non-ESP marker of port 4500.
fn message(mut datagram: Vec<u8>) -> Vec<u8> {
    if datagram.starts_with(&[0; 4]) {
        datagram.drain(..4);
    }
    datagram
}

/// Returns what the log dumps in hexadecimal, with charon's names.
fn dumps(log: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let (mut dumps, mut lens) = (Vec::new(), Vec::new());
    let mut open = false;
    for line in log.lines() {
        // Each line begins with the number of the thread and the group, as in `07[IKE] `.
        let Some((_, said)) = line.split_once("] ") else { continue };
        if let Some((what, size)) = said.split_once(" => ")
            && let Some((size, _)) = size.split_once(" bytes @ ")
        {
            dumps.push((what.to_owned(), Vec::new()));
            lens.push(size.parse::<usize>()?);
            open = true;
        } else if let Some((_, octets)) = dumps.last_mut()
            && open
            && let Some((offset, row)) = said.trim_start().split_once(": ")
            && offset.parse() == Ok(octets.len())
        {
            let hex: String = row.chars().take(16 * 3).filter(|digit| *digit != ' ').collect();
            octets.extend(HEXUPPER.decode(hex.as_bytes()).with_context(|| format!("in {line:?}"))?);
        } else {
            open = false;
        }
    }
    for ((what, octets), size) in dumps.iter().zip(lens) {
        ensure!(octets.len() == size, "{what} has {} of {size} octets", octets.len());
    }
    Ok(dumps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_are_read_from_the_lines_of_a_log() {
        let log = "\
07[IKE] SKEYSEED => 18 bytes @ 0x7fcc5c00ae70
07[IKE]    0: 40 F2 0A 41 80 B2 22 01 65 10 FF EF A3 82 7B 33  @..A..\".e.....{3
07[IKE]   16: CB 3A                                            .:
07[IKE] natd_hash => 1 bytes @ 0x7fcc5c00ae70
07[IKE]    0: 99                                               .
02[NET] received packet: from 192.0.2.2[500] to 192.0.2.1[500]
02[NET]    1: 42                                               B
";
        let mut seed = HEXUPPER.decode(b"40F20A4180B222016510FFEFA3827B33").unwrap();
        seed.extend([0xcb, 0x3a]);
        assert_eq!(dumps(log).unwrap(), [("SKEYSEED".to_owned(), seed), ("natd_hash".to_owned(), vec![0x99])]);
        let cut: String = log.lines().take(2).map(|line| format!("{line}\n")).collect();
        assert!(dumps(&cut).unwrap_err().to_string().contains("16 of 18"));
    }

    #[test]
    fn every_prf_integrity_algorithm_and_group_is_in_a_suite() {
        let suites = suites();
        let name = |(ike, _): &(String, String)| ike.clone();
        let names: std::collections::BTreeSet<String> = suites.iter().map(name).collect();
        assert_eq!(names.len(), 18);
        for group in GROUPS {
            assert!(suites.iter().any(|(ike, _)| ike.ends_with(group)));
            assert!(suites.iter().any(|(_, esp)| esp.ends_with(group)));
        }
    }
}
