//! Grants, revokes and checks rights by RBAC.

use anyhow::{Result, anyhow, ensure};

use super::control_plane::ControlPlane;
use crate::wait;

/// The holder of a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// A user, by the common name of the client's certificate.
    User(&'a str),
    /// A service account: namespace and name.
    ServiceAccount(&'a str, &'a str),
}

impl Subject<'_> {
    /// Returns the name of the subject at the API server.
    fn user(&self) -> String {
        match self {
            Self::User(name) => (*name).to_owned(),
            Self::ServiceAccount(namespace, name) => format!("system:serviceaccount:{namespace}:{name}"),
        }
    }

    fn flag(&self) -> String {
        match self {
            Self::User(name) => format!("--user={name}"),
            Self::ServiceAccount(namespace, name) => format!("--serviceaccount={namespace}:{name}"),
        }
    }
}

impl ControlPlane {
    /// Grants verbs on resources (`nodes`, `segments.edge-cni.io`) in the whole cluster, by a
    /// ClusterRole and a ClusterRoleBinding called `name`. Returns when the right is in effect.
    ///
    /// # Errors
    /// Returns an error if the role or the binding exists already, or the right does not take
    /// effect.
    pub fn grant(&self, name: &str, subject: Subject<'_>, verbs: &[&str], resources: &[&str]) -> Result<()> {
        ensure!(!verbs.is_empty() && !resources.is_empty(), "a right needs verbs and resources");
        let (verb, resource) = (verbs.join(","), resources.join(","));
        self.kubectl(&["create", "clusterrole", name, &format!("--verb={verb}"), &format!("--resource={resource}")])?;
        self.kubectl(&["create", "clusterrolebinding", name, &format!("--clusterrole={name}"), &subject.flag()])?;
        self.wait_right(subject, verbs[0], resources[0], true)
    }

    /// Revokes the rights that [`Self::grant`] gave under `name`. The change takes effect a moment
    /// later: see [`Self::wait_right`].
    ///
    /// # Errors
    /// Returns an error if `name` has no rights.
    pub fn revoke(&self, name: &str) -> Result<()> {
        self.kubectl(&["delete", "clusterrolebinding,clusterrole", name]).map(drop)
    }

    /// Returns whether a subject has a right in the whole cluster, according to the API server.
    ///
    /// # Errors
    /// Returns an error if the API server does not answer.
    pub fn can(&self, subject: Subject<'_>, verb: &str, resource: &str) -> Result<bool> {
        let user = format!("--as={}", subject.user());
        let mut command = self.kubectl_command();
        let out = command.args(["auth", "can-i", "--all-namespaces", verb, resource, &user]).output()?;
        // kubectl exits with 1 both for "no" and for an error.
        match String::from_utf8_lossy(&out.stdout).split_whitespace().next() {
            Some("yes") => Ok(true),
            Some("no") => Ok(false),
            _ => Err(anyhow!("kubectl auth can-i: {}", String::from_utf8_lossy(&out.stderr).trim())),
        }
    }

    /// Waits until a subject has a right, or no longer has it, according to `wanted`.
    ///
    /// # Errors
    /// Returns an error if the right does not change in time.
    pub fn wait_right(&self, subject: Subject<'_>, verb: &str, resource: &str, wanted: bool) -> Result<()> {
        let what =
            format!("{} to be {} {verb} {resource}", subject.user(), if wanted { "allowed to" } else { "denied to" });
        wait::for_event(&what, || {
            ensure!(self.can(subject, verb, resource)? == wanted, "it is not so yet");
            Ok(())
        })
    }
}
