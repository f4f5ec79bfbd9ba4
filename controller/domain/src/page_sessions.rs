//! Manages the sessions of the operator's page. A session is a random credential that only the
//! operator can create. It gives read access to the data on the page.
//!
//! Sessions are kept in memory, so they end when the controller stops. Only hashes of their
//! credentials are kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::clock::Seconds;
use crate::random::{NoRandomness, octets};

/// Maximum number of sessions. Opening a further session ends the oldest one.
pub const MOST_SESSIONS: usize = 16;
/// Lifetime of a session, in seconds: twelve hours. A session lasts for a working day, and a
/// session that is left open lasts for at most one night.
pub const SESSION_LIFETIME: Seconds = 12 * 3600;
/// Length of a credential in octets, before it is written as text.
const CREDENTIAL: usize = 32;

/// The open sessions, the oldest first. Clones share them.
#[derive(Clone, Default)]
pub struct PageSessions(Arc<Mutex<VecDeque<Session>>>);

struct Session {
    /// SHA-256 of the session's credential.
    hash: [u8; 32],
    expires_at: Seconds,
}

impl PageSessions {
    /// Opens a session. Returns its credential, which is shown only once, and the time when the
    /// session expires.
    pub fn open(&self, now: Seconds) -> Result<(Zeroizing<String>, Seconds), NoRandomness> {
        let credential = Zeroizing::new(URL_SAFE_NO_PAD.encode(&*octets(CREDENTIAL)?));
        let expires_at = now.saturating_add(SESSION_LIFETIME);
        let mut sessions = self.sessions();
        sessions.retain(|session| now < session.expires_at);
        if sessions.len() >= MOST_SESSIONS {
            sessions.pop_front();
        }
        sessions.push_back(Session { hash: hash(&credential), expires_at });
        Ok((credential, expires_at))
    }

    /// Returns whether a credential belongs to a session that has not ended.
    pub fn admits(&self, credential: &str, now: Seconds) -> bool {
        let hash = hash(credential);
        self.sessions().iter().any(|session| now < session.expires_at && bool::from(session.hash.ct_eq(&hash)))
    }

    /// Ends all sessions. Returns their number.
    pub fn end_all(&self, now: Seconds) -> usize {
        let ended = std::mem::take(&mut *self.sessions());
        ended.iter().filter(|session| now < session.expires_at).count()
    }

    fn sessions(&self) -> MutexGuard<'_, VecDeque<Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(credential: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, credential.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_admits_its_credential_alone_until_its_end() {
        let sessions = PageSessions::default();
        let (credential, end) = sessions.open(1000).unwrap();
        assert_eq!((credential.len(), end), (43, 1000 + SESSION_LIFETIME));
        assert!(sessions.admits(&credential, 1000) && sessions.admits(&credential, end - 1));
        assert!(!sessions.admits(&credential, end));
        let long = "x".repeat(100_000);
        for other in ["", &credential[1..], &credential.to_lowercase(), &format!("{} ", *credential), &long] {
            assert!(!sessions.admits(other, 1000), "{other}");
        }
    }

    #[test]
    fn the_oldest_session_ends_for_one_too_many_and_sessions_that_ended_make_room() {
        let sessions = PageSessions::default();
        let open = |now| sessions.open(now).unwrap().0;
        let all: Vec<_> = (0..MOST_SESSIONS as Seconds).map(open).collect();
        assert!(all.iter().all(|credential| sessions.admits(credential, 100)));
        let newest = open(100);
        assert!(!sessions.admits(&all[0], 100), "the oldest");
        assert!(all[1..].iter().chain([&newest]).all(|credential| sessions.admits(credential, 100)));
        // The session opened at second 1 has expired by now.
        open(SESSION_LIFETIME + 1);
        assert!(sessions.admits(&all[2], SESSION_LIFETIME + 1));
    }

    #[test]
    fn the_operator_ends_all_sessions() {
        let sessions = PageSessions::default();
        let credentials = [sessions.open(0).unwrap().0, sessions.open(0).unwrap().0];
        assert_eq!((sessions.end_all(1), sessions.end_all(1)), (2, 0));
        assert!(credentials.iter().all(|credential| !sessions.admits(credential, 1)));
    }
}
