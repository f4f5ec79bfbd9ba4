//! Parses charon's list of SAs.

use anyhow::Result;

use super::vici::Section;

/// An IKE SA in charon's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IkeSa {
    /// The connection's name.
    pub name: String,
    /// The number that charon gives to the IKE SA.
    pub unique_id: u64,
    /// State: `ESTABLISHED`, `CONNECTING`, ...
    pub state: String,
    /// The peer's authenticated identity.
    pub remote_id: String,
    /// Initiator's and responder's SPI, hexadecimal.
    pub spis: (String, String),
    /// The encryption of IKE and the key exchange method.
    pub algorithms: String,
    /// The CHILD_SAs that it negotiated.
    pub children: Vec<ChildSa>,
}

/// A CHILD_SA in charon's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildSa {
    /// The child's name.
    pub name: String,
    /// State: `INSTALLED`, `REKEYED`, `DELETED`, ...
    pub state: String,
    /// SPI of packets that charon receives.
    pub spi_in: u32,
    /// SPI of packets that charon sends.
    pub spi_out: u32,
    /// Whether ESP travels in UDP.
    pub encap: bool,
    /// Number of packets through the inbound SA.
    pub packets_in: u64,
    /// Number of packets through the outbound SA.
    pub packets_out: u64,
    /// Negotiated traffic selectors of charon's side.
    pub local_ts: Vec<String>,
    /// Negotiated traffic selectors of the peer's side.
    pub remote_ts: Vec<String>,
    /// Encryption and key size.
    pub algorithm: String,
}

/// Parses what `swanctl --list-sas --pretty` prints.
pub(super) fn parse(text: &str) -> Result<Vec<IkeSa>> {
    let top = Section::parse(text)?;
    let mut sas = Vec::new();
    for event in top.sections.values() {
        for (name, sa) in &event.sections {
            let children = sa.sections.get("child-sas");
            sas.push(IkeSa {
                name: name.clone(),
                unique_id: sa.number("uniqueid")?,
                state: sa.value("state")?.to_owned(),
                remote_id: sa.value("remote-id").unwrap_or_default().to_owned(),
                spis: (sa.value("initiator-spi")?.to_owned(), sa.value("responder-spi").unwrap_or_default().to_owned()),
                algorithms: ["encr-alg", "encr-keysize", "prf-alg", "dh-group"]
                    .iter()
                    .filter_map(|key| sa.value(key).ok())
                    .collect::<Vec<_>>()
                    .join(" "),
                children: children
                    .map(|children| children.sections.values().map(child).collect::<Result<_>>())
                    .transpose()?
                    .unwrap_or_default(),
            });
        }
    }
    Ok(sas)
}

fn child(child: &Section) -> Result<ChildSa> {
    let spi = |key| -> Result<u32> { Ok(u32::from_str_radix(child.value(key).unwrap_or("0"), 16)?) };
    Ok(ChildSa {
        name: child.value("name")?.to_owned(),
        state: child.value("state")?.to_owned(),
        spi_in: spi("spi-in")?,
        spi_out: spi("spi-out")?,
        encap: child.value("encap").is_ok_and(|value| value == "yes"),
        packets_in: child.number("packets-in").unwrap_or(0),
        packets_out: child.number("packets-out").unwrap_or(0),
        local_ts: child.list("local-ts"),
        remote_ts: child.list("remote-ts"),
        algorithm: ["encr-alg", "encr-keysize"]
            .iter()
            .filter_map(|key| child.value(key).ok())
            .collect::<Vec<_>>()
            .join(" "),
    })
}
