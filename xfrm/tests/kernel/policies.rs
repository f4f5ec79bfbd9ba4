//! Tests policies: how ours are recognized and replaced, and how thousands of policies are
//! reconciled.

use edge_xfrm::reconcile;
use edge_xfrm::reqid::{FIRST_INDEX, LAST_INDEX};
use edge_xfrm::{Action, Direction, Error, Policy, PolicyHash, Reqid, Selector, Xfrm};

use crate::Needs::Root;
use crate::Test;
use crate::namespace::Namespace;

pub(crate) const TESTS: &[Test] = &[
    ("a_policy_is_installed_once_and_then_left_alone", Root, installed_once),
    ("a_policy_of_ours_is_replaced_in_place", Root, replaced_in_place),
    ("a_policy_of_another_is_reported_and_stays_whatever_its_priority", Root, others_policy_stays),
    ("an_allow_without_template_is_told_by_its_index", Root, allow_is_told_by_its_index),
    ("an_allow_whose_index_is_taken_gets_another_of_ours", Root, taken_index),
    ("a_protect_policy_becomes_an_allow_that_is_still_ours", Root, protect_becomes_allow),
    ("deleting_takes_ours_only", Root, deleting_takes_ours_only),
    ("reconciling_reports_and_repairs_what_others_did", Root, reconcile_repairs),
    ("reconciling_five_thousand_policies_twice_changes_nothing_the_second_time", Root, thousands),
    ("two_at_once_reconcile_the_same_set_without_an_error", Root, two_at_once),
    ("policies_of_single_sockets_are_not_taken_for_ours", Root, socket_policies),
    ("a_dump_that_changes_while_it_is_read_is_read_again", Root, changing_dump),
    ("a_policy_with_a_mark_lives_beside_ours", Root, marked_policies),
    ("policies_are_found_whether_they_are_hashed_or_not", Root, hashed_policies),
];

pub(crate) fn selector(source: &str, destination: &str) -> Selector {
    Selector::new(source.parse().unwrap(), destination.parse().unwrap()).unwrap()
}

fn out(n: u32) -> Policy {
    let selector = selector("10.77.0.0/26", "10.77.1.0/26");
    Policy::protect_out(selector, Reqid::tunnel(n).unwrap(), "192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap())
}

fn installed_once() {
    Namespace::new().run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        for policy in [
            out(1),
            Policy::protect_in(Direction::In, selector("10.77.1.0/26", "10.77.0.0/26"), Reqid::tunnel(1).unwrap()),
            Policy::protect_in(Direction::Fwd, selector("fd00:1::/64", "fd00::/64"), Reqid::tunnel(1).unwrap()),
            Policy::block(Direction::Out, selector("::/0", "fd00::/16")),
            Policy::allow(Direction::Fwd, selector("10.77.0.0/26", "0.0.0.0/0")),
        ] {
            assert!(xfrm.install_policy(&policy).unwrap(), "{policy}");
            assert!(!xfrm.install_policy(&policy).unwrap(), "{policy}");
            let found = xfrm.holders(&[policy]).unwrap().remove(0).unwrap();
            assert!(found.matches(&policy) && found.is_ours(), "{policy}: {found}");
        }
        let all = xfrm.policies().unwrap();
        assert_eq!(all.len(), 5);
        assert!(all.iter().all(|policy| policy.is_ours()), "{all:?}");
    });
}

fn replaced_in_place() {
    Namespace::new().run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        xfrm.install_policy(&out(1)).unwrap();
        let before = xfrm.policies().unwrap().remove(0);
        let mut moved = out(2);
        moved.priority += 7;
        assert!(xfrm.install_policy(&moved).unwrap());
        let after = xfrm.policies().unwrap();
        assert_eq!(after.len(), 1);
        assert!(after[0].matches(&moved));
        assert_eq!(after[0].index, before.index);
    });
}

fn others_policy_stays() {
    let namespace = Namespace::new();
    // This policy has another priority and no template, but it still holds the selector.
    namespace.ip("xfrm policy add src 10.77.0.0/26 dst 10.77.1.0/26 dir out priority 5 action allow");
    let before = namespace.ip("xfrm policy");
    namespace.run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        let error = xfrm.install_policy(&out(1)).unwrap_err();
        let Error::OccupiedByOther { wanted, theirs } = &error else { panic!("{error}") };
        assert_eq!(**wanted, out(1));
        assert!(!theirs.is_ours() && theirs.priority == 5);
        let (plan, errors) = xfrm.reconcile_policies(&[out(1)]).unwrap();
        assert_eq!(plan.occupied.len(), 1);
        assert!(matches!(errors.as_slice(), [Error::OccupiedByOther { .. }]), "{errors:?}");
    });
    assert_eq!(namespace.ip("xfrm policy"), before);
}

