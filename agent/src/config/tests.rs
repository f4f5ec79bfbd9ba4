use edge_ike::config::{Mode, Timing};
use edge_ike::{AddressAssignment, Childless, same_identity};
use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::*;
use crate::crl_files::CrlFiles;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("agent.toml"))
}

const PEER: &str = r#"
[[peer]]
name = "moon"
remote = "192.0.2.1"
local_id = "sun.example"
remote_id = "moon.example"
psk = "correct horse"
local_subnets = ["10.1.0.0/16"]
remote_subnets = ["10.2.0.0/16"]
"#;

#[test]
fn a_static_peer_needs_few_lines() {
    let config = parse(PEER).unwrap();
    let peer = config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap();
    assert_eq!(peer.remotes, ["192.0.2.1:500".parse().unwrap()]);
    assert!(peer.initiate && !peer.force_encapsulation);
    assert_eq!(config.nat_port, 4500);
}

#[test]
fn patience_is_for_static_peers_whose_place_nothing_else_can_take() {
    let two = PEER.replace("remote = \"192.0.2.1\"", "remote = [\"192.0.2.1\", \"192.0.2.2\"]");
    for (text, expected) in [
        (PEER.to_owned(), true),
        (format!("{PEER}start = \"respond\""), true),
        (format!("{PEER}start = \"on-demand\""), false),
        (two, false),
        (format!("{PEER}[timing]\ntransmissions = 4"), false),
        (format!("{PEER}[timing]\nretransmit = \"1s\""), true),
    ] {
        let config = parse(&text).unwrap();
        let peer = config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap();
        assert_eq!(peer.timing.patient, expected, "{text}");
    }
}

#[test]
fn unknown_keys_are_refused_and_named_with_their_line() {
    let error = parse(&format!("statedir = \"/x\"\n{PEER}")).unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("statedir"), "{error}");
    let error = parse(&format!("{PEER}\nsecrets = 1")).unwrap_err().to_string();
    assert!(error.contains("secrets"), "{error}");
}

#[test]
fn no_error_and_no_debug_output_shows_the_secret() {
    let good = parse(PEER).unwrap();
    assert!(!format!("{good:?}").contains("horse"));
    assert!(!format!("{:?}", good.peers[0].resolve(&good, &mut CrlFiles::default()).unwrap()).contains("horse"));
    let line = "psk = \"correct horse\"";
    for broken in [
        "psk = correct horse",
        "psk = \"correct horse",
        "psk = 'correct horse\"",
        "psk = [\"correct horse\"]",
        "psk = { horse = \"correct horse\" }",
        "psk = \"correct horse\" x",
        "psk = \"correct \\horse\"",
        "psk \"correct horse\"",
        "psk = \"correct horse\"\npsk = \"correct horse\"",
        "local_subnets = [\"correct horse\"]\npsk = \"correct horse\"",
        "psk = \"correct horse\"\nstart = \"now\"",
        "psk = \"correct horse\"\npsk_file = \"x\"",
        "psk = \"correct horse\"\nkey = \"x\"",
        "psc = \"correct horse\"",
    ] {
        let error = parse(&PEER.replace(line, broken)).expect_err(broken);
        for shown in [error.to_string(), format!("{error:?}")] {
            let shown = shown.replace("unknown field `horse`", "");
            assert!(!shown.contains("horse"), "{broken} gave {shown}");
        }
    }
    for number in ["8675309", "8675309.5", "true", "1979-05-27"] {
        let error = parse(&PEER.replace("\"correct horse\"", number)).expect_err(number).to_string();
        assert!(!error.contains(number) && error.contains("line 7"), "{error}");
    }
}

#[test]
fn a_secret_in_a_file_that_others_may_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.toml");
    fs::write(&path, PEER).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Config::load(&path).unwrap_err().to_string();
    assert!(error.contains("0644") && error.contains("chmod 600"), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    Config::load(&path).unwrap();
}

