//! What a journal says, and what is still owed to the session function when a journal is found at the start.

use ihuza_core::json::clip;
use ihuza_core::locale::Locale;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::{LanguageSource, Speaker, Usage};
use crate::sip::call::EndCause;
use crate::sip::consent::State;

/// By which way a call came: the first half of its name in the record, as a trunk's own id is its own alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// SIP and RTP.
    #[default]
    MtnSip,
    /// A gateway that streams media over a WebSocket.
    MtnMedia,
}

/// Who called whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Somebody called us.
    #[default]
    Inbound,
    /// We called somebody.
    Outbound,
}

/// One line of a call's story. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Entry {
    /// The call was let in: all that its end needs, should its opening never be seen.
    Opened {
        /// The relay's own id of the call.
        correlation_id: String,
        /// The trunk's Call-ID.
        call_sid: String,
        /// By which way it came.
        #[serde(default)]
        origin: Origin,
        /// The trunk.
        trunk: String,
        /// Who calls, in E.164, if known.
        from: Option<String>,
        /// Who was called, in E.164.
        to: String,
        /// The language of the greeting.
        locale: Locale,
        /// Who called whom.
        #[serde(default)]
        direction: Direction,
        /// The name that whoever asked for the call gave it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// When.
        at_ms: i64,
    },
    /// The caller was connected.
    Answered {
        /// When.
        at_ms: i64,
    },
    /// Something was said.
    Said {
        /// `caller` or `agent`.
        speaker: Speaker,
        /// The words.
        text: String,
        /// The language, if it was noticed.
        locale: Option<Locale>,
        /// How it is known.
        #[serde(default)]
        source: Option<LanguageSource>,
        /// The agent was interrupted.
        interrupted: bool,
        /// When it was known.
        at_ms: i64,
    },
    /// From now on this language is spoken.
    Language {
        /// Which.
        locale: Locale,
        /// When.
        at_ms: i64,
    },
    /// A key was pressed; which one is not kept, for it may be a PIN.
    Digit {
        /// When.
        at_ms: i64,
    },
    /// A tool was run.
    Tool {
        /// This use of it.
        call_id: String,
        /// Which.
        name: String,
        /// How long it took.
        took_ms: u64,
        /// Whether it gave a result.
        ok: bool,
        /// When it was done.
        at_ms: i64,
    },
    /// A hand-over to a person ended.
    Transferred {
        /// `confirmed`, `failed` or `unknown`.
        outcome: String,
        /// The status of a failure.
        status: Option<u16>,
        /// When.
        at_ms: i64,
    },
    /// A response was paid for.
    Used {
        /// Tokens.
        usage: Usage,
        /// When.
        at_ms: i64,
    },
    /// The caller was told that the call is recorded, or refused it.
    Consent {
        /// Which of the two.
        state: State,
        /// The language of the announcement.
        locale: Locale,
        /// When.
        at_ms: i64,
    },
    /// A recording begins; where it ends nobody may have lived to say, so its file is named now.
    Recording {
        /// The name of its file.
        file: String,
        /// When.
        at_ms: i64,
    },
    /// A recording is over.
    Recorded {
        /// The name of its file.
        file: String,
        /// How much of the call is in it.
        duration_ms: u64,
        /// Why it ended before the call, if it did.
        failure: Option<String>,
        /// When.
        at_ms: i64,
    },
    /// The call is over.
    Ended {
        /// Why.
        cause: EndCause,
        /// Figures of its media.
        media: Value,
        /// When.
        at_ms: i64,
    },
    /// The session function has all entries up to this one.
    Posted {
        /// Its sequence number.
        up_to: u64,
    },
    /// The session function knows of the end: nothing is owed any more.
    Closed,
}

/// The session function keeps so many characters of a turn.
const MOST_SAID_CHARS: usize = 8000;
const MOST_NAME_CHARS: usize = 200;

impl Entry {
    /// So short that it always fits into a record: one that never did would keep all that follow it from the disk.
    pub fn clipped(mut self) -> Entry {
        match &mut self {
            Entry::Said { text, .. } => *text = clip(text, MOST_SAID_CHARS).to_owned(),
            Entry::Tool { name, call_id, .. } => {
                *name = clip(name, MOST_NAME_CHARS).to_owned();
                *call_id = clip(call_id, MOST_NAME_CHARS).to_owned();
            }
            Entry::Opened { .. }
            | Entry::Answered { .. }
            | Entry::Digit { .. }
            | Entry::Language { .. }
            | Entry::Transferred { .. }
            | Entry::Used { .. }
            | Entry::Consent { .. }
            | Entry::Recording { .. }
            | Entry::Recorded { .. }
            | Entry::Ended { .. }
            | Entry::Posted { .. }
            | Entry::Closed => {}
        }
        self
    }

    /// Whether it is told to the session function, or only a note to ourselves.
    pub fn is_told(&self) -> bool {
        !matches!(self, Entry::Posted { .. } | Entry::Closed)
    }

