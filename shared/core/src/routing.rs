//! Which channels carry a message, and in which form on WhatsApp.
//!
//! Pure over what the first RPC returned. Rate limits need locks and are decided in SQL before this is asked.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::channel::Channel;
use crate::json::obj;
use crate::locale::Locale;
use crate::policy::{Patience, Policy};
use crate::price::Prices;
use crate::retry::Purpose;
use crate::whatsapp_template::{self, Approved};

/// What is known about somebody being on WhatsApp; the Cloud API cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhatsappEvidence {
    /// They wrote or called there, or a message arrived.
    Yes,
    /// A message could not be delivered there, not long ago.
    No,
    /// Nothing is known.
    #[default]
    Unknown,
}

/// The circuit breaker of a provider, as the first RPC reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Messages flow.
    #[default]
    Closed,
    /// The provider is held for down: nothing is sent.
    Open,
    /// This work is the one trial.
    Probe,
}

/// Everything the decision rests on.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// Why the message goes out.
    pub purpose: Purpose,
    /// What the person or the client wants.
    pub policy: Policy,
    /// What of that could not be read.
    pub doubts: &'a [&'static str],
    /// What messages cost, for [`Policy::Cheapest`].
    pub prices: Prices<'a>,
    /// The recipient's number, by which prices differ.
    pub number: Option<&'a str>,
    /// Segments that the text has as SMS.
    pub sms_segments: usize,
    /// Whether they are on WhatsApp.
    pub whatsapp: WhatsappEvidence,
    /// Whether we know a number that SMS can reach.
    pub has_sms_number: bool,
    /// False after STOP.
    pub allows_sms: bool,
    /// False after a STOP on WhatsApp.
    pub allows_whatsapp: bool,
    /// When they last wrote or called on WhatsApp.
    pub last_whatsapp_inbound_at: Option<DateTime<Utc>>,
    /// The language of the message.
    pub locale: Locale,
    /// The template's name.
    pub template: &'a str,
    /// Languages in which it may be sent.
    pub approved: &'a [Approved],
    /// Whether unknown numbers are tried with a template.
    pub probe_unknown: bool,
    /// Whether answers to SMS go to WhatsApp as well.
    pub mirror_replies: bool,
    /// Where the message came in that is answered; `Voice` for a summary.
    pub inbound: Channel,
    /// MTN's circuit breaker.
    pub sms_gate: Gate,
    /// WhatsApp's circuit breaker.
    pub whatsapp_gate: Gate,
    /// Whether MTN is configured.
    pub sms_configured: bool,
    /// Whether WhatsApp is configured.
    pub whatsapp_configured: bool,
}

/// How WhatsApp carries a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhatsappForm {
    /// Free text, inside the 24-hour window.
    Text,
    /// An approved template.
    Template {
        /// Its name.
        name: String,
        /// Its language, as Meta writes it.
        language: String,
        /// What it is paid for as.
        category: String,
    },
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routing {
    /// Send on these now, WhatsApp first.
    pub channels: Vec<Channel>,
    /// How WhatsApp carries it, if it is among `channels` or `deferred`.
    pub whatsapp_form: Option<WhatsappForm>,
    /// SMS goes later, unless WhatsApp has come far enough by then.
    pub waiting: Option<Patience>,
    /// On these when the provider is up again.
    pub deferred: Vec<Channel>,
    /// Why it is so, in the order it was decided.
    pub reasons: Vec<&'static str>,
    /// Not on these, and why.
    pub suppressed: Vec<(Channel, &'static str)>,
}

impl Routing {
    /// Whether the channel is used now.
    pub fn sends(&self, channel: Channel) -> bool {
        self.channels.contains(&channel)
    }

    /// As it is kept with the message.
    pub fn to_value(&self) -> Value {
        let form = self.whatsapp_form.as_ref().map(|form| match form {
            WhatsappForm::Text => obj(&mut [("kind", "text".into())]),
            WhatsappForm::Template { name, language, category } => obj(&mut [
                ("kind", "template".into()),
                ("name", name.into()),
                ("language", language.into()),
                ("category", category.into()),
            ]),
        });
        let refused: Vec<Value> = self
            .suppressed
            .iter()
            .map(|(channel, reason)| obj(&mut [("channel", (*channel).into()), ("reason", (*reason).into())]))
            .collect();
        obj(&mut [
            ("channels", self.channels.clone().into()),
            ("whatsapp_form", form.into()),
            ("deferred", self.deferred.clone().into()),
            ("sms_waits", self.waiting.map(Patience::to_value).into()),
            ("reasons", self.reasons.clone().into()),
            ("suppressed", refused.into()),
        ])
    }

    /// Why the channel is not used.
    pub fn suppressed_reason(&self, channel: Channel) -> Option<&'static str> {
        self.suppressed.iter().find(|(found, _)| *found == channel).map(|(_, reason)| *reason)
    }
}

/// The customer service window, closed five minutes early because our clock is not Meta's and a message takes its time.
pub const SERVICE_WINDOW: TimeDelta = TimeDelta::minutes(23 * 60 + 55);

