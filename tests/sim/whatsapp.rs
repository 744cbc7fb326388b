//! WhatsApp's Cloud API: messages to send, signed webhooks with their statuses, and inbound messages.
//!
//! It judges a message as Meta does (window, templates, rates, limits) and reports as Meta does: a message that was
//! accepted may still fail later.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::callback::{Callback, Due, Posted, Poster, send_reports};
use crate::control::{self, Control, Fault, Met, Order, Service};
use crate::error::Result;
use crate::http::{Answer, Request, Server};
use crate::keys::{hmac_hex, secret};
use crate::openai::transcribe as speech;

mod judge;
mod template;

pub use judge::Message;
pub use template::Template;

/// Service window after an inbound message or a WhatsApp call.
const WINDOW: TimeDelta = TimeDelta::hours(24);
/// Messages a second of one business number.
const NUMBER_RATE: usize = 80;
/// Messages to one person within [`PAIR_SPAN`] before Meta asks us to wait.
const PAIR_BURST: usize = 45;
const PAIR_SPAN: Duration = Duration::from_secs(60);
/// A number that accepts every message and then reports 131026, in every world.
pub const NEVER_ON_WHATSAPP: &str = "+250788000026";

/// What the business number is known by.
#[derive(Clone, Debug)]
pub struct Account {
    pub access_token: String,
    pub phone_number_id: String,
    pub app_secret: String,
    pub verify_token: String,
    /// Without its `+`, as webhooks show it.
    pub display_phone_number: String,
}

impl Account {
    pub fn generate() -> Self {
        Self {
            access_token: format!("EAAG{}", secret()),
            phone_number_id: "118204633907751".to_owned(),
            app_secret: secret(),
            verify_token: secret(),
            display_phone_number: "250788000000".to_owned(),
        }
    }
}

/// When status webhooks come, counted from the acceptance.
#[derive(Clone, Copy, Debug)]
pub struct Statuses {
    pub sent_after: Option<Duration>,
    pub delivered_after: Option<Duration>,
    pub read_after: Option<Duration>,
    /// All statuses of a message in one POST, when the last is due.
    pub batched: bool,
}

impl Default for Statuses {
    fn default() -> Self {
        Self {
            sent_after: Some(Duration::from_millis(20)),
            delivered_after: Some(Duration::from_millis(60)),
            read_after: None,
            batched: false,
        }
    }
}

impl Statuses {
    pub fn never() -> Self {
        Self { sent_after: None, delivered_after: None, read_after: None, batched: false }
    }
}

/// How Meta tells us that a number is not on WhatsApp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// In the answer.
    AtOnce,
    /// Accepted, and a `failed` status later.
    Later,
}

/// A message that was accepted.
#[derive(Clone, Debug)]
pub struct Sent {
    pub at: DateTime<Utc>,
    pub wamid: String,
    /// With its `+`.
    pub recipient: String,
    /// Nothing for a template.
    pub text: Option<String>,
    pub template: Option<String>,
    pub language: Option<String>,
    /// What the person reads: the text, or the template with its parameters filled in.
    pub shown: String,
    pub biz_opaque_callback_data: Option<String>,
    /// The request, verbatim.
    pub body: Value,
}

/// The running simulator.
pub struct WhatsApp {
    server: Server,
    control: Arc<Control>,
    meta: Arc<Meta>,
}

struct Meta {
    account: Account,
    webhook: Arc<Poster>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    windows: HashMap<String, DateTime<Utc>>,
    not_on_whatsapp: HashMap<String, Refused>,
    templates: Vec<Template>,
    sent: Vec<Sent>,
    statuses: Statuses,
    unlimited: bool,
    rate: Rate,
    /// Sound that people sent, by media id.
    media: HashMap<String, Vec<u8>>,
}

#[derive(Default)]
struct Rate {
    number: VecDeque<Instant>,
    pairs: HashMap<String, VecDeque<Instant>>,
}

