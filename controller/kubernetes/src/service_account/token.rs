//! Checks a service account token without its signature. Only tokens that pass are sent to the API
//! server.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use edge_controller_domain::clock::Seconds;
use serde::Deserialize;

/// The audience that the token must have. A pod's token for the API server itself is not accepted.
pub(super) const AUDIENCE: &str = "edge-cni";
/// Maximum length of a token, in bytes. The API server's tokens are shorter than 2 KiB; those for
/// this controller are bound to one audience and one pod.
const LONGEST: usize = 8 * 1024;
/// Maximum difference between our clock and that of the API server, which checks the token, in
/// seconds.
const SKEW: Seconds = 600;
/// Maximum validity that the API server grants, in seconds, whatever a pod requests
/// (`--service-account-max-token-expiration` is a year at most by default).
const FARTHEST: Seconds = 366 * 24 * 3600;

/// JOSE header (RFC 7515 section 4.1).
#[derive(Deserialize)]
struct Header {
    alg: String,
}

/// Claims (RFC 7519 section 4.1); the API server checks the other claims.
#[derive(Deserialize)]
struct JwtClaims {
    iss: String,
    sub: String,
    aud: Audiences,
    exp: serde_json::Number,
}

/// `aud` (RFC 7519 section 4.1.3): one audience or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

/// Checks that this may be a service account token for this controller.
///
/// # Errors
/// Returns the reason why it cannot be such a token. The text contains no part of the token.
pub fn check(token: &str, now: Seconds) -> Result<(), String> {
    let not = |why: &str| format!("{why}; it must be a projected token for the audience {AUDIENCE:?}");
    if token.is_empty() {
        return Err("it is empty".into());
    }
    if token.len() > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(not("it is no JWT of three parts"));
    };
    let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    let (Some(header), Some(claims), Some(signature)) = (decoded(header), decoded(claims), decoded(signature)) else {
        return Err(not("it is no JWT: a part of it is not base64url"));
    };
    let Ok(Header { alg }) = serde_json::from_slice(&header) else {
        return Err(not("it is no JWT: its header is not JSON with the key alg"));
    };
    // The API server signs only with RSA or ECDSA.
    if !(alg.starts_with("RS") || alg.starts_with("ES") || alg.starts_with("PS")) || signature.is_empty() {
        return Err(not("it is not signed by an API server"));
    }
    let Ok(JwtClaims { iss, sub, aud, exp }) = serde_json::from_slice(&claims) else {
        return Err(not("its claims are not those of a service account"));
    };
    if iss.is_empty() || !sub.starts_with("system:serviceaccount:") {
        return Err(not("it is not of a service account"));
    }
    let is_ours = match &aud {
        Audiences::One(audience) => audience == AUDIENCE,
        Audiences::Several(all) => all.iter().any(|audience| audience == AUDIENCE),
    };
    if !is_ours {
        return Err(format!("it is not for the audience {AUDIENCE:?}"));
    }
    // A NumericDate (section 2) may have a fraction.
    let end = exp.as_f64().unwrap_or(f64::NAN);
    if !(end > (now - SKEW) as f64 && end < now.saturating_add(FARTHEST) as f64) {
        return Err(not("it has expired, or its end is not a time"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: Seconds = 1_800_000_000;

    fn made(header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.{}", part(header), part(claims), URL_SAFE_NO_PAD.encode([7; 64]))
    }

    fn claims() -> Value {
        json!({"iss": "https://kubernetes.default.svc", "sub": "system:serviceaccount:edge-cni:edge-agent", "aud": ["edge-cni"],
               "exp": NOW + 3600, "iat": NOW, "nbf": NOW, "kubernetes.io": {"node": {"name": "edge-1"}}})
    }

    #[test]
    fn what_an_api_server_issues_is_let_through() {
        let header = json!({"alg": "RS256", "kid": "x"});
        check(&made(&header, &claims()), NOW).unwrap();
        let mut other = claims();
        (other["aud"], other["exp"]) = (json!("edge-cni"), json!(NOW as f64 + 0.5));
        check(&made(&json!({"alg": "ES256"}), &other), NOW + 60).unwrap();
    }

    #[test]
    fn what_cannot_be_one_is_refused_and_not_repeated() {
        let header = json!({"alg": "RS256"});
        let with = |key: &str, value: Value| {
            let mut claims = claims();
            claims[key] = value;
            made(&header, &claims)
        };
        let without = |key: &str| {
            let mut claims = claims();
            claims.as_object_mut().unwrap().remove(key);
            made(&header, &claims)
        };
        let good = made(&header, &claims());
        for bad in [
            String::new(),
            "x".repeat(LONGEST + 1),
            "marker.marker".into(),
            format!("{good}.marker"),
            good.replace('.', ".="),
            format!("{}.", good.rsplit_once('.').unwrap().0),
            made(&json!({"alg": "none"}), &claims()),
            made(&json!({"alg": "HS256"}), &claims()),
            made(&json!([]), &claims()),
            made(&header, &json!("marker")),
            with("iss", json!("")),
            without("iss"),
            with("sub", json!("marker")),
            with("aud", json!(["https://kubernetes.default.svc"])),
            with("aud", json!(7)),
            without("aud"),
            without("exp"),
            with("exp", json!(NOW - SKEW)),
            with("exp", json!(1e300)),
            with("exp", json!("marker")),
        ] {
            let why = check(&bad, NOW).expect_err(&bad);
            assert!(!why.contains("marker"), "{why}");
        }
    }
}
