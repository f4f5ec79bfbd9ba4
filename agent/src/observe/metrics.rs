//! Serves `/metrics` as OpenMetrics text.

use std::fmt;
use std::fs;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::observer::{Latest, NO_STATUS, Observer};
use super::traffic::Traffic;
use crate::status::{PeerReport, Status};

/// The phases of a peer that `status` shows.
const PHASES: [&str; 5] = ["idle", "on-demand", "connecting", "waiting", "up"];

pub(super) async fn scrape(observer: &Observer) -> Result<String, String> {
    let status = observer.status().await.ok_or(NO_STATUS)?;
    let text = {
        let latest = observer.latest.lock().await;
        encode(&Scrape::new(status, &latest, observer.peer_series))
    };
    text.map_err(|error| format!("cannot write metrics: {error}"))
}

fn encode(scrape: &Scrape) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("edge_agent");
    registry.register_collector(Box::new(scrape.clone()));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// The data for one response to `/metrics`.
#[derive(Debug, Clone)]
struct Scrape {
    status: Arc<Status>,
    /// The sums of [`COUNTERS`] over all peers.
    total: [u64; 4],
    /// The peers that have separate time series.
    peers: Vec<PeerSeries>,
    /// `/proc/net/xfrm_stat`: the number of packets that XFRM dropped, by reason.
    xfrm: Vec<(String, u64)>,
}

#[derive(Debug, Clone)]
struct PeerSeries {
    name: String,
    up: bool,
    /// Seconds since the last authentic message on the peer's IKE SA; absent without an IKE SA.
    silent: Option<u64>,
    /// The values of [`COUNTERS`].
    counters: [u64; 4],
}

/// Name and help text of the traffic counters.
const COUNTERS: [(&str, &str); 4] = [
    ("received_packets", "Packets that came through tunnels"),
    ("received_bytes", "Bytes that came through tunnels, without the overhead of ESP"),
    ("sent_packets", "Packets that went into tunnels"),
    ("sent_bytes", "Bytes that went into tunnels, without the overhead of ESP"),
];

impl Scrape {
    fn new(status: Arc<Status>, latest: &Latest, peer_series: usize) -> Self {
        let (_, traffic) = latest;
        let mut total = [0u64; 4];
        for (_, counters) in counters(traffic) {
            for (total, counter) in total.iter_mut().zip(counters) {
                *total = total.saturating_add(counter);
            }
        }
        let report = |name: &str| status.peers.iter().find(|peer| peer.name == name);
        let peers = counters(traffic).take(peer_series).filter_map(|(name, counters)| {
            let report = report(name)?;
            Some(PeerSeries { name: name.to_owned(), up: is_up(report), silent: silent(report), counters })
        });
        let peers = peers.collect();
        Self { total, peers, xfrm: xfrm_stat(&fs::read_to_string("/proc/net/xfrm_stat").unwrap_or_default()), status }
    }
}

fn counters(traffic: &Traffic) -> impl Iterator<Item = (&str, [u64; 4])> {
    traffic.peers().map(|(name, peer)| {
        let (received, sent) = (&peer.received, &peer.sent);
        (name, [received.packets, received.bytes, sent.packets, sent.bytes])
    })
}

fn is_up(peer: &PeerReport) -> bool {
    peer.phase == "up"
}

fn silent(peer: &PeerReport) -> Option<u64> {
    peer.ike_sas.iter().map(|sa| sa.heard_seconds_ago).min()
}

