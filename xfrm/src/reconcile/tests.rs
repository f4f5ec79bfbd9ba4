use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::policy::{Direction, PolicyKey};
use crate::{Reqid, Selector};

fn selector(n: u8) -> Selector {
    Selector::new("10.77.0.0/24".parse().unwrap(), format!("10.78.{n}.0/24").parse().unwrap()).unwrap()
}

/// Returns a policy as the kernel would dump it.
fn installed(policy: &Policy) -> InstalledPolicy {
    use netlink_packet_core::Emitable;
    let raw = policy.to_kernel(crate::reqid::FIRST_INDEX);
    let mut bytes = vec![0; raw.buffer_len()];
    raw.emit(&mut bytes);
    InstalledPolicy::decode(&bytes).unwrap().unwrap()
}

fn foreign(policy: &Policy) -> InstalledPolicy {
    let mut foreign = installed(policy);
    foreign.index = 8;
    foreign.templates.iter_mut().for_each(|template| template.reqid = 1);
    foreign
}

#[test]
fn what_stands_as_wanted_needs_nothing() {
    let desired = [Policy::block(Direction::In, selector(1)), Policy::allow(Direction::Fwd, selector(2))];
    assert!(policies(&desired, &desired.map(|policy| installed(&policy))).is_empty());
}

#[test]
fn the_stronger_of_two_wanted_for_one_selector_is_taken() {
    let (block, allow) = (Policy::block(Direction::Out, selector(1)), Policy::allow(Direction::Out, selector(1)));
    for desired in [[block, allow], [allow, block]] {
        assert_eq!(policies(&desired, &[]).missing, [allow]);
        assert_eq!(policies(&desired, &[installed(&block)]).changed, [(allow, installed(&block))]);
        assert!(policies(&desired, &[installed(&allow)]).is_empty());
    }
    assert_eq!(policies(&[allow, block, allow], &[]).missing, [allow]);
}

#[test]
fn what_is_missing_has_the_order_in_which_it_is_wanted() {
    let wanted = [3, 1, 4, 2].map(|number| Policy::block(Direction::Out, selector(number)));
    let [third, first, fourth, second] = wanted;
    assert_eq!(policies(&wanted, &[]).missing, wanted);
    assert_eq!(policies(&wanted, &[installed(&first)]).missing, [third, fourth, second]);
    assert_eq!(policies([&second, &third, &second], &[]).missing, [second, third]);
}

#[test]
fn anothers_policies_are_reported_where_they_stand_in_the_way_and_else_ignored() {
    let (wanted, elsewhere) = (Policy::block(Direction::Out, selector(1)), Policy::block(Direction::Out, selector(2)));
    let plan = policies(&[wanted], &[foreign(&wanted), foreign(&elsewhere)]);
    assert_eq!(plan, PolicyDiff { occupied: vec![(wanted, foreign(&wanted))], ..PolicyDiff::default() });
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (0..3u8, 0..6u8, 0..3u8, 0..3u32).prop_map(|(direction, n, action, priority)| {
        let direction = [Direction::In, Direction::Out, Direction::Fwd][usize::from(direction)];
        let policy = match action {
            0 => Policy::allow(direction, selector(n)),
            1 => Policy::block(direction, selector(n)),
            _ => Policy::protect_in(direction, selector(n), Reqid::tunnel(u32::from(n)).unwrap()),
        };
        Policy { priority, ..policy }
    })
}

proptest! {
    /// After a plan is carried out, a second plan is empty. No policy of another program has
    /// changed. Each desired policy is installed, unless another program's policy holds its
    /// selector.
    #[test]
    fn a_plan_carried_out_leaves_nothing_to_do(
        desired in proptest::collection::vec(any_policy(), 0..12),
        standing in proptest::collection::vec((any_policy(), any::<bool>()), 0..12),
    ) {
        let mut kernel: BTreeMap<PolicyKey, InstalledPolicy> = BTreeMap::new();
        for (policy, ours) in &standing {
            kernel.insert(policy.key(), if *ours { installed(policy) } else { foreign(policy) });
        }
        let others = |kernel: &BTreeMap<PolicyKey, InstalledPolicy>| {
            let mut others: Vec<_> = kernel.values().filter(|policy| !policy.is_ours()).map(InstalledPolicy::to_string).collect();
            others.sort();
            others
        };
        let before = others(&kernel);
        let plan = policies(&desired, &kernel.values().cloned().collect::<Vec<_>>());
        for policy in &plan.missing {
            prop_assert!(kernel.insert(policy.key(), installed(policy)).is_none());
        }
        for (policy, holder) in &plan.changed {
            prop_assert_eq!(kernel.insert(policy.key(), installed(policy)), Some(holder.clone()));
        }
        for policy in &plan.stray {
            prop_assert!(kernel.remove(&policy.key()).unwrap().is_ours());
        }
        prop_assert_eq!(others(&kernel), before);
        let again = policies(&desired, &kernel.values().cloned().collect::<Vec<_>>());
        prop_assert_eq!(again, PolicyDiff { occupied: plan.occupied.clone(), ..PolicyDiff::default() });
        for policy in &desired {
            let holder = &kernel[&policy.key()];
            prop_assert!(!holder.is_ours() || holder.priority <= policy.priority);
        }
    }
}

#[test]
fn an_allow_under_an_index_of_the_kernels_own_is_not_ours() {
    let mut policy = installed(&Policy::allow(Direction::In, selector(1)));
    assert!(policy.is_ours());
    policy.index = 0x1238;
    assert!(!policy.is_ours());
}
