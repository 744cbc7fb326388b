//! From a text to messages on their way: gathers the facts for [`routing::decide`], makes one message a channel, sends them
//! side by side.

use chrono::{DateTime, Utc};
use ihuza_core::{
    channel::Channel,
    json::obj,
    locale::Locale,
    log::{Event, Level},
    phone::{self, E164},
    policy::{self, Patience, Policy, Reached},
    price::Prices,
    quiet_hours::Hold,
    retry::Purpose,
    routing::{self, Facts, Gate, Routing, WhatsappEvidence},
    sms::{self, SmsText},
    summary::ReplyPath,
    timestamp, whatsapp_template,
};
use serde_json::{Map, Value};

use crate::{
    at_once,
    claim::{Claim, Client},
    config::Config,
    context::Cx,
    delivery::{self, Message},
};

/// So many characters are named where a text is UCS-2 because of them.
const MOST_STRANGERS: usize = 8;

/// A claimed piece of work that sends one message.
pub struct Outbox<'a> {
    pub cx: &'a Cx,
    pub claim: &'a Claim,
    pub purpose: Purpose,
    /// Where the message came in that is answered; `Voice` for a summary.
    pub inbound: Channel,
    pub locale: Locale,
}

/// The same content for each channel.
pub struct Content {
    pub sms: SmsText,
    /// As WhatsApp shows it.
    pub whatsapp: String,
    /// Parameters of the summary template; empty where no template may carry this.
    pub template: Vec<(&'static str, String)>,
}

/// What was decided and what came of it.
pub struct Sent {
    pub routing: Routing,
    /// The `deliveries` of `finish_*`.
    pub deliveries: Vec<Value>,
    /// What each channel would be given, for a fallback made later by the database.
    pub renditions: Value,
}

/// Sender of SMS in this client's name.
pub fn sms_sender<'a>(client: &'a Client, config: &'a Config) -> &'a str {
    client.sms_sender_id.as_deref().filter(|id| !id.is_empty()).unwrap_or_else(|| config.text("MTN_SMS_SENDER_ID"))
}

/// Number under which replies to this client arrive: what texts name is also what the carrier is told.
pub fn sms_service_code<'a>(client: &'a Client, config: &'a Config) -> Option<&'a str> {
    client.sms_service_code.as_deref().filter(|code| !code.is_empty()).or_else(|| config.find("MTN_SMS_SERVICE_CODE"))
}

/// How a reply by SMS can reach this client.
pub fn reply_path(client: &Client, config: &Config) -> ReplyPath {
    ReplyPath::of(sms_sender(client, config), sms_service_code(client, config))
}

impl Outbox<'_> {
    /// Whether any channel carries a message like this, now or later: else there is no need to write one.
    pub fn carries(&self, content: &Content, now: DateTime<Utc>) -> bool {
        let (routing, _, _) = self.decide(content, now);
        let silent = routing.channels.is_empty() && routing.deferred.is_empty() && routing.waiting.is_none();
        // What was sent already is to be recorded with its words.
        !silent || !self.claim.already_sent.is_empty()
    }

    /// Over which channels, what holds it up, and for which moment that was decided.
    fn decide(&self, content: &Content, now: DateTime<Utc>) -> (Routing, Hold, DateTime<Utc>) {
        let hold = self.claim.quiet.hold(self.purpose, now, self.purpose.deadline(now));
        // What waits goes out by what will be true then: the service window may have closed.
        let then = if let Hold::Until(then) = hold { then } else { now };
        let mut routing = self.route(content, then);
        self.claim.guards.apply(&mut routing);
        hold.apply(&mut routing);
        (routing, hold, then)
    }

    /// Decides over which channels `content` goes, and sends it there.
    pub async fn send(&self, content: &Content, now: DateTime<Utc>) -> Sent {
        let (routing, hold, then) = self.decide(content, now);
        self.cx.log(
            Level::Info,
            Event::DualChannelRouting,
            &format!("{} goes over {}", self.purpose.as_str(), spoken(&routing.channels)),
            &[
                ("channels", routing.channels.clone().into()),
                ("deferred", routing.deferred.clone().into()),
                ("sms_waits", routing.waiting.map(Patience::to_value).into()),
                ("reasons", routing.reasons.clone().into()),
                ("recipient", self.claim.profile.phone_number.as_deref().map(phone::mask).into()),
            ],
        );
        let planned: Vec<Planned> = routing
            .channels
            .iter()
            .chain(&routing.deferred)
            .filter(|channel| !self.is_sent(**channel))
            .filter_map(|channel| self.message(*channel, &routing, content, now))
            .collect();
        let attempts = match hold {
            Hold::Until(then) => planned.iter().map(|p| delivery::hold_back(self.cx, &p.message, then, now)).collect(),
            Hold::No | Hold::Urgent | Hold::TooLate => {
                at_once::all(planned.iter().map(|p| delivery::attempt(self.cx, &self.claim.gates, &p.message))).await
            }
        };
        let mut deliveries: Vec<Value> = planned.iter().zip(attempts).map(|(p, attempt)| p.row(attempt)).collect();
        if let Some(patience) = routing.waiting
            && !self.is_sent(Channel::Sms)
        {
            deliveries.extend(
                self.message(Channel::Sms, &routing, content, now)
                    .map(|p| self.waits(&p, then + patience.after, patience.until, now)),
            );
        }
        let nobody = planned.is_empty() && self.claim.already_sent.is_empty();
        deliveries.extend(self.suppressed(&routing, content, nobody, now));
        let renditions = self.renditions(&routing, content, now);
        Sent { routing, deliveries, renditions }
    }

