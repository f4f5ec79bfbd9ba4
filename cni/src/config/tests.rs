use super::*;

fn parse(text: &str) -> Result<Config> {
    Config::from_object(parse_object(text.as_bytes())?)
}

#[test]
fn little_is_needed_and_the_rest_has_defaults() {
    let config = parse(r#"{"cniVersion":"1.0.0","type":"edge-cni","name":"pods"}"#).unwrap();
    assert_eq!(config.bridge, "ecni0");
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/edge-cni"));
    assert_eq!(config.agent_socket, PathBuf::from("/run/edge-cni/agent.sock"));
    assert_eq!(config.low_water, 1);
}

#[test]
fn the_documented_example_is_accepted() {
    let document = include_str!("../../../docs/configuration.md");
    let section = document.split("## edge-cni\n").nth(1).expect("a section for edge-cni");
    let example = section.split("```json").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let list: Value = serde_json::from_str(example).unwrap();
    // A runtime copies the list's name and version into the configuration that it passes to each
    // plugin.
    let mut plugin = list["plugins"][0].clone();
    plugin["name"] = list["name"].clone();
    plugin["cniVersion"] = list["cniVersion"].clone();
    let config = parse(&plugin.to_string()).unwrap();
    assert_eq!((config.segments.len(), config.cluster_ranges.len(), config.mtu), (2, 2, Some(1400)));
}

#[test]
fn every_key_of_ours_has_a_row_in_the_documents_and_every_row_a_key() {
    let document = include_str!("../../../docs/cni.md");
    let section = document.split("## Configuration\n").nth(1).and_then(|rest| rest.split("\n#").next()).unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let rows: std::collections::BTreeSet<&str> = rows.map(|(key, _)| key).collect();
    assert_eq!(rows, keys::OWN_KEYS.into_iter().collect());
}

#[test]
fn what_a_verb_does_not_need_does_not_stop_it() {
    let lenient = |text: &str, needed: &[&str]| Config::lenient(parse_object(text.as_bytes()).unwrap(), needed);
    let config = lenient(
        r#"{"cniVersion":"9.9.0","name":"a b","stateDir":"/state","bridge":"b0","mtu":1,"new":true,"segments":["x"],"lowWater":7}"#,
        &["stateDir"],
    )
    .unwrap();
    assert_eq!((config.state_dir, config.bridge.as_str()), (PathBuf::from("/state"), "b0"));
    assert_eq!((config.mtu, config.low_water, config.version), (None, 7, Version::CURRENT));
    for (text, needed, named) in [
        (r#"{"stateDir":"relative","new":1}"#, &["stateDir"][..], "relative"),
        (r#"{"stateDir":7}"#, &["stateDir"], "7"),
        (r#"{"cniVersion":"1.1.0","new":1}"#, &["stateDir", "name"], "name"),
        (r#"{"cniVersion":"1.1.0","name":"a b"}"#, &["stateDir", "name"], "a b"),
    ] {
        let error = lenient(text, needed).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig, "{text}");
        assert!(error.message.contains(named), "{error}");
    }
}

#[test]
fn host_bits_in_a_range_are_cleared() {
    let config = parse(r#"{"cniVersion":"1.0.0","name":"pods","segments":["10.77.3.9/16"]}"#).unwrap();
    assert_eq!(config.segments, ["10.77.0.0/16".parse::<IpNetwork>().unwrap()]);
}

#[test]
fn what_runtimes_add_is_tolerated() {
    let config = parse(
        r#"{"cniVersion":"1.1.0","cniVersions":["0.4.0","1.1.0"],"name":"pods","type":"edge-cni","capabilities":{"portMappings":true},
        "runtimeConfig":{"portMappings":[]},"args":{},"prevResult":{},"disableCheck":true,"disableGC":true,
        "cni.dev/valid-attachments":[]}"#,
    )
    .unwrap();
    assert!(config.unknown_keys.is_empty());
    let later = parse(r#"{"cniVersion":"1.1.0","name":"pods","cni.dev/later":1}"#).unwrap();
    assert_eq!(later.unknown_keys, ["cni.dev/later"]);
}

#[test]
fn wrong_values_are_refused_and_named() {
    for (fragment, named) in [
        (r#""bridge":"a/b""#, "a/b"),
        (r#""bridge":"""#, "bridge"),
        (r#""bridge":"longer-than-fifteen""#, "longer"),
        (r#""stateDir":"relative""#, "relative"),
        (r#""agentSocket":"x.sock""#, "x.sock"),
        (r#""mtu":100"#, "100"),
        (r#""mtu":"big""#, "big"),
        (r#""segments":["10.0.0.0/31"]"#, "10.0.0.0/31"),
        (r#""segments":["10.0.0.0/33"]"#, "10.0.0.0/33"),
        (r#""segments":["127.0.0.0/24"]"#, "127.0.0.0/24"),
        (r#""segments":["fe80::/64"]"#, "fe80::/64"),
        (r#""segments":["0.0.0.0/0"]"#, "0.0.0.0/0"),
        (r#""segments":["fe00::/8"]"#, "link-local"),
        (r#""clusterRanges":["10.77.0.0/16","ff00::/8"]"#, "ff00::/8"),
        (r#""clusterRanges":["fe80::/10"]"#, "link-local"),
        (r#""clusterRanges":["::/64"]"#, "loopback"),
        (r#""clusterRanges":["0.0.0.0/0"]"#, "0.0.0.0/0"),
        (r#""clusterRanges":["169.254.0.0/16"]"#, "link-local"),
        (r#""serviceRanges":["::/0"]"#, "serviceRanges"),
        (r#""serviceRanges":["224.0.0.0/4"]"#, "multicast"),
        (r#""segments":["10.1.0.0/16","10.1.2.0/24"]"#, "overlaps"),
        (r#""segments":[{"subnet":"10.1.0.0/24","rangeStart":"10.2.0.1"}]"#, "10.2.0.1"),
        (r#""segments":[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","rangeEnd":"10.1.0.8"}]"#, "10.1.0.9"),
        (r#""segments":[{"subnet":"10.1.0.0/24","gateway":"10.1.0.254"}]"#, "10.1.0.254"),
        (r#""segments":[{"subnet":"10.1.0.0/31","rangeStart":"10.1.0.1"}]"#, "too small"),
        (r#""reserved":["10.1.0.9-10.1.0.8"]"#, "10.1.0.9-10.1.0.8"),
        (r#""segments":"10.1.0.0/16""#, "sequence"),
        (r#""clusterRanges":["nonsense"]"#, "nonsense"),
        (r#""dns":"8.8.8.8""#, "dns"),
        (r#""lowWater":-1"#, "-1"),
        (r#""runtimeConfig":{"ips":["10.77.0"]}"#, "10.77.0"),
        (r#""lanToPods":["lan0"]"#, "lan0"),
        (r#""resolversBehindTunnels":["10.96.0.0/12"]"#, "resolversBehindTunnels has \"10.96.0.0/12\""),
        (r#""resolversBehindTunnels":true"#, "true"),
        (r#""resolvConf":"resolv.conf""#, "resolv.conf"),
        (r#""isGateway":false"#, "isDefaultGateway"),
        (r#""routes":[{"dst":"192.0.2.0/24","gw":"fd77::1"}]"#, "192.0.2.0/24"),
        (r#""routes":[{"dst":"192.0.2.0/24","via":"10.0.0.1"}]"#, "via"),
        (r#""routes":[{"gw":"10.0.0.1"}]"#, "dst"),
        (r#""unfilteredPods":["kube*"]"#, "kube*"),
        (r#""unfilteredPods":["default/"]"#, "default/"),
        (r#""unfilteredPods":["default/a*b*"]"#, "a*b*"),
        (r#""unfilteredPods":[""]"#, "unfilteredPods"),
    ] {
        let error = parse(&format!(r#"{{"cniVersion":"1.0.0","name":"pods",{fragment}}}"#)).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig, "{fragment}");
        assert!(error.message.contains(named), "{fragment}: {error}");
    }
    assert_eq!(parse(r#"{"cniVersion":"1.0.0"}"#).unwrap_err().code, Code::InvalidConfig);
    assert_eq!(parse(r#"{"cniVersion":1,"name":"pods"}"#).unwrap_err().code, Code::InvalidConfig);
    assert_eq!(parse(r#"{"cniVersion":"9.0.0","name":"pods"}"#).unwrap_err().code, Code::IncompatibleVersion);
    assert_eq!(parse(r#"{"name":"pods"}"#).unwrap().version, Version::UNNAMED);
    for text in ["", "[]", "{", "null", "\u{0}"] {
        assert_eq!(parse(text).unwrap_err().code, Code::Decode, "{text:?}");
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_input_never_panics(bytes: Vec<u8>) {
        if let Ok(object) = parse_object(&bytes) {
            let _ = Config::from_object(object);
        }
    }
}

#[test]
fn a_state_directory_that_other_programs_use_is_refused() {
    let with = |directory: &str| parse(&format!(r#"{{"cniVersion":"1.0.0","name":"pods","stateDir":{directory:?}}}"#));
    for directory in
        ["/", "//", "/.", "/var", "/tmp/", "/var/lib", "/var/lib/.", "/var/lib/x/..", "/proc/self", "/dev/shm/edge-cni"]
    {
        let error = with(directory).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig, "{directory}");
        assert!(error.message.contains(directory) && error.message.contains("/var/lib/edge-cni"), "{error}");
    }
    for directory in ["/var/lib/edge-cni", "/tmp/state", "/run/edge-cni/leases"] {
        with(directory).unwrap();
    }
}

#[test]
fn cluster_ranges_and_segments_have_a_limit() {
    let with = |key: &str, count: usize| {
        let networks: Vec<String> =
            (0..count).map(|number| format!("10.{}.{}.0/24", number / 256, number % 256)).collect();
        parse(&serde_json::json!({ "cniVersion": "1.0.0", "name": "pods", key: networks }).to_string())
    };
    for key in ["clusterRanges", "segments"] {
        with(key, 128).unwrap();
        let error = with(key, 1500).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        for part in [key, "1500", "at most 128"] {
            assert!(error.message.contains(part), "{error}");
        }
    }
}
