//! The kernel's SA and policy databases.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_core::DefaultNla;
use netlink_packet_xfrm as nl;
use netlink_packet_xfrm::XfrmMessage;
use netlink_sys::protocols::NETLINK_XFRM;

use crate::error::{Error, Result};
use crate::message::{PolicyResponse, SaResponse, XfrmRequest};
use crate::netlink::{self, Netlink};
use crate::policy::{InstalledPolicy, Policy};
use crate::reconcile::{self, PolicyDiff};
use crate::reqid::Reqid;
use crate::sa::{self, Features, Sa, SaDirection, SaId, SaParams, SpiRange};
use crate::uapi;

mod algorithms;
mod policies;

use self::policies::PlanAge;

/// Maximum time that a packet is assumed to take from the lookup of its SA to its encryption. It
/// usually takes microseconds, unless the process loses the CPU in between, as happens in virtual
/// machines.
pub const IN_FLIGHT: Duration = Duration::from_millis(20);

const ADD_SA: &str = "install an SA (XFRM_MSG_NEWSA)";
const UPDATE_SA: &str = "update an SA (XFRM_MSG_UPDSA)";

/// Time for which a reservation of ours is turned into an SA without a look at who holds the SPI.
/// The kernel holds it for 30 s unless `net.core.xfrm_acq_expires` says otherwise. Even if it has
/// been lost before, no other program takes the same random SPI in so short a time.
const RESERVATION_KNOWN: Duration = Duration::from_secs(5);
/// Maximum number of reservations that are remembered. At the limit, those that are not known any
/// more are forgotten, and if there are none, all are.
const MAX_RESERVATIONS: usize = 1024;

/// A connection to XFRM in the network namespace of the thread that opened it. Each method makes
/// one or two quick system calls.
#[derive(Debug)]
pub struct Xfrm {
    pub(crate) netlink: Netlink,
    features: Features,
    /// The SPIs that were reserved lately, and when.
    reservations: HashMap<SaId, Instant>,
}

/// What became of the two SAs of a tunnel, and of its policies.
#[derive(Debug)]
pub struct TunnelOutcome {
    /// The inbound SA.
    pub inbound: Result<()>,
    /// The outbound SA.
    pub outbound: Result<()>,
    /// An error for each change of a policy that the kernel refused. The other changes are made.
    pub policies: Vec<Error>,
}

impl Xfrm {
    /// Opens a connection and detects this kernel's features. Needs `CAP_NET_ADMIN`.
    pub fn open() -> Result<Self> {
        let mut netlink = Netlink::open(NETLINK_XFRM)?;
        let features = Features {
            sa_direction: supports_attribute(&mut netlink, uapi::XFRMA_SA_DIR)?,
            policies_cache_sas: supports_attribute(&mut netlink, uapi::XFRMA_SA_PCPU)?,
        };
        Ok(Self { netlink, features, reservations: HashMap::new() })
    }

    /// Returns this kernel's features.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Treats the kernel as if it had only these features. Newer kernels accept the requests made
    /// for older ones.
    #[doc(hidden)]
    pub fn assume_features(&mut self, features: Features) {
        self.features = features;
    }

    /// Returns the port of the request socket. Notifications of our own changes carry this port
    /// ([`crate::events::EventSocket::ignore_port`]).
    pub fn port(&self) -> u32 {
        self.netlink.port()
    }

    /// Returns the number of requests that this connection has sent. Each request of a batch
    /// counts.
    pub fn requests_sent(&self) -> u32 {
        self.netlink.requests_sent()
    }

    /// Reserves an SPI for an SA that will come from `source` to `destination` (us). The kernel
    /// holds the reservation for `net.core.xfrm_acq_expires` (30 s); [`Xfrm::install_inbound`]
    /// turns it into an SA.
    pub fn allocate_spi(&mut self, source: IpAddr, destination: IpAddr, reqid: Reqid, range: SpiRange) -> Result<u32> {
        let mut attributes = Vec::new();
        if self.features.sa_direction {
            attributes.push(sa::direction_attribute(SaDirection::In));
        }
        let message = nl::state::AllocSpiMessage {
            spi_info: nl::UserSpiInfo {
                info: sa::base_info(source, destination, 0, reqid)?,
                min: range.min,
                max: range.max,
            },
            nlas: attributes,
        };
        let request = "reserve an SPI (XFRM_MSG_ALLOCSPI)";
        match self.netlink.get(request, XfrmRequest::from(XfrmMessage::AllocSpi(message)))? {
            SaResponse(Some(sa)) => {
                self.remember_reservation(sa.id);
                Ok(sa.id.spi)
            }
            SaResponse(None) => Err(netlink::Error::Malformed { request, reason: "it is not an SA".into() }.into()),
        }
    }

