//! The runtime's request, from environment variables (CNI specification, "CNI protocol",
//! "Parameters").

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::error::{Code, Error, Result};
use crate::requested_addresses::RequestedAddresses;
use crate::version::Version;

/// Maximum length of a container ID, bytes. The alias of the host end (255 bytes) must have room
/// for the ID and the interface's name.
const MAX_CONTAINER_ID: usize = 200;

/// Maximum length of an interface name, bytes (linux/if.h, IFNAMSIZ minus the final zero).
const MAX_IFNAME: usize = 15;

/// A function that looks up an environment variable. Tests pass their own one.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The verb, `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// Returns the verb as the value of `CNI_COMMAND`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// Returns the first version of the specification that defines the verb.
    pub(crate) const fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }

    /// Parses the value of `CNI_COMMAND`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|command| command.as_str() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            Error::new(Code::InvalidEnvironment, format!("CNI_COMMAND is {text:?}; expected one of {known}"))
        })
    }
}

/// One interface of one container, which identifies an attached pod and its lease.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Attachment {
    /// `CNI_CONTAINERID`.
    pub(crate) container: String,
    /// `CNI_IFNAME`.
    pub(crate) ifname: String,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {}, {}", self.container, self.ifname)
    }
}

/// The runtime's request, from the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuntimeRequest {
    pub(crate) attachment: Attachment,
    /// `CNI_NETNS`; optional for DEL.
    pub(crate) netns: Option<PathBuf>,
    /// `namespace/name` from `CNI_ARGS`, if the runtime passed it. Podman passes no namespace; in
    /// that case this is only the name.
    pub(crate) pod: Option<String>,
    /// The addresses that `CNI_ARGS` requests for the pod.
    pub(crate) requested: RequestedAddresses,
}

impl fmt::Display for RuntimeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "pod {pod} ({})", self.attachment),
            None => self.attachment.fmt(f),
        }
    }
}

impl RuntimeRequest {
    /// Reads the variables and refuses invalid ones.
    pub(crate) fn read(lookup: Lookup<'_>) -> Result<Self> {
        let attachment = Self::attachment(lookup)?;
        let netns = optional(lookup, "CNI_NETNS")?.map(PathBuf::from);
        let Args { pod, requested } = read_args(&optional(lookup, "CNI_ARGS")?.unwrap_or_default())?;
        Ok(Self { attachment, netns, pod, requested })
    }

    /// Reads the variables for a verb that needs only the attachment. Other variables that are
    /// invalid are reported on standard error and ignored.
    pub(crate) fn lenient(lookup: Lookup<'_>) -> Result<Self> {
        let attachment = Self::attachment(lookup)?;
        let said = |error: Error| eprintln!("edge-cni: {attachment}: {error}; continuing without it");
        let netns = optional(lookup, "CNI_NETNS").unwrap_or_else(|error| {
            said(error);
            None
        });
        let args = optional(lookup, "CNI_ARGS").and_then(|args| read_args(&args.unwrap_or_default()));
        let Args { pod, requested } = args.unwrap_or_else(|error| {
            said(error);
            Args::default()
        });
        Ok(Self { netns: netns.map(PathBuf::from), pod, requested, attachment })
    }

    /// Returns why ADD refuses this attachment, if it does. A missing variable is no reason: then
    /// it is unknown what is meant.
    pub(crate) fn never_attached(lookup: Lookup<'_>) -> Option<Error> {
        let is_set = |name| matches!(optional(lookup, name), Ok(Some(_)));
        let both = is_set("CNI_CONTAINERID") && is_set("CNI_IFNAME");
        Self::attachment(lookup).err().filter(|_| both)
    }

