//! Process settings that protect private keys and pre-shared keys from other users.

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask};

/// Forbids core dumps (`RLIMIT_CORE`), and access to this process's memory by users other than root
/// (`PR_SET_DUMPABLE`, prctl(2)). A failure is only logged.
pub fn forbid_dumps() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps cannot be forbidden");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "cannot clear the process's dumpable flag");
    }
}

/// Raises the soft limit of open files (`RLIMIT_NOFILE`) to the hard limit. A hub needs two sockets
/// for each of its relays, and some container runtimes set a soft limit of 1024. A failure is only
/// logged.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// Sets the umask to 077, so that new files and sockets are accessible only to their owner from the
/// start.
pub fn make_files_private() {
    umask(Mode::RWXG | Mode::RWXO);
}

#[cfg(test)]
mod tests {
    use rustix::process::dumpable_behavior;

    use super::*;

    #[test]
    fn nothing_of_the_process_is_dumped() {
        forbid_dumps();
        assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
        assert!(matches!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable)));
    }
}
