//! Requests about policies.

use std::hash::{DefaultHasher, Hash, Hasher};

use netlink_packet_xfrm as nl;
use netlink_packet_xfrm::XfrmMessage;

use crate::error::{Error, Result};
use crate::message::{PolicyResponse, XfrmRequest};
use crate::netlink::{self, KernelRefusal, Netlink};
use crate::policy::{Action, Direction, InstalledPolicy, Policy};
use crate::reconcile::PolicyDiff;
use crate::reqid::{FIRST_INDEX, LAST_INDEX, Reqid, index_is_ours};

/// Maximum number of attempts to install a policy while other programs change it.
const ATTEMPTS: u32 = 8;

/// Maximum number of policies that are deleted in one batch. They are read just before, in one
/// datagram.
const DELETED_AT_ONCE: usize = 32;

const CHANGE: &str = "install SAs and policies (XFRM_MSG_NEWSA, XFRM_MSG_NEWPOLICY)";
const ADD: &str = "install a policy (XFRM_MSG_NEWPOLICY)";
const UPDATE: &str = "replace a policy of ours (XFRM_MSG_UPDPOLICY)";
const DELETE: &str = "delete a policy of ours (XFRM_MSG_DELPOLICY)";
const READ: &str = "read a policy (XFRM_MSG_GETPOLICY)";

pub(crate) fn dump(netlink: &mut Netlink) -> Result<Vec<InstalledPolicy>> {
    let message = XfrmMessage::GetPolicy(nl::policy::DelGetMessage::default());
    let keep = |PolicyResponse(policy)| policy.map(|policy| *policy);
    Ok(netlink.dump_with("read all policies (XFRM_MSG_GETPOLICY)", XfrmRequest::from(message), keep)?)
}

/// Reads the installed policies that have the directions and selectors of `policies`, in the same
/// order. Sends one datagram to the kernel and receives one or a few.
pub(crate) fn holders(netlink: &mut Netlink, policies: &[Policy]) -> Result<Vec<Option<InstalledPolicy>>> {
    let requests = policies.iter().map(|policy| {
        let id =
            nl::UserPolicyId { selector: policy.selector.to_kernel(), index: 0, direction: policy.direction as u8 };
        XfrmRequest::from(XfrmMessage::GetPolicy(nl::policy::DelGetMessage { user_policy_id: id, nlas: Vec::new() }))
    });
    netlink.get_all(READ, requests.collect())?.into_iter().map(found).collect()
}

/// Reads the policies with the directions and indexes of these, in the same order.
fn by_index(netlink: &mut Netlink, policies: &[InstalledPolicy]) -> Result<Vec<Option<InstalledPolicy>>> {
    let requests = policies.iter().map(|policy| XfrmRequest::from(XfrmMessage::GetPolicy(index_message(policy))));
    netlink.get_all(READ, requests.collect())?.into_iter().map(found).collect()
}

fn found(answer: Result<PolicyResponse, KernelRefusal>) -> Result<Option<InstalledPolicy>> {
    match answer {
        Ok(PolicyResponse(policy)) => Ok(policy.map(|policy| *policy)),
        Err(KernelRefusal { errno: libc::ENOENT, .. }) => Ok(None),
        Err(refusal) => Err(netlink::Error::Rejected { request: READ, refusal }.into()),
    }
}

/// Installs a policy. Tries NEWPOLICY first, which never replaces an existing policy. UPDPOLICY
/// replaces any policy, so it is used only for ours.
pub(crate) fn install(netlink: &mut Netlink, policy: &Policy) -> Result<bool> {
    for attempt in 0..ATTEMPTS {
        match add(netlink, policy, attempt) {
            Ok(true) => return Ok(true),
            // Another policy took the index between the choice and the request, so choose another
            // index.
            Ok(false) => continue,
            Err(Error::Netlink(error)) if error.errno() == Some(libc::EEXIST) => {}
            Err(error) => return Err(error),
        }
        match holders(netlink, std::slice::from_ref(policy))?.pop().flatten() {
            // The policy was deleted in the meantime.
            None => {}
            Some(holder) if holder.matches(policy) => return Ok(false),
            Some(holder) if holder.is_ours() => {
                replace(netlink, policy, &holder)?;
                return Ok(true);
            }
            Some(holder) => {
                return Err(Error::OccupiedByOther { wanted: Box::new(*policy), theirs: Box::new(holder) });
            }
        }
    }
    Err(netlink::Error::Interrupted { request: ADD }.into())
}

