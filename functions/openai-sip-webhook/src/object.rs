//! The object of one call: it decides once, then observes the call over the vendor's sideband until it is over.
//!
//! It may be gone at any moment. What it must not lose is in its storage before anything goes out: the state of the call, the
//! events that Postgres has not got yet, how the call ended. An alarm is always set while something is owed, and whoever
//! wakes reads on from there; a connection that broke is made anew, since the vendor carries the call meanwhile.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ihuza_core::{
    json::{obj, str_at, string_at},
    json_text::{parse, to_text},
    log::{Event, Level},
    openai_sip::{self, Action, Answer, Reject},
    phone::E164,
    realtime,
    sideband::{Act, Setup, Sideband},
    timestamp,
};
use ihuza_edge::{context::Cx, host, pause, voice};
use js_sys::{Promise, futures::JsFuture};
use serde_json::Value;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::{future_to_promise, spawn_local};
use worker::{Env, web_sys};

use crate::{
    ENDPOINT,
    decide::{self, Decided},
    line, record,
    runtime::{self, Socket, Store, Tell},
};

/// How often the object looks after its call when nothing else is due.
const HEARTBEAT_MS: i64 = 5_000;
/// Events wait so long for others.
const GATHER_MS: i64 = 1_000;
/// Waits before another connection is tried; after the last one the call is ended.
const WAITS_MS: [i64; 7] = [100, 250, 500, 1_000, 2_000, 4_000, 8_000];
/// A connection that lasts longer was a good one.
const LASTS_MS: i64 = 10_000;
/// A decision that nobody has come back for in this time is not waited for.
const UNDECIDED_MS: i64 = 60_000;
/// The longest wait for the database.
const PATIENCE_MS: i64 = 60_000;
/// How long it is remembered what was decided: a webhook may be told again for three days.
const REMEMBERED_MS: i64 = 73 * 3_600_000;

/// Names of the notes in the storage.
mod note {
    pub const PHASE: &str = "phase";
    /// Who calls whom, from the webhook.
    pub const ASKED: &str = "asked";
    /// What the webhook was answered.
    pub const ANSWER: &str = "answer";
    /// Our id of the call.
    pub const CALL_ID: &str = "call_id";
    /// What the call is to be observed with, until it is.
    pub const SETUP: &str = "setup";
    /// RFC 3339.
    pub const ANSWERED_AT: &str = "answered_at";
    /// The state of the call.
    pub const CALL: &str = "call";
    /// How it ended.
    pub const END: &str = "end";
}

/// How far a call is, as it is kept.
mod phase {
    /// Nothing was said to the vendor yet.
    pub const DECIDING: &str = "deciding";
    /// `accept` may have been said.
    pub const ACCEPTING: &str = "accepting";
    /// It is observed.
    pub const TALKING: &str = "talking";
    /// It is over, and that is not in Postgres yet.
    pub const ENDING: &str = "ending";
    /// Nothing is owed.
    pub const DONE: &str = "done";
}

/// The object, as the runtime holds it.
#[wasm_bindgen]
pub struct SipCall {
    here: Rc<Here>,
}

#[wasm_bindgen]
impl SipCall {
    #[wasm_bindgen(constructor)]
    #[allow(clippy::needless_pass_by_value, reason = "the runtime hands it over")]
    pub fn new(state: JsValue, env: Env) -> SipCall {
        let store = Store::new(&state);
        let asked = parse(&store.note(note::ASKED)).unwrap_or_default();
        let thread = str_at(&asked, "call_sid").unwrap_or("none").to_owned();
        let cx = Cx::new(env, ENDPOINT.name, thread);
        let call = Sideband::from_text(&store.note(note::CALL));
        SipCall { here: Rc::new(Here::new(cx, store, call)) }
    }

    /// The webhook asks what becomes of its call.
    #[allow(clippy::needless_pass_by_value, reason = "the runtime hands it over")]
    pub fn fetch(&self, request: web_sys::Request) -> Promise {
        let here = self.here.clone();
        future_to_promise(async move {
            let text = JsFuture::from(request.text()?).await?.as_string().unwrap_or_default();
            let asked = parse(&text).unwrap_or_default();
            let answer = here.decided(&asked).await;
            Ok(runtime::answered(if answer.is_null() { 503 } else { 200 }, &to_text(&answer)).into())
        })
    }

    /// Something is due.
    pub fn alarm(&self) -> Promise {
        let here = self.here.clone();
        future_to_promise(async move {
            here.wake_ms.set(0);
            here.look_after().await;
            Ok(JsValue::UNDEFINED)
        })
    }
}

