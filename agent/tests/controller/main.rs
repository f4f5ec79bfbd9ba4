//! Tests the controller client with a real controller on the loopback interface, with TLS and a
//! store.

mod cut_off;
mod joining;
mod lab;
mod logs;
mod losses;
mod measurements;
mod peers;
mod rollover;
mod segments;
mod streams;
mod trust;
mod upgrades;
