//! Handles the requests that `edge-agent` commands send to the driver.

use edge_ike::PeerName;

use super::capture;
use super::driver::Driver;
use super::requests::{DriverRequest, SasToRekey};
use crate::clock::{boot_time, wall_time};

impl Driver {
    /// Handles a request and sends the response.
    pub(super) fn handle_request(&mut self, request: DriverRequest) {
        match request {
            DriverRequest::ReportPeers { after, sas, to } => {
                let _ = to.send(self.report_peers(after.as_ref(), sas));
            }
            DriverRequest::Overview(to) => {
                let _ = to.send(self.overview());
            }
            DriverRequest::Health(to) => {
                let _ = to.send(self.desired.view_version);
            }
            DriverRequest::Rekey(peer, sas, to) => {
                let _ = to.send(self.rekey(&peer, &sas));
            }
            DriverRequest::Capture(addresses, to) => {
                let (running, reader) = capture::open();
                tracing::info!(?addresses, "a capture of IKE messages begins");
                self.endpoint.begin_capture(addresses);
                self.running_capture = Some(running);
                let _ = to.send(reader);
            }
        }
    }

    /// Passes the messages that the endpoint has copied to the reader. Ends the capture if the
    /// reader's end has been dropped.
    pub(super) fn collect_captured(&mut self) {
        let Some(running) = &self.running_capture else { return };
        if running.has_no_reader() {
            tracing::info!("the capture of IKE messages ends");
            self.endpoint.end_capture();
            self.running_capture = None;
            return;
        }
        let at = u64::try_from(wall_time().as_micros()).unwrap_or(u64::MAX);
        running.extend(self.endpoint.take_captured(), at);
    }

    fn rekey(&mut self, peer: &str, sas: &SasToRekey) -> Result<(), String> {
        let name = PeerName::new(peer);
        let Some(tunnel) = self.desired.tunnels.get(&name) else {
            return Err(format!("there is no peer {peer:?}; `edge-agent status` lists them"));
        };
        let (now, env) = (boot_time(), &mut self.environment);
        let begun = match sas {
            SasToRekey::AllChildren => self.endpoint.rekey_children(&name, now, env),
            SasToRekey::Ike => self.endpoint.rekey_ike(&name, now, env),
            SasToRekey::ChildrenNamed(child) => {
                let mut children = tunnel.peer.children();
                let Some(child) = children.find(|known| known.name.as_str() == child).map(|known| &known.name) else {
                    let known: Vec<&str> = tunnel.peer.children().map(|known| known.name.as_str()).collect();
                    return Err(format!("peer {peer:?} has no child {child:?}; it has {}", known.join(", ")));
                };
                self.endpoint.rekey_children_named(&name, child, now, env)
            }
        };
        let what = match sas {
            SasToRekey::AllChildren => "CHILD_SA".to_owned(),
            SasToRekey::ChildrenNamed(child) => format!("CHILD_SA of {child:?}"),
            SasToRekey::Ike => "IKE SA".to_owned(),
        };
        if begun { Ok(()) } else { Err(format!("peer {peer:?} has no {what} now; `edge-agent status` says why")) }
    }
}
