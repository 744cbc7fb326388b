//! Nobody is woken by a summary: in a person's quiet hours it waits, unless it is urgent. An answer is never held back.
//!
//! When it is quiet where somebody is, Postgres knows (`private.quiet_until`), because a wasm module has no table of time
//! zones; what that means for a message is decided here.

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::channel::Channel;
use crate::json::{flag_at, str_at};
use crate::retry::Purpose;
use crate::routing::Routing;
use crate::timestamp;

/// What the claim says of the person's night.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuietHours {
    /// It is quiet until then; `None`: it is not.
    pub until: Option<DateTime<Utc>>,
    /// It goes out all the same.
    pub urgent: bool,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It goes out.
    No,
    /// It goes out although it is quiet.
    Urgent,
    /// Not before then.
    Until(DateTime<Utc>),
    /// When it is over, the message is of no use any more.
    TooLate,
}

/// Why, in rows and logs.
pub const REASON: &str = "quiet_hours";

impl QuietHours {
    /// Reads `guards: {quiet_until, urgent}` of a claim.
    pub fn read(claim: &Value) -> QuietHours {
        let guards = claim.get("guards").unwrap_or(&Value::Null);
        QuietHours {
            until: str_at(guards, "quiet_until").and_then(timestamp::parse_rfc3339),
            urgent: flag_at(guards, "urgent"),
        }
    }

    /// Decides for a message that is of use until `deadline`.
    pub fn hold(&self, purpose: Purpose, now: DateTime<Utc>, deadline: DateTime<Utc>) -> Hold {
        let asked_for = match purpose {
            Purpose::CallSummary => false,
            Purpose::Reply | Purpose::Keyword => true,
        };
        match self.until.filter(|until| *until > now && !asked_for) {
            None => Hold::No,
            Some(_) if self.urgent => Hold::Urgent,
            Some(until) if until < deadline => Hold::Until(until),
            Some(_) => Hold::TooLate,
        }
    }
}

impl Hold {
    /// Moves what would go out now, and notes why.
    pub fn apply(&self, routing: &mut Routing) {
        if routing.channels.is_empty() && routing.deferred.is_empty() {
            return;
        }
        match self {
            Hold::No => {}
            Hold::Urgent => routing.reasons.push("urgent"),
            Hold::Until(_) => {
                let mut waiting = std::mem::take(&mut routing.channels);
                waiting.append(&mut routing.deferred);
                routing.deferred = waiting;
                routing.reasons.push(REASON);
            }
            Hold::TooLate => {
                let waited = routing.waiting.take().map(|_| Channel::Sms);
                let channels = routing.channels.drain(..).chain(routing.deferred.drain(..)).chain(waited);
                routing.suppressed.extend(channels.map(|channel| (channel, REASON)));
                routing.whatsapp_form = None;
                routing.reasons.push(REASON);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::WhatsappForm;
    use chrono::TimeDelta;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use serde_json::json;

    fn at(minutes: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_226_400, 0).unwrap() + TimeDelta::minutes(minutes)
    }

    fn until(minutes: i64) -> QuietHours {
        QuietHours { until: Some(at(minutes)), urgent: false }
    }

    #[test]
    fn a_summary_waits_for_the_end_of_the_night_and_an_answer_does_not() {
        let hold = |purpose| until(60).hold(purpose, at(0), at(600));
        assert_eq!(hold(Purpose::CallSummary), Hold::Until(at(60)));
        assert_eq!(hold(Purpose::Reply), Hold::No);
        assert_eq!(hold(Purpose::Keyword), Hold::No);
    }

    #[test]
    fn the_end_of_the_night_is_day_and_a_summary_that_would_be_stale_by_then_is_not_sent() {
        let hold = |quiet: i64, deadline| until(quiet).hold(Purpose::CallSummary, at(0), at(deadline));
        assert_eq!(hold(0, 600), Hold::No);
        assert_eq!(hold(1, 600), Hold::Until(at(1)));
        assert_eq!(hold(599, 600), Hold::Until(at(599)));
        assert_eq!(hold(600, 600), Hold::TooLate);
    }

    #[test]
    fn what_is_urgent_goes_out_at_night_and_is_an_ordinary_message_by_day() {
        let urgent = QuietHours { urgent: true, ..until(60) };
        assert_eq!(urgent.hold(Purpose::CallSummary, at(0), at(600)), Hold::Urgent);
        assert_eq!(urgent.hold(Purpose::CallSummary, at(60), at(600)), Hold::No);
    }

    #[test]
    fn a_claim_that_says_nothing_of_the_night_holds_nothing_back() {
        for claim in [json!({}), json!({"guards": {"quiet_until": null}}), json!({"guards": {"quiet_until": "soon"}})] {
            assert_eq!(QuietHours::read(&claim), QuietHours::default(), "{claim}");
        }
        let claim = json!({"guards": {"quiet_until": "2026-11-21T05:00:00+00:00", "urgent": true}});
        assert!(QuietHours::read(&claim).until.is_some() && QuietHours::read(&claim).urgent);
    }

    #[track_caller]
    fn check(hold: Hold, expected: Expect) {
        let mut routing = Routing {
            channels: vec![Channel::Whatsapp],
            deferred: vec![Channel::Sms],
            whatsapp_form: Some(WhatsappForm::Text),
            reasons: vec!["sms"],
            ..Routing::default()
        };
        hold.apply(&mut routing);
        expected.assert_eq(&routing.to_value().to_string());
    }

    #[test]
    fn the_reason_is_noted() {
        check(
            Hold::Until(at(60)),
            expect![[
                r#"{"channels":[],"deferred":["whatsapp","sms"],"reasons":["sms","quiet_hours"],"sms_waits":null,"suppressed":[],"whatsapp_form":{"kind":"text"}}"#
            ]],
        );
        check(
            Hold::TooLate,
            expect![[
                r#"{"channels":[],"deferred":[],"reasons":["sms","quiet_hours"],"sms_waits":null,"suppressed":[{"channel":"whatsapp","reason":"quiet_hours"},{"channel":"sms","reason":"quiet_hours"}],"whatsapp_form":null}"#
            ]],
        );
        check(
            Hold::Urgent,
            expect![[
                r#"{"channels":["whatsapp"],"deferred":["sms"],"reasons":["sms","urgent"],"sms_waits":null,"suppressed":[],"whatsapp_form":{"kind":"text"}}"#
            ]],
        );
        // An SMS that would have waited for WhatsApp has nothing to wait for.
        let waiting = Some(crate::policy::Patience::USUAL);
        let mut waits = Routing { channels: vec![Channel::Whatsapp], waiting, ..Routing::default() };
        Hold::TooLate.apply(&mut waits);
        assert_eq!(
            (waits.waiting, waits.suppressed),
            (None, vec![(Channel::Whatsapp, REASON), (Channel::Sms, REASON)])
        );
        let mut nothing = Routing::default();
        Hold::Until(at(60)).apply(&mut nothing);
        assert_eq!(nothing, Routing::default(), "what goes nowhere is not held back as well");
    }

    proptest! {
        #[test]
        fn what_waits_waits_for_less_than_its_life(quiet in -2000_i64..2000, deadline in 1_i64..2000, urgent: bool) {
            let quiet = QuietHours { urgent, ..until(quiet) };
            if let Hold::Until(then) = quiet.hold(Purpose::CallSummary, at(0), at(deadline)) {
                prop_assert!(then > at(0) && then < at(deadline) && !urgent);
            }
        }
    }
}
