//! Who writes too much: by which keys the edge counts a sender before their message is queued.
//!
//! The counters are Cloudflare's (`[[ratelimits]]` in wrangler.toml: one for senders, one for prefixes, of a minute each). The
//! database counts hours and days, and decides what becomes of a message that is over a limit: `begin_sms_turn`.

use crate::channel::Channel;
use crate::phone::E164;

/// How many first digits of a number are its prefix: the country and the operator, as in `send_limits.group_digits`.
pub const PREFIX_DIGITS: usize = 6;

/// What one message is counted by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// The sender alone.
    pub sender: String,
    /// All numbers that begin alike; none at home, and none for whom no number is known.
    pub prefix: Option<String>,
}

impl Keys {
    /// The keys of who wrote on `channel`, with their number or else their user id; none for somebody without either.
    ///
    /// `home` lists, with commas, how numbers begin whose neighbours are simply our other customers, such as `+250,+256`. What
    /// nobody proved (`unsigned`) is counted apart, so that it uses up nobody's count.
    pub fn of(
        channel: Channel,
        number: Option<&E164>,
        user_id: Option<&str>,
        home: &str,
        unsigned: bool,
    ) -> Option<Keys> {
        let who = number.map(E164::as_str).or(user_id).filter(|who| !who.is_empty())?;
        let proof = if unsigned { ":unsigned:" } else { ":" };
        let key = |of: &str| [channel.as_str(), proof, of].concat();
        let prefix = number.filter(|number| !is_home(number, home)).and_then(prefix_of);
        Some(Keys { sender: key(who), prefix: prefix.map(key) })
    }

    /// The key by which this limit counts the sender, if it does.
    pub fn counted_by(&self, limit: Over) -> Option<&str> {
        match limit {
            Over::Sender => Some(&self.sender),
            Over::Prefix => self.prefix.as_deref(),
        }
    }
}

fn is_home(number: &E164, home: &str) -> bool {
    home.split(',').map(str::trim).any(|start| start.starts_with('+') && number.as_str().starts_with(start))
}

/// The `+` and the first [`PREFIX_DIGITS`] digits.
fn prefix_of(number: &E164) -> Option<&str> {
    number.as_str().get(..=PREFIX_DIGITS)
}

/// Which count a message is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// This sender writes too much.
    Sender,
    /// Too much comes from numbers that begin like this one.
    Prefix,
}

impl Over {
    /// The word in `over_limit` of a piece of work.
    pub fn as_str(self) -> &'static str {
        match self {
            Over::Sender => "sender",
            Over::Prefix => "prefix",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(number: &str, home: &str) -> Keys {
        let number = E164::parse(number).unwrap();
        Keys::of(Channel::Sms, Some(&number), None, home, false).unwrap()
    }

    #[test]
    fn a_number_abroad_is_counted_with_its_neighbours_and_one_at_home_alone() {
        let key =
            |sender: &str, prefix: Option<&str>| Keys { sender: sender.to_owned(), prefix: prefix.map(str::to_owned) };
        assert_eq!(keys("+447700900001", "+250"), key("sms:+447700900001", Some("sms:+447700")));
        assert_eq!(keys("+250788123456", "+250"), key("sms:+250788123456", None));
        assert_eq!(keys("+256772123456", "+250, +256"), key("sms:+256772123456", None));
        assert_eq!(keys("+250788123456", "none"), key("sms:+250788123456", Some("sms:+250788")));
        assert_eq!(
            keys("+250788123456", "250,"),
            key("sms:+250788123456", Some("sms:+250788")),
            "not as numbers begin"
        );
    }

    #[test]
    fn who_shares_no_number_is_counted_by_user_id() {
        let of = |user_id| Keys::of(Channel::Whatsapp, None, user_id, "+250", false);
        assert_eq!(of(Some("RW.704")), Some(Keys { sender: "whatsapp:RW.704".to_owned(), prefix: None }));
        assert_eq!((of(None), of(Some(""))), (None, None));
    }

    fn number() -> impl Strategy<Value = E164> {
        "[1-9][0-9]{7,14}".prop_filter_map("no number", |digits| E164::parse(&format!("+{digits}")).ok())
    }

    proptest! {
        #[test]
        fn two_senders_share_a_count_only_if_their_numbers_begin_alike(a in number(), b in number(), home in "(none|\\+250|\\+2507,\\+1)") {
            let of = |number: &E164| Keys::of(Channel::Sms, Some(number), None, &home, false).unwrap();
            let (first, second) = (of(&a), of(&b));
            prop_assert_eq!(first.sender == second.sender, a == b);
            let alike = a.as_str()[..7] == b.as_str()[..7];
            if first.prefix.is_some() {
                prop_assert_eq!(first.prefix == second.prefix, alike);
            }
            // A prefix is no sender, whatever the numbers.
            prop_assert!(first.prefix.is_none_or(|prefix| prefix != second.sender && prefix != first.sender));
        }

        #[test]
        fn neighbours_share_a_count_abroad_and_never_at_home(prefix in "[1-9][0-9]{5}", tails in ("[0-9]{6}", "[0-9]{6}")) {
            let parse = |tail: &str| E164::parse(&format!("+{prefix}{tail}"));
            if let (Ok(a), Ok(b)) = (parse(&tails.0), parse(&tails.1)) {
                let of = |number: &E164, home: &str| Keys::of(Channel::Sms, Some(number), None, home, false).unwrap().prefix;
                prop_assert!(of(&a, "none").is_some());
                prop_assert_eq!(of(&a, "none"), of(&b, "none"));
                let home = format!("+{}", &prefix[..3]);
                prop_assert_eq!((of(&a, &home), of(&b, &home)), (None, None));
            }
        }

        #[test]
        fn what_nobody_proved_and_another_channel_use_up_no_count(number in number()) {
            let of = |channel, unsigned| Keys::of(channel, Some(&number), None, "none", unsigned).unwrap();
            let all = [of(Channel::Sms, false), of(Channel::Sms, true), of(Channel::Whatsapp, false)];
            for (at, keys) in all.iter().enumerate() {
                for other in &all[at + 1..] {
                    prop_assert!(keys.sender != other.sender && keys.prefix != other.prefix);
                }
                // One line, as the way to the counter has it.
                prop_assert!(!keys.sender.contains('\n'));
            }
        }
    }
}