    /// An earlier consumer of this work has sent it there.
    fn is_sent(&self, channel: Channel) -> bool {
        self.claim.already_sent.iter().any(|sent| sent == channel.as_str())
    }

    fn route(&self, content: &Content, now: DateTime<Utc>) -> Routing {
        let config = &self.cx.config;
        let client = &self.claim.client;
        let preference = |name: &str| self.claim.profile.preferences.get(name);
        let wanted = policy::read(&self.claim.profile.preferences, client.default_policy.as_deref(), &client.settings);
        let template = config.text("WHATSAPP_SUMMARY_TEMPLATE");
        let approved =
            whatsapp_template::approved(template, &client.templates, config.text("WHATSAPP_TEMPLATE_LANGUAGES"));
        let phone = self.claim.profile.phone_number.as_deref().and_then(|text| E164::parse(text).ok());
        let gate = |provider: &str| {
            if self.claim.gates.is_open(provider) { Gate::Open } else { Gate::Closed }
        };
        let facts = Facts {
            purpose: self.purpose,
            policy: wanted.policy,
            doubts: &wanted.doubts,
            prices: Prices(&client.prices),
            number: self.claim.profile.phone_number.as_deref(),
            sms_segments: content.sms.segments,
            whatsapp: match self.claim.profile.whatsapp.as_str() {
                "yes" => WhatsappEvidence::Yes,
                "no" => WhatsappEvidence::No,
                _ => WhatsappEvidence::Unknown,
            },
            has_sms_number: phone.is_some_and(|number| number.can_receive_sms()),
            allows_sms: self.claim.profile.allows_sms,
            allows_whatsapp: preference("allows_whatsapp").and_then(Value::as_bool).unwrap_or(true),
            last_whatsapp_inbound_at: self
                .claim
                .profile
                .last_whatsapp_inbound_at
                .as_deref()
                .and_then(timestamp::parse_rfc3339),
            locale: self.locale,
            template,
            approved: &approved,
            probe_unknown: config.flag("WHATSAPP_PROBE_UNKNOWN"),
            mirror_replies: preference("mirror_replies").and_then(Value::as_bool).unwrap_or(client.mirror_replies),
            inbound: self.inbound,
            sms_gate: gate("mtn"),
            whatsapp_gate: gate("whatsapp"),
            sms_configured: config.find("MTN_SMS_API_KEY").is_some(),
            whatsapp_configured: config.find("WHATSAPP_ACCESS_TOKEN").is_some()
                && config.find("WHATSAPP_PHONE_NUMBER_ID").is_some(),
        };
        routing::decide(&facts, now)
    }

    fn message(&self, channel: Channel, routing: &Routing, content: &Content, now: DateTime<Utc>) -> Option<Planned> {
        let sms = channel == Channel::Sms;
        let profile = &self.claim.profile;
        let on_whatsapp = || profile.whatsapp_to.as_ref();
        let by_id = || profile.whatsapp_user_id.as_ref();
        let recipient = match sms {
            true => profile.phone_number.as_ref()?,
            false => on_whatsapp().or(profile.phone_number.as_ref()).or_else(by_id)?,
        };
        let recipient = recipient.clone();
        let message = Message {
            id: if sms { self.claim.sms_delivery_id.clone() } else { self.claim.whatsapp_delivery_id.clone() },
            channel,
            recipient,
            sender: if sms {
                sms_sender(&self.claim.client, &self.cx.config).to_owned()
            } else {
                self.cx.config.text("WHATSAPP_PHONE_NUMBER_ID").to_owned()
            },
            purpose: self.purpose.as_str().to_owned(),
            payload: if sms {
                self.sms_payload(&content.sms)
            } else {
                whatsapp_payload(routing.whatsapp_form.as_ref(), content)
            },
            deadline_at: self.purpose.deadline(now),
            attempt: self.claim.attempt,
            correlation_id: self.cx.correlation_id.clone(),
        };
        Some(if sms {
            Planned {
                message,
                content: content.sms.text.clone(),
                encoding: Some(content.sms.encoding.as_str()),
                // No words, no segments.
                segments: Some(content.sms.segments).filter(|segments| *segments > 0),
            }
        } else {
            Planned { message, content: content.whatsapp.clone(), encoding: None, segments: None }
        })
    }

