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
use super::link::{self, Brought, Lines};
use super::log::Level;
use super::ports::Pair;
use super::relay::Shared;
use super::scribe;
use super::session_function::{Opened, Opening};
use super::signalling::{Accepted, Incoming, Refused, Signal};
use crate::backend::realtime::{Realtime, Setup};
use crate::backend::{self, Link, VoiceBackend};
use crate::config::{Did, Trunk};
use crate::journal::entry::Entry;
use crate::media::dtmf;
use crate::media::g711::Law;
use crate::media::playout::ItemId;
use crate::media::session::{self, Session};
use crate::media::source::Network;
use crate::moment::Moment;
use crate::sip::admission::Refusal;
use crate::sip::call::{self, Call, EndCause};
use crate::sip::description::{Agreed, Local, Policy};
use crate::sip::session_timer::{Due, Interval, SessionTimer};
use crate::sip::transfer::{self, Outcome, Transfer};

/// The longest datagram that is looked at.
const MOST_DATAGRAM: usize = 2048;
/// Where a tool's answer says whom the call is to be handed over to.
const TRANSFER_TO: &str = "transfer_to";
/// A tool of our own: the agent says goodbye.
const END_CALL: &str = "end_call";

/// What a call is made of when it is let in.
pub struct Start {
    /// SIP.
    pub incoming: Incoming,
    /// The trunk's Call-ID.
    pub call_sid: String,
    /// By which trunk.
    pub trunk: Trunk,
    /// For which number.
    pub did: Did,
    /// Who calls.
    pub caller: Option<E164>,
    /// Ports for its media.
    pub pair: Pair,
    /// Our end, which has answered the offer.
    pub local: Local,
    /// Our description.
    pub description: String,
    /// What was agreed on; nothing yet if the offer is ours.
    pub agreed: Option<Agreed>,
    /// The session timer.
    pub interval: Option<Interval>,
}

/// What tasks of the call bring back.
enum Arrival {
    Opened(Result<Opened, String>),
    /// A connection to the model, or nothing if it could not be had.
    Linked(Link, Option<Box<link::Socket>>),
    Tool {
        call_id: String,
        name: String,
        took: Duration,
        output: Result<String, String>,
    },
    Refreshed(bool),
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
    timer: Option<SessionTimer>,
    hand_over: Option<HandOver>,
    arrivals: mpsc::Sender<Arrival>,
    record: mpsc::Sender<Entry>,
    ended: Option<EndCause>,
}

/// Carries a call from its INVITE to its end.
pub async fn run(shared: Arc<Shared>, start: Start) {
    let began = shared.clock.now();
    let opening = Opening {
        correlation_id: Uuid::new_v4().to_string(),
        call_sid: start.call_sid.clone(),
        trunk: start.trunk.name.clone(),
        from: start.caller.as_ref().map(|caller| caller.as_str().to_owned()),
        to: start.did.number.0.as_str().to_owned(),
        agent: start.did.agent.clone(),
        locale: start.did.locale.0,
    };
    let record = scribe::begin(shared.desk.clone(), opening.clone());
    let mut gates = Gates::of_this_task().await;
    let (arrivals, mut arrived) = mpsc::channel(16);
    let answer_within = Duration::from_millis(shared.config.sip.answer_within_ms);
    let call = Call::new(began, answer_within, shared.config.limits.longest_call());
    let mut running = Running {
        call,
        opening,
        began,
        model: None,
        opened: Opened::default(),
        lines: Lines::new(shared.clock, &mut gates),
        media: None,
        early: VecDeque::new(),
        timer: None,
        hand_over: None,
        arrivals,
        record,
        ended: None,
        shared: shared.clone(),
        start,
    };
    running.open();
    let mut stop = shared.stop_calls.subscribe();
    let mut stopped = pin!(stop.changed().fuse());
    let [time_gate, media_gate, control_gate, signal_gate, arrival_gate, stop_gate] = [(); 6].map(|()| gates.gate());
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
            Ok((length, from)) = media_gate.pass(|context| receive(&running.start.pair.media, &mut media_buffer, context)) => {
                if let (Some(media), Some(datagram)) = (&mut running.media, media_buffer.get(..length)) {
                    media.handle_datagram(shared.clock.now(), from, datagram);
                }
            }
            brought = running.lines.next() => match brought {
                Brought::Message(link, text) => running.tell_model(backend::Input::Message(link, text)),
                Brought::Gone(link) => running.tell_model(backend::Input::Disconnected(link)),
            },
            signal = signal_gate.pass(|context| running.start.incoming.signals.poll_recv(context)) => match signal {
                Some(signal) => running.signal(signal),
                // The stack has given the dialog up.
                None => running.tell_call(call::Input::HungUp),
            },
            Some(arrival) = arrival_gate.pass(|context| arrived.poll_recv(context)) => running.arrival(arrival),
            Ok((length, from)) = control_gate.pass(|context| receive(&running.start.pair.control, &mut control_buffer, context)) => {
                if let (Some(media), Some(datagram)) = (&mut running.media, control_buffer.get(..length)) {
                    media.handle_control(shared.clock.now(), from, datagram);
                }
            }
            Ok(()) = stop_gate.pass(|context| stopped.as_mut().poll(context)) => running.tell_call(call::Input::Shutdown),
        }
    }
    running.close();
}

