//! Sends requests over HTTP/1.1 on the admin socket.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use axum::http::{Method, Request, Response, header};
use edge_types::api::Problem;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Sends a request and reads the JSON body of the response. A refusal becomes a [`Problem`].
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let body = self.send(method, path, body).await?;
        // An empty response means null in JSON.
        let body = if body.is_empty() { Bytes::from_static(b"null") } else { body };
        serde_json::from_slice(&body).context("the server's response cannot be read; are both of one release?")
    }

    /// Sends a request with a large response and writes the response as it arrives.
    pub(super) async fn download(&self, path: &str, to: &mut impl Write) -> anyhow::Result<()> {
        let response = self.request(Method::GET, path, None::<&()>).await?;
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.context("the server went away")?.data_ref() {
                to.write_all(data).context("cannot write")?;
            }
        }
        to.flush().context("cannot write")
    }

    /// Sends a request. The response consists of lines (NDJSON); calls `each` with each line as it
    /// arrives.
    pub(super) async fn ask_lines<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        mut each: impl FnMut(T),
    ) -> anyhow::Result<()> {
        let mut response = self.request(Method::POST, path, Some(body)).await?.into_body();
        let mut pending = Vec::new();
        while let Some(frame) = response.frame().await {
            let Ok(data) = frame.context("the server went away")?.into_data() else { continue };
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|octet| *octet == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                each(
                    serde_json::from_slice(&line)
                        .context("the server's response cannot be read; are both of one release?")?,
                );
            }
        }
        Ok(())
    }

    async fn send(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> anyhow::Result<Bytes> {
        let response = self.request(method, path, body).await?;
        Ok(response.into_body().collect().await.context("the server went away")?.to_bytes())
    }

    /// Returns the response, or an error if the server refuses the request.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.with_context(|| {
            format!(
                "no edge-controller answers on {}: is it running on this machine (edge-controller run), with this admin_socket, \
                 and may you open the socket (it is its owner's alone)?",
                self.socket.display()
            )
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "edge-controller")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await.context("the server went away")?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.context("the server went away")?.to_bytes();
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(problem.into()),
            Err(_) => bail!("the server answered {status}"),
        }
    }
}
