//! The lab: networks of real programs on a real kernel with ESP, on an ordinary machine.
//!
//! And a real Kubernetes control plane ([`kube`]) for tests that need one.
//!
//! See `docs/lab.md` for how it works, how to add a scenario, and how to look into one that failed.

#![forbid(unsafe_code)]

mod cache;
pub mod demo;
pub mod edge_agent;
pub mod exec;
pub mod executables;
pub mod guest;
pub mod kernel;
pub mod kube;
pub mod netns;
pub mod peers;
pub mod progress;
pub mod runner;
pub mod scenarios;
pub mod suite;
pub mod topology;
pub mod wait;
