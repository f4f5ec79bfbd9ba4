//! A peer that is not our implementation and that responds: it completes IKE_SA_INIT and IKE_AUTH
//! with our initiator, and then answers in ways that RFC 7296 allows and our endpoint never uses.
//! The tests check that our initiator sends a small number of requests, reports the right error,
//! keeps its other CHILD_SAs, and recovers when the peer answers as usual.
//!
//! - `choices`: what the peer can do with a request.
//! - `peer`: the peer with its IKE SAs, and its own requests.
//! - `parts`: the payloads of its responses.
//! - `observe`: what the tests look at.
//! - `init`, `auth`, `children`: tests of single answers in these exchanges.
//! - `random`: runs in which the peer chooses at random for some time.

mod auth;
mod children;
mod choices;
mod init;
mod observe;
mod parts;
mod peer;
mod random;
