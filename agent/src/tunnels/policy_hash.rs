//! Has the kernel find policies by a hash. A hub has three policies for each edge. Without the hash
//! the kernel walks all of one direction whenever one is replaced: with ten thousand edges it takes
//! a millisecond for each.

use edge_xfrm::{PolicyHash, Xfrm};

/// Sets the thresholds of this network namespace, which apply to the policies of all programs. If
/// they differ from the kernel's default, somebody has chosen them, and they stay. A failure is
/// only logged, since nothing but time depends on it.
pub(super) fn set(xfrm: &mut Xfrm) {
    let outcome = xfrm.policy_hash().and_then(|found| {
        if found == PolicyHash::DEFAULT {
            xfrm.set_policy_hash(PolicyHash::BY_REMOTE)?;
        } else if found != PolicyHash::BY_REMOTE {
            tracing::info!(
                ?found,
                "the thresholds of policies (`ip xfrm policy set hthresh4`) were set by somebody and stay"
            );
        }
        Ok(())
    });
    if let Err(error) = outcome {
        tracing::warn!("with thousands of peers, changes of policies will take long: {error}");
    }
}
