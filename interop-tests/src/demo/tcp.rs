//! Implements a small TCP server and client, to test published ports.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Placeholder in a server's text for the client's address as the server sees it.
pub const SOURCE: &str = "{source}";

/// Sends `text` to each client until this process is killed.
///
/// # Errors
/// Returns an error if the port cannot be bound.
pub fn serve(port: u16, text: &str) -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("listening")?;
    for stream in listener.incoming() {
        let said = stream.and_then(|mut stream| {
            let source = stream.peer_addr()?.ip().to_canonical().to_string();
            stream.write_all(text.replace(SOURCE, &source).as_bytes())
        });
        if let Err(error) = said {
            eprintln!("tcp-serve: {error}");
        }
    }
    Ok(())
}

/// Connects and returns everything that the server sends.
///
/// # Errors
/// Returns an error if there is no answer within two seconds.
pub fn fetch(address: &str) -> Result<String> {
    let timeout = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address.parse()?, timeout).context("connecting")?;
    stream.set_read_timeout(Some(timeout))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("reading")?;
    Ok(text)
}