fn allow_is_told_by_its_index() {
    let namespace = Namespace::new();
    namespace.ip("xfrm policy add src 10.9.0.0/16 dst 0.0.0.0/0 dir fwd priority 20000 action allow");
    namespace.run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        let allow = Policy::allow(Direction::Fwd, selector("10.77.0.0/26", "0.0.0.0/0"));
        xfrm.install_policy(&allow).unwrap();
        let all = xfrm.policies().unwrap();
        let (ours, theirs): (Vec<_>, Vec<_>) = all.into_iter().partition(|policy| policy.is_ours());
        assert_eq!((ours.len(), theirs.len()), (1, 1));
        assert!(ours[0].templates.is_empty() && (FIRST_INDEX..=LAST_INDEX).contains(&ours[0].index));
    });
}

fn taken_index() {
    let namespace = Namespace::new();
    let allow = Policy::allow(Direction::Fwd, selector("10.77.0.0/26", "0.0.0.0/0"));
    let index = namespace.run(move || {
        let mut xfrm = Xfrm::open().unwrap();
        xfrm.install_policy(&allow).unwrap();
        let installed = xfrm.policies().unwrap().remove(0);
        assert!(xfrm.delete_policy(&installed).unwrap());
        installed.index
    });
    let squat = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 7 mode tunnel";
    namespace.ip(&format!("xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir fwd index {index} {squat}"));
    for reconcile in [false, true] {
        namespace.run(move || {
            let mut xfrm = Xfrm::open().unwrap();
            if reconcile {
                assert!(xfrm.reconcile_policies(&[allow]).unwrap().1.is_empty());
            } else {
                assert!(xfrm.install_policy(&allow).unwrap());
            }
            let all = xfrm.policies().unwrap();
            assert_eq!(all.len(), 2);
            let ours = all.iter().find(|policy| policy.is_ours()).unwrap();
            assert!(ours.matches(&allow) && ours.index != index);
            assert!(xfrm.delete_policy(ours).unwrap());
        });
    }
}

fn protect_becomes_allow() {
    let namespace = Namespace::new();
    let wanted = out(1);
    let index = namespace.run(move || {
        let mut xfrm = Xfrm::open().unwrap();
        xfrm.install_policy(&wanted).unwrap();
        let installed = xfrm.policies().unwrap().remove(0);
        xfrm.delete_policy(&installed).unwrap();
        installed.index
    });
    // Occupy the index that our policy would get, so that the kernel assigns one outside our range.
    // A protect policy is still recognised as ours by the reqid of its template. An allow policy
    // has no template and is recognised only by its index.
    let squat = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 7 mode tunnel";
    namespace.ip(&format!("xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out index {index} {squat}"));
    namespace.run(move || {
        let mut xfrm = Xfrm::open().unwrap();
        xfrm.install_policy(&wanted).unwrap();
        let allow = Policy { action: Action::Allow, ..wanted };
        let (plan, errors) = xfrm.reconcile_policies(&[allow]).unwrap();
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(plan.changed.len(), 1);
        assert!(xfrm.holders(&[allow]).unwrap()[0].as_ref().unwrap().matches(&allow));
    });
}

fn deleting_takes_ours_only() {
    let namespace = Namespace::new();
    let installed = namespace.run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        xfrm.install_policy(&out(1)).unwrap();
        xfrm.policies().unwrap().remove(0)
    });
    // Another program replaces our policy, which keeps its index.
    namespace.ip("xfrm policy update src 10.77.0.0/26 dst 10.77.1.0/26 dir out \
         tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 7 mode tunnel");
    let before = namespace.ip("xfrm policy");
    let stale = installed.clone();
    namespace.run(move || {
        let error = Xfrm::open().unwrap().delete_policy(&stale).unwrap_err();
        assert!(matches!(error, Error::PolicyOfOther { .. }), "{error}");
    });
    assert_eq!(namespace.ip("xfrm policy"), before);
    namespace.ip("xfrm policy flush");
    namespace.run(move || assert!(!Xfrm::open().unwrap().delete_policy(&installed).unwrap()));
}

