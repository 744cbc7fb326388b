//! Listens to a voice note before the conversation goes on: asks Meta where it is, has the model transcribe it.
//!
//! Listening costs money and may be asked for twice, so it is claimed. Whatever becomes of it, the person is answered: without
//! the words the agent is told that there was a message it could not hear.

use ihuza_core::{
    channel::Provider,
    error_class::{Classified, ErrorClass},
    json::{obj, str_at, u32_at},
    locale,
    log::{Event, Level},
    openai::{self, Transcription},
    send::Refused,
    turn, whatsapp,
    whatsapp_message::VoiceNote,
};
use ihuza_edge::{
    claim,
    consume::Verdict,
    context::Cx,
    database, model,
    outgoing::{self, File, Forwarded},
    queue::Envelope,
};
use serde_json::Value;

/// Largest file that is fetched: WhatsApp's own limit for audio (Meta, cloud-api/reference/media).
const FILE_LIMIT_BYTES: u32 = 16 * 1024 * 1024;

/// The envelope to go on with: as it is, or with what was said in place of the voice note.
pub async fn heard(cx: &Cx, envelope: Envelope) -> Result<Envelope, Verdict> {
    let Some(note) = turn::voice_note(&envelope.body) else { return Ok(envelope) };
    let missing = ["OPENAI_API_KEY", "WHATSAPP_ACCESS_TOKEN"].into_iter().find(|name| cx.config.find(name).is_none());
    if let Some(name) = missing {
        cx.log(Level::Info, Event::VoiceNoteSkipped, &format!("nobody listens to it: {name} is not set"), &[]);
        return Ok(envelope);
    }
    let field = |name: &str| envelope.body.get(name).into();
    let work = [&cx.correlation_id, ":voice-note"].concat();
    let lease_token = claim::lease_token(&work);
    let p = obj(&mut [
        ("provider", field("provider")),
        ("provider_message_id", field("provider_message_id")),
        ("to", field("to")),
        ("mime_type", (&note.mime_type).into()),
        ("most_attempts", MOST_ATTEMPTS.into()),
        ("lease_token", (&lease_token).into()),
        ("correlation_id", (&cx.correlation_id).into()),
    ]);
    let claimed = match database::rpc(cx, "begin_voice_note", &p).await {
        Ok(claimed) => claimed,
        Err(error) => {
            claim::unheard(&work, lease_token);
            return Err(Verdict::after(&error, &envelope));
        }
    };
    match str_at(&claimed, "decision").unwrap_or_default() {
        "go" => {}
        "busy" => {
            let in_s = u32_at(&claimed, "retry_after_s").unwrap_or(5).max(1);
            return Err(Verdict::Again { in_s, why: "somebody listens to it, or the model has a pause".to_owned() });
        }
        decision => {
            let said = format!("nobody listens to it: {decision}");
            cx.log(Level::Info, Event::VoiceNoteSkipped, &said, &[("decision", decision.into())]);
            return Ok(envelope);
        }
    }
    let listened = listen(cx, &note).await;
    let attempts = u32_at(&claimed, "attempts").unwrap_or(1);
    let (outcome, result) = match listened {
        Ok(said) => ("transcribed", Ok(said)),
        Err(down) if passes(&down.classified) && attempts < MOST_ATTEMPTS => ("again", Err(down)),
        Err(down) => ("failed", Err(down)),
    };
    let mut p = obj(&mut [
        ("provider", field("provider")),
        ("provider_message_id", field("provider_message_id")),
        ("lease_token", lease_token.into()),
        ("outcome", outcome.into()),
        ("model", cx.config.text("OPENAI_TRANSCRIPTION_MODEL").into()),
    ]);
    let more = match &result {
        Ok(said) => {
            obj(&mut [("usage", said.usage.clone().into()), ("providers", vec![model::outcome(Ok(()))].into())])
        }
        Err(down) => obj(&mut [
            ("error_class", down.classified.class.as_str().into()),
            ("error_reason", down.classified.reason.into()),
            ("providers", down.is_the_models.then(|| vec![model::outcome(Err(&down.classified))]).into()),
        ]),
    };
    if let (Some(p), Value::Object(more)) = (p.as_object_mut(), more) {
        p.extend(more);
    }
    if let Err(error) = database::rpc(cx, "finish_voice_note", &p).await {
        // What was said matters more than what it cost; the lease ends by itself.
        cx.log(Level::Warn, Event::DatabaseFailed, &format!("a voice note is not recorded: {error}"), &[]);
    }
    match result {
        Ok(said) => {
            let characters = said.text.chars().count();
            cx.log(
                Level::Info,
                Event::VoiceNoteHeard,
                "a voice note was transcribed",
                &[("characters", characters.into())],
            );
            Ok(Envelope { body: turn::listened(&envelope.body, &said.text), ..envelope })
        }
        Err(down) => {
            cx.log(
                Level::Warn,
                Event::VoiceNoteFailed,
                &format!("a voice note could not be listened to: {}, attempt {attempts}", down.classified.reason),
                &[("class", down.classified.class.as_str().into()), ("outcome", outcome.into())],
            );
            if outcome == "again" {
                let in_s = AGAIN_IN_S.saturating_mul(attempts);
                return Err(Verdict::Again { in_s, why: "a voice note could not be listened to".to_owned() });
            }
            Ok(envelope)
        }
    }
}

