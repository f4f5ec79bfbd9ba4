//! Tests the index against the whole journal: queries must always have the same results with both.

use std::fs;

use edge_types::IpNetwork;
use edge_types::api::Family;

use super::layout::MAGIC;
use super::*;
use crate::error::Code;
use crate::ipam::journal::Journal;
use crate::ipam::leases::Lease;
use crate::request::Attachment;
use crate::reserved::Reserved;

const BOOT: &str = "11111111-2222-3333-4444-555555555555";

/// Number of leases with which a journal is large enough for an index.
const ENOUGH: usize = 120;

fn attachment(number: usize) -> Attachment {
    Attachment { container: format!("container-{number}"), ifname: "eth0".into() }
}

fn segments() -> Vec<IpNetwork> {
    ["10.0.0.0/24", "10.0.9.128/25", "fd77::/120", "fd77:0:0:1::/64"].map(|text| text.parse().unwrap()).to_vec()
}

fn reserved() -> Reserved {
    Reserved::new(["10.0.0.7-10.0.0.20", "fd77::80/121"].iter().map(|text| text.parse().unwrap()).collect())
}

/// Leases the next address of each family. Returns whether there was one.
fn take(journal: &mut Journal, number: usize, now: u64) -> bool {
    let next = |family| journal.next_address(&segments(), &reserved(), family, now).unwrap();
    let (Some(ipv4), Some(ipv6)) = (next(Family::V4), next(Family::V6)) else { return false };
    let addresses = vec![ipv4.address, ipv6.address];
    let lease = Lease { addresses, network: "pods".into(), pod: Some(format!("default/web-{number}")), mac: None };
    journal.enter_lease(&attachment(number), &lease).unwrap();
    true
}

/// Creates a directory with a journal of these leases and its index.
fn with_leases(numbers: std::ops::Range<usize>) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(directory.path(), BOOT).unwrap();
    numbers.for_each(|number| assert!(take(&mut journal, number, 0)));
    drop(journal.finish());
    assert!(Journal::open(directory.path(), BOOT).unwrap().index.is_some());
    directory
}

/// Opens the journal through its index, which must be valid.
fn by_index(directory: &Path) -> Journal {
    let journal = Journal::open(directory, BOOT).unwrap();
    assert!(journal.index.is_some() && journal.whole.get().is_none(), "the journal was read whole");
    journal
}

/// Opens the journal without its index.
fn without_index(directory: &Path) -> Journal {
    let copy = tempfile::tempdir().unwrap();
    for file in ["leases", "leases.mark"] {
        fs::copy(directory.join(file), copy.path().join(file)).unwrap();
    }
    let mut journal = Journal::open(copy.path(), BOOT).unwrap();
    journal.index = None;
    journal
}

/// Returns the results of all queries that a call may make.
fn answers(journal: &Journal, numbers: std::ops::Range<usize>, now: u64) -> String {
    let leases: Vec<_> = numbers.map(|number| journal.get(&attachment(number)).unwrap()).collect();
    let stock = journal.stock(&segments(), &reserved()).unwrap();
    let next = [Family::V4, Family::V6].map(|family| journal.next_address(&segments(), &reserved(), family, now));
    format!("{leases:?} {stock:?} {next:?}")
}

#[test]
fn random_calls_by_the_index_have_the_outcome_that_they_have_by_the_whole_journal() {
    let directory = with_leases(0..ENOUGH);
    let mut random = fastrand::Rng::with_seed(12);
    for call in 0..1500 {
        let (number, now) = (random.usize(..2 * ENOUGH), call / 4);
        let mut journal = Journal::open(directory.path(), BOOT).unwrap();
        if random.u8(..50) == 0 {
            let same = answers(&without_index(directory.path()), 0..2 * ENOUGH, now);
            assert_eq!(answers(&journal, 0..2 * ENOUGH, now), same, "call {call}");
        }
        if journal.get(&attachment(number)).unwrap().is_some() {
            assert!(journal.end_lease(&attachment(number), now).unwrap().is_some());
        } else {
            take(&mut journal, number, now);
        }
        assert!(journal.index.is_some(), "call {call}");
        drop(journal.finish());
    }
}

