//! Receives the kernel's notifications when forwarding is turned on or off, for the host or an
//! interface (`RTM_NEWNETCONF`, `linux/netconf.h`). The connection of the `rtnetlink` crate cannot
//! read these messages.

use std::io::ErrorKind;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

/// `RTNLGRP_IPV4_NETCONF` and `RTNLGRP_IPV6_NETCONF` (`linux/rtnetlink.h`).
const GROUPS: [u32; 2] = [24, 25];
/// Maximum number of messages that are read in one call of `drain`. The kernel sends one for each
/// interface.
const AT_ONCE: usize = 10_000;

/// The netlink socket. The content of the messages is ignored, because the settings are read again
/// after each message.
pub(super) struct ForwardingMonitor(TokioSocket);

impl ForwardingMonitor {
    pub(super) fn open() -> std::io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.socket_mut().add_membership(group)?;
        }
        Ok(Self(socket))
    }

    /// Waits for the next change. Lost notifications count as a change.
    pub(super) async fn changed(&mut self) {
        let _ = self.0.recv_from_full().await;
    }

    /// Reads the notifications that have arrived, without waiting.
    pub(super) fn drain(&mut self) {
        for _ in 0..AT_ONCE {
            match self.0.socket_ref().recv_from_full() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use interop_tests::netns::{is_in_namespaces, is_root_or_skips, passes_in_namespaces};

    use super::*;

    /// Timeout after which a test fails.
    const HANG: Duration = Duration::from_secs(60);

    #[test]
    fn the_kernel_says_at_once_that_forwarding_is_turned_off() {
        if is_root_or_skips() {
            passes_in_namespaces("host::forwarding_monitor::tests::forwarding_is_turned_on_and_off");
        }
    }

    #[test]
    #[ignore = "runs in a namespace, started by the test before"]
    fn forwarding_is_turned_on_and_off() {
        if !is_in_namespaces() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut monitor = ForwardingMonitor::open().unwrap();
            for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                let path = format!("/proc/sys/net/{setting}");
                let before = fs::read_to_string(&path).unwrap();
                for value in if before.trim() == "0" { ["1", "0"] } else { ["0", "1"] } {
                    monitor.drain();
                    fs::write(&path, value).unwrap();
                    tokio::time::timeout(HANG, monitor.changed()).await.expect(setting);
                }
            }
        });
    }
}
