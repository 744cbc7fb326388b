//! What stands against a message although its channel could carry it: the client's budget, the limits against floods.
//!
//! Whether it does needs a lock and is decided in SQL (`private.pass_guards`), in the claim; this applies the answer.

use serde_json::Value;

use crate::channel::Channel;
use crate::json::str_at;
use crate::routing::Routing;

/// Why a message may not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The client has spent what it may in this month.
    Budget,
    /// Too many messages to this number, or to numbers like it.
    RateLimited,
}

impl Refusal {
    /// The word in rows, JSON and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Budget => "budget",
            Refusal::RateLimited => "rate_limited",
        }
    }

    /// Reads the word. One that this version does not know is a limit as well: what the database refuses is not sent.
    fn parse(word: &str) -> Refusal {
        if word == Refusal::Budget.as_str() { Refusal::Budget } else { Refusal::RateLimited }
    }
}

/// What the claim says: `{refused: {sms, whatsapp}}`, a channel with its reason, or none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Guards {
    /// Against SMS.
    pub sms: Option<Refusal>,
    /// Against WhatsApp.
    pub whatsapp: Option<Refusal>,
}

impl Guards {
    /// Reads `guards` of a claim.
    pub fn read(claim: &Value) -> Guards {
        let refused = claim.get("guards").and_then(|guards| guards.get("refused")).unwrap_or(&Value::Null);
        let of = |channel: Channel| str_at(refused, channel.as_str()).map(Refusal::parse);
        Guards { sms: of(Channel::Sms), whatsapp: of(Channel::Whatsapp) }
    }

    /// Why nothing may go out on `channel`.
    pub fn refusal(&self, channel: Channel) -> Option<Refusal> {
        match channel {
            Channel::Sms => self.sms,
            Channel::Whatsapp => self.whatsapp,
            Channel::Voice => None,
        }
    }

    /// Takes from `routing` what may not be sent, now or later, and notes why.
    pub fn apply(&self, routing: &mut Routing) {
        for channel in [Channel::Whatsapp, Channel::Sms] {
            let waits = channel == Channel::Sms && routing.waiting.is_some();
            let planned = waits || routing.channels.contains(&channel) || routing.deferred.contains(&channel);
            let Some(refusal) = self.refusal(channel).filter(|_| planned) else {
                continue;
            };
            routing.channels.retain(|found| *found != channel);
            routing.deferred.retain(|found| *found != channel);
            routing.suppressed.push((channel, refusal.as_str()));
            routing.reasons.push(refusal.as_str());
            match channel {
                Channel::Whatsapp => {
                    routing.whatsapp_form = None;
                    // There is nothing left to wait for.
                    if routing.waiting.take().is_some() {
                        routing.channels.push(Channel::Sms);
                        routing.reasons.push("sms_because_whatsapp_cannot");
                    }
                }
                Channel::Sms => routing.waiting = None,
                Channel::Voice => {}
            }
        }
    }

    /// Channels that would have carried the message: each gets a row that says why it did not.
    pub fn refused(&self, routing: &Routing, channel: Channel) -> bool {
        self.refusal(channel).is_some_and(|refusal| routing.suppressed.contains(&(channel, refusal.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::WhatsappForm;
    use expect_test::{Expect, expect};
    use serde_json::json;

    fn both() -> Routing {
        Routing {
            channels: vec![Channel::Whatsapp],
            deferred: vec![Channel::Sms],
            whatsapp_form: Some(WhatsappForm::Text),
            reasons: vec!["service_window_open", "sms", "sms_gate_open"],
            ..Routing::default()
        }
    }

    #[track_caller]
    fn check(claim: Value, mut routing: Routing, expected: Expect) {
        Guards::read(&claim).apply(&mut routing);
        expected.assert_eq(&routing.to_value().to_string());
    }

    #[test]
    fn what_nothing_stands_against_goes_out() {
        let plain = both().to_value().to_string();
        for claim in [json!({}), json!({"guards": null}), json!({"guards": {"refused": {}}})] {
            let mut routing = both();
            Guards::read(&claim).apply(&mut routing);
            assert_eq!(routing.to_value().to_string(), plain);
        }
    }

    #[test]
    fn a_refused_channel_carries_nothing_now_nor_later_and_says_why() {
        check(
            json!({"guards": {"refused": {"sms": "budget"}}}),
            both(),
            expect![[
                r#"{"channels":["whatsapp"],"deferred":[],"reasons":["service_window_open","sms","sms_gate_open","budget"],"sms_waits":null,"suppressed":[{"channel":"sms","reason":"budget"}],"whatsapp_form":{"kind":"text"}}"#
            ]],
        );
        check(
            json!({"guards": {"refused": {"sms": "rate_limited", "whatsapp": "budget"}}}),
            both(),
            expect![[
                r#"{"channels":[],"deferred":[],"reasons":["service_window_open","sms","sms_gate_open","budget","rate_limited"],"sms_waits":null,"suppressed":[{"channel":"whatsapp","reason":"budget"},{"channel":"sms","reason":"rate_limited"}],"whatsapp_form":null}"#
            ]],
        );
    }

    #[test]
    fn a_channel_that_was_not_to_be_used_is_not_refused_as_well() {
        let mut routing = Routing { suppressed: vec![(Channel::Whatsapp, "opted_out")], ..Routing::default() };
        let guards = Guards { sms: Some(Refusal::Budget), whatsapp: Some(Refusal::Budget) };
        guards.apply(&mut routing);
        assert_eq!(routing.suppressed, [(Channel::Whatsapp, "opted_out")]);
        assert!(!guards.refused(&routing, Channel::Whatsapp));
    }

    #[test]
    fn an_sms_that_waits_for_whatsapp_goes_at_once_where_whatsapp_may_not_and_never_where_it_may_not_itself() {
        let waits = || Routing {
            channels: vec![Channel::Whatsapp],
            whatsapp_form: Some(WhatsappForm::Text),
            waiting: Some(crate::policy::Patience::USUAL),
            ..Routing::default()
        };
        let guarded = |sms, whatsapp| {
            let mut routing = waits();
            Guards { sms, whatsapp }.apply(&mut routing);
            (routing.channels, routing.waiting.is_some(), routing.suppressed)
        };
        let (no, budget) = (None, Some(Refusal::Budget));
        assert_eq!(guarded(no, no), (vec![Channel::Whatsapp], true, vec![]));
        assert_eq!(guarded(no, budget), (vec![Channel::Sms], false, vec![(Channel::Whatsapp, "budget")]));
        assert_eq!(guarded(budget, no), (vec![Channel::Whatsapp], false, vec![(Channel::Sms, "budget")]));
        let none = vec![(Channel::Whatsapp, "budget"), (Channel::Sms, "budget")];
        assert_eq!(guarded(budget, budget), (vec![], false, none));
    }

    #[test]
    fn a_reason_of_a_newer_database_keeps_the_message_back_as_well() {
        let guards = Guards::read(&json!({"guards": {"refused": {"sms": "something_new"}}}));
        assert_eq!(guards.sms, Some(Refusal::RateLimited));
    }
}
