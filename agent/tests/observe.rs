//! Tests metrics, probes and `status` of the program, in a separate namespace, with a static peer
//! that does not answer.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use interop_tests::netns::{KilledOnDrop, UnnamedNamespace, enter, is_root_or_skips};
use interop_tests::wait;

/// Timeout after which a test fails.
const HANG: Duration = Duration::from_secs(60);
const ADDRESS: &str = "127.0.0.1:9644";
/// A number of connections larger than the agent keeps open.
const SILENT: usize = 40;

fn agent(namespace: &UnnamedNamespace, directory: &Path) -> Command {
    agent_with(namespace, directory, "")
}

/// Makes the command that runs an agent with `more` at the end of its configuration.
fn agent_with(namespace: &UnnamedNamespace, directory: &Path, more: &str) -> Command {
    let file = directory.join("agent.toml");
    let text = format!(
        "state_dir = {:?}\nrun_dir = {:?}\nhold_sockets = false\n[observe]\nlisten = [\"{ADDRESS}\"]\n[[peer]]\nname = \"moon\"\n\
         remote = \"203.0.113.10\"\nlocal_id = \"a.example\"\nremote_id = \"b.example\"\npsk = \"correct horse battery staple\"\n\
         local_subnets = [\"10.1.0.0/24\"]\nremote_subnets = [\"10.2.0.0/24\"]\n{more}",
        directory.join("state"),
        directory.join("run"),
    );
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = namespace.command(env!("CARGO_BIN_EXE_edge-agent"));
    command.args(["run", "--config"]).arg(file);
    command
}

/// Runs `work` on a thread in the namespace.
fn within<T: Send + 'static>(namespace: &UnnamedNamespace, work: impl FnOnce() -> T + Send + 'static) -> T {
    let path = namespace.path();
    let thread = std::thread::spawn(move || {
        enter(Path::new(&path));
        work()
    });
    thread.join().unwrap()
}

/// Returns the status line and the body of a response.
fn request(method: &str, path: &str) -> std::io::Result<(String, String)> {
    request_for(method, path, "*/*")
}

/// Sends a request as [`request`] does, with this media type in `Accept`.
fn request_for(method: &str, path: &str, accept: &str) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect(ADDRESS)?;
    stream.set_read_timeout(Some(HANG))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: agent\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
    Ok((head.lines().next().unwrap_or("").to_owned(), body.to_owned()))
}

