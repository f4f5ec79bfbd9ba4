//! The arguments of the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use edge_types::{NodeName, Role};

use crate::config::{ADMIN_SOCKET, ConfigError, ConfigSources};

/// Hands out segments and certificates to edge nodes, and tells each whom it may talk to.
///
/// Run the server on the cloud's side, make a join token for each new node, and put nodes into
/// communities by label:
///
///   edge-controller run --config /etc/edge-controller/controller.toml
///   edge-controller token create --role hub --node cloud-1
///   edge-controller token create --role edge --ttl 1h
///   edge-controller node label edge-a1 fabedge/edge-community=alpha
///
/// Exit codes: 0 done, 1 refused, 2 wrong usage, 3 the server is not running or could not start;
/// 128 and a signal's number: a server got a second signal before it had ended.
#[derive(Parser)]
#[command(name = "edge-controller", version, max_term_width = 100, verbatim_doc_comment)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) server: ServerArguments,
    /// Print JSON, for scripts, instead of tables.
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Where the running server is.
#[derive(clap::Args)]
pub(super) struct ServerArguments {
    /// Admin socket of the running server. (Default: admin_socket of --config, else
    /// /run/edge-controller/admin.sock)
    #[arg(long, global = true, env = "EDGE_CONTROLLER_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The server's configuration file, from which the operator's commands take the admin socket.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ServerArguments {
    /// Returns the admin socket of the running server: the one that an argument names, the one in
    /// the configuration file, or the default.
    ///
    /// # Errors
    /// Returns an error if the configuration cannot be used.
    pub(super) fn admin_socket(&self) -> Result<PathBuf, ConfigError> {
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(file)) => Ok(ConfigSources::file(file.clone()).load()?.config.admin_socket),
            (None, None) => Ok(ADMIN_SOCKET.into()),
        }
    }
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Run the server in the foreground, until SIGTERM or Ctrl-C; a second one ends it at once.
    /// SIGHUP: see reload. Logs go to standard error; RUST_LOG sets their level.
    Run {
        #[command(flatten)]
        sources: ConfigSources,
        /// Log as JSON, one object a line.
        #[arg(long)]
        log_json: bool,
    },
    /// Show the configuration that run would use, and where each value comes from.
    Config {
        #[command(flatten)]
        sources: ConfigSources,
    },
    /// Let the running server read its configuration again, as SIGHUP does.
    ///
    /// cluster_ranges, reserved, min_per_node, max_per_node, quarantine_seconds,
    /// restore_grace_seconds, networks and hub take effect. Any other change is refused, and so is
    /// a range that is left out while nodes hold segments in it. A refused reload changes nothing.
    Reload,
    /// Print the definitions of the custom resources, for kubectl apply; they are in deploy/crds as
    /// well.
    Crds,
    /// Write all that the running server keeps into one file, as it is at one moment.
    ///
    /// The file holds the authority's private key: it is made for its owner alone (mode 0600) and
    /// must stay as secret as that. It is checked before it takes its place. "-" writes to standard
    /// output, for example into a program that encrypts it.
    Backup {
        #[command(flatten)]
        target: ArchiveTarget,
    },
    /// Put a backup in place of the state directory, while no server runs. Nodes go on with the
    /// certificates that they have.
    ///
    /// Segments that were granted after the backup are not in it: restore the latest.
    Restore {
        /// A file that backup or export wrote.
        file: PathBuf,
        #[command(flatten)]
        sources: ConfigSources,
        /// The directory may have content; it is moved aside and kept.
        #[arg(long)]
        replace: bool,
    },
    /// Write all that the configured store holds into one file, as backup does. If the store is in
    /// the state directory, no server may run meanwhile. If it is at the Kubernetes API server, the
    /// replicas may run: so a CronJob can do it.
    Export {
        #[command(flatten)]
        target: ArchiveTarget,
        #[command(flatten)]
        sources: ConfigSources,
    },
    /// Bring a file of backup or export into the configured store, which must be empty. This moves
    /// the rows from one kind of store to another.
    ///
    /// An import that was interrupted goes on when the same file is imported again.
    Import {
        /// A file that backup or export wrote.
        file: PathBuf,
        #[command(flatten)]
        sources: ConfigSources,
    },
    /// Say that the configured store is an old copy which was brought back by other means than
    /// restore and import: a snapshot of a disk or of etcd.
    ///
    /// Segments that were granted after the copy was made are not in it. With the next start nodes
    /// may claim those that they use, and nothing is granted before they have reported them. If the
    /// store is in the state directory, no server may run meanwhile. If it is at the Kubernetes API
    /// server, restart all replicas afterwards.
    Restored {
        #[command(flatten)]
        sources: ConfigSources,
    },
    /// Show nodes, tunnels, segments, communities and what is wrong, at one glance.
    ///
    /// The command asks one replica, which reads what the others know of nodes from the API server.
    /// A node has a problem if it is not connected, has fewer tunnels than it should, reports an
    /// obstacle, refuses its view, or has a certificate that should have been renewed.
    Status(StatusArguments),
    /// Print a link to the page that shows the same in a browser, live and read-only.
    ///
    /// The server must serve it: `[page] listen` in its configuration. The link contains the
    /// credential of a session, which ends after twelve hours or when the server stops. There are
    /// at most 16 sessions: the next one ends the oldest. Of several replicas only the one that
    /// this command asks knows the session.
    Page {
        /// End all sessions instead.
        #[arg(long)]
        end: bool,
    },
    /// Write what helps to find a fault into one file, without any secret: the overview, segments,
    /// communities, tokens without their secrets, certificates of the authorities, the
    /// configuration, health and metrics.
    ///
    /// The file has the names, addresses and labels of nodes. If the server does not run, it says
    /// so in the file, and the configuration is there.
    Gather {
        /// File that is written (JSON, mode 0600).
        file: PathBuf,
        #[command(flatten)]
        sources: ConfigSources,
    },
    /// Print what FabEdge's resources become here: commands, annotations of Nodes, and values for
    /// the configuration. What cannot be carried over is named on standard error.
    ///
    ///   kubectl get communities.fabedge.io,clusters.fabedge.io,nodes -o json > fabedge.json
    ///   edge-controller import-fabedge fabedge.json --cluster beijing
    #[command(verbatim_doc_comment)]
    ImportFabedge {
        /// What kubectl printed.
        file: PathBuf,
        /// FabEdge's name of this cluster, if the file has nodes of several.
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
        /// List the communities at the running server.
        #[arg(long)]
        apply: bool,
    },
    /// Nodes: list, show, label, deregister.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Segments: who holds which.
    #[command(subcommand)]
    Segment(SegmentCommand),
    /// Communities: who is a member of which.
    #[command(subcommand)]
    Community(CommunityCommand),
    /// Join tokens: create, list, delete.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Certificate authorities: list, roll over to a new one, retire an old one.
    #[command(subcommand)]
    Ca(CaCommand),
}