/// Whether free text may be sent on WhatsApp at `now`.
pub fn service_window_open(last_inbound_at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
    last_inbound_at.is_some_and(|at| now.signed_duration_since(at) < SERVICE_WINDOW)
}

/// Decides.
pub fn decide(facts: &Facts, now: DateTime<Utc>) -> Routing {
    let mut routing = match facts.purpose {
        Purpose::CallSummary => summary(facts, now),
        Purpose::Reply => reply(facts, now),
        Purpose::Keyword => keyword(facts, now),
    };
    pass_gates(facts, now, &mut routing);
    routing
}

fn summary(facts: &Facts, now: DateTime<Utc>) -> Routing {
    let mut routing = Routing { reasons: facts.doubts.to_vec(), ..Routing::default() };
    if facts.policy == Policy::None {
        routing.reasons.push("policy_none");
        routing.suppressed = vec![(Channel::Whatsapp, "policy_none"), (Channel::Sms, "policy_none")];
        return routing;
    }
    let mut whatsapp = match facts.policy {
        Policy::SmsOnly => Err("policy_sms_only"),
        _ => whatsapp_form(facts, now, true),
    };
    let mut sms = sms_possible(facts);
    if let (Policy::Cheapest, Ok((form, _)), Ok(_)) = (facts.policy, &whatsapp, sms) {
        let (cheaper, reason) = cheaper(facts, form);
        routing.reasons.push(reason);
        match cheaper {
            Some(Channel::Sms) => whatsapp = Err("policy_cheapest"),
            Some(_) => sms = Err("policy_cheapest"),
            None => {}
        }
    }
    let carried = note_whatsapp(&mut routing, whatsapp);
    match (sms, facts.policy) {
        (Ok(_), Policy::WhatsappThenSms(patience)) if carried => {
            routing.waiting = Some(patience);
            routing.reasons.push("sms_waits_for_whatsapp");
            return routing;
        }
        (Ok(_), Policy::WhatsappOnly) if carried => sms = Err("policy_whatsapp_only"),
        (Ok(_), Policy::WhatsappOnly | Policy::WhatsappThenSms(_)) => sms = Ok("sms_because_whatsapp_cannot"),
        _ => {}
    }
    note_sms(&mut routing, sms);
    routing
}

/// The channel that costs less for this message, if prices tell, and why it is that one. WhatsApp where both cost the same.
fn cheaper(facts: &Facts, form: &WhatsappForm) -> (Option<Channel>, &'static str) {
    let price = |kind| facts.prices.find("whatsapp", kind, facts.number);
    let whatsapp = match form {
        // Free unless a row says otherwise: Meta began to charge for some in October 2026.
        WhatsappForm::Text => match price("service").filter(|price| price.micros > 0) {
            None => return (Some(Channel::Whatsapp), "whatsapp_is_free"),
            found => found,
        },
        WhatsappForm::Template { category, .. } => price(category),
    };
    let sms = facts.prices.find("mtn", "segment", facts.number).map(|price| price.times(facts.sms_segments));
    match (whatsapp, sms) {
        (Some(whatsapp), Some(sms)) if whatsapp.currency != sms.currency => (None, "prices_not_comparable"),
        (Some(whatsapp), Some(sms)) if sms.micros < whatsapp.micros => (Some(Channel::Sms), "sms_is_cheaper"),
        (Some(_), Some(_)) => (Some(Channel::Whatsapp), "sms_is_not_cheaper"),
        _ => (None, "prices_not_known"),
    }
}

fn reply(facts: &Facts, now: DateTime<Utc>) -> Routing {
    let mut routing = Routing::default();
    if facts.inbound == Channel::Whatsapp {
        let carried = note_whatsapp(&mut routing, whatsapp_form(facts, now, false));
        let sms = if carried { Err("answered_on_whatsapp") } else { sms_possible(facts) };
        note_sms(&mut routing, sms);
        return routing;
    }
    let mirror = match (facts.mirror_replies, facts.policy) {
        (false, _) => Err("mirror_off"),
        (true, Policy::SmsOnly) => Err("policy_sms_only"),
        // The same answer twice is never the cheapest.
        (true, Policy::Cheapest) => Err("policy_cheapest"),
        (true, _) => whatsapp_form(facts, now, false),
    };
    note_whatsapp(&mut routing, mirror);
    note_sms(&mut routing, sms_possible(facts).map(|_| "answer_where_asked"));
    routing
}

/// The one message that is sent in spite of STOP: its confirmation, where STOP was said.
fn keyword(facts: &Facts, now: DateTime<Utc>) -> Routing {
    let mut routing = Routing::default();
    if facts.inbound == Channel::Whatsapp {
        let whatsapp = whatsapp_form(&Facts { allows_whatsapp: true, ..facts.clone() }, now, false);
        let whatsapp = whatsapp.map(|(form, _)| (form, "keyword_answer"));
        note_whatsapp(&mut routing, whatsapp);
        routing.suppressed.push((Channel::Sms, "keyword_answered_where_sent"));
        return routing;
    }
    routing.suppressed.push((Channel::Whatsapp, "keyword_answered_where_sent"));
    let sms = match (facts.sms_configured, facts.has_sms_number) {
        (false, _) => Err("sms_not_configured"),
        (true, false) => Err("no_phone_number"),
        (true, true) => Ok("keyword_answer"),
    };
    note_sms(&mut routing, sms);
    routing
}