/// Adds a policy. Returns `Ok(false)` if the kernel gave an allow policy an index other than the
/// requested one. That index would not mark the policy as ours, so it was deleted again.
fn add(netlink: &mut Netlink, policy: &Policy, attempt: u32) -> Result<bool> {
    let index = index_for(policy, attempt);
    netlink.execute(ADD, addition(policy, attempt), 0)?;
    if policy.action != Action::Allow {
        return Ok(true);
    }
    match holders(netlink, std::slice::from_ref(policy))?.pop().flatten() {
        Some(holder) if holder.index == index => Ok(true),
        Some(holder) if same_allow(&holder, policy) => {
            execute_delete(netlink, &holder)?;
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// Replaces `holder`, which is ours. The kernel keeps the holder's index. If that index would not
/// mark an allow policy as ours, the holder is deleted and the new policy is added. A packet
/// between these two requests is handled as if neither policy existed: it passes in clear, or a
/// block policy of the guard drops it. The new policy allows at least as much.
fn replace(netlink: &mut Netlink, policy: &Policy, holder: &InstalledPolicy) -> Result<()> {
    if policy.action == Action::Allow && !index_is_ours(holder.index) {
        execute_delete(netlink, holder)?;
        for attempt in 0..ATTEMPTS {
            if add(netlink, policy, attempt)? {
                return Ok(());
            }
        }
        return Err(netlink::Error::Interrupted { request: UPDATE }.into());
    }
    netlink.execute(UPDATE, update(policy, holder), 0)?;
    Ok(())
}

fn addition(policy: &Policy, attempt: u32) -> XfrmRequest {
    XfrmMessage::AddPolicy(policy.to_kernel(index_for(policy, attempt))).into()
}

fn update(policy: &Policy, holder: &InstalledPolicy) -> XfrmRequest {
    XfrmMessage::UpdatePolicy(policy.to_kernel(holder.index)).into()
}

/// The kernel's answer to a request of a batch.
pub(crate) type Outcome = Result<(), KernelRefusal>;

/// When the policies were read that a plan replaces or deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlanAge {
    /// Immediately before, so they are not read again.
    JustRead,
    /// Earlier, so each is read again just before it is replaced or deleted.
    Older,
}

/// Carries out a plan: replacements and peers' policies first, then allow policies, then block
/// policies, and deletions last. In this order no packet passes in clear that must not, and no
/// tunnel is interrupted. Policies that other programs changed after the plan was made are handled
/// one by one.
///
/// The requests in `first`, about SAs, go out in the same datagram as the first policies and are
/// carried out before them. Returns their outcomes, and an error for each change of a policy that
/// the kernel refused.
pub(crate) fn apply(
    netlink: &mut Netlink,
    first: Vec<XfrmRequest>,
    plan: &PolicyDiff,
    age: PlanAge,
) -> Result<(Vec<Outcome>, Vec<Error>)> {
    let mut refused = Vec::new();
    let mut one_by_one: Vec<Policy> = Vec::new();

    let (in_place, reinstalled): (Vec<_>, Vec<_>) =
        plan.changed.iter().partition(|(policy, holder)| policy.action != Action::Allow || index_is_ours(holder.index));
    one_by_one.extend(reinstalled.iter().map(|(policy, _)| *policy));
    let wanted: Vec<Policy> = in_place.iter().map(|(policy, _)| *policy).collect();
    // UPDPOLICY replaces any policy, so the holders of the selectors must be known just before it.
    let now = match age {
        PlanAge::JustRead => in_place.iter().map(|(_, holder)| Some(holder.clone())).collect(),
        PlanAge::Older => holders(netlink, &wanted)?,
    };
    let of_sas = first.len();
    let mut requests: Vec<(XfrmRequest, u16)> = first.into_iter().map(|request| (request, 0)).collect();
    let mut updated = Vec::new();
    for (policy, holder) in wanted.into_iter().zip(now) {
        match holder {
            Some(holder) if holder.is_ours() => {
                requests.push((update(&policy, &holder), 0));
                updated.push(policy);
            }
            _ => one_by_one.push(policy),
        }
    }
    let mut missing = plan.missing.clone();
    missing.sort_by_key(|policy| match policy.action {
        Action::Protect(_) => 0,
        Action::Allow => 1,
        Action::Block => 2,
    });
    requests.extend(missing.iter().map(|policy| (addition(policy, 0), 0)));

    let mut outcomes = netlink.batch(CHANGE, requests)?.into_iter();
    let sas = outcomes.by_ref().take(of_sas).collect();
    for (policy, outcome) in updated.into_iter().zip(outcomes.by_ref()) {
        if outcome.is_err() {
            one_by_one.push(policy);
        }
    }
    let mut allows = Vec::new();
    for (policy, outcome) in missing.into_iter().zip(outcomes) {
        match outcome {
            Ok(()) if policy.action == Action::Allow => allows.push(policy),
            Ok(()) => {}
            Err(_) => one_by_one.push(policy),
        }
    }
    let outcome = finish(netlink, plan, age, &allows, &one_by_one, &mut refused);
    match outcome {
        // The outcomes of the SAs are known, whatever becomes of the policies.
        Err(error) if of_sas > 0 => refused.push(error),
        outcome => outcome?,
    }
    Ok((sas, refused))
}

/// Does the rest of a plan after its batch: checks the indexes of the added `allows`, handles the
/// policies `one_by_one`, and deletes those that are not desired.
fn finish(
    netlink: &mut Netlink,
    plan: &PolicyDiff,
    age: PlanAge,
    allows: &[Policy],
    one_by_one: &[Policy],
    refused: &mut Vec<Error>,
) -> Result<()> {
    let mut again: Vec<Policy> = one_by_one.to_vec();
    for (policy, holder) in allows.iter().zip(holders(netlink, allows)?) {
        match holder {
            Some(holder) if holder.matches(policy) => {}
            Some(holder) if holder.index != index_for(policy, 0) && same_allow(&holder, policy) => {
                execute_delete(netlink, &holder)?;
                again.push(*policy);
            }
            _ => again.push(*policy),
        }
    }
    for policy in &again {
        if let Err(error) = install(netlink, policy) {
            match error {
                Error::OccupiedByOther { .. } | Error::Netlink(netlink::Error::Rejected { .. }) => refused.push(error),
                error => return Err(error),
            }
        }
    }
    let mut stray = plan.stray.clone();
    stray.sort_by_key(|policy| (policy.blocks, !policy.templates.is_empty()));
    for some in stray.chunks(DELETED_AT_ONCE) {
        delete_all(netlink, some, age, refused)?;
    }
    Ok(())
}

fn same_allow(holder: &InstalledPolicy, policy: &Policy) -> bool {
    holder.templates.is_empty() && holder.priority == policy.priority && !holder.blocks && holder.shares_key_space()
}

/// Replaces our `out` policies of a reqid among `installed` by identical ones, so that the kernel
/// looks up their SA again.
pub(crate) fn renew_outbound(netlink: &mut Netlink, reqid: Reqid, installed: &[InstalledPolicy]) -> Result<()> {
    let renewals = installed.iter().filter(|policy| policy.direction == Direction::Out && policy.is_ours());
    let renewals = renewals.filter_map(|holder| Some((update(&holder.to_policy(reqid)?, holder), 0))).collect();
    // If a policy is refused or gone, its packets use the old SA until that is deleted, as they
    // would have without this function.
    netlink.batch(UPDATE, renewals)?;
    Ok(())
}

/// Deletes policies of ours, and adds an error for each that cannot be deleted to `refused`. Their
/// indexes are read first unless that was just done, since an index may belong to another program's
/// policy now.
fn delete_all(
    netlink: &mut Netlink,
    policies: &[InstalledPolicy],
    age: PlanAge,
    refused: &mut Vec<Error>,
) -> Result<()> {
    let mut deletions = Vec::new();
    let now = match age {
        PlanAge::JustRead => policies.iter().cloned().map(Some).collect(),
        PlanAge::Older => by_index(netlink, policies)?,
    };
    for (policy, holder) in policies.iter().zip(now) {
        match holder {
            None => {}
            Some(holder) if holder.is_ours() && holder.key() == policy.key() => {
                deletions.push((XfrmRequest::from(XfrmMessage::DeletePolicy(index_message(&holder))), 0));
            }
            Some(holder) => refused.push(Error::PolicyOfOther { policy: Box::new(holder) }),
        }
    }
    let failures = netlink.batch(DELETE, deletions)?.into_iter().filter_map(Result::err);
    let failures = failures.filter(|refusal| refusal.errno != libc::ENOENT);
    refused.extend(failures.map(|refusal| netlink::Error::Rejected { request: DELETE, refusal }.into()));
    Ok(())
}

pub(crate) fn delete(netlink: &mut Netlink, policy: &InstalledPolicy) -> Result<bool> {
    match by_index(netlink, std::slice::from_ref(policy))?.pop().flatten() {
        None => Ok(false),
        Some(holder) if holder.is_ours() && holder.key() == policy.key() => execute_delete(netlink, &holder),
        Some(holder) => Err(Error::PolicyOfOther { policy: Box::new(holder) }),
    }
}

fn execute_delete(netlink: &mut Netlink, policy: &InstalledPolicy) -> Result<bool> {
    let message = XfrmMessage::DeletePolicy(index_message(policy));
    match netlink.execute(DELETE, XfrmRequest::from(message), 0) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn index_message(policy: &InstalledPolicy) -> nl::policy::DelGetMessage {
    let id = nl::UserPolicyId {
        selector: policy.selector.to_kernel(),
        index: policy.index,
        direction: policy.direction as u8,
    };
    nl::policy::DelGetMessage { user_policy_id: id, nlas: Vec::new() }
}

/// Returns an index from our range. The same policy and attempt always give the same index. The
/// lowest three bits hold the direction (`xfrm_policy_id2dir`). If the index is taken, the kernel
/// assigns another one, which matters only for allow policies.
fn index_for(policy: &Policy, attempt: u32) -> u32 {
    let mut hasher = DefaultHasher::new();
    (policy.key(), attempt).hash(&mut hasher);
    let slots = (LAST_INDEX - FIRST_INDEX + 1) / 8;
    let slot = (hasher.finish() % u64::from(slots)) as u32;
    FIRST_INDEX + slot * 8 + policy.direction as u32
}
