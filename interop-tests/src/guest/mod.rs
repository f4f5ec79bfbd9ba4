//! The guest is a User-Mode Linux kernel that runs as an ordinary process of the host.
//!
//! Its root is the host's files, read-only, below an overlay in memory. So it changes nothing on
//! the host, except in the directories that a [`Spec`] lists as writable. It reads one [`Spec`],
//! runs its job, reports events as lines of JSON and powers off.
//!
//! - `boot`: the host's side. It starts the kernel and copies its output.
//! - `init`: process 1 of the guest. It mounts the file systems.
//! - `job_io`, `tty`: the serial lines or pipes of a job's programs.
//! - `backend`: chooses between the guest and private namespaces of the host.

mod backend;
mod boot;
mod init;
mod job_io;
mod spec;
pub(crate) mod tty;

pub(crate) use backend::protect_host;
pub use backend::{Backend, choose};
pub use boot::{Guest, Output};
pub use init::main as init;
pub(crate) use job_io::JobIo;
pub use spec::{Event, Job, Spec};