    /// The SMS that is there before it is known whether it will be needed; the database sends it off or settles it.
    fn waits(&self, planned: &Planned, due_at: DateTime<Utc>, until: Reached, now: DateTime<Utc>) -> Value {
        let at = timestamp::to_rfc3339(now);
        let mut row = planned.row(obj(&mut [
            ("attempt", self.claim.attempt.into()),
            ("outcome", "deferred".into()),
            ("error_reason", "waits_for_whatsapp".into()),
            ("started_at", (&at).into()),
            ("finished_at", (&at).into()),
            ("next_attempt_at", timestamp::to_rfc3339(due_at).into()),
        ]));
        if let Some(fields) = row.as_object_mut() {
            fields.insert("waits_until".to_owned(), until.as_str().into());
        }
        row
    }

    /// One row a refused channel says so, and why: where `nobody` is written to, and where a guard refused it.
    fn suppressed(&self, routing: &Routing, content: &Content, nobody: bool, now: DateTime<Utc>) -> Vec<Value> {
        let at = timestamp::to_rfc3339(now);
        routing
            .suppressed
            .iter()
            .filter(|(channel, reason)| {
                nobody && (*channel == Channel::Sms || *reason == "opted_out")
                    || self.claim.guards.refused(routing, *channel)
                        && !self.claim.already_sent.iter().any(|sent| sent == channel.as_str())
            })
            .filter_map(|(channel, reason)| {
                let planned = self.message(*channel, routing, content, now)?;
                self.cx.log(
                    Level::Info,
                    Event::MessageSuppressed,
                    &format!("not sent over {}: {reason}", channel.as_str()),
                    &[("reason", (*reason).into())],
                );
                Some(planned.row(obj(&mut [
                    ("attempt", self.claim.attempt.into()),
                    ("outcome", "suppressed".into()),
                    ("error_reason", (*reason).into()),
                    ("started_at", (&at).into()),
                    ("finished_at", (&at).into()),
                ])))
            })
            .collect()
    }

    /// WhatsApp is left out where it could not be used: the database must not fall back to it either.
    fn renditions(&self, routing: &Routing, content: &Content, now: DateTime<Utc>) -> Value {
        let mut renditions = Map::new();
        // What WhatsApp carries alone, SMS can still carry when WhatsApp fails.
        let configured = self.cx.config.find("MTN_SMS_API_KEY").is_some();
        let spare = |reason: &str| {
            reason.starts_with("policy_")
                || reason == "carried_by_whatsapp"
                || reason == "answered_on_whatsapp" && configured
        };
        if routing.suppressed_reason(Channel::Sms).is_none_or(spare) {
            renditions.insert("sms".to_owned(), self.sms_payload(&content.sms));
        }
        let last_inbound = self.claim.profile.last_whatsapp_inbound_at.as_deref().and_then(timestamp::parse_rfc3339);
        let preference = |name: &str| self.claim.profile.preferences.get(name);
        let wanted = preference("allows_whatsapp").and_then(Value::as_bool).unwrap_or(true)
            && preference("policy").and_then(Value::as_str) != Some(Policy::SmsOnly.as_str());
        let free_text = wanted
            && self.claim.profile.whatsapp != "no"
            && self.purpose != Purpose::Keyword
            && !matches!(
                routing.suppressed_reason(Channel::Whatsapp),
                Some("opted_out" | "policy_sms_only" | "whatsapp_not_configured")
            )
            && routing::service_window_open(last_inbound, now);
        if routing.whatsapp_form.is_some() || free_text {
            renditions.insert("whatsapp".to_owned(), whatsapp_payload(routing.whatsapp_form.as_ref(), content));
        }
        Value::Object(renditions)
    }

    fn sms_payload(&self, sms: &SmsText) -> Value {
        let mut payload = obj(&mut [
            ("text", (&sms.text).into()),
            ("encoding", sms.encoding.as_str().into()),
            ("segments", sms.segments.into()),
            ("service_code", sms_service_code(&self.claim.client, &self.cx.config).into()),
        ]);
        let strangers: String = sms::outside_gsm7(&sms.text, MOST_STRANGERS).into_iter().collect();
        if let Some(fields) = payload.as_object_mut().filter(|_| !strangers.is_empty()) {
            fields.insert("ucs2_because".to_owned(), strangers.into());
        }
        payload
    }
}

struct Planned {
    message: Message,
    content: String,
    encoding: Option<&'static str>,
    segments: Option<usize>,
}

impl Planned {
    fn row(&self, attempt: Value) -> Value {
        self.message.row(&self.content, self.encoding, self.segments, attempt)
    }
}

fn whatsapp_payload(form: Option<&routing::WhatsappForm>, content: &Content) -> Value {
    match form {
        Some(routing::WhatsappForm::Template { name, language, .. }) => {
            let params: Vec<Value> = content
                .template
                .iter()
                .map(|(name, text)| obj(&mut [("name", (*name).into()), ("text", text.into())]))
                .collect();
            obj(&mut [
                ("kind", "template".into()),
                ("name", name.into()),
                ("language", language.into()),
                ("params", params.into()),
            ])
        }
        Some(routing::WhatsappForm::Text) | None => {
            obj(&mut [("kind", "text".into()), ("text", (&content.whatsapp).into())])
        }
    }
}

fn spoken(channels: &[Channel]) -> String {
    if channels.is_empty() {
        return "no channel".to_owned();
    }
    channels.iter().map(|channel| channel.as_str()).collect::<Vec<_>>().join(" and ")
}
