//! What the tests of the responder look at.

use std::collections::BTreeSet;
use std::time::Duration;

use super::choices::{Asked, Choice};
use super::peer::Responder;
use crate::oracle::octets::exchange;
use crate::peers::SECOND;

pub const MINUTE: Duration = Duration::from_secs(60);
pub const HOUR: Duration = Duration::from_secs(3600);

/// What our node sent in some time.
#[derive(Debug, PartialEq, Eq)]
pub struct Sent {
    /// All requests, with retransmissions.
    pub requests: usize,
    /// Those of IKE_SA_INIT among them.
    pub inits: usize,
    /// The most requests in one minute.
    pub busiest_minute: usize,
}

impl Responder {
    pub fn last_error(&self) -> String {
        let status = self.network.nodes[0].endpoint.snapshot().remove(0);
        status.last_error.map_or_else(String::new, |error| error.to_string())
    }

    /// Returns the names of the configured children with which our node sends.
    pub fn children_up(&self) -> BTreeSet<String> {
        let tunnel = self.network.nodes[0].host.kernel.tunnels.get(&self.config.name);
        let outbound = tunnel.into_iter().flat_map(|tunnel| tunnel.outbound.keys());
        outbound.map(|purpose| purpose.child.to_string()).collect()
    }

    pub fn are_all_up(&self) -> bool {
        self.children_up().len() == self.config.children().count()
    }

    /// Reports that a packet waits for the tunnel.
    pub fn packet(&mut self) {
        let name = self.config.name.clone();
        let until = self.network.instant() + SECOND;
        self.network.call(0, |endpoint, now, env| endpoint.acquire(&name, until, now, env));
    }

    /// Reports a packet if only packets begin the tunnel.
    pub fn want(&mut self) {
        if !self.config.initiate {
            self.packet();
        }
    }

    /// Runs with this policy, and returns what our node sent.
    pub fn run_with(&mut self, time: Duration, policy: impl FnMut(Asked) -> Choice + 'static) -> Sent {
        self.policy = Box::new(policy);
        let before = self.requests.len();
        self.run_for(time);
        self.sent_since(before)
    }

    pub fn sent_since(&self, first: usize) -> Sent {
        let requests = &self.requests[first..];
        let within = |start: Duration| requests.iter().filter(|(at, _)| (start..start + MINUTE).contains(at)).count();
        Sent {
            requests: requests.len(),
            inits: requests.iter().filter(|(_, kind)| *kind == exchange::IKE_SA_INIT).count(),
            busiest_minute: requests.iter().map(|(at, _)| within(*at)).max().unwrap_or(0),
        }
    }

    /// Returns how long it takes until all children are up, if the responder agrees from now on.
    pub fn recovers(&mut self) -> Duration {
        self.policy = Box::new(|_| Choice::Agree);
        let start = self.network.now;
        while !self.are_all_up() {
            self.want();
            self.run_for(SECOND / 10);
            assert!(self.network.now < start + HOUR, "no recovery: {}", self.network.history());
        }
        self.network.now - start
    }

    /// Lets the responder agree until both ends have the same SAs, for up to a minute. SAs are
    /// replaced at times, and old ones linger.
    pub fn come_to_rest(&mut self) {
        self.policy = Box::new(|_| Choice::Agree);
        for _ in 0..600 {
            if self.disagreement().is_none() && self.network.oracle.unrest().is_none() {
                return;
            }
            self.want();
            self.run_for(SECOND / 10);
        }
    }

    /// Checks that both ends have the same SAs with each other and no other ones.
    pub fn assert_agreed(&self) {
        let fault = self.disagreement();
        assert!(fault.is_none(), "{}: {}", fault.unwrap_or_default(), self.network.history());
        self.network.assert_tidy();
    }

    /// Returns what makes the ends differ.
    pub fn disagreement(&self) -> Option<String> {
        let status = self.network.nodes[0].endpoint.snapshot().remove(0);
        let ours: Vec<_> = status.ike_sas.iter().map(|sa| (sa.ike.initiator, sa.ike.responder)).collect();
        let theirs: Vec<_> = self.sas.values().filter(|sa| sa.up).map(|sa| sa.spis).collect();
        if ours != theirs || ours.len() != 1 {
            return Some(format!("IKE SAs {ours:x?} here, {theirs:x?} there"));
        }
        let mut ours: Vec<_> =
            status.children.iter().map(|child| (child.sa.outbound_spi, child.sa.inbound_spi)).collect();
        ours.sort_unstable();
        let children = self.sas.values().filter(|sa| sa.up).flat_map(|sa| &sa.children);
        let theirs: Vec<_> = children.map(|(own, child)| (*own, child.theirs)).collect();
        (ours != theirs || ours.len() != self.config.children().count())
            .then(|| format!("CHILD_SAs {ours:x?} here, {theirs:x?} there"))
    }
}
