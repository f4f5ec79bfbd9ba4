//! Network namespaces for tests. Each has one thread and exists as long as that thread.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use edge_xfrm::{Algorithm, Error, EspKey, Mode, Replay, Reqid, SaDirection, SaParams, Xfrm};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace and the thread that runs in it.
pub(crate) struct Namespace {
    jobs: Sender<Job>,
    thread: i32,
}

impl Namespace {
    /// Creates a namespace with `lo` up and IP forwarding on.
    pub(crate) fn new() -> Self {
        let (jobs, todo) = channel::<Job>();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            enter_new_namespace();
            sender.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            todo.into_iter().for_each(|job| job());
        });
        let namespace = Self { jobs, thread: receiver.recv().unwrap() };
        namespace.ip("link set lo up");
        namespace.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            // Only policies may drop packets in these tests.
            for scope in ["all", "default"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "0").unwrap();
            }
            if std::path::Path::new("/proc/sys/net/ipv6").exists() {
                std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
            }
        });
        namespace
    }

    /// Runs a closure in the namespace. Resumes its panic in the caller's thread.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = channel();
        let job = move || {
            let _ = sender.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
        };
        self.jobs.send(Box::new(job)).unwrap();
        receiver.recv().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `ip` with these arguments, and returns its output. Panics if the command fails.
    pub(crate) fn ip(&self, words: &str) -> String {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        self.run(move || {
            let output = Command::new("ip").args(&words).output().expect("iproute2 is there");
            assert!(output.status.success(), "ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// Makes a veth pair to another namespace. `here` and `there` are its ends: the device's name,
    /// and its addresses with their prefix lengths.
    pub(crate) fn wire(&self, here: (&str, &[&str]), other: &Namespace, there: (&str, &[&str])) {
        self.ip(&format!("link add {} type veth peer name {} netns {}", here.0, there.0, other.thread));
        for (namespace, (name, addresses)) in [(self, here), (other, there)] {
            for address in addresses {
                let family = if address.contains(':') { "nodad" } else { "" };
                namespace.ip(&format!("addr add {address} dev {name} {family}"));
            }
            namespace.ip(&format!("link set {name} up"));
        }
    }

    /// Opens a UDP socket that listens in the namespace.
    pub(crate) fn listen(&self, address: &str) -> UdpSocket {
        let address: SocketAddr = address.parse().unwrap();
        self.run(move || {
            let socket = bind_freebind(address);
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket
        })
    }

    /// Sends one datagram from an address of the namespace.
    pub(crate) fn send(&self, from: &str, to: &str, text: &str) {
        let (from, to): (IpAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let text = text.to_owned();
        self.run(move || {
            // A block policy makes this call fail. The tests instead check whether datagrams
            // arrive.
            let _ = bind_freebind(SocketAddr::new(from, 0)).send_to(text.as_bytes(), to);
        });
    }

    /// Returns the number of packets that a device has sent.
    pub(crate) fn transmitted(&self, device: &'static str) -> u64 {
        self.run(move || {
            let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            let line = text.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':')).unwrap();
            line.split_whitespace().nth(9).unwrap().parse().unwrap()
        })
    }

    /// Waits until a counter of `/proc/net/xfrm_stat` has a value. Panics if it exceeds that value.
    pub(crate) fn await_counter(&self, name: &'static str, value: u64) {
        self.await_value(name, value, |namespace| namespace.counter(name));
    }

    /// Waits until `read` returns `value`. Panics if it returns a higher value.
    pub(crate) fn await_value(&self, what: &str, value: u64, read: impl Fn(&Namespace) -> u64) {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let seen = read(self);
            assert!(seen <= value, "{what}: {seen}, {value} expected");
            if seen == value {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{what}: still {seen}, {value} expected");
            #[expect(clippy::disallowed_methods, reason = "counters have no event; the crate knows no interop-tests")]
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Reads a counter of `/proc/net/xfrm_stat`.
    pub(crate) fn counter(&self, name: &'static str) -> u64 {
        self.run(move || edge_xfrm::stat::read().unwrap().get(name).copied().unwrap_or_default())
    }
}

/// Receives the next datagram as text.
pub(crate) fn receive(socket: &UdpSocket) -> String {
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).expect("a datagram arrives");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Binds to an address even if the host does not have it.
fn bind_freebind(from: SocketAddr) -> UdpSocket {
    use rustix::net::{AddressFamily, SocketType, sockopt};
    let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::DGRAM, None).unwrap();
    if from.is_ipv4() {
        sockopt::set_ip_freebind(&socket, true).unwrap();
    } else {
        sockopt::set_ipv6_freebind(&socket, true).unwrap();
        sockopt::set_ipv6_v6only(&socket, true).unwrap();
    }
    rustix::net::bind(&socket, &from).unwrap();
    socket.into()
}

#[allow(unsafe_code)]
fn enter_new_namespace() {
    // SAFETY: unshare with this flag changes only the network namespace of the calling thread.
    let outcome = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(outcome, 0, "unshare: {}", std::io::Error::last_os_error());
}

/// Returns the reason why no test can run here, or `None` if tests can run.
pub(crate) fn missing_root() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    let probe = std::thread::spawn(|| {
        // SAFETY: as in `enter_new_namespace`.
        #[allow(unsafe_code)]
        let outcome = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        if outcome != 0 {
            return Some(format!("no network namespace: {}", std::io::Error::last_os_error()));
        }
        Xfrm::open().and_then(|mut xfrm| xfrm.policies()).err().map(|error| error.to_string())
    });
    probe.join().unwrap()
}

/// Returns the reason why SAs cannot be tested here, or `None` if they can.
pub(crate) fn missing_esp() -> Option<String> {
    let probe = || match Xfrm::open().unwrap().add_sa(&sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x100, 0)) {
        Ok(()) => None,
        Err(Error::Unsupported { .. }) => {
            Some("this kernel has no ESP: `interop-tests run xfrm/kernel` runs it".into())
        }
        Err(error) => panic!("{error}"),
    };
    Namespace::new().run(probe)
}

/// The key of all SAs in these tests.
pub(crate) const KEY: [u8; 20] = *b"sixteen bytes+salt!!";

/// Makes a plain SA of tunnel `n`: AES-128-GCM, no encapsulation, no ESN, no selector.
pub(crate) fn sa(direction: SaDirection, source: &str, destination: &str, spi: u32, n: u32) -> SaParams {
    SaParams {
        direction,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        spi,
        reqid: Reqid::tunnel(n).unwrap(),
        mode: Mode::Tunnel,
        key: EspKey::new(Algorithm::Aes128Gcm16, &KEY).unwrap(),
        encap: None,
        replay: Replay::PLAIN,
        selector: None,
        limits: Default::default(),
    }
}
