//! Whether a trunk is there: by the OPTIONS that we send it (RFC 3261 §11), and by every request of its own.
//!
//! ```text
//! unknown -> active <-> stale -> down -> active
//! ```

use std::time::Duration;

use crate::moment::Moment;

/// Nothing that reaches a carrier takes longer there and back; three retransmissions are within it.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// So many questions without an answer, one after the other, and the trunk is down.
const MOST_MISSED: u32 = 3;
/// A trunk that cannot be asked is believed for so long after its last request.
const BELIEVED_FOR: Duration = Duration::from_secs(90);

/// How a trunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has not been heard of since the relay's start.
    Unknown,
    /// It answers.
    Active,
    /// It did, and now it is late.
    Stale,
    /// It does not answer, or answers that it cannot.
    Down(Reason),
}

/// Why a trunk is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// OPTIONS stay unanswered.
    NoAnswer,
    /// It answers with this status, 5xx or 6xx.
    Refuses(u16),
}

/// Every state, for metrics that are there from the start.
pub const STATES: [&str; 4] = ["unknown", "active", "stale", "down"];

impl State {
    /// The word in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Unknown => "unknown",
            State::Active => "active",
            State::Stale => "stale",
            State::Down(_) => "down",
        }
    }

    /// Why it is down, as a code.
    pub fn reason(self) -> Option<String> {
        match self {
            State::Down(Reason::NoAnswer) => Some("no_answer".into()),
            State::Down(Reason::Refuses(status)) => Some(format!("sip_{status}")),
            State::Unknown | State::Active | State::Stale => None,
        }
    }
}

/// Asks one trunk.
#[derive(Debug, Clone)]
pub struct Qualifier {
    /// How often; none if it is not known where to ask.
    every: Option<Duration>,
    next: Moment,
    /// Since when an answer is waited for. While one is, no other question is sent.
    asked: Option<Moment>,
    missed: u32,
    last_life: Option<Moment>,
    refuses: Option<u16>,
}

impl Qualifier {
    /// Asks for the first time at once.
    pub fn new(now: Moment, every: Option<Duration>) -> Qualifier {
        Qualifier { every, next: now, asked: None, missed: 0, last_life: None, refuses: None }
    }

    /// Whether a question is to be sent now. Whoever sends it tells of its end by `answered`, whatever it is.
    pub fn poll(&mut self, now: Moment) -> bool {
        let due = self.every.is_some() && self.asked.is_none() && now >= self.next;
        if due {
            self.asked = Some(now);
        }
        due
    }

    /// How long an answer is waited for.
    pub fn answer_within(&self) -> Duration {
        self.every.unwrap_or(ANSWER_WITHIN).min(ANSWER_WITHIN)
    }

    /// When to ask next; none while an answer is waited for.
    pub fn next_timeout(&self) -> Option<Moment> {
        self.every.filter(|_| self.asked.is_none()).map(|_| self.next)
    }

    /// The status of the answer, or none if nothing came within `answer_within`. A 408 is what the own stack says then.
    pub fn answered(&mut self, now: Moment, status: Option<u16>) {
        let (Some(asked), Some(every)) = (self.asked.take(), self.every) else { return };
        match status.filter(|status| *status != 408) {
            Some(status) => {
                self.heard(now);
                // 4xx is an opinion about OPTIONS; whoever has one is there.
                self.refuses = (status >= 500).then_some(status);
                self.next = asked + every;
            }
            None => {
                self.missed = self.missed.saturating_add(1);
                // In doubt it is asked sooner.
                self.next = asked + self.answer_within();
            }
        }
        self.next = self.next.max(now);
    }

    /// A request of the trunk's own came.
    pub fn heard(&mut self, now: Moment) {
        self.last_life = Some(now);
        self.missed = 0;
        self.refuses = None;
    }

    /// The last answer or request.
    pub fn last_life(&self) -> Option<Moment> {
        self.last_life
    }

    /// How it is.
    pub fn state(&self, now: Moment) -> State {
        match (self.refuses, self.missed, self.last_life) {
            (Some(status), ..) => State::Down(Reason::Refuses(status)),
            (None, MOST_MISSED.., _) => State::Down(Reason::NoAnswer),
            (None, _, None) => State::Unknown,
            (None, 1.., Some(_)) => State::Stale,
            (None, 0, Some(at)) if self.every.is_none() && now.since(at) > BELIEVED_FOR => State::Stale,
            (None, 0, Some(_)) => State::Active,
        }
    }
}

/// When the session function is told. One report at a time, always of how things are then: whatever fails, nothing
/// piles up.
#[derive(Debug, Clone)]
pub struct Reports {
    every: Duration,
    next: Moment,
    /// After a failure the next attempt waits so long.
    wait: Duration,
    under_way: bool,
    told: Vec<State>,
}

/// Waits between attempts grow from the first to the second.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

impl Reports {
    /// The first report goes out as soon as there is something to say.
    pub fn new(now: Moment, every: Duration) -> Reports {
        Reports { every, next: now, wait: Duration::ZERO, under_way: false, told: Vec::new() }
    }

    /// Whether a report is to be sent now, of these states. Whoever sends it tells of its end by `done`.
    pub fn poll(&mut self, now: Moment, states: &[State]) -> bool {
        let failing = !self.wait.is_zero();
        let changed = !failing && self.told != states;
        let worth_it = states.iter().any(|state| Reports::is_told(*state));
        let due = !self.under_way && worth_it && (changed || now >= self.next);
        if due {
            self.under_way = true;
            self.told = states.to_vec();
        }
        due
    }

    /// Whether a state is reported. What is not known for certain is left out: the last report ages until the function
    /// itself calls it stale.
    pub fn is_told(state: State) -> bool {
        matches!(state, State::Active | State::Down(_))
    }

