use std::os::unix::fs::PermissionsExt;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
};

use super::*;
use crate::check;

const PSK: &str = "correct horse battery staple";

/// Returns the configuration of a tunnel between two sites with a pre-shared key, as in
/// strongSwan's examples.
fn site(connection: &str, child: &str) -> String {
    format!(
        "connections {{\n gw-gw {{\n  local_addrs = 192.0.2.1\n  remote_addrs = 192.0.2.2\n  {connection}\n  local {{\n   auth = psk\n   \
         id = moon.example\n  }}\n  remote {{\n   auth = psk\n   id = sun.example\n  }}\n  children {{\n   net-net {{\n    local_ts = 10.1.0.0/16\n    \
         remote_ts = 10.2.0.0/16\n    start_action = start\n    {child}\n   }}\n  }}\n }}\n}}\nsecrets {{\n ike-1 {{\n  id-1 = moon.example\n  \
         id-2 = sun.example\n  secret = \"{PSK}\"\n }}\n}}\n"
    )
}

/// A directory with the layout of /etc/swanctl.
struct Swanctl(tempfile::TempDir);

impl Swanctl {
    fn new(text: &str) -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        this.put("swanctl.conf", text);
        this
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn import(&self) -> Import {
        Import::read(&self.0.path().join("swanctl.conf")).unwrap()
    }
}

fn import(text: &str) -> Import {
    Swanctl::new(text).import()
}

/// Returns whether the only connection is imported, and the findings about it. The directory is
/// removed from the text.
fn findings(import: &Import) -> (bool, String) {
    let [(_, carried_over, findings)] = &import.connections[..] else {
        panic!("{} connections", import.connections.len())
    };
    (*carried_over, [&findings.problems[..], &findings.notes[..]].concat().join("\n"))
}

fn parsed(import: &Import) -> Config {
    Config::parse(&import.text, Path::new("agent.toml")).unwrap()
}

#[test]
fn a_connection_becomes_a_peer_with_the_same_tunnel() {
    let import = import(&site(
        "proposals = aes256gcm16-prfsha256-x25519, default\n  encap = yes\n  mobike = no\n  childless = force",
        "esp_proposals = aes256gcm16-x25519",
    ));
    assert_eq!(
        import.text.split_once("[[peer]]").unwrap().1,
        "\nname = \"gw-gw\"\nlocal = \"192.0.2.1\"\nremote = [\"192.0.2.2\"]\nlocal_id = \"moon.example\"\nremote_id = \"sun.example\"\n\
         psk_file = \"gw-gw.psk\"\nlocal_subnets = [\"10.1.0.0/16\"]\nremote_subnets = [\"10.2.0.0/16\"]\n\
         esp_proposals = [\"aes256gcm16-x25519\"]\nstart = \"initiate\"\nencap = \"force\"\nmobike = false\nchildless = \"force\"\n"
    );
    let [(name, content)] = &import.files[..] else { panic!() };
    assert_eq!((name.as_str(), content.as_slice()), ("gw-gw.psk", format!("{PSK}\n").as_bytes()));
    assert!(!import.text.contains("horse"));
}

