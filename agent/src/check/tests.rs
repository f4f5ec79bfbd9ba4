use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};

use super::*;
use crate::config::Config;

const PEER: &str = "
[[peer]]
name = 'moon'
remote = '192.0.2.1'
local_id = 'sun.example'
remote_id = 'moon.example'
local_subnets = ['10.1.0.0/16']
remote_subnets = ['10.2.0.0/16']
";
const PSK: &str = "psk = 'a key of more than sixteen octets'\n";
const CERTIFICATE: &str = "certificate = 'sun.pem'\nkey = 'sun.key'\ntrust_anchors = 'ca.pem'\n";

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Writes the certificate of a CA, and a certificate for `name` that is valid from the first of
    /// `years` to the second.
    fn certificate(&self, name: &str, years: (i32, i32)) {
        let (authority_key, key) =
            (KeyPair::generate().unwrap(), KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "ca");
        let anchor = authority.self_signed(&authority_key).unwrap();
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (parameters.not_before, parameters.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
        let certificate = parameters.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
        self.write("ca.pem", &anchor.pem());
        self.write("sun.pem", &certificate.pem());
        self.write("sun.key", &key.serialize_pem());
    }

    fn findings(&self, config: &str) -> Vec<Finding> {
        self.write("agent.toml", config);
        let config = Config::load(Path::new(&self.path("agent.toml"))).unwrap();
        report(&config, &CertificateClock::default()).0
    }

    /// Returns the level and the text of all findings above [`Level::Ok`]. The text begins with the
    /// section.
    fn problems(&self, config: &str) -> Vec<(Level, String)> {
        let findings = self.findings(config).into_iter().filter(|finding| finding.level != Level::Ok);
        findings.map(|finding| (finding.level, format!("{}: {}", finding.section, finding.what))).collect()
    }

    fn only_problem(&self, config: &str, level: Level, words: &[&str]) {
        let problems = self.problems(config);
        assert!(
            matches!(&problems[..], [(found, what)] if *found == level && words.iter().all(|word| what.contains(word))),
            "{problems:?}"
        );
    }
}

