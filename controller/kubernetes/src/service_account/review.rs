//! Has the API server review a token. The review names the account to which the token belongs and
//! the node on which its pod runs.

use edge_types::{NodeName, Role};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, PostParams};

use super::accounts::JoinAccounts;
use super::error::ReviewError;
use super::role_selectors::RoleSelectors;
use super::token::AUDIENCE;

/// Keys of `TokenReview.status.user.extra`: the node and the pod to which a token is bound.
const NODE: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
const POD: &str = "authentication.kubernetes.io/pod-name";
/// Maximum length of a token that is sent to the API server, in bytes. Real tokens are shorter than
/// 2 KiB.
const LONGEST: usize = 16 * 1024;

/// A client that has the API server review tokens.
#[derive(Clone)]
pub struct Reviewer {
    client: kube::Client,
    accounts: JoinAccounts,
    selectors: RoleSelectors,
}

/// The parts of the review about the token's pod.
#[derive(Debug, PartialEq, Eq)]
struct Bound {
    /// The role of the pod's service account.
    role: Role,
    /// UID of the pod's Node, if the token contains it.
    node_uid: Option<String>,
}

impl Reviewer {
    /// Makes a reviewer that accepts these accounts, each only for Nodes of its role.
    pub fn new(client: kube::Client, accounts: JoinAccounts, selectors: RoleSelectors) -> Self {
        Self { client, accounts, selectors }
    }

    /// Returns the role with which the holder of this token may join as `node`: the account is
    /// configured for the role, and the Node may have it.
    ///
    /// # Errors
    /// Returns the reason why the token is not accepted.
    pub async fn review(&self, token: &str, node: &NodeName) -> Result<Role, ReviewError> {
        if token.is_empty() {
            return Err(ReviewError::Refused("it is empty".into()));
        }
        if token.len() > LONGEST {
            return Err(ReviewError::Refused(format!("it is longer than {LONGEST} bytes")));
        }
        let spec = TokenReviewSpec { token: token.into(), audiences: Some(vec![AUDIENCE.into()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let response = reviews.create(&PostParams::default(), &review).await.map_err(|error| match error {
            kube::Error::Api(status) if status.code == 403 => ReviewError::Failed(format!(
                "{}; its right to create tokenreviews is in deploy/kubernetes/10-rbac.yaml",
                status.message
            )),
            other => ReviewError::Failed(other.to_string()),
        })?;
        let bound = check_review(&self.accounts, response.status.unwrap_or_default(), node)?;
        self.selectors.check(&self.client, bound.role, node, bound.node_uid.as_deref()).await?;
        Ok(bound.role)
    }
}

fn check_review(accounts: &JoinAccounts, status: TokenReviewStatus, node: &NodeName) -> Result<Bound, ReviewError> {
    let refuse = |why: String| Err(ReviewError::Refused(why));
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_else(|| "it is not one of this cluster, or has expired".into());
        return refuse(format!("{why}; it must be a projected token for the audience {AUDIENCE:?}"));
    }
    // An authenticator without support for audiences leaves this field empty, and would accept any
    // token.
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE) {
        return refuse(format!("it is not for the audience {AUDIENCE:?}"));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let Some(role) = accounts.role_of(&name) else {
        return refuse(format!("it is of {name:?}, which [kubernetes.join] of the controller does not name"));
    };
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) => Some(value.as_str()),
        _ => None,
    };
    let (Some(on), Some(_)) = (one(NODE), one(POD)) else {
        return refuse(
            "it is not bound to a pod on a node; it must be a projected token (and Kubernetes 1.30 or later)".into(),
        );
    };
    if on != node.as_str() {
        return refuse(format!("its pod runs on node {on:?}, and node {node} was asked for"));
    }
    Ok(Bound { role, node_uid: one(NODE_UID).map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(change: impl FnOnce(&mut TokenReviewStatus)) -> TokenReviewStatus {
        let extra = [(NODE, "edge-1"), (POD, "edge-agent-x")];
        let mut status = TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![AUDIENCE.into()]),
            error: None,
            user: Some(Default::default()),
        };
        let user = status.user.get_or_insert_default();
        user.username = Some("system:serviceaccount:edge-cni:edge-agent".into());
        user.extra = Some(extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()])).into());
        change(&mut status);
        status
    }

    fn accounts() -> JoinAccounts {
        toml::from_str("edge = \"edge-cni:edge-agent\"\nhub = \"edge-cni:hub-agent\"").unwrap()
    }

    #[test]
    fn only_a_token_of_a_named_account_bound_to_a_pod_on_that_node_lets_in() {
        let checked = |change: fn(&mut TokenReviewStatus)| {
            let checked = check_review(&accounts(), status(change), &"edge-1".parse().unwrap());
            checked.map(|bound| bound.role).map_err(|refusal| refusal.to_string())
        };
        assert_eq!(checked(|_| {}), Ok(Role::Edge));
        let hub = |status: &mut TokenReviewStatus| {
            status.user.get_or_insert_default().username = Some("system:serviceaccount:edge-cni:hub-agent".into());
        };
        assert_eq!(checked(hub), Ok(Role::Hub));
        type Edit = fn(&mut TokenReviewStatus);
        let cases: [(&str, Edit); 7] = [
            ("expired", |status| status.authenticated = None),
            ("a word of its own", |status| {
                (status.authenticated, status.error) = (Some(false), Some("a word of its own".into()));
            }),
            ("audience", |status| status.audiences = None),
            ("edge-cni:other", |status| {
                status.user.get_or_insert_default().username = Some("system:serviceaccount:edge-cni:other".into());
            }),
            ("a-human", |status| status.user.get_or_insert_default().username = Some("a-human".into())),
            ("not bound to a pod", |status| status.user.get_or_insert_default().extra = None),
            ("runs on node \"edge-2\"", |status| {
                let extra = status.user.get_or_insert_default().extra.get_or_insert_default();
                extra.insert(NODE.into(), vec!["edge-2".into()]);
            }),
        ];
        for (says, change) in cases {
            let error = checked(change).unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}
