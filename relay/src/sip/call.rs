//! The life of one call, from its INVITE to its one end.
//!
//! It rings at once, is answered when the model can speak (or, if that never comes, so that an apology can be spoken),
//! and ends for exactly one reason, whoever else also wanted to end it. A call that we place rings at the other end, and
//! is given up after a while.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::moment::Moment;

/// Why a call ended. The word goes into the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// The caller hung up.
    CallerHungUp,
    /// The caller gave up before we answered.
    CallerCancelled,
    /// The agent said goodbye.
    AgentHungUp,
    /// Somebody else took over.
    Transferred,
    /// Our answer was never acknowledged.
    NoAck,
    /// No media came for too long.
    MediaLost,
    /// The model could not be used.
    ModelFailed,
    /// The offer or its answer could not be used.
    MediaRefused,
    /// The longest call there may be.
    TooLong,
    /// Nobody refreshed the session.
    SessionExpired,
    /// The relay was told to end.
    Shutdown,
    /// The relay died; its next start closed the call.
    RelayRestart,
    /// A fault of the relay broke the call off.
    RelayFault,
    /// Nobody answered the call that we placed.
    NoAnswer,
    /// Whom we called is busy.
    Busy,
    /// Whom we called, or the trunk, does not want it.
    Rejected,
    /// The call that we placed did not get through.
    Unreachable,
    /// Whoever asked for the call took it back before it was answered.
    Withdrawn,
    /// Whoever asked for the call ended it.
    Requested,
}

/// Every cause, for metrics that are there from the start.
pub const END_CAUSES: [EndCause; 19] = [
    EndCause::CallerHungUp,
    EndCause::CallerCancelled,
    EndCause::AgentHungUp,
    EndCause::Transferred,
    EndCause::NoAck,
    EndCause::MediaLost,
    EndCause::ModelFailed,
    EndCause::MediaRefused,
    EndCause::TooLong,
    EndCause::SessionExpired,
    EndCause::Shutdown,
    EndCause::RelayRestart,
    EndCause::RelayFault,
    EndCause::NoAnswer,
    EndCause::Busy,
    EndCause::Rejected,
    EndCause::Unreachable,
    EndCause::Withdrawn,
    EndCause::Requested,
];

impl EndCause {
    /// What a final answer to an INVITE of ours says (RFC 3261 §21); none is no answer within the transaction's life.
    pub fn of_status(status: Option<u16>) -> EndCause {
        match status {
            Some(486 | 600) => EndCause::Busy,
            // 480 is what most switches say when it rang for too long; 487 where their own timer cancelled it.
            Some(408 | 480 | 487) => EndCause::NoAnswer,
            Some(403 | 433 | 603 | 607 | 608) => EndCause::Rejected,
            _ => EndCause::Unreachable,
        }
    }

    /// The word in records, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            EndCause::CallerHungUp => "caller_hung_up",
            EndCause::CallerCancelled => "caller_cancelled",
            EndCause::AgentHungUp => "agent_hung_up",
            EndCause::Transferred => "transferred",
            EndCause::NoAck => "no_ack",
            EndCause::MediaLost => "media_lost",
            EndCause::ModelFailed => "model_failed",
            EndCause::MediaRefused => "media_refused",
            EndCause::TooLong => "too_long",
            EndCause::SessionExpired => "session_expired",
            EndCause::Shutdown => "shutdown",
            EndCause::RelayRestart => "relay_restart",
            EndCause::RelayFault => "relay_fault",
            EndCause::NoAnswer => "no_answer",
            EndCause::Busy => "busy",
            EndCause::Rejected => "rejected",
            EndCause::Unreachable => "unreachable",
            EndCause::Withdrawn => "withdrawn",
            EndCause::Requested => "requested",
        }
    }
}

