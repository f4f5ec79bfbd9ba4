//! Confirms segment grants. A grant is announced only after the segment sizes in force have been
//! read again, and is rolled back if its size differs from them (see `shared_config`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use edge_controller_domain::segments::SegmentRecord;
use edge_controller_domain::state::Change;
use edge_controller_domain::store::StoreError;
use futures_util::future::join_all;

use super::object_versions::WriteBase;
use super::requests::{Failure, read_object, send};
use super::store_core::StoreCore;
use crate::resources::kinds::{ObjectKey, StoredObject};

/// Number of attempts to roll a grant back if other writers change its object at the same time.
const ATTEMPTS: u32 = 4;
/// Delay before grants are checked again.
const SETTLE_RETRY: Duration = Duration::from_secs(1);

/// A grant that is not announced yet.
pub(super) struct UnconfirmedGrant {
    pub(super) object_key: ObjectKey,
    pub(super) row: SegmentRecord,
    pub(super) base: WriteBase,
    pub(super) written: StoredObject,
}

/// Announces grants if this replica's segment sizes are still in force; otherwise rolls the grants
/// back.
pub(super) async fn confirm(core: &Arc<StoreCore>, grants: Vec<UnconfirmedGrant>) -> Result<(), StoreError> {
    match core.shared_config.in_force_since_now().await {
        Ok(Ok(())) => {
            let mut objects = core.objects();
            for UnconfirmedGrant { object_key, row, written, .. } in grants {
                objects.end_written(object_key, written, &Change::GrantSegment(row));
            }
            Ok(())
        }
        Ok(Err(why)) => {
            tracing::error!("{why}");
            roll_back(core, grants).await;
            Err(StoreError::Failed(why))
        }
        Err(error) => {
            // The grants are neither announced nor dropped: their objects stay in flight until the
            // segment sizes in force are known.
            core.unsettled.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(settle(core.clone(), grants));
            Err(error)
        }
    }
}

/// Repeats the check until it is known whether the grants are valid.
async fn settle(core: Arc<StoreCore>, grants: Vec<UnconfirmedGrant>) {
    settled(&core, grants).await;
    core.unsettled.fetch_sub(1, Ordering::SeqCst);
}

async fn settled(core: &StoreCore, grants: Vec<UnconfirmedGrant>) {
    loop {
        tokio::time::sleep(SETTLE_RETRY).await;
        match core.shared_config.in_force().await {
            Ok(Ok(())) => {
                // The grants were never announced. The node received an error, and receives these
                // segments when it repeats its request.
                let mut objects = core.objects();
                grants.iter().for_each(|grant| objects.end(&grant.object_key));
                return;
            }
            Ok(Err(why)) => {
                tracing::error!("{why}");
                return roll_back(core, grants).await;
            }
            Err(error) => tracing::debug!(%error, "grants are not settled yet"),
        }
    }
}

async fn roll_back(core: &StoreCore, grants: Vec<UnconfirmedGrant>) {
    join_all(grants.into_iter().map(async |grant| {
        let UnconfirmedGrant { object_key, row, base, mut written } = grant;
        let change = match (&base, row_before_grant(&row)) {
            (WriteBase::Object { .. }, Some(before)) => Change::PutSegment(before),
            _ => Change::DeleteSegment(row.network),
        };
        let mut why = "others keep writing it".to_owned();
        for _ in 0..ATTEMPTS {
            let (uid, foreign) = (written.uid.clone(), written.foreign.clone());
            let upon = WriteBase::Object { key: change.key(), uid, version: written.version, held: true, foreign };
            match send(core, &change, &object_key, &upon).await {
                Ok(None) => return core.objects().end_rolled_back(object_key, written, &Change::GrantSegment(row)),
                Ok(Some(_)) => return core.objects().end(&object_key),
                // Another writer has written the object, perhaps without changing the row.
                Err(Failure::Changed) => match read_object(core, &object_key).await {
                    Ok(Some(now)) if is_same_grant(&now, &row) => written = now,
                    Ok(_) => return core.objects().end(&object_key),
                    Err(Failure::Changed) => {}
                    Err(Failure::Other(error)) => why = error,
                },
                Err(Failure::Other(error)) => {
                    why = error;
                    break;
                }
            }
        }
        tracing::error!(segment = %row.network, why, "a grant was not rolled back; it is released later, because its node does not use it");
        core.objects().end(&object_key);
    }))
    .await;
}

/// Returns whether an object still holds this grant.
pub(super) fn is_same_grant(object: &StoredObject, row: &SegmentRecord) -> bool {
    match &object.row {
        Ok(Change::PutSegment(now)) => {
            now.node == row.node && now.granted_at == row.granted_at && now.released_at.is_none()
        }
        _ => false,
    }
}

/// Returns the released row that a grant replaced.
fn row_before_grant(row: &SegmentRecord) -> Option<SegmentRecord> {
    let last = row.past.first()?;
    let past = row.past.get(1..).unwrap_or_default().to_vec();
    let released = Some(last.released_at);
    Some(SegmentRecord {
        past,
        ..SegmentRecord::new(row.network, last.node.clone(), String::new(), last.granted_at, released)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_before_a_grant_comes_back() {
        let network = "10.77.0.0/26".parse().unwrap();
        let old = SegmentRecord::new(network, "a".parse().unwrap(), String::new(), 1, Some(2));
        let new = old.regranted("b".parse().unwrap(), "r".into(), 3);
        assert_eq!(row_before_grant(&new), Some(old));
        assert_eq!(row_before_grant(&SegmentRecord::new(network, "a".parse().unwrap(), String::new(), 1, None)), None);
    }
}
