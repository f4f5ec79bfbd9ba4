//! No memory of this process reaches a disk or another process of the same user: it holds the
//! authorities' private keys.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Writes no core file, neither by itself nor through a program in `kernel.core_pattern`, and lets
/// no unprivileged process attach (`ptrace`) or read `/proc/PID/mem`. See core(5) and
/// PR_SET_DUMPABLE in prctl(2). For all threads; what is executed from here gets the limit only.
pub(super) fn forbid() -> std::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // The limit does not count where `core_pattern` names a program; this does.
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
