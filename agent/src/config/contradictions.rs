//! Finds values that are well-formed, but can never do what the operator wants: addresses of no
//! host, a minimum above its maximum, two listeners for one port, and directories that belong to
//! the whole system. What works, but probably not as intended, is a warning of
//! [`crate::check`] instead.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::timing::TimingSection;

/// Shortest lifetime of keys and of an authentication, and shortest interval of NAT keepalives:
/// below it, a node does little else.
const LEAST_LIFETIME: Duration = Duration::from_secs(1);
/// Shortest time until a liveness check or another attempt.
const LEAST_WAIT: Duration = Duration::from_millis(10);

/// Directories that other programs need (Filesystem Hierarchy Standard 3.0).
const OF_THE_SYSTEM: [&str; 26] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/dev/shm",
    "/etc",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/local",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/run",
    "/var/tmp",
];

/// Fails if a timer is too short, or if a wait begins above its maximum.
pub(super) fn check_timing(section: &TimingSection, idle: Duration) -> Result<(), String> {
    let timing = section.resolve();
    if idle < LEAST_LIFETIME {
        return Err(format!(
            "[on_demand]: idle_timeout is {idle:?}; expected at least {LEAST_LIFETIME:?}, since a shorter one closes tunnels that are still in use"
        ));
    }
    for (key, value, least) in [
        ("child_lifetime", timing.child_lifetime, LEAST_LIFETIME),
        ("ike_lifetime", timing.ike_lifetime, LEAST_LIFETIME),
        ("authentication_lifetime", timing.authentication_lifetime, LEAST_LIFETIME),
        ("nat_keepalive", timing.nat_keepalive, LEAST_LIFETIME),
        ("liveness", timing.liveness, LEAST_WAIT),
        ("idle_liveness", timing.idle_liveness, LEAST_WAIT),
        ("retransmit", timing.retransmit, LEAST_WAIT),
        ("retry", timing.retry, LEAST_WAIT),
    ] {
        if value < least {
            return Err(format!(
                "[timing]: {key} is {value:?}; expected at least {least:?}, since less would keep both ends busy; leave it out for the default"
            ));
        }
    }
    if timing.retry > timing.retry_max {
        let default = if section.retry_max.is_none() { " by default" } else { "" };
        return Err(format!(
            "[timing]: retry is {:?} and retry_max {:?}{default}; expected retry to be at most retry_max, up to which it doubles: \
             raise retry_max, or lower retry",
            timing.retry, timing.retry_max
        ));
    }
    Ok(())
}

/// Fails if two listeners would need the same TCP port at the same address.
pub(super) fn check_listeners(listen: &[SocketAddr], tcp_port: Option<u16>) -> Result<(), String> {
    for (at, address) in listen.iter().enumerate() {
        if address.ip().is_multicast() || address.ip() == Ipv4Addr::BROADCAST {
            return Err(format!(
                "[observe]: listen has {address}, which is no address of a host; write one of this node, such as 127.0.0.1:9644"
            ));
        }
        if listen.iter().take(at).any(|other| other == address && address.port() != 0) {
            return Err(format!("[observe]: listen has {address} twice; leave one of them out"));
        }
    }
    let of_hub = |address: &&SocketAddr| tcp_port == Some(address.port());
    match listen.iter().find(of_hub) {
        Some(address) => Err(format!(
            "[observe]: listen has {address}, and [tcp] listen_port is {} at all addresses; choose another port for one of them",
            address.port()
        )),
        None => Ok(()),
    }
}

/// Fails if `state_dir` or `run_dir`, which are absolute, are directories of the whole system.
pub(super) fn check_directories(state_dir: &Path, run_dir: &Path) -> Result<(), String> {
    for (key, directory, example) in
        [("state_dir", state_dir, "/var/lib/edge-cni"), ("run_dir", run_dir, "/run/edge-cni")]
    {
        let lexical = without_dots(directory);
        if OF_THE_SYSTEM.iter().any(|system| lexical == Path::new(system)) {
            return Err(format!(
                "{key} is {}, which belongs to the whole system; expected a directory of the agent's own, such as {example}",
                directory.display()
            ));
        }
    }
    Ok(())
}

