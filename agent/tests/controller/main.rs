//! The agent's end of the controller's API, against a real controller on the loopback interface:
//! TLS, store and all.

mod cut_off;
mod joining;
mod lab;
mod logs;
mod losses;
mod peers;
mod rollover;
mod segments;
mod streams;
mod trust;
