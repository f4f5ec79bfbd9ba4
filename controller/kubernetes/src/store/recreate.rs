//! Creates a deleted object again, with the row in the registry's state.

use edge_controller_domain::state::Change;
use kube::api::PostParams;

use super::object_versions::ObjectEvent;
use super::requests::{Failure, decoded, read_object, with_timeout};
use super::store_core::StoreCore;
use crate::client::explain;
use crate::resources::kinds::{Kind, StoredObject, encode};

/// Outcome of creating a missing object again.
pub(super) enum Recreation {
    /// The object exists, either with the row in the registry's state or as somebody else created
    /// it.
    Done,
    /// The object does not exist yet, for this reason.
    Pending(String),
}

/// Creates a missing object again with the row in the registry's state. If somebody else has
/// created it, that object stays.
pub(super) async fn recreate(core: &StoreCore, change: &Change) -> Recreation {
    if let Err(why) = core.check_fields(change) {
        return Recreation::Pending(why);
    }
    let object_key = Kind::object_key(&change.key());
    let Some(foreign) = core.objects().begin_recreate(&object_key) else {
        return Recreation::Pending(format!("an earlier write of {} has not ended yet", change.key()));
    };
    let created = async {
        let object = encode(change, &foreign)?.ok_or("nothing is to be written")?;
        let api = core.apis.of(object_key.0);
        let other = |failure| match failure {
            Failure::Other(why) => why,
            Failure::Changed => "it changed in the meantime".to_owned(),
        };
        match with_timeout(object_key.0, api.create(&PostParams::default(), &object)).await.map_err(other)? {
            Ok(object) => Ok((decoded(object_key.0, object).map_err(other)?, true)),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                match read_object(core, &object_key).await.map_err(other)? {
                    Some(object) => Ok((object, false)),
                    None => Err("it was created and deleted in the meantime".to_owned()),
                }
            }
            Err(error) => Err(explain(object_key.0.what(), &error)),
        }
    };
    let created: Result<(StoredObject, bool), String> = created.await;
    let mut objects = core.objects();
    match created {
        Ok((object, true)) => objects.end_recreated(&object_key, object, change),
        Ok((object, false)) => {
            objects.end(&object_key);
            objects.observe(object_key.clone(), ObjectEvent::Applied(object));
            objects.keep_row(&object_key);
        }
        Err(why) => {
            objects.end(&object_key);
            return Recreation::Pending(why);
        }
    }
    Recreation::Done
}
