//! One connection's life, over and over: join if this node is no member yet, report where it is,
//! follow the stream of views and of what changes of them.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use edge_types::IpNetwork;
use edge_types::api::{NodeReport, VIEW_SILENCE_SECONDS, ViewEvent};
use edge_types::store::SegmentsSource;
use futures_util::stream::MapErr;
use futures_util::{StreamExt, TryStreamExt};
use http_body_util::{BodyDataStream, BodyExt};
use hyper::Method;
use hyper::body::{Bytes, Incoming};
use serde::de::IgnoredAny;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;
use tracing::{debug, error, info, warn};

use super::backoff::{Backoff, jitter};
use super::error::CloudError;
use super::http::{Link, hyper_error};
use super::join_credential::{self, Ticket};
use super::stream_state::Told;
use super::{Cloud, Connection, Member, ViewError, join};
use crate::candidates;
use crate::membership::CloudStatus;

/// Without even a heartbeat for so long, the controller is taken for gone.
const SILENCE: Duration = Duration::from_secs(VIEW_SILENCE_SECONDS);
/// Wait before asking again a controller that does not take this node for a member, or where a
/// person must do something first.
const SLOW: Duration = Duration::from_secs(60);
/// Whom two controllers send away within so long waits before going on, as after a failure.
const RESTLESS: Duration = Duration::from_secs(10);
/// A stream that lived for so long was no false start: where there is another controller, it is
/// asked at once.
const LIVED: Duration = Duration::from_secs(5);
/// Segments that are reported: more do not fit into a request.
const MOST_SEGMENTS: usize = 1000;
/// Longest line of the stream, bytes.
const MAX_LINE: usize = 64 * 1024 * 1024;

/// Runs until the agent ends.
pub(super) async fn run(cloud: &Cloud) {
    let mut backoff = Backoff::default();
    let mut uplink = cloud.uplink.clone();
    let mut refused = false;
    let mut sent_away: Option<Instant> = None;
    let mut stream = Stream::default();
    loop {
        uplink.mark_unchanged();
        let token = token_id(cloud);
        let ended = once(cloud, refused, &mut backoff, &mut stream).await;
        let lived = stream.opened.take().is_some_and(|opened| opened.elapsed() >= LIVED);
        cloud.status.send_if_modified(|status| {
            if status.connected {
                status.since = i64::try_from(cloud.clock.unix_time()).ok();
            }
            std::mem::take(&mut status.connected)
        });
        refused = false;
        let wait = match ended {
            Ok(Next::Anew) => continue,
            Ok(Next::Elsewhere) => match sent_away.replace(Instant::now()) {
                Some(before) if before.elapsed() < RESTLESS => backoff.next(),
                _ => continue,
            },
            Err(error) => {
                cloud.note_error(&error);
                refused = error.is_refusal_of_this_node();
                if error.is_temporary() && lived && cloud.urls().len() > 1 {
                    continue;
                }
                if error.is_temporary() { backoff.next() } else { jitter(SLOW) }
            }
        };
        debug!(?wait, "waiting before trying the controller again");
        tokio::select! {
            () = sleep(wait) => {}
            // With another address another way may be open.
            Ok(()) = uplink.changed() => {}
            () = another_token(cloud, token) => {}
        }
    }
}

/// Why a stream is to be opened again though nothing failed.
enum Next {
    /// Something of this node has changed.
    Anew,
    /// The controller ends, and has said so.
    Elsewhere,
}

