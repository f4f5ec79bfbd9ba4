//! Tests parallel calls, killed calls and damaged disks, and the state that must survive them.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use interop_tests::netns::succeed;
use interop_tests::suite::Test;
use serde_json::{Value, json};

use crate::filter_table::table;
use crate::node::up;
use crate::world::{World, addresses, answer, pings, wait_for};

pub(crate) const TESTS: &[Test] = &[
    (
        "del_may_come_any_number_of_times_with_and_without_a_namespace",
        del_may_come_any_number_of_times_with_and_without_a_namespace,
    ),
    ("del_of_what_never_was_leaves_no_trace", del_of_what_never_was_leaves_no_trace),
    ("fifty_adds_at_once_get_fifty_addresses", fifty_adds_at_once_get_fifty_addresses),
    ("an_add_killed_at_any_moment_is_cleaned_up_by_del", an_add_killed_at_any_moment_is_cleaned_up_by_del),
    ("a_del_killed_at_any_moment_can_be_repeated", a_del_killed_at_any_moment_can_be_repeated),
    ("kills_among_adds_at_once_cost_the_others_nothing", kills_among_adds_at_once_cost_the_others_nothing),
    ("a_removed_journal_is_not_begun_anew_under_running_pods", a_removed_journal_is_not_begun_anew_under_running_pods),
    (
        "a_removed_journal_is_not_begun_anew_by_another_network_that_shares_it",
        a_removed_journal_is_not_begun_anew_by_another_network_that_shares_it,
    ),
    ("a_cut_journal_is_named_and_nothing_is_given_or_lost", a_cut_journal_is_named_and_nothing_is_given_or_lost),
    ("cut_segments_are_named_and_pods_can_still_go", cut_segments_are_named_and_pods_can_still_go),
    (
        "a_store_that_cannot_be_read_is_named_and_nothing_is_left_behind",
        a_store_that_cannot_be_read_is_named_and_nothing_is_left_behind,
    ),
    ("leases_of_pods_that_vanished_end_after_the_grace_time", leases_of_pods_that_vanished_end),
    ("addresses_of_pods_that_vanished_come_back_when_short", addresses_of_pods_that_vanished_come_back_when_short),
];

const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];

fn del_may_come_any_number_of_times_with_and_without_a_namespace() {
    let world = World::new(DUAL);
    let (first, second) = (world.pod(), world.pod());
    world.add(&first);
    world.add(&second);
    world.del(&first);
    world.del(&first);
    let again = |netns: &str| {
        let variables = [
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", second.id.as_str()),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
        ];
        let answer = world.run(&variables, &world.config.borrow().to_string());
        assert!(answer.ok, "{netns:?}: {}", answer.json);
    };
    world.destroy(&second);
    again("/run/netns/is-gone");
    assert!(world.leased().is_empty() && world.ports().is_empty());
    again("");
    again("/proc/1/ns/net");
}

fn del_of_what_never_was_leaves_no_trace() {
    let world = World::new(DUAL);
    world.del(&world.pod());
    assert!(!world.state("").exists());
    assert_eq!(world.ip("-br link").lines().count(), 1);
}

fn fifty_adds_at_once_get_fifty_addresses() {
    let world = World::new(DUAL);
    let pods: Vec<_> = (0..50).map(|_| world.pod()).collect();
    let started: Vec<_> = pods.iter().map(|pod| world.start_verb("ADD", pod)).collect();
    let mut given = BTreeSet::new();
    for child in started {
        let answer = answer(child);
        assert!(answer.ok, "{}", answer.json);
        given.extend(addresses(&answer.json));
    }
    assert_eq!(given.len(), 100);
    assert_eq!(world.ports().len(), 50);
    assert!(given.iter().all(|address| pings(&world.host, address)));
    let started: Vec<_> = pods.iter().map(|pod| world.start_verb("DEL", pod)).collect();
    assert!(started.into_iter().map(answer).all(|answer| answer.ok));
    assert!(world.ports().is_empty() && world.leased().is_empty());
}

/// Moments at which to kill a call, spread over its duration. The duration is measured repeatedly,
/// since it changes on a busy machine.
struct Moments {
    whole: Duration,
    number: u32,
    killed: u32,
}

impl Moments {
    const SPREAD: u32 = 20;

    fn within(whole: Duration) -> Self {
        Self { whole, number: 0, killed: 0 }
    }

    /// Kills the call at the next moment.
    fn kill(&mut self, mut child: Child) {
        #[expect(clippy::disallowed_methods, reason = "it chooses the moment of a kill")]
        std::thread::sleep(self.whole * (self.number % Self::SPREAD) / Self::SPREAD);
        self.number += 1;
        let _ = child.kill();
        if child.wait().unwrap().success() {
            self.whole = self.whole * 9 / 10;
        } else {
            self.killed += 1;
            self.whole = self.whole * 21 / 20;
        }
    }
}

