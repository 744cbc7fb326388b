//! OpenAI's Realtime API: `POST /v1/realtime/client_secrets` for keys, and `GET /v1/realtime` as a WebSocket.
//!
//! The shapes are the GA ones of package `openai` 3.52.0 (`types/realtime`). What the model hears is decided by the energy
//! of the sound; what that means, by a [`Script`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use super::check::Refusal;
use crate::control::Control;
use crate::http::{Answer, Request, Stream};

mod audio;
mod event;
mod items;
pub mod leg;
pub mod mcp;
mod response;
mod script;
pub mod session;
pub mod settings;
pub mod socket;
mod vad;

pub use script::{Act, Script, Turn};
pub use socket::Seen;

use script::{Ordered, Progress};
use settings::{MODELS, keys, refusal, word};

/// Where keys are minted.
pub const KEYS: &str = "/v1/realtime/client_secrets";
/// Where sessions are held.
pub const SOCKET: &str = "/v1/realtime";
/// What a fault calls the opening of a connection.
pub const HANDSHAKE: &str = "handshake";
/// Sessions of which a record is kept.
const MOST_SEEN: usize = 1000;

/// What a session is like beside its settings.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The real one's is an hour.
    pub session_limit: Duration,
    /// From the end of a turn, or the request, to the first sound.
    pub think: Duration,
    /// Sound comes that many times faster than it is played.
    pub speed: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self { session_limit: Duration::from_secs(3600), think: Duration::from_millis(120), speed: 8 }
    }
}

/// A key that was minted: it may start sessions, any number, until it expires.
#[derive(Clone)]
struct Minted {
    /// Unix seconds.
    expires_at: i64,
    session: Value,
    /// One conversation, however often its connection breaks.
    progress: Option<Arc<Mutex<Progress>>>,
}

/// Keys, scripts, and the sessions that are and were.
pub struct Realtime {
    control: Arc<Control>,
    state: Mutex<State>,
    /// Raised to cut every connection.
    cuts: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    rules: Rules,
    scripts: VecDeque<Script>,
    minted: HashMap<String, Minted>,
    /// Oldest first.
    keys: Vec<String>,
    seen: VecDeque<Arc<Mutex<Seen>>>,
}

impl Realtime {
    pub fn new(control: Arc<Control>) -> Self {
        Self { control, state: Mutex::default(), cuts: watch::Sender::new(0) }
    }

    /// The next call that has no script yet follows this one; without any, [`Script::default`].
    pub fn script(&self, script: Script) {
        self.state().scripts.push_back(script);
    }

    /// For sessions that begin from now on.
    pub fn set_rules(&self, rules: Rules) {
        self.state().rules = rules;
    }

    pub fn rules(&self) -> Rules {
        self.state().rules
    }

    /// Ends every connection without a word.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Every ephemeral key so far, oldest first.
    pub fn minted(&self) -> Vec<String> {
        self.state().keys.clone()
    }

    /// Lets a key expire.
    pub fn expire(&self, key: &str) {
        if let Some(minted) = self.state().minted.get_mut(key) {
            minted.expires_at = 0;
        }
    }

    /// What was said over each connection so far, oldest first.
    pub fn sessions(&self) -> Vec<Seen> {
        self.state().seen.iter().map(|seen| seen.lock().unwrap_or_else(PoisonError::into_inner).clone()).collect()
    }

    /// The conversation that follows the next script.
    pub fn next_progress(&self) -> Arc<Mutex<script::Progress>> {
        let script = self.state().scripts.pop_front().unwrap_or_default();
        Arc::new(Mutex::new(Progress::new(script)))
    }

