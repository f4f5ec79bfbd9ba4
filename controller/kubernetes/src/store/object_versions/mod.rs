//! Tracks the version of every object and whether the registry has processed that version.
//!
//! A change may be written only over the version on which it was planned. The registry plans on the
//! events that it has processed and on its own writes. A plan is not based on events that were sent
//! to the registry but not processed yet. So every event has a number, and the registry reports the
//! last one that it has processed ([`ObjectVersions::acknowledged`]). An object with a later event
//! is not overwritten: that is a conflict, as if the API server had refused the write.
//!
//! While a write of this replica is in flight, the watch's events about that object wait. These
//! events may be the echo of the write, or earlier or later changes. After the API server has
//! answered, the versions show which of these they are.
//!
//! A missing object was not necessarily deleted on purpose: its definition (CRD) may have been
//! deleted. So its row is kept until the reason is known (see `missing_objects`), unless a replica
//! has marked the object for its own deletion.
//!
//! - [`versions`]: tracks the versions of all objects in [`ObjectVersions`], which takes lists and
//!   events.
//! - [`entry`]: holds the known state of one object and the events about it.
//! - [`missing`]: handles missing objects; [`deleted`]: forgets deleted ones; [`writes`]: handles
//!   writes by this replica.

mod deleted;
mod entry;
mod missing;
mod versions;
mod writes;

pub(super) use entry::{MissingObject, NumberedEvent, ObjectEvent, RowEvent, deletion};
pub(super) use versions::ObjectVersions;
pub(super) use writes::{NotWritable, WriteBase};

#[cfg(test)]
mod tests;
