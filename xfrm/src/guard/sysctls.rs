//! The settings that let packets bypass the guard: `disable_policy` and `disable_xfrm`
//! (ip-sysctl.rst). Setup instructions for VTI interfaces set them.

use std::fmt;
use std::fs;
use std::path::Path;

/// The directory of the settings for each interface and for `all`.
const ROOT: &str = "/proc/sys/net";

/// Settings that bypass policies unless their value is 0, by family. IPv6 has no `disable_xfrm`.
const SETTINGS: [(&str, &str); 3] = [("ipv4", "disable_policy"), ("ipv4", "disable_xfrm"), ("ipv6", "disable_policy")];

/// A setting that lets packets pass without a policy lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bypass {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// The interface, or `all`, or `default` for new interfaces.
    pub interface: String,
    /// `disable_policy`: incoming packets are not checked. `disable_xfrm`: outgoing packets are
    /// neither encrypted nor checked.
    pub setting: &'static str,
}

impl Bypass {
    /// Returns whether the setting affects incoming packets. If not, it affects outgoing packets.
    pub fn is_inbound(&self) -> bool {
        self.setting == "disable_policy"
    }

    /// Returns the setting's name for sysctl(8). Dots within an interface's name become slashes.
    pub fn name(&self) -> String {
        format!("net.{}.conf.{}.{}", self.family, self.interface.replace('.', "/"), self.setting)
    }
}

impl fmt::Display for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_inbound() {
            "packets from other nodes' pods are taken in clear"
        } else {
            "packets to other nodes' pods are not encrypted and are lost"
        };
        let name = self.name();
        write!(f, "{name} is not 0, so the kernel looks up no policy there and {what}; run `sysctl -w {name}=0`")
    }
}

/// Returns all settings that bypass policies in the process's network namespace. Skips the settings
/// of `lo`, which the kernel sets itself.
pub fn bypasses() -> Vec<Bypass> {
    bypasses_below(Path::new(ROOT))
}

fn bypasses_below(root: &Path) -> Vec<Bypass> {
    let mut found = Vec::new();
    for (family, setting) in SETTINGS {
        let entries = fs::read_dir(root.join(family).join("conf")).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name() != "lo") {
            // The interface may have been removed in the meantime.
            if fs::read_to_string(entry.path().join(setting)).is_ok_and(|value| !value.starts_with('0')) {
                let interface = entry.file_name().to_string_lossy().into_owned();
                let bypass = Bypass { family, interface, setting };
                // Insert in sorted order, since a sort function would add 4 KiB to the plugin's
                // binary.
                found.insert(found.partition_point(|other: &Bypass| order(other) < order(&bypass)), bypass);
            }
        }
    }
    found
}

/// Returns the sort key: interface, then family and setting.
fn order(bypass: &Bypass) -> (&str, &str, &str) {
    (&bypass.interface, bypass.family, bypass.setting)
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
        // The kernel accepts any number and takes all but 0 for true.
        set("ipv4/conf/eth0.5/disable_policy", "2");
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