fn an_add_killed_at_any_moment_is_cleaned_up_by_del() {
    let world = World::new(DUAL);
    let pod = world.pod();
    world.add(&pod);
    world.del(&pod);
    let begun = Instant::now();
    world.add(&pod);
    let mut moments = Moments::within(begun.elapsed());
    world.del(&pod);
    let mut attached = 0;
    const MOMENTS: u32 = 120;
    for moment in 0..MOMENTS {
        moments.kill(world.start_verb("ADD", &pod));
        attached += u32::from(!world.ports().is_empty());
        world.del(&pod);
        assert!(world.ports().is_empty(), "moment {moment}: {:?}", world.ports());
        assert!(world.leased().is_empty(), "moment {moment}: {:?}", world.leased());
        assert!(!table(&world).contains("elements"), "moment {moment}: {}", table(&world));
    }
    let killed = moments.killed;
    assert!(killed > MOMENTS / 4 && attached > 0, "{killed} killed, {attached} attached of {MOMENTS}: badly chosen");
    let other = world.pod();
    assert!(!world.add(&other).is_empty());
    assert!(pings(&other.netns, "10.77.3.1"));
}

fn a_cut_journal_is_named_and_nothing_is_given_or_lost() {
    let world = World::new(DUAL);
    let (first, second, third) = (world.pod(), world.pod(), world.pod());
    world.add(&first);
    let got = world.add(&second);
    let path = world.state("leases");
    let whole = fs::read(&path).unwrap();
    for cut in [0, 10, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        let answer = world.verb("ADD", &third);
        assert_eq!(answer.json["code"], 100, "{}", answer.json);
        assert!(answer.json["msg"].as_str().unwrap().contains(path.to_str().unwrap()), "{}", answer.json);
        assert_eq!(fs::read(&path).unwrap(), whole[..cut], "the evidence was changed");
        assert_eq!(world.ports().len(), 2);
    }
    // The pods are not affected.
    assert!(pings(&first.netns, &got[0]));
    // DEL detaches a pod from the bridge, but its error makes the runtime try again.
    let answer = world.verb("DEL", &second);
    assert_eq!(answer.json["code"], 100, "{}", answer.json);
    assert_eq!(world.ports().len(), 1);
    fs::write(&path, &whole).unwrap();
    world.del(&second);
    assert_eq!(world.leased(), [first.id.as_str()]);
    assert_ne!(world.add(&third), ["10.77.3.2", "fd77:0:0:3::2"]);
}

fn a_removed_journal_is_not_begun_anew_under_running_pods() {
    let world = World::new(DUAL);
    let (first, second) = (world.pod(), world.pod());
    world.add(&first);
    for file in ["leases", "leases.mark"] {
        fs::remove_file(world.state(file)).unwrap();
    }
    for _ in 0..2 {
        let message = world.add_fails(&second, 100);
        assert!(message.contains("1 pods") && message.contains("leases"), "{message}");
    }
    // When the last pod has been removed, no address has an owner.
    world.del(&first);
    assert_eq!(world.add(&second)[0], "10.77.3.2");
}

fn a_removed_journal_is_not_begun_anew_by_another_network_that_shares_it() {
    let world = World::new(DUAL);
    let pod = world.pod();
    world.add(&pod);
    world.set("name", json!("second"));
    world.set("bridge", json!("ecni1"));
    world.set("segments", json!(["10.78.0.0/24"]));
    for file in ["leases", "leases.mark"] {
        fs::remove_file(world.state(file)).unwrap();
    }
    for _ in 0..2 {
        let message = world.add_fails(&world.pod(), 100);
        assert!(message.contains("1 pods"), "{message}");
        assert!(!up(&world).ok);
        assert!(!world.state("leases").exists());
    }
    // The pods of a network with another state directory have their leases there.
    world.set("stateDir", json!(world.folder.path().join("second")));
    assert_eq!(world.add(&world.pod()), ["10.78.0.2"]);
}

fn a_del_killed_at_any_moment_can_be_repeated() {
    let world = World::new(DUAL);
    let pod = world.pod();
    world.add(&pod);
    let begun = Instant::now();
    world.del(&pod);
    let mut moments = Moments::within(begun.elapsed());
    const MOMENTS: u32 = 60;
    for moment in 0..MOMENTS {
        let got = world.add(&pod);
        moments.kill(world.start_verb("DEL", &pod));
        // An address must be free only after its pair of links has been removed.
        assert!(!world.leased().is_empty() || world.ports().is_empty(), "moment {moment}: {got:?}");
        world.del(&pod);
        assert!(world.ports().is_empty() && world.leased().is_empty(), "moment {moment}");
        assert!(!table(&world).contains("elements"), "moment {moment}: {}", table(&world));
    }
    assert!(moments.killed > MOMENTS / 4, "{} killed of {MOMENTS}: badly chosen", moments.killed);
}

