//! What an endpoint has for its owner.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::config::EndpointConfig;
use crate::environment::{Environment, Transmit};
use crate::event::Event;
use crate::time::Instant;

/// Datagrams and events, in order.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) transmits: VecDeque<Transmit>,
    pub(crate) events: VecDeque<Event>,
}

impl Output {
    pub(crate) fn event(&mut self, event: Event) {
        tracing::debug!(?event);
        self.events.push_back(event);
    }

    /// Queues an IKE message; the non-ESP marker is put before it where it leaves by the NAT
    /// traversal port (RFC 3948 2.2).
    pub(crate) fn message(&mut self, local: SocketAddr, remote: SocketAddr, nat_port: u16, message: &[u8]) {
        let marker: &[u8] = if local.port() == nat_port { &[0; 4] } else { &[] };
        self.transmits.push_back(Transmit { local, remote, payload: [marker, message].concat() });
    }
}

/// What every step of an IKE SA is given.
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) env: &'a mut dyn Environment,
    pub(crate) out: &'a mut Output,
    pub(crate) config: &'a EndpointConfig,
}

impl Context<'_> {
    /// Random octets.
    pub(crate) fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.env.fill_random(&mut bytes);
        bytes
    }

    /// A time shortened by up to a tenth, so that two ends (and a thousand peers) seldom do the
    /// same at once.
    pub(crate) fn jittered(&mut self, time: std::time::Duration) -> std::time::Duration {
        let share = u32::from(u16::from_be_bytes(self.random()));
        time.saturating_sub((time / 10).saturating_mul(share) / u32::from(u16::MAX))
    }
}
