//! Makes the state directory accessible to its owner only, even if an earlier release or the
//! operator gave other users access.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use tracing::{info, warn};

use super::contents::is_ours;

/// Creates the directory with mode 0700 if it is missing. Sets the mode of the agent's and the
/// plugin's files to 0600 if other users may read them. If the directory contains files of other
/// programs, those files and the directory's mode stay unchanged, because the operator may have
/// configured a directory that other programs need.
pub fn make_private(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut foreign = None;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !is_ours(&name) {
            foreign = Some(entry.path());
            continue;
        }
        // This call does not follow symbolic links.
        let found = entry.metadata()?;
        if found.is_file() && found.permissions().mode() & 0o077 != 0 {
            info!("{} is no longer readable by others", entry.path().display());
            fs::set_permissions(entry.path(), Permissions::from_mode(0o600))?;
        }
    }
    let mode = fs::metadata(directory)?.permissions().mode();
    match foreign {
        _ if mode & 0o077 == 0 => {}
        Some(foreign) => warn!(
            "{} may be read by others (mode {:04o}) and is left so, since {} in it is not ours; keep the state in a directory of its own",
            directory.display(),
            mode & 0o7777,
            foreign.display()
        ),
        None => {
            info!("{} is no longer readable by others", directory.display());
            fs::set_permissions(directory, Permissions::from_mode(0o700))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use edge_types::forwarding::FORWARDING_FILE;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    /// Collects the values of `const ...FILE: &str` in the source files below a directory.
    fn names_in(directory: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                names_in(&path, found);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let named = text.lines().filter_map(|line| line.split_once("FILE: &str = \"")?.1.strip_suffix("\";"));
            // Skips the search pattern in this test.
            found.extend(named.filter(|name| !name.contains('"')).map(str::to_owned));
        }
    }

    #[test]
    fn every_name_that_agent_and_plugin_write_there_is_ours() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut names = vec![];
        for directory in ["src", "../cni/src", "../types/src"] {
            names_in(&here.join(directory), &mut names);
        }
        for known in ["reqids.json", "taken-back.json", "leases", FORWARDING_FILE] {
            assert!(names.iter().any(|name| name == known), "{known} is not found in {names:?}");
        }
        let config = "[controller]\nurls = [\"https://controller.example:8443\"]\n";
        let config = crate::config::Config::parse(config, Path::new("agent.toml")).unwrap();
        for socket in [config.admin_socket(), config.plugin_socket()] {
            names.push(socket.file_name().unwrap().to_str().unwrap().to_owned());
        }
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("state");
        fs::create_dir(&directory).unwrap();
        for name in &names {
            fs::write(directory.join(name), "").unwrap();
            fs::set_permissions(directory.join(name), Permissions::from_mode(0o644)).unwrap();
        }
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        make_private(&directory).unwrap();
        let open: Vec<_> = names.iter().filter(|name| mode(&directory.join(name)) != 0o600).collect();
        assert!(open.is_empty(), "{open:?}");
        assert_eq!(mode(&directory), 0o700);
    }

    #[test]
    fn what_was_open_to_others_is_closed_and_what_is_not_ours_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("deep/state");
        make_private(&directory).unwrap();
        assert_eq!(mode(&directory), 0o700);
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        let outside = parent.path().join("outside");
        fs::write(&outside, "").unwrap();
        std::os::unix::fs::symlink(&outside, directory.join("view.json.damaged")).unwrap();
        for name in ["identity.json", "reqids.json", "leases"] {
            fs::write(directory.join(name), "").unwrap();
        }
        for path in
            [&outside, &directory.join("identity.json"), &directory.join("reqids.json"), &directory.join("leases")]
        {
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        }
        make_private(&directory).unwrap();
        assert_eq!(mode(&directory), 0o700);
        for name in ["identity.json", "reqids.json", "leases"] {
            assert_eq!(mode(&directory.join(name)), 0o600, "{name}");
        }
        assert_eq!(mode(&outside), 0o644, "no link is followed");
        // The directory also contains a file of another program.
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        fs::write(directory.join("passwd"), "").unwrap();
        fs::set_permissions(directory.join("passwd"), Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(directory.join("leases"), Permissions::from_mode(0o644)).unwrap();
        make_private(&directory).unwrap();
        assert_eq!(
            (mode(&directory), mode(&directory.join("passwd")), mode(&directory.join("leases"))),
            (0o755, 0o644, 0o600)
        );
    }
}