/// One connection.
struct Link {
    number: u32,
    socket: Socket,
    since_ms: i64,
    /// Called for as long as there is a connection.
    _tell: Tell,
}

struct Here {
    cx: RefCell<Cx>,
    store: Store,
    deciding: Cell<bool>,
    call: RefCell<Option<Sideband>>,
    /// What of the call is in the storage.
    written: RefCell<String>,
    link: RefCell<Option<Link>>,
    links: Cell<u32>,
    connecting: Cell<bool>,
    /// Connections that failed, one after another, and when the next is tried.
    tries: Cell<usize>,
    retry_ms: Cell<i64>,
    hanging_up: Cell<bool>,
    /// Requests of Postgres that failed, one after another.
    refusals: Cell<u32>,
    /// When the alarm rings; 0: nobody knows.
    wake_ms: Cell<i64>,
}

impl Here {
    fn new(cx: Cx, store: Store, call: Option<Sideband>) -> Here {
        Here {
            cx: RefCell::new(cx),
            store,
            deciding: Cell::new(false),
            call: RefCell::new(call),
            written: RefCell::default(),
            link: RefCell::new(None),
            links: Cell::new(0),
            connecting: Cell::new(false),
            tries: Cell::new(0),
            retry_ms: Cell::new(0),
            hanging_up: Cell::new(false),
            refusals: Cell::new(0),
            wake_ms: Cell::new(0),
        }
    }

    fn note(&self, name: &str) -> String {
        self.store.note(name)
    }

    fn is(&self, phase: &str) -> bool {
        self.note(note::PHASE) == phase
    }

    fn asked(&self) -> Value {
        parse(&self.note(note::ASKED)).unwrap_or_default()
    }

    fn sid(&self) -> String {
        string_at(&self.asked(), "call_sid").unwrap_or_default()
    }

    fn cx(&self) -> Cx {
        self.cx.borrow().clone()
    }

    /// Lets the alarm ring at this time, unless it rings before.
    fn wake(&self, at_ms: i64) {
        let set = self.wake_ms.get();
        if set == 0 || at_ms < set {
            self.wake_ms.set(at_ms);
            #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit")]
            let _ = self.store.wake(at_ms as f64);
        }
    }

    /// What was decided about the call; null where that cannot be told now.
    async fn decided(self: &Rc<Self>, asked: &Value) -> Value {
        // The same call may be told of twice at a time.
        for _ in 0..150 {
            if !self.deciding.get() {
                break;
            }
            pause::for_ms(100).await;
        }
        let answer = self.note(note::ANSWER);
        if !answer.is_empty() {
            if !self.is(phase::DONE) {
                self.wake(host::now_ms());
            }
            return parse(&answer).unwrap_or_default();
        }
        if self.deciding.replace(true) {
            return Value::Null;
        }
        let answer = self.decide(asked).await;
        self.store.put(note::ANSWER, &to_text(&answer));
        self.deciding.set(false);
        answer
    }

    async fn decide(self: &Rc<Self>, asked: &Value) -> Value {
        let before = self.is(phase::ACCEPTING);
        if self.note(note::PHASE).is_empty() {
            self.store.put(note::ASKED, &to_text(asked));
            self.store.put(note::PHASE, phase::DECIDING);
        }
        let sid = self.sid();
        let cx = self.cx().for_work(&sid);
        self.cx.replace(cx.clone());
        self.wake(host::now_ms() + UNDECIDED_MS);
        let decided = match decide::admit(&cx, &self.asked()).await {
            Ok(admitted) => {
                self.store.put(note::CALL_ID, &admitted.call_id);
                let setup = serde_json::to_string(&admitted.setup(&cx)).unwrap_or_default();
                self.store.put(note::SETUP, &setup);
                // From here on the vendor may have heard of it.
                self.store.put(note::PHASE, phase::ACCEPTING);
                admitted.accept(&cx, &sid, before).await
            }
            Err(decided) => decided,
        };
        match &decided {
            Decided::Taken { setup, .. } => self.begin(setup.clone()),
            Decided::Rejected(reason) => {
                decide::reject(&cx, &sid, *reason).await;
                match reason {
                    // The database has heard of the others.
                    Reject::NotReady => self.finish("rejected", reason.as_str()),
                    _ => self.close(),
                }
            }
            Decided::Ended => self.close(),
            Decided::Missed(why) => self.finish("canceled", why),
            Decided::Failed(why) => self.finish("setup_failed", why),
        }
        decide::answer(&decided)
    }