/// What a call is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The model can speak.
    ModelReady,
    /// The model cannot be had.
    ModelFailed,
    /// Our 200 was acknowledged.
    Acknowledged,
    /// Our 200 never was.
    NotAcknowledged,
    /// The answer in the ACK could not be used.
    AnswerRefused,
    /// CANCEL.
    Cancelled,
    /// BYE.
    HungUp,
    /// No media for too long.
    MediaLost,
    /// The agent wants to end the call when what it says is said.
    AgentEnds,
    /// Everything that was to be said is said.
    Silent,
    /// The transfer that was asked for went through.
    Transferred,
    /// It did not.
    NotTransferred,
    /// The session timer ran out.
    SessionExpired,
    /// The relay ends.
    Shutdown,
    /// Whom we called has answered, and media flows.
    PickedUp,
    /// Our INVITE was refused with this status, or with none at all.
    Refused(Option<u16>),
    /// Whoever asked for the call wants it to end.
    Requested,
    /// Time has passed.
    Timeout,
}

/// What is to be done for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// 180.
    Ring,
    /// 200 with our description, and media from now on.
    Answer,
    /// A final refusal, before it was answered.
    Reject(u16),
    /// Say that we are sorry, protected from interruption.
    Apologise,
    /// Hand the call over to whom is there when the model is not.
    HandOver,
    /// INVITE.
    Dial,
    /// CANCEL: an INVITE of ours is given up.
    Cancel,
    /// BYE, with this cause of Q.850.
    HangUp(u8),
    /// The call is over; told exactly once, and last.
    Ended(EndCause),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Ringing,
    /// Ours, and it rings at the other end.
    Calling {
        by: Moment,
    },
    /// Ours, and answered before the model could speak.
    Awaiting {
        by: Moment,
    },
    /// Answered, not acknowledged.
    Answered,
    Talking,
    /// Something is being said, and then it ends.
    Leaving {
        cause: EndCause,
        by: Moment,
    },
    /// The model is gone, and somebody else is asked to take the call.
    HandingOver {
        by: Moment,
    },
    Over,
}

/// After the last words the call is ended at the latest.
const LAST_WORDS: Duration = Duration::from_secs(8);
/// Longer than a transfer takes to have an outcome.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(25);

/// One call.
#[derive(Debug)]
pub struct Call {
    stage: Stage,
    answer_by: Moment,
    end_by: Moment,
    answer_within: Duration,
    longest: Duration,
    model_ready: bool,
    model_failed: bool,
    has_fallback: bool,
    out: VecDeque<Output>,
}

impl Call {
    /// A call that was let in.
    pub fn new(now: Moment, answer_within: Duration, longest: Duration) -> Call {
        Call {
            stage: Stage::Ringing,
            answer_by: now + answer_within,
            end_by: now + longest,
            answer_within,
            longest,
            model_ready: false,
            model_failed: false,
            has_fallback: false,
            out: VecDeque::from([Output::Ring]),
        }
    }

    /// A call that we place. `longest` counts from its answer.
    pub fn outbound(now: Moment, ring_within: Duration, answer_within: Duration, longest: Duration) -> Call {
        let mut call = Call::new(now, answer_within, longest);
        call.stage = Stage::Calling { by: now + ring_within };
        call.out = VecDeque::from([Output::Dial]);
        call
    }

    /// Somebody else can take the call when the model is gone.
    pub fn with_fallback(mut self, has_fallback: bool) -> Call {
        self.has_fallback = has_fallback;
        self
    }

