//! Simulates whole networks of endpoints in one thread, with loss, reordering, duplication, NATs
//! and hostile datagrams. A seed determines each run. A model of the kernel carries out every
//! event, and checks that there is an SA for every packet that arrives. The `oracle` checks every
//! step of every endpoint against the RFCs.
#![allow(missing_docs, unreachable_pub)]

mod agent_notifications;
mod better_addresses;
mod candidates;
mod certificates;
mod changes;
mod childless;
mod children;
mod establishment;
mod faults;
mod foreign;
mod internal_addresses;
mod kernel;
mod liveness;
mod logs;
mod messages;
mod mismatch;
mod mobike;
#[cfg(debug_assertions)]
mod mutations;
mod network;
mod oracle;
mod peers;
mod rates;
mod refused_children;
mod refused_first_child;
mod rekey;
mod responder;
mod rules;
mod suites;
mod tcp;
mod transport;
mod windows;
