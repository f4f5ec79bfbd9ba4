//! Tests the controller from the outside: a real server on its own loopback port, real TLS and a
//! real store.

mod frame_connection;
mod full_disk;
#[allow(dead_code, reason = "some of it is for other tests")]
mod harness;
#[allow(dead_code, reason = "some of it is for other tests")]
mod process;

mod access;
mod archive;
mod bad_input;
mod browser;
mod changes;
mod clocks;
mod connection_limits;
mod connectivity;
mod import_fabedge;
mod join;
mod last_seen;
mod logs;
mod observe;
mod page;
mod program;
mod reload;
mod reviews;
mod rollover;
mod schemathesis;
mod secrecy;
mod segments;
mod shutdown;
mod strangers;
mod view_frames;
mod views;
mod webdriver;
