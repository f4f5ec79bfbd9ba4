//! Configures KubeEdge's edgecore, the kubelet of edge nodes.

use serde_json::{Value, json};

use crate::oci_image;

/// The connection to cloudcore.
#[derive(Debug, Clone, Copy)]
pub enum Cloud<'a> {
    /// No connection. The Node object is in the database from the start ([`node_rows`]).
    Never,
    /// A connection: edgecore joins with this token, and registers its Node.
    Joined {
        /// The join token.
        token: &'a str,
    },
}

/// The settings that differ between hosts.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The directory of all files, without a trailing slash. It contains the directory `manifests`
    /// for static pods and the database `edgecore/edgecore.db`.
    pub directory: &'a str,
    /// The parent cgroup of the pods, without a leading slash; empty for the root cgroup.
    pub cgroup: &'a str,
    /// The connection to cloudcore, on this host's loopback.
    pub cloud: Cloud<'a>,
    /// The name servers of pods; empty for none.
    pub cluster_dns: &'a [String],
}

/// Returns the configuration of an edgecore that uses containerd.
#[must_use]
pub fn configuration(settings: &Settings<'_>) -> Value {
    let path = |name: &str| format!("{}/{name}", settings.directory);
    let off = json!({"enable": false});
    let hub = match settings.cloud {
        Cloud::Never => off.clone(),
        Cloud::Joined { token } => json!({
            "enable": true,
            "heartbeat": 1,
            "httpServer": "https://127.0.0.1:10002",
            "tlsCaFile": path("edgecore/ca.crt"),
            "tlsCertFile": path("edgecore/node.crt"),
            "tlsPrivateKeyFile": path("edgecore/node.key"),
            "token": token,
            "websocket": {
                "enable": true,
                "handshakeTimeout": 30,
                "readDeadline": 15,
                "server": "127.0.0.1:10000",
                "writeDeadline": 15,
            },
        }),
    };
    json!({
        "apiVersion": "edgecore.config.kubeedge.io/v1alpha2",
        "kind": "EdgeCore",
        "database": {"aliasName": "default", "driverName": "sqlite3", "dataSource": path("edgecore/edgecore.db")},
        "modules": {
            "deviceTwin": off, "edgeHub": hub, "edgeStream": off, "eventBus": off, "serviceBus": off,
            "taskManager": off, "metaManager": {"enable": true, "metaServer": off},
            "edged": {
                "enable": true,
                "hostnameOverride": settings.node,
                "nodeIP": "127.0.0.1",
                "registerNodeNamespace": "default",
                "registerSchedulable": true,
                "podSandboxImage": oci_image::NAME,
                "rootDirectory": path("edgecore/kubelet"),
                "tailoredKubeletConfig": {
                    "address": "127.0.0.1",
                    "cgroupDriver": "cgroupfs",
                    "cgroupRoot": format!("/{}", settings.cgroup),
                    "cgroupsPerQOS": false,
                    "clusterDNS": settings.cluster_dns,
                    "clusterDomain": "cluster.local",
                    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
                    "imageServiceEndpoint": "unix:///run/containerd/containerd.sock",
                    "enforceNodeAllocatable": ["none"],
                    "evictionHard": {
                        "imagefs.available": "0%", "imagefs.inodesFree": "0%", "memory.available": "0%",
                        "nodefs.available": "0%", "nodefs.inodesFree": "0%"
                    },
                    "failSwapOn": false,
                    "fileCheckFrequency": "1s",
                    "syncFrequency": "2s",
                    "staticPodPath": path("manifests"),
                    "podLogsDir": "/run/pods",
                    "readOnlyPort": 10350,
                    "registerNode": matches!(settings.cloud, Cloud::Joined { .. }),
                    "resolvConf": "",
                    "volumePluginDir": path("edgecore/volume-plugins"),
                },
            },
        },
    })
}

/// Returns the SQL statement that writes the Node object to edgecore's database, as cloudcore does
/// when the edge registers. Without this object, edgecore exits after half a minute.
#[must_use]
pub fn node_rows(name: &str) -> String {
    let room = json!({"pods": "110", "cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"});
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "uid": name, "annotations": {"csi.volume.kubernetes.io/nodeid": "{}"}},
        "status": {"capacity": room, "allocatable": room},
    });
    let rows: Vec<String> =
        ["default", "null"].iter().map(|namespace| format!("('{namespace}/node/{name}', 'node', '{node}')")).collect();
    format!("INSERT OR REPLACE INTO meta (key, type, value) VALUES {};", rows.join(", "))
}

/// Returns a pod with one container that sleeps.
#[must_use]
pub fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": oci_image::NAME, "imagePullPolicy": "Never"}],
        },
    })
}