    fn attachment(lookup: Lookup<'_>) -> Result<Attachment> {
        let container = required(lookup, "CNI_CONTAINERID")?;
        // The specification: an ID begins with an alphanumeric character, followed by
        // alphanumerics, '_', '.' and '-'.
        let good = container.len() <= MAX_CONTAINER_ID
            && container.starts_with(|c: char| c.is_ascii_alphanumeric())
            && container.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if !good {
            return Err(invalid(
                "CNI_CONTAINERID",
                &container,
                &format!(
                    "expected 1 to {MAX_CONTAINER_ID} letters, digits, '_', '.' and '-', the first a letter or digit"
                ),
            ));
        }
        let ifname = required(lookup, "CNI_IFNAME")?;
        // net/core/dev.c dev_valid_name(). The kernel treats '%' as a pattern (dev_alloc_name);
        // `all` and `default` are directories of sysctl.
        let good = ifname.len() <= MAX_IFNAME
            && !matches!(ifname.as_str(), "." | ".." | "all" | "default" | "lo")
            && ifname.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%'));
        if !good {
            return Err(invalid(
                "CNI_IFNAME",
                &ifname,
                &format!(
                    "expected a new interface's name: 1 to {MAX_IFNAME} characters without '/', ':', '%' and blanks"
                ),
            ));
        }
        Ok(Attachment { container, ifname })
    }
}

fn invalid(name: &str, value: &str, expected: &str) -> Error {
    Error::new(Code::InvalidEnvironment, format!("{name} is {value:?}; {expected}"))
}

/// Reads a variable. An empty variable counts as absent, since runtimes set unused variables to the
/// empty string.
pub(crate) fn optional(lookup: Lookup<'_>, name: &str) -> Result<Option<String>> {
    match lookup(name) {
        None => Ok(None),
        Some(value) if value.is_empty() => Ok(None),
        Some(value) => value
            .into_string()
            .map(Some)
            .map_err(|value| invalid(name, &value.to_string_lossy(), "expected text in UTF-8")),
    }
}

pub(crate) fn required(lookup: Lookup<'_>, name: &str) -> Result<String> {
    optional(lookup, name)?.ok_or_else(|| {
        Error::new(
            Code::InvalidEnvironment,
            format!("the environment variable {name} is missing or empty; the runtime must set it"),
        )
    })
}

/// The content of `CNI_ARGS`.
#[derive(Debug, Default)]
struct Args {
    /// `namespace/name`, or the name.
    pod: Option<String>,
    requested: RequestedAddresses,
}

/// Parses `CNI_ARGS`: `KEY=VALUE` pairs, separated by `;`.
fn read_args(text: &str) -> Result<Args> {
    let mut requested = RequestedAddresses::default();
    let (mut namespace, mut name, mut unknown, mut ignore_unknown) = (None, None, None, false);
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| {
            invalid("CNI_ARGS", text, &format!("expected KEY=VALUE pairs separated by ';', found {pair:?}"))
        })?;
        match key {
            "IgnoreUnknown" => {
                ignore_unknown = match value {
                    "1" | "true" | "True" | "TRUE" => true,
                    "0" | "false" | "False" | "FALSE" => false,
                    _ => return Err(invalid("CNI_ARGS", text, "IgnoreUnknown is true or false")),
                }
            }
            "K8S_POD_NAMESPACE" => namespace = Some(printable(value)),
            "K8S_POD_NAME" => name = Some(printable(value)),
            "K8S_POD_INFRA_CONTAINER_ID" | "K8S_POD_UID" => {}
            // Commas separate several addresses, at most one of each family.
            "IP" => {
                let mut addresses = value.split(',').filter(|address| !address.is_empty());
                addresses
                    .try_for_each(|address| requested.add_address(address))
                    .map_err(|why| invalid("CNI_ARGS", text, &why))?;
            }
            "MAC" => requested.add_mac(value).map_err(|why| invalid("CNI_ARGS", text, &why))?,
            other => unknown = Some(other),
        }
    }
    match unknown {
        Some(key) if !ignore_unknown => Err(invalid(
            "CNI_ARGS",
            text,
            &format!("the argument {key:?} is not known; leave it out, or add IgnoreUnknown=1"),
        )),
        _ => {
            let name = name.filter(|name| !name.is_empty());
            let pod = name.map(|name| match namespace.filter(|namespace| !namespace.is_empty()) {
                Some(namespace) => format!("{namespace}/{name}"),
                None => name,
            });
            Ok(Args { pod, requested })
        }
    }
}

