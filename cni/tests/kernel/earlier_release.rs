//! Tests which packets pods of an earlier release may send after this release has created the
//! filter.

use interop_tests::suite::Test;

use crate::filter_table::{host_end, stands, table, up};
use crate::frames::{self, Mac, mac_text};
use crate::spoof::attach;
use crate::world::{Pod, World, ip, pings};

pub(crate) const TESTS: &[Test] = &[(
    "a_pod_of_an_earlier_release_takes_no_others_mac_address",
    a_pod_of_an_earlier_release_takes_no_others_mac_address,
)];

fn a_pod_of_an_earlier_release_takes_no_others_mac_address() {
    let world = World::new(&["10.77.3.0/24", "fd77:0:0:3::/120"]);
    let mut pods = [attach(&world), attach(&world), attach(&world)];
    // Two pods are from an earlier release, and one is from this release.
    for (number, attached) in pods.iter_mut().take(2).enumerate() {
        let port = host_end(&world, &attached.pod);
        world.ip(&format!("link set {port} address 72:01:02:03:04:0{number}"));
        attached.mac = [0x72, 0x0a, 0x0b, 0x0c, 0x0d, number as u8];
        ip(&attached.pod.netns, &format!("link set eth0 address {}", mac_text(attached.mac)));
    }
    up(&world);
    stands(&pods.iter().collect::<Vec<_>>());
    let bridge = world.ip("link show ecni0");
    let bridge = frames::mac(&bridge.split("link/ether ").nth(1).unwrap()[..17]);
    let host_port = frames::mac("72:01:02:03:04:01");
    let attacker = &pods[0];
    for taken in [pods[1].mac, pods[2].mac, bridge, host_port] {
        ip(&attacker.pod.netns, &format!("link set eth0 address {}", mac_text(taken)));
        // The second run finds the table of the first run.
        for _ in 0..2 {
            up(&world);
            let admitted = |pod: &Pod, mac: Mac| {
                table(&world).contains(&format!("\"{}\" . {}", host_end(&world, pod), mac_text(mac)))
            };
            assert!(!admitted(&attacker.pod, taken) && admitted(&pods[1].pod, pods[1].mac), "{}", table(&world));
            assert!(!pings(&attacker.pod.netns, "10.77.3.1"));
            stands(&[&pods[1], &pods[2]]);
        }
    }
    ip(&attacker.pod.netns, &format!("link set eth0 address {}", mac_text(attacker.mac)));
    up(&world);
    stands(&pods.iter().collect::<Vec<_>>());
}
