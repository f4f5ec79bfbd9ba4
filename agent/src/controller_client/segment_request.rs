//! Applying for segments. The application stands on disk before it is sent, and until its segments
//! do: whatever dies in between, the same application is made again, and the controller gives the
//! same answer.

use data_encoding::HEXLOWER;
use edge_types::api::{Family, SegmentRequest, SegmentResponse};
use edge_types::store::SegmentsFile;
use hyper::Method;
use ring::rand::{SecureRandom, SystemRandom};
use tracing::{info, warn};

use super::Cloud;
use super::error::CloudError;
use crate::state_dir::{StoreError, segments_file};

/// The application that has no answer yet, a [`SegmentRequest`].
const APPLICATION_FILE: &str = "application.json";

impl Cloud {
    /// The families of an application that an earlier run left without an answer.
    pub fn unanswered_application(&self) -> Option<Vec<Family>> {
        self.unanswered().map(|request| request.families)
    }

    fn unanswered(&self) -> Option<SegmentRequest> {
        match self.state.read_json::<SegmentRequest>(APPLICATION_FILE, "a new application is made") {
            Ok(request) => request,
            Err(error) => {
                warn!(%error, "an application is lost; should it have been granted, the next view shows it");
                None
            }
        }
    }

    /// Applies for one segment of each of `families`; first, for what an unanswered application
    /// asked. Returns when the segments stand in the state directory.
    pub async fn apply(&self, families: &[Family]) -> Result<SegmentsFile, CloudError> {
        let _one_at_a_time = self.applying.lock().await;
        let Some(member) = self.member.borrow().clone() else {
            return Err(CloudError::NotJoined);
        };
        let request = match self.unanswered() {
            // Its families may be fewer: who asked looks again.
            Some(request) => request,
            None => {
                let families = families.to_vec();
                let request = SegmentRequest { request_id: request_id()?, families, repeated: true };
                // Whoever finds it there does not know whether it was sent.
                self.state.write_json(APPLICATION_FILE, &request)?;
                SegmentRequest { repeated: false, ..request }
            }
        };
        let path = format!("/v1/nodes/{}/segments", member.node());
        let granted = match member.client.call::<SegmentResponse>(Method::POST, &path, &request).await {
            Ok(answer) => answer.segments,
            Err(error) => {
                if matches!(&error, CloudError::Problem(problem) if matches!(problem.status, 400 | 409 | 422)) {
                    // That was an answer. Who may not ask (401, 403) has none.
                    self.state.remove(APPLICATION_FILE)?;
                }
                return Err(error);
            }
        };
        if let Some(odd) = granted
            .iter()
            .find(|segment| segment.ip() != segment.network() || !request.families.contains(&Family::of(segment)))
        {
            return Err(CloudError::Unacceptable(format!(
                "the controller grants {odd}, which is not a segment of the families applied for ({:?})",
                request.families
            )));
        }
        info!(?granted, request_id = request.request_id, "segments granted");
        let families_granted: Vec<Family> = granted.iter().map(Family::of).collect();
        let file = self.on_disk(move |state| segments_file::add_granted(state, &granted)).await?;
        self.state.remove(APPLICATION_FILE)?;
        match request.families.iter().find(|family| !families_granted.contains(family)) {
            None => Ok(file),
            Some(family) => Err(CloudError::Unacceptable(format!(
                "the controller granted no {family:?} segment, though asked for {:?}: are its cluster ranges of that family full?",
                request.families
            ))),
        }
    }

    /// `segments.json` as it is.
    pub async fn segments(&self) -> Result<Option<SegmentsFile>, StoreError> {
        self.on_disk(segments_file::read).await
    }
}

fn request_id() -> Result<String, CloudError> {
    let mut random = [0u8; 16];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| CloudError::Unacceptable("the kernel gives no randomness for a request id".into()))?;
    Ok(HEXLOWER.encode(&random))
}