#[test]
fn a_secret_is_read_from_a_file_beside_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.toml");
    fs::write(&path, PEER.replace("psk = \"correct horse\"", "psk_file = \"moon.psk\"")).unwrap();
    let config = Config::load(&path).unwrap();
    assert!(config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap_err().contains("moon.psk"));
    let psk = directory.path().join("moon.psk");
    fs::write(&psk, "correct horse\n").unwrap();
    fs::set_permissions(&psk, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap_err().contains("0640"));
    fs::set_permissions(&psk, fs::Permissions::from_mode(0o600)).unwrap();
    let edge_ike::Auth::Psk(secret) = config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap().auth else {
        panic!("no psk")
    };
    assert_eq!(secret.expose(), b"correct horse");
}

#[test]
fn what_makes_no_sense_together_is_refused_with_advice() {
    for (from, to, expected) in [
        ("remote = \"192.0.2.1\"", "", "start = \"respond\""),
        ("remote = \"192.0.2.1\"", "start = \"on-demand\"", "\"on-demand\" needs remote"),
        ("psk = \"correct horse\"", "", "psk_file"),
        ("psk = \"correct horse\"", "certificate = \"a\"", "go together"),
        ("remote_subnets = [\"10.2.0.0/16\"]", "remote_subnets = []", "at least one"),
        ("[[peer]]", "nat_port = 500\n[[peer]]", "both 500"),
        ("[[peer]]", "port = 0\n[[peer]]", "port is 0"),
        ("[[peer]]", "nat_port = 0\n[[peer]]", "nat_port is 0"),
        ("\"192.0.2.1\"", "\"192.0.2.1:0\"", "neither an address"),
        ("[[peer]]", "bridge = \"a/b\"\n[[peer]]", "interface name"),
        ("[[peer]]", "bridge = \"lo\"\n[[peer]]", "interface name"),
        ("[[peer]]", "bridge = \"all\"\n[[peer]]", "interface name"),
        ("[[peer]]", "bridge = \"default\"\n[[peer]]", "interface name"),
        ("[[peer]]", "bridge = \"..\"\n[[peer]]", "interface name"),
        ("[[peer]]", "bridge = \"a\\nb\"\n[[peer]]", "interface name"),
        ("[[peer]]", "[timing]\nretry_max = \"87601h\"\n[[peer]]", "10 years"),
        ("[[peer]]", "[timing]\nlinger = \"18446744073709551615ms\"\n[[peer]]", "10 years"),
        ("[[peer]]", "[timing]\ntransmissions = 0\n[[peer]]", "transmissions is 0"),
        ("[[peer]]", "[timing]\ntransmissions = 21\n[[peer]]", "transmissions is 21"),
        ("[[peer]]", "[firewall]\nservice_ranges = [\"::/0\"]\n[[peer]]", "service_ranges"),
        ("[[peer]]", "[firewall]\nservice_ranges = [\"224.0.0.0/4\"]\n[[peer]]", "multicast"),
        ("[[peer]]", "resolvers_behind_tunnels = [\"10.96.0.0/12\"]\n[[peer]]", "line 2, column"),
        ("[[peer]]", "resolvers_behind_tunnels = true\n[[peer]]", "line 2, column"),
        ("[[peer]]", &format!("resolvers_behind_tunnels = [{}]\n[[peer]]", "\"10.96.0.10\",".repeat(17)), "at most 16"),
        ("[[peer]]", "[controller]\nurls = []\n[[peer]]", "urls is empty"),
        ("[[peer]]", "[controller]\nurls = [\"http://x\"]\n[[peer]]", "https"),
        (
            "[[peer]]",
            "[controller]\nurls = [\"https://x\"]\nservice_account_token_file = \"t\"\n[[peer]]",
            "belong together",
        ),
        (
            "[[peer]]",
            "[controller]\nurls = [\"https://x\"]\nservice_account_token_file = \"t\"\nca_file = \"c\"\ntoken_file = \"t\"\n[[peer]]",
            "exclude each other",
        ),
        ("[[peer]]", "[timing]\nliveness = \"4\"\n[[peer]]", "not a duration"),
        ("local_id = \"sun.example\"", "local_id = \"XY=sun\"", "not an identity"),
    ] {
        let error = parse(&PEER.replace(from, to)).expect_err(to).to_string();
        assert!(error.contains(expected), "{to} gave {error}");
    }
    assert!(parse("").unwrap_err().to_string().contains("[controller]"));
    assert!(parse(&format!("{PEER}{PEER}")).unwrap_err().to_string().contains("must differ"));
}

