//! What commands of `edge-agent` ask of the driver.

use edge_ike::PeerName;
use tokio::sync::oneshot;

use super::driver::Driver;
use crate::clock::boot_time;
use crate::status::TunnelsReport;

/// Requests to the driver.
#[derive(Debug)]
pub enum DriverRequest {
    /// Report the state of all tunnels.
    Report(oneshot::Sender<TunnelsReport>),
    /// Rekey SAs with the named peer.
    Rekey(String, SasToRekey, oneshot::Sender<Result<(), String>>),
}

/// Which SAs with a peer are to be rekeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SasToRekey {
    /// All CHILD_SAs.
    AllChildren,
    /// The CHILD_SAs of the configured child of this name.
    ChildrenNamed(String),
    /// The IKE SA.
    Ike,
}

impl Driver {
    /// Handles a request, and sends the answer.
    pub(super) fn handle_request(&mut self, request: DriverRequest) {
        match request {
            DriverRequest::Report(to) => {
                let _ = to.send(self.report());
            }
            DriverRequest::Rekey(peer, sas, to) => {
                let _ = to.send(self.rekey(&peer, &sas));
            }
        }
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
