//! Parses what `whack --showstates` prints: one line for each IKE SA, two for each CHILD_SA.

use anyhow::{Context as _, Result};

/// The SAs that pluto has established.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct States {
    /// pluto's numbers of the IKE SAs.
    pub(super) ike: Vec<u64>,
    pub(super) children: Vec<ChildSa>,
}

/// A CHILD_SA in pluto's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildSa {
    /// The number that pluto gives to the CHILD_SA.
    pub serial: u64,
    /// The connection's name, with the pair of subnets if there are several (`edge/1x2`).
    pub connection: String,
    /// SPI of packets that pluto's host receives.
    pub spi_in: u32,
    /// SPI of packets that pluto's host sends.
    pub spi_out: u32,
}

impl States {
    /// Parses the output. Leaves out SAs that are not established.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut states = Self::default();
        let mut established = Vec::new();
        for line in text.lines() {
            let Some((serial, connection, rest)) = split(line) else { continue };
            if rest.contains("STATE_V2_ESTABLISHED_IKE_SA") {
                states.ike.push(serial);
            } else if rest.contains("STATE_V2_ESTABLISHED_CHILD_SA") {
                established.push(serial);
            } else if rest.contains("esp.") && established.contains(&serial) {
                // The peer's SPI is first, each with the address to which its packets go.
                let spis: Vec<u32> = rest
                    .split_whitespace()
                    .filter_map(|word| word.strip_prefix("esp.")?.split('@').next())
                    .map(|hex| u32::from_str_radix(hex, 16).with_context(|| format!("an SPI in {line:?}")))
                    .collect::<Result<_>>()?;
                let [spi_out, spi_in] = spis[..] else {
                    anyhow::bail!("not the SPIs of a CHILD_SA: {line:?}");
                };
                states.children.push(ChildSa { serial, connection: connection.to_owned(), spi_in, spi_out });
            }
        }
        Ok(states)
    }
}

/// Splits a line such as `000 #2: "edge/1x1"[1] 192.0.2.1:4500 ...` into number, name and the rest.
fn split(line: &str) -> Option<(u64, &str, &str)> {
    let (serial, rest) = line.split_once('#')?.1.split_once(": \"")?;
    let (connection, rest) = rest.split_once('"')?;
    Some((serial.parse().ok()?, connection, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn established_sas_are_told_from_those_that_begin_and_the_peers_spi_is_first() {
        let text = "\
000 #6: \"edge/1x2\":4500 STATE_V2_ESTABLISHED_IKE_SA (established IKE SA); REKEY in 28000s; newest; idle;
000 #7: \"edge/1x2\":4500 STATE_V2_ESTABLISHED_CHILD_SA (established Child SA); newest; eroute owner; IKE SA #6; idle;
000 #7: \"edge/1x2\" esp.c3ad968e@203.0.113.1 esp.abd3d06@203.0.113.10 tun.0@203.0.113.1 tun.0@203.0.113.10 Traffic: ESPin=0B
000 #8: \"edge/1x2\":4500 STATE_V2_REKEY_CHILD_I1 (sent Child Rekey request); RETRANSMIT in 0.5s; idle;
000 #8: \"edge/1x2\" esp.0@203.0.113.1 esp.99@203.0.113.10
000 #9: \"edge/2x2\"[1] 192.0.2.1 STATE_V2_PARENT_I1 (sent IKE_SA_INIT request); idle;
000
";
        let child = ChildSa { serial: 7, connection: "edge/1x2".to_owned(), spi_in: 0x0abd_3d06, spi_out: 0xc3ad_968e };
        assert_eq!(States::parse(text).unwrap(), States { ike: vec![6], children: vec![child] });
        let broken = text.replace("esp.c3ad968e", "esp.what");
        assert!(States::parse(&broken).unwrap_err().to_string().contains("esp.what"));
    }
}
