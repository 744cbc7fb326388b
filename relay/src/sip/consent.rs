//! Whether a call may be recorded. Nothing is recorded before the announcement was heard to its end, nothing before that
//! is kept for certain, and nothing at all once the caller has refused: every doubt means that there is no recording.

use std::time::Duration;

use ihuza_core::locale::Locale;
use serde::{Deserialize, Serialize};

use crate::media::dtmf::Digit;
use crate::moment::Moment;

/// What the caller was told or did; a row of `call_consents`, in its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The announcement was played to its end.
    Announced,
    /// The caller pressed the key that refuses.
    Refused,
}

impl State {
    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Announced => "announced",
            State::Refused => "refused",
        }
    }

    /// How it was come by: the record's `method`.
    pub fn method(self) -> &'static str {
        match self {
            State::Announced => "announcement",
            State::Refused => "dtmf",
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Keep this in the record, and say by `kept` whether it is there for certain.
    Keep(State),
    /// From now on everything is recorded.
    Record,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The announcement is being played; nobody can interrupt it, and the model neither hears nor is heard.
    Announcing {
        refused: bool,
    },
    /// The conversation goes on, and the caller may still refuse.
    Asking {
        until: Moment,
        kept: bool,
    },
    /// Nobody refused; the record is waited for.
    Keeping,
    Recording,
    /// There is no recording of this call, and there will be none.
    Never,
}

/// The consent of one call to its recording.
#[derive(Debug)]
pub struct Consent {
    stage: Stage,
    /// The language of the announcement.
    pub locale: Locale,
    refuse_key: Option<Digit>,
    wait: Duration,
}

impl Consent {
    /// The announcement begins. With `refuse_key` the caller can refuse by it, until `wait` after the announcement.
    pub fn new(locale: Locale, refuse_key: Option<Digit>, wait: Duration) -> Consent {
        Consent { stage: Stage::Announcing { refused: false }, locale, refuse_key, wait }
    }

    /// Whether the announcement is being played: the caller's voice and keys are not for the model.
    pub fn is_announcing(&self) -> bool {
        matches!(self.stage, Stage::Announcing { .. })
    }

    /// The announcement was played to its end.
    pub fn announced(&mut self, now: Moment) -> Option<Output> {
        let Stage::Announcing { refused } = self.stage else { return None };
        self.stage = match self.refuse_key {
            _ if refused => Stage::Never,
            Some(_) => Stage::Asking { until: now + self.wait, kept: false },
            None => Stage::Keeping,
        };
        Some(Output::Keep(State::Announced))
    }

    /// A key was pressed. True: it was an answer to the announcement, or pressed into it, and is not for the model.
    pub fn key(&mut self, digit: Digit) -> (bool, Option<Output>) {
        let refuses = self.refuse_key == Some(digit);
        match self.stage {
            Stage::Announcing { refused: false } if refuses => {
                self.stage = Stage::Announcing { refused: true };
                (true, Some(Output::Keep(State::Refused)))
            }
            Stage::Announcing { .. } => (true, None),
            // Also while the record is waited for: as long as nothing is recorded it is not too late.
            Stage::Asking { .. } | Stage::Keeping if refuses => {
                self.stage = Stage::Never;
                (true, Some(Output::Keep(State::Refused)))
            }
            Stage::Asking { .. } | Stage::Keeping | Stage::Recording | Stage::Never => (false, None),
        }
    }

    /// Whether the announcement's end is in the record for certain.
    pub fn kept(&mut self, certain: bool) -> Option<Output> {
        match self.stage {
            _ if !certain => {
                self.stage = Stage::Never;
                None
            }
            Stage::Asking { until, .. } => {
                self.stage = Stage::Asking { until, kept: true };
                None
            }
            Stage::Keeping => self.record(),
            Stage::Announcing { .. } | Stage::Recording | Stage::Never => None,
        }
    }

    /// Time has passed.
    pub fn timeout(&mut self, now: Moment) -> Option<Output> {
        match self.stage {
            Stage::Asking { until, kept } if now >= until => {
                if kept {
                    return self.record();
                }
                self.stage = Stage::Keeping;
                None
            }
            _ => None,
        }
    }