/// What a line of the stream asks for.
enum Heard {
    /// Nothing more.
    Taken,
    /// Something was missed: the stream is to be opened anew, and the view to be had as a whole.
    Missed { what: String, expected: &'static str },
    /// The controller ends; why.
    Goodbye(String),
}

/// What is known of the stream, from one connection to the next.
#[derive(Default)]
struct Stream {
    told: Option<Told>,
    /// When the present one was opened.
    opened: Option<Instant>,
}

/// Until the stream is to be opened again or something failed.
async fn once(cloud: &Cloud, refused: bool, backoff: &mut Backoff, stream: &mut Stream) -> Result<Next, CloudError> {
    let member = member(cloud, refused).await?;
    let mut identity = cloud.member.subscribe();
    identity.mark_unchanged();
    let client = &member.client;
    let link = client.link().await?;
    let (mut uplink, mut tunnels) = (cloud.uplink.clone(), cloud.tunnels.clone());
    let mut refusal =
        Refusals { status: cloud.status.subscribe(), reported: cloud.status.borrow().refused_view.clone() };
    tunnels.mark_unchanged();
    let body = match open(cloud, &member, &link, &mut uplink, stream.told.as_ref()).await {
        Err(CloudError::Problem(problem)) if problem.status >= 500 => {
            client.leave(&link.url).await;
            return Err(CloudError::Problem(problem));
        }
        opened => opened?,
    };
    cloud.reached().await;
    cloud.heard();
    let mut lines = Lines::new(body);
    let url = link.url.to_string();
    info!(%url, node = %member.node(), "following the controller's view");
    cloud.status.send_modify(|status| {
        status.url = Some(url);
        status.connected = true;
        status.since = i64::try_from(cloud.clock.unix_time()).ok();
        status.last_error = None;
    });
    backoff.reset();
    stream.opened = Some(Instant::now());
    loop {
        tokio::select! {
            line = timeout(SILENCE, lines.next(&link)) => {
                let line = line.unwrap_or_else(|_| {
                    Err(CloudError::Unreachable {
                        url: link.url.to_string(),
                        why: format!("neither view nor heartbeat for {SILENCE:?}"),
                    })
                });
                match line {
                    Ok(Some(line)) => {
                        cloud.heard();
                        match handle(cloud, line.as_bytes(), &mut stream.told).await? {
                            Heard::Taken => {}
                            Heard::Missed { what, expected } => {
                                stream.told = None;
                                client.reset().await;
                                return Err(CloudError::Answer { url: link.url.to_string(), what, expected });
                            }
                            Heard::Goodbye(reason) => {
                                info!(url = %link.url, reason, "the controller says goodbye; going on at another one");
                                client.leave(&link.url).await;
                                return Ok(Next::Elsewhere);
                            }
                        }
                    }
                    Ok(None) => {
                        // The controller ends, or has something against this node: the next attempt
                        // tells.
                        client.leave(&link.url).await;
                        return Err(CloudError::Unreachable { url: link.url.to_string(), why: "it ended the stream".into() });
                    }
                    Err(error) => {
                        client.leave(&link.url).await;
                        return Err(error);
                    }
                }
            }
            Ok(()) = uplink.changed() => {
                let lost = {
                    let uplink = uplink.borrow();
                    !uplink.addresses.is_empty() && !link.local.is_loopback() && !uplink.addresses.contains(&link.local)
                };
                if lost {
                    debug!(local = %link.local, "the address of the connection is gone");
                    client.reset().await;
                    return Ok(Next::Anew);
                }
                report(cloud, &member, &link, &mut uplink).await?;
            }
            // The operator is to see it.
            () = refusal.changed() => report(cloud, &member, &link, &mut uplink).await?,
            // Looked at by people: the node's side says so every few seconds at most.
            Ok(()) = tunnels.changed() => {
                tunnels.mark_unchanged();
                report(cloud, &member, &link, &mut uplink).await?;
            }
            // A new certificate is shown at once, while the old one would still do.
            Ok(()) = identity.changed() => {
                let now = identity.borrow_and_update();
                let shown = &member.identity.credentials.chain;
                if now.as_ref().is_none_or(|now| now.identity.credentials.chain != *shown) {
                    return Ok(Next::Anew);
                }
            }
        }
    }
}

/// Reports where this node is and asks for the stream.
async fn open(
    cloud: &Cloud,
    member: &Member,
    link: &Link,
    uplink: &mut tokio::sync::watch::Receiver<crate::membership::Uplink>,
    told: Option<&Told>,
) -> Result<Incoming, CloudError> {
    report(cloud, member, link, uplink).await?;
    let held = cloud.view.lock().await.clone();
    let query = Told::query(told, held.as_deref());
    let path = format!("/v1/nodes/{}/view?watch=true&changes=true{query}", member.node());
    member.client.stream(link, &path).await
}

/// Takes a line of the stream.
async fn handle(cloud: &Cloud, line: &[u8], told: &mut Option<Told>) -> Result<Heard, CloudError> {
    match serde_json::from_slice::<ViewEvent>(line) {
        Ok(ViewEvent::View { epoch, view }) => *told = Some(Told::new(epoch, *view)),
        Ok(ViewEvent::Change(change)) => {
            let from = change.from;
            *told = told.take().and_then(|told| told.changed(change));
            if told.is_none() {
                let what = format!("what changed since version {from} of the view");
                return Ok(Heard::Missed { what, expected: "changes of the version that it told last" });
            }
        }
        Ok(ViewEvent::Goodbye { reason }) => return Ok(Heard::Goodbye(reason)),
        Ok(ViewEvent::Heartbeat { version }) => {
            let held = cloud.view.lock().await.as_ref().map(|view| view.version);
            let latest = held.max(told.as_ref().map(|told| told.view().version));
            if latest.unwrap_or(0) < version {
                let what = format!("heartbeats for a view of version {version} without sending it");
                return Ok(Heard::Missed { what, expected: "the view first" });
            }
            return Ok(Heard::Taken);
        }
        Err(error) => {
            // Perhaps an event that a later release knows. Nothing changes by it.
            debug!(%error, bytes = line.len(), "a line of the view stream is not understood and skipped");
            return Ok(Heard::Taken);
        }
    }
    if let Some(told) = told {
        match cloud.take_view(told.view().clone()).await {
            Ok(()) => {}
            Err(ViewError::Refused(refusal)) => cloud.note_error(&CloudError::Unacceptable(format!(
                "the controller's view of version {} is refused: {refusal}",
                told.view().version
            ))),
            Err(ViewError::Store(error)) => return Err(error.into()),
            Err(ViewError::Cloud(error)) => return Err(error),
        }
    }
    Ok(Heard::Taken)
}

/// The member that this node is; joins first where it is none, or where it was refused and a new
/// token has come.
async fn member(cloud: &Cloud, refused: bool) -> Result<Member, CloudError> {
    let present = cloud.member.borrow().clone();
    let ticket = match &present {
        Some(member) if !refused && !member.identity.has_expired(&cloud.clock) => return Ok(member.clone()),
        Some(member) => {
            // A token that stays unreadable does not keep a member from trying with its
            // certificate.
            let ticket = Ticket::read(&cloud.config).unwrap_or_else(|error| {
                error!("{error}");
                None
            });
            match ticket.filter(|ticket| ticket.id() != member.identity.token_id) {
                Some(ticket) => ticket,
                None => return Ok(member.clone()),
            }
        }
        None => Ticket::read(&cloud.config)?.ok_or_else(|| join_credential::none(&cloud.config, cloud.state.path()))?,
    };
    info!(token = ticket.id(), "joining");
    let identity = join::join(&cloud.config, &ticket, &cloud.state, &cloud.clock, &cloud.path).await?;
    info!(node = %identity.node, role = %identity.role, "joined");
    *cloud.view.lock().await = None;
    cloud.forget_trial();
    cloud.become_member(identity, Connection::Anew).await?;
    let member = cloud.member.borrow().clone();
    member.ok_or_else(|| CloudError::Unacceptable("joined, but no longer a member".into()))
}

/// Says where this node is to be found.
async fn report(
    cloud: &Cloud,
    member: &Member,
    link: &Link,
    uplink: &mut tokio::sync::watch::Receiver<crate::membership::Uplink>,
) -> Result<(), CloudError> {
    let own = uplink.borrow_and_update().addresses.clone();
    let advertised = cloud.config.controller.as_ref().map_or(&[][..], |controller| &controller.advertise);
    let ranges = cloud.view.lock().await.as_ref().map_or(vec![], |view| view.cluster_ranges.clone());
    let (addresses, left_out) = candidates::to_report(advertised, link.local, &own, &ranges);
    if cloud.left_out.swap(left_out, Ordering::Relaxed) != left_out && left_out != 0 {
        info!(
            reported = ?addresses,
            left_out,
            "this node has more addresses than peers try; set [controller] advertise to those by which it is found"
        );
    }
    let refused_view = cloud.status.borrow().refused_view.clone();
    let (port, tunnels) = (cloud.config.nat_port, *cloud.tunnels.borrow());
    let report = NodeReport { addresses, port, tunnels, refused_view, segments: granted(cloud).await };
    debug!(?report, "reporting");
    let path = format!("/v1/nodes/{}", member.node());
    member.client.call_on::<IgnoredAny>(link, Method::PUT, &path, &report).await.map(drop)
}

/// Segments that stand on disk as granted. What cannot be read is not worth a connection.
async fn granted(cloud: &Cloud) -> Vec<IpNetwork> {
    match cloud.segments().await {
        // What the plugin wrote nobody has granted.
        Ok(file) => {
            let granted = file.filter(|file| file.source == SegmentsSource::Agent).map(|file| file.segments);
            granted.into_iter().flatten().take(MOST_SEGMENTS).collect()
        }
        Err(error) => {
            warn!(%error, "the controller is not told which segments are in use");
            Vec::new()
        }
    }
}

/// Returns when the token file holds another token than `known`. Looked at every few seconds: a
/// person puts it there.
async fn another_token(cloud: &Cloud, known: Option<String>) {
    loop {
        let found = token_id(cloud);
        if found.is_some() && found != known {
            return;
        }
        sleep(Duration::from_secs(2)).await;
    }
}

fn token_id(cloud: &Cloud) -> Option<String> {
    Ticket::read(&cloud.config).ok().flatten().map(|ticket| ticket.id().to_owned())
}

/// Why the latest view is not in force, as it changes.
struct Refusals {
    status: tokio::sync::watch::Receiver<CloudStatus>,
    reported: Option<String>,
}

impl Refusals {
    /// Returns when there is another than was reported.
    async fn changed(&mut self) {
        let reported = &self.reported;
        let found = self.status.wait_for(|status| status.refused_view != *reported).await;
        match found.map(|status| status.refused_view.clone()) {
            Ok(refused) => self.reported = refused,
            Err(_) => std::future::pending().await,
        }
    }
}

/// The lines of the view stream (NDJSON).
struct Lines(FramedRead<StreamReader<Chunks, Bytes>, LinesCodec>);

/// The body in pieces as they arrive. The reader wants errors of `std::io`; [`Lines`] unpacks them.
type Chunks = MapErr<BodyDataStream<Incoming>, fn(hyper::Error) -> io::Error>;

impl Lines {
    fn new(body: Incoming) -> Self {
        let chunks: Chunks = body.into_data_stream().map_err(io::Error::other);
        Self(FramedRead::new(StreamReader::new(chunks), LinesCodec::new_with_max_length(MAX_LINE)))
    }

    /// The next line that is not blank; `None` at the end of the stream. May be dropped while
    /// waiting: no line is lost.
    async fn next(&mut self, link: &Link) -> Result<Option<String>, CloudError> {
        loop {
            let unexpected = |what| {
                let url = link.url.to_string();
                Err(CloudError::Answer { url, what, expected: "a view" })
            };
            return match self.0.next().await {
                Some(Ok(line)) if line.trim_ascii().is_empty() => continue,
                Some(Err(LinesCodecError::MaxLineLengthExceeded)) => {
                    unexpected(format!("a line of more than {MAX_LINE} bytes"))
                }
                Some(Err(LinesCodecError::Io(error))) => match error.downcast() {
                    Ok(error) => Err(hyper_error(&link.url, &error)),
                    Err(error) => unexpected(format!("a line that cannot be read ({error})")),
                },
                Some(Ok(line)) => Ok(Some(line)),
                None => Ok(None),
            };
        }
    }
}
