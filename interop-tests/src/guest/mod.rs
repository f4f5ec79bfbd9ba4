//! Runs the guest, a User-Mode Linux kernel that runs as an ordinary process on the host.
//!
//! The guest's root file system is an overlay in memory over the host's files, which are read-only.
//! So the guest changes nothing on the host, except in the directories that a [`Spec`] lists as
//! writable. The guest reads one [`Spec`], runs the job in it, reports events as lines of JSON and
//! powers off.
//!
//! - `boot`: runs the host's side of a guest: starts the kernel and copies its output.
//! - `init`: runs as process 1 of the guest and mounts the file systems.
//! - `job_io`, `tty`: connect a job's programs to serial lines or pipes.
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
