//! Counts the memory that a comparison of all policies takes.
#![allow(missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::Ipv4Addr;

use edge_xfrm::reconcile::{self, PolicyDiff};
use edge_xfrm::reqid::FIRST_INDEX;
use edge_xfrm::{Direction, InstalledPolicy, Policy, Selector};
use ipnetwork::Ipv4Network;

thread_local! {
    /// Bytes that this thread has allocated and not freed, and the most there were.
    static HEAP: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// Counts what each thread allocates. The test runs on a thread of its own.
struct Counting;

fn count(bytes: isize) {
    // During the end of a thread there is no counter any more.
    let _ = HEAP.try_with(|heap| {
        let (live, most) = heap.get();
        heap.set((live + bytes, most.max(live + bytes)));
    });
}

// SAFETY: all calls go to the system's allocator unchanged. Counting does not allocate: the counter
// is a constant thread local without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `at` comes from `System`, with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns the result of `work`, and the most bytes that it had on the heap.
fn most_heap_of<T>(work: impl FnOnce() -> T) -> (T, isize) {
    let (live, _) = HEAP.get();
    HEAP.set((live, live));
    let result = work();
    (result, HEAP.get().1 - live)
}

/// Returns the policies of ten thousand peers, and what the kernel shows of them.
fn of_ten_thousand_peers() -> (Vec<Policy>, Vec<InstalledPolicy>) {
    let hub: Ipv4Network = "10.0.0.0/16".parse().unwrap();
    let directions = [Direction::In, Direction::Out, Direction::Fwd];
    let desired = directions.into_iter().flat_map(|direction| {
        (0..10_000).map(move |peer| {
            let network = Ipv4Network::new(Ipv4Addr::from(0x0a80_0000 + (peer << 8)), 24).unwrap();
            Policy::allow(direction, Selector::new(hub.into(), network.into()).unwrap())
        })
    });
    let desired: Vec<Policy> = desired.collect();
    let installed = |policy: &Policy| InstalledPolicy {
        direction: policy.direction,
        selector: policy.selector,
        priority: policy.priority,
        index: FIRST_INDEX,
        blocks: false,
        templates: vec![],
        mark: (0, 0),
        if_id: 0,
        flags: 0,
    };
    let observed = desired.iter().map(installed).collect();
    (desired, observed)
}

/// The agent compares all policies again and again, and what it needs for that stays with the
/// process.
#[test]
fn a_comparison_of_ten_thousand_peers_that_finds_nothing_takes_a_few_words_for_each_policy() {
    let (desired, observed) = of_ten_thousand_peers();
    let (plan, most) = most_heap_of(|| reconcile::policies(&desired, &observed));
    println!("{most} bytes for {} policies", desired.len());
    assert_eq!(plan, PolicyDiff::default());
    assert!(most <= 24 * desired.len() as isize, "{most} bytes");
}
