//! The guest is a User-Mode Linux kernel that runs as an ordinary process of the host.
//!
//! Its root is the host's files, read-only, below an overlay in memory. So it changes nothing on
//! the host, except in the folders that a [`Spec`] names as writable. It reads one [`Spec`], runs
//! its job, reports events as lines of JSON and powers off.
//!
//! - `boot`: the host's side. It starts the kernel and copies its output.
//! - `init`: process 1 of the guest. It mounts the file systems.
//! - `worker`: runs the job, in the guest or in private namespaces of the host.

mod backend;
mod boot;
mod init;
mod spec;
mod tty;
mod worker;

pub use backend::{Backend, choose};
pub use boot::{Guest, Output};
pub use init::main as init;
pub use spec::{Event, Job, Spec};
pub(crate) use worker::JobIo;
pub use worker::main as worker;