    /// The call is taken: it is observed from now on.
    fn begin(self: &Rc<Self>, setup: Setup) {
        let now_ms = host::now_ms();
        let opened = obj(&mut [("trunk", "openai_sip".into()), ("direction", "inbound".into())]);
        self.store.put(note::ANSWERED_AT, &timestamp::to_rfc3339(host::now()));
        self.store.put(note::PHASE, phase::TALKING);
        self.call.replace(Some(Sideband::new(setup, opened, now_ms)));
        self.perform();
        self.wake(now_ms + GATHER_MS);
        self.connect();
    }

    /// Does what the call wants done, and writes down how it is.
    fn perform(self: &Rc<Self>) {
        let (acts, text) = match self.call.borrow_mut().as_mut() {
            Some(call) => (call.acts(), call.to_text()),
            None => return,
        };
        let mut kept = false;
        // What is to be remembered first, all at once: nothing of it goes out that is not in the storage.
        for act in &acts {
            if let Act::Keep(event) = act
                && let Some(seq) = event.get("seq").and_then(Value::as_i64)
            {
                self.store.keep(seq as f64, &to_text(event));
                kept = true;
            }
        }
        if *self.written.borrow() != text {
            self.store.put(note::CALL, &text);
            self.written.replace(text);
        }
        if kept {
            self.wake(host::now_ms() + GATHER_MS);
        }
        for act in acts {
            self.act(act);
        }
        if let Some(at_ms) = self.call.borrow().as_ref().and_then(Sideband::next_ms) {
            self.wake(at_ms);
        }
    }

    fn act(self: &Rc<Self>, act: Act) {
        match act {
            Act::Keep(_) => {}
            Act::Send(text) => {
                if let Some(link) = self.link.borrow().as_ref() {
                    // One that broke is told of by its end.
                    link.socket.send(&text);
                }
            }
            Act::Run { call_id, name, arguments } => {
                let here = self.clone();
                spawn_local(async move { here.run(&call_id, &name, &arguments).await });
            }
            Act::Refer(number) => {
                let here = self.clone();
                spawn_local(async move { here.refer(&number).await });
            }
            Act::HangUp(cause) => {
                let here = self.clone();
                spawn_local(async move { here.hang_up(cause, "").await });
            }
            Act::Warn(message) => self.cx().log(Level::Warn, Event::ModelFailed, &message, &[]),
        }
    }

    async fn run(self: &Rc<Self>, call_id: &str, name: &str, arguments: &str) {
        let cx = self.cx();
        let body = obj(&mut [
            ("call_id", self.note(note::CALL_ID).into()),
            ("name", name.into()),
            ("arguments", arguments.into()),
            ("idempotency_key", call_id.into()),
        ]);
        let answer = match realtime::tool_run(&body) {
            Ok(mut run) => {
                run.fields.insert("correlation_id".to_owned(), cx.correlation_id.as_str().into());
                voice::run_tool(&cx, run).await.ok()
            }
            Err(_) => None,
        };
        let answer = answer
            .unwrap_or_else(|| obj(&mut [("ok", false.into()), ("error", "this tool cannot be used now".into())]));
        if let Some(call) = self.call.borrow_mut().as_mut() {
            call.answered(host::now_ms(), call_id, &answer);
        }
        self.perform();
    }

    async fn refer(self: &Rc<Self>, number: &E164) {
        let cx = self.cx();
        let done = line::insist(&cx, &self.sid(), Action::Refer, Some(&openai_sip::refer_body(number))).await;
        let taken = done.answer == Answer::Done;
        let told = [("taken", taken.into()), ("status", done.status.into())];
        cx.log(Level::Info, Event::VoiceCallTransferred, "a call is to be handed over", &told);
        if let Some(call) = self.call.borrow_mut().as_mut() {
            call.referred(host::now_ms(), taken, done.status);
        }
        self.perform();
    }

    async fn hang_up(self: &Rc<Self>, cause: &'static str, reason: &str) {
        if self.hanging_up.replace(true) {
            return;
        }
        let done = line::insist(&self.cx(), &self.sid(), Action::Hangup, None).await;
        if !matches!(done.answer, Answer::Done | Answer::Gone) {
            let told = [("status", done.status.into())];
            self.cx().log(Level::Error, Event::VoiceLineLost, "a call could not be hung up: its line may stand", &told);
        }
        self.over(cause, reason);
    }

