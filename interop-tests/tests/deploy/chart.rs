//! Tests the effect of the chart's values, and the chart's installation by Helm on a real API
//! server.

use std::fs;
use std::process::Command;

use interop_tests::kube::ControlPlane;
use interop_tests::suite::Test;
use serde_json::Value;

use crate::helm::{helm, objects, template};
use crate::programs::{built, output, workspace};

pub(crate) const TESTS: &[Test] = &[
    ("helm_finds_nothing_wrong_with_the_chart", lint),
    ("values_that_are_unknown_or_of_another_form_are_refused_by_their_name", refused),
    ("the_programs_accept_every_configuration_that_the_chart_writes", configurations),
    ("a_role_has_the_same_label_in_its_daemonset_the_controller_and_the_admission_policy", roles),
    ("containers_that_write_the_hosts_directories_are_privileged_or_of_that_type", host_directories),
    ("the_socket_holder_runs_beside_agents_without_privileges_and_no_upgrade_replaces_it", socket_holder),
    ("helm_installs_upgrades_cleans_up_and_uninstalls_on_an_api_server", installed),
];

/// Values that enable everything that is off by default, and change the values whose form depends
/// on that.
const EVERYTHING: &str = r#"
image: {repository: registry.example.org/edge-cni, tag: "7", pullPolicy: Always, pullSecrets: [registry]}
segments: {clusterRanges: ["10.80.0.0/16", "fd77::/48"], reserved: ["10.80.255.0/24"], v4Prefix: 25, v6Prefix: 121}
networks: ["10.42.0.0/16", "10.43.0.0/16"]
hubPodNetworks: false
hubs:
  cloud-1.example: {networks: ["10.42.0.0/16"], endpoints: ["203.0.113.10:4500"]}
  cloud-2: {endpoints: ["203.0.113.11:4500"]}
roles:
  edge: {label: example.org/edge}
  hub: {label: node-restriction.kubernetes.io/edge-hub, value: "yes"}
  cloud: {label: node-restriction.kubernetes.io/edge-cloud, value: "yes"}
nodeLabels: {trust: false, protect: [example.org/site], speakers: ["cloudcore"]}
controller:
  replicas: 3
  serverNames: [controller.example.org, "203.0.113.5"]
  service: {type: NodePort, port: 8444, nodePort: 30443, annotations: {example.org/pool: edge}}
  certificates: {nodeDays: 14, graceDays: 0, serverDays: 60, authoritySecret: edge-cni-authority}
  environment: {EDGE_CONTROLLER_SEGMENTS_MAX_PER_NODE: "128"}
  priorityClassName: example
  tolerations: [{key: node-role.kubernetes.io/control-plane, operator: Exists, effect: NoSchedule}]
agents: {observe: ["127.0.0.1:9744", "[::1]:9744"]}
hub: {extraConfig: "[timing]\nliveness = \"5s\"\n"}
cloud: {extraConfig: "[timing]\nliveness = \"6s\"\n"}
edge:
  controllerUrls: ["https://controller.example.org:30443", "https://203.0.113.5:30443"]
  mtu: 1380
  maxUnavailable: 25%
  join: tokenFile
  cni: {confDir: /var/lib/rancher/k3s/agent/etc/cni/net.d, binDir: /var/lib/rancher/k3s/data/cni}
  extraConfig: "[firewall]\nlan_to_pods = [\"192.168.1.0/24\"]\n"
networkPolicy: {monitoringNamespace: observability}
monitoring: {serviceMonitor: {enabled: true, interval: 15s, labels: {release: prometheus}}}
backup: {enabled: true, claim: backups}
"#;

/// Writes [`EVERYTHING`] into a file.
fn everything() -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    fs::write(file.path(), EVERYTHING).unwrap();
    file
}

fn values(file: &tempfile::NamedTempFile) -> [&str; 2] {
    ["--values", file.path().to_str().expect("a path in UTF-8")]
}

