//! Implements the commands backup, restore, export and import.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use edge_controller_domain::archive::{self, Archive};
use edge_controller_domain::clock::{Clock, Seconds, rfc3339};
use edge_controller_domain::segments::Restored;
use edge_controller_domain::store::{Note, embedded};

use super::args::ArchiveTarget;
use super::client::Client;
use crate::config::Config;
use crate::server::Backends;

/// Beginning and end of an archive's name in a directory. The time of writing is between them.
const PREFIX: &str = "edge-controller-";
const SUFFIX: &str = ".archive";

/// Takes a backup from the running server.
pub(super) async fn backup(client: &Client, target: &ArchiveTarget) -> anyhow::Result<()> {
    target.check()?;
    if target.file == Path::new("-") {
        return client.download("/v1/backup", &mut io::stdout()).await;
    }
    let file = &target.path(Clock::system().now());
    let staged = StagedFile::create(file)?;
    client.download("/v1/backup", &mut &staged.open).await?;
    // An unreadable backup must be noticed now and not when it is needed.
    let archive = read(&staged.path)?;
    staged.publish(file)?;
    report(file, &archive.summary());
    target.remove_older()
}

/// Exports the store. A store in the state directory can be exported only while no server runs, a
/// store at the API server at any time.
pub(super) async fn export(config: &Config, target: &ArchiveTarget) -> anyhow::Result<()> {
    target.check()?;
    check_store(config)?;
    let now = Clock::system().now();
    let backends = Backends::open(config, now)
        .await
        .context("while the server runs, `edge-controller backup` writes the same file")?;
    let rows = backends.store.read().await?;
    let ca = backends.ca_storage.load().await?.map(|(document, _)| document);
    let archive = Archive::new(now, rows, ca);
    let summary = archive.summary();
    let file = &target.path(now);
    if file == Path::new("-") {
        return Ok(archive::write(archive, &mut io::stdout().lock())?);
    }
    let staged = StagedFile::create(file)?;
    let mut to = BufWriter::new(&staged.open);
    archive::write(archive, &mut to)?;
    to.flush()?;
    drop(to);
    staged.publish(file)?;
    report(file, &summary);
    target.remove_older()
}

impl ArchiveTarget {
    fn check(&self) -> anyhow::Result<()> {
        let sensible = self.keep.is_none() || self.file.is_dir();
        ensure!(sensible, "--keep is for a directory, and {} is none; nothing was written", self.file.display());
        Ok(())
    }

    /// Returns the path of the file to write. In a directory the file gets a generated name, so
    /// that names sort by time.
    fn path(&self, now: Seconds) -> PathBuf {
        match self.file.is_dir() {
            true => self.file.join(format!("{PREFIX}{}{SUFFIX}", rfc3339(now).replace([':', '-'], ""))),
            false => self.file.clone(),
        }
    }

    /// Removes the oldest archives from the directory if there are more than the number to keep.
    /// Files with other names stay.
    fn remove_older(&self) -> anyhow::Result<()> {
        let Some(keep) = self.keep.filter(|_| self.file.is_dir()) else { return Ok(()) };
        let listed = std::fs::read_dir(&self.file).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let listed = listed.with_context(|| format!("cannot list {}", self.file.display()))?;
        let is_archive = |name: &str| {
            let time = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
            time.is_some_and(|time| time.len() == "20261127T000512Z".len() && time.ends_with('Z'))
        };
        let mut names: Vec<String> =
            listed.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| is_archive(name));
        names.sort_unstable();
        let more = names.len().saturating_sub(keep.get().try_into()?);
        for name in &names[..more] {
            let path = self.file.join(name);
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            eprintln!("removed {}", path.display());
        }
        Ok(())
    }
}

/// Imports an archive into the configured store.
pub(super) async fn import(config: &Config, file: &Path) -> anyhow::Result<()> {
    let archive = read(file)?;
    let summary = archive.summary();
    crate::server::make_state_dir(config)?;
    archive::check_not_restoring(&config.state_dir)?;
    let now = Clock::system().now();
    let backends = Backends::open(config, now).await?;
    let missing = archive::import(&*backends.store, &*backends.ca_storage, archive, now).await?;
    eprintln!("imported {summary}; {missing} rows were not there yet");
    Ok(())
}

/// Replaces the state directory with an archive.
pub(super) async fn restore(config: &Config, file: &Path, replace: bool) -> anyhow::Result<()> {
    if config.store_is_at_api_server() {
        bail!(
            "nothing is restored: the store of this configuration is at the Kubernetes API server, not in {}; bring the archive \
             there with `edge-controller import`",
            config.state_dir.display()
        );
    }
    let archive = read(file)?;
    let summary = archive.summary();
    crate::server::make_state_dir(config)?;
    let former = archive::restore(archive, &config.state_dir, replace, &Clock::system()).await?;
    eprintln!("restored {summary}");
    if let Some(former) = former {
        eprintln!("the former content is in {}; remove it when it is not needed any more", former.display());
    }
    Ok(())
}

/// Records that the store is an old copy that was restored by means other than these commands.
pub(super) async fn restored(config: &Config) -> anyhow::Result<()> {
    check_store(config)?;
    let clock = Clock::system();
    let backends = Backends::open(config, clock.now()).await.context("stop the server first")?;
    clock.not_before(backends.store.read().await?.time);
    backends.store.set_note(Note::Restored, Restored::at(clock.now()).to_note()).await?;
    eprintln!("noted; it counts from the next start of edge-controller, of all replicas");
    Ok(())
}

/// Refuses to create a new store if a store should exist already.
fn check_store(config: &Config) -> anyhow::Result<()> {
    if !config.store_is_at_api_server() {
        let store = config.state_dir.join(embedded::FILE);
        ensure!(store.exists(), "the store {} does not exist; check state_dir", store.display());
    }
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<Archive> {
    let open = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    archive::read(BufReader::new(open))
        .with_context(|| format!("{} cannot be used, and nothing was changed", file.display()))
}

fn report(file: &Path, summary: &str) {
    eprintln!("wrote {}: {summary}. It holds the authorities' private keys: keep it as secret as that", file.display());
}

/// A file that is first written under a temporary name and is removed unless it is published under
/// its final name. An archive is written piece by piece, so this is not
/// `edge_types::durable::replace_file`, which takes the whole content.
pub(super) struct StagedFile {
    path: PathBuf,
    pub(super) open: File,
}

impl StagedFile {
    pub(super) fn create(file: &Path) -> anyhow::Result<Self> {
        let mut name = file.file_name().with_context(|| format!("{} is no file name", file.display()))?.to_owned();
        name.push(".part");
        let path = file.with_file_name(name);
        // A temporary file from an earlier run may have other permissions.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace {}", path.display()));
            }
            _ => {}
        }
        let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let open = open.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, open })
    }

    pub(super) fn publish(&self, file: &Path) -> anyhow::Result<()> {
        let published = (|| {
            self.open.sync_all()?;
            std::fs::rename(&self.path, file)?;
            let directory =
                file.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(directory)?.sync_all()
        })();
        published.with_context(|| format!("cannot write {}", file.display()))
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        // If the file was published, the temporary name no longer exists.
        let _ = std::fs::remove_file(&self.path);
    }
}
