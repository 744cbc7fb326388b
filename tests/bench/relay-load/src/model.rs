//! What the model says, and when: a turn of five seconds in which the caller speaks, then the agent; every other turn of
//! the agent's is interrupted.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::clock::{MS, Nanos};
use crate::tag;

/// A turn.
pub const TURN: Nanos = 5000 * MS;
/// So long the caller speaks.
pub const CALLER_SPEAKS: Nanos = 1500 * MS;
/// From the end of the caller's words to the agent's first sound.
const THINKS: Nanos = 200 * MS;
/// Sound comes in pieces of 400 ms, ten times as fast as it is spoken.
const FRAMES_A_DELTA: u16 = 20;
const DELTA_EVERY: Nanos = 40 * MS;
/// The agent speaks for 2.8 s, so that the caller begins half a second later; or it would speak for 4.8 s and is interrupted.
const DELTAS: [u16; 2] = [7, 12];

/// A step of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The caller begins to speak, and interrupts the agent if that still does.
    CallerBegins,
    CallerEnds,
    /// A piece of the agent's sound, by its place.
    Delta(u16),
    AgentEnds,
}

/// What follows a step of this turn, and after how long.
pub fn next(step: Step, turn: u16) -> Option<(Step, Nanos)> {
    let deltas = if is_interrupted(turn) { DELTAS[1] } else { DELTAS[0] };
    match step {
        Step::CallerBegins => Some((Step::CallerEnds, CALLER_SPEAKS)),
        Step::CallerEnds => Some((Step::Delta(0), THINKS)),
        Step::Delta(place) if place + 1 < deltas => Some((Step::Delta(place + 1), DELTA_EVERY)),
        Step::Delta(_) => Some((Step::AgentEnds, DELTA_EVERY)),
        Step::AgentEnds => None,
    }
}

/// Whether the caller interrupts the agent in this turn.
pub fn is_interrupted(turn: u16) -> bool {
    turn % 2 == 1
}

/// The messages of a step.
pub fn messages(step: Step, turn: u16) -> Vec<String> {
    match step {
        Step::CallerBegins => {
            let mut messages = Vec::new();
            if let Some(before) = turn.checked_sub(1).filter(|before| is_interrupted(*before)) {
                messages.push(started());
                messages.push(done(before, "cancelled"));
            } else {
                messages.push(started());
            }
            messages
        }
        Step::CallerEnds => vec![
            r#"{"type":"input_audio_buffer.speech_stopped","event_id":"event_1","audio_end_ms":1,"item_id":"item_c"}"#
                .into(),
            r#"{"type":"input_audio_buffer.committed","event_id":"event_2","item_id":"item_c"}"#.into(),
            format!(
                r#"{{"type":"response.created","event_id":"event_3","response":{{"id":"resp_{turn}","status":"in_progress"}}}}"#
            ),
        ],
        Step::Delta(place) => vec![delta(turn, place, FRAMES_A_DELTA)],
        Step::AgentEnds => {
            let mut messages = vec![
                r#"{"type":"conversation.item.input_audio_transcription.completed","event_id":"event_4","item_id":"item_c","content_index":0,"transcript":"Which room is free on Saturday?"}"#.into(),
                format!(r#"{{"type":"response.output_audio_transcript.done","event_id":"event_5","response_id":"resp_{turn}","item_id":"item_{turn}","output_index":0,"content_index":0,"transcript":"The small one is free in the morning, and the large one all day."}}"#),
                format!(r#"{{"type":"response.output_audio.done","event_id":"event_6","response_id":"resp_{turn}","item_id":"item_{turn}","output_index":0,"content_index":0}}"#),
            ];
            // Of one that is interrupted the end is told with the interruption.
            if !is_interrupted(turn) {
                messages.push(done(turn, "completed"));
            }
            messages
        }
    }
}

/// A greeting of a second, whole at once.
pub fn greeting() -> Vec<String> {
    vec![
        r#"{"type":"response.created","event_id":"event_1","response":{"id":"resp_greeting","status":"in_progress"}}"#.into(),
        delta(u16::MAX, 0, 50).replace("_65535", "_greeting"),
        r#"{"type":"response.output_audio.done","event_id":"event_2","response_id":"resp_greeting","item_id":"item_greeting"}"#.into(),
        r#"{"type":"response.output_audio_transcript.done","event_id":"event_3","response_id":"resp_greeting","item_id":"item_greeting","transcript":"Good morning."}"#.into(),
        r#"{"type":"response.done","event_id":"event_4","response":{"id":"resp_greeting","status":"completed"}}"#.into(),
    ]
}

fn started() -> String {
    r#"{"type":"input_audio_buffer.speech_started","event_id":"event_0","audio_start_ms":1,"item_id":"item_c"}"#.into()
}

fn delta(turn: u16, place: u16, frames: u16) -> String {
    let sound: Vec<u8> = (0..frames).flat_map(|frame| tag::agent(turn, place * frames + frame)).collect();
    let mut message = format!(
        r#"{{"type":"response.output_audio.delta","event_id":"event_7","response_id":"resp_{turn}","item_id":"item_{turn}","output_index":0,"content_index":0,"delta":""#
    );
    STANDARD.encode_string(sound, &mut message);
    message.push_str(r#""}"#);
    message
}

fn done(turn: u16, status: &str) -> String {
    format!(
        r#"{{"type":"response.done","event_id":"event_8","response":{{"id":"resp_{turn}","status":"{status}","usage":{{"input_token_details":{{"text_tokens":250,"audio_tokens":152,"cached_tokens":320,"cached_tokens_details":{{"text_tokens":224,"audio_tokens":96}}}},"output_token_details":{{"text_tokens":30,"audio_tokens":80}}}}}}}}"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_leads_from_the_caller_to_the_end_of_the_agents_words_within_its_time() {
        for turn in [0, 1] {
            let (mut step, mut at, mut deltas) = (Step::CallerBegins, 0, 0);
            while let Some((next, after)) = next(step, turn) {
                (step, at) = (next, at + after);
                deltas += u16::from(matches!(step, Step::Delta(_)));
                for message in messages(step, turn) {
                    serde_json::from_str::<serde_json::Value>(&message).unwrap();
                }
            }
            assert_eq!((step, deltas), (Step::AgentEnds, DELTAS[usize::from(turn)]));
            assert!(at < TURN);
            let spoken = CALLER_SPEAKS + THINKS + u64::from(deltas * FRAMES_A_DELTA) * 20 * MS;
            assert_eq!(is_interrupted(turn), spoken > TURN, "the agent still speaks when it is interrupted");
        }
    }
}