/// Where an archive is written to.
#[derive(clap::Args)]
pub(super) struct ArchiveTarget {
    /// File that is written; "-" is standard output. In a directory the file is called
    /// edge-controller-TIME.archive.
    pub(super) file: PathBuf,
    /// In a directory: remove the oldest files of such names, so that N are left.
    #[arg(long, value_name = "N")]
    pub(super) keep: Option<std::num::NonZeroU32>,
}

/// Which nodes `status` shows. All filters must match.
#[derive(clap::Args)]
pub(super) struct StatusArguments {
    /// Show only these nodes, without segments and communities.
    #[arg(value_name = "NODE")]
    pub(super) nodes: Vec<NodeName>,
    /// Show only nodes of this role: edge, hub or cloud.
    #[arg(long)]
    pub(super) role: Option<Role>,
    /// Show only members of this community.
    #[arg(long, value_name = "NAME")]
    pub(super) community: Option<edge_types::Community>,
    /// Show only nodes that have a problem.
    #[arg(long)]
    pub(super) problems: bool,
    /// Show it again every two seconds. With --json each is one line.
    #[arg(long)]
    pub(super) watch: bool,
}

impl StatusArguments {
    /// Returns whether no filter is set.
    pub(super) fn shows_all(&self) -> bool {
        self.nodes.is_empty() && self.role.is_none() && self.community.is_none() && !self.problems
    }
}

