//! One task a call: carries what the call, its media and its model decide to the sockets and back.

mod conversation;
mod hand_over;
mod offers;
mod recording;
mod sound;

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use ihuza_core::locale::Locale;
use ihuza_core::phone::E164;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use uuid::Uuid;

use self::hand_over::HandOver;
pub use self::offers::{policy_of, refused};
use self::sound::{figures, from_line, receive};
use super::announcements::Announcement;
use super::gates::Gates;
use super::gateway::Line;
use super::link::{self, Brought, Lines};
use super::log::Level;
use super::ports::Pair;
use super::recorder::Recording;
use super::relay::Shared;
use super::scribe;
use super::session_function::{Opened, Opening};
use super::signalling::{Incoming, Signal};
use crate::backend::realtime::Realtime;
use crate::backend::{self, Link, VoiceBackend};
use crate::config::{Did, Trunk};
use crate::journal::entry::{Direction, Entry, Origin};
use crate::media::dtmf;
use crate::media::g711::Law;
use crate::media::session::{Report, Session};
use crate::moment::Moment;
use crate::sip::call::{self, Call, EndCause};
use crate::sip::consent::Consent;
use crate::sip::description::{Agreed, Local};
use crate::sip::session_timer::{Due, Interval, SessionTimer};

/// The longest datagram that is looked at.
const MOST_DATAGRAM: usize = 2048;

/// Stands for the other end of a call over a gateway, which has no address; one for documentation (RFC 5737).
pub const GATEWAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 9);

/// What a call is made of when it is let in.
pub struct Start {
    /// SIP.
    pub incoming: Incoming,
    /// The trunk's Call-ID.
    pub call_sid: String,
    /// By which way it came.
    pub origin: Origin,
    /// By which trunk.
    pub trunk: Trunk,
    /// For which number.
    pub did: Did,
    /// In which language it begins: the number's own, unless another one was asked for.
    pub locale: Locale,
    /// Who calls.
    pub caller: Option<E164>,
    /// Ports for its media, if it comes by RTP.
    pub pair: Option<Pair>,
    /// The gateway that brings it, if one does.
    pub line: Option<Line>,
    /// Our end, which has answered the offer.
    pub local: Local,
    /// Our description.
    pub description: String,
    /// What was agreed on; nothing yet if the offer is ours.
    pub agreed: Option<Agreed>,
    /// The session timer.
    pub interval: Option<Interval>,
    /// What only a call has that we place.
    pub placed: Option<Placed>,
}

/// What only a call has that we place.
pub struct Placed {
    /// Who calls whom.
    pub opening: Opening,
    /// Its first entry, which is in the journal.
    pub opened: Entry,
    /// Whoever asked for it wants it to end.
    pub hang_up: mpsc::Receiver<()>,
    /// How long it may ring.
    pub ring_within: Duration,
    /// How long it may last from its answer on.
    pub longest: Duration,
}

/// What tasks of the call bring back.
enum Arrival {
    Opened(Result<Opened, String>),
    /// What another connection to the model may be opened with.
    Renewed(Link, Result<Opened, String>),
    /// A connection to the model, or nothing if it could not be had.
    Linked(Link, Option<Box<link::Socket>>),
    Tool {
        call_id: String,
        name: String,
        took: Duration,
        output: Result<String, String>,
    },
    Refreshed(bool),
    ConsentKept(bool),
    Referred(Option<u16>),
}

struct Running {
    shared: Arc<Shared>,
    start: Start,
    opening: Opening,
    began: Moment,
    call: Call,
    model: Option<Realtime>,
    /// The law that the model speaks. It is set up before a call that we place is answered, and the answer may choose the
    /// other one.
    model_law: Law,
    opened: Opened,
    lines: Lines,
    media: Option<Session>,
    /// What the model said before there was media.
    early: VecDeque<backend::Output>,
    /// The caller was told that nobody will speak: no model does any more.
    given_up: bool,
    timer: Option<SessionTimer>,
    hand_over: Option<HandOver>,
    /// What an INVITE of ours was answered with while it rang.
    early_description: Vec<u8>,
    arrivals: mpsc::Sender<Arrival>,
    record: mpsc::Sender<scribe::Line>,
    /// On a trunk that records.
    consent: Option<Consent>,
    recording: Option<Recording>,
    ended: Option<EndCause>,
    /// It was answered.
    answered: bool,
    /// What it took of the relay is given back.
    given_back: bool,
}