#[test]
fn what_is_different_is_said_and_what_is_the_same_is_not() {
    let import = import(&site(
        "rekey_time = 2h\n  mobike = yes\n  dpd_delay = 0\n  colour = red\n  fragmentation = yes",
        "updown = /bin/true\n    start_action = trap\n    ipcomp = no",
    ));
    let (carried_over, text) = findings(&import);
    assert!(carried_over, "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    for (part, line) in
        [("rekey_time: [timing] ike_lifetime", 5), ("colour is not a key", 8), ("updown: the script", 23)]
    {
        assert!(
            lines.iter().any(|found| found.contains(&format!("swanctl.conf:{line}: ")) && found.contains(part)),
            "{part}: {text}"
        );
    }
    assert!(import.text.contains("start = \"on-demand\""), "{}", import.text);
    // The comments in the configuration contain the same lines as the report.
    assert!(lines.iter().all(|line| import.text.contains(&format!("# - {line}\n"))));
}

#[test]
fn a_connection_that_would_be_another_tunnel_is_left_out_with_the_reason() {
    for (from, to, why) in [
        ("remote_addrs", "version = 1\n  remote_addrs", "IKEv1"),
        ("remote_addrs", "childless = perhaps\n  remote_addrs", "is unknown"),
        ("remote_addrs", "vips = 0.0.0.0\n  remote_addrs", "configuration payload"),
        ("remote_addrs", "pools = p\n  remote_addrs", "configuration payload"),
        ("remote_addrs", "proposals = aes256gcm16-prfsha256-frodos1\n  remote_addrs", "no proposal is supported"),
        ("remote_addrs = 192.0.2.2", "remote_addrs = 192.0.2.256", "neither an address nor a host name"),
        ("local_ts = 10.1.0.0/16", "local_ts = 10.1.0.0/16[tcp/80-90]", "port ranges"),
        ("local_ts = 10.1.0.0/16", "local_ts = 10.1.0.0/16[tcp/80], 10.3.0.0/16", "different protocols or ports"),
        ("start_action = start", "mode = transport", "others than one address"),
        ("start_action = start", "mode = beet", "mode beet"),
        ("start_action = start", "start_action = later", "is unknown"),
        ("start_action = start", "mark_in = 42", "marks"),
        ("start_action = start", "esp_proposals = null", "no proposal is supported"),
        ("auth = psk\n   id = moon.example", "auth = eap-mschapv2\n   id = moon.example", "auth = eap-mschapv2"),
        ("auth = psk\n   id = moon.example", "auth = pubkey\n   id = moon.example", "at one end and a certificate"),
        ("id = moon.example", "id = *.example", "patterns"),
        ("auth = psk\n   id = sun.example", "auth = psk\n   id = \"@#1\"", "two for each octet"),
        ("  local {", "  local-1 {\n}\n  local {", "several rounds"),
        (
            "id-1 = moon.example\n  id-2 = sun.example",
            "id-1 = mars.example",
            "no section ike* of secrets is for \"moon.example\" and \"sun.example\"",
        ),
        ("secret = ", "secret_of = ", "has no secret"),
    ] {
        let text = site("", "");
        assert!(text.contains(from), "{from}");
        let import = import(&text.replacen(from, to, 1));
        let (carried_over, text) = findings(&import);
        assert!(!carried_over && text.contains(why), "{to}: {text}");
        assert!(!text.contains("horse"), "{text}");
        assert_eq!(import.text.contains("[[peer]]"), carried_over);
    }
}

#[test]
fn identities_and_addresses_that_the_file_leaves_out_are_those_that_the_daemon_takes() {
    let text =
        site("remote_port = 4500", "").replace("   id = moon.example\n", "").replace("   id = sun.example\n", "");
    let text = text
        .replace("id-1 = moon.example\n  id-2 = sun.example\n", "")
        .replace("10.1.0.0/16", "dynamic")
        .replace("remote_ts = 10.2.0.0/16", "");
    let peer = parsed(&import(&text)).peers.remove(0);
    assert_eq!((peer.local_id.to_string(), peer.remote_id.to_string()), ("192.0.2.1".into(), "192.0.2.2".into()));
    assert_eq!(
        (peer.local_subnets[0].to_string(), peer.remote_subnets[0].to_string()),
        ("192.0.2.1/32".into(), "192.0.2.2/32".into())
    );
    assert_eq!(peer.remote[0].port, Some(4500));
    // The connection responds to any host with this identity.
    let text = site("", "").replace("192.0.2.2", "%any").replace("192.0.2.1", "%any");
    let peer = parsed(&import(&text)).peers.remove(0);
    assert!(peer.remote.is_empty() && peer.local.is_none() && peer.start == crate::config::Start::Respond);
    // Without an address and an identity of the peer, the connection is not imported.
    let (carried_over, text) = findings(&import(&text.replace("   id = sun.example\n", "")));
    assert!(!carried_over && text.contains("write the identity that the peer proves"), "{text}");
}

#[test]
fn the_key_that_names_most_of_the_two_identities_is_taken() {
    let secrets = |more: &str| site("", "").replace("secrets {", &format!("secrets {{\n {more}"));
    let any = import(&secrets("ike-0 {\n secret = any\n }\n ike-2 {\n id = sun.example\n secret = half\n }"));
    assert_eq!(any.files[0].1.as_slice(), format!("{PSK}\n").as_bytes());
    let (carried_over, text) =
        findings(&import(&secrets("ike-9 {\n id-a = sun.example\n id-b = moon.example\n secret = other\n }")));
    assert!(!carried_over && text.contains("ike-9 and ike-1 fit the connection equally well"), "{text}");
    for (secret, line) in [("0x00ff", "0x00ff\n"), ("0sAP8=", "0sAP8=\n"), ("0tx", "0sMHR4\n"), ("a\\nb", "0sYQpi\n")] {
        let import = import(&site("", "").replace(PSK, secret));
        assert_eq!(import.files[0].1.as_slice(), line.as_bytes());
    }
}

/// Creates certificates of a root and an intermediate authority, and a connection that uses them.
fn with_certificates(local_id: &str, certs: &str) -> Swanctl {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let root = CertifiedIssuer::self_signed(authority("root"), KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap();
    let middle =
        CertifiedIssuer::signed_by(authority("middle"), KeyPair::generate_for(&PKCS_ED25519).unwrap(), &root).unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(vec!["moon.example".into(), "edge.example".into()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "moon");
    let leaf = params.signed_by(&key, &middle).unwrap();
    let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let text = site("", "").replace("auth = psk", "auth = pubkey").replace("id = moon.example", local_id);
    let text = text.replacen("auth = pubkey", &format!("auth = pubkey\n   {certs}"), 1);
    let swanctl = Swanctl::new(&text);
    swanctl.put("x509ca/root.pem", root.pem());
    swanctl.put("x509ca/middle.der", middle.der());
    swanctl.put("x509/moon.pem", leaf.pem());
    swanctl.put("private/a-other.pem", other.serialize_pem());
    swanctl.put("private/b-moon.der", key.serialize_der());
    swanctl
}

#[test]
fn certificates_come_with_their_key_intermediates_and_authorities_and_pass_the_check() {
    for (local_id, certs, id) in [
        ("id = moon.example", "certs = moon.pem", "moon.example"),
        ("id = moon.example", "", "moon.example"),
        ("", "certs = moon.pem", "CN=moon"),
        ("id = mars.example", "certs = moon.pem", "CN=moon"),
    ] {
        let import = with_certificates(local_id, certs).import();
        let directory = tempfile::tempdir().unwrap();
        let into = directory.path().join("new");
        import.write(&into).unwrap();
        let file = into.join("agent.toml");
        let config = Config::load(&file).unwrap();
        assert!(config.peers[0].local_id.to_string().contains(id), "{}", import.text);
        check::check(&config, false).unwrap();
        let count = |name: &str| fs::read_to_string(into.join(name)).unwrap().matches("BEGIN CERTIFICATE").count();
        assert_eq!((count("gw-gw.crt"), count("gw-gw.ca.crt")), (2, 2));
        for entry in fs::read_dir(&into).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
    }
}

#[test]
fn revocation_lists_are_read_where_they_are_and_a_policy_without_them_is_left_out() {
    for policy in ["ifuri", "strict"] {
        let swanctl = with_certificates("id = moon.example", "certs = moon.pem");
        let file = fs::read_to_string(swanctl.0.path().join("swanctl.conf")).unwrap();
        let with =
            |policy: &str| file.replace("id = sun.example", &format!("id = sun.example\n   revocation = {policy}"));
        swanctl.put("swanctl.conf", with(policy));
        let (carried_over, text) = findings(&swanctl.import());
        assert!(!carried_over && text.contains("fetching revocation lists"), "{text}");
        swanctl.put("x509crl/ca.crl", "a list");
        let import = swanctl.import();
        let (carried_over, text) = findings(&import);
        let directory = swanctl.0.path().join("x509crl");
        assert!(
            carried_over && text.contains(directory.to_str().unwrap()) && text.contains("none is fetched"),
            "{text}"
        );
        let peer = &parsed(&import).peers[0];
        assert_eq!(peer.crls.as_deref(), Some(directory.as_path()));
        assert_eq!(format!("{:?}", peer.revocation).to_lowercase(), policy);
        swanctl.put("swanctl.conf", with("hard"));
        assert!(findings(&swanctl.import()).1.contains("revocation \"hard\" is unknown"));
    }
    let plain = with_certificates("id = moon.example", "certs = moon.pem").import();
    assert!(!plain.text.contains("crls") && !plain.text.contains("revocation"), "{}", plain.text);
}

#[test]
fn credentials_that_are_missing_or_unreadable_are_named() {
    let problem = |swanctl: &Swanctl| {
        let (carried_over, text) = findings(&swanctl.import());
        assert!(!carried_over);
        text
    };
    let swanctl = with_certificates("id = mars.example", "");
    let text = problem(&swanctl);
    assert!(text.contains("no certificate in x509 is for \"mars.example\""), "{text}");
    let swanctl = with_certificates("id = moon.example", "certs = gone.pem");
    assert!(problem(&swanctl).contains("x509/gone.pem: cannot be read"));
    let swanctl = with_certificates("id = moon.example", "certs = moon.pem");
    swanctl.put("private/b-moon.der", "-----BEGIN EC PRIVATE KEY-----\n-----END EC PRIVATE KEY-----\n");
    let text = problem(&swanctl);
    assert!(text.contains("b-moon.der: not PKCS#8") && text.contains("openssl pkcs8"), "{text}");
    assert!(text.contains("a-other.pem: "), "{text}");
    fs::remove_dir_all(swanctl.0.path().join("x509ca")).unwrap();
    assert!(problem(&swanctl).contains("no certificate in x509ca proves the peer"));
}

#[test]
fn nothing_is_replaced_and_nothing_is_half_written() {
    let import = import(&site("", ""));
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("agent.toml"), "mine").unwrap();
    let error = import.write(directory.path()).unwrap_err().to_string();
    assert!(error.contains("agent.toml") && error.contains("nothing was written"), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(directory.path().join("agent.toml")).unwrap(), "mine");
}

#[test]
fn odd_names_of_connections_stay_names_and_make_no_paths() {
    let text = site("", "").replace("gw-gw", "\"../é [[peer]]\"");
    let import = import(&text);
    assert_eq!(parsed(&import).peers[0].name, "../é [[peer]]");
    assert_eq!(import.files[0].0, "_______peer__.psk");
}

/// Compares the output with the examples in docs/migrate.md. Their first line, which names the
/// file, is left out.
#[test]
fn the_examples_of_the_documentation_are_what_import_writes() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/migrate");
    for directory in ["psk", "certificates"] {
        let text = fs::read_to_string(docs.join(directory).join("swanctl.conf")).unwrap();
        let swanctl = with_certificates("", "");
        swanctl.put("swanctl.conf", text);
        fs::rename(swanctl.0.path().join("x509/moon.pem"), swanctl.0.path().join("x509/edge.pem")).unwrap();
        let import = swanctl.import();
        let expected = fs::read_to_string(docs.join(directory).join("agent.toml")).unwrap();
        let content =
            |text: &str| text.split_once('\n').unwrap().1.replace(&format!("{}/", swanctl.0.path().display()), "");
        assert_eq!(content(&import.text), content(&expected));
    }
}

#[test]
fn the_documentation_names_every_key() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/migrate.md")).unwrap();
    for (key, ..) in [keys::CONNECTION, keys::LOCAL, keys::REMOTE, keys::CHILD].concat() {
        assert!(text.contains(&format!("`{key}")), "docs/migrate.md does not name {key}");
    }
}

