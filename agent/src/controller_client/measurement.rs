//! Passes the controller's requests for measurements to the part of the agent that measures paths,
//! and sends the reports to the controller.

use edge_types::connectivity::{MeasurementReport, MeasurementRequest};
use edge_types::view_frames::NodeFrame;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tracing::{Instrument, debug};

use super::client::{ControllerClient, Member};
use super::view_connection::ViewConnection;
use crate::membership::Measurement;

/// Starts a measurement. The report is sent in the background, on the connection on which the
/// request arrived.
pub(super) fn start(
    controller: &ControllerClient,
    member: &Member,
    connection: &ViewConnection,
    request: MeasurementRequest,
) {
    let id = request.id.clone();
    let (to, report) = oneshot::channel();
    let accepted = controller.measurements.try_send(Measurement { request, report: to });
    let (member, connection) = (member.clone(), connection.clone());
    let work = async move {
        let refused = |why: &str| MeasurementReport {
            id,
            addresses: Vec::new(),
            paths: Vec::new(),
            refused: Some(why.to_owned()),
        };
        let report = match accepted {
            Ok(()) => report.await.unwrap_or_else(|_| refused("the agent is ending")),
            Err(TrySendError::Full(_)) => refused("the agent is busy with other measurements"),
            Err(TrySendError::Closed(_)) => refused("the agent is ending"),
        };
        let sent = connection.request(&member.http, NodeFrame::Measurement, member.node(), &report).await;
        if let Err(error) = sent {
            debug!(%error, "the report of a measurement was not taken");
        }
    };
    tokio::spawn(controller.stop.clone().run_until_cancelled_owned(work.in_current_span()));
}