/// Carries a call from its INVITE to its end.
pub async fn run(shared: Arc<Shared>, mut start: Start) {
    let began = shared.clock.now();
    let placed = start.placed.take();
    let opening = placed.as_ref().map_or_else(
        || Opening {
            correlation_id: Uuid::new_v4().to_string(),
            call_sid: start.call_sid.clone(),
            origin: start.origin,
            trunk: start.trunk.name.clone(),
            from: start.caller.as_ref().map(|caller| caller.as_str().to_owned()),
            to: start.did.number.0.as_str().to_owned(),
            agent: start.did.agent.clone(),
            locale: start.locale,
            direction: Direction::Inbound,
            reference: None,
        },
        |placed| placed.opening.clone(),
    );
    let written = placed.as_ref().map(|placed| placed.opened.clone()).into_iter().collect();
    let record = scribe::begin(shared.desk.clone(), opening.clone(), written);
    let mut gates = Gates::of_this_task().await;
    let (arrivals, mut arrived) = mpsc::channel(16);
    let answer_within = Duration::from_millis(shared.config.sip.answer_within_ms);
    let longest = shared.config.limits.longest_call();
    let call = match &placed {
        Some(placed) => Call::outbound(began, placed.ring_within, answer_within, placed.longest.min(longest)),
        None => Call::new(began, answer_within, longest),
    }
    .with_fallback(start.trunk.fallback.is_some());
    // Of a call that was let in nobody may wish anything; the sender is kept so that the wish never comes.
    let (_nobody, nothing) = mpsc::channel(1);
    let mut wish_to_end = placed.map_or(nothing, |placed| placed.hang_up);
    let mut running = Running {
        call,
        opening,
        began,
        model: None,
        model_law: Law::A,
        opened: Opened::default(),
        lines: Lines::new(shared.clock, &mut gates),
        media: None,
        early: VecDeque::new(),
        given_up: false,
        timer: None,
        hand_over: None,
        early_description: Vec::new(),
        arrivals,
        record,
        consent: None,
        recording: None,
        ended: None,
        answered: false,
        given_back: false,
        shared: shared.clone(),
        start,
    };
    running.open();
    let mut stop = shared.stop_calls.subscribe();
    let mut stopped = pin!(stop.changed().fuse());
    let [time_gate, media_gate, control_gate, signal_gate, arrival_gate, wish_gate, stop_gate] =
        [(); 7].map(|()| gates.gate());
    let mut timer = pin!(tokio::time::sleep_until(shared.clock.instant(began)));
    let (mut media_buffer, mut control_buffer) = ([0; MOST_DATAGRAM], [0; MOST_DATAGRAM]);
    while running.ended.is_none() {
        running.carry_out();
        if running.ended.is_some() {
            break;
        }
        let wake = shared.clock.instant(running.next_timeout());
        if timer.deadline() != wake {
            timer.as_mut().reset(wake);
            time_gate.open();
        }
        // Fair on purpose: a flood on the media port must not keep the model or SIP waiting.
        tokio::select! {
            () = time_gate.pass(|context| timer.as_mut().poll(context)) => running.timeout(),
            Ok((length, from)) = media_gate.pass(|context| receive(running.start.pair.as_ref().map(|pair| &pair.media), &mut media_buffer, context)) => {
                if let (Some(media), Some(datagram)) = (&mut running.media, media_buffer.get(..length)) {
                    media.handle_datagram(shared.clock.now(), from, datagram);
                }
            }
            brought = running.lines.next() => match brought {
                Brought::Message(link, text) => running.tell_model(backend::Input::Message(link, text)),
                Brought::Gone(link) => running.tell_model(backend::Input::Disconnected(link)),
            },
            Some(arrived) = from_line(&mut running.start.line) => running.line_brings(arrived),
            signal = signal_gate.pass(|context| running.start.incoming.signals.poll_recv(context)) => match signal {
                Some(signal) => running.signal(signal),
                // The stack has given the dialog up.
                None => running.tell_call(call::Input::HungUp),
            },
            Some(arrival) = arrival_gate.pass(|context| arrived.poll_recv(context)) => running.arrival(arrival),
            Ok((length, from)) = control_gate.pass(|context| receive(running.start.pair.as_ref().map(|pair| &pair.control), &mut control_buffer, context)) => {
                if let (Some(media), Some(datagram)) = (&mut running.media, control_buffer.get(..length)) {
                    media.handle_control(shared.clock.now(), from, datagram);
                }
            }
            Some(()) = wish_gate.pass(|context| wish_to_end.poll_recv(context)) => running.tell_call(call::Input::Requested),
            Ok(()) = stop_gate.pass(|context| stopped.as_mut().poll(context)) => running.tell_call(call::Input::Shutdown),
        }
    }
    running.close();
}

