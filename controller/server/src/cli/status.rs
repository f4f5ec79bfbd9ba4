//! Implements `status`, which shows nodes, segments, communities and problems together.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::Duration;

use axum::http::Method;
use edge_controller_domain::clock::rfc3339;
use edge_types::NodeName;
use edge_types::api::{CommunityInfo, ControllerStatus, NodeInfo, RangeUsage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::args::StatusArguments;
use super::bytes::bytes;
use super::client::Client;
use super::commands::first_of;
use super::table::{list, print_line, rendered};
use crate::node_problems::{common_problems, never_connected, node_problems, span};

/// Time between two updates of `status --watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Width of a bar, in characters.
const BAR: u64 = 20;

/// Prints the status, once or repeatedly until the reader closes the output. On a terminal each
/// status replaces the last one. With `json` each status is one line. If the server does not
/// answer, the command waits for it.
pub(super) async fn show(client: &Client, json: bool, arguments: &StatusArguments) -> anyhow::Result<()> {
    if !arguments.watch {
        let status = ask(client, arguments).await?;
        return print_line(if json { serde_json::to_string_pretty(&status)? } else { text(&status, arguments) });
    }
    // Moves the cursor home and clears the screen below it (ECMA-48 CUP, ED).
    let clear = if io::stdout().is_terminal() && !json { "\x1b[H\x1b[2J" } else { "" };
    loop {
        match ask(client, arguments).await {
            Ok(status) if json => print_line(serde_json::to_string(&status)?)?,
            Ok(status) => print_line(format_args!("{clear}{}", text(&status, arguments)))?,
            Err(error) => eprintln!("edge-controller: {}", edge_types::error::with_causes(error.as_ref())),
        }
        if tokio::task::spawn_blocking(wait_or_reader_gone).await?? {
            return Ok(());
        }
    }
}

/// Waits for [`WATCH_INTERVAL`], or until the reader of standard output closes it. Returns `true`
/// if the reader has closed it.
fn wait_or_reader_gone() -> anyhow::Result<bool> {
    let out = io::stdout();
    // A closed reader is reported as an error on the descriptor, even if no event was requested.
    let mut polled = [PollFd::new(&out, PollFlags::empty())];
    Ok(poll(&mut polled, Some(&Timespec::try_from(WATCH_INTERVAL)?))? > 0)
}

async fn ask(client: &Client, arguments: &StatusArguments) -> anyhow::Result<ControllerStatus> {
    let mut status: ControllerStatus = client.ask(Method::GET, "/v1/status", None::<&()>).await?;
    if let Some(unknown) =
        arguments.nodes.iter().find(|name| !status.nodes.iter().any(|node| node.name == **name)).cloned()
    {
        return Err(crate::api::ApiError::NoSuchNode(unknown).problem().into());
    }
    let StatusArguments { nodes, role, community, problems: only_problems, .. } = arguments;
    let now = status.time;
    status.nodes.retain(|node| {
        (nodes.is_empty() || nodes.contains(&node.name))
            && role.is_none_or(|role| node.role == role)
            && community.as_ref().is_none_or(|community| node.communities.contains(community))
            && (!only_problems || !node_problems(node, now).is_empty())
    });
    Ok(status)
}

fn text(status: &ControllerStatus, arguments: &StatusArguments) -> String {
    let ControllerStatus { version, time: now, nodes, communities, ranges, .. } = status;
    let connected = nodes.iter().filter(|node| node.connected).count();
    let mut text = format!(
        "edge-controller {version} at {}: {} nodes, {connected} of them connected\n\n",
        rfc3339(*now),
        nodes.len()
    );
    let header = [
        "NODE",
        "ROLE",
        "LAST SEEN",
        "TUNNELS",
        "TRAFFIC",
        "VERSION",
        "COMMUNITIES",
        "SEGMENTS",
        "CERTIFICATE",
        "PROBLEMS",
    ];
    let _ = writeln!(text, "{}", rendered(header, nodes.iter().map(|node| row(node, *now))));
    if arguments.shows_all() {
        let _ = writeln!(text, "\nSEGMENTS");
        let _ = writeln!(text, "{}", rendered(["RANGE", "TAKEN", "", "SEGMENTS"], ranges.iter().map(range_row)));
        if !communities.is_empty() {
            let connected: BTreeSet<&NodeName> =
                nodes.iter().filter(|node| node.connected).map(|node| &node.name).collect();
            let row = |community| community_row(community, &connected);
            let header = ["COMMUNITY", "CONNECTED", "TUNNELS", "MEMBERS", "NOT REGISTERED"];
            let _ = writeln!(text, "\n{}", rendered(header, communities.iter().map(row)));
        }
    }
    let whole = common_problems(status);
    let of_nodes = nodes
        .iter()
        .flat_map(|node| node_problems(node, *now).into_iter().map(move |problem| format!("{}: {problem}", node.name)));
    let all: Vec<String> = whole.into_iter().filter(|_| arguments.shows_all()).chain(of_nodes).collect();
    if all.is_empty() {
        text.push_str("\nno problems");
    } else {
        text.push_str("\nPROBLEMS");
        all.iter().for_each(|problem| text.push_str(&format!("\n{problem}")));
    }
    text
}

fn row(node: &NodeInfo, now: i64) -> [String; 10] {
    let seen = match (node.connected, node.last_seen) {
        (true, _) => "now".into(),
        (false, Some(at)) => format!("{} ago", span(now - at)),
        (false, None) if never_connected(node) => "never".into(),
        (false, None) => "unknown".into(),
    };
    let end = node.certificate_not_after;
    let certificate = if end > now { format!("{} left", span(end - now)) } else { "ended".into() };
    let problems = node_problems(node, now).len();
    [
        node.name.to_string(),
        node.role.to_string(),
        seen,
        node.tunnels.as_ref().map_or("-".into(), |count| format!("{} of {}", count.up, count.wanted)),
        traffic(node),
        node.version.clone().unwrap_or_else(|| "-".into()),
        list(&node.communities),
        list(&node.segments),
        if node.certificate_ends_soon { format!("{certificate} !") } else { certificate },
        if problems == 0 { "-".into() } else { problems.to_string() },
    ]
}

/// Returns the rates and the sums of a node's traffic. A rate that was reported before the node
/// lost its connection is not shown.
fn traffic(node: &NodeInfo) -> String {
    let Some(traffic) = node.traffic.filter(|_| node.connected) else { return "-".into() };
    list([
        format!("in {}/s, {}", bytes(traffic.received_per_second), bytes(traffic.received)),
        format!("out {}/s, {}", bytes(traffic.sent_per_second), bytes(traffic.sent)),
    ])
}

fn range_row(range: &RangeUsage) -> [String; 4] {
    let RangeUsage { range, prefix, segments, free, held, quarantined } = range;
    let taken = segments.saturating_sub(*free);
    let percent = u128::from(taken) * 100 / u128::from(*segments).max(1);
    [
        range.to_string(),
        format!("{percent}%"),
        bar(taken, *segments),
        format!("{held} held, {quarantined} in quarantine, {free} free of {segments} (/{prefix})"),
    ]
}

/// Draws a bar that is filled in proportion. Any use is visible, and the bar is full only if
/// everything is in use.
fn bar(taken: u64, all: u64) -> String {
    let filled = u64::try_from(u128::from(taken) * u128::from(BAR) / u128::from(all).max(1)).unwrap_or(BAR);
    let filled = if taken == 0 { 0 } else { filled.clamp(1, BAR) };
    let part = |count: u64, with: &str| with.repeat(usize::try_from(count).unwrap_or(0));
    format!("{}{}", part(filled, "█"), part(BAR - filled, "░"))
}

fn community_row(community: &CommunityInfo, connected: &BTreeSet<&NodeName>) -> [String; 5] {
    let CommunityInfo { name, members, not_registered, listed: _, tunnels } = community;
    let up = members.iter().filter(|member| connected.contains(member)).count();
    let all = members.len() + not_registered.len();
    [name.to_string(), format!("{up} of {all}"), tunnels.to_string(), first_of(members), first_of(not_registered)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_anything_taken_and_is_full_only_if_nothing_is_free() {
        let filled = |taken, all| bar(taken, all).chars().filter(|c| *c == '█').count();
        assert_eq!([filled(0, 1024), filled(1, 1024), filled(512, 1024), filled(1023, 1024)], [0, 1, 10, 19]);
        assert_eq!([filled(4, 4), filled(1, u64::MAX), filled(u64::MAX, u64::MAX), filled(0, 0)], [20, 1, 20, 0]);
        assert!([(0, 1), (1, 1), (1, 3)].iter().all(|(taken, all)| bar(*taken, *all).chars().count() == 20));
    }
}
