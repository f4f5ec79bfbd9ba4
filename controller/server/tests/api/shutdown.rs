//! Tests how the program stops on request.

use std::process::ExitStatus;

use crate::harness::{Node, Stream, monitoring_page};
use crate::process::{Program, exists, text};
use edge_types::api::ViewEvent;
use rustix::process::{Pid, Signal, kill_process};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// A running program, a node that follows its view, and a request that is only partly sent.
struct Busy {
    program: Program,
    stream: Stream,
    request: UnixStream,
}

const BODY: &str = "{\"role\":\"edge\",\"ttl_seconds\":60,\"uses\":1}";

impl Busy {
    async fn start() -> Self {
        let mut program = Program::new();
        program.start();
        let token = text(&program.run(&["token", "create", "--role", "edge"]).stdout).parse().unwrap();
        let ca = CertificateDer::from_pem_file(program.path("state/ca.crt")).unwrap();
        let node = Node::join(program.addresses[0], ca, &token, "edge-1").await;
        let mut stream = node.watch().await;
        stream.view().await;
        let mut request = UnixStream::connect(program.path("run/admin.sock")).await.unwrap();
        let head = format!(
            "POST /v1/tokens HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            BODY.len()
        );
        request.write_all(head.as_bytes()).await.unwrap();
        // Only a request that the server has started to read delays the server's end.
        let mut go_on = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
        request.read_exact(&mut go_on).await.unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        request.write_all(&BODY.as_bytes()[..1]).await.unwrap();
        Self { program, stream, request }
    }

    fn signal(&self) {
        let pid = Pid::from_child(self.program.server.as_ref().unwrap());
        kill_process(pid, Signal::TERM).unwrap();
    }

    /// Returns the response to `/readyz`.
    async fn ready(&self) -> String {
        monitoring_page(self.program.addresses[1], "/readyz").await.1
    }

    /// Reads the stream to its end and returns the reason in its last line.
    async fn goodbye(&mut self) -> String {
        let mut last = None;
        while let Some(line) = self.stream.line().await {
            last = Some(line);
        }
        match last {
            Some(ViewEvent::Goodbye { reason }) => reason,
            other => panic!("the last line is {other:?}"),
        }
    }

    async fn ended(&mut self) -> ExitStatus {
        let mut server = self.program.server.take().unwrap();
        tokio::task::spawn_blocking(move || server.wait()).await.unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_to_end_it_is_not_ready_sends_nodes_elsewhere_finishes_requests_and_ends_with_0() {
    let mut busy = Busy::start().await;
    assert!(busy.ready().await.starts_with("HTTP/1.1 200"));
    busy.signal();
    assert_eq!(busy.goodbye().await, "it is stopping");
    let ready = busy.ready().await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("[-]not-stopping failed"), "{ready}");
    let refused = TcpStream::connect(busy.program.addresses[0]).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "who was sent away does not come back here");
    busy.request.write_all(&BODY.as_bytes()[1..]).await.unwrap();
    let mut response = String::new();
    busy.request.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 201"), "{response}");
    assert_eq!(busy.ended().await.code(), Some(0));
    assert!(!exists(&busy.program.path("run/admin.sock")));
    busy.program.start();
    assert_eq!(busy.program.json(&["token", "list"]).as_array().unwrap().len(), 2, "what it answered is on disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_a_second_time_it_ends_at_once_and_its_exit_code_names_the_signal() {
    let mut busy = Busy::start().await;
    busy.signal();
    // The request that is still open delays the end.
    busy.goodbye().await;
    assert!(busy.ready().await.starts_with("HTTP/1.1 503"));
    busy.signal();
    assert_eq!(busy.ended().await.code(), Some(128 + 15));
}

#[test]
fn a_node_that_is_gone_without_a_word_does_not_keep_it_from_ending() {
    let mut program = Program::new();
    program.start();
    let token = text(&program.run(&["token", "create", "--role", "edge"]).stdout).parse().unwrap();
    let ca = CertificateDer::from_pem_file(program.path("state/ca.crt")).unwrap();
    // Tasks on this runtime stop when the runtime is not driven: the kernel keeps the connection
    // open, but the client does not answer.
    let gone = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = gone.block_on(async {
        let node = Node::join(program.addresses[0], ca, &token, "edge-1").await;
        let mut stream = node.watch().await;
        stream.view().await;
        stream
    });
    let mut server = program.server.take().unwrap();
    kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    assert_eq!(server.wait().unwrap().code(), Some(0));
    let log = program.log();
    assert!(log.contains("stopped"), "{log}");
    assert!(!log.contains("still open"), "{log}");
    drop(stream);
}
