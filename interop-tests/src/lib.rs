//! The lab runs networks of real programs on a real kernel with ESP, on an ordinary machine.
//!
//! [`kube`] is a real Kubernetes control plane for tests that need one. [`suite`] and [`netns`]
//! support tests in single crates that need privileges.
//!
//! [`power_cuts`] kills the lab's kernel while the plugin runs on it. [`command_line`] makes
//! command line references, manual pages and completions for the programs.
//!
//! [`mod@bench`] measures the agent with thousands of peers, which [`ike_peers`] simulates.
//!
//! `docs/lab.md` explains how the lab works, how to add a scenario, and how to investigate a
//! scenario that failed.

#![forbid(unsafe_code)]

pub mod bench;
pub mod built_once;
mod cache;
mod cni_plugin;
pub mod command_line;
pub mod demo;
pub mod edge_agent;
pub mod edge_controller;
pub mod edgecore;
pub mod exec;
pub mod executables;
mod go_module;
pub mod guest;
pub mod ike_peers;
pub mod kernel;
pub mod kube;
pub mod libreswan;
pub mod netns;
pub mod oci_image;
pub mod openiked;
pub mod power_cuts;
pub mod progress;
pub mod runner;
pub mod scenario;
pub mod scenarios;
pub mod stored_edges;
pub mod strongswan;
pub mod suite;
mod tcp_transfer;
pub mod topology;
pub mod wait;