fn reconcile_repairs() {
    let namespace = Namespace::new();
    let desired: Vec<Policy> = (0..4)
        .map(|n| {
            let remote = format!("10.77.{}.0/24", n + 1);
            let (here, there) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
            Policy::protect_out(selector("10.77.0.0/24", &remote), Reqid::tunnel(n).unwrap(), here, there)
        })
        .collect();
    let wanted = desired.clone();
    namespace.run(move || assert_eq!(Xfrm::open().unwrap().reconcile_policies(&wanted).unwrap().0.missing.len(), 4));
    namespace.ip("xfrm policy delete src 10.77.0.0/24 dst 10.77.1.0/24 dir out");
    // The mark is the same and only the priority differs, so the policy counts as ours and changed.
    namespace.ip(&format!(
        "xfrm policy update src 10.77.0.0/24 dst 10.77.2.0/24 dir out priority 1 \
         tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid {} mode tunnel",
        Reqid::tunnel(1).unwrap().raw()
    ));
    namespace.ip("xfrm policy add src 10.5.0.0/24 dst 10.6.0.0/24 dir out action block");
    namespace.run(move || {
        let mut xfrm = Xfrm::open().unwrap();
        let fewer = &desired[..3];
        let (plan, errors) = xfrm.reconcile_policies(fewer).unwrap();
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(plan.missing, [desired[0]]);
        assert_eq!(plan.changed.iter().map(|(policy, _)| *policy).collect::<Vec<_>>(), [desired[1]]);
        assert_eq!(plan.stray.len(), 1);
        assert!(plan.stray[0].matches(&desired[3]));
        assert!(plan.occupied.is_empty());
        let all = xfrm.policies().unwrap();
        assert!(reconcile::policies(fewer, &all).is_empty());
        assert_eq!(all.iter().filter(|policy| !policy.is_ours()).count(), 1);
    });
}

fn thousands() {
    Namespace::new().run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        let mut desired = Vec::new();
        for n in 0..1000u32 {
            let segment = format!("10.{}.{}.0/26", n / 250, n % 250);
            let reqid = Reqid::tunnel(n).unwrap();
            let (here, there) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
            desired.push(Policy::protect_out(selector("10.77.0.0/26", &segment), reqid, here, there));
            desired.push(Policy::protect_in(Direction::In, selector(&segment, "10.77.0.0/26"), reqid));
            desired.push(Policy::protect_in(Direction::Fwd, selector(&segment, "10.77.0.0/26"), reqid));
            desired.push(Policy::allow(Direction::Fwd, selector(&segment, "10.78.0.0/26")));
            desired.push(Policy::block(Direction::Out, selector(&segment, "10.79.0.0/26")));
        }
        let (plan, errors) = xfrm.reconcile_policies(&desired).unwrap();
        assert_eq!((plan.missing.len(), errors.len()), (5000, 0), "{errors:?}");
        assert!(xfrm.reconcile_policies(&desired).unwrap().0.is_empty());
        let moved: Vec<Policy> =
            desired.iter().map(|policy| Policy { priority: policy.priority + 1, ..*policy }).collect();
        assert_eq!(xfrm.reconcile_policies(&moved).unwrap().0.changed.len(), 5000);
        assert!(xfrm.reconcile_policies(&moved).unwrap().0.is_empty());
        assert_eq!(xfrm.reconcile_policies(&[]).unwrap().0.stray.len(), 5000);
        assert!(xfrm.policies().unwrap().is_empty());
    });
}

fn two_at_once() {
    let namespace = Namespace::new();
    namespace.run(|| {
        let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let desired: Vec<Policy> =
            (0..200).map(|n| Policy::allow(Direction::In, selector(&format!("10.77.{n}.0/24"), "0.0.0.0/0"))).collect();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
                    use std::os::fd::AsFd;
                    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                    let mut xfrm = Xfrm::open().unwrap();
                    for policy in &desired {
                        xfrm.install_policy(policy).unwrap();
                    }
                });
            }
        });
        assert!(reconcile::policies(&desired, &Xfrm::open().unwrap().policies().unwrap()).is_empty());
    });
}

