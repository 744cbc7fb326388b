//! Secrets of one world, made anew each time, and the two kinds of Supabase keys.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use uuid::Uuid;

/// Unguessable, 64 hex digits.
pub fn secret() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// HMAC-SHA256 as lower-case hex.
pub fn hmac_hex(key: &str, parts: &[&[u8]]) -> String {
    hmac(key, parts).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hmac(key: &str, parts: &[&[u8]]) -> Vec<u8> {
    hmac_sha256(key.as_bytes(), parts)
}

/// HMAC-SHA256.
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    #[allow(clippy::expect_used, reason = "HMAC takes keys of any length (RFC 2104)")]
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes any key");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}

/// A JWT signed with HS256.
pub fn jwt(secret: &str, claims: &Value) -> String {
    let head = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "typ": "JWT"}).to_string());
    let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
    let signed = format!("{head}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(hmac(secret, &[signed.as_bytes()]));
    format!("{signed}.{signature}")
}

/// Both generations of a project's keys.
#[derive(Clone, Debug)]
pub struct ProjectKeys {
    pub jwt_secret: String,
    /// Legacy, a JWT.
    pub anon: String,
    /// Legacy, a JWT.
    pub service_role: String,
    /// `sb_publishable_…`, opaque.
    pub publishable: String,
    /// `sb_secret_…`, opaque.
    pub secret: String,
}

impl ProjectKeys {
    pub fn generate() -> Self {
        let jwt_secret = secret();
        let legacy = |role: &str| {
            jwt(
                &jwt_secret,
                &json!({"iss": "supabase", "ref": "localworld", "role": role, "iat": 1_764_000_000, "exp": 2_079_576_000}),
            )
        };
        Self {
            anon: legacy("anon"),
            service_role: legacy("service_role"),
            publishable: format!("sb_publishable_{}", Uuid::new_v4().simple()),
            secret: format!("sb_secret_{}", Uuid::new_v4().simple()),
            jwt_secret,
        }
    }

    /// The token of a signed-in user, as Supabase Auth would issue it.
    pub fn user(&self, user_id: Uuid) -> String {
        let expires = chrono::Utc::now().timestamp() + 3600;
        jwt(
            &self.jwt_secret,
            &json!({"sub": user_id.to_string(), "role": "authenticated", "aud": "authenticated", "exp": expires}),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_agree_with_published_vectors() {
        let mac = hmac_hex("Jefe", &[b"what do ya want ", b"for nothing?"]);
        assert_eq!(mac, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn legacy_keys_are_signed_tokens_and_new_keys_are_not() {
        let keys = ProjectKeys::generate();
        assert_eq!(keys.service_role.split('.').count(), 3);
        assert!(keys.secret.starts_with("sb_secret_") && !keys.secret.contains('.'));
    }
}
