//! IKE and ESP in TCP (RFC 9329), for edges whose network blocks UDP. A hub listens on a TCP port
//! if its configuration says so, and its view entry says which one. An edge that does not reach the
//! hub by UDP connects to it, and returns to UDP when that works again.
//!
//! It reaches other nodes by relays of the hub ([`crate::relay`]), each in a connection of its own,
//! which begins with another prefix and the token of the relay.
//!
//! The kernel carries ESP in the connection (`net/xfrm/espintcp.c`), and gives the agent the IKE
//! messages. The IKE endpoint knows a connection by the addresses of its [`TcpConnectionId`].
//!
//! - `accept_rate`: how often hosts may connect to a hub.
//! - `connections`: the open connections, and their limits.
//! - `fallback`: when an edge connects to a hub, tries UDP again, and closes a connection.
//! - `stream`: a connection's socket: connecting, the stream prefix, and reading.
//! - `listener`: accepts connections on a hub.
//!
//! [`TcpConnectionId`]: edge_ike::TcpConnectionId

mod accept_rate;
mod connections;
mod fallback;
mod listener;
mod stream;

pub use connections::{ConnectionKind, Connections, Ends, is_tcp};
pub use fallback::{Action, Fallback};
pub use listener::{bind, listen};
pub use stream::{Received, RelayTarget, TcpEvent, connect, connect_to_relay, support};
