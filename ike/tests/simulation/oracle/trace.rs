//! A readable record of a run, line by line.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::Event;

use super::octets::{Header, Message, PROTOCOL_ESP, exchange, notify, payload};
use crate::network::brief;

/// Maximum number of lines of a trace that are shown. Only the last lines are shown. `TRACE=n` sets
/// another number.
const SHOWN: usize = 120;

#[derive(Debug, Default)]
pub struct Trace(Vec<Line>);

#[derive(Debug)]
enum Line {
    Message { at: Duration, node: usize, sent: bool, remote: SocketAddr, header: Header, message: Option<Message> },
    Event { at: Duration, node: usize, event: Event },
}

impl Trace {
    pub fn message(
        &mut self,
        at: Duration,
        node: usize,
        sent: bool,
        remote: SocketAddr,
        header: Header,
        message: Option<Message>,
    ) {
        self.0.push(Line::Message { at, node, sent, remote, header, message });
    }

    pub fn event(&mut self, at: Duration, node: usize, event: &Event) {
        self.0.push(Line::Event { at, node, event: event.clone() });
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = std::env::var("TRACE").ok().and_then(|lines| lines.parse().ok()).unwrap_or(SHOWN);
        let hidden = self.0.len().saturating_sub(shown);
        if hidden > 0 {
            writeln!(f, "  ({hidden} earlier lines)")?;
        }
        for line in self.0.iter().skip(hidden) {
            match line {
                Line::Message { at, node, sent, remote, header, message } => {
                    let way = if *sent { "to" } else { "from" };
                    writeln!(f, "  {at:?} node {node} {way} {remote} {}", describe(header, message.as_ref()))?;
                }
                Line::Event { at, node, event } => writeln!(f, "  {at:?} node {node} {}", brief(event))?,
            }
        }
        Ok(())
    }
}

fn describe(header: &Header, message: Option<&Message>) -> String {
    let exchange = match header.exchange {
        exchange::IKE_SA_INIT => "IKE_SA_INIT".to_owned(),
        exchange::IKE_AUTH => "IKE_AUTH".to_owned(),
        exchange::CREATE_CHILD_SA => "CREATE_CHILD_SA".to_owned(),
        exchange::INFORMATIONAL => "INFORMATIONAL".to_owned(),
        other => format!("exchange {other}"),
    };
    let kind = if header.response() { "response" } else { "request" };
    let (initiator, responder) = header.spis;
    let payloads = match message {
        None => "not readable".to_owned(),
        Some(message) => {
            let shown = message.payloads.iter().map(|payload| match payload.kind {
                payload::NOTIFY | payload::DELETE => None,
                payload::SA => Some("SA".to_owned()),
                payload::KE => Some("KE".to_owned()),
                payload::NONCE => Some(format!("Nonce {:02x}{:02x}", payload.body[0], payload.body[1])),
                payload::AUTH => Some("AUTH".to_owned()),
                other => Some(format!("{other}")),
            });
            let notifies = message.notifies().into_iter().map(|notify| match notify.kind {
                notify::REKEY_SA => format!("N(REKEY_SA {:02x?})", notify.spi),
                notify::TEMPORARY_FAILURE => "N(TEMPORARY_FAILURE)".to_owned(),
                notify::CHILD_SA_NOT_FOUND => format!("N(CHILD_SA_NOT_FOUND {:02x?})", notify.spi),
                notify::COOKIE => "N(COOKIE)".to_owned(),
                notify::INVALID_KE_PAYLOAD => "N(INVALID_KE_PAYLOAD)".to_owned(),
                notify::INITIAL_CONTACT => "N(INITIAL_CONTACT)".to_owned(),
                other => format!("N({other})"),
            });
            let deletes = message.deletes().into_iter().map(|delete| match delete.protocol {
                PROTOCOL_ESP => format!("D({:x?})", delete.spis),
                _ => "D(IKE)".to_owned(),
            });
            let spis = message.proposals().into_iter().map(|proposal| format!("SPI {:02x?}", proposal.spi));
            shown.flatten().chain(spis).chain(notifies).chain(deletes).collect::<Vec<_>>().join(", ")
        }
    };
    format!("{exchange} {kind} {} of {:04x}/{:04x}: {payloads}", header.id, initiator >> 48, responder >> 48)
}
