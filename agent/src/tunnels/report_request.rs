//! Requests the part of the status about tunnels from the driver, in parts, so that the driver
//! handles IKE messages and timers between two parts, no matter how many peers there are. The SAs
//! in the kernel are read, and most of the document is made, on other threads.

use std::sync::Arc;

use edge_ike::PeerName;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::overview::kernel_sas;
use super::requests::DriverRequest;
use crate::status::{PeerReport, TunnelsReport};

/// Requests the report from the driver. `None` if the agent is ending.
pub async fn report(requests: &mpsc::Sender<DriverRequest>) -> Option<TunnelsReport> {
    let sas = Arc::new(spawn_blocking(kernel_sas).await.ok()?);
    let mut peers: Vec<PeerReport> = Vec::new();
    loop {
        let after = peers.last().map(|last| PeerName::new(&last.name));
        let (to, part) = oneshot::channel();
        requests.send(DriverRequest::ReportPeers { after, sas: sas.clone(), to }).await.ok()?;
        let part = part.await.ok()?;
        if part.is_empty() {
            break;
        }
        peers.extend(part);
    }
    let (to, overview) = oneshot::channel();
    requests.send(DriverRequest::Overview(to)).await.ok()?;
    let overview = overview.await.ok()?;
    spawn_blocking(move || overview.with_peers(peers, &sas)).await.ok()
}
