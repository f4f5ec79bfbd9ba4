//! Requests for segments. A request is written to disk before it is sent, and stays there until its
//! segments are on disk too. If the agent crashes before that, the same request is sent again, and
//! the controller repeats its response.

use data_encoding::HEXLOWER;
use edge_types::api::{Family, SegmentRequest, SegmentResponse};
use edge_types::shared_files::SegmentsFile;
use hyper::Method;
use ring::rand::{SecureRandom, SystemRandom};
use tracing::{info, warn};

use super::client::ControllerClient;
use super::error::ControllerError;
use crate::state_dir::{StateDirError, segments_file};

/// File with the [`SegmentRequest`] that has no response yet.
const REQUEST_FILE: &str = "application.json";

impl ControllerClient {
    /// Returns the address families of a request that is on disk without a response.
    pub fn unanswered_request_families(&self) -> Option<Vec<Family>> {
        self.unanswered().map(|request| request.families)
    }

    fn unanswered(&self) -> Option<SegmentRequest> {
        match self.state.read_json::<SegmentRequest>(REQUEST_FILE, "a new request is made") {
            Ok(request) => request,
            Err(error) => {
                warn!(%error, "cannot read the pending segment request; if it was granted, the next view contains the segments");
                None
            }
        }
    }

    /// Requests one segment of each of `families`. If an earlier request has no response, that
    /// request is sent instead. Returns `segments.json` once the new segments are in it.
    pub async fn request_segments(&self, families: &[Family]) -> Result<SegmentsFile, ControllerError> {
        let _one_at_a_time = self.requesting.lock().await;
        let Some(member) = self.member.borrow().clone() else {
            return Err(ControllerError::NotJoined);
        };
        let request = match self.unanswered() {
            // The stored request may be for families other than `families`. The caller checks this
            // and requests again.
            Some(request) => request,
            None => {
                let families = families.to_vec();
                let request = SegmentRequest { request_id: request_id()?, families, repeated: true };
                // The request is stored with `repeated` set, since an agent that reads it after a
                // restart cannot determine whether it was sent.
                self.state.write_json(REQUEST_FILE, &request)?;
                SegmentRequest { repeated: false, ..request }
            }
        };
        let path = format!("/v1/nodes/{}/segments", member.node());
        let granted = match member.http.call::<SegmentResponse>(Method::POST, &path, &request).await {
            Ok(response) => response.segments,
            Err(error) => {
                if matches!(&error, ControllerError::Problem(problem) if matches!(problem.status, 400 | 409 | 422)) {
                    // These HTTP statuses are final responses to the request. After 401 and 403 the
                    // request stays on disk.
                    self.state.remove(REQUEST_FILE)?;
                }
                return Err(error);
            }
        };
        if let Some(odd) = granted
            .iter()
            .find(|segment| segment.ip() != segment.network() || !request.families.contains(&Family::of(segment)))
        {
            return Err(ControllerError::Unacceptable(format!(
                "the controller grants {odd}, which is not a segment of the families requested ({:?})",
                request.families
            )));
        }
        info!(?granted, request_id = request.request_id, "segments granted");
        let families_granted: Vec<Family> = granted.iter().map(Family::of).collect();
        let file = self.on_disk(move |state| segments_file::add_granted(state, &granted)).await?;
        self.state.remove(REQUEST_FILE)?;
        match request.families.iter().find(|family| !families_granted.contains(family)) {
            None => Ok(file),
            Some(family) => Err(ControllerError::Unacceptable(format!(
                "the controller granted no {family:?} segment, though requested {:?}: are its cluster ranges of that family full?",
                request.families
            ))),
        }
    }

    /// Reads `segments.json`; `None` if it does not exist.
    pub async fn segments(&self) -> Result<Option<SegmentsFile>, StateDirError> {
        self.on_disk(segments_file::read).await
    }
}

fn request_id() -> Result<String, ControllerError> {
    let mut random = [0u8; 16];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| ControllerError::Unacceptable("the kernel gives no randomness for a request id".into()))?;
    Ok(HEXLOWER.encode(&random))
}
