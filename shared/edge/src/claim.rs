//! What a claim returns: all the context of one piece of work, from one transaction. Shapes as in `docs/api.md`, "RPCs".

use std::cell::RefCell;

use ihuza_core::{
    guards::Guards,
    json::{flag_at, items_at, str_at, string_at, u32_at},
    quiet_hours::QuietHours,
    sms,
};
use serde_json::Value;

use crate::{context::Cx, host};

thread_local! {
    /// Work and its token, the oldest first. A list, which is nearly always empty: a second kind of map would be 4 KB of wasm.
    static UNHEARD: RefCell<Vec<(String, String)>> = const { RefCell::new(Vec::new()) };
}

/// Tokens that are remembered: those of a long outage, and no more.
const UNHEARD_MAX: usize = 1_000;

/// The token for a claim of `work`. Where no answer came to the last one, the same again: that claim may stand, nothing was
/// done under it, and under another token it would be waited for as if its holder had died.
pub fn lease_token(work: &str) -> String {
    UNHEARD.with_borrow_mut(|unheard| taken(unheard, work)).unwrap_or_else(host::new_uuid)
}

/// No answer came to the claim of `work` under this token.
pub fn unheard(work: &str, token: String) {
    UNHEARD.with_borrow_mut(|unheard| {
        taken(unheard, work);
        if unheard.len() >= UNHEARD_MAX {
            unheard.remove(0);
        }
        unheard.push((work.to_owned(), token));
    });
}

/// The token of `work`, which is forgotten.
fn taken(unheard: &mut Vec<(String, String)>, work: &str) -> Option<String> {
    let place = unheard.iter().position(|(known, _)| known == work)?;
    Some(unheard.remove(place).1)
}

/// The person.
#[derive(Debug, Clone)]
pub struct Profile {
    pub id: String,
    pub phone_number: Option<String>,
    /// WhatsApp's own name for somebody who shares no number.
    pub whatsapp_user_id: Option<String>,
    /// The number or user id that wrote what is answered on WhatsApp.
    pub whatsapp_to: Option<String>,
    /// `yes`, `no` or `unknown`.
    pub whatsapp: String,
    pub allows_sms: bool,
    pub locale: Option<String>,
    pub last_whatsapp_inbound_at: Option<String>,
    pub preferences: Value,
}

/// The tenant in whose name we speak.
#[derive(Debug, Clone)]
pub struct Client {
    pub brand: String,
    /// Overrides `MTN_SMS_SENDER_ID` where set.
    pub sms_sender_id: Option<String>,
    pub sms_service_code: Option<String>,
    /// A number that people may call for help.
    pub contact_number: Option<String>,
    pub default_locale: Option<String>,
    pub default_policy: Option<String>,
    pub mirror_replies: bool,
    /// Most segments of one SMS (`settings.sms_max_segments`), where the client says so.
    pub sms_max_segments: Option<usize>,
    /// What is said beside it: `{whatsapp_then_sms: {after, until}}`.
    pub settings: Value,
    /// What messages cost: `[{provider, kind, prefix, price, currency}]`.
    pub prices: Vec<Value>,
    /// What Meta says of the templates: `[{name, language, category, status}]`.
    pub templates: Vec<Value>,
}

impl Client {
    /// Most segments of one SMS: what the client says, at most [`sms::MOST_SEGMENTS`]; else what is usual for this kind of
    /// message.
    pub fn most_segments(&self, usual: usize) -> usize {
        self.sms_max_segments.map_or(usual, |most| most.clamp(1, sms::MOST_SEGMENTS))
    }
}

/// What every claim of work has in common.
#[derive(Debug, Clone)]
pub struct Claim {
    pub profile: Profile,
    pub client: Client,
    pub session_id: String,
    /// The session began with this work.
    pub session_created: bool,
    pub agent_slug: String,
    pub agent_model: Option<String>,
    /// The ids that the messages of this work will have, made before anything is sent.
    pub sms_delivery_id: String,
    pub whatsapp_delivery_id: String,
    /// Channels of which a report says that an earlier consumer has sent this very message.
    pub already_sent: Vec<String>,
    /// The first is 1.
    pub attempt: u32,
    pub gates: Gates,
    /// What may not be sent, whatever could carry it.
    pub guards: Guards,
    /// Whether it is night where the person is.
    pub quiet: QuietHours,
}

