//! Measures the MTU and the throughput of a path with echo requests of given sizes.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::destination::Destination;
use super::echo::EchoSocket;

/// Sizes of IP packets in octets that every host accepts, for IPv4 (RFC 791) and IPv6 (RFC 8200
/// section 5).
const SMALLEST: (u32, u32) = (576, 1280);
/// Number of sizes that are tried at once.
const SIZES: u32 = 16;
/// Number of packets of each size, in case one is lost.
const OF_EACH_SIZE: u16 = 2;
/// Timeout for the replies to a group of packets.
const WAIT: Duration = Duration::from_secs(1);
/// Number of packets in a train. All of them fit into the default receive buffer of a socket.
const TRAIN: u16 = 32;
/// Minimum number of replies to a train for an estimate.
const LEAST_REPLIES: usize = 8;

/// Returns the size in octets of the largest IP packet that the other end answers, at most
/// `largest`. `None` if it answers no packet, or if the operating system reports an error.
pub(super) async fn mtu(to: &Destination, largest: u32, stop: &CancellationToken) -> Option<u32> {
    if let Some(found) = answered(to, &[largest], stop).await.into_iter().max() {
        return Some(found);
    }
    let smallest = if to.address.is_ipv4() { SMALLEST.0 } else { SMALLEST.1 };
    let (mut best, mut too_large) = (None, largest);
    while !stop.is_cancelled() {
        let first = best.map_or(smallest, |best| best + 1);
        if first >= too_large {
            break;
        }
        let sizes = sizes(first, too_large - 1);
        let Some(found) = answered(to, &sizes, stop).await.into_iter().max() else { break };
        too_large = sizes.into_iter().find(|size| *size > found).unwrap_or(too_large);
        best = Some(found);
    }
    best
}

/// Returns at most [`SIZES`] sizes from `first` to `last`, both included, at about equal distances.
fn sizes(first: u32, last: u32) -> Vec<u32> {
    let steps = SIZES - 1;
    let sizes: BTreeSet<u32> = (0..=steps).map(|step| first + (last - first) * step / steps).collect();
    sizes.into_iter().collect()
}

