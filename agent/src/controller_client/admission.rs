//! Makes this node a member: joins with a credential, or renews a certificate that has ended.

use tracing::{Span, error, info};

use super::client::{ControllerClient, Member};
use super::error::ControllerError;
use super::http::Reconnect;
use super::join_credential::{self, JoinCredential};
use super::{join, renewal};
use crate::logging;

/// Returns this node's membership. Joins first if this node is not a member, or if the controller
/// refused this node and a new credential exists.
pub(super) async fn member(controller: &ControllerClient, refused: bool) -> Result<Member, ControllerError> {
    let present = controller.member.borrow().clone();
    let credential = match &present {
        Some(member) if !refused && !member.identity.has_expired(&controller.clock) => return Ok(member.clone()),
        Some(member) => {
            let renewal = renewal_in_grace(controller, member).await;
            if let Some(Ok(renewed)) = renewal {
                return Ok(renewed);
            }
            // A member whose token cannot be read continues with its certificate.
            let credential = JoinCredential::read(&controller.config).unwrap_or_else(|error| {
                error!("{error}");
                None
            });
            match credential.filter(|credential| credential.id() != member.identity.token_id) {
                Some(credential) => credential,
                None => return renewal.unwrap_or_else(|| Ok(member.clone())),
            }
        }
        None => JoinCredential::read(&controller.config)?
            .ok_or_else(|| join_credential::missing(&controller.config, controller.state.path()))?,
    };
    info!(token = credential.id(), "joining");
    let identity =
        join::join(&controller.config, &credential, &controller.state, &controller.clock, &controller.bypass).await?;
    if present.is_none() && controller.config.name.is_none() {
        logging::set_node(&Span::current(), &identity.node);
    }
    info!(node = %identity.node, role = %identity.role, "joined");
    *controller.view.lock().await = None;
    controller.clear_unconfirmed_view();
    controller.forget_former_networks();
    controller.become_member(identity, Reconnect::Yes).await?;
    let member = controller.member.borrow().clone();
    member.ok_or_else(|| ControllerError::Unacceptable("joined, but no longer a member".into()))
}

/// Renews a certificate that has ended, because the controller accepts it for nothing else. Returns
/// `None` if the certificate has not ended, or its grace has ended too.
async fn renewal_in_grace(controller: &ControllerClient, member: &Member) -> Option<Result<Member, ControllerError>> {
    let (identity, clock) = (&member.identity, &controller.clock);
    if !identity.has_expired(clock) || identity.has_expired_by(clock, controller.grace()) {
        return None;
    }
    match renewal::renew(controller, member).await {
        Ok(()) => {}
        // If this node's clock runs ahead, the certificate may not have ended, and the new one
        // looks as if it had.
        Err(error @ ControllerError::Unacceptable(_)) => controller.record_error(&error),
        Err(error) => return Some(Err(error)),
    }
    Some(Ok(controller.member.borrow().clone().unwrap_or_else(|| member.clone())))
}
