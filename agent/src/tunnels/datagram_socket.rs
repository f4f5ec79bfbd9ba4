//! UDP sockets that report the local address to which a datagram was sent, and can send from any
//! chosen local address (IP_PKTINFO, `ip(7)`; IPV6_PKTINFO, RFC 3542 6).

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use edge_xfrm::events::{EspEventSocket, EventSocket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `SD_LISTEN_FDS_START` (`sd_listen_fds(3)`).
const LISTEN_FDS_START: RawFd = 3;

/// Buffer for one IP_PKTINFO or IPV6_PKTINFO, aligned as `cmsghdr` requires.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// A socket on the wildcard address of one family.
#[derive(Debug)]
pub(super) struct Socket {
    inner: tokio::net::UdpSocket,
    port: u16,
    /// The port that received datagrams seem to be sent to.
    seeming_port: u16,
    ipv4: bool,
}

impl Socket {
    /// Opens a socket. IPv6 sockets accept only IPv6, so that both families can use the same port.
    pub(super) fn open(ipv4: bool, port: u16) -> io::Result<Self> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
        let family = if ipv4 { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(family, SocketType::DGRAM, flags, None)?;
        let any: IpAddr = if ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        if !ipv4 {
            sockopt::set_ipv6_v6only(&fd, true)?;
        }
        let (level, option) = Self::packet_info(ipv4);
        set_int(fd.as_fd(), level, option, 1)?;
        bind(&fd, &SocketAddr::new(any, port))?;
        Self::register(fd, ipv4)
    }

    /// Takes over a socket that systemd opened (`sd_listen_fds(3)`). Fails if it is not a UDP
    /// socket on the wildcard address of one family. The error contains the setting that helps.
    pub(super) fn adopt(fd: OwnedFd) -> Result<Self, String> {
        use rustix::net::{SocketType, ipproto, sockopt};
        let failed = |error: rustix::io::Errno| format!("it cannot be asked what it is: {error}");
        let udp = sockopt::socket_type(&fd).map_err(failed)? == SocketType::DGRAM
            && sockopt::socket_protocol(&fd).map_err(failed)? == Some(ipproto::UDP);
        if !udp {
            return Err("it is no UDP socket; use ListenDatagram=".into());
        }
        let address = SocketAddr::try_from(rustix::net::getsockname(&fd).map_err(failed)?)
            .map_err(|_| "it is of neither IPv4 nor IPv6".to_owned())?;
        if !address.ip().is_unspecified() {
            return Err(format!(
                "it is bound to {address}; it must take datagrams to every address of its family: ListenDatagram=0.0.0.0:PORT, or [::]:PORT"
            ));
        }
        if address.is_ipv6() && !sockopt::ipv6_v6only(&fd).map_err(failed)? {
            return Err("it takes IPv4 as well; set BindIPv6Only=ipv6-only".into());
        }
        let adopt = || -> io::Result<Self> {
            use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
            use rustix::io::{FdFlags, fcntl_setfd};
            fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
            fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
            let ipv4 = address.is_ipv4();
            let (level, option) = Self::packet_info(ipv4);
            set_int(fd.as_fd(), level, option, 1)?;
            Self::register(fd, ipv4)
        };
        adopt().map_err(|error| format!("it cannot be taken over: {error}"))
    }

    fn packet_info(ipv4: bool) -> (libc::c_int, libc::c_int) {
        if ipv4 { (libc::IPPROTO_IP, libc::IP_PKTINFO) } else { (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO) }
    }

    fn register(fd: OwnedFd, ipv4: bool) -> io::Result<Self> {
        let inner = tokio::net::UdpSocket::from_std(UdpSocket::from(fd))?;
        let port = inner.local_addr()?.port();
        Ok(Self { inner, port, seeming_port: port, ipv4 })
    }

    /// Has received datagrams seem to be sent to another port.
    pub(super) fn standing_for(self, port: u16) -> Self {
        Self { seeming_port: port, ..self }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn is_ipv4(&self) -> bool {
        self.ipv4
    }

    /// Receives a datagram. Returns its length, local address and remote address. Fails if the
    /// datagram is larger than the buffer.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, SocketAddr)> {
        let (length, local, remote) =
            self.inner.async_io(Interest::READABLE, || receive(self.inner.as_fd(), buffer)).await?;
        Ok((length, SocketAddr::new(local, self.seeming_port), remote))
    }

    /// Sends a datagram from `local`. If `local` is unspecified, the kernel chooses the source
    /// address. If the send buffer is full, the datagram is dropped without an error.
    pub(super) fn send(&self, local: IpAddr, remote: SocketAddr, payload: &[u8]) -> io::Result<()> {
        match send(self.inner.as_fd(), local, remote, payload) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            outcome => outcome,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// Takes ownership of the `count` descriptors that systemd passed, starting with
/// [`LISTEN_FDS_START`].
///
/// Must be called only once in a process, so that nothing else owns the descriptors.
pub(super) fn take_listen_fds(count: RawFd) -> Vec<OwnedFd> {
    // SAFETY: systemd passes these descriptors open, and this process owns them, as the caller has
    // checked with LISTEN_PID. The function is called only once, so no two values own the same
    // descriptor. A descriptor that is not open fails at its first use.
    let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
    (LISTEN_FDS_START..LISTEN_FDS_START.saturating_add(count)).map(own).collect()
}

/// Registers the socket of XFRM's notifications with the runtime.
pub(super) fn watch(events: EventSocket) -> io::Result<AsyncFd<EventSocket>> {
    // SAFETY: the event socket owns its descriptor and never replaces or closes it before it is
    // dropped.
    Ok(unsafe { AsyncFd::register(events)? })
}

/// Registers the socket of XFRM's notifications about ESP traffic with the runtime.
pub(super) fn watch_esp(events: EspEventSocket) -> io::Result<AsyncFd<EspEventSocket>> {
    // SAFETY: as in `watch`.
    Ok(unsafe { AsyncFd::register(events)? })
}

fn set_int(fd: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the value outlives the call, and its correct size is passed.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, IpAddr, SocketAddr)> {
    // SAFETY: all-zero is a valid value of these plain C structs.
    let (mut name, mut header): (libc::sockaddr_storage, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut control = Control([0; 64]);
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = mem::size_of_val(&name) as libc::socklen_t;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    // SAFETY: every pointer in `header` points to memory that outlives the call, and each length in
    // `header` is correct.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, 0) };
    let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "datagram larger than the buffer"));
    }
    let remote = socket_address(&name).ok_or_else(|| io::Error::other("datagram without a source address"))?;
    let local = destination(&header).unwrap_or(match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    });
    Ok((length, local, remote))
}

