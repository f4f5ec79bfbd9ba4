//! The arguments of the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use edge_types::connectivity::{MOST_ECHO_REQUESTS, MOST_PATHS};
use edge_types::{NodeName, Role};

use crate::config::{ADMIN_SOCKET, ConfigError, ConfigSources};

/// Grants segments and certificates to edge nodes, and tells each node which peers it may talk to.
///
/// Run the server in the cloud, create a join token for each new node, and assign nodes to
/// communities with labels:
///
///   edge-controller run --config /etc/edge-controller/controller.toml
///   edge-controller token create --role hub --node cloud-1
///   edge-controller token create --role edge --ttl 1h
///   edge-controller node label edge-a1 fabedge/edge-community=alpha
///
/// Exit codes: 0 success; 1 refused, or a check found a problem; 2 wrong usage; 3 the server is not
/// running or could not start; 128 plus the signal number if the server received a second signal
/// before it had stopped.
#[derive(Parser)]
#[command(name = "edge-controller", version, max_term_width = 100, verbatim_doc_comment)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) server: ServerArguments,
    /// Print JSON instead of tables, for scripts.
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
    /// Run the server in the foreground until SIGTERM or Ctrl-C; a second signal stops it at once.
    /// SIGHUP reloads the configuration (see reload). Logs go to standard error; RUST_LOG sets
    /// their level.
    Run {
        #[command(flatten)]
        sources: ConfigSources,
        /// Log as JSON, one object per line.
        #[arg(long)]
        log_json: bool,
    },
    /// Show the configuration that run would use, and where each value comes from.
    Config {
        #[command(flatten)]
        sources: ConfigSources,
    },
    /// Make the running server reload its configuration, as SIGHUP does.
    ///
    /// cluster_ranges, reserved, min_per_node, max_per_node, quarantine_seconds,
    /// restore_grace_seconds, grace_days, networks and hub take effect. Any other change is
    /// refused, as is the removal of a range in which nodes hold segments. A refused reload changes
    /// nothing.
    Reload,
    /// Print the definitions of the custom resources (CRDs), for kubectl apply. They are also in
    /// deploy/crds.
    Crds,
    /// Write everything that the running server stores to one file, as a consistent snapshot.
    ///
    /// The file contains the authority's private key. Only its owner can read it (mode 0600); keep
    /// it as secret as the key. The file is verified before it is moved to its final name. "-"
    /// writes to standard output, for example to pipe the archive into a program that encrypts it.
    Backup {
        #[command(flatten)]
        target: ArchiveTarget,
    },
    /// Replace the state directory by a backup, while no server runs. Nodes continue to use the
    /// certificates that they have.
    ///
    /// Segments that were granted after the backup are not in it, so restore the latest backup.
    Restore {
        /// A file that backup or export wrote.
        file: PathBuf,
        #[command(flatten)]
        sources: ConfigSources,
        /// Allow the state directory to have content; it is moved aside and kept.
        #[arg(long)]
        replace: bool,
    },
    /// Write the content of the configured store to one file, as backup does. If the store is in
    /// the state directory, no server may run meanwhile. If it is at the Kubernetes API server, the
    /// replicas may run, so a CronJob can run this command.
    Export {
        #[command(flatten)]
        target: ArchiveTarget,
        #[command(flatten)]
        sources: ConfigSources,
    },
    /// Import a file from backup or export into the configured store, which must be empty. With
    /// export and import, rows can be moved from one kind of store to the other.
    ///
    /// To resume an interrupted import, import the same file again.
    Import {
        /// A file that backup or export wrote.
        file: PathBuf,
        #[command(flatten)]
        sources: ConfigSources,
    },
    /// Declare that the configured store is an old copy that was put back without restore or
    /// import: a snapshot of a disk or of etcd.
    ///
    /// Segments that were granted after the copy was made are not in it. After the next start,
    /// nodes may claim the segments that they use, and no segment is granted until they have
    /// reported them. If the store is in the state directory, no server may run meanwhile. If it is
    /// at the Kubernetes API server, restart all replicas afterwards.
    Restored {
        #[command(flatten)]
        sources: ConfigSources,
    },
    /// Show an overview of nodes, tunnels, segments, communities and problems.
    ///
    /// The command queries one replica, which reads from the API server what the other replicas
    /// know about their nodes. A node has a problem if it is not connected, has fewer tunnels than
    /// it should, reports an obstacle, refuses its view, or has a certificate that should have been
    /// renewed.
    Status(StatusArguments),
    /// Check whether nodes reach each other as their views permit: every permitted path is reached,
    /// and every forbidden one is not.
    ///
    /// The agents themselves measure, through their tunnels: loss, round-trip time, path MTU, and
    /// an estimate of the throughput. A path has a direction. Nodes are edges and hubs; paths
    /// between two hubs belong to the cloud's network and are left out. Of more than 200 nodes, 200
    /// are chosen at random, each with some of its peers. The check takes at most 15 minutes. The
    /// exit code is 0 only if every path was measured and is as it should be, otherwise 1.
    ///
    ///   edge-controller check-connectivity
    ///   edge-controller check-connectivity edge-a1 edge-b1 cloud-1
    ///   edge-controller check-connectivity --community alpha --problems
    #[command(verbatim_doc_comment)]
    CheckConnectivity(ConnectivityArguments),
    /// Print a link to the page that shows the same as status in a browser, live and read-only.
    ///
    /// The server must serve the page: set `[page] listen` in its configuration. The link contains
    /// the credential of a session, which ends after twelve hours or when the server stops. There
    /// are at most 16 sessions; a new one ends the oldest. If there are several replicas, only the
    /// one that this command queries accepts the session.
    Page {
        /// End all sessions instead of starting one.
        #[arg(long)]
        end: bool,
    },
    /// Write data for troubleshooting to one file, without secrets: the overview, segments,
    /// communities, tokens without their secrets, certificates of the authorities, the
    /// configuration, health and metrics.
    ///
    /// The file contains the names, addresses and labels of nodes. If the server is not running,
    /// the file says so, and still contains the configuration.
    Gather {
        /// File to write (JSON, mode 0600); "-" is standard output.
        file: PathBuf,
        #[command(flatten)]
        sources: ConfigSources,
    },
    /// Convert FabEdge's resources: print commands, annotations of Nodes, and values for the
    /// configuration. What cannot be converted is listed on standard error.
    ///
    ///   kubectl get communities.fabedge.io,clusters.fabedge.io,nodes -o json > fabedge.json
    ///   edge-controller import-fabedge fabedge.json --cluster beijing
    #[command(verbatim_doc_comment)]
    ImportFabedge {
        /// File with the output of kubectl.
        file: PathBuf,
        /// FabEdge's name of this cluster, if the file has nodes of several clusters.
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
        /// Create the communities at the running server, with their member lists. A community that
        /// is listed already gets the members that it lacks, and keeps the others.
        #[arg(long)]
        apply: bool,
        /// Remove the members of these communities that FabEdge does not have.
        #[arg(long, requires = "apply")]
        replace: bool,
    },
    /// Nodes: list, show, label, deregister.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Segments: list them with the nodes that hold them.
    #[command(subcommand)]
    Segment(SegmentCommand),
    /// Communities: list them, set or delete their member lists.
    #[command(subcommand)]
    Community(CommunityCommand),
    /// Join tokens: create, list, delete.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Certificate authorities: list, roll over to a new one, retire an old one.
    #[command(subcommand)]
    Ca(CaCommand),
}