    /// A record of a connection that begins.
    pub fn record(&self, id: &str, with_ephemeral_key: bool) -> Arc<Mutex<Seen>> {
        let mut state = self.state();
        let seen = Arc::new(Mutex::new(Seen::new(id, with_ephemeral_key)));
        state.seen.push_back(seen.clone());
        if state.seen.len() > MOST_SEEN {
            state.seen.pop_front();
        }
        seen
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A key that can start sessions for a while.
    pub fn mint(&self, request: &Request) -> std::result::Result<Value, Refusal> {
        let (key, minted) = mint(request)?;
        let answer = json!({"value": key, "expires_at": minted.expires_at, "session": minted.session});
        let mut state = self.state();
        state.keys.push(key.clone());
        state.minted.insert(key, minted);
        Ok(answer)
    }

    /// The handshake. A wrong key is refused before, a wrong model or protocol behind the upgrade.
    pub fn handshake(&self, request: &Request, api_key: &str) -> std::result::Result<Answer, Refusal> {
        let unauthorized =
            |message: &str| Refusal { status: 401, ..refusal("invalid_api_key", "Authorization", message) };
        match request.bearer() {
            Some(key) if key == api_key => {}
            Some(key) => match self.state().minted.get(key) {
                Some(minted) if minted.expires_at > Utc::now().timestamp() => {}
                Some(_) => return Err(unauthorized("The ephemeral key has expired")),
                None => return Err(unauthorized("Incorrect API key provided")),
            },
            None => return Err(unauthorized("Missing bearer authentication in header")),
        }
        socket::accept(request).ok_or_else(|| Refusal {
            status: 426,
            ..refusal("upgrade_required", "Upgrade", "This is a WebSocket: upgrade with version 13")
        })
    }

    /// Speaks over an upgraded connection to its end.
    pub async fn talk(&self, request: Request, stream: Stream) {
        let opened = self.open(&request);
        socket::serve(opened, self.control.clone(), stream, self.cuts.subscribe()).await;
    }

    fn open(&self, request: &Request) -> socket::Opened {
        let mut state = self.state();
        let rules = state.rules;
        let key = request.bearer().unwrap_or_default();
        let known = state.minted.get(key).cloned();
        let progress = match known.as_ref().and_then(|minted| minted.progress.clone()) {
            Some(progress) => progress,
            None => {
                let script = state.scripts.pop_front().unwrap_or_default();
                let progress = Arc::new(Mutex::new(Progress::new(script)));
                if let Some(minted) = state.minted.get_mut(key) {
                    minted.progress = Some(progress.clone());
                }
                progress
            }
        };
        let query = request.query.split('&').find_map(|pair| pair.strip_prefix("model=")).unwrap_or_default();
        let refused = if request.header("openai-beta").is_some() {
            Some(refusal("beta_api_shape_disabled", "OpenAI-Beta", "The Realtime Beta API is no longer supported."))
        } else if MODELS.contains(&query) {
            None
        } else {
            Some(refusal("model_not_found", "model", &format!("The model `{query}` does not exist.")))
        };
        let id = format!("sess_{}", Uuid::new_v4().simple());
        let seconds = i64::try_from(rules.session_limit.as_secs()).unwrap_or(3600);
        let mut settings = settings::defaults(&id, query, Utc::now().timestamp() + seconds);
        let with_ephemeral_key = known.is_some();
        if let Some(mut given) = known.map(|minted| minted.session) {
            // The address says which model, and the session has an id of its own.
            given.as_object_mut().into_iter().for_each(|given| given.retain(|name, _| name != "id" && name != "model"));
            settings::merge(&mut settings, &given);
        }
        drop(state);
        let seen = self.record(&id, with_ephemeral_key);
        socket::Opened { settings, rules, progress, seen, refused }
    }

    /// `POST /control/scripts`, `POST /control/rules`, `POST /control/cut`, `GET /control/sessions`.
    pub fn operate(&self, request: &Request) -> Option<Answer> {
        let done = |outcome: std::result::Result<(), String>| match outcome {
            Ok(()) => Answer::json(201, &json!({"ok": true})),
            Err(why) => Answer::json(400, &json!({ "error": why })),
        };
        let path = request.path.strip_prefix("/control").filter(|rest| rest.starts_with("/control"));
        Some(match (request.method.as_str(), path.unwrap_or(&request.path)) {
            ("POST", "/control/scripts") => {
                let read = serde_json::from_slice::<Ordered>(&request.body).map_err(|error| error.to_string());
                done(read.and_then(Script::try_from).map(|script| self.script(script)))
            }
            ("POST", "/control/rules") => done(self.order(&request.body)),
            ("POST", "/control/cut") => {
                self.cut();
                done(Ok(()))
            }
            ("GET", "/control/sessions") => Answer::json(200, &json!(self.sessions())),
            _ => return None,
        })
    }

    fn order(&self, body: &[u8]) -> std::result::Result<(), String> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Wanted {
            session_limit_ms: Option<u64>,
            think_ms: Option<u64>,
            speed: Option<u32>,
        }
        let wanted: Wanted = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let mut rules = self.rules();
        rules.session_limit = wanted.session_limit_ms.map_or(rules.session_limit, Duration::from_millis);
        rules.think = wanted.think_ms.map_or(rules.think, Duration::from_millis);
        rules.speed = wanted.speed.unwrap_or(rules.speed).max(1);
        self.set_rules(rules);
        Ok(())
    }
}

fn mint(request: &Request) -> std::result::Result<(String, Minted), Refusal> {
    if request.header("openai-beta").is_some() {
        return Err(refusal("beta_api_shape_disabled", "OpenAI-Beta", "The beta API shape is disabled."));
    }
    if let Some(person) = request.header("openai-safety-identifier")
        && (person.len() > 128 || person.starts_with('+'))
    {
        return Err(refusal(
            "invalid_value",
            "OpenAI-Safety-Identifier",
            "A hash of at most 128 characters is expected.",
        ));
    }
    let body: Value = serde_json::from_slice(&request.body)
        .map_err(|_| refusal("invalid_json", "body", "We could not parse the JSON body"))?;
    let fields = keys(&body, "body", &["expires_after", "session"])?;
    let mut seconds = 600;
    if let Some(expiry) = fields.get("expires_after") {
        let expiry = keys(expiry, "expires_after", &["anchor", "seconds"])?;
        word(expiry, "anchor", &["created_at"])?;
        seconds = expiry.get("seconds").and_then(Value::as_i64).unwrap_or(600);
        if !(10..=7200).contains(&seconds) {
            return Err(refusal("invalid_value", "expires_after.seconds", "seconds must be from 10 to 7200"));
        }
    }
    let given = fields.get("session").cloned().unwrap_or_else(|| json!({"type": "realtime"}));
    settings::session(&given)?;
    let key = format!("ek_{}", Uuid::new_v4().simple());
    let mut effective = given.as_object().cloned().unwrap_or_default();
    effective.insert("id".to_owned(), format!("sess_{}", Uuid::new_v4().simple()).into());
    effective.insert("object".to_owned(), "realtime.session".into());
    let expires_at = Utc::now().timestamp() + seconds;
    Ok((key, Minted { expires_at, session: Value::Object(effective), progress: None }))
}

#[cfg(test)]
mod tests;
