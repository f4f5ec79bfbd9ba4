//! Runs the examples of `docs/migrate.md` unchanged: edge-agent replaces strongSwan.

use anyhow::{Result, ensure};

use crate::edge_agent::Agent;
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, Site};
use crate::strongswan::{Authority, Charon, Credentials, KeyKind};
use crate::topology::Node;

/// The files of an example.
struct Example {
    before: &'static str,
    after: &'static str,
    peer: &'static str,
}

const PSK: Example = Example {
    before: include_str!("../../../../docs/migrate/psk/swanctl.conf"),
    after: include_str!("../../../../docs/migrate/psk/agent.toml"),
    peer: include_str!("../../../../docs/migrate/psk/peer.conf"),
};
const CERTIFICATES: Example = Example {
    before: include_str!("../../../../docs/migrate/certificates/swanctl.conf"),
    after: include_str!("../../../../docs/migrate/certificates/agent.toml"),
    peer: include_str!("../../../../docs/migrate/certificates/peer.conf"),
};

pub(super) fn psk(lab: &Lab) -> Result<()> {
    migrate(lab, &PSK, |_, _| Ok(()))
}

pub(super) fn certificates(lab: &Lab) -> Result<()> {
    let authority = Authority::new("lab")?;
    migrate(lab, &CERTIFICATES, |node, name| {
        let credentials = authority.issue(&format!("{name}.example"), KeyKind::P256)?;
        let Credentials { certificate_pem, key_pem, .. } = credentials;
        node.write(&format!("/etc/swanctl/x509/{name}.pem"), &certificate_pem)?;
        node.write(&format!("/etc/swanctl/private/{name}.pem"), &key_pem)?;
        node.write("/etc/swanctl/x509ca/lab.pem", &authority.certificate_pem)
    })
}

fn migrate(lab: &Lab, example: &Example, install: impl Fn(&Node, &str) -> Result<()>) -> Result<()> {
    let net = lab.build(&Site::plan(Initiator::Edge))?;
    let site = Site::new(net, Initiator::Edge)?;
    install(site.edge, "edge")?;
    install(site.moon, "moon")?;
    let charon = Charon::start_with_file(site.moon, "edge", example.peer)?;

    site.edge.write("/etc/swanctl/swanctl.conf", example.before)?;
    let program = lab.program("edge-agent")?;
    let arguments = ["import", "/etc/swanctl/swanctl.conf", "--into", "/etc/edge-cni"];
    site.edge.run(site.edge.command(&program).args(arguments))?;
    let config = site.edge.sh("cat /etc/edge-cni/agent.toml")?;
    // The first line and the comments contain the path of the file.
    let made = config.replace("/etc/swanctl/", "");
    ensure!(made.trim() == example.after.trim(), "import made\n{config}\nand docs/migrate.md has\n{}", example.after);
    lab.step("imported");

    let mut agent = Agent::start_with(lab, site.edge, &config, "trace")?;
    site.check_tunnel(lab, &mut agent, &charon)
}