fn sms_possible(facts: &Facts) -> Result<&'static str, &'static str> {
    if !facts.sms_configured {
        return Err("sms_not_configured");
    }
    if !facts.has_sms_number {
        return Err("no_phone_number");
    }
    if !facts.allows_sms {
        return Err("opted_out");
    }
    Ok("sms")
}

fn whatsapp_form(
    facts: &Facts,
    now: DateTime<Utc>,
    may_template: bool,
) -> Result<(WhatsappForm, &'static str), &'static str> {
    if !facts.whatsapp_configured {
        return Err("whatsapp_not_configured");
    }
    if !facts.allows_whatsapp {
        return Err("opted_out");
    }
    let window = service_window_open(facts.last_whatsapp_inbound_at, now);
    match facts.whatsapp {
        WhatsappEvidence::No => Err("not_on_whatsapp"),
        WhatsappEvidence::Yes | WhatsappEvidence::Unknown if window => Ok((WhatsappForm::Text, "service_window_open")),
        WhatsappEvidence::Unknown if !facts.probe_unknown => Err("whatsapp_unknown"),
        WhatsappEvidence::Unknown | WhatsappEvidence::Yes if !may_template => Err("service_window_closed"),
        WhatsappEvidence::Unknown | WhatsappEvidence::Yes => {
            let chosen = whatsapp_template::choose(facts.approved, facts.locale).filter(|_| !facts.template.is_empty());
            let Some(Approved { language, category, .. }) = chosen else {
                return Err("template_not_approved");
            };
            let form = WhatsappForm::Template {
                name: facts.template.to_owned(),
                language: language.clone(),
                category: category.clone(),
            };
            Ok((form, "service_window_closed_template"))
        }
    }
}

fn note_whatsapp(routing: &mut Routing, outcome: Result<(WhatsappForm, &'static str), &'static str>) -> bool {
    match outcome {
        Ok((form, reason)) => {
            routing.channels.push(Channel::Whatsapp);
            routing.whatsapp_form = Some(form);
            routing.reasons.push(reason);
            true
        }
        Err(reason) => {
            routing.suppressed.push((Channel::Whatsapp, reason));
            routing.reasons.push(reason);
            false
        }
    }
}

fn note_sms(routing: &mut Routing, outcome: Result<&'static str, &'static str>) {
    match outcome {
        Ok(reason) => {
            routing.channels.push(Channel::Sms);
            routing.reasons.push(reason);
        }
        Err(reason) => {
            routing.suppressed.push((Channel::Sms, reason));
            routing.reasons.push(reason);
        }
    }
}

/// What a provider that is down cannot carry now waits for it. An answer that would then reach nobody takes the other
/// channel at once and does not come twice.
fn pass_gates(facts: &Facts, now: DateTime<Utc>, routing: &mut Routing) {
    for (channel, gate, reason) in [
        (Channel::Whatsapp, facts.whatsapp_gate, "whatsapp_gate_open"),
        (Channel::Sms, facts.sms_gate, "sms_gate_open"),
    ] {
        if gate == Gate::Open && routing.sends(channel) {
            routing.channels.retain(|found| *found != channel);
            routing.deferred.push(channel);
            routing.reasons.push(reason);
        }
    }
    let summary = facts.purpose == Purpose::CallSummary;
    // Who wants one message of the two gets it at once.
    let one = summary && matches!(facts.policy, Policy::WhatsappThenSms(_) | Policy::Cheapest);
    if !(one || facts.purpose == Purpose::Reply) || !routing.channels.is_empty() {
        return;
    }
    if routing.deferred == [Channel::Sms]
        && facts.whatsapp_gate != Gate::Open
        && let Ok((form, _)) = whatsapp_form(facts, now, summary)
    {
        routing.suppressed.retain(|(channel, _)| *channel != Channel::Whatsapp);
        routing.suppressed.push((Channel::Sms, "carried_by_whatsapp"));
        routing.deferred.clear();
        routing.channels.push(Channel::Whatsapp);
        routing.whatsapp_form = Some(form);
        routing.reasons.push("whatsapp_carries");
    } else if routing.deferred == [Channel::Whatsapp] && facts.sms_gate != Gate::Open && sms_possible(facts).is_ok() {
        routing.suppressed.retain(|(channel, _)| *channel != Channel::Sms);
        routing.suppressed.push((Channel::Whatsapp, "carried_by_sms"));
        routing.deferred.clear();
        routing.waiting = None;
        routing.whatsapp_form = None;
        routing.channels.push(Channel::Sms);
        routing.reasons.push("sms_carries");
    }
}

#[cfg(test)]
mod tests;
