//! The record of a call in the words of the session function (docs/api.md, "openai-realtime-sip").

use chrono::{DateTime, SecondsFormat};
use serde_json::{Value, json};

use super::entry::Entry;
use crate::backend::{LanguageSource, Speaker};
use crate::sip::call::EndCause;

/// One event of a batch. A note to ourselves is none.
pub fn event(seq: u64, entry: &Entry) -> Value {
    let mut event = match entry {
        Entry::Said { speaker, text, locale, source, interrupted, .. } => {
            let role = match speaker {
                Speaker::Caller => "user",
                Speaker::Agent => "assistant",
            };
            let mut said = json!({"type": "transcript", "role": role, "text": text, "interrupted": interrupted});
            if let (Some(locale), Some(said)) = (locale, said.as_object_mut()) {
                said.insert("language".to_owned(), locale.as_str().into());
                let source = source.unwrap_or(LanguageSource::Detected);
                said.insert("language_source".to_owned(), source.as_str().into());
            }
            said
        }
        Entry::Used { usage, .. } => json!({"type": "response.done", "usage": usage.to_value()}),
        // Who calls whom stands beside the events, once a request.
        Entry::Opened { trunk, direction, reference, .. } => {
            json!({"type": "opened", "trunk": trunk, "direction": direction, "reference": reference})
        }
        Entry::Answered { .. } => json!({"type": "answered"}),
        Entry::Language { locale, .. } => json!({"type": "language", "language": locale.as_str()}),
        Entry::Digit { .. } => json!({"type": "digit"}),
        Entry::Tool { call_id, name, took_ms, ok, .. } => {
            json!({"type": "tool", "tool_call_id": call_id, "name": name, "took_ms": took_ms, "ok": ok})
        }
        Entry::Transferred { outcome, status, .. } => {
            json!({"type": "transferred", "outcome": outcome, "status": status})
        }
        Entry::Consent { state, locale, .. } => json!({
            "type": "consent", "kind": "recording", "state": state.as_str(), "method": state.method(),
            "language": locale.as_str(),
        }),
        Entry::Recording { file, .. } => json!({"type": "recording", "state": "begun", "file": file}),
        Entry::Recorded { file, duration_ms, failure, .. } => {
            let state = if failure.is_some() { "failed" } else { "ended" };
            json!({"type": "recording", "state": state, "file": file, "duration_ms": duration_ms, "reason": failure})
        }
        Entry::Ended { cause, media, .. } => {
            json!({"type": "ended", "cause": self::cause(*cause, true), "media": media})
        }
        Entry::Posted { .. } | Entry::Closed => Value::Null,
    };
    if let Some(fields) = event.as_object_mut() {
        fields.insert("seq".to_owned(), seq.into());
        if let Some(at) = entry.at_ms().and_then(time) {
            fields.insert("at".to_owned(), at.into());
        }
    }
    event
}