    /// A report reached the function, or did not.
    pub fn done(&mut self, now: Moment, went_through: bool) {
        self.under_way = false;
        let [first, longest] = RETRY;
        self.wait = if went_through { Duration::ZERO } else { (self.wait * 2).clamp(first, longest) };
        self.next = now + if went_through { self.every } else { self.wait };
    }

    /// Whether the last report failed.
    pub fn is_failing(&self) -> bool {
        !self.wait.is_zero()
    }

    /// When to look again.
    pub fn next_timeout(&self) -> Option<Moment> {
        (!self.under_way).then_some(self.next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVERY: Duration = Duration::from_secs(20);

    fn seconds(seconds: u64) -> Moment {
        Moment::from_millis(seconds * 1000)
    }

    #[test]
    fn a_trunk_that_answers_is_active_and_asked_in_the_same_measure() {
        let mut trunk = Qualifier::new(seconds(0), Some(EVERY));
        assert_eq!((trunk.state(seconds(0)), trunk.poll(seconds(0))), (State::Unknown, true));
        assert!(!trunk.poll(seconds(30)), "one question at a time");
        trunk.answered(seconds(1), Some(200));
        assert_eq!((trunk.state(seconds(1)), trunk.next_timeout()), (State::Active, Some(seconds(20))));
        assert!(!trunk.poll(seconds(19)) && trunk.poll(seconds(20)));
        trunk.answered(seconds(21), Some(404));
        assert_eq!(trunk.state(seconds(21)), State::Active, "whoever has an opinion is there");
    }

    #[test]
    fn the_third_unanswered_question_takes_it_down_and_one_answer_brings_it_back() {
        let mut trunk = Qualifier::new(seconds(0), Some(EVERY));
        let mut states = Vec::new();
        for (at, status) in [(0, Some(200)), (20, None), (25, Some(408)), (30, None), (35, None), (40, Some(200))] {
            assert!(trunk.poll(seconds(at)), "at {at}");
            trunk.answered(seconds(at) + if status == Some(200) { Duration::ZERO } else { ANSWER_WITHIN }, status);
            states.push(trunk.state(seconds(at)).as_str());
        }
        assert_eq!(states, ["active", "stale", "stale", "down", "down", "active"]);
    }

    #[test]
    fn a_trunk_that_says_it_cannot_is_down_at_once_and_a_request_of_its_own_is_life() {
        let mut trunk = Qualifier::new(seconds(0), Some(EVERY));
        assert!(trunk.poll(seconds(0)));
        trunk.answered(seconds(0), Some(503));
        assert_eq!(trunk.state(seconds(0)).reason().as_deref(), Some("sip_503"));
        trunk.heard(seconds(5));
        assert_eq!((trunk.state(seconds(5)), trunk.last_life()), (State::Active, Some(seconds(5))));
    }

    #[test]
    fn a_trunk_that_cannot_be_asked_is_believed_for_a_while() {
        let mut trunk = Qualifier::new(seconds(0), None);
        assert_eq!(
            (trunk.poll(seconds(100)), trunk.next_timeout(), trunk.state(seconds(100))),
            (false, None, State::Unknown)
        );
        trunk.heard(seconds(100));
        assert_eq!((trunk.state(seconds(190)), trunk.state(seconds(191))), (State::Active, State::Stale));
    }

    #[test]
    fn a_change_is_told_at_once_and_the_rest_in_measure() {
        let mut reports = Reports::new(seconds(0), Duration::from_secs(30));
        assert!(!reports.poll(seconds(0), &[State::Unknown]), "there is nothing to say");
        assert!(reports.poll(seconds(1), &[State::Active]));
        assert!(!reports.poll(seconds(2), &[State::Stale]), "one at a time");
        reports.done(seconds(3), true);
        assert!(!reports.poll(seconds(4), &[State::Active]) && !reports.poll(seconds(5), &[State::Stale]));
        assert!(reports.poll(seconds(6), &[State::Down(Reason::NoAnswer)]));
        reports.done(seconds(6), true);
        assert_eq!(reports.next_timeout(), Some(seconds(36)));
        assert!(reports.poll(seconds(36), &[State::Down(Reason::NoAnswer)]));
    }

    #[test]
    fn a_function_that_is_away_is_asked_more_and_more_seldom_and_then_told_how_things_are() {
        let mut reports = Reports::new(seconds(0), Duration::from_secs(30));
        let mut now = seconds(0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(reports.poll(now, &[State::Active]));
            reports.done(now, false);
            assert!(!reports.poll(now, &[State::Down(Reason::NoAnswer)]), "a change does not hurry a failing function");
            let next = reports.next_timeout().unwrap();
            waits.push(next.since(now).as_secs());
            now = next;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert!(reports.is_failing() && reports.poll(now, &[State::Active]));
        reports.done(now, true);
        assert!(!reports.is_failing() && reports.poll(now, &[State::Down(Reason::NoAnswer)]));
    }

    proptest! {
        #[test]
        fn whatever_happens_there_is_a_next_question(steps in proptest::collection::vec((0_u8..4, 0_u64..60), 0..80)) {
            let mut trunk = Qualifier::new(seconds(0), Some(EVERY));
            let (mut now, mut asked) = (seconds(0), false);
            for (step, wait) in steps {
                now += Duration::from_secs(wait);
                match step {
                    0 => asked |= trunk.poll(now),
                    1 => trunk.heard(now),
                    2 => { trunk.answered(now, Some(200)); asked = false; }
                    _ => { trunk.answered(now, None); asked = false; }
                }
                let _ = trunk.state(now);
                prop_assert_eq!(trunk.next_timeout().is_none(), asked, "it is asked, or it will be");
            }
        }
    }
}