#[test]
fn an_index_grows_with_the_leases_until_it_is_made_again() {
    let directory = with_leases(0..ENOUGH);
    let (mut made, mut inode) = (0, 0);
    for number in ENOUGH..1500 {
        let mut journal = Journal::open(directory.path(), BOOT).unwrap();
        made += usize::from(journal.whole.get().is_some());
        // The addresses are in an IPv6 segment, which is large enough.
        let addresses = vec![IpAddr::from([0xfd77, 0, 0, 1, 0, 0, 1, number as u16])];
        let lease = Lease { addresses, network: "pods".into(), pod: None, mac: None };
        journal.enter_lease(&attachment(number), &lease).unwrap();
        inode = fs::metadata(directory.path().join("leases")).unwrap().ino();
        drop(journal.finish());
    }
    // The index is created again only when the number of leases has increased by a factor of 9/5.
    assert!((1..12).contains(&made), "{made} times");
    assert_ne!(inode, 0);
    let same = answers(&without_index(directory.path()), 0..1500, 0);
    assert_eq!(answers(&Journal::open(directory.path(), BOOT).unwrap(), 0..1500, 0), same);
}

#[test]
fn an_index_that_a_killed_process_left_half_changed_is_not_believed() {
    let directory = with_leases(0..ENOUGH);
    let path = directory.path().join("leases.index");
    let before = fs::read(&path).unwrap();
    let mut journal = by_index(directory.path());
    assert!(journal.end_lease(&attachment(3), 5).unwrap().is_some());
    drop(journal.finish());
    by_index(directory.path());
    let after = fs::read(&path).unwrap();
    let expected = answers(&without_index(directory.path()), 0..ENOUGH, 5);
    assert!(expected.contains("None"), "{expected}");
    let changed: Vec<usize> = (0..after.len()).filter(|at| before.get(*at) != after.get(*at)).collect();
    assert!(changed.len() > 10);
    let body = HEAD_SIZE + MIN_BLOCKS * BLOCK_SIZE;
    assert!(changed.iter().any(|at| *at < body) && changed.iter().any(|at| *at >= body));
    let old = |range: std::ops::Range<usize>| before.get(range.start..range.end.min(before.len())).unwrap_or_default();
    for at in changed {
        // The head is written last. The write stopped at `at`, and the journal is unchanged.
        let torn = if at < body {
            [&after[..at], old(at..body), &after[body..]].concat()
        } else {
            [old(0..body), &after[body..at], old(at..after.len())].concat()
        };
        fs::write(&path, torn).unwrap();
        let journal = Journal::open(directory.path(), BOOT).unwrap();
        assert!(answers(&journal, 0..ENOUGH, 5) == expected, "byte {at}");
    }
    fs::write(&path, &after).unwrap();
    assert_eq!(answers(&by_index(directory.path()), 0..ENOUGH, 5), expected);
}

#[test]
fn a_damaged_index_is_made_again_and_never_believed() {
    let directory = with_leases(0..ENOUGH);
    let path = directory.path().join("leases.index");
    let whole = fs::read(&path).unwrap();
    let expected = answers(&without_index(directory.path()), 0..ENOUGH, 0);
    let mut random = fastrand::Rng::with_seed(1);
    let positions = (0..HEAD_SIZE).chain((0..100).map(|_| random.usize(..whole.len())));
    for at in positions.collect::<Vec<_>>() {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        for content in [&changed[..], &whole[..at]] {
            fs::write(&path, content).unwrap();
            let mut journal = Journal::open(directory.path(), BOOT).unwrap();
            assert!(answers(&journal, 0..ENOUGH, 0) == expected, "byte {at}");
            assert_eq!(journal.end_lease(&attachment(ENOUGH), 0).unwrap(), None);
        }
    }
    fs::remove_file(&path).unwrap();
    assert!(Journal::open(directory.path(), BOOT).unwrap().index.is_some());
    by_index(directory.path());
}

#[test]
fn a_call_reads_the_whole_journal_only_for_all_leases() {
    let directory = with_leases(0..ENOUGH);
    let mut journal = by_index(directory.path());
    assert!(journal.end_lease(&attachment(7), 1).unwrap().is_some());
    assert!(take(&mut journal, ENOUGH, 1));
    assert_eq!(journal.owner("10.0.0.7".parse().unwrap()).unwrap(), None);
    journal.require_room().unwrap();
    answers(&journal, 0..ENOUGH, 1);
    assert!(journal.whole.get().is_none());
    drop(journal);
    let journal = by_index(directory.path());
    assert_eq!(journal.whole().unwrap().iter().count(), ENOUGH);
}

