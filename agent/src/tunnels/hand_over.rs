//! The state of a hub that ends: until when it goes on, and what it no longer answers. What happens
//! then is in `leaving_hub`.

use edge_ike::wire::{ExchangeType, Header};
use tokio::time::{Instant, sleep_until};

use crate::init_probe::NON_ESP_MARKER;

/// The state of a hub that ends.
#[derive(Debug)]
pub(super) struct HandOver {
    /// Whether the sockets stay open when the agent ends, unless the machine stops. In a container
    /// the agent never knows.
    pub(super) sockets_kept: bool,
    pub(super) until: Option<Instant>,
}

impl HandOver {
    pub(super) fn new(sockets_kept: bool) -> Self {
        Self { sockets_kept, until: None }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.until.is_some()
    }

    /// Waits until the agent may end; for ever, if it was not asked to.
    pub(super) fn end(&self) -> impl Future<Output = ()> + use<> {
        let until = self.until;
        async move {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Returns whether a datagram is dropped because it asks this hub for a new IKE SA, or whether
    /// its agent works. `marked`: IKE messages begin with the non-ESP marker.
    pub(super) fn drops(&self, datagram: &[u8], marked: bool) -> bool {
        let message = if marked { datagram.strip_prefix(&NON_ESP_MARKER) } else { Some(datagram) };
        self.has_begun()
            && message.and_then(|message| Header::decode(message).ok()).is_some_and(|header| {
                header.exchange == ExchangeType::IkeSaInit && header.from_initiator && !header.response
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init_probe::{self, RANDOM};

    #[test]
    fn a_hub_that_ends_takes_no_new_ike_sa_and_answers_no_probe() {
        let probe = init_probe::request(7, &[1; RANDOM], 0);
        let marked = [&NON_ESP_MARKER, probe.as_slice()].concat();
        let (running, ending) = (HandOver::new(false), HandOver { sockets_kept: false, until: Some(Instant::now()) });
        assert!(!running.drops(&probe, false) && !running.drops(&marked, true));
        assert!(ending.drops(&probe, false) && ending.drops(&marked, true));
        // What else arrives is handled: messages of IKE SAs, keepalives, and what cannot be read.
        let mut other = probe.clone();
        other[18] = u8::from(ExchangeType::Informational);
        for datagram in [other.as_slice(), &[0xff], &[], &probe[..20]] {
            assert!(!ending.drops(datagram, false));
        }
        let mut answer = probe;
        answer[19] = 0x20;
        assert!(!ending.drops(&answer, false), "the answer to a request of ours");
    }
}