fn socket_policies() {
    Namespace::new().run(|| {
        let v4 = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        edge_xfrm::socket::bypass(&v4, false).unwrap();
        let v6 = std::net::UdpSocket::bind("[::1]:0").unwrap();
        edge_xfrm::socket::bypass(&v6, true).unwrap();
        let mut xfrm = Xfrm::open().unwrap();
        assert!(xfrm.policies().unwrap().is_empty());
        assert!(xfrm.reconcile_policies(&[]).unwrap().0.is_empty());
    });
}

fn marked_policies() {
    let namespace = Namespace::new();
    let template = format!("tmpl proto esp reqid {} mode tunnel", Reqid::BLOCK.raw());
    let key = "src 10.77.0.0/26 dst 10.77.1.0/26 dir out";
    namespace.ip(&format!("xfrm policy add {key} mark 5 mask 0xff {template}"));
    namespace.ip(&format!("xfrm policy add {key} if_id 7 {template}"));
    namespace.run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        let (plan, errors) = xfrm.reconcile_policies(&[out(1)]).unwrap();
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!((plan.missing.len(), plan.stray.len(), plan.occupied.len()), (1, 0, 0));
        assert_eq!(xfrm.policies().unwrap().len(), 3);
    });
}

fn hashed_policies() {
    Namespace::new().run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        assert_eq!(xfrm.policy_hash().unwrap(), PolicyHash::DEFAULT);
        let of_segments = (0..1000_u32).flat_map(|number| {
            let reqid = Reqid::tunnel(number).unwrap();
            let segment = format!("10.78.{}.{}/26", number / 4, number % 4 * 64);
            let inward = selector(&segment, "10.244.0.0/16");
            let inward6 = selector(&format!("fd00:1::{number:x}:0/120"), "fd00:2::/64");
            let (local, remote) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
            [
                Policy::protect_out(inward.reversed(), reqid, local, remote),
                Policy::protect_in(Direction::In, inward, reqid),
                Policy::protect_in(Direction::Fwd, inward6, reqid),
            ]
        });
        // Larger networks are not hashed, whatever the thresholds are.
        let larger = [
            Policy::block(Direction::Out, selector("0.0.0.0/0", "10.78.0.0/16")),
            Policy::block(Direction::In, selector("10.78.0.0/16", "0.0.0.0/0")),
            Policy::block(Direction::Fwd, selector("fd00:1::/64", "::/0")),
        ];
        let desired: Vec<Policy> = of_segments.chain(larger).collect();
        let (first, second) = desired.split_at(1500);
        let stand = |xfrm: &mut Xfrm, policies: &[Policy]| {
            let holders = xfrm.holders(policies).unwrap();
            holders
                .iter()
                .zip(policies)
                .all(|(found, policy)| found.as_ref().is_some_and(|found| found.matches(policy)))
        };
        assert_eq!(xfrm.reconcile_policies(first).unwrap().0.missing.len(), first.len());
        // Those that stand are sorted anew. The second half comes later.
        xfrm.set_policy_hash(PolicyHash::BY_REMOTE).unwrap();
        assert_eq!(xfrm.policy_hash().unwrap(), PolicyHash::BY_REMOTE);
        assert!(stand(&mut xfrm, first));
        assert_eq!(xfrm.reconcile_policies(&desired).unwrap().0.missing.len(), second.len());
        assert!(stand(&mut xfrm, &desired));
        xfrm.set_policy_hash(PolicyHash::DEFAULT).unwrap();
        assert!(stand(&mut xfrm, &desired));
        assert_eq!(xfrm.policies().unwrap().len(), desired.len());
    });
}

/// Dumps policies while another thread changes policies without pause. Each dump must contain every
/// policy that existed the whole time.
fn changing_dump() {
    Namespace::new().run(|| {
        let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let standing: Vec<Policy> = (0..1500)
            .map(|n| {
                let network = format!("10.{}.{}.0/24", n / 250, n % 250);
                Policy::block(Direction::In, selector(&network, "0.0.0.0/0"))
            })
            .collect();
        let mut xfrm = Xfrm::open().unwrap();
        xfrm.reconcile_policies(&standing).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
                use std::os::fd::AsFd;
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                let mut xfrm = Xfrm::open().unwrap();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    xfrm.install_policy(&out(1)).unwrap();
                    let installed = xfrm.policy(&out(1)).unwrap().unwrap();
                    xfrm.delete_policy(&installed).unwrap();
                }
            });
            for _ in 0..20 {
                let seen = xfrm.policies().unwrap();
                assert!(reconcile::policies(&standing, &seen).missing.is_empty());
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    });
}