fn lint() {
    let all = everything();
    for arguments in [&[][..], &values(&all), &["--set=cleanup.enabled=true"]] {
        let mut command = helm();
        command.args(["lint", "--strict", "--quiet"]).args(arguments).arg(workspace("deploy/helm"));
        output(&mut command).unwrap();
    }
}

fn refused() {
    for (value, named) in [
        ("--set=controler.replicas=3", "controler"),
        ("--set=edge.cni.confdir=/etc/cni", "confdir"),
        ("--set=edge.join=token", "/edge/join"),
        ("--set=edge.controllerUrls={http://controller.example.org}", "/edge/controllerUrls/0"),
        ("--set=edge.mtu=100", "/edge/mtu"),
        ("--set=networks={10.244.0.0}", "/networks/0"),
        ("--set-string=hubPodNetworks=false", "/hubPodNetworks"),
        ("--set=segments.clusterRanges=null", "clusterRanges"),
        ("--set=segments.v4Prefix=33", "/segments/v4Prefix"),
        ("--set=nodeLabels.trust=maybe", "/nodeLabels/trust"),
        ("--set=agents.observe={0.0.0.0:9644}", "/agents/observe/0"),
        ("--set=controller.service.type=ExternalName", "/controller/service/type"),
        ("--set=hubs.cloud-1.endpoint={192.0.2.1:4500}", "endpoint"),
        ("--set=socketHolder.enabled=sometimes", "/socketHolder/enabled"),
        ("--set=roles.hub.value=two words", "/roles/hub/value"),
    ] {
        let Err(why) = template(&[value]) else { panic!("{value} is accepted") };
        assert!(why.contains("don't meet the specifications of the schema") && why.contains(named), "{value}: {why}");
    }
}

/// Returns whether an object has this kind and name.
fn is(object: &Value, kind: &str, name: &str) -> bool {
    object["kind"] == kind && object["metadata"]["name"] == name
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects.iter().find(|object| is(object, kind, name)).unwrap_or_else(|| panic!("{kind} {name}"))
}

/// Returns the files in the ConfigMaps, each with the name of its ConfigMap and its content.
fn files<'a>(objects: &'a [Value], file: &str) -> Vec<(&'a str, &'a str)> {
    let maps = objects.iter().filter(|object| object["kind"] == "ConfigMap");
    maps.filter_map(|map| Some((map["metadata"]["name"].as_str()?, map["data"][file].as_str()?))).collect()
}