#[test]
fn the_documented_example_is_accepted_and_says_the_defaults() {
    let document = include_str!("../../../docs/configuration.md");
    let section = document.split("## edge-agent").nth(1).expect("a section for edge-agent");
    let example = section.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let config = parse(example).unwrap();
    assert_eq!(config.timing.resolve(), Timing::default());
    let bare = parse(PEER).unwrap();
    assert_eq!((&config.state_dir, &config.run_dir, &config.bridge), (&bare.state_dir, &bare.run_dir, &bare.bridge));
    assert_eq!((config.port, config.nat_port, config.encap), (bare.port, bare.nat_port, bare.encap));
    assert_eq!((&config.cni.conf_dir, &config.cni.bin_dir), (&bare.cni.conf_dir, &bare.cni.bin_dir));
    assert_eq!(config.on_demand.idle_timeout(), bare.on_demand.idle_timeout());
    assert_eq!(config.on_demand.hold_packets, bare.on_demand.hold_packets);
    assert_eq!(config.on_demand.eager, bare.on_demand.eager);
    assert_eq!(config.controller.unwrap().spare, default_spare());
    assert_eq!(config.peers.len(), 4);
}

#[test]
fn every_key_of_every_table_is_in_the_documented_example_and_no_other_is_there() {
    // The error for an unknown key lists the keys of the table.
    let known = |table: &str, header: &str| {
        let error = parse(&format!("{header}\nno_such_key = 1\n")).expect_err(table).to_string();
        let list = error.split_once("`, expected ").unwrap_or_else(|| panic!("{table}: {error}")).1;
        let names = list.split('`').skip(1).step_by(2).map(str::to_owned);
        names.collect::<std::collections::BTreeSet<String>>()
    };
    let document = include_str!("../../../docs/configuration.md");
    let section = document.split("## edge-agent").nth(1).unwrap().split("\n## ").next().unwrap();
    let example = section.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let mut documented = std::collections::BTreeMap::<&str, std::collections::BTreeSet<String>>::new();
    let mut table = "";
    for line in example.lines() {
        // Keys that cannot be combined with other keys of the example are commented out.
        let line = line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line);
        if let Some(header) = line.strip_prefix('[') {
            table = header.trim_matches(['[', ']']);
            documented.entry("").or_default().extend((!table.contains('.')).then(|| table.to_owned()));
            documented.entry("peer").or_default().extend((table == "peer.child").then(|| "child".to_owned()));
        } else if is_key(line) {
            documented.entry(table).or_default().insert(line.split(' ').next().unwrap().to_owned());
        }
    }
    let tables = [
        ("", ""),
        ("controller", "[controller]\nurls = [\"https://x\"]"),
        ("cni", "[cni]"),
        ("timing", "[timing]"),
        ("on_demand", "[on_demand]"),
        ("relay", "[relay]"),
        ("tcp", "[tcp]"),
        ("path_mtu", "[path_mtu]"),
        ("observe", "[observe]"),
        ("firewall", "[firewall]"),
        ("peer", "[[peer]]"),
        ("peer.child", "[[peer]]\n[[peer.child]]"),
    ];
    assert_eq!(documented.keys().copied().collect::<Vec<_>>().len(), tables.len(), "{documented:?}");
    for (table, header) in tables {
        assert_eq!(documented.get(table), Some(&known(table, header)), "[{table}]");
    }
}