    /// The call is over. What is owed is written down at once, and done by the alarm.
    fn over(self: &Rc<Self>, cause: &str, reason: &str) {
        if !self.is(phase::TALKING) {
            return;
        }
        if let Some(link) = self.link.borrow_mut().take() {
            link.socket.close();
        }
        if let Some(call) = self.call.borrow_mut().as_mut() {
            call.end(host::now_ms(), cause);
        }
        self.perform();
        self.finish(cause, reason);
    }

    /// Writes down how the call ended, for the alarm.
    fn finish(&self, cause: &str, reason: &str) {
        let answered_at = self.note(note::ANSWERED_AT);
        let last_seq = self.call.borrow().as_ref().map(Sideband::last_seq);
        let end = obj(&mut [
            ("cause", cause.into()),
            ("reason", Some(reason).filter(|reason| !reason.is_empty()).into()),
            ("answered_at", Some(answered_at.as_str()).filter(|at| !at.is_empty()).into()),
            ("ended_at", timestamp::to_rfc3339(host::now()).into()),
            ("last_seq", last_seq.into()),
        ]);
        self.store.put(note::END, &to_text(&end));
        self.store.put(note::PHASE, phase::ENDING);
        self.wake(host::now_ms());
    }

    /// Nothing is owed: of the call only what was decided is remembered, and no person.
    fn close(&self) {
        self.store.put(note::PHASE, phase::DONE);
        self.call.replace(None);
        self.store.forget(&[note::PHASE, note::ANSWER].join("\n"));
        self.wake_ms.set(0);
        self.wake(host::now_ms() + REMEMBERED_MS);
    }

    fn connect(self: &Rc<Self>) {
        let idle = self.link.borrow().is_some() || self.hanging_up.get() || !self.is(phase::TALKING);
        if idle || self.connecting.replace(true) {
            return;
        }
        let here = self.clone();
        spawn_local(async move {
            here.open().await;
            here.connecting.set(false);
        });
    }

    async fn open(self: &Rc<Self>) {
        let cx = self.cx();
        let number = self.links.get() + 1;
        self.links.set(number);
        let here = Rc::downgrade(self);
        let tell: Tell = Closure::new(move |kind: String, text: String| {
            if let Some(here) = here.upgrade() {
                here.told(number, &kind, &text);
            }
        });
        let socket = Socket::new(tell.as_ref());
        let url = openai_sip::sideband_url(cx.config.text("OPENAI_BASE_URL"), &self.sid());
        let limit_ms = cx.config.number("OPENAI_REALTIME_TIMEOUT_MS");
        let said = socket.open(&url, &line::bearer(&cx), limit_ms);
        // Before anything is heard of it: a message may come at once.
        self.link.replace(Some(Link { number, socket, since_ms: host::now_ms(), _tell: tell }));
        let said = JsFuture::from(said).await.ok().and_then(|said| said.as_string()).unwrap_or_default();
        let mut parts = said.splitn(3, '\n');
        let status = parts.next().and_then(|status| status.parse::<u16>().ok()).unwrap_or(0);
        let answer = match status {
            0 => Answer::Again("no_answer"),
            _ => openai_sip::answer(status, parts.nth(1).unwrap_or_default().as_bytes()),
        };
        if answer == Answer::Done {
            if let Some(call) = self.call.borrow_mut().as_mut() {
                call.connected(host::now_ms());
            }
            return self.perform();
        }
        self.link.replace(None);
        let seen = self.call.borrow().as_ref().is_some_and(|call| call.was_observed());
        match answer {
            // The line is down: the call was ended by whom we could not hear any more.
            Answer::Gone if seen => self.gone(),
            Answer::Refused(why) => {
                cx.log(Level::Error, Event::VoiceLineLost, &format!("a call cannot be observed: {why}"), &[]);
                self.hang_up("model_unavailable", why).await;
            }
            _ => self.lost(0).await,
        }
    }

    fn gone(self: &Rc<Self>) {
        let handed_over = self.call.borrow().as_ref().is_some_and(Sideband::is_handed_over);
        self.over(if handed_over { "transferred" } else { "caller_hangup" }, "");
    }

    /// Something came over the socket.
    fn told(self: &Rc<Self>, number: u32, kind: &str, text: &str) {
        if self.link.borrow().as_ref().is_none_or(|link| link.number != number) {
            return;
        }
        if kind == "message" {
            // Twenty a second, of which nothing is kept. A quote within a text has a backslash before it.
            if text.contains(".delta\u{22}") {
                return;
            }
            if let Some(call) = self.call.borrow_mut().as_mut() {
                call.message(host::now_ms(), text);
            }
            return self.perform();
        }
        let here = self.clone();
        // Not within the socket's own call: its closure would be dropped while it runs.
        spawn_local(async move {
            let link = here.link.borrow_mut().take_if(|link| link.number == number);
            if let Some(link) = link {
                here.lost(link.since_ms).await;
            }
        });
    }

