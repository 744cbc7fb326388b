//! OpenAI's own SIP: calls that wait for `accept` or `reject`, are observed over a socket, handed over and ended; and the
//! signed webhooks that tell of them.
//!
//! Shapes from the vendor's guide "Telephony and SIP" and package `openai` 3.52.0 (`types/realtime/call_*_params.py`,
//! `lib/_webhooks.py`). Not published, and ours: the status of `decision_already_made` (400), and that a socket for a call that
//! is not accepted, or over, is refused by 404.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::Utc;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_websockets::{Message, ServerBuilder};
use uuid::Uuid;

use super::check::Refusal;
use super::realtime::leg::Leg;
use super::realtime::mcp;
use super::realtime::session::{Out, Session};
use super::realtime::settings::{self, MODELS, keys, refusal};
use super::realtime::{Realtime, Seen};
use crate::callback::{Callback, Posted, Poster};
use crate::control::Control;
use crate::error::{Context, Result};
use crate::http::{Answer, Request, Stream};
use crate::keys::hmac_sha256;
use crate::runtime;
use crate::speech::Speech;

/// Where calls are decided about and ended.
pub const CALLS: &str = "/v1/realtime/calls/";

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It rings, and waits for a word.
    Ringing,
    Accepted,
    /// With this status of SIP.
    Rejected(u16),
    /// By the caller, or by us.
    Ended,
}

/// A call as it is.
#[derive(Clone, Debug)]
pub struct Known {
    pub stage: Stage,
    /// How often `accept` was taken.
    pub accepts: usize,
    /// The session it was accepted with.
    pub session: Value,
    /// Where it was to be handed over to.
    pub referred: Vec<String>,
    /// It was ended by `hangup`.
    pub hung_up: bool,
}

struct Call {
    known: Known,
    webhook_id: String,
    headers: Vec<(String, String)>,
    line: Option<mpsc::UnboundedSender<Said>>,
}

/// What a call's line is told.
enum Said {
    /// Somebody observes it from now on.
    Attach(mpsc::UnboundedSender<Out>),
    /// A message of the client's.
    Client(String),
    Caller(Speech),
    Key(String),
    End,
}

/// Every call.
pub struct Calls {
    control: Arc<Control>,
    state: Mutex<HashMap<String, Call>>,
    poster: Arc<Poster>,
    secret: OnceLock<String>,
    /// Raised to cut every socket; the calls go on.
    cuts: watch::Sender<u64>,
}

impl Calls {
    pub fn new(control: Arc<Control>) -> Result<Self> {
        let poster = Poster::new(0)?;
        Ok(Self { control, state: Mutex::default(), poster, secret: OnceLock::new(), cuts: watch::Sender::new(0) })
    }

    /// Where webhooks go, and what signs them (`whsec_…`).
    pub fn set_webhook(&self, url: String, secret: String) {
        self.poster.set_url(url);
        let _ = self.secret.set(secret);
    }

    /// A telephone rings: the id of the call. Nobody is told yet.
    pub fn ring(&self, from: &str, to: &str) -> String {
        let id = format!("rtc_u1_{}", Uuid::new_v4().simple());
        let headers = [
            ("From", format!("\"Caller\" <sip:{from}@ims.mtn.example.rw>;tag=9")),
            ("To", format!("<sip:{to}@sip.api.openai.com>")),
            ("Call-ID", Uuid::new_v4().simple().to_string()),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let known =
            Known { stage: Stage::Ringing, accepts: 0, session: Value::Null, referred: Vec::new(), hung_up: false };
        let webhook_id = format!("wh_{}", Uuid::new_v4().simple());
        self.state().insert(id.clone(), Call { known, webhook_id, headers, line: None });
        id
    }

    /// The webhook of a call as it is sent at this time: the same id each time, signed anew.
    pub fn webhook(&self, id: &str, timestamp: i64) -> Result<Callback> {
        let (webhook_id, headers) = match self.state().get(id) {
            Some(call) => (call.webhook_id.clone(), call.headers.clone()),
            None => (format!("wh_{}", Uuid::new_v4().simple()), Vec::new()),
        };
        let headers: Vec<Value> = headers.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        let data = json!({"call_id": id, "sip_media_security": "srtp", "sip_headers": headers});
        let body = json!({"object": "event", "id": format!("evt_{}", Uuid::new_v4().simple()), "type": "realtime.call.incoming",
                          "created_at": timestamp, "data": data})
        .to_string();
        let secret = self.secret.get().map_or("", String::as_str);
        Ok(Callback {
            url: self.poster.url()?.to_owned(),
            headers: signed(secret, &webhook_id, timestamp, body.as_bytes())?,
            body,
        })
    }

    /// Tells of a call, once, and says what was answered.
    pub async fn announce(&self, id: &str) -> Result<Posted> {
        self.poster.post(self.webhook(id, Utc::now().timestamp())?).await
    }

    /// Posts this instead.
    pub async fn post(&self, callback: Callback) -> Result<Posted> {
        self.poster.post(callback).await
    }

    pub fn known(&self, id: &str) -> Option<Known> {
        self.state().get(id).map(|call| call.known.clone())
    }

    /// The caller says something, and is silent then.
    pub fn says(&self, id: &str, speech: Speech) {
        self.tell(id, Said::Caller(speech));
    }

    /// The caller presses a key.
    pub fn presses(&self, id: &str, key: &str) {
        self.tell(id, Said::Key(key.to_owned()));
    }

    /// The caller hangs up, or gives up.
    pub fn hang_up(&self, id: &str) {
        self.end(id, false);
    }

    /// Cuts every socket without a word; the calls go on.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    fn state(&self) -> MutexGuard<'_, HashMap<String, Call>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, id: &str, said: Said) {
        if let Some(line) = self.state().get(id).and_then(|call| call.line.as_ref()) {
            let _ = line.send(said);
        }
    }

