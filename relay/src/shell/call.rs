//! One task a call: carries what the call, its media and its model decide to the sockets and back.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use ihuza_core::locale::Locale;
use ihuza_core::phone::E164;
use serde_json::{Value, json};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::announcements::Announcement;
use super::gates::Gates;
use super::gateway::{Arrived, Line, Stuck};
use super::link::{self, Brought, Lines};
use super::log::Level;
use super::ports::Pair;
use super::recorder::Recording;
use super::relay::Shared;
use super::scribe;
use super::session_function::{Opened, Opening};
use super::signalling::{Accepted, Incoming, Refused, Signal};
use crate::backend::realtime::{Realtime, Setup};
use crate::backend::{self, Link, VoiceBackend};
use crate::config::{Did, Trunk};
use crate::journal::entry::{Direction, Entry, Origin};
use crate::media::dtmf::{self, Digit};
use crate::media::g711::Law;
use crate::media::playout::{Heard, ItemId};
use crate::media::session::{self, Session};
use crate::media::source::Network;
use crate::moment::Moment;
use crate::sip::admission::Refusal;
use crate::sip::call::{self, Call, EndCause};
use crate::sip::consent::{self, Consent};
use crate::sip::description::{Agreed, Local, Policy};
use crate::sip::session_timer::{Due, Interval, SessionTimer};
use crate::sip::transfer::{self, Outcome, Transfer};

/// The longest datagram that is looked at.
const MOST_DATAGRAM: usize = 2048;
/// A key for a further connection is there within this time, or the one at hand is tried: a connection's whole set-up has four
/// seconds.
const RENEWED_WITHIN: Duration = Duration::from_secs(1);
/// Where a tool's answer says whom the call is to be handed over to.
const TRANSFER_TO: &str = "transfer_to";
/// A tool of our own: the agent says goodbye.
const END_CALL: &str = "end_call";

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

/// A call that is being handed over, for a use of a tool that waits for the outcome.
struct HandOver {
    call_id: String,
    number: E164,
    /// None while the agent still speaks.
    transfer: Option<Transfer>,
}

struct Running {
    shared: Arc<Shared>,
    start: Start,
    opening: Opening,
    began: Moment,
    call: Call,
    model: Option<Realtime>,
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
            locale: start.did.locale.0,
            direction: Direction::Inbound,
            reference: None,
        },
        |placed| placed.opening.clone(),
    );
    let written = placed.as_ref().map(|placed| placed.opened.clone()).into_iter().collect();
    let record = scribe::begin_with(shared.desk.clone(), opening.clone(), written);
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

/// What a gateway brings next, if there is one.
async fn from_line(line: &mut Option<Line>) -> Option<Arrived> {
    match line {
        Some(line) => line.next().await,
        None => std::future::pending().await,
    }
}

