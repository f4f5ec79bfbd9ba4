//! Tests that the logs of agent and controller contain no secret, even at level `trace`.

use std::io;
use std::sync::{Arc, Mutex};

use edge_types::Role;
use serde_json::Value;
use tracing_subscriber::filter::LevelFilter;

use crate::lab::{Controller, Node, parsed};

/// The log of this process.
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

impl Log {
    fn begin() -> Self {
        let log = Self::default();
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        log
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// Returns the middle of a PEM key in the forms in which it could be logged, as base64 and as
/// octets. The first octets are left out, because they are the same in every key.
fn of_key(pem: &str) -> Vec<String> {
    use base64::Engine;
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(&body).unwrap();
    let octets = &der[36..44];
    let joined = |form: fn(&u8) -> String, between: &str| octets.iter().map(form).collect::<Vec<_>>().join(between);
    vec![
        body[48..60].to_owned(),
        joined(|octet| format!("{octet:02x}"), ""),
        joined(|octet| format!("{octet:02X}"), ""),
        joined(|octet| format!("{octet:x}"), ", "),
        joined(u8::to_string, ", "),
        octets.escape_ascii().to_string(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_level_of_any_log_shows_a_tokens_secret_or_a_private_key() {
    let log = Log::begin();
    let controller = Controller::start().await;
    let mut secrets = Vec::new();
    let mut node = Node::new("edge-1", &controller);
    for (role, joins) in [(Role::Hub, false), (Role::Edge, true)] {
        let token = controller.token(role, None).await;
        node.put_token(&token);
        node.extra = "role = \"edge\"";
        let agent = node.start();
        match joins {
            true => drop(agent.membership("segments", |m| m.view.segments.len() == 2).await),
            false => assert!(agent.error().await.contains("for role hub")),
        }
        agent.end().await;
        secrets.extend([parsed(&token).secret.to_string(), token["ecni1.".len()..].to_owned()]);
    }
    // The controller refuses a token that was used, and the agent refuses a truncated token.
    let late = Node::new("edge-2", &controller);
    for cut in [0, 10] {
        let token = std::fs::read_to_string(node.token_file()).unwrap();
        late.put_token(&token.trim()[..token.trim().len() - cut]);
        let agent = late.start();
        agent.error().await;
        agent.end().await;
    }
    let identity: Value = serde_json::from_slice(&std::fs::read(node.file("identity.json")).unwrap()).unwrap();
    let pending = std::fs::read_to_string(late.file("key.pending")).unwrap();
    let authorities: Value = serde_json::from_slice(&std::fs::read(controller.file("ca.json")).unwrap()).unwrap();
    let authority = authorities["authorities"][0]["key"].as_str().unwrap();
    for pem in [identity["key"].as_str().unwrap(), &pending, authority] {
        secrets.extend(of_key(pem));
    }
    let log = log.text();
    for words in ["joining", "joined", "has been used", "join token made", "TRACE"] {
        assert!(log.contains(words), "the log lacks {words:?}");
    }
    for (number, secret) in secrets.iter().enumerate() {
        assert!(!log.contains(secret.as_str()), "secret {number}, of {} characters, is in a log", secret.len());
    }
}