    fn end(&self, id: &str, by_us: bool) {
        if let Some(call) = self.state().get_mut(id) {
            call.known.stage = Stage::Ended;
            call.known.hung_up |= by_us;
            if let Some(line) = call.line.take() {
                let _ = line.send(Said::End);
            }
        }
    }

    /// `accept`, `reject`, `refer`, `hangup`.
    pub fn act(self: &Arc<Self>, realtime: &Realtime, request: &Request) -> std::result::Result<Answer, Refusal> {
        let rest = request.path.strip_prefix(CALLS).unwrap_or_default();
        let (id, action) = rest.split_once('/').unwrap_or_default();
        let stage = self.known(id).map(|known| known.stage);
        let Some(stage) = stage.filter(|stage| *stage != Stage::Ended) else {
            return Err(Refusal { status: 404, ..refusal("call_not_found", "call_id", "There is no such call.") });
        };
        let decided = || refusal("decision_already_made", "call_id", "This call was accepted or rejected already.");
        let body = || -> std::result::Result<Value, Refusal> {
            serde_json::from_slice(&request.body)
                .map_err(|_| refusal("invalid_json", "body", "We could not parse the JSON body"))
        };
        match action {
            "accept" => {
                let given = body()?;
                settings::session(&given)?;
                let model = given.get("model").and_then(Value::as_str).unwrap_or_default();
                if !MODELS.contains(&model) {
                    return Err(refusal("missing_required_parameter", "model", "Missing required parameter: 'model'."));
                }
                if stage != Stage::Ringing {
                    return Err(decided());
                }
                let line = self.open(realtime, id, &given, model);
                if let Some(call) = self.state().get_mut(id) {
                    call.known.stage = Stage::Accepted;
                    call.known.accepts += 1;
                    call.known.session = given;
                    call.line = Some(line);
                }
            }
            "reject" => {
                let given = if request.body.is_empty() { json!({}) } else { body()? };
                let fields = keys(&given, "body", &["status_code"])?;
                let status = fields.get("status_code").map_or(Some(603), Value::as_u64);
                let status = status.filter(|status| (300..700).contains(status)).ok_or_else(|| {
                    refusal("invalid_value", "status_code", "A SIP status from 300 to 699 is expected.")
                })?;
                if stage != Stage::Ringing {
                    return Err(decided());
                }
                if let Some(call) = self.state().get_mut(id) {
                    call.known.stage = Stage::Rejected(u16::try_from(status).unwrap_or(603));
                }
            }
            "refer" | "hangup" if stage != Stage::Accepted => {
                return Err(refusal("call_not_accepted", "call_id", "This call is not in progress."));
            }
            "refer" => {
                let given = body()?;
                let target = keys(&given, "body", &["target_uri"])?.get("target_uri").and_then(Value::as_str);
                let target =
                    target.filter(|uri| ["tel:", "sip:", "sips:"].iter().any(|scheme| uri.starts_with(scheme)));
                let target =
                    target.ok_or_else(|| refusal("invalid_value", "target_uri", "A tel: or sip: URI is expected."))?;
                if let Some(call) = self.state().get_mut(id) {
                    call.known.referred.push(target.to_owned());
                }
            }
            "hangup" if !request.body.is_empty() => {
                return Err(refusal("unknown_parameter", "body", "No body is expected."));
            }
            "hangup" => self.end(id, true),
            _ => return Err(Refusal { status: 404, ..refusal("unknown_url", "", "Unknown request URL") }),
        }
        Ok(Answer::text(200, "application/json", ""))
    }

    /// The line of a call that is accepted, until it ends.
    fn open(
        self: &Arc<Self>,
        realtime: &Realtime,
        id: &str,
        given: &Value,
        model: &str,
    ) -> mpsc::UnboundedSender<Said> {
        let (line, said) = mpsc::unbounded_channel();
        let rules = realtime.rules();
        let session_id = format!("sess_{}", Uuid::new_v4().simple());
        let seconds = i64::try_from(rules.session_limit.as_secs()).unwrap_or(3600);
        let mut whole = settings::defaults(&session_id, model, Utc::now().timestamp() + seconds);
        settings::merge(&mut whole, given);
        let control = self.control.clone();
        let faults = move |name: &str| control.meet_event(name);
        let session = Session::new(std::time::Duration::ZERO, whole, rules, realtime.next_progress(), faults);
        let (calls, id) = (self.clone(), id.to_owned());
        let leg = Leg::new(session, rules.speed);
        runtime::spawn(async move {
            carry(leg, said).await;
            calls.end(&id, false);
        });
        line
    }

