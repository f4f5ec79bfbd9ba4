//! Keeps the current view on disk: `view.json`, and a second file with the changes since
//! `view.json` was written.

use std::path::Path;
use std::sync::Arc;

use edge_types::shared_files::VIEW_FILE;
use edge_types::{NodeView, ViewChange};

use crate::state_dir::{ChangeLog, StateDirError, json_bytes, read_json_with_changes};

/// The change that led to a view from the stream.
#[derive(Debug, Clone)]
pub(super) struct ViewStep {
    /// The previous view.
    pub(super) before: Arc<NodeView>,
    /// The difference from `before`.
    pub(super) change: ViewChange,
}

/// Writes a view to disk. `change` is the difference from the view on disk, if it is known. If it
/// is, a node that joins causes only one line to be written, no matter how many peers there are.
pub(super) fn write(
    file: &mut ChangeLog,
    state_dir: &Path,
    view: &NodeView,
    change: Option<&ViewChange>,
) -> Result<(), StateDirError> {
    if let Some(change) = change.filter(|change| change.version == view.version)
        && let Ok(line) = serde_json::to_string(change)
        && file.append(&line)?
    {
        return Ok(());
    }
    file.replace(&json_bytes(&state_dir.join(VIEW_FILE), view)?)
}

/// Returns the view on disk with the later changes applied; `None` if there is no view.
pub(super) fn read(state_dir: &Path) -> Result<Option<NodeView>, StateDirError> {
    let advice = "the next view from the controller replaces it";
    let Some((mut view, changes)) = read_json_with_changes::<NodeView, ViewChange>(&state_dir.join(VIEW_FILE), advice)?
    else {
        return Ok(None);
    };
    for change in changes {
        if change.from != view.version {
            break;
        }
        let Some(next) = change.apply_to(view) else { return Ok(None) };
        view = next;
    }
    Ok(Some(view))
}

/// Creates the log that writes `view.json` in this directory.
pub(super) fn log(state_dir: &Path) -> ChangeLog {
    ChangeLog::new(state_dir.join(VIEW_FILE))
}

#[cfg(test)]
mod tests {
    use edge_types::{Peer, Role, SharedPeer};

    use super::*;
    use crate::test_view::empty_view;

    fn peer(number: usize, certificates_from: i64) -> SharedPeer {
        SharedPeer::from(Peer {
            name: format!("edge-{number:05}").parse().unwrap(),
            role: Role::Edge,
            endpoints: vec![],
            segments: vec![],
            networks: vec![],
            mapped: vec![],
            tcp_port: None,
            on_demand_in: Default::default(),
            certificates_from,
        })
    }

    #[test]
    fn the_view_on_disk_is_the_last_one_after_any_number_of_changes() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), None);
        let mut file = log(directory.path());
        let mut view =
            NodeView { version: 1, peers: (0..2000).map(|number| peer(number, 0)).collect(), ..empty_view() };
        write(&mut file, directory.path(), &view, None).unwrap();
        let whole = std::fs::read(directory.path().join(VIEW_FILE)).unwrap();
        for from in 1..20 {
            let gone = vec![peer(from, 0).name.clone()];
            let put = vec![peer(1999 - from, 7), peer(2000 + from, 0)];
            let own = (from == 9)
                .then(|| Box::new(NodeView { segments: vec!["10.77.0.0/26".parse().unwrap()], ..empty_view() }));
            let change = ViewChange { from: from as u64, version: from as u64 + 1, own, put, gone };
            view = change.clone().apply_to(view).unwrap();
            write(&mut file, directory.path(), &view, Some(&change)).unwrap();
            assert_eq!(read(directory.path()).unwrap().as_ref(), Some(&view));
            assert_eq!(
                std::fs::read(directory.path().join(VIEW_FILE)).unwrap(),
                whole,
                "the whole view is not written"
            );
        }
        // A change that does not apply to the version before it is ignored, together with all
        // changes after it.
        let odd: ViewChange = ViewChange { from: 40, version: 41, own: None, put: vec![], gone: vec![] };
        assert!(file.append(&serde_json::to_string(&odd).unwrap()).unwrap());
        assert_eq!(read(directory.path()).unwrap().as_ref(), Some(&view));
    }

    #[test]
    fn a_small_view_is_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = log(directory.path());
        let view = NodeView { version: 1, peers: vec![peer(1, 0)].into(), ..empty_view() };
        write(&mut file, directory.path(), &view, None).unwrap();
        let change = ViewChange { from: 1, version: 2, own: None, put: vec![peer(2, 0)], gone: vec![] };
        let view = change.clone().apply_to(view).unwrap();
        write(&mut file, directory.path(), &view, Some(&change)).unwrap();
        let written = std::fs::read(directory.path().join(VIEW_FILE)).unwrap();
        assert_eq!(serde_json::from_slice::<NodeView>(&written).unwrap(), view);
    }
}
