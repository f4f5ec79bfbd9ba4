//! Our own programs on hosts of the lab, driven as an operator drives them: by their files and
//! commands.

mod agent;

pub use agent::{Agent, StaticPeer, Tunnel};
