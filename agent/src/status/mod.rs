//! The document of `status --json`, the table of `status`, and the details that `status PEER`
//! shows.

mod details;
mod document;
mod table;

pub use details::{only_peers, render_peers};
pub use document::{
    ChildStatus, Counters, IkeCounters, IkeStatus, NatMapping, NotCarried, PathMtuStatus, PeerReport, PolicyEntry,
    Refusal, SocketHolder, SocketHolding, StateEntry, Status, TemplateEntry,
};
pub use table::render;