/// Makes a name safe for messages and for the leases: no control characters or blanks, and at most
/// 253 characters, as in Kubernetes. A `/` is replaced too, since it would make a name without a
/// namespace look like a pod in a namespace, which `unfilteredPods` may exempt.
fn printable(value: &str) -> String {
    let safe = |c: char| if c.is_control() || c.is_whitespace() || c == '/' { '?' } else { c };
    value.chars().take(253).map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<RuntimeRequest> {
        let vars: Vec<(String, String)> = vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        RuntimeRequest::read(&move |name| vars.iter().find(|(k, _)| k == name).map(|(_, v)| v.into()))
    }

    #[test]
    fn the_pod_is_known_by_its_kubernetes_name() {
        let request = read(&[
            ("CNI_CONTAINERID", "abc.1_2-3"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u;SOMETHING=else"),
        ])
        .unwrap();
        assert_eq!(request.to_string(), "pod default/web-0 (container abc.1_2-3, eth0)");
        assert_eq!(request.netns, Some("/run/netns/x".into()));
    }

    #[test]
    fn a_pod_without_a_namespace_is_known_by_its_name_and_poses_as_no_other() {
        for (args, pod) in [
            ("K8S_POD_NAMESPACE=;K8S_POD_NAME=web", Some("web")),
            ("K8S_POD_NAME=web", Some("web")),
            ("K8S_POD_NAMESPACE=;K8S_POD_NAME=kube-system/web", Some("kube-system?web")),
            ("K8S_POD_NAMESPACE=kube-system/web;K8S_POD_NAME=x", Some("kube-system?web/x")),
            ("K8S_POD_NAMESPACE=default;K8S_POD_NAME=", None),
            ("K8S_POD_NAMESPACE=default", None),
        ] {
            let request = read(&[("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0"), ("CNI_ARGS", args)]).unwrap();
            assert_eq!(request.pod.as_deref(), pod, "{args}");
        }
    }

    #[test]
    fn an_unknown_argument_is_refused_without_ignore_unknown() {
        let base = [("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")];
        for (args, good) in [
            ("", true),
            ("FOO=1", false),
            ("IgnoreUnknown=true;FOO=1", true),
            ("FOO=1;IgnoreUnknown=1", true),
            ("IgnoreUnknown=0;FOO=1", false),
            ("IgnoreUnknown=maybe", false),
            ("FOO", false),
        ] {
            let mut vars = base.to_vec();
            vars.push(("CNI_ARGS", args));
            match read(&vars) {
                Ok(_) => assert!(good, "{args}"),
                Err(error) => {
                    assert!(!good, "{args}");
                    assert_eq!(error.code, Code::InvalidEnvironment);
                    assert!(error.message.contains("CNI_ARGS"), "{error}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_needed_does_not_stop_a_verb() {
        use std::os::unix::ffi::OsStringExt;
        let lookup = |name: &str| match name {
            "CNI_CONTAINERID" => Some("a".into()),
            "CNI_IFNAME" => Some("eth0".into()),
            "CNI_ARGS" => Some("MAC=..;NONSENSE".into()),
            "CNI_NETNS" => Some(OsString::from_vec(vec![0xff])),
            _ => None,
        };
        let request = RuntimeRequest::lenient(&lookup).unwrap();
        assert_eq!((request.attachment.ifname.as_str(), request.netns, request.pod), ("eth0", None, None));
        assert!(RuntimeRequest::lenient(&|name| lookup(name).filter(|_| name != "CNI_IFNAME")).is_err());
    }

    #[test]
    fn container_ids_and_interface_names_that_could_leave_their_place_are_refused() {
        let long = "a".repeat(201);
        for id in ["", "../etc", "-a", ".a", "a/b", "a b", "a\nb", "ü", "a;b", long.as_str()] {
            let error = read(&[("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0")]).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment, "{id:?}");
            assert!(error.message.contains("CNI_CONTAINERID"), "{error}");
        }
        for name in ["", ".", "..", "a/b", "a:b", "a b", "eth%d", "lo", "all", "default", "a\tb", "0123456789abcdef"] {
            let error = read(&[("CNI_CONTAINERID", "a"), ("CNI_IFNAME", name)]).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment, "{name:?}");
            assert!(error.message.contains("CNI_IFNAME"), "{error}");
        }
    }

    #[test]
    fn bytes_that_are_not_text_are_refused_by_name() {
        use std::os::unix::ffi::OsStringExt;
        let error = RuntimeRequest::read(&|_| Some(OsString::from_vec(vec![0xff, 0xfe]))).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.message.contains("CNI_CONTAINERID"), "{error}");
    }
}
