//! Implements `page`, which opens a session of the page and prints the link to it, or ends all
//! sessions.

use axum::http::Method;
use edge_controller_domain::clock::rfc3339;
use edge_types::page::PageSession;

use super::client::Client;
use super::table::{print_line, print_required_line};

/// Opens a session. Prints only the links on standard output, and the instructions on standard
/// error.
pub(super) async fn open(client: &Client, json: bool) -> anyhow::Result<()> {
    let session: PageSession = client.ask(Method::POST, "/v1/page-sessions", None::<&()>).await?;
    if json {
        return print_required_line(serde_json::to_string_pretty(&session)?);
    }
    // A browser sends no fragment to a server (RFC 3986 section 3.5), so the fragment appears in no
    // log.
    for url in &session.urls {
        print_required_line(format_args!("{url}#{}", session.credential))?;
    }
    eprintln!(
        "Open the link in a browser. Whoever has it may read what the page shows, and change nothing, until {}.\n\
         From another machine, forward the page's port first: ssh -L 9645:127.0.0.1:9645 THIS-MACHINE, or\n\
         kubectl port-forward to this pod. `edge-controller page --end` ends all sessions.",
        rfc3339(session.expires_at)
    );
    Ok(())
}

/// Ends all sessions.
pub(super) async fn end_all(client: &Client) -> anyhow::Result<()> {
    let () = client.ask(Method::DELETE, "/v1/page-sessions", None::<&()>).await?;
    print_line("all sessions of the page have ended")
}
