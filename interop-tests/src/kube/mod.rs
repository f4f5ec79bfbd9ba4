//! Runs a real Kubernetes control plane for tests: etcd from Debian, and `kube-apiserver` and
//! `kubectl` built from the Go modules of one release, once per machine.
//!
//! No package registry ships these programs, and no substitute has the same conflicts, watches,
//! admission and RBAC. There is no controller manager, scheduler or kubelet. So a test makes the
//! Node objects itself, and a deleted namespace stays in `Terminating`.

mod build;
mod control_plane;
mod daemon;
mod pki;
mod programs;
mod rbac;
mod reserved_port;
mod session;
pub mod suite;

pub use build::OVERRIDE;
pub use control_plane::{ControlPlane, Options, Storage};
pub use programs::{Programs, RELEASE, ensure, unavailable};
pub use rbac::Subject;
pub use session::session;