    /// Takes something in. After its end a call ignores everything.
    pub fn handle_input(&mut self, now: Moment, input: Input) {
        match (self.stage, input) {
            (Stage::Over, _) => {}
            (Stage::Calling { .. }, Input::PickedUp) => self.picked_up(now),
            (Stage::Calling { .. }, Input::Refused(status)) => self.end(EndCause::of_status(status)),
            (Stage::Calling { .. }, Input::HungUp) => self.end(EndCause::Unreachable),
            (Stage::Calling { .. }, Input::Requested) => self.hang_up(EndCause::Withdrawn),
            (_, Input::PickedUp | Input::Refused(_)) => {}
            (_, Input::Requested) => self.hang_up(EndCause::Requested),
            (Stage::Calling { .. }, Input::ModelReady) => self.model_ready = true,
            // Nobody's telephone rings for an apology.
            (Stage::Calling { .. }, Input::ModelFailed) => self.hang_up(EndCause::ModelFailed),
            (Stage::Awaiting { .. }, Input::ModelReady) => self.stage = Stage::Talking,
            (Stage::Awaiting { .. }, Input::ModelFailed) => self.apologise(now),
            (_, Input::HungUp) => self.end(EndCause::CallerHungUp),
            (Stage::Ringing, Input::Cancelled) => self.end(EndCause::CallerCancelled),
            // It crossed our 200: the caller sends a BYE, or the missing ACK ends the call.
            (_, Input::Cancelled) => {}
            (_, Input::NotAcknowledged) => self.hang_up(EndCause::NoAck),
            (_, Input::AnswerRefused) => self.hang_up(EndCause::MediaRefused),
            (_, Input::MediaLost) => self.hang_up(EndCause::MediaLost),
            (_, Input::SessionExpired) => self.hang_up(EndCause::SessionExpired),
            (_, Input::Transferred) => self.hang_up(EndCause::Transferred),
            (_, Input::Shutdown) => self.hang_up(EndCause::Shutdown),
            (Stage::Ringing, Input::ModelReady) => self.answer(),
            (Stage::Ringing, Input::ModelFailed) => {
                self.model_failed = true;
                self.answer();
            }
            (Stage::Answered, Input::Acknowledged) if self.model_failed => self.apologise(now),
            (Stage::Answered, Input::Acknowledged) => self.stage = Stage::Talking,
            (Stage::Answered, Input::ModelFailed) => self.model_failed = true,
            (Stage::Talking, Input::ModelFailed) => self.apologise(now),
            (Stage::Talking, Input::AgentEnds) => self.leave(now, EndCause::AgentHungUp),
            (Stage::Leaving { cause, .. }, Input::Silent) => self.said_goodbye(now, cause),
            (Stage::HandingOver { .. }, Input::NotTransferred) => self.hang_up(EndCause::ModelFailed),
            (_, Input::Timeout) => self.timeout(now),
            (
                Stage::Ringing
                | Stage::Calling { .. }
                | Stage::Awaiting { .. }
                | Stage::Answered
                | Stage::Talking
                | Stage::Leaving { .. }
                | Stage::HandingOver { .. },
                Input::ModelReady
                | Input::ModelFailed
                | Input::Acknowledged
                | Input::AgentEnds
                | Input::Silent
                | Input::NotTransferred,
            ) => {}
        }
    }

