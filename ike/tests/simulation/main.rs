//! Whole networks of endpoints in one thread, from a seed: loss, reordering, duplication, NAT,
//! hostile datagrams. A model of the kernel carries out every event and checks that no packet
//! arrives without an SA for it. The `oracle` judges every step of every endpoint by the RFCs.
#![allow(missing_docs, unreachable_pub)]

mod candidates;
mod certificates;
mod changes;
mod children;
mod establishment;
mod faults;
mod foreign;
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
mod rekey;
mod rules;
mod suites;
mod transport;
