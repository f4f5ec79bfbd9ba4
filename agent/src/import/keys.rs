//! Lists how the import treats each key of `swanctl.conf(5)` that it does not copy unchanged.

use super::swanctl_file::Section;

/// What the import does with a key.
#[derive(Clone, Copy)]
pub(super) enum Meaning {
    /// The key is carried over by `connection`.
    Carried,
    /// The agent does not need the key. The tunnel stays the same.
    NoEffect,
    /// The tunnel works, but differs in the way that the text describes.
    Note(&'static str),
    /// The connection is not imported, because the tunnel would be different. The text names the
    /// unsupported feature.
    Refused(&'static str),
}

use Meaning::{Carried, NoEffect, Note, Refused};

/// A key, the values that match the agent's behaviour, and the meaning of all other values.
type Row = (&'static str, &'static [&'static str], Meaning);

pub(super) const CONNECTION: &[Row] = &[
    ("version", &[], Carried),
    ("local_addrs", &[], Carried),
    ("remote_addrs", &[], Carried),
    ("remote_port", &[], Carried),
    ("proposals", &[], Carried),
    ("encap", &[], Carried),
    ("local_port", &["500", "4500"], Note("the top-level keys port and nat_port hold for all peers")),
    ("aggressive", &[], NoEffect),
    ("pull", &[], NoEffect),
    ("dpd_timeout", &[], NoEffect),
    ("send_cert", &[], NoEffect),
    ("send_certreq", &[], NoEffect),
    ("ocsp", &[], NoEffect),
    ("dscp", &["000000"], Note("IKE packets are sent with DSCP 0")),
    ("mobike", &[], Carried),
    ("dpd_delay", &["0"], Note("[timing] liveness and idle_liveness hold for all peers")),
    ("fragmentation", &["yes", "accept"], Note("messages are fragmented if the peer supports it (RFC 7383)")),
    ("keyingtries", &["0"], Note("the agent tries for ever")),
    ("unique", &["no", "replace", "never"], Note("a new IKE SA of the same peer replaces the old one")),
    ("reauth_time", &["0"], Note("[timing] authentication_lifetime holds for all peers")),
    ("rekey_time", &[], Note("[timing] ike_lifetime holds for all peers")),
    ("over_time", &[], Note("an IKE SA ends after one and a half of its lifetime")),
    ("rand_time", &[], NoEffect),
    ("childless", &[], Carried),
    ("ppk_id", &[], Note("post-quantum pre-shared keys (RFC 8784) are not supported")),
    ("ppk_required", &["no"], Refused("post-quantum pre-shared keys (RFC 8784)")),
    (
        "vips",
        &[],
        Refused(
            "an address that the peer assigns (configuration payload); write the peer by hand, with request_address = true and without local_subnets",
        ),
    ),
    (
        "pools",
        &[],
        Refused(
            "addresses that we assign to the peer (configuration payload); write the peer by hand, with address_pool instead of remote_subnets, one peer for each client",
        ),
    ),
    ("if_id_in", &["0"], Refused("XFRM interfaces")),
    ("if_id_out", &["0"], Refused("XFRM interfaces")),
    ("mediation", &["no"], Refused("mediation")),
    ("mediated_by", &[], Refused("mediation")),
    ("mediation_peer", &[], Refused("mediation")),
];

pub(super) const LOCAL: &[Row] = &[
    ("auth", &[], Carried),
    ("id", &[], Carried),
    ("certs", &[], Carried),
    ("round", &["0"], Refused("several rounds of authentication (RFC 4739)")),
    ("pubkeys", &[], Refused("raw public keys")),
    ("eap_id", &[], NoEffect),
    ("aaa_id", &[], NoEffect),
    ("xauth_id", &[], NoEffect),
];

pub(super) const REMOTE: &[Row] = &[
    ("auth", &[], Carried),
    ("id", &[], Carried),
    ("certs", &[], Carried),
    ("cacerts", &[], Carried),
    ("round", &["0"], Refused("several rounds of authentication (RFC 4739)")),
    ("pubkeys", &[], Refused("raw public keys")),
    ("groups", &[], Refused("peers that are told apart by their groups")),
    ("cert_policy", &[], Refused("certificate policies that the peer must have")),
    ("ca_id", &[], Refused("an authority that is given by its name; name its file in cacerts")),
    ("revocation", &[], Carried),
    ("eap_id", &[], NoEffect),
];

pub(super) const CHILD: &[Row] = &[
    ("local_ts", &[], Carried),
    ("remote_ts", &[], Carried),
    ("esp_proposals", &[], Carried),
    ("mode", &[], Carried),
    ("start_action", &[], Carried),
    (
        "dpd_action",
        &["none", "clear", "start", "restart"],
        Note("a tunnel that is lost is set up again as `start` says"),
    ),
    ("close_action", &["none", "start"], Note("a tunnel that the peer closes is set up again as `start` says")),
    ("ah_proposals", &[], Refused("AH")),
    ("sha256_96", &["no"], Refused("SHA-256 truncated to 96 bits")),
    ("rekey_time", &[], Note("[timing] child_lifetime holds for all peers")),
    ("life_time", &[], Note("a CHILD_SA ends after one and a half of its lifetime")),
    ("rand_time", &[], NoEffect),
    ("rekey_bytes", &["0"], Note("CHILD_SAs are rekeyed by time alone")),
    ("life_bytes", &["0"], Note("CHILD_SAs are rekeyed by time alone")),
    ("rand_bytes", &[], NoEffect),
    ("rekey_packets", &["0"], Note("CHILD_SAs are rekeyed by time alone")),
    ("life_packets", &["0"], Note("CHILD_SAs are rekeyed by time alone")),
    ("rand_packets", &[], NoEffect),
    ("updown", &[], Note("the script is not run")),
    ("hostaccess", &[], NoEffect),
    ("ipcomp", &["no"], Note("packets are not compressed")),
    ("inactivity", &["0"], Note("a tunnel without traffic stays")),
    ("reqid", &["0"], Note("the agent chooses the reqid")),
    ("priority", &["0"], Note("the agent chooses the priority of the policies")),
    ("interface", &[], Note("the policies hold on all interfaces")),
    ("policies", &["yes"], Refused("SAs without policies")),
    ("policies_fwd_out", &[], NoEffect),
    ("mark_in", &["0", "0/0"], Refused("marks")),
    ("mark_out", &["0", "0/0"], Refused("marks")),
    ("mark_in_sa", &["no"], Refused("marks")),
    ("set_mark_in", &["0", "0/0"], Refused("marks")),
    ("set_mark_out", &["0", "0/0"], Refused("marks")),
    ("if_id_in", &["0"], Refused("XFRM interfaces")),
    ("if_id_out", &["0"], Refused("XFRM interfaces")),
    ("label", &[], Refused("security labels")),
    ("label_mode", &[], NoEffect),
    ("tfc_padding", &["0"], Note("packets are not padded")),
    ("replay_window", &[], Note("the agent chooses the replay window")),
    ("per_cpu_sas", &["no"], Note("one SA serves all CPUs")),
    ("hw_offload", &["no", "auto"], Note("the SAs are not offloaded")),
    ("copy_df", &["yes"], Note("the DF bit is copied")),
    ("copy_ecn", &["yes"], Note("ECN is copied")),
    ("copy_dscp", &["out"], Note("DSCP is copied to the outer header")),
];

/// The result of checking a connection: differences in the imported tunnel, and reasons why it
/// cannot be imported.
#[derive(Default)]
pub(super) struct ImportReport {
    /// The reasons why the connection cannot be imported.
    pub(super) problems: Vec<String>,
    /// The differences between the imported tunnel and strongSwan's.
    pub(super) notes: Vec<String>,
}

impl ImportReport {
    /// Checks the keys of a section against a table.
    pub(super) fn keys(&mut self, section: &Section, table: &[Row]) {
        for (key, value) in section.keys() {
            let text = normal(&value.text);
            let at = &value.at;
            match table.iter().find(|(name, ..)| *name == key) {
                None => self.notes.push(format!("{at}: {key} is not a key that swanctl.conf(5) has here")),
                Some((_, same, _)) if same.contains(&text) => {}
                Some((_, _, Carried | NoEffect)) => {}
                Some((_, _, Note(what))) => self.notes.push(format!("{at}: {key}: {what}")),
                Some((_, _, Refused(what))) => self.problems.push(format!("{at}: {key}: not supported: {what}")),
            }
        }
    }
}

/// Normalises the spelling of a boolean value. Other values stay the same.
pub(super) fn normal(text: &str) -> &str {
    match text {
        "true" | "enabled" | "yes" => "yes",
        "false" | "disabled" | "no" => "no",
        other => other,
    }
}