#[test]
fn relative_directories_count_from_the_directory_of_the_file_for_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("agent.toml");
    let text = "state_dir = \"state\"\nrun_dir = \"../run\"\n[cni]\nconf_dir = \"net.d\"\nbin_dir = \"/opt/bin\"\n[controller]\nurls = [\"https://c\"]\n";
    std::fs::write(&file, text).unwrap();
    let config = Config::load(&file).unwrap();
    let expected = ["state", "../run", "net.d", "/opt/bin"].map(|name| directory.path().join(name));
    assert_eq!([&config.state_dir, &config.run_dir, &config.cni.conf_dir, &config.cni.bin_dir], expected.each_ref());
    // A file that is named relative to the working directory.
    let working = std::env::current_dir().unwrap();
    let up: std::path::PathBuf = working.iter().skip(1).map(|_| "..").collect();
    let relative = up.join(file.strip_prefix("/").unwrap());
    let config = Config::load(&relative).unwrap();
    assert!(config.state_dir.is_absolute(), "{:?}", config.state_dir);
    std::fs::create_dir(directory.path().join("state")).unwrap();
    assert_eq!(config.state_dir.canonicalize().unwrap(), directory.path().join("state").canonicalize().unwrap());
}

/// Returns whether a line of TOML sets a key.
fn is_key(line: &str) -> bool {
    let name = line.split(" = ").next().unwrap_or_default();
    line.contains(" = ") && !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

#[test]
fn the_manifests_configurations_are_accepted() {
    for manifest in [
        include_str!("../../../deploy/kubernetes/30-hub.yaml"),
        include_str!("../../../deploy/kubernetes/40-cloud.yaml"),
        include_str!("../../../deploy/kubernetes/50-edge.yaml"),
    ] {
        let (_, rest) = manifest.split_once("\n  agent.toml: |\n").expect("a ConfigMap with the file");
        let lines = rest.lines().map_while(|line| if line.is_empty() { Some("") } else { line.strip_prefix("    ") });
        let config = parse(&lines.collect::<Vec<_>>().join("\n")).unwrap();
        assert!(config.controller.is_some(), "all of it was read");
    }
}

#[test]
fn two_peers_that_cannot_be_told_apart_are_refused_with_both_names() {
    let other = |changes: &[(&str, &str)]| {
        let changes = [&[("name = \"moon\"", "name = \"luna\"")], changes].concat();
        let mut peer = PEER.to_owned();
        for (from, to) in changes {
            assert!(peer.contains(from), "{from}");
            peer = peer.replace(from, to);
        }
        parse(&format!("{PEER}\n{peer}"))
    };
    let refused = |changes: &[(&str, &str)]| {
        let error = other(changes).unwrap_err().to_string();
        assert!(error.contains("moon") && error.contains("luna") && error.contains("told apart"), "{error}");
    };
    refused(&[]);
    refused(&[("remote_id = \"moon.example\"", "remote_id = \"MOON.example.\"")]);
    other(&[("remote_id = \"moon.example\"", "remote_id = \"luna.example\"")]).unwrap();
    other(&[("local_id = \"sun.example\"", "local_id = \"sol.example\"")]).unwrap();
    other(&[("remote = \"192.0.2.1\"", "remote = \"192.0.2.10\"")]).unwrap();
    refused(&[("remote = \"192.0.2.1\"", "remote = [\"192.0.2.10\", \"192.0.2.1\"]")]);
    refused(&[("remote = \"192.0.2.1\"", "start = \"respond\"")]);
}

/// Returns [`PEER`] with two children in place of its networks.
fn with_children(first: &str, second: &str) -> String {
    let networks = "local_subnets = [\"10.1.0.0/16\"]\nremote_subnets = [\"10.2.0.0/16\"]\n";
    let children =
        format!("[[peer.child]]\nname = \"net\"\n{networks}{first}\n[[peer.child]]\nname = \"voice\"\n{second}\n");
    PEER.replace(networks, "") + &children
}

#[test]
fn a_peer_may_have_several_children_with_networks_proposals_and_ports_of_their_own() {
    let voice = "local_subnets = [\"10.3.0.0/16\"]\nremote_subnets = [\"10.4.0.0/16\"]\nesp_proposals = [\"aes256gcm16\"]\n\
                 protocol = \"udp\"\nremote_port = 5060";
    let config = parse(&with_children("", voice)).unwrap();
    let peer = config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap();
    let children: Vec<String> = peer.children().map(|child| format!("{} {}", child.name, child.local[0])).collect();
    assert_eq!(children, ["net 10.1.0.0/16", "voice 10.3.0.0/16"]);
    let voice = &peer.additional_children[0];
    let next_layer = edge_ike::config::NextLayer { protocol: 17, local_port: None, remote_port: Some(5060) };
    assert_eq!((voice.proposals.len(), voice.next_layer), (1, next_layer));
    assert_eq!(peer.child.proposals, config.peers[0].esp_proposals);
}

#[test]
fn a_child_may_be_in_transport_mode_between_two_addresses_also_in_udp() {
    let voice = "local_subnets = [\"192.0.2.7\"]\nremote_subnets = [\"192.0.2.1/32\"]\nmode = \"transport\"";
    let config = parse(&with_children("mode = \"tunnel\"", voice)).unwrap();
    let peer = config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap();
    let modes: Vec<Mode> = peer.children().map(|child| child.mode).collect();
    assert_eq!(modes, [Mode::Tunnel, Mode::Transport]);
    let forced = with_children("", voice)
        .replace("[[peer.child]]\nname = \"net\"", "encap = \"force\"\n[[peer.child]]\nname = \"net\"");
    let config = parse(&forced).unwrap();
    let peer = config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap();
    assert!(peer.force_encapsulation && peer.additional_children[0].mode == Mode::Transport);
}

#[test]
fn children_that_make_no_sense_are_refused_with_advice() {
    let networks = "local_subnets = [\"10.3.0.0/16\"]\nremote_subnets = [\"10.4.0.0/16\"]";
    for (voice, expected) in [
        (networks.replace("[\"10.4.0.0/16\"]", "[]"), "at least one"),
        (format!("{networks}\nremote_port = 80"), "need protocol"),
        (format!("{networks}\nprotocol = \"icmp\"\nlocal_port = 8"), "need protocol"),
        (format!("{networks}\nprotocol = \"quic\""), "is not known"),
        (format!("{networks}\nprotocol = 0"), "leave it out"),
        (format!("{networks}\nesp_proposals = []"), "empty list"),
        (format!("{networks}\nmode = \"beet\""), "mode"),
        (format!("{networks}\nmode = \"transport\""), "one address each"),
        (
            networks.replace("10.3.0.0/16", "10.3.0.1").replace("10.4.0.0/16", "fd00::1") + "\nmode = \"transport\"",
            "one address each",
        ),
        (format!("{networks}\n[[peer.child]]\nname = \"net\"\n{networks}"), "two [[peer.child]] are called"),
        (format!("{networks}\n[[peer.child]]\nname = \"a b\"\n{networks}"), "letters"),
    ] {
        let error = parse(&with_children("", &voice)).expect_err(expected).to_string();
        assert!(error.contains(expected) && error.contains("moon") || error.contains("line"), "{error}");
    }
    let both = PEER.to_owned() + "[[peer.child]]\nname = \"voice\"\n" + networks;
    assert!(parse(&both).unwrap_err().to_string().contains("either in [[peer]]"));
}

/// Compares two peers by the definition.
fn indistinguishable(one: &PeerSection, other: &PeerSection) -> bool {
    let hosts =
        |peer: &PeerSection| -> Vec<RemoteHost> { peer.remote.iter().map(|remote| remote.host.canonical()).collect() };
    let (ours, theirs) = (hosts(one), hosts(other));
    let apart = !ours.is_empty() && !theirs.is_empty() && ours.iter().all(|host| !theirs.contains(host));
    same_identity(&one.remote_id, &other.remote_id) && same_identity(&one.local_id, &other.local_id) && !apart
}

fn any_peers() -> impl Strategy<Value = String> {
    let id = prop::sample::select(vec!["moon.example", "MOON.example.", "sun.example", "192.0.2.1"]);
    let host = prop::sample::select(vec!["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2", "gate.example"]);
    let peer = (id.clone(), id, prop::collection::vec(host, 0..3));
    prop::collection::vec(peer, 1..5).prop_map(|peers| {
        let tables = peers.iter().enumerate().map(|(number, (local, remote, hosts))| {
            format!(
                "[[peer]]\nname = \"p{number}\"\nlocal_id = {local:?}\nremote_id = {remote:?}\nremote = {hosts:?}\n\
                 psk = \"a secret of the test\"\nlocal_subnets = [\"10.1.0.0/16\"]\n\
                 remote_subnets = [\"10.2.0.0/16\"]\nstart = \"respond\"\n"
            )
        });
        tables.collect()
    })
}

proptest! {
    #[test]
    fn one_pass_finds_what_the_comparison_of_all_pairs_finds(text in any_peers()) {
        let config: Config = toml::from_str(&text).unwrap();
        let peers = &config.peers;
        let twin_of = |at: usize| peers[..at].iter().find(|other| indistinguishable(other, &peers[at]));
        let found = (0..peers.len()).find_map(|at| Some((twin_of(at)?, &peers[at])));
        let told = peer_collisions::check_distinct(peers.iter().map(PeerSection::ends)).err();
        prop_assert_eq!(told.is_some(), found.is_some(), "{:?}", told);
        if let (Some(problem), Some((_, second))) = (told, found) {
            let is_named = |first: &&PeerSection| {
                problem.starts_with(&format!("[[peer]] {:?} and {:?} cannot", first.name, second.name))
            };
            let first = peers.iter().find(is_named);
            prop_assert!(first.is_some_and(|first| indistinguishable(first, second)), "{}", problem);
        }
    }
}

/// Returns a `[[peer]]` with these lines in addition.
fn peer_with(lines: &str) -> Result<Config, ConfigError> {
    parse(&format!(
        "[[peer]]\nname = \"p\"\nlocal_id = \"a\"\nremote_id = \"b\"\npsk = \"a secret of this test\"\n{lines}"
    ))
}

#[test]
fn an_address_is_asked_for_or_comes_from_a_pool() {
    let resolved = |lines: &str| {
        let config = peer_with(lines).unwrap();
        config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap()
    };
    let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNetwork>>();
    let asks = "remote = \"192.0.2.1\"\nrequest_address = true\nremote_subnets = [\"10.2.0.0/16\"]";
    let peer = resolved(asks);
    assert_eq!(peer.address_assignment, AddressAssignment::Request);
    assert_eq!(peer.child.local, networks(&["0.0.0.0/0"]), "any IPv4 address, since the peer's networks are IPv4");
    let peer = resolved(&format!("{asks}\nlocal_subnets = [\"10.9.0.0/16\"]"));
    assert_eq!(peer.child.local, networks(&["10.9.0.0/16"]));
    let gives =
        "start = \"respond\"\naddress_pool = [\"10.9.0.7/24\", \"fd09::/64\"]\nlocal_subnets = [\"10.2.0.0/16\"]";
    let peer = resolved(gives);
    let pool = networks(&["10.9.0.0/24", "fd09::/64"]);
    assert_eq!((&peer.child.remote, peer.initiate), (&pool, false));
    assert_eq!(peer.address_assignment, AddressAssignment::Pool(pool));
}

#[test]
fn an_address_that_cannot_be_given_or_asked_for_is_refused_with_what_to_do() {
    let asks = "remote = \"192.0.2.1\"\nrequest_address = true\n";
    let gives = "start = \"respond\"\naddress_pool = [\"10.9.0.0/24\"]\n";
    let (ours, theirs) = ("local_subnets = [\"10.2.0.0/16\"]\n", "remote_subnets = [\"10.3.0.0/16\"]\n");
    let pool = |network: &str| format!("start = \"respond\"\naddress_pool = [\"{network}\"]\n{ours}");
    let many: Vec<String> = (0..17).map(|number| format!("\"10.{number}.0.0/16\"")).collect();
    let cases = [
        (format!("{asks}{theirs}address_pool = [\"10.9.0.0/24\"]"), "exclude each other"),
        (format!("{asks}{theirs}start = \"on-demand\""), "start = \"initiate\""),
        (asks.to_owned(), "needs remote_subnets"),
        (gives.to_owned(), "needs local_subnets"),
        (format!("{gives}{ours}{theirs}"), "exclude each other"),
        (format!("remote = \"192.0.2.1\"\naddress_pool = [\"10.9.0.0/24\"]\n{ours}"), "start = \"respond\""),
        (pool("0.0.0.0/0"), "no addresses for hosts"),
        (pool("127.0.0.0/8"), "no addresses for hosts"),
        (format!("start = \"respond\"\naddress_pool = [{}]\n{ours}", many.join(", ")), "16 are the most"),
        (
            format!(
                "{asks}[[peer.child]]\nname = \"c\"\nlocal_subnets = [\"10.9.0.0/24\"]\nremote_subnets = [\"10.3.0.0/16\"]"
            ),
            "[[peer.child]]",
        ),
    ];
    for (lines, words) in cases {
        let error = peer_with(&lines).unwrap_err().to_string();
        assert!(error.contains(words), "{lines}: {error}");
    }
}

#[test]
fn childless_has_strongswans_words_and_does_not_go_with_internal_addresses() {
    let peer = |rest: &str| {
        let text = format!(
            "[[peer]]\nname = 'moon'\nremote = '192.0.2.1'\nlocal_id = 'a.example'\nremote_id = 'b.example'\nremote_subnets = ['10.2.0.0/16']\n\
             psk = 'correct horse battery staple'\n{rest}\n"
        );
        let config = Config::parse(&text, Path::new("agent.toml"))?;
        Ok::<_, ConfigError>(config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap().childless)
    };
    let local = "local_subnets = ['10.1.0.0/16']";
    for (word, expected) in [
        ("", Childless::Allow),
        ("childless = 'never'", Childless::Never),
        ("childless = 'allow'", Childless::Allow),
        ("childless = 'prefer'", Childless::Prefer),
        ("childless = 'force'", Childless::Force),
    ] {
        assert_eq!(peer(&format!("{local}\n{word}")).unwrap(), expected);
    }
    assert!(peer(&format!("{local}\nchildless = 'accept'")).is_err());
    let refused = peer("request_address = true\nchildless = 'force'").unwrap_err().to_string();
    assert!(refused.contains("request_address does not go with childless"), "{refused}");
}

#[test]
fn revocation_lists_go_with_certificates_and_a_policy_needs_them() {
    let peer = |auth: &str| {
        let text = format!(
            "[[peer]]\nname = 'moon'\nlocal_id = 'a.example'\nremote_id = 'b.example'\nstart = 'respond'\nlocal_subnets = ['10.1.0.0/16']\n\
             remote_subnets = ['10.2.0.0/16']\n{auth}\n"
        );
        Config::parse(&text, Path::new("agent.toml")).map(|config| config.peers[0].revocation)
    };
    let certificates = "certificate = 'a'\nkey = 'b'\ntrust_anchors = 'c'";
    let refused = |auth: &str| peer(auth).unwrap_err().to_string();
    assert_eq!(peer(&format!("{certificates}\ncrls = 'd'")).unwrap(), RevocationSetting::Relaxed);
    assert_eq!(peer(&format!("{certificates}\ncrls = 'd'\nrevocation = 'ifuri'")).unwrap(), RevocationSetting::IfUri);
    assert_eq!(peer(&format!("{certificates}\ncrls = 'd'\nrevocation = 'strict'")).unwrap(), RevocationSetting::Strict);
    assert!(refused(&format!("{certificates}\nrevocation = 'strict'")).contains("revocation needs crls"));
    assert!(refused("psk = 'correct horse battery staple'\ncrls = 'd'").contains("crls goes with certificate"));
    assert!(refused(&format!("{certificates}\ncrls = 'd'\nrevocation = 'hard'")).contains("expected"));
}
