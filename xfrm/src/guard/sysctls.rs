//! Settings that make the kernel pass the guard by: `disable_policy` and `disable_xfrm`
//! (ip-sysctl.rst), which recipes for VTI interfaces set.

use std::fmt;
use std::fs;
use std::path::Path;

/// Below it are the settings of each interface, and of `all` of them.
const ROOT: &str = "/proc/sys/net";

/// Settings and what they do where they are 1. IPv6 has no `disable_xfrm`.
const SETTINGS: [(&str, &str); 3] = [("ipv4", "disable_policy"), ("ipv4", "disable_xfrm"), ("ipv6", "disable_policy")];

/// A setting by which packets pass without a policy being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bypass {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// The interface, or `all`, or `default` for those to come.
    pub interface: String,
    /// `disable_policy`: what comes in there is not checked. `disable_xfrm`: what goes out there is
    /// neither encrypted nor checked.
    pub setting: &'static str,
}

impl Bypass {
    /// Whether packets that come in are taken without a policy being asked; otherwise those that go
    /// out.
    pub fn is_inbound(&self) -> bool {
        self.setting == "disable_policy"
    }

    /// As sysctl(8) names it: dots within an interface's name are slashes there.
    pub fn name(&self) -> String {
        format!("net.{}.conf.{}.{}", self.family, self.interface.replace('.', "/"), self.setting)
    }
}

impl fmt::Display for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_inbound() {
            "packets from other nodes' pods are taken in clear"
        } else {
            "packets to other nodes' pods are not encrypted, and die"
        };
        let name = self.name();
        write!(f, "{name} is 1, so that no policy is asked there and {what}; run `sysctl -w {name}=0`")
    }
}

/// All such settings of the network namespace that the process is in, those of `lo` excepted, where
/// the kernel sets them itself.
pub fn bypasses() -> Vec<Bypass> {
    bypasses_below(Path::new(ROOT))
}

fn bypasses_below(root: &Path) -> Vec<Bypass> {
    let mut found = Vec::new();
    for (family, setting) in SETTINGS {
        let entries = fs::read_dir(root.join(family).join("conf")).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name() != "lo") {
            // An interface may go meanwhile.
            if fs::read_to_string(entry.path().join(setting)).is_ok_and(|value| value.trim() == "1") {
                let interface = entry.file_name().to_string_lossy().into_owned();
                found.push(Bypass { family, interface, setting });
            }
        }
    }
    found.sort_by(|a, b| (&a.interface, a.family, a.setting).cmp(&(&b.interface, b.family, b.setting)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_pass_policies_by_are_named_with_the_command() {
        let root = std::env::temp_dir().join(format!("edge-xfrm-sysctls-{}", std::process::id()));
        let set = |name: &str, value: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        };
        set("ipv4/conf/all/disable_policy", "0");
        set("ipv4/conf/all/disable_xfrm", "1");
        set("ipv4/conf/lo/disable_policy", "1");
        set("ipv4/conf/eth0.5/disable_policy", "1");
        set("ipv6/conf/eth0/disable_policy", "1");
        let found = bypasses_below(&root);
        fs::remove_dir_all(&root).unwrap();
        let names: Vec<String> = found.iter().map(Bypass::name).collect();
        assert_eq!(
            names,
            [
                "net.ipv4.conf.all.disable_xfrm",
                "net.ipv6.conf.eth0.disable_policy",
                "net.ipv4.conf.eth0/5.disable_policy"
            ]
        );
        assert!(!found[0].is_inbound() && found[1].is_inbound());
        assert!(found[2].to_string().contains("sysctl -w net.ipv4.conf.eth0/5.disable_policy=0"), "{}", found[2]);
        assert!(bypasses_below(&root).is_empty());
    }
}