fn configurations() {
    let (all, directory) = (everything(), tempfile::tempdir().unwrap());
    for arguments in [&[][..], &values(&all), &["--set=cleanup.enabled=true"]] {
        let objects = objects(&template(arguments).unwrap());
        let mut seen = Vec::new();
        for (map, text) in files(&objects, "agent.toml") {
            let path = directory.path().join("agent.toml");
            fs::write(&path, text).unwrap();
            let out =
                Command::new(built("edge-agent")).args(["check", "--json", "--config"]).arg(&path).output().unwrap();
            // Exit code 1 reports a finding, since this machine has no token. Exit code 2 means
            // that the file is refused.
            assert_ne!(out.status.code(), Some(2), "{map}: {}\n{text}", String::from_utf8_lossy(&out.stderr));
            let findings: Value = serde_json::from_slice(&out.stdout).unwrap();
            let about = |what: &str| {
                findings.as_array().unwrap().iter().any(|one| one["what"].as_str().unwrap().contains(what))
            };
            assert!(about("controller at https://"), "{map}: {findings}");
            seen.push(map);
        }
        for (map, text) in files(&objects, "controller.toml") {
            let path = directory.path().join("controller.toml");
            fs::write(&path, text).unwrap();
            let mut command = Command::new(built("edge-controller"));
            let shown = output(command.args(["config", "--json", "--config"]).arg(&path))
                .unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert!(shown.contains("edge-controller.edge-cni.svc"), "{shown}");
            seen.push(map);
        }
        let cleanup = arguments.contains(&"--set=cleanup.enabled=true");
        assert_eq!(seen.len(), if cleanup { 5 } else { 4 }, "{seen:?}");
    }
    // Settings from the values appear in the objects in which they take effect.
    let objects = objects(&template(&values(&all)).unwrap());
    let agent = |map: &str| {
        let text = files(&objects, "agent.toml").into_iter().find(|(name, _)| *name == map).expect("the agent's").1;
        text.parse::<toml::Table>().unwrap()
    };
    let edge = agent("edge-agent");
    assert_eq!(edge["mtu"].as_integer(), Some(1380));
    assert_eq!(edge["controller"]["urls"].as_array().unwrap().len(), 2);
    assert_eq!(edge["cni"]["bin_dir"].as_str(), Some("/var/lib/rancher/k3s/data/cni"));
    assert_eq!(edge["firewall"]["lan_to_pods"][0].as_str(), Some("192.168.1.0/24"));
    assert!(edge["controller"].get("service_account_token_file").is_none());
    assert_eq!(agent("hub-agent")["controller"]["urls"][0].as_str(), Some("https://edge-controller.edge-cni.svc:8444"));
    assert_eq!(agent("cloud-agent")["timing"]["liveness"].as_str(), Some("6s"));
    let controller: toml::Table = files(&objects, "controller.toml")[0].1.parse().unwrap();
    assert_eq!(controller["hub"]["cloud-1.example"]["endpoints"][0].as_str(), Some("203.0.113.10:4500"));
    assert_eq!(controller["certificates"]["node_days"].as_integer(), Some(14));
    assert_eq!(controller["certificates"]["grace_days"].as_integer(), Some(0));
    assert_eq!(controller["segments"]["v4_prefix"].as_integer(), Some(25));
    assert_eq!(controller["kubernetes"]["trust_node_labels"].as_bool(), Some(false));
    assert_eq!(controller["kubernetes"]["hub_pod_networks"].as_bool(), Some(false));
    let pod = &find(&objects, "Deployment", "edge-controller")["spec"]["template"]["spec"];
    assert_eq!(pod["priorityClassName"], "example");
    assert_eq!(pod["tolerations"][0]["key"], "node-role.kubernetes.io/control-plane");
    let strategy = &find(&objects, "DaemonSet", "edge-agent")["spec"]["updateStrategy"];
    assert_eq!(strategy["rollingUpdate"]["maxUnavailable"], "25%");
}

/// On a host with SELinux, a container that is neither privileged nor of such a container's type
/// cannot write the host's directories.
fn host_directories() {
    for arguments in [&[][..], &["--set=cleanup.enabled=true"]] {
        let objects = objects(&template(arguments).unwrap());
        let pods = objects.iter().filter(|object| object["kind"] == "DaemonSet");
        let mut seen = 0;
        for pod in pods.map(|object| &object["spec"]["template"]["spec"]) {
            let list = |key: &str| pod[key].as_array().cloned().unwrap_or_default();
            let of_host =
                |name: &Value| list("volumes").iter().any(|it| it["name"] == *name && it["hostPath"].is_object());
            for container in [list("initContainers"), list("containers")].concat() {
                let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
                if mounts.iter().any(|mount| of_host(&mount["name"]) && mount["readOnly"] != true) {
                    let security = &container["securityContext"];
                    // The type of processes of privileged containers (container_selinux(8)).
                    let may_write = security["privileged"] == true || security["seLinuxOptions"]["type"] == "spc_t";
                    assert!(may_write, "{container}");
                    seen += 1;
                }
            }
        }
        assert!(seen > 0);
    }
}