    /// When `timeout` is to be called next, if ever.
    pub fn next_timeout(&self) -> Option<Moment> {
        match self.stage {
            Stage::Asking { until, .. } => Some(until),
            _ => None,
        }
    }

    fn record(&mut self) -> Option<Output> {
        self.stage = Stage::Recording;
        Some(Output::Record)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WAIT: Duration = Duration::from_secs(3);

    fn digit(key: char) -> Digit {
        Digit::from_char(key).unwrap()
    }

    fn consent(key: Option<char>) -> Consent {
        Consent::new(Locale::Rw, key.map(digit), WAIT)
    }

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn recording_begins_when_the_announcement_is_in_the_record_and_not_when_it_is_over() {
        let mut consent = consent(None);
        assert!(consent.is_announcing() && consent.next_timeout().is_none());
        assert_eq!(consent.announced(at(100)), Some(Output::Keep(State::Announced)));
        assert!(!consent.is_announcing());
        assert_eq!(consent.kept(true), Some(Output::Record));
        assert_eq!((consent.kept(true), consent.announced(at(200))), (None, None), "once");
    }

    #[test]
    fn what_cannot_be_kept_is_not_recorded() {
        let mut consent = consent(None);
        consent.announced(at(100));
        assert_eq!((consent.kept(false), consent.kept(true)), (None, None));
    }

    #[test]
    fn with_a_key_the_caller_has_time_to_refuse() {
        let mut patient = consent(Some('2'));
        patient.announced(at(100));
        assert_eq!(patient.kept(true), None);
        assert_eq!(patient.timeout(at(3099)), None);
        assert_eq!(patient.key(digit('5')), (false, None), "another key is for the model");
        assert_eq!(patient.timeout(patient.next_timeout().unwrap()), Some(Output::Record));
        assert_eq!(patient.key(digit('2')), (false, None), "by now it is a key like any other");
        let mut slow_disk = consent(Some('2'));
        slow_disk.announced(at(100));
        assert_eq!((slow_disk.timeout(at(3100)), slow_disk.kept(true)), (None, Some(Output::Record)));
    }

    #[test]
    fn a_refusal_counts_during_the_announcement_and_after_it() {
        let mut early = consent(Some('2'));
        assert_eq!(early.key(digit('1')), (true, None), "nothing goes to the model while it is played");
        assert_eq!(early.key(digit('2')), (true, Some(Output::Keep(State::Refused))));
        assert_eq!(early.key(digit('2')), (true, None), "once");
        assert_eq!(early.announced(at(100)), Some(Output::Keep(State::Announced)));
        assert_eq!((early.kept(true), early.timeout(at(9000))), (None, None));
        let mut late = consent(Some('2'));
        late.announced(at(100));
        late.kept(true);
        assert_eq!(late.key(digit('2')), (true, Some(Output::Keep(State::Refused))));
        assert_eq!((late.timeout(at(9000)), late.next_timeout()), (None, None));
    }

    proptest! {
        #[test]
        fn nothing_is_recorded_that_was_not_announced_kept_and_left_unrefused(steps in proptest::collection::vec(0_u8..6, 0..30), with_key: bool) {
            let mut consent = consent(with_key.then_some('2'));
            let (mut announced, mut kept, mut refused, mut recording) = (false, false, false, false);
            for (n, step) in steps.into_iter().enumerate() {
                let now = at(n as u64 * 1000);
                let out = match step {
                    0 => consent.announced(now),
                    1 if announced => { kept = true; consent.kept(true) }
                    2 if announced => consent.kept(false),
                    3 => consent.timeout(now),
                    4 => consent.key(digit('2')).1,
                    _ => consent.key(digit('7')).1,
                };
                match out {
                    Some(Output::Keep(State::Announced)) => announced = true,
                    Some(Output::Keep(State::Refused)) => { prop_assert!(with_key && !recording); refused = true }
                    Some(Output::Record) => { prop_assert!(announced && kept && !refused && !recording); recording = true }
                    None => {}
                }
            }
        }
    }
}