#[test]
fn probes_and_metrics_are_served_beside_silent_connections() {
    if !is_root_or_skips() {
        return;
    }
    let (namespace, directory) = (UnnamedNamespace::new(), tempfile::tempdir().unwrap());
    assert!(namespace.command("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let _agent = KilledOnDrop(agent(&namespace, directory.path()).stderr(Stdio::null()).spawn().unwrap());
    within(&namespace, || {
        wait::expect("the agent to listen", HANG, || request("GET", "/healthz").ok());
        let _silent: Vec<TcpStream> = (0..SILENT).map(|_| TcpStream::connect(ADDRESS).unwrap()).collect();
        assert_eq!(request("GET", "/healthz").unwrap(), ("HTTP/1.1 200 OK".into(), "ok\n".into()));
        let (status, body) = request("GET", "/readyz").unwrap();
        assert_eq!(status, "HTTP/1.1 200 OK", "without a controller a view is not needed: {body}");
        let (status, body) = request("GET", "/metrics").unwrap();
        assert_eq!(status, "HTTP/1.1 200 OK");
        for line in ["edge_agent_peer_up{peer=\"moon\"} 0.0", "edge_agent_received_bytes_total 0"] {
            assert!(body.lines().any(|found| found == line), "{line} is not in\n{body}");
        }
        assert!(body.contains("edge_agent_xfrm_errors_total{counter=\"XfrmInNoStates\"}"), "{body}");
        assert!(body.contains("\n# TYPE edge_agent_received_bytes_total counter\n"), "{body}");
        assert!(!body.contains("# EOF") && !body.contains("horse"), "{body}");
        let (_, body) = request_for("GET", "/metrics", "application/openmetrics-text; version=1.0.0").unwrap();
        assert!(body.contains("\n# TYPE edge_agent_received_bytes counter\n"), "{body}");
        assert!(body.ends_with("# EOF\n") && !body.contains("horse"), "{body}");
        assert_eq!(request("POST", "/metrics").unwrap().0, "HTTP/1.1 405 Method Not Allowed");
        assert_eq!(request("GET", "/").unwrap().0, "HTTP/1.1 404 Not Found");
    });
}

#[test]
fn an_address_that_is_in_use_is_named_and_served_once_it_is_free() {
    if !is_root_or_skips() {
        return;
    }
    let (namespace, directory) = (UnnamedNamespace::new(), tempfile::tempdir().unwrap());
    assert!(namespace.command("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let other = within(&namespace, || TcpListener::bind(ADDRESS).unwrap());
    let log = fs::File::create(directory.path().join("log")).unwrap();
    let _agent = KilledOnDrop(agent(&namespace, directory.path()).stderr(log).spawn().unwrap());
    let said = || fs::read_to_string(directory.path().join("log")).unwrap();
    wait::expect("the error", HANG, || {
        said().contains("[observe] listen: cannot listen on 127.0.0.1:9644").then_some(())
    });
    drop(other);
    within(&namespace, || wait::expect("the agent to listen", HANG, || request("GET", "/healthz").ok()));
}

#[test]
fn status_shows_one_peer_and_watches_until_its_reader_goes() {
    if !is_root_or_skips() {
        return;
    }
    let (namespace, directory) = (UnnamedNamespace::new(), tempfile::tempdir().unwrap());
    let _agent = KilledOnDrop(agent(&namespace, directory.path()).stderr(Stdio::null()).spawn().unwrap());
    let status = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edge-agent"));
        command.arg("status").args(arguments).arg("--config").arg(directory.path().join("agent.toml"));
        command
    };
    let shown = |arguments: &[&str]| {
        let output = status(arguments).output().unwrap();
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    wait::expect("the agent to answer", HANG, || (shown(&[]).0 == Some(0)).then_some(()));
    let (code, out, _) = shown(&["mo*"]);
    assert_eq!(code, Some(0));
    assert!(out.starts_with("moon, from the configuration: ") && out.contains("addresses  203.0.113.10:500"), "{out}");
    let (code, _, error) = shown(&["luna"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("no peer is called luna"), "{error}");

    let mut watching = KilledOnDrop(status(&["--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(watching.0.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line = lines.next().unwrap().unwrap();
        assert!(line.starts_with('{') && line.contains("\"moon\"") && line.ends_with('}'), "{line}");
    }
    drop(lines);
    let ended = wait::expect("status --watch to end", HANG, || watching.0.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
}

#[test]
fn status_shows_each_of_many_peers_once_in_the_order_of_their_names() {
    use std::fmt::Write as _;

    if !is_root_or_skips() {
        return;
    }
    let (namespace, directory) = (UnnamedNamespace::new(), tempfile::tempdir().unwrap());
    // More than two parts of the report, and a name that sorts between numbers.
    let mut names: Vec<String> = (0..600).map(|number| format!("peer-{number}")).collect();
    let mut more = String::new();
    for (number, name) in names.iter().enumerate() {
        write!(
            more,
            "[[peer]]\nname = \"{name}\"\nlocal_id = \"a.example\"\nremote_id = \"{name}.example\"\npsk = \"correct horse battery\"\n\
             local_subnets = [\"10.1.0.0/24\"]\nremote_subnets = [\"10.{}.{}.0/24\"]\nstart = \"respond\"\n",
            3 + number / 256,
            number % 256
        )
        .unwrap();
    }
    names.push("moon".to_owned());
    names.sort();
    let mut command = agent_with(&namespace, directory.path(), &more);
    let _agent = KilledOnDrop(command.stderr(Stdio::null()).spawn().unwrap());
    let shown = wait::expect("the agent to answer", HANG, || {
        let mut status = Command::new(env!("CARGO_BIN_EXE_edge-agent"));
        let output = status.args(["status", "--json", "--config"]).arg(directory.path().join("agent.toml")).output();
        let document: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).ok()?;
        let peers = document["peers"].as_array()?.iter();
        let shown: Vec<String> = peers.map(|peer| peer["name"].as_str().unwrap().to_owned()).collect();
        (!shown.is_empty()).then_some(shown)
    });
    assert_eq!(shown, names);
}