/// Returns an absolute path without `.` and `..`. Symbolic links are not followed.
fn without_dots(path: &Path) -> PathBuf {
    let mut lexical = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                lexical.pop();
            }
            _ => lexical.push(component),
        }
    }
    lexical
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigError};
    use super::*;

    const PEER: &str = "[[peer]]\nname = \"moon\"\nremote = \"192.0.2.1\"\nlocal_id = \"sun.example\"\nremote_id = \"moon.example\"\n\
                        psk = \"correct horse\"\nlocal_subnets = [\"10.1.0.0/16\"]\nremote_subnets = [\"10.2.0.0/16\"]\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("agent.toml"))
    }

    /// Fails unless the text is refused with each of these words.
    fn refused(text: &str, words: &[&str]) {
        let error = parse(text).expect_err(text).to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{text} gave {error}");
    }

    #[test]
    fn addresses_that_no_host_has_are_refused_wherever_a_host_is_named() {
        let remote = |text: &str| PEER.replace("\"192.0.2.1\"", text);
        for (address, what) in [
            ("0.0.0.0", "means any address"),
            ("::", "means any address"),
            ("224.0.0.251", "multicast"),
            ("ff02::1", "multicast"),
            ("::ffff:224.0.0.1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("fe80::1", "link-local"),
        ] {
            refused(&remote(&format!("\"{address}\"")), &["moon", "remote has ", address, what, "192.0.2.1"]);
            refused(&remote(&format!("[\"192.0.2.1\", \"{address}\"]")), &["remote has ", address]);
            refused(&format!("{PEER}local = \"{address}\""), &["local has ", address, "leave local out"]);
            let controller = "[controller]\nurls = [\"https://c.example:8443\"]\n";
            refused(&format!("{controller}advertise = [\"{address}\"]"), &["[controller]: advertise has ", address]);
            refused(
                &format!("resolvers_behind_tunnels = [\"{address}\"]\n{PEER}"),
                &["resolvers_behind_tunnels has ", address],
            );
        }
        refused(&remote("\"[::]:4500\""), &["remote has ::"]);
        for address in ["127.0.0.2", "[::1]:4500", "169.254.7.1", "240.0.0.1", "moon.example"] {
            parse(&remote(&format!("\"{address}\""))).unwrap();
        }
    }

    #[test]
    fn a_node_has_no_tunnel_with_its_own_address() {
        refused(&format!("{PEER}local = \"192.0.2.1\""), &["local and remote are both 192.0.2.1"]);
        parse(&format!("{PEER}local = \"192.0.2.7\"")).unwrap();
        // Agents on one host may differ in their ports.
        parse(
            &format!("{PEER}local = \"192.0.2.1\"").replace("\"192.0.2.1\"\nlocal_id", "\"192.0.2.1:5500\"\nlocal_id"),
        )
        .unwrap();
    }

    #[test]
    fn timers_that_contradict_each_other_or_never_rest_are_refused() {
        let timing = |keys: &str| format!("{PEER}[timing]\n{keys}\n");
        refused(&timing("retry = \"20s\"\nretry_max = \"5s\""), &["retry is 20s", "retry_max 5s;", "raise retry_max"]);
        refused(&timing("retry = \"11s\""), &["retry is 11s", "retry_max 10s by default"]);
        refused(&timing("retry_max = \"100ms\""), &["retry is 500ms", "retry_max 100ms"]);
        for (key, value) in [
            ("child_lifetime", "999ms"),
            ("ike_lifetime", "1ms"),
            ("authentication_lifetime", "500ms"),
            ("nat_keepalive", "10ms"),
            ("liveness", "1ms"),
            ("idle_liveness", "9ms"),
            ("retransmit", "5ms"),
            ("retry", "1ms"),
        ] {
            refused(&timing(&format!("{key} = \"{value}\"")), &["[timing]", key, value, "expected at least"]);
        }
        let idle = |time: &str| format!("{PEER}[on_demand]\nidle_timeout = \"{time}\"\n");
        refused(&idle("999ms"), &["[on_demand]: idle_timeout is 999ms", "expected at least 1s"]);
        parse(&idle("1s")).unwrap();
        parse(&timing("retry = \"10s\"")).unwrap();
        parse(&timing("retry = \"1h\"\nretry_max = \"1h\"\nchild_lifetime = \"1s\"")).unwrap();
    }

    #[test]
    fn two_listeners_for_one_port_are_refused() {
        let observe = |listen: &str| format!("{PEER}[observe]\nlisten = [{listen}]\n");
        refused(&observe("\"127.0.0.1:9644\", \"[::1]:9644\", \"127.0.0.1:9644\""), &["127.0.0.1:9644 twice"]);
        refused(&observe("\"224.0.0.1:9644\""), &["224.0.0.1:9644", "no address of a host"]);
        refused(
            &format!("{}[tcp]\nlisten_port = 9644\n", observe("\"127.0.0.1:9644\"")),
            &["[observe]: listen has 127.0.0.1:9644", "[tcp] listen_port is 9644"],
        );
        for listen in ["\"127.0.0.1:0\", \"127.0.0.1:0\"", "\"127.0.0.1:9644\", \"[::1]:9644\"", "\"0.0.0.0:9644\""] {
            parse(&observe(listen)).unwrap();
        }
    }

    #[test]
    fn directories_of_the_whole_system_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("agent.toml");
        let load = |line: &str| {
            std::fs::write(&file, format!("{line}\n[controller]\nurls = [\"https://c.example:8443\"]\n")).unwrap();
            Config::load(&file).map_err(|error| error.to_string())
        };
        let up: String = directory.path().components().map(|_| "../").collect();
        for (line, words) in [
            ("state_dir = \"/\"".to_owned(), "state_dir is /, which"),
            ("state_dir = \"/var/lib/\"".to_owned(), "such as /var/lib/edge-cni"),
            ("state_dir = \"/var/lib/edge-cni/..\"".to_owned(), "state_dir is /var/lib/edge-cni/.."),
            (format!("state_dir = \"{up}\""), "belongs to the whole system"),
            ("run_dir = \"/run\"".to_owned(), "such as /run/edge-cni"),
            ("run_dir = \"/tmp/./\"".to_owned(), "run_dir is /tmp"),
        ] {
            let error = load(&line).expect_err(&line);
            assert!(error.contains(words) && error.contains("agent's own"), "{line} gave {error}");
        }
        load("state_dir = \"state\"\nrun_dir = \"/run/edge-cni\"").unwrap();
    }
}
