//! Stores join tokens as Secrets in the controller's namespace. A Secret holds the hash of the
//! token's secret, never the secret itself.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use edge_controller_domain::ca::hex;
use edge_controller_domain::state::TokenRecord;
use serde_json::{Value, json};

/// Label that states the kind of content of one of the controller's Secrets.
pub const KIND_LABEL: &str = "edge-cni.io/kind";
/// Value of [`KIND_LABEL`] for join tokens.
pub const KIND: &str = "join-token";
const TYPE: &str = "edge-cni.io/join-token";
const KEY: &str = "record";

/// Returns the name of a token's Secret. The name holds the ID in hexadecimal, because an ID may
/// have capital letters and `_`, which are not allowed in the name of a Secret.
pub fn object_name(id: &str) -> String {
    format!("{KIND}-{}", hex(id.as_bytes()))
}

/// Returns the type and the data of a token's Secret.
///
/// # Errors
/// Returns an error if the record cannot be written as JSON.
pub fn content(record: &TokenRecord) -> Result<Value, serde_json::Error> {
    Ok(json!({"type": TYPE, "data": {KEY: STANDARD.encode(serde_json::to_vec(record)?)}}))
}

/// Reads a token from the Secret with this name and `data`.
///
/// # Errors
/// Returns a text that names the missing or damaged part, or says that the Secret holds another
/// token.
pub fn record(name: &str, data: &Value) -> Result<TokenRecord, String> {
    let text = data.get(KEY).and_then(Value::as_str);
    let bytes = STANDARD.decode(text.ok_or_else(|| format!("data.{KEY} is missing"))?);
    let bytes = bytes.map_err(|e| format!("data.{KEY} is not base64: {e}"))?;
    let record: TokenRecord = serde_json::from_slice(&bytes).map_err(|e| format!("data.{KEY}: {e}"))?;
    if object_name(&record.id) == name { Ok(record) } else { Err(format!("it holds token {:?}", record.id)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_from_its_secret_as_it_was_and_only_from_its_own() {
        let token = TokenRecord {
            id: "Ab_-9".into(),
            secret_hash: "00".into(),
            role: edge_types::Role::Edge,
            node: None,
            uses_left: 1,
            created_uses: 2,
            created_at: 1,
            expires_at: 2,
            authority: "ab".into(),
            redemptions: Vec::new(),
        };
        let (name, content) = (object_name(&token.id), content(&token).unwrap());
        assert_eq!(record(&name, &content["data"]).unwrap(), token);
        record("join-token-00", &content["data"]).unwrap_err();
        record(&name, &json!({"record": "?"})).unwrap_err();
        record(&name, &json!({})).unwrap_err();
    }
}
