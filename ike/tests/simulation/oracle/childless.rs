//! Judges IKE_AUTH without a CHILD_SA (RFC 6023 3 and 5).

use super::ike_sa::IkeSa;
use super::octets::{Message, notify, payload};
use super::{Judged, init, require};

/// Notify message types below this number are errors (RFC 7296 3.10.1).
const STATUS_TYPES: u16 = 16384;

/// Judges an IKE_AUTH request of the node on this IKE SA.
pub fn judge_request(sa: &IkeSa, request: &Message) -> Judged {
    if !lacks_child(request) {
        return Ok(());
    }
    //= RFC 6023 3 MUST NOT 2: only if the responder supports it
    require!(
        announced(sa),
        "RFC 6023 3",
        "IKE_AUTH without a CHILD_SA to a responder that has not announced CHILDLESS_IKEV2_SUPPORTED"
    );
    judge_payloads(request)
}

/// Judges the response of the node to an IKE_AUTH request that it has accepted.
pub fn judge_response(sa: &IkeSa, request: &Message, response: &Message) -> Judged {
    let refused = response.notifies().iter().any(|notify| notify.kind < STATUS_TYPES);
    if lacks_child(request) {
        //= RFC 6023 3 MUST 3: no CHILD_SA in the request, none in the response
        require!(
            response.find(payload::SA).is_none(),
            "RFC 6023 3",
            "a CHILD_SA in the response to an IKE_AUTH request without one"
        );
        //= RFC 6023 3 MUST 1: a supporting responder announces it
        require!(
            refused || announced(sa),
            "RFC 6023 3",
            "IKE_AUTH without a CHILD_SA is accepted, and CHILDLESS_IKEV2_SUPPORTED was not announced"
        );
        return judge_payloads(response);
    }
    //= RFC 6023 3 MUST NOT 4: and the other way round
    require!(
        refused || response.find(payload::SA).is_some(),
        "RFC 6023 3",
        "IKE_AUTH was asked for a CHILD_SA, and the response has none and no error"
    );
    Ok(())
}

/// Judges that a message without a CHILD_SA has nothing else that is about one (RFC 6023 5).
fn judge_payloads(message: &Message) -> Judged {
    //= RFC 6023 5 REQUIRED 1: nothing about a CHILD_SA
    let left = [payload::TS_INITIATOR, payload::TS_RESPONDER].into_iter().find(|kind| message.find(*kind).is_some());
    require!(
        left.is_none() && message.notify(notify::USE_TRANSPORT_MODE).is_none(),
        "RFC 6023 5",
        "IKE_AUTH without SA has the payload {left:?} or USE_TRANSPORT_MODE"
    );
    Ok(())
}

fn lacks_child(message: &Message) -> bool {
    message.find(payload::SA).is_none()
}

/// Returns whether the IKE_SA_INIT response has the notification.
fn announced(sa: &IkeSa) -> bool {
    let responses = sa.init.iter().chain(&sa.other_inits).filter_map(|init| init::clear(&init.response));
    responses.into_iter().any(|response| response.notify(notify::CHILDLESS_IKEV2_SUPPORTED).is_some())
}