/// Sends packets of these sizes, and returns the sizes that are answered.
async fn answered(to: &Destination, sizes: &[u32], stop: &CancellationToken) -> BTreeSet<u32> {
    let mut answered = BTreeSet::new();
    let Ok(socket) = EchoSocket::open(to.source, to.address) else { return answered };
    if socket.forbid_fragments().is_err() {
        return answered;
    }
    let mut sequence = 0;
    let mut sent: Vec<u32> = Vec::new();
    for _ in 0..OF_EACH_SIZE {
        for &size in sizes {
            let octets = usize::try_from(size).unwrap_or(usize::MAX);
            // The kernel may report an ICMP error about an earlier packet instead of sending this
            // one, so a second attempt follows. A packet that the kernel does not send counts as
            // not answered.
            if socket.send_sized(sequence, octets).await.is_err() {
                let _ = socket.send_sized(sequence, octets).await;
            }
            sent.push(size);
            sequence += 1;
        }
    }
    let collect = async {
        while answered.len() < sizes.len() {
            // The error may be an ICMP error in response to a packet that is too large.
            let Ok(reply) = socket.receive().await else { continue };
            answered.extend(reply.and_then(|number| sent.get(usize::from(number))));
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        _ = timeout_at(Instant::now() + WAIT, collect) => {}
    }
    answered
}

/// Estimates the throughput in bits per second: sends a train of packets of `size` octets without
/// pauses, and measures the time from the first to the last reply. The narrowest link in either
/// direction, or the slowest CPU, determines it. `None` if fewer than [`LEAST_REPLIES`] replies
/// arrive.
pub(super) async fn throughput(to: &Destination, size: u32, stop: &CancellationToken) -> Option<u64> {
    let socket = EchoSocket::open(to.source, to.address).ok()?;
    let octets = usize::try_from(size).ok()?;
    let mut arrivals: Vec<Instant> = Vec::new();
    let mut answered = BTreeSet::new();
    let train = async {
        let send = async {
            for sequence in 0..TRAIN {
                match socket.send_sized(sequence, octets).await {
                    Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => {}
                    sent => sent?,
                }
            }
            io::Result::Ok(())
        };
        let receive = async {
            while answered.len() < usize::from(TRAIN) {
                if let Some(number) = socket.receive().await?
                    && answered.insert(number)
                {
                    arrivals.push(Instant::now());
                }
            }
            io::Result::Ok(())
        };
        tokio::try_join!(send, receive).map(drop)
    };
    tokio::select! {
        () = stop.cancelled() => {}
        _ = timeout_at(Instant::now() + WAIT, train) => {}
    }
    rate(&arrivals, size)
}

/// Returns the rate in bits per second of packets of `size` octets that arrived at these times.
fn rate(arrivals: &[Instant], size: u32) -> Option<u64> {
    let (first, last) = (arrivals.first()?, arrivals.last()?);
    let intervals = arrivals.len().checked_sub(1).filter(|_| arrivals.len() >= LEAST_REPLIES)?;
    let nanoseconds = last.duration_since(*first).as_nanos();
    let bits = u128::try_from(intervals).ok()? * u128::from(size) * 8;
    u64::try_from(bits * 1_000_000_000 / nanoseconds.max(1)).ok()
}

#[cfg(test)]
mod tests {
    use interop_tests::netns;

    use super::*;

    /// Names of network namespaces, which are deleted even after a failure.
    struct Namespaces([String; 3]);

    impl Drop for Namespaces {
        fn drop(&mut self) {
            self.0.iter().for_each(|name| netns::delete(name));
        }
    }

    /// Runs `work` in the first of three network namespaces in a row. The link to the last one has
    /// this MTU.
    fn beyond_a_link<T: Send>(name: &str, mtu: u32, work: impl AsyncFnOnce() -> T + Send) -> T {
        let namespaces = Namespaces(["a", "r", "b"].map(|which| format!("{name}-{which}-{}", std::process::id())));
        let [a, r, b] = &namespaces.0;
        for namespace in [a, r, b] {
            netns::add(namespace);
            netns::run(&format!("ip -n {namespace} link set lo up"));
        }
        for line in [
            format!("ip -n {a} link add name near type veth peer name to-a netns {r}"),
            format!("ip -n {b} link add name far type veth peer name to-b netns {r}"),
            format!("ip -n {r} link set to-b mtu {mtu}"),
            format!("ip -n {b} link set far mtu {mtu}"),
        ] {
            netns::run(&line);
        }
        for (namespace, link, v4, v6) in [
            (a, "near", "10.9.1.1/24", "fd09:1::1/64"),
            (r, "to-a", "10.9.1.2/24", "fd09:1::2/64"),
            (r, "to-b", "10.9.2.2/24", "fd09:2::2/64"),
            (b, "far", "10.9.2.1/24", "fd09:2::1/64"),
        ] {
            netns::run(&format!("ip -n {namespace} addr add {v4} dev {link}"));
            netns::run(&format!("ip -n {namespace} addr add {v6} dev {link} nodad"));
            netns::run(&format!("ip -n {namespace} link set {link} up"));
        }
        for key in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            netns::run(&format!("ip netns exec {r} sysctl -q -w {key}"));
        }
        for (namespace, v4, v6) in [(a, "10.9.1.2", "fd09:1::2"), (b, "10.9.2.2", "fd09:2::2")] {
            netns::run(&format!("ip -n {namespace} route add default via {v4}"));
            netns::run(&format!("ip -n {namespace} -6 route add default via {v6}"));
        }
        netns::within(a, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work())
        })
    }

    #[test]
    fn the_largest_packet_that_a_link_takes_is_found_in_both_families() {
        if !netns::is_root_or_skips() {
            return;
        }
        let found = beyond_a_link("mtu", 1307, async || {
            let stop = CancellationToken::new();
            let mut found = Vec::new();
            for (source, address) in [("10.9.1.1", "10.9.2.1"), ("fd09:1::1", "fd09:2::1")] {
                let to = Destination {
                    peer: "b".into(),
                    address: address.parse().unwrap(),
                    source: source.parse().unwrap(),
                };
                found.push(mtu(&to, 1420, &stop).await);
                found.push(mtu(&to, 1300, &stop).await);
                assert!(throughput(&to, 1300, &stop).await.is_some_and(|rate| rate > 0));
                let nobody = Destination {
                    address: if to.address.is_ipv4() { "10.9.2.77" } else { "fd09:2::77" }.parse().unwrap(),
                    ..to
                };
                found.push(mtu(&nobody, 1420, &stop).await);
                assert_eq!(throughput(&nobody, 1300, &stop).await, None);
            }
            found
        });
        let of_a_family = [Some(1307), Some(1300), None];
        assert_eq!(found, [of_a_family, of_a_family].concat());
    }

    #[test]
    fn the_rate_follows_from_the_intervals_between_replies() {
        let begin = Instant::now();
        let at = |count: u64| (0..count).map(|ms| begin + Duration::from_millis(ms)).collect::<Vec<_>>();
        assert_eq!(rate(&at(11), 1250), Some(10_000_000));
        assert_eq!(rate(&at(7), 1250), None, "too few replies");
        assert_eq!(rate(&[], 1250), None);
        assert!(rate(&[begin; 8], 1250).is_some(), "all at once");
    }

    #[test]
    fn sizes_begin_and_end_where_they_should() {
        assert_eq!(sizes(576, 576), [576]);
        assert_eq!(sizes(576, 577), [576, 577]);
        let many = sizes(576, 1439);
        assert_eq!((many.len(), many[0], many[15]), (16, 576, 1439));
    }
}
