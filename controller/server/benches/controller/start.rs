//! Measures the time from the start of the program until it is ready, with a store that holds all
//! nodes and their segments. The reference only reads the same rows.

use std::time::Instant;

use edge_controller_domain::store::embedded::FILE;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::Size;
use crate::cluster::Cluster;
use crate::program::Program;
use crate::report::{Goal, Report, percentile};

/// Goal in milliseconds.
const GOAL: Goal = Goal::AtMost(2000.0);

pub(crate) fn measure(cluster: &Cluster, size: Size, report: &mut Report) {
    let (mut ours, mut reference) = (Vec::new(), Vec::new());
    for _ in 0..size.starts {
        reference.push(read(cluster));
        let controller = Program::controller(cluster, None);
        ours.push(controller.took.as_secs_f64() * 1e3);
        controller.stop();
    }
    Program::controller(cluster, None).kill();
    let controller = Program::controller(cluster, None);
    println!("{:<20} {:.0} ms after a kill", "", controller.took.as_secs_f64() * 1e3);
    controller.stop();
    let reference = (percentile(&mut reference, 0.5), "reading the same rows");
    report.add("start/10000", "ms", percentile(&mut ours, 0.5), reference, GOAL);
}

/// Returns how many milliseconds it takes to read the rows.
fn read(cluster: &Cluster) -> f64 {
    let started = Instant::now();
    let database = Database::open(cluster.state().join(FILE)).expect("the store");
    let read = database.begin_read().expect("the store");
    let mut octets = 0;
    for name in ["nodes", "segments"] {
        let table = read.open_table(TableDefinition::<&str, &[u8]>::new(name)).expect("a table");
        for row in table.iter().expect("a table") {
            octets += row.expect("a row").1.value().len();
        }
    }
    assert_ne!(octets, 0);
    started.elapsed().as_secs_f64() * 1e3
}