/// A datagram: its length, and where it came from.
fn receive(socket: &UdpSocket, buffer: &mut [u8], context: &mut Context<'_>) -> Poll<io::Result<(usize, SocketAddr)>> {
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
        if self.record.try_send(entry).is_err() {
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
        let Opening { correlation_id, call_sid, trunk, from, to, locale, .. } = self.opening.clone();
        self.log(
            "CALL_STARTED",
            Level::Info,
            "a call was let in",
            json!({ "from": from, "to": to, "call_sid": call_sid }),
        );
        self.write(Entry::Opened { correlation_id, call_sid, trunk, from, to, locale, at_ms: self.at_ms() });
        let (function, opening, arrivals) =
            (self.shared.desk.function.clone(), self.opening.clone(), self.arrivals.clone());
        tokio::spawn(async move {
            let opened = function.open(&opening).await.map_err(|error| error.to_string());
            let _ = arrivals.send(Arrival::Opened(opened)).await;
        });
    }

    fn next_timeout(&self) -> Moment {
        let far = self.now() + Duration::from_secs(60);
        let model = self.model.as_ref().and_then(|model| model.next_timeout());
        let media = self.media.as_ref().map(Session::next_timeout);
        let timer = self.timer.as_ref().map(SessionTimer::next_timeout);
        let transfer = self.transfer().map(|transfer| transfer.next_timeout());
        let lines = self.lines.next_timeout();
        [self.call.next_timeout(), model, media, timer, transfer, lines].into_iter().flatten().fold(far, Moment::min)
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
        let Some(header) = self.start.interval.as_ref().map(Interval::header) else { return };
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
        let speaks = self.media.as_ref().is_some_and(|media| media.queued_ms() > 0);
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
        if outcome == Outcome::Confirmed {
            self.tell_call(call::Input::Transferred);
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
        let settings = &self.shared.config.model;
        let locale = opened.locale.unwrap_or(self.opening.locale);
        self.opening.locale = locale;
        let setup = Setup {
            law: self.law(),
            format: settings.format,
            turn_detection: settings.turn_detection,
            instructions: opened.session.instructions.clone().unwrap_or_default(),
            greeting: opened.greeting.clone().unwrap_or_else(|| greeting(locale)),
            voice: settings.voice.clone(),
            tools: opened.session.tools.clone(),
            roll_over_after: Duration::from_secs(settings.roll_over_minutes * 60),
        };
        self.opened = opened;
        let now = self.now();
        let mut model = Realtime::new(now, setup);
        model.handle_input(now, backend::Input::Greet);
        self.model = Some(model);
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
            Signal::Reoffer { offer, session_expires, supports_timer, answer } => {
                let decided = self.reoffer(&offer, session_expires.as_deref(), supports_timer);
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
        }
        self.tell_call(call::Input::Acknowledged);
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
            call::Output::Apologise => self.announce(Announcement::Apology),
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
        if agreed.on_hold {
            media.redescribe(now, agreed.remote, agreed.remote_control, true);
        }
        self.media = Some(media);
        for output in std::mem::take(&mut self.early) {
            self.do_for_model(output);
        }
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
                let heard = self.media.as_mut().map(Session::flush).unwrap_or_default();
                if !heard.is_empty() {
                    self.shared.metrics.interrupted();
                    self.tell_model(backend::Input::Cut(heard));
                }
            }
            backend::Output::Said { speaker, text, locale, interrupted } => {
                self.write(Entry::Said { speaker, text, locale, interrupted, at_ms: self.at_ms() });
            }
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
        let send = |socket: &tokio::net::UdpSocket, datagram: &[u8], to: SocketAddr| {
            // A full socket buffer is loss like any other: the next packet is 20 ms away.
            let _ = socket.try_send_to(datagram, to);
        };
        match output {
            session::Output::Rtp { to, datagram } => send(&self.start.pair.media, &datagram, to),
            session::Output::Rtcp { to, datagram } => send(&self.start.pair.control, &datagram, to),
            session::Output::Audio(audio) => self.tell_model(backend::Input::Audio(audio)),
            session::Output::Digit(digit) => {
                self.write(Entry::Digit { at_ms: self.at_ms() });
                self.tell_model(backend::Input::Digit(digit));
            }
            session::Output::Spoken(heard) => {
                self.tell_model(backend::Input::Spoken(heard));
                if self.media.as_ref().is_some_and(|media| media.queued_ms() == 0) {
                    self.tell_call(call::Input::Silent);
                    self.refer_when_silent();
                }
            }
            session::Output::Dead => self.tell_call(call::Input::MediaLost),
        }
    }

    fn close(mut self) {
        let now = self.now();
        let cause = self.ended.unwrap_or(EndCause::Shutdown);
        // What the agent was saying is told as far as it was heard.
        let heard = self.media.as_mut().map(Session::flush).unwrap_or_default();
        self.tell_model(backend::Input::Cut(heard));
        if let Some(media) = &mut self.media {
            media.end(now);
        }
        self.carry_out();
        self.lines.close_all();
        let report = self.media.as_ref().map(Session::report);
        let media = report.as_ref().map_or(Value::Null, figures);
        self.log("CALL_ENDED", Level::Info, cause.as_str(), json!({ "cause": cause.as_str(), "media": media }));
        self.write(Entry::Ended { cause, media, at_ms: self.at_ms() });
        self.shared.metrics.ended(cause, report.as_ref());
        self.shared.ended(&self.start.trunk.name, &self.start.did.number.0);
        self.shared.ports.give_back(now, self.start.pair.port);
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

fn greeting(locale: Locale) -> String {
    format!("Greet the caller briefly in {} and ask how you can help.", locale.english_name())
}

/// 32 random bits.
pub fn dice() -> u32 {
    let [a, b, c, d, ..] = Uuid::new_v4().into_bytes();
    u32::from_be_bytes([a, b, c, d])
}
