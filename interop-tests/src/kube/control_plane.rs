//! Runs etcd and `kube-apiserver` on loopback, for one test or for several.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};

use super::daemon::{Daemon, Directory};
use super::pki::{Authority, Proof, kubeconfig, token_keys};
use super::programs::{self, Helpers, Programs};
use super::reserved_port::ReservedPort;

/// etcd's sockets, in the control plane's private directory. etcd requires the form of host and
/// port.
const ETCD_CLIENTS: &str = "unix://etcd:1";
const ETCD_PEERS: &str = "unix://etcd:2";

/// Issuer and audience of service account tokens.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The place where etcd keeps its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// In shared memory if there is enough of it. In shared memory, fsync costs nothing.
    #[default]
    Memory,
    /// On the disk of the target directory. Each write waits for the disk, as in a real cluster.
    Disk,
}

/// Options of a control plane.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The place where etcd keeps its data.
    pub storage: Storage,
    /// Further flags of `kube-apiserver`. If a flag is repeated, the last value applies. With
    /// `--watch-cache=false` the API server forgets versions as soon as etcd does.
    pub api_server: Vec<String>,
    /// A command prefix for each program, such as the words that enter the namespaces of a lab
    /// host. The programs' directory must be visible in those namespaces.
    pub prefix: Vec<OsString>,
    /// A directory for logs, which is emptied first; by default the directory below
    /// `target/kube-logs` with the control plane's name.
    pub logs: Option<PathBuf>,
}

/// A running control plane. Its programs end when it is dropped, and when this process ends for any
/// reason.
#[derive(Debug)]
pub struct ControlPlane {
    options: Options,
    programs: Programs,
    helpers: Helpers,
    authority: Authority,
    port: ReservedPort,
    logs: PathBuf,
    kubeconfig: PathBuf,
    written: AtomicU32,
    running: Mutex<Running>,
    // This is the last field, so that the programs end before their directory is removed.
    directory: Directory,
}

#[derive(Debug, Default)]
struct Running {
    api_server: Option<Daemon>,
    etcd: Option<Daemon>,
}

impl ControlPlane {
    /// Starts a control plane with the defaults; `name` is the directory of its logs below
    /// `target/kube-logs`.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::start_with`].
    pub fn start(name: &str) -> Result<Self> {
        Self::start_with(name, Options::default())
    }

    /// Starts a control plane, and waits until it is ready. Several may run at the same time under
    /// different names.
    ///
    /// # Errors
    /// Returns an error if a program is missing, ends, or is not ready in time. The message
    /// contains the end of its output and the path of its log.
    pub fn start_with(name: &str, options: Options) -> Result<Self> {
        let programs = programs::ensure()?;
        let helpers = Helpers::find()?;
        let logs = options.logs.clone().unwrap_or_else(|| target_directory().join("kube-logs").join(name));
        // The directory contains only the logs of the last run.
        fs::remove_dir_all(&logs).ok();
        fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
        let directory = Directory::new_in(&match options.storage {
            Storage::Memory => memory_directory(),
            Storage::Disk => logs.clone(),
        })?;
        let plane = Self {
            options,
            programs,
            helpers,
            authority: Authority::new()?,
            port: ReservedPort::claim()?,
            kubeconfig: directory.path().join("admin.kubeconfig"),
            written: AtomicU32::new(0),
            running: Mutex::default(),
            logs,
            directory,
        };
        plane.write_files()?;
        plane.start_etcd()?;
        plane.start_api_server()?;
        Ok(plane)
    }

    fn write_files(&self) -> Result<()> {
        let put = |name: &str, text: &str| {
            fs::write(self.directory.path().join(name), text).with_context(|| format!("writing {name}"))
        };
        let server = self.authority.server()?;
        let (private, public) = token_keys()?;
        put("ca.pem", &self.authority.certificate)?;
        put("server.pem", &server.certificate)?;
        put("server.key", &server.key)?;
        put("tokens.key", &private)?;
        put("tokens.pub", &public)?;
        let admin = self.authority.client("admin", Some("system:masters"))?;
        put("admin.kubeconfig", &kubeconfig(&self.url(), self.certificate(), &Proof::Certificate(&admin)))
    }

