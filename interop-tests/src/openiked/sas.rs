//! Parses what `ikectl show sa` prints: a line for each IKE SA, then one for each SPI of its
//! CHILD_SAs.

use anyhow::{Context as _, Result, ensure};

/// The established SAs of iked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sas {
    /// The initiators' SPIs of the IKE SAs, hexadecimal, as iked writes them.
    pub ike: Vec<String>,
    /// SPIs of packets that iked's host receives.
    pub spis_in: Vec<u32>,
    /// SPIs of packets that iked's host sends.
    pub spis_out: Vec<u32>,
}

impl Sas {
    /// Parses the output. Leaves out IKE SAs that are not established, with their CHILD_SAs.
    ///
    /// # Errors
    /// Returns an error if a line of an SA has another form.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut sas = Self::default();
        let mut established = false;
        for line in text.lines().map(str::trim) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.first() {
                // iked_sas: ADDRESS rspi 0x... ispi 0x... LOCAL->PEER<ID>[] STATE i ...
                Some(&"iked_sas:") => {
                    established = words.contains(&"ESTABLISHED");
                    let spi = words.iter().skip_while(|word| **word != "ispi").nth(1);
                    let spi = spi.with_context(|| format!("an IKE SA without SPI: {line:?}"))?;
                    sas.ike.extend(Some((*spi).to_owned()).filter(|_| established));
                }
                // sa_childsas: ADDRESS ESP 0x... in|out PEER -> LOCAL (FLAGS) ...
                Some(&"sa_childsas:") if established => {
                    let [_, _, protocol, spi, direction, ..] = words[..] else {
                        anyhow::bail!("not an SPI of a CHILD_SA: {line:?}");
                    };
                    ensure!(protocol == "ESP", "a CHILD_SA of another protocol: {line:?}");
                    let hex = spi.strip_prefix("0x").with_context(|| format!("an SPI in {line:?}"))?;
                    let spi = u32::from_str_radix(hex, 16).with_context(|| format!("an SPI in {line:?}"))?;
                    match direction {
                        "in" => sas.spis_in.push(spi),
                        "out" => sas.spis_out.push(spi),
                        other => anyhow::bail!("a CHILD_SA in the direction {other:?}"),
                    }
                }
                _ => {}
            }
        }
        Ok(sas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What iked 7.2 prints about an IKE SA with a CHILD_SA, without the lines that repeat it.
    const ONE: &str = "\
iked_sas: 0x5500000e0b80 rspi 0x67a0ca26eb2a5187 ispi 0x13edbbfeefe637d0 203.0.113.10:500->203.0.113.1:500<FQDN/edge.example>[] ESTABLISHED i nexti (nil) pol 0x5500000e20d0
  sa_childsas: 0x5500000fa880 ESP 0xccf3ce4b out 203.0.113.10:500 -> 203.0.113.1:500 (L) B=(nil) P=0x5500000fa930 @0x5500000e0b80
  sa_childsas: 0x5500000fa930 ESP 0x5b5a2501 in 203.0.113.1:500 -> 203.0.113.10:500 (LA) B=(nil) P=0x5500000fa880 @0x5500000e0b80
  sa_flows: 0x5500000fa640 ESP out 10.1.0.0/24 -> 10.2.0.0/24 [0]@-1 (L) @0x5500000e0b80
iked_activesas: 0x5500000fa930 ESP 0x5b5a2501 in 203.0.113.1:500 -> 203.0.113.10:500 (LA) B=(nil) P=0x5500000fa880 @0x5500000e0b80
";

    #[test]
    fn an_sa_is_read_with_both_spis_and_counts_once() {
        let sas = Sas::parse(ONE).unwrap();
        assert_eq!(sas.ike, ["0x13edbbfeefe637d0"]);
        assert_eq!((sas.spis_in, sas.spis_out), (vec![0x5b5a_2501], vec![0xccf3_ce4b]));
    }

    #[test]
    fn what_is_not_established_does_not_count() {
        assert_eq!(Sas::parse(&ONE.replace("ESTABLISHED", "CLOSING")).unwrap(), Sas::default());
        assert_eq!(Sas::parse("").unwrap(), Sas::default());
    }

    #[test]
    fn another_form_is_an_error() {
        Sas::parse(&ONE.replace(" in ", " sideways ")).unwrap_err();
        Sas::parse(&ONE.replace("0x5b5a2501 in", "5b5a2501 in")).unwrap_err();
    }
}