#[test]
fn several_children_become_several_child_sas() {
    let text = site("", "").replace(
        "children {",
        "children {\n   voice/1 {\n    local_ts = 10.3.0.0/16\n    remote_ts = 10.4.0.0/16, fd04::/64\n    esp_proposals = aes256gcm16\n    \
         start_action = start\n   }\n",
    );
    let import = import(&text);
    let (carried_over, found) = findings(&import);
    assert!(carried_over, "{found}");
    let peer = &parsed(&import).peers[0];
    let children: Vec<(&str, String)> =
        peer.children.iter().map(|child| (child.name.as_str(), child.local_subnets[0].to_string())).collect();
    assert_eq!(children, [("voice_1", "10.3.0.0/16".to_owned()), ("net-net", "10.1.0.0/16".to_owned())]);
    assert!(peer.children[0].esp_proposals.is_some() && peer.children[1].esp_proposals.is_none());
    assert!(peer.local_subnets.is_empty());
}

#[test]
fn selectors_of_one_protocol_and_port_become_a_child_of_it() {
    let text =
        site("", "").replace("10.1.0.0/16", "10.1.0.0/16[tcp/80]").replace("10.2.0.0/16", "10.2.0.0/16, fd02::/64");
    let found = import(&text);
    let (carried_over, said) = findings(&found);
    assert!(carried_over, "{said}");
    let peer = &parsed(&found).peers[0];
    let [child] = &peer.children[..] else { panic!("{}", found.text) };
    assert_eq!(
        (child.name.as_str(), child.protocol, child.local_port, child.remote_port),
        ("net-net", 6, Some(80), None)
    );
    assert_eq!((child.local_subnets.len(), child.remote_subnets.len()), (1, 2));
    let (carried_over, found) = findings(&import(&text.replace("10.2.0.0/16, fd02::/64", "10.2.0.0/16[udp]")));
    assert!(!carried_over && found.contains("different protocols"), "{found}");
}

#[test]
fn transport_mode_between_the_addresses_of_both_ends_is_carried_over() {
    let dynamic = |connection: &str| {
        let text = site(connection, "mode = transport");
        import(&text.replace("10.1.0.0/16", "dynamic").replace("10.2.0.0/16", "dynamic[udp/1701]"))
    };
    let found = dynamic("");
    let peer = &parsed(&found).peers[0];
    let [child] = &peer.children[..] else { panic!("{}", found.text) };
    assert_eq!(child.mode, crate::config::ChildMode::Transport);
    assert_eq!(
        (child.local_subnets[0].to_string(), child.remote_subnets[0].to_string()),
        ("192.0.2.1/32".into(), "192.0.2.2/32".into())
    );
    assert_eq!((child.protocol, child.remote_port), (17, Some(1701)));
    let forced = dynamic("encap = yes");
    let peer = &parsed(&forced).peers[0];
    assert_eq!((peer.encap, peer.children[0].mode), (crate::config::Encap::Force, crate::config::ChildMode::Transport));
}