    /// Returns the API server's address. It does not change.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port.number)
    }

    /// Returns the certificate of the cluster's authority, which signed the API server's
    /// certificate.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.authority.certificate
    }

    /// Returns the directory with `etcd.log` and `kube-apiserver.log`.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Returns a kubeconfig with all rights (`system:masters`).
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Makes a kubeconfig for a user with a client certificate. The user has only the rights that a
    /// test grants.
    ///
    /// # Errors
    /// Returns an error if the kubeconfig cannot be written.
    pub fn kubeconfig_for_user(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let client = self.authority.client(user, group)?;
        self.write_kubeconfig(&Proof::Certificate(&client))
    }

    /// Makes a kubeconfig for an existing service account, with a new token that is valid for one
    /// hour.
    ///
    /// # Errors
    /// Returns an error if the API server issues no token.
    pub fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.kubectl(&["create", "token", name, "--namespace", namespace])?;
        self.write_kubeconfig(&Proof::Token(token.trim()))
    }

    fn write_kubeconfig(&self, proof: &Proof<'_>) -> Result<PathBuf> {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.path().join(format!("{number}.kubeconfig"));
        fs::write(&path, kubeconfig(&self.url(), self.certificate(), proof))?;
        Ok(path)
    }

    /// Makes a command for the built `kubectl`, as the administrator unless `--kubeconfig` says
    /// otherwise.
    #[must_use]
    pub fn kubectl_command(&self) -> Command {
        let words = self.words(&self.programs.kubectl, &[] as &[&str]);
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self.directory.path().join("kubectl"))
            .stdin(Stdio::null());
        command
    }

    /// Runs `kubectl` to its end; returns its standard output.
    ///
    /// # Errors
    /// Returns an error if `kubectl` does not exit with status 0. The message has its standard
    /// error.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        output(self.kubectl_command().args(args), &format!("kubectl {}", args.join(" ")))
    }

    /// Applies a manifest, or all manifests in a directory.
    ///
    /// # Errors
    /// Returns an error if `kubectl apply` fails.
    pub fn apply(&self, path: &Path) -> Result<String> {
        output(self.kubectl_command().args(["apply", "-f"]).arg(path), &format!("kubectl apply -f {}", path.display()))
    }

    /// Applies the manifests in a text.
    ///
    /// # Errors
    /// Returns an error if `kubectl apply` fails.
    pub fn apply_text(&self, manifests: &str) -> Result<String> {
        let mut file = tempfile::NamedTempFile::new_in(self.directory.path())?;
        file.write_all(manifests.as_bytes())?;
        self.apply(file.path())
    }

    /// Starts the stopped or killed API server with the same address and data, and waits until it
    /// is ready.
    ///
    /// # Errors
    /// Returns an error if the API server already runs, or does not become ready.
    pub fn start_api_server(&self) -> Result<()> {
        let mut running = self.running();
        if running.api_server.is_some() {
            bail!("the API server is running");
        }
        let words = self.words(&self.programs.api_server, &self.api_server_flags());
        let log = self.logs.join("kube-apiserver.log");
        let daemon = Daemon::start("kube-apiserver", &log, &words, self.directory.path())?;
        // The daemon is stored first, so that a program that does not become ready is ended with
        // the other programs.
        let daemon = running.api_server.insert(daemon);
        daemon.until_output("Serving securely on")?;
        daemon.until("the API server to be ready", |_| self.ready())
    }

    /// Stops the API server, which completes its requests first.
    ///
    /// # Errors
    /// Returns an error if the API server does not run, or does not end.
    pub fn stop_api_server(&self) -> Result<()> {
        self.running().api_server.take().context("the API server is not running")?.stop()
    }

    /// Kills the API server.
    ///
    /// # Errors
    /// Returns an error if the program does not run.
    pub fn kill_api_server(&self) -> Result<()> {
        self.running().api_server.take().context("the API server is not running").map(drop)
    }

    /// Kills the API server and starts it again.
    ///
    /// # Errors
    /// Returns an error if the API server cannot be killed or started.
    pub fn restart_api_server(&self) -> Result<()> {
        self.kill_api_server()?;
        self.start_api_server()
    }

    /// Stops the API server's process, so that it answers no request, or lets it continue.
    ///
    /// # Errors
    /// Returns an error if the program does not run.
    pub fn hang_api_server(&self, hang: bool) -> Result<()> {
        self.running().api_server.as_mut().context("the API server is not running")?.hang(hang)
    }

    /// Kills etcd. The API server continues to run, and answers with errors.
    ///
    /// # Errors
    /// Returns an error if the program does not run.
    pub fn kill_etcd(&self) -> Result<()> {
        self.running().etcd.take().context("etcd is not running").map(drop)
    }

    /// Starts the killed etcd with its former data.
    ///
    /// # Errors
    /// Returns an error if etcd already runs, or does not become healthy.
    pub fn start_etcd(&self) -> Result<()> {
        let mut running = self.running();
        if running.etcd.is_some() {
            bail!("etcd is running");
        }
        let flags = [
            "--name=one",
            "--data-dir=etcd",
            "--logger=zap",
            "--log-outputs=stderr",
            &format!("--listen-client-urls={ETCD_CLIENTS}"),
            &format!("--advertise-client-urls={ETCD_CLIENTS}"),
            &format!("--listen-peer-urls={ETCD_PEERS}"),
            &format!("--initial-advertise-peer-urls={ETCD_PEERS}"),
            &format!("--initial-cluster=one={ETCD_PEERS}"),
        ];
        let words = self.words(&self.helpers.etcd, &flags);
        // A killed etcd leaves its sockets, to which another etcd cannot bind.
        for socket in ["etcd:1", "etcd:2"] {
            fs::remove_file(self.directory.path().join(socket)).ok();
        }
        let daemon = Daemon::start("etcd", &self.logs.join("etcd.log"), &words, self.directory.path())?;
        let socket = self.directory.path().join("etcd:1");
        running.etcd.insert(daemon).until("etcd to be healthy", |_| {
            // An earlier attempt would only wait for etcdctl's timeout.
            anyhow::ensure!(socket.exists(), "it does not listen yet");
            self.etcdctl(&["endpoint", "health"]).map(drop)
        })
    }

    /// Kills etcd, starts it again, and waits until the API server is ready with it.
    ///
    /// # Errors
    /// Returns an error if etcd cannot be killed or started, or the API server does not become
    /// ready.
    pub fn restart_etcd(&self) -> Result<()> {
        self.kill_etcd()?;
        self.start_etcd()?;
        let mut running = self.running();
        let daemon = running.api_server.as_mut().context("the API server is not running")?;
        daemon.until("the API server to be ready again", |_| self.ready())
    }

    /// Makes etcd drop all versions of all objects except the present ones. Returns its revision.
    ///
    /// The API server's watch cache still has earlier versions; [`Self::forget_history`] clears the
    /// cache too.
    ///
    /// # Errors
    /// Returns an error if etcd refuses.
    pub fn compact(&self) -> Result<u64> {
        let status = self.etcdctl(&["endpoint", "status", "--write-out=json"])?;
        let status: serde_json::Value =
            serde_json::from_str(&status).with_context(|| format!("etcd's status {status}"))?;
        let revision = status.pointer("/0/Status/header/revision").and_then(serde_json::Value::as_u64);
        let revision = revision.with_context(|| format!("etcd's status has no revision: {status}"))?;
        match self.etcdctl(&["compact", &revision.to_string()]) {
            Err(error) if !format!("{error:#}").contains("has been compacted") => Err(error),
            _ => Ok(revision),
        }
    }

    /// Makes the control plane drop all earlier versions. A client that requests the changes since
    /// a dropped version gets 410 Gone and must list again. This restarts the API server.
    ///
    /// # Errors
    /// Returns an error if etcd refuses, or the API server cannot be restarted.
    pub fn forget_history(&self) -> Result<()> {
        self.compact()?;
        self.restart_api_server()
    }

    fn ready(&self) -> Result<()> {
        self.kubectl(&["get", "--raw", "/readyz", "--request-timeout=5s"]).map(drop)
    }

    fn etcdctl(&self, args: &[&str]) -> Result<String> {
        let words = self.words(&self.helpers.etcdctl, &["--endpoints", ETCD_CLIENTS]);
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(args)
            .current_dir(self.directory.path())
            .env("ETCDCTL_API", "3")
            .stdin(Stdio::null());
        output(&mut command, &format!("etcdctl {}", args.join(" ")))
    }

    fn api_server_flags(&self) -> Vec<String> {
        let mut flags: Vec<String> = [
            "--bind-address=127.0.0.1",
            // No client in this cluster reaches the API server by a Service.
            "--endpoint-reconciler-type=none",
            "--advertise-address=192.0.2.1",
            "--service-cluster-ip-range=198.18.0.0/16",
            "--tls-cert-file=server.pem",
            "--tls-private-key-file=server.key",
            "--client-ca-file=ca.pem",
            "--authorization-mode=Node,RBAC",
            "--service-account-key-file=tokens.pub",
            "--service-account-signing-key-file=tokens.key",
            "--allow-privileged=true",
            "--profiling=false",
            // These limits are so high that only the machine limits the requests.
            "--max-requests-inflight=4000",
            "--max-mutating-requests-inflight=2000",
            // etcd drops old versions only when a test requests it.
            "--etcd-compaction-interval=0",
            "--shutdown-delay-duration=0s",
        ]
        .map(str::to_owned)
        .to_vec();
        flags.push(format!("--secure-port={}", self.port.number));
        flags.push(format!("--etcd-servers={ETCD_CLIENTS}"));
        flags.push(format!("--service-account-issuer={ISSUER}"));
        flags.push(format!("--api-audiences={ISSUER}"));
        flags.extend(self.options.api_server.iter().cloned());
        flags
    }

    fn words(&self, program: &Path, args: &[impl AsRef<OsStr>]) -> Vec<OsString> {
        let mut words = self.options.prefix.clone();
        if !words.is_empty() {
            // A program in another mount namespace starts at its root, but the paths of sockets and
            // keys are relative to this directory.
            words.extend(["env".into(), "-C".into(), self.directory.path().into()]);
        }
        if in_user_mode_linux() {
            let cpu = if program == self.programs.api_server { "1" } else { "0" };
            words.extend(["taskset", "-c", cpu].map(OsString::from));
        }
        words.push(program.into());
        words.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        words
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        // A test that panicked while it held the lock leaves the programs in a valid state.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether this is a guest of User-Mode Linux. Its kernel runs one thread of a process at a
/// time, and a thread on another CPU spins until the running one yields. Go's programs have at
/// least one thread for each CPU, and start many times slower in such a guest, unless each program
/// is bound to one CPU.
fn in_user_mode_linux() -> bool {
    static FOUND: LazyLock<bool> =
        LazyLock::new(|| fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| info.contains("User Mode Linux")));
    *FOUND
}

/// Runs a command to its end; returns its standard output.
fn output(command: &mut Command, shown: &str) -> Result<String> {
    let out = command.output().with_context(|| format!("{shown} cannot be run"))?;
    if !out.status.success() {
        bail!("{shown} ended with {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Returns the target directory that this program was built into.
fn target_directory() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let tagged = program.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file());
    tagged.map_or_else(std::env::temp_dir, Path::to_owned)
}

/// Returns shared memory if there is enough of it (containers often get 64 MiB), otherwise the
/// disk.
fn memory_directory() -> PathBuf {
    const ENOUGH: u64 = 1 << 30;
    let shm = Path::new("/dev/shm");
    let enough = rustix::fs::statvfs(shm).is_ok_and(|fs| fs.f_frsize.saturating_mul(fs.f_bavail) >= ENOUGH);
    let writable = rustix::fs::access(shm, rustix::fs::Access::WRITE_OK).is_ok();
    if enough && writable { shm.to_owned() } else { std::env::temp_dir() }
}
