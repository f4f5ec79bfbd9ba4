//! etcd and `kube-apiserver` on loopback, for one test or for several.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};

use super::daemon::{Daemon, Folder};
use super::pki::{Authority, Proof, kubeconfig, token_keys};
use super::port::Port;
use super::programs::{Helpers, Programs};

/// etcd's sockets, which lie in the control plane's private folder: it wants them to look like host
/// and port.
const ETCD_CLIENTS: &str = "unix://etcd:1";
const ETCD_PEERS: &str = "unix://etcd:2";

/// Who the tokens of service accounts are from and for.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Where etcd keeps its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// In shared memory where there is enough of it: fsync costs nothing.
    #[default]
    Memory,
    /// On the disk of the target folder: each write waits for it, as in a real cluster.
    Disk,
}

/// What a control plane is to be like, where the defaults do not fit.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where etcd keeps its data.
    pub storage: Storage,
    /// Further flags of `kube-apiserver`; a flag that is repeated counts as said last.
    /// `--watch-cache=false` makes it forget at once what etcd forgets.
    pub api_server: Vec<String>,
    /// Words before each program, such as those that enter the namespaces of a lab's host. The
    /// programs' folder must be seen from there.
    pub prefix: Vec<OsString>,
    /// A folder for logs, which is emptied first; by default the name's below `target/kube-logs`.
    pub logs: Option<PathBuf>,
}

/// A running control plane. Everything it started ends when it is dropped, and when this process
/// ends, however it ends.
#[derive(Debug)]
pub struct ControlPlane {
    options: Options,
    programs: Programs,
    helpers: Helpers,
    authority: Authority,
    port: Port,
    logs: PathBuf,
    kubeconfig: PathBuf,
    written: AtomicU32,
    running: Mutex<Running>,
    // Last: the programs end before their folder goes.
    folder: Folder,
}

#[derive(Debug, Default)]
struct Running {
    api_server: Option<Daemon>,
    etcd: Option<Daemon>,
}

impl ControlPlane {
    /// Starts one with the defaults; `name` is the folder of its logs below `target/kube-logs`.
    ///
    /// # Errors
    /// As [`Self::start_with`].
    pub fn start(name: &str) -> Result<Self> {
        Self::start_with(name, Options::default())
    }

    /// Starts one, and waits until it is ready. Any number may run at once, each under a name of
    /// its own.
    ///
    /// # Errors
    /// When a program is missing, or ends, or is not ready in time; the message has its last words
    /// and the path of its log.
    pub fn start_with(name: &str, options: Options) -> Result<Self> {
        let programs = super::ensure()?;
        let helpers = Helpers::find()?;
        let logs = options.logs.clone().unwrap_or_else(|| target_folder().join("kube-logs").join(name));
        // Logs are of the last run.
        fs::remove_dir_all(&logs).ok();
        fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
        let folder = Folder::new_in(&match options.storage {
            Storage::Memory => memory_folder(),
            Storage::Disk => logs.clone(),
        })?;
        let plane = Self {
            options,
            programs,
            helpers,
            authority: Authority::new()?,
            port: Port::claim()?,
            kubeconfig: folder.path().join("admin.kubeconfig"),
            written: AtomicU32::new(0),
            running: Mutex::default(),
            logs,
            folder,
        };
        plane.write_files()?;
        plane.start_etcd()?;
        plane.start_api_server()?;
        Ok(plane)
    }

    fn write_files(&self) -> Result<()> {
        let put = |name: &str, text: &str| {
            fs::write(self.folder.path().join(name), text).with_context(|| format!("writing {name}"))
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

    /// The API server's address. It does not change.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port.number)
    }

    /// The certificate of the cluster's authority, which signed the API server's.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.authority.certificate
    }