/// Times that a voice note is tried before the conversation goes on without the words.
const MOST_ATTEMPTS: u32 = 3;
const AGAIN_IN_S: u32 = 5;

/// Listening changes nothing, so what may or may not have happened is asked again as well.
fn passes(down: &Classified) -> bool {
    matches!(down.class, ErrorClass::Retryable | ErrorClass::Unknown)
}

struct Down {
    classified: Classified,
    is_the_models: bool,
}

async fn listen(cx: &Cx, note: &VoiceNote) -> Result<Transcription, Down> {
    let metas = |refused: Refused| Down { classified: refused.classified, is_the_models: false };
    let models = |refused: Refused| Down { classified: refused.classified, is_the_models: true };
    let timeout_ms = cx.config.number("VOICE_NOTE_TIMEOUT_MS");
    let base_url = cx.config.text("WHATSAPP_BASE_URL").trim_end_matches('/');
    let where_it_is = [base_url, &whatsapp::media_path(cx.config.text("GRAPH_API_VERSION"), &note.media_id)].concat();
    let bearer = ["Bearer ", cx.config.text("WHATSAPP_ACCESS_TOKEN")].concat();
    let headers = outgoing::headers(&[("authorization", &bearer)]);
    let answer = outgoing::get(Some(cx.slots()), &where_it_is, &headers, timeout_ms)
        .await
        .map_err(|failure| metas(Refused::transport(Provider::Whatsapp, failure)))?;
    let url = whatsapp::parse_media_url(answer.status, answer.body.as_bytes(), base_url).map_err(metas)?;

    let file =
        File { url: &url, headers: &headers, name: openai::file_name(&note.mime_type), limit_bytes: FILE_LIMIT_BYTES };
    let to = [cx.config.text("OPENAI_BASE_URL").trim_end_matches('/'), openai::TRANSCRIPTIONS_PATH].concat();
    let bearer = ["Bearer ", cx.config.text("OPENAI_API_KEY")].concat();
    let to_headers = outgoing::headers(&[("authorization", &bearer), ("x-client-request-id", &cx.correlation_id)]);
    let mut fields = vec![("model", cx.config.text("OPENAI_TRANSCRIPTION_MODEL")), ("response_format", "json")];
    fields.extend(locale::ALL.map(|locale| (openai::TRANSCRIPTION_LANGUAGES, locale.as_str())));
    let fields = outgoing::headers(&fields);
    match outgoing::forward(Some(cx.slots()), &file, &to, &to_headers, &fields, timeout_ms).await {
        Forwarded::NotFetched(Ok(answer)) => Err(metas(Refused::answered(Provider::Whatsapp, answer.status, None))),
        Forwarded::NotFetched(Err(failure)) => Err(metas(Refused::transport(Provider::Whatsapp, failure))),
        Forwarded::Handed(Err(failure)) => Err(models(Refused::transport(Provider::Openai, failure))),
        Forwarded::Handed(Ok(answer)) => {
            openai::parse_transcription(answer.status, answer.body.as_bytes()).map_err(models)
        }
    }
}
