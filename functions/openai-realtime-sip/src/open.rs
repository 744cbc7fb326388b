//! A call begins: one transaction finds or makes everything that belongs to it, then a key is minted.

use ihuza_core::{
    channel::Provider,
    error_class::{Classified, ErrorClass},
    json::{self, flag_at, obj, str_at},
    json_text::to_text,
    log::{Event, Level},
    problem::Problem,
    realtime::{self, AudioFormat, ClientSecret, Defaults},
    send::Refused,
    timestamp,
};
use ihuza_edge::{
    context::Cx,
    database,
    endpoint::{Call, Outcome},
    host, model, outgoing,
    reply::Reply,
    voice,
};
use serde_json::{Map, Value};

use crate::{Asker, asker};

/// Earlier messages that the agent is told of.
const HISTORY_LIMIT: i64 = 10;

pub fn open(call: Call) -> Result<Outcome, Problem> {
    let asker = asker(&call)?;
    let body = json::object(call.request.body()?)?;
    let mut p = realtime::call_fields(&body)?;
    if !p.contains_key("call_sid") {
        return Err(Problem::missing_field("call_sid", "the trunk's own id of the call"));
    }
    if asker == Asker::Trunk {
        // Our ids are for those who hold our keys.
        p.remove("call_id");
    }
    let config = &call.cx.config;
    let format = match json::optional_text(&body, "audio_format", 32)? {
        Some(name) => AudioFormat::from_name(&name).ok_or_else(|| {
            Problem::invalid_field("audio_format", "this audio_format is not known", "pcma, pcmu or pcm16")
        })?,
        None => AudioFormat::from_name(config.text("OPENAI_REALTIME_AUDIO_FORMAT")).unwrap_or(AudioFormat::Pcma),
    };
    let ordinal = json::integer(&body, "session").filter(|ordinal| (1..=1000).contains(ordinal)).unwrap_or(1);
    if let Some(agent) = json::optional_text(&body, "agent", 64)? {
        p.insert("agent".to_owned(), agent.into());
    }
    let mut put = |name: &str, value: Value| p.insert(name.to_owned(), value);
    put("correlation_id", call.cx.correlation_id.as_str().into());
    put("model", config.text("OPENAI_REALTIME_MODEL").into());
    put("voice", config.text("OPENAI_REALTIME_VOICE").into());
    put("audio_format", format.as_str().into());
    put("ordinal", ordinal.into());
    put("history_limit", HISTORY_LIMIT.into());
    put("session_idle_hours", config.number("SESSION_IDLE_HOURS").into());
    let with_key = asker == Asker::Relay || config.flag("VOICE_TRUNK_GETS_KEY");
    if with_key && config.find("AGENT_TOOLS_URL").is_some() {
        put("mcp", realtime::token_request());
    }
    Ok(Outcome::later(async move { begin(&call.cx, p, format, with_key).await }))
}

