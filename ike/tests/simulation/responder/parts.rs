//! The payloads of the responder's responses, and what a response changes at the responder.

use super::choices::{Asked, Choice};
use super::peer::{Child, Responder};
use crate::foreign::{CRITICAL, FOREIGN_ID, Part, everything, ike_proposal, key_exchange, notification, proposal};
use crate::oracle::keys::CURVE25519;
use crate::oracle::octets::{Message, exchange, notify, payload};
use crate::peers::PSK;

const REDIRECT: u16 = 16407;
/// INVALID_SYNTAX, AUTHENTICATION_FAILED and UNSUPPORTED_CRITICAL_PAYLOAD end the IKE SA (RFC 7296
/// 2.21.2).
pub const ENDS_IKE_SA: [u16; 3] = [1, 7, notify::AUTHENTICATION_FAILED];

impl Responder {
    /// Returns the payloads of a response that only refuses.
    pub fn refusal(&mut self, request: &Message, choice: Choice) -> Option<Vec<Part>> {
        let old = request.rekeys().unwrap_or(0).to_be_bytes();
        let part = match choice {
            Choice::Error(notify::CHILD_SA_NOT_FOUND) => notification(notify::CHILD_SA_NOT_FOUND, 3, &old, &[]),
            Choice::Error(kind) => notification(kind, 0, &[], &[]),
            Choice::OtherGroup(group) => notification(notify::INVALID_KE_PAYLOAD, 0, &[], &group.to_be_bytes()),
            Choice::Cookie => notification(notify::COOKIE, 0, &[], &self.nonce()),
            // RFC 5685 3: the address, and in IKE_SA_INIT our nonce.
            Choice::Redirect => notification(REDIRECT, 0, &[], &[1, 4, 198, 51, 100, 8]),
            _ => return None,
        };
        Some(vec![part])
    }

    /// Changes the payloads of a response that agrees.
    pub fn change(parts: &mut Vec<Part>, choice: Choice) {
        match choice {
            Choice::ErrorBeside(kind) => parts.push(notification(kind, 0, &[], &[])),
            Choice::Critical => parts.push((CRITICAL, Vec::new())),
            Choice::Unknown => {
                parts.extend([notification(40_000, 0, &[], &[]), (200, vec![1, 2, 3]), (43, b"somebody".to_vec())])
            }
            Choice::NoNonce => parts.retain(|part| part.0 != payload::NONCE),
            Choice::WrongAuth => {
                for (_, body) in parts.iter_mut().filter(|part| part.0 == payload::AUTH) {
                    *body.last_mut().unwrap() ^= 1;
                }
            }
            Choice::Narrowed => {
                for (_, body) in parts.iter_mut().filter(|part| is_selectors(part)) {
                    *body = half(body);
                }
            }
            Choice::Widened => {
                for part in parts.iter_mut().filter(|part| is_selectors(part)) {
                    *part = everything(part.0);
                }
            }
            Choice::OtherCipher => {
                // AES-GCM-128 takes the place of AES-GCM-256.
                for (_, body) in parts.iter_mut().filter(|part| part.0 == payload::SA) {
                    let at = body.windows(4).position(|octets| octets == [0x80, 14, 1, 0]).unwrap();
                    body[at + 2..at + 4].copy_from_slice(&[0, 128]);
                }
            }
            _ => {}
        }
    }

    /// Returns the payloads of the response to a request on an IKE SA, and carries out what it
    /// means.
    pub fn parts(&mut self, spi: u64, asked: Asked, request: &Message, choice: Choice) -> Vec<Part> {
        if self.sas[&spi].is_busy(asked) {
            return vec![notification(notify::TEMPORARY_FAILURE, 0, &[], &[])];
        }
        let curve25519 = request.key_exchange().is_none_or(|(group, _)| group == CURVE25519);
        let choice = if curve25519 { choice } else { Choice::OtherGroup(CURVE25519) };
        if let Some(refusal) = self.refusal(request, choice) {
            let sa = self.sas.get_mut(&spi).unwrap();
            if choice == Choice::Error(notify::CHILD_SA_NOT_FOUND) {
                sa.children.retain(|_, child| Some(child.theirs) != request.rekeys());
            }
            if asked == Asked::Auth {
                sa.up = false;
            }
            return refusal;
        }
        let mut parts = match asked {
            Asked::Auth => self.auth_parts(spi, request, choice),
            Asked::Child { .. } => self.child_parts(spi, request, choice),
            Asked::IkeRekey => self.ike_rekey_parts(spi, request),
            Asked::ChildDeletion => self.deletion_parts(spi, request),
            Asked::IkeDeletion => {
                self.sas.get_mut(&spi).unwrap().up = false;
                Vec::new()
            }
            Asked::Init | Asked::Informational => Vec::new(),
        };
        Self::change(&mut parts, choice);
        let ends =
            matches!(choice, Choice::ErrorBeside(kind) | Choice::RefusedChild(kind) if ENDS_IKE_SA.contains(&kind));
        if ends && asked == Asked::Auth {
            self.sas.get_mut(&spi).unwrap().up = false;
        }
        parts
    }