/// Parses the lines of `/proc/net/xfrm_stat`. Each line consists of a name and a number.
fn xfrm_stat(text: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let (name, number) = line.split_once(char::is_whitespace)?;
        Some((name.to_owned(), number.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = &*self.status;
        let out = &mut encoder;
        gauges(out, "build_info", "This program's release", [([("version", status.version.as_str())], 1.0)])?;
        let phase = |phase: &'static str| {
            let count = status.peers.iter().filter(|peer| peer.phase == phase).count();
            ([("phase", phase)], count as f64)
        };
        gauges(out, "peers", "Peers, by the phase that status shows", PHASES.map(phase))?;
        let relayed = status.peers.iter().filter(|peer| peer.relayed_by.is_some()).count();
        gauge(out, "relayed_peers", "Peers whose tunnel a hub relays", None, relayed as f64)?;
        let pairs = status.relayed_pairs as f64;
        gauge(out, "relay_pairs", "Pairs of nodes between which this node relays, as a hub", None, pairs)?;
        gauge(
            out,
            "obstacles",
            "What keeps pods' packets from arriving; status has the commands that help",
            None,
            status.obstacles.len() as f64,
        )?;
        gauge(out, "pod_mtu", "MTU of pods", Some(Unit::Bytes), f64::from(status.host.pod_mtu))?;
        if let Some(version) = status.view_version {
            gauge(out, "view_version", "Version of the view in force", None, version as f64)?;
        }
        if let Some(controller) = &status.controller {
            let connected = f64::from(u8::from(controller.connected));
            gauge(out, "controller_connected", "Whether the agent has a view stream", None, connected)?;
            if let Some(end) = controller.certificate_not_after {
                let help = "End of this node's certificate, in Unix time";
                gauge(out, "certificate_end_timestamp", help, Some(Unit::Seconds), end as f64)?;
            }
        }
        let dropped = status.dropped.iter().map(|dropped| ([("counter", dropped.counter.as_str())], dropped.packets));
        counters_of(out, "firewall_dropped_packets", "Packets that the node's firewall dropped", dropped)?;
        let xfrm = self.xfrm.iter().map(|(name, count)| ([("counter", name.as_str())], *count));
        counters_of(out, "xfrm_errors", "Counters of /proc/net/xfrm_stat", xfrm)?;
        let ike = &status.ike;
        let rekeys = [([("sa", "child")], ike.child_rekeys), ([("sa", "ike")], ike.ike_rekeys)];
        counters_of(out, "rekeys", "SAs that others have replaced without an interruption", rekeys)?;
        let help = "IKE requests that were sent again, since no response came";
        counter(out, "ike_retransmissions", help, ike.retransmissions)?;
        counter(out, "liveness_checks", "IKE requests that asked whether a peer is there", ike.liveness_checks)?;
        let failures = ike.failures.iter().map(|(kind, count)| ([("kind", kind.as_str())], *count));
        counters_of(out, "ike_failures", "Failures of peers and refused initiators", failures)?;
        for (value, (name, help)) in self.total.into_iter().zip(COUNTERS) {
            counter(out, name, help, value)?;
        }
        let up = self.peers.iter().map(|peer| ([("peer", peer.name.as_str())], f64::from(u8::from(peer.up))));
        gauges(out, "peer_up", "Whether the tunnel to the peer is up", up)?;
        let silent = self.peers.iter().filter_map(|peer| Some(([("peer", peer.name.as_str())], peer.silent? as f64)));
        gauges(out, "peer_silence_seconds", "Time since the last authentic IKE message of the peer", silent)?;
        for (at, (name, help)) in COUNTERS.into_iter().enumerate() {
            let series = self.peers.iter().map(|peer| ([("peer", peer.name.as_str())], peer.counters[at]));
            counters_of(out, &format!("peer_{name}"), help, series)?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, unit: Option<Unit>, value: f64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, unit.as_ref(), gauge.metric_type())?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
}

fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (L, f64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn counters_of<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::traffic::Traffic;
    use crate::status::IkeCounters;

    #[test]
    fn a_line_of_xfrm_stat_is_a_name_and_a_number() {
        let text = "XfrmInError             \t0\nXfrmInNoStates          \t17\nnothing\n";
        assert_eq!(xfrm_stat(text), [("XfrmInError".to_owned(), 0), ("XfrmInNoStates".to_owned(), 17)]);
    }

    #[test]
    fn names_are_escaped_and_peers_beyond_the_limit_count_in_the_sums_alone() {
        let peer = |name: &str, phase: &str| PeerReport {
            name: name.into(),
            origin: "configuration".into(),
            phase: phase.into(),
            reqid: None,
            endpoints: vec![],
            ike_sas: vec![],
            child_sas: vec![],
            not_carried: vec![],
            blocked: vec![],
            relayed_by: None,
            tcp: false,
            tcp_problem: None,
            relay_refused: None,
            mapping: None,
            path_mtu: None,
            last_error: None,
            requests_refused: 0,
        };
        let status = Status {
            version: "1.2.3".into(),
            pid: 1,
            node: None,
            role: None,
            view_version: None,
            controller: None,
            clock: None,
            peers: vec![
                peer("a\"\n\\", "up"),
                peer("b", "on-demand"),
                PeerReport { relayed_by: Some("hub".into()), ..peer("c", "up") },
            ],
            states: vec![],
            policies: vec![],
            relayed_pairs: 3,
            ike: IkeCounters {
                child_rekeys: 4,
                ike_rekeys: 2,
                retransmissions: 7,
                liveness_checks: 5,
                failures: [("timeout".to_owned(), 6)].into(),
            },
            refusals: vec![],
            missing_ciphers: vec![],
            sockets: None,
            host: Default::default(),
            obstacles: vec![],
            dropped: vec![],
            incidents: vec![],
        };
        let mut traffic = Traffic::default();
        traffic.add(&status.peers);
        let text = encode(&Scrape::new(Arc::new(status), &(None, traffic), 2)).unwrap();
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        has("edge_agent_build_info{version=\"1.2.3\"} 1.0");
        has("edge_agent_peers{phase=\"up\"} 2.0");
        has("edge_agent_peers{phase=\"on-demand\"} 1.0");
        has("edge_agent_relayed_peers 1.0");
        has("edge_agent_relay_pairs 3.0");
        has("edge_agent_peer_up{peer=\"a\\\"\\n\\\\\"} 1.0");
        has("edge_agent_peer_up{peer=\"b\"} 0.0");
        has("edge_agent_peer_received_bytes_total{peer=\"b\"} 0");
        has("edge_agent_received_bytes_total 0");
        has("edge_agent_rekeys_total{sa=\"child\"} 4");
        has("edge_agent_rekeys_total{sa=\"ike\"} 2");
        has("edge_agent_ike_retransmissions_total 7");
        has("edge_agent_liveness_checks_total 5");
        has("edge_agent_ike_failures_total{kind=\"timeout\"} 6");
        has("# EOF");
        assert!(!text.contains("peer=\"c\"") && !text.contains("controller_connected"), "{text}");
    }
}