#[test]
fn a_change_of_the_journal_by_others_is_noticed() {
    let directory = with_leases(0..ENOUGH);
    let path = directory.path().join("leases");
    let whole = fs::read(&path).unwrap();
    let changed_at = |path: &Path| fs::metadata(path).map(|found| (found.ctime(), found.ctime_nsec())).unwrap();
    let before = changed_at(&path);
    let write = |at: usize, byte: u8| {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let begin = changed_at(&path);
        // The kernel's clock for the times of files has a resolution of some milliseconds.
        while {
            file.write_all_at(&[byte], at as u64).unwrap();
            changed_at(&path) == begin || changed_at(&path) == before
        } {}
    };
    for at in [0, 200, whole.len() - 2] {
        write(at, whole[at] ^ 1);
        assert_eq!(Journal::open(directory.path(), BOOT).unwrap_err().code, Code::DamagedState, "byte {at}");
        write(at, whole[at]);
    }
    assert!(Journal::open(directory.path(), BOOT).unwrap().whole.get().is_some());
    by_index(directory.path());
    // An earlier release appends to the journal without updating the index.
    let mut journal = Journal::open(directory.path(), BOOT).unwrap();
    journal.index = None;
    assert!(take(&mut journal, ENOUGH, 0));
    drop(journal);
    let journal = Journal::open(directory.path(), BOOT).unwrap();
    assert!(journal.whole.get().is_some() && journal.index.is_some());
    assert!(by_index(directory.path()).get(&attachment(ENOUGH)).unwrap().is_some());
    // An earlier release rewrites the journal without updating the index.
    fs::copy(&path, directory.path().join("other")).unwrap();
    fs::rename(directory.path().join("other"), &path).unwrap();
    assert!(Journal::open(directory.path(), BOOT).unwrap().whole.get().is_some());
}

#[test]
fn attachments_with_the_same_hash_are_told_apart() {
    let directory = with_leases(0..ENOUGH);
    // The CRC-32 of both containers is the same.
    let both =
        ["plumless", "buckeroo"].map(|container| Attachment { container: container.into(), ifname: "eth0".into() });
    let mut journal = by_index(directory.path());
    for (attachment, last) in both.iter().zip(1..) {
        let addresses = vec![IpAddr::from([192, 0, 2, last])];
        let lease = Lease { addresses, network: "pods".into(), pod: None, mac: None };
        journal.enter_lease(attachment, &lease).unwrap();
    }
    let address =
        |journal: &Journal, attachment| journal.get(attachment).unwrap().map(|lease| lease.addresses[0].to_string());
    let [one, two] = &both;
    assert_eq!(address(&journal, one).as_deref(), Some("192.0.2.1"));
    assert_eq!(address(&journal, two).as_deref(), Some("192.0.2.2"));
    journal.end_lease(one, 0).unwrap();
    drop(journal);
    let journal = by_index(directory.path());
    assert_eq!((address(&journal, one), address(&journal, two).as_deref()), (None, Some("192.0.2.2")));
}

#[test]
fn an_address_never_has_two_owners_and_no_attachment_two_leases() {
    let directory = with_leases(0..ENOUGH);
    let lease = |address: &str| Lease {
        addresses: vec![address.parse().unwrap()],
        network: "pods".into(),
        pod: None,
        mac: None,
    };
    let error = by_index(directory.path()).enter_lease(&attachment(ENOUGH), &lease("10.0.0.2")).unwrap_err();
    assert!(error.message.contains("container-0"), "{error}");
    let error = by_index(directory.path()).enter_lease(&attachment(0), &lease("10.0.0.250")).unwrap_err();
    assert!(error.message.contains("two leases"), "{error}");
}

proptest::proptest! {
    #[test]
    fn arbitrary_content_never_panics(mut bytes: Vec<u8>) {
        bytes.resize(FIRST_READ, 7);
        let _ = Head::parse(&bytes);
        bytes.splice(..MAGIC.len(), *MAGIC);
        let _ = Head::parse(&bytes);
        let bucket: [u8; BUCKET_SIZE] = bytes[..BUCKET_SIZE].try_into().unwrap();
        let _ = Bucket::parse(&bucket);
        let _ = parse_freed(&bytes[..FREED_SIZE]);
        let _ = parse_block(&bytes[..BLOCK_SIZE]);
    }
}
