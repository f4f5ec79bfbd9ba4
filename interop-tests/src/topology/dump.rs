//! Dumps the kernel's state when a scenario fails.

use std::path::Path;
use std::sync::Mutex;

use super::namespaces::Namespaces;

/// The namespaces of all nodes and pods of this scenario. The list is global, since another thread
/// dumps a scenario that hangs.
static ALL: Mutex<Vec<Namespaces>> = Mutex::new(Vec::new());

pub(super) fn register(namespaces: &Namespaces) {
    if let Ok(mut all) = ALL.lock() {
        all.push(namespaces.clone());
    }
}

/// Writes the kernel's state of each node and pod of this scenario to `NAME.kernel.txt`.
pub fn dump_all(out: &Path) {
    let all = ALL.lock().map(|all| all.clone()).unwrap_or_default();
    for namespaces in all {
        let file = out.join(format!("{}.kernel.txt", namespaces.name()));
        std::fs::write(file, namespaces.kernel_dump()).ok();
    }
}

/// Returns the names of this scenario's nodes and pods, and the shell commands that enter them, for
/// `--keep`.
pub(crate) fn enter_commands() -> Vec<(String, String)> {
    let all = ALL.lock().map(|all| all.clone()).unwrap_or_default();
    all.iter()
        .map(|namespaces| {
            let command = namespaces.command("");
            let words: Vec<_> = command
                .get_args()
                .take_while(|word| *word != "--")
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            (namespaces.name().to_owned(), format!("nsenter {} --", words.join(" ")))
        })
        .collect()
}
