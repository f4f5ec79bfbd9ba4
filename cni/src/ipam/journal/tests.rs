//! Tests the journal after a kill or a power cut, and with damaged or wrong lines.

use std::fs;

use super::*;
use crate::ipam::checksum::crc32;

const BOOT: &str = "11111111-2222-3333-4444-555555555555";
const NEXT_BOOT: &str = "66666666-7777-8888-9999-000000000000";

fn attachment(number: usize) -> Attachment {
    Attachment { container: format!("c{number}"), ifname: "eth0".into() }
}

fn lease(number: usize) -> Lease {
    let addresses = vec![
        IpAddr::from([10, 0, (number / 256) as u8, number as u8]),
        IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, number as u16]),
    ];
    Lease {
        addresses,
        network: "pods".into(),
        pod: number.is_multiple_of(2).then(|| format!("default/web-{number}")),
        mac: number.is_multiple_of(3).then_some([2, 0, 0, 0, 0, number as u8]),
    }
}

fn enter(directory: &Path, boot: &str, numbers: impl IntoIterator<Item = usize>) {
    let mut journal = Journal::open(directory, boot).unwrap();
    for number in numbers {
        journal.enter_lease(&attachment(number), &lease(number)).unwrap();
    }
    journal.finish().sync_data().unwrap();
}

fn held(directory: &Path, boot: &str) -> Vec<String> {
    let journal = Journal::open(directory, boot).unwrap();
    journal.whole().unwrap().iter().map(|(attachment, _)| attachment.container.clone()).collect()
}

#[test]
fn a_checksum_that_runs_on_is_that_of_the_whole_and_has_the_check_value_of_its_definition() {
    assert_eq!(crc32(0, b"123456789"), 0xcbf4_3926);
    assert_eq!(crc32(crc32(0, b"1234"), b"56789"), 0xcbf4_3926);
}

#[test]
fn leases_come_back_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    enter(directory.path(), BOOT, 1..=3);
    let mut journal = Journal::open(directory.path(), BOOT).unwrap();
    assert_eq!(journal.get(&attachment(2)).unwrap(), Some(lease(2)));
    assert_eq!(journal.get(&attachment(3)).unwrap(), Some(lease(3)));
    assert_eq!(journal.end_lease(&attachment(2), 7).unwrap(), Some(lease(2)));
    assert_eq!(journal.end_lease(&attachment(2), 8).unwrap(), None);
    let all =
        |journal: &Journal| (journal.whole().unwrap().iter().collect::<Vec<_>>(), journal.whole().unwrap().freed());
    let before = all(&journal);
    drop(journal);
    assert_eq!(all(&Journal::open(directory.path(), BOOT).unwrap()), before);
}

#[test]
fn history_is_dropped_and_the_order_of_freed_addresses_kept() {
    let directory = tempfile::tempdir().unwrap();
    enter(directory.path(), BOOT, [1, 2]);
    for round in 0..2000 {
        let mut journal = Journal::open(directory.path(), BOOT).unwrap();
        let number = 10 + round % 5;
        journal.enter_lease(&attachment(number), &lease(number)).unwrap();
        journal.end_lease(&attachment(number), round as u64).unwrap();
        drop(journal.finish());
    }
    let size = fs::metadata(directory.path().join("leases")).unwrap().len();
    assert!(size < 64 * 1024, "{size} bytes");
    let journal = Journal::open(directory.path(), BOOT).unwrap();
    assert_eq!(journal.whole().unwrap().iter().count(), 2);
    let freed: Vec<u64> = journal.whole().unwrap().freed().into_iter().map(|(_, at)| at).collect();
    assert_eq!(freed, [1995, 1995, 1996, 1996, 1997, 1997, 1998, 1998, 1999, 1999]);
}

#[test]
fn within_one_boot_any_shortening_is_an_error_that_names_the_file_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    enter(directory.path(), BOOT, 1..=3);
    let path = directory.path().join("leases");
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = Journal::open(directory.path(), BOOT).unwrap_err();
        assert_eq!(error.code, Code::DamagedState, "{length} bytes");
        assert!(error.message.contains(path.to_str().unwrap()), "{error}");
        assert_eq!(fs::read(&path).unwrap(), whole[..length]);
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(Journal::open(directory.path(), BOOT).unwrap_err().code, Code::DamagedState);
    fs::write(&path, &whole).unwrap();
    assert_eq!(held(directory.path(), BOOT), ["c1", "c2", "c3"]);
}

#[test]
fn any_changed_byte_is_found() {
    let directory = tempfile::tempdir().unwrap();
    enter(directory.path(), BOOT, 1..=3);
    let path = directory.path().join("leases");
    let whole = fs::read(&path).unwrap();
    for index in 0..whole.len() {
        let mut changed = whole.clone();
        changed[index] ^= 1;
        fs::write(&path, &changed).unwrap();
        assert_eq!(Journal::open(directory.path(), BOOT).unwrap_err().code, Code::DamagedState, "byte {index}");
    }
}

