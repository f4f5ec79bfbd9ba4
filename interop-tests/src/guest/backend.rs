//! Chooses the kernel on which the lab runs: the lab kernel, or the host's kernel if it has all
//! required features.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::kernel::{self, Purpose};

/// A way to run the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// User-Mode Linux with this kernel.
    Uml(PathBuf),
    /// Private namespaces on the host's kernel, as root.
    Host,
}

/// Chooses a backend, or takes the forced one (`uml` or `host`). Prints the choice and the reason
/// on standard error. `purpose` decides which lab kernel is built if there is none.
///
/// # Errors
/// Returns an error if the forced backend is not available, or the lab kernel cannot be built.
pub fn choose(forced: Option<&str>, purpose: Purpose) -> Result<Backend> {
    let host = host_suffices();
    match (forced, host) {
        (Some("host"), Err(why)) => bail!("the host's kernel cannot be the lab: {why}"),
        (Some("host"), Ok(())) => {
            eprintln!("lab: in namespaces of the host's kernel, as asked");
            Ok(Backend::Host)
        }
        (None, Ok(())) => {
            eprintln!("lab: in namespaces of the host's kernel (it has ESP, netem and nftables, and we are root)");
            Ok(Backend::Host)
        }
        (Some("uml"), _) => {
            eprintln!("lab: on its own kernel, as asked");
            Ok(Backend::Uml(kernel::ensure(purpose, false)?))
        }
        (None, Err(why)) => {
            eprintln!("lab: on its own kernel ({why})");
            Ok(Backend::Uml(kernel::ensure(purpose, false)?))
        }
        (Some(other), _) => bail!("no backend is called {other:?}: uml or host"),
    }
}

/// Keeps writes to the directories of lab programs in memory, in a private mount namespace on the
/// host.
pub(crate) fn protect_host() -> Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), c"mode=0755")?;
    for (directory, options) in [
        ("/etc", c"lowerdir=/etc,upperdir=/run/lab/etc/upper,workdir=/run/lab/etc/work"),
        ("/var", c"lowerdir=/var,upperdir=/run/lab/var/upper,workdir=/run/lab/var/work"),
    ] {
        for part in ["upper", "work"] {
            std::fs::create_dir_all(format!("/run/lab{directory}/{part}"))?;
        }
        mount("overlay", directory, "overlay", MountFlags::empty(), options)
            .with_context(|| format!("an overlay over {directory}"))?;
    }
    mount("sysfs", "/sys", "sysfs", MountFlags::empty(), c"")?;
    Ok(())
}

/// Tries the features that the scenarios need, in a network namespace that ends with the attempt.
fn host_suffices() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    const TRY: &str = r#"
        fail() { echo "the host's kernel has no $1"; exit 1; }
        ip link add v0 type veth peer name v1 || fail veth
        tc qdisc add dev v0 root netem delay 1ms || fail netem
        nft 'add table inet t; add chain inet t c { type nat hook postrouting priority 100; }; add rule inet t c masquerade' || fail 'nftables NAT'
        ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 mode tunnel \
            aead 'rfc4106(gcm(aes))' 0x0000000000000000000000000000000000000000 128 encap espinudp 4500 4500 0.0.0.0 || fail ESP
        ip link add x0 type xfrm if_id 7 dev lo || fail 'XFRM interfaces'
    "#;
    let out = Command::new("unshare")
        .args(["--net", "sh", "-c", TRY])
        .env("PATH", crate::executables::search_path())
        .stdin(Stdio::null())
        .output()
        .context("unshare cannot be run")
        .map_err(|error| format!("{error:#}"))?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stdout);
    Err(said.lines().last().unwrap_or("unshare --net is refused").to_owned())
}