/// A datagram: its length, and where it came from; never one where there is no socket.
fn receive(
    socket: Option<&UdpSocket>,
    buffer: &mut [u8],
    context: &mut Context<'_>,
) -> Poll<io::Result<(usize, SocketAddr)>> {
    let Some(socket) = socket else { return Poll::Pending };
    let mut buffer = ReadBuf::new(buffer);
    let from = ready!(socket.poll_recv_from(context, &mut buffer));
    Poll::Ready(from.map(|from| (buffer.filled().len(), from)))
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

    fn refresh(&self) {
        let Some(header) = self.start.interval.as_ref().map(Interval::refresh_header) else { return };
        let (dialog, arrivals) = (self.start.incoming.dialog.clone(), self.arrivals.clone());
        tokio::spawn(async move {
            let went_through = dialog.refresh(header).await;
            let _ = arrivals.send(Arrival::Refreshed(went_through)).await;
        });
    }

    fn transfer(&self) -> Option<&Transfer> {
        self.hand_over.as_ref().and_then(|hand_over| hand_over.transfer.as_ref())
    }

    /// Asks the trunk to take the call over, as soon as the agent has said what it had to say.
    fn refer_when_silent(&mut self) {
        let now = self.now();
        let speaks = self.is_speaking();
        let Some(hand_over) = self.hand_over.as_mut().filter(|hand_over| hand_over.transfer.is_none() && !speaks)
        else {
            return;
        };
        hand_over.transfer = Some(Transfer::new(now));
        let number = hand_over.number.as_str().to_owned();
        let (dialog, arrivals) = (self.start.incoming.dialog.clone(), self.arrivals.clone());
        tokio::spawn(async move {
            let status = dialog.refer(number).await;
            let _ = arrivals.send(Arrival::Referred(status)).await;
        });
    }

    fn handed_over(&mut self, outcome: Outcome) {
        let Some(hand_over) = self.hand_over.take() else { return };
        let (word, status) = match outcome {
            Outcome::Confirmed => ("confirmed", None),
            Outcome::Failed(status) => ("failed", Some(status)),
            Outcome::Unknown => ("unknown", None),
        };
        self.log("TRANSFER_ENDED", Level::Info, word, json!({ "outcome": word, "status": status }));
        self.write(Entry::Transferred { outcome: word.into(), status, at_ms: self.at_ms() });
        let output = json!({ "status": word }).to_string();
        self.tell_model(backend::Input::ToolResult { call_id: hand_over.call_id, output });
        self.tell_call(match outcome {
            Outcome::Confirmed => call::Input::Transferred,
            Outcome::Failed(_) | Outcome::Unknown => call::Input::NotTransferred,
        });
    }

    /// The model is gone, and the caller has heard so: somebody else is asked to take the call. A hand-over that is under
    /// way already is as good.
    fn hand_over_instead(&mut self) {
        let Some(crate::config::Number(number)) = self.start.trunk.fallback.clone() else { return };
        if self.hand_over.is_none() {
            self.hand_over = Some(HandOver { call_id: String::new(), number, transfer: None });
        }
        self.refer_when_silent();
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

    fn wants_transfer(&self, output: &str) -> Option<E164> {
        let output: Value = serde_json::from_str(output).ok()?;
        let wished = output.get("result")?.get(TRANSFER_TO)?.as_str()?;
        let allowed = transfer::target(wished, &self.start.trunk.transfer_prefixes);
        if allowed.is_none() {
            self.log(
                "TRANSFER_REFUSED",
                Level::Error,
                "the trunk's transfer_prefixes do not allow that number",
                json!({}),
            );
        }
        allowed
    }

    /// The agent is known: its model is called while the telephone rings.
    fn prepare(&mut self, opened: Opened) {
        if self.given_up {
            return;
        }
        let locale = opened.locale.unwrap_or(self.opening.locale);
        if locale != self.opening.locale {
            self.speaks(locale);
        }
        let settings = &self.shared.config.model;
        let setup = Setup {
            law: self.law(),
            format: settings.format,
            turn_detection: settings.turn_detection,
            instructions: opened.session.instructions.clone().unwrap_or_default(),
            locale,
            greeting: opened.greeting.clone().unwrap_or_else(|| greeting(self.opening.direction, locale)),
            voice: settings.voice.clone(),
            tools: opened.session.tools.clone(),
            roll_over_after: Duration::from_secs(settings.roll_over_minutes * 60),
        };
        self.opened = opened;
        let now = self.now();
        let mut model = Realtime::new(now, setup);
        model.handle_input(now, backend::Input::Greet);
        self.model = Some(model);
        // Somebody picked up before the agent was known.
        if self.is_ours() && self.media.is_some() && self.start.trunk.record && self.consent.is_none() {
            self.ask_consent();
        }
    }

    /// From now on the call is in this language: its announcements, its record, its summary.
    fn speaks(&mut self, locale: Locale) {
        self.opening.locale = locale;
        self.log("LANGUAGE_CHANGED", Level::Info, locale.english_name(), json!({ "language": locale.as_str() }));
        self.write(Entry::Language { locale, at_ms: self.at_ms() });
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

    fn acknowledged(&mut self, answer: &[u8]) {
        if self.start.agreed.is_none() {
            let (policy_codecs, allowed) = policy_of(&self.start.trunk);
            match self.start.local.accept(answer, Policy { codecs: policy_codecs, allowed: &allowed }) {
                // The model already speaks the law that we offered first.
                Ok(agreed) if agreed.codec.law() == self.law() => {
                    self.start.agreed = Some(agreed);
                    self.start_media();
                }
                _ => return self.tell_call(call::Input::AnswerRefused),
            }
        } else if !answer.is_empty() {
            self.answered_again(answer);
        }
        self.tell_call(call::Input::Acknowledged);
    }

    /// The offer that a re-INVITE without one asks for: what we have.
    fn offer_again(&mut self) -> String {
        let codec = self.start.agreed.map(|agreed| agreed.codec);
        let (codecs, allowed) = policy_of(&self.start.trunk);
        let codecs = codec.as_ref().map_or(codecs, std::slice::from_ref);
        self.start.local.offer(Policy { codecs, allowed: &allowed })
    }

    /// The peer's answer to such an offer. One that cannot be used leaves the session as it was.
    fn answered_again(&mut self, answer: &[u8]) {
        let now = self.now();
        let (codecs, allowed) = policy_of(&self.start.trunk);
        let law = self.law();
        match self.start.local.accept(answer, Policy { codecs, allowed: &allowed }) {
            Ok(agreed) if agreed.codec.law() == law => {
                if let Some(media) = &mut self.media {
                    media.redescribe(now, agreed.remote, agreed.remote_control, agreed.on_hold);
                }
                self.start.agreed = Some(agreed);
            }
            _ => self.log("ANSWER_UNUSABLE", Level::Warn, "an answer to our offer changes nothing", json!({})),
        }
    }

    /// Somebody answers the call that we placed.
    fn picked_up(&mut self, answer: &[u8], session_expires: Option<&str>) {
        let early = std::mem::take(&mut self.early_description);
        // An answer that came with the ringing is the answer (RFC 6337 §2.2).
        let answer = if answer.is_empty() { &early } else { answer };
        let (codecs, allowed) = policy_of(&self.start.trunk);
        match self.start.local.accept(answer, Policy { codecs, allowed: &allowed }) {
            // The model already speaks the law that we offered.
            Ok(agreed) if agreed.codec.law() == self.law() => self.start.agreed = Some(agreed),
            _ => return self.tell_call(call::Input::AnswerRefused),
        }
        let (now, at_ms) = (self.now(), self.at_ms());
        self.start.interval = session_expires.and_then(Interval::of_answer);
        self.timer = self.start.interval.map(|interval| SessionTimer::new(now, interval));
        self.shared.calls.answered(&self.opening.correlation_id, now, at_ms);
        self.write(Entry::Answered { at_ms });
        self.tell_call(call::Input::PickedUp);
        self.start_media();
    }

    fn reoffer(
        &mut self,
        offer: &[u8],
        session_expires: Option<&str>,
        supports_timer: bool,
    ) -> Result<Accepted, Refused> {
        let now = self.now();
        let interval = Interval::of_request(session_expires, supports_timer).map_err(refused)?;
        let mut accepted =
            Accepted { session_expires: interval.map(|interval| interval.header()), ..Accepted::default() };
        accepted.require_timer = interval.is_some_and(|interval| interval.is_required());
        if !offer.is_empty() {
            let (codecs, allowed) = policy_of(&self.start.trunk);
            let (description, agreed) = self
                .start
                .local
                .answer(offer, Policy { codecs, allowed: &allowed })
                .map_err(|_| refused(Refusal::NoCommonCodec))?;
            if let Some(media) = &mut self.media {
                media.redescribe(now, agreed.remote, agreed.remote_control, agreed.on_hold);
            }
            self.start.agreed = Some(agreed);
            self.start.description.clone_from(&description);
            accepted.description = Some(description);
        }
        if let Some(interval) = interval {
            self.start.interval = Some(interval);
            self.timer = Some(SessionTimer::new(now, interval));
        }
        Ok(accepted)
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

    fn answer(&mut self) {
        let interval = self.start.interval;
        self.start.incoming.dialog.accept(&Accepted {
            description: Some(self.start.description.clone()),
            session_expires: interval.map(|interval| interval.header()),
            require_timer: interval.is_some_and(|interval| interval.is_required()),
        });
        let now = self.now();
        self.timer = interval.map(|interval| SessionTimer::new(now, interval));
        self.shared.metrics.answered(now.since(self.began));
        self.write(Entry::Answered { at_ms: self.at_ms() });
        self.start_media();
    }

    fn start_media(&mut self) {
        let Some(agreed) = self.start.agreed.filter(|_| self.media.is_none()) else { return };
        let now = self.now();
        let settings = &self.shared.config.media;
        let (_, allowed) = policy_of(&self.start.trunk);
        let mut media = Session::new(
            now,
            session::Setup {
                law: agreed.codec.law(),
                payload_type: agreed.payload_type,
                telephone_event: agreed.telephone_event,
                remote: agreed.remote,
                remote_control: agreed.remote_control,
                allowed,
                echo_db: settings.echo.decibels(),
                silence_limit: Some(Duration::from_secs(settings.silence_limit_s)),
                dice: [dice(), dice(), dice(), dice()],
                cname: format!("{:08x}{:08x}", dice(), dice()),
                ntp_at_start: self.shared.clock.ntp_at_start(),
            },
        );
        if self.start.line.is_some() {
            media.keep_silence();
        }
        if agreed.on_hold {
            media.redescribe(now, agreed.remote, agreed.remote_control, true);
        }
        self.media = Some(media);
        // A call without an agent is an apology: there is nothing to record.
        if self.start.trunk.record && self.model.is_some() {
            self.ask_consent();
        }
        // What the agent says first waits behind the announcement.
        for output in std::mem::take(&mut self.early) {
            self.do_for_model(output);
        }
    }

    /// Throws away what the agent has still to say, and tells the model how far it was heard. Whether there was any.
    fn silence(&mut self) -> bool {
        let heard = self.cut_off();
        let was_speaking = !heard.is_empty();
        if was_speaking {
            self.tell_model(backend::Input::Cut(heard));
        }
        was_speaking
    }

    /// Says that the call is recorded; the recording begins behind it.
    fn ask_consent(&mut self) {
        let (now, law) = (self.now(), self.law());
        // The call's language may be one that the trunk's announcements lack.
        let locales = [self.opening.locale, self.start.did.locale.0];
        let words = |locale| Some((locale, self.shared.announcements.spoken(Announcement::Consent, locale, law)?));
        let Some((locale, sound)) = locales.into_iter().find_map(words) else {
            return self.log("RECORDING_REFUSED", Level::Error, "there is no announcement: not recorded", json!({}));
        };
        let wait = Duration::from_millis(self.shared.config.recording.refusal_wait_ms);
        let refuse_key = self.start.trunk.refuse_key.and_then(Digit::from_char);
        self.consent = Some(Consent::new(locale, refuse_key, wait));
        if let Some(media) = &mut self.media {
            media.announce(now, &ItemId::from(Announcement::Consent.as_str()), sound.into());
        }
    }

    fn do_for_consent(&mut self, output: consent::Output) {
        match output {
            consent::Output::Keep(state) => {
                let locale = self.consent.as_ref().map_or(self.opening.locale, |consent| consent.locale);
                let (line, kept) = scribe::Line::kept(Entry::Consent { state, locale, at_ms: self.at_ms() });
                self.log("RECORDING_CONSENT", Level::Info, state.as_str(), json!({ "state": state.as_str() }));
                self.write_line(line);
                if state == consent::State::Announced {
                    let arrivals = self.arrivals.clone();
                    tokio::spawn(async move {
                        let certain = kept.await.unwrap_or(false);
                        let _ = arrivals.send(Arrival::ConsentKept(certain)).await;
                    });
                }
            }
            consent::Output::Record => {
                let Some(recorder) = &self.shared.recorder else { return };
                match recorder.begin(&self.opening.correlation_id, self.law()) {
                    Ok(recording) => {
                        self.write(Entry::Recording { file: recording.file(), at_ms: self.at_ms() });
                        self.recording = Some(recording);
                        if let Some(media) = &mut self.media {
                            media.record();
                        }
                    }
                    Err(error) => self.log("RECORDING_FAILED", Level::Error, &error.to_string(), json!({})),
                }
            }
        }
    }

    fn recorded(&mut self, sound: Vec<u8>) {
        if let Some(Err(error)) = self.recording.as_mut().map(|recording| recording.append(sound)) {
            self.log("RECORDING_FAILED", Level::Error, &error.to_string(), json!({}));
            self.end_recording(Some(error.to_string()));
        }
    }

    fn end_recording(&mut self, failure: Option<String>) {
        let rest = self.media.as_mut().map(Session::stop_recording).unwrap_or_default();
        let Some(mut recording) = self.recording.take() else { return };
        let failure = failure.or_else(|| recording.append(rest).err().map(|error| error.to_string()));
        let (file, duration_ms) = (recording.file(), recording.duration_ms());
        self.write(Entry::Recorded { file, duration_ms, failure, at_ms: self.at_ms() });
    }

    fn is_announcing_consent(&self) -> bool {
        self.consent.as_ref().is_some_and(Consent::is_announcing)
    }

    fn announce(&mut self, announcement: Announcement) {
        let (now, law) = (self.now(), self.law());
        let sound = self.shared.announcements.sound(announcement, self.opening.locale, law);
        if let Some(media) = &mut self.media {
            media.announce(now, &ItemId::from(announcement.as_str()), sound.into());
        }
    }

    fn do_for_model(&mut self, output: backend::Output) {
        let now = self.now();
        match output {
            backend::Output::Connect(link) => self.connect(link),
            backend::Output::Send(link, text) => {
                // A socket that does not keep up with a voice is as good as gone.
                if !self.lines.send(link, text) {
                    self.tell_model(backend::Input::Disconnected(link));
                }
            }
            backend::Output::Close(link) => self.lines.close(link),
            backend::Output::Ready => self.tell_call(call::Input::ModelReady),
            backend::Output::Play { item, audio } => match &mut self.media {
                Some(media) => media.play(now, &item, audio),
                None => self.early.push_back(backend::Output::Play { item, audio }),
            },
            backend::Output::Complete(item) => match &mut self.media {
                Some(media) => media.finish(&item),
                None => self.early.push_back(backend::Output::Complete(item)),
            },
            backend::Output::Flush => {
                if self.silence() {
                    self.shared.metrics.interrupted();
                }
            }
            backend::Output::Said { speaker, text, locale, interrupted } => {
                let (locale, source) = locale.unzip();
                self.write(Entry::Said { speaker, text, locale, source, interrupted, at_ms: self.at_ms() });
            }
            backend::Output::Language(locale) => self.speaks(locale),
            backend::Output::ToolCall { call_id, name, arguments } => self.tool(call_id, name, arguments),
            backend::Output::Filler => self.announce(Announcement::Filler),
            backend::Output::Used(usage) => self.write(Entry::Used { usage, at_ms: self.at_ms() }),
            backend::Output::Warning(message) => self.log("MODEL_WARNING", Level::Warn, &message, json!({})),
            backend::Output::Failed(reason) => {
                self.log("MODEL_FAILED", Level::Error, reason, json!({}));
                self.tell_call(call::Input::ModelFailed);
            }
        }
    }

    fn connect(&mut self, link: Link) {
        // A key of the function's is made to be used at once: a later connection needs another one.
        if link.0 == 1 || self.opened.ephemeral_key.is_none() {
            return self.dial(link);
        }
        let (function, opening, arrivals) =
            (self.shared.desk.function.clone(), self.opening.clone(), self.arrivals.clone());
        tokio::spawn(async move {
            // The model's set-up is waited for meanwhile: a slow function must leave time to try the key at hand.
            let renewed = match tokio::time::timeout(RENEWED_WITHIN, function.open(&opening, link.0)).await {
                Ok(renewed) => renewed.map_err(|error| error.to_string()),
                Err(_) => Err("the session function takes too long".to_owned()),
            };
            let _ = arrivals.send(Arrival::Renewed(link, renewed)).await;
        });
    }

    fn dial(&mut self, link: Link) {
        let settings = &self.shared.config.model;
        let base = self.opened.url.as_deref().unwrap_or(&settings.url);
        let model = self.opened.model.as_deref().unwrap_or(&settings.name);
        let key = self.opened.ephemeral_key.as_deref().map_or_else(|| self.shared.model_key.clone(), Arc::from);
        let mark = if base.contains('?') { '&' } else { '?' };
        let url = if base.contains("model=") { base.to_owned() } else { format!("{base}{mark}model={model}") };
        let address = link::Address { url, key };
        let (connector, arrivals) = (self.shared.connector.clone(), self.arrivals.clone());
        tokio::spawn(async move {
            let socket = link::open(address, &connector).await;
            let _ = arrivals.send(Arrival::Linked(link, socket)).await;
        });
    }

    fn tool(&mut self, call_id: String, name: String, arguments: String) {
        if name == END_CALL {
            self.tell_model(backend::Input::ToolResult { call_id, output: r#"{"status":"ok"}"#.into() });
            self.tell_call(call::Input::AgentEnds);
            return;
        }
        let (function, opening, arrivals) =
            (self.shared.desk.function.clone(), self.opening.clone(), self.arrivals.clone());
        let (clock, begun) = (self.shared.clock, self.now());
        tokio::spawn(async move {
            let output = function.tool(&opening, &call_id, &name, &arguments).await.map_err(|error| error.to_string());
            let took = clock.now().since(begun);
            let _ = arrivals.send(Arrival::Tool { call_id, name, took, output }).await;
        });
    }

    fn do_for_media(&mut self, output: session::Output) {
        let send = |socket: Option<&UdpSocket>, datagram: &[u8], to: SocketAddr| {
            // A full socket buffer is loss like any other: the next packet is 20 ms away.
            let _ = socket.map(|socket| socket.try_send_to(datagram, to));
        };
        let now = self.now();
        let pair = self.start.pair.as_ref();
        match output {
            session::Output::Rtp { to, datagram } => match &mut self.start.line {
                Some(line) => {
                    let said = line.say(now, &datagram);
                    self.unless_stuck(said);
                }
                None => send(pair.map(|pair| &pair.media), &datagram, to),
            },
            session::Output::Rtcp { to, datagram } => send(pair.map(|pair| &pair.control), &datagram, to),
            // The announcement cannot be interrupted.
            session::Output::Audio(_) if self.is_announcing_consent() => {}
            session::Output::Audio(audio) => self.tell_model(backend::Input::Audio(audio)),
            session::Output::Recorded(sound) => self.recorded(sound),
            session::Output::Digit(digit) => {
                self.write(Entry::Digit { at_ms: self.at_ms() });
                let (answered, output) = self.consent.as_mut().map_or((false, None), |consent| consent.key(digit));
                if let Some(output) = output {
                    self.do_for_consent(output);
                }
                if answered {
                    return;
                }
                self.tell_model(backend::Input::Digit(digit));
            }
            session::Output::Spoken(heard) => match &mut self.start.line {
                // What has left is not heard yet.
                Some(line) => {
                    let marked = line.ended(now, heard);
                    self.unless_stuck(marked);
                }
                None => self.spoken(heard),
            },
            session::Output::Dead => self.tell_call(call::Input::MediaLost),
        }
    }

    /// The caller has heard an item to its end.
    fn spoken(&mut self, heard: Heard) {
        let now = self.now();
        let is_notice = *heard.item == *Announcement::Consent.as_str();
        if let Some(output) = self.consent.as_mut().filter(|_| is_notice).and_then(|asked| asked.announced(now)) {
            self.do_for_consent(output);
        }
        self.tell_model(backend::Input::Spoken(heard));
        if self.media.is_some() && !self.is_speaking() {
            self.tell_call(call::Input::Silent);
            self.refer_when_silent();
        }
    }

    /// Whether there is something to say that was not heard yet.
    fn is_speaking(&self) -> bool {
        self.media.as_ref().is_some_and(|media| media.queued_ms() > 0)
            || self.start.line.as_ref().is_some_and(Line::is_speaking)
    }

    /// Silences the agent at once; what was heard of each item that was cut off.
    fn cut_off(&mut self) -> Vec<Heard> {
        let now = self.now();
        let heard = self.media.as_mut().map(Session::flush).unwrap_or_default();
        let is_announcing = self.is_announcing_consent();
        let Some(line) = self.start.line.as_mut().filter(|_| !is_announcing) else { return heard };
        let (heard, cleared) = line.cut(now, heard);
        self.unless_stuck(cleared);
        self.heard_by_caller();
        heard
    }

    fn line_brings(&mut self, arrived: Arrived) {
        let now = self.now();
        match (arrived, &mut self.media, &mut self.start.line) {
            (Arrived::Packet(packet), Some(media), _) => media.handle_datagram(now, GATEWAY, &packet),
            (Arrived::Digit(digit), Some(media), _) => media.info_digit(now, digit),
            (Arrived::Mark(name), _, Some(line)) => line.echoed(now, &name),
            (Arrived::Packet(_) | Arrived::Digit(_), None, _) | (Arrived::Mark(_), _, None) => {}
        }
        self.heard_by_caller();
    }

    /// What a gateway says that it has played.
    fn heard_by_caller(&mut self) {
        while let Some(heard) = self.start.line.as_mut().and_then(Line::poll_heard) {
            self.spoken(heard);
        }
    }

    /// A gateway that does not take what is said to it is as good as gone.
    fn unless_stuck(&mut self, sent: Result<(), Stuck>) {
        if sent.is_err() {
            self.tell_call(call::Input::MediaLost);
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
        self.write(Entry::Ended { cause, media, at_ms: self.at_ms() });
        self.shared.metrics.ended(cause, report.as_ref());
        self.shared.calls.ended(&self.opening.correlation_id, now, self.at_ms(), cause);
        self.shared.ended(&self.start.trunk.name, &self.start.did.number.0);
        if let Some(pair) = &self.start.pair {
            self.shared.ports.give_back(now, pair.port);
        }
    }
}

/// The figures of a call's media, as they go into its record.
fn figures(report: &session::Report) -> Value {
    json!({
        "packets_received": report.received, "packets_sent": report.sent, "packets_foreign": report.foreign,
        "packets_unknown": report.unknown, "packets_lost": report.counts.lost, "packets_late": report.counts.late,
        "packets_duplicate": report.counts.duplicate, "packets_reordered": report.counts.reordered,
        "longest_gap": report.counts.longest_gap, "concealed_ms": report.concealed_ms, "echo_muted": report.echo_muted,
        "loss_percent": report.loss_percent, "remote_loss_percent": report.remote_loss_percent,
        "jitter_ms": report.jitter_ms, "round_trip_ms": report.round_trip.map(|trip| trip.as_secs_f64() * 1000.0),
        "mos": report.mean_opinion_score,
    })
}

/// What a trunk allows in descriptions.
pub fn policy_of(trunk: &Trunk) -> (&[crate::config::Codec], Vec<Network>) {
    let allowed = trunk.sources.iter().chain(&trunk.media_sources).map(|range| range.0).collect();
    (&trunk.codecs, allowed)
}

/// A refusal as the stack sends it.
pub fn refused(refusal: Refusal) -> Refused {
    let mut headers = Vec::new();
    headers.extend(refusal.retry_after().map(|seconds| ("Retry-After", seconds.to_string())));
    match refusal {
        Refusal::IntervalTooShort => headers.push(("Min-SE", crate::sip::session_timer::MIN_SE.to_string())),
        Refusal::NoCommonCodec => headers.push(("Warning", "305 ihuza \"Incompatible media format\"".into())),
        Refusal::UnsupportedBody => headers.push(("Accept", "application/sdp".into())),
        _ => {}
    }
    Refused { status: refusal.status().unwrap_or(403), headers }
}

fn greeting(direction: Direction, locale: Locale) -> String {
    let language = locale.english_name();
    match direction {
        Direction::Inbound => format!("Greet the caller briefly in {language} and ask how you can help."),
        Direction::Outbound => {
            format!(
                "You are calling somebody, who has just answered. Greet them briefly in {language} and say why you call."
            )
        }
    }
}

/// 32 random bits.
pub fn dice() -> u32 {
    let [a, b, c, d, ..] = Uuid::new_v4().into_bytes();
    u32::from_be_bytes([a, b, c, d])
}
