//! What takes a node out of the network.

use edge_types::NodeName;

use super::{Change, State};
use crate::clock::Seconds;
use crate::segments::Row;

impl State {
    /// What takes a registered node out of the network: the rows of its segments, released, and the
    /// changes.
    pub fn deregistration(&self, node: &NodeName, now: Seconds) -> Option<(Vec<Row>, Vec<Change>)> {
        self.nodes.get(node)?;
        let held = self.ledger.held_by(node).into_iter();
        let rows: Vec<Row> = held.map(|row| Row { released_at: Some(now), ..row.clone() }).collect();
        let releases = rows.iter().cloned().map(Change::PutSegment);
        let changes = std::iter::once(Change::DeleteNode(node.clone())).chain(releases).collect();
        Some((rows, changes))
    }

    /// The same for a node of which nobody said that its machine is gone: its segments are kept as
    /// long as its certificates are valid, since its pods may use them for so long.
    pub fn departure(&self, node: &NodeName, now: Seconds) -> Option<(Vec<Row>, Vec<Change>)> {
        let record = self.nodes.get(node)?;
        let until = record.certificates.iter().map(|certificate| certificate.not_after).max().filter(|end| *end > now);
        let (mut rows, mut changes) = self.deregistration(node, now)?;
        rows.iter_mut().for_each(|row| row.kept_until = until);
        for change in &mut changes {
            if let Change::PutSegment(row) = change {
                row.kept_until = until;
            }
        }
        Some((rows, changes))
    }

    /// Released segments that are kept for a name.
    pub fn kept_for<'a>(&'a self, node: &'a NodeName, now: Seconds) -> impl Iterator<Item = &'a Row> {
        let kept = move |row: &&Row| row.released_at.is_some() && row.kept_until.is_some_and(|until| until > now);
        self.ledger.rows().filter(move |row| row.node == *node).filter(kept)
    }

    /// What ends that, once it is known that the machine is gone; `None` where nothing is kept for
    /// this name.
    pub fn let_go(&self, node: &NodeName, now: Seconds) -> Option<(Vec<Row>, Vec<Change>)> {
        let rows: Vec<Row> = self.kept_for(node, now).map(|row| Row { kept_until: None, ..row.clone() }).collect();
        let changes = rows.iter().cloned().map(Change::PutSegment).collect();
        (!rows.is_empty()).then_some((rows, changes))
    }
}
