//! The driver's state of TCP connections.

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::event_sources::Received;
use super::relay_connections::RelayConnections;
use crate::clock::boot_time;
use crate::config::Config;
use crate::incidents::Incidents;
use crate::relay::AwaitedStreams;
use crate::tcp_encapsulation::{self, Connections, Fallback, TcpEvent};

/// Maximum number of events of connections that wait for the driver. Further ones wait in their
/// tasks.
const EVENTS: usize = 64;

/// The driver's state of TCP connections.
#[derive(Debug)]
pub(super) struct Tcp {
    pub(super) connections: Connections,
    /// On an edge: the hubs that it does not reach by UDP.
    pub(super) fallback: Fallback,
    /// On a hub: the connections of nodes to its relays.
    pub(super) relayed: AwaitedStreams,
    /// On an edge: its connections to relays.
    pub(super) relay_connections: RelayConnections,
    /// On a hub: the sockets that accept connections, until the driver runs.
    listeners: Vec<TcpListener>,
    /// The tasks that accept and begin connections.
    pub(super) tasks: JoinSet<()>,
    /// Where connections deliver IKE messages, once the driver runs.
    pub(super) messages: Option<mpsc::Sender<Received>>,
    pub(super) to_events: mpsc::Sender<TcpEvent>,
    events: mpsc::Receiver<TcpEvent>,
}

impl Tcp {
    /// Opens the listening sockets, if the configuration has a port. If the kernel cannot carry ESP
    /// in TCP, an incident says so, and nothing listens. Must be called within a tokio runtime.
    /// Fails if the port is in use.
    pub(super) fn open(config: &Config, incidents: &Incidents) -> anyhow::Result<Self> {
        let listeners = match (config.tcp.listen_port, tcp_encapsulation::support()) {
            (Some(port), Ok(())) => tcp_encapsulation::bind(port)?,
            (Some(port), Err(why)) => {
                incidents.error(format!("[tcp] listen_port is {port}, but nothing listens on it: {why}"));
                vec![]
            }
            (None, _) => vec![],
        };
        let (to_events, events) = mpsc::channel(EVENTS);
        Ok(Self {
            connections: Connections::new(config.nat_port),
            fallback: Fallback::default(),
            relayed: AwaitedStreams::default(),
            relay_connections: RelayConnections::default(),
            listeners,
            tasks: JoinSet::new(),
            messages: None,
            to_events,
            events,
        })
    }

    /// Starts to accept connections. They deliver IKE messages to `messages`.
    pub(super) fn start(&mut self, messages: &mpsc::Sender<Received>) {
        for listener in std::mem::take(&mut self.listeners) {
            let connections = self.connections.clone();
            let listen = tcp_encapsulation::listen(
                listener,
                connections,
                self.relayed.clone(),
                boot_time,
                messages.clone(),
                self.to_events.clone(),
            );
            self.tasks.spawn(listen.in_current_span());
        }
        self.messages = Some(messages.clone());
    }

    /// Waits for the outcome of an attempt to connect, or the end of a connection.
    pub(super) async fn next_event(&mut self) -> Option<TcpEvent> {
        self.events.recv().await
    }
}
