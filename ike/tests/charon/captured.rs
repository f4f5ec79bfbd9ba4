//! Reads the files of this directory. Each has an IKE SA of its own suite between two charons: all
//! messages of the exchanges that made keys, and the secrets and keys that charon's log shows.

use std::path::Path;

/// One IKE SA, with its CHILD_SA, the rekeys of both, and the rekey of the CHILD_SA under the new
/// IKE SA. The initiator of the IKE SA initiates all exchanges.
pub(crate) struct Captured {
    /// The suite, in strongSwan's words.
    pub(crate) name: String,
    pub(crate) psk: Vec<u8>,
    pub(crate) exchanges: Vec<Exchange>,
}

/// An exchange that made keys.
pub(crate) struct Exchange {
    /// Both messages, without the non-ESP marker.
    pub(crate) request: Vec<u8>,
    pub(crate) response: Vec<u8>,
    values: Vec<(String, Vec<u8>)>,
}

impl Exchange {
    /// Returns a secret or key by charon's name for it, or no octets if there is none.
    pub(crate) fn value(&self, name: &str) -> Vec<u8> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()).unwrap_or_default()
    }

    /// Returns the keys of a CHILD_SA: those of packets from the initiator, and those from the
    /// responder.
    pub(crate) fn child_keys(&self) -> [Vec<u8>; 2] {
        ["initiator", "responder"]
            .map(|end| [self.value(&format!("encryption-{end}")), self.value(&format!("integrity-{end}"))].concat())
    }
}

/// Reads all files.
pub(crate) fn all() -> Vec<Captured> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/charon");
    let paths = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|kind| kind == "txt")).map(|path| read(&path)).collect()
}

fn read(path: &Path) -> Captured {
    let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
    let mut captured = Captured { name, psk: Vec::new(), exchanges: Vec::new() };
    let text = std::fs::read_to_string(path).unwrap();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (what, hex) = line.split_once(' ').unwrap();
        let octets = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
        match (what, captured.exchanges.last_mut()) {
            ("psk", _) => captured.psk = octets,
            ("request", _) => {
                captured.exchanges.push(Exchange { request: octets, response: Vec::new(), values: Vec::new() });
            }
            ("response", Some(exchange)) => exchange.response = octets,
            (_, Some(exchange)) => exchange.values.push((what.to_owned(), octets)),
            (_, None) => panic!("{what} stands before the first request in {}", path.display()),
        }
    }
    captured
}