fn socket_holder() {
    use serde_json::json;
    let holder = |arguments: &[&str]| {
        let objects = objects(&template(arguments).unwrap());
        objects.into_iter().find(|object| is(object, "DaemonSet", "socket-holder"))
    };
    let found = holder(&[]).expect("it is on by default");
    assert_eq!(found["spec"]["updateStrategy"], json!({"type": "OnDelete"}));
    let pod = &found["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(security["privileged"], Value::Null);
    assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(
        (&security["allowPrivilegeEscalation"], &security["readOnlyRootFilesystem"]),
        (&json!(false), &json!(true))
    );
    // It listens where agents look, in the one directory that it has of the host.
    let directory = "/run/edge-cni/socket-holder";
    assert_eq!(container["command"][3], format!("{directory}/holder.sock"));
    assert_eq!(container["volumeMounts"], json!([{"name": "listen", "mountPath": directory}]));
    assert_eq!(pod["volumes"][0]["hostPath"]["path"], directory);
    // With each of the roles that have tunnels, and only there.
    assert_eq!(wanted(&holder(&["--set=hub.enabled=false"]).unwrap()).len(), 1);
    assert_eq!(wanted(&holder(&["--set=edge.enabled=false"]).unwrap()).len(), 1);
    assert_eq!(wanted(&found).len(), 2);
    assert_eq!(holder(&["--set=edge.enabled=false", "--set=hub.enabled=false"]), None);
    assert_eq!(holder(&["--set=socketHolder.enabled=false"]), None);
    assert_eq!(holder(&["--set=cleanup.enabled=true"]), None);
    // As with `--reuse-values` and the values of a release without it.
    assert!(holder(&["--set=socketHolder=null"]).is_some());
}

/// Returns the keys that a pod's node must or must not have, with operator and values.
fn wanted(object: &Value) -> Vec<Value> {
    let affinity = &object["spec"]["template"]["spec"]["affinity"]["nodeAffinity"];
    let terms = &affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    terms.as_array().expect("terms").iter().map(|term| term["matchExpressions"].clone()).collect()
}

fn roles() {
    use serde_json::json;
    let all = everything();
    let objects = objects(&template(&values(&all)).unwrap());
    let key = |name: &str| format!("node-restriction.kubernetes.io/edge-{name}");
    let cloud_side = |name: &str| json!([{"key": key(name), "operator": "In", "values": ["yes"]}, {"key": "example.org/edge", "operator": "DoesNotExist"}]);
    assert_eq!(wanted(find(&objects, "DaemonSet", "hub-agent")), [cloud_side("hub")]);
    assert_eq!(wanted(find(&objects, "DaemonSet", "cloud-agent")), [cloud_side("cloud")]);
    assert_eq!(
        wanted(find(&objects, "DaemonSet", "edge-agent")),
        [json!([{"key": "example.org/edge", "operator": "Exists"}])]
    );
    assert_eq!(wanted(find(&objects, "Deployment", "edge-controller")), [cloud_side("hub"), cloud_side("cloud")]);
    let controller: toml::Table = files(&objects, "controller.toml")[0].1.parse().unwrap();
    let kubernetes = controller["kubernetes"].as_table().unwrap();
    assert_eq!(kubernetes["edge_selector"].as_str(), Some("example.org/edge"));
    assert_eq!(kubernetes["hub_selector"].as_str(), Some("node-restriction.kubernetes.io/edge-hub=yes"));
    assert_eq!(kubernetes["cloud_selector"].as_str(), Some("node-restriction.kubernetes.io/edge-cloud=yes"));
    // Otherwise a kubelet could make its own Node an edge with a label that the policy does not
    // list.
    let variables = &find(&objects, "ValidatingAdmissionPolicy", "edge-cni-node-labels")["spec"]["variables"];
    assert_eq!(variables[0]["name"], "labels");
    let protected: Vec<String> = serde_json::from_str(variables[0]["expression"].as_str().unwrap()).unwrap();
    for label in ["node-role.kubernetes.io/edge", "example.org/edge", "example.org/site"] {
        assert!(protected.iter().any(|one| one == label), "{label}: {protected:?}");
    }
    assert_eq!(variables[1]["expression"], r#"["system:serviceaccount:kubeedge:cloudcore", "cloudcore"]"#);
}

/// The parts of the definition of the Prometheus operator's resource that the API server needs. The
/// operator is not installed here.
const SERVICE_MONITORS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: servicemonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  names: {kind: ServiceMonitor, plural: servicemonitors, singular: servicemonitor}
  scope: Namespaced
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

fn installed() {
    let (plane, all) = (ControlPlane::start("helm").unwrap(), everything());
    plane.apply_text(SERVICE_MONITORS).unwrap();
    let crd = "crd/servicemonitors.monitoring.coreos.com";
    plane.kubectl(&["wait", "--for=condition=Established", crd, "--timeout=120s"]).unwrap();
    // The command from docs/install/kubernetes.md.
    plane.kubectl(&["create", "namespace", "edge-cni"]).unwrap();
    let label = "pod-security.kubernetes.io/enforce=privileged";
    plane.kubectl(&["label", "namespace", "edge-cni", label]).unwrap();
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = helm();
        command.args(["--namespace", "edge-cni"]).args(arguments);
        command.env("KUBECONFIG", plane.kubeconfig()).env("HELM_CACHE_HOME", home.path());
        output(&mut command)
    };
    let chart = workspace("deploy/helm");
    let chart = chart.to_str().expect("a path in UTF-8");
    let there = || {
        let kinds =
            "daemonset,deployment,cronjob,pdb,networkpolicy,role,rolebinding,servicemonitor,serviceaccount,service";
        let named = plane.kubectl(&["-n", "edge-cni", "get", kinds, "--output=name"]).unwrap();
        let mut names: Vec<String> = named
            .lines()
            .map(|line| {
                line.split_once('.').map_or_else(
                    || line.to_owned(),
                    |(kind, rest)| format!("{kind}/{}", rest.split_once('/').expect("a name").1),
                )
            })
            .filter(|name| name != "serviceaccount/default")
            .collect();
        names.sort();
        names
    };
    // The API server reports unknown fields only on request.
    let rendered = template(&values(&all)).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, rendered.as_bytes()).unwrap();
    let path = file.path().to_str().expect("a path in UTF-8");
    plane
        .kubectl(&["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", path])
        .unwrap();

    run(&["install", "edge-cni", chart]).unwrap();
    let first = there();
    for name in ["daemonset/edge-agent", "daemonset/hub-agent", "daemonset/cloud-agent", "deployment/edge-controller"] {
        assert!(first.iter().any(|one| one == name), "{name}: {first:?}");
    }
    assert!(!first.iter().any(|name| name.contains("backup") || name.contains("monitor")), "{first:?}");
    plane.kubectl(&["get", "segments,edgenodes,communities"]).unwrap();
    run(&[&["upgrade", "edge-cni", chart][..], &values(&all)].concat()).unwrap();
    let second = there();
    for name in ["backup-daily", "backup-hourly", "backup-weekly"] {
        assert!(second.iter().any(|one| *one == format!("cronjob/edge-cni-{name}")), "{name}: {second:?}");
    }
    assert!(second.iter().any(|name| name == "servicemonitor/edge-controller"), "{second:?}");

    run(&["upgrade", "edge-cni", chart, "--reuse-values", "--set=cleanup.enabled=true"]).unwrap();
    let third = there();
    let daemon_sets: Vec<&String> = third.iter().filter(|name| name.starts_with("daemonset/")).collect();
    assert_eq!(daemon_sets, ["daemonset/edge-cni-cleanup"], "no agent puts back what is removed");
    run(&["rollback", "edge-cni", "1"]).unwrap();
    assert_eq!(there(), first, "a rollback has what the first installation had");

    run(&["uninstall", "edge-cni"]).unwrap();
    assert_eq!(there(), [""; 0], "nothing of the namespace is left");
    let cluster = "clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding";
    let left = plane.kubectl(&["get", cluster, "--output=name"]).unwrap();
    assert!(!left.contains("edge-cni"), "{left}");
    // Helm keeps the resource definitions (CRDs), and with them the rows.
    plane.kubectl(&["get", "segments,edgenodes,communities"]).unwrap();
}