impl Running {
    fn now(&self) -> Moment {
        self.shared.clock.now()
    }

    fn at_ms(&self) -> i64 {
        self.shared.clock.unix_ms(self.now())
    }

    fn write(&self, entry: Entry) {
        self.write_line(entry.into());
    }

    fn write_line(&self, line: scribe::Line) {
        if self.record.try_send(line).is_err() {
            self.log("JOURNAL_FAILED", Level::Error, "the record of a call does not keep up", json!({}));
        }
    }

    fn log(&self, event: &str, level: Level, message: &str, mut fields: Value) {
        if let Some(fields) = fields.as_object_mut() {
            fields.insert("correlation_id".into(), self.opening.correlation_id.clone().into());
            fields.insert("trunk".into(), self.opening.trunk.clone().into());
        }
        self.shared.desk.log.event(event, level, message, fields);
    }

    fn open(&mut self) {
        let Opening { call_sid, from, to, direction, .. } = self.opening.clone();
        self.log(
            "CALL_STARTED",
            Level::Info,
            if self.is_ours() { "a call is placed" } else { "a call was let in" },
            json!({ "from": from, "to": to, "call_sid": call_sid, "direction": direction }),
        );
        if !self.is_ours() {
            self.write(self.opening.entry(self.at_ms()));
        }
        let (function, opening, arrivals) =
            (self.shared.desk.function.clone(), self.opening.clone(), self.arrivals.clone());
        tokio::spawn(async move {
            let opened = function.open(&opening, 1).await.map_err(|error| error.to_string());
            let _ = arrivals.send(Arrival::Opened(opened)).await;
        });
    }

    /// Whether we placed it.
    fn is_ours(&self) -> bool {
        self.opening.direction == Direction::Outbound
    }

    fn next_timeout(&self) -> Moment {
        let far = self.now() + Duration::from_secs(60);
        let model = self.model.as_ref().and_then(|model| model.next_timeout());
        let media = self.media.as_ref().map(Session::next_timeout);
        let timer = self.timer.as_ref().map(SessionTimer::next_timeout);
        let transfer = self.transfer().map(|transfer| transfer.next_timeout());
        let consent = self.consent.as_ref().and_then(Consent::next_timeout);
        let line = self.start.line.as_ref().and_then(Line::next_timeout);
        let lines = self.lines.next_timeout();
        [self.call.next_timeout(), model, media, timer, transfer, consent, line, lines]
            .into_iter()
            .flatten()
            .fold(far, Moment::min)
    }

    fn timeout(&mut self) {
        let now = self.now();
        if let Some(media) = self.media.as_mut().filter(|media| media.next_timeout() <= now) {
            media.handle_timeout(now);
        }
        if let Some(model) = self.model.as_mut().filter(|model| model.next_timeout().is_some_and(|at| at <= now)) {
            model.handle_input(now, backend::Input::Timeout);
        }
        if self.call.next_timeout().is_some_and(|at| at <= now) {
            self.call.handle_input(now, call::Input::Timeout);
        }
        if let Some(outcome) = self.transfer().and_then(|transfer| transfer.poll(now)) {
            self.handed_over(outcome);
        }
        if let Some(line) = &mut self.start.line {
            line.timeout(now);
        }
        self.heard_by_caller();
        if let Some(output) = self.consent.as_mut().and_then(|consent| consent.timeout(now)) {
            self.do_for_consent(output);
        }
        if let Some(link) = self.lines.timeout(now) {
            self.tell_model(backend::Input::Disconnected(link));
        }
        match self.timer.as_mut().and_then(|timer| timer.poll(now)) {
            Some(Due::Expired) => self.tell_call(call::Input::SessionExpired),
            Some(Due::Refresh) => self.refresh(),
            None => {}
        }
    }

