//! Manages join tokens. The operator creates tokens for a limited number of uses and a limited
//! time. The controller stores only hashes of the tokens.

use std::collections::{BTreeSet, HashMap};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use edge_types::api::{TokenInfo, TokenRequest};
use edge_types::{JoinToken, NodeName};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::clock::{Seconds, rfc3339};
use crate::random::NoRandomness;
use crate::state::{NodeRecord, Redemption, State, TokenRecord};

/// Maximum validity of a token, in seconds: a year.
const LONGEST: u64 = 366 * 24 * 3600;
/// Seconds for which an expired token stays in the list, so that an attempt to use it gets a
/// precise error.
const KEPT_AFTER_EXPIRY: Seconds = 30 * 24 * 3600;

/// The reason why a join token cannot be created or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The operator's request for a token has invalid values.
    #[error("{0}")]
    Invalid(String),
    /// The token is unknown, or its secret is wrong. The text does not reveal which of the two.
    #[error(
        "the join token is not known here: it was deleted, was made by another controller, or is mistyped; ask the operator for a new one"
    )]
    Unknown,
    /// The token has expired.
    #[error("join token {id} expired at {at}; ask the operator for a new one")]
    Expired {
        /// Id of the token.
        id: String,
        /// Time at which the token expired, RFC 3339.
        at: String,
    },
    /// The token has already been used the maximum number of times.
    #[error("join token {id} has been used {uses} of {uses} times; ask the operator for a new one")]
    Used {
        /// Id of the token.
        id: String,
        /// Maximum number of times that the token may be used.
        uses: u32,
    },
    /// The token is for another node.
    #[error(
        "join token {id} is for node {bound}, not for {node}; ask the operator for one that names this node or none"
    )]
    OfAnother {
        /// Id of the token.
        id: String,
        /// The node that the token names.
        bound: NodeName,
        /// The node that tries to join.
        node: NodeName,
    },
    /// The operating system provides no random numbers.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// Creates a token. Returns the token for the operator and the record to store.
pub fn create(request: &TokenRequest, ca_hash: [u8; 32], now: Seconds) -> Result<(JoinToken, TokenRecord), TokenError> {
    if request.ttl_seconds == 0 || request.ttl_seconds > LONGEST {
        let ttl = request.ttl_seconds;
        return Err(TokenError::Invalid(format!("a token is valid for 1 to {LONGEST} seconds, not {ttl}")));
    }
    match (&request.node, request.uses) {
        (_, 0) => return Err(TokenError::Invalid("a token with 0 uses lets no node join".into())),
        (Some(node), 2..) => {
            return Err(TokenError::Invalid(format!(
                "a token bound to a name ({node}) is for one use, not {}",
                request.uses
            )));
        }
        _ => {}
    }
    let token = JoinToken { ca_hash, role: request.role, node: request.node.clone(), id: id()?, secret: random(32)? };
    let record = TokenRecord {
        id: token.id.clone(),
        secret_hash: hash(&token.secret),
        role: request.role,
        node: request.node.clone(),
        uses_left: request.uses,
        created_uses: request.uses,
        created_at: now,
        expires_at: now.saturating_add_unsigned(request.ttl_seconds),
        authority: crate::ca::hex(&ca_hash),
        redemptions: Vec::new(),
    };
    Ok((token, record))
}

/// Checks that a credential belongs to a stored token, used up or not. The check computes one hash,
/// and only if the id is known.
pub fn is_known(state: &State, credential: &str) -> Result<(), TokenError> {
    find(state, credential).map(drop)
}

fn find<'a>(state: &'a State, credential: &str) -> Result<&'a TokenRecord, TokenError> {
    let (id, secret) = credential.split_once('.').ok_or(TokenError::Unknown)?;
    let token = state.token(id).ok_or(TokenError::Unknown)?;
    match hash(secret).as_bytes().ct_eq(token.secret_hash.as_bytes()).into() {
        true => Ok(token),
        false => Err(TokenError::Unknown),
    }
}

/// Checks the credential of a joining node with this key. Returns the record of the token after
/// this use. An unchanged record means that this use repeats an earlier request: see
/// [`is_repeated`].
pub fn redeem(
    state: &State,
    credential: &str,
    node: &NodeName,
    key: &str,
    now: Seconds,
) -> Result<TokenRecord, TokenError> {
    let token = find(state, credential)?;
    let id = || token.id.clone();
    if now >= token.expires_at {
        return Err(TokenError::Expired { id: id(), at: rfc3339(token.expires_at) });
    }
    if let Some(bound) = token.node.as_ref().filter(|bound| *bound != node) {
        return Err(TokenError::OfAnother { id: id(), bound: bound.clone(), node: node.clone() });
    }
    // The response to an earlier request may have been lost. A request with the same key is
    // accepted again while the node is registered with that key.
    let joined = |known: &NodeRecord| {
        let redemption = Redemption { node: node.clone(), key: key.into() };
        known.join_token.as_ref() == Some(&token.id) || token.redemptions.contains(&redemption)
    };
    let registered = state.node(node).filter(|known| known.certificates.iter().any(|c| c.key == key));
    if registered.is_some_and(joined) {
        return Ok(token.clone());
    }
    if token.used() >= token.uses() {
        return Err(TokenError::Used { id: id(), uses: token.uses() });
    }
    let mut after = token.clone();
    after.set_used(token.used() + 1);
    Ok(after)
}