    /// Installs an SA. If an SA with the same destination and SPI exists, that SA stays, and
    /// [`Error::SaExists`] is returned.
    pub fn add_sa(&mut self, sa: &SaParams) -> Result<()> {
        let request = XfrmRequest::from(XfrmMessage::AddSa(sa.to_kernel(self.features)?));
        self.netlink.execute(ADD_SA, request, 0).map_err(|error| sa_error(error, sa.id(), Some(sa)))
    }

    /// Turns a reservation into an SA, or changes the UDP ports or limits of one of our SAs. To
    /// change a key or an address, install a new SA instead: the kernel ignores a changed key, and
    /// an address is part of an SA's identity.
    pub fn update_sa(&mut self, sa: &SaParams) -> Result<()> {
        self.require_ours(sa.id())?;
        self.update_unread(sa)
    }

    /// Updates an SA that is known to be ours.
    fn update_unread(&mut self, sa: &SaParams) -> Result<()> {
        let request = XfrmRequest::from(XfrmMessage::UpdateSa(sa.to_kernel(self.features)?));
        self.netlink.execute(UPDATE_SA, request, 0).map_err(|error| sa_error(error, sa.id(), Some(sa)))
    }

    /// Installs an inbound SA in place of its reservation, or without one if the reservation has
    /// expired.
    pub fn install_inbound(&mut self, sa: &SaParams) -> Result<()> {
        if !self.takes_reservation(sa.id())? {
            return self.add_sa(sa);
        }
        match self.update_unread(sa) {
            // The reservation has expired in the meantime.
            Err(Error::NoSuchSa { .. }) => self.add_sa(sa),
            outcome => outcome,
        }
    }