    /// The folder with `etcd.log` and `kube-apiserver.log`.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// A kubeconfig that may do everything (`system:masters`).
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A kubeconfig of a user with a client certificate, who has only the rights that somebody
    /// grants.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_for_user(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let client = self.authority.client(user, group)?;
        self.write_kubeconfig(&Proof::Certificate(&client))
    }

    /// A kubeconfig of a service account that is there, with a fresh token of one hour.
    ///
    /// # Errors
    /// When the API server gives no token.
    pub fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.kubectl(&["create", "token", name, "--namespace", namespace])?;
        self.write_kubeconfig(&Proof::Token(token.trim()))
    }

    fn write_kubeconfig(&self, proof: &Proof<'_>) -> Result<PathBuf> {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.path().join(format!("{number}.kubeconfig"));
        fs::write(&path, kubeconfig(&self.url(), self.certificate(), proof))?;
        Ok(path)
    }

    /// The built `kubectl`, as the administrator unless `--kubeconfig` says otherwise.
    #[must_use]
    pub fn kubectl_command(&self) -> Command {
        let words = self.words(&self.programs.kubectl, &[] as &[&str]);
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self.folder.path().join("kubectl"))
            .stdin(Stdio::null());
        command
    }

    /// Runs `kubectl` to its end; returns its standard output.
    ///
    /// # Errors
    /// When it ends with anything but 0; the message has what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        output(self.kubectl_command().args(args), &format!("kubectl {}", args.join(" ")))
    }

    /// Applies a manifest, or those in a folder.
    ///
    /// # Errors
    /// When `kubectl apply` fails.
    pub fn apply(&self, path: &Path) -> Result<String> {
        output(self.kubectl_command().args(["apply", "-f"]).arg(path), &format!("kubectl apply -f {}", path.display()))
    }

    /// Applies manifests from a text.
    ///
    /// # Errors
    /// When `kubectl apply` fails.
    pub fn apply_text(&self, manifests: &str) -> Result<String> {
        let mut file = tempfile::NamedTempFile::new_in(self.folder.path())?;
        file.write_all(manifests.as_bytes())?;
        self.apply(file.path())
    }

    /// Starts the API server, which was stopped or killed, with the same address and data, and
    /// waits until it is ready.
    ///
    /// # Errors
    /// When it runs, or does not become ready.
    pub fn start_api_server(&self) -> Result<()> {
        let mut running = self.running();
        if running.api_server.is_some() {
            bail!("the API server is running");
        }
        let words = self.words(&self.programs.api_server, &self.api_server_flags());
        let log = self.logs.join("kube-apiserver.log");
        let daemon = Daemon::start("kube-apiserver", &log, &words, self.folder.path())?;
        // Kept first: one that does not become ready ends with the rest.
        let daemon = running.api_server.insert(daemon);
        daemon.until_said("Serving securely on")?;
        daemon.until("the API server to be ready", |_| self.ready())
    }

    /// Stops the API server in its own way: it lets requests end first.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub fn stop_api_server(&self) -> Result<()> {
        self.running().api_server.take().context("the API server is not running")?.stop()
    }

    /// Kills the API server in the middle of whatever it does.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_api_server(&self) -> Result<()> {
        self.running().api_server.take().context("the API server is not running").map(drop)
    }

    /// Kills the API server and starts it again.
    ///
    /// # Errors
    /// As its parts.
    pub fn restart_api_server(&self) -> Result<()> {
        self.kill_api_server()?;
        self.start_api_server()
    }

    /// Kills etcd: the API server goes on running, and answers that it cannot.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_etcd(&self) -> Result<()> {
        self.running().etcd.take().context("etcd is not running").map(drop)
    }

    /// Starts etcd, which was killed, with the data that it had.
    ///
    /// # Errors
    /// When it runs, or does not become healthy.
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
        // One that was killed leaves its sockets lying there, and does not bind to them again.
        for socket in ["etcd:1", "etcd:2"] {
            fs::remove_file(self.folder.path().join(socket)).ok();
        }
        let daemon = Daemon::start("etcd", &self.logs.join("etcd.log"), &words, self.folder.path())?;
        let socket = self.folder.path().join("etcd:1");
        running.etcd.insert(daemon).until("etcd to be healthy", |_| {
            // Trying before would only wait for etcdctl's own timeout.
            anyhow::ensure!(socket.exists(), "it does not listen yet");
            self.etcdctl(&["endpoint", "health"]).map(drop)
        })
    }

    /// Kills etcd, starts it again, and waits until the API server is ready with it.
    ///
    /// # Errors
    /// As its parts.
    pub fn restart_etcd(&self) -> Result<()> {
        self.kill_etcd()?;
        self.start_etcd()?;
        let mut running = self.running();
        let daemon = running.api_server.as_mut().context("the API server is not running")?;
        daemon.until("the API server to be ready again", |_| self.ready())
    }

    /// Makes etcd forget every version of every object but the present one; returns the revision
    /// that it is at.
    ///
    /// The API server's watch cache still remembers what it has seen; [`Self::forget_history`]
    /// makes it forget as well.
    ///
    /// # Errors
    /// When etcd refuses.
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

    /// Makes the whole control plane forget all but the present: whoever asks for changes since a
    /// version before it is told 410 Gone, and has to list again. The API server is restarted for
    /// it.
    ///
    /// # Errors
    /// As its parts.
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
            .current_dir(self.folder.path())
            .env("ETCDCTL_API", "3")
            .stdin(Stdio::null());
        output(&mut command, &format!("etcdctl {}", args.join(" ")))
    }

    fn api_server_flags(&self) -> Vec<String> {
        let mut flags: Vec<String> = [
            "--bind-address=127.0.0.1",
            // Nothing in this cluster reaches the API server through a Service.
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
            // The machine is the limit.
            "--max-requests-inflight=4000",
            "--max-mutating-requests-inflight=2000",
            // etcd forgets when a test says so.
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
            // Whoever enters another mount namespace begins at its root, and the paths of sockets
            // and keys are relative.
            words.extend(["env".into(), "-C".into(), self.folder.path().into()]);
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
        // A test that panicked leaves the programs as they are.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this is a guest of User-Mode Linux. It runs one thread of a process at a time, and a
/// thread that has its turn on the other CPU spins until the first one lets go; Go's programs, with
/// a thread for each CPU and more, come up many times slower unless each is kept on one.
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

/// The target folder that this program was built into.
fn target_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let tagged = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    tagged.map_or_else(std::env::temp_dir, Path::to_owned)
}

/// Shared memory where there is enough of it (containers often get 64 MiB), else the disk.
fn memory_folder() -> PathBuf {
    const ENOUGH: u64 = 1 << 30;
    let shm = Path::new("/dev/shm");
    let enough = rustix::fs::statvfs(shm).is_ok_and(|fs| fs.f_frsize.saturating_mul(fs.f_bavail) >= ENOUGH);
    let writable = rustix::fs::access(shm, rustix::fs::Access::WRITE_OK).is_ok();
    if enough && writable { shm.to_owned() } else { std::env::temp_dir() }
}