/// Returns whether this use repeats an earlier request: see [`redeem`].
pub fn is_repeated(before: &State, after: &TokenRecord) -> bool {
    before.token(&after.id).is_some_and(|token| token.used() == after.used())
}

/// Returns the ids of tokens that expired at least 30 days ago. The caller deletes these tokens.
pub fn forgotten(state: &State, now: Seconds) -> Vec<String> {
    let old = |token: &&TokenRecord| now >= token.expires_at.saturating_add(KEPT_AFTER_EXPIRY);
    state.tokens().filter(old).map(|token| token.id.clone()).collect()
}

/// Returns all tokens as the API shows them to the operator.
pub fn infos(state: &State) -> Vec<TokenInfo> {
    let mut nodes: HashMap<&str, Vec<NodeName>> = HashMap::new();
    for node in state.nodes() {
        if let Some(token) = &node.join_token {
            nodes.entry(token).or_default().push(node.name.clone());
        }
    }
    let mut joined = |token: &TokenRecord| nodes.remove(token.id.as_str()).unwrap_or_default();
    state.tokens().map(|token| info(token, joined(token))).collect()
}

/// Returns a token as the API shows it to the operator, with the registered nodes that joined with
/// it.
pub fn info(token: &TokenRecord, joined: Vec<NodeName>) -> TokenInfo {
    let noted = token.redemptions.iter().map(|redemption| redemption.node.clone());
    let used_by: BTreeSet<NodeName> = noted.chain(joined).collect();
    TokenInfo {
        id: token.id.clone(),
        role: token.role,
        node: token.node.clone(),
        uses: token.uses(),
        used: token.used(),
        used_by: used_by.into_iter().collect(),
        created_at: token.created_at,
        expires_at: token.expires_at,
    }
}

/// Returns a random id. It does not begin with a hyphen, because command lines would read it as an
/// option.
fn id() -> Result<String, TokenError> {
    loop {
        let id = random(9)?.to_string();
        if !id.starts_with('-') {
            return Ok(id);
        }
    }
}

fn random(octets: usize) -> Result<Zeroizing<String>, TokenError> {
    let bytes = crate::random::octets(octets)?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes)))
}