impl WhatsApp {
    pub async fn start(port: u16, account: Account, latency: Duration) -> Result<Self> {
        let control = Arc::new(Control::default());
        let mut state = State::default();
        state.templates.push(Template::call_summary());
        state.not_on_whatsapp.insert(NEVER_ON_WHATSAPP.to_owned(), Refused::Later);
        let meta = Arc::new(Meta {
            account,
            // Meta goes on for days; a world does not live that long.
            webhook: Poster::new(10)?,
            state: Mutex::new(state),
        });
        let server = control::start(port, meta.clone(), control.clone(), latency).await?;
        Ok(Self { server, control, meta })
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The server itself: it can go away and come back.
    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn control(&self) -> &Control {
        &self.control
    }

    pub fn fail_with(&self, fault: Fault) -> Order<'_> {
        self.control.fail_with(fault)
    }

    /// Every message accepted so far, oldest first.
    pub fn messages(&self) -> Vec<Sent> {
        self.meta.state().sent.clone()
    }

    pub fn messages_to(&self, phone: &str) -> Vec<Sent> {
        let mut messages = self.messages();
        messages.retain(|sent| sent.recipient == phone);
        messages
    }

    /// The person wrote to us on WhatsApp just now: free-form messages are allowed for 24 hours.
    pub fn open_window(&self, phone: &str) {
        self.open_window_at(phone, Utc::now());
    }

    /// The person last wrote to us at `at`.
    pub fn open_window_at(&self, phone: &str, at: DateTime<Utc>) {
        self.meta.state().windows.insert(phone.to_owned(), at + WINDOW);
    }

    pub fn close_window(&self, phone: &str) {
        self.meta.state().windows.remove(phone);
    }

    pub fn not_on_whatsapp(&self, phone: &str, how: Refused) {
        self.meta.state().not_on_whatsapp.insert(phone.to_owned(), how);
    }

    /// Adds a template, or replaces the one of the same name.
    pub fn approve(&self, template: Template) {
        let mut state = self.meta.state();
        state.templates.retain(|known| known.name != template.name);
        state.templates.push(template);
    }

    pub fn set_statuses(&self, statuses: Statuses) {
        self.meta.state().statuses = statuses;
    }

    /// Lifts the rate limits, for benchmarks.
    pub fn lift_limits(&self) {
        self.meta.state().unlimited = true;
    }

    /// The base address of our webhook.
    pub fn set_webhook(&self, url: String) {
        self.meta.webhook.set_url(url);
    }

    /// Every webhook posted so far.
    pub fn webhooks(&self) -> Vec<Posted> {
        self.meta.webhook.posted()
    }

    /// Posts an inbound text message, which opens the window, and tells what our webhook answered. `from` is a number, or the
    /// business-scoped user id of somebody who shares none.
    pub async fn deliver(&self, from: &str, text: &str) -> Result<Posted> {
        self.deliver_all(vec![self.inbound(from, "text", json!({"body": text}))]).await
    }

    /// A message of any kind with its content, as `deliver_all` takes it; it opens the window.
    pub fn inbound(&self, from: &str, kind: &str, content: Value) -> Value {
        self.open_window(from);
        let mut message =
            json!({"id": wamid(), "timestamp": Utc::now().timestamp().to_string(), "type": kind, kind: content});
        if let Some(message) = message.as_object_mut() {
            match from.strip_prefix('+') {
                Some(wa_id) => message.insert("from".to_owned(), wa_id.into()),
                None => message.insert("from_user_id".to_owned(), from.into()),
            };
        }
        message
    }

    /// A voice note in which these words are spoken, as `deliver_all` takes it. Only the model of this world understands it.
    pub fn voice_note(&self, from: &str, words: &str) -> Value {
        self.sound(from, [speech::OGG, words.as_bytes()].concat())
    }

    /// A voice note that is this file.
    pub fn sound(&self, from: &str, file: Vec<u8>) -> Value {
        let id = format!("{}", Uuid::new_v4().as_u128() >> 64);
        self.meta.state().media.insert(id.clone(), file);
        self.inbound(from, "audio", json!({"id": id, "mime_type": "audio/ogg; codecs=opus", "voice": true}))
    }

    /// Posts messages in one webhook.
    pub async fn deliver_all(&self, messages: Vec<Value>) -> Result<Posted> {
        let contact = |message: &Value| {
            let of = |name: &str| message.get(name).cloned().unwrap_or_default();
            json!({"profile": {"name": "Uwase Aline"}, "wa_id": of("from"), "user_id": of("from_user_id")})
        };
        let contacts: Vec<Value> = messages.iter().map(contact).collect();
        self.post(json!([self.meta.change(json!({"contacts": contacts, "messages": messages}))])).await
    }

