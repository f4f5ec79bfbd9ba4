//! Runs random histories (sequences of operations) on the embedded store. One program is killed at
//! any moment and started again on its file.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use edge_types::IpNetwork;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::model::{Dice, Testbed, check};

struct File;

impl Testbed for File {
    fn replicas(&self) -> usize {
        1
    }

    fn config_tables(&self) -> String {
        String::new()
    }

    fn ca_certificate<'a>(&'a self, state: &'a Path) -> LocalBoxFuture<'a, CertificateDer<'static>> {
        async { CertificateDer::from_pem_file(state.join("ca.crt")).unwrap() }.boxed_local()
    }

    fn disturb<'a>(&'a self, _: &'a mut Dice) -> LocalBoxFuture<'a, bool> {
        async { false }.boxed_local()
    }

    fn create_node_object<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, bool> {
        async { false }.boxed_local()
    }

    fn node_object_is_known<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, ()> {
        async {}.boxed_local()
    }

    fn delete_node_object<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, ()> {
        async {}.boxed_local()
    }

    fn granted_on_join<'a>(&'a self, _: &'a str, _: i64) -> LocalBoxFuture<'a, Option<BTreeSet<IpNetwork>>> {
        async { None }.boxed_local()
    }

    fn release_leftovers(&self) -> LocalBoxFuture<'_, ()> {
        async {}.boxed_local()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_any_history_of_kills_no_segment_has_two_owners_and_none_is_lost() {
    check(&File, Duration::from_secs(15)).await;
}