    /// What is to be done; to be asked until there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When `Input::Timeout` is to be given next.
    pub fn next_timeout(&self) -> Option<Moment> {
        match self.stage {
            Stage::Ringing => Some(self.answer_by.min(self.end_by)),
            Stage::Calling { by } => Some(by),
            Stage::Awaiting { by } => Some(by.min(self.end_by)),
            Stage::Answered | Stage::Talking => Some(self.end_by),
            Stage::Leaving { by, .. } | Stage::HandingOver { by } => Some(by),
            Stage::Over => None,
        }
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    fn timeout(&mut self, now: Moment) {
        match self.stage {
            Stage::Leaving { cause, by } if now >= by => self.said_goodbye(now, cause),
            Stage::HandingOver { by } if now >= by => self.hang_up(EndCause::ModelFailed),
            Stage::Leaving { .. } | Stage::HandingOver { .. } | Stage::Over => {}
            Stage::Calling { by } if now >= by => self.hang_up(EndCause::NoAnswer),
            Stage::Calling { .. } => {}
            _ if now >= self.end_by => self.hang_up(EndCause::TooLong),
            Stage::Ringing if now >= self.answer_by => {
                self.model_failed = true;
                self.answer();
            }
            Stage::Awaiting { by } if now >= by => self.apologise(now),
            Stage::Ringing | Stage::Awaiting { .. } | Stage::Answered | Stage::Talking => {}
        }
    }

    fn picked_up(&mut self, now: Moment) {
        self.end_by = now + self.longest;
        let by = now + self.answer_within;
        self.stage = if self.model_ready { Stage::Talking } else { Stage::Awaiting { by } };
    }

    fn answer(&mut self) {
        self.stage = Stage::Answered;
        self.out.push_back(Output::Answer);
    }

    fn apologise(&mut self, now: Moment) {
        self.out.push_back(Output::Apologise);
        self.leave(now, EndCause::ModelFailed);
    }

    fn leave(&mut self, now: Moment, cause: EndCause) {
        self.stage = Stage::Leaving { cause, by: now + LAST_WORDS };
    }

    /// The last words are said. A caller who heard an apology may be helped by somebody else.
    fn said_goodbye(&mut self, now: Moment, cause: EndCause) {
        if cause != EndCause::ModelFailed || !self.has_fallback {
            return self.hang_up(cause);
        }
        self.stage = Stage::HandingOver { by: now + HANDED_OVER_WITHIN };
        self.out.push_back(Output::HandOver);
    }

    /// Ends a call from our side.
    fn hang_up(&mut self, cause: EndCause) {
        match self.stage {
            Stage::Ringing => self.out.push_back(Output::Reject(503)),
            Stage::Calling { .. } => self.out.push_back(Output::Cancel),
            Stage::Awaiting { .. }
            | Stage::Answered
            | Stage::Talking
            | Stage::Leaving { .. }
            | Stage::HandingOver { .. } => {
                self.out.push_back(Output::HangUp(q850(cause)));
            }
            Stage::Over => return,
        }
        self.end(cause);
    }

    fn end(&mut self, cause: EndCause) {
        self.stage = Stage::Over;
        self.out.push_back(Output::Ended(cause));
    }
}

/// The cause that a carrier's switch shows (ITU-T Q.850).
pub fn q850(cause: EndCause) -> u8 {
    match cause {
        EndCause::CallerHungUp
        | EndCause::CallerCancelled
        | EndCause::AgentHungUp
        | EndCause::Transferred
        | EndCause::Requested
        | EndCause::Withdrawn
        | EndCause::TooLong => 16,
        EndCause::Busy => 17,
        EndCause::NoAnswer => 19,
        EndCause::Rejected => 21,
        EndCause::Unreachable => 31,
        EndCause::NoAck | EndCause::SessionExpired => 102,
        EndCause::MediaLost => 27,
        EndCause::MediaRefused => 88,
        EndCause::ModelFailed | EndCause::Shutdown | EndCause::RelayRestart | EndCause::RelayFault => 41,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANSWER_WITHIN: Duration = Duration::from_secs(10);
    const LONGEST: Duration = Duration::from_secs(7200);

    fn drain(call: &mut Call) -> Vec<Output> {
        std::iter::from_fn(|| call.poll_output()).collect()
    }

    /// What came out for these inputs, all within a moment; the ring is left out.
    fn after(inputs: &[Input]) -> Vec<Output> {
        let mut call = Call::new(Moment::default(), ANSWER_WITHIN, LONGEST);
        assert_eq!(drain(&mut call), [Output::Ring]);
        for input in inputs {
            call.handle_input(Moment::from_millis(100), *input);
        }
        drain(&mut call)
    }

    use Input::*;

    #[test]
    fn a_call_is_answered_when_the_model_can_speak_and_ends_with_the_callers_bye() {
        assert_eq!(after(&[ModelReady, Acknowledged, HungUp]), [Output::Answer, Output::Ended(EndCause::CallerHungUp)]);
    }

    #[test]
    fn a_cancel_before_the_answer_ends_it_and_one_that_crosses_it_does_not() {
        assert_eq!(after(&[Cancelled, ModelReady, HungUp]), [Output::Ended(EndCause::CallerCancelled)]);
        assert_eq!(after(&[ModelReady, Cancelled]), [Output::Answer]);
        assert_eq!(
            after(&[ModelReady, Cancelled, NotAcknowledged]),
            [Output::Answer, Output::HangUp(102), Output::Ended(EndCause::NoAck)]
        );
    }

    #[test]
    fn without_a_model_the_caller_hears_an_apology() {
        let sorry = [Output::Answer, Output::Apologise, Output::HangUp(41), Output::Ended(EndCause::ModelFailed)];
        assert_eq!(after(&[ModelFailed, Acknowledged, Silent]), sorry);
        assert_eq!(after(&[ModelReady, ModelFailed, Acknowledged, Silent]), sorry);
        assert_eq!(after(&[ModelReady, Acknowledged, ModelFailed, Silent]), sorry);
    }

    #[test]
    fn after_the_apology_somebody_else_may_take_the_call() {
        let after = |inputs: &[Input]| {
            let mut call = Call::new(Moment::default(), ANSWER_WITHIN, LONGEST).with_fallback(true);
            drain(&mut call);
            for input in [ModelReady, Acknowledged, ModelFailed, Silent].iter().chain(inputs) {
                call.handle_input(Moment::from_millis(100), *input);
            }
            let timeout = call.next_timeout();
            (drain(&mut call)[2..].to_vec(), timeout)
        };
        assert_eq!(after(&[Silent]), (vec![Output::HandOver], Some(Moment::from_millis(25_100))));
        let taken = vec![Output::HandOver, Output::HangUp(16), Output::Ended(EndCause::Transferred)];
        assert_eq!(after(&[Transferred]).0, taken);
        let alone = vec![Output::HandOver, Output::HangUp(41), Output::Ended(EndCause::ModelFailed)];
        assert_eq!(after(&[NotTransferred]).0, alone);
        assert_eq!(after(&[HungUp]).0, [Output::HandOver, Output::Ended(EndCause::CallerHungUp)]);
    }

    #[test]
    fn a_model_that_never_comes_is_not_waited_for_longer_than_agreed() {
        let mut call = Call::new(Moment::default(), ANSWER_WITHIN, LONGEST);
        call.handle_input(Moment::from_millis(9_999), Timeout);
        assert_eq!(drain(&mut call), [Output::Ring]);
        call.handle_input(Moment::from_millis(10_000), Timeout);
        call.handle_input(Moment::from_millis(10_050), Acknowledged);
        assert_eq!(drain(&mut call), [Output::Answer, Output::Apologise]);
        call.handle_input(Moment::from_millis(18_050), Timeout);
        assert_eq!(drain(&mut call), [Output::HangUp(41), Output::Ended(EndCause::ModelFailed)]);
    }

    #[test]
    fn the_agent_hangs_up_when_its_last_word_is_spoken() {
        assert_eq!(after(&[ModelReady, Acknowledged, AgentEnds]), [Output::Answer]);
        assert_eq!(
            after(&[ModelReady, Acknowledged, AgentEnds, Silent]),
            [Output::Answer, Output::HangUp(16), Output::Ended(EndCause::AgentHungUp)]
        );
    }

    #[test]
    fn silence_between_sentences_ends_nothing() {
        assert_eq!(after(&[ModelReady, Acknowledged, Silent]), [Output::Answer]);
    }

    #[test]
    fn a_shutdown_before_the_answer_refuses_and_after_it_hangs_up() {
        assert_eq!(after(&[Shutdown]), [Output::Reject(503), Output::Ended(EndCause::Shutdown)]);
        assert_eq!(
            after(&[ModelReady, Shutdown]),
            [Output::Answer, Output::HangUp(41), Output::Ended(EndCause::Shutdown)]
        );
    }

    /// As `after`, of a call that we place.
    fn placed(inputs: &[Input]) -> Vec<Output> {
        let mut call = Call::outbound(Moment::default(), Duration::from_secs(45), ANSWER_WITHIN, LONGEST);
        assert_eq!(drain(&mut call), [Output::Dial]);
        for input in inputs {
            call.handle_input(Moment::from_millis(100), *input);
        }
        drain(&mut call)
    }

    #[test]
    fn a_call_of_ours_talks_when_it_is_answered_and_the_model_can_speak_in_either_order() {
        for inputs in [[ModelReady, PickedUp, HungUp], [PickedUp, ModelReady, HungUp]] {
            assert_eq!(placed(&inputs), [Output::Ended(EndCause::CallerHungUp)]);
        }
        let goodbye = [Output::HangUp(16), Output::Ended(EndCause::AgentHungUp)];
        assert_eq!(placed(&[ModelReady, PickedUp, AgentEnds, Silent]), goodbye);
    }

    #[test]
    fn whoever_does_not_answer_is_let_alone_after_a_while() {
        let mut call = Call::outbound(Moment::default(), Duration::from_secs(45), ANSWER_WITHIN, LONGEST);
        call.handle_input(Moment::from_millis(44_999), Timeout);
        assert_eq!(drain(&mut call), [Output::Dial]);
        call.handle_input(Moment::from_millis(45_000), Timeout);
        // A 200 that crosses our CANCEL is ended by whoever sent the CANCEL.
        call.handle_input(Moment::from_millis(45_010), PickedUp);
        assert_eq!(drain(&mut call), [Output::Cancel, Output::Ended(EndCause::NoAnswer)]);
    }

    #[test]
    fn a_refusal_of_our_call_is_told_by_its_status() {
        for (status, cause) in [
            (Some(486), EndCause::Busy),
            (Some(600), EndCause::Busy),
            (Some(480), EndCause::NoAnswer),
            (Some(603), EndCause::Rejected),
            (Some(403), EndCause::Rejected),
            (Some(404), EndCause::Unreachable),
            (Some(407), EndCause::Unreachable),
            (Some(503), EndCause::Unreachable),
            (None, EndCause::Unreachable),
        ] {
            assert_eq!(placed(&[Refused(status)]), [Output::Ended(cause)], "{status:?}");
        }
        assert_eq!(placed(&[PickedUp, Refused(Some(486))]), [], "it was answered already");
    }

    #[test]
    fn whoever_asked_for_a_call_ends_it_before_and_after_its_answer() {
        assert_eq!(placed(&[Requested]), [Output::Cancel, Output::Ended(EndCause::Withdrawn)]);
        assert_eq!(placed(&[PickedUp, Requested]), [Output::HangUp(16), Output::Ended(EndCause::Requested)]);
    }

    #[test]
    fn somebody_whom_we_called_hears_an_apology_when_there_is_no_model() {
        let sorry = [Output::Apologise, Output::HangUp(41), Output::Ended(EndCause::ModelFailed)];
        assert_eq!(
            placed(&[ModelFailed]),
            [Output::Cancel, Output::Ended(EndCause::ModelFailed)],
            "nobody is disturbed"
        );
        assert_eq!(placed(&[PickedUp, ModelFailed, Silent]), sorry);
        let mut call = Call::outbound(Moment::default(), Duration::from_secs(45), ANSWER_WITHIN, LONGEST);
        call.handle_input(Moment::from_millis(1000), PickedUp);
        assert_eq!(call.next_timeout(), Some(Moment::from_millis(11_000)));
        call.handle_input(Moment::from_millis(11_000), Timeout);
        assert_eq!(drain(&mut call), [Output::Dial, Output::Apologise]);
    }

    #[test]
    fn words_of_causes_are_those_of_the_record() {
        for cause in END_CAUSES {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_it_ends_once_and_every_state_has_a_way_out(ours: bool, fallback: bool, steps in proptest::collection::vec((0_usize..19, 0_u64..20_000), 0..60)) {
            const ALL: [Input; 19] = [
                ModelReady, ModelFailed, Acknowledged, NotAcknowledged, AnswerRefused, Cancelled, HungUp, MediaLost,
                AgentEnds, Silent, Transferred, SessionExpired, Shutdown, PickedUp, Refused(Some(486)), Refused(None),
                Requested, Timeout, NotTransferred,
            ];
            let mut call = if ours {
                Call::outbound(Moment::default(), Duration::from_secs(45), ANSWER_WITHIN, LONGEST)
            } else {
                Call::new(Moment::default(), ANSWER_WITHIN, LONGEST)
            }
            .with_fallback(fallback);
            let mut now = Moment::default();
            let mut out = Vec::new();
            for (input, wait) in steps {
                now += Duration::from_millis(wait);
                call.handle_input(now, ALL[input]);
                out.extend(drain(&mut call));
            }
            for _ in 0..5 {
                if let Some(at) = call.next_timeout() {
                    call.handle_input(at, Timeout);
                    out.extend(drain(&mut call));
                }
            }
            prop_assert!(call.is_over(), "a state without an exit");
            let ends = out.iter().filter(|output| matches!(output, Output::Ended(_))).count();
            prop_assert_eq!(ends, 1);
            prop_assert!(matches!(out.last(), Some(Output::Ended(_))));
            let finals = out.iter().filter(|output| matches!(output, Output::Answer | Output::Reject(_))).count();
            prop_assert!(finals <= 1, "an INVITE has one final answer");
        }
    }
}
