//! Uses a Lease to decide which replica leads. Every replica also renews its own Lease, which shows
//! that it is running.
//!
//! Clocks of different machines are not compared: a Lease counts as abandoned if it has not changed
//! for its duration, by the monotonic clock of the observer. As with any such scheme, two replicas
//! may both act as the leader for a moment. The API server still checks the versions of their
//! writes.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::random;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{ApiFailures, REQUEST, explain, is_absent};

/// Name of the leader's Lease.
pub const LEADER: &str = "edge-cni-controller";
/// Label of the Leases that show which replicas are running.
const REPLICA: (&str, &str) = ("edge-cni.io/kind", "replica");
/// Maximum number of vanished replicas that are remembered.
const MOST_GONE: usize = 100;
const WHAT: &str = "leases.coordination.k8s.io";

/// The Leases of one replica.
pub struct ReplicaLeases {
    api: Api<Lease>,
    replica: String,
    duration: Duration,
    api_failures: ApiFailures,
}

/// The last version of a Lease that this replica saw and the time when the version was first seen.
struct Seen {
    version: String,
    since: Instant,
}

impl ReplicaLeases {
    /// Makes the Leases of the replica with this name. A Lease that is not renewed for `duration`
    /// counts as abandoned.
    pub fn new(client: &Client, namespace: &str, replica: &str, duration: Duration, api_failures: ApiFailures) -> Self {
        Self { api: Api::namespaced(client.clone(), namespace), replica: replica.into(), duration, api_failures }
    }

    /// Returns the time between renewals, short enough that two renewals may fail.
    fn period(&self) -> Duration {
        self.duration / 5
    }

