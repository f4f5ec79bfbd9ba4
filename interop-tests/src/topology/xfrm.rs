//! Reads the kernel's SAs and policies with `ip -s xfrm`, which is independent of the tested
//! programs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use ipnetwork::IpNetwork;

/// An SA in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Source address of the ESP packets.
    pub src: IpAddr,
    /// Destination address of the ESP packets.
    pub dst: IpAddr,
    /// SPI, as on the wire.
    pub spi: u32,
    /// Number by which policies refer to the SA.
    pub reqid: u32,
    /// Mode: `tunnel` or `transport`.
    pub mode: String,
    /// UDP encapsulation: source and destination port.
    pub encap: Option<(u16, u16)>,
    /// Algorithm with its key length, such as `rfc4106(gcm(aes))`.
    pub algorithm: String,
    /// Number of bytes that the SA has processed.
    pub bytes: u64,
    /// Number of packets that the SA has processed.
    pub packets: u64,
}

/// A policy in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Source network of the selector.
    pub src: IpNetwork,
    /// Destination network of the selector.
    pub dst: IpNetwork,
    /// Direction: `in`, `out`, `fwd`, or `socket in`, `socket out`.
    pub dir: String,
    /// Action: `allow` or `block`.
    pub action: String,
    /// Priority. A smaller number has precedence.
    pub priority: u32,
    /// The index by which the kernel identifies the policy.
    pub index: u32,
    /// Reqids of the policy's templates.
    pub reqids: Vec<u32>,
}

impl State {
    /// Parses the output of `ip -s xfrm state`. Leaves out larval states, which are SPIs that were
    /// only reserved.
    ///
    /// # Errors
    /// Returns an error if a field is missing that every state has.
    pub fn parse_all(text: &str) -> Result<Vec<Self>> {
        let mut states = Vec::new();
        for block in blocks(text) {
            if let Some(state) = Self::parse(&block).with_context(|| format!("in this state:\n{block}"))? {
                states.push(state);
            }
        }
        Ok(states)
    }

    fn parse(block: &str) -> Result<Option<Self>> {
        let algorithm = ["aead ", "enc "].iter().find_map(|kind| word_after(block, kind));
        let Some(algorithm) = algorithm else {
            return Ok(None);
        };
        let spi = word_after(block, " spi ").context("no SPI")?;
        let spi = spi.split('(').next().unwrap_or_default();
        let encap = match block.split_once("encap type ") {
            None => None,
            Some((_, rest)) => Some((
                word_after(rest, " sport ").context("no sport")?.parse()?,
                word_after(rest, " dport ").context("no dport")?.parse()?,
            )),
        };
        let (_, current) = block.split_once("lifetime current:").context("no counters")?;
        let (bytes, packets) =
            current.lines().nth(1).and_then(|line| line.trim().split_once("(bytes), ")).context("no counters")?;
        let packets = packets.split('(').next().unwrap_or_default();
        Ok(Some(Self {
            src: word_after(block, "src ").context("no source")?.parse()?,
            dst: word_after(block, " dst ").context("no destination")?.parse()?,
            spi: u32::from_str_radix(spi.trim_start_matches("0x"), 16)?,
            reqid: number_after(block, "reqid ")?,
            mode: word_after(block, "mode ").context("no mode")?.to_owned(),
            encap,
            algorithm: algorithm.to_owned(),
            bytes: bytes.parse()?,
            packets: packets.parse()?,
        }))
    }
}

impl Policy {
    /// Parses the output of `ip -s xfrm policy`.
    ///
    /// # Errors
    /// Returns an error if a field is missing that every policy has.
    pub fn parse_all(text: &str) -> Result<Vec<Self>> {
        blocks(text)
            .iter()
            .map(|block| Self::parse(block).with_context(|| format!("in this policy:\n{block}")))
            .collect()
    }