async fn begin(cx: &Cx, p: Map<String, Value>, asked: AudioFormat, with_key: bool) -> Result<Reply, Problem> {
    let opened =
        database::rpc(cx, "open_voice_call", &Value::Object(p)).await.map_err(|error| voice::refused(&error))?;
    if str_at(&opened, "decision") != Some("go") {
        return Err(Problem::new("call-ended", "The call is over", 409)
            .detail("this call has ended; its record is kept as it is")
            .hint("A new call has an id of its own"));
    }
    let null = Value::Null;
    let part = |name: &str| opened.get(name).unwrap_or(&null);
    let realtime::Opened { session, model: name, locale, .. } = realtime::opened(
        &opened,
        &Defaults {
            model: cx.config.text("OPENAI_REALTIME_MODEL"),
            voice: cx.config.text("OPENAI_REALTIME_VOICE"),
            audio_format: Some(asked),
            turn_detection: cx.config.text("OPENAI_REALTIME_TURN_DETECTION"),
            transcription_model: cx.config.text("OPENAI_REALTIME_TRANSCRIPTION_MODEL"),
            tools: &[],
            mcp_url: cx.config.find("AGENT_TOOLS_URL").unwrap_or_default(),
        },
        host::now(),
    );
    let profile = str_at(part("profile"), "id");
    let secret = if with_key { mint(cx, &session, profile).await } else { None };

    cx.log(
        Level::Info,
        Event::VoiceCallOpened,
        "a call is open",
        &[
            ("call_id", part("call_id").into()),
            ("session_id", part("session").get("id").into()),
            ("created", flag_at(&opened, "created").into()),
            ("language", locale.into()),
            ("model", (&name).into()),
            ("key_minted", secret.is_some().into()),
        ],
    );
    let mut answer = vec![
        ("callId", part("call_id").into()),
        ("model", (&name).into()),
        ("url", realtime::socket_url(cx.config.text("OPENAI_BASE_URL"), &name).into()),
        ("audio", session.get("audio").into()),
        ("expiresAt", secret.as_ref().and_then(expires_at).into()),
        ("locale", locale.into()),
        ("resumed", (!flag_at(&opened, "created")).into()),
        ("caller", obj(&mut [("known", profile.is_some().into()), ("memories", part("memories").into())]).into()),
        ("agent", part("agent").get("slug").into()),
    ];
    if with_key {
        // Whoever may hold the key may know what the agent is told.
        answer.push(("session", (&session).into()));
    }
    if let Some(secret) = &secret {
        answer.push(("ephemeralKey", secret.expose().into()));
    }
    Ok(Reply::json(200, &obj(&mut answer)).with_header("cache-control", "no-store"))
}

fn expires_at(secret: &ClientSecret) -> Option<String> {
    timestamp::parse_unix(&secret.expires_at.to_string()).map(timestamp::to_rfc3339)
}

/// A key for this session. Without one the call goes on: a relay may have a key of its own, or an apology to play.
async fn mint(cx: &Cx, session: &Value, profile_id: Option<&str>) -> Option<ClientSecret> {
    let config = &cx.config;
    let url = [config.text("OPENAI_BASE_URL").trim_end_matches('/'), realtime::CLIENT_SECRETS_PATH].concat();
    let bearer = ["Bearer ", config.text("OPENAI_API_KEY")].concat();
    let person = profile_id.map(model::safety_identifier);
    let mut headers = vec![
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
        ("x-client-request-id", cx.correlation_id.as_str()),
    ];
    if let Some(person) = &person {
        headers.push(("openai-safety-identifier", person));
    }
    let headers = outgoing::headers(&headers);
    let body = to_text(&realtime::client_secret_request(session, config.number("OPENAI_REALTIME_KEY_SECONDS")));
    let timeout_ms = config.number("OPENAI_REALTIME_TIMEOUT_MS");
    let started = host::now_ms();
    for attempt in 1..=2_u32 {
        let left_ms = u32::try_from(i64::from(timeout_ms) - (host::now_ms() - started)).unwrap_or(0);
        if attempt > 1 && left_ms < timeout_ms / 3 {
            break;
        }
        let down: Classified = match outgoing::send(Some(cx.slots()), &url, &headers, &body, left_ms.max(1)).await {
            Err(failure) => Refused::transport(Provider::Openai, failure).classified,
            Ok(answer) => match realtime::parse_client_secret(answer.status, answer.body.as_bytes()) {
                Ok(secret) => return Some(secret),
                Err(refused) => refused.classified,
            },
        };
        cx.log(
            Level::Error,
            Event::VoiceKeyFailed,
            &format!("no key for the model: {}, attempt {attempt}", down.reason),
            &[("class", down.class.as_str().into()), ("attempt", attempt.into())],
        );
        // A key that nobody uses costs nothing, so one is asked for again also where the first answer was lost.
        if down.class != ErrorClass::Retryable {
            break;
        }
    }
    None
}