    /// When it happened; a note to ourselves has no time.
    pub fn at_ms(&self) -> Option<i64> {
        match self {
            Entry::Opened { at_ms, .. }
            | Entry::Answered { at_ms }
            | Entry::Said { at_ms, .. }
            | Entry::Digit { at_ms }
            | Entry::Language { at_ms, .. }
            | Entry::Tool { at_ms, .. }
            | Entry::Transferred { at_ms, .. }
            | Entry::Used { at_ms, .. }
            | Entry::Consent { at_ms, .. }
            | Entry::Recording { at_ms, .. }
            | Entry::Recorded { at_ms, .. }
            | Entry::Ended { at_ms, .. } => Some(*at_ms),
            Entry::Posted { .. } | Entry::Closed => None,
        }
    }
}

/// What is owed for a call.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Owed {
    /// Entries that the session function has not acknowledged, with their numbers: from 1 and without a gap, for notes to
    /// ourselves have none.
    pub entries: Vec<(u64, Entry)>,
    /// The number of the last entry that is told to the session function.
    pub last: u64,
    /// The call never ended: whoever finds this ends it, with `relay_restart`, at the time of its last entry.
    pub open_since: Option<i64>,
    /// Everything is told.
    pub closed: bool,
}

/// Folds a journal into what is owed. A record that cannot be understood is one of a newer relay: it keeps its number,
/// and is told by nobody.
pub fn owed(entries: impl IntoIterator<Item = Option<Entry>>) -> Owed {
    let mut owed = Owed::default();
    let mut last_at = None;
    let mut ended = false;
    for entry in entries {
        let Some(entry) = entry else {
            owed.last += 1;
            continue;
        };
        last_at = entry.at_ms().or(last_at);
        match &entry {
            Entry::Posted { up_to } => owed.entries.retain(|(sequence, _)| sequence > up_to),
            Entry::Closed => owed.closed = true,
            Entry::Ended { .. } => ended = true,
            _ => {}
        }
        if entry.is_told() {
            owed.last += 1;
            owed.entries.push((owed.last, entry));
        }
    }
    if !ended && !owed.closed {
        owed.open_since = last_at;
    }
    if owed.closed {
        owed.entries.clear();
    }
    owed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn answered(at_ms: i64) -> Entry {
        Entry::Answered { at_ms }
    }

    fn ended(at_ms: i64) -> Entry {
        Entry::Ended { cause: EndCause::CallerHungUp, media: Value::Null, at_ms }
    }

    fn read(entries: &[Entry]) -> Vec<Option<Entry>> {
        entries.iter().cloned().map(Some).collect()
    }

    #[test]
    fn an_entry_is_written_with_the_words_of_the_record() {
        let said = Entry::Said {
            speaker: Speaker::Caller,
            text: "Muraho".into(),
            locale: Some(Locale::Rw),
            source: Some(LanguageSource::Detected),
            interrupted: false,
            at_ms: 5,
        };
        let value = json!({
            "kind": "said", "speaker": "caller", "text": "Muraho", "locale": "rw", "source": "detected",
            "interrupted": false, "at_ms": 5,
        });
        assert_eq!(serde_json::to_value(&said).unwrap(), value);
        assert_eq!(serde_json::from_value::<Entry>(value).unwrap(), said);
    }

    #[test]
    fn a_call_without_an_end_is_open_since_its_last_entry() {
        let found = owed(read(&[answered(10), answered(20)]));
        assert_eq!((found.open_since, found.entries.len(), found.closed), (Some(20), 2, false));
        assert_eq!(owed([]), Owed::default());
    }

    #[test]
    fn what_was_posted_is_not_owed_and_the_end_is_owed_until_it_is_closed() {
        let story = [answered(10), answered(20), Entry::Posted { up_to: 1 }, ended(30)];
        let found = owed(read(&story));
        assert_eq!(found.entries.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(found.open_since, None);
        let closed = owed(read(&[answered(10), ended(20), Entry::Closed]));
        assert_eq!(closed, Owed { closed: true, last: 2, ..Owed::default() });
    }

    #[test]
    fn whatever_a_model_says_fits_into_a_record() {
        let text = "\u{1}\u{10ffff}".repeat(1_000_000);
        let said = Entry::Said {
            speaker: Speaker::Agent,
            text: text.clone(),
            locale: None,
            source: None,
            interrupted: false,
            at_ms: 1,
        };
        let tool = Entry::Tool { call_id: text.clone(), name: text, took_ms: 1, ok: true, at_ms: 1 };
        for entry in [said, tool] {
            let bytes = serde_json::to_vec(&entry.clipped()).unwrap();
            assert!(bytes.len() < crate::journal::record::MOST_BYTES, "{}", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn nothing_is_forgotten_that_was_not_posted(posts in proptest::collection::vec(0_u64..30, 0..10), count in 0_usize..20) {
            let mut story: Vec<Entry> = (0..count).map(|n| answered(n as i64)).collect();
            for (n, up_to) in posts.iter().enumerate() {
                story.insert((n * 3).min(story.len()), Entry::Posted { up_to: *up_to });
            }
            let found = owed(read(&story));
            let told = story.iter().enumerate().filter(|(_, entry)| entry.is_told());
            for (number, (at, entry)) in (1..).zip(told) {
                let posted = story[at..].iter().any(|post| matches!(post, Entry::Posted { up_to } if *up_to >= number));
                prop_assert_eq!(found.entries.contains(&(number, entry.clone())), !posted);
            }
            prop_assert_eq!(found.last, count as u64);
        }
    }
}
