//! Requests the part of the status about tunnels from the driver, in parts, so that the driver
//! handles IKE messages and timers between two parts, no matter how many peers there are. The SAs
//! in the kernel are read, and the document is written, on other threads. A part is written before
//! the next but one is requested, so that the reports of ten thousand peers are never in memory
//! together.

use std::sync::Arc;

use edge_ike::PeerName;
use serde::ser::{Error, SerializeSeq};
use serde::{Serialize, Serializer};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::overview::{KernelSas, PolicyList, StateList, kernel_sas};
use super::requests::DriverRequest;
use crate::status::{IkeCounters, PeerReport, Refusal, SocketHolding};

/// The part of the status about tunnels.
#[derive(Debug)]
pub struct TunnelsReport {
    /// Name of this node; absent without a view.
    pub node: Option<String>,
    /// Role of this node; absent without a view.
    pub role: Option<String>,
    /// Version of the current view.
    pub view_version: Option<u64>,
    /// Peers, in the order of their names.
    pub peers: PeerReports,
    /// SAs that the kernel should have.
    pub states: StateList,
    /// Policies that the kernel should have.
    pub policies: PolicyList,
    /// Number of pairs of nodes between which this node relays, as a hub.
    pub relayed_pairs: usize,
    /// What IKE has done since the agent started.
    pub ike: IkeCounters,
    /// The latest initiators that were refused before they were known as a peer, oldest first.
    pub refusals: Vec<Refusal>,
    /// Ciphers of peers that this kernel lacks.
    pub missing_ciphers: Vec<String>,
    /// What keeps the UDP sockets open when the agent ends.
    pub sockets: SocketHolding,
}

/// Requests the report from the driver. The peers' reports are requested later. `None` if the agent
/// is ending.
pub async fn report(requests: &mpsc::Sender<DriverRequest>) -> Option<TunnelsReport> {
    let sas = Arc::new(spawn_blocking(kernel_sas).await.ok()?);
    let (to, overview) = oneshot::channel();
    requests.send(DriverRequest::Overview(to)).await.ok()?;
    let overview = overview.await.ok()?;
    let peers = PeerReports { requests: requests.clone(), sas: sas.clone() };
    let installed = overview.installed;
    let states = spawn_blocking(move || StateList::new(installed, sas)).await.ok()?;
    Some(TunnelsReport {
        node: overview.node,
        role: overview.role,
        view_version: overview.view_version,
        peers,
        states,
        policies: PolicyList(overview.policies),
        relayed_pairs: overview.relayed_pairs,
        ike: overview.ike,
        refusals: overview.refusals,
        missing_ciphers: overview.missing_ciphers,
        sockets: overview.sockets,
    })
}

/// The reports of all peers, which are requested from the driver part by part.
#[derive(Debug)]
pub struct PeerReports {
    requests: mpsc::Sender<DriverRequest>,
    /// The SAs that were in the kernel a short time ago.
    sas: Arc<KernelSas>,
}

/// The answer for a part of the peers.
type Part = oneshot::Receiver<Vec<PeerReport>>;

impl PeerReports {
    /// Returns all reports. `None` if the agent is ending.
    pub async fn collect(self) -> Option<Vec<PeerReport>> {
        let mut peers: Vec<PeerReport> = Vec::new();
        loop {
            let (request, part) = self.next(peers.last());
            self.requests.send(request).await.ok()?;
            let part = self.answer(part).await?;
            if part.is_empty() {
                return Some(peers);
            }
            peers.extend(part);
        }
    }

    /// Returns the request for the part after `last`, and the receiver of its answer.
    fn next(&self, last: Option<&PeerReport>) -> (DriverRequest, Part) {
        let after = last.map(|last| PeerName::new(&last.name));
        let (to, part) = oneshot::channel();
        (DriverRequest::ReportPeers { after, sas: self.sas.clone(), to }, part)
    }

    /// Waits for an answer. `None` if the agent is ending. A request that was sent while the driver
    /// stopped stays in the channel as long as this sender exists, so its answer never comes.
    async fn answer(&self, mut part: Part) -> Option<Vec<PeerReport>> {
        tokio::select! {
            biased;
            answer = &mut part => answer.ok(),
            () = self.requests.closed() => part.try_recv().ok(),
        }
    }

    fn request_next(&self, last: Option<&PeerReport>) -> Option<Part> {
        let (request, part) = self.next(last);
        self.requests.blocking_send(request).ok()?;
        Some(part)
    }
}

/// Must be serialised on a thread for blocking calls of a tokio runtime, because it waits for the
/// driver.
impl Serialize for PeerReports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ending = || S::Error::custom("the agent is ending");
        let mut list = serializer.serialize_seq(None)?;
        let mut next = self.request_next(None).ok_or_else(ending)?;
        loop {
            let part = Handle::current().block_on(self.answer(next)).ok_or_else(ending)?;
            let last = part.last();
            if last.is_none() {
                return list.end();
            }
            // The driver makes the next part while this one is written.
            next = self.request_next(last).ok_or_else(ending)?;
            part.iter().try_for_each(|peer| list.serialize_element(peer))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: usize) -> PeerReport {
        let name = format!("edge-{number:03}");
        let text = format!(
            r#"{{"name":"{name}","origin":"view","phase":"up","reqid":7,"endpoints":[],"ike_sas":[],"child_sas":[],"last_error":null}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    /// Answers as the driver does, with three peers at once, and ends after `parts` answers.
    fn reports(peers: usize, parts: usize) -> PeerReports {
        let (requests, mut asked) = mpsc::channel(1);
        let answer = async move {
            for _ in 0..parts {
                let Some(DriverRequest::ReportPeers { after, to, .. }) = asked.recv().await else { return };
                let all = (0..peers).map(peer);
                let after = all.filter(|peer| after.as_ref().is_none_or(|after| *peer.name > *after.as_str()));
                let _ = to.send(after.take(3).collect());
            }
        };
        tokio::spawn(answer);
        PeerReports { requests, sas: Arc::default() }
    }

    async fn written(reports: PeerReports) -> Result<String, String> {
        let write = move || serde_json::to_string(&reports).map_err(|error| error.to_string());
        spawn_blocking(write).await.unwrap()
    }

    #[tokio::test]
    async fn parts_of_the_report_are_written_as_the_whole_report_is() {
        for peers in [0, 1, 3, 7] {
            let expected: Vec<PeerReport> = (0..peers).map(peer).collect();
            assert_eq!(reports(peers, 100).collect().await.as_ref(), Some(&expected));
            assert_eq!(written(reports(peers, 100)).await.unwrap(), serde_json::to_string(&expected).unwrap());
        }
    }

    #[tokio::test]
    async fn a_request_that_was_sent_while_the_agent_ended_is_not_waited_for() {
        let (requests, mut asked) = mpsc::channel(1);
        let reports = PeerReports { requests: requests.clone(), sas: Arc::default() };
        // A place in the channel that is taken before it closes, and used afterwards.
        let place = requests.reserve().await.unwrap();
        asked.close();
        let (request, part) = reports.next(None);
        place.send(request);
        assert!(reports.answer(part).await.is_none());
    }

    #[tokio::test]
    async fn a_report_is_not_complete_if_the_agent_ends_in_the_middle_of_it() {
        for parts in [0, 1, 2] {
            assert_eq!(reports(7, parts).collect().await, None);
            assert!(written(reports(7, parts)).await.unwrap_err().contains("ending"));
        }
    }
}
