//! Which channels a person, or else the client, wants to be told over.
//!
//! It stands in rows that people edit by hand: what cannot be read counts as not said, and leaves a reason with the message.

use chrono::TimeDelta;
use serde_json::Value;

use crate::json::obj;

/// What the person, or else the client, wants: `notification_preferences.policy`, `clients.default_policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// WhatsApp where they have it, and SMS.
    #[default]
    Both,
    /// SMS alone.
    SmsOnly,
    /// WhatsApp; SMS only if WhatsApp cannot carry it.
    WhatsappOnly,
    /// WhatsApp; SMS if that has not come far enough in time.
    WhatsappThenSms(Patience),
    /// The one that costs less.
    Cheapest,
    /// No notifications. Direct questions are still answered.
    None,
}

impl Policy {
    /// The word in rows, JSON and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Policy::Both => "both",
            Policy::SmsOnly => "sms_only",
            Policy::WhatsappOnly => "whatsapp_only",
            Policy::WhatsappThenSms(_) => "whatsapp_then_sms",
            Policy::Cheapest => "cheapest",
            Policy::None => "none",
        }
    }

    /// Reads the word; `whatsapp_then_sms` with the usual [`Patience`].
    pub fn parse(word: &str) -> Option<Policy> {
        ALL.into_iter().find(|policy| policy.as_str() == word)
    }
}

/// Every policy.
pub const ALL: [Policy; 6] = [
    Policy::Both,
    Policy::SmsOnly,
    Policy::WhatsappOnly,
    Policy::WhatsappThenSms(Patience::USUAL),
    Policy::Cheapest,
    Policy::None,
];

/// How long SMS waits for WhatsApp, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Then SMS goes out. Whole seconds, [`SHORTEST`] to [`LONGEST`].
    pub after: TimeDelta,
    /// Unless WhatsApp has come this far.
    pub until: Reached,
}

/// Shortest wait: a status of Meta's takes a few seconds.
pub const SHORTEST: TimeDelta = TimeDelta::seconds(10);
/// Longest wait: the SMS still has half of a summary's day to be tried in.
pub const LONGEST: TimeDelta = TimeDelta::hours(12);

impl Patience {
    /// Fifteen minutes, until delivered.
    pub const USUAL: Patience = Patience { after: TimeDelta::minutes(15), until: Reached::Delivered };

    /// As it is kept with the message and in the log.
    pub fn to_value(self) -> Value {
        obj(&mut [("after", self.after.num_seconds().into()), ("until", self.until.as_str().into())])
    }
}

/// How far a message came, at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// Meta has it.
    Sent,
    /// The telephone has it.
    Delivered,
    /// It was seen.
    Read,
}

impl Reached {
    /// The word in rows and JSON: a status of `message_delivery_log`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reached::Sent => "sent",
            Reached::Delivered => "delivered",
            Reached::Read => "read",
        }
    }

    fn parse(word: &str) -> Option<Reached> {
        [Reached::Sent, Reached::Delivered, Reached::Read].into_iter().find(|reached| reached.as_str() == word)
    }
}

/// What was found, and what of it could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// What counts.
    pub policy: Policy,
    /// Reasons for which it may not be what was meant.
    pub doubts: Vec<&'static str>,
}

/// The person's wish `{policy, after, until}`, else the client's (`default_policy`, and `{after, until}` below
/// `whatsapp_then_sms` of `settings`), else the usual. `after` is in seconds.
pub fn read(preferences: &Value, default_policy: Option<&str>, settings: &Value) -> Wanted {
    let mut doubts = Vec::new();
    let mut own = said(preferences, "policy").map(|word| word.as_str().and_then(Policy::parse));
    if own == Some(None) {
        doubts.push("policy_not_understood");
        own = None;
    }
    let policy = own.flatten().unwrap_or_else(|| match default_policy.map(Policy::parse) {
        Some(Some(policy)) => policy,
        Some(None) => {
            doubts.push("default_policy_not_understood");
            Policy::Both
        }
        None => Policy::Both,
    });
    let Policy::WhatsappThenSms(usual) = policy else {
        return Wanted { policy, doubts };
    };
    let sources = [preferences, settings.get("whatsapp_then_sms").unwrap_or(&Value::Null)];
    let mut patience = usual;
    if let Some(after) = first(sources, "after", seconds, "after_not_understood", &mut doubts) {
        patience.after = after;
    }
    if let Some(until) =
        first(sources, "until", |word| Reached::parse(word.as_str()?), "until_not_understood", &mut doubts)
    {
        patience.until = until;
    }
    Wanted { policy: Policy::WhatsappThenSms(patience), doubts }
}

