//! Tests DEL, GC and CHECK on disks that cannot be written, and with configurations and variables
//! that an ADD would refuse.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use interop_tests::netns::succeed;
use interop_tests::suite::Test;
use serde_json::{Value, json};

use crate::node::{status, up};
use crate::world::{PluginOutput, Pod, World, path};

pub(crate) const TESTS: &[Test] = &[
    ("pods_go_from_a_full_disk_and_their_addresses_come_back", pods_go_from_a_full_disk_and_their_addresses_come_back),
    ("pods_go_and_are_checked_on_a_read_only_disk", pods_go_and_are_checked_on_a_read_only_disk),
    ("a_disk_that_cannot_be_written_makes_no_router_of_the_host", a_disk_that_cannot_be_written_makes_no_router),
    ("a_container_comes_again_whose_lease_could_not_be_ended", a_container_comes_again_whose_lease_could_not_be_ended),
    ("what_del_does_not_need_does_not_stop_it", what_del_does_not_need_does_not_stop_it),
    ("del_says_that_it_cannot_look_for_a_lease", del_says_that_it_cannot_look_for_a_lease),
    ("gc_needs_state_and_name_alone", gc_needs_state_and_name_alone),
    ("what_add_refuses_by_its_name_del_finds_removed", what_add_refuses_by_its_name_del_finds_removed),
];

const DUAL: &[&str] = &["10.77.3.0/29", "fd77:0:0:3::/125"];

/// A small disk for the state directory.
struct Disk(PathBuf);

impl Disk {
    fn mount(world: &World) -> Self {
        let folder = world.state("");
        fs::create_dir_all(&folder).unwrap();
        succeed(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k,mode=700", "none"]).arg(&folder));
        Self(folder)
    }

    fn set_read_only(&self, read_only: bool) {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        succeed(Command::new("mount").args(["-o", options]).arg(&self.0));
    }

    /// Fills the disk.
    fn fill(&self) -> PathBuf {
        let filler = self.0.join("filler");
        let mut size = 64 << 10;
        while size > 0 && fs::write(&filler, vec![1; size]).is_err() {
            size -= 4 << 10;
        }
        filler
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).output();
    }
}

