//! The output of an endpoint: datagrams and events.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::capture::Capture;
use crate::config::EndpointConfig;
use crate::environment::{Environment, Transmit};
use crate::event::Event;
use crate::jitter::Jitter;
use crate::own_keys::OwnKeySet;
use crate::time::Instant;
use crate::wire::{ExchangeType, Header};

/// Datagrams and events, in order. The owner drains both after every call, so the queues hold only
/// the output of one call.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) transmits: VecDeque<Transmit>,
    pub(crate) events: VecDeque<Event>,
    /// Inbound SPIs of the endpoint's CHILD_SAs and reservations: at most one for each CHILD_SA and
    /// each request for one.
    pub(crate) inbound_spis: OwnKeySet<u32>,
    /// Copies of messages, if the owner captures them.
    pub(crate) capture: Option<Capture>,
    /// What the endpoint has sent so far.
    pub(crate) sent: SentRequests,
}

/// Numbers of requests that an endpoint has sent, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SentRequests {
    /// Requests that were sent again, since no response came.
    pub retransmissions: u64,
    /// Requests that ask whether the peer is there (RFC 7296 2.4), not including retransmissions.
    pub liveness_checks: u64,
}

impl Output {
    pub(crate) fn event(&mut self, event: Event) {
        tracing::debug!(?event);
        if let Event::ChildDown { child, .. } = &event {
            self.inbound_spis.remove(&child.0);
        }
        self.events.push_back(event);
    }

    /// Queues an IKE message. On the NAT traversal port the non-ESP marker precedes it (RFC 3948
    /// 2.2).
    pub(crate) fn message(&mut self, local: SocketAddr, remote: SocketAddr, nat_port: u16, message: &[u8]) {
        self.capture_init(true, local, remote, message);
        //= RFC 7296 2 MUST 3: four octets of zero on port 4500
        let marker: &[u8] = if local.port() == nat_port { &[0; 4] } else { &[] };
        self.transmits.push_back(Transmit { local, remote, payload: [marker, message].concat() });
    }

    /// Copies an IKE_SA_INIT message, which is in clear.
    pub(crate) fn capture_init(&mut self, outgoing: bool, local: SocketAddr, remote: SocketAddr, message: &[u8]) {
        if let Some(capture) = &mut self.capture
            && Header::peek(message).is_some_and(|header| header.exchange == ExchangeType::IkeSaInit)
        {
            capture.clear(outgoing, local, remote, message);
        }
    }
}

/// The inputs that every function of an IKE SA needs.
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) env: &'a mut dyn Environment,
    pub(crate) out: &'a mut Output,
    pub(crate) jitter: &'a mut Jitter,
    pub(crate) config: &'a EndpointConfig,
}

impl Context<'_> {
    /// Returns `N` octets from [`Environment::fill_random`].
    pub(crate) fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.env.fill_random(&mut bytes);
        bytes
    }

    /// Shortens a time by up to a tenth at random, so that two ends, or a thousand peers, rarely
    /// act at the same time.
    //= RFC 7296 2.8.1 SHOULD 1: jitter
    pub(crate) fn jittered(&mut self, time: std::time::Duration) -> std::time::Duration {
        let share = if mutation!("no_jitter") { 0 } else { u32::from(self.jitter.next()) };
        time.saturating_sub((time / 10).saturating_mul(share) / u32::from(u16::MAX))
    }
}