/// Where an archive is written.
#[derive(clap::Args)]
pub(super) struct ArchiveTarget {
    /// File to write; "-" is standard output. If this is a directory, the file in it is named
    /// edge-controller-TIME.archive.
    pub(super) file: PathBuf,
    /// If FILE is a directory: remove the oldest files with such names, so that N remain.
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
    /// Refresh every two seconds. With --json, print one line each time.
    #[arg(long)]
    pub(super) watch: bool,
}

impl StatusArguments {
    /// Returns whether no filter is set.
    pub(super) fn shows_all(&self) -> bool {
        self.nodes.is_empty() && self.role.is_none() && self.community.is_none() && !self.problems
    }
}

/// Which paths `check-connectivity` checks.
#[derive(clap::Args)]
pub(super) struct ConnectivityArguments {
    /// Check the paths between these nodes. (Default: all edges and hubs)
    #[arg(value_name = "NODE")]
    pub(super) nodes: Vec<NodeName>,
    /// Add the members of this community to the nodes. May be given several times.
    #[arg(long = "community", value_name = "NAME")]
    pub(super) communities: Vec<edge_types::Community>,
    /// Maximum number of paths, 1 to 10000. If there are more, some are chosen at random, half of
    /// them permitted ones.
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_PATHS)))]
    pub(super) paths: u32,
    /// Number of echo requests to each address, 1 to 100.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_ECHO_REQUESTS)))]
    pub(super) count: u16,
    /// Show only paths that are not as they should be.
    #[arg(long)]
    pub(super) problems: bool,
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
    /// communities; '_' separates their names:
    ///
    ///   edge-controller node label edge-a1 fabedge/edge-community=alpha_beta
    ///   edge-controller node label edge-a1 fabedge/edge-community-
    ///
    /// If a node has a Node object in Kubernetes, set its labels there; this command can only
    /// remove labels of such a node.
    #[command(verbatim_doc_comment)]
    Label {
        /// Name of the node, as node list prints it.
        node: NodeName,
        /// key=value to set, key- to remove.
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        labels: Vec<String>,
    },
    /// Remove a node from the network. Its certificate is refused at once, and its segments can be
    /// granted to other nodes after the quarantine.
    ///
    /// With --confirm: removes all nodes for which the controller waits for the operator, because
    /// too many Node objects in Kubernetes disappeared at once. node list shows these nodes.
    Deregister {
        /// Name of the node, as node list prints it.
        #[arg(required_unless_present = "confirm", conflicts_with = "confirm")]
        node: Option<NodeName>,
        /// Deregister all nodes whose removal waits for confirmation.
        #[arg(long)]
        confirm: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum SegmentCommand {
    /// List all segments that were ever granted (held, in quarantine, or free again), each with its
    /// previous holder. With --json: with all earlier holders.
    #[command(visible_alias = "ls")]
    List,
}

#[derive(Subcommand)]
pub(super) enum CommunityCommand {
    /// List all communities with their members.
    #[command(visible_alias = "ls")]
    List,
    /// Set the list of a community's members, or when tunnels between all members are set up.
    ///
    /// Nodes with the community's label are members too. The listed nodes need not be registered
    /// yet. A new list replaces the previous one; without a list, the previous one stays:
    ///
    ///   edge-controller community set alpha edge-a1 edge-b1
    ///   edge-controller community set alpha --tunnels on-demand
    #[command(verbatim_doc_comment)]
    Set {
        /// Name of the community.
        community: edge_types::Community,
        /// Names of all members.
        #[arg(required_unless_present = "tunnels", value_name = "NODE")]
        members: Vec<NodeName>,
        /// When tunnels between members are set up: eager (at once), on-demand (by the first
        /// packet), or auto (the number of members decides). (Default: as before, at first auto)
        #[arg(long, value_name = "WHEN")]
        tunnels: Option<edge_types::CommunityTunnels>,
    },
    /// Delete the list of a community's members, and what was set about its tunnels. Nodes with its
    /// label stay members.
    Delete {
        /// Name of the community.
        community: edge_types::Community,
    },
}

#[derive(Subcommand)]
pub(super) enum TokenCommand {
    /// Create a join token and print it on standard output. It is not shown again.
    ///
    /// A machine that lost its disk can join again under its old name with a token bound to that
    /// name (--node).
    Create {
        /// Role of the nodes that join with the token: edge, hub or cloud. A node cannot choose its
        /// role.
        #[arg(long)]
        role: Role,
        /// The only node name that may join with the token.
        #[arg(long, value_name = "NAME")]
        node: Option<NodeName>,
        /// How long the token is valid: a number and s, m, h or d.
        #[arg(long, default_value = "24h", value_parser = duration, value_name = "TIME")]
        ttl: u64,
        /// Number of nodes that may join with the token.
        #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
    },
    /// List tokens, without their secrets.
    #[command(visible_alias = "ls")]
    List,
    /// Delete a token. No node can join with it any more; nodes that have joined stay registered.
    Delete {
        /// The token's id, as in the list.
        // Earlier releases made ids that begin with a hyphen.
        #[arg(allow_hyphen_values = true)]
        id: String,
    },
}

#[derive(Subcommand)]
pub(super) enum CaCommand {
    /// List all authorities, and the nodes and join tokens that still need the old ones.
    #[command(visible_alias = "ls")]
    List,
    /// Start to sign with a new authority: the one in ca_certificate and ca_key of the
    /// configuration, or a newly generated one.
    ///
    /// The old authorities stay trusted, so no tunnel is interrupted. Connected nodes get
    /// certificates of the new authority within minutes. Then retire the old one:
    ///
    ///   edge-controller ca rollover
    ///   edge-controller ca list                # until no node needs the old one
    ///   edge-controller ca retire 3f2a9c41
    #[command(verbatim_doc_comment)]
    Rollover,
    /// Stop trusting an old authority, and wipe its key. Refused while a node or a join token needs
    /// it.
    Retire {
        /// The authority's id, or at least its first eight digits.
        id: String,
        /// Retire it even if it is needed. Nodes that need it must then join again with a new
        /// token.
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
    let seconds = number.checked_mul(seconds).ok_or_else(|| "it is too long".to_owned())?;
    if seconds == 0 {
        return Err("it is 0: a token that nobody can use; write how long it is valid, such as 24h".into());
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_written() {
        assert_eq!(duration("24h"), Ok(86_400));
        assert_eq!(duration("90s"), Ok(90));
        assert_eq!(duration("5"), Err("it has no unit: write 5s, 5m, 5h or 5d".into()));
        assert!(duration("0s").unwrap_err().contains("such as 24h"));
        for bad in ["", "90", "h", "0d", "1w", "1.5h", "-1h", "99999999999999999999d", "18446744073709551615d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_for_nobody_is_wrong_usage() {
        for (words, named) in [(["--ttl", "0s"], "--ttl"), (["--uses", "0"], "--uses")] {
            let words = [&["edge-controller", "token", "create", "--role", "edge"], &words[..]].concat();
            let error = Cli::try_parse_from(words).map(|_| ()).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(named), "{error}");
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
