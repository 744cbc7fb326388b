//! Handing a call over to a person: REFER and what becomes of it (RFC 3515). The outcome is told, never guessed: when
//! the other side says nothing, it is unknown, and nobody claims that somebody answered.

use std::time::Duration;

use ihuza_core::phone::E164;

use crate::moment::Moment;

/// Without a final word for so long the outcome is unknown.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Somebody answered: the call is theirs.
    Confirmed,
    /// Refused, by the trunk or by whom was called; with the status.
    Failed(u16),
    /// Nobody said.
    Unknown,
}

/// A transfer under way.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    by: Moment,
}

impl Transfer {
    /// A REFER is about to be sent.
    pub fn new(now: Moment) -> Transfer {
        Transfer { by: now + TOLD_WITHIN }
    }

    /// The answer to our REFER: an acceptance decides nothing yet. No answer at all is told by time.
    pub fn answered(&self, status: Option<u16>) -> Option<Outcome> {
        status.filter(|status| *status >= 300).map(Outcome::Failed)
    }

    /// A NOTIFY with the body `message/sipfrag`: the first line of what the other side was answered.
    pub fn notified(&self, fragment: &str) -> Option<Outcome> {
        let status: u16 = fragment.trim_start().strip_prefix("SIP/2.0 ")?.get(..3)?.parse().ok()?;
        match status {
            100..=199 => None,
            200..=299 => Some(Outcome::Confirmed),
            _ => Some(Outcome::Failed(status)),
        }
    }

    /// The outcome once nobody has said anything for too long.
    pub fn poll(&self, now: Moment) -> Option<Outcome> {
        (now >= self.by).then_some(Outcome::Unknown)
    }

    /// When to look again.
    pub fn next_timeout(&self) -> Moment {
        self.by
    }
}

/// The number to hand over to, if calls may be handed over to it: it begins with one of the prefixes, which are all that
/// stands between a talkative model and somebody else's telephone bill.
pub fn target(text: &str, prefixes: &[String]) -> Option<E164> {
    let number = E164::parse(text).ok()?;
    prefixes.iter().any(|prefix| !prefix.is_empty() && number.as_str().starts_with(prefix.as_str())).then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_final_word_decides() {
        let transfer = Transfer::new(Moment::default());
        assert_eq!((transfer.answered(Some(202)), transfer.answered(None)), (None, None));
        assert_eq!(transfer.answered(Some(603)), Some(Outcome::Failed(603)));
        for (fragment, outcome) in [
            ("SIP/2.0 100 Trying", None),
            ("SIP/2.0 180 Ringing\r\n", None),
            ("SIP/2.0 200 OK", Some(Outcome::Confirmed)),
            ("SIP/2.0 486 Busy Here", Some(Outcome::Failed(486))),
            ("hello", None),
            ("", None),
        ] {
            assert_eq!(transfer.notified(fragment), outcome, "{fragment:?}");
        }
    }

    #[test]
    fn silence_is_unknown_and_not_success() {
        let transfer = Transfer::new(Moment::from_millis(1000));
        assert_eq!(transfer.poll(Moment::from_millis(20_999)), None);
        assert_eq!(transfer.poll(transfer.next_timeout()), Some(Outcome::Unknown));
    }

    #[test]
    fn calls_are_handed_over_only_to_whom_the_settings_allow() {
        let prefixes = ["+25078812".to_owned(), String::new()];
        assert_eq!(target("tel:+250788123456", &prefixes).unwrap().as_str(), "+250788123456");
        assert_eq!(target("0788123456", &prefixes).unwrap().as_str(), "+250788123456");
        for other in ["+250788999999", "+8811234567", "8080", "", "sip:somebody@elsewhere"] {
            assert_eq!(target(other, &prefixes), None, "{other}");
        }
        assert_eq!(target("+250788123456", &[]), None, "nobody is allowed by default");
    }

    proptest! {
        #[test]
        fn any_fragment_is_read_or_ignored(fragment in "(SIP/2.0 )?\\PC{0,20}") {
            let _ = Transfer::new(Moment::default()).notified(&fragment);
        }
    }
}
