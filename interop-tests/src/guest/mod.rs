//! The guest: a User-Mode Linux kernel as an ordinary process of the host.
//!
//! The host's files are its root, read-only, below an overlay in memory; nothing that happens in it
//! reaches the host, except into the folders that a [`Spec`] names as writable. It takes one
//! [`Spec`], runs the job in it, reports lines of JSON and powers off.
//!
//! - `boot`: the host's side, starts the kernel and carries its output.
//! - `init`: process 1 of the guest, sets up mounts.
//! - `worker`: runs the job, in the guest or (without a kernel of our own) in private namespaces of
//!   the host.

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