#[test]
fn a_line_that_a_killed_process_left_half_written_is_dropped_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    enter(directory.path(), BOOT, 1..=2);
    let path = directory.path().join("leases");
    let before = fs::read(&path).unwrap();
    let mark = fs::read(directory.path().join("leases.mark")).unwrap();
    enter(directory.path(), BOOT, [3]);
    let after = fs::read(&path).unwrap();
    for length in before.len()..=after.len() {
        fs::write(&path, &after[..length]).unwrap();
        fs::write(directory.path().join("leases.mark"), &mark).unwrap();
        let expected: &[&str] = if length == after.len() { &["c1", "c2", "c3"] } else { &["c1", "c2"] };
        assert_eq!(held(directory.path(), BOOT), expected, "{length} bytes");
        enter(directory.path(), BOOT, [4]);
        assert_eq!(held(directory.path(), BOOT).last().unwrap(), "c4");
    }
}

#[test]
fn a_kill_between_rewriting_and_marking_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    enter(directory.path(), BOOT, 1..=2);
    let mark = fs::read(directory.path().join("leases.mark")).unwrap();
    let journal = Journal::open(directory.path(), BOOT).unwrap();
    rewrite(&journal.path, BOOT, journal.whole().unwrap(), journal.end.generation).unwrap();
    assert_eq!(fs::read(directory.path().join("leases.mark")).unwrap(), mark);
    assert_eq!(held(directory.path(), BOOT), ["c1", "c2"]);
}

#[test]
fn leases_end_with_the_boot_that_they_were_given_in() {
    let directory = tempfile::tempdir().unwrap();
    enter(directory.path(), BOOT, 1..=3);
    assert!(held(directory.path(), NEXT_BOOT).is_empty());
    enter(directory.path(), NEXT_BOOT, [1]);
    assert_eq!(held(directory.path(), NEXT_BOOT), ["c1"]);
}

#[test]
fn a_journal_cut_by_a_power_failure_does_not_keep_the_node_from_starting() {
    for length in [0, 1, 40, 90] {
        let directory = tempfile::tempdir().unwrap();
        enter(directory.path(), BOOT, 1..=3);
        let path = directory.path().join("leases");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..length]).unwrap();
        assert!(held(directory.path(), NEXT_BOOT).is_empty());
        enter(directory.path(), NEXT_BOOT, [7]);
        assert_eq!(held(directory.path(), NEXT_BOOT), ["c7"]);
    }
}

#[test]
fn without_a_mark_a_torn_line_of_an_earlier_boot_does_not_stop_the_node_and_one_of_this_boot_does() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("leases");
    enter(directory.path(), BOOT, 1..=3);
    let whole = fs::read(&path).unwrap();
    let first_line = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for length in [first_line + 1, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        fs::remove_file(mark_path(directory.path())).unwrap();
        assert!(Journal::open(directory.path(), BOOT).is_err(), "{length}");
        assert!(held(directory.path(), NEXT_BOOT).is_empty(), "{length}");
    }
}

#[test]
fn space_that_is_reserved_is_not_reserved_again() {
    let directory = tempfile::tempdir().unwrap();
    enter(directory.path(), BOOT, 1..=3);
    let changed = || {
        let file = fs::metadata(directory.path().join("leases")).unwrap();
        (file.ctime(), file.ctime_nsec(), file.blocks())
    };
    let ask = || Journal::open(directory.path(), BOOT).unwrap().require_room().unwrap();
    ask();
    let before = changed();
    for _ in 0..3 {
        ask();
    }
    assert_eq!(changed(), before);
}

#[test]
fn an_older_copy_of_the_journal_is_not_taken_for_the_present_one() {
    let directory = tempfile::tempdir().unwrap();
    enter(directory.path(), BOOT, [1]);
    let path = directory.path().join("leases");
    let old = fs::read(&path).unwrap();
    let journal = Journal::open(directory.path(), BOOT).unwrap();
    let leases = journal.whole().unwrap();
    let (file, end, lines) = rewrite(&journal.path, BOOT, leases, journal.end.generation).unwrap();
    Journal { file, end, lines, ..journal }.write_mark().unwrap();
    fs::write(&path, old).unwrap();
    assert!(Journal::open(directory.path(), BOOT).unwrap_err().message.contains("generation"));
}

proptest::proptest! {
    #[test]
    fn arbitrary_content_never_panics(bytes: Vec<u8>) {
        let _ = replay(&bytes, Some(3));
        let _ = JournalEnd::parse(&bytes);
    }
}
