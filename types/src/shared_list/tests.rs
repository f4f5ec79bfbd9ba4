//! What copies share, what differs between them, and how much a change looks at.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Entry = (usize, char);

fn same(one: &Entry, other: &Entry) -> bool {
    one == other
}

fn is_sound(list: &SharedList<Entry>) -> bool {
    list.parts.iter().all(|part| (1..=MAX_PART).contains(&part.len()))
        && list.is_ordered()
        && list.iter().is_sorted_by(|one, next| one.0 < next.0)
        && list.iter().count() == list.len()
        && list.parts() <= 2 * list.len() / (JOINED + 1) + 1
}

fn numbers(count: usize) -> SharedList<Entry> {
    (0..count).map(|number| (number * 2, 'a')).collect()
}

#[test]
fn a_change_of_one_of_ten_thousand_items_looks_at_as_few_as_one_of_a_hundred() {
    let looks = |count: usize| {
        let before = numbers(count);
        let ((), looks) = visits::of(|| {
            let mut after = before.clone();
            after.remove(&(count / 2 * 2));
            after.insert((count + 1, 'b'));
            let changes: Vec<_> = before.differences(&after, same).unwrap().collect();
            let expected = [(Some(&(count / 2 * 2, 'a')), None), (None, Some(&(count + 1, 'b')))];
            assert!(changes.len() == 2 && expected.iter().all(|change| changes.contains(change)));
            assert_ne!(before, after);
        });
        looks
    };
    // Two parts, and the search for them.
    assert!(looks(10_000) < 2 * 128 + 64, "{}", looks(10_000));
    assert!(looks(10_000) <= 4 * looks(100), "{} and {}", looks(10_000), looks(100));
}

#[test]
fn a_copy_that_changes_shares_all_but_one_part() {
    let before = numbers(10_000);
    let mut after = before.clone();
    assert!(after.remove(&10_000).is_some() && after.remove(&10_000).is_none());
    assert_eq!((before.parts(), before.shared_parts(&after)), (105, 104));
    assert!(before.get(&10_000).is_some() && after.get(&10_000).is_none());
}

#[test]
fn there_are_never_many_small_parts_in_whatever_order_items_go() {
    let all = numbers(3000);
    let orders: [fn(usize) -> usize; 4] =
        [|at| at, |at| 2999 - at, |at| at * 7 % 3000, |at| if at % 2 == 0 { at / 2 } else { 2999 - at / 2 }];
    for order in orders {
        let mut list = all.clone();
        for at in 0..3000 {
            assert!(list.remove(&(order(at) * 2)).is_some());
            assert!(list.parts() <= 2 * list.len() / (JOINED + 1) + 1, "{} of {}", list.parts(), list.len());
        }
        assert!(list.is_empty() && list.parts() == 0);
    }
}

#[test]
fn an_unordered_list_keeps_its_order_until_it_is_changed_by_key() {
    let mut list: SharedList<Entry> = vec![(3, 'a'), (1, 'a'), (3, 'b'), (2, 'a')].into();
    assert!(!list.is_ordered() && list.differences(&list, same).is_none());
    assert_eq!(list, [(3, 'a'), (1, 'a'), (3, 'b'), (2, 'a')]);
    assert_eq!((list.get(&3), list[2], list.first()), (Some(&(3, 'a')), (3, 'b'), Some(&(3, 'a'))));
    assert_eq!(list.insert((2, 'c')), Some((2, 'a')));
    assert!(list.is_ordered());
    assert_eq!(list, vec![(1, 'a'), (2, 'c'), (3, 'b')]);
    list.push((4, 'a'));
    assert!(list.is_ordered());
    list.push((4, 'a'));
    assert!(!list.is_ordered() && list.len() == 5);
    assert_eq!(serde_json::to_string(&list).unwrap(), r#"[[1,"a"],[2,"c"],[3,"b"],[4,"a"],[4,"a"]]"#);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn it_does_what_an_ordered_map_does(
        start in 0..400_usize,
        changes in prop::collection::vec(
            (0..600_usize, prop::option::of(prop::sample::select(vec!['a', 'b']))), 0..700,
        ),
    ) {
        let before = numbers(start);
        let mut expected: BTreeMap<usize, char> = before.iter().copied().collect();
        let mut list = before.clone();
        for (number, change) in changes {
            let known = match change {
                Some(item) => (list.insert((number, item)), expected.insert(number, item)),
                None => (list.remove(&number), expected.remove(&number)),
            };
            prop_assert_eq!(known.0.map(|(_, item)| item), known.1);
        }
        prop_assert!(is_sound(&list) && before == numbers(start));
        prop_assert!(list.iter().copied().eq(expected.clone()));
        for number in (0..600).step_by(7) {
            prop_assert_eq!(list.get(&number).map(|(_, item)| item), expected.get(&number));
            let from = |start: usize| expected.range(start..).map(|(key, item)| (*key, *item));
            prop_assert!(list.iter_from(&number).copied().eq(from(number)));
            prop_assert!(list.iter_after(&number).copied().eq(from(number + 1)));
        }
        let old: BTreeMap<usize, char> = before.iter().copied().collect();
        let keys: std::collections::BTreeSet<usize> = old.keys().chain(expected.keys()).copied().collect();
        let wanted: Vec<_> = keys
            .into_iter()
            .map(|key| (old.get(&key).map(|item| (key, *item)), expected.get(&key).map(|item| (key, *item))))
            .filter(|(old, new)| old != new)
            .collect();
        let found: Vec<_> =
            before.differences(&list, same).unwrap().map(|(old, new)| (old.copied(), new.copied())).collect();
        prop_assert_eq!(&found, &wanted);
        prop_assert_eq!(before == list, wanted.is_empty());
        prop_assert_eq!(&list, &SharedList::from(list.to_vec()));
    }
}