/// RFC 3339 of milliseconds since 1970; none where there is no such time.
pub fn time(at_ms: i64) -> Option<String> {
    Some(DateTime::from_timestamp_millis(at_ms)?.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// The function's word for a cause; several of ours are one to it, and ours goes along as the reason. A call that nobody
/// answered has a word of its own, whatever ended it: to the function all others were conversations.
pub fn cause(cause: EndCause, answered: bool) -> &'static str {
    match cause {
        EndCause::RelayRestart
        | EndCause::RelayFault
        | EndCause::Shutdown
        | EndCause::MediaLost
        | EndCause::ModelFailed
            if !answered =>
        {
            "setup_failed"
        }
        EndCause::CallerHungUp => "caller_hangup",
        EndCause::CallerCancelled => "canceled",
        EndCause::AgentHungUp => "agent_hangup",
        EndCause::Transferred => "transferred",
        EndCause::NoAck | EndCause::MediaRefused => "setup_failed",
        EndCause::MediaLost | EndCause::SessionExpired => "media_lost",
        EndCause::ModelFailed => "model_unavailable",
        EndCause::TooLong => "max_duration",
        EndCause::Shutdown => "shutdown",
        EndCause::RelayRestart | EndCause::RelayFault => "relay_restarted",
        EndCause::NoAnswer => "no_answer",
        EndCause::Busy => "busy",
        EndCause::Rejected => "rejected",
        EndCause::Unreachable => "setup_failed",
        EndCause::Withdrawn => "canceled",
        EndCause::Requested => "agent_hangup",
    }
}

#[cfg(test)]
mod tests {
    use ihuza_core::locale::Locale;
    use ihuza_core::realtime::{CAUSES, events_fields};

    use super::*;
    use crate::backend::Usage;
    use crate::journal::entry::Direction;
    use crate::journal::entry::Origin;
    use crate::sip::call::END_CAUSES;
    use crate::sip::consent::State;

    fn entries() -> Vec<Entry> {
        let at_ms = 1_795_000_000_123;
        vec![
            Entry::Opened {
                correlation_id: "c".into(),
                call_sid: "s".into(),
                origin: Origin::MtnSip,
                trunk: "mtn".into(),
                from: Some("+250788123456".into()),
                to: "+250788000100".into(),
                locale: Locale::Rw,
                direction: Direction::Outbound,
                reference: Some("order 7".into()),
                at_ms,
            },
            Entry::Answered { at_ms },
            Entry::Said {
                speaker: Speaker::Caller,
                text: "Muraho".into(),
                locale: Some(Locale::Rw),
                source: Some(LanguageSource::Transcription),
                interrupted: false,
                at_ms,
            },
            Entry::Said {
                speaker: Speaker::Agent,
                text: "Yego".into(),
                locale: None,
                source: None,
                interrupted: true,
                at_ms,
            },
            Entry::Digit { at_ms },
            Entry::Tool { call_id: "t".into(), name: "search_services".into(), took_ms: 12, ok: true, at_ms },
            Entry::Transferred { outcome: "confirmed".into(), status: None, at_ms },
            Entry::Used {
                usage: Usage {
                    text_in: 1,
                    audio_in: 2,
                    cached_text_in: 3,
                    cached_audio_in: 4,
                    text_out: 5,
                    audio_out: 6,
                },
                at_ms,
            },
            Entry::Ended { cause: EndCause::CallerHungUp, media: Value::Null, at_ms },
            Entry::Consent { state: State::Announced, locale: Locale::Rw, at_ms },
            Entry::Recording { file: "c.wav".into(), at_ms },
            Entry::Recorded { file: "c.wav".into(), duration_ms: 1500, failure: None, at_ms },
            Entry::Language { locale: Locale::Fr, at_ms },
        ]
    }

    #[test]
    fn the_function_reads_every_event_as_it_is_meant() {
        let events: Vec<Value> = entries().iter().zip(1..).map(|(entry, seq)| event(seq, entry)).collect();
        let read = events_fields(&json!({"call_sid": "s", "events": events})).unwrap();
        let read = read["events"].as_array().unwrap();
        assert_eq!(read.len(), events.len());
        let types: Vec<_> = read.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(
            types,
            [
                "opened",
                "answered",
                "transcript",
                "transcript",
                "digit",
                "tool",
                "transferred",
                "response.done",
                "ended",
                "consent",
                "recording",
                "recording",
                "language"
            ]
        );
        assert!(
            read.iter().all(|event| event["at"].as_str().is_some_and(|at| at.starts_with("2026-11-18T"))),
            "{read:?}"
        );
        assert_eq!(
            (&read[2]["role"], &read[2]["language"], &read[2]["language_source"]),
            (&json!("user"), &json!("rw"), &json!("transcription"))
        );
        assert_eq!((&read[3]["role"], &read[3]["interrupted"]), (&json!("assistant"), &json!(true)));
        assert_eq!((&read[0]["direction"], &read[0]["reference"]), (&json!("outbound"), &json!("order 7")));
        let usage = &read[7]["usage"];
        assert_eq!(
            (&usage["input_token_details"]["audio_tokens"], &usage["output_token_details"]["text_tokens"]),
            (&json!(2), &json!(5))
        );
        assert_eq!(usage["input_token_details"]["cached_tokens_details"]["audio_tokens"], 4);
        let told = |name: &str| read[9][name].as_str().unwrap().to_owned();
        assert_eq!(["kind", "state", "method", "language"].map(told), ["recording", "announced", "announcement", "rw"]);
        assert_eq!((&read[11]["file"], &read[11]["duration_ms"]), (&json!("c.wav"), &json!(1500)));
        assert!(!json!(events).to_string().contains("+250"), "who calls whom stands beside the events");
    }

    #[test]
    fn every_cause_is_one_that_the_function_knows() {
        for ours in END_CAUSES {
            for answered in [true, false] {
                assert!(CAUSES.contains(&cause(ours, answered)), "{ours:?}");
                assert_ne!(cause(ours, answered), "unknown");
            }
        }
        assert_eq!(
            (cause(EndCause::RelayRestart, true), cause(EndCause::RelayRestart, false)),
            ("relay_restarted", "setup_failed")
        );
    }

    #[test]
    fn a_note_to_ourselves_is_no_event() {
        assert_eq!(event(1, &Entry::Closed), Value::Null);
    }
}