#[test]
fn what_works_is_reported_as_ok_with_what_was_read() {
    let directory = Directory::new();
    let findings = directory.findings(&format!("{PEER}{PSK}"));
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
    assert!(findings[0].what.contains("sun.example") && findings[0].what.contains("moon.example"), "{findings:?}");
    directory.certificate("sun.example", (2020, 2100));
    let findings = directory.findings(&format!("{PEER}{CERTIFICATE}"));
    assert!(findings.len() == 2 && findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
}

#[test]
fn a_file_that_is_missing_or_open_to_others_is_an_error_of_its_peer() {
    let directory = Directory::new();
    let config = format!("{PEER}psk_file = 'moon.psk'\n");
    directory.only_problem(&config, Level::Error, &["moon: ", "moon.psk", "cannot be read"]);
    directory.write("moon.psk", "a key of more than sixteen octets\n");
    fs::set_permissions(directory.path("moon.psk"), fs::Permissions::from_mode(0o644)).unwrap();
    directory.only_problem(&config, Level::Error, &["moon: ", "chmod 600"]);
    fs::set_permissions(directory.path("moon.psk"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(directory.problems(&config), []);
}

#[test]
fn a_short_key_is_a_warning_that_does_not_show_it() {
    let directory = Directory::new();
    directory.only_problem(&format!("{PEER}psk = 'horse'\n"), Level::Warning, &["guessed"]);
    let findings = format!("{:?}", directory.findings(&format!("{PEER}psk = 'horse'\n")));
    assert!(!findings.contains("horse"), "{findings}");
}

#[test]
fn certificates_that_the_peer_will_refuse_are_errors() {
    let directory = Directory::new();
    let config = format!("{PEER}{CERTIFICATE}");
    directory.certificate("sun.example", (2010, 2020));
    directory.only_problem(&config, Level::Error, &["our certificate", "ended at", "2020"]);
    directory.certificate("sun.example", (2099, 2100));
    directory.only_problem(&config, Level::Error, &["our certificate", "valid from", "2099"]);
    directory.certificate("soon.example", (2020, 2100));
    directory.only_problem(&config, Level::Error, &["not for local_id", "sun.example"]);
    directory.certificate("sun.example", (2020, 2100));
    let key_id = config.replace("'moon.example'", "'keyid:moon'");
    directory.only_problem(&key_id, Level::Error, &["remote_id", "no certificate"]);
    directory.write("sun.key", &KeyPair::generate().unwrap().serialize_pem());
    directory.only_problem(&config, Level::Error, &["does not belong to the certificate"]);
}

#[test]
fn a_certificate_that_ends_within_a_month_is_a_warning() {
    let directory = Directory::new();
    let now = time::OffsetDateTime::from_unix_timestamp(CertificateClock::default().unix_time() as i64).unwrap();
    let (key, mut parameters) =
        (KeyPair::generate().unwrap(), CertificateParams::new(vec!["sun.example".into()]).unwrap());
    parameters.not_after = now + time::Duration::days(29);
    let certificate = parameters.self_signed(&key).unwrap();
    directory.certificate("sun.example", (2020, 2100));
    directory.write("sun.pem", &certificate.pem());
    directory.write("sun.key", &key.serialize_pem());
    directory.only_problem(&format!("{PEER}{CERTIFICATE}"), Level::Warning, &["our certificate", "ends soon"]);
}

#[test]
fn a_certificate_that_the_agent_renews_is_a_warning_only_if_it_did_not() {
    let now = time::OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
    let mut parameters = CertificateParams::new(vec!["edge-1".into()]).unwrap();
    (parameters.not_before, parameters.not_after) = (now, now + time::Duration::days(7));
    let certificate = parameters.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate.der()).unwrap();
    let level_after = |days: i64| {
        let mut report = Report::default();
        let now = now.unix_timestamp() + days * 24 * 3600;
        report::validity(&mut report, "[controller]", "it", &certificate, now, report::RenewedBy::Agent);
        report.level()
    };
    assert_eq!([0, 3, 4, 5, 6, 8].map(level_after), {
        use Level::{Error, Ok, Warning};
        [Ok, Ok, Ok, Warning, Warning, Error]
    });
}

#[test]
fn networks_that_get_in_each_others_way_are_warnings() {
    let directory = Directory::new();
    let peer = format!("{PEER}{PSK}");
    let overlapping = peer.replace("10.1.0.0/16", "10.0.0.0/8");
    directory.only_problem(&overlapping, Level::Warning, &["10.0.0.0/8", "10.2.0.0/16", "overlap"]);
    let equal = peer.replace("10.1.0.0/16", "10.2.0.0/16");
    directory.only_problem(&equal, Level::Warning, &["10.2.0.0/16", "are the same network"]);
    let inside = peer.replace("10.2.0.0/16", "192.0.2.0/24");
    directory.only_problem(&inside, Level::Warning, &["192.0.2.1", "192.0.2.0/24"]);
    let second = peer.replace("moon", "luna").replace("10.2.0.0/16", "10.2.7.0/24");
    directory.only_problem(
        &format!("{peer}{second}"),
        Level::Warning,
        &["luna: ", "10.2.7.0/24", "10.2.0.0/16", "moon"],
    );
    let elsewhere = second.replace("10.1.0.0/16", "10.3.0.0/16");
    assert_eq!(directory.problems(&format!("{peer}{elsewhere}")), []);
}

#[test]
fn settings_that_let_everybody_in_are_warnings() {
    let directory = Directory::new();
    let firewall = |keys: &str| format!("[firewall]\n{keys}\n{PEER}{PSK}");
    for (keys, words) in [
        ("lan_to_pods = ['0.0.0.0/0']", ["lan_to_pods has 0.0.0.0/0", "the internet too"]),
        ("lan_to_pods = ['192.168.1.0/24', '::/0']", ["lan_to_pods has ::/0", "without encryption"]),
        ("lan_to_pods = ['128.0.0.0/1']", ["lan_to_pods has 128.0.0.0/1", "name the networks"]),
        ("lan_to_tunnels = ['0.0.0.0/0']", ["lan_to_tunnels has 0.0.0.0/0", "may use its tunnels"]),
        ("pod_sources = ['0.0.0.0/0']", ["pod_sources has 0.0.0.0/0", "any source address"]),
        ("masquerade_except = ['0.0.0.0/0']", ["masquerade_except has 0.0.0.0/0", "masquerade = false"]),
        ("masquerade = false\nmasquerade_except = ['10.0.0.0/8']", ["masquerade_except", "no effect"]),
    ] {
        directory.only_problem(&firewall(keys), Level::Warning, &[words.as_slice(), &["[firewall]: "]].concat());
    }
    let usual = "lan_to_pods = ['10.0.0.0/8']\nlan_to_tunnels = ['192.168.0.0/16']\nmasquerade_except = ['10.0.0.0/8']";
    assert_eq!(directory.problems(&firewall(usual)), []);
}

#[test]
fn timers_that_have_no_effect_are_warnings() {
    let directory = Directory::new();
    let timing = |keys: &str| format!("[timing]\n{keys}\n{PEER}{PSK}");
    for (keys, words) in [
        ("ike_lifetime = '30m'", ["ike_lifetime is 1800s", "child_lifetime, 3600s"]),
        ("authentication_lifetime = '2h'", ["authentication_lifetime is 7200s", "ever rekeyed"]),
        ("child_lifetime = '5s'\nlinger = '6s'", ["child_lifetime is 5s", "linger, 6s"]),
        ("idle_liveness = '3s'", ["idle_liveness is 3s", "liveness, 4s"]),
    ] {
        directory.only_problem(&timing(keys), Level::Warning, &[words.as_slice(), &["[timing]: "]].concat());
    }
    let equal = "child_lifetime = '1h'\nike_lifetime = '1h'\nauthentication_lifetime = '1h'\nlinger = '1h'";
    assert_eq!(directory.problems(&timing(equal)), []);
}

#[test]
fn a_peer_with_our_identity_or_on_this_host_is_a_warning() {
    let directory = Directory::new();
    let peer = format!("{PEER}{PSK}");
    let twin = peer.replace("moon.example", "SUN.example");
    directory.only_problem(&twin, Level::Warning, &["moon: ", "local_id and remote_id are both", "with itself"]);
    let here = peer.replace("192.0.2.1", "127.0.0.1");
    directory.only_problem(&here, Level::Warning, &["moon: ", "remote has 127.0.0.1", "this host itself"]);
}

#[test]
fn networks_between_which_no_packet_goes_are_warnings() {
    let directory = Directory::new();
    let peer = format!("{PEER}{PSK}");
    let with = |remote: &str| peer.replace("'10.2.0.0/16'", remote);
    directory.only_problem(&with("'fd02::/64'"), Level::Warning, &["moon: ", "no family in common"]);
    directory.only_problem(&with("'10.2.0.7/16'"), Level::Warning, &["remote_subnets has 10.2.0.7/16", "10.2.0.0/16?"]);
    directory.only_problem(&with("'127.0.0.0/8'"), Level::Warning, &["remote_subnets has 127.0.0.0/8", "each host"]);
    assert_eq!(directory.problems(&with("'fd02::/64', '10.2.0.0/16'")), []);
}

#[test]
fn what_only_earlier_releases_accepted_is_an_error() {
    let directory = Directory::new();
    let peer = format!("{PEER}{PSK}");
    for (config, words) in [
        (peer.replace("192.0.2.1", "0.0.0.0"), ["moon: remote has 0.0.0.0", "expected the address of one host"]),
        (format!("{peer}[timing]\nretry = '20s'\n"), ["[timing]: retry is 20s", "raise retry_max"]),
        (format!("{peer}[on_demand]\nidle_timeout = '1ms'\n"), ["[on_demand]: idle_timeout", "at least 1s"]),
    ] {
        directory.only_problem(&config, Level::Error, &words);
    }
    let controller = format!("[controller]\nurls = ['https://c.example:8443/v1']\n{peer}");
    let problems = directory.problems(&controller);
    assert!(problems.iter().any(|(level, what)| *level == Level::Error && what.contains("has a path")), "{problems:?}");
}

#[test]
fn sizes_that_nobody_wants_are_warnings() {
    let directory = Directory::new();
    directory.only_problem(&format!("mtu = 1279\n{PEER}{PSK}"), Level::Warning, &["mtu is 1279", "IPv6 needs 1280"]);
    assert_eq!(directory.problems(&format!("mtu = 1280\n{PEER}{PSK}")), []);
    let spare = |spare: u32| {
        let controller = format!("[controller]\nurls = ['https://c.example:8443']\nspare = {spare}\n{PEER}{PSK}");
        let problems = directory.problems(&controller).into_iter().filter(|(level, _)| *level == Level::Warning);
        problems.map(|(_, what)| what).collect::<Vec<_>>()
    };
    assert!(spare(17)[0].contains("spare is 17"), "{:?}", spare(17));
    assert_eq!(spare(16), Vec::<String>::new());
}

#[test]
fn a_state_directory_that_a_reboot_empties_is_a_warning() {
    let directory = Directory::new();
    let with = |state: &str| format!("state_dir = '{state}'\n{PEER}{PSK}");
    directory.only_problem(
        &with("/run/edge-cni/state"),
        Level::Warning,
        &["state_dir is /run/edge-cni/state", "reboot"],
    );
    directory.only_problem(&with("/dev/shm/edge-cni"), Level::Warning, &["/dev/shm is empty after a reboot"]);
    assert_eq!(directory.problems(&with("/runtime/edge-cni")), []);
}

#[test]
fn a_node_that_cannot_join_is_an_error_and_nothing_is_made_on_disk() {
    let directory = Directory::new();
    let state = directory.path("state");
    let config = format!(
        "name = 'edge-1'\nstate_dir = '{}'\n[controller]\nurls = ['https://c.example:8443']\ntoken_file = 'token'\n",
        state.display()
    );
    directory.only_problem(&config, Level::Error, &["[controller]", "token create"]);
    directory.write("token", "no token");
    directory.only_problem(&config, Level::Error, &["[controller]", "token"]);
    let problems = directory.problems(&config.replace("https://c.example:8443", "https://:8443"));
    assert!(problems.len() == 2 && problems[0].1.contains("https://HOST:PORT"), "{problems:?}");
    assert!(!state.exists(), "the state directory was made");
}

#[test]
fn a_pool_is_compared_with_networks_behind_other_peers_but_several_peers_may_have_the_same_pool() {
    let directory = Directory::new();
    let client = |name: &str| {
        format!(
            "\n[[peer]]\nname = '{name}'\nlocal_id = 'sun.example'\nremote_id = '{name}.example'\nstart = 'respond'\n\
             local_subnets = ['10.1.0.0/16']\naddress_pool = ['10.2.9.0/24']\n{PSK}"
        )
    };
    let overlaps = |config: String| {
        let findings = directory.findings(&config);
        findings.into_iter().map(|finding| finding.what).filter(|what| what.contains("overlaps")).collect::<Vec<_>>()
    };
    assert_eq!(overlaps(client("laptop") + &client("phone")), Vec::<String>::new());
    let found = overlaps(format!("{PEER}{PSK}{}", client("laptop")));
    assert!(
        found.len() == 1 && found[0].contains("address_pool 10.2.9.0/24") && found[0].contains("moon"),
        "{found:?}"
    );
}