    /// Installs the SAs of a new tunnel, the inbound one as [`Xfrm::install_inbound`] does, and
    /// carries out a plan for policies as [`Xfrm::apply`] does. All requests go out in one
    /// datagram, in this order, so the kernel carries out the later ones even if it refuses the
    /// earlier ones. `just_read` says that the plan is for policies that [`Self::holders`] has just
    /// returned.
    ///
    /// # Errors
    /// If it is not known what the kernel has done.
    pub fn install_tunnel(
        &mut self,
        inbound: &SaParams,
        outbound: &SaParams,
        plan: &PolicyDiff,
        just_read: bool,
    ) -> Result<TunnelOutcome> {
        let reserved = self.takes_reservation(inbound.id());
        let add = |sa: &SaParams| Ok::<_, Error>(XfrmRequest::from(XfrmMessage::AddSa(sa.to_kernel(self.features)?)));
        let first: Option<XfrmRequest> = match &reserved {
            Ok(true) => Some(XfrmMessage::UpdateSa(inbound.to_kernel(self.features)?).into()),
            Ok(false) => Some(add(inbound)?),
            Err(_) => None,
        };
        let requests: Vec<XfrmRequest> = first.into_iter().chain([add(outbound)?]).collect();
        let age = if just_read { PlanAge::JustRead } else { PlanAge::Older };
        let (outcomes, mut errors) = policies::apply(&mut self.netlink, requests, plan, age)?;
        errors.extend(occupied(plan));
        let mut outcomes = outcomes.into_iter();
        let mut outcome_of = |request, sa: &SaParams| match outcomes.next() {
            Some(Err(refusal)) => Err(sa_error(netlink::Error::Rejected { request, refusal }, sa.id(), Some(sa))),
            _ => Ok(()),
        };
        let installed = match reserved {
            Ok(true) => match outcome_of(UPDATE_SA, inbound) {
                // The reservation has expired.
                Err(Error::NoSuchSa { .. }) => Err(None),
                outcome => outcome.map_err(Some),
            },
            Ok(false) => outcome_of(ADD_SA, inbound).map_err(Some),
            Err(error) => Err(Some(error)),
        };
        let outbound = outcome_of(ADD_SA, outbound);
        let inbound = match installed {
            Err(None) => self.add_sa(inbound),
            Err(Some(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        Ok(TunnelOutcome { inbound, outbound, policies: errors })
    }

    /// Returns whether the SPI of an inbound SA is reserved for us, so that UPDSA installs the SA.
    fn takes_reservation(&mut self, id: SaId) -> Result<bool> {
        let known = self.reservations.remove(&id).is_some_and(|since| since.elapsed() < RESERVATION_KNOWN);
        if known {
            return Ok(true);
        }
        match self.require_ours(id) {
            Ok(()) => Ok(true),
            Err(Error::NoSuchSa { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn remember_reservation(&mut self, id: SaId) {
        let now = Instant::now();
        if self.reservations.len() >= MAX_RESERVATIONS {
            self.reservations.retain(|_, since| now.saturating_duration_since(*since) < RESERVATION_KNOWN);
        }
        if self.reservations.len() >= MAX_RESERVATIONS {
            self.reservations.clear();
        }
        self.reservations.insert(id, now);
    }

    /// Deletes one of our SAs. Returns [`Error::NoSuchSa`] if there is no such SA, and
    /// [`Error::SaOfOther`] if the SA is not ours.
    pub fn delete_sa(&mut self, id: SaId) -> Result<()> {
        self.require_ours(id)?;
        self.netlink
            .execute("delete an SA (XFRM_MSG_DELSA)", delete_request(id), 0)
            .map_err(|error| sa_error(error, id, None))
    }

    /// Reads one SA with its counters. Returns `None` if there is no such SA.
    pub fn sa(&mut self, id: SaId) -> Result<Option<Sa>> {
        let message = XfrmMessage::GetSa(nl::state::DelGetMessage { user_sa_id: id.to_kernel(), nlas: Vec::new() });
        match self.netlink.get("read an SA (XFRM_MSG_GETSA)", XfrmRequest::from(message)) {
            Ok(SaResponse(sa)) => Ok(sa.map(|sa| *sa)),
            Err(error) if error.errno() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads all SAs, including other programs' SAs ([`Sa::is_ours`]) and larval SAs
    /// ([`Sa::is_larval`]).
    pub fn sas(&mut self) -> Result<Vec<Sa>> {
        let message = XfrmMessage::GetDumpSa(nl::state::GetDumpMessage { nlas: Vec::new() });
        let keep = |SaResponse(sa)| sa.map(|sa| *sa);
        Ok(self.netlink.dump_with("read all SAs (XFRM_MSG_GETSA)", XfrmRequest::from(message), keep)?)
    }

    /// Replaces the old outbound SA by the new one: [`Xfrm::begin_switch`], a pause of
    /// [`IN_FLIGHT`], then the deletion of the old SA. Returns `false` if the old SA was already
    /// gone; the new one is installed in that case too. If the kernel refuses the new SA, the old
    /// one stays.
    pub fn switch_outbound(&mut self, new: &SaParams, old: SaId) -> Result<bool> {
        if !self.begin_switch(new, old)? {
            return Ok(false);
        }
        #[expect(clippy::disallowed_methods, reason = "packets that are under way leave no event")]
        std::thread::sleep(IN_FLIGHT);
        match self.delete_sa(old) {
            Ok(()) => Ok(true),
            Err(Error::NoSuchSa { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Installs the new outbound SA in addition to the old one. All later packets use the new SA,
    /// since the kernel prefers the SA that was installed later. Returns `false` if the old SA is
    /// gone.
    ///
    /// Delete the old SA soon: the kernel orders two SAs of one reqid by the second of the wall
    /// clock at which they were installed and, within one second, by their order. Do not delete it
    /// before [`IN_FLIGHT`] has passed: a packet that has just looked up an SA is lost if the SA is
    /// deleted before the packet is encrypted. (In the lab, four processes that sent without pause
    /// on two CPUs lost 22 packets in 200 switches without that pause, and none with it.)
    ///
    /// On kernels whose policies cache SAs (6.13 and later), this reads all policies to find those
    /// of the reqid. [`Xfrm::begin_switch_under`] does not need to read them.
    pub fn begin_switch(&mut self, new: &SaParams, old: SaId) -> Result<bool> {
        let old_is_there = self.add_beside(new, old)?;
        if old_is_there && self.features.policies_cache_sas {
            let installed = self.policies();
            self.renew_if_read(new.reqid, installed);
        }
        Ok(old_is_there)
    }

    /// Does the same as [`Xfrm::begin_switch`], but takes the `out` policies of the reqid from the
    /// caller. Policies that the kernel does not have are skipped.
    pub fn begin_switch_under(&mut self, new: &SaParams, old: SaId, policies: &[Policy]) -> Result<bool> {
        let old_is_there = self.add_beside(new, old)?;
        if old_is_there && self.features.policies_cache_sas {
            let installed = self.holders(policies).map(|holders| holders.into_iter().flatten().collect());
            self.renew_if_read(new.reqid, installed);
        }
        Ok(old_is_there)
    }

    /// Renews the `out` policies of a reqid after its new SA was installed. Errors are ignored: the
    /// new SA is installed nevertheless, and packets use the old one until it is deleted.
    fn renew_if_read(&mut self, reqid: Reqid, installed: Result<Vec<InstalledPolicy>>) {
        let _ = installed.and_then(|installed| policies::renew_outbound(&mut self.netlink, reqid, &installed));
    }

    /// Sends the packets that the kernel holds for these `out` policies of a reqid. Call this when
    /// the SA exists. Replaces each policy by an identical one, which makes the kernel look up the
    /// SA again (`xfrm_policy_requeue`). Policies that the kernel does not have are skipped.
    pub fn send_held_packets(&mut self, reqid: Reqid, policies: &[Policy]) -> Result<()> {
        let installed: Vec<InstalledPolicy> = self.holders(policies)?.into_iter().flatten().collect();
        policies::renew_outbound(&mut self.netlink, reqid, &installed)
    }

    /// Installs a new outbound SA. Returns `false` if the old SA is gone.
    fn add_beside(&mut self, new: &SaParams, old: SaId) -> Result<bool> {
        let old_is_there = match self.require_ours(old) {
            Ok(()) => true,
            Err(Error::NoSuchSa { .. }) => false,
            Err(error) => return Err(error),
        };
        self.add_sa(new)?;
        Ok(old_is_there)
    }

    fn require_ours(&mut self, id: SaId) -> Result<()> {
        match self.sa(id)? {
            None => Err(Error::NoSuchSa { id }),
            Some(sa) if sa.is_ours() => Ok(()),
            Some(sa) => Err(Error::SaOfOther { id, reqid: sa.reqid }),
        }
    }

    /// Reads all policies, including other programs' policies ([`InstalledPolicy::is_ours`]), but
    /// not per-socket policies.
    pub fn policies(&mut self) -> Result<Vec<InstalledPolicy>> {
        policies::dump(&mut self.netlink)
    }

    /// Installs a policy. If we have a different policy with this selector, the kernel replaces it
    /// atomically. Returns `true` if something was changed. Returns [`Error::OccupiedByOther`] if
    /// another program holds the selector.
    pub fn install_policy(&mut self, policy: &Policy) -> Result<bool> {
        policies::install(&mut self.netlink, policy)
    }

    /// Reads the installed policy with the same direction and selector as `policy`. Another program
    /// may own it.
    pub fn policy(&mut self, policy: &Policy) -> Result<Option<InstalledPolicy>> {
        Ok(self.holders(std::slice::from_ref(policy))?.pop().flatten())
    }

    /// Reads the installed policies that have the directions and selectors of `policies`, in the
    /// same order. They may belong to any program.
    pub fn holders(&mut self, policies: &[Policy]) -> Result<Vec<Option<InstalledPolicy>>> {
        policies::holders(&mut self.netlink, policies)
    }

    /// Makes our policies in the kernel exactly the `desired` ones, with one dump and a few
    /// batches. Returns the plan with the differences that were found, and an error for each change
    /// that failed. Most failures are due to other programs' policies.
    pub fn reconcile_policies(&mut self, desired: &[Policy]) -> Result<(PolicyDiff, Vec<Error>)> {
        let plan = reconcile::policies(desired, &self.policies()?);
        let errors = self.apply(&plan)?;
        Ok((plan, errors))
    }

    /// Carries out a plan of [`reconcile::policies`]. Returns an error for each change that the
    /// kernel refused. The other changes are made.
    pub fn apply(&mut self, plan: &PolicyDiff) -> Result<Vec<Error>> {
        self.apply_plan(plan, PlanAge::Older)
    }

    /// Carries out a plan for the policies that [`Self::holders`] has just returned: they are not
    /// read again before they are replaced or deleted, which is half of the requests where one
    /// peer's policies change. Otherwise does what [`Self::apply`] does.
    pub fn apply_just_read(&mut self, plan: &PolicyDiff) -> Result<Vec<Error>> {
        self.apply_plan(plan, PlanAge::JustRead)
    }

    fn apply_plan(&mut self, plan: &PolicyDiff, age: PlanAge) -> Result<Vec<Error>> {
        let (_, mut errors) = policies::apply(&mut self.netlink, vec![], plan, age)?;
        errors.extend(occupied(plan));
        Ok(errors)
    }

    /// Deletes one of our policies by its index. Returns `false` if the policy is already gone.
    /// Returns [`Error::PolicyOfOther`] if the index now belongs to another program's policy.
    pub fn delete_policy(&mut self, policy: &InstalledPolicy) -> Result<bool> {
        policies::delete(&mut self.netlink, policy)
    }
}

/// Returns an error for each policy of a plan whose selector another program holds.
fn occupied(plan: &PolicyDiff) -> impl Iterator<Item = Error> {
    plan.occupied
        .iter()
        .map(|(wanted, theirs)| Error::OccupiedByOther { wanted: Box::new(*wanted), theirs: Box::new(theirs.clone()) })
}

fn delete_request(id: SaId) -> XfrmRequest {
    XfrmMessage::DeleteSa(nl::state::DelGetMessage { user_sa_id: id.to_kernel(), nlas: Vec::new() }).into()
}

/// Translates the error numbers of SA requests into errors of this crate.
fn sa_error(error: netlink::Error, id: SaId, params: Option<&SaParams>) -> Error {
    match (error.errno(), params) {
        (Some(libc::EEXIST), _) => Error::SaExists { id },
        (Some(libc::ESRCH), _) => Error::NoSuchSa { id },
        // ENOSYS: no such algorithm; EPROTONOSUPPORT: no ESP.
        (Some(libc::ENOSYS | libc::EPROTONOSUPPORT | libc::ENOENT), Some(sa)) => {
            Error::Unsupported { algorithm: sa.key.algorithm().kernel_name(), reason: error.to_string() }
        }
        _ => error.into(),
    }
}

/// Returns whether the kernel supports an attribute. Requests an SA that does not exist, with an
/// invalid value of the attribute: one byte that is neither a direction nor a whole CPU number. A
/// kernel that supports the attribute refuses the value. An older kernel skips the attribute and
/// finds no SA.
fn supports_attribute(netlink: &mut Netlink, kind: u16) -> Result<bool> {
    let id = SaId { destination: IpAddr::from([127, 0, 0, 1]), spi: 1 };
    let attribute = nl::XfrmAttrs::Other(DefaultNla::new(kind, vec![u8::MAX]));
    let message = XfrmMessage::GetSa(nl::state::DelGetMessage { user_sa_id: id.to_kernel(), nlas: vec![attribute] });
    // The kernel never finds such an SA, so the type of the answer does not matter.
    match netlink.get::<_, PolicyResponse>("find out what XFRM can do (XFRM_MSG_GETSA)", XfrmRequest::from(message)) {
        Err(error) if matches!(error.errno(), Some(libc::ERANGE | libc::EINVAL)) => Ok(true),
        Err(error) if error.errno() == Some(libc::ESRCH) => Ok(false),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(false),
    }
}