    /// A connection broke, or none could be made. `since_ms`: how long it stood; 0: not at all.
    async fn lost(self: &Rc<Self>, since_ms: i64) {
        let now_ms = host::now_ms();
        if let Some(call) = self.call.borrow_mut().as_mut() {
            call.lost();
        }
        self.perform();
        if since_ms > 0 && now_ms - since_ms >= LASTS_MS {
            self.tries.set(0);
        }
        let tries = self.tries.get();
        match WAITS_MS.get(tries) {
            Some(wait) => {
                self.tries.set(tries + 1);
                self.retry_ms.set(now_ms + wait);
                self.wake(now_ms + wait);
                // Sooner than the alarm, which may be waiting for the database.
                let here = self.clone();
                let pause_ms = u32::try_from(*wait).unwrap_or_default();
                spawn_local(async move {
                    pause::for_ms(pause_ms).await;
                    here.connect();
                });
                let told = [("attempt", tries.into())];
                self.cx().log(
                    Level::Warn,
                    Event::VoiceLineLost,
                    "a call is not observed: a connection is tried",
                    &told,
                );
            }
            None => self.hang_up("model_unavailable", "sideband_lost").await,
        }
    }

    /// What is due.
    async fn look_after(self: &Rc<Self>) {
        if self.deciding.get() {
            return self.wake(host::now_ms() + HEARTBEAT_MS);
        }
        match self.note(note::PHASE).as_str() {
            // Whoever decided is gone. Where the vendor may have heard of it, the line tells.
            phase::ACCEPTING => match serde_json::from_str(&self.note(note::SETUP)) {
                Ok(setup) => {
                    let call_id = self.note(note::CALL_ID);
                    let answer = obj(&mut [("decision", "accepted".into()), ("call_id", call_id.into())]);
                    self.store.put(note::ANSWER, &to_text(&answer));
                    self.begin(setup);
                }
                Err(_) => self.finish("setup_failed", "object_lost"),
            },
            phase::TALKING => self.look_after_the_call().await,
            phase::ENDING => self.settle().await,
            // Undecided, and nobody has come back for it; or remembered for long enough.
            _ => {
                let _ = JsFuture::from(self.store.clear()).await;
            }
        }
    }

    async fn look_after_the_call(self: &Rc<Self>) {
        let cx = self.cx();
        let now_ms = host::now_ms();
        if now_ms >= self.retry_ms.get() {
            self.connect();
        }
        if let Some(call) = self.call.borrow_mut().as_mut() {
            call.timeout(now_ms);
        }
        self.perform();
        let answered = timestamp::parse_rfc3339(&self.note(note::ANSWERED_AT)).unwrap_or_else(host::now);
        let most_s = i64::from(cx.config.number("OPENAI_SIP_MAX_SECONDS"));
        if (host::now() - answered).num_seconds() >= most_s {
            self.hang_up("max_duration", "").await;
        }
        let stored = record::flush(&cx, &self.store, &self.asked(), &self.note(note::CALL_ID)).await;
        self.refusals.set(if stored { 0 } else { self.refusals.get() + 1 });
        if self.is(phase::TALKING) {
            let wait_ms = if stored { HEARTBEAT_MS } else { self.patience_ms() };
            self.wake(host::now_ms() + wait_ms);
            if self.link.borrow().is_none() {
                self.wake(self.retry_ms.get().max(host::now_ms() + 50));
            }
        } else {
            self.wake(host::now_ms());
        }
    }

    /// Brings to Postgres what is left of a call that is over: its last events, then its end, then the wish for a summary.
    async fn settle(self: &Rc<Self>) {
        let cx = self.cx();
        let (asked, call_id) = (self.asked(), self.note(note::CALL_ID));
        let end = parse(&self.note(note::END)).unwrap_or_default();
        let done =
            record::flush(&cx, &self.store, &asked, &call_id).await && record::end(&cx, &asked, &call_id, &end).await;
        if done {
            return self.close();
        }
        self.refusals.set(self.refusals.get() + 1);
        self.wake(host::now_ms() + self.patience_ms());
    }

    /// Twice as long each time.
    fn patience_ms(&self) -> i64 {
        (1_000_i64 << self.refusals.get().min(10)).min(PATIENCE_MS)
    }
}