    /// Tries to lead until `stopping`, and reports in `leading` whether this replica leads.
    /// Releases the Lease at the end.
    pub async fn lead(&self, leading: watch::Sender<bool>, stopping: CancellationToken) {
        let mut seen: Option<Seen> = None;
        let mut renewed = Instant::now();
        loop {
            let begun = Instant::now();
            match tokio::time::timeout(REQUEST.min(self.duration / 3), self.take(&mut seen)).await {
                Ok(Ok(holds)) => {
                    if holds {
                        renewed = begun;
                    }
                    self.set(&leading, holds);
                    self.api_failures.clear(WHAT);
                }
                Ok(Err(error)) => self.api_failures.record(WHAT, explain(WHAT, &error)),
                Err(_) => self.api_failures.record(WHAT, format!("the API server does not answer about {WHAT}")),
            }
            // This replica stops leading well before another replica takes the Lease.
            if renewed.elapsed() >= self.duration * 2 / 3 {
                self.set(&leading, false);
            }
            let period = self.period();
            tokio::select! {
                () = stopping.cancelled() => break,
                () = tokio::time::sleep(period * 3 / 4 + random::jitter(period / 4)) => {}
            }
        }
        if leading.send_replace(false)
            && let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(1), self.release_leadership()).await
        {
            tracing::debug!(%error, "the lease was not given back; it ends by itself");
        }
    }

    fn set(&self, leading: &watch::Sender<bool>, holds: bool) {
        if leading.send_replace(holds) != holds {
            tracing::info!(identity = self.replica, "{}", if holds { "leads now" } else { "does not lead any more" });
        }
    }

    /// Takes or renews the Lease if the rules allow it. Returns whether this replica holds the
    /// Lease.
    async fn take(&self, seen: &mut Option<Seen>) -> kube::Result<bool> {
        let Some(lease) = self.api.get_opt(LEADER).await? else {
            return acquired(self.api.create(&PostParams::default(), &self.lease(LEADER, None, 0)).await);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if seen.as_ref().is_none_or(|seen| seen.version != version) {
            *seen = Some(Seen { version, since: Instant::now() });
        }
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
        let ours = holder.as_ref() == Some(&self.replica);
        let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = duration.map_or(self.duration, Duration::from_secs);
        let given_up = seen.as_ref().is_some_and(|seen| seen.since.elapsed() >= duration);
        if holder.is_some() && !ours && !given_up {
            return Ok(false);
        }
        let changes = spec.lease_transitions.unwrap_or(0) + i32::from(!ours);
        let mut mine = self.lease(LEADER, Some(&lease), changes);
        if ours && let Some(mine) = &mut mine.spec {
            mine.acquire_time = spec.acquire_time;
        }
        acquired(self.api.replace(LEADER, &PostParams::default(), &mine).await)
    }

    async fn release_leadership(&self) -> kube::Result<()> {
        let mut lease = self.api.get(LEADER).await?;
        match &mut lease.spec {
            Some(spec) if spec.holder_identity.as_ref() == Some(&self.replica) => spec.holder_identity = None,
            _ => return Ok(()),
        }
        self.api.replace(LEADER, &PostParams::default(), &lease).await.map(drop)
    }

    /// Builds a Lease of this replica, based on an existing one if given.
    fn lease(&self, name: &str, over: Option<&Lease>, transitions: i32) -> Lease {
        let now = MicroTime(Timestamp::now());
        let metadata = over.map_or_else(
            || ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            |lease| lease.metadata.clone(),
        );
        let spec = LeaseSpec {
            holder_identity: Some(self.replica.clone()),
            lease_duration_seconds: i32::try_from(self.duration.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        Lease { metadata, spec: Some(spec) }
    }

    /// Renews the Lease that shows that this replica is running, until `stopping`.
    pub async fn renew_own_lease(&self, stopping: CancellationToken) {
        let name = format!("edge-controller-{}", self.replica);
        loop {
            let shown = tokio::time::timeout(REQUEST, self.show(&name)).await;
            if let Ok(Err(error)) = shown {
                self.api_failures.record_minor("replica", explain(WHAT, &error));
            } else {
                self.api_failures.clear("replica");
            }
            tokio::select! {
                () = stopping.cancelled() => break,
                () = tokio::time::sleep(self.period()) => {}
            }
        }
        let params = DeleteParams::default();
        let gone = self.api.delete(&name, &params);
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(1), gone).await {
            tracing::debug!(%error, "the lease of this replica stays; it ends by itself");
        }
    }

    async fn show(&self, name: &str) -> kube::Result<()> {
        let there = self.api.get_opt(name).await?;
        let mut lease = self.lease(name, there.as_ref(), 0);
        let (key, value) = REPLICA;
        lease.metadata.labels.get_or_insert_default().insert(key.into(), value.into());
        match there {
            Some(_) => self.api.replace(name, &PostParams::default(), &lease).await.map(drop),
            None => self.api.create(&PostParams::default(), &lease).await.map(drop),
        }
    }
}

fn acquired(written: kube::Result<Lease>) -> kube::Result<bool> {
    match written {
        Ok(_) => Ok(true),
        // Another replica has taken the Lease first.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

/// The running replicas, as one replica observes them.
#[derive(Default)]
pub struct Replicas {
    seen: HashMap<String, Seen>,
    /// The vanished replicas with the time of their last renewal, the latest to vanish first.
    gone: VecDeque<(String, Seconds)>,
}

impl Replicas {
    /// Returns the identities of the replicas that renew their Leases, and removes the Leases of
    /// the other replicas.
    ///
    /// # Errors
    /// Returns an error if the API server cannot be reached.
    pub async fn look(&mut self, leases: &ReplicaLeases) -> Result<Vec<String>, String> {
        let (key, value) = REPLICA;
        let params = ListParams::default().labels(&format!("{key}={value}"));
        let all = tokio::time::timeout(REQUEST, leases.api.list(&params)).await;
        let all = all.map_err(|_| format!("the API server did not list {WHAT}"))?.map_err(|e| explain(WHAT, &e))?;
        let mut there = Vec::new();
        let mut names = Vec::new();
        for lease in all {
            let name = lease.metadata.name.unwrap_or_default();
            let version = lease.metadata.resource_version.unwrap_or_default();
            let seen = self.seen.get(&name).filter(|seen| seen.version == version).map(|seen| seen.since);
            let since = seen.unwrap_or_else(Instant::now);
            self.seen.insert(name.clone(), Seen { version, since });
            // Twice the duration, so that a replica that renews slowly does not count as gone.
            let spec = lease.spec.unwrap_or_default();
            let holder = spec.holder_identity.unwrap_or_default();
            let renewed = spec.renew_time.map(|at| at.0.as_second());
            if since.elapsed() < leases.duration * 2 {
                there.push(holder);
            } else {
                tracing::info!(replica = holder, "a replica is gone");
                if let Some(renewed) = renewed
                    && self.last_renewal(&holder).is_none()
                {
                    self.gone.truncate(MOST_GONE - 1);
                    self.gone.push_front((holder, renewed));
                }
                let params = DeleteParams::default();
                let gone = leases.api.delete(&name, &params);
                match tokio::time::timeout(REQUEST, gone).await {
                    Ok(Err(error)) if !is_absent(&error) => return Err(explain(WHAT, &error)),
                    _ => {}
                }
            }
            names.push(name);
        }
        self.seen.retain(|name, _| names.contains(name));
        Ok(there)
    }

    /// Returns when a vanished replica last renewed its Lease, by its own clock; `None` if the time
    /// is unknown.
    pub fn last_renewal(&self, replica: &str) -> Option<Seconds> {
        self.gone.iter().find(|(name, _)| name == replica).map(|(_, renewed)| *renewed)
    }
}

/// Returns a name for this run of this replica: the name of the pod or machine with a random
/// suffix.
pub fn replica_name() -> String {
    let host = std::env::var("HOSTNAME").ok().or_else(|| {
        let name = rustix::system::uname();
        name.nodename().to_str().ok().map(str::to_owned)
    });
    let host = host.unwrap_or_default().to_ascii_lowercase();
    let host: String = host.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let run = random::octets(4).map(|octets| edge_controller_domain::ca::hex(&octets)).unwrap_or_default();
    let name = format!("{}-{run}", host.trim_matches('-'));
    name.trim_matches('-').to_owned()
}
