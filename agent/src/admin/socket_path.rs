//! Finds the admin socket without reading the tables of the file, which takes most of a second with
//! ten thousand `[[peer]]` tables. Commands that only ask the running agent need no other key.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::config::{ADMIN_SOCKET, Config, ConfigError, default_run_dir, directory_of};

/// The key before all tables that decides where the socket is.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Keys {
    #[serde(default = "default_run_dir")]
    run_dir: PathBuf,
}

/// Returns the path of the socket for `edge-agent status` and other commands, as
/// [`Config::admin_socket`] does for a file that is correct. An error in a table of the file is not
/// noticed.
///
/// # Errors
/// If the file cannot be read, or an error in it leaves open where the socket is.
pub fn socket_path(path: &Path) -> Result<PathBuf, ConfigError> {
    match keys_before_tables(path) {
        Some(keys) => {
            let directory = directory_of(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
            Ok(directory.join(keys.run_dir).join(ADMIN_SOCKET))
        }
        None => Config::load(path).map(|config| config.admin_socket()),
    }
}

fn keys_before_tables(path: &Path) -> Option<Keys> {
    parse(BufReader::new(File::open(path).ok()?))
}

/// Reads the keys before the first line that begins with a bracket. If the file is TOML, this line
/// is the header of a table, or it is within a string or an array. In the second case the text
/// before it lacks the end of the string or array, and is not TOML. `None` if that is so, or the
/// file cannot be read.
fn parse(mut file: impl BufRead) -> Option<Keys> {
    let mut text = Zeroizing::new(Vec::new());
    loop {
        let begin = text.len();
        let length = file.read_until(b'\n', &mut text).ok()?;
        if length == 0 {
            break;
        }
        if text.get(begin..)?.trim_ascii_start().starts_with(b"[") {
            text.truncate(begin);
            break;
        }
    }
    toml::from_str(std::str::from_utf8(&text).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commands_find_the_socket_where_the_agent_opens_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        let controller = "[controller]\nurls = [\"https://192.0.2.1:443\"]\n";
        for keys in [
            "",
            "run_dir = \"/run/other\"\n",
            "# [cni]\nport = 1\nrun_dir = 'below'\n\n",
            "run_dir = \"\"\"\\\n[run]\"\"\"\n",
            "resolvers_behind_tunnels = [\n\"192.0.2.2\",\n]\nrun_dir = \"later\"\n",
        ] {
            let text = format!("{keys}{controller}");
            fs::write(&path, &text).unwrap();
            assert_eq!(socket_path(&path).unwrap(), Config::load(&path).unwrap().admin_socket(), "{text}");
        }
    }

    #[test]
    fn an_error_in_a_table_does_not_hide_the_socket_and_one_before_it_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        assert!(matches!(socket_path(&path), Err(ConfigError::Read { .. })));
        fs::write(&path, "run_dir = \"/run/other\"\n[[peer]]\nnane = \"moon\"\n").unwrap();
        assert_eq!(socket_path(&path).unwrap(), Path::new("/run/other/admin.sock"));
        for odd in ["run_dir = /run/other\n", "run_dir = 7\n", "x = [\n[[peer]]\n"] {
            fs::write(&path, odd).unwrap();
            assert!(matches!(socket_path(&path), Err(ConfigError::Syntax { .. })), "{odd}");
        }
    }

    /// Lines that are TOML together, and parts of such lines.
    const FRAGMENTS: [&str; 17] = [
        "a = 1\r",
        "b = \"[\" # [",
        "c = [ # [\n[1], [2],\n]",
        "d = '''\n[x]\n'''",
        "e = \"\"\"\n[[x]]\n\"\"\" # \"\"\"",
        "f = { g = [\n[1] ] }",
        "",
        "# [h]",
        "[i]",
        " \t[[j]]",
        "k = [",
        "[1],",
        "]",
        "l = \"\"\"",
        "\"\"\"",
        "'''",
        "m",
    ];

    proptest! {
        #[test]
        fn the_keys_are_those_of_the_whole_file(
            mut lines in Just(FRAGMENTS.to_vec()).prop_shuffle(),
            length in 0..7_usize,
            place in 0..7_usize,
        ) {
            lines.truncate(length);
            lines.insert(place.min(length), "run_dir = \"/a\"");
            let text = lines.join("\n");
            let (whole, found) = (toml::from_str::<Keys>(&text).ok(), parse(text.as_bytes()));
            prop_assert!(whole.is_none() || found.is_none() || whole == found, "{text}: {found:?}, {whole:?}");
        }
    }
}