fn kills_among_adds_at_once_cost_the_others_nothing() {
    let world = World::new(DUAL);
    let pods: Vec<_> = (0..30).map(|_| world.pod()).collect();
    let started: Vec<_> = pods.iter().map(|pod| world.start_verb("ADD", pod)).collect();
    let mut given = BTreeSet::new();
    let mut attached = 0;
    for (number, mut child) in started.into_iter().enumerate() {
        if number % 3 == 0 {
            let _ = child.kill();
        }
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            attached += 1;
            let result = serde_json::from_slice(&output.stdout).unwrap();
            given.extend(addresses(&result));
        } else {
            assert_eq!(number % 3, 0, "{}", String::from_utf8_lossy(&output.stdout));
            world.del(&pods[number]);
        }
    }
    assert!(attached >= 20);
    assert_eq!(given.len(), 2 * attached);
    assert_eq!((world.ports().len(), world.leased().len()), (attached, attached));
}

fn cut_segments_are_named_and_pods_can_still_go() {
    let world = World::new(DUAL);
    let (first, second) = (world.pod(), world.pod());
    world.add(&first);
    let path = world.state("segments.json");
    for content in ["", "{\"version\":1,"] {
        fs::write(&path, content).unwrap();
        let message = world.add_fails(&second, 100);
        assert!(message.contains(path.to_str().unwrap()), "{message}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    world.del(&first);
    assert!(world.leased().is_empty());
}

fn a_store_that_cannot_be_read_is_named_and_nothing_is_left_behind() {
    let world = World::new(DUAL);
    let (first, second) = (world.pod(), world.pod());
    world.add(&first);
    // A folder takes the place of the file, since root can read every file, but cannot read a
    // folder as a file.
    for file in ["leases", "leases.mark", "segments.json", "lock"] {
        let (path, aside) = (world.state(file), world.state("aside"));
        fs::rename(&path, &aside).unwrap();
        fs::create_dir(&path).unwrap();
        let message = world.add_fails(&second, 5);
        assert!(message.contains(path.to_str().unwrap()), "{message}");
        fs::remove_dir(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    let folder = world.folder.path().join("state");
    let aside = world.folder.path().join("aside");
    fs::rename(&folder, &aside).unwrap();
    fs::write(&folder, "a file").unwrap();
    let message = world.add_fails(&second, 5);
    assert!(message.contains(folder.to_str().unwrap()), "{message}");
    fs::remove_file(&folder).unwrap();
    fs::rename(&aside, &folder).unwrap();
    world.add(&second);
    assert_eq!(world.leased(), [first.id.as_str(), second.id.as_str()]);
}

fn addresses_of_pods_that_vanished_come_back_when_short() {
    let world = World::new(&["10.77.3.0/29"]);
    let pods: Vec<_> = (0..5).map(|_| world.pod()).collect();
    pods.iter().for_each(|pod| drop(world.add(pod)));
    world.destroy(&pods[1]);
    world.destroy(&pods[3]);
    crate::world::wait_for("the kernel's removal of the pairs", || world.ports().len() == 3);
    assert_eq!(world.leased().len(), 5);
    let (sixth, seventh) = (world.pod(), world.pod());
    assert!(["10.77.3.3", "10.77.3.5"].contains(&world.add(&sixth)[0].as_str()));
    assert!(["10.77.3.3", "10.77.3.5"].contains(&world.add(&seventh)[0].as_str()));
    world.add_fails(&world.pod(), 11);
    // The runtime's late DEL does not affect other pods.
    world.del(&pods[1]);
    assert_eq!(world.leased().len(), 5);
}

fn leases_of_pods_that_vanished_end() {
    let world = World::new(&["10.77.3.0/24"]);
    let file = world.folder.path().join("plugin.json");
    let reclaim = |grace: &str| {
        std::fs::write(&file, world.config.borrow().to_string()).unwrap();
        let program = ["netns", "exec", &world.host, env!("CARGO_BIN_EXE_edge-cni"), "reclaim", "--grace", grace];
        let printed = succeed(Command::new("ip").args(program).arg(&file));
        serde_json::from_str::<Value>(&printed).unwrap()
    };
    assert_eq!(reclaim("0"), json!({"reclaimed": [], "missed": 0}));
    let (gone, stays) = (world.pod(), world.pod());
    let addresses = world.add(&gone);
    world.add(&stays);
    // The host end was renamed, but the pod still runs.
    let port = world.ports().into_iter().next().unwrap();
    assert_eq!(reclaim("0"), json!({"reclaimed": [], "missed": 0}));
    world.destroy(&gone);
    wait_for("the end of the pair", || world.ports().len() == 1);
    if world.ports()[0] != port {
        world.ip(&format!("link set {} name renamed", world.ports()[0]));
    }
    // The lease stays during the grace time, since the runtime may restart and run DEL.
    for _ in 0..2 {
        assert_eq!(reclaim("3600"), json!({"reclaimed": [], "missed": 1}));
    }
    assert_eq!(world.leased().len(), 2);
    let expected = json!({"addresses": addresses, "pod": "default/web-container0", "network": "pods", "container": gone.id, "interface": "eth0"});
    assert_eq!(reclaim("0"), json!({"reclaimed": [expected], "missed": 0}));
    assert_eq!(world.leased(), [stays.id.as_str()]);
    assert_eq!(reclaim("0"), json!({"reclaimed": [], "missed": 0}));
    world.del(&gone);
}