    fn parse(block: &str) -> Result<Self> {
        let first = block.lines().next().unwrap_or_default();
        let dir = if block.contains("socket in") {
            "socket in"
        } else if block.contains("socket out") {
            "socket out"
        } else {
            word_after(block, "dir ").context("no direction")?
        };
        Ok(Self {
            src: word_after(first, "src ").context("no source")?.parse()?,
            dst: word_after(first, " dst ").context("no destination")?.parse()?,
            dir: dir.to_owned(),
            action: word_after(block, "action ").context("no action")?.to_owned(),
            priority: number_after(block, "priority ")?,
            index: number_after(block, "index ")?,
            reqids: block
                .lines()
                .skip_while(|line| !line.trim_start().starts_with("tmpl "))
                .filter_map(|line| number_after(line, "reqid ").ok())
                .collect(),
        })
    }
}

/// Parses `/proc/net/xfrm_stat`.
pub(super) fn parse_stat(text: &str) -> Result<BTreeMap<String, u64>> {
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some(name), Some(count)) => Ok((name.to_owned(), count.parse()?)),
                _ => bail!("not a counter: {line:?}"),
            }
        })
        .collect()
}

/// Splits the output into entries. The first line of an entry is not indented; its other lines are.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    for line in text.lines() {
        match blocks.last_mut() {
            Some(block) if line.starts_with(char::is_whitespace) => {
                block.push('\n');
                block.push_str(line);
            }
            _ => blocks.push(line.to_owned()),
        }
    }
    blocks
}

fn word_after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split_once(key)?.1.split_whitespace().next()
}

/// Parses a number that may be followed by its hexadecimal form: `7(0x00000007)`.
fn number_after(text: &str, key: &str) -> Result<u32> {
    let word = word_after(text, key).with_context(|| format!("no {key}"))?;
    let digits = word.split('(').next().unwrap_or(word);
    digits.parse().with_context(|| format!("{key}{word}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: &str = "\
src 192.0.2.1 dst 192.0.2.2
	proto esp spi 0x00002000(8192) reqid 0(0x00000000) mode tunnel
	replay-window 0 seq 0x00000000 flag  (0x00000000)
	sel src 192.0.2.1/32 dst 192.0.2.2/32 uid 0
	lifetime current:
	  0(bytes), 0(packets)
src 2001:db8::1 dst 2001:db8::2
	proto esp spi 0x00001000(4096) reqid 7(0x00000007) mode tunnel
	replay-window 0 seq 0x00000000 flag  (0x00000000)
	aead rfc4106(gcm(aes)) <<Keys hidden>> 128
	encap type espinudp sport 4500 dport 4501 addr 0.0.0.0
	sel src 0.0.0.0/0 dst 0.0.0.0/0 uid 0
	lifetime config:
	  limit: soft (INF)(bytes), hard (INF)(bytes)
	lifetime current:
	  840(bytes), 10(packets)
	  add 2026-11-23 23:44:43 use -
";

    const POLICIES: &str = "\
src ::/0 dst fd00::/64 uid 0
	dir in action block index 8 priority 0 share any flag  (0x00000000)
src 10.0.0.0/24 dst 10.1.0.0/24 uid 0
	dir out action allow index 1 priority 5 share any flag  (0x00000000)
	tmpl src 192.0.2.1 dst 192.0.2.2
		proto esp spi 0x00000000(0) reqid 7(0x00000007) mode tunnel
";

    #[test]
    fn a_state_is_read_with_its_counters_and_a_larval_one_is_left_out() {
        let states = State::parse_all(STATES).unwrap();
        assert_eq!(states.len(), 1);
        let state = &states[0];
        assert_eq!((state.spi, state.reqid, state.bytes, state.packets), (0x1000, 7, 840, 10));
        assert_eq!(state.encap, Some((4500, 4501)));
        assert_eq!(state.algorithm, "rfc4106(gcm(aes))");
        assert_eq!(state.src, "2001:db8::1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_policy_is_read_with_the_reqids_of_its_templates() {
        let policies = Policy::parse_all(POLICIES).unwrap();
        assert_eq!(policies[0].action, "block");
        assert!(policies[0].reqids.is_empty());
        assert_eq!((policies[1].priority, policies[1].index, policies[1].dir.as_str()), (5, 1, "out"));
        assert_eq!(policies[1].reqids, [7]);
    }

    #[test]
    fn something_else_than_states_is_refused() {
        assert!(State::parse_all("src here dst there\n\taead x\n").is_err());
    }
}