fn said<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.get(name).filter(|found| !found.is_null())
}

fn first<T>(
    sources: [&Value; 2],
    name: &str,
    read: fn(&Value) -> Option<T>,
    doubt: &'static str,
    doubts: &mut Vec<&'static str>,
) -> Option<T> {
    for found in sources.iter().filter_map(|source| said(source, name)) {
        match read(found) {
            Some(value) => return Some(value),
            None if doubts.contains(&doubt) => {}
            None => doubts.push(doubt),
        }
    }
    None
}

fn seconds(value: &Value) -> Option<TimeDelta> {
    let after = TimeDelta::try_seconds(value.as_i64()?)?;
    (SHORTEST..=LONGEST).contains(&after).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn then_sms(seconds: i64, until: Reached) -> Policy {
        Policy::WhatsappThenSms(Patience { after: TimeDelta::seconds(seconds), until })
    }

    #[track_caller]
    fn check(preferences: Value, default_policy: Option<&str>, settings: Value, policy: Policy, doubts: &[&str]) {
        let wanted = read(&preferences, default_policy, &settings);
        assert_eq!((wanted.policy, wanted.doubts.as_slice()), (policy, doubts));
    }

    #[test]
    fn every_word_is_read_as_it_is_written() {
        for policy in ALL {
            assert_eq!(Policy::parse(policy.as_str()), Some(policy));
        }
        assert_eq!(Policy::parse("Both"), None);
    }

    #[test]
    fn the_persons_wish_comes_before_the_clients() {
        check(json!({"policy": "cheapest"}), Some("sms_only"), json!({}), Policy::Cheapest, &[]);
        check(json!({"policy": null}), Some("sms_only"), json!({}), Policy::SmsOnly, &[]);
        check(json!({}), None, json!(null), Policy::Both, &[]);
        let settings = json!({"whatsapp_then_sms": {"after": 600, "until": "read"}});
        check(json!({}), Some("whatsapp_then_sms"), settings.clone(), then_sms(600, Reached::Read), &[]);
        check(
            json!({"policy": "whatsapp_then_sms", "after": 60}),
            Some("both"),
            settings,
            then_sms(60, Reached::Read),
            &[],
        );
        check(json!({"policy": "whatsapp_then_sms"}), None, json!({}), then_sms(900, Reached::Delivered), &[]);
    }

    #[test]
    fn what_cannot_be_read_counts_as_not_said_and_is_told() {
        check(json!({"policy": "smoke"}), Some("sms_only"), json!({}), Policy::SmsOnly, &["policy_not_understood"]);
        check(json!({"policy": 7}), None, json!({}), Policy::Both, &["policy_not_understood"]);
        check(json!([]), Some("smoke"), json!({}), Policy::Both, &["default_policy_not_understood"]);
        let settings = json!({"whatsapp_then_sms": {"after": 60, "until": "eaten"}});
        check(
            json!({"policy": "whatsapp_then_sms", "after": "soon", "until": "Read"}),
            None,
            settings,
            then_sms(60, Reached::Delivered),
            &["after_not_understood", "until_not_understood"],
        );
        for after in [json!(0), json!(9), json!(43_201), json!(i64::MIN), json!(u64::MAX), json!(60.5), json!({})] {
            let preferences = json!({"policy": "whatsapp_then_sms", "after": after});
            check(preferences, None, json!({}), then_sms(900, Reached::Delivered), &["after_not_understood"]);
        }
    }

    proptest! {
        #[test]
        fn whatever_stands_there_the_wait_is_within_bounds(word: String, n: i64, known in 0_usize..6) {
            let policies = [json!(word), json!(n), json!(ALL[known].as_str()), json!(null)];
            for policy in policies {
                for after in [json!(word), json!(n), json!([n])] {
                    let it = json!({"policy": policy, "after": after, "until": word, "whatsapp_then_sms": {"after": n}});
                    let wanted = read(&it, Some(&word), &it);
                    if let Policy::WhatsappThenSms(patience) = wanted.policy {
                        prop_assert!(patience.after >= SHORTEST && patience.after <= LONGEST);
                    }
                    prop_assert!(wanted.doubts.len() <= 4);
                }
            }
        }
    }
}
