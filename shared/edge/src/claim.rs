//! What a claim returns: all the context of one piece of work, from one transaction. Shapes as in `docs/api.md`, "RPCs".

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Clone, Deserialize)]
pub struct Profile {
    pub id: String,
    pub phone_number: Option<String>,
    /// `yes`, `no` or `unknown`.
    pub whatsapp: String,
    pub allows_sms: bool,
    pub locale: Option<String>,
    pub last_whatsapp_inbound_at: Option<String>,
    #[serde(default)]
    pub preferences: Value,
}

/// The tenant in whose name we speak.
#[derive(Debug, Clone, Deserialize)]
pub struct Client {
    pub brand: String,
    /// Overrides `MTN_SMS_SENDER_ID` where set.
    pub sms_sender_id: Option<String>,
    pub sms_service_code: Option<String>,
    /// A number that people may call for help.
    #[serde(default)]
    pub contact_number: Option<String>,
    pub default_locale: Option<String>,
    pub default_policy: Option<String>,
    #[serde(default)]
    pub mirror_replies: bool,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Session {
    pub id: String,
    #[serde(default)]
    pub created: bool,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Agent {
    pub slug: String,
    /// Instructions a locale, or one text for all.
    #[serde(default)]
    pub instructions: Value,
    pub model: Option<String>,
}

impl Agent {
    /// Instructions in `locale`, else in English, else none.
    pub fn instructions_in(&self, locale: &str) -> &str {
        self.instructions
            .as_str()
            .or_else(|| self.instructions.get(locale).and_then(Value::as_str))
            .or_else(|| self.instructions.get("en").and_then(Value::as_str))
            .unwrap_or_default()
    }
}

/// The ids that the messages of this work will have, made before anything is sent.
#[derive(Debug, Clone, Deserialize)]
pub struct DeliveryIds {
    pub sms: String,
    pub whatsapp: String,
}

/// Circuit breaker of one provider, as the database saw it at the claim.
#[derive(Debug, Clone, Deserialize)]
pub struct Gate {
    /// `closed`, `open` or `probe` (we are the one that tries).
    pub gate: String,
    pub open_until: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Gates(pub BTreeMap<String, Gate>);

impl Gates {
    /// Since when, or rather until when, no request may go to `provider`.
    pub fn open_until(&self, provider: &str) -> Option<&str> {
        let gate = self.0.get(provider)?;
        (gate.gate == "open").then(|| gate.open_until.as_deref().unwrap_or_default())
    }

    pub fn is_open(&self, provider: &str) -> bool {
        self.open_until(provider).is_some()
    }
}