/// Returns the destination address in the packet's IP header.
fn destination(header: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: `header` was filled by recvmsg, and its control buffer is alive and aligned. The CMSG
    // macros stay within the buffer. The data is read unaligned, and only if the kernel reports
    // this type of data.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = ptr::read_unaligned(libc::CMSG_DATA(message).cast());
                    return Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = ptr::read_unaligned(libc::CMSG_DATA(message).cast());
                    return Some(IpAddr::from(info.ipi6_addr.s6_addr));
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    None
}

fn socket_address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    // SAFETY: the family determines which of the two structs the storage contains. The storage is
    // large enough and aligned for both.
    unsafe {
        match i32::from(name.ss_family) {
            libc::AF_INET => {
                let v4: libc::sockaddr_in = ptr::read((&raw const *name).cast());
                let address = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddrV4::new(address, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                let v6: libc::sockaddr_in6 = ptr::read((&raw const *name).cast());
                let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(address, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

fn send(fd: BorrowedFd<'_>, local: IpAddr, remote: SocketAddr, payload: &[u8]) -> io::Result<()> {
    // SAFETY: all-zero is a valid value of these plain C structs.
    let (mut v4, mut v6, mut header): (libc::sockaddr_in, libc::sockaddr_in6, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
    let mut control = Control([0; 64]);
    let mut vector = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    match remote {
        SocketAddr::V4(remote) => {
            v4.sin_family = libc::AF_INET as libc::sa_family_t;
            v4.sin_port = remote.port().to_be();
            v4.sin_addr.s_addr = u32::from_ne_bytes(remote.ip().octets());
            header.msg_name = (&raw mut v4).cast();
            header.msg_namelen = mem::size_of_val(&v4) as libc::socklen_t;
        }
        SocketAddr::V6(remote) => {
            v6.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            v6.sin6_port = remote.port().to_be();
            v6.sin6_addr.s6_addr = remote.ip().octets();
            v6.sin6_scope_id = remote.scope_id();
            header.msg_name = (&raw mut v6).cast();
            header.msg_namelen = mem::size_of_val(&v6) as libc::socklen_t;
        }
    }
    if !local.is_unspecified() {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control.0.len() as _;
        // SAFETY: the control buffer is aligned and larger than CMSG_SPACE of either struct; the
        // data is written unaligned.
        unsafe {
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            let used = match local {
                IpAddr::V4(address) => {
                    let mut info: libc::in_pktinfo = mem::zeroed();
                    info.ipi_spec_dst.s_addr = u32::from_ne_bytes(address.octets());
                    (*message).cmsg_level = libc::IPPROTO_IP;
                    (*message).cmsg_type = libc::IP_PKTINFO;
                    ptr::write_unaligned(libc::CMSG_DATA(message).cast(), info);
                    mem::size_of_val(&info)
                }
                IpAddr::V6(address) => {
                    let mut info: libc::in6_pktinfo = mem::zeroed();
                    info.ipi6_addr.s6_addr = address.octets();
                    (*message).cmsg_level = libc::IPPROTO_IPV6;
                    (*message).cmsg_type = libc::IPV6_PKTINFO;
                    ptr::write_unaligned(libc::CMSG_DATA(message).cast(), info);
                    mem::size_of_val(&info)
                }
            } as libc::c_uint;
            (*message).cmsg_len = libc::CMSG_LEN(used) as _;
            header.msg_controllen = libc::CMSG_SPACE(used) as _;
        }
    }
    // SAFETY: every pointer in `header` points to memory that outlives the call, and each length in
    // `header` is correct.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn a_datagram_is_answered_from_the_address_it_came_to(ipv4: bool, first: &str, second: &str) {
        let Ok(one) = Socket::open(ipv4, 0) else {
            eprintln!("skipped: this machine has no {}", if ipv4 { "IPv4" } else { "IPv6" });
            return;
        };
        let other = Socket::open(ipv4, 0).unwrap();
        let (first, second): (IpAddr, IpAddr) = (first.parse().unwrap(), second.parse().unwrap());
        one.send(first, SocketAddr::new(second, other.port()), b"question").unwrap();
        let mut buffer = [0; 64];
        let (length, local, remote) = other.receive(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"question");
        assert_eq!((local, remote), (SocketAddr::new(second, other.port()), SocketAddr::new(first, one.port())));
        other.send(local.ip(), remote, b"answer").unwrap();
        let (_, local, remote) = one.receive(&mut buffer).await.unwrap();
        assert_eq!((local.ip(), remote.ip()), (first, second));
    }

    #[tokio::test]
    async fn ipv4_datagrams_tell_both_addresses() {
        a_datagram_is_answered_from_the_address_it_came_to(true, "127.0.0.1", "127.0.0.2").await;
    }

    #[tokio::test]
    async fn ipv6_datagrams_tell_both_addresses() {
        a_datagram_is_answered_from_the_address_it_came_to(false, "::1", "::1").await;
    }

    #[tokio::test]
    async fn a_datagram_larger_than_the_buffer_is_refused_not_cut() {
        let one = Socket::open(true, 0).unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], one.port()));
        one.send(Ipv4Addr::UNSPECIFIED.into(), to, &[7; 100]).unwrap();
        let error = one.receive(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