    /// Posts what happened to a call of this person: `connect`, or `terminate` with the seconds it lasted, none if nobody took it.
    pub async fn call(&self, from: &str, call_id: &str, event: &str, seconds: Option<i64>) -> Result<Posted> {
        let now = Utc::now().timestamp();
        let mut call = self.inbound(from, "call", Value::Null);
        if let Some(call) = call.as_object_mut() {
            call.retain(|name, _| name.starts_with("from"));
            let known = [
                ("id", json!(call_id)),
                ("event", json!(event)),
                ("direction", json!("USER_INITIATED")),
                ("to", json!(self.meta.account.display_phone_number)),
                ("timestamp", json!(now.to_string())),
            ];
            call.extend(known.map(|(name, value)| (name.to_owned(), value)));
            if event == "terminate" {
                call.insert("status".to_owned(), json!(if seconds.is_some() { "COMPLETED" } else { "FAILED" }));
            }
            if let Some(seconds) = seconds {
                let times = [
                    ("start_time", json!((now - seconds).to_string())),
                    ("end_time", json!(now.to_string())),
                    ("duration", json!(seconds)),
                ];
                call.extend(times.map(|(name, value)| (name.to_owned(), value)));
            }
        }
        let value = self.meta.change(json!({ "calls": [call] })).get("value").cloned();
        self.post(json!([{"field": "calls", "value": value}])).await
    }

    /// Posts statuses of any content in one signed webhook, in the order given.
    pub async fn report(&self, statuses: Vec<Value>) -> Result<Posted> {
        self.post(json!([self.meta.change(json!({ "statuses": statuses }))])).await
    }

    /// Posts `changes` of any content, properly signed.
    pub async fn post(&self, changes: Value) -> Result<Posted> {
        let callback = self.meta.callback(&changes)?;
        self.meta.webhook.post(callback).await
    }
}

