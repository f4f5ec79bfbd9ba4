//! Takes each right of the shipped roles away once, while a cluster lives on. The controller must
//! name the right in `/readyz`, the API server's audit log must contain a refused request that
//! needs the right, and only the steps that need the right may fail.
//!
//! - `right`: the rights, with the steps that need them.
//! - `world`: the cluster, its audit log and the account's roles.
//! - `tour`: the steps of a controller's use.

mod right;
mod tour;
mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use interop_tests::kube::suite::Test;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use self::right::Right;
use self::tour::Tour;
use self::world::{OLD, World, wait};
use crate::cluster::{NAMESPACE, run_within};
use crate::harness::{Node, monitoring_page};

pub(crate) const TESTS: &[Test] =
    &[("each_right_that_is_taken_away_is_asked_for_and_named_and_nothing_else_fails", each)];

/// Maximum number of rights that are taken away together.
const GROUP: usize = 6;

/// Spoils what the leader publishes, so that it must be put right. Deletes it if one of the rights
/// is that of creating it.
async fn spoil(world: &World, rights: &[&Right]) {
    const NAME: &str = "edge-cni-trust";
    let maps: Api<ConfigMap> = Api::namespaced(world.client(), NAMESPACE);
    let exists = maps.get_opt(NAME).await.unwrap().is_some();
    let is_creation = rights.iter().any(|right| right.resource == "configmaps" && right.verb == "create");
    let spoiled = json!({"metadata": {"name": NAME}, "data": {"ca.crt": "another's"}});
    match (is_creation, exists) {
        (true, true) => drop(maps.delete(NAME, &Default::default()).await.unwrap()),
        (true, false) => {}
        (false, true) => drop(maps.patch(NAME, &PatchParams::default(), &Patch::Merge(spoiled)).await.unwrap()),
        (false, false) => {
            let spoiled: ConfigMap = serde_json::from_value(spoiled).unwrap();
            drop(maps.create(&PostParams::default(), &spoiled).await.unwrap());
        }
    }
}

/// Reads a list such as `get/list nodes, create events.events.k8s.io`.
fn rights_in(text: &str) -> BTreeSet<String> {
    let entries = text.split(", ").filter_map(|entry| entry.split_once(' '));
    entries.flat_map(|(verbs, object)| verbs.split('/').map(move |verb| format!("{verb} {object}"))).collect()
}

/// Divides the rights into groups that are taken away together. What breaks without one right of a
/// group does not break without another, so that each failure has one cause.
fn groups(rights: &[Right]) -> Vec<Vec<&Right>> {
    let mut groups: Vec<Vec<&Right>> = Vec::new();
    for right in rights {
        let fits = |group: &&mut Vec<&Right>| {
            let alone = |right: &Right| right.breaks() == ["start"] || right.is_for_conflicts();
            // Rights on one resource stand in for one another: creation for an update, for example.
            let clash = |other: &Right| {
                alone(other)
                    || other.family() == right.family()
                    || other.breaks().iter().any(|step| right.breaks().contains(step))
            };
            !alone(right) && group.len() < GROUP && !group.iter().any(|other| clash(other))
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(right),
            None => groups.push(vec![right]),
        }
    }
    groups
}

/// Takes rights away and starts a controller. Returns the first difference from what is expected.
async fn without(world: &World, old: &mut Node, number: usize, rights: &[&Right]) -> Result<(), String> {
    spoil(world, rights).await;
    world.take(rights).await;
    let since = world.audited();
    let broken: Vec<&'static str> = rights.iter().flat_map(|right| right.breaks()).copied().collect();
    let cloud = match world.cloud().await {
        Ok(cloud) => cloud,
        Err(error) => {
            let error = format!("{error:#}");
            let is_named = rights.iter().all(|right| error.contains(&right.resource)) && error.contains("10-rbac.yaml");
            return if broken == ["start"] && is_named { Ok(()) } else { Err(format!("it does not start: {error}")) };
        }
    };
    old.move_to(&cloud);
    let observe = cloud.server.observe[0];
    let taken: BTreeSet<String> = rights.iter().map(ToString::to_string).collect();
    wait("all that was taken away to be named in /readyz, which returns 200", async || {
        let (status, page) = monitoring_page(observe, "/readyz").await;
        let (_, named) = page.split_once("the controller's account may not ")?;
        (status == 200 && rights_in(named.split_once(": run kubectl")?.0) == taken).then_some(())
    })
    .await?;
    let mut tour =
        Tour { world, cloud: &cloud, old, number, broken: &broken, failed: BTreeSet::new(), said: String::new() };
    tour.run().await;
    for right in rights.iter().filter(|right| right.is_for_conflicts()) {
        tour.conflict(right, since).await;
    }
    let (failed, said) = (tour.failed, tour.said);
    let expected: BTreeSet<_> = broken.iter().copied().collect();
    // The controller still runs: some requests come only from the leader, after its election.
    let mut asked = Ok(());
    if failed == expected {
        for right in rights.iter().filter(|right| !right.is_asked_at_the_stop()) {
            asked = asked.and(
                wait(&format!("a request that needs {right}"), async || {
                    world.forbidden(since).iter().any(|request| right.covers(request)).then_some(())
                })
                .await,
            );
        }
    }
    cloud.server.stop().await;
    if failed != expected {
        return Err(format!("{failed:?} failed, expected {expected:?}:\n{said}"));
    }
    asked?;
    for right in rights.iter().filter(|right| right.is_asked_at_the_stop()) {
        wait(&format!("a request that needs {right}"), async || {
            world.forbidden(since).iter().any(|request| right.covers(request)).then_some(())
        })
        .await?;
    }
    match world.forbidden(since).iter().find(|request| !rights.iter().any(|right| right.covers(request))) {
        Some(other) => Err(format!("another request was forbidden: {} {}", other["verb"], other["objectRef"])),
        None => Ok(()),
    }
}

fn each() {
    run_within(Duration::from_secs(3600), async {
        let world = World::start().await;
        world.take(&[]).await;
        let cloud = world.cloud().await.unwrap();
        let mut old = cloud.node("edge", OLD).await;
        let mut tour = Tour {
            world: &world,
            cloud: &cloud,
            old: &old,
            number: 1,
            broken: &[],
            failed: BTreeSet::new(),
            said: String::new(),
        };
        tour.run().await;
        assert!(tour.failed.is_empty(), "with all rights: {}", tour.said);
        cloud.server.stop().await;
        assert_eq!(world.forbidden(0), [Value::Null; 0], "nothing is asked for that the roles do not give");
        let rights = world.rights();
        assert!(rights.len() > 40, "{rights:?}");
        let mut wrong = Vec::new();
        for (number, group) in groups(&rights).iter().enumerate() {
            let names = group.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            if let Err(why) = without(&world, &mut old, number + 2, group).await {
                eprintln!("without {names}: {why}");
                wrong.push(names);
            }
        }
        assert!(wrong.is_empty(), "of {} rights: {wrong:?}", rights.len());
        drop(world.plane);
    });
}