#[derive(Subcommand)]
pub(super) enum NodeCommand {
    /// List all registered nodes.
    #[command(visible_alias = "ls")]
    List,
    /// Show one node in full.
    Show {
        /// Name of the node, as node list prints it.
        node: NodeName,
    },
    /// Set labels (key=value) or remove them (key-).
    ///
    /// The labels fabedge/edge-community and bocloud.com/edge-community put a node into
    /// communities; '_' separates several:
    ///
    ///   edge-controller node label edge-a1 fabedge/edge-community=alpha_beta
    ///   edge-controller node label edge-a1 fabedge/edge-community-
    ///
    /// Those of a node with a Node object in Kubernetes are set there, and can only be removed
    /// here.
    #[command(verbatim_doc_comment)]
    Label {
        /// Name of the node, as node list prints it.
        node: NodeName,
        /// key=value to set, key- to remove.
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        labels: Vec<String>,
    },
    /// Take a node out of the network. Its certificate is refused at once, and its segments are
    /// granted to other nodes after the quarantine.
    ///
    /// With --confirm: all nodes that lost their Node objects in Kubernetes, so many at once that
    /// the controller waits for the operator. node list names them.
    Deregister {
        /// Name of the node, as node list prints it.
        #[arg(required_unless_present = "confirm", conflicts_with = "confirm")]
        node: Option<NodeName>,
        /// Deregister all nodes that wait for the operator.
        #[arg(long)]
        confirm: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum SegmentCommand {
    /// List all segments that were ever granted (held, in quarantine, or free again), each with its
    /// last holder before. With --json: with all earlier holders.
    #[command(visible_alias = "ls")]
    List,
}

#[derive(Subcommand)]
pub(super) enum CommunityCommand {
    /// List all communities with their members.
    #[command(visible_alias = "ls")]
    List,
    /// List the members of a community, in addition to those that have its label. They need not be
    /// registered yet.
    ///
    /// The list replaces the former one:
    ///
    ///   edge-controller community set alpha edge-a1 edge-b1
    #[command(verbatim_doc_comment)]
    Set {
        /// Name of the community.
        community: edge_types::Community,
        /// Names of all members.
        #[arg(required = true, value_name = "NODE")]
        members: Vec<NodeName>,
    },
    /// Delete the list of a community's members. Nodes with its label stay members.
    Delete {
        /// Name of the community.
        community: edge_types::Community,
    },
}

#[derive(Subcommand)]
pub(super) enum TokenCommand {
    /// Make a join token and print it on standard output: the only time that it is shown.
    ///
    /// A machine that lost its disk comes back under its name with a token bound to that name
    /// (--node).
    Create {
        /// What the node will be: edge, hub or cloud. The node cannot choose.
        #[arg(long)]
        role: Role,
        /// The only name that may join with it.
        #[arg(long, value_name = "NAME")]
        node: Option<NodeName>,
        /// How long it may be used: a number and s, m, h or d.
        #[arg(long, default_value = "24h", value_parser = duration, value_name = "TIME")]
        ttl: u64,
        /// How many nodes may join with it.
        #[arg(long, default_value_t = 1, value_name = "N")]
        uses: u32,
    },
    /// List tokens, without their secrets.
    #[command(visible_alias = "ls")]
    List,
    /// Delete a token: no node can join with it any more. Nodes that have joined with it stay.
    Delete {
        /// The token's id, as in the list.
        // Earlier releases made ids that begin with a hyphen.
        #[arg(allow_hyphen_values = true)]
        id: String,
    },
}

#[derive(Subcommand)]
pub(super) enum CaCommand {
    /// List all authorities, with who still needs the old ones.
    #[command(visible_alias = "ls")]
    List,
    /// Begin to sign with a new authority: that in ca_certificate and ca_key of the configuration,
    /// or one that is made.
    ///
    /// The old ones stay trusted: no tunnel notices. Connected nodes get certificates of the new
    /// one within minutes; then retire the old one:
    ///
    ///   edge-controller ca rollover
    ///   edge-controller ca list                # until no node needs the old one
    ///   edge-controller ca retire 3f2a9c41
    #[command(verbatim_doc_comment)]
    Rollover,
    /// Stop trusting an old authority, and wipe its key. Refused while a node or a join token needs
    /// it.
    Retire {
        /// The authority's id, or at least eight digits of its beginning.
        id: String,
        /// Retire it nevertheless: whoever needs it must join again with a new token.
        #[arg(long)]
        force: bool,
    },
}

/// Reads a duration such as `24h` as seconds.
fn duration(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "" if !number.is_empty() => {
            return Err(format!("it has no unit: write {number}s, {number}m, {number}h or {number}d"));
        }
        _ => return Err(format!("{unit:?} is none of s, m, h, d")),
    };
    let number: u64 = number.parse().map_err(|_| "it does not begin with a number".to_owned())?;
    number.checked_mul(seconds).ok_or_else(|| "it is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_written() {
        assert_eq!(duration("24h"), Ok(86_400));
        assert_eq!(duration("90s"), Ok(90));
        assert_eq!(duration("5"), Err("it has no unit: write 5s, 5m, 5h or 5d".into()));
        for bad in ["", "90", "h", "1w", "1.5h", "-1h", "99999999999999999999d", "18446744073709551615d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_admin_socket_is_the_named_one_or_that_of_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("controller.toml");
        let text =
            "server_names = [\"x\"]\nadmin_socket = \"/run/x.sock\"\n[segments]\ncluster_ranges = [\"10.77.0.0/16\"]\n";
        std::fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();
        let socket = |words: &[&str]| {
            let cli = Cli::try_parse_from([&["edge-controller"], words].concat()).unwrap();
            cli.server.admin_socket().map(|path| path.display().to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(socket(&["node", "list", "--config", file]).unwrap(), "/run/x.sock");
        assert_eq!(socket(&["--config", file, "node", "list"]).unwrap(), "/run/x.sock");
        assert_eq!(socket(&["gather", "out", "--config", file]).unwrap(), "/run/x.sock");
        assert_eq!(socket(&["--socket", "/s", "status", "--config", file]).unwrap(), "/s");
        assert_eq!(socket(&["status"]).unwrap(), ADMIN_SOCKET);
        let missing = socket(&["status", "--config", "/nowhere/c.toml"]).unwrap_err();
        assert!(missing.contains("/nowhere/c.toml") && missing.matches("os error").count() == 1, "{missing}");
    }

    /// `EDGE_UPDATE=1 cargo test -p edge-controller --lib command_line` writes the files.
    #[test]
    fn reference_manual_page_and_completions_are_those_of_the_command_line() {
        let command = <Cli as clap::CommandFactory>::command();
        command.clone().debug_assert();
        interop_tests::command_line::compare(&command);
    }
}