    fn auth_parts(&mut self, spi: u64, request: &Message, choice: Choice) -> Vec<Part> {
        if request.notify(notify::INITIAL_CONTACT).is_some() {
            self.sas.retain(|other, _| *other == spi);
        }
        let sa = self.sas.get_mut(&spi).unwrap();
        sa.up = true;
        let id = [[2, 0, 0, 0].as_slice(), FOREIGN_ID.as_bytes()].concat();
        let auth = sa.keys.psk_auth(false, PSK, &sa.init.2, &sa.init.0, &id);
        let mut parts = vec![(payload::ID_RESPONDER, id), (payload::AUTH, [[2, 0, 0, 0].as_slice(), &auth].concat())];
        match choice {
            Choice::RefusedChild(kind) => parts.push(notification(kind, 0, &[], &[])),
            _ if request.find(payload::SA).is_some() => parts.extend(self.child_parts(spi, request, choice)),
            _ => {}
        }
        parts
    }

    /// Adds a CHILD_SA.
    fn child_parts(&mut self, spi: u64, request: &Message, choice: Choice) -> Vec<Part> {
        let (own, nonce) = (self.fresh() as u32 + 0xf000, self.nonce());
        let is_auth = request.header.exchange == exchange::IKE_AUTH;
        let offers = request.proposals();
        let group = request.key_exchange().map(|(group, _)| group);
        let transforms = [Some((1, 20, 256)), group.map(|group| (4, group, 0)), Some((5, 0, 0))];
        let transforms: Vec<_> = transforms.into_iter().flatten().collect();
        let mut parts = vec![proposal(3, &own.to_be_bytes(), &transforms)];
        if !is_auth {
            parts.push((payload::NONCE, nonce));
            parts.extend(group.map(|_| key_exchange(&Self::public())));
        }
        let selectors = [payload::TS_INITIATOR, payload::TS_RESPONDER].map(|kind| {
            let body = request.find(kind).unwrap().to_vec();
            if choice == Choice::Narrowed { half(&body) } else { body }
        });
        let [theirs, ours] = selectors.clone();
        parts.extend([(payload::TS_INITIATOR, theirs.clone()), (payload::TS_RESPONDER, ours.clone())]);
        let child = Child { theirs: offers[0].spi32(), selectors: (ours, theirs) };
        self.sas.get_mut(&spi).unwrap().children.insert(own, child);
        parts
    }

    fn ike_rekey_parts(&mut self, spi: u64, request: &Message) -> Vec<Part> {
        let (own, nonce) = (self.fresh(), self.nonce());
        let parts = vec![ike_proposal(Some(own)), (payload::NONCE, nonce.clone()), key_exchange(&Self::public())];
        let spis = (request.proposals()[0].spi64(), own);
        self.add_rekeyed(spi, spis, false, request, (request.nonce().unwrap(), &nonce));
        parts
    }

    fn deletion_parts(&mut self, spi: u64, request: &Message) -> Vec<Part> {
        let sa = self.sas.get_mut(&spi).unwrap();
        let deleted = request.deleted_children();
        let gone: Vec<u32> =
            sa.children.extract_if(.., |_, child| deleted.contains(&child.theirs)).map(|it| it.0).collect();
        gone.into_iter().map(crate::foreign::delete_child).collect()
    }
}

fn is_selectors(part: &Part) -> bool {
    [payload::TS_INITIATOR, payload::TS_RESPONDER].contains(&part.0)
}

/// Returns the lower half of the first selector, which is one of IPv4.
fn half(body: &[u8]) -> Vec<u8> {
    let number = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
    let (start, end) = (number(12), number(16));
    [&[1, 0, 0, 0], &body[4..16], &(start + (end - start) / 2).to_be_bytes()].concat()
}