impl Meta {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, request: &Request, met: Met) -> Answer {
        if request.bearer() != Some(&self.account.access_token) {
            return refusal(190, "Error validating access token");
        }
        let message = match Message::parse(&request.body) {
            Ok(message) => message,
            Err((code, why)) => return refusal(code, &why),
        };
        let accepted = match self.accept(&message) {
            Ok(sent) => sent,
            Err((code, why)) => return refusal(code, &why),
        };
        send_reports(&self.webhook, self.due(&accepted, met), met).await;
        let wa_id = message.recipient.trim_start_matches('+');
        let mut entry = json!({ "id": accepted.wamid });
        if let (Some(entry), Some(_)) = (entry.as_object_mut(), &accepted.template) {
            entry.insert("message_status".to_owned(), "accepted".into());
        }
        let contact = if message.recipient.starts_with('+') {
            json!({"input": message.recipient, "wa_id": wa_id})
        } else {
            json!({"input": message.recipient, "user_id": message.recipient})
        };
        Answer::json(200, &json!({"messaging_product": "whatsapp", "contacts": [contact], "messages": [entry]}))
    }

    /// Where a file can be fetched.
    fn media_url(&self, request: &Request, media_id: &str) -> Answer {
        if request.bearer() != Some(&self.account.access_token) {
            return refusal(190, "Error validating access token");
        }
        let Some(size) = self.state().media.get(media_id).map(Vec::len) else {
            return refusal(100, "Unsupported get request. Object with this ID does not exist");
        };
        let host = request.header("host").unwrap_or_default();
        Answer::json(
            200,
            &json!({"messaging_product": "whatsapp", "url": format!("http://{host}/attachments/{media_id}?hash=x"),
                    "mime_type": "audio/ogg", "sha256": "", "file_size": size, "id": media_id}),
        )
    }

    /// The file itself: with the same token, which no browser sends.
    fn media(&self, request: &Request, media_id: &str) -> Answer {
        if request.bearer() != Some(&self.account.access_token) {
            return Answer::text(401, "text/plain", "");
        }
        match self.state().media.get(media_id) {
            Some(bytes) => Answer {
                status: 200,
                headers: vec![("content-type".into(), "audio/ogg".into())],
                body: Bytes::from(bytes.clone()),
            },
            None => Answer::text(404, "text/plain", ""),
        }
    }

    /// Everything that depends on more than the request.
    fn accept(&self, message: &Message) -> judge::Verdict<Sent> {
        let mut state = self.state();
        let shown = match &message.template {
            Some(call) => template::fill(&state.templates, call)?,
            None => message.text.clone().unwrap_or_default(),
        };
        let open = state.windows.get(&message.recipient).is_some_and(|until| Utc::now() < *until);
        if message.template.is_none() && !open {
            let why = "Message failed to send because more than 24 hours have passed since the customer last replied \
                       to this number.";
            return Err((131_047, why.to_owned()));
        }
        if state.not_on_whatsapp.get(&message.recipient) == Some(&Refused::AtOnce) {
            return Err((131_026, "Message undeliverable.".to_owned()));
        }
        if !state.unlimited {
            state.rate.admit(&message.recipient, Instant::now())?;
        }
        let sent = Sent {
            at: Utc::now(),
            wamid: wamid(),
            recipient: message.recipient.clone(),
            text: message.text.clone(),
            template: message.template.as_ref().map(|call| call.name.clone()),
            language: message.template.as_ref().map(|call| call.language.clone()),
            shown,
            biz_opaque_callback_data: message.callback_data.clone(),
            body: message.body.clone(),
        };
        state.sent.push(sent.clone());
        Ok(sent)
    }

    fn due(&self, sent: &Sent, met: Met) -> Vec<Due> {
        let (plan, unreachable) = {
            let state = self.state();
            let refused = state.not_on_whatsapp.get(&sent.recipient).copied();
            (state.statuses, refused == Some(Refused::Later))
        };
        let failure = match met.fault {
            Some(Fault::LateCode(code)) => Some(code),
            Some(Fault::FailedReport) => Some(131_026),
            _ if unreachable => Some(131_026),
            _ => None,
        };
        let mut steps: Vec<(Duration, Value)> = Vec::new();
        if let Some(code) = failure {
            let after = plan.sent_after.unwrap_or_default();
            steps.push((after, status(sent, "failed", Some(code))));
        } else {
            let plan = [(plan.sent_after, "sent"), (plan.delivered_after, "delivered"), (plan.read_after, "read")];
            for (after, name) in plan {
                if let Some(after) = after {
                    steps.push((after, status(sent, name, None)));
                }
            }
        }
        let last = steps.last().map(|(after, _)| *after).unwrap_or_default();
        let groups: Vec<(Duration, Vec<Value>)> = if plan.batched {
            vec![(last, steps.into_iter().map(|(_, status)| status).collect())]
        } else {
            steps.into_iter().map(|(after, status)| (after, vec![status])).collect()
        };
        let mut due = Vec::new();
        for (after, statuses) in groups.into_iter().filter(|(_, statuses)| !statuses.is_empty()) {
            let changes = json!([self.change(json!({ "statuses": statuses }))]);
            if let Ok(callback) = self.callback(&changes) {
                due.push(Due { after, callback });
            }
        }
        due
    }

    fn change(&self, content: Value) -> Value {
        let mut value = json!({"messaging_product": "whatsapp", "metadata": {
            "display_phone_number": self.account.display_phone_number, "phone_number_id": self.account.phone_number_id}});
        if let (Some(value), Value::Object(content)) = (value.as_object_mut(), content) {
            value.extend(content);
        }
        json!({"field": "messages", "value": value})
    }

    fn callback(&self, changes: &Value) -> Result<Callback> {
        let body =
            json!({"object": "whatsapp_business_account", "entry": [{"id": "207713340985562", "changes": changes}]});
        let body = ascii_json(&body);
        let signature = hmac_hex(&self.account.app_secret, &[body.as_bytes()]);
        Ok(Callback {
            url: format!("{}/whatsapp-webhook", self.webhook.url()?),
            headers: vec![
                ("content-type", "application/json".to_owned()),
                ("x-hub-signature-256", format!("sha256={signature}")),
            ],
            body,
        })
    }
}

impl Service for Meta {
    fn subjects(&self, request: &Request) -> Vec<String> {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        [text("/to"), text("/recipient"), text("/type"), text("/template/name")].into_iter().flatten().collect()
    }

