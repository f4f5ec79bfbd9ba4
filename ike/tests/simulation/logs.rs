//! Tests the library's log output at the most verbose level.

use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex};

use edge_ike::{Auth, Event, Secret};
use tracing::Level;

use crate::certificates::Authority;
use crate::network::LinkQuality;
use crate::peers::{PSK, Pair, SECOND};

/// The log output.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(octets);
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the forms in which octets may appear in text, in lower case.
fn forms(octets: &[u8]) -> [String; 4] {
    let joined = |form: fn(&u8) -> String, between: &str| octets.iter().map(form).collect::<Vec<_>>().join(between);
    [
        joined(|octet| format!("{octet:02x}"), ""),
        joined(|octet| format!("{octet:x}"), ", "),
        joined(u8::to_string, ", "),
        octets.escape_ascii().to_string().to_lowercase(),
    ]
}

fn keys(pair: &Pair) -> Vec<Secret> {
    let events = pair.network.nodes.iter().flat_map(|node| &node.events);
    let sas = events.filter_map(|(_, event)| match event {
        Event::ChildUp { child, .. } => Some(child),
        Event::ChildRekeyed { new, .. } | Event::OutboundSwitch { new, .. } => Some(new),
        _ => None,
    });
    sas.flat_map(|sa| [sa.inbound_key.clone(), sa.outbound_key.clone()]).collect()
}

/// Brings a tunnel up, rekeys its CHILD_SA, and replaces its IKE SA.
fn whole_life(mut pair: Pair) -> Vec<Secret> {
    pair.start();
    pair.network.run_for(2 * SECOND);
    let peer = pair.b_name.clone();
    assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.rekey_children(&peer, now, env)));
    pair.network.run_for(2 * SECOND);
    assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.rekey_ike(&peer, now, env)));
    pair.network.run_for(20 * SECOND);
    pair.assert_connected();
    keys(&pair)
}

/// Runs in a separate process: `tracing` caches which events are enabled for the whole process, and
/// other tests, which enable no events, could interfere.
#[test]
fn no_level_of_the_log_shows_a_secret_or_a_key() {
    let alone = ["--ignored", "--exact", "logs::log_of_whole_lives"];
    let output = Command::new(std::env::current_exe().unwrap()).args(alone).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "runs in a process of its own, started by the test before"]
fn log_of_whole_lives() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let authority = Authority::new("CA");
    let certified = ["a.example", "b.example"].map(|name| authority.certify(name, &rcgen::PKCS_ED25519));
    let wrong = b"correct horse battery stapla";
    let mut secrets = vec![Secret::new(PSK.to_vec()), Secret::new(wrong.to_vec())];
    for auth in &certified {
        let Auth::Certificate(auth) = auth else { panic!("no certificate") };
        // This is the second half of the seed in PKCS#8 (RFC 8410 7). The octets before the seed
        // are the same in every key.
        secrets.push(Secret::new(auth.key.expose()[32..48].to_vec()));
    }
    tracing::subscriber::with_default(subscriber, || {
        secrets.extend(whole_life(Pair::new(1, LinkQuality::REORDERING)));
        let mut pair = Pair::new(2, LinkQuality::REORDERING);
        [pair.a_config.auth, pair.b_config.auth] = certified;
        secrets.extend(whole_life(pair));
        let mut pair = Pair::new(3, LinkQuality::RELIABLE).one_sided();
        pair.b_config.auth = Auth::Psk(Secret::new(wrong.to_vec()));
        pair.refused();
    });
    let log = String::from_utf8(std::mem::take(&mut *log.0.lock().unwrap())).unwrap().to_lowercase();
    for event in ["childup", "childrekeyed", "ikereplaced", "peerfailed"] {
        assert!(log.contains(event), "the log does not tell of {event}");
    }
    for line in log.lines().filter(|line| line.contains("event=childup") || line.contains("event=peerfailed")) {
        assert!(line.contains("peer{peer="), "the peer's story cannot be filtered by its name: {line}");
    }
    assert!(secrets.len() > 12, "{} secrets", secrets.len());
    for secret in &secrets {
        for form in forms(&secret.expose()[..8]) {
            assert!(!log.contains(&form), "the log shows a secret as {form}");
        }
    }
}
