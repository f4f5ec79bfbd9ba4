//! Notifications for private use between agents of ours, each in an INFORMATIONAL exchange of its
//! own.

use std::net::SocketAddr;

use crate::config::AgentNotifications;
use crate::event::Event;
use crate::output::Context;
use crate::sa::agent_peer::{AgentPeer, notifications};
use crate::sa::ike_sa::{IkeSa, Lifecycle};
use crate::sa::own_requests::{OutstandingRequest, QueuedRequest};
use crate::wire::{AgentNotification, ExchangeType, Notify, Payload, Payloads};

/// Maximum number of notifications that wait until the window of one IKE SA is free. At the limit,
/// `queue_notification` returns false.
const MAX_QUEUED: usize = 32;

impl IkeSa {
    /// Sets what is known about a peer that is an agent of ours. `None`: it is not, or the
    /// configuration does not say so.
    pub(in crate::sa) fn with_agent(mut self: Box<Self>, agent: Option<AgentPeer>) -> Box<Self> {
        self.agent = agent;
        self
    }

    /// Returns whether the IKE SA is active and the peer understands our notifications.
    pub(crate) fn takes_agent_notifications(&self) -> bool {
        self.agent.is_some() && self.lifecycle == Lifecycle::Active
    }

    /// The address from which our datagrams come to the peer, if the peer has told us.
    pub(crate) fn mapped_address(&self) -> Option<SocketAddr> {
        self.agent.and_then(|agent| agent.mapped)
    }

    /// Queues a notification. Returns false if the peer does not understand notifications, if
    /// [`MAX_QUEUED`] already wait, or if the notification is not valid.
    pub(crate) fn queue_notification(&mut self, notification: AgentNotification) -> bool {
        let is_one = |request: &&QueuedRequest| matches!(request, QueuedRequest::NotifyAgent(_));
        let room = self.queue.iter().filter(is_one).count() < MAX_QUEUED;
        let may = room && self.takes_agent_notifications() && notification.is_valid();
        if may {
            self.enqueue(QueuedRequest::NotifyAgent(notification));
        }
        may
    }

    /// Queues MAPPED_ADDRESS if the address from which the peer's datagrams come is another than
    /// the peer was told last. An address that is not checked yet is not told.
    pub(in crate::sa) fn tell_changed_address(&mut self) {
        let tells = self.profile.config.agent_notifications == AgentNotifications::TellAddress;
        let settled = self.lifecycle == Lifecycle::Active && !self.channel.is_unchecked();
        let remote = self.channel.path.remote;
        let Some(agent) = self.agent.as_mut().filter(|agent| tells && settled && agent.told != Some(remote)) else {
            return;
        };
        agent.told = Some(remote);
        // The new address replaces one that still waits.
        let is_address = |request: &QueuedRequest| {
            matches!(request, QueuedRequest::NotifyAgent(AgentNotification::MappedAddress(_)))
        };
        self.queue.retain(|request| !is_address(request));
        self.enqueue(QueuedRequest::NotifyAgent(AgentNotification::MappedAddress(remote)));
    }

    /// Takes the notifications of the peer's INFORMATIONAL request, and reports them to the owner.
    /// Those of a peer that has not announced them mean something else.
    pub(in crate::sa) fn take_notifications(&mut self, payloads: &Payloads, cx: &mut Context<'_>) {
        //= RFC 7296 3.12 MUST NOT 1: only private types get a meaning
        let Some(agent) = &mut self.agent else { return };
        for notification in notifications(payloads) {
            if let AgentNotification::MappedAddress(address) = notification {
                agent.mapped = Some(address);
            }
            cx.out.event(Event::AgentNotification { peer: self.profile.config.name.clone(), notification });
        }
    }
}

/// Sends a notification in an INFORMATIONAL request of its own.
pub(super) fn notify(
    sa: &mut IkeSa,
    notification: AgentNotification,
    cx: &mut Context<'_>,
) -> Option<OutstandingRequest> {
    let notify: Notify = notification.to_notify();
    sa.channel.request(ExchangeType::Informational, &Payloads::from(vec![Payload::Notify(notify)]), cx);
    Some(OutstandingRequest::NotifyAgent(notification))
}