    async fn handle(self: Arc<Self>, request: Request, met: Met) -> Answer {
        let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
        match (request.method.as_str(), parts.as_slice()) {
            ("GET", [version, media_id]) if is_version(version) => self.media_url(&request, media_id),
            ("GET", ["attachments", media_id]) => self.media(&request, media_id),
            ("POST", [version, number, "messages"])
                if is_version(version) && *number == self.account.phone_number_id =>
            {
                self.send(&request, met).await
            }
            _ => refusal(
                100,
                "Unsupported request. Object with this ID does not exist or does not support this operation",
            ),
        }
    }

    fn refuse(&self, status: u16, code: Option<i64>) -> Answer {
        match (status, code) {
            (_, Some(code)) => refusal(code, "As ordered"),
            (401, _) => refusal(190, "Error validating access token"),
            (429, _) => Answer { status: 429, ..refusal(130_429, "Cloud API message throughput has been reached.") },
            (503, _) => Answer { status: 503, ..refusal(131_016, "Service unavailable") },
            // Something in front of the service broke: no code of the service, so nobody can know whether it got through.
            (status, _) => Answer::text(status, "text/html", "<html><body>Internal Server Error</body></html>"),
        }
    }
}

fn is_version(text: &str) -> bool {
    let numeric = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = text.strip_prefix('v').and_then(|rest| rest.split_once('.'));
    parts.is_some_and(|(major, minor)| numeric(major) && numeric(minor))
}

impl Rate {
    fn admit(&mut self, recipient: &str, now: Instant) -> judge::Verdict<()> {
        let fresh = |times: &mut VecDeque<Instant>, span: Duration| {
            while times.front().is_some_and(|first| now.duration_since(*first) > span) {
                times.pop_front();
            }
        };
        fresh(&mut self.number, Duration::from_secs(1));
        if self.number.len() >= NUMBER_RATE {
            return Err((130_429, "Cloud API message throughput has been reached.".to_owned()));
        }
        let pair = self.pairs.entry(recipient.to_owned()).or_default();
        fresh(pair, PAIR_SPAN);
        if pair.len() >= PAIR_BURST {
            return Err((131_056, "Too many messages sent from this phone number to the same recipient.".to_owned()));
        }
        pair.push_back(now);
        self.number.push_back(now);
        Ok(())
    }
}

fn status(sent: &Sent, name: &str, code: Option<i64>) -> Value {
    let (named, recipient) = match sent.recipient.strip_prefix('+') {
        Some(wa_id) => ("recipient_id", wa_id),
        None => ("recipient_user_id", sent.recipient.as_str()),
    };
    let mut status = json!({"id": sent.wamid, "status": name, "timestamp": Utc::now().timestamp().to_string(),
                            named: recipient});
    let Some(fields) = status.as_object_mut() else {
        return status;
    };
    if let Some(data) = &sent.biz_opaque_callback_data {
        fields.insert("biz_opaque_callback_data".to_owned(), json!(data));
    }
    if name == "sent" || name == "delivered" {
        let category = if sent.template.is_some() { "utility" } else { "service" };
        let pricing = json!({"billable": true, "pricing_model": "PMP", "type": "regular", "category": category});
        fields.insert("pricing".to_owned(), pricing);
    }
    if let Some(code) = code {
        let title = judge::title(code);
        let error = json!({"code": code, "title": title, "message": title, "error_data": {"details": format!("{title}.")},
                           "href": "https://developers.facebook.com/docs/whatsapp/cloud-api/support/error-codes/"});
        fields.insert("errors".to_owned(), json!([error]));
    }
    status
}

fn refusal(code: i64, details: &str) -> Answer {
    let title = judge::title(code);
    Answer::json(
        judge::http_status(code),
        &json!({"error": {"message": format!("(#{code}) {title}"), "type": "OAuthException", "code": code,
                          "error_data": {"messaging_product": "whatsapp", "details": details},
                          "fbtrace_id": Uuid::new_v4().simple().to_string()}}),
    )
}

fn wamid() -> String {
    format!("wamid.HBgM{}", Uuid::new_v4().simple().to_string().to_uppercase())
}

/// Meta writes everything outside ASCII as `\uXXXX`, so a body that is parsed and written again has another signature.
fn ascii_json(value: &Value) -> String {
    let mut ascii = String::new();
    for c in value.to_string().chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            let mut units = [0_u16; 2];
            for unit in c.encode_utf16(&mut units) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    ascii
}

#[cfg(test)]
mod tests;
