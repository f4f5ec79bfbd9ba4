//! Writing an object again that somebody deleted, as the registry knows it.

use edge_controller_domain::state::Change;
use kube::api::PostParams;

use super::Inner;
use super::commit::{Failure, answered, present, read};
use super::kinds::{Kind, Observed, encode};
use super::objects::Event;
use crate::client::explain;

/// What became of writing a missing object again.
pub(super) enum Again {
    /// It is there.
    There,
    /// Not yet, and why.
    Not(String),
}

/// Writes an object again that is missing, with the row that the registry knows; where somebody
/// else did, that holds.
pub(super) async fn write_again(inner: &Inner, change: &Change) -> Again {
    if let Err(why) = inner.check_fields(change) {
        return Again::Not(why);
    }
    let place = Kind::place(&change.key());
    let Some(foreign) = inner.objects().begin_import(&place) else {
        return Again::Not(format!("an earlier write of {} has not come to its end yet", change.key()));
    };
    let created = async {
        let object = encode(change, &foreign)?.ok_or("nothing is to be written")?;
        let api = inner.apis.of(place.0);
        let other = |failure| match failure {
            Failure::Other(why) => why,
            Failure::Changed => "it changed meanwhile".to_owned(),
        };
        match answered(place.0, api.create(&PostParams::default(), &object)).await.map_err(other)? {
            Ok(object) => Ok((read(place.0, object).map_err(other)?, true)),
            Err(kube::Error::Api(status)) if status.code == 409 => match present(inner, &place).await.map_err(other)? {
                Some(object) => Ok((object, false)),
                None => Err("it came and went meanwhile".to_owned()),
            },
            Err(error) => Err(explain(place.0.what(), &error)),
        }
    };
    let created: Result<(Observed, bool), String> = created.await;
    let mut objects = inner.objects();
    match created {
        Ok((object, true)) => objects.end_again(&place, object, change),
        Ok((object, false)) => {
            objects.end(&place);
            objects.event(place.clone(), Event::Put(object));
            objects.keep(&place);
        }
        Err(why) => {
            objects.end(&place);
            return Again::Not(why);
        }
    }
    Again::There
}
