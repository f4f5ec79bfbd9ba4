//! Prevents this process's memory, which contains the authorities' private keys, from being written
//! to disks or read by other processes of the same user.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Disables core files, written by the kernel or through a program in `kernel.core_pattern`.
/// Prevents unprivileged processes from attaching (`ptrace`) and from reading `/proc/PID/mem`. See
/// core(5) and PR_SET_DUMPABLE in prctl(2). The call applies to all threads; programs that are
/// executed inherit only the limit.
pub(super) fn forbid() -> std::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // The limit does not apply if `core_pattern` names a program; this attribute does.
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