fn hash(secret: &str) -> String {
    crate::ca::hex(ring::digest::digest(&ring::digest::SHA256, secret.as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Certificate, Change};
    use edge_types::Role;

    fn made(uses: u32, node: Option<&str>) -> (State, JoinToken) {
        let node = node.map(|name| name.parse().unwrap());
        let request = TokenRequest { role: Role::Edge, node, ttl_seconds: 60, uses };
        let (token, record) = create(&request, [0; 32], 1000).unwrap();
        let mut state = State::default();
        state.apply(Change::PutToken(record));
        (state, token)
    }

    fn redeem_and_keep(
        state: &mut State,
        token: &JoinToken,
        node: &str,
        key: &str,
        now: i64,
    ) -> Result<(), TokenError> {
        let name: NodeName = node.parse().unwrap();
        let record = redeem(state, &token.credential(), &name, key, now)?;
        let mut node = NodeRecord::new(name, Role::Edge, now);
        node.join_token = Some(token.id.clone());
        node.certificates.push(Certificate {
            serial: "1".into(),
            key: key.into(),
            not_after: now,
            not_before: 0,
            issuer: String::new(),
            used: false,
        });
        state.apply(Change::PutToken(record));
        state.apply(Change::PutNode(node));
        Ok(())
    }

    #[test]
    fn a_token_is_used_as_often_as_it_says_and_a_lost_answer_is_repeated() {
        let (mut state, token) = made(2, None);
        redeem_and_keep(&mut state, &token, "a", "ka", 1000).unwrap();
        redeem_and_keep(&mut state, &token, "a", "ka", 1001).unwrap();
        redeem_and_keep(&mut state, &token, "b", "kb", 1002).unwrap();
        redeem_and_keep(&mut state, &token, "a", "ka", 1003).unwrap();
        let refused = redeem_and_keep(&mut state, &token, "a", "another key", 1003);
        assert!(matches!(refused, Err(TokenError::Used { uses: 2, .. })));
        state.apply(Change::DeleteNode("a".parse().unwrap()));
        let refused = redeem_and_keep(&mut state, &token, "a", "ka", 1004);
        assert!(matches!(refused, Err(TokenError::Used { .. })), "deregistered: no way back by an old token");
    }

    #[test]
    fn a_token_takes_no_more_room_with_each_use_and_the_nodes_say_who_used_it() {
        let (mut state, token) = made(1000, None);
        let size = |state: &State| serde_json::to_vec(state.token(&token.id).unwrap()).unwrap().len();
        let before = size(&state);
        for number in 0..1000 {
            redeem_and_keep(&mut state, &token, &format!("node-{number:03}"), &format!("k{number}"), 1000).unwrap();
        }
        assert!(size(&state) <= before, "{} bytes after {before}", size(&state));
        assert!(matches!(
            redeem_and_keep(&mut state, &token, "late", "k", 1000),
            Err(TokenError::Used { uses: 1000, .. })
        ));
        state.apply(Change::DeleteNode("node-500".parse().unwrap()));
        let info = infos(&state).remove(0);
        assert_eq!((info.uses, info.used, info.used_by.len()), (1000, 1000, 999));
        assert!(!info.used_by.iter().any(|name| name.as_str() == "node-500"), "it is not registered any more");
    }

    /// Scenario: the record was written by a release that recorded each join in the token's row.
    #[test]
    fn the_uses_that_an_earlier_release_wrote_count_and_its_lost_answers_are_repeated() {
        let (mut state, token) = made(0x7fff, None);
        let mut earlier = serde_json::to_value(state.token(&token.id).unwrap()).unwrap();
        let row = earlier.as_object_mut().unwrap();
        row.remove("created_uses").unwrap();
        row.insert("uses".into(), 3.into());
        row.insert("redemptions".into(), serde_json::json!([{"node": "a", "key": "ka"}, {"node": "b", "key": "kb"}]));
        let earlier: TokenRecord = serde_json::from_value(earlier).unwrap();
        assert_eq!((earlier.uses(), earlier.used()), (3, 2));
        state.apply(Change::PutToken(earlier));
        let mut a = NodeRecord::new("a".parse().unwrap(), Role::Edge, 0);
        a.certificates.push(Certificate {
            serial: "1".into(),
            key: "ka".into(),
            not_after: 0,
            not_before: 0,
            issuer: String::new(),
            used: false,
        });
        state.apply(Change::PutNode(a));
        let repeated = redeem(&state, &token.credential(), &"a".parse().unwrap(), "ka", 1000).unwrap();
        assert!(is_repeated(&state, &repeated));
        assert_eq!(infos(&state)[0].used_by.len(), 2);
        redeem_and_keep(&mut state, &token, "c", "kc", 1000).unwrap();
        let refused = redeem_and_keep(&mut state, &token, "d", "kd", 1000);
        assert!(matches!(refused, Err(TokenError::Used { uses: 3, .. })));
        // An earlier release refuses further joins with this record: it compares the number of
        // redemptions with `uses`.
        let now = serde_json::to_value(state.token(&token.id).unwrap()).unwrap();
        assert_eq!((&now["uses"], now.get("redemptions")), (&0.into(), None));
    }

    /// While replicas of both releases run, the replica of the earlier release adds its joins to
    /// the row.
    #[test]
    fn a_use_that_an_earlier_release_adds_to_a_row_of_this_one_counts_once() {
        let (mut state, token) = made(5, None);
        redeem_and_keep(&mut state, &token, "a", "ka", 1000).unwrap();
        let mut record = state.token(&token.id).unwrap().clone();
        record.redemptions.push(Redemption { node: "b".parse().unwrap(), key: "kb".into() });
        assert_eq!((record.uses(), record.used()), (5, 2));
        state.apply(Change::PutToken(record));
        redeem_and_keep(&mut state, &token, "c", "kc", 1000).unwrap();
        let record = state.token(&token.id).unwrap();
        assert_eq!((record.uses(), record.used(), record.uses_left), (5, 3, 2));
    }

    #[test]
    fn expired_foreign_and_forged_tokens_are_refused() {
        let (state, token) = made(1, Some("a"));
        let name = |text: &str| text.parse::<NodeName>().unwrap();
        let at = |node: &str, now| redeem(&state, &token.credential(), &name(node), "k", now);
        assert!(matches!(at("a", 1060), Err(TokenError::Expired { .. })));
        assert!(matches!(at("b", 1000), Err(TokenError::OfAnother { .. })));
        at("a", 1059).unwrap();
        for forged in ["", ".", "x.y", token.id.as_str(), &format!("{}.", token.id), &format!("{}.x", token.id)] {
            assert!(matches!(redeem(&state, forged, &name("a"), "k", 1000), Err(TokenError::Unknown)), "{forged}");
        }
    }

    #[test]
    fn no_id_begins_like_an_option() {
        // Without the rule, one in 64 ids would begin with a hyphen.
        let begins: Vec<char> = (0..2000).map(|_| made(1, None).1.id.chars().next().unwrap()).collect();
        assert!(!begins.contains(&'-') && begins.contains(&'_'));
    }

    #[test]
    fn the_secret_is_not_kept() {
        let (state, token) = made(1, None);
        let kept = serde_json::to_string(state.token(&token.id).unwrap()).unwrap();
        assert!(!kept.contains(&*token.secret));
    }

    #[test]
    fn senseless_bounds_are_refused() {
        for (uses, ttl_seconds, node) in [(0, 60, None), (1, 0, None), (1, u64::MAX, None), (2, 60, Some("a"))] {
            let node = node.map(|name: &str| name.parse().unwrap());
            let request = TokenRequest { role: Role::Hub, node, ttl_seconds, uses };
            assert!(matches!(create(&request, [0; 32], 0), Err(TokenError::Invalid(_))));
        }
    }
}