impl Claim {
    /// Reads the common part of a claim; `None` if it is not of the shape that the migrations promise.
    pub fn read(claim: &Value) -> Option<Claim> {
        let (profile, client, session) = (claim.get("profile")?, claim.get("client")?, claim.get("session")?);
        let (agent, ids) = (claim.get("agent")?, claim.get("delivery_ids")?);
        Some(Claim {
            profile: Profile {
                id: string_at(profile, "id")?,
                phone_number: string_at(profile, "phone_number"),
                whatsapp_user_id: string_at(profile, "whatsapp_user_id"),
                whatsapp_to: string_at(profile, "whatsapp_to"),
                whatsapp: string_at(profile, "whatsapp")?,
                allows_sms: flag_at(profile, "allows_sms"),
                locale: string_at(profile, "locale"),
                last_whatsapp_inbound_at: string_at(profile, "last_whatsapp_inbound_at"),
                preferences: profile.get("preferences").cloned().unwrap_or_default(),
            },
            client: Client {
                brand: string_at(client, "brand")?,
                sms_sender_id: string_at(client, "sms_sender_id"),
                sms_service_code: string_at(client, "sms_service_code"),
                contact_number: string_at(client, "contact_number"),
                default_locale: string_at(client, "default_locale"),
                default_policy: string_at(client, "default_policy"),
                mirror_replies: flag_at(client, "mirror_replies"),
                sms_max_segments: client
                    .get("settings")
                    .and_then(|settings| u32_at(settings, "sms_max_segments"))
                    .and_then(|most| usize::try_from(most).ok()),
                settings: client.get("settings").cloned().unwrap_or_default(),
                prices: items_at(client, "prices").to_vec(),
                templates: items_at(client, "templates").to_vec(),
            },
            session_id: string_at(session, "id")?,
            session_created: flag_at(session, "created"),
            agent_slug: string_at(agent, "slug").unwrap_or_default(),
            agent_model: string_at(agent, "model"),
            sms_delivery_id: string_at(ids, "sms")?,
            whatsapp_delivery_id: string_at(ids, "whatsapp")?,
            already_sent: items_at(claim, "already_sent")
                .iter()
                .filter_map(|c| c.as_str().map(str::to_owned))
                .collect(),
            attempt: u32_at(claim, "attempt").unwrap_or(1),
            gates: Gates(claim.get("providers").cloned().unwrap_or_default()),
            guards: Guards::read(claim),
            quiet: QuietHours::read(claim),
        })
    }
}

/// The request of a claim: the work as it was accepted, and the terms of the lease.
pub fn request(cx: &Cx, work: &Value, lease_token: &str) -> Value {
    let mut p = work.clone();
    if let Some(p) = p.as_object_mut() {
        p.insert("correlation_id".to_owned(), cx.correlation_id.as_str().into());
        p.insert("lease_token".to_owned(), lease_token.into());
        for (name, setting) in [
            ("lease_seconds", "LEASE_SECONDS"),
            ("unknown_wait_seconds", "UNKNOWN_WAIT_SECONDS"),
            ("session_idle_hours", "SESSION_IDLE_HOURS"),
        ] {
            p.insert(name.to_owned(), cx.config.number(setting).into());
        }
    }
    p
}

/// An agent's instructions in `locale`, else in English; `instructions` is one text, or one a language.
pub fn instructions_in<'a>(agent: &'a Value, locale: &str) -> &'a str {
    let instructions = agent.get("instructions").unwrap_or(&Value::Null);
    instructions
        .as_str()
        .or_else(|| str_at(instructions, locale))
        .or_else(|| str_at(instructions, "en"))
        .unwrap_or_default()
}

/// The circuit breakers, as the database saw them at the claim: `{<provider>: {gate, open_until}}` with the gate `closed`,
/// `open` or `probe` (we are the one that tries).
#[derive(Debug, Clone, Default)]
pub struct Gates(pub Value);

impl Gates {
    /// Until when no request may go to `provider`.
    pub fn open_until(&self, provider: &str) -> Option<&str> {
        let gate = self.0.get(provider)?;
        (str_at(gate, "gate") == Some("open")).then(|| str_at(gate, "open_until").unwrap_or_default())
    }

    pub fn is_open(&self, provider: &str) -> bool {
        self.open_until(provider).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_an_open_gate_keeps_requests_away() {
        let gates = Gates(
            json!({ "mtn": { "gate": "open", "open_until": "2026-11-21T08:00:00Z" }, "whatsapp": { "gate": "probe" } }),
        );
        assert_eq!(gates.open_until("mtn"), Some("2026-11-21T08:00:00Z"));
        assert!(!gates.is_open("whatsapp"));
        assert!(!gates.is_open("openai"));
    }

    #[test]
    fn a_client_may_allow_fewer_segments_or_more_and_never_too_many() {
        let claim = |settings: Value| {
            let claim = json!({ "profile": {"id": "p", "whatsapp": "yes"}, "client": {"brand": "EasyMO", "settings": settings}, "session": {"id": "s"},
                                "agent": {}, "delivery_ids": {"sms": "1", "whatsapp": "2"} });
            Claim::read(&claim).unwrap().client
        };
        assert_eq!(claim(json!({ "sms_max_segments": 1 })).most_segments(3), 1);
        assert_eq!(claim(json!({ "sms_max_segments": 5 })).most_segments(3), 5);
        assert_eq!(claim(json!({ "sms_max_segments": 0 })).most_segments(3), 1);
        assert_eq!(claim(json!({ "sms_max_segments": 400 })).most_segments(3), sms::MOST_SEGMENTS);
        for settings in [json!({}), json!(null), json!({ "sms_max_segments": "many" })] {
            assert_eq!(claim(settings).most_segments(2), 2);
        }
    }

    #[test]
    fn instructions_fall_back_to_english() {
        let agent = json!({ "instructions": { "en": "Be kind.", "rw": "Gira neza." } });
        assert_eq!(instructions_in(&agent, "rw"), "Gira neza.");
        assert_eq!(instructions_in(&agent, "sw"), "Be kind.");
        assert_eq!(instructions_in(&json!({ "instructions": "Be brief." }), "fr"), "Be brief.");
    }
}
