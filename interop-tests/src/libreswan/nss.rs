//! Fills the database of NSS, from which pluto takes keys and certificates.

use anyhow::Result;

use crate::strongswan::Credentials;
use crate::topology::Node;

/// The nickname of pluto's own certificate.
pub(super) const NICKNAME: &str = "moon";

/// Makes an empty database without a password.
pub(super) fn make_database(node: &Node, directory: &str) -> Result<()> {
    node.sh(&format!("mkdir -p {directory} && certutil -N -d sql:{directory} --empty-password")).map(drop)
}

/// Imports a certificate with its key, under [`NICKNAME`], and the authority that pluto trusts.
pub(super) fn import(node: &Node, directory: &str, credentials: &Credentials, authority: &str) -> Result<()> {
    for (name, text) in [
        ("own.pem", &credentials.certificate_pem),
        ("own.key", &credentials.key_pem),
        ("ca.pem", &authority.to_owned()),
    ] {
        node.write(&format!("{directory}/{name}"), text)?;
    }
    // pk12util reads no file without a password.
    node.sh(&format!(
        "cd {directory} && openssl pkcs12 -export -in own.pem -inkey own.key -name {NICKNAME} -passout pass:lab \
         -out own.p12 && pk12util -i own.p12 -d sql:{directory} -W lab && \
         certutil -A -n authority -t CT,, -d sql:{directory} -a -i ca.pem"
    ))
    .map(drop)
}