    fn tell_call(&mut self, input: call::Input) {
        let now = self.now();
        self.call.handle_input(now, input);
    }

    fn tell_model(&mut self, input: backend::Input) {
        let now = self.now();
        if let backend::Input::Disconnected(link) = &input {
            self.lines.close(*link);
        }
        if let Some(model) = &mut self.model {
            model.handle_input(now, input);
        }
    }

    fn arrival(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Opened(Ok(opened)) => self.prepare(opened),
            Arrival::Opened(Err(error)) => {
                self.log("SESSION_OPEN_FAILED", Level::Error, &error, json!({}));
                self.tell_call(call::Input::ModelFailed);
            }
            Arrival::Renewed(link, Ok(renewed)) => {
                self.opened.ephemeral_key = renewed.ephemeral_key;
                self.opened.url = renewed.url.or(self.opened.url.take());
                self.dial(link);
            }
            Arrival::Renewed(link, Err(error)) => {
                self.log("MODEL_KEY_NOT_RENEWED", Level::Warn, &error, json!({}));
                self.dial(link);
            }
            Arrival::Linked(link, Some(socket)) => {
                self.lines.add(link, socket);
                self.tell_model(backend::Input::Connected(link));
            }
            Arrival::Linked(link, None) => self.tell_model(backend::Input::Disconnected(link)),
            Arrival::Tool { call_id, name, took, output } => {
                let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                self.write(Entry::Tool {
                    call_id: call_id.clone(),
                    name,
                    took_ms,
                    ok: output.is_ok(),
                    at_ms: self.at_ms(),
                });
                let output = output.unwrap_or_else(|error| json!({ "error": error }).to_string());
                if let Some(number) = self.wants_transfer(&output).filter(|_| self.hand_over.is_none()) {
                    self.hand_over = Some(HandOver { call_id, number, transfer: None });
                    return self.refer_when_silent();
                }
                self.tell_model(backend::Input::ToolResult { call_id, output });
            }
            Arrival::Referred(status) => {
                if let Some(outcome) = self.transfer().and_then(|transfer| transfer.answered(status)) {
                    self.handed_over(outcome);
                }
            }
            Arrival::ConsentKept(certain) => {
                if let Some(output) = self.consent.as_mut().and_then(|consent| consent.kept(certain)) {
                    self.do_for_consent(output);
                }
            }
            Arrival::Refreshed(true) => {
                let now = self.now();
                if let (Some(timer), Some(interval)) = (&mut self.timer, self.start.interval) {
                    timer.refreshed(now, interval);
                }
            }
            Arrival::Refreshed(false) => {
                self.log("SESSION_REFRESH_FAILED", Level::Warn, "a session refresh was refused", json!({}))
            }
        }
    }

    fn law(&self) -> Law {
        let first = self.start.trunk.codecs.first().map_or(Law::A, |codec| codec.law());
        self.start.agreed.map_or(first, |agreed| agreed.codec.law())
    }

    fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Acknowledged(answer) => self.acknowledged(&answer),
            Signal::NotAcknowledged => self.tell_call(call::Input::NotAcknowledged),
            Signal::Cancelled => self.tell_call(call::Input::Cancelled),
            Signal::HungUp => self.tell_call(call::Input::HungUp),
            Signal::Lost => self.tell_call(call::Input::MediaLost),
            Signal::Ringing(description) => {
                self.shared.calls.ringing(&self.opening.correlation_id);
                if !description.is_empty() {
                    self.early_description = description;
                }
            }
            Signal::PickedUp { answer, session_expires } => self.picked_up(&answer, session_expires.as_deref()),
            Signal::Refused(status) => {
                self.shared.calls.refused(&self.opening.correlation_id, status);
                self.tell_call(call::Input::Refused(status));
            }
            Signal::Reoffer { offer, wants_offer, session_expires, supports_timer, answer } => {
                let mut decided = self.reoffer(&offer, session_expires.as_deref(), supports_timer);
                if let (true, Ok(accepted)) = (wants_offer, &mut decided) {
                    accepted.description = Some(self.offer_again());
                }
                let _ = answer.send(decided);
            }
            Signal::TransferTold(fragment) => {
                if let Some(outcome) = self.transfer().and_then(|transfer| transfer.notified(&fragment)) {
                    self.handed_over(outcome);
                }
            }
            Signal::Info(body) => {
                let now = self.now();
                if let (Some(media), Some(digit)) = (&mut self.media, dtmf::from_info_body(&body)) {
                    media.info_digit(now, digit);
                }
            }
        }
    }

    /// Carries out what was decided, until nothing is left to do.
    fn carry_out(&mut self) {
        loop {
            if let Some(output) = self.call.poll_output() {
                self.do_for_call(output);
            } else if let Some(output) = self.model.as_mut().and_then(Realtime::poll_output) {
                self.do_for_model(output);
            } else if let Some(output) = self.media.as_mut().and_then(Session::poll_output) {
                self.do_for_media(output);
            } else {
                return;
            }
        }
    }

    fn do_for_call(&mut self, output: call::Output) {
        match output {
            call::Output::Ring => self.start.incoming.dialog.ring(),
            call::Output::Answer => self.answer(),
            call::Output::Reject(status) => self.start.incoming.dialog.reject(status),
            call::Output::Apologise => {
                // The apology must not wait behind what the model still had to say, nor be followed by it.
                self.silence();
                self.given_up = true;
                self.early.clear();
                if let Some(model) = &mut self.model {
                    model.give_up();
                }
                self.announce(Announcement::Apology);
            }
            call::Output::HandOver => self.hand_over_instead(),
            // The INVITE is on its way since before this task began.
            call::Output::Dial => {}
            call::Output::Cancel => {
                let dialog = self.start.incoming.dialog.clone();
                tokio::spawn(async move { dialog.cancel().await });
            }
            call::Output::HangUp(cause) => {
                // A peer that is gone lets a BYE wait for half a minute; the record does not.
                let dialog = self.start.incoming.dialog.clone();
                tokio::spawn(async move { dialog.hang_up(cause).await });
            }
            call::Output::Ended(cause) => self.ended = Some(cause),
        }
    }

    fn close(mut self) {
        let now = self.now();
        let cause = self.ended.unwrap_or(EndCause::Shutdown);
        // What the agent was saying is told as far as it was heard.
        let heard = self.cut_off();
        self.tell_model(backend::Input::Cut(heard));
        if let Some(media) = &mut self.media {
            media.end(now);
        }
        self.carry_out();
        self.end_recording(None);
        self.lines.close_all();
        let report = self.media.as_ref().map(Session::report);
        let media = report.as_ref().map_or(Value::Null, figures);
        self.log("CALL_ENDED", Level::Info, cause.as_str(), json!({ "cause": cause.as_str(), "media": media }));
        self.give_back(cause, media, report.as_ref());
    }

    /// The call is over, once: told, counted, and its line and ports are free again.
    fn give_back(&mut self, cause: EndCause, media: Value, report: Option<&Report>) {
        if std::mem::replace(&mut self.given_back, true) {
            return;
        }
        let now = self.now();
        self.shared.ended(&self.start.trunk.name, &self.start.did.number.0);
        if let Some(pair) = &self.start.pair {
            self.shared.ports.give_back(now, pair.port);
        }
        self.write(Entry::Ended { cause, media, at_ms: self.at_ms() });
        self.shared.metrics.ended(cause, report);
        self.shared.calls.ended(&self.opening.correlation_id, now, self.at_ms(), cause);
    }
}

/// A call whose task breaks off, by a fault of ours, is ended all the same: its caller is not left in silence, and its line is
/// not lost.
impl Drop for Running {
    fn drop(&mut self) {
        // A call that is dropped because the whole relay ends is ended by the next start.
        if self.given_back || !std::thread::panicking() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        self.log("CALL_TORN_DOWN", Level::Error, "a fault of the relay ended a call", json!({}));
        let (dialog, answered, ours) = (self.start.incoming.dialog.clone(), self.answered, self.is_ours());
        self.give_back(EndCause::RelayFault, Value::Null, None);
        runtime.spawn(async move {
            match (answered, ours) {
                (true, _) => dialog.hang_up(call::q850(EndCause::RelayFault)).await,
                (false, true) => dialog.cancel().await,
                (false, false) => dialog.reject(500),
            }
        });
    }
}

/// 32 random bits.
pub fn dice() -> u32 {
    let [a, b, c, d, ..] = Uuid::new_v4().into_bytes();
    u32::from_be_bytes([a, b, c, d])
}