fn gc(world: &World, valid: &[&Pod]) -> PluginOutput {
    let list: Vec<Value> = valid.iter().map(|pod| json!({"containerID": pod.id, "ifname": "eth0"})).collect();
    let mut config = world.config.borrow().clone();
    config["cniVersion"] = json!("1.1.0");
    config["cni.dev/valid-attachments"] = json!(list);
    world.run(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")], &config.to_string())
}

fn pods_go_from_a_full_disk_and_their_addresses_come_back() {
    let world = World::new(DUAL);
    let disk = Disk::mount(&world);
    let pods: Vec<_> = (0..4).map(|_| world.pod()).collect();
    pods.iter().for_each(|pod| drop(world.add(pod)));
    let filler = disk.fill();
    // The last page of the leases still has room for some lines.
    let fifth = world.pod();
    let full = (0..500).any(|_| {
        let full = world.verb("ADD", &fifth).json["code"] == 5;
        world.del(&fifth);
        full
    });
    assert!(full, "the disk is not full");
    let answer = status(&world).json;
    assert_eq!(answer["code"], 50, "{answer}");
    assert!(answer["msg"].as_str().unwrap().contains("No space left"), "{answer}");
    let mut said = String::new();
    for pod in &pods {
        let answer = world.verb("DEL", pod);
        assert!(answer.ok && answer.json == Value::Null, "{}", answer.json);
        said += &answer.said;
    }
    assert!(said.contains("could not be ended") && said.contains("No space left"), "{said}");
    assert!(world.ports().is_empty() && !world.leased().is_empty());
    let answer = gc(&world, &[]);
    assert!(answer.ok, "{}", answer.json);
    // When there is space again, all five addresses can be leased.
    fs::remove_file(filler).unwrap();
    assert!(status(&world).ok);
    let others: Vec<_> = (0..5).map(|_| world.pod()).collect();
    others.iter().for_each(|pod| drop(world.add(pod)));
}

fn pods_go_and_are_checked_on_a_read_only_disk() {
    let world = World::new(DUAL);
    let disk = Disk::mount(&world);
    let pods: Vec<_> = (0..3).map(|_| world.pod()).collect();
    let results: Vec<_> = pods.iter().map(|pod| world.verb("ADD", pod).json).collect();
    disk.set_read_only(true);
    world.set("prevResult", results[0].clone());
    let answer = world.verb("CHECK", &pods[0]);
    assert!(answer.ok, "{}", answer.json);
    world.set("prevResult", Value::Null);
    for _ in 0..2 {
        let answer = world.verb("DEL", &pods[0]);
        assert!(answer.ok && answer.json == Value::Null, "{}", answer.json);
        assert!(answer.said.contains("read-only"), "{}", answer.said);
    }
    assert_eq!(world.ports().len(), 2);
    let answer = gc(&world, &[&pods[2]]);
    assert!(answer.ok, "{}", answer.json);
    assert_eq!((world.ports().len(), world.leased().len()), (1, 3));
    assert_eq!(world.verb("ADD", &world.pod()).json["code"], 5);
    // STATUS fails, since no pods must be placed on this node.
    world.set("cniVersion", json!("1.1.0"));
    let status = world.run(&[("CNI_COMMAND", "STATUS")], &world.config.borrow().to_string());
    assert_eq!(status.json["code"], 50, "{}", status.json);
    assert!(status.json["msg"].as_str().unwrap().contains("read-only"), "{}", status.json);
    disk.set_read_only(false);
    let others: Vec<_> = (0..4).map(|_| world.pod()).collect();
    others.iter().for_each(|pod| drop(world.add(pod)));
}

/// Tests `edge-cni up`, which the agent runs before it checks forwarding itself.
fn a_disk_that_cannot_be_written_makes_no_router() {
    let world = World::new(DUAL);
    let disk = Disk::mount(&world);
    // The host is in the state after the first pod and a reboot.
    let pod = world.pod();
    world.add(&pod);
    world.del(&pod);
    fs::remove_file(world.state("forwarding.json")).unwrap();
    world.forward(false);
    disk.fill();
    // `forwarding.json` cannot be written anywhere: the disk is full, and the directory of the
    // agent's socket, which is the fallback, is a regular file.
    let run = world.folder.path().join("run");
    fs::write(&run, "no folder").unwrap();
    world.set("agentSocket", json!(run.join("agent.sock")));
    let answer = up(&world);
    assert_eq!(answer.json["code"], 5, "{}", answer.json);
    assert!(answer.json["msg"].as_str().unwrap().contains("forwarding.json"), "{}", answer.json);
    assert_eq!(world.forwards(), ["0", "0"]);
    fs::remove_file(&run).unwrap();
    assert!(up(&world).ok);
    assert_eq!(world.forwards(), ["1", "1"]);
    let noted: Value = serde_json::from_slice(&fs::read(run.join("forwarding.json")).unwrap()).unwrap();
    assert_eq!(noted["ours"], json!([true, true]));
}

fn a_container_comes_again_whose_lease_could_not_be_ended() {
    let world = World::new(DUAL);
    let disk = Disk::mount(&world);
    let pod = world.pod();
    world.add(&pod);
    disk.set_read_only(true);
    assert!(world.verb("DEL", &pod).ok);
    disk.set_read_only(false);
    world.add(&pod);
    world.add_fails(&pod, 101);
}

fn what_del_does_not_need_does_not_stop_it() {
    let world = World::new(DUAL);
    let good = world.config.borrow().clone();
    for (key, value) in [
        ("hairpinMode", json!("on")),
        ("ipam", json!({"type": "host-local"})),
        ("mtu", json!(1000)),
        ("cniVersion", json!("1.2.0")),
        ("cniVersion", json!(7)),
        ("segments", json!(["nonsense"])),
        ("clusterRanges", json!("10.0.0.0/8")),
        ("name", json!("a b")),
        ("bridge", json!("a/b")),
        ("agentSocket", json!("x")),
        ("prevResult", json!("nonsense")),
    ] {
        let pod = world.pod();
        let result = world.verb("ADD", &pod).json;
        let mut config = good.clone();
        config[key] = value;
        let run = |verb: &str, config: &Value, arguments: &str| {
            let netns = path(&pod);
            let variables = [
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", pod.id.as_str()),
                ("CNI_NETNS", netns.as_str()),
                ("CNI_IFNAME", "eth0"),
                ("CNI_ARGS", arguments),
            ];
            world.run(&variables, &config.to_string())
        };
        if key != "prevResult" && key != "bridge" {
            let mut config = config.clone();
            config["prevResult"] = result;
            let answer = run("CHECK", &config, "NONSENSE");
            assert!(answer.ok, "CHECK with {key}: {}", answer.json);
        }
        let answer = run("DEL", &config, "NONSENSE");
        assert!(answer.ok && answer.json == Value::Null, "DEL with {key}: {}", answer.json);
        assert!(answer.said.contains(key) || key == "prevResult", "{key}: {}", answer.said);
        assert!(world.ports().is_empty() && world.leased().is_empty(), "{key}");
    }
    // The keys that the verb needs must be valid.
    let pod = world.pod();
    world.set("stateDir", json!("relative"));
    assert_eq!(world.verb("DEL", &pod).json["code"], 7);
}

fn del_says_that_it_cannot_look_for_a_lease() {
    let world = World::new(DUAL);
    let pod = world.pod();
    world.add(&pod);
    // A link to itself simulates a failing disk.
    let broken = world.folder.path().join("broken");
    std::os::unix::fs::symlink(&broken, &broken).unwrap();
    world.set("stateDir", json!(broken));
    let answer = world.verb("DEL", &pod);
    assert!(answer.ok && world.ports().is_empty(), "{}", answer.json);
    assert!(answer.said.contains("its lease could not be ended") && answer.said.contains("broken"), "{}", answer.said);
}

fn what_add_refuses_by_its_name_del_finds_removed() {
    let world = World::new(DUAL);
    let pod = world.pod();
    let netns = pod.netns.clone();
    let call = |verb: &str, id: &str, ifname: &str| {
        let mut variables = vec![("CNI_COMMAND", verb), ("CNI_CONTAINERID", id), ("CNI_PATH", "/opt/cni/bin")];
        variables.push(("CNI_NETNS", netns.as_str()));
        variables.extend((!ifname.is_empty()).then_some(("CNI_IFNAME", ifname)));
        world.run(&variables, &world.config.borrow().to_string())
    };
    let long = "x".repeat(201);
    for (id, ifname) in [(pod.id.as_str(), "all"), (pod.id.as_str(), "a/b"), (long.as_str(), "eth0"), ("../x", "eth0")]
    {
        assert_eq!(call("ADD", id, ifname).json["code"], 4, "{id} {ifname}");
        let answer = call("DEL", id, ifname);
        assert!(answer.ok && answer.json == Value::Null && answer.said.contains("nothing to remove"), "{answer:?}");
    }
    assert_eq!(call("DEL", &pod.id, "").json["code"], 4, "it is unknown which interface is meant");
}

fn gc_needs_state_and_name_alone() {
    let world = World::new(DUAL);
    let pods = [world.pod(), world.pod()];
    pods.iter().for_each(|pod| drop(world.add(pod)));
    world.set("hairpinMode", json!("on"));
    world.set("mtu", json!(1));
    let answer = gc(&world, &[&pods[1]]);
    assert!(answer.ok, "{}", answer.json);
    assert!(answer.said.contains("hairpinMode"), "{}", answer.said);
    assert_eq!(world.leased(), [pods[1].id.as_str()]);
    world.set("name", json!("a b"));
    assert_eq!(gc(&world, &[]).json["code"], 7);
    assert_eq!(world.leased(), [pods[1].id.as_str()]);
}
