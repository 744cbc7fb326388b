//! Whether a call is taken, decided once: who is called, who calls, which agent; then the vendor is told.

use ihuza_core::{
    json::{flag_at, obj, str_at, string_at},
    log::{Event, Level},
    openai_sip::{self, Action, Answer, Reject},
    realtime::{self, Defaults, Opened},
    sideband::{self, Setup},
};
use ihuza_edge::{context::Cx, database, host, model, pause};
use serde_json::{Map, Value};

use crate::line;

/// How long the database may take for each of its tries: the caller hears it ring meanwhile.
const DATABASE_MS: u32 = 2_500;
/// How long the vendor may be asked to accept, in all.
const ACCEPT_MS: i64 = 9_000;
/// Earlier messages that the agent is told of.
const HISTORY_LIMIT: i64 = 10;

/// What was decided.
pub enum Decided {
    /// Taken: it can be observed. Our id of the call, and what it is observed with.
    Taken { call_id: String, setup: Setup },
    /// Not taken, for this reason.
    Rejected(Reject),
    /// Its record says that it was over before.
    Ended,
    /// Nobody waits any more, or somebody else has decided.
    Missed(&'static str),
    /// The vendor did not take our word.
    Failed(&'static str),
}

/// What the object has found out about a call, and how the session is to be.
pub struct Admitted {
    pub call_id: String,
    opened: Opened,
    person: Option<String>,
}

/// Asks the database: the first half, which may be asked again.
pub async fn admit(cx: &Cx, asked: &Value) -> Result<Admitted, Decided> {
    let config = &cx.config;
    let mut p: Map<String, Value> = asked.as_object().cloned().unwrap_or_default();
    let mut put = |name: &str, value: Value| p.insert(name.to_owned(), value);
    put("correlation_id", cx.correlation_id.as_str().into());
    put("model", config.text("OPENAI_REALTIME_MODEL").into());
    put("voice", config.text("OPENAI_REALTIME_VOICE").into());
    put("history_limit", HISTORY_LIMIT.into());
    put("session_idle_hours", config.number("SESSION_IDLE_HOURS").into());
    if config.find("AGENT_TOOLS_URL").is_some() {
        put("mcp", realtime::token_request());
    }
    let limit_ms = config.number("DATABASE_TIMEOUT_MS").min(DATABASE_MS);
    let admitted = match database::rpc_within(cx, "admit_openai_call", &Value::Object(p), limit_ms).await {
        Ok(admitted) => admitted,
        Err(error) => {
            cx.log(Level::Error, Event::DatabaseFailed, &format!("a call could not be admitted: {error}"), &[]);
            return Err(Decided::Rejected(Reject::NotReady));
        }
    };
    match str_at(&admitted, "decision") {
        Some("go") => {}
        Some("ended") => return Err(Decided::Ended),
        _ => {
            let reason = str_at(&admitted, "reason").and_then(Reject::from_name);
            return Err(Decided::Rejected(reason.unwrap_or(Reject::NotReady)));
        }
    }
    let opened = realtime::opened(
        &admitted,
        &Defaults {
            model: config.text("OPENAI_REALTIME_MODEL"),
            voice: config.text("OPENAI_REALTIME_VOICE"),
            audio_format: None,
            turn_detection: config.text("OPENAI_REALTIME_TURN_DETECTION"),
            transcription_model: config.text("OPENAI_REALTIME_TRANSCRIPTION_MODEL"),
            tools: &[sideband::END_CALL],
            mcp_url: config.find("AGENT_TOOLS_URL").unwrap_or_default(),
        },
        host::now(),
    );
    let person = admitted.get("profile").and_then(|profile| str_at(profile, "id")).map(model::safety_identifier);
    cx.log(
        Level::Info,
        Event::VoiceCallOpened,
        "a call is open",
        &[
            ("call_id", admitted.get("call_id").into()),
            ("session_id", admitted.get("session").and_then(|session| session.get("id")).into()),
            ("created", flag_at(&admitted, "created").into()),
            ("language", opened.locale.into()),
            ("model", (&opened.model).into()),
        ],
    );
    Ok(Admitted { call_id: string_at(&admitted, "call_id").unwrap_or_default(), opened, person })
}

impl Admitted {
    /// What the call is observed with.
    pub fn setup(&self, cx: &Cx) -> Setup {
        let prefixes = cx.config.text("OPENAI_SIP_TRANSFER_PREFIXES").split(',');
        Setup {
            instructions: self.opened.instructions.clone(),
            locale: self.opened.locale,
            transcription_model: cx.config.text("OPENAI_REALTIME_TRANSCRIPTION_MODEL").to_owned(),
            transfer_prefixes: prefixes
                .map(|prefix| prefix.trim().to_owned())
                .filter(|prefix| !prefix.is_empty())
                .collect(),
        }
    }

    /// Tells the vendor. `before`: our word may have reached it already.
    pub async fn accept(self, cx: &Cx, sid: &str, mut before: bool) -> Decided {
        let setup = self.setup(cx);
        let mut session = self.opened.session;
        let mut hints = true;
        let started = host::now_ms();
        loop {
            let done = line::act(cx, sid, Action::Accept, Some(&session), self.person.as_deref()).await;
            match done.answer {
                Answer::Done => break,
                Answer::DecidedBefore if before => break,
                Answer::DecidedBefore => return Decided::Missed("decided_elsewhere"),
                Answer::Gone => return Decided::Missed("gone"),
                Answer::Refused(_) if done.status == 400 && hints => {
                    // A language of ours may be none of the transcription's.
                    hints = false;
                    session = openai_sip::without_hints(&session);
                }
                Answer::Again(_) if host::now_ms() - started < ACCEPT_MS => {
                    before = true;
                    pause::for_ms(300).await;
                }
                Answer::Again(why) | Answer::Refused(why) => {
                    // The trunk shall not wait in vain, unless our word was heard after all.
                    let reject = Reject::NotReady.body();
                    let last = line::act(cx, sid, Action::Reject, Some(&reject), None).await;
                    if before && last.answer == Answer::DecidedBefore {
                        break;
                    }
                    cx.log(
                        Level::Error,
                        Event::VoiceCallRejected,
                        &format!("a call could not be accepted: {why}"),
                        &[("status", done.status.into())],
                    );
                    return Decided::Failed(why);
                }
            }
        }
        Decided::Taken { call_id: self.call_id, setup }
    }
}

/// Tells the vendor that a call is not taken.
pub async fn reject(cx: &Cx, sid: &str, reason: Reject) {
    let done = line::insist(cx, sid, Action::Reject, Some(&reason.body())).await;
    cx.log(
        Level::Warn,
        Event::VoiceCallRejected,
        "a call is not taken",
        &[
            ("reason", reason.as_str().into()),
            ("sip_status", reason.sip_status().into()),
            ("told", (done.answer == Answer::Done).into()),
        ],
    );
}

/// What the webhook is answered.
pub fn answer(decided: &Decided) -> Value {
    match decided {
        Decided::Taken { call_id, .. } => {
            obj(&mut [("decision", "accepted".into()), ("call_id", call_id.as_str().into())])
        }
        Decided::Rejected(reason) => obj(&mut [
            ("decision", "rejected".into()),
            ("reason", reason.as_str().into()),
            ("sip_status", reason.sip_status().into()),
        ]),
        Decided::Ended => obj(&mut [("decision", "ended".into())]),
        Decided::Missed(why) => obj(&mut [("decision", "missed".into()), ("reason", (*why).into())]),
        Decided::Failed(why) => obj(&mut [("decision", "failed".into()), ("reason", (*why).into())]),
    }
}