    /// Whether a call may be observed.
    pub fn handshake(&self, request: &Request, api_key: &str) -> std::result::Result<Answer, Refusal> {
        if request.bearer() != Some(api_key) {
            return Err(Refusal {
                status: 401,
                ..refusal("invalid_api_key", "Authorization", "Incorrect API key provided")
            });
        }
        let id = observed(request).unwrap_or_default();
        match self.known(id).map(|known| known.stage) {
            Some(Stage::Accepted) => {}
            _ => return Err(Refusal { status: 404, ..refusal("call_not_found", "call_id", "There is no such call.") }),
        }
        super::realtime::socket::accept(request).ok_or_else(|| Refusal {
            status: 426,
            ..refusal("upgrade_required", "Upgrade", "This is a WebSocket: upgrade with version 13")
        })
    }

    /// Lets somebody observe a call, until the socket or the call ends.
    pub async fn talk(&self, request: &Request, stream: Stream, seen: Arc<Mutex<Seen>>) {
        let record = || seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cuts = self.cuts.subscribe();
        let line = observed(request).and_then(|id| self.state().get(id).and_then(|call| call.line.clone()));
        let Some(line) = line else { return };
        let (told, mut out) = mpsc::unbounded_channel();
        let _ = line.send(Said::Attach(told));
        let mut socket = ServerBuilder::new().serve(stream);
        loop {
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(message)) => {
                        if let Some(text) = message.as_text() {
                            record().hears(text);
                            let _ = line.send(Said::Client(text.to_owned()));
                        }
                    }
                    _ => break,
                },
                told = out.recv() => match told {
                    Some(Out::Event(event)) => {
                        record().says(&event);
                        if socket.send(Message::text(event.to_string())).await.is_err() {
                            break;
                        }
                    }
                    // The call is over.
                    None | Some(Out::Close) => {
                        let _ = socket.close().await;
                        break;
                    }
                    Some(Out::Cut) => break,
                    // The call's own, not the observer's.
                    Some(Out::Remote(_)) => {}
                    Some(Out::Hang) => {
                        let _ = cuts.changed().await;
                        break;
                    }
                },
                _ = cuts.changed() => break,
            }
        }
        record().ended = true;
    }
}

/// Which call a socket is for.
pub fn observed(request: &Request) -> Option<&str> {
    request.query.split('&').find_map(|pair| pair.strip_prefix("call_id="))
}

/// Carries a call to its end. A socket that breaks does not end it, the end of its session does.
async fn carry(mut leg: Leg, mut said: mpsc::UnboundedReceiver<Said>) {
    let began = Instant::now();
    let mut observer: Option<mpsc::UnboundedSender<Out>> = None;
    let (answers, mut answered) = mpsc::unbounded_channel();
    loop {
        while let Some(out) = leg.poll() {
            if let Out::Remote(call) = out {
                mcp::begin(call, answers.clone());
                continue;
            }
            let over = out == Out::Close;
            // A cut or a silence is the socket's; the call goes on.
            if let Some(told) = &observer
                && (told.send(out).is_err())
            {
                observer = None;
            }
            if over {
                return;
            }
        }
        tokio::select! {
            next = said.recv() => match next {
                Some(Said::Attach(told)) => {
                    // What was told before is gone.
                    let _ = told.send(Out::Event(leg.created()));
                    observer = Some(told);
                }
                Some(Said::Client(text)) => leg.hear(began.elapsed(), &text),
                Some(Said::Caller(speech)) => leg.says(began.elapsed(), &speech),
                Some(Said::Key(key)) => leg.presses(&key),
                Some(Said::End) | None => return,
            },
            Some((call, answer)) = answered.recv() => leg.remote_done(began.elapsed(), &call, answer),
            () = tokio::time::sleep_until(began + leg.next_at()) => leg.tick(began.elapsed()),
        }
    }
}

/// Headers of Standard Webhooks over this body.
pub fn signed(secret: &str, id: &str, timestamp: i64, body: &[u8]) -> Result<Vec<(&'static str, String)>> {
    let key = STANDARD.decode(secret.trim_start_matches("whsec_")).context("a webhook secret is base64")?;
    let timestamp = timestamp.to_string();
    let mac = hmac_sha256(&key, &[id.as_bytes(), b".", timestamp.as_bytes(), b".", body]);
    Ok(vec![
        ("content-type", "application/json".to_owned()),
        ("user-agent", "OpenAI/1.0 (+https://platform.openai.com/docs/webhooks)".to_owned()),
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", format!("v1,{}", STANDARD.encode(mac))),
    ])
}
